"""Annealed Langevin dynamics with a likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...priors.base import Prior, expand
from ...problem import squared_norm
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import log_levels, squared_operator_norm


@register("solver", "score-ald")
@dataclass(frozen=True)
class ScoreALD(Solver):
    """Posterior sampling by annealed Langevin dynamics.

    Jalal, Arvinte, Daras, Price, Dimakis, Tamir 2021, "Robust compressed sensing MRI with deep generative priors",
    arXiv 2108.01368, Algorithm 1.

    At every level, Langevin steps on the smoothed prior times a likelihood that is annealed with it::

        x <- x + eta [(D - x) / sigma^2 + A^T (y - A x) / (sigma_y^2 + gamma^2)] + sqrt(2 eta) z

    The paper leaves gamma open; here it is |A| sigma (|A| the largest singular value): the noise that x has, as A sees
    it at most. In the limit of small levels this samples the posterior, if the levels fall slowly enough: the error on
    Gaussians falls with the steps, to the floor. Directions that A sees weakly come last, since gamma is one number for
    all: on iso-blur-0.05 1000 steps leave 3.7 floors, and 4000, the authors' number, 2.0. Where A is spectral,
    ``snips`` gives each direction its own.

    step_size
        eta over the inverse of the largest curvature, 1 / sigma^2 + |A|^2 / (sigma_y^2 + gamma^2); unstable from 2 on.
        Where A sees nothing this is eta / sigma^2, which the authors' code has at 1.15.
    inner_steps
        Langevin steps at each level, of one evaluation each. The authors have 3 or 4 at 1155 levels.
    sigma_start, sigma_end
        First and last level (for images in [-1, 1]): the authors' 1.24 and 0.0066 are for images in [0, 1]. At the end
        x is replaced by D.
    balance
        None, or the ``mse`` of the authors' code (5 there): it has no gamma but scales the likelihood's gradient to
        ``balance`` times the length of the score, which is not Bayesian any more. Here per sample; the code takes
        lengths over the batch. Then step_size is eta / sigma^2, 1.15 in the code. So strong a pull, made for coils and
        k-space, diverges on the ruler's masks and blurs; 0.3 does not.
    keep_level
        Langevin steps of length e = eta / sigma^2 leave x noisier than its level: by 1 / (1 - e / 2) in variance where
        A sees nothing, and by more while the level falls. A denoiser of photographs takes that for texture, which
        grows: super-resolution of 32 x 32 pixels of a photograph has 15.7 dB in 100 steps and 16.4 in 1000, where
        diffpir has 26.6. With True the noise of a step is sqrt(eta (2 - e)) instead, and x stays at its level: 26.0 dB
        in 100 steps. But what the prior leaves wide comes out up to sqrt(1 - e / 2) too narrow, however many the steps
        (0.75 to 0.83 of the exact spread on the ruler's textures, in 300): it is no longer exact in the limit.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {
        "steps": "1155",
        "step_size": "1.15 where A sees nothing (5e-5 / 0.0066^2)",
        "inner_steps": "3; 4 at the last 510 levels on brains",
        "sigma_start": "2.5 (1.24 for [0, 1])",
        "sigma_end": "0.013 (0.0066 for [0, 1])",
        "balance": "5 in the code",
        "keep_level": "False",
    }
    why: ClassVar[dict[str, str]] = {
        "steps": "about theirs",
        "step_size": "half way to instability; 1.15 is the same on the ruler",
        "inner_steps": "a third of the levels with 3 steps each comes no nearer on the ruler",
        "balance": "a gradient scaled to the score's length is not that of a likelihood any more",
    }

    step_size: float = 1.0
    inner_steps: int = 1
    sigma_start: float = 2.5
    sigma_end: float = 0.013
    balance: float | None = None
    keep_level: bool = False

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return log_levels(prior, steps, self.sigma_start, self.sigma_end)

    def init(self, run: Run) -> State:
        state = super().init(run)
        return State(state.x, state.x0, 0, {"norm2": squared_operator_norm(run)})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x, x0, norm2 = state.x, state.x0, state.aux["norm2"]
        if sigma_next == 0:
            x = x0 = run.prior.denoise(x, sigma)
            return state.next(x, x0, norm2=norm2)
        for _ in range(self.inner_steps):
            x0 = run.prior.denoise(x, sigma)
            score, pull = (x0 - x) / sigma**2, run.linear.adjoint(run.problem.residual(x))
            if self.balance is None:
                weight = 1 / (run.problem.sigma_y**2 + norm2 * sigma**2)
                rate = self.step_size / (1 / sigma**2 + norm2 * weight)
            else:
                weight = self.balance * (squared_norm(score) / squared_norm(pull).clamp_min(1e-20)).sqrt()
                rate = torch.full_like(norm2, self.step_size * sigma**2)
            drift = score + expand(weight, pull) * pull
            spread = rate * (2 - rate / sigma**2) if self.keep_level else 2 * rate
            x = x + expand(rate, drift) * drift + expand(spread.sqrt(), drift) * run.rng.normal(drift)
        return state.next(x, x0, norm2=norm2)
