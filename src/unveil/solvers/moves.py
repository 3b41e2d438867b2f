"""The moves that solvers share, all in x = x0 + sigma * eps.

Three different numbers are called eta in the literature. ``ddim`` has that of Song et al. 2021; ``churned`` has that
of DDRM, DDNM and DDS, a much larger injection of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..operators.base import Linear
from ..operators.channels import Grayscale
from ..priors.base import Prior, expand
from ..problem import Problem, squared_norm
from ..rng import Rng
from ..schedules import Schedule, ddpm, karras, log_linear
from .base import Run, State


def vp_schedule(prior: Prior, steps: int, spacing: str = "uniform", start: float = math.inf) -> Schedule:
    """The levels of DDPM's linear schedule that the prior knows, in its units; ``start`` caps them (for [-1, 1])."""
    scale = (prior.value_range[1] - prior.value_range[0]) / 2
    low, high = prior.sigma_range
    return ddpm(steps, spacing=spacing, low=low / scale, high=min(high / scale, start)).scaled(scale)


def vp_scale(sigma: float, scale: float = 1.0) -> float:
    """s = sqrt(abar) of the variance-preserving process at noise level sigma, for data of half-width ``scale``."""
    return float(1 / (1 + (sigma / scale) ** 2) ** 0.5)


def ddim(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, eta: float, rng: Rng) -> Tensor:
    """x0 + sqrt(sigma_next^2 - c^2) eps + c z with eps = (x - x0) / sigma (DDIM, Song et al. 2021, equation 12).

    c = eta sigma_next sqrt(1 - sigma_next^2 / sigma^2): eta = 0 is an Euler step of the probability-flow ODE, eta = 1
    ancestral sampling (DDPM with the smaller of its two variances).
    """
    c: float = eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    keep = (sigma_next**2 - c**2) ** 0.5 / sigma
    out: Tensor = x0 * (1 - keep)
    out.add_(x, alpha=keep)
    return out.add_(rng.normal(x), alpha=c) if c > 0 else out


