"""``sample``: what a prior holds likely without a measurement, by four samplers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..priors.base import Prior
from ..rng import Rng
from ..schedules import Schedule, karras
from ..solvers.moves import ddim

Step = Callable[[Prior, Tensor, Tensor | None, Schedule, int, Rng], tuple[Tensor, Tensor]]
"""(prior, x, clean estimate of the step before, schedule, number of the step, rng) -> (x, clean estimate)."""


def ancestral(
    prior: Prior, x: Tensor, before: Tensor | None, schedule: Schedule, i: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """DDPM, the smaller of its two variances (Ho et al. 2020, arXiv 2006.11239, algorithm 2). One evaluation."""
    del before
    sigma, sigma_next = schedule.pair(i)
    x0 = prior.denoise(x, sigma)
    return ddim(x, x0, sigma, sigma_next, 1.0, rng), x0


def euler(
    prior: Prior, x: Tensor, before: Tensor | None, schedule: Schedule, i: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """DDIM, an Euler step of the flow's equation (Song et al. 2021, arXiv 2010.02502). One evaluation."""
    del before
    sigma, sigma_next = schedule.pair(i)
    x0 = prior.denoise(x, sigma)
    return ddim(x, x0, sigma, sigma_next, 0.0, rng), x0


def heun(prior: Prior, x: Tensor, before: Tensor | None, schedule: Schedule, i: int, rng: Rng) -> tuple[Tensor, Tensor]:
    """Second order (Karras et al. 2022, arXiv 2206.00364, algorithm 1). Two evaluations, one in the last step."""
    del before, rng
    sigma, sigma_next = schedule.pair(i)
    x0 = prior.denoise(x, sigma)
    ahead = torch.lerp(x0, x, sigma_next / sigma)
    if sigma_next == 0:
        return ahead, x0
    slope, then = (x - x0) / sigma, (ahead - prior.denoise(ahead, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) / 2 * (slope + then), x0


def dpmpp_2m(
    prior: Prior, x: Tensor, before: Tensor | None, schedule: Schedule, i: int, rng: Rng
) -> tuple[Tensor, Tensor]:
    """DPM-Solver++(2M), of second order (Lu et al. 2022, arXiv 2211.01095, algorithm 2). One evaluation."""
    del rng
    sigma, sigma_next = schedule.pair(i)
    x0 = prior.denoise(x, sigma)
    ahead = x0
    if before is not None and sigma_next > 0:
        ratio = math.log(sigma / sigma_next) / math.log(schedule.sigmas[i - 1] / sigma)
        ahead = torch.lerp(before, x0, 1 + ratio / 2)
    return torch.lerp(ahead, x, sigma_next / sigma), x0


SAMPLERS: dict[str, Step] = {"ancestral": ancestral, "ddim": euler, "dpmpp-2m": dpmpp_2m, "heun": heun}


@torch.no_grad()
def sample(
    prior: Prior,
    samples: int = 1,
    sampler: str = "dpmpp-2m",
    *,
    shape: tuple[int, ...] | None = None,
    steps: int = 32,
    schedule: Schedule | None = None,
    seed: int = 0,
    chunk: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Samples [samples, *shape] of a prior, in the units of its ``value_range``.

    sampler:
        ``ancestral``, ``ddim``, ``heun`` or ``dpmpp-2m``, each second-order one worth several times its steps of DDIM.
    shape:
        Shape of a sample; the prior's own by default, if it has one size.
    steps, schedule:
        Number of noise levels, or the levels themselves; by default Karras' over the prior's sigma_range, within
        [0.002, 80] for data in [-1, 1].
    seed:
        Sample k is a function of (seed, k), whatever the chunk.
    chunk:
        Samples that go through the network together.
    on_step:
        Called with (steps done, steps in all) after every step of every chunk.

    A condition is fixed before, ``sample(prior.given(label=3), 8)``; a tensor of conditions has a row for each of
    the chunk. Raises :class:`UnknownName` for a sampler, :class:`InputError` for a shape that is missing or unfit.
    """
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    if samples < 1 or chunk < 1:
        raise InputError(f"samples and chunk must be at least 1, got {samples} and {chunk}")
    size = _shape(prior, shape)
    lo, hi = prior.value_range
    if schedule is None:
        low, high = prior.sigma_range
        scale = (hi - lo) / 2
        schedule = karras(steps, max(low, 0.002 * scale), min(high, 80 * scale))
    step, out = SAMPLERS[sampler], []
    total, done = len(schedule) * -(-samples // chunk), 0
    for first in range(0, samples, chunk):
        keys = [(seed, k) for k in range(first, min(first + chunk, samples))]
        blank = torch.empty(len(keys), *size, dtype=dtype, device=device)
        x = (lo + hi) / 2 + schedule.sigmas[0] * Rng(keys, 0, "sample").normal(blank)
        x0: Tensor | None = None
        for i in range(len(schedule)):
            x, x0 = step(prior, x, x0, schedule, i, Rng(keys, i + 1, "sample"))
            done += 1
            if on_step is not None:
                on_step(done, total)
        out.append(x)
    return torch.cat(out)


def _shape(prior: Prior, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    own = tuple(prior.shape)
    if shape is None:
        if any(n is None for n in own):
            wanted = ", ".join("?" if n is None else str(n) for n in own)
            raise InputError(f"the prior takes any size: give shape=({wanted}) with numbers for the question marks")
        return tuple(int(n) for n in own if n is not None)
    fits = len(shape) == len(own) and all(b is None or a == b for a, b in zip(shape, own, strict=True))
    if not fits or any(n < 1 for n in shape):
        raise InputError(f"the prior has signals of shape {own}, asked for {tuple(shape)}")
    return tuple(shape)
