"""Diffusion policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...numerics.inner import inner_loop
from ...priors.base import Prior
from ...problem import Problem, squared_norm
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, vp_scale, vp_schedule
from .particles import data_possible, exact, per_row

BLOCK = 10
"""Draws that go through the operator together."""


@register("solver", "dpg")
@dataclass(frozen=True)
class DPG(Solver):
    """Diffusion policy gradient: the guidance of dps, its gradient estimated from what random signals are worth.

    Tang, Xie, Feng, Wang, Ye, Bai, Yang 2024, "Solving general noisy inverse problem via posterior sampling: a policy
    gradient viewpoint", AISTATS 2024, arXiv 2403.10585, Algorithm 1.

    The operator is only evaluated: neither derivative nor adjoint; the prior is back-propagated through. With x0 = D(x,
    sigma), n values, l(u) = |y - A(u)|^2 and Z the running mean of l(x0)::

        u_k = x0 + r z_k,   r = sqrt(Z / n) / 2,   R_k = exp((l(x0) - l(u_k)) / Z)
        g = J(x)^T sum_k (R_k - mean of the other R) z_k
        x' = ancestral step + guidance sqrt(n) (sigma^2 - sigma'^2) / sigma g / |g|

    guidance
        Length of a step. The authors give it without sqrt(n), by task: on photographs of 256 x 256 their 100 to 200 for
        deblurring are 0.2 to 0.5 here, and 2000 for super-resolution 4.5.
    draws
        Random signals around x0, an evaluation of the operator each. The authors take 500 and more.
    memory
        Of the running mean of Z.
    momentum
        Share of the g before, falling to 0 with the steps.

    Of noise that is not Gaussian l(u) is the sum of |y - A(u)|, as the authors have it for Poisson noise.

    Every step has its full length, however well the data fit, and sigma_y does not enter with white noise: heuristic.
    On the ruler, in 200 steps of 50 draws: 0.9 to 2.5 times the floor, 3.8 on iso-blur-0.05. Directions that A does not
    see keep 0.9 to 1 of the exact standard deviation, less with mixtures; those that it sees have 0.2 (much noise, few
    data) to 7 times it (little noise, as on plane-row-0.05).
    """

    family: ClassVar[str] = "smc"
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    black_box: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "steps": "1000",
        "guidance": "0.2 to 0.5 for deblurring, 4.5 for super-resolution",
        "draws": "500 and more",
        "memory": "0.9",
        "momentum": "0.1",
    }
    limits: ClassVar[Mapping[str, str]] = {"draws": "[2, inf)"}
    why: ClassVar[dict[str, str]] = {
        "draws": "a fifth of the evaluations of the operator",
    }

    guidance: float = 0.5
    draws: int = 100
    memory: float = 0.9
    momentum: float = 0.1

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def init(self, run: Run) -> State:
        state = super().init(run)
        zeros = torch.zeros(state.x.shape[0], dtype=exact(state.x), device=state.x.device)
        return replace(state, aux={"size": zeros, "direction": torch.zeros_like(state.x), "possible": zeros})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        left = len(run.schedule) - 1 - state.i
        x0, pullback = run.prior.vjp(state.x, sigma)
        clean = run.problem.operator(x0)
        loss = self.loss(run.problem, clean)
        size = loss if state.i == 0 else torch.lerp(loss, state.aux["size"], self.memory)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        # in variance-preserving variables, as momentum mixes steps of different scale
        ascent = pullback(self.policy(x0, loss, size, run)) / vp_scale(sigma, run.scale)
        keep = self.momentum * left / len(run.schedule) if state.i else 0.0
        towards = torch.lerp(ascent, state.aux["direction"], keep)
        if left > 1:  # the authors leave the last two steps alone
            push = self.guidance * x0[0].numel() ** 0.5 * (sigma**2 - sigma_next**2) / sigma
            x = x + push * towards / per_row(squared_norm(towards).sqrt().clamp_min(1e-30), x)
        return state.next(x, x0, size=size, direction=ascent, possible=data_possible(run.problem, clean))

    @inner_loop
    def policy(self, x0: Tensor, loss: Tensor, size: Tensor, run: Run) -> Tensor:
        """The gradient, in x0, of the expected reward of draws around it; up to its length."""
        n, floor = x0[0].numel(), (1e-6 * run.scale) ** 2
        gaussian = run.problem.noise.sigma is not None
        spread = ((size / n).sqrt() / 2 if gaussian else size / n).clamp_min(floor)
        rewarded, drawn, total = torch.zeros_like(x0), torch.zeros_like(x0), torch.zeros_like(loss)
        for start in range(0, self.draws, BLOCK):
            k = min(BLOCK, self.draws - start)
            z = run.rng.normal(x0.new_empty(x0.shape[0], k, *x0.shape[1:])).flatten(0, 1)
            index = torch.arange(x0.shape[0], device=x0.device).repeat_interleave(k, output_size=z.shape[0])
            problem = run.problem.rows(index)
            found = self.loss(problem, problem.operator(torch.addcmul(x0[index], per_row(spread[index], z), z)))
            reward = ((loss[index] - found) / size[index].clamp_min(floor)).exp()
            rewarded += (per_row(reward, z) * z).reshape(-1, k, *x0.shape[1:]).sum(1)
            drawn += z.reshape(-1, k, *x0.shape[1:]).sum(1)
            total += reward.reshape(-1, k).sum(1)
        # a reward counts by what it is above the mean of the others
        ascent = rewarded - per_row(total / self.draws, drawn) * drawn
        return ascent / per_row(spread, ascent)

    def loss(self, problem: Problem, clean: Tensor) -> Tensor:
        """How far clean measurements are from y [N], in double precision."""
        r = problem.y - clean
        if problem.noise.sigma is not None:
            return squared_norm(r).to(exact(r))
        return r.abs().flatten(1).sum(1, dtype=exact(r))
