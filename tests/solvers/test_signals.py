"""Signals of one axis, of three and of two channels that are one complex image: explicit and variational solvers."""

from __future__ import annotations

import pytest
import torch

import unveil
from unveil.operators import Inpainting
from unveil.solvers.variational import FITTED

SHORT = {"dpps": {"candidates": 3}, "dmap": {"ascents": 1}, "snips": {"step_size": 0.5}}
NAMES = [*unveil.list_solvers("explicit"), *(n for n in unveil.list_solvers("variational") if n not in FITTED)]


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_signals_of_any_shape(name, shape):
    prior = unveil.priors.GaussianPrior(torch.full(shape, 0.4), 0.04)
    mask = torch.ones(shape[-1])
    mask[1] = 0
    problem = unveil.Problem.simulate(prior.sample(2, 1), Inpainting(mask, in_shape=shape), 0.1)
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    if solver.unfit(problem):
        problem = unveil.Problem.simulate(prior.sample(2, 1), Inpainting(mask, in_shape=shape), 0)
    result = unveil.solve(problem, prior, solver, samples=2, steps=3)
    assert result.samples.shape == (2, 2, *shape)
    assert bool(torch.isfinite(result.samples).all())


@pytest.mark.parametrize("name", NAMES)
def test_complex_images_as_two_channels(name):
    prior = unveil.priors.GaussianPrior(torch.zeros(2, 4, 4), 0.04)
    mask = torch.ones(4)
    mask[1] = 0
    operator = unveil.operators.MRI(mask, in_shape=(2, 4, 4))
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    problem = unveil.Problem.simulate(prior.sample(2, 1), operator, 0.1)
    if solver.unfit(problem):
        problem = unveil.Problem.simulate(prior.sample(2, 1), operator, 0)
    result = unveil.solve(problem, prior, solver, samples=2, steps=3)
    assert result.samples.shape == (2, 2, 2, 4, 4)
    assert bool(torch.isfinite(result.samples).all())
