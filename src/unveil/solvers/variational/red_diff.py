"""RED-diff: regularisation by denoising diffusion."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ...numerics.adam import adam_update
from ...priors.base import Prior, expand
from ...problem import Problem, squared_norm
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import regularised_inverse, vp_schedule

WEIGHTINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "sqrt": math.sqrt,
    "square": lambda s: s * s,
    "log": math.log1p,
    "clipped": lambda s: min(s, 1.0),
    "power-2/3": lambda s: s ** (2 / 3),
    "constant": lambda s: 1.0,  # noqa: ARG005
}
"""f(sigma) of lambda_t = lambda f(1 / SNR_t), SNR_t = 1 / sigma the ratio of amplitudes (paper, section 4.2)."""

ORDERS = ("descending", "ascending", "random")

TASKS: dict[str, dict[str, Any]] = {
    "inpaint": {"lr": 0.25, "lam": 0.25, "sigma_x0": 1e-4},
    "inpaint-noisy": {"lr": 0.25, "lam": 1.0},
    "superres": {"lr": 0.1, "lam": 0.25},
    "deblur": {"lr": 0.5, "lam": 0.25},
    "nonlinear": {"lr": 0.5, "lam": 0.25},
    "mri": {"lr": 0.1, "lam": 0.25, "data": "relative"},
}
"""The authors' settings per task (their sample scripts), for images in [-1, 1]."""


