"""The bars of the ruler: what solvers must reach on problems with known answers, each as a check that can fail.

A check runs a solver and returns :class:`Bar` s, a number with the interval that it must lie in. The tests demand that
all hold, and that they no longer do once the arithmetic underneath is tampered with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..noise import Gaussian
from ..operators import Blur, Identity, Inpainting, gaussian_kernel
from ..priors import GaussianPrior
from ..problem import Problem
from ..run import Status, stream
from ..schedules import Schedule, ddpm_sigmas
from ..solvers import get_solver
from ..solvers.base import Solver
from .exact import Row, judge, yardstick
from .families import RANGE, ExactProblem, exact_problem, get_problem
from .particles import measure, slope


@dataclass(frozen=True)
class Bar:
    """A measured value and the interval [low, high] that it must lie in."""

    what: str
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """False also for NaN."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        return f"{self.what}: {self.value:.4g}, wanted {self.low:g} to {self.high:g}"


def failures(bars: Iterable[Bar]) -> list[str]:
    """The bars that do not hold, one line each."""
    return [str(bar) for bar in bars if not bar.holds]


def draw(problem: ExactProblem, solver: Solver, samples: int, steps: int | None = None, seed: int = 0) -> Tensor:
    """Samples [S, *shape] of a run, NaN if it diverged."""
    run = stream(problem.problem, problem.prior, solver, samples=samples, steps=steps, seed=seed)
    for _ in run:
        pass
    if run.status is not Status.DONE or run.state is None:
        return torch.full((samples, *problem.problem.shape), math.nan)
    return run.state.x


def at_the_floor(
    solver: Solver, problems: Sequence[str], limit: float, samples: int = 500, steps: int | None = None
) -> list[Bar]:
    """Both Wasserstein distances on Gaussian problems of the family: at most ``limit`` times the sampling floor."""
    bars = []
    for name in problems:
        problem = get_problem(name)
        x = draw(problem, solver, samples, steps)
        finite = bool(torch.isfinite(x).all())
        row = judge(problem, x, yardstick(name, samples)) if finite else {}
        for key in ("w2_floor", "sw2_floor"):
            bars.append(Bar(f"{solver.name} on {name}, {key}", row.get(key, math.nan), 0, limit))
    return bars


def unseen_spread(solver: Solver, problems: Sequence[str], samples: int = 500, steps: int | None = None) -> list[Bar]:
    """Directions that A does not see keep the standard deviation of the exact posterior within 5 %.

    On independent signals (the ``iso`` problems) that is the prior's.
    """
    bars = []
    for name in problems:
        problem = get_problem(name)
        x = draw(problem, solver, samples, steps)
        row = judge(problem, x, yardstick(name, samples)) if bool(torch.isfinite(x).all()) else {}
        value = row.get("std_unseen")
        bars.append(Bar(f"{solver.name} on {name}, std_unseen", math.nan if value is None else value, 0.95, 1.05))
    return bars


def half_way(solver: Solver, samples: int = 400, n: int = 64, steps: int | None = None) -> list[Bar]:
    """With A = I, sigma_y = 1 and the prior N(0, I) the posterior is N(y / 2, I / 2): its mean within 2 %.

    The slope of the samples on y: ``samples`` samples of ``n`` values have an error of 0.7 / sqrt(samples) / |y|.
    """
    prior = GaussianPrior(torch.zeros(n), 1.0, value_range=RANGE)
    y = torch.linspace(-3, 3, n)[None]
    problem = Problem(y, Identity(), Gaussian(1.0), value_range=RANGE)
    x = draw(ExactProblem("half-way", prior, problem, prior.posterior(problem)), solver, samples, steps)
    slope = float((x.mean(0) * y[0]).sum() / y.square().sum())
    return [Bar(f"{solver.name}, posterior mean over y", slope, 0.49, 0.51)]


def falling(solver: Solver, problem: str, rungs: Sequence[tuple[float, int]], samples: int = 500) -> list[Bar]:
    """PnP-DM comes closer from rung to rung: the sliced distance shrinks. A rung is a last coupling and its sweeps."""
    distances = []
    for rho, sweeps in rungs:
        x = draw(get_problem(problem), replace(solver, rho_min=rho), samples, sweeps)  # type: ignore[call-arg]
        finite = bool(torch.isfinite(x).all())
        distances.append(judge(get_problem(problem), x, yardstick(problem, samples))["sw2"] if finite else math.nan)
    steps = zip(rungs[1:], distances, distances[1:], strict=False)
    what = f"pnp-dm on {problem}, distance over that of the rung before, at rho"
    return [Bar(f"{what} {rho:g} in {sweeps} sweeps", b / a, 0, 1) for (rho, sweeps), a, b in steps]


