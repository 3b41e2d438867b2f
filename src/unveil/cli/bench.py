"""``unveil bench``: the measurements, each resumable, as commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import InputError
from .words import Device

bench = typer.Typer(no_args_is_help=True, help="Measure solvers.")


@bench.command()
def exact(
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer problems and samples.")] = False,
    write_cards: Annotated[bool, typer.Option("--write-cards", help="Renew the solvers' cards.")] = False,
) -> None:
    """Measure every solver's distance to posteriors that are known exactly."""
    from ..bench.cards import run_exact_cli
    from ..registry import lookup

    for name in solver or []:
        lookup("solver", name)
    raise typer.Exit(run_exact_cli(solver, quick, write_cards))


@bench.command("nonlinear")
def bench_nonlinear(
    out: Annotated[Path, typer.Option(help="Results, a row for each run; a run goes on from what is there.")] = Path(
        "nonlinear.jsonl"
    ),
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    problem: Annotated[list[str] | None, typer.Option(help="Only this problem; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(min=20, help="Samples of each run, 500 at most.")] = 200,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each problem, with seeds from 0 on.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Measure solvers on lost phases, clipping, few bits and photon counts, against reference posteriors."""
    from ..bench.exact import EXACT, run_nonlinear
    from ..bench.tables import nonlinear_table

    rows = run_nonlinear(
        out,
        solver,
        problem,
        samples,
        runs,
        workers,
        lambda r: print(
            f"{r['solver']} {r['setting']} on {r['problem']}, seed {r['seed']}: {r['status']}, {r['seconds']:.1f} s",
            file=sys.stderr,
        ),
    )
    shown = [row for row in rows if not solver or row["solver"] in (EXACT, *solver)]
    print(nonlinear_table(shown), end="")
    raise typer.Exit(int(any(row["status"] != "DONE" for row in shown)))


@bench.command("mixtures")
def bench_mixtures(
    out: Annotated[Path, typer.Option(help="Results, a row for each cell; a run goes on from what is there.")] = Path(
        "mixtures.jsonl"
    ),
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    dimension: Annotated[list[int] | None, typer.Option("-d", help="8, 80 or 800; may be repeated.")] = None,
    measurement: Annotated[list[int] | None, typer.Option("-m", help="1, 2 or 4; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Problems of each cell.")] = 20,
    samples: Annotated[int, typer.Option(min=2, help="Samples, or particles, of each problem.")] = 1000,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, else each solver's own number.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    budget: Annotated[
        float, typer.Option(min=0, help="Seconds for a solver on a cell: once they are spent, five problems must do.")
    ] = 60,
) -> None:
    """Measure solvers on mixtures of 25 Gaussians, up to 800 dimensions, whose posteriors are known exactly."""
    from ..bench import mixtures

    rows = mixtures.run(
        out,
        solver,
        dimension or mixtures.DIMENSIONS,
        measurement or mixtures.MEASUREMENTS,
        seeds,
        samples,
        steps,
        workers,
        lambda r: print(
            f"{r['solver']} d={r['d']} m={r['m']} seed={r['seed']}: {r.get('sw1', float('nan')):.3f} "
            f"(floor {r.get('floor', float('nan')):.3f}), {r['seconds']:.0f} s",
            file=sys.stderr,
        ),
        budget,
    )
    print(mixtures.table(rows))


@bench.command("particles")
def bench_particles(
    out: Annotated[Path, typer.Option(help="Results, a row for each cell; a run goes on from what is there.")] = Path(
        "particles.jsonl"
    ),
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    problem: Annotated[list[str] | None, typer.Option(help="Only this problem; may be repeated.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps.")] = 50,
    runs: Annotated[int, typer.Option(min=4, help="Independent runs of each cell.")] = 64,
    count: Annotated[
        list[int] | None,
        typer.Option("--particles", min=2, help="Only with so many particles, any number; may be repeated."),
    ] = None,
) -> None:
    """Measure how the error of particle methods falls with their number, and whether they know p(y), on Gaussians."""
    from ..bench import particles

    rows = particles.run(
        out,
        solver,
        problem,
        steps,
        runs,
        lambda r: print(f"{r['solver']} {r['setting']} on {r['problem']}, {r['particles']} particles", file=sys.stderr),
        count,
    )
    for name in dict.fromkeys(row["problem"] for row in rows):
        print(f"{name}\n\n{particles.table([row for row in rows if row['problem'] == name])}")


@bench.command("images")
def bench_images(
    out: Annotated[
        Path,
        typer.Option(help="Results, a row for each cell; a run goes on from what is there. Page and sheet beside."),
    ] = Path("images.jsonl"),
    solvers: Annotated[
        list[str] | None,
        typer.Option("--solvers", "--solver", help="Only this solver or classical method; may be repeated."),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option("--tasks", "--task", help="Only this task; may be repeated.")
    ] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option(
            "--images", "--image", help="Only this photograph, or a file; may be repeated.", metavar="NAME|FILE"
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the middle that is taken of each photograph.")] = 256,
    samples: Annotated[int, typer.Option(help="Samples of every solver.")] = 2,
    effort: Annotated[
        list[float] | None, typer.Option(help="Factor of the steps; may be repeated (the table shows 1).")
    ] = None,
    prior: Annotated[str, typer.Option(help="Name (unveil list priors) or .safetensors file.")] = "photos",
    device: Device = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    page: Annotated[
        Path | None, typer.Option(help="Also a page of Markdown, its sheet in images/ beside it.", metavar="FILE.md")
    ] = None,
) -> None:
    """Measure solvers and classical methods on the held-out photographs that ship: one table and a gallery."""
    from ..app.suite import cells, suite

    if page is not None and page.suffix != ".md":
        raise InputError(f"--page {page} must end in .md")
    asked = cells(
        solvers or (), tasks or (), photos or (), size, samples, effort or (1.0,), prior, device=device or "auto"
    )
    raise typer.Exit(suite(Console(), out, asked, workers, page))


@bench.command("scenes")
def bench_scenes(
    out: Annotated[Path, typer.Option(help="Results, a row for each run; a run goes on from what is there.")] = Path(
        "scenes.jsonl"
    ),
    pictures: Annotated[Path, typer.Option(help="Folder for a strip of pictures of every scene.")] = Path("scenes"),
    scene: Annotated[list[str] | None, typer.Option(help="Only this scene; may be repeated.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="Only this image of the scenes; may be repeated.")] = None,
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples of each posterior; calibration takes 19.")] = 19,
) -> None:
    """Reconstruct what instruments measure of known images, beside the classical methods of each instrument."""
    from ..app.gallery import strip
    from ..bench.scenes import Shot, run

    def draw(name: str, shot: Shot) -> None:
        strip(shot, pictures / f"{name}.png")

    raise typer.Exit(run(out, draw, scene or (), image or (), solver or (), samples))


@bench.command("tradeoff")
def bench_tradeoff(
    results: Annotated[Path, typer.Argument(help="Results of unveil bench images.")] = Path("images.jsonl"),
    out: Annotated[Path, typer.Option(help="The page, .html or .md; its plot goes beside it.")] = Path("tradeoff.html"),
) -> None:
    """Quality against evaluations and seconds: a page and a plot, from bench images and the solvers' cards."""
    from ..app.tradeoff import write_tradeoff
    from ..bench.images import compared, newest, read

    html, png = write_tradeoff(compared(newest(read(results))), out)
    print(f"page: {html}, plot: {png}")


@bench.command("red-diff")
def bench_red_diff(
    out: Annotated[Path, typer.Option(help="Results, a row for each cell; a run goes on from what is there.")] = Path(
        "red-diff.jsonl"
    ),
    docs: Annotated[Path, typer.Option(help="Folder for the page and its plots.")] = Path("docs"),
    tasks: Annotated[list[str] | None, typer.Option("--tasks", "--task", help="Only this task; repeatable.")] = None,
    photos: Annotated[
        list[str] | None,
        typer.Option("--images", "--image", help="Only this photograph, or file; repeatable.", metavar="NAME|FILE"),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the middle that is taken of each photograph.")] = 128,
    prior: Annotated[str, typer.Option(help="Name (unveil list priors) or .safetensors file.")] = "photos",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Put the findings of the RED-diff paper to the test on photographs: a page with plots."""
    from ..app.study import cells, run

    raise typer.Exit(run(Console(), out, cells(tasks or (), photos or (), size, prior), docs, workers))


@bench.command("auto")
def bench_auto(
    results: Annotated[
        Path | None,
        typer.Argument(help="Results of unveil bench images; without them, only the cards are read anew."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write (default: in the package, where auto reads it).", show_default=False),
    ] = None,
) -> None:
    """Renew the measurements that solver="auto" picks from, from bench images and the solvers' cards."""
    from ..bench.images import compared, newest, read
    from ..bench.measured import write_measured
    from ..solvers.auto import STORED

    rows = None if results is None else compared(newest(read(results)))
    print(write_measured(rows, out or STORED))


@bench.command("overhead")
def bench_overhead(
    solver: Annotated[list[str] | None, typer.Option(help="Only this solver; may be repeated.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="inpaint, deblur, superres, particles or loops; may be repeated; all but superres if none."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed, of each solver.")] = 10,
    folded: Annotated[bool, typer.Option("--folded", help="A network that is three times as quick.")] = False,
) -> None:
    """Time the solvers against their own network calls."""
    from ..bench.overhead import TASKS, main
    from ..registry import lookup

    for name in solver or []:
        lookup("solver", name)
    unknown = [name for name in task or [] if name not in TASKS]
    if unknown:
        raise InputError(f"there is no task '{unknown[0]}' in bench overhead: take {', '.join(TASKS)}")
    words = ["--steps", str(steps), *(["--folded"] if folded else [])]
    words += ["--solvers", *solver] if solver else []
    words += ["--tasks", *task] if task else []
    raise typer.Exit(main(words))
