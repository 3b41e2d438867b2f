"""Score distillation with a variance: RED-diff in its general form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...noise import NoNoise
from ...numerics.adam import adam_update
from ...priors.base import Prior, expand
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import regularised_inverse, vp_schedule
from .red_diff import WEIGHTINGS


@register("solver", "sds")
@dataclass(frozen=True)
class SDS(Solver):
    """Score distillation that fits N(mu, s^2 I) to the posterior, its spread included.

    Mardani, Song, Kautz, Vahdat 2023, "A variational perspective on solving inverse problems with diffusion models",
    arXiv 2305.04391, Proposition 1 with a dispersion that is learned; without data and spread, score distillation
    sampling, Poole, Jain, Barron, Mildenhall 2022, arXiv 2209.14988, equation 3.

    One noise level per step. With xi, eps from N(0, I), x0 = mu + s xi, x = x0 + sigma eps, and all noise together
    n = (s xi + sigma eps) / t, t^2 = s^2 + sigma^2, q_sigma = N(mu, t^2 I) has the score -n / t, and::

        d       = lambda (eps_hat(x) - (sigma / t) n),    lambda = lam f(sigma)
        mu      <- Adam step down   d - grad log p(y | x0)
        s       <- Adam step down   <d, n> s / t - <grad log p(y | x0), xi>

    which are unbiased gradients of -log p(y | .) in the mean over q, and of the divergence of q_sigma from p_sigma.

    lam, weighting
        f as for red-diff, or "kl", the default: f = 1 / sigma makes d the gradient of KL(q_sigma, p_sigma) itself, and
        the fit at the last, small levels that of the posterior.
    spread
        The first s, for images in [-1, 1].
    lr, betas, decay
        Of Adam, lr for images in [-1, 1]. At a constant lr, which the authors have, mu does not come to rest and what
        is left of its motion widens the draws; ``decay`` lets lr fall linearly to 0, and leaves the fit itself.

    Deviations from the authors' scripts: they have no data term, and start mu from noise (ours starts from the
    regularised pseudo-inverse); in their code d has eps in the place of n, a part of the noise that is in x, lambda
    multiplies one of the two gradients, and s's is doubled. The result is a draw, mu + s xi. One s for all directions:
    the fit is as narrow as the precisions of the posterior's directions on average.
    """

    family: ClassVar[str] = "variational"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {
        "steps": "not at hand",
        "lam": "1",
        "weighting": "linear",
        "spread": "0.1, times a normal number's size",
        "lr": "0.1",
        "betas": "(0.9, 0.99)",
        "decay": "False",
    }
    why: ClassVar[dict[str, str]] = {
        "weighting": "kl makes the fit at the last, small levels that of the posterior",
    }

    lam: float = 1.0
    weighting: str = "kl"
    spread: float = 0.1
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    decay: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("kl", *WEIGHTINGS):
            raise InputError(f"sds has no weighting '{self.weighting}': kl, {', '.join(WEIGHTINGS)}")

    def unfit(self, problem: Problem) -> str | None:
        if isinstance(problem.noise, NoNoise):
            return "it weighs data by their noise, so there must be some: red-diff takes data without noise"
        return super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        return self.start(run, regularised_inverse(run.problem))

    def start(self, run: Run, x_init: Tensor) -> State:
        s = torch.full_like(x_init.flatten(1)[:, 0], self.spread * run.scale)
        zero, none = torch.zeros_like(x_init), torch.zeros_like(s)
        x = x_init + expand(s, x_init) * run.rng.normal(x_init)
        return State(x, x_init, 0, {"mu": x_init, "s": s, "m": zero, "v": zero, "ms": none, "vs": none})

    def step(self, state: State, run: Run) -> State:
        aux, sigma, scale, i = state.aux, run.schedule.sigmas[state.i], run.scale, state.i + 1
        mu, s = aux["mu"], aux["s"]
        total = (s**2 + sigma**2).sqrt()
        xi = run.rng.normal(mu)
        x0 = mu + expand(s, mu) * xi
        x = x0.add(run.rng.normal(mu), alpha=sigma)
        n = (x - mu).div_(expand(total, mu))
        f = scale / sigma if self.weighting == "kl" else WEIGHTINGS[self.weighting](sigma / scale)
        # all gradients are in units of the signal: those of a log density, times scale^2
        d = (x - run.prior.denoise(x, sigma)).sub_(expand(sigma**2 / total, mu) * n).mul_(self.lam * f * scale / sigma)
        up = run.problem.score(x0).mul_(scale**2)
        down_s = (d * n).flatten(1).sum(1) * s / total - (up * xi).flatten(1).sum(1)
        lr = self.lr * scale * (1 - state.i / len(run.schedule) if self.decay else 1)
        eps = 1e-8 * scale
        mu, m, v = adam_update(mu, d - up, aux["m"], aux["v"], i, lr, self.betas, eps)
        s, ms, vs = adam_update(s, down_s, aux["ms"], aux["vs"], i, lr, self.betas, eps)
        x = mu + expand(s, mu) * xi
        return state.next(x, mu, mu=mu, s=s, m=m, v=v, ms=ms, vs=vs)
