"""Plug-and-play Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ...errors import InputError
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..decoupled.data_steps import curvature
from .particles import per_row

ORDERS = ("red", "pnp")


@register("solver", "pmc")
@dataclass(frozen=True)
class PMC(Solver):
    """Plug-and-play Monte Carlo: Langevin steps on the likelihood and a denoiser's score.

    Sun, Wu, Chen, Feng, Bouman 2024, "Provable probabilistic imaging using score-based generative priors",
    arXiv 2310.10835, Algorithms 1 to 4.
    """

    family: ClassVar[str] = "smc"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000

    order: str = "red"
    sigma_start: float = 1.0
    sigma_end: float = 0.02
    anneal: float = 0.9
    alpha: float = 1.0
    step_size: float = 0.5

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise InputError(f"{self.name} knows no order '{self.order}': one of {', '.join(ORDERS)}")

    def unfit(self, problem: Problem) -> str | None:
        return "its Markov chain needs noise: sigma_y > 0" if problem.noise.sigma == 0 else super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = prior.sigma_range
        end = max(self.sigma_end * scale, low)
        start = max(min(self.sigma_start * scale, high), end)
        n = round(self.anneal * steps)
        # a schedule never repeats a level, so the plateau falls by a part in a thousand in all
        fall = [start * (end / start) ** (k / n) for k in range(n)]
        flat = [end * (1 - 1e-3 * k / max(steps - n, 1)) for k in range(steps - n)]
        return Schedule((*fall, *flat, 0.0))

    def init(self, run: Run) -> State:
        state = super().init(run)
        return replace(state, aux={"curvature": curvature(run.problem, state.x0)})

    def step(self, state: State, run: Run) -> State:
        sigma, _ = run.schedule.pair(state.i)
        alpha = max(self.alpha * (sigma / run.schedule.sigmas[0]), 1.0)
        rate = per_row(self.step_size / (state.aux["curvature"] + alpha / sigma**2), state.x)
        data = run.problem.score(state.x)
        x0 = run.prior.denoise(state.x if self.order == "red" else state.x + rate * data, sigma)
        here = state.x if self.order == "red" else state.x + rate * data
        x = state.x + rate * (data + (alpha / sigma**2) * (x0 - here))
        return state.next(x + (2 * rate).sqrt() * run.rng.normal(x), x0, **state.aux)
