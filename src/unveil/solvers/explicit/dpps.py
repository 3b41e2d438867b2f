"""Diffusion posterior proximal sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...numerics.inner import inner_loop
from ...operators.base import Linear
from ...priors.base import Prior
from ...problem import Problem, squared_norm
from ...registry import register
from ...rng import Rng
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ancestral, misfit, regularised_inverse, vp_scale, vp_schedule

GROUP = 8
"""Candidates that are made and measured at a time."""


@register("solver", "dpps")
@dataclass(frozen=True)
class DPPS(Solver):
    """Diffusion posterior proximal sampling.

    Wu, He, Zhang, Chen, Luo, Luo, Zhou, Chen, Lv 2024, "Diffusion posterior proximal sampling for image restoration",
    arXiv 2402.16907, Algorithm 1.

    A DPS step whose noise is the best of several: of the candidates x_i = mean + c z_i the one is kept that agrees best
    with the data once the noise that the network sees in x is taken off it::

        mean   = E[ancestral(x, x0)] - zeta / (s s') grad_x |y - A x0|,   x0 = D(x, sigma)
        x_next = argmin_i |y - A(x_i - sigma' eps)|,   eps = (x - x0) / sigma,   i = 1 .. k(sigma)

    with k = max(2, floor(candidates (1 - exp(-1 / sigma^2)))), for images in [-1, 1]: a choice only where there is
    signal to choose by. Candidates cost no evaluations. The run starts at the regularised pseudo-inverse with noise.

    zeta
        Step size for the norm, as in ``dps``: 1 for inpainting and super-resolution, 0.4 for deblurring in the authors'
        configurations.
    candidates
        The largest number of candidates.

    Deviation: the authors start at y, scaled up to the size of the signal; the pseudo-inverse is that for any operator.
    Chosen noise is narrower than drawn noise: more candidates, less spread.
    """

    family: ClassVar[str] = "explicit"
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {"steps": "1000", "zeta": "1; 0.4 for deblurring", "candidates": "50"}

    zeta: float = 1.0
    candidates: int = 50

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def init(self, run: Run) -> State:
        x0 = regularised_inverse(run.problem)
        return State(x0.add(run.rng.normal(x0), alpha=run.schedule.sigmas[0]), x0)

    def count(self, sigma: float) -> int:
        """How many candidates there are at a noise level, for images in [-1, 1]."""
        return max(min(2, self.candidates), math.floor(-self.candidates * math.expm1(-1 / sigma**2)))

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, pullback = run.prior.vjp(state.x, sigma)
        _, gradient = misfit(run.problem, x0)
        mean, std = ancestral(state.x, x0, sigma, sigma_next)
        rate = self.zeta * run.scale / (vp_scale(sigma, run.scale) * vp_scale(sigma_next, run.scale))
        mean = mean.sub_(pullback(gradient), alpha=rate)
        if std == 0:
            return state.next(mean, x0)
        without = mean.add(state.x - x0, alpha=-sigma_next / sigma)
        return state.next(mean + best_noise(run.problem, without, std, self.count(sigma / run.scale), run.rng), x0)


@inner_loop
def best_noise(problem: Problem, clean: Tensor, std: float, count: int, rng: Rng) -> Tensor:
    """Of ``count`` draws of std z [N, ...] per row the one for which clean + std z agrees best with the data.

    GROUP of them are made and measured at a time.
    """
    n, operator, linear = clean.shape[0], problem.operator, isinstance(problem.operator, Linear)
    r = problem.residual(clean) if linear else problem.y
    rows = torch.arange(n, device=clean.device)
    best = torch.zeros_like(clean)
    least = torch.full((n,), math.inf, dtype=clean.dtype, device=clean.device)
    for first in range(0, count, GROUP):
        shape = (n, min(GROUP, count - first), *clean.shape[1:])
        noise = std * rng.normal(clean.new_empty(shape))
        signals = noise if linear else clean[:, None] + noise
        measured = operator(signals.flatten(0, 1))
        off = r.repeat_interleave(shape[1], 0) - measured
        distance, which = squared_norm(off).view(shape[:2]).min(1)
        better = (distance < least).reshape(-1, *[1] * (clean.ndim - 1))
        best = torch.where(better, noise[rows, which], best)
        least = torch.minimum(distance, least)
    return best
