"""Loss-guided diffusion with Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.inner import inner_loop
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...rng import Rng
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, vp_scale, vp_schedule

WEIGHTS = ("likelihood", "equal")


@register("solver", "lgd-mc")
@dataclass(frozen=True)
class LGDMC(Solver):
    """Loss-guided diffusion with Monte Carlo.

    Song, Zhang, Yin, Mardani, Liu, Kautz, Chen, Vahdat 2023, "Loss-guided diffusion models for plug-and-play
    controllable generation", ICML 2023 (PMLR 202), Algorithm 1 and equation 8.

    The likelihood of x is an average over p(x0 | x), taken as N(D, r^2 I) with r^2 = sigma^2 v / (sigma^2 + v), over a
    few draws x_i = D + r z_i; the gradient goes through D alone. The length of the step is normalised as in ``dps``::

        g      = grad_x -log mean_i exp(-l(x_i)),   l(x) = |y - A(x)|^2 / (2 sigma_y^2)
        x_next = ancestral(x, D) - zeta / (s s') (grad_x of the root mean square of |y - A(x_i)|, weighted as in g)

    draws
        Number of draws. One without spread would be ``dps``.
    weights
        "likelihood": draw i weighs exp(-l(x_i)), as the gradient of the logarithm of the mean has it; with little noise
        or many measurements one draw takes it all. "equal": all alike, as in the code of InverseBench.
    zeta
        Step size for the norm, as in ``dps``, for images in [-1, 1].
    data_variance
        v, for data in [-1, 1]; 1 as in the paper. Other ranges are converted.

    There is no code of the authors. Deviation: the plain gradient of log p(y | x) in place of the normalised step is
    unstable wherever r |A| is well above sigma_y, that is for most of a run.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1000
    paper: ClassVar[dict[str, str]] = {
        "steps": "not at hand",
        "draws": "1 to 10",
        "weights": "likelihood",
        "zeta": "own",
        "data_variance": "1",
    }

    draws: int = 3
    weights: str = "likelihood"
    zeta: float = 0.3
    data_variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights not in WEIGHTS:
            raise InputError(f"{self.name} has no weights '{self.weights}': one of {', '.join(WEIGHTS)}")

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps, "full")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        v = self.data_variance * run.scale**2
        r = (sigma**2 * v / (sigma**2 + v)) ** 0.5
        x0, pullback = run.prior.vjp(state.x, sigma)
        x = ddim(state.x, x0, sigma, sigma_next, 1.0, run.rng)
        gradient = averaged_gradient(run.problem, x0, r, self.draws, self.weights == "equal", run.rng)
        rate = self.zeta * run.scale / (vp_scale(sigma, run.scale) * vp_scale(sigma_next, run.scale))
        return state.next(x.sub_(pullback(gradient), alpha=rate), x0)


@inner_loop
def averaged_gradient(problem: Problem, x0: Tensor, r: float, draws: int, equal: bool, rng: Rng) -> Tensor:
    """The gradient [N, ...] of the weighted root mean square of |y - A(x0 + r z)| over ``draws`` draws of z."""
    found = [problem.data(x0.add(rng.normal(x0), alpha=r)) for _ in range(draws)]
    losses = torch.stack([loss for loss, _ in found])  # [draws, N]
    if equal:
        weights = torch.full_like(losses, 1 / draws)
    else:  # without noise the best draw takes it all
        weights = torch.softmax(-losses / max(problem.sigma_y**2, 1e-12 * problem.scale**2), 0)
    norm = (2 * (weights * losses).sum(0)).sqrt().clamp_min(1e-30)
    gradients = torch.stack([gradient for _, gradient in found])  # [draws, N, ...]
    share: Tensor = weights / norm
    return (share.reshape(*share.shape, *[1] * (x0.ndim - 1)) * gradients).sum(0)
