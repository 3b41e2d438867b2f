"""ReSample in pixel space: hard data consistency, and a way back to the noisy chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.adam import adam_update
from ...numerics.inner import inner_loop
from ...operators.base import Linear
from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, vp_schedule
from .data_steps import descend, noise_floor, steepness, where_rows


@register("solver", "resample")
@dataclass(frozen=True)
class ReSample(Solver):
    """ReSample, the form for pixels: hard data consistency with stochastic resampling.

    Song, Kwon, Zhang, Hu, Qu, Shen 2023, "Solving inverse problems with latent diffusion models via hard data
    consistency", arXiv 2307.08123, Algorithm 1 with the identity for its autoencoder.

    DDIM, and at every ``every``-th of the last two thirds of the steps the clean estimate is fitted to the data and
    taken back to the level of the iterate, as the product of what both say of it::

        x'     = ddim(x, D, sigma, sigma')
        x0     = argmin |y - A(u)|^2, a descent from u = D
        x_next = draw of N(x'; x0, sigma'^2) N(x'; x', gamma^2),   gamma^2 = gamma sigma'^2 (1 - sigma'^2 / sigma^2)

    The descent ends where the residual is down to the noise. The result is a last fit.

    every, gamma
        10 and 40 in the paper's code, with 500 steps.
    optimizer
        Of the fit: "descent", with momentum 0.9 and steps of 1 / |A|^2; without noise, and a linear A, where that ends,
        D + A^+ (y - A D). "adam": the authors', with lr 0.01 for images in [-1, 1].
    inner_steps
        Of the fit, at most. The authors have up to 2000 of Adam.

    Deviations: the authors stop at a residual that does not know of sigma_y. Their code takes a DPS step at every level
    and five steps of DDIM ahead before a fit, with the levels of other times; the paper has neither. It takes
    (x - (1 - abar) eps) / sqrt(abar) for Tweedie's formula where the root of 1 - abar belongs, and its AdamW shrinks
    the picture towards grey.
    """

    family: ClassVar[str] = "decoupled"
    default_steps: ClassVar[int] = 500
    paper: ClassVar[dict[str, str]] = {
        "steps": "500",
        "every": "10",
        "gamma": "40",
        "optimizer": "adam",
        "inner_steps": "2000",
    }
    why: ClassVar[dict[str, str]] = {
        "optimizer": "as many steps of Adam leave samples up to 1.5 times as far off on the ruler",
        "inner_steps": "a descent of momentum steps ends within them",
    }

    every: int = 10
    gamma: float = 40.0
    optimizer: str = "descent"
    inner_steps: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in ("descent", "adam"):
            raise InputError(f"resample has no optimizer '{self.optimizer}': descent or adam")

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        state, problem = super().init(run), run.problem
        aux = {"floor": noise_floor(problem)}
        if isinstance(problem.operator, Linear):
            aux["top"] = steepness(problem, state.x0)
        return State(state.x, state.x0, 0, aux)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        if sigma_next == 0:
            x = x0 = self.fit(x0, state, run)
            return state.next(x, x0, **state.aux)
        x = ddim(state.x, x0, sigma, sigma_next, 0.0, run.rng)
        n, left = len(run.schedule), len(run.schedule) - state.i - 1
        if left <= n - n // 3 and left % self.every == 0:
            x0 = self.fit(x0, state, run)
            share = self.gamma * (1 - (sigma_next / sigma) ** 2)
            share /= 1 + share
            x = torch.lerp(x, x0, share).add_(run.rng.normal(x), alpha=sigma_next * share**0.5)
        return state.next(x, x0, **state.aux)

    def fit(self, x0: Tensor, state: State, run: Run) -> Tensor:
        """A signal that fits the data, by a descent from x0."""
        problem = run.problem
        linear = isinstance(problem.operator, Linear)
        if self.optimizer == "adam":
            return adam_descend(run, x0, self.inner_steps, state.aux["floor"])
        if linear and problem.noise.sigma == 0:
            return problem.prox(x0, 1.0)
        top = state.aux["top"] if linear else steepness(problem, x0)
        return descend(problem, x0, 1 / top.clamp_min(1e-20), self.inner_steps, 0.9, state.aux["floor"])


@inner_loop
def adam_descend(run: Run, x: Tensor, steps: int, floor: Tensor, lr: float = 0.01) -> Tensor:
    """Adam on the mean of |y - A(x)|^2 until half its sum is at most ``floor`` [N]."""
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(steps):
        loss, gradient = run.problem.data(x)
        # of the mean squared error in the units of [-1, 1]
        slope = gradient.mul_(2 / run.scale / run.problem.y[0].numel())
        moved, m, v = adam_update(x, slope, m, v, k + 1, lr * run.scale)
        x = where_rows(loss > floor, moved, x)
    return x
