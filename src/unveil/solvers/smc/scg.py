"""Stochastic control guidance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...registry import register
from ..base import Run, Solver, State
from ..moves import ancestral, rows_norm
from .particles import per_row


@register("solver", "scg")
@dataclass(frozen=True)
class SCG(Solver):
    """Stochastic control guidance: of several random steps, the one whose clean estimate fits the data best.

    Huang, Ghatare, Liu, Hu, Zhang, Sastry, Gururani, Oore, Yue 2024, "Symbolic music generation with non-differentiable
    rule guided diffusion", arXiv 2402.14285, Algorithm 1.

    The operator is only evaluated: neither derivative nor adjoint::

        x'_k = m + c z_k,   k = 1 .. candidates;     x' = the x'_k whose D(x'_k, sigma') has the largest log p(y | D)

    candidates
        Random steps to choose from, of one evaluation each. The paper takes 16 and up to 512.
    unguided
        Share of the steps, from the start, that are not guided.

    Choosing the best of K is the limit of no temperature of optimal control: the samples are closer to the data than
    the noise, and narrower than the posterior.
    """

    family: ClassVar[str] = "smc"
    candidates: int = 8
    unguided: float = 0.25

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise InputError(f"{self.name} needs candidates >= 1, got {self.candidates}")

    def init(self, run: Run) -> State:
        state = super().init(run)
        return replace(state, aux={"denoised": state.x0})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        guided = round(self.unguided * len(run.schedule))
        x0 = state.aux["denoised"] if state.i > guided else run.prior.denoise(state.x, sigma)
        mean, std = ancestral(state.x, x0, sigma, sigma_next)
        if sigma_next == 0:
            return state.next(mean, x0, denoised=x0)
        x: Tensor = mean.add(run.rng.normal(mean), alpha=std)
        if state.i < guided:
            return state.next(x, x0, denoised=x0)
        best = run.prior.denoise(x, sigma_next)
        fit = self.fit(best, run)
        for _ in range(self.candidates - 1):
            other = mean.add(run.rng.normal(mean), alpha=std)
            estimate = run.prior.denoise(other, sigma_next)
            new = self.fit(estimate, run)
            better = per_row((new > fit).to(x.dtype), x) > 0
            x, best, fit = torch.where(better, other, x), torch.where(better, estimate, best), torch.maximum(fit, new)
        return state.next(x, x0, denoised=best)

    def fit(self, x0: Tensor, run: Run) -> Tensor:
        """What is to be large [N]: the likelihood, or minus the residual where it has no size."""
        if run.problem.noise.sigma is None:
            return run.problem.log_likelihood(x0)
        return -rows_norm(run.problem.residual(x0))
