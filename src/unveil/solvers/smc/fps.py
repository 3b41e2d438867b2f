"""Filtering posterior sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...registry import register
from ..base import Run, Solver, State
from .spectrum import Spectrum


@register("solver", "fps")
@dataclass(frozen=True)
class FPS(Solver):
    """Filtering posterior sampling: a diffused copy of the data conditions every step.

    Dou, Song 2024, "Diffusion posterior sampling for linear inverse problem solving: a filtering perspective",
    ICLR 2024, Algorithm 2.

    In the coordinates of A = U diag(s) V^T the data ybar = U^T y / s are the signal with noise n = sigma_y / s. They
    get noise of every level, along a path that is renewed as the prior's steps are::

        xi' = sqrt(1 - c) (sigma' / sigma) xi + sqrt(c) sigma' z
        m = D + sqrt(1 - c) (sigma' / sigma) (x - D)
        x' ~ N(m, c sigma'^2 I) N(ybar + xi'; x', n^2)

    Heuristic: the data of the levels are taken for independent, while each of them is the same y.

    c_rate
        c, from 0 (no new noise) to 1 (all of it). The authors' code has 0.95.

    Deviations: the start is drawn given the data of the first level; 200 steps, not 1000.
    """

    family: ClassVar[str] = "smc"
    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian"})
    default_steps: ClassVar[int] = 200
    paper: ClassVar[dict[str, str]] = {"steps": "1000", "c_rate": "0.95 in the code"}
    limits: ClassVar[Mapping[str, str]] = {"c_rate": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {
        "steps": "a fifth of the cost",
    }

    c_rate: float = 0.95

    def init(self, run: Run) -> State:
        state = super().init(run)
        data, sigma = Spectrum.of(run), run.schedule.sigmas[0]
        middle = data.Vt(state.x0)
        path = sigma * run.rng.normal(middle)
        gain = torch.where(data.seen, sigma**2 / (sigma**2 + data.var), 0)
        x = middle + gain * (data.ybar + path - middle) + sigma * (1 - gain).sqrt() * run.rng.normal(middle)
        return replace(state, x=data.V(x), aux={"path": path})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        data, path = Spectrum.of(run), state.aux["path"]
        x0 = run.prior.denoise(state.x, sigma)
        keep, fresh = (1 - self.c_rate) ** 0.5 * sigma_next / sigma, self.c_rate**0.5 * sigma_next
        m = data.Vt(torch.lerp(x0, state.x, keep))
        if sigma_next == 0:
            x = torch.where(data.seen & (data.noise == 0), data.ybar, m)
            return state.next(data.V(x), x0, path=path)
        path = keep * path + fresh * run.rng.normal(path)
        gain = torch.where(data.seen, fresh**2 / (fresh**2 + data.var), 0)
        x = m + gain * (data.ybar + path - m) + fresh * (1 - gain).sqrt() * run.rng.normal(m)
        return state.next(data.V(x), x0, path=path)
