"""The ruler: how far a solver's samples are from a posterior that is known exactly.

What is measured of S samples of one measurement, against the exact posterior with mean m and covariance C:

w2
    Wasserstein-2 distance of the Gaussian fitted to the samples to N(m, C), where the posterior is Gaussian.
sw2
    Sliced Wasserstein-2 distance to S exact draws (root mean square over several such sets).
w2_floor, sw2_floor
    The same distances, in units of those that S exact draws have in place of the samples: 1 is perfect, up to the
    spread of the floor itself (w2_spread, sw2_spread: its relative standard deviation).
mean
    |mean of the samples - m| / sqrt(tr C): about 1 / sqrt(S) for exact draws.
std, std_seen, std_unseen
    sqrt(tr Chat / tr C): over everything, and projected on the directions that A sees (by A^+ A) and does not see;
    None where C has nothing there; only for operators that are linear.
cover50, cover90
    The share of exact draws within the central intervals of the samples, over the values that the posterior leaves
    uncertain: 0.5 and 0.9 for a perfect solver, less for one that is too narrow or beside the point.
nfe, vjps, seconds
    Evaluations of the prior and back-propagations per sample, and time of the whole run on one thread.

Samples of a solver that weighs its particles count by their weights; the particles are its samples.

A point estimate has no spread: of those only ``mean`` is reported, how far from the posterior mean it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..io.ledger import Ledger
from ..metrics import coverage, gaussian_wasserstein2, moments, sliced_wasserstein2
from ..numerics.resampling import normalise
from ..operators.base import Linear
from ..processes import pool
from ..registry import names
from ..run import Status, stream
from ..solvers import get_solver
from ..solvers.base import Solver, State
from . import families, nonlinear
from .families import ExactProblem, get_problem

Row = dict[str, Any]

SAMPLES = 1000
"""Samples per solver and problem in a full run."""

DRAWS = 6
"""Sets of exact draws that distances and floors are averaged over."""

MOST = 15
"""Sets of draws of a reference posterior, where there are as many: rare modes are in few of them."""

KEYS = ("solver", "setting", "problem", "samples", "seed")
"""What tells rows of results from each other."""

EXACT = "exact draws"
"""In the place of a solver: draws of the posterior itself."""


@dataclass(frozen=True)
class Setting:
    """One way to run a solver in the ruler: its options (the others are its defaults), steps and number of samples.

    ``label`` tells the settings of one solver apart, "" is the default one. ``samples`` may be fewer for slow ones, and
    ``slow`` ones are measured on the quick problems of a full run only. ``point`` marks point estimates. ``gate_steps``
    are those of the reduced measurement that the tests repeat.
    """

    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    samples: int = SAMPLES
    slow: bool = False
    point: bool = False
    gate_steps: int | None = None

    def solver(self, name: str) -> Solver:
        return get_solver(name, **self.options)


SETTINGS: dict[str, tuple[Setting, ...]] = {
    "das": (Setting(samples=200, gate_steps=50),),
    "aps": (Setting(samples=500, slow=True, gate_steps=10),),
    "daps": (
        Setting("exact", {"inner": "exact"}),
        Setting("langevin", {"inner": "langevin"}, slow=True, gate_steps=40),
        Setting("hmc", {"inner": "hmc", "inner_steps": 20}, slow=True, gate_steps=40),
    ),
    "davi": (Setting(samples=500, slow=True, gate_steps=10),),
    "bird": (Setting(samples=200, gate_steps=20),),
    "dcdp": (Setting(samples=200), Setting("deblur", {"lr": 1.0}, samples=200, slow=True)),
    "ddnm": (Setting(), Setting("paper", {"eta": 0.85})),
    "ddpg": (Setting(), Setting("idpg", {"inject": False, "decay": False}, point=True, samples=64)),
    "ddrm": (Setting(), Setting("paper", {"eta": 0.85}, steps=20)),
    "dcps": (
        Setting(samples=200, gate_steps=40),
        Setting("paper", {"weights": False}, samples=100, slow=True, gate_steps=40),
    ),
    "ddsmc": (Setting(samples=300, gate_steps=50),),
    "dmap": (Setting(samples=300, gate_steps=50),),
    "dmps": (
        Setting(samples=300, gate_steps=100),
        Setting("lam 1", {"lam": 1.0}, samples=300, gate_steps=100),
    ),
    "dmplug": (Setting("", {"lr": 0.05}, steps=300, samples=50, gate_steps=30),),
    "dpps": (Setting(samples=60, gate_steps=50),),
    "dpg": (Setting("", {"draws": 50}, steps=200, samples=50, gate_steps=20),),
    "dps": (Setting(samples=500),),
    "eki": (Setting(samples=300),),
    "enkg": (Setting(samples=100, gate_steps=20),),
    "kadkhodaie-simoncelli": (
        Setting(samples=500, gate_steps=100),
        Setting("paper", {"h0": 0.01}, steps=700, samples=500, gate_steps=100),
    ),
    "lgd-mc": (Setting(samples=200, gate_steps=100),),
    "mcgdiff": (Setting(samples=300, gate_steps=50),),
    "mcg": (Setting(samples=200, gate_steps=100),),
    "peng": (Setting(), Setting("II", {"guidance": "II"}), Setting("paper", {"eta": 0.0, "threshold": 0.2})),
    "fk-steering": (Setting(samples=300, gate_steps=50),),
    "flair": (Setting(samples=500),),
    "fps": (Setting(samples=300, gate_steps=50),),
    "fps-smc": (
        Setting(samples=300, gate_steps=50),
        Setting("path", {"path": True}, samples=300, slow=True, gate_steps=50),
    ),
    "pmc": (
        Setting(samples=200, gate_steps=100),
        Setting("pnp", {"order": "pnp"}, samples=200, slow=True, gate_steps=100),
        Setting("paper", {"weight": 1.0}, samples=200, slow=True, gate_steps=100),
    ),
    "pnp-dm": (Setting(samples=500), Setting("long", steps=400, samples=200, slow=True, gate_steps=20)),
    "projdiff": (Setting(samples=200), Setting("deblur", {"lr": 0.1}, samples=200, slow=True)),
    "resample": (Setting(samples=200, gate_steps=100),),
    "sitcom": (Setting(samples=200, gate_steps=5),),
    "repaint": (Setting(samples=200, gate_steps=20),),
    "score-ald": (
        Setting(samples=500, gate_steps=50),
        Setting(
            "code",
            {"balance": 0.3, "step_size": 1.15, "inner_steps": 3},
            steps=300,
            samples=200,
            slow=True,
            gate_steps=20,
        ),
    ),
    "score-sde": (
        Setting(samples=500, gate_steps=50),
        Setting("projection", {"corrections": 0}, samples=500, gate_steps=50),
    ),
    "snips": (
        Setting(samples=500, gate_steps=50),
        Setting("paper", {"step_size": 0.018, "inner_steps": 3}, steps=1086, samples=100, slow=True, gate_steps=20),
    ),
    "red-diff": (Setting(samples=64, point=True), Setting("lam 1", {"lam": 1.0}, samples=64, point=True)),
    "rsld": (
        Setting(samples=64, gate_steps=100),
        Setting("no repulsion", {"gamma": 0.0}, samples=64, slow=True, gate_steps=100),
    ),
    "score-prior": (Setting(samples=500, slow=True, gate_steps=10),),
    "score-prior-surrogate": (Setting(samples=500, slow=True, gate_steps=20),),
    "sds": (
        Setting(samples=64, gate_steps=100),
        Setting("decay", {"decay": True}, samples=64, slow=True, gate_steps=100),
    ),
    "scg": (Setting(samples=100, gate_steps=20),),
    "smcdiff": (Setting(samples=300, gate_steps=50),),
    "tds": (Setting(samples=300, gate_steps=50),),
    "smrd": (Setting(samples=200, gate_steps=30),),
    "unveil-exact": (Setting(samples=100, gate_steps=6),),
}
"""The settings of the ruler: what is not listed here runs once, with its defaults."""


def settings_of(name: str) -> tuple[Setting, ...]:
    """The ways in which a solver is measured."""
    return SETTINGS.get(name, (Setting(),))


# -- one measurement -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Yardstick:
    """Exact draws of a posterior, and the distances that they have from it and from each other."""

    draws: tuple[Tensor, ...]
    w2: Tensor
    sw2: Tensor


@cache
def yardstick(name: str, samples: int) -> Yardstick:
    """The yardstick of a problem; of a reference posterior with all its draws, up to ``MOST`` sets."""
    sets = min(MOST, nonlinear.POOL // samples) if name in nonlinear.NAMES else DRAWS
    return make_yardstick(get_problem(name), samples, sets)


def make_yardstick(problem: ExactProblem, samples: int, sets: int = DRAWS) -> Yardstick:
    """``sets`` times ``samples`` exact draws, their distances to the posterior, and those of all pairs."""
    exact = problem.posterior
    draws = tuple(exact.sample(samples, seed=1000 + k) for k in range(sets))
    mean, cov = exact.mean, exact.covariance
    w2 = [gaussian_wasserstein2(*moments(d), mean, cov) for d in draws]
    sw2 = [sliced_wasserstein2(a, b) for i, a in enumerate(draws) for b in draws[:i]]
    return Yardstick(draws, torch.tensor(w2), torch.tensor(sw2))


def judge(problem: ExactProblem, x: Tensor, yard: Yardstick, point: bool = False, weights: Tensor | None = None) -> Row:
    """All distances of samples x [S, *shape], which count by ``weights`` [S], from the exact posterior.

    See the module's text.
    """
    exact = problem.posterior
    mean, cov = exact.mean.flatten(), exact.covariance
    at, spread = moments(x, weights)
    total = cov.trace()
    row: Row = {"mean": float((at - mean).norm() / total.sqrt())}
    if point:
        return row
    if problem.gaussian:
        w2, floor = gaussian_wasserstein2(at, spread, mean, cov), _rms(yard.w2)
        row |= {"w2": w2, "w2_floor": w2 / floor, "w2_spread": float(yard.w2.std() / floor)}
    sw2 = _rms(torch.tensor([sliced_wasserstein2(x, d, weights=weights) for d in yard.draws]))
    floor = _rms(yard.sw2)
    row |= {"sw2": sw2, "sw2_floor": sw2 / floor, "sw2_spread": float(yard.sw2.std() / floor)}
    row["std"] = _ratio(spread, cov, None, total)
    if isinstance(problem.problem.operator, Linear):
        seen = seen_projection(problem)
        row["std_seen"] = _ratio(spread, cov, seen, total)
        row["std_unseen"] = _ratio(spread, cov, torch.eye(len(seen), dtype=seen.dtype) - seen, total)
    uncertain = cov.diagonal() > 1e-8 * cov.diagonal().max()
    truth = torch.cat(yard.draws).flatten(1)
    for level in (0.5, 0.9):
        inside = coverage(x.flatten(1), truth, level, weights)
        row[f"cover{level * 100:.0f}"] = float(inside[uncertain].mean())
    return row


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _ratio(spread: Tensor, cov: Tensor, projection: Tensor | None, total: Tensor) -> float | None:
    if projection is not None:
        spread, cov = projection @ spread @ projection, projection @ cov @ projection
    if cov.trace() <= 1e-8 * total:
        return None
    return float((spread.trace() / cov.trace()).sqrt())


def seen_projection(problem: ExactProblem) -> Tensor:
    """A^+ A as a matrix [n, n]: the projection on the directions that the operator sees."""
    shape = problem.problem.shape
    eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    matrix = problem.problem.operator(eye).flatten(1).T
    _, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rows = vh[s > 1e-6 * s[0]]
    projection: Tensor = rows.T @ rows
    return projection


def run_one(
    problem: ExactProblem,
    solver: Solver,
    *,
    steps: int | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    point: bool = False,
    yard: Yardstick | None = None,
) -> Row:
    """Run a solver on a problem and judge its samples: the numbers of the module's text, and ``status``."""
    return run_seeds(problem, solver, [seed], steps=steps, samples=samples, point=point, yard=yard)[0]


