"""RED-diff's own findings, put to the test on photographs: cells of ``unveil bench red-diff``, and what they say.

Mardani, Song, Kautz, Vahdat 2023, arXiv 2305.04391, find that of the weightings of levels that they try the linear
one is best, that descending levels are better than ascending or random ones, that the weight of the prior and the rate
of learning matter, and that the method costs a fraction of what solvers with back-propagation do, at a quality that is
theirs or better. A wrong sigma_y matters only where the method reads one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from ..solvers.variational.red_diff import ORDERS, WEIGHTINGS
from .images import Cell, Row

SOLVER = "red-diff"
CLAIMED = ("dps", "pigdm", "ddrm")
RIVALS = (*CLAIMED, "diffpir")
TASKS = ("random", "motion", "superres")
LAMS = (0.03, 0.1, 0.3, 1.0, 3.0)
RATES = (0.03, 0.1, 0.3)
TOLD = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The noise level that a solver is told, as a multiple of the true one."""
LEVELS = 0.5
"""The part of the likelihood's own weight that the prior has where sigma_y is read (``data="likelihood"``)."""


@dataclass(frozen=True)
class Metric:
    """A number of a row by which claims are judged; a difference up to ``within`` counts as none."""

    key: str
    name: str
    within: float
    unit: str = ""
    digits: int = 2
    falls: bool = False

    def lead(self, a: float, b: float) -> float:
        """How much better a is than b."""
        return b - a if self.falls else a - b

    def words(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"


METRICS = (
    Metric("psnr", "PSNR", 0.1, " dB"),
    Metric("perceptual", "perceptual distance", 0.02, digits=3, falls=True),
)


@dataclass(frozen=True)
class Finding:
    """A claim and its cells: ``values`` are what is varied, in order, ``usual`` the one that the claim is for."""

    name: str
    title: str
    claim: str
    values: Sequence[str]
    usual: str


FINDINGS = (
    Finding("weighting", "Weighting of the levels", "the linear weighting is best", tuple(WEIGHTINGS), "linear"),
    Finding("order", "Order of the levels", "from high to low noise is best", ORDERS, "descending"),
)

Settings = Callable[..., Cell]
"""From a cell with a solver to the one with the options and steps that suit its task; options go over them."""


def cells(bases: Iterable[Cell], settings: Settings) -> list[Cell]:
    """The study's cells on tasks of photographs; ``bases`` say task, photograph, size, samples and prior."""
    out = []
    for base in bases:
        red = replace(base, method=SOLVER, samples=1)
        out.append(settings(red))
        for finding in FINDINGS:
            for value in finding.values:
                out.append(_labelled(settings(red, **{finding.name: value}), f"{finding.name} {value}"))
        for lam in LAMS:
            for rate in RATES:
                out.append(_labelled(settings(red, lam=lam, lr=rate), f"lam {lam:g} lr {rate:g}"))
        for told in TOLD:
            wrong = replace(red, told=told)
            out.append(_labelled(settings(wrong), f"told {told:g}"))
            reads = settings(wrong, data="likelihood", lam=LEVELS, weighting="linear")
            out.append(_labelled(reads, f"likelihood told {told:g}"))
            out.append(_labelled(settings(replace(wrong, method="diffpir")), f"told {told:g}"))
        out += [settings(replace(base, method=name, samples=1)) for name in RIVALS]
    return out


def _labelled(cell: Cell, label: str) -> Cell:
    return replace(cell, label=label)


# -- what they say -------------------------------------------------------------------------------------------------


def average(rows: Sequence[Row], method: str, label: str, key: str, task: str = "") -> float | None:
    """The mean of a number over the photographs (and the tasks, if none is named); None if nothing is there."""
    its = [r for r in rows if (r["method"], r["label"]) == (method, label) and task in ("", r["task"])]
    values = [r[key] for r in its if r["status"] == "DONE" and r.get(key) is not None]
    return mean(values) if values else None


def verdict(rows: Sequence[Row], finding: Finding) -> str:
    """Whether a claim holds here, by each metric: in words, with the numbers."""
    judged = []
    for metric in METRICS:
        scores = {v: average(rows, SOLVER, f"{finding.name} {v}", metric.key) for v in finding.values}
        judged.append(judge(metric, scores, finding.usual))
    return " ".join([f"Claim: {finding.claim}.", *judged])


def judge(metric: Metric, scores: Mapping[str, float | None], usual: str) -> str:
    """Whether ``usual`` is best by a metric, or as good as the best."""
    known = {name: score for name, score in scores.items() if score is not None}
    if len(known) < len(scores):
        return f"By {metric.name} not all of it is measured, or some runs diverged."
    own = known.pop(usual)
    order = sorted(known, key=lambda name: metric.lead(known[name], own), reverse=True)
    better = [name for name in order if metric.lead(known[name], own) > metric.within]
    if better:
        gap = metric.words(metric.lead(known[better[0]], own))
        numbers = f"{metric.words(known[better[0]])} against {metric.words(own)}"
        also = f"; better too: {', '.join(better[1:])}" if len(better) > 1 else ""
        return (
            f"By {metric.name} it does not reproduce with this prior: {better[0]} is better than {usual} by {gap} "
            f"({numbers}){also}."
        )
    equal = [name for name in order if metric.lead(own, known[name]) <= metric.within]
    how = f"together with {', '.join(equal)}" if equal else f"by {metric.words(metric.lead(own, known[order[0]]))}"
    return f"By {metric.name} it reproduces: {usual} is best {how} ({metric.words(own)})."


def cost_words(rows: Sequence[Row]) -> str:
    """Time and memory of RED-diff beside the solvers that back-propagate, per evaluation of the prior."""
    parts = []
    mine = {key: average(rows, SOLVER, "", key) for key in ("cpu", "nfe", "peak")}
    for name in ("dps", "pigdm"):
        its = {key: average(rows, name, "", key) for key in ("cpu", "nfe", "peak")}
        numbers = [v for v in (*mine.values(), *its.values()) if v]
        if len(numbers) < 6:
            continue
        cpu = (its["cpu"] or 0) / (its["nfe"] or 1) / ((mine["cpu"] or 1) / (mine["nfe"] or 1))
        peak = (its["peak"] or 0) / (mine["peak"] or 1)
        parts.append(f"{name} takes {cpu:.1f} times the time per evaluation, and {peak:.1f} times the memory")
    text = "; ".join(parts) or "nothing yet"
    return f"Claim: without back-propagation a step costs a fraction. Measured: {text}."


def quality_words(rows: Sequence[Row]) -> str:
    """RED-diff against the solvers that the claim names, over all tasks, and its rank among all that ran."""
    out = ["Claim: it is as good as dps, pigdm and ddrm, or better."]
    for metric in METRICS:
        scores = {name: average(rows, name, "", metric.key) for name in (SOLVER, *RIVALS)}
        known = {n: s for n, s in scores.items() if s is not None}
        out.append(judge(metric, {n: scores.get(n) for n in (SOLVER, *CLAIMED)}, SOLVER))
        if SOLVER in known and len(known) > 1:
            order = sorted(known, key=lambda n: metric.lead(known[n], known[SOLVER]), reverse=True)
            listed = ", ".join(f"{n} {metric.words(known[n])}" for n in order)
            out.append(f"It is number {order.index(SOLVER) + 1} of {len(order)}: {listed}.")
    return " ".join(out)


def told_words(rows: Sequence[Row]) -> str:
    """What a wrong sigma_y costs: PSNR lost, or won, against the true one."""
    parts = []
    for method, label, name in (
        (SOLVER, "told", "red-diff (which reads sigma_y for its start only)"),
        (SOLVER, "likelihood told", 'red-diff with data="likelihood"'),
        ("diffpir", "told", "diffpir"),
    ):
        right = average(rows, method, f"{label} 1", "psnr")
        wrong = [average(rows, method, f"{label} {t:g}", "psnr") for t in TOLD if t != 1]
        known = [w for w in wrong if w is not None]
        if right is None or not known or len(known) < len(wrong):
            continue
        lost, won = (max(0.0, *(sign * (right - w) for w in known)) for sign in (1, -1))
        parts.append(f"{name} loses up to {lost:.2f} dB" + (f" and wins up to {won:.2f} dB" if won >= 0.05 else ""))
    text = "; ".join(parts) or "not measured"
    return f"Told a noise level from {TOLD[0]:g} to {TOLD[-1]:g} times the true one: {text}."
