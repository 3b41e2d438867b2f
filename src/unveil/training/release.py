"""Turn a finished run into a prior of the zoo: weights, card, credits and a sheet of samples.

    python -m unveil.training.release RUN CARD --zoo FOLDER [--cache DIR] [--baselines FILE] [--sheet PNG]

Writes NAME.safetensors, NAME.toml (the card that the training was started with, and what came of it), NOTICE.NAME.txt
(credits of the data) and the sheet: samples in the upper rows (of texts that were held out, where there are texts),
then held-out images, the same with noise of 50/255, and denoised. Of an autoencoder: images, and what comes back. NAME
is the card's.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, UnveilError
from ..io.atomic import write_text
from . import checkpoint, data, judge
from .evaluate import LEVELS, held_out, measure, noisy
from .export import export, load_network, write_table
from .latents import Latents
from .notice import notice
from .objectives import Objective, objective, validate
from .recipe import Recipe, read_card
from .samples import sample, sheet
from .sources import Images, Source, open_source

PACKAGES = ("torch", "numpy", "pillow", "transformers")


def run_table(run: Path, card: Path) -> dict[str, Any]:
    """The `[run]` table of a card: what the training in the folder `run` was, and its first stage if it has one."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    table = {"command": f"unveil train {card.name} --out RUN", **_effort(run)}
    commit = _commit()
    table |= {"commit": commit} if commit else {}
    return {**table, "versions": versions, **_before(run)}


def _before(run: Path) -> dict[str, Any]:
    """The effort of the stage before, and of the one before that."""
    first = run / "first"
    return {"first": {**_effort(first), **_before(first)}} if checkpoint.newest(first) else {}


def _effort(run: Path) -> dict[str, Any]:
    folder = checkpoint.newest(run)
    assert folder is not None
    shared = checkpoint.read_part(folder, "shared")
    steps, recipe = shared["step"], shared["recipe"]
    workers = [checkpoint.read_part(folder, f"worker-{k}") for k in range(recipe["workers"])]
    return {
        "steps": steps,
        "images_seen": steps * recipe["batch"] * recipe["workers"],
        "wall_hours": round(shared["seconds"] / 3600, 2),
        "cpu_hours": round(sum(w["cpu_seconds"] for w in workers) / 3600, 2),
    }


def _commit() -> str:
    """The commit that this code is, where it lies in a repository."""
    try:
        said = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return ""
    return said.stdout.strip() if said.returncode == 0 else ""


def card_text(start: str, header: dict[str, Any], run: dict[str, Any], results: dict[str, Any], steps: Recipe) -> str:
    """The text of a card: the one that the training was started with, with its header and two tables added."""
    first = re.search(r"^\[", start, re.M)
    cut = first.start() if first else len(start)
    body, mark, training = start[cut:].partition("[training]\n")
    end = re.search(r"^\[", training, re.M)  # of [training.first] nothing has changed
    training, rest = (training[: end.start()], training[end.start() :]) if end else (training, "")
    for key in ("steps", "decay_steps", "warmup_from"):  # --steps may have changed them on the way
        training = re.sub(rf"^{key} = \d+$", f"{key} = {getattr(steps, key)}", training, flags=re.M)
    body += mark + training + rest
    made, middle = (_on_one_line(tomli_w.dumps(t)) for t in (header, {"run": run, "results": results}))
    return f"{start[:cut].rstrip()}\n{made}\n{middle}\n{body}"


def _on_one_line(toml: str) -> str:
    """TOML with each of its arrays on one line."""
    return re.sub(r"\[\n([^\[\]]*),\n\]", lambda m: "[" + ", ".join(m[1].split(",\n")).replace("    ", "") + "]", toml)


