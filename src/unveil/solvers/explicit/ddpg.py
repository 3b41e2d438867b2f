"""Denoising diffusion with preconditioned guidance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior, expand
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import churned, squared_operator_norm, vp_scale, vp_schedule


@register("solver", "ddpg")
@dataclass(frozen=True)
class DDPG(Solver):
    """Image restoration by denoising diffusion models with iteratively preconditioned guidance.

    Garber, Tirer 2024, "Image restoration by denoising diffusion models with iteratively preconditioned guidance", CVPR
    2024, arXiv 2312.16519, Algorithms 1 (IDPG) and 2 (DDPG).

    The clean estimate goes towards the data by back-projection at first and by least squares at the end, which are
    slower where A is weak, and so leave the noise of y out::

        x0 = D - mu [(1 - delta) A^T (A A^T + eta I)^-1 + delta A^T / |A|^2] (A D - y),    delta = abar'^gamma
        x_next = x0 + sigma' (sqrt(zeta) z + sqrt(1 - zeta) delta eps),                      eps = (x - x0) / sigma

    with abar' = 1 / (1 + sigma'^2) and mu = (1 - abar') / (1 - abar). The result is the last D. Without noise delta = 0
    in the guidance and 1 before eps, eta = 0 (the authors' code has 1e-4) and mu = 1, and the result is x0, which
    reproduces y.

    gamma
        How late the least squares come. The authors tune it by task, as the others: 8 is deblurring with noise 0.05.
    zeta
        Share of fresh noise: 0.5 there; without measurement noise 0.7 for super-resolution, 1 for deblurring.
    eta_tilde
        eta over sigma_y^2 (for images in [-1, 1]); eta is at least 1e-4.
    decay
        False: mu = 1 with noise too, the authors' choice for noise 0.01.
    inject
        False is IDPG: no noise is put back at all; less sharp, and closer in squares.

    |A|^2, the largest eigenvalue of A^T A, is 1 in the paper.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "gamma": "8 for deblurring; by task",
        "zeta": "0.5; without noise 0.7 for super-resolution, 1 for deblurring",
        "eta_tilde": "0.7",
        "decay": "True; False for noise 0.01",
        "inject": "True; False is IDPG",
    }
    limits: ClassVar[Mapping[str, str]] = {"gamma": "(0, inf)", "zeta": "[0, 1]"}

    gamma: float = 8.0
    zeta: float = 0.5
    eta_tilde: float = 0.7
    decay: bool = True
    inject: bool = True

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        state = super().init(run)
        return State(state.x, state.x0, 0, {"norm2": squared_operator_norm(run)})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        problem, norm2 = run.problem, state.aux["norm2"]
        D = run.prior.denoise(state.x, sigma)
        r = problem.residual(D)
        if problem.sigma_y == 0:
            delta, x0 = 1.0, D + problem.gain(r, 1.0)
        else:
            abar, abar_next = (vp_scale(s, run.scale) ** 2 for s in (sigma, sigma_next))
            delta, mu = abar_next**self.gamma, (1 - abar_next) / (1 - abar) if self.decay else 1.0
            eta = max(1e-4, self.eta_tilde * (problem.sigma_y / run.scale) ** 2)
            projected = problem.gain(r, problem.sigma_y**2 / eta)  # gain's var is sigma_y^2 / eta
            squares = run.linear.adjoint(r)
            x0 = D + mu * ((1 - delta) * projected + expand(delta / norm2, squares) * squares)
            if sigma_next == 0:
                return state.next(D, D, norm2=norm2)
        eps = (state.x - x0) / sigma
        x = churned(x0, delta * eps, sigma_next, self.zeta**0.5, run.rng) if self.inject else x0
        return state.next(x, x0, norm2=norm2)
