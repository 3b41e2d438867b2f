"""The command line: ``unveil restore photo.jpg --task deblur`` and its companions.

Exit status: 0 done, 1 a property suite found a broken promise, 2 the input cannot be used (one line says why and what
to do), 3 the run diverged, 130 interrupted. Everything else is a bug, and shows its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer
from rich.console import Console

from .._version import __version__
from ..errors import InputError, UnveilError
from . import learn
from .bench import bench
from .tune import tune
from .words import Boundary, Device, Kernel, Kind, Mask, NoiseStd, Options, Photo, Scale, Seed, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..app.reconstruct import Reconstruction
    from ..app.restore import Outcome

T = TypeVar("T")
# newer versions of typer bring a click of their own: this is its UsageError, wherever it is
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Photographs and other signals from incomplete, noisy measurements, with diffusion models as priors.",
)
app.add_typer(bench, name="bench")
app.command()(learn.train)
app.command()(learn.fit)
app.command()(tune)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"unveil {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version


@app.command()
def restore(
    photo: Annotated[Path | None, typer.Argument(help="Image file of any size.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="inpaint, deblur, superres, denoise or colorize.")] = None,
    measured: Annotated[
        bool, typer.Option("--measured", help="The file is the degraded image; else it is clean, and degraded first.")
    ] = False,
    mask: Mask = None,
    kernel: Kernel = None,
    boundary: Boundary = None,
    scale: Scale = None,
    kind: Kind = None,
    noise: NoiseStd = None,
    solver: Annotated[str, typer.Option(help="Name of a solver (unveil list solvers), or auto.")] = "auto",
    options: Options = None,
    samples: Annotated[
        int, typer.Option(help="Samples of the posterior; with more than one, mean and spread are shown.")
    ] = 1,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    seed: Seed = 0,
    goal: Annotated[
        str | None, typer.Option(help="sample, mmse (least error) or map; mmse for one sample, else sample.")
    ] = None,
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
    budget: Annotated[
        str | None,
        typer.Option(help="With --solver auto: nfe:NUMBER of evaluations per sample, seconds:NUMBER.", metavar="LIMIT"),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Make the run of a recipe.toml again, to the bit; or take solver and options of unveil tune."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; absent or empty.")] = Path("restored"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Restore a photograph: degrade a clean one first and score the result, or take a --measured one."""
    from ..app.restore import again
    from ..app.restore import restore as run
    from ..app.tasks import Asked, parse_options
    from ..app.tune import with_recipe

    asked = Asked(
        task or "", measured, mask, kernel, boundary, scale, kind, noise, solver, parse_options(options or []),
        samples, steps, seed, goal, prior, chunk, threads, device or "auto", sigma_start, budget,
    )  # fmt: skip
    if recipe is not None:
        tuned = with_recipe(asked, recipe)
        if tuned is None:
            _finish(lambda: again(recipe, out, photo, quiet, device), out, _tell_photo)
            return
        asked = tuned
    if photo is None or task is None:
        missing = "a photograph" if photo is None else "--task inpaint, deblur, superres, denoise or colorize"
        raise InputError(f"restore needs {missing} (see unveil restore --help)")
    _finish(lambda: run(photo, asked, out, quiet), out, _tell_photo)


