"""Denoising diffusion restoration models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import midway, spectral_ancestral, vp_schedule


@register("solver", "ddrm")
@dataclass(frozen=True)
class DDRM(Solver):
    """Denoising diffusion restoration models.

    Kawar, Elad, Ermon, Song 2022, "Denoising diffusion restoration models", arXiv 2201.11793, equations 4 and 5.

    In the spectral coordinates of A = U diag(s) V^T, with ybar = U^T y / s and x0 = D(x, sigma), each coordinate of
    the next iterate is drawn by the noise that the measurement has there, sigma_y / s::

        s = 0:                  N(x0 + sqrt(1 - eta^2) sigma' eps,                    eta^2 sigma'^2)
        sigma' <  sigma_y / s:  N(x0 + sqrt(1 - eta^2) sigma' (ybar - x0) s / sigma_y, eta^2 sigma'^2)
        sigma' >= sigma_y / s:  N((1 - eta_b) x0 + eta_b ybar,                       sigma'^2 - eta_b^2 sigma_y^2 / s^2)

    The authors' code compares strictly, and so leaves its last step (sigma' = 0) inconsistent with a noiseless y; here
    equality counts as measured, and the result reproduces y. Their start is sqrt(1 + 1 / sigma^2) times this one.

    These transitions add noise to a posterior *mean*, which loses variance at every step (eta = 0.85 leaves 85 % of the
    standard deviation in directions that A does not see, eta = 1 leaves 69 %), and where sigma' < sigma_y / s they pull
    towards y again at every step. By default the step is therefore the ancestral one of
    :func:`~unveil.solvers.moves.spectral_ancestral`, of second order, on Karras' grid: exact for Gaussian priors that
    the basis V diagonalises, as the steps grow many.

    eta
        None, or the paper's: 0.85 with 20 steps is the published method, on DDPM's grid.
    eta_b
        As in the paper; it needs an eta.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian"})
    default_steps: ClassVar[int] = 50
    paper: ClassVar[dict[str, str]] = {"steps": "20", "eta": "0.85", "eta_b": "1"}
    limits: ClassVar[Mapping[str, str]] = {"eta_b": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {
        "steps": "the ancestral step is exact in the limit of many; 20 are made for eta = 0.85",
        "eta": "0.85 leaves 85 % of the standard deviation where A does not see, an ancestral step all of it",
    }

    eta: float | None = None
    eta_b: float = 1.0

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return super().schedule(prior, steps) if self.eta is None else vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        A, sigma = run.spectral, run.schedule.sigmas[0]
        middle = A.Vt(torch.full_like(run.like, sum(run.problem.value_range) / 2))
        s_inv = A.s_inv(middle)
        noise = run.problem.sigma_y * s_inv
        known = (s_inv > 0) & (noise <= sigma)
        mean = torch.where(known, s_inv * A.Ut(run.problem.y), middle)
        std = torch.where(known, (sigma**2 - noise**2).clamp_min(0).sqrt(), sigma)
        x = A.V(mean + std * run.rng.normal(middle))
        return State(x, x)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        A = run.spectral
        x0 = run.prior.denoise(state.x, sigma)
        if self.eta is None:
            ahead = midway(x0, state, run.schedule)
            return state.next(spectral_ancestral(state.x, ahead, sigma, sigma_next, run), x0)
        x0bar, xbar = A.Vt(x0), A.Vt(state.x)
        s_inv = A.s_inv(x0bar)
        ybar, noise = s_inv * A.Ut(run.problem.y), run.problem.sigma_y * s_inv
        measured = s_inv > 0
        known = measured & (noise <= sigma_next)
        keep = (1 - self.eta**2) ** 0.5 * sigma_next
        # where the measurement is noisier than the iterate, its noise takes the place of eps
        towards = torch.where(measured, (ybar - x0bar) / noise.clamp_min(1e-12), (xbar - x0bar) / sigma)
        mean = torch.where(known, torch.lerp(x0bar, ybar, self.eta_b), x0bar + keep * towards)
        std = torch.where(known, (sigma_next**2 - (self.eta_b * noise) ** 2).clamp_min(0).sqrt(), self.eta * sigma_next)
        # V is orthogonal: white noise is white in its coordinates too
        return state.next(A.V(mean + std * run.rng.normal(x0bar)), x0)
