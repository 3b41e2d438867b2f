"""``unveil tune``: options of a solver that suit a problem."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .words import Boundary, Device, Kernel, Kind, Mask, NoiseStd, Options, Scale, Seed


def tune(
    what: Annotated[
        str,
        typer.Argument(
            help="A photograph (with --task), a file of an instrument (with --instrument), or FILE.py:NAME, a tuple of "
            "prior and problem.",
            metavar="PHOTO|FILE|FILE.py:NAME",
            show_default=False,
        ),
    ],
    solver: Annotated[str, typer.Option(help="Name of a solver (unveil list solvers).", show_default=False)],
    objective: Annotated[
        str | None,
        typer.Option(
            help="discrepancy (the misfit is that of the noise), gsure (estimated error; linear operator, Gaussian "
            "noise) or images (with --calibration); default: images with --calibration, else discrepancy."
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--options",
            help="What is searched, and where: NAME, NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A|B; several with "
            "commas, or repeated (default: what is declared for the solver).",
            metavar="RANGES",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Runs in all; the first is the solver as it is.")] = 30,
    calibration: Annotated[
        Path | None, typer.Option(help="Folder of clean pictures that are degraded alike, to judge by.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="With --calibration: how many of them, at most.")] = 8,
    score: Annotated[str, typer.Option(help="With --calibration: psnr, mse, perceptual or crps.")] = "psnr",
    task: Annotated[str | None, typer.Option(help="inpaint, deblur, superres, denoise or colorize.")] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="The photograph is the degraded image; else it is degraded first.")
    ] = False,
    mask: Mask = None,
    kernel: Kernel = None,
    boundary: Boundary = None,
    scale: Scale = None,
    kind: Kind = None,
    noise: NoiseStd = None,
    instrument: Annotated[
        str | None, typer.Option(help="mri, ct, pet, mosaic, interferometer or diffraction.", show_default=False)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="With --instrument: instrument.toml.", show_default=False)] = None,
    fixed: Options = None,
    samples: Annotated[int, typer.Option(help="Samples in each trial.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    seed: Seed = 0,
    probes: Annotated[int, typer.Option(help="With gsure: random directions of its divergence.")] = 1,
    prior: Annotated[str, typer.Option(help="Name (unveil list priors) or .safetensors file.")] = "photos",
    chunk: Annotated[str, typer.Option(help="Samples computed together.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Device = None,
    sigma_start: Annotated[
        float | None,
        typer.Option(
            help="Start at the regularised inverse with noise of this level (white is 1); all steps go below it."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The recipe; trials are kept beside it, and the same command goes on from there.")
    ] = Path("tuned.toml"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Find options of a solver for a problem, without a reference or by clean images; restore --recipe uses them."""
    from ..app.tasks import Asked, parse_options
    from ..app.tune import Wanted, run, trials_file

    asked = Asked(
        task or "", measured, mask, kernel, boundary, scale, kind, noise, solver, parse_options(fixed or []),
        samples, steps, seed, "mmse", prior, chunk, threads, device or "auto", sigma_start,
    )  # fmt: skip
    ranges = tuple(part for word in options or [] for part in word.split(",") if part)
    wanted = Wanted(
        what, asked, instrument, config, objective, calibration, pictures, score, ranges, trials, probes
    )  # fmt: skip
    try:
        found = run(wanted, out, quiet)
    except KeyboardInterrupt:
        kept = trials_file(out)
        go_on = f"; the same command goes on with the trials in {kept}" if kept.exists() else ""
        print(f"\ninterrupted{go_on}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(found)
    command = "unveil reconstruct" if instrument else "unveil restore"
    print(f"recipe: {out}, for {command} ... --recipe {out}")