def improving(solver: Solver, problem: str, steps: Sequence[int], limit: float = 2.0, samples: int = 200) -> list[Bar]:
    """More steps come closer: the sliced distance falls from each number to the next, to ``limit`` floors at most."""
    there = get_problem(problem)
    found = []
    for count in steps:
        x = draw(there, solver, samples, count)
        finite = bool(torch.isfinite(x).all())
        found.append(judge(there, x, yardstick(problem, samples))["sw2_floor"] if finite else math.nan)
    what = f"{solver.name} on {problem}, distance"
    pairs = zip(steps[1:], found, found[1:], strict=False)
    bars = [Bar(f"{what} in {count} steps over that in fewer", b / a, 0, 1) for count, a, b in pairs]
    return [*bars, Bar(f"{what} over floor in {steps[-1]} steps", found[-1], 0, limit)]


def particles_at_work(
    solver: Solver, problem: str = "plane-row-0.05", few: int = 16, many: int = 128, runs: int = 32, steps: int = 30
) -> list[Bar]:
    """More particles come closer, as in any Monte Carlo method, and their mean weight is p(y).

    The slope, in log-log, of the error of the weighted mean (root mean square over independent runs) on the number of
    particles is -1/2, here with what that many runs leave uncertain; for the weights see :func:`knows_the_evidence`.
    """
    rows = [measure(solver, problem, count, steps, runs) for count in (few, many)]
    fall = Bar(f"{solver.name} on {problem}, slope of the error on particles", slope(rows)[0], -0.65, -0.35)
    return [fall, *(_unbiased(row) for row in rows if "evidence" in row)]


def knows_the_evidence(
    solver: Solver, problem: str, particles: int = 128, runs: int = 32, steps: int = 50
) -> list[Bar]:
    """The mean over runs of the estimates of p(y), over its closed form, is one within four standard errors.

    These are at most a tenth, so that nothing far from one is within them.
    """
    row = measure(solver, problem, particles, steps, runs)
    spread = Bar(f"{solver.name} on {problem}, standard error of p(y)", row["evidence_spread"], 0, 0.1)
    return [_unbiased(row), spread]


def _unbiased(row: Row) -> Bar:
    spread = 4 * row["evidence_spread"]
    what = f"{row['solver']} on {row['problem']}, p(y) over its closed form with {row['particles']} particles"
    return Bar(what, row["evidence"], 1 - spread, 1 + spread)


def masked_blur() -> ExactProblem:
    """Half the pixels, without noise, of a blurred 16 x 16 image: no spectral form, and a condition of a hundred."""
    flat = torch.full((1, 16, 16), 0.1)
    mask = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    operator = Inpainting(mask.float()) @ Blur(gaussian_kernel(1.0, 5))
    return exact_problem("masked-blur-0", GaussianPrior(flat, 0.25, value_range=RANGE), operator, 0.0)


def reproduces(solver: Solver, problems: Sequence[str | ExactProblem], steps: int = 10, samples: int = 4) -> list[Bar]:
    """On data without noise: the largest |y - A(x)|, as a share of half the value range, is 1e-4 at most."""
    bars = []
    for known in (get_problem(p) if isinstance(p, str) else p for p in problems):
        problem = known.problem
        x = draw(known, solver, samples, steps)
        worst = float((problem.y - problem.operator(x)).abs().max()) / problem.scale
        bars.append(Bar(f"{solver.name} on {known.name}, misfit", worst, 0, 1e-4))
    return bars


def red_diff_fixed_point(
    lam: float = 1.0, variances: Sequence[float] = (1.0, 0.25), steps: int = 4000, samples: int = 8
) -> list[Bar]:
    """RED-diff on N(0, v I) with A = I rests at y / (1 + lam kappa sigma_y^2), kappa = mean of sigma^2 / (v + sigma^2).

    The closed form of plain RED (weighting "linear") for levels visited equally often: DDPM's 1000 levels, here drawn
    finer so that a random order sees all of them in any stretch of the run; kappa is 0.72 for v = 1, 0.83 for v = 1/4.
    The iterates of the second half are averaged, which leaves about half a per cent of noise.
    """
    fine = np.interp(np.linspace(0, 999, steps), np.arange(1000), np.log(ddpm_sigmas()))
    schedule = Schedule((*np.exp(fine)[::-1].tolist(), 0.0))
    solver = get_solver("red-diff", data="likelihood", optimizer="sgd", order="random", lam=lam, lr=0.005)
    bars = []
    for v in variances:
        prior = GaussianPrior(torch.zeros(16), v, value_range=RANGE)
        y = torch.linspace(1, 2, 16)[None]
        problem = Problem(y, Identity(), Gaussian(1.0), value_range=RANGE)
        run, total, count = stream(problem, prior, solver, samples=samples, schedule=schedule), torch.zeros(16), 0
        for state in run:
            if state.i > steps // 2:
                total, count = total + state.x.mean(0), count + 1
        kappa = sum(s**2 / (v + s**2) for s in schedule.sigmas[:-1]) / steps
        slope = float((total / max(count, 1) / y[0]).mean())
        bars.append(
            Bar(f"red-diff, fixed point for v = {v:g} over its closed form", slope * (1 + lam * kappa), 0.98, 1.02)
        )
    return bars
