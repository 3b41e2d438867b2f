"""RED-diff: regularisation by denoising diffusion."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.adam import adam_update
from ...priors.base import Prior, expand
from ...problem import Problem, squared_norm
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import regularised_inverse, vp_schedule
from .sure import four_fits, tuned

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

    lam_lr
        0 keeps lam. Else lam is learned for each sample: log lam goes down the slope of Stein's unbiased estimate of
        the error in what the data see (SURE), |A(mu) - A(x)|^2, by Adam at this rate, which falls to 0 with the steps;
        0.05 brings lam a factor of ten in about 50 steps. What SMRD does for its sampler (Ozturkler, Liu, Eckart,
        Mardani, Song, Kautz 2023, arXiv 2310.01799). Four fits go along, to y and to y moved a little, with lam and
        with a little more, so that a step takes 4 evaluations. Needs sigma_y > 0.

    ``REDDiff.for_task("deblur")`` gives the settings of the authors' scripts.

    Deviations: the result is mu after the last step (the authors return the sample of the step before); the network
    runs without a graph; mu starts at the regularised pseudo-inverse (the plain one amplifies noise); Adam's
    epsilon, 1e-8, is for gradients of sums, not of means. SURE is Stein's, of the whole fit and with the known sigma_y:
    SMRD has |x - A^T y|^2 / n in its place, which leaves the product of that and the divergence of one round, with
    A = I smallest at lam = 0 whatever the noise. It is a point estimate: samples of different seeds are nearly the
    same.

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
        "lam_lr": "0; SMRD 0.2, of lam itself from 2 on",
    }

    lam: float = 0.25
    weighting: str = "linear"
    order: str = "descending"
    optimizer: str = "adam"
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    sigma_x0: float = 0.0
    data: str = "mean"
    lam_lr: float = 0.0

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
        if self.lam_lr and not 0 < self.lam < math.inf:
            raise InputError(f"red-diff learns log lam with lam_lr > 0: start from a finite lam > 0, got {self.lam}")

    @classmethod
    def for_task(cls, task: str) -> REDDiff:
        """The authors' settings for a task: inpaint, inpaint-noisy, superres, deblur, nonlinear, mri."""
        if task not in TASKS:
            raise InputError(f"red-diff has no settings for task '{task}': one of {', '.join(TASKS)}")
        return cls(**TASKS[task])

    def unfit(self, problem: Problem) -> str | None:
        if self.data == "likelihood" and not problem.noise.sigma:
            return "with data='likelihood' it needs Gaussian noise with sigma_y > 0"
        if self.lam_lr and not problem.noise.sigma:
            return "to learn lam (lam_lr > 0) it needs Gaussian noise with sigma_y > 0"
        return super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        mu = regularised_inverse(run.problem)
        if self.lam_lr:
            return State(mu, mu, 0, four_fits(mu, self.lam, self.optimizer == "adam", run))
        zero = torch.zeros_like(mu)
        return State(mu, mu, 0, {"m": zero, "v": zero.clone()} if self.optimizer == "adam" else {})

    def level(self, i: int, run: Run) -> float:
        """The noise level that step i evaluates."""
        n = len(run.schedule)
        if self.order == "ascending":
            i = n - 1 - i
        elif self.order == "random":
            i = permutation(n)[i]
        return run.schedule.sigmas[i]

    def step(self, state: State, run: Run) -> State:
        if self.lam_lr:
            return tuned(self.descend, self.lam_lr, state, run)
        mu, denoised, aux = self.descend(state.x, run.problem.y, self.lam, state.aux, state.i, run)
        return state.next(mu, denoised, **aux)

    def descend(
        self, mu: Tensor, y: Tensor, lam: float | Tensor, aux: dict[str, Tensor], i: int, run: Run, copies: int = 1
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Step i from mu: the new one, D and Adam's moments. ``copies`` neighbouring rows get the same noise."""

        def noise() -> Tensor:
            return run.rng.normal(mu[::copies]).repeat_interleave(copies, 0) if copies > 1 else run.rng.normal(mu)

        problem, scale, sigma = run.problem, run.scale, self.level(i, run)
        x0 = mu.add(noise(), alpha=self.sigma_x0 * scale) if self.sigma_x0 else mu
        denoised = run.prior.denoise(x0.add(noise(), alpha=sigma), sigma)
        # eps_hat - eps = (x0 - D) / sigma; the weight is stated for [-1, 1], that is for sigma / scale
        weight = expand(lam * (WEIGHTINGS[self.weighting](sigma / scale) / (sigma / scale)), mu)
        _, data_gradient = problem.data(x0, y)
        if self.data == "mean":  # the gradient of the two means, times the number of entries of x
            gradient = (x0 - denoised).mul_(weight).add_(data_gradient, alpha=mu[0].numel() / y[0].numel())
            unit = scale
        elif self.data == "relative":
            middle = torch.full_like(mu, sum(problem.value_range) / 2)
            share = 2 * mu[0].numel() * scale**2 / squared_norm(y - problem.operator(middle)).clamp_min(1e-30)
            gradient = (x0 - denoised).mul_(weight).add_(data_gradient.mul_(expand(share, mu)))
            unit = scale
        else:
            gradient = (x0 - denoised).mul_(weight / scale**2).add_(data_gradient, alpha=1 / problem.sigma_y**2)
            unit = 1 / scale
        if self.optimizer == "sgd":
            return mu.sub(gradient, alpha=self.lr * scale / unit), denoised, {}
        mu, m, v = adam_update(mu, gradient, aux["m"], aux["v"], i + 1, self.lr * scale, self.betas, 1e-8 * unit)
        return mu, denoised, {"m": m, "v": v}


@lru_cache(maxsize=32)
def permutation(n: int) -> tuple[int, ...]:
    """One fixed permutation of 0..n-1: the random order is the same for every sample and every run."""
    return tuple(random.Random(n).sample(range(n), n))
