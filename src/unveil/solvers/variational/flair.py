"""FLAIR: a variational fit with a flow's velocity, in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.inner import inner_loop
from ...numerics.lanczos import irregular
from ...operators.base import Linear
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import regularised_inverse

ERRORS = (
    (0.0, 1.0),
    (0.02, 0.71),
    (0.05, 0.50),
    (0.1, 0.35),
    (0.2, 0.23),
    (0.3, 0.18),
    (0.4, 0.158),
    (0.5, 0.146),
    (0.6, 0.136),
    (0.7, 0.129),
    (0.8, 0.135),
    (0.9, 0.149),
    (0.95, 0.217),
    (1.0, 0.27),
)
"""t, and the mean squared error of the velocity there, of the prior ``photos`` on photographs in [-1, 1]."""


@register("solver", "flair")
@dataclass(frozen=True)
class FLAIR(Solver):
    """Flow-based latent alignment for image restoration, without the latent space and the text.

    Erbach, Narnhofer, Dombos, Lenssen, Schiele, Schindler 2025, "Solving inverse problems with FLAIR",
    arXiv 2506.02680, Algorithm 1 (the order of its moves read in the authors' code).

    A point mu follows the velocity of a rectified flow, x_t = (1 - t) mu + t e, and the data, in turn. With
    sigma = t / (1 - t), x = x_t / (1 - t) and eps_hat = (x - D(x)) / sigma::

        e  = (1 - t) eps_hat_before + sqrt(1 - (1 - t)^2) z              (trajectory adjustment)
        x  = mu + sigma e
        mu <- mu + w(t) (u - v),   u - v = (D(x) - mu) / t               (u = e - mu, v = eps_hat - D)
        mu <- mu - data_lr w(t) 2 A^T (A mu - y) / |A|^2,                at most data_steps times, while
                                                                         |A mu - y|^2 > tolerance^2 m

    w(t) = weight (1 / error(t) - 1 / error(0)) / mean(1 / error), with error(t) the mean squared error of the velocity.

    weight, t_min
        w's weight. The levels are ``steps`` values of t between 1 and t_min, both left out.
    calibrated
        False takes error(t) = 1 for all t > 0: w = weight throughout.
    data_lr, data_steps
        Relative to the largest curvature |A|^2, so that one number fits all operators: the
        authors' 0.1 for inpainting and motion blur, and their 12 for twelvefold super-resolution, are both about 0.1.
    tolerance
        Residual per entry of y at which a sample is left as it is, in units of sigma_y: their 1e-4 is the variance of
        their noise.
    restarts
        Adjusts the trajectory as above; False draws a fresh e at every level.

    Deviations: the error of the velocity is that of a denoiser of photographs in pixels (theirs is that of a network
    of latents), and t_min is 0.02 (theirs is 0.18; a decoder draws what is finer than that, pixels have none); w(t) / t
    is at most 1, which is where mu = D(x): beyond it the step overshoots; mu starts at the regularised pseudo-inverse.
    It is called a fit of the mode, but the fresh noise makes its results of different seeds spread like samples.
    """

    family: ClassVar[str] = "variational"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50
    paper: ClassVar[dict[str, str]] = {
        "steps": "50",
        "weight": "0.5",
        "t_min": "0.18",
        "calibrated": "True",
        "data_lr": "0.1 for inpainting and 12-fold super-resolution",
        "data_steps": "15",
        "tolerance": "1 (1e-4 for noise 0.01)",
        "restarts": "True",
    }
    limits: ClassVar[Mapping[str, str]] = {"t_min": "(0, 1)"}
    why: ClassVar[dict[str, str]] = {
        "t_min": "theirs leaves what is finer to the decoder of latents, and pixels have none",
    }

    weight: float = 0.5
    t_min: float = 0.02
    calibrated: bool = True
    data_lr: float = 0.1
    data_steps: int = 15
    tolerance: float = 1.0
    restarts: bool = True

    def unfit(self, problem: Problem) -> str | None:
        if problem.noise.sigma is None:
            return "it needs Gaussian noise (or none): it stops at the size of the noise"
        return super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = (s / scale for s in prior.sigma_range)
        top, end = min(1.0, high / (1 + high)), max(self.t_min, low / (1 + low))
        if end >= top:
            raise InputError(f"flair: the prior knows no level between t = {end:g} and {top:g}; use a smaller t_min")
        t = np.linspace(top, end, steps + 2)[1:-1]
        return Schedule((*(scale * t / (1 - t)).tolist(), 0.0))

    def init(self, run: Run) -> State:
        return self.start(run, regularised_inverse(run.problem))

    def start(self, run: Run, x_init: Tensor) -> State:
        problem, curved = run.problem, curvature(run.problem, x_init)
        enough = torch.full_like(curved, 0.5 * problem.m * (self.tolerance * problem.sigma_y) ** 2)
        aux = {"noise": run.rng.normal(x_init), "curvature": curved, "enough": enough}
        return State(x_init, x_init, 0, aux)

    def step(self, state: State, run: Run) -> State:
        mu, sigma = state.x, run.schedule.sigmas[state.i]
        t = sigma / (run.scale + sigma)
        weight = self.weight * calibration(t) if self.calibrated else self.weight
        noise = run.rng.normal(mu)
        if self.restarts:
            noise = noise.mul_((1 - (1 - t) ** 2) ** 0.5).add_(state.aux["noise"], alpha=1 - t)
        x = mu.add(noise, alpha=sigma)
        x0 = run.prior.denoise(x, sigma)
        mu = torch.lerp(mu, x0, min(weight / t, 1.0))
        lr = 2 * self.data_lr * weight / state.aux["curvature"]
        mu = self.to_data(mu, lr, state.aux["enough"], run.problem)
        return state.next(mu, mu, **{**state.aux, "noise": (x - x0).div_(sigma)})

    @inner_loop
    def to_data(self, mu: Tensor, lr: Tensor, enough: Tensor, problem: Problem) -> Tensor:
        """Gradient descent on half the squared residual of a row, until that is ``enough``."""
        for _ in range(self.data_steps):
            half, gradient = problem.data(mu)
            step = torch.where(half > enough, lr, 0).reshape(-1, *[1] * (mu.ndim - 1))
            mu = mu - step * gradient
        return mu


def calibration(t: float) -> float:
    """1 / error(t) less its value at 0, in units of its mean over t in [0, 1]."""
    at, error = np.array(ERRORS).T
    mean = np.mean(1 / np.interp(np.linspace(0, 1, 100), at, error))
    return float((1 / np.interp(t, at, error) - 1 / error[0]) / mean)


def curvature(problem: Problem, x: Tensor, rounds: int = 20) -> Tensor:
    """The largest curvature of half the squared residual at x, |A|^2 for linear A, else by power iteration: [N]."""
    operator = problem.operator
    if isinstance(operator, Linear):
        return operator.norm(x).square().repeat(x.shape[0])
    v = irregular(x).expand_as(x)
    here, small, size = problem.data(x)[1], 0.01 * problem.scale, torch.ones_like(x.flatten(1)[:, 0])
    for _ in range(rounds):
        v = v / size.reshape(-1, *[1] * (x.ndim - 1))
        v = (problem.data(x + small * v)[1] - here) / small
        size = torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(math.ulp(1.0))
    return size
