"""Stochastic noisy inverse problem solver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import log_levels


@register("solver", "snips")
@dataclass(frozen=True)
class SNIPS(Solver):
    """Solving noisy inverse problems stochastically.

    Kawar, Vaksman, Elad 2021, "SNIPS: solving noisy inverse problems stochastically", arXiv 2105.14951, Algorithm 1.

    Annealed Langevin dynamics in the spectral coordinates of A = U diag(s) V^T, of an x whose noise contains that of
    the measurement: with ybar = U^T y / s and n = sigma_y / s its noise, each coordinate takes a step of c times its
    own variance::

        s = 0:      x + c (D - x) + sqrt(2 c) sigma z
        n <= sigma: x + c (ybar - x) + sqrt(2 c (sigma^2 - n^2)) z                        y knows more than x: the data
        n > sigma:  x + c [(1 - r) (D - x) + r (ybar - x)] + sqrt(2 c sigma^2 (1 - r)) z, r = sigma^2 / n^2

    These are the paper's steps a = c sigma^2, c (sigma^2 - n^2), c sigma^2 (1 - r) times its gradients, multiplied out,
    so that nothing is divided by a difference that vanishes; at n = sigma the authors' code takes no step. At the end x
    is replaced by D, projected onto A x = y where there is no noise; the authors' code returns x.

    step_size
        c: the authors' 1.8e-6 / 0.01^2 is 0.018. Small steps leave the variance right, 1 / (1 - c / 2) too large at
        most; long ones follow the falling level better. Slow levels make up for either: the error on Gaussians falls
        with the steps, to the floor.
    inner_steps
        Langevin steps at each level, of one evaluation each; the authors have 3, at 1086 levels.
    sigma_start, sigma_end
        First and last level (for images in [-1, 1], twice those of the paper), as far as the prior knows them.
    keep_level
        True: c (2 - c) in place of the 2 c under the root, so that steps of any length leave x at its level. With the
        paper's noise its variance is 1 / (1 - c / 2) too large, and more while the level falls, which a denoiser of
        photographs takes for texture: 32 x 32 pixels of a photograph, 70 % of them lost, come back with 19.2 dB in 100
        steps of c = 0.3, and with 26.6 in as many of c = 1 that keep the level. But what the prior leaves wide comes
        out up to sqrt(1 - c / 2) too narrow, however many the steps (0.72 to 0.73 of the exact spread on the ruler's
        textures, in 300 of c = 1): only the paper's noise is exact in the limit.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"spectral", "gaussian"})
    default_steps: ClassVar[int] = 300
    paper: ClassVar[dict[str, str]] = {
        "steps": "1086",
        "step_size": "0.018 (1.8e-6 / 0.01^2)",
        "inner_steps": "3",
        "sigma_start": "380 (190 for [0, 1])",
        "sigma_end": "0.02 (0.01 for [0, 1])",
        "keep_level": "False",
    }
    limits: ClassVar[Mapping[str, str]] = {"step_size": "(0, 2)"}
    why: ClassVar[dict[str, str]] = {
        "steps": "a quarter of the cost",
        "step_size": "theirs takes 11 times the evaluations, and comes nearer only where modes lie apart",
        "inner_steps": "more levels serve as well as more steps at each",
    }

    step_size: float = 0.5
    inner_steps: int = 1
    sigma_start: float = 380.0
    sigma_end: float = 0.02
    keep_level: bool = False

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return log_levels(prior, steps, self.sigma_start, self.sigma_end)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        A, c, x, x0 = run.spectral, self.step_size, state.x, state.x0
        if sigma_next == 0:
            x0 = run.prior.denoise(x, sigma)
            x = x0 if run.problem.sigma_y > 0 else run.problem.prox(x0, 1.0)
            return state.next(x, x0)
        xbar = A.Vt(x)
        s_inv = A.s_inv(xbar)
        ybar, noise2 = s_inv * A.Ut(run.problem.y), (run.problem.sigma_y * s_inv) ** 2
        known = (s_inv > 0) & (noise2 <= sigma**2)
        # the share of the data: all where they are known, none where A does not see
        data = torch.where(known, 1.0, torch.where(s_inv > 0, sigma**2 / noise2.clamp_min(sigma**2), 0.0))
        share = c * (2 - c) if self.keep_level else 2 * c
        std = (share * torch.where(known, sigma**2 - noise2, sigma**2 * (1 - data))).sqrt()
        for _ in range(self.inner_steps):
            x0 = run.prior.denoise(x, sigma)
            # V is orthogonal: white noise is white in its coordinates too
            xbar = xbar + c * (torch.lerp(A.Vt(x0), ybar, data) - xbar) + std * run.rng.normal(xbar)
            x = A.V(xbar)
        return state.next(x, x0)
