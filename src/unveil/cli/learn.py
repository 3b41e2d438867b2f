"""The commands that learn: ``unveil train`` and ``unveil fit``."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .words import Boundary, Device, Kernel, Kind, Mask, NoiseStd, Options, Photo, Scale, Seed, Task


def train(
    card: Annotated[
        Path | None,
        typer.Argument(help="TOML with \\[network], \\[data] and \\[training], or a prior's name.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and the log (default: the prior's name).", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="Another total than the card's; with --resume the rest is planned anew.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A folder of your own images, instead of a card.", show_default=False)
    ] = None,
    size: Annotated[int, typer.Option(help="With --data: side of the crops.")] = 64,
    prior_name: Annotated[str, typer.Option(help="With --data: what to call the prior.")] = "mine",
    workers: Annotated[int, typer.Option(help="With --data: processes of one thread each.")] = 1,
    cache: Annotated[Path | None, typer.Option(help="Where packages and packed images are kept.")] = None,
    device: Annotated[str, typer.Option(help="auto (a CUDA device if there is one, else cpu), cpu or cuda.")] = "auto",
) -> None:
    """Train a prior: one of the zoo from its packages, or one for your own images. Ends in a .safetensors file."""
    from ..training import checkpoint
    from ..training.export import export, write_table
    from ..training.own import find_card, own_card, write_card
    from ..training.recipe import read_card
    from ..training.train import refuse_run
    from ..training.train import train as run

    if (card is None) == (data is None):
        raise InputError("train needs a card, a prior's name, or --data FOLDER with images: one of them")
    if card is not None:
        card = find_card(card)
        name = str(read_card(card).get("name") or card.stem)
        words = [str(card)]
    else:
        assert data is not None
        name = prior_name
        words = ["--data", str(data), "--size", str(size), "--prior-name", name, "--workers", str(workers)]
    folder = Path(name) if out is None else out
    if data is not None:
        card = folder / "card.toml"
        if not resume:
            refuse_run(folder)  # before its card is written over
        if not (resume and card.is_file()):
            write_card(card, own_card(data, name, size, steps or 4000, workers))
    assert card is not None
    try:
        last = run(card, folder, resume=resume, data=cache, steps=steps, device=device)
    except KeyboardInterrupt:
        newest = checkpoint.newest(folder)
        words += ["--out", str(folder), "--resume"]
        for option, value in (("--steps", steps), ("--cache", cache), ("--device", device)):
            words += [] if value in (None, "auto") else [option, str(value)]
        again = shlex.join(["unveil", "train", *words])
        go_on = f"; to go on from {newest.name}: {again}" if newest else ""
        print(f"\ninterrupted{go_on or ' before the first checkpoint'}", file=sys.stderr)
        raise typer.Exit(130) from None
    if os.environ.get("RANK", "0") == "0":
        texts = write_table(read_card(card), cache, folder)
        print(export(last, folder / f"{name}.safetensors", name, texts))


def fit(
    solver: Annotated[str, typer.Argument(help="A solver that learns: score-prior, ...", show_default=False)],
    photo: Photo,
    task: Task,
    out: Annotated[Path, typer.Option(help="What was learned: a .safetensors file.", show_default=False)],
    measured: Annotated[bool, typer.Option("--measured", help="The file is the degraded image.")] = False,
    mask: Mask = None,
    kernel: Kernel = None,
    boundary: Boundary = None,
    scale: Scale = None,
    kind: Kind = None,
    noise: NoiseStd = None,
    options: Options = None,
    steps: Annotated[int | None, typer.Option(help="Steps of learning.")] = None,
    seed: Seed = 0,
    prior: Annotated[str, typer.Option(help="Name (unveil list priors) or .safetensors file.")] = "photos",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted fit, same words.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Let a solver learn ahead of time; restore --solver NAME --set fitted=FILE then draws from it in one step."""
    from ..app.fit import fit as run
    from ..app.tasks import Asked, parse_options
    from ..run.fit import unfinished

    asked = Asked(
        task, measured, mask, kernel, boundary, scale, kind, noise, solver, parse_options(options or []),
        steps=steps, seed=seed, prior=prior, threads=threads, device=device or "auto",
    )  # fmt: skip
    try:
        for line in run(photo, asked, out, resume, quiet):
            print(line)
    except KeyboardInterrupt:
        go_on = "; to go on: the same command with --resume" if unfinished(out).exists() else ""
        print(f"\ninterrupted{go_on}", file=sys.stderr)
        raise typer.Exit(130) from None
