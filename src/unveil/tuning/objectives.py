"""What makes one setting of a solver better than another: with a measurement alone, or with clean signals.

An objective says what a trial has to solve (``problem``) and what its result is worth: a number, smaller is better, and
the facts behind it. Random numbers of an objective are fixed, so that trials differ by their options only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError, NotCompatible, unknown
from ..metrics import crps, psnr
from ..operators.base import Linear
from ..priors.base import Prior
from ..problem import Problem, squared_norm
from ..rng import single
from ..run import Result
from ..solvers.base import Solver

Facts = dict[str, float]


class Objective(ABC):
    """``problem`` is what every trial solves; calling gives the value of its result, and the facts behind it."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def problem(self) -> Problem:
        """What is solved."""

    @abstractmethod
    def __call__(self, result: Result, prior: Prior) -> tuple[float, Facts]:
        """The value, smaller is better, and what it is made of, by name."""

    @property
    def scatter(self) -> float:
        """By how much values differ by chance alone, where that is known: less is no reason to leave a default."""
        return 0.0

    def describe(self) -> dict[str, Any]:
        """What a ledger keeps, so that trials of another objective are not mixed in."""
        return {"name": self.name, "problem": self.problem.describe()}

    def unfit(self, solver: Solver, samples: int) -> str | None:  # noqa: ARG002
        """Why trials of this solver cannot be judged so, or None."""
        return None


# -- the discrepancy principle -----------------------------------------------------------------------------------------

LEVELS = (0.02, 0.1, 0.5)
"""Noise levels at which a prior is asked whether a signal is one of its own, for data in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Discrepancy(Objective):
    """|log chi-square per degree of freedom|, plus what the prior finds in the signals that is not one of its own.

    The right signal leaves a chi-square per degree of freedom of 1, and so does a sample of the posterior, on average
    over measurements: it and the truth are alike given y. (A posterior mean leaves somewhat less.) Morozov's principle
    in its usual form, for point estimates: Morozov 1966, Soviet Math. Dokl. 7, 414.

    By itself the principle can be met by any signal at the right distance from the data, a wrong one with noise on top
    not excepted. Hence the second term. For a signal x of the prior, and x' = x + sigma n::

        |x' - D(x', sigma)|^2 = n sigma^2 - (error of the denoiser),   at most n sigma^2, on average

    More than that, beyond two standard deviations of its own scatter, is something that the denoiser takes off besides
    the noise that was put there. The largest excess over the ``LEVELS`` counts, as a logarithm; it is zero for signals
    of the prior, too smooth ones included, whose chi-square is large.

    Valid for every noise with a variance. Raises :class:`InputError` for measurements without noise.
    """

    measured: Problem
    seed: int = 0

    name: ClassVar[str] = "discrepancy"

    def __post_init__(self) -> None:
        noise = self.measured.noise
        if noise.sigma == 0 or noise.variance(self.measured.y) is None:
            raise InputError(
                "the discrepancy principle compares the misfit with the noise, of which this problem states none: "
                "state it, or tune by images"
            )

    @property
    def problem(self) -> Problem:
        return self.measured

    @property
    def scatter(self) -> float:
        """Two standard deviations of the chi-square per degree of freedom of the noise itself."""
        return 2 * math.sqrt(2 / self.measured.m / len(self.measured.y))

    def __call__(self, result: Result, prior: Prior) -> tuple[float, Facts]:
        result = result.unweighted()
        assert result.misfit is not None
        chi2 = result.misfit.double().mean(1)
        excess = self.excess(result.samples.flatten(0, 1), prior)
        value = float(chi2.log().abs().mean()) + excess
        return value, {"chi-square / dof": float(chi2.mean()), "not of the prior": excess}

    def excess(self, x: Tensor, prior: Prior) -> float:
        """By how much signals x [N, ...] are not the prior's own: a mean over them, 0 if nothing is found."""
        scale, (low, high) = self.problem.scale, prior.sigma_range
        worst = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        scatter = 2 * math.sqrt(2 / x[0].numel())
        for k, level in enumerate(LEVELS):
            sigma = min(max(level * scale, low), high)
            noisy = x + sigma * single(self.seed, len(x), k, "plausible").normal(x)
            with torch.no_grad():
                clean = torch.cat([prior.denoise(row, sigma) for row in torch.split(noisy, 1)])
            taken = squared_norm(noisy - clean).double() / (x[0].numel() * sigma**2)
            worst = torch.maximum(worst, taken.log() - math.log1p(scatter))
        return float(worst.mean())


