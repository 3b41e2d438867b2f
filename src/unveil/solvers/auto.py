"""What solver="auto" picks, from measurements that ship with the package (``measured.json``).

The measurements are those of ``unveil bench images`` (photographs) and of the solvers' cards (posteriors that are known
exactly), put together by ``unveil bench auto``. A cell is one problem; in it every measured solver has an error for
each goal, less is better:

sample
    The perceptual distance of a sample on a photograph; the sliced Wasserstein distance to an exact posterior.
mmse, map
    The root mean square error of a result: to the photograph, or to the exact posterior mean. Goal "map" prefers point
    estimates.

Cells like the problem at hand share its kind (photographs or not, kind of operator, noise or none); the nearest of them
have its size, noise and share of measured numbers too. Of the solvers that fit the problem and the budget, those that
are no worse than the median solver in the nearest cells come first; of them the one is picked whose worst place among
all cells like the problem is best, then whose mean place is, then the cheapest.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError, NotCompatible
from ..registry import names
from .base import Solver

if TYPE_CHECKING:
    from ..operators.base import Operator
    from ..priors.base import Prior
    from ..problem import Problem

STORED = Path(__file__).with_name("measured.json")
GOALS = ("sample", "mmse", "map")
PHOTOS, EXACT = "photographs", "known posteriors"
PHOTO_SIDE = 32
"""Images of any kind with sides from this on are taken for photographs: what is known of small signals does not carry
over to networks."""
UNKNOWN = 0.5
"""The place of a solver in a cell that it was not measured in."""

KINDS = {
    "Inpainting": "inpaint",
    "Blur": "deblur",
    "Downsample": "superres",
    "SuperResolution": "superres",
    "Grayscale": "colorize",
    "Identity": "denoise",
    "Matrix": "matrix",
}
"""Classes of operators and their kinds; by name, because each is imported when it is first used."""


def kind_of(operator: Operator) -> str:
    """The kind of an operator, as the cells name it; "other" if neither its class nor one above it is in KINDS."""
    return next((KINDS[c.__name__] for c in type(operator).__mro__ if c.__name__ in KINDS), "other")


@dataclass(frozen=True)
class Cell:
    """A measured problem: where it comes from (PHOTOS or EXACT), kind of operator, whether there is noise, its sigma_y
    in units of half the value range, the size n of a signal, and how many numbers are measured, over n."""

    suite: str
    kind: str
    noisy: bool
    sigma: float
    n: int
    share: float

    @classmethod
    def of(cls, problem: Problem, suite: str = "") -> Cell:
        """The cell that a problem would be."""
        shape, sigma = problem.shape, problem.noise.sigma
        photo = len(shape) >= 3 and min(shape[-2:]) >= PHOTO_SIDE
        n = math.prod(shape)
        level = float(f"{(sigma or 0.0) / problem.scale:.4g}")
        share = float(f"{problem.m / n:.3g}")
        return cls(suite or (PHOTOS if photo else EXACT), kind_of(problem.operator), sigma != 0, level, n, share)

    def far(self, other: Cell) -> float:
        """How different two cells of a kind are in noise, size and share: a sum of logarithms."""
        pairs = ((self.sigma + 0.01, other.sigma + 0.01), (self.n, other.n), (self.share, other.share))
        return round(sum(abs(math.log(a / b)) for a, b in pairs), 3)


@dataclass(frozen=True)
class Measured:
    """A solver as it was measured: options, steps, evaluations and back-propagations per sample, ``work`` (the cost of
    a sample in evaluations of the prior), and its errors by cell and goal.

    ``samples`` is how many there must be at least, which matters where they see each other; ``point`` marks point
    estimates.
    """

    solver: str
    options: dict[str, Any]
    steps: int
    nfe: float
    vjps: float
    work: float
    samples: int = 1
    point: bool = False
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def make(self) -> Solver:
        from . import get_solver

        return get_solver(self.solver, **{k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()})


@dataclass(frozen=True)
class Choice:
    """What was picked: the solver, its steps, and why, in a line."""

    solver: Solver
    steps: int
    reason: str


@lru_cache(maxsize=2)
def stored(path: Path = STORED) -> tuple[dict[str, Cell], tuple[Measured, ...]]:
    """The measurements that ship: cells by name, and the runs."""
    table = json.loads(path.read_text(encoding="utf-8"))
    cells = {name: Cell(**facts) for name, facts in table["cells"].items()}
    return cells, tuple(Measured(**run) for run in table["runs"])


def like(problem: Problem, cells: dict[str, Cell]) -> tuple[list[str], str]:
    """The names of the cells most like a problem, and what they have in common, in words."""
    mine, found, words = Cell.of(problem), cells, []
    for facet, text in (
        ("suite", mine.suite),
        ("noisy", "with noise" if mine.noisy else "without noise"),
        ("kind", mine.kind),
    ):
        same = {n: c for n, c in found.items() if getattr(c, facet) == getattr(mine, facet)}
        if same:
            found = same
            words.append(text)
    return list(found), ", ".join(words) or "everything measured"


def places(runs: Sequence[Measured], cells: Sequence[str], goal: str) -> list[list[float | None]]:
    """For each run its place in each cell: the share of the other solvers, each at its best, that are better.

    None where it was not measured.
    """
    key = "sample" if goal == "sample" else "mmse"
    out: list[list[float | None]] = [[] for _ in runs]
    for cell in cells:
        best: dict[str, float] = {}
        for run in runs:
            error = run.errors.get(cell, {}).get(key)
            if error is not None:
                best[run.solver] = min(error, best.get(run.solver, error))
        for run, line in zip(runs, out, strict=True):
            error = run.errors.get(cell, {}).get(key)
            if error is None:
                line.append(None)
                continue
            others = [e for solver, e in best.items() if solver != run.solver]
            line.append(sum(e < error for e in others) / max(1, len(others)))
    return out


def candidates(
    problem: Problem,
    samples: int = 1,
    steps: int | None = None,
    nfe: float | None = None,
    work: float | None = None,
    runs: Sequence[Measured] | None = None,
) -> list[Measured]:
    """The measured runs that fit a problem and a budget: ``steps``, ``nfe`` evaluations per sample, ``work``.

    Where nothing keeps to ``steps``, the runs of fewest evaluations are taken, up to twice the least: of all that were
    measured they say most about a run that is shorter still.
    """
    known, white, made = names("solver"), problem.white, []
    for run in stored()[1] if runs is None else runs:
        if run.solver not in known or samples < run.samples:
            continue
        if (nfe is not None and run.nfe > nfe) or (work is not None and run.work > work):
            continue
        if run.make().unfit(white) is None:
            made.append(run)
    if steps is not None:
        least = min((run.nfe for run in made), default=0.0)
        made = [run for run in made if run.steps <= steps] or [run for run in made if run.nfe <= 2 * least]
    return made


def choose(
    problem: Problem,
    goal: str = "sample",
    *,
    samples: int = 1,
    steps: int | None = None,
    nfe: float | None = None,
    seconds: float | None = None,
    prior: Prior | None = None,
) -> Choice:
    """What "auto" stands for: see the module's text.

    ``steps`` are those that will be made, ``nfe`` and ``seconds`` the budget of a run (evaluations per sample, seconds
    for all); for seconds one evaluation of ``prior`` is timed.

    Raises :class:`InputError` for an unknown goal or seconds without a prior, :class:`NotCompatible` where no solver
    fits, or none keeps to the budget.
    """
    if goal not in GOALS:
        raise InputError(f"goal must be one of {', '.join(GOALS)}, got '{goal}'")
    work = None
    if seconds is not None:
        if prior is None:
            raise InputError("a budget in seconds needs the prior, of which an evaluation is timed")
        work = seconds / (call_seconds(problem, prior) * problem.y.shape[0] * samples)
    runs = candidates(problem, samples, steps, nfe, work)
    limits = [] if nfe is None else [f"{nfe:g} evaluations"]
    limits += [] if seconds is None else [f"{seconds:g} s"]
    if not runs and limits and candidates(problem, samples, steps):
        cheap = min(candidates(problem, samples, steps), key=lambda run: run.work)
        raise NotCompatible(
            f"no measured solver that fits keeps to {' and '.join(limits)}: the cheapest is {cheap.solver} with "
            f"{cheap.nfe:.0f} evaluations per sample; raise the budget, or name a solver and its steps"
        )
    if not runs:
        return _unmeasured(problem, samples, steps)
    cells = stored()[0]
    near, words = like(problem, cells)
    at = places(runs, near, goal)
    mine = Cell.of(problem)
    least = min((mine.far(cells[name]) for name in near), default=0.0)
    nearest = [j for j, name in enumerate(near) if mine.far(cells[name]) == least]
    order = sorted(range(len(runs)), key=lambda k: (*_merit(at[k], nearest), runs[k].work))
    if goal == "map":
        points = [k for k in order if runs[k].point and not _merit(at[k], nearest)[0]]
        order = points or order
    best, line = runs[order[0]], _known(at[order[0]])
    return Choice(best.make(), steps or best.steps, _reason(goal, best, line, runs, limits, words))


def _merit(line: Sequence[float | None], nearest: Sequence[int]) -> tuple[bool, bool, float, float]:
    """Less is better: maybe worse than the median solver in a cell nearest to the problem, and then rather a known
    place than none; worst place; all places."""
    places, unknown = _known(line), any(line[j] is None for j in nearest)
    unsure = unknown or any(places[j] > UNKNOWN for j in nearest)
    return unsure, unknown, max(places, default=UNKNOWN), sum(places)


def _known(line: Sequence[float | None]) -> list[float]:
    return [UNKNOWN if place is None else place for place in line]


def _reason(
    goal: str, best: Measured, line: Sequence[float], runs: Sequence[Measured], limits: Sequence[str], words: str
) -> str:
    aim = {"sample": "samples", "mmse": "the least error", "map": "a point estimate"}[goal]
    kept = f" and keep to {' and '.join(limits)}" if limits else ""
    back = f" and {best.vjps:.0f} back-propagations" if best.vjps else ""
    return (
        f"{best.solver}, for {aim}: of {len({run.solver for run in runs})} measured solvers that fit{kept}, it has the "
        f"best worst place among {len(line)} measured problems like this ({words}): no worse than "
        f"{1 - max(line):.0%} of the others there, {1 - sum(line) / len(line):.0%} on average; measured with "
        f"{best.steps} steps, {best.nfe:.0f} evaluations{back} per sample"
    )


def _unmeasured(problem: Problem, samples: int, steps: int | None) -> Choice:
    """The first registered solver that fits, where none of those that do has been measured."""
    from . import get_solver, list_solvers
    from .variational import FITTED

    for name in sorted(list_solvers(fits=problem), key=lambda n: n in FITTED):  # those that learn first take long
        solver = get_solver(name)
        if solver.particles <= samples:
            return Choice(solver, steps or solver.default_steps, f"{name}: no solver that fits has been measured")
    raise NotCompatible("no solver fits this problem: see list_solvers() and what each one needs")


def call_seconds(problem: Problem, prior: Prior) -> float:
    """Seconds of one evaluation of the prior on one signal of a problem, once it is warm."""
    x = torch.zeros(1, *problem.shape, dtype=problem.like.dtype, device=problem.device)
    spent = 0.0
    with torch.no_grad():
        for _ in range(2):
            start = time.perf_counter()
            prior.denoise(x, float(problem.scale)).sum().item()  # wait for the device
            spent = time.perf_counter() - start
    return max(spent, 1e-9)
