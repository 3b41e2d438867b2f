"""Plug-and-play Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ...errors import InputError
from ...operators.base import Linear
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..decoupled.data_steps import curvature
from .particles import data_possible, per_row

ORDERS = ("red", "pnp")


@register("solver", "pmc")
@dataclass(frozen=True)
class PMC(Solver):
    """Plug-and-play Monte Carlo: Langevin steps on the likelihood and on a denoiser's score, at a falling noise level.

    Sun, Wu, Chen, Feng, Bouman 2024, "Provable probabilistic imaging using score-based generative priors",
    arXiv 2310.10835: PMC-RED, PMC-PnP, and the annealed APMC-RED and APMC-PnP.

    With the prior's score S(x, sigma) = (D(x, sigma) - x) / sigma^2 and L the largest curvature of -log p(y | x)::

        red:  x <- x + g (grad log p(y | x) + a S(x, sigma)) + sqrt(2 g) z
        pnp:  u = x + g grad log p(y | x);   x <- u + g a S(u, sigma) + sqrt(2 g) z
        g = step_size / (L + a / sigma^2),   a = max((weight sigma / sigma_end)^2, 1)

    order
        "red": both gradients at x. "pnp": the score after the step on the data.
    sigma_start, sigma_end
        First and last noise level of the score, for data in [-1, 1].
    anneal
        Share of the steps in which sigma falls geometrically; the others stay at sigma_end. 0: without annealing.
    weight
        Of the weighted annealing: 1 is the paper's, which has one step size g for all levels; 0 has a = 1.
    step_size
        Relative to the largest curvature; the variance of a stiff direction is 1 / (1 - step_size / 2) times too large.

    Asymptotically exact as step_size and sigma_end go to 0. In 1000 steps at the sampling floor on the ruler's
    Gaussian problems, in either order. Modes of a mixture that lie apart get wrong weights (6 times the floor on
    clusters-dense), as no chain leaves its mode once sigma is small. With weight = 1 the prior is sharpened while sigma
    is above sigma_end, and directions that A does not see have no time to widen again: 0.2 to 0.9 of the exact standard
    deviation in 1000 steps, where weight = 0 has 0.99 to 1.05.

    What A does not see moves by a share g / sigma^2 of the way to D in a step. With weight = 0 that is step_size /
    (1 + L sigma^2), a thousandth at sigma = 1 where sigma_y is 0.04: on 32 x 32 pixels of a photograph, 70 % of them
    lost, 100 steps come to 11.4 dB and 1000 to 16.0. With weight = 1, 100 come to 24.4.

    Deviations: weight is 0; the step size follows the curvature, where the authors' are set by task (1e-5 for sigma_y =
    0.01), and so does sigma_start, 348 there, which is noise to any picture; of a likelihood that is not quadratic the
    curvature is taken anew at every step, and no entry moves further than sigma.
    """

    family: ClassVar[str] = "smc"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {
        "steps": "not at hand",
        "order": "red and pnp",
        "sigma_start": "348",
        "sigma_end": "not at hand",
        "anneal": "not at hand",
        "weight": "1",
        "step_size": "1e-5 for sigma_y = 0.01, not relative",
    }
    limits: ClassVar[Mapping[str, str]] = {"anneal": "[0, 1]", "step_size": "(0, 2)"}
    why: ClassVar[dict[str, str]] = {
        "sigma_start": "348 is noise to any picture",
        "weight": "1 leaves 0.2 to 0.9 of the exact standard deviation where A does not see, 0 all of it",
        "step_size": "relative to the curvature: one number for all operators and noise",
    }

    order: str = "red"
    sigma_start: float = 1.0
    sigma_end: float = 0.02
    anneal: float = 0.9
    weight: float = 0.0
    step_size: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS:
            raise InputError(f"{self.name} knows no order '{self.order}': one of {', '.join(ORDERS)}")

    def unfit(self, problem: Problem) -> str | None:
        if problem.noise.sigma == 0:
            return "its Markov chain needs noise: sigma_y > 0 (without noise take pnp-dm)"
        return super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """The levels sigma_k, and 0."""
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = prior.sigma_range
        end = max(self.sigma_end * scale, low)
        start = max(min(self.sigma_start * scale, high), end)
        n = round(self.anneal * steps) if start > end else 0
        # a schedule never repeats a level, so the plateau falls by a part in a thousand in all
        fall = [start * (end / start) ** (k / n) for k in range(n)]
        flat = [end * (1 - 1e-3 * k / (steps - n)) for k in range(steps - n)]
        return Schedule((*fall, *flat, 0.0))

    def init(self, run: Run) -> State:
        state = super().init(run)
        return replace(state, aux={"curvature": curvature(run.problem, state.x0)}) if quadratic(run.problem) else state

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        a = max((self.weight * sigma / (self.sigma_end * run.scale)) ** 2, 1.0) / sigma**2
        bend = state.aux.get("curvature")
        if bend is None:
            bend = curvature(run.problem, state.x)
        g = per_row(self.step_size / (bend + a), state.x)
        # what is not quadratic may be steeper away from here: no entry moves further than the noise level
        reach = math.inf if quadratic(run.problem) else sigma
        data: Tensor = (g * run.problem.score(state.x)).clamp(-reach, reach)
        at = state.x if self.order == "red" else state.x + data
        x0 = run.prior.denoise(at, sigma)
        x = state.x + data + (g * a) * (x0 - at) + (2 * g).sqrt() * run.rng.normal(state.x)
        alive = {"possible": data_possible(run.problem, run.problem.operator(x))} if sigma_next == 0 else {}
        return state.next(x, x0, **state.aux, **alive)


def quadratic(problem: Problem) -> bool:
    """Whether the log-likelihood has the same curvature everywhere."""
    return isinstance(problem.operator, Linear) and problem.noise.sigma is not None
