"""Total variation: isotropic over the axes of space, jointly over channels, in three ways of reaching its minimum.

TV(x) sums the lengths of the gradients, taken over all channels together (Rudin, Osher, Fatemi 1992, Physica D 60, 259;
Bresson and Chan 2008). Images are [N, C, *space].
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..operators.base import Linear
from ..problem import Problem, squared_norm
from ..rng import single

HALVINGS = range(3, -5, -1)
"""Weights of :func:`path`, as powers of 2 times the one that suits the noise."""


def by_prox(problem: Problem, weight: float, start: Tensor, steps: int = 150) -> Tensor:
    """argmin_x |y - A x|^2 / (2 sigma_y^2) + weight TV(x); A x = y without noise. For operators with a prox.

    The primal-dual method of Chambolle and Pock 2011 (J. Math. Imaging Vis. 40, 120, algorithm 1) with the data in the
    prox, from ``start``.
    """
    size = math.sqrt(4 * (start.ndim - 2))  # a bound of the norm of the gradient
    ratio = 3 * weight  # of dual to primal step: of the sizes of the two unknowns
    tau, sigma = 1 / (ratio * size), ratio / size
    x = ahead = start
    p = torch.zeros_like(gradient(start))
    for _ in range(steps):
        p = _clipped(p + sigma * gradient(ahead), weight)
        new = problem.prox(x + tau * divergence(p), tau)
        x, ahead = new, 2 * new - x
    return x


def path(problem: Problem, operator: Linear, start: Tensor, sigma: float | None, steps: int = 250) -> Iterator[Tensor]:
    """argmin_x |y - A x|^2 / 2 + w TV(x) for weights w that halve, from 8 to 1/16 times what suits noise ``sigma``.

    Without noise for one small weight. For operators that have no more than A and its adjoint. Each goes on from the
    one before: large weights are reached fast, and small ones, where operators see little, hardly without them.
    """
    back = operator.adjoint(problem.y)
    probe = single(0, back.shape[0], purpose="probe").normal(back)
    column = (squared_norm(operator(probe)) / back[0].numel()).mean().sqrt()  # root mean square of columns
    weights = [2.0**k * float(column * sigma) for k in HALVINGS] if sigma else [1e-3 * float(back.abs().max())]
    norm, x = float(operator.norm(back)), start
    for weight in weights:
        x = by_adjoint(operator, problem.y, x, weight, norm, steps)
        yield x


def by_adjoint(operator: Linear, y: Tensor, start: Tensor, weight: float, norm: float, steps: int) -> Tensor:
    """argmin_x |y - A x|^2 / 2 + weight TV(x) by the method of :func:`by_prox`, with the data in its dual step.

    ``norm`` is that of A.
    """
    x = ahead = start
    scale = norm / math.sqrt(4 * (x.ndim - 2))  # gradients as large as the data term
    tau = sigma = 0.99 / math.sqrt(2 * norm**2)
    p, q = torch.zeros_like(y), torch.zeros_like(gradient(x))
    for _ in range(steps):
        p = (p + sigma * (operator(ahead) - y)) / (1 + sigma)
        q = _clipped(q + sigma * scale * gradient(ahead), weight / scale)
        new = x - tau * (operator.adjoint(p) - scale * divergence(q))
        ahead, x = 2 * new - x, new
    return x


def by_score(problem: Problem, weight: float, start: Tensor, steps: int = 200, rounding: float = 1e-3) -> Tensor:
    """argmin_x -log p(y | x) + weight TV(x), lengths rounded within ``rounding``; for noise of any kind, by Adam."""
    x = start
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(1, steps + 1):
        p = gradient(x)
        p = p / p.square().sum((0, 2), keepdim=True).add(rounding**2).sqrt()
        g = -weight * divergence(p) - problem.score(x)
        m, v = torch.lerp(g, m, 0.9), torch.lerp(g * g, v, 0.99)
        rate = 0.02 * (1 - k / (steps + 1))
        x = x - rate * (m / (1 - 0.9**k)) / ((v / (1 - 0.99**k)).sqrt() + 1e-12)
    return x


def gradient(x: Tensor) -> Tensor:
    """Differences to the next neighbour along each axis of space, zero at its end: [axes, N, C, *space]."""
    out = x.new_zeros(x.ndim - 2, *x.shape)
    for part, axis in zip(out, range(2, x.ndim), strict=True):
        part.narrow(axis, 0, x.shape[axis] - 1).copy_(x.diff(dim=axis))
    return out


def divergence(p: Tensor) -> Tensor:
    """Minus the transpose of :func:`gradient`."""
    out = torch.zeros_like(p[0])
    for part, axis in zip(p, range(2, p.ndim - 1), strict=True):
        n = part.shape[axis]
        inner = part.narrow(axis, 0, n - 1)
        out.narrow(axis, 0, n - 1).add_(inner)
        out.narrow(axis, 1, n - 1).sub_(inner)
    return out


def _clipped(p: Tensor, length: float) -> Tensor:
    """The nearest field whose vectors are no longer than ``length``."""
    return p / (p.square().sum((0, 2), keepdim=True).sqrt() / length).clamp_min(1)
