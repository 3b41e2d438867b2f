"""Come closer, diffuse faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, regularised_inverse, replaced, vp_schedule


@register("solver", "ccdf")
@dataclass(frozen=True)
class CCDF(Solver):
    """A projected diffusion that starts near the end, at a first guess.

    Chung, Sim, Ye 2022, "Come-closer-diffuse-faster: accelerating conditional diffusion models for inverse problems
    through stochastic contraction", CVPR 2022, arXiv 2112.05146, Algorithm 1.

    The guess A^+ y is noised to level sigma_start; from there ancestral steps, each followed by the projection onto the
    data at its level::

        x = A^+ y + sigma_start z;   x_next = x' + A^+ (y + sigma' z - A x'),   x' = ancestral(x, D)

    The steps contract what is wrong with the guess, so that from some level on the whole diffusion gains nothing more.
    A better guess, that of a network say, is given as ``x_init``; and any other solver, for example one that takes
    noise, starts at a guess by the arguments ``x_init`` and ``sigma_start`` of :func:`unveil.solve`.

    sigma_start
        Where to start (for images in [-1, 1]): what A does not see must be guessed up to noise of this level. The paper
        starts super-resolution and inpainting at t = 100 to 200 of 1000 and MRI at 20: 0.34 to 0.72, and 0.08, on
        DDPM's levels.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "noiseless"})
    sibling: ClassVar[str] = "ddnm"
    default_steps: ClassVar[int] = 20
    paper: ClassVar[dict[str, str]] = {"steps": "not at hand", "sigma_start": "not at hand"}

    sigma_start: float = 0.75

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full", self.sigma_start)

    def init(self, run: Run) -> State:
        guess = regularised_inverse(run.problem)
        return State(guess.add(run.rng.normal(guess), alpha=run.schedule.sigmas[0]), guess)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        return state.next(replaced(x, sigma_next, run), x0)
