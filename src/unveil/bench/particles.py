"""Particle methods on Gaussians: how their error falls with the number of particles, and whether they know p(y).

The error is that of the weighted mean, in posterior standard deviations: root mean square over independent runs, of
|mean of the particles - m| / sqrt(tr C). As in any Monte Carlo method it falls as one over the root of the number of
particles: its slope in log-log is -1/2, until what the steps leave of it is all that is left. The mean weight
is an unbiased estimate of p(y), whatever their number: its mean over runs, divided by the closed form, is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import unknown
from ..io.ledger import Ledger, Row
from ..run import solve
from ..solvers import get_solver
from ..solvers.base import Solver
from .families import get_problem
from .mixtures import student

SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dcps", {}),
    ("dcps", {"blocks": 3}),
    ("ddsmc", {}),
    ("fps-smc", {}),
    ("mcgdiff", {}),
    ("tds", {}),
)
"""Solvers with their options."""

PROBLEMS = ("plane-row-0.05", "texture-blur-0.5")
COUNTS = (16, 32, 64, 128, 256)
STEPS = 50
RUNS = 64

KEYS = ("solver", "setting", "problem", "particles", "steps", "runs")
"""What tells rows of results from each other."""


def measure(solver: Solver, problem: str, particles: int, steps: int = STEPS, runs: int = RUNS, seed: int = 0) -> Row:
    """``runs`` independent runs with as many particles, on a problem of the family whose posterior is Gaussian.

    ``error``, and its standard error as a share of it (``error_spread``); ``bias``, the part of it that the mean over
    all runs has, too, less what so many runs leave to chance; if the solver estimates p(y), the mean of the estimates
    over the closed form (``evidence``) and its standard error (``evidence_spread``). Run k has seed ``seed`` + k.
    """
    known, start = get_problem(problem), time.perf_counter()
    many = replace(known.problem, y=known.problem.y.repeat(runs, *[1] * (known.problem.y.ndim - 1)))
    result = solve(many, known.prior, solver, samples=particles, steps=steps, seed=[seed + k for k in range(runs)])
    assert result.weights is not None
    at = torch.einsum("bs,bsn->bn", result.weights.double(), result.samples.double().flatten(2))
    off, scale = at - known.posterior.mean.flatten(), known.posterior.covariance.trace()
    squares = off.square().sum(1) / scale
    shared = (off.mean(0).square() - off.var(0) / runs).sum() / scale
    row: Row = {"solver": solver.name, "problem": problem, "particles": particles, "steps": steps, "runs": runs}
    row["dimension"] = known.n
    row["error"] = float(squares.mean().sqrt())
    row["error_spread"] = float(squares.std() / squares.mean() / 2 / runs**0.5)
    row["bias"] = float(shared.clamp_min(0).sqrt())
    if result.log_evidence is not None:
        ratio = (result.log_evidence.double() - known.prior.log_evidence(known.problem)).exp()
        row |= {"evidence": float(ratio.mean()), "evidence_spread": float(ratio.std() / runs**0.5)}
    return row | {"seconds": time.perf_counter() - start}


def slope(rows: Sequence[Row]) -> tuple[float, float]:
    """Of log ``error`` on log ``particles``: weighted least squares over two rows or more, and the standard error."""
    x = torch.tensor([math.log(row["particles"]) for row in rows], dtype=torch.float64)
    y = torch.tensor([math.log(row["error"]) for row in rows], dtype=torch.float64)
    w = torch.tensor([row["error_spread"] for row in rows], dtype=torch.float64) ** -2
    d = x - (w * x).sum() / w.sum()
    information = (w * d.square()).sum()
    return float((w * d * y).sum() / information), float(information**-0.5)


def run(
    path: Path,
    solvers: Sequence[str] | None = None,
    problems: Sequence[str] | None = None,
    steps: int = STEPS,
    runs: int = RUNS,
    on_row: Callable[[Row], object] | None = None,
    counts: Sequence[int] | None = None,
) -> list[Row]:
    """Measure particle methods with each number of particles; rows go to ``path``, and those that it has are kept.

    ``solvers`` are those of ``SETTINGS``, ``problems`` of ``PROBLEMS``, ``counts`` those of ``COUNTS``: all by default.
    Raises :class:`InputError` for a file that holds something else, and :class:`UnknownName`.
    """
    for what, given, known in (("solver", solvers, [name for name, _ in SETTINGS]), ("problem", problems, PROBLEMS)):
        for name in given or ():
            if name not in known:
                raise unknown(f"{what} here", name, known)
    ledger = Ledger(path, KEYS)
    for problem in problems or PROBLEMS:
        for name, options in SETTINGS:
            if solvers and name not in solvers:
                continue
            setting = ", ".join(f"{k}={v}" for k, v in options.items())
            for count in counts or COUNTS:
                row = dict(zip(KEYS, (name, setting, problem, count, steps, runs), strict=True))
                if row in ledger:
                    continue
                found = measure(get_solver(name, **options), problem, count, steps, runs, seed=seed_of(count))
                ledger.add(row | found)
                if on_row is not None:
                    on_row(ledger.rows[-1])
    return ledger.rows


def seed_of(count: int) -> int:
    """The first seed of the runs with so many particles: those of different numbers share none."""
    return 1000 * COUNTS.index(count) if count in COUNTS else 10_000 + count


def table(rows: Sequence[Row]) -> str:
    """Markdown of one problem: per setting of a solver the slope, and per number of particles the error, and p(y)."""
    counts = sorted({row["particles"] for row in rows})
    out = "| solver | steps | slope | " + " | ".join(f"{n}" for n in counts) + " | bias |\n"
    out += "|---|--:|--:|" + "--:|" * (len(counts) + 1) + "\n"
    for key in sorted({(row["solver"], row["setting"], row["steps"]) for row in rows}):
        its = [row for row in rows if (row["solver"], row["setting"], row["steps"]) == key]
        its.sort(key=lambda row: row["particles"])
        fall = "{:.2f} ± {:.2f}".format(*_wide(slope(its), 1000)) if len(its) > 1 else ""
        by = {row["particles"]: row for row in its}
        words = " ".join(filter(None, key[:2]))
        bias = next((f"{row['bias']:.3f}" for row in reversed(its) if "bias" in row), "-")
        out += f"| {words} | {key[2]} | {fall} | {' | '.join(_cell(by.get(n)) for n in counts)} | {bias} |\n"
    return out


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    text = f"{row['error']:.3f}"
    if "evidence" in row:
        text += "; {:.2f} ± {:.2f}".format(*_wide((row["evidence"], row["evidence_spread"]), row["runs"]))
    return text


def _wide(found: tuple[float, float], runs: int) -> tuple[float, float]:
    """A value and half its 95 % interval."""
    return found[0], student(runs - 1) * found[1]