@register("solver", "red-diff")
@dataclass(frozen=True)
class REDDiff(Solver):
    """RED-diff: a variational fit of N(mu, sigma_x0^2 I) to the posterior.

    Mardani, Song, Kautz, Vahdat 2023, "A variational perspective on solving inverse problems with diffusion models",
    arXiv 2305.04391, Algorithm 1 and Proposition 2.

    One noise level per step, no back-propagation through the network::

        x_t = mu + sqrt(sigma_x0^2) xi + sigma eps          (ours is the paper's x_t divided by s)
        loss = |y - A(mu)|^2 / 2 * data_weight + lambda_t <stop-gradient(eps_hat(x_t) - eps), mu>
        mu <- optimiser(mu, gradient of the loss)

    lambda_t = lam f(sigma); the weighting "linear" makes the second term lam (mu - D(x_t)), plain RED.

    lam
        Weight of the prior. 0.25 in the paper; 1 for the noisy inpainting of its scripts.
    weighting
        f: linear, sqrt, square, log, clipped, power-2/3 or constant.
    order
        descending (the paper's choice), ascending or random order of the levels.
    optimizer, lr, betas
        "adam" with betas (0.9, 0.99), or "sgd". lr for images in [-1, 1].
    sigma_x0
        Dispersion of the fitted Gaussian (for images in [-1, 1]); 0 is a point estimate.
    data
        "mean": both terms are means over their entries (y's and x's), as the authors' code has it; sigma_y is not used
        and lam is raised by hand with the noise. "relative": the data term is |y - A(mu)|^2 / |y|^2 instead, with y and
        mu taken from the middle of the value range, as RED-diff for MRI has it (Ozturkler, Mardani, Vahdat, Kautz,
        Pauly, "Regularization by denoising diffusion process for MRI reconstruction", MIDL 2023). "likelihood": the
        data term is |y - A(mu)|^2 / (2 sigma_y^2) and the prior term a sum, which has a fixed point in closed form for
        Gaussian priors; needs sigma_y > 0.

    ``REDDiff.for_task("deblur")`` gives the settings of the authors' scripts.

    Deviations: the result is mu after the last step (the authors return the sample of the step before); the network
    runs without a graph; mu starts at the regularised pseudo-inverse (the plain one amplifies noise); Adam's
    epsilon, 1e-8, is for gradients of sums, not of means. It is a point estimate: samples of different seeds are nearly
    the same.

    docs/red-diff-study.md puts the findings of the paper to the test.
    """

    family: ClassVar[str] = "variational"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {
        "steps": "1000",
        "lam": "0.25; 1 for noisy inpainting",
        "weighting": "linear",
        "order": "descending",
        "optimizer": "adam",
        "lr": "0.1 for super-resolution and MRI, 0.25 for inpainting, 0.5 for the rest",
        "betas": "(0.9, 0.99)",
        "sigma_x0": "0; 1e-4 for inpainting",
        "data": "mean; relative for MRI",
    }

    lam: float = 0.25
    weighting: str = "linear"
    order: str = "descending"
    optimizer: str = "adam"
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    sigma_x0: float = 0.0
    data: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, known, what in (
            (self.weighting, tuple(WEIGHTINGS), "weighting"),
            (self.order, ORDERS, "order"),
            (self.optimizer, ("adam", "sgd"), "optimizer"),
            (self.data, ("mean", "relative", "likelihood"), "data"),
        ):
            if value not in known:
                raise InputError(f"red-diff has no {what} '{value}': one of {', '.join(known)}")

    @classmethod
    def for_task(cls, task: str) -> REDDiff:
        """The authors' settings for a task: inpaint, inpaint-noisy, superres, deblur, nonlinear, mri."""
        if task not in TASKS:
            raise InputError(f"red-diff has no settings for task '{task}': one of {', '.join(TASKS)}")
        return cls(**TASKS[task])

    def unfit(self, problem: Problem) -> str | None:
        if self.data == "likelihood" and not problem.noise.sigma:
            return "with data='likelihood' it needs Gaussian noise with sigma_y > 0"
        return super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        mu = regularised_inverse(run.problem)
        zero = torch.zeros_like(mu)
        aux = {"m": zero, "v": zero.clone()} if self.optimizer == "adam" else {}
        return State(mu, mu, 0, aux)

    def level(self, i: int, run: Run) -> float:
        """The noise level that step i evaluates."""
        n = len(run.schedule)
        if self.order == "ascending":
            i = n - 1 - i
        elif self.order == "random":
            i = permutation(n)[i]
        return run.schedule.sigmas[i]

    def step(self, state: State, run: Run) -> State:
        mu, problem, scale = state.x, run.problem, run.scale
        sigma = self.level(state.i, run)
        x0 = mu.add(run.rng.normal(mu), alpha=self.sigma_x0 * scale) if self.sigma_x0 else mu
        denoised = run.prior.denoise(x0.add(run.rng.normal(mu), alpha=sigma), sigma)
        # eps_hat - eps = (x0 - D) / sigma; the weight is stated for [-1, 1], that is for sigma / scale
        weight = self.lam * WEIGHTINGS[self.weighting](sigma / scale) / (sigma / scale)
        _, data_gradient = problem.data(x0)
        if self.data == "mean":  # the gradient of the two means, times the number of entries of x
            gradient = (x0 - denoised).mul_(weight).add_(data_gradient, alpha=mu[0].numel() / problem.y[0].numel())
            unit = scale
        elif self.data == "relative":
            middle = torch.full_like(mu, sum(problem.value_range) / 2)
            share = 2 * mu[0].numel() * scale**2 / squared_norm(problem.residual(middle)).clamp_min(1e-30)
            gradient = (x0 - denoised).mul_(weight).add_(data_gradient.mul_(expand(share, mu)))
            unit = scale
        else:
            gradient = (x0 - denoised).mul_(weight / scale**2).add_(data_gradient, alpha=1 / problem.sigma_y**2)
            unit = 1 / scale
        if self.optimizer == "sgd":
            return state.next(mu.sub(gradient, alpha=self.lr * scale / unit), denoised)
        m, v = state.aux["m"], state.aux["v"]
        mu, m, v = adam_update(mu, gradient, m, v, state.i + 1, self.lr * scale, self.betas, 1e-8 * unit)
        return state.next(mu, denoised, m=m, v=v)


@lru_cache(maxsize=32)
def permutation(n: int) -> tuple[int, ...]:
    """One fixed permutation of 0..n-1: the random order is the same for every sample and every run."""
    return tuple(random.Random(n).sample(range(n), n))
