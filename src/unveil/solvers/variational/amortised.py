"""What amortised solvers share: they learn from measurements of signals that the prior makes up."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...problem import Problem
from ...rng import Rng
from ..base import Run
from ..moves import ode
from .fitted import repeated, summary, to_unit, with_data

TOP = 5.0
"""The level, for [-1, 1], at which a signal begins as noise."""


class Learner(Protocol):
    """What :func:`simulated` reads of a solver."""

    @property
    def batch(self) -> int: ...
    @property
    def measurements(self) -> int: ...
    @property
    def prior_steps(self) -> int: ...


def simulated(solver: Learner, run: Run, rng: Rng) -> tuple[Problem, Tensor, Tensor]:
    """Measurements of made-up signals, ``batch / measurements`` rows of each, and what they say and come from.

    ``rng`` has one row for each of B measurements of the run, every one of which learns from measurements of its own.
    Signals are drawn by Euler steps of the prior's ODE. Returns the problem with B * batch rows; :func:`summary` of
    them in units of [-1, 1], and the signals in the same units, both [B, batch, *shape].
    """
    count, shape, prior = solver.measurements, run.problem.shape, run.prior
    own = Rng([(seed, k) for seed, _ in rng.keys for k in range(count)], rng.step, "simulate")
    bare = repeated(run.problem, run.samples, count)
    top = min(TOP * run.scale, prior.sigma_range[1])
    noise = own.normal(bare.like)
    start = sum(run.problem.value_range) / 2 + top * noise
    x = ode(prior, start, top, max(0.01 * run.scale, prior.sigma_range[0]), solver.prior_steps)
    measured = with_data(bare, bare.noise.sample(bare.operator(x), own, bare.operator.measured))
    # draw j is of measurement j modulo count, so that z and -z, half a batch apart, belong to the same one
    index = torch.arange(len(x), device=x.device).reshape(-1, 1, count).expand(-1, solver.batch // count, -1).flatten()
    forms = (len(rng.keys), solver.batch, *shape)
    centre, truth = (to_unit(t[index], run.problem).reshape(forms) for t in (summary(measured), x))
    return measured.rows(index), centre, truth
