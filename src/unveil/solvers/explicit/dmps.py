"""Diffusion model based posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, vp_schedule


@register("solver", "dmps")
@dataclass(frozen=True)
class DMPS(Solver):
    """Diffusion model based posterior sampling.

    Meng and Kabashima 2022, "Diffusion model based posterior sampling for noisy linear inverse problems",
    arXiv 2211.12343, Algorithm 1 and Theorem 1.

    The likelihood of x under a flat prior, y ~ N(A x, sigma_y^2 I + sigma^2 A A^T), whose score needs no network. In
    our x, the paper's added step lam (1 - alpha) / sqrt(alpha) score is a shift of the clean estimate in an ancestral
    step::

        x0     = D(x, sigma) + lam sigma^2 A^T (sigma_y^2 I + sigma^2 A A^T)^-1 (y - A x)
        x_next = ancestral(x, x0)

    lam
        1.75 as in the paper, for every task; 1 is the posterior score itself, right in the limit of a broad prior.

    Deviation: the authors' code takes y - A x at the ancestral sample of the next level, with the variance of this one;
    here both belong to x, as in the paper.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {"steps": "1000", "lam": "1.75"}

    lam: float = 1.75

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        shift = run.problem.gain(run.problem.residual(state.x), sigma**2)
        x0 = run.prior.denoise(state.x, sigma).add(shift, alpha=self.lam)
        return state.next(ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng), x0)
