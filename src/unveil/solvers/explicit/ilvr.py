"""Iterative latent variable refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, replaced, vp_schedule


@register("solver", "ilvr")
@dataclass(frozen=True)
class ILVR(Solver):
    """Iterative latent variable refinement.

    Choi, Kim, Jeong, Gwon, Yoon 2021, "ILVR: conditioning method for denoising diffusion probabilistic models", ICCV
    2021, arXiv 2108.02938, Algorithm 1.

    After each ancestral step the low-pass part of the iterate becomes that of the reference at the same level::

        x' = ancestral(x, D);   x_next = x' - phi(x') + phi(reference + sigma' z)

    The paper's phi is down- and up-sampling. Here it is A^+ A for any linear A, so that y is enough, the reference need
    not exist, and (phi being a projection, which the paper's bicubic filter is not quite) the result reproduces y.

    sigma_stop
        Level (for images in [-1, 1]) from which on the iterate is left to itself; 0 is the whole way, without which the
        result does not reproduce y. The authors' script stops at step 20 of 100, sigma 0.73: the closer to the
        reference, the less from the prior.

    Deviation: the authors' code noises the reference to the level before the step, not to that of the iterate that it
    goes into, which at few steps leaves too much noise.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "noiseless"})
    sibling: ClassVar[str] = "ddnm"
    paper: ClassVar[dict[str, str]] = {"steps": "100", "sigma_stop": "0.73 (step 20 of 100)"}
    why: ClassVar[dict[str, str]] = {
        "sigma_stop": "left to itself before the end, the result does not reproduce y",
    }

    sigma_stop: float = 0.0

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        return state.next(replaced(x, sigma_next, run) if sigma_next >= self.sigma_stop * run.scale else x, x0)
