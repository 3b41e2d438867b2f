"""Markov chains for densities given by their score: unadjusted Langevin and Hamiltonian steps, one chain per row."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..rng import Rng
from .inner import inner_loop

Score = Callable[[Tensor], Tensor]


@inner_loop
def langevin(x: Tensor, score: Score, lr: Tensor | float, steps: int, rng: Rng, reach: float = math.inf) -> Tensor:
    """``steps`` unadjusted Langevin steps x <- x + lr score(x) + sqrt(2 lr) z (Roberts and Tweedie 1996).

    ``lr`` is a number or broadcastable to x [N, ...]. The stationary variance of a Gaussian direction of precision p
    is 1 / (p (1 - lr p / 2)); stable for lr p < 2.

    No entry of lr score(x) is longer than ``reach``: a step away from where the density is nearly Gaussian, made for
    its curvature there, would else leap too far (tamed Langevin steps, Brosse et al. 2019, arXiv 1710.05559).
    """
    noise = (2 * lr) ** 0.5
    for _ in range(steps):
        drift = lr * score(x)
        x = x + (drift if reach == math.inf else drift.clamp(-reach, reach)) + noise * rng.normal(x)
    return x


@inner_loop
def hmc(
    x: Tensor, score: Score, lr: Tensor | float, steps: int, rng: Rng, leapfrogs: int = 5, friction: float = 1.0
) -> Tensor:
    """``steps`` unadjusted Hamiltonian steps, each of ``leapfrogs`` leapfrog steps of length sqrt(lr).

    Between trajectories the momentum is refreshed in part: p <- sqrt(1 - friction^2) p + friction z; friction = 1 is
    plain Hamiltonian Monte Carlo (Neal 2011), less keeps the direction (Horowitz 1991). Without the Metropolis test a
    Gaussian direction of precision q has stationary variance 1 / (q (1 - lr q / 4)); stable for lr q < 4. One score
    per leapfrog step and one to begin with.
    """
    step = lr**0.5
    p = rng.normal(x)
    force = score(x)
    for k in range(steps):
        if k:
            p = (1 - friction**2) ** 0.5 * p + friction * rng.normal(x)
        for _ in range(leapfrogs):
            p = p + 0.5 * step * force
            x = x + step * p
            force = score(x)
            p = p + 0.5 * step * force
    return x
