"""``unveil bench tradeoff``: quality against cost, from ``unveil bench images`` and the cards of the solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from ..bench.cards import load_card
from ..bench.images import CLASSICAL, TASKS, Row
from ..errors import InputError
from ..io.atomic import write_bytes, write_text
from ..io.images import encode
from ..registry import names
from ..solvers import get_solver
from .gallery import markdown
from .report import Figure, Section, Table, page

COLOURS = {"explicit": "#1f6fb4", "variational": "#d1495b", "decoupled": "#2e8b57", "smc": "#8e5bb5"}
OTHER = "#777777"


@dataclass(frozen=True)
class Point:
    """What a solver, at some number of steps, reaches at what cost: ``work`` in network passes (evaluations and
    back-propagations) per sample, ``seconds`` of the processor per sample."""

    solver: str
    label: str
    work: float
    seconds: float
    value: float

    @property
    def name(self) -> str:
        return f"{self.solver} {self.label}".strip()


@dataclass(frozen=True)
class Measure:
    """One quality of a plot, as its axis says it; ``sign`` is 1 where more is better."""

    title: str
    sign: int
    points: list[Point]
    seconds: str = "CPU seconds per sample"


def relative(rows: Sequence[Row], key: str, scale: Callable[[float, float], float]) -> list[Point]:
    """Per solver and effort, the mean over the cells that it has of ``scale(its value, the cell's median)``.

    The median is over the solvers at their usual steps. Solvers that fit different tasks become comparable, as far as
    that is possible. Only solvers with at least half of the tasks that their kind of problem (noisy or not) has count.
    """
    done = [r for r in rows if r["status"] == "DONE" and r["method"] not in CLASSICAL and r.get(key) is not None]
    level: dict[tuple[str, str], list[float]] = {}
    for r in done:
        if not r["label"]:
            level.setdefault((r["task"], r["image"]), []).append(r[key])
    medians = {cell: median(values) for cell, values in level.items()}
    out = []
    for solver, label in dict.fromkeys((r["method"], r["label"]) for r in done):
        its = [r for r in done if (r["method"], r["label"]) == (solver, label) and (r["task"], r["image"]) in medians]
        quiet = all(TASKS[r["task"]].noise == 0 for r in its)
        there = {task for task, _ in medians if (TASKS[task].noise == 0) == quiet}
        if not its or 2 * len({r["task"] for r in its}) < len(there):
            continue
        value = mean(scale(r[key], medians[r["task"], r["image"]]) for r in its)
        work = mean(r["nfe"] + r["vjps"] for r in its)
        out.append(Point(solver, label, work, mean(r["cpu"] / r["samples"] for r in its), value))
    return out


def distances() -> list[Point]:
    """Per solver and setting of its card, the median distance to the exact posterior, as a multiple of the floor."""
    out = []
    for name in names("solver"):
        card = load_card(name)
        for label in dict.fromkeys(r["setting"] for r in card["problems"]) if card else ():
            assert card is not None
            its = [r for r in card["problems"] if r["setting"] == label and r.get("sw2_floor") is not None]
            if its:
                value = median(r["sw2_floor"] for r in its)
                work = mean(r["nfe"] + r["vjps"] for r in its)
                seconds = mean(r["seconds"] / r["samples"] for r in its)
                out.append(Point(name, label, work, seconds, value))
    return out


def measures(rows: Sequence[Row]) -> list[Measure]:
    """What the page shows."""
    perceptual = next((r["distance"] for r in rows if "distance" in r), "perceptual distance")
    found = [
        Measure("PSNR, dB above the median solver", 1, relative(rows, "psnr", lambda v, m: v - m)),
        Measure(f"{perceptual}, of the median solver's", -1, relative(rows, "perceptual", lambda v, m: v / m)),
        Measure("distance to the exact posterior / floor", -1, distances(), "CPU s per sample, closed-form prior"),
    ]
    return [m for m in found if m.points]


def front(points: Sequence[Point], sign: int, cost: Callable[[Point], float]) -> list[Point]:
    """The points that no other one beats at the same cost or less, from cheap to dear."""
    out: list[Point] = []
    for p in sorted(points, key=lambda p: (cost(p), -sign * p.value)):
        if not out or sign * p.value > sign * out[-1].value:
            out.append(p)
    return out


def plot(found: Sequence[Measure]) -> Tensor:
    """One picture [3, H, W]: measures by lines, network passes and seconds by columns; the fronts as lines."""
    plt = pyplot()
    size = (13, 4.6 * len(found))
    figure, axes = plt.subplots(len(found), 2, figsize=size, squeeze=False, layout="constrained", dpi=110)
    for line, m in zip(axes, found, strict=True):
        columns = ((lambda p: p.work, "network passes per sample"), (lambda p: p.seconds, m.seconds))
        for axis, (cost, title) in zip(line, columns, strict=True):
            _panel(axis, m, cost, title)
    figure.canvas.draw()  # the places of the points are known now
    for line, m in zip(axes, found, strict=True):
        for axis, cost in zip(line, (lambda p: p.work, lambda p: p.seconds), strict=True):
            _names(axis, m, cost)
    return drawn(figure)


def drawn(figure: Any) -> Tensor:
    """A figure of matplotlib as a picture [3, H, W]."""
    out = BytesIO()
    figure.savefig(out, format="rgba", dpi=figure.dpi)
    width, height = figure.canvas.get_width_height()
    pyplot().close(figure)
    pixels = torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)
    return pixels.reshape(height, width, 4)[..., :3].permute(2, 0, 1).float() / 255


def _panel(axis: Any, m: Measure, cost: Callable[[Point], float], title: str) -> None:
    logarithmic(axis.xaxis, [cost(p) for p in m.points])
    if m.sign < 0:
        logarithmic(axis.yaxis, [p.value for p in m.points])
        axis.invert_yaxis()
    best = front(m.points, m.sign, cost)
    axis.step([cost(p) for p in best], [p.value for p in best], where="post", color="#bbbbbb", zorder=1)
    for p in m.points:
        colour = COLOURS.get(get_solver(p.solver).family, OTHER)
        axis.scatter(cost(p), p.value, s=26 if not p.label else 12, color=colour, zorder=2)
    axis.set_xlabel(title)
    axis.set_ylabel(m.title)
    axis.grid(alpha=0.25, which="both", linewidth=0.5)
    axis.margins(x=0.15)


def logarithmic(axis: Any, values: Sequence[float]) -> None:
    """Make an axis for these values logarithmic, with plain numbers at 1, 2 and 5, or at powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    axis.set_major_locator(LogLocator(subs=(1,) if max(values) > 1000 * min(values) else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def _names(axis: Any, m: Measure, cost: Callable[[Point], float]) -> None:
    """Write the names beside the points, from the top, each as far down as leaves those before it readable."""
    best, taken = front(m.points, m.sign, cost), list[tuple[float, float, float]]()
    places = [(p, *axis.transData.transform((cost(p), p.value))) for p in m.points]
    for p, x, y in sorted(places, key=lambda place: -place[2]):
        width, down = 6.0 * len(p.name), 0.0
        while any(x < b and a < x + width and abs(y - down - c) < 11 for a, b, c in taken):
            down += 4
        taken.append((x, x + width, y - down))
        colour = COLOURS.get(get_solver(p.solver).family, OTHER)
        axis.annotate(
            p.name,
            (cost(p), p.value),
            (4, 2 - down * 72 / axis.figure.dpi),
            textcoords="offset points",
            size=7,
            color=colour,
            fontweight="bold" if p in best else "normal",
        )


def pyplot() -> Any:
    """matplotlib's, drawing into memory. Raises :class:`InputError` where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError("plots are made with matplotlib: pip install 'unveil[bench]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


TITLE = "What a result costs"
TEXT = """Up and left is better: better results for less. The line joins the solvers that none beats at the same cost.
Photographs: a solver's PSNR and perceptual distance are compared with the median solver's, cell by cell (task and
photograph), and averaged over the cells that the solver fits; network passes are evaluations and back-propagations.
Exact posteriors: the median over the problems of the cards, of the distance as a multiple of what exact draws have."""


def tradeoff(rows: Sequence[Row]) -> tuple[str, list[Section], Tensor]:
    """What the page says first, its sections, its plot. Raises :class:`InputError` where there is nothing to show."""
    found = measures(rows)
    picture = plot(found)
    sections = [Section("Quality against cost", TEXT.replace("\n", " "), figures=[Figure("All solvers", picture)])]
    for m in found:
        chosen = front(m.points, m.sign, lambda p: p.work)
        body = [
            [p.name, f"{p.value:.3f}", f"{p.work:.0f}", f"{p.seconds:.3g}", "best at its cost" if p in chosen else ""]
            for p in sorted(m.points, key=lambda p: p.work)
        ]
        sections.append(Section(m.title, table=Table(("solver", "value", "network passes", "CPU s", ""), body)))
    photos = len({(r["task"], r["image"]) for r in rows})
    lead = f"From {photos} cells of photographs and the cards of {len(names('solver'))} solvers."
    return lead, sections, picture


def write_tradeoff(rows: Sequence[Row], path: Path) -> tuple[Path, Path]:
    """Write the page, HTML with its plot as ``.png`` beside it, or Markdown (``.md``) with the plot in ``images/``."""
    lead, sections, picture = tradeoff(rows)
    if path.suffix != ".md":
        written = write_text(path, page(TITLE, lead, sections))
        return written, write_bytes(path.with_suffix(".png"), encode(picture))
    shown = Path("images") / f"{path.stem}.png"
    out = f"# {TITLE}\n\nMade by `unveil bench tradeoff`; not to be edited by hand. {lead}\n\n{sections[0].text}\n\n"
    out += f"![PSNR, perceptual distance and distance to exact posteriors against cost]({shown.as_posix()})\n"
    for section in sections[1:]:
        assert section.table is not None
        out += f"\n## {section.title}\n\n{markdown(section.table)}"
    picture_file = write_bytes(path.parent / shown, encode(picture))
    return write_text(path, out), picture_file
