"""``unveil bench images``: which solvers, with which settings, on which tasks of which photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as Screen

from ..bench import images
from ..bench.images import CLASSIC, CLASSICAL, TASKS, Cell, Row, averages
from ..classical.anything import available
from ..errors import InputError, unknown
from ..registry import names
from ..solvers import get_solver
from ..solvers.variational import FITTED
from .device import pick
from .gallery import detail, margins, overview, write_gallery
from .report import Table
from .tasks import STEPS, Asked, solver_for

MOST_STEPS = 100
"""Steps of a solver for which no number suits photographs better, if its own number is larger."""


def cells(
    methods: Sequence[str] = (),
    tasks: Sequence[str] = (),
    photos: Sequence[str] = (),
    size: int = 256,
    samples: int = 2,
    efforts: Sequence[float] = (1.0,),
    prior: str = "photos",
    seed: int = 0,
    device: str = "cpu",
) -> list[Cell]:
    """The cells of a suite, photograph by photograph: each method on each task that it fits.

    Solvers have the options and steps of ``unveil restore``; ``efforts`` multiply the steps, and 1 is what the table
    stands for. Solvers that learn are there only if they are named: on photographs they take hours. Raises
    :class:`UnknownName` and :class:`InputError` before anything is computed.
    """
    device = str(pick(device))
    methods = list(methods) or [CLASSIC, *available(), *(n for n in names("solver") if n not in FITTED)]
    known = [*CLASSICAL, *names("solver")]
    for name in methods:
        if name not in known:
            raise unknown("method", name, known)
    for task in tasks:
        if task not in TASKS:
            raise unknown("task of the suite", task, TASKS)
    for effort in efforts:
        if not 0 < effort < float("inf"):
            raise InputError(f"--effort is a factor > 0 of the steps, got {effort:g}")
    if samples < 1:
        raise InputError(f"--samples must be at least 1, got {samples}")
    found = []
    for image in photos or images.names_of_photos():
        images.truth(image, size)
        for task in tasks or TASKS:
            for method in methods:
                cell = Cell(task, image, size, method, samples=samples, seed=seed, prior=prior, device=device)
                if method in CLASSICAL:
                    found.append(cell)
                    continue
                for effort in efforts:
                    found.append(with_settings(cell, effort))
    return [c for c in found if images.fits(c)]


def with_settings(cell: Cell, effort: float = 1.0, **options: Any) -> Cell:
    """The cell with the options and steps that suit its task, ``options`` going over them."""
    task = TASKS[cell.task]
    asked = Asked(task.kind, noise=task.noise, solver=cell.method, options=options, goal="sample")
    solver, steps = solver_for(asked, images.problem_of(cell.task, cell.image, cell.size, cell.seed))
    if cell.method not in STEPS:
        steps = min(steps, MOST_STEPS)
    defaults = get_solver(cell.method).options()
    chosen = {k: v for k, v in solver.options().items() if v != defaults[k]}
    label = cell.label if effort == 1 else f"{cell.label} x{effort:g}".strip()
    return replace(cell, options=chosen, steps=max(1, round(effort * steps)), label=label)


def suite(console: Console, path: Path, asked: Sequence[Cell], workers: int = 1, text: Path | None = None) -> int:
    """Measure what is missing in ``path``, print the tables, write page and sheet; 1 if a run failed, else 0.

    ``text``: where a page of Markdown goes too.
    """
    with console.status(f"{len(asked)} cells") as status:

        def tell(row: Row, count: int, total: int) -> None:
            score = f"{row['psnr']:.2f} dB" if "psnr" in row else row["status"]
            words = (
                f"{' '.join(filter(None, (row['method'], row['label'])))} on {row['task']} of {Path(row['image']).stem}"
            )
            status.update(f"{count} of {total}: {words}: {score}")
            if not console.is_terminal:
                console.print(f"{count} of {total}: {words}: {score}", highlight=False, soft_wrap=True)

        rows = images.run(path, asked, workers, tell)
    report(console, rows)
    html, png = write_gallery(rows, path, text)
    console.print(f"page: {html}, sheet: {png}", highlight=False, soft_wrap=True)
    bad = [r for r in rows if r["status"] != "DONE"]
    for row in bad:
        words = f"{row['method']} on {row['task']} of {row['image']}: {row['status']}, {row['reason']}"
        console.print(words, highlight=False, soft_wrap=True)
    return int(bool(bad))


def report(console: Console, rows: Sequence[Row]) -> None:
    """Print PSNR of methods by tasks, then the numbers of each task."""
    console.width = max(console.width, 130)
    means = {t: averages(rows, t) for t in TASKS if any(r["task"] == t for r in rows)}
    console.print("PSNR in dB, means over the photographs")
    console.print(_screen(overview(means, "psnr")))
    for task, its in means.items():
        console.print(f"\n{TASKS[task].title}", highlight=False)
        console.print(_screen(detail(task, its)))
        console.print(margins(its), highlight=False, soft_wrap=True)


def _screen(table: Table) -> Screen:
    out = Screen(box=None, pad_edge=False)
    for k, heading in enumerate(table.head):
        out.add_column(heading, justify="left" if k < table.left else "right", no_wrap=k < table.left)
    for r, row in enumerate(table.rows):
        out.add_row(*(f"[bold]{text}[/bold]" if (r, c) in table.best else text for c, text in enumerate(row)))
    return out
