"""Repulsive score distillation: RED-diff with particles that keep apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.adam import adam_update
from ...priors.base import Prior
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import vp_schedule
from .red_diff import WEIGHTINGS


@register("solver", "rsld")
@dataclass(frozen=True)
class RSLD(Solver):
    """Repulsive score distillation: the samples of a measurement are particles that push each other apart.

    Zilberstein, Mardani, Segarra 2024, "Repulsive latent score distillation for solving inverse problems",
    arXiv 2406.16683, Algorithm 1 and the augmented form of section 4, with the signal itself for the latent.

    Each particle has a signal x, which sees the data, and a signal z, which sees the prior, coupled by rho. With
    x_s = z + sigma eps, and all terms means over their entries, Adam steps down::

        z:  |z - x|^2 / 2 + (lam / rho) f(sigma) <eps_hat(x_s) - eps - gamma sigma R, z>
        x:  |y - A x|^2 / 2 + rho |x - z|^2 / 2
        R_i = - n grad_i log sum_j k_ij = n sum_j 2 k_ij (x_s^i - x_s^j) / h_i / sum_j k_ij,    j != i,
              k_ij = exp(-|x_s^i - x_s^j|^2 / h_i),   h_i = median_j |x_s^i - x_s^j|^2 / log(particles)

    lam, weighting
        Weight of the prior and f, as for red-diff.
    rho
        The coupling; 0 is repulsive score distillation without it: one signal, lam f <...> + |y - A x|^2 / 2.
    gamma
        Strength of the repulsion; 0 for none.
    lr, betas
        Of both Adams, lr for images in [-1, 1].
    decay
        Lets lr fall linearly to 0. At the authors' constant 0.2 Adam's last steps leave noise of about that size in
        directions without data, many times the spread of the posterior.

    Deviations: the kernel compares the noisy signals themselves, not features of DINO on decoded latents, and n, their
    dimension, takes the place of the feature space's scale; h divides by log(particles), not by log(particles - 1),
    which is 0 for two. A measurement with one sample has no repulsion. The result is x, of which the authors' scripts
    keep one from before the end.
    """

    family: ClassVar[str] = "variational"
    clean: ClassVar[bool] = True
    coupled: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {
        "steps": "200 in the code's configuration",
        "lam": "0.1",
        "weighting": "linear",
        "rho": "0.2",
        "gamma": "not at hand",
        "lr": "0.2",
        "decay": "False",
        "betas": "(0.9, 0.99)",
    }
    why: ClassVar[dict[str, str]] = {
        "steps": "200 leave samples up to eight times as far off on the ruler",
        "decay": "at a constant rate Adam's last steps leave noise of about that size in directions without data",
    }

    lam: float = 0.1
    weighting: str = "linear"
    rho: float = 0.2
    gamma: float = 0.15
    lr: float = 0.2
    decay: bool = True
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in WEIGHTINGS:
            raise InputError(f"rsld has no weighting '{self.weighting}': one of {', '.join(WEIGHTINGS)}")

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def init(self, run: Run) -> State:
        x = sum(run.problem.value_range) / 2 + run.scale * run.rng.normal(run.like)
        z = sum(run.problem.value_range) / 2 + run.scale * run.rng.normal(run.like)
        return self._state(x, z)

    def start(self, run: Run, x_init: Tensor) -> State:  # noqa: ARG002
        return self._state(x_init, x_init)

    def _state(self, x: Tensor, z: Tensor) -> State:
        names = ("mx", "vx") if self.rho == 0 else ("mx", "vx", "mz", "vz")
        moments = {k: torch.zeros_like(x) for k in names}
        return State(x, x, 0, moments if self.rho == 0 else {"z": z, **moments})

    def step(self, state: State, run: Run) -> State:
        x, problem, aux, t = state.x, run.problem, dict(state.aux), state.i + 1
        lr = self.lr * (1 - state.i / len(run.schedule) if self.decay else 1) * run.scale
        sigma, scale = run.schedule.sigmas[state.i], run.scale
        z = aux.get("z", x)
        noisy = z.add(run.rng.normal(z), alpha=sigma)
        x0 = run.prior.denoise(noisy, sigma)
        weight = self.lam * WEIGHTINGS[self.weighting](sigma / scale) / (sigma / scale)
        gain = weight / self.rho if self.rho else weight
        down = (z * (gain + 1)).sub_(x0, alpha=gain).sub_(x)  # without rho, z is x
        if self.gamma and run.samples > 1:
            down.sub_(repulsion(noisy, run.samples), alpha=gain * self.gamma * sigma**2)
        if self.rho:
            z, aux["mz"], aux["vz"] = self._adam(z, down, aux["mz"], aux["vz"], t, lr, scale)
            aux["z"], down = z, (x - z).mul_(self.rho)
        down.add_(problem.data(x)[1], alpha=x[0].numel() / problem.y[0].numel())
        x, aux["mx"], aux["vx"] = self._adam(x, down, aux["mx"], aux["vx"], t, lr, scale)
        return state.next(x, x0, **aux)

    def _adam(
        self, x: Tensor, gradient: Tensor, m: Tensor, v: Tensor, t: int, lr: float, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        # the gradients are those of the means, times n
        return adam_update(x, gradient, m, v, t, lr, self.betas, 1e-8 * scale * x[0].numel())


def repulsion(x: Tensor, particles: int) -> Tensor:
    """R of :class:`RSLD` for x [N, *shape], rows in groups of so many ``particles``: points away from the others."""
    rows = x.reshape(-1, particles, x[0].numel())
    square = rows.square().sum(-1)
    d2 = (square[:, :, None] + square[:, None, :] - 2 * rows @ rows.mT).clamp_min_(0)
    d2.diagonal(dim1=1, dim2=2).fill_(0)
    # the lower median of the others: oneself is the nearest
    middle = d2.kthvalue((particles - 2) // 2 + 2, -1, keepdim=True).values
    h = middle.clamp_min(1e-20) / math.log(particles)
    k = torch.exp(-d2 / h)
    k.diagonal(dim1=1, dim2=2).fill_(0)
    k = k / k.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    push = (k.sum(-1, keepdim=True) * rows - k @ rows) * (2 * rows.shape[-1] / h)
    return push.reshape(x.shape)
