"""Diffusion policy gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.inner import inner_loop
from ...priors.base import Prior
from ...problem import squared_norm
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, vp_scale, vp_schedule
from .particles import per_row


@register("solver", "dpg")
@dataclass(frozen=True)
class DPG(Solver):
    """Diffusion policy gradient: the guidance of dps, with the operator's derivative estimated from evaluations.

    Tang, Xie, Feng, Wang, Ye, Bai, Yang 2024, "Solving general noisy inverse problem via posterior sampling: a policy
    gradient viewpoint", arXiv 2403.10585, Algorithm 1.
    """

    family: ClassVar[str] = "smc"
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000

    guidance: float = 1.4
    draws: int = 100
    momentum: float = 0.1
    memory: float = 0.9

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InputError(f"{self.name} needs draws >= 2, got {self.draws}")

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def init(self, run: Run) -> State:
        state = super().init(run)
        size = torch.zeros_like(squared_norm(state.x))
        return replace(state, aux={"size": size, "direction": torch.zeros_like(state.x)})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, pullback = run.prior.vjp(state.x, sigma)
        loss = squared_norm(run.problem.residual(x0))
        size = loss if state.i == 0 else torch.lerp(loss, state.aux["size"], self.memory)
        size = size.clamp_min((1e-6 * run.scale) ** 2)
        ascent = pullback(self.policy(x0, loss, size, run))
        past = state.aux["direction"]
        keep = 0.0 if state.i == 0 else self.momentum * (1 - (state.i + 1) / len(run.schedule))
        mixed = torch.lerp(ascent, past, keep)
        length = squared_norm(mixed).sqrt().clamp_min(1e-12)
        # in variance-preserving units a step is (sigma^2 - sigma'^2) / (1 + sigma^2) times the guidance
        size_of_step = (sigma**2 - sigma_next**2) * vp_scale(sigma, run.scale) / run.scale
        push = self.guidance * x0[0].numel() ** 0.5 * size_of_step
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng) + push * mixed / per_row(length, mixed)
        return state.next(x, x0, size=size, direction=ascent)

    @inner_loop
    def policy(self, x0: Tensor, loss: Tensor, size: Tensor, run: Run) -> Tensor:
        """The gradient, in x0, of the expected reward of draws around it; up to its length."""
        spread = per_row((size / x0[0].numel()).sqrt() / 2, x0)
        rewarded, drawn, total = torch.zeros_like(x0), torch.zeros_like(x0), torch.zeros_like(loss)
        for _ in range(self.draws):
            z = run.rng.normal(x0)
            reward = (-(squared_norm(run.problem.residual(x0 + spread * z)) - loss) / size).exp()
            rewarded, drawn, total = rewarded + per_row(reward, z) * z, drawn + z, total + reward
        # each reward counts by what it is above the mean of the others
        return self.draws * rewarded - per_row(total, drawn) * drawn
