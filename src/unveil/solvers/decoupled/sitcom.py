"""SITCOM: step-wise triple-consistent sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...numerics.adam import adam_update
from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import vp_schedule
from .data_steps import noise_floor, where_rows


@register("solver", "sitcom")
@dataclass(frozen=True)
class SITCOM(Solver):
    """SITCOM: step-wise triple-consistent sampling.

    Alkhouri, Liang, Huang, Dai, Qu, Ravishankar, Wang 2024, "SITCOM: step-wise triple-consistent diffusion sampling
    for inverse problems", arXiv 2410.04479, Algorithm 1.

    At each level the input of the network is moved until its clean estimate fits the data, and noised afresh::

        v      = argmin |y - A(D(v, sigma))|^2 + lam |x - v|^2       (Adam, inner_steps evaluations, from v = x)
        x_next = D(v, sigma) + sigma' z

    A sample is left as it is once |y - A(D(v))| is down to the noise, sqrt(m) (sigma_y + margin).

    inner_steps
        Evaluations at each level; all but the last with a back-propagation. The authors have 20 to 30.
    lr
        Of Adam on the network's input with a variance of one, x / sqrt(1 + sigma^2): 0.01 in the paper, 0.02 in the
        authors' script. In few steps it takes more to come to rest: on signals of variance one, 0.05 in 12.
    lam
        Weight of staying near x, for that input in its units and the residual in those of [-1, 1]. The authors' code
        has none.
    margin
        For images in [-1, 1]; their code has 0.001.

    Deviations: values are not clipped to the range, where gradients vanish; what is returned is the last estimate, and
    not the best of all by its distance to the truth, as in the authors' code. Every sample takes inner_steps
    evaluations, also after it has come to rest, so that a step never waits for the device.
    """

    family: ClassVar[str] = "decoupled"
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 20
    paper: ClassVar[dict[str, str]] = {
        "steps": "20",
        "inner_steps": "20 to 30",
        "lr": "0.01; 0.02 in the script",
        "lam": "0 in the code",
        "margin": "0.001",
    }
    limits: ClassVar[Mapping[str, str]] = {"inner_steps": "[2, inf)"}  # the last evaluation moves nothing

    inner_steps: int = 20
    lr: float = 0.01
    lam: float = 0.0
    margin: float = 0.001

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        # half of m (sigma_y + margin)^2
        half_m = noise_floor(run.problem, 1.0)
        floor = (noise_floor(run.problem).sqrt() + self.margin * run.scale * half_m.sqrt()) ** 2
        state = super().init(run)
        return State(state.x, state.x0, 0, {"floor": floor})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        unit = (run.scale**2 + sigma**2) ** 0.5  # one of the network's input, in ours
        v, m, s = state.x, torch.zeros_like(state.x), torch.zeros_like(state.x)
        for k in range(self.inner_steps - 1):
            x0, pullback = run.prior.vjp(v, sigma)
            loss, gradient = run.problem.data(x0)
            slope = pullback(gradient).mul_(2 * unit / run.scale**2)
            slope.add_(v - state.x, alpha=2 * self.lam / unit)
            moved, m, s = adam_update(v, slope, m, s, k + 1, self.lr * unit)
            v = where_rows(loss > state.aux["floor"], moved, v)
        x0 = run.prior.denoise(v, sigma)
        x = x0.add(run.rng.normal(x0), alpha=sigma_next) if sigma_next > 0 else x0
        return state.next(x, x0, **state.aux)