def figure(
    task: Objective, network: torch.nn.Module, meta: dict[str, Any], source: Source, images: Tensor, count: int
) -> list[Tensor]:
    """Rows of the sheet; see the module."""
    spread = slice(0, None, max(1, len(images) // count))
    if task.predicts == "code":
        few = images[spread][:count]
        return [few, task.denoise(network, few, 0.0, {})]
    shape = (4 * count, meta["shape"][0], *([meta["shape"][1] or 64] * 2))
    config = meta["config"]
    known = source.held_out(meta["shape"][1] or 64, shape[0])[1] if config.get("texts") else {}
    if config.get("classes"):
        known = {"label": torch.arange(shape[0]) % config["classes"]}
    if known:
        shape = (min(shape[0], len(next(iter(known.values())))), *shape[1:])
    x = sample(task, network, shape, conditions=known, guidance=3.0 if "text" in known else 1.0)
    if isinstance(source, Latents):
        rows = [*torch.split(source.decode(x), count)]
        return [*rows, source.decode(images[spread][:count])]
    rows = [*torch.split(x, count)]
    size = shape[2]
    top, left = (images.shape[2] - size) // 2, (images.shape[3] - size) // 2
    few, dirty = (p[spread][:count, :, top : top + size, left : left + size] for p in (images, noisy(images, 50)))
    return [*rows, few, dirty, task.denoise(network, dirty, 50 / 127.5, {})]


def judged(
    task: Objective, network: torch.nn.Module, source: Source, card: dict[str, Any], cache: Path | None, count: int
) -> dict[str, Any]:
    """What the samples of a network with conditions are taken for (see `judge`)."""
    config = card.get("network", {})
    if isinstance(source, Images) and config.get("classes"):
        return {"judged": judge.digits(task, network, source.pack, count)}
    if isinstance(source, Images | Latents) and config.get("texts"):
        wheel = data.fetch(card["data"]["encoder"], data.default_cache() if cache is None else cache)
        decode = source.decode if isinstance(source, Latents) else None
        size = card["training"]["size"]
        shape = (source.channels, size, size)
        return {"judged": judge.emoji(task, network, source.pack, wheel, shape, decode, min(100, count))}
    return {}


def denoising(
    weights: Path, card: Path, cache: Path | None, baselines: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The tables of PSNR for a card's `[results]`."""
    table = measure(weights, card, cache, baselines, say)
    out = {"images": table.pop("images"), "cpu_seconds_per_image": table.pop("cpu seconds per call")}
    return out | {k: {str(s): v[str(s)] for s in LEVELS if str(s) in v} for k, v in table.items() if "widths" not in k}


def release(
    run: Path,
    card: Path,
    zoo: Path,
    *,
    cache: Path | None = None,
    baselines: Path | None = None,
    picture: Path | None = None,
    samples: int = 2000,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the files (see the module); returns the card's path. Weights come last: without them there is no prior."""
    tables = read_card(card)
    name = tables.get("name") or card.stem
    folder = checkpoint.newest(run)
    if folder is None:
        raise CheckpointError(f"There is no checkpoint in {run}: train first.")
    shared = checkpoint.read_part(folder, "shared")
    recipe = Recipe.from_table(shared["recipe"])
    if shared["step"] < recipe.steps:
        raise InputError(f"{run} is at step {shared['step']} of {recipe.steps}: finish the training first.")
    task = objective(recipe.objective, recipe.sigma_data)
    source = open_source(tables["data"], recipe, cache)
    texts = write_table(tables, cache, zoo)
    weights = export(run, run / f"{name}.safetensors", name, texts)
    network, meta = load_network(weights)
    images, _ = held_out(source, recipe)
    sheet(figure(task, network, meta, source, images, 10 if recipe.size <= 32 else 8), picture or zoo / f"{name}.png")
    say("sheet drawn")
    if task.predicts == "code":
        results: dict[str, Any] = {"reconstruction_psnr": validate(task, network, images)["0"], "images": len(images)}
    elif isinstance(source, Latents):
        results = {}
    else:
        results = denoising(weights, card, cache, baselines, say)
    results |= judged(task, network, source, tables, cache, samples)
    header = {
        "shape": [n or "any" for n in meta["shape"]],
        "value_range": meta["value_range"],
        "sigma_range": meta["sigma_range"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "file": f"{name}.safetensors",
        "sha256": data.checksum(weights),
    }
    text = card_text(card.read_text(encoding="utf-8"), header, run_table(run, card), results, recipe)
    write_text(zoo / f"NOTICE.{name}.txt", notice(tables, cache))
    written = write_text(zoo / f"{name}.toml", text)
    export(run, zoo / f"{name}.safetensors", name, texts)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Write the files of a prior; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m unveil.training.release", description="Make a run a prior.")
    parser.add_argument("run", type=Path, help="folder of a finished training")
    parser.add_argument("card", type=Path, help="the card that it was started with")
    parser.add_argument("--zoo", type=Path, required=True, help="folder for the files")
    parser.add_argument("--cache", type=Path, help="cache of packages and images (default: $UNVEIL_DATA)")
    parser.add_argument(
        "--baselines", type=Path, help="JSON of the baselines: read if there, else measured and written"
    )
    parser.add_argument("--sheet", type=Path, help="where the sheet goes (default: beside the card)")
    parser.add_argument("--samples", type=int, default=2000, help="samples that the classifier of digits sees")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        written = release(
            given.run,
            given.card,
            given.zoo,
            cache=given.cache,
            baselines=given.baselines,
            picture=given.sheet,
            samples=given.samples,
        )
    except UnveilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
