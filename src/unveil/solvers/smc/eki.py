"""Ensemble Kalman inversion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...numerics.inner import inner_loop
from ...registry import register
from ..base import Run, Solver, State
from ..moves import ddim, midway
from .enkg import _groups
from .particles import exact


@register("solver", "eki")
@dataclass(frozen=True)
class EKI(Solver):
    """Ensemble Kalman inversion of an ensemble drawn from the prior.

    Iglesias, Law, Stuart 2013, "Ensemble Kalman methods for inverse problems", Inverse Problems 29, 045001, arXiv
    1209.2736, in the form of Emerick, Reynolds 2013, "Ensemble smoother with multiple data assimilation", Computers and
    Geosciences 55, doi 10.1016/j.cageo.2012.03.011.
    """

    family: ClassVar[str] = "smc"
    needs: ClassVar[frozenset[str]] = frozenset({"gaussian", "noisy"})
    coupled: ClassVar[bool] = True
    particles: ClassVar[int] = 3
    default_steps: ClassVar[int] = 50

    updates: int = 4

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        x = ddim(state.x, midway(x0, state, run.schedule), sigma, sigma_next, 1.0, run.rng)
        return state.next(self.assimilated(x, run) if sigma_next == 0 else x, x0)

    @inner_loop
    def assimilated(self, x: Tensor, run: Run) -> Tensor:
        """The ensemble given y: ``updates`` analyses with as many times the noise variance."""
        n, S = self.updates, run.samples
        var = n * run.problem.sigma_y**2
        eye = torch.eye(S, dtype=exact(x), device=x.device)
        for _ in range(n):
            y = run.problem.operator(x)
            noisy = run.problem.noise.sample(run.problem.y, run.rng, run.problem.operator.measured)
            off = noisy - run.problem.y
            clouds, ys = _groups(x, run), _groups(y, run).to(eye)
            away = _groups(run.problem.y - y, run).to(eye) + n**0.5 * _groups(off, run).to(eye)
            d, e = clouds - clouds.mean(1, keepdim=True), ys - ys.mean(1, keepdim=True)
            # C_xy (C_yy + var I)^-1 away, in the span of the ensemble: S equations instead of m
            system = e @ e.mT + (S - 1) * var * eye
            factor = torch.linalg.cholesky_ex(system).L
            gains = torch.cholesky_solve(e @ away.mT, factor)
            x = (clouds + gains.mT.to(d) @ d).reshape(x.shape)
        return x
