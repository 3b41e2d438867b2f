"""DiffPIR: plug-and-play image restoration with a diffusion denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import churned, regularised_inverse, vp_schedule


@register("solver", "diffpir")
@dataclass(frozen=True)
class DiffPIR(Solver):
    """DiffPIR: half-quadratic splitting with a diffusion denoiser.

    Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool 2023, "Denoising diffusion models for plug-and-play image
    restoration", arXiv 2305.08995, Algorithm 1 and equations 12 to 14.

    The clean estimate D goes through the proximal map of the data, and noise is added again::

        x0 = argmin_z |y - A z|^2 + rho |z - D|^2,   rho = lam sigma_y^2 / sigma^2
        x_next = x0 + sigma' (sqrt(1 - zeta) eps + sqrt(zeta) z),   eps = (x - x0) / sigma

    lam
        Weight of the prior. The authors' lam mixes the units of [0, 1] and [-1, 1]: theirs is four times ours.
    zeta
        Share of fresh noise in the variance: 0.1 to 0.25 for deblurring and super-resolution, 1 for inpainting in the
        authors' configurations.
    spacing
        Of the levels: "quad" as the authors', "uniform" or "full".
    sigma_start
        First noise level, for images in [-1, 1]. The run starts at the regularised pseudo-inverse with that much
        noise; a low start (about 1) gives up diversity for evaluations.

    The last step ends at the proximal point; the authors' code computes and discards it.
    """

    family: ClassVar[str] = "decoupled"
    needs: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    paper: ClassVar[dict[str, str]] = {
        "steps": "100; 20 for inpainting",
        "lam": "0.25 (1 in mixed units)",
        "zeta": "0.1 for deblurring, 0.1 to 0.25 for super-resolution, 1 for inpainting",
        "spacing": "quad",
        "sigma_start": "inf",
    }
    limits: ClassVar[Mapping[str, str]] = {"lam": "(0, inf)", "zeta": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {
        "lam": "0.25 leaves 0.4 to 0.7 of the exact standard deviation in directions that A sees",
        "zeta": "one number for all tasks: 1 leaves 0.7 of the standard deviation, 0.1 is up to 1.6 times as far off",
    }

    lam: float = 1.0
    zeta: float = 0.3
    spacing: str = "quad"
    sigma_start: float = math.inf

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, self.spacing, self.sigma_start)

    def init(self, run: Run) -> State:
        x0 = regularised_inverse(run.problem)
        return State(x0.add(run.rng.normal(x0), alpha=run.schedule.sigmas[0]), x0)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.problem.prox(run.prior.denoise(state.x, sigma), sigma**2 / self.lam)
        eps = (state.x - x0).div_(sigma)
        return state.next(churned(x0, eps, sigma_next, self.zeta**0.5, run.rng), x0)