# -- Stein's unbiased risk estimate ------------------------------------------------------------------------------------

STEP = 0.1
"""Step of the divergence's finite difference, in units of sigma_y."""


@dataclass(frozen=True, eq=False)
class GSURE(Objective):
    """An unbiased estimate of the squared error in what the data see, from the measurement alone.

    Stein 1981, Ann. Statist. 9, 1135; for ill-posed problems Eldar 2009, IEEE Trans. Signal Process. 57, 471; the
    divergence by finite differences along random vectors, Ramani, Blu, Unser 2008, IEEE Trans. Image Process. 17, 1540.

    With an estimate h(y), the mean over the samples, and any linear W, the following has the expectation
    E|W A (h(y) - x)|^2 / n over y, whatever x is::

        (|W (A h(y) - y)|^2 + 2 sigma_y^2 div(W^T W A h)(y) - sigma_y^2 tr(W^T W)) / n
        div(W^T W A h)(y) ~ <W b, W A (h(y + e b) - h(y))> / e,   tr(W^T W) ~ |W b|^2,   b random signs

    W is the regularised inverse for a signal of standard deviation r = 1/4 of the value range, so that W A projects on
    the range of A^T: it keeps a direction of singular value s by s^2 r^2 / (s^2 r^2 + sigma_y^2). What A does not see
    has no say: that takes clean images.

    Valid for linear operators and Gaussian noise of a known covariance, and for solvers whose result changes smoothly
    with y for fixed random numbers: not those that resample particles; with some care those that stop a sample once its
    residual is down to the noise. The error of a *mean* is smallest: a solver's samples may get narrower than the
    posterior. Costs 1 + ``probes`` runs a trial, in one batch.

    Raises :class:`InputError` for other operators and noise.
    """

    measured: Problem
    probes: int = 1
    seed: int = 0

    name: ClassVar[str] = "gsure"

    def __post_init__(self) -> None:
        white = self.measured.white
        if not isinstance(white.operator, Linear):
            raise InputError("GSURE holds for linear operators only: take the discrepancy, or tune by images")
        if not white.noise.sigma:
            raise InputError("GSURE holds for Gaussian noise with sigma_y > 0 only: take the discrepancy, or images")
        if self.probes < 1:
            raise InputError(f"GSURE needs at least 1 probe, got {self.probes}")
        object.__setattr__(self, "measured", white)

    def unfit(self, solver: Solver, samples: int) -> str | None:  # noqa: ARG002
        if solver.family == "smc":
            return f"{solver.name} resamples particles, so that its result jumps with y: GSURE does not hold"
        return None

    @cached_property
    def directions(self) -> Tensor:
        """Random signs [probes, B, *shape of y], zero at placeholders; for complex data in both parts."""
        y, rows = self.measured.y, self.probes * len(self.measured.y)
        like = torch.empty(rows, *y.shape[1:], dtype=y.dtype, device=y.device)
        z = single(self.seed, rows, purpose="probes").normal(like)
        signs = torch.complex(z.real.sign(), z.imag.sign()) if z.is_complex() else z.sign()
        return self.measured.operator.at_data(signs).reshape(self.probes, *y.shape)

    @cached_property
    def problem(self) -> Problem:
        """The measurement, and the same moved along every probe: [(1 + probes) B, ...]."""
        y = self.measured.y
        return replace(self.measured, y=torch.cat([y[None], y + self._step * self.directions]).flatten(0, 1))

    @property
    def _step(self) -> float:
        return STEP * self.measured.sigma_y

    def __call__(self, result: Result, prior: Prior) -> tuple[float, Facts]:
        del prior
        risk = float(self.risks(result).mean())
        rows = len(self.measured.y)
        residual = self.measured.residual(result.mean[:rows].to(self.measured.like))
        chi2 = float(squared_norm(residual).double().mean()) / self.measured.m / self.measured.sigma_y**2
        return risk, {"estimated squared error": risk, "chi-square / dof of the mean": chi2}

    def risks(self, result: Result) -> Tensor:
        """The estimate for each measurement [B]."""
        problem, var, probes = self.measured, (self.measured.scale / 2) ** 2, self.probes
        y, noise = problem.y, problem.sigma_y**2
        with torch.no_grad():
            fit = problem.operator(result.mean.to(problem.like)).reshape(1 + probes, *y.shape)
            misfit = squared_norm(problem.gain(fit[0] - y, var)).double()
            b = problem.gain(self.directions.flatten(0, 1), var)
            moved = problem.gain((fit[1:] - fit[0]).flatten(0, 1), var) / self._step
        div = (b * moved).flatten(1).double().sum(1).reshape(probes, -1).mean(0)
        trace = squared_norm(b).double().reshape(probes, -1).mean(0)
        return (misfit + 2 * noise * div - noise * trace) / math.prod(problem.shape)


