"""Twists: what the data say of a noisy particle, by way of its clean estimate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...noise.base import count
from ...operators.base import Spectral
from ...problem import Problem, squared_norm
from .particles import exact, total


def blurred_likelihood(problem: Problem, x0: Tensor, var: float, slope: bool = True) -> tuple[Tensor, Tensor]:
    """log p(y | x0 + N(0, var)) up to a constant [N], and its gradient in x0 [N, ...].

    Without ``slope`` the operator is only evaluated, and the gradient means nothing.

    For Gaussian noise log N(y; A x0, sigma_y^2 I + var A A^T) where A is spectral, with A A^T replaced by the identity
    for other operators. For other noise the same with the variance that it has at y. A noise model without a variance
    (a reward) is taken as it is. Constants that do not depend on x0 or var are left out.
    """
    A, sigma_y = problem.operator, problem.noise.sigma
    if sigma_y is not None and isinstance(A, Spectral):
        r = A.Ut(problem.residual(x0))
        s = A.s(r)
        scale = sigma_y**2 + var * s**2
        seen = s > 0
        scale = torch.where(seen, scale, 1).expand_as(r)
        pull = torch.where(seen, r / scale, 0)
        return -0.5 * total(r * pull + scale.log()), A.V(s * pull)
    if sigma_y is not None:
        loss, gradient = problem.data(x0) if slope else (0.5 * squared_norm(problem.residual(x0)), x0)
        spread = sigma_y**2 + var
        n = count(problem.y, A.measured)  # not problem.m, for which the host waits
        halves = 1.0 if problem.y.is_complex() else 0.5
        size = halves * math.log(spread) * (n.to(exact(loss)) if isinstance(n, Tensor) else n)
        return -loss.to(exact(loss)) / spread - size, -gradient / spread
    noise = problem.noise.variance(problem.y)
    if noise is None:
        return problem.log_likelihood(x0).to(exact(x0)), problem.score(x0) if slope else x0
    value, pullback = A.linearize(x0) if slope else (A(x0), lambda r: r)
    spread_y = (noise + var) * torch.ones_like(value)
    r = problem.y - value
    scaled = r / spread_y**0.5
    loss = 0.5 * squared_norm(scaled).to(exact(x0))
    return -loss - 0.5 * total(spread_y.real.log()), pullback(r / spread_y)