def run_seeds(
    problem: ExactProblem,
    solver: Solver,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    samples: int = SAMPLES,
    point: bool = False,
    yard: Yardstick | None = None,
) -> list[Row]:
    """:func:`run_one` for each of several seeds, all in one run, of whose seconds each row has its share.

    If that does not come to an end, as when one of them diverges, each is run by itself.
    """
    start = time.perf_counter()
    again = problem.problem.rows(torch.zeros(len(seeds), dtype=torch.long))
    run = stream(again, problem.prior, solver, samples=samples, steps=steps, seed=list(seeds))
    for _ in run:
        pass
    done = run.status is Status.DONE and run.state is not None
    if not done and len(seeds) > 1:
        return [run_one(problem, solver, steps=steps, samples=samples, seed=k, point=point, yard=yard) for k in seeds]
    row: Row = {"status": run.status.value, "steps": run.steps, "samples": samples}
    cost: Row = {"nfe": run.nfe, "vjps": run.vjps, "seconds": (time.perf_counter() - start) / len(seeds)}
    if not done or run.state is None:
        return [row | cost]
    yard = yard or make_yardstick(problem, samples)
    clouds = run.state.x.reshape(len(seeds), samples, *problem.problem.shape)
    weights = weights_of(run.state, samples)
    return [
        row | judge(problem, x, yard, point, None if weights is None else weights[k]) | cost
        for k, x in enumerate(clouds)
    ]


