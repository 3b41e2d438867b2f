"""Replica exchange with Hamiltonian Monte Carlo: draws of a posterior beyond the reach of quadrature.

The chains at the powers b of the likelihood, p(x) p(y | x)^b with b from 0 to 1, exchange their places; that at b = 0
is drawn anew from the prior every time, so that every mode is found again and again. Each move keeps its density
(Metropolis), and nothing is left but the error of a finite number of draws, which the diagnostics bound:
:func:`unveil.metrics.split_rhat` and :func:`unveil.metrics.chain_ess`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Density = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
"""x [N, n] -> log prior [N], its gradient [N, n], log likelihood [N], its gradient [N, n]; float64."""


@dataclass(frozen=True)
class Tempered:
    """What a run gives: ``chains`` [C, T, n] at b = 1, the mean rates at which moves and exchanges were accepted
    (the least of the levels), and log p(y) with its standard error over the chains.
    """

    chains: Tensor
    accepted: float
    exchanged: float
    log_evidence: float
    log_evidence_error: float


def ladder(levels: int, power: float = 4.0) -> Tensor:
    """Powers from 1 to 0 [levels], crowded at 0."""
    return torch.linspace(1, 0, levels, dtype=torch.float64) ** power


def run(
    density: Density,
    prior: Callable[[int], Tensor],
    *,
    chains: int = 100,
    levels: int = 10,
    keep: int = 1200,
    burn: int = 300,
    leapfrogs: int = 8,
    seed: int = 0,
) -> Tempered:
    """Run ``chains`` independent ladders; ``prior(n)`` gives n new draws [n, dim] of the prior, float64.

    Step sizes are tuned in ``burn``, one to a level, to 80 % acceptance. The evidence is the product over the levels
    of the mean of p(y | x)^(b' - b) at level b (stepping stones; Xie et al. 2011, Syst. Biol. 60, 150).
    """
    betas = ladder(levels)
    b = betas.repeat(chains)
    g = torch.Generator().manual_seed(seed)
    x = prior(chains * levels)
    state = density(x)
    log_step = torch.full((levels,), math.log(0.02), dtype=torch.float64)
    log_step += torch.linspace(0, 2, levels, dtype=torch.float64)
    accepted = torch.zeros(levels, dtype=torch.float64)
    exchanged = torch.zeros(levels - 1, dtype=torch.float64)
    kept, stones = [], []
    for k in range(burn + keep):
        jitter = 0.5 + torch.rand(len(x), generator=g, dtype=torch.float64)
        step = (log_step.exp().repeat(chains) * jitter)[:, None]
        x, state, chance = _trajectory(density, x, state, b, step, leapfrogs, g)
        chance = chance.reshape(chains, levels).mean(0)
        if k < burn:
            log_step += 2 / (1 + k) ** 0.6 * (chance - 0.8)
        else:
            accepted += chance / keep
        fresh = torch.arange(levels - 1, len(x), levels)
        x = x.index_copy(0, fresh, prior(chains))
        state = _replaced(state, fresh, density(x[fresh]))
        rate = _exchange(x, state, betas, k % 2, g)
        if k >= burn:
            exchanged += 2 * rate / keep
            kept.append(x.reshape(chains, levels, -1)[:, 0].clone())
            stones.append(state[2].reshape(chains, levels).clone())
    log_likelihood = torch.stack(stones, 1)  # [C, T, levels]
    rise = (betas[:-1] - betas[1:]) * log_likelihood[..., 1:]
    each = (rise.logsumexp(1) - math.log(keep)).sum(1)  # of each ladder
    total = float((rise.flatten(0, 1).logsumexp(0) - math.log(keep * chains)).sum())
    return Tempered(
        torch.stack(kept, 1), float(accepted.amin()), float(exchanged.amin()), total, float(each.std() / chains**0.5)
    )


State = tuple[Tensor, Tensor, Tensor, Tensor]


def _trajectory(
    density: Density, x: Tensor, state: State, b: Tensor, step: Tensor, leapfrogs: int, g: torch.Generator
) -> tuple[Tensor, State, Tensor]:
    """One Hamiltonian move of every row, and the probability with which each was taken."""
    p = torch.randn(x.shape, generator=g, dtype=torch.float64)
    energy = state[0] + b * state[2] - 0.5 * p.square().sum(1)
    z, new = x, state
    for _ in range(leapfrogs):
        p = p + 0.5 * step * (new[1] + b[:, None] * new[3])
        z = z + step * p
        new = density(z)
        p = p + 0.5 * step * (new[1] + b[:, None] * new[3])
    gain = new[0] + b * new[2] - 0.5 * p.square().sum(1) - energy
    chance = gain.nan_to_num(nan=-math.inf).clamp_max(0).exp()
    take = torch.rand(len(x), generator=g, dtype=torch.float64) < chance
    at = take[:, None]
    state = (
        torch.where(take, new[0], state[0]),
        torch.where(at, new[1], state[1]),
        torch.where(take, new[2], state[2]),
        torch.where(at, new[3], state[3]),
    )
    return torch.where(at, z, x), state, chance


def _exchange(x: Tensor, state: State, betas: Tensor, parity: int, g: torch.Generator) -> Tensor:
    """Neighbours change places, in place: every second pair. The rates [levels - 1], zero for the other pairs."""
    levels = len(betas)
    chains = len(x) // levels
    first = torch.arange(parity, levels - 1, 2)
    rows = (torch.arange(chains)[:, None] * levels + first).flatten()
    log_likelihood = state[2]
    gain = (betas[first] - betas[first + 1]).repeat(chains) * (log_likelihood[rows + 1] - log_likelihood[rows])
    chance = gain.clamp_max(0).exp()
    swap = rows[torch.rand(len(rows), generator=g, dtype=torch.float64) < chance]
    for tensor in (x, *state):
        here = tensor[swap].clone()
        tensor[swap] = tensor[swap + 1]
        tensor[swap + 1] = here
    rate = torch.zeros(levels - 1, dtype=torch.float64)
    rate[first] = chance.reshape(chains, -1).mean(0)
    return rate


def _replaced(state: State, rows: Tensor, new: State) -> State:
    a, b, c, d = (old.index_copy(0, rows, value) for old, value in zip(state, new, strict=True))
    return a, b, c, d
