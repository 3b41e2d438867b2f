"""Feynman-Kac steering."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...problem import Problem
from ...registry import register
from ..base import Run, State
from ..moves import ancestral
from .particles import ParticleSolver, exact, owed, without_evidence
from .twist import blurred_likelihood

POTENTIALS = ("diff", "max", "add", "rt")


@register("solver", "fk-steering")
@dataclass(frozen=True)
class FKSteering(ParticleSolver):
    """Feynman-Kac steering: the prior's own particles, weighted by a reward and resampled on the way.

    Singhal, Horvitz, Teehan, Ren, Yu, McKeown, Ranganath 2025, "A general framework for inference-time scaling and
    steering of diffusion models", ICML 2025, arXiv 2501.06848, Algorithm 1 and equations 4 to 8.

    The operator is only evaluated: neither derivative nor adjoint, so that any likelihood is a reward. Particles take
    the prior's ancestral steps; at some of them, with r = lam log p(y | x0) of the clean estimate x0 = D(x, sigma),
    their weights are multiplied by a potential G::

        diff: G = exp(r - r of the time before)      max: G = exp(largest r so far)
        add:  G = exp(sum of r so far)               rt:  G = exp(r)

    The end is weighed by exp(r) over all that has been multiplied: asymptotically exact for p(x0) p(y | x0)^lam.

    potential, lam
        The paper has lam = 10 for rewards of order one.
    data_variance
        t: of Gaussian noise, the reward on the way is log N(y; A x0, sigma_y^2 I + v A A^T) with v = sigma^2 t /
        (sigma^2 + t), for data in [-1, 1]. 0 is the paper's: the likelihood itself, which leaves one particle.
    first, last, every
        When particles are weighed, as shares of the steps.

    Deviations: log-weights add up until the effective sample size is low (the authors' code resamples each time, and
    loses what is not resampled), without bounds; every potential is paid back at the end.
    """

    black_box: ClassVar[bool] = True
    rewards: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "resampling": "multinomial",
        "threshold": "1; 0.5 at the last step",
        "order": "1",
        "potential": "diff in the code",
        "lam": "10",
        "data_variance": "0",
        "first": "0.05",
        "last": "0.3, and the last step",
        "every": "0.05",
    }
    why: ClassVar[dict[str, str]] = {
        "lam": "1 is the posterior of a likelihood, theirs a temperature of rewards of order one",
        "data_variance": "with 0 samples on the ruler's blur are a tenth further off",
        "last": "0.3 leaves samples up to 1.8 times as far off on the ruler",
    }

    resampling: str = "multinomial"
    potential: str = "diff"
    lam: float = 1.0
    data_variance: float = 1.0
    first: float = 0.05
    last: float = 1.0
    every: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.potential not in POTENTIALS:
            raise InputError(f"{self.name} knows no potential '{self.potential}': one of {', '.join(POTENTIALS)}")

    def unfit(self, problem: Problem) -> str | None:
        return "its weights need noise: take mcgdiff" if problem.noise.sigma == 0 else super().unfit(problem)

    def init(self, run: Run) -> State:
        state = super().init(run)
        zeros = state.aux["log_weights"]
        return replace(state, aux={**state.aux, "memory": zeros, "paid": zeros})

    def born(self, x: Tensor, run: Run) -> dict[str, Tensor]:
        books = super().born(x, run)
        return books if self.lam == 1 else without_evidence(books)

    def begin(self, run: Run) -> int:
        """The first step that weighs the particles."""
        return round(self.first * len(run.schedule))

    def due(self, i: int, run: Run) -> bool:
        """Whether step i weighs the particles."""
        steps, first = len(run.schedule), self.begin(run)
        return first <= i <= round(self.last * steps) and (i - first) % max(round(self.every * steps), 1) == 0

    def reward(self, x0: Tensor, sigma: float, run: Run) -> Tensor:
        """What a clean estimate of level sigma is worth [N]."""
        if self.data_variance == 0 or sigma == 0:
            return self.lam * run.by_rows(Problem.log_likelihood, x0).to(exact(x0))
        v = self.data_variance * run.scale**2
        spread = sigma**2 * v / (sigma**2 + v)
        return self.lam * run.by_rows(lambda problem, x0: blurred_likelihood(problem, x0, spread, slope=False)[0], x0)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        ahead = self.ahead(x0, state, run)
        aux, x = state.aux, state.x
        if self.due(state.i, run):
            aux, (x, ahead, x0) = self.weigh(state, (x, ahead, x0), self.reward(x0, sigma, run), run)
        mean, std = ancestral(x, ahead, sigma, sigma_next)
        if sigma_next > 0:
            return state.next(mean.add_(run.rng.normal(mean), alpha=std), x0, **aux)
        # whatever has been paid on the way, the end is weighed by its own reward
        weights = aux["log_weights"] + self.reward(mean, 0.0, run) - aux["paid"]
        return state.next(mean, x0, **{**aux, "log_weights": weights})

    def weigh(
        self, state: State, tensors: tuple[Tensor, ...], reward: Tensor, run: Run
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """Multiply the weights by the potential, and resample."""
        memory, paid = state.aux["memory"], state.aux["paid"]
        if self.potential == "diff":
            gained, memory = reward - memory, reward
        elif self.potential == "add":
            gained = memory = memory + reward
        elif self.potential == "max":
            gained = memory = torch.maximum(memory, reward) if state.i > self.begin(run) else reward
        else:
            gained = reward
        index, kept = self.resample(state.aux["log_weights"] + gained, state.aux, run)
        aux = {**kept, "memory": owed(memory)[index], "paid": owed(paid + gained)[index]}
        return aux, tuple(t[index] for t in tensors)