def weights_of(state: State, samples: int) -> Tensor | None:
    """What the particles of a state count, by measurement [B, S]; None if there is nothing to weigh."""
    if "log_weights" not in state.aux:
        return None
    return normalise(state.aux["log_weights"].reshape(-1, samples))[0]


# -- the whole table -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A setting of a solver on a problem: a row for each seed."""

    solver: str
    setting: Setting
    problem: str
    samples: int
    seeds: tuple[int, ...]

    def row(self, seed: int) -> Row:
        """What tells the row of a seed from others."""
        names = {"solver": self.solver, "setting": self.setting.label, "problem": self.problem}
        return names | {"samples": self.samples, "seed": seed}

    def measure(self) -> list[Row]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            rows = run_seeds(
                get_problem(self.problem),
                self.setting.solver(self.solver),
                self.seeds,
                steps=self.setting.steps,
                samples=self.samples,
                point=self.setting.point,
                yard=yardstick(self.problem, self.samples),
            )
        finally:
            torch.set_num_threads(threads)
        return [self.row(seed) | row for seed, row in zip(self.seeds, rows, strict=True)]


def tasks(
    solvers: Sequence[str] | None, problems: Sequence[str] | None, quick: bool, samples: int | None, seed: int
) -> list[Task]:
    """What a run of the ruler measures: each setting of each solver on each problem that it fits."""
    chosen = tuple(problems or (families.QUICK if quick else families.NAMES))
    few = tuple(p for p in chosen if p in families.QUICK)
    out = []
    for name, setting in _settings(solvers):
        if setting.slow and quick:
            continue
        count = min(setting.samples, samples or (200 if quick else SAMPLES))
        out += _fitting(name, setting, few if setting.slow else chosen, count, (seed,))
    if not out:
        raise InputError("none of these solvers fits any of these problems")
    return out


