"""Makes the reference posteriors of :mod:`unveil.bench.nonlinear`: ``python -m unveil.bench.references [NAME ...]``.

Quadrature in two and three dimensions, replica exchange in eight, on one thread about twenty minutes in all. Each file
records what speaks for it: the error of the quadrature; or R-hat, the effective sample size and the rates of the moves,
and how far mean and evidence are from those of draws of the prior weighted by the likelihood, in standard errors.
In three dimensions the same chains are compared with the quadrature.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..io.atomic import write_atomic
from ..metrics import chain_ess, split_rhat
from ..priors import GaussianMixturePrior
from ..problem import Problem
from . import quadrature, tempered
from .nonlinear import FOLDER, NAMES, POOL, prior, simulate

CHAINS, APART = 100, 40
"""Ladders of a run, and steps between two draws that are kept of one."""


def make(name: str, folder: Path = FOLDER, apart: int = APART) -> dict[str, Any]:
    """Compute the posterior of a problem and write its fixture; returns the facts that it records."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    problem, mixture = simulate(name), prior(int(name.partition("-")[2]))
    exact = Problem(problem.y.double(), problem.operator, problem.noise, problem.shape, problem.value_range)
    n = exact.shape[0]
    if n <= 3:
        mean, covariance, draws, facts = by_quadrature(exact, mixture)
        if n == 3:
            chains, _ = by_exchange(exact, mixture, apart // 2)
            facts["chains_from_mean"] = _deviation(chains.mean((0, 1)), chains, mean)
    else:
        chains, facts = by_exchange(exact, mixture, apart)
        flat = chains.flatten(0, 1)
        mean, covariance = flat.mean(0), torch.cov(flat.T)
        draws = chains[:, apart - 1 :: apart].flatten(0, 1)
        draws = draws[torch.randperm(len(draws), generator=torch.Generator().manual_seed(0))][:POOL]
        facts |= by_importance(exact, mixture, mean, facts)
    facts["seconds"] = round(time.perf_counter() - start)
    data = {"y": problem.y, "mean": mean, "covariance": covariance, "draws": draws.float().contiguous()}
    words = {"unveil-reference": json.dumps(facts)}
    write_atomic(folder / f"{name}.safetensors", lambda p: save_file(data, p, words))
    return facts


def by_quadrature(problem: Problem, mixture: GaussianMixturePrior) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Mean, covariance, draws and facts; the box holds seven standard deviations of every component of the prior."""
    ends = [mixture.component(k) for k in range(len(mixture.weights))]
    low = torch.stack([m - 7 * c.diagonal().sqrt() for m, c in ends]).amin(0)
    high = torch.stack([m + 7 * c.diagonal().sqrt() for m, c in ends]).amax(0)
    tolerance, most = (3e-5, 1_000_000) if problem.shape[0] == 2 else (1e-4, 300_000)

    def log_density(x: Tensor) -> Tensor:
        return mixture.log_prob(x) + problem.log_likelihood(x)

    start = 32 if problem.shape[0] == 2 else 24
    found = quadrature.integrate(log_density, low, high, tolerance, start, most)
    draws, broken = found.draws(POOL, log_density)
    facts = {
        "method": "quadrature",
        "log_evidence": found.log_integral,
        "cells": len(found.mass),
        "relative_error": found.error,
        "bounds_broken": broken,
    }
    return found.mean, found.covariance, draws, facts


def by_exchange(problem: Problem, mixture: GaussianMixturePrior, apart: int = APART) -> tuple[Tensor, dict[str, Any]]:
    """Chains [C, T, n] of replica exchange, and facts."""

    def density(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = problem.rows(torch.zeros(len(x), dtype=torch.long))
        return mixture.log_prob(x), mixture.score(x, 0.0), rows.log_likelihood(x), rows.score(x)

    keep = math.ceil(POOL / CHAINS) * apart
    found = tempered.run(density, sampler(mixture, 0), chains=CHAINS, keep=keep)
    modes = mixture.responsibilities(found.chains.flatten(0, 1)).reshape(*found.chains.shape[:2], -1)
    watched = torch.cat([found.chains, modes], 2)
    facts = {
        "method": "replica exchange",
        "log_evidence": found.log_evidence,
        "log_evidence_error": found.log_evidence_error,
        "chains": CHAINS,
        "length": keep,
        "apart": apart,
        "rhat": float(split_rhat(watched, CHAINS // 20).amax()),
        "effective_size": float(chain_ess(watched).amin()),
        "accepted": found.accepted,
        "exchanged": found.exchanged,
    }
    return found.chains, facts


def sampler(mixture: GaussianMixturePrior, seed: int) -> Callable[[int], Tensor]:
    """Draws of the prior, one after the other, quicker by far than its own, each of which has a stream."""
    g = torch.Generator().manual_seed(seed)
    parts = [mixture.component(k) for k in range(len(mixture.weights))]
    means = torch.stack([mean for mean, _ in parts])
    roots = torch.stack([torch.linalg.cholesky(covariance) for _, covariance in parts])

    def draw(n: int) -> Tensor:
        k = torch.multinomial(mixture.weights, n, True, generator=g)
        z = torch.randn(n, means.shape[1], generator=g, dtype=torch.float64)
        for j, root in enumerate(roots):
            z[k == j] = z[k == j] @ root.T
        return means[k] + z

    return draw


def by_importance(
    problem: Problem, mixture: GaussianMixturePrior, mean: Tensor, facts: dict[str, Any], draws: int = 4_000_000
) -> dict[str, float]:
    """How far evidence and mean are from those of ``draws`` draws of the prior, in standard errors of both."""
    weights, points = [], []
    prior = sampler(mixture, 1)
    for _ in range(draws // 200_000):
        x = prior(200_000)
        weights.append(problem.rows(torch.zeros(len(x), dtype=torch.long)).log_likelihood(x))
        points.append(x)
    log_w, x = torch.cat(weights), torch.cat(points)
    w = (log_w - log_w.amax()).exp()
    log_evidence = float(log_w.logsumexp(0)) - math.log(draws)
    size = float(w.sum().square() / w.square().sum())
    at = (w @ x) / w.sum()
    error = ((w / w.sum()).square() @ (x - at).square()).sqrt()
    spread = 1 / size**0.5
    both = math.hypot(spread, facts["log_evidence_error"])
    own = facts["effective_size"] ** -0.5 * ((w / w.sum()) @ (x - at).square()).sqrt()
    return {
        "importance_size": size,
        "evidence_deviation": (facts["log_evidence"] - log_evidence) / both,
        "mean_deviation": float(((at - mean) / torch.hypot(error, own)).abs().amax()),
    }


def _deviation(mean: Tensor, chains: Tensor, exact: Tensor) -> float:
    """Largest deviation of the chains' mean from the exact one, in its standard errors."""
    error = chains.flatten(0, 1).std(0) / chain_ess(chains).sqrt()
    return float(((mean - exact) / error).abs().amax())


if __name__ == "__main__":
    for chosen in sys.argv[1:] or NAMES:
        print(chosen, json.dumps(make(chosen)), flush=True)
