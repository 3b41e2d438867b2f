"""FreeDoM: training-free energy-guided diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, misfit, on_sphere, rows_norm, vp_schedule


@register("solver", "freedom")
@dataclass(frozen=True)
class FreeDoM(Solver):
    """FreeDoM: training-free energy-guided conditional diffusion, with the misfit as its energy.

    Yu, Wang, Zhao, Ghanem, Zhang 2023, "FreeDoM: training-free energy-guided conditional diffusion model",
    arXiv 2303.09833, Algorithms 1 and 2.

    An ancestral step and a step down the energy of the clean estimate, whose length is a share of the noise that the
    step takes away::

        g      = grad_x |y - A D(x, sigma)|
        x_next = ancestral(x, D) - rate (1 - sigma'^2 / sigma^2) |x - D| g / |g|

    Between two noise levels, where the content of a picture is made, every step is repeated after going back up by
    fresh noise (time travel). The step does not depend on the size of g, of the signal or on units.

    rate
        0.02 for the text conditions of the authors' code; a measurement says much more than a text, and asks for more.
    repeats
        Of every step in the band: 10 in the authors' code for ImageNet, 1 for faces.
    travel_from, travel_to
        The band, for images in [-1, 1]: t = 800 to 500 of DDPM's 1000 levels.
    """

    family: ClassVar[str] = "explicit"
    gradient: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "rate": "0.02 for texts; on faces not relative",
        "repeats": "10 on ImageNet, 1 on faces",
        "travel_from": "26 (t = 800)",
        "travel_to": "3.4 (t = 500)",
    }
    why: ClassVar[dict[str, str]] = {
        "rate": "a measurement says much more than a text, and asks for more",
    }

    rate: float = 1.0
    repeats: int = 1
    travel_from: float = 26.0
    travel_to: float = 3.4

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        plain = vp_schedule(prior, steps)
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        levels = [plain.sigmas[0]]
        for sigma, sigma_next in pairwise(plain.sigmas):
            again = self.repeats - 1 if self.travel_to <= sigma / scale <= self.travel_from else 0
            levels += [sigma_next, *(sigma, sigma_next) * again]
        return Schedule(tuple(levels))

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, pullback = run.prior.vjp(state.x, sigma)
        g = pullback(misfit(run.problem, x0)[1])
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        length = self.rate * (1 - (sigma_next / sigma) ** 2) * rows_norm(state.x - x0)
        return state.next(on_sphere(x, -g, length), x0)
