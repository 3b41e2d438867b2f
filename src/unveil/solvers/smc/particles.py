"""What the particle methods share: the cloud's bookkeeping, the prior's kernel, twists and their gradients.

A particle method samples a path x_T, ..., x_0 whose law is the prior's chain, p(x_T) prod p(x' | x), times the
likelihood of its end. Twists psi(x) stand in for the likelihood on the way. A step from x to x' drawn from q multiplies
the weight of a particle by p(x' | x) psi'(x') / (q(x' | x) psi(x)); all twists but the last, the likelihood itself,
cancel, so that any twist is right in the limit of many particles, and the mean weight is an unbiased estimate of p(y).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.resampling import SCHEMES, ancestors, effective_size, normalise
from ...problem import Problem
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ancestral, midway
from ..paper import SECOND_ORDER

Twist = Callable[[Problem, Tensor], tuple[Tensor, Tensor]]
"""From a problem and clean estimates x0 [N, ...] to the logarithm of the twist [N] and its gradient in x0 [N, ...]."""


def exact(x: Tensor) -> torch.dtype:
    """The type of log-weights: double precision, where the device of x has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """[N] shaped and typed to multiply ``like`` [N, ...]."""
    return value.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def total(values: Tensor) -> Tensor:
    """The sum over each row [N, ...], in double precision: [N]."""
    return values.flatten(1).sum(1, dtype=exact(values))


def possible(log_likelihood: Tensor) -> Tensor:
    """What a run that does not weigh its samples is ended by [N]: 0, or minus infinity where the likelihood is zero."""
    return torch.where(log_likelihood > -torch.inf, 0, -torch.inf).to(exact(log_likelihood))


def owed(log_twist: Tensor) -> Tensor:
    """What a log-weight gives back of a twist [N]: nothing where that is zero, as the weight is then, and stays."""
    return torch.where(log_twist > -torch.inf, log_twist, 0)


def data_possible(problem: Problem, clean: Tensor) -> Tensor:
    """:func:`possible` of clean measurements [N, ...]; without noise everything is."""
    if problem.noise.sigma == 0:
        return torch.zeros(clean.shape[0], dtype=exact(clean), device=clean.device)
    return possible(problem.noise.log_prob(problem.y, clean, problem.operator.measured))


def measured(x: Tensor, run: Run) -> Tensor:
    """A(x) of all particles [N, ...]."""
    y: Tensor = run.by_rows(lambda problem, x: problem.operator(x), x)
    return y