def ancestral(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the ancestral step, that of :func:`ddim` with eta = 1."""
    r2 = (sigma_next / sigma) ** 2
    mean: Tensor = torch.lerp(x0, x, r2)
    return mean, sigma_next * (1 - r2) ** 0.5


def rows_norm(x: Tensor) -> Tensor:
    """Euclidean norm of every row, [N, ...] -> [N]."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


def on_sphere(centre: Tensor, towards: Tensor, radius: float | Tensor) -> Tensor:
    """The point at distance ``radius`` (a number or [N]) from ``centre`` in direction ``towards``, both [N, ...]."""
    length = radius / rows_norm(towards).clamp_min(1e-30)
    return centre + expand(length, centre) * towards


def misfit(problem: Problem, x0: Tensor) -> tuple[Tensor, Tensor]:
    """|y - A(x0)| per sample [N], and its gradient with respect to x0 [N, ...]; that is 0 at a perfect fit.

    Of noise that is not white and Gaussian: the direction is that of -grad log p(y | x0), and its length that which
    white noise would have for this misfit, |r| / sum |r q| in place of sigma_y^2 / |r|, with r = y - A(x0) and q the
    score of the noise, r / sigma_y^2 if it is white.
    """
    if problem.noise.sigma is not None:
        loss, gradient = problem.data(x0)
        norm = (2 * loss).sqrt()
        return norm, gradient / expand(norm.clamp_min(1e-30), gradient)
    clean, pullback = problem.operator.linearize(x0)
    r, q = problem.y - clean, problem.noise.score(problem.y, clean, problem.operator.measured)
    norm = squared_norm(r).sqrt()
    gain = norm / (r.abs() * q.abs()).flatten(1).sum(1).clamp_min(1e-30)
    gradient = pullback(q)
    return norm, gradient * expand(-gain, gradient)


def midway(x0: Tensor, state: State, schedule: Schedule) -> Tensor:
    """The clean estimate carried on to the middle of the step: x0 + (x0 - previous x0) h / (2 h_previous).

    With h = log(sigma / sigma'). It makes a DDIM step one of second order, still for one evaluation: DPM-Solver++(2M)
    and its stochastic form (Lu et al. 2022, arXiv 2211.01095). ``state.x0`` must hold the estimate of the step before,
    not carried on. The first step, one that ends without noise, and one that follows a rise (time travel) take x0.
    """
    sigma, sigma_next = schedule.pair(state.i)
    before = schedule.sigmas[state.i - 1] if state.i > 0 else 0.0
    if before <= sigma or sigma_next == 0:
        return x0
    return torch.lerp(state.x0, x0, 1 + math.log(sigma / sigma_next) / (2 * math.log(before / sigma)))


def churned(x0: Tensor, eps: Tensor, sigma_next: float, eta: float, rng: Rng) -> Tensor:
    """x0 + sigma_next (sqrt(1 - eta^2) eps + eta z): eta = 1 replaces all noise (DDNM, equation 10; DDS)."""
    out = x0.add(eps, alpha=sigma_next * (1 - eta**2) ** 0.5)
    return out.add_(rng.normal(x0), alpha=sigma_next * eta) if eta * sigma_next > 0 else out


def spectral_ancestral(x: Tensor, x0: Tensor, sigma: float, sigma_next: float, run: Run) -> Tensor:
    """An ancestral step from a clean estimate x0 and the data, coordinate by coordinate of A = U diag(s) V^T.

    ybar = U^T y / s is the signal with noise n = sigma_y / s: an iterate, at its own level. With r = sigma' / sigma and
    eps = (x - x0) / sigma, coordinates known better than the next level are the data with the noise that is missing,
    and the others take the ancestral step from the data, or from the iterate where that is less noisy::

        n <= sigma':           ybar + sqrt(sigma'^2 - n^2) (r eps + sqrt(1 - r^2) z)
        sigma' < n <= sigma:   x0 + k^2 (ybar - x0) + sigma' sqrt(1 - k^2) z,   k = sigma' / n
        sigma < n, or s = 0:   x0 + r^2 (x - x0) + sigma' sqrt(1 - r^2) z
    """
    A, r = run.spectral, sigma_next / sigma
    x0bar, xbar = A.Vt(x0), A.Vt(x)
    s_inv = A.s_inv(x0bar)
    ybar, noise = s_inv * A.Ut(run.problem.y), run.problem.sigma_y * s_inv
    seen = s_inv > 0
    known, fresh = seen & (noise <= sigma_next), seen & (noise <= sigma)
    spare = (sigma_next**2 - noise**2).clamp_min(0).sqrt()
    # noise is above sigma' > 0 wherever k is used
    k2 = (sigma_next / torch.where(fresh & ~known, noise, sigma)) ** 2
    onward = torch.lerp(x0bar, torch.where(fresh, ybar, xbar), k2)
    mean = torch.where(known, ybar + spare * (r / sigma) * (xbar - x0bar), onward)
    std = torch.where(known, spare * (1 - r**2) ** 0.5, sigma_next * (1 - k2).sqrt())
    # V is orthogonal: white noise is white in its coordinates too
    return A.V(mean + std * run.rng.normal(x0bar))


def renoise(x: Tensor, sigma: float, sigma_next: float, rng: Rng) -> Tensor:
    """From level sigma up to a higher one: x + sqrt(sigma_next^2 - sigma^2) z."""
    return x.add(rng.normal(x), alpha=(sigma_next**2 - sigma**2) ** 0.5)


def ode(prior: Prior, x: Tensor, sigma: float, sigma_end: float, steps: int) -> Tensor:
    """The clean end of the probability-flow ODE from (x, sigma): ``steps`` Euler steps on Karras' grid, then 0.

    dx / dsigma = (x - D(x, sigma)) / sigma (Karras et al. 2022, equation 1, with s = 1 and sigma as time).
    """
    levels = karras(steps, min(sigma_end, sigma / 2), sigma).sigmas if steps > 1 else (sigma, 0.0)
    for here, there in pairwise(levels):
        x0 = prior.denoise(x, here)
        x = x0 + (there / here) * (x - x0)
    return x


def regularised_inverse(problem: Problem) -> Tensor:
    """A first guess [N, *shape]: the posterior mean under the prior N(middle of the range, scale^2 I).

    The pseudo-inverse where there is no noise, a Wiener filter where there is; the middle of the range for operators
    that are not linear, or noise that is not Gaussian. Of colours of which only a mixture is known it is grey, the
    posterior mean with colours that vary together: the pseudo-inverse tints dark pixels against bright ones.
    """
    middle = torch.full_like(problem.like, sum(problem.value_range) / 2)
    if isinstance(problem.operator, Grayscale) and problem.operator.mixes and problem.noise.sigma is not None:
        total, variance = float(problem.operator.weights.sum()), problem.scale**2
        gain = total * variance / (total**2 * variance + problem.noise.sigma**2)
        return middle + gain * problem.residual(middle)
    if not isinstance(problem.operator, Linear) or problem.noise.sigma is None:
        return middle
    return problem.prox(middle, problem.scale**2)


def log_levels(prior: Prior, steps: int, start: float, end: float) -> Schedule:
    """``steps`` levels in geometric sequence from ``start`` to ``end`` (for [-1, 1]) as far as the prior knows, then 0.

    The schedule of annealed Langevin dynamics and of the variance-exploding process.
    """
    scale = (prior.value_range[1] - prior.value_range[0]) / 2
    low, high = prior.sigma_range
    low = max(end * scale, low)
    return log_linear(steps, low, max(min(start * scale, high), 2 * low))


def replaced(
    x: Tensor, sigma: float, run: Run, weight: float = 1.0, back: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """x at level sigma with what A sees of it replaced by the data at that level: x + A^+ (y + sigma A z - A x).

    Song et al. 2021 (arXiv 2011.13456), appendix I.2, for any linear A. ``weight`` < 1 goes part of the way.
    Noise in y is taken for signal; at sigma = 0 the result of all the way reproduces y. ``back`` is another right
    inverse of A in place of A^+.
    """
    there = x.sub(run.rng.normal(x), alpha=sigma) if sigma > 0 else x
    r = run.problem.residual(there)
    return x + weight * (run.problem.gain(r, math.inf) if back is None else back(r))


def squared_operator_norm(run: Run) -> Tensor:
    """The largest eigenvalue of A^T A, per row [N]."""
    return run.linear.norm(run.like).square().repeat(run.like.shape[0])
