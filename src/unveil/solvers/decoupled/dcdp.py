"""Decoupled data consistency with diffusion purification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from ...errors import InputError
from ...operators.base import Linear
from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule, ddpm_sigmas
from ..base import Run, Solver, State
from ..moves import ddim
from .data_steps import descend, steepness


@register("solver", "dcdp")
@dataclass(frozen=True)
class DCDP(Solver):
    """Decoupled data consistency with diffusion purification.

    Li, Kwon, Liang, Alkhouri, Ravishankar, Qu 2024, "Decoupled data consistency with diffusion purification for image
    restoration", arXiv 2403.06054, Algorithms 1 and 2.

    In turn a descent on the data alone, from the last estimate, and a purification: noise, taken away by the prior::

        u      = inner_steps of gradient descent with momentum on |y - A(x)|^2 / 2, from x
        x_next = purify(u + sigma z, sigma):  DDIM from sigma to 0 (version 1), or D(u + sigma z, sigma) (version 2)

    Nothing but the end of the descent keeps the noise of y out. Steps are rounds; sigma falls with the time of DDPM.

    inner_steps, lr, momentum
        Of the descent; lr is relative to 1 / |A|^2. The authors' in these units: 0.01 for inpainting (50 steps) and
        super-resolution, 1 for deblurring. In its direction of singular value s the descent closes the gap to the data
        at a rate of lr s^2 / (1 - momentum) per step: 0.01 leaves what A weakens to a third of the most to the prior.
    purify_steps
        Evaluations of a purification, 20 for the authors; 1 is version 2 of the algorithm.
    time_start, time_end
        First and last time of 1000. The authors': 400 for super-resolution and deblurring (10 rounds), 700 for
        inpainting (20 rounds), 1000 to 20 or 50 for non-linear problems (200 rounds).

    Deviations: the authors' step sizes are those of the mean squared error, and so depend on the size of the picture;
    ours follow |A|^2 (that of the Jacobian at x, where A is not linear). Their last round, at t = 1, adds the noise of
    a level below that of its first evaluation. Without noise in y a last descent follows: they too found results best
    before a purification.
    """

    family: ClassVar[str] = "decoupled"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 10
    paper: ClassVar[dict[str, str]] = {
        "steps": "10; 20 for inpainting, 200 for non-linear problems",
        "inner_steps": "100; 50 for inpainting",
        "lr": "0.01; 1 for deblurring",
        "momentum": "0.9",
        "purify_steps": "20; 1 in version 2",
        "time_start": "400; 700 for inpainting, 1000 for non-linear problems",
        "time_end": "1; 20 or 50 for non-linear problems",
    }
    limits: ClassVar[Mapping[str, str]] = {"momentum": "[0, 1)"}

    inner_steps: int = 100
    lr: float = 0.01
    momentum: float = 0.9
    purify_steps: int = 20
    time_start: float = 400.0
    time_end: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.time_end < self.time_start <= 1000:
            raise InputError("dcdp needs 1 <= time_end < time_start <= 1000")

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """Levels of DDPM at times from time_start to time_end in equal steps, as far as the prior knows them; and 0."""
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = prior.sigma_range
        levels = ddpm_sigmas() * scale
        first = np.interp(min(high, levels[-1]), levels, np.arange(1, 1001))
        last = np.interp(max(low, levels[0]), levels, np.arange(1, 1001))
        start = min(self.time_start, first)
        times = np.linspace(start, min(max(self.time_end, last), start), steps)
        whole = np.round(times)
        times = whole if len(np.unique(whole)) == steps and last <= whole[-1] and whole[0] <= first else times
        return Schedule((*np.exp(np.interp(times, np.arange(1, 1001), np.log(levels))).tolist(), 0.0))

    def init(self, run: Run) -> State:
        middle = torch.full_like(run.like, sum(run.problem.value_range) / 2)
        aux = {"top": steepness(run.problem, middle)} if isinstance(run.problem.operator, Linear) else {}
        return State(middle, middle, 0, aux)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        top = state.aux["top"] if state.aux else steepness(run.problem, state.x)
        rate = self.lr / top.clamp_min(1e-20)
        u = descend(run.problem, state.x, rate, self.inner_steps, self.momentum)
        x = u.add(run.rng.normal(u), alpha=sigma)
        for here, there in pairwise(self.levels(run.prior, sigma)):
            x0 = run.prior.denoise(x, here)
            x = ddim(x, x0, here, there, 0.0, run.rng)
        if sigma_next == 0 and run.problem.noise.sigma == 0:
            x = descend(run.problem, x, rate, self.inner_steps, self.momentum)
        return state.next(x, u, **state.aux)

    def levels(self, prior: Prior, sigma: float) -> tuple[float, ...]:
        """The levels of a purification: DDPM's in equal steps of time from sigma, and 0."""
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        below = ddpm_sigmas()
        below = below[(below >= prior.sigma_range[0] / scale) & (below < sigma / scale * (1 - 1e-9))]
        n = min(self.purify_steps - 1, len(below))
        chosen = np.round(np.linspace(0, len(below), n + 1)[:-1]).astype(int)[::-1]
        return (sigma, *(below[chosen] * scale).tolist(), 0.0)
