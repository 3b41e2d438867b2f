"""Denoising diffusion null-space models, with the noisy form (plus)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...operators.base import Spectral
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import churned, midway, spectral_ancestral, vp_schedule


@register("solver", "ddnm")
@dataclass(frozen=True)
class DDNM(Solver):
    """Denoising diffusion null-space models; DDNM+ where the measurement is noisy.

    Wang, Yu, Zhang 2023, "Zero-shot image restoration using denoising diffusion null-space model", arXiv 2212.00490,
    Algorithm 1, and section 3.3 with appendix I for noise.

    The range-space part of the clean estimate is replaced by that of the data, then noise is added again::

        x0 = D + A^+ (y - A D);     x_next = x0 + sigma' (sqrt(1 - eta^2) eps + eta z)

    With noise (DDNM+), in spectral coordinates: x0 = D + Lambda A^+ (y - A D), and each coordinate gets the noise that
    makes its total sigma'::

        s = 0:                  lambda = 0;                                   noise sigma' (sqrt(1 - eta^2) eps + eta z)
        sigma' <  sigma_y / s:  lambda = s sigma' sqrt(1 - eta^2) / sigma_y;  noise eta sigma' z
        sigma' >= sigma_y / s:  lambda = 1;                                   noise sqrt(sigma'^2 - sigma_y^2 / s^2) z

    eps is that of the network, (x - D) / sigma, not of the corrected estimate. The noisy form follows the authors'
    spectral code, which weighs eps in spectral coordinates but takes it there for masks only; their simplified code
    confuses abar with its square root. It needs a spectral form; the noiseless one takes any linear operator.

    Noise added to a posterior mean loses variance at every step (eta = 0.85 leaves 85 % of the standard deviation in
    directions that A does not see, eta = 1 leaves 69 %). By default the step is therefore an ancestral one, of second
    order, on Karras' grid: x_next = x0 + sigma' (r eps + sqrt(1 - r^2) z) with r = sigma' / sigma, and with noise
    :func:`~unveil.solvers.moves.spectral_ancestral`, as in ``ddrm``.

    eta
        None, or the paper's: 0 re-uses the estimated noise, 1 replaces it all; 0.85 is the published method, on DDPM's
        grid.
    travel_length, travel_repeats
        Time travel (section 3.4): go back this many levels, this many times; 1 repeat is none.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "eta": "0.85",
        "travel_length": "1; 10 in hq_demo",
        "travel_repeats": "1; 3 in hq_demo",
    }
    why: ClassVar[dict[str, str]] = {
        "eta": "0.85 leaves 85 % of the standard deviation where A does not see, an ancestral step all of it",
    }

    eta: float | None = None
    travel_length: int = 1
    travel_repeats: int = 1

    def unfit(self, problem: Problem) -> str | None:
        why = super().unfit(problem)
        if why is None and problem.sigma_y > 0 and not isinstance(problem.operator, Spectral):
            return "with noise it needs an operator with a spectral form (a cheap singular value decomposition)"
        return why

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        plain = super().schedule(prior, steps) if self.eta is None else vp_schedule(prior, steps)
        return plain.time_travel(self.travel_length, self.travel_repeats)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        problem = run.problem
        estimate = run.prior.denoise(state.x, sigma)
        D = midway(estimate, state, run.schedule) if self.eta is None else estimate
        if problem.sigma_y == 0:
            x0, eps = D + problem.gain(problem.residual(D), 1.0), (state.x - D) / sigma
            eta = (1 - (sigma_next / sigma) ** 2) ** 0.5 if self.eta is None else self.eta
            return state.next(churned(x0, eps, sigma_next, eta, run.rng), estimate)
        if self.eta is None:
            return state.next(spectral_ancestral(state.x, D, sigma, sigma_next, run), estimate)
        return state.next(self.published(state.x, D, sigma, sigma_next, self.eta, run), estimate)

    def published(self, x: Tensor, D: Tensor, sigma: float, sigma_next: float, eta: float, run: Run) -> Tensor:
        """The step of DDNM+, as in the paper."""
        A, problem = run.spectral, run.problem
        r = A.Ut(problem.residual(D))
        s_inv = A.s_inv(r)
        seen, noise = s_inv > 0, problem.sigma_y * s_inv
        known = seen & (noise <= sigma_next)
        keep = (1 - eta**2) ** 0.5 * sigma_next
        # Lambda diag(1 / s): where the data are noisier than the iterate, lambda / s = keep / sigma_y
        gain = torch.where(known, s_inv, keep / problem.sigma_y) * seen
        x0 = D + A.V(gain * r)
        std = torch.where(known, (sigma_next**2 - noise**2).clamp_min(0).sqrt(), eta * sigma_next)
        # V is orthogonal: white noise is white in its coordinates too
        return x0 + A.V(std * run.rng.normal(r) + ~seen * (keep / sigma * A.Vt(x - D)))
