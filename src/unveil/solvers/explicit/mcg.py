"""Manifold constrained gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, misfit, replaced, vp_scale, vp_schedule


@register("solver", "mcg")
@dataclass(frozen=True)
class MCG(Solver):
    """Manifold constrained gradient.

    Chung, Sim, Ryu, Ye 2022, "Improving diffusion models for inverse problems using manifold constraints",
    arXiv 2206.00941, Algorithm 1.

    An ancestral step, a step down the gradient of the misfit of the clean estimate x0 = D(x, sigma), and a projection
    onto the signals whose measurement is y with noise of the next level, A(x0 + sigma' z)::

        x''    = ancestral(x, x0) - alpha / (s s') grad_x |y - A x0|
        x_next = x'' + A^+ (y - A (x'' - sigma' z))

    The paper's x is s times ours, s = 1 / sqrt(1 + sigma^2), which gives the factor 1 / (s s'). The projection undoes
    what the gradient does in directions that A sees; it acts on those that A does not see, through the network.

    alpha
        Step size for the norm (the squared norm of the paper divided by the norm), 1 as in the authors' code, for
        images in [-1, 1]; other ranges are converted.

    Deviation: the data are noised to the level of the next iterate; the authors' code takes that of the one before, and
    so leaves noise in the known values of the result, which reproduces y here.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "noiseless"})
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    sibling: ClassVar[str] = "dps"
    paper: ClassVar[dict[str, str]] = {"steps": "1000", "alpha": "1 for inpainting"}

    alpha: float = 1.0

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, pullback = run.prior.vjp(state.x, sigma)
        _, gradient = misfit(run.problem, x0)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        rate = self.alpha * run.scale / (vp_scale(sigma, run.scale) * vp_scale(sigma_next, run.scale))
        x = x.sub(pullback(gradient), alpha=rate)
        return state.next(replaced(x, sigma_next, run), x0)
