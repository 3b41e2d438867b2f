"""Inpainting by resampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, replaced, vp_schedule


@register("solver", "repaint")
@dataclass(frozen=True)
class RePaint(Solver):
    """Inpainting with a diffusion that goes back and forth.

    Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool 2022, "RePaint: inpainting using denoising diffusion probabilistic
    models", CVPR 2022, arXiv 2201.09865, Algorithm 1.

    An ancestral step gives the unknown values, the data at the next level the known ones::

        x_next = M (y + sigma' z) + (1 - M) ancestral(x, D)

    and every ``jump_length`` levels the iterate is noised back over as many, ``repeats`` times in all, which brings the
    unknown values in harmony with the known: more repeats come closer to the posterior. Masks are the paper's problem;
    any linear A will do, with A^+ A for M.

    jump_length, repeats
        10 and 10, as in the paper, with 250 steps: about 2400 evaluations.

    Deviations: the values are merged at the end of a step as in the paper; the authors' code does so at the start of
    the next, also after going back, and never for the result, which reproduces y here. Their jumps begin at the second
    level from the top, ours at the first.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "noiseless"})
    sibling: ClassVar[str] = "ddnm"
    default_steps: ClassVar[int] = 250
    paper: ClassVar[dict[str, str]] = {"steps": "250", "jump_length": "10", "repeats": "10"}

    jump_length: int = 10
    repeats: int = 10

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full").time_travel(self.jump_length, self.repeats)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        return state.next(replaced(x, sigma_next, run), x0)
