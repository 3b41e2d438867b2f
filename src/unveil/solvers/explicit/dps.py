"""Diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, misfit, vp_scale, vp_schedule


@register("solver", "dps")
@dataclass(frozen=True)
class DPS(Solver):
    """Diffusion posterior sampling.

    Chung, Kim, Mccann, Klasky, Ye 2023, "Diffusion posterior sampling for general noisy inverse problems",
    arXiv 2209.14687, Algorithms 1 (Gaussian noise) and 2 (Poisson noise).

    An ancestral step, then a step down the gradient of the misfit of the clean estimate x0 = D(x, sigma)::

        x_next = ancestral(x, x0) - zeta / (s s_next) grad_x |y - A(x0)|

    The paper's x is s times ours, s = 1 / sqrt(1 + sigma^2), which gives the factor 1 / (s s_next).

    zeta
        Step size for the norm, as the authors' configurations state it (0.3 deblurring and super-resolution, 0.5
        random inpainting, 1 phase retrieval). It is twice the zeta of the paper's formula, which has the squared
        norm divided by the norm. For images in [-1, 1]; other ranges are converted.

    With white Gaussian noise the step ignores sigma_y: the samples are too narrow and follow the noise. With any other
    its direction is that of the likelihood itself, and its length that for white noise with the same misfit, so that
    zeta means the same. For Poisson noise this weighs residuals by the variance of the expected counts, A(x0) / gain;
    the paper takes that of the counts in y and so divides by zero where nothing was counted, and the authors' code
    averages one norm over 1 / |y|. The method assumes nothing about A but differentiability.
    """

    family: ClassVar[str] = "explicit"
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {"steps": "1000", "zeta": "0.3; 0.5 for random inpainting, 1 for phase retrieval"}

    zeta: float = 0.3

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, pullback = run.prior.vjp(state.x, sigma)
        _, gradient = misfit(run.problem, x0)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        rate = self.zeta * run.scale / (vp_scale(sigma, run.scale) * vp_scale(sigma_next, run.scale))
        return state.next(x.sub_(pullback(gradient), alpha=rate), x0)