@dataclass(frozen=True)
class ParticleSolver(Solver):
    """Base class of the solvers that weigh and resample: their options, and what their states carry.

    resampling
        How: multinomial, stratified, systematic, residual or ssp (:mod:`unveil.numerics.resampling`).
    threshold
        When: a measurement's particles are resampled where their effective sample size is below this share of their
        number; 1 is at every step.
    order
        2 carries x0 on to the middle of the prior's step (DPM-Solver++(2M)), as particles remember their last x0: a
        tenth of the discretisation error of the plain ancestral step, 1.
    """

    family: ClassVar[str] = "smc"
    coupled: ClassVar[bool] = True
    particles: ClassVar[int] = 2
    limits: ClassVar[Mapping[str, str]] = {"threshold": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {
        "resampling": "a particle's copies are its share, rounded up or down",
        "threshold": "resampled only where weights have become uneven, particles lose fewer ancestors",
        "order": SECOND_ORDER,
    }

    resampling: str = "systematic"
    threshold: float = 0.5
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resampling not in SCHEMES:
            raise InputError(f"{self.name} knows no resampling '{self.resampling}': one of {', '.join(SCHEMES)}")

    def init(self, run: Run) -> State:
        state = super().init(run)
        return replace(state, aux=self.born(state.x, run))

    def born(self, x: Tensor, run: Run) -> dict[str, Tensor]:
        """What every state carries, before the first step."""
        zeros = torch.zeros(x.shape[0], dtype=exact(x), device=x.device)
        number = torch.arange(x.shape[0], device=x.device) % run.samples
        return {"log_weights": zeros, "log_evidence": zeros, "ancestors": number}

    def ahead(self, x0: Tensor, state: State, run: Run) -> Tensor:
        """The clean estimate that the prior's step takes."""
        return midway(x0, state, run.schedule) if self.order == 2 else x0

    def resample(self, log_weights: Tensor, aux: dict[str, Tensor], run: Run) -> tuple[Tensor, dict[str, Tensor]]:
        """Row that each row is to be replaced by [N], and what the state carries from there on.

        Where a measurement's effective sample size is large enough, rows stay and weights go on.
        """
        clouds = log_weights.reshape(-1, run.samples)
        weights, log_mean = normalise(clouds)
        due = effective_size(weights) < self.threshold * run.samples
        if self.threshold == 1:
            due = torch.ones_like(due)
        due = (due & (log_mean > -torch.inf))[:, None]
        u = run.rng.uniform(log_weights).reshape(clouds.shape)
        slots = torch.arange(run.samples, device=clouds.device).expand(clouds.shape)
        chosen = torch.where(due, ancestors(weights, u, self.resampling), slots)
        first = torch.arange(clouds.shape[0], device=clouds.device)[:, None] * run.samples
        index = (chosen + first).flatten()
        kept = {"log_weights": torch.where(due, 0, clouds).flatten(), "ancestors": aux["ancestors"][index]}
        if "log_evidence" in aux:
            gained = torch.where(due, log_mean[:, None], 0).expand(clouds.shape).flatten()
            kept["log_evidence"] = aux["log_evidence"] + gained
        return index, kept


class TwistedSolver(ParticleSolver):
    """A particle solver whose proposal is the prior's kernel, moved along the gradient of a twist."""

    gradient: ClassVar[bool] = True
    rewards: ClassVar[bool] = True

    def twist(self, i: int, problem: Problem, x0: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """The logarithm of step i's twist [N], but for the last, and its gradient in x0 = D(x, sigma) [N, ...]."""
        raise NotImplementedError

    def push(self, i: int, run: Run) -> float:
        """How far the mean of the proposal of step i is moved along the twist's gradient in x."""
        raise NotImplementedError

    def unfit(self, problem: Problem) -> str | None:
        return "its weights need noise: take mcgdiff" if problem.noise.sigma == 0 else super().unfit(problem)

    def init(self, run: Run) -> State:
        state = super().init(run)
        return replace(state, aux={**state.aux, "move": state.aux["log_weights"]})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, twist, gradient = guided(run, state.x, sigma, lambda problem, x0: self.twist(state.i, problem, x0, run))
        ahead = self.ahead(x0, state, run)
        # "move" is what the last proposal left to be weighed, less the twist it started from
        index, aux = self.resample(state.aux["log_weights"] + state.aux["move"] + twist, state.aux, run)
        x, ahead, x0, gradient, twist = (t[index] for t in (state.x, ahead, x0, gradient, twist))
        mean, std = ancestral(x, ahead, sigma, sigma_next)
        if sigma_next == 0:
            weights = aux["log_weights"] + run.by_rows(self.likelihood, mean) - owed(twist)
            return state.next(mean, x0, **{**aux, "log_weights": weights})
        x, ratio = shifted(mean, self.push(state.i, run) * gradient, std, run)
        return state.next(x, x0, **aux, move=ratio - owed(twist))

    def likelihood(self, problem: Problem, x0: Tensor) -> Tensor:
        """The logarithm of the last twist, which is what the particles are drawn by in the end [N]."""
        return problem.log_likelihood(x0).to(exact(x0))


# -- the prior's chain -----------------------------------------------------------------------------------------------


def ahead_of(schedule: Schedule, i: int) -> float:
    """The variance of the noise that the chain still adds from level i on: the sum of its steps', just below sigma_i^2.

    What is left to know of x0 given x where the prior says nothing. Twists made with it, not with sigma^2, which is its
    limit for many steps, change nothing of the weights there, whatever the number of steps.
    """
    return _rests(schedule.sigmas)[i]


@lru_cache(maxsize=16)
def _rests(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    steps = [b**2 * (1 - (b / a) ** 2) for a, b in pairwise(sigmas)]
    return (*reversed(list(accumulate(reversed(steps)))), 0.0)


def shifted(mean: Tensor, shift: Tensor, std: float, run: Run) -> tuple[Tensor, Tensor]:
    """A draw x' of N(mean + shift, std^2), and log N(x'; mean, std^2) - log N(x'; mean + shift, std^2) [N]."""
    z = run.rng.normal(mean)
    d = shift / std
    return (mean + shift).add_(z, alpha=std), -total(d * (0.5 * d + z))


def shared_noise(like: Tensor, run: Run, std: float) -> Tensor:
    """Noise N(0, std^2 I) that the particles of a measurement share, [N, ...] as ``like``."""
    return run.rng.normal(like, run.samples).mul_(std)


def without_evidence(aux: dict[str, Tensor]) -> dict[str, Tensor]:
    """The books of a method whose mean weight is not an estimate of p(y)."""
    return {k: v for k, v in aux.items() if k != "log_evidence"}


def guided(run: Run, x: Tensor, sigma: float, twist: Twist) -> tuple[Tensor, Tensor, Tensor]:
    """x0 = D(x, sigma), log psi(x0) [N] and its gradient in x, with graphs of ``run.chunk`` rows at a time."""

    def pulled(problem: Problem, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0, pullback = run.prior.vjp(x, sigma)
        value, gradient = twist(problem, x0)
        return x0, value, pullback(gradient)

    return run.by_rows(pulled, x)
