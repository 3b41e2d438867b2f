"""Decoupled diffusion sequential Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ...registry import register
from ..base import Run, State
from ..moves import ancestral
from .particles import ParticleSolver, ahead_of, total
from .spectrum import Spectrum, of_data

CAP = 0.25
"""Share of the variance of a step that the spread of x0 may take away: beyond a half, weights may have no variance."""


@register("solver", "ddsmc")
@dataclass(frozen=True)
class DDSMC(ParticleSolver):
    """Decoupled diffusion sequential Monte Carlo.

    Ekstrom Kelvinius, Zhao, Lindsten 2025, "Solving linear-Gaussian Bayesian inverse problems with decoupled diffusion
    sequential Monte Carlo", ICML 2025, arXiv 2502.06379, Algorithm 1.

    In the coordinates of A = U diag(s) V^T the data ybar = U^T y / s are the signal with noise n = sigma_y / s. With
    D(x, sigma) the clean estimate, taken for N(D, rho^2 I), the next noisy signal is drawn by way of a clean one::

        psi(x) = N(ybar; D, n^2 + rho^2)
        x0 ~ N(D, rho^2 I) N(ybar; x0, n^2);   x' = x0 + (sigma' / sigma)^2 (x - x0) + noise
        weight times N(x'; m, c^2 I) psi'(x') / (q(x' | x) psi(x))

    with N(m, c^2 I) the prior's ancestral step and q the law of x', both Gaussian. The noise is such that without data
    q would be the ancestral step. Without backward passes;
    asymptotically exact, and the mean weight is an unbiased estimate of p(y).

    data_variance
        t (for data in [-1, 1]) in rho^2 = v t / (v + t), with v the variance of the noise that the chain has still to
        add: close to sigma^2, and such that weights stay equal where the prior says nothing.

    Deviations: rho^2 as above, where the authors search a schedule for each problem, and in q at most a quarter of
    what would leave it no width, as few and long steps make rho too large; eta is 1.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian", "noisy"})
    paper: ClassVar[dict[str, str]] = {
        "steps": "200",
        "resampling": "multinomial",
        "threshold": "1",
        "order": "1",
        "data_variance": "own",
    }
    why: ClassVar[dict[str, str]] = {
        "steps": "half of the cost, as steps are of second order",
    }

    data_variance: float = 1.0

    def init(self, run: Run) -> State:
        state = super().init(run)
        return replace(state, aux={**state.aux, "move": of_data(run)})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        data = Spectrum.of(run)
        x0 = run.prior.denoise(state.x, sigma)
        v = self.data_variance * run.scale**2
        rest = ahead_of(run.schedule, state.i)
        rho2 = rest * v / (rest + v)
        c0 = data.Vt(x0)
        twist = data.log_normal(data.ybar - c0, data.var + rho2)
        ahead = self.ahead(x0, state, run)
        index, aux = self.resample(state.aux["log_weights"] + state.aux["move"] + twist, state.aux, run)
        x, ahead, x0, twist = (t[index] for t in (state.x, ahead, x0, twist))
        mean, std = ancestral(x, ahead, sigma, sigma_next)
        if sigma_next == 0:
            final = data.log_normal(data.ybar - data.Vt(mean), data.var)
            return state.next(mean, x0, **{**aux, "log_weights": aux["log_weights"] + final - twist})
        # x0 given y is N(ahead + gain (ybar - ahead), rho^2 (1 - gain))
        step = 1 - (sigma_next / sigma) ** 2
        c = data.Vt(ahead)
        rho2 = min(rho2, CAP * std**2 / step**2)
        gain = torch.where(data.seen, rho2 / (rho2 + data.var), 0)
        shift = (data.ybar - c).mul_(step * gain)
        var = std**2 - step**2 * rho2 * gain
        z = run.rng.normal(c)
        d = (var.sqrt() * z).add_(shift)
        x = mean.add_(data.V(d))
        ratio = 0.5 * total(z.square_().sub_(d.square().div_(std**2)).add_((var / std**2).log()))
        return state.next(x, x0, **aux, move=ratio - twist)
