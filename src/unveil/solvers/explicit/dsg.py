"""Diffusion with spherical Gaussian constraint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ancestral, misfit, on_sphere, vp_schedule


@register("solver", "dsg")
@dataclass(frozen=True)
class DSG(Solver):
    """Diffusion with spherical Gaussian constraint.

    Yang, Ding, Cai, Yu, Wang, Shi 2024, "Guidance with spherical Gaussian constraint for conditional diffusion",
    arXiv 2402.03201, Algorithm 1.

    The noise of an ancestral step N(m, c^2 I) lies near the sphere of radius R = sqrt(n) c. It is turned towards the
    direction in which the misfit of the clean estimate falls fastest, and put back on that sphere::

        g      = grad_x |y - A D(x, sigma)|
        d      = (1 - guidance) c z - guidance R g / |g|
        x_next = m + R d / |d|

    The step does not depend on the size of g, of the signal or on units.

    guidance
        0.2 as in the authors' script for inpainting; 0.05 for conditions on faces.
    interval
        Guide every ``interval``-th step only; the steps between are plain ancestral ones, counted back from the last.

    The last step has no noise to turn, so that the data are not met exactly; sigma_y is not used.
    """

    family: ClassVar[str] = "explicit"
    gradient: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "guidance": "0.2 for inpainting, 0.05 for conditions on faces",
        "interval": "1; 10 for conditions on faces",
    }
    limits: ClassVar[Mapping[str, str]] = {"guidance": "[0, 1]"}

    guidance: float = 0.2
    interval: int = 1

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        guided = (len(run.schedule) - 1 - state.i) % self.interval == 0
        if guided and sigma_next > 0:
            x0, pullback = run.prior.vjp(state.x, sigma)
            g = pullback(misfit(run.problem, x0)[1])
        else:
            x0, g = run.prior.denoise(state.x, sigma), None
        mean, std = ancestral(state.x, x0, sigma, sigma_next)
        if std == 0:
            return state.next(mean, x0)
        noise = std * run.rng.normal(mean)
        if g is None:
            return state.next(mean + noise, x0)
        radius = mean[0].numel() ** 0.5 * std
        down = on_sphere(torch.zeros_like(g), -g, radius)
        return state.next(on_sphere(mean, torch.lerp(noise, down, self.guidance), radius), x0)
