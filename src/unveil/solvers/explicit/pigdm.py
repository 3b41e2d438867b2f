"""Pseudo-inverse guided diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ...errors import InputError
from ...operators.base import Invertible, Linear
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, midway, vp_schedule
from ..paper import SECOND_ORDER

WEIGHTS = ("score", "added")


@register("solver", "pigdm")
@dataclass(frozen=True)
class PiGDM(Solver):
    """Pseudo-inverse guided diffusion.

    Song, Vahdat, Mardani, Kautz 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR 2023,
    equations 7 to 9.

    p(x0 | x) is taken as N(D(x, sigma), r^2 I) with r^2 = sigma^2 v / (sigma^2 + v), exact for a prior N(m, v I).
    The clean estimate becomes the mean given y::

        x0 = D + sigma^2 J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 (y - A D)

    and a DDIM step with x0, and the eps that belongs to it, follows. Without noise the shift is sigma^2 / r^2 times
    J^T (A^+ y - A^+ A D). That asks of A^+ only that A A^+ A = A, and of A no derivative, so that operators which are
    not linear, but bring such a ``pinv`` (quantisation, JPEG, high dynamic range), are taken too.

    data_variance
        v, for data in [-1, 1]; 1 as in the paper. Other ranges are converted.
    eta
        Noise of the DDIM step: 1 is ancestral sampling, 0 the probability-flow ODE.
    order
        2 carries x0 on to the middle of the step (DPM-Solver++(2M)), which leaves a tenth of the discretisation error
        of the paper's DDIM step, 1.
    weight
        "score": the posterior score as it is, which makes the method exact for the prior N(m, v I). "added": the DDIM
        step keeps the plain D, and r^2 J^T A^T (...)^-1 (y - A D) is added to its end, as the authors' code has it, on
        DDPM's levels. Where the signal varies far more than v in some direction, as the brightness of photographs does,
        "score" overshoots at high noise, by up to that ratio, and "added" does not.

    The paper's Algorithm 1 has 1 / s_next more before what is added, s = 1 / sqrt(1 + sigma^2).
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    gradient: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "steps": "20, 50 or 100",
        "data_variance": "1",
        "eta": "1",
        "order": "1",
        "weight": "added",
    }
    limits: ClassVar[Mapping[str, str]] = {"data_variance": "(0, inf)"}
    why: ClassVar[dict[str, str]] = {
        "order": SECOND_ORDER,
        "weight": "the posterior score as it is makes the method exact for the prior N(m, v I)",
    }

    data_variance: float = 1.0
    eta: float = 1.0
    order: int = 2
    weight: str = "score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight not in WEIGHTS:
            raise InputError(f"{self.name} has no weight '{self.weight}': one of {', '.join(WEIGHTS)}")

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps) if self.weight == "added" else super().schedule(prior, steps)

    def unfit(self, problem: Problem) -> str | None:
        if not isinstance(problem.operator, Linear) and isinstance(problem.operator, Invertible):
            return None if problem.noise.sigma == 0 else "with an operator not linear it needs data without noise"
        return super().unfit(problem)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        v = self.data_variance * run.scale**2
        r2 = sigma**2 * v / (sigma**2 + v)
        mean, pullback = run.prior.vjp(state.x, sigma)
        operator = run.problem.operator
        if not isinstance(operator, Linear) and isinstance(operator, Invertible):
            gain = run.problem.pinv() - operator.pinv(operator(mean))
        else:
            gain = run.problem.gain(run.problem.residual(mean), r2)
        shift = pullback(gain)
        x0 = mean + (sigma**2 / r2) * shift if self.weight == "score" else mean
        ahead = midway(x0, state, run.schedule) if self.order == 2 else x0
        x = ddim(state.x, ahead, sigma, sigma_next, self.eta, run.rng)
        return state.next(x if self.weight == "score" else x + shift, x0)