def _settings(solvers: Sequence[str] | None) -> list[tuple[str, Setting]]:
    """Every setting of these solvers, of all by default. Raises :class:`UnknownName`."""
    known = names("solver")
    for name in solvers or ():
        if name not in known:
            raise unknown("solver", name, known)
    return [(name, setting) for name in solvers or known for setting in settings_of(name)]


def _fitting(name: str, setting: Setting, problems: Sequence[str], samples: int, seeds: tuple[int, ...]) -> list[Task]:
    solver = setting.solver(name)
    fit = [p for p in problems if solver.unfit(get_problem(p).problem) is None]
    return [Task(name, setting, p, samples, seeds) for p in fit]


def run_exact(
    solvers: Sequence[str] | None = None,
    problems: Sequence[str] | None = None,
    quick: bool = False,
    samples: int | None = None,
    seed: int = 0,
    workers: int = 1,
    on_row: Any = None,
) -> list[Row]:
    """Measure solvers on the family of problems with known posteriors.

    Parameters
    ----------
    solvers, problems:
        Names; all that are registered, and all of the family, by default. A solver is left out where it does
        not fit.
    quick:
        A subset of the problems, and fewer samples.
    samples:
        Samples per run, at most what a setting asks for.
    workers:
        Processes to share the work; the numbers are the same (but for the seconds).
    on_row:
        Called with every row as it is ready.

    Returns the rows in the order of solvers, settings and problems. Raises :class:`UnknownName`.
    """
    return _measure(tasks(solvers, problems, quick, samples, seed), Ledger(None, KEYS), workers, on_row)


