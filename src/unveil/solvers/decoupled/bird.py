"""BIRD: restoration by inversion of a frozen diffusion, with a known operator."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ...numerics.adam import adam_update
from ...priors.base import expand
from ...registry import register
from ..base import Run, State
from ..moves import ddim
from .seed import SeededSolver, from_seed, seed_levels, seed_unit


@register("solver", "bird")
@dataclass(frozen=True)
class BIRD(SeededSolver):
    """Blind image restoration via fast diffusion inversion, with a known operator.

    Chihaoui, Lemkhenter, Favaro 2024, "Blind image restoration via fast diffusion inversion", arXiv 2405.19572,
    Algorithm 1.

    The reverse diffusion R, a few steps of DDIM, is taken for a function of the noise z that it starts from, and z is
    fitted to the data on the sphere where such noise lives::

        loss = mean |y - A(R(z))|^2;   z <- Adam(z, gradient);   z <- sqrt(n) z / |z|

    The gradient takes the network's eps for constant, so that R is an affine map of z: there is no back-propagation.
    In our coordinates x moves by (sigma' - sigma) eps in each step, and the gradient in the seed x is that in R(z).

    Steps are iterations of ``ddim_steps`` evaluations each. The result is R(z) of the last iterate evaluated.

    lr
        Of Adam, for z of variance one: 0.01 for inpainting and denoising (200 iterations), 0.001 for super-resolution
        (100 iterations). The number of iterations is what keeps the noise of y out.
    ddim_steps
        10 in the paper, from t = 900 of 1000.

    Signals of few values have too small a sphere: on two, it is a circle that the data may not lie on.

    Deviation: estimates are not clipped to the range on the way, where gradients vanish.
    """

    default_steps: ClassVar[int] = 200
    paper: ClassVar[dict[str, str]] = {
        "steps": "200; 100 for super-resolution",
        "lr": "0.01; 0.001 for super-resolution",
        "ddim_steps": "10",
    }

    lr: float = 0.01
    ddim_steps: int = 10

    def begin(self, z: Tensor, run: Run) -> State:
        x, zero = from_seed(z, run, 0.0), z.new_zeros(z.shape)
        return State(x, x, 0, {"z": z, "m": zero, "v": zero.clone()})

    def step(self, state: State, run: Run) -> State:
        z, levels = state.aux["z"], seed_levels(run.prior, self.ddim_steps)
        x = from_seed(z, run, levels[0])
        for sigma, sigma_next in pairwise(levels):
            x = ddim(x, run.prior.denoise(x, sigma), sigma, sigma_next, 0.0, run.rng)
        _, gradient = run.problem.data(x)
        # of the mean squared error in the units of [-1, 1]
        slope = gradient.mul_(2 * seed_unit(run, levels[0]) / run.scale**2 / run.problem.y[0].numel())
        z, m, v = adam_update(z, slope, state.aux["m"], state.aux["v"], state.i + 1, self.lr)
        length = torch.linalg.vector_norm(z.flatten(1), dim=1).clamp_min(1e-9)
        z = z * expand(z[0].numel() ** 0.5 / length, z)
        return state.next(x, x, z=z, m=m, v=v)
