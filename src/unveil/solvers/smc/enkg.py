"""Ensemble Kalman diffusion guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...registry import register
from ..base import Run, Solver, State
from ..moves import ode


@register("solver", "enkg")
@dataclass(frozen=True)
class EnKG(Solver):
    """Ensemble Kalman diffusion guidance: an ensemble pulls itself to the data, without any derivative.

    Zheng, Chu, Wang, Kovachki, Baptista, Yue 2024, "Ensemble Kalman diffusion guidance: a derivative-free method for
    inverse problems", arXiv 2409.20175, Algorithm 1.
    """

    family: ClassVar[str] = "smc"
    coupled: ClassVar[bool] = True
    particles: ClassVar[int] = 3
    default_steps: ClassVar[int] = 80

    guidance: float = 2.0
    updates: int = 2
    factor: int = 8

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x, steps = state.x, len(run.schedule)
        if state.i > 0:
            inner = min(1 + (steps - state.i) // self.factor, 20)
            for _ in range(self.updates):
                y = run.problem.operator(
                    ode(run.prior, x, sigma, max(run.prior.sigma_range[0], 0.002 * run.scale), inner)
                )
                x = self.update(x, y, run)
        x0 = run.prior.denoise(x, sigma)
        return state.next(torch.lerp(x0, x, sigma_next / sigma), x0)

    def update(self, x: Tensor, y: Tensor, run: Run) -> Tensor:
        """One step of every particle against the misfit of its measurement, in the span of the ensemble."""
        noise = run.problem.noise
        off = noise.score(run.problem.y, y, run.problem.operator.measured) if noise.sigma != 0 else run.problem.y - y
        clouds, e = _groups(x, run), _groups(off, run)
        spread, yy = clouds - clouds.mean(1, keepdim=True), _groups(y, run)
        coefficients = e @ (yy - yy.mean(1, keepdim=True)).mT
        length = torch.linalg.matrix_norm(coefficients).clamp_min(1e-30)[:, None, None]
        moved: Tensor = clouds + self.guidance * (coefficients / length) @ spread
        return moved.reshape(x.shape)


def _groups(x: Tensor, run: Run) -> Tensor:
    """The particles of each measurement as rows of real numbers [B, S, n]."""
    flat = x.flatten(1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten(1)
    return flat.reshape(-1, run.samples, flat.shape[1])
