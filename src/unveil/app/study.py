"""``unveil bench red-diff``: RED-diff's findings as a page of documentation, with plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from ..bench import images, study
from ..bench.images import Cell, Row
from ..bench.study import FINDINGS, LAMS, RATES, RIVALS, SOLVER, TOLD, Finding, average
from ..errors import unknown
from ..io.atomic import write_bytes, write_text
from ..io.images import encode
from .suite import with_settings
from .tradeoff import drawn, pyplot

NAME = "red-diff-study"
PLOTS = f"images/{NAME}.png"


def cells(tasks: Sequence[str] = (), photos: Sequence[str] = (), size: int = 128, prior: str = "photos") -> list[Cell]:
    """The study's cells, photograph by photograph. Raises :class:`UnknownName` for another task."""
    for task in tasks:
        if task not in images.TASKS:
            raise unknown("task of the suite", task, images.TASKS)
    bases = []
    for image in photos or images.names_of_photos():
        images.truth(image, size)
        bases += [Cell(task, image, size, SOLVER, prior=prior) for task in tasks or study.TASKS]
    return [c for c in study.cells(bases, lambda cell, **options: with_settings(cell, **options)) if images.fits(c)]


def run(console: Console, path: Path, asked: Sequence[Cell], out: Path, workers: int = 1) -> int:
    """Measure what is missing in ``path``, write the page into ``out``; 1 if a run failed, which divergence is not."""

    def tell(row: Row, count: int, total: int) -> None:
        score = f"{row['psnr']:.2f} dB" if "psnr" in row else row["status"]
        method = f"{row['method']} {row['label']}".strip()
        words = f"{count} of {total}: {method} on {row['task']} of {Path(row['image']).stem}: {score}"
        console.print(words, highlight=False, soft_wrap=True)

    rows = images.run(path, asked, workers, tell)
    page, plot = write_study(rows, out)
    console.print(f"page: {page}, plots: {plot}", highlight=False, soft_wrap=True)
    return int(any(r["status"] == "FAILED" for r in rows))


def write_study(rows: Sequence[Row], out: Path) -> tuple[Path, Path]:
    """Write ``red-diff-study.md`` into a folder, and its plots into ``images/`` there."""
    picture = write_bytes(out / PLOTS, encode(plots(rows)))
    return write_text(out / f"{NAME}.md", markdown(rows)), picture


def markdown(rows: Sequence[Row]) -> str:
    """The page: every claim, what was measured, and whether it reproduces."""
    photos = list(dict.fromkeys(Path(r["image"]).stem for r in rows))
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    size, steps = rows[0]["size"], next((r["steps"] for r in rows if r["method"] == SOLVER), "")
    bad = [r for r in rows if r["status"] != "DONE"]
    out = (
        "# RED-diff's findings, put to the test\n\n"
        "Made by `unveil bench red-diff`; not to be edited by hand.\n\n"
        f"The middle {size} x {size} pixels of {', '.join(photos)}; tasks {', '.join(tasks)} (docs/bench.md); prior "
        f"`{next(r['prior'] for r in rows)}`, {steps} steps. PSNR in dB, a mean over the photographs. Learning rate "
        "and weight are those of `unveil restore` unless they are varied. Of verdicts, differences of up to "
        f"{' and '.join(f'{m.words(m.within)} ({m.name})' for m in study.METRICS)} count as none.\n\n"
        f"![PSNR by weighting, order, weight of the prior and sigma_y]({PLOTS})\n\n"
    )
    for finding in FINDINGS:
        out += f"## {finding.title}\n\n{study.verdict(rows, finding)}\n\n{_table(rows, finding, tasks)}\n"
    out += f"## Weight of the prior and rate of learning\n\n{_grid_words(rows)}\n\n{_grid(rows)}\n"
    out += f"## A wrong sigma_y\n\n{study.told_words(rows)}\n\n{_told(rows)}\n"
    out += (
        f"## Cost\n\n{study.cost_words(rows)}\n\n## Quality\n\n{study.quality_words(rows)}\n\n{_rivals(rows, tasks)}\n"
    )
    if bad:
        out += "## Not done\n\n" + "".join(
            f"- {r['method']} {r['label']} on {r['task']} of {r['image']}: {r['status']}, {r['reason']}\n" for r in bad
        )
    return out.rstrip() + "\n"


