"""Is a solver's uncertainty right? Simulation-based calibration and expected coverage, for any prior and operator.

A trial draws a signal x* from the prior, measures it, and has the solver draw S samples of the posterior. If these are
right, x* is one of S + 1 alike, and every rank of x* among the samples is uniform on 0 .. S, whatever was measured:

ranks
    of fixed linear projections of the signal, and of the log-likelihood of the data (Talts et al. 2018,
    arXiv 1804.06788; Modrak et al. 2023, arXiv 2211.02383, for the latter). A U in their histogram: samples too narrow.
tarp
    The number of samples that are nearer than x* to a point that knows nothing of the trial, the signal of another one
    (Lemos et al. 2023, arXiv 2302.03026).
centre
    The number of samples that are nearer than x* to the middle of all S + 1: coverage of balls around the mean.

The verdict rests on five tests, each at a fifth of the level, so that a perfect solver is called otherwise in at most
that share of all calibrations (about: the tests are those of large numbers of trials). Of the spread: how far the ranks
lie from the middle, averaged over the projections of a trial; the same of ``tarp``; the mean of ``centre``. Then the
mean rank of each projection, and the chi-square of each histogram, the smallest p-value times their number.

Nothing is said about the prior: signals are its own draws. With a network, draws come from its probability flow, in
which a solver with other steps may differ from it; with signals of one's own (``truth``) the prior is judged as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..io.ledger import Ledger, Row, same_settings
from ..noise import Noise
from ..operators.base import Operator
from ..priors.base import Prior
from ..problem import Problem, as_noise
from ..rng import Rng
from ..run import Status, solve
from ..run.sample import heun
from ..schedules import karras
from ..solvers.base import Solver

PROJECTIONS = 8
"""Directions in which signals are ranked."""

LEVEL = 0.05
"""Share of perfect solvers that are called something else."""

FEWEST = 20
"""Trials below which no verdict is given."""

Truth = Callable[[Sequence[int]], Tensor]
"""Numbers of signals -> signals [N, *shape]."""


# -- what is found -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """A p-value, two-sided, and the direction: above zero for samples that are too narrow, None without one."""

    name: str
    p: float
    direction: float | None = None


@dataclass(frozen=True)
class Calibration:
    """Ranks of N trials with ``samples`` samples each, from 0 to ``samples``; ``diverged`` more gave none.

    ``ranks`` [N, Q] of the ``quantities``, ``centre`` [N] and ``tarp`` [N], see the module's text.
    """

    quantities: tuple[str, ...]
    ranks: Tensor
    centre: Tensor
    tarp: Tensor
    samples: int
    level: float = LEVEL
    diverged: int = 0

    @property
    def trials(self) -> int:
        """Trials that gave samples."""
        return len(self.ranks)

    @cached_property
    def tests(self) -> tuple[Test, ...]:
        """Spread, tarp, centre, location, shape. Raises :class:`InputError` with fewer than ``FEWEST`` trials."""
        n, s = self.trials, self.samples
        if n < FEWEST:
            raise InputError(f"a verdict needs at least {FEWEST} trials that came to an end, there are {n}")
        even = (s + 2) / (3 * s)  # the mean of the squares of ranks on -1 .. 1
        fourth = even * (3 * s**2 + 6 * s - 4) / (5 * s**2)
        r = 2 * self.ranks / s - 1
        each = r[:, self._projections].square().mean(1)
        out = each.mean() - even
        spread = out / (each.std().clamp_min(1e-12) / n**0.5)
        t = 2 * self.tarp / s - 1
        beyond = (t.square().mean() - even) / ((fourth - even**2) / n) ** 0.5
        far = (2 * self.centre / s - 1).mean() / (even / n) ** 0.5
        shift = r[:, self._projections].mean(0) / (even / n) ** 0.5
        bins = min(10, s + 1, n // 5)
        p = [chi_square(self.histogram(q, bins), self.expected(bins)) for q in range(r.shape[1])]
        return (
            Test("spread", _two_sided(spread), float(spread)),
            Test("tarp", _two_sided(beyond), float(beyond)),
            Test("centre", _two_sided(far), float(far)),
            Test("location", min(1.0, len(shift) * _two_sided(shift.abs().amax()))),
            Test("shape", min(1.0, len(p) * min(p))),
        )

    @property
    def _projections(self) -> list[int]:
        return [k for k, name in enumerate(self.quantities) if name.startswith("projection")]

    def histogram(self, quantity: int, bins: int) -> Tensor:
        """Trials whose rank falls in each of ``bins`` intervals [bins]."""
        return torch.bincount((self.ranks[:, quantity] * bins / (self.samples + 1)).long(), minlength=bins).double()

    def expected(self, bins: int) -> Tensor:
        """Share of the S + 1 ranks in each interval [bins]."""
        rank = torch.arange(self.samples + 1, dtype=torch.float64)
        return torch.bincount((rank * bins / (self.samples + 1)).long(), minlength=bins) / (self.samples + 1.0)

    def covered(self, level: float = 0.9) -> tuple[float, float]:
        """Central intervals of about this level, as ranks allow: their level, and how often they hold the truth.

        Over all projections and trials.
        """
        cut = round((1 - level) / 2 * (self.samples + 1))
        inside = (self.ranks >= cut) & (self.ranks <= self.samples - cut)
        return 1 - 2 * cut / (self.samples + 1), float(inside[:, self._projections].double().mean())

    def coverage(self, which: str) -> tuple[Tensor, Tensor]:
        """The curve of expected coverage of "tarp" or "centre": credible levels [S + 2], and the share of trials whose
        truth lies in the region of that level; the diagonal for perfect samples.
        """
        rank = self.tarp if which == "tarp" else self.centre
        level = torch.arange(self.samples + 2, dtype=torch.float64) / (self.samples + 1)
        held = torch.bincount(rank.long(), minlength=self.samples + 1).cumsum(0).double() / self.trials
        return level, torch.cat([torch.zeros(1, dtype=torch.float64), held])

    @property
    def band(self) -> float:
        """Half the width of the band that a perfect curve of :meth:`coverage` stays in, with probability 1 - level."""
        return math.sqrt(-math.log(self.level / 2) / (2 * self.trials))  # Massart's form of Kolmogorov's bound

    @property
    def word(self) -> str:
        """over-confident, calibrated, under-confident, biased or misshapen."""
        limit = self.level / len(self.tests)
        leaning = [test for test in self.tests if test.direction is not None and test.p < limit]
        if leaning:
            strongest = max(leaning, key=lambda test: abs(test.direction or 0.0))
            return "over-confident" if (strongest.direction or 0.0) > 0 else "under-confident"
        _, _, _, location, shape = self.tests
        return "biased" if location.p < limit else "misshapen" if shape.p < limit else "calibrated"

    def verdict(self) -> str:
        """One line: the word, what it rests on, and how often intervals of about 90 % hold the truth."""
        stated, held = self.covered()
        least = min(self.tests, key=lambda test: test.p)
        says = {
            "over-confident": "the samples are narrower than their error",
            "under-confident": "the samples are wider than their error",
            "biased": "their spread is right, their place is not",
            "misshapen": "ranks are not uniform, though spread and place are right",
            "calibrated": "no deviation found",
        }
        _, _, _, location, _ = self.tests
        if self.word.endswith("confident") and location.p < self.level / len(self.tests):
            says[self.word] += ", and beside it"
        left_out = f"; {self.diverged} more diverged" if self.diverged else ""
        return (
            f"{self.word}: {says[self.word]} ({self.trials} trials of {self.samples} samples, level {self.level:g}: "
            f"smallest p {least.p:.2g} of {len(self.tests)} tests, {least.name}; "
            f"{stated:.0%} intervals hold the truth in {held:.1%}{left_out})"
        )


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """The p-value of Pearson's test of counts [bins] against shares [bins]."""
    e = expected * counts.sum()
    statistic = ((counts - e).square() / e).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2))