# -- clean signals -----------------------------------------------------------------------------------------------------

Score = Callable[[Tensor, Tensor], Tensor]
"""Samples [N, S, ...] and the truth [N, ...] -> a distance of each [N], smaller is better."""


def _mse(samples: Tensor, truth: Tensor) -> Tensor:
    return (samples.mean(1) - truth).flatten(1).double().square().mean(1)


def _crps(samples: Tensor, truth: Tensor) -> Tensor:
    return crps(samples.movedim(1, 0), truth).flatten(1).mean(1)


SCORES = ("psnr", "mse", "perceptual", "crps")


@dataclass(frozen=True, eq=False)
class Images(Objective):
    """The mean distance to clean signals that are put through the user's operator and noise.

    ``clean`` [N, *shape] in the problem's value range. ``score``:

    psnr, mse
        Of the mean over the samples; PSNR with values clipped to the range (shown in dB, larger is better).
    perceptual
        Of samples to the original: :mod:`unveil.perceptual`, for colour pictures.
    crps
        The continuous ranked probability score, a mean over values: a proper score, smallest for the posterior's own
        samples, so that it weighs spread and place alike. Needs at least 2 samples.

    or a function of samples [N, S, ...] and clean signals [N, ...] to [N], smaller is better. Raises
    :class:`InputError` for signals that do not fit the problem.
    """

    measured: Problem
    clean: Tensor
    score: str | Score = "psnr"
    seed: int = 0

    name: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        if not isinstance(self.clean, Tensor) or tuple(self.clean.shape[1:]) != tuple(self.measured.shape):
            shape = tuple(self.clean.shape) if isinstance(self.clean, Tensor) else type(self.clean).__name__
            raise InputError(f"clean signals are a tensor [N, {', '.join(map(str, self.measured.shape))}], got {shape}")
        if isinstance(self.score, str) and self.score not in SCORES:
            raise unknown("score", self.score, SCORES)
        if self.score == "perceptual":
            self._perceptual(self.clean[:1], self.clean[:1])

    def unfit(self, solver: Solver, samples: int) -> str | None:
        del solver
        if self.score == "crps" and samples < 2:
            return f"crps compares samples with each other: at least 2 are needed, got {samples}"
        return None

    @cached_property
    def problem(self) -> Problem:
        """The clean signals, measured."""
        made = self.measured
        clean = self.clean.to(made.like)
        return Problem.simulate(clean, made.operator, made.noise, self.seed, made.value_range)

    def describe(self) -> dict[str, Any]:
        score = self.score if isinstance(self.score, str) else getattr(self.score, "__name__", "own")
        return {**super().describe(), "score": score}

    def __call__(self, result: Result, prior: Prior) -> tuple[float, Facts]:
        del prior
        samples = result.unweighted().samples.cpu()
        clean = self.clean.to(samples)
        lo, hi = self.measured.value_range
        if self.score == "psnr":
            mean = float(psnr(samples.mean(1).clamp(lo, hi), clean, hi - lo).mean())
            return -mean, {"PSNR (dB)": mean}
        if self.score == "perceptual":
            rows = samples.shape[1]
            value = float(self._perceptual(samples.flatten(0, 1), clean.repeat_interleave(rows, 0)).mean())
            return value, {"perceptual distance": value}
        measure: Score = {"mse": _mse, "crps": _crps}[self.score] if isinstance(self.score, str) else self.score
        value = float(measure(samples, clean).double().mean())
        return value, {self.describe()["score"]: value}

    def _perceptual(self, x: Tensor, ref: Tensor) -> Tensor:
        from ..perceptual import ADVICE, perceptual

        distance = perceptual()
        if distance is None:
            raise NotCompatible(f"there are no weights of a perceptual distance here: {ADVICE}")
        lo, hi = self.measured.value_range
        return distance((x - lo) / (hi - lo), (ref - lo) / (hi - lo))
