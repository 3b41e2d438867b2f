"""Diffusion alignment as sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...problem import Problem
from ...registry import register
from ..base import Run
from ..moves import vp_scale
from .particles import TwistedSolver, exact, without_evidence


@register("solver", "das")
@dataclass(frozen=True)
class DAS(TwistedSolver):
    """Diffusion alignment as sampling: tempered twists, for rewards.

    Kim, Kim, Park 2025, "Test-time alignment of diffusion models without over-optimization", ICLR 2025,
    arXiv 2501.05803, Algorithm 1 and equations 10 to 13.

    A tds whose twist is the likelihood itself, r = log p(y | x0) / alpha at x0 = D(x, sigma), for any noise model,
    which is let in slowly; with N(m, c^2 I) the prior's ancestral step::

        psi_i(x) = exp(lambda_i r(D(x, sigma))),  lambda_i = (1 + gamma)^(100 i / steps) - 1, at most 1
        x' = m + c^2 sqrt((1 + sigma^2) / (1 + sigma'^2)) lambda_(i+1) grad_x r + c z
        weight times N(x'; m, c^2 I) psi_(i+1)(x') / (N(x'; m + ..., c^2 I) psi_i(x))

    Asymptotically exact for p(x0) p(y | x0)^(1 / alpha).

    gamma
        How fast lambda rises, for 100 steps.
    alpha
        Temperature; the paper takes 0.005 to 0.01 for rewards of order one.
    capped
        True: of Gaussian noise, lambda is at most sigma_y^2 / (sigma_y^2 + v), with v = sigma^2 / (1 + sigma^2) (for
        data in [-1, 1]) what is not known of x0: a likelihood of many numbers would leave one particle.

    Deviations: the cap; all particles are kept with their weights, where the authors' code keeps the heaviest.
    """

    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "resampling": "ssp",
        "threshold": "0.5",
        "order": "1",
        "gamma": "0.008",
        "alpha": "0.005, 0.0001 or 0.01 by reward",
        "capped": "own",
    }
    why: ClassVar[dict[str, str]] = {
        "alpha": "1 is the posterior of a likelihood, theirs are temperatures of rewards of order one",
    }

    resampling: str = "ssp"
    gamma: float = 0.008
    alpha: float = 1.0
    capped: bool = True

    def born(self, x: Tensor, run: Run) -> dict[str, Tensor]:
        books = super().born(x, run)
        return books if self.alpha == 1 else without_evidence(books)

    def temper(self, i: int, run: Run) -> float:
        """lambda_i: from 0 to 1."""
        rate = (1 + self.gamma) ** (100 * i / len(run.schedule)) - 1
        sigma, v = run.schedule.sigmas[i], run.scale**2
        noise = run.problem.noise.sigma
        if noise is not None and self.capped:
            rate = min(rate, noise**2 / (noise**2 + sigma**2 * v / (sigma**2 + v)))
        return float(min(rate, 1.0))

    def twist(self, i: int, problem: Problem, x0: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        now, ahead = self.temper(i, run), self.temper(i + 1, run) / self.alpha
        likelihood = self.likelihood(problem, x0)
        # 0^0 = 1: at first nothing is let in, not even that the likelihood is zero
        return now * likelihood if now else torch.zeros_like(likelihood), ahead * problem.score(x0)

    def push(self, i: int, run: Run) -> float:
        sigma, sigma_next = run.schedule.pair(i)
        # the authors' step is that of variance-preserving units
        longer = vp_scale(sigma_next, run.scale) / vp_scale(sigma, run.scale)
        return sigma_next**2 * (1 - (sigma_next / sigma) ** 2) * longer

    def likelihood(self, problem: Problem, x0: Tensor) -> Tensor:
        return problem.log_likelihood(x0).to(exact(x0)) / self.alpha
