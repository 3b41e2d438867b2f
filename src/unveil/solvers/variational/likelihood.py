"""log p(x) of a diffusion prior, and its gradient: exactly by the probability-flow ODE, and a bound by denoising.

In x = x0 + sigma eps, with u = ln sigma, D the denoiser and J its Jacobian (Song et al. 2021, arXiv 2011.13456,
section 4.3; Song, Durkan, Murray, Ermon 2021, arXiv 2101.09258, theorem 3; both with s = 1):

    dx / dsigma = (x - D(x, sigma)) / sigma
    log p(x_0)  = log p_T(x_T) + int (n - tr J) du                                       (change of variables)
    log p(x_0) >= E log p_T(x_T) - int E |D(x_0 + sigma eps, sigma) - x_0|^2 / sigma^2 du + constant

The gradient of the trace needs no second derivative of a network: for any v, v^T J v is the slope of <v, D(x)> along
v, so that its gradient is the slope of J^T v along v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ...priors.base import Prior, expand
from ...rng import Rng
from ..base import Run

DIFFERENCE = 0.1
"""Half the distance at which J^T v is differenced along v, in units of sigma."""


def ode_levels(prior: Prior, steps: int, low: float, high: float) -> tuple[float, ...]:
    """``steps`` + 1 levels of the ODE, rising in equal ratios from ``low`` to ``high``, as far as the prior knows."""
    bottom = max(low, prior.sigma_range[0])
    top = max(min(high, prior.sigma_range[1]), 2 * bottom)
    return tuple(bottom * (top / bottom) ** (k / steps) for k in range(steps + 1))


def ode_log_prob(prior: Prior, x: Tensor, levels: Sequence[float], probes: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x) [N] at the first of the rising ``levels``, and its gradient [N, *shape], for x [N, *shape].

    ``probes`` [M, N, *shape]: vectors v with mean v v^T = I over the M, for the traces: signs for an estimate
    (Hutchinson, Skilling), sqrt(n) times the unit vectors for the trace itself. Heun's steps in sigma between the
    levels (the trapezium rule in ln sigma for the trace), and the derivative of those very steps: exact but for
    rounding and DIFFERENCE. p_T, at the last level, is N(middle of the range, sigma^2 I) in the value, and in the
    gradient the denoiser's own score there.
    """
    n, path = x[0].numel(), [x]
    middle = sum(prior.value_range) / 2
    pairs = list(pairwise(levels))
    ahead = []
    for low, high in pairs:
        x, gap = path[-1], high - low
        k1 = (x - prior.denoise(x, low)) / low
        ahead.append(x + gap * k1)
        k2 = (ahead[-1] - prior.denoise(ahead[-1], high)) / high
        path.append(x + (gap / 2) * (k1 + k2))
    last, top = path.pop(), levels[-1]
    value = -0.5 * ((last - middle) / top).square().flatten(1).sum(1) - n * math.log(top * math.sqrt(2 * math.pi))
    a = (prior.denoise(last, top) - last) / top**2
    for (low, high), here, there in reversed(list(zip(pairs, path, ahead, strict=True))):
        # back through x' = x + gap/2 (k(x) + k(x + gap k(x))), and the mean of n - tr J at both points, times ln
        gap, h = high - low, math.log(high / low)
        w = (gap / 2) * a
        trace, bent, back = _trace(prior, there, high, probes, w)
        value = value + (h / 2) * (n - trace)
        b = (w - back) / high - (h / 2) * bent
        w = w + gap * b
        trace, bent, back = _trace(prior, here, low, probes, w)
        value = value + (h / 2) * (n - trace)
        a = a + b + (w - back) / low - (h / 2) * bent
    return value, a


def _trace(prior: Prior, x: Tensor, sigma: float, probes: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The trace of J [N], its gradient [N, *shape], and J^T w [N, *shape], in one call of the prior."""
    m, size = len(probes), DIFFERENCE * sigma
    v = probes.flatten(0, 1)
    around = x.repeat(m, *[1] * (x.ndim - 1))
    x0, pullback = prior.vjp(torch.cat([x, around + size * v, around - size * v]), sigma)
    _, plus, minus = torch.split(x0, [len(x), len(v), len(v)])
    back, up, down = torch.split(pullback(torch.cat([w, v, v])), [len(x), len(v), len(v)])
    trace = (v * (plus - minus)).flatten(1).sum(1).reshape(m, -1).mean(0) / (2 * size)
    bent = (up - down).reshape(m, *x.shape).mean(0) / (2 * size)
    return trace, bent, back


def unit_probes(x: Tensor) -> Tensor:
    """All unit vectors times sqrt(n), as probes [n, N, *shape] for x [N, *shape]: the trace itself."""
    n = x[0].numel()
    eye: Tensor = torch.eye(n, dtype=x.dtype, device=x.device) * n**0.5
    return eye.reshape(n, 1, *x.shape[1:]).expand(n, *x.shape)


def bound_score(prior: Prior, x: Tensor, low: float, high: float, share: Tensor, eps: Tensor) -> Tensor:
    """An unbiased gradient [N, *shape] of the bound on log p(x), between two levels, from one noisy x each.

    ``share`` [N], uniform on [0, 1), chooses each row's level, low (high / low)^share; ``eps`` from N(0, I).
    """
    span = math.log(high / low)
    sigma = low * torch.exp(span * share)
    x0, pullback = prior.vjp(x + expand(sigma, x) * eps, sigma)
    miss = x0 - x
    bent = pullback(miss) - miss
    middle = sum(prior.value_range) / 2
    return -expand(2 * span / sigma**2, x) * bent - (x - middle) / high**2


def stratified_bound(x: Tensor, groups: int, run: Run, rng: Rng, low: float, high: float, levels: int) -> Tensor:
    """The bound's gradient for draws x [groups * K, *shape] (K even), averaged over ``levels`` noisy x of each."""
    draws = len(x) // groups
    ends = ode_levels(run.prior, 1, low * run.scale, high * run.scale)
    total = torch.zeros_like(x)
    for _ in range(levels):
        # a share of the levels for every draw, in an order that has nothing to do with that of the draws
        shares = torch.arange(draws, dtype=x.dtype, device=x.device) + rng.uniform(x.new_empty(groups, draws))
        order = rng.uniform(x.new_empty(groups, draws)).argsort(1)
        half = rng.normal(x.new_empty(groups, draws // 2, *x.shape[1:]))
        eps = torch.cat([half, -half], 1).flatten(0, 1)
        total.add_(bound_score(run.prior, x, ends[0], ends[1], (shares / draws).gather(1, order).flatten(), eps))
    return total / levels