@app.command()
def reconstruct(
    file: Annotated[
        Path,
        typer.Argument(help="Measured data: .h5 .npy .npz .mat .nii .fits .tif .dng, DICOM; FILE:NAME for one array."),
    ],
    instrument: Annotated[
        str, typer.Option(help="mri, ct, pet, mosaic, interferometer or diffraction.", show_default=False)
    ],
    config: Annotated[
        Path | None, typer.Option(help="instrument.toml: geometry, maps, axes, noise.", show_default=False)
    ] = None,
    prior: Annotated[str, typer.Option(help="Name (unveil list priors) or .safetensors file.")] = "photos",
    solver: Annotated[str, typer.Option(help="Name of a solver (unveil list solvers), or auto.")] = "auto",
    options: Options = None,
    samples: Annotated[int, typer.Option(help="Samples of the posterior; their spread is the uncertainty.")] = 8,
    steps: Annotated[int | None, typer.Option(help="Steps of the solver.")] = None,
    seed: Annotated[int, typer.Option(help="Of the samples.")] = 0,
    truth: Annotated[
        Path | None, typer.Option(help="A file of images in the data's units, to score with.", show_default=False)
    ] = None,
    chunk: Annotated[str, typer.Option(help="Samples computed together.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Device = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Take solver, options and steps of unveil tune.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results; absent or empty.")] = Path("reconstructed"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Reconstruct measured data of an instrument, with an uncertainty map, beside the classical methods."""
    from ..app.reconstruct import reconstruct as run
    from ..app.tasks import Asked, parse_options
    from ..app.tune import with_recipe

    asked = Asked(
        instrument, solver=solver, options=parse_options(options or []), samples=samples, steps=steps, seed=seed,
        prior=prior, chunk=chunk, threads=threads, device=device or "auto",
    )  # fmt: skip
    if recipe is not None:
        tuned = with_recipe(asked, recipe)
        if tuned is None:
            raise InputError(f"{recipe} is no recipe of unveil tune")
        asked = tuned
    _finish(lambda: run(file, instrument, config, asked, out, truth, quiet), out, _tell_scan)


@app.command()
def resume(
    folder: Annotated[
        Path, typer.Argument(help="Folder of an interrupted restore or reconstruct.", show_default=False)
    ],
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Go on with an interrupted run, to the bits of one without interruption."""
    from ..app.reconstruct import is_reconstruction
    from ..app.reconstruct import resume as go_on
    from ..app.restore import resume as run

    if is_reconstruction(folder):
        _finish(lambda: go_on(folder, quiet), folder, _tell_scan)
    else:
        _finish(lambda: run(folder, quiet), folder, _tell_photo)


def _finish(work: Callable[[], T | None], out: Path, tell: Callable[[T], bool]) -> None:
    """Do the work of a run that can be interrupted, and say how it ended; ``tell`` says whether all is well."""
    try:
        outcome = work()
    except KeyboardInterrupt:
        if (out / "problem.safetensors").exists():
            print(f"\ninterrupted; to go on: unveil resume {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    if outcome is None:
        print(f"the run in {out} is complete: see {out / 'report.html'}")
        return
    well = tell(outcome)
    if (out / "report.html").exists():  # a reconstruction that diverged has none
        print(f"report: {out / 'report.html'}")
    if not well:
        raise typer.Exit(3)


def _tell_photo(outcome: Outcome) -> bool:
    from ..app.restore import failed

    for note in outcome.job.notes:
        print(f"note: {note}")
    print(outcome.result.summary())
    print(f"data misfit: {outcome.words}")
    for name, values in outcome.scores.items():
        label = f"{name} ({outcome.baseline})" if name == "baseline" else name
        print(f"{label:<36} {_scores(values)}")
    return not failed(outcome)


def _tell_scan(outcome: Reconstruction) -> bool:
    from ..app.reconstruct_page import held, mean_scores

    for note in outcome.scan.notes:
        print(f"note: {note}")
    first = outcome.slices[0].result.recipe
    print(f"solver: {first['solver']}, {first['steps']} steps{f': {outcome.reason}' if outcome.reason else ''}")
    for number, part in zip(outcome.scan.slices, outcome.slices, strict=True):
        print(f"slice {number}: {part.result.summary()}")
    print(f"data misfit: {outcome.words}")
    for name, values in mean_scores(outcome).items():
        print(f"{name:<26} {_scores(values)}" + (f"  {held(values)}" if "coverage" in values else ""))
    return not outcome.failed


def _scores(values: Mapping[str, float]) -> str:
    return f"PSNR {values['psnr']:6.2f} dB" + (f"  SSIM {values['ssim']:.4f}" if "ssim" in values else "")


@app.command()
def simulate(
    photo: Photo,
    task: Task,
    out: Annotated[Path, typer.Option(help="The degraded image: a .png, written with 16 bits.")] = Path("measured.png"),
    mask: Mask = None,
    kernel: Kernel = None,
    boundary: Boundary = None,
    scale: Scale = None,
    kind: Kind = None,
    noise: NoiseStd = None,
    seed: Seed = 0,
) -> None:
    """Degrade a clean photograph and write the measurement, for restore --measured."""
    from ..app.simulate import simulate as run
    from ..app.tasks import Asked

    asked = Asked(task, False, mask, kernel, boundary, scale, kind, noise, seed=seed)
    for line in run(photo, asked, out):
        print(line)


@app.command()
def sample(
    prior: Annotated[str, typer.Argument(help="Name (unveil list priors) or file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="A sheet of images (.png), or all values (.npy).")] = Path("samples.png"),
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 16,
    size: Annotated[
        str | None, typer.Option(help="Of a prior that takes any size, as 128 or 96x128 (default: 64).")
    ] = None,
    sampler: Annotated[str, typer.Option(help="ancestral, ddim, heun or dpmpp-2m.")] = "dpmpp-2m",
    steps: Annotated[int, typer.Option(min=1, help="Noise levels.")] = 32,
    label: Annotated[int | None, typer.Option(help="Class, of a prior that has classes.")] = None,
    text: Annotated[str | None, typer.Option(help="Of a prior that takes texts, as emoji.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance towards the condition: 1 is none.")
    ] = None,
    seed: Seed = 0,
    chunk: Annotated[int, typer.Option(min=1, help="Samples computed together.")] = 16,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Draw from a prior itself, without a measurement: what does it know?"""
    from ..app.sample import Wanted, draw

    wanted = Wanted(prior, count, size, sampler, steps, label, text, guidance, seed, chunk, device or "auto")
    for line in draw(wanted, out, quiet):
        print(line)


@app.command("list")
def list_(what: Annotated[str, typer.Argument(help="solvers, operators or priors.", show_default=False)]) -> None:
    """List what there is, with a line on each."""
    from ..app.show import listing

    listing(what, Console())


@app.command()
def show(name: Annotated[str, typer.Argument(help="A solver, operator or prior.", show_default=False)]) -> None:
    """Show a solver (paper, equations, needs, options, card), an operator or a prior."""
    from ..app.show import show as run

    run(name, Console())


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(help="FILE.py, FILE.py:NAME, MODULE:NAME, or a registered name.", show_default=False)
    ],
) -> None:
    """Run the property suites on your own solver, operator or prior."""
    from ..app.check import check as run

    if not run(target, Console()):
        raise typer.Exit(1)


@app.command()
def calibrate(
    solver: Annotated[str, typer.Option(help="Name of a solver (unveil list solvers).", show_default=False)],
    problem: Annotated[
        str | None,
        typer.Option(help="A problem of the ruler, or FILE.py:NAME, a tuple of prior, operator and noise."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="inpaint, deblur, superres, denoise or colorize.")] = None,
    prior: Annotated[str | None, typer.Option(help="With --task: name or file (default: photos).")] = None,
    size: Annotated[int | None, typer.Option(help="With --task: side of the pictures, if the prior has none.")] = None,
    mask: Mask = None,
    kernel: Kernel = None,
    boundary: Boundary = None,
    scale: Scale = None,
    kind: Kind = None,
    noise: NoiseStd = None,
    assumed: Annotated[
        float | None, typer.Option(help="Noise that the solver is told, if not the true one.", metavar="STD")
    ] = None,
    truths: Annotated[
        Path | None, typer.Option(help="Folder of pictures instead of draws of the prior: judges the prior too.")
    ] = None,
    trials: Annotated[int, typer.Option(help="Signals that are drawn, measured and restored.")] = 200,
    samples: Annotated[int, typer.Option(help="Samples of each posterior.")] = 63,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the solver.")] = None,
    options: Options = None,
    level: Annotated[float, typer.Option(help="Share of perfect solvers that are called otherwise.")] = 0.05,
    seed: Seed = 0,
    device: Device = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the figures and the trials; the same command goes on from there.")
    ] = Path("calibration"),
) -> None:
    """Test a solver's uncertainty: ranks and expected coverage over many simulated trials, and a verdict."""
    from ..app.calibrate import Wanted
    from ..app.calibrate import run as calibrated
    from ..app.tasks import Asked, parse_options

    asked = None if task is None else Asked(task, False, mask, kernel, boundary, scale, kind, noise, seed=seed)
    of_task = {"prior": prior, "size": size, "noise": noise, "mask": mask, "kernel": kernel}
    for name, value in (of_task | {"boundary": boundary, "scale": scale, "kind": kind}).items():
        if value is not None and task is None:
            raise InputError(f"--{name} belongs to --task: leave it out with --problem")
    wanted = Wanted(
        solver, problem, asked, prior, size, parse_options(options or []), trials, samples, steps, seed, assumed,
        truths, level, device or "cpu",
    )  # fmt: skip
    console = Console(stderr=True)
    try:
        with console.status(f"0 of {trials} trials") as status:
            found = calibrated(wanted, out, lambda done: status.update(f"{done} of {trials} trials"))
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on with the trials in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    print(found.verdict())
    print(f"figures: {out / 'ranks.png'}, {out / 'coverage.png'}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report; absent or empty.")] = Path("demo"),
    photo: Annotated[Path | None, typer.Option(help="Another photograph than the one that ships.")] = None,
    device: Device = None,
) -> None:
    """Inpainting, deblurring and super-resolution of a photograph, with several solvers, in one report."""
    from ..app.demo import demo as run

    print(f"report: {run(out, photo, Console(), device=device or 'auto')}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (of this process, if no arguments are given); returns the exit status."""
    try:
        status = app(arguments, standalone_mode=False)
        print(end="", flush=True)
    except UnveilError as error:
        print(f"unveil: {_one_line(str(error))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except UsageError as error:
        message = _one_line(error.format_message())  # type: ignore[attr-defined]
        if message:  # none where the help was asked for by saying nothing
            print(f"unveil: {message}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()
        print(f"unveil: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


def _drop_output() -> None:
    """Let go of output that cannot be written: Python would complain about it once more when it ends."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(text: str) -> str:
    return " ".join(text.split())
