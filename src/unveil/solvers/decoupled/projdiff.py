"""ProjDiff: the measurement as a noisy iterate of the diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import vp_schedule


@register("solver", "projdiff")
@dataclass(frozen=True)
class ProjDiff(Solver):
    """ProjDiff: the measurement as a noisy iterate of the diffusion.

    Zhang, Zhuang, Jin, Li, Gu 2024, "Unleashing the denoising capability of diffusion prior for solving inverse
    problems", arXiv 2406.06959, Algorithms 1 and 2, and the spectral form of its appendix.

    Without noise: stochastic gradient descent on the residual of the denoiser, projected onto the data::

        x0 <- P(x0 + lr (D(x0 + sigma z, sigma) - x0)),   P(u) = u + A^+ (y - A u)

    With noise, in the coordinates of A = U diag(s) V^T: ybar = U^T y / s is the signal at the noise level n =
    sigma_y / s, an iterate of the diffusion. Coordinates known better than the level sigma start from it, and take the
    clean estimate; in the others its noise (ybar - x0) / n is used again, and they move by lr. What A does not see is
    an iterate of no noise, x0 itself::

        n <= sigma:   x = ybar + sqrt(sigma^2 - n^2) z,     x0 <- D(x, sigma)
        n >  sigma:   x = x0 + sigma (ybar - x0) / n,       x0 <- x0 + lr (D(x, sigma) - x0)

    lr
        The authors' for ImageNet in 100 steps: 0.5 for super-resolution, 1 for inpainting, 0.1 for deblurring; 1.7, 1.1
        and 0.9 without noise; 1 for what they did not tune.

    Deviations: the measurement takes part in the first step already, where the authors' code has the iterate of y drawn
    from the first estimate. Non-linear projections (phase, high dynamic range) are left out: they are not those of a
    general operator.
    """

    family: ClassVar[str] = "decoupled"
    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian"})
    clean: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "steps": "100; 1000 for phase retrieval",
        "lr": "0.5 for super-resolution, 1 for inpainting, 0.1 for deblurring; without noise 1.7, 1.1, 0.9",
    }

    lr: float = 1.0

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        noise = super().init(run)
        x0 = run.prior.denoise(noise.x, run.schedule.sigmas[0])
        return State(x0, x0)

    def step(self, state: State, run: Run) -> State:
        sigma, _ = run.schedule.pair(state.i)
        A, problem = run.spectral, run.problem
        if problem.sigma_y == 0:
            estimate = run.prior.denoise(state.x.add(run.rng.normal(state.x), alpha=sigma), sigma)
            x0 = torch.lerp(state.x, estimate, self.lr)
            return state.next(x0 + problem.gain(problem.residual(x0), 1.0), estimate)
        c = A.Vt(state.x)
        s_inv = A.s_inv(c)
        ybar, noise = s_inv * A.Ut(problem.y), problem.sigma_y * s_inv
        known = noise <= sigma
        anchor = torch.where(s_inv > 0, ybar, c)
        above = anchor + (sigma**2 - noise**2).clamp_min(0).sqrt() * run.rng.normal(c)
        below = torch.lerp(c, ybar, sigma / torch.where(known, sigma, noise))
        estimate = run.prior.denoise(A.V(torch.where(known, above, below)), sigma)
        found = A.Vt(estimate)
        return state.next(A.V(torch.where(known, found, torch.lerp(c, found, self.lr))), estimate)