def _lines(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = "|---|" + "--:|" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(row) + " |" for row in body)]) + "\n"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(rows: Sequence[Row], finding: Finding, tasks: Sequence[str]) -> str:
    body = []
    for value in finding.values:
        label = f"{finding.name} {value}"
        psnr = [_number(average(rows, SOLVER, label, "psnr", task)) for task in tasks]
        every = [_number(average(rows, SOLVER, label, k), d) for k, d in (("psnr", 2), ("perceptual", 3))]
        body.append([value, *psnr, *every])
    return _lines([finding.name, *tasks, "mean", "perceptual"], body)


def _grid(rows: Sequence[Row]) -> str:
    body = [
        [f"lam {lam:g}", *(_number(average(rows, SOLVER, f"lam {lam:g} lr {r:g}", "psnr")) for r in RATES)]
        for lam in LAMS
    ]
    return _lines(["", *(f"lr {r:g}" for r in RATES)], body)


def _grid_words(rows: Sequence[Row]) -> str:
    scores = {
        (lam, r): s
        for lam in LAMS
        for r in RATES
        if (s := average(rows, SOLVER, f"lam {lam:g} lr {r:g}", "psnr")) is not None
    }
    if not scores:
        return "Not measured."
    (lam, rate), top = max(scores.items(), key=lambda item: item[1])
    low = min(scores.values())
    return f"Best: lam {lam:g} with lr {rate:g}, {top:.2f} dB; the worst pair of the grid reaches {low:.2f} dB."


def _told(rows: Sequence[Row]) -> str:
    kinds = ((SOLVER, "told"), (SOLVER, "likelihood told"), ("diffpir", "told"))
    body = [
        [f"{t:g}", *(_number(average(rows, method, f"{label} {t:g}", "psnr")) for method, label in kinds)] for t in TOLD
    ]
    return _lines(["told / true", "red-diff", "red-diff, likelihood", "diffpir"], body)


def _rivals(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    body = []
    for name in (SOLVER, *RIVALS):
        psnr = [_number(average(rows, name, "", "psnr", task)) for task in tasks]
        shown = (("perceptual", 3), ("nfe", 0), ("vjps", 0), ("cpu", 1), ("peak", 0))
        body.append([name, *psnr, *(_number(average(rows, name, "", k), d) for k, d in shown)])
    return _lines(["solver", *tasks, "perceptual", "NFE", "vjps", "CPU s", "MiB"], body)


# -- plots -----------------------------------------------------------------------------------------------------------


def plots(rows: Sequence[Row]) -> Tensor:
    """One picture [3, H, W]: weightings, orders, the weight of the prior by rate of learning, a wrong sigma_y."""
    figure, axes = pyplot().subplots(2, 2, figsize=(11, 7.5), layout="constrained", dpi=110)
    for axis, finding in zip(axes[0], FINDINGS, strict=True):
        scores = [average(rows, SOLVER, f"{finding.name} {v}", "psnr") for v in finding.values]
        colours = ["#d1495b" if v == finding.usual else "#9aa7b3" for v in finding.values]
        axis.bar(finding.values, [s or 0.0 for s in scores], color=colours)
        known = [s for s in scores if s is not None]
        if known:
            axis.set_ylim(min(known) - 1, max(known) + 0.5)
        axis.tick_params(axis="x", labelrotation=25)
        _titled(axis, finding.title)
    for rate in RATES:
        _curve(
            axes[1][0], LAMS, [average(rows, SOLVER, f"lam {v:g} lr {rate:g}", "psnr") for v in LAMS], f"lr {rate:g}"
        )
    _titled(axes[1][0], "Weight of the prior, lam")
    for method, label in ((SOLVER, "told"), (SOLVER, "likelihood told"), ("diffpir", "told")):
        scores = [average(rows, method, f"{label} {t:g}", "psnr") for t in TOLD]
        _curve(axes[1][1], TOLD, scores, f"{method}{', likelihood' if 'likelihood' in label else ''}")
    _titled(axes[1][1], "sigma_y told, over the true one")
    for axis, values in zip(axes[1], (LAMS, TOLD), strict=True):
        axis.set_xscale("log")
        axis.set_xticks(values, [f"{v:g}" for v in values])
        axis.minorticks_off()
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return drawn(figure)


def _curve(axis: Any, x: Sequence[float], scores: Sequence[float | None], label: str) -> None:
    known = [(a, s) for a, s in zip(x, scores, strict=True) if s is not None]
    if known:
        axis.plot([a for a, _ in known], [s for _, s in known], marker="o", label=label)


def _titled(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_ylabel("PSNR (dB)")
    axis.grid(alpha=0.25, linewidth=0.5)
