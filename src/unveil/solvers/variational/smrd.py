"""SMRD: annealed Langevin dynamics whose weight of the data is tuned by Stein's unbiased risk estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...numerics.adam import adam_update
from ...numerics.cg import cg
from ...operators.base import Spectral
from ...priors.base import Prior, expand
from ...registry import register
from ...schedules import Schedule, log_linear
from ..base import Run, Solver, State
from .flair import curvature


@register("solver", "smrd")
@dataclass(frozen=True)
class SMRD(Solver):
    """SURE-based robust MRI reconstruction with diffusion models.

    Ozturkler, Liu, Eckart, Mardani, Song, Kautz 2023, "SMRD: SURE-based robust MRI reconstruction with diffusion
    models", arXiv 2310.01799, Algorithm 1.

    This is the sampler that SURE tunes. The same authors' RED-diff for MRI is ``red-diff`` with data="relative".

    At every level ``repeats`` times: a Langevin step, then the data by a ridge regression whose lam is learned::

        x+    = x + step (D(x) - x) + sqrt(2 step) sigma z
        x     = argmin |A x - y|^2 + lam |x - x+|^2 = (A^T A + lam)^-1 (A^T y + lam x+)
        SURE  = mean (x - A^T y)^2 * <b, h(x_before + e b) - h(x_before)> / (e n),   b from N(0, I), h one such round
        lam   <- Adam step down SURE

    lam, lam_lr
        First value, and Adam's rate; in units of the largest eigenvalue of A^T A, which is 1 for their operators.
        Where learning makes lam negative it ends, and the first value is used.
    tune
        The share of the levels, from the first, at which lam is learned; 0 keeps it.
    step
        Of Langevin, in units of sigma^2: their 5e-5 sigma^2 / 0.0066^2.
    early_stop
        The share of the levels in a window: a sample is left as it is once the mean SURE of the last window is above
        that of the window before. Their 160 of 1155 levels are 0.14; 0, the default, never stops.
    sigma_start, sigma_end
        First and last level, for images in [-1, 1]: where their runs start and end.
    cg_steps
        Of conjugate gradients, for operators without a spectral form.
    keep_level
        True: sqrt(step (2 - step)) in place of sqrt(2 step), so that x stays at its level. The long steps of the paper
        leave 2.3 times its variance, which a denoiser of photographs takes for texture: super-resolution of 32 x 32
        pixels of a photograph has 15.6 dB in 25 levels and 16.1 in 100, and 26.0 in 25 with True.

    Deviations: never stopping by default, since a sample that is left at level sigma keeps noise of that size; the
    divergence is <b, .>, where their code sums the whole matrix product of b^T and the difference, the same on average
    and far noisier; the gradient of SURE is that of the exact minimiser, not of its iterations; A^T y and x are taken
    relative to the middle of the value range, which is 0 for theirs; the start is Gaussian noise, not uniform.
    """

    family: ClassVar[str] = "variational"
    needs: ClassVar[frozenset[str]] = frozenset({"linear"})
    default_steps: ClassVar[int] = 300
    paper: ClassVar[dict[str, str]] = {
        "steps": "1155",
        "lam": "2",
        "lam_lr": "0.2",
        "tune": "0.43 (501 of 1155 levels)",
        "step_size": "1.148 (5e-5 / 0.0066^2)",
        "repeats": "3; 4 at the last 510 levels on brains",
        "early_stop": "0.14 (160 of 1155 levels)",
        "sigma_start": "1.24",
        "sigma_end": "0.0066",
        "cg_steps": "5",
        "keep_level": "False",
    }
    limits: ClassVar[Mapping[str, str]] = {"lam": "(0, inf)", "step_size": "(0, 2)"}
    why: ClassVar[dict[str, str]] = {
        "steps": "a quarter of the cost",
        "early_stop": "a sample that is left at a level keeps noise of that size",
    }

    lam: float = 2.0
    lam_lr: float = 0.2
    tune: float = 0.43
    step_size: float = 1.148
    repeats: int = 3
    early_stop: float = 0.0
    sigma_start: float = 1.24
    sigma_end: float = 0.0066
    cg_steps: int = 5
    keep_level: bool = False

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = prior.sigma_range
        end = max(self.sigma_end * scale, low)
        return log_linear(steps, end, max(min(self.sigma_start * scale, high), 2 * end))

    def init(self, run: Run) -> State:
        return self._with_aux(super().init(run), run)

    def start(self, run: Run, x_init: Tensor) -> State:
        noise = run.rng.normal(x_init)
        return self._with_aux(State(x_init.add(noise, alpha=run.schedule.sigmas[0]), x_init), run)

    def _with_aux(self, state: State, run: Run) -> State:
        norm = curvature(run.problem, state.x)
        none = torch.zeros_like(norm)
        aux = {"lam": none + self.lam, "m": none, "v": none.clone(), "norm": norm}
        if self.window(run):
            aux |= {"sure": torch.zeros(len(norm), 2 * self.window(run)).to(norm), "stopped": none.clone()}
        return State(state.x, state.x0, 0, aux)

    def window(self, run: Run) -> int:
        """Length of the window of early stopping, in levels."""
        return round(self.early_stop * len(run.schedule))

    def step(self, state: State, run: Run) -> State:
        aux, i = dict(state.aux), state.i
        learning, window = i < self.tune * len(run.schedule), self.window(run)
        middle = sum(run.problem.value_range) / 2
        back = run.linear.adjoint(run.problem.y - run.linear(torch.full_like(state.x, middle)))
        x, total = state.x - middle, torch.zeros_like(aux["lam"])
        for k in range(self.repeats):
            lam = torch.where(aux["lam"] > 0, aux["lam"], self.lam) * aux["norm"]
            x, sure, slope = self._round(x, back, lam, learning or window > 0, learning, state, run)
            total = total + sure
            if learning:
                t, eps = i * self.repeats + k + 1, 1e-8 * run.scale**2
                slope = slope * aux["norm"]
                new, aux["m"], aux["v"] = adam_update(aux["lam"], slope, aux["m"], aux["v"], t, self.lam_lr, eps=eps)
                aux["lam"] = torch.where(aux["lam"] > 0, new, aux["lam"])
        x = x + middle
        if window:
            aux["sure"] = torch.cat([aux["sure"][:, 1:], (total / self.repeats)[:, None]], 1)
            rose = aux["sure"][:, window:].mean(1) > aux["sure"][:, :window].mean(1)
            x = torch.where((aux["stopped"] > 0).reshape(-1, *[1] * (x.ndim - 1)), state.x, x)
            if i + 1 >= 3 * window:
                aux["stopped"] = torch.where(rose, 1.0, aux["stopped"])
        return state.next(x, x, **aux)

    def _round(
        self, x: Tensor, back: Tensor, lam: Tensor, judged: bool, learning: bool, state: State, run: Run
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One round from x: the new x, its SURE [N] if ``judged``, and the slope of that in lam [N] if ``learning``."""
        sigma, none = run.schedule.sigmas[state.i], torch.zeros_like(lam)
        z, weight = run.rng.normal(x), expand(lam, x)
        extent = (back.flatten(1).abs().amax(1) / 1000).clamp_min(1e-30)
        if judged:
            b = run.rng.normal(x)
            shifted = self._langevin(x + expand(extent, x) * b, z, sigma, run)
        ahead = self._langevin(x, z, sigma, run)
        new = self._ridge(back + weight * ahead, lam, run)
        if not judged:
            return new, none, none
        change = shifted.sub_(ahead)
        moved = self._ridge(weight * change, lam, run)
        loss, div = _mean(new - back, new - back), _mean(b, moved) / extent
        if not learning:
            return new, loss * div, none
        slope = 2 * _mean(new - back, self._ridge(ahead - new, lam, run)) * div
        slope = slope + loss * _mean(b, self._ridge(change - moved, lam, run)) / extent
        return new, loss * div, slope

    def _langevin(self, x: Tensor, z: Tensor, sigma: float, run: Run) -> Tensor:
        """x, and what comes back, are taken from the middle of the value range."""
        middle = sum(run.problem.value_range) / 2
        ahead: Tensor = torch.lerp(x, run.prior.denoise(x + middle, sigma).sub_(middle), self.step_size)
        share = self.step_size * (2 - self.step_size) if self.keep_level else 2 * self.step_size
        return ahead.add_(z, alpha=share**0.5 * sigma)

    def _ridge(self, b: Tensor, lam: Tensor, run: Run) -> Tensor:
        """(A^T A + lam)^-1 b."""
        operator, weight = run.linear, expand(lam, b)
        if isinstance(operator, Spectral):
            return operator.spectral(b, lambda s: 1 / (s * s + weight))
        return cg(lambda w: operator.normal(w) + weight * w, b, steps=self.cg_steps)


def _mean(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> / n per row [N]."""
    return (a * b).flatten(1).mean(1)
