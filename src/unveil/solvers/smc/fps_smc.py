"""Filtering posterior sampling with particles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...registry import register
from ..base import Run, State
from ..moves import ancestral
from .particles import ParticleSolver, shared_noise, without_evidence
from .spectrum import Spectrum, of_data


@register("solver", "fps-smc")
@dataclass(frozen=True)
class FPSSMC(ParticleSolver):
    """Filtering posterior sampling with particles: each step is drawn given the data, in closed form, and weighted.

    Dou, Song 2024, "Diffusion posterior sampling for linear inverse problem solving: a filtering perspective",
    ICLR 2024, Algorithm 3.

    In the coordinates of A = U diag(s) V^T the data ybar = U^T y / s are the signal with noise n = sigma_y / s. With
    N(m, c^2 I) the prior's ancestral step to sigma', and psi the likelihood if the prior were N(middle, t I)::

        psi(x) = N(ybar; middle + a (x - middle), n^2 + a sigma^2),  a = t / (t + sigma^2)
        x' ~ N(m, c^2 I) psi'(x') / Z,  Z = N(ybar; middle + a' (m - middle), n^2 + a' sigma'^2 + a'^2 c^2)
        weight times Z / psi(x)

    Without backward passes; asymptotically exact, and the mean weight is an unbiased estimate of p(y).

    data_variance
        t, for data in [-1, 1].
    path
        True: the published algorithm. The data get noise of every level, a path that particles share, y' = y +
        sigma' A xi', and psi is N(ybar'; x, n^2). Its weights are never divided out, so that its limit is a filter's,
        not the posterior.
    c_rate
        Share of the noise that a step of the path, and of the particles, renews.

    Deviations: what the noise of the path stands for is known in law, and taken as such, unless ``path``; there, the
    weight is Z, which the authors' code evaluates at a random x', where rounding decides.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian"})
    paper: ClassVar[dict[str, str]] = {
        "steps": "1000",
        "resampling": "multinomial",
        "threshold": "1",
        "order": "1",
        "data_variance": "own",
        "path": "True",
        "c_rate": "0.95 in the code",
    }
    limits: ClassVar[Mapping[str, str]] = {**ParticleSolver.limits, "c_rate": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {
        "steps": "a tenth of the cost, as steps are of second order",
        "path": "its limit is a filter's; without it the limit is the posterior",
    }

    data_variance: float = 1.0
    path: bool = False
    c_rate: float = 0.95

    def twist(self, i: int, data: Spectrum, run: Run) -> tuple[float, Tensor]:
        """Slope a and variance of ybar = a x + ..., given the coordinate x at level i."""
        v, variance = self.data_variance * run.scale**2, run.schedule.sigmas[i] ** 2
        a = v / (v + variance)
        return a, data.var + a * variance

    def init(self, run: Run) -> State:
        state = super().init(run)
        if self.path:
            return replace(
                state, aux=without_evidence(state.aux) | {"path": shared_noise(state.x, run, run.schedule.sigmas[0])}
            )
        data, sigma = Spectrum.of(run), run.schedule.sigmas[0]
        # the start is drawn given y: p(x) psi(x) is Gaussian, and its integral the first weight
        middle = data.middle
        a, var = self.twist(0, data, run)
        d = data.ybar - middle
        gain, rest = product(data, sigma**2, a, var)
        x = middle + gain * d + rest.sqrt() * run.rng.normal(state.x)
        first = data.log_normal(d, var + (a * sigma) ** 2) + of_data(run)
        return replace(state, x=data.V(x), aux={**state.aux, "log_weights": first})

    def start(self, run: Run, x_init: Tensor) -> State:
        state, data = super().start(run, x_init), Spectrum.of(run)
        if self.path:
            return state
        # what is not drawn given the data is weighed by psi
        a, var = self.twist(0, data, run)
        first = data.log_normal(data.ybar - torch.lerp(data.middle, data.Vt(state.x), a), var) + of_data(run)
        return replace(state, aux={**state.aux, "log_weights": first})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        data = Spectrum.of(run)
        x0 = run.prior.denoise(state.x, sigma)
        ahead = self.ahead(x0, state, run)
        if self.path:
            return self.follow(state, x0, ahead, data, run)
        mean, std = ancestral(state.x, ahead, sigma, sigma_next)
        x, m = data.Vt(state.x), data.Vt(mean)
        # without noise the last step ends at y itself, and counts as one of the size of its level
        var = sigma**2 if sigma_next == 0 and run.problem.sigma_y == 0 else std**2
        (a, before), (b, after) = self.twist(state.i, data, run), self.twist(state.i + 1, data, run)
        away, away_before = data.ybar - torch.lerp(data.middle, m, b), data.ybar - torch.lerp(data.middle, x, a)
        gained = data.log_ratio(away, b**2 * var + after, away_before, before)
        index, aux = self.resample(state.aux["log_weights"] + gained, state.aux, run)
        gain, rest = product(data, var, b, after)
        x = (gain * away).add_(m)[index]
        if sigma_next > 0:
            x = run.rng.normal(m).mul_(rest.sqrt()).add_(x)
        return state.next(data.V(x), x0[index], **aux)

    def follow(self, state: State, x0: Tensor, ahead: Tensor, data: Spectrum, run: Run) -> State:
        """The published step: along the path of the data."""
        sigma, sigma_next = run.schedule.pair(state.i)
        path = state.aux["path"]
        keep, fresh = (1 - self.c_rate) ** 0.5 * sigma_next / sigma, self.c_rate**0.5 * sigma_next
        m = data.Vt(torch.lerp(ahead, state.x, keep))
        if sigma_next == 0:
            x = torch.where(data.seen & (data.noise == 0), data.ybar, m)
            return state.next(data.V(x), x0, **state.aux)
        path = keep * path + shared_noise(path, run, fresh)
        away = data.ybar + path - m
        gained = data.log_normal(away, fresh**2 + data.var)
        index, aux = self.resample(state.aux["log_weights"] + gained, state.aux, run)
        gain, rest = product(data, fresh**2, 1.0, data.var)
        x = (m + gain * away)[index] + rest.sqrt() * run.rng.normal(m)
        return state.next(data.V(x), x0[index], **aux, path=path)


def product(data: Spectrum, var: float, slope: float, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and variance of N(x; m, var) N(ybar; slope x + ..., noise), coordinate by coordinate."""
    gain = torch.where(data.seen, var * slope / (slope**2 * var + noise), 0)
    return gain, var * (1 - slope * gain)
