"""Monte Carlo guided diffusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...registry import register
from ..base import Run, State
from ..moves import ancestral
from .particles import ParticleSolver
from .spectrum import Spectrum, of_data


@register("solver", "mcgdiff")
@dataclass(frozen=True)
class MCGDiff(ParticleSolver):
    """Monte Carlo guided diffusion: noisy data are exact data of a noisier signal, which particles are bridged to.

    Cardoso, Janati El Idrissi, Le Corff, Moulines 2024, "Monte Carlo guided denoising diffusion models for Bayesian
    linear inverse problems", ICLR 2024, arXiv 2308.07983, Algorithms 1 and 2.

    In the coordinates of A = U diag(s) V^T the data ybar = U^T y / s are the signal with noise n = sigma_y / s: its
    coordinate at level n. With N(m, c^2 I) the prior's ancestral step to sigma', every coordinate with n <= sigma has::

        psi(x) = N(ybar; x, |sigma^2 - n^2| + kappa sigma^2)
        x' = m + K (ybar - m) + c sqrt(1 - K) z,  K = c^2 / (c^2 + v'),   v' the variance of psi at sigma'
        weight times N(ybar; m, c^2 + v') / psi(x)

    All others take the prior's step. Without backward passes; asymptotically exact, and the mean weight estimates p(y).

    kappa
        Keeps psi from being a point mass at sigma = n: a share of the variance of the level.

    Deviations: kappa is relative to sigma^2, not to 1 + n^2, which without noise would end in a jump from a width of
    0.01 to none; a coordinate whose level n lies between two levels of the schedule keeps psi as its likelihood (the
    authors move the level to the schedule, drop psi, and weigh the end by the likelihood, with the same limit); the
    start is drawn given the data; log-weights have all their constants; particles are resampled where the effective
    sample size is low (``threshold=1`` is the paper's, with ``resampling="multinomial"``, ``order=1``).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian"})
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "resampling": "multinomial",
        "threshold": "1",
        "order": "1",
        "kappa": "1e-4",
    }

    kappa: float = 1e-4

    def spread(self, i: int, data: Spectrum, run: Run) -> Tensor:
        """Variance of ybar given the coordinate at level sigma, or of the coordinate given ybar."""
        variance = run.schedule.sigmas[i] ** 2
        return (variance - data.var).abs_().add_(self.kappa * variance)

    def init(self, run: Run) -> State:
        state = super().init(run)
        data, sigma = Spectrum.of(run), run.schedule.sigmas[0]
        middle, var = data.middle, self.spread(0, data, run)
        gain = torch.where(data.seen, sigma**2 / (sigma**2 + var), 0)
        x = middle + gain * (data.ybar - middle) + sigma * (1 - gain).sqrt() * run.rng.normal(state.x)
        first = data.log_normal(data.ybar - middle, var + sigma**2) + of_data(run)
        return replace(state, x=data.V(x), aux={**state.aux, "log_weights": first})

    def start(self, run: Run, x_init: Tensor) -> State:
        # what is not drawn given the data is weighed by psi
        state, data = super().start(run, x_init), Spectrum.of(run)
        first = data.log_normal(data.ybar - data.Vt(state.x), self.spread(0, data, run)) + of_data(run)
        return replace(state, aux={**state.aux, "log_weights": first})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        data = Spectrum.of(run)
        x0 = run.prior.denoise(state.x, sigma)
        mean, std = ancestral(state.x, self.ahead(x0, state, run), sigma, sigma_next)
        x, m = data.Vt(state.x), data.Vt(mean)
        active = data.seen & (data.noise <= sigma)
        last = sigma_next == 0 and run.problem.sigma_y == 0
        var = sigma**2 if last else std**2
        before = self.spread(state.i, data, run)
        after = torch.zeros_like(before) if last else self.spread(state.i + 1, data, run)
        both = var + after
        gained = data.log_ratio(data.ybar - m, both, data.ybar - x, before, active)
        index, aux = self.resample(state.aux["log_weights"] + gained, state.aux, run)
        m = m[index]
        gain = torch.where(active, var / both, 0)
        x = (data.ybar - m).mul_(gain).add_(m)
        if sigma_next > 0:
            x = run.rng.normal(m).mul_(std * (1 - gain).sqrt()).add_(x)
        return state.next(data.V(x), x0[index], **aux)
