"""The seed of a sample: what solvers optimise that take the whole reverse diffusion for a function of its start."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...priors.base import Prior
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import vp_schedule


def seed_levels(prior: Prior, ddim_steps: int) -> tuple[float, ...]:
    """The levels of the reverse diffusion, DDIM with this many of DDPM's, and 0. The seed lives at the first."""
    return vp_schedule(prior, ddim_steps).sigmas


def steady(sigma: float, steps: int) -> Schedule:
    """A schedule of ``steps`` that stays at a level: it falls by a part in a thousand in all, then to 0."""
    return Schedule((*(sigma * (1 - 1e-3 * k / steps) for k in range(steps)), 0.0))


def seed_unit(run: Run, sigma: float) -> float:
    """The deviation of a signal at level sigma, that of the seed's units in ours: sqrt(scale^2 + sigma^2)."""
    return float((run.scale**2 + sigma**2) ** 0.5)


def from_seed(z: Tensor, run: Run, sigma: float) -> Tensor:
    """The iterate at level sigma of a seed of mean zero and variance one."""
    middle = torch.full_like(z, sum(run.problem.value_range) / 2)
    return middle.add_(z, alpha=seed_unit(run, sigma))


def to_seed(x: Tensor, run: Run, sigma: float) -> Tensor:
    """The inverse of :func:`from_seed`."""
    return (x - sum(run.problem.value_range) / 2) / seed_unit(run, sigma)


class SeededSolver(Solver):
    """A solver whose iterate is the seed: ``steps`` iterations, of ``ddim_steps`` evaluations each."""

    family: ClassVar[str] = "decoupled"
    clean: ClassVar[bool] = True

    ddim_steps: int

    @abstractmethod
    def begin(self, z: Tensor, run: Run) -> State:
        """The state of a seed."""

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """The level of the seed, at every iteration."""
        return steady(seed_levels(prior, self.ddim_steps)[0], steps)

    def below(self, schedule: Schedule, sigma: float, steps: int | None) -> Schedule:
        if sigma == schedule.sigmas[0]:
            return super().below(schedule, sigma, steps)
        raise InputError(
            f"{self.name} fits the seed of a whole reverse diffusion, at sigma = {schedule.sigmas[0]:g}, and starts at "
            "no other level: leave sigma_start (--sigma-start) out and give x_init alone, or take diffpir, which does"
        )

    def init(self, run: Run) -> State:
        return self.begin(run.rng.normal(run.like), run)

    def start(self, run: Run, x_init: Tensor) -> State:
        sigma = seed_levels(run.prior, self.ddim_steps)[0]
        seed = to_seed(x_init.add(run.rng.normal(x_init), alpha=sigma), run, sigma)
        return replace(self.begin(seed, run), x=x_init, x0=x_init)
