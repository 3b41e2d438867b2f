"""Decomposed diffusion sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...numerics.cg import cg
from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import churned, vp_schedule


@register("solver", "dds")
@dataclass(frozen=True)
class DDS(Solver):
    """Decomposed diffusion sampling.

    Chung, Lee, Ye 2024, "Decomposed diffusion sampler for accelerating large-scale inverse problems",
    arXiv 2303.05754, Algorithms 1 (noiseless) and 2 (noisy).

    A few iterations of conjugate gradients, started at the clean estimate D, move it towards the data without leaving
    the Krylov subspace::

        noiseless:  A^T A x0 = A^T y
        noisy:      (I + gamma A^T A) x0 = D + gamma A^T y

    then x_next = x0 + sigma' (sqrt(1 - eta^2) eps + eta z).

    gamma
        Weight of the data with noise; 1 as in the paper, which states it for operators of norm about 1.
    iterations
        Of conjugate gradients.
    eta
        0 re-uses the estimated noise, 1 replaces it all.

    The authors' code adds the data term of complex images in a way that multiplies it by 1 + i, flattens the dot
    products of a batch, and treats the step before the last as the last; none of this is followed.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    default_steps: ClassVar[int] = 50
    paper: ClassVar[dict[str, str]] = {"steps": "50", "gamma": "1", "iterations": "5", "eta": "0.85"}

    gamma: float = 1.0
    iterations: int = 5
    eta: float = 0.85

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        A, y = run.linear, run.problem.y
        D = run.prior.denoise(state.x, sigma)
        eps = (state.x - D) / sigma
        if run.problem.sigma_y == 0:
            x0 = cg(A.normal, A.adjoint(y), D, steps=self.iterations)
        else:

            def system(v: Tensor) -> Tensor:
                return v + self.gamma * A.normal(v)

            x0 = cg(system, D + self.gamma * A.adjoint(y), D, steps=self.iterations)
        return state.next(churned(x0, eps, sigma_next, self.eta, run.rng), x0)