def run_nonlinear(
    path: Path | None,
    solvers: Sequence[str] | None = None,
    problems: Sequence[str] | None = None,
    samples: int = 200,
    runs: int = 5,
    workers: int = 1,
    on_row: Any = None,
) -> list[Row]:
    """Measure solvers on the problems of :mod:`unveil.bench.nonlinear`, ``runs`` seeds of each.

    All settings take as many samples (point estimates their own number), since the floor, and so what a distance is a
    multiple of, falls with their number. Draws of the references are measured alike, as the solver :data:`EXACT`, each
    set of the yardstick against the others. ``path`` keeps every row as it comes (:class:`~unveil.io.ledger.Ledger`);
    what it has is not measured again.

    Returns the rows, those of the file first. Raises :class:`UnknownName`, and :class:`InputError` for a file that
    holds something else, or more samples than there are draws of the references.
    """
    if samples > nonlinear.POOL // DRAWS:
        raise InputError(
            f"the reference posteriors are kept as {nonlinear.POOL} draws: --samples {nonlinear.POOL // DRAWS} at most"
        )
    chosen, seeds = tuple(problems or nonlinear.NAMES), tuple(range(runs))
    for name in chosen:
        if name not in nonlinear.NAMES:
            raise unknown("problem", name, nonlinear.NAMES)
    work = []
    for name, setting in _settings(solvers):
        work += _fitting(name, setting, chosen, setting.samples if setting.point else samples, seeds)
    if not work:
        raise InputError("none of these solvers fits any of these problems")
    ledger = Ledger(path, KEYS)
    for name in chosen:
        for row in exact_rows(name, samples, ledger):
            ledger.add(row)
    return _measure(work, ledger, workers, on_row)


def exact_rows(name: str, samples: int, ledger: Ledger) -> list[Row]:
    """Rows of the draws of a reference posterior, each set of its yardstick against the others; those not there yet."""
    sets = range(min(MOST, nonlinear.POOL // samples))
    row = {"solver": EXACT, "setting": "", "problem": name, "samples": samples}
    missing = [k for k in sets if row | {"seed": k} not in ledger]
    row |= {"status": Status.DONE.value, "steps": 0, "nfe": 0.0, "vjps": 0.0, "seconds": 0.0}
    rows = []
    for k in missing:
        yard = yardstick(name, samples)
        others = replace(yard, draws=yard.draws[:k] + yard.draws[k + 1 :])
        rows.append({**row, "seed": k, **judge(get_problem(name), yard.draws[k], others)})
    return rows


def _measure(work: Sequence[Task], ledger: Ledger, workers: int, on_row: Any) -> list[Row]:
    """The rows of a ledger and of all tasks, of which those that the ledger has are not measured again."""
    left = [replace(task, seeds=tuple(k for k in task.seeds if task.row(k) not in ledger)) for task in work]
    missing = [task for task in left if task.seeds]

    def keep(rows: list[Row]) -> None:
        for row in rows:
            ledger.add(row)
            if on_row is not None:
                on_row(row)

    if workers <= 1:
        for task in missing:
            keep(task.measure())
        return ledger.rows
    with pool(workers) as executor:
        for future in [executor.submit(task.measure) for task in missing]:
            keep(future.result())
    return ledger.rows