def _two_sided(z: Tensor) -> float:
    return float(torch.special.erfc(z.double().abs() / math.sqrt(2)))


# -- trials ------------------------------------------------------------------------------------------------------------


def draw_prior(
    prior: Prior, shape: tuple[int, ...], seed: int, steps: int = 40, device: torch.device | str = "cpu"
) -> Truth:
    """Signals of a prior: its own ``sample`` if it has one, else ends of its probability flow.

    Heun's method from the highest noise level on (Karras et al. 2022, arXiv 2206.00364, algorithm 1): 2 steps - 1
    evaluations. Signal k of a seed is the same in every batch.
    """
    sample = getattr(prior, "sample", None)

    def exact(index: Sequence[int]) -> Tensor:
        assert sample is not None
        signals: Tensor = sample(max(index) + 1, seed=seed)[list(index)]
        return signals

    def flow(index: Sequence[int]) -> Tensor:
        (lo, hi), (low, high) = prior.value_range, prior.sigma_range
        scale = (hi - lo) / 2
        schedule = karras(steps, max(low, 0.002 * scale), min(high, 80 * scale))
        rng = Rng([(seed, k) for k in index], purpose="truth")
        blank = torch.empty(len(index), *shape, device=device)
        x = (lo + hi) / 2 + schedule.sigmas[0] * rng.normal(blank)
        for i in range(steps):
            x, _ = heun(prior, x, None, schedule, i, rng)
        return x

    return flow if sample is None else exact


