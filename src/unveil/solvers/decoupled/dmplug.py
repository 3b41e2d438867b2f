"""DMPlug: the reverse diffusion as a function of its seed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.adam import adam_update
from ...registry import register
from ..base import Run, State
from .data_steps import noise_floor, where_rows
from .seed import SeededSolver, from_seed, seed_levels, seed_unit


@register("solver", "dmplug")
@dataclass(frozen=True)
class DMPlug(SeededSolver):
    """DMPlug: the reverse diffusion as a function of its seed, plugged into the data term.

    Wang, Zhang, Li, Wan, Chen, Sun 2024, "DMPlug: a plug-in method for solving inverse problems with diffusion
    models", arXiv 2405.16749, equations 9 and 10.

    R is DDIM with very few steps, z the noise that it starts from::

        z* = argmin_z mean |y - A(R(z))|^2,   x = R(z*)

    by Adam, with the gradient back-propagated through all evaluations of the network.

    Steps are iterations of ``ddim_steps`` evaluations and back-propagations each. The result is R(z) of the last
    iterate evaluated, or of the one at which a sample came to rest.

    lr
        Of Adam, for z of variance one.
    ddim_steps
        3 in the paper.
    stop
        "noise": a sample rests once its residual is down to the noise, |y - A(R(z))|^2 <= m sigma_y^2 (the discrepancy
        principle); "none": never. The data are fitted better than that at the cost of fitting their noise.

    Deviations: the paper stops where the moving variance of the iterates is least, since it takes the noise to be
    unknown; the authors' script picks the iterate nearest to the truth. Estimates are not clipped to the range on the
    way, where gradients vanish. 5000 iterations as there (10 000 for non-linear problems).
    """

    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 5000
    paper: ClassVar[dict[str, str]] = {
        "steps": "5000; 10000 for non-linear problems",
        "lr": "0.01",
        "ddim_steps": "3",
        "stop": "by the iterates' moving variance",
    }
    why: ClassVar[dict[str, str]] = {
        "stop": "theirs is for noise that is not known; here it is",
    }

    lr: float = 0.01
    ddim_steps: int = 3
    stop: str = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop not in ("noise", "none"):
            raise InputError(f"dmplug has no stop '{self.stop}': noise or none")

    def begin(self, z: Tensor, run: Run) -> State:
        x, zero = from_seed(z, run, 0.0), torch.zeros_like(z)
        floor = noise_floor(run.problem, None if self.stop == "noise" else 0.0)
        return State(x, x, 0, {"z": z, "m": zero, "v": zero.clone(), "floor": floor})

    def step(self, state: State, run: Run) -> State:
        z, levels = state.aux["z"], seed_levels(run.prior, self.ddim_steps)
        x, back = from_seed(z, run, levels[0]), []
        for sigma, sigma_next in pairwise(levels):
            x0, pullback = run.prior.vjp(x, sigma)
            r = sigma_next / sigma
            x = torch.lerp(x0, x, r)
            back.append((r, pullback))
        loss, gradient = run.problem.data(x)
        for r, pullback in reversed(back):
            gradient = pullback(gradient).mul_(1 - r).add_(gradient, alpha=r)
        # of the mean squared error in the units of [-1, 1]
        slope = gradient * (2 * seed_unit(run, levels[0]) / run.scale**2 / run.problem.y[0].numel())
        moved, m, v = adam_update(z, slope, state.aux["m"], state.aux["v"], state.i + 1, self.lr)
        z = where_rows(loss > state.aux["floor"], moved, z)
        return state.next(x, x, z=z, m=m, v=v, floor=state.aux["floor"])
