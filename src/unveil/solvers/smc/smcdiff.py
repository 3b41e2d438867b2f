"""SMCDiff: particles that follow a diffused copy of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...registry import register
from ..base import Run, State
from ..moves import ancestral
from .particles import ParticleSolver, shared_noise, without_evidence
from .spectrum import Spectrum


@register("solver", "smcdiff")
@dataclass(frozen=True)
class SMCDiff(ParticleSolver):
    """SMCDiff: particles that follow a diffused copy of the data.

    Trippe, Yim, Tischer, Baker, Broderick, Barzilay, Jaakkola 2023, "Diffusion probabilistic modeling of protein
    backbones in 3D for the motif-scaffolding problem", ICLR 2023, arXiv 2206.04119, Algorithm 2.

    In the coordinates of A = U diag(s) V^T the data ybar = U^T y / s are the signal. They get noise of every level,
    once for all particles, from the forward process, whose values replace the particles'. With N(m, c^2 I) the prior's
    ancestral step to sigma' = r sigma::

        y' = ybar + xi',  xi' = r^2 xi + c z
        weight times N(y'; m, c^2 I) where there are data;  x' = y' there, m + c z elsewhere

    Without backward passes. Exact in the limit of many particles only for one path: the prior's steps would have to
    undo the forward process exactly, which they do as their number grows.

    Deviations: for every operator with a spectral form, not masks alone; particles are resampled where the effective
    sample size is low, the authors' test is one of the weights' total variation; the last step, to y itself, weighs
    with the variance of its level.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian", "noiseless"})
    sibling: ClassVar[str] = "mcgdiff"
    paper: ClassVar[dict[str, str]] = {
        "steps": "1000",
        "resampling": "residual",
        "threshold": "by the weights' total variation",
        "order": "1",
    }
    why: ClassVar[dict[str, str]] = {
        "steps": "a tenth of the cost, as steps are of second order",
    }

    resampling: str = "residual"

    def init(self, run: Run) -> State:
        state = super().init(run)
        data, sigma = Spectrum.of(run), run.schedule.sigmas[0]
        c = data.Vt(state.x)
        path = shared_noise(c, run, sigma)
        x = data.V(torch.where(data.seen, data.ybar + path, c))
        return replace(state, x=x, aux={**state.aux, "path": path})

    def born(self, x: Tensor, run: Run) -> dict[str, Tensor]:
        # the mean weight is that of one path: as an estimate of p(y) it scatters by many orders of magnitude
        return without_evidence(super().born(x, run))

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        data = Spectrum.of(run)
        x0 = run.prior.denoise(state.x, sigma)
        mean, std = ancestral(state.x, self.ahead(x0, state, run), sigma, sigma_next)
        m, path = data.Vt(mean), state.aux["path"]
        onward = path * (sigma_next / sigma) ** 2
        if sigma_next > 0:
            onward = onward + shared_noise(path, run, std)
        target = data.ybar + onward
        # the last step, to y itself, counts as one of the size of its level
        var = torch.full_like(data.middle, std**2 if sigma_next > 0 else sigma**2)
        weights = state.aux["log_weights"] + data.log_normal(target - m, var)
        index, aux = self.resample(weights, state.aux, run)
        free = m[index]
        if sigma_next > 0:
            free = run.rng.normal(m).mul_(std).add_(free)
        return state.next(data.V(torch.where(data.seen, target, free)), x0[index], **aux, path=onward)
