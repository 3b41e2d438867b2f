"""Signals of one axis, of three and of two channels that are one complex image: explicit and variational solvers."""

from __future__ import annotations

import pytest
import torch

import unveil
from unveil.operators import Inpainting

SHORT = {
    "dpps": {"candidates": 3},
    "dmap": {"ascents": 1},
    "snips": {"step_size": 0.5},
    "aps": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2, "couplings": 1},
    "davi": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2},
    "score-prior": {"batch": 4, "ode_steps": 2, "hidden": 2, "couplings": 2},
    "score-prior-surrogate": {"batch": 4, "hidden": 2, "couplings": 2},
}
NAMES = [*unveil.list_solvers("explicit"), *unveil.list_solvers("variational")]


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
