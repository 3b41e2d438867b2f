"""The annealed denoise-and-project sampler of Kadkhodaie and Simoncelli."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...priors.base import Prior, expand
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import log_levels


@register("solver", "kadkhodaie-simoncelli")
@dataclass(frozen=True)
class KadkhodaieSimoncelli(Solver):
    """Annealed denoising with projection, by the prior that is implicit in a denoiser.

    Kadkhodaie, Simoncelli 2021, "Stochastic solutions for linear inverse problems using the prior implicit in a
    denoiser", NeurIPS 2021, arXiv 2007.13640, Algorithm 2.

    The denoised iterate is projected onto the signals that fit y; the iterate goes a part h of the way there, and gets
    noise::

        x0 = D + A^+ (y - A D);   x_next = x + h (x0 - x) + gamma z,   gamma^2 = sigma'^2 - (1 - h)^2 sigma^2

    where sigma' = (1 - beta h) sigma, and beta = 1 adds no noise. It starts at A^+ y, and the middle of the range where
    A does not see, with noise, and ends at a projected x0, which reproduces y; the paper ends at D. The paper has
    A^T for A^+, of operators with orthonormal rows.

    The noise that goes in is known, so that sigma is too: by default the levels fall in geometric sequence over the
    steps, with h = sqrt(2 log(sigma / sigma')). In directions that A sees, x is y with noise sigma z; in the others
    this is a Langevin chain for the smoothed density given y. Too large an h leaves too little noise there (1 - h / 2
    of the variance), too fast a descent (a large beta) has no time to mix: h goes with the root of the descent, so that
    both errors vanish as steps grow many, and Gaussian posteriors are met.

    h0
        None, or the paper's 0.01: h = h0 k / (1 + h0 (k - 1)) in step k, and a blind level: each sample's
        sigma = |x - x0| / sqrt(n), from which gamma follows, and which the prior is told in the next step. A sample
        that has come down to sigma_end stays as it is. The paper has no limit of steps, and needs some 650.
    beta
        0.01, the paper's; it needs an h0.
    sigma_start, sigma_end
        First and last level (for images in [-1, 1]; the paper's 1 and 0.01 are for [0, 1]).

    A blind level is too low where the denoiser cannot tell signal from noise: |x - D|^2 is less than n sigma^2 by the
    posterior variance. On the small, rough signals of the ruler the level therefore falls too fast.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "noiseless"})
    sibling: ClassVar[str] = "snips"
    default_steps: ClassVar[int] = 500
    paper: ClassVar[dict[str, str]] = {
        "steps": "until sigma_end, some 650",
        "h0": "0.01",
        "beta": "0.01",
        "sigma_start": "2 (1 for [0, 1])",
        "sigma_end": "0.02 (0.01 for [0, 1])",
    }
    why: ClassVar[dict[str, str]] = {
        "steps": "the levels are known beforehand, and so is their number, near to theirs",
        "h0": "levels that are known meet Gaussian posteriors; blind ones fall too fast on small, rough signals",
    }

    h0: float | None = None
    beta: float = 0.01
    sigma_start: float = 2.0
    sigma_end: float = 0.02

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        plain = log_levels(prior, steps, self.sigma_start, self.sigma_end)
        if self.h0 is None:
            return plain
        sigmas = [plain.sigmas[0]]
        for i in range(steps - 1):
            sigmas.append(sigmas[-1] * (1 - self.beta * self.part(i, *plain.pair(i))))
        return Schedule((*sigmas, 0.0))

    def part(self, i: int, sigma: float, sigma_next: float) -> float:
        """How much of the way to go in step i: h."""
        if sigma_next == 0:
            return 1.0
        if self.h0 is None:
            return min(1.0, math.sqrt(2 * math.log(sigma / sigma_next)))
        return self.h0 * (i + 1) / (1 + self.h0 * i)

    def init(self, run: Run) -> State:
        sigma = run.schedule.sigmas[0]
        x0 = run.problem.prox(torch.full_like(run.like, sum(run.problem.value_range) / 2), 1.0)
        x = x0.add(run.rng.normal(x0), alpha=sigma)
        return State(x, x0, 0, {"sigma": torch.full_like(x.flatten(1)[:, 0], sigma)})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        level = state.aux["sigma"]
        x0 = run.problem.prox(run.prior.denoise(state.x, level), 1.0)
        if sigma_next == 0:
            return state.next(x0, x0, sigma=level)
        away, h = state.x - x0, self.part(state.i, sigma, sigma_next)
        share = max((sigma_next / sigma) ** 2 - (1 - h) ** 2, 0.0) ** 0.5  # of sigma^2, that is put back as noise
        if self.h0 is None:
            x = state.x.sub(away, alpha=h).add_(run.rng.normal(away), alpha=share * sigma)
            return state.next(x, x0, sigma=torch.full_like(level, sigma_next))
        blind = away.flatten(1).square().mean(1).sqrt()
        moves = (level > self.sigma_end * run.scale).to(blind)
        noise = expand(moves * share * blind, away) * run.rng.normal(away)
        return state.next(state.x - expand(moves * h, away) * away + noise, x0, sigma=torch.lerp(level, blind, moves))