def calibrate(
    prior: Prior,
    operator: Operator,
    noise: Noise | float,
    solver: Solver,
    *,
    shape: tuple[int, ...] | None = None,
    trials: int = 200,
    samples: int = 63,
    steps: int | None = None,
    seed: int = 0,
    assumed: Noise | float | None = None,
    truth: Truth | None = None,
    batch: int | None = None,
    level: float = LEVEL,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    on_trial: Callable[[int], object] | None = None,
) -> Calibration:
    """Calibrate a solver: see the module's text.

    Parameters
    ----------
    shape:
        Of one signal, for priors of any size.
    trials, samples:
        Signals, and samples of each posterior. Ranks are whole numbers: one less than a power of two suits histograms.
    assumed:
        The noise that the solver is told, if it is not the true one.
    truth:
        Where signals come from instead of the prior; ``trials + 1`` of them are asked for.
    batch:
        Trials that are run together. The numbers do not depend on it.
    level:
        Of the verdict: :data:`LEVEL`.
    folder:
        Keeps ``settings.json`` and ``trials.jsonl``, from which the same call goes on, or takes up more trials.

    Raises :class:`InputError` for settings that differ from those in the folder, and whatever :func:`unveil.stream`
    raises, before anything is computed.
    """
    noise = as_noise(noise)
    told = noise if assumed is None else as_noise(assumed)
    shape = shape or tuple(n for n in prior.shape if n is not None)
    if len(shape) != len(prior.shape):
        raise InputError("the prior takes signals of any size: say which (shape=..., on the command line --size)")
    if samples < 9:
        raise InputError(f"ranks among fewer than 9 samples say little: samples must be at least 9, got {samples}")
    if trials < FEWEST:
        raise InputError(f"a verdict needs at least {FEWEST} trials, got {trials}")
    if not 0 < level < 1:
        raise InputError(f"the level of the verdict lies between 0 and 1, got {level:g}")
    signals = truth or draw_prior(prior, shape, seed, device=device)
    settings = {
        "solver": {"name": solver.name or type(solver).__name__, "steps": steps or solver.default_steps},
        "options": {k: str(v) for k, v in solver.options().items()},
        "prior": prior.describe(),
        "operator": operator.describe(),
        "noise": noise.describe(),
        "assumed": told.describe(),
        "shape": list(shape),
        "samples": samples,
        "seed": seed,
    }
    ledger = Ledger(None, ("trial",))
    if folder is not None:
        same_settings(folder / "settings.json", settings)
        ledger = Ledger(folder / "trials.jsonl", ("trial",))
    work = [k for k in range(trials) if {"trial": k} not in ledger]
    size = batch or max(1, min(32, 2**20 // (samples * math.prod(shape))))
    plan = _Plan(prior, operator, noise, told, solver, signals, shape, samples, steps, seed, device)
    for a in range(0, len(work), size):
        for row in plan.run(work[a : a + size]):
            ledger.add(row)
            if on_trial is not None:
                on_trial(len(ledger.rows))
    return gather(plan.quantities, ledger.rows, samples, level)


def gather(quantities: Sequence[str], rows: Sequence[Row], samples: int, level: float = LEVEL) -> Calibration:
    """The calibration of rows of trials."""
    good = [row for row in rows if row["status"] == "DONE"]

    def column(name: str) -> Tensor:
        return torch.tensor([row[name] for row in good], dtype=torch.float64)

    ranks = column("ranks").reshape(len(good), -1)
    gone = len(rows) - len(good)
    return Calibration(tuple(quantities), ranks, column("centre"), column("tarp"), samples, level, gone)


@dataclass(frozen=True)
class _Plan:
    """Everything about a trial but its number."""

    prior: Prior
    operator: Operator
    noise: Noise
    told: Noise
    solver: Solver
    signals: Truth
    shape: tuple[int, ...]
    samples: int
    steps: int | None
    seed: int
    device: torch.device | str

    @property
    def quantities(self) -> tuple[str, ...]:
        likelihood = () if self.told.sigma == 0 else ("log-likelihood",)
        return (*(f"projection {k + 1}" for k in range(PROJECTIONS)), *likelihood)

    def run(self, trials: Sequence[int]) -> Iterator[Row]:
        """Rows of trials that are run together; one by one if one of them diverges."""
        # trial k has signal k + 1, and signal k for a point of reference
        wanted = sorted({*trials, *(k + 1 for k in trials)})
        signals = dict(zip(wanted, self.signals(wanted).to(self.device), strict=True))
        x, reference = (torch.stack([signals[k + d] for k in trials]) for d in (1, 0))
        clean = self.operator(x)
        y = self.noise.sample(clean, Rng([(self.seed, k) for k in trials], purpose="measure"), self.operator.measured)
        problem = Problem(y, self.operator, self.told, self.shape, self.prior.value_range)
        seeds = [1_000_003 * self.seed + k for k in trials]
        result = solve(problem, self.prior, self.solver, samples=self.samples, steps=self.steps, seed=seeds)
        if result.status is not Status.DONE:
            if len(trials) == 1:
                yield {"trial": trials[0], "status": result.status.value, "reason": result.reason}
            else:
                for k in trials:
                    yield from self.run([k])
            return
        ranks = self._ranks(trials, x, reference, problem, result.unweighted().samples)
        for k, row in zip(trials, ranks.tolist(), strict=True):
            yield {"trial": k, "status": "DONE", "ranks": row[2:], "centre": row[0], "tarp": row[1]}

    def _ranks(self, trials: Sequence[int], x: Tensor, reference: Tensor, problem: Problem, drawn: Tensor) -> Tensor:
        """Ranks of the truths [B, *shape] among their samples [B, S, *shape]: centre, tarp, quantities [B, 2 + Q]."""
        both = torch.cat([x[:, None], drawn], 1)
        every = both.flatten(2).double().cpu()
        like = torch.empty(PROJECTIONS, every.shape[2], dtype=torch.float64)
        directions = Rng([(self.seed, k) for k in range(PROJECTIONS)], purpose="directions").normal(like)
        directions = directions / directions.norm(dim=1, keepdim=True)
        inner = every - every.mean(1, keepdim=True)
        far = (every - reference.flatten(1).double().cpu()[:, None]).norm(dim=2)
        values = [inner.norm(dim=2, keepdim=True), far[..., None], inner @ directions.T]
        if self.told.sigma != 0:
            rows = problem.rows(torch.arange(len(x), device=x.device).repeat_interleave(both.shape[1]))
            values.append(rows.log_likelihood(both.flatten(0, 1)).double().cpu().reshape(*both.shape[:2], 1))
        columns = torch.cat(values, 2)  # [B, S + 1, 2 + Q]
        first, rest = columns[:, :1], columns[:, 1:]
        near = 1e-6 * columns.abs().amax(1, keepdim=True)  # values that differ by rounding are in random order
        below, equal = (rest < first - near).sum(1), ((rest - first).abs() <= near).sum(1)
        u = Rng([(self.seed, k) for k in trials], purpose="ties").uniform(below.double())
        return below + (u * (equal + 1)).long()
