"""The projected and the annealed solvers keep their promises with other options too."""

from __future__ import annotations

import math

import pytest
import torch

import unveil
from unveil.operators import Blur, Inpainting, Matrix, Quantize, gaussian_kernel
from unveil.priors import GaussianPrior
from unveil.solvers.checks import cases, check_batch, check_range, check_recipe, check_solver

OPTIONS = [
    ("ddpg", {"inject": False, "decay": False}),
    ("kadkhodaie-simoncelli", {"h0": 0.2, "beta": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_their_promises(name, options):
    found = check_solver(unveil.get_solver(name, **options))
    assert all(deviation <= 1e-8 for _, deviation in found), found


@pytest.mark.parametrize("operator", [Blur(gaussian_kernel(0.7, 3)), Matrix(torch.rand(5, 16) + torch.eye(5, 16))])
def test_a_gain_of_infinite_variance_is_the_pseudo_inverse(operator):
    shape = (16,) if isinstance(operator, Matrix) else (1, 4, 4)
    x = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noisy = unveil.Problem.simulate(x, operator, 0.1)
    clean = unveil.Problem(noisy.y, operator, 0.0, shape=shape)
    torch.testing.assert_close(noisy.gain(noisy.y, math.inf), clean.pinv())


def test_score_sde_takes_noise_where_it_does_not_put_the_data_back_whole():
    generator = torch.Generator().manual_seed(4)
    i = torch.arange(64, dtype=torch.float64)
    prior = GaussianPrior(
        torch.full((64,), 0.5), 0.04 * torch.exp(-(((i[:, None] - i) / 8) ** 2)) + 1e-4 * torch.eye(64)
    )
    mask = (torch.rand(64, generator=generator) < 0.7).double()
    truth = prior.sample(16, 2, torch.float64)
    problem = unveil.Problem.simulate(truth, Inpainting(mask), 0.1, 3)
    whole, part = unveil.get_solver("score-sde"), unveil.get_solver("score-sde", weight=0.2)
    assert whole.unfit(problem) == "it needs a measurement without noise, with noise take ddnm, or weight < 1"
    assert part.unfit(problem) is None
    assert part.unfit(unveil.Problem.simulate(truth, Quantize(2), 0.1)) == "it needs a linear operator"
    x = unveil.solve(problem, prior, part, steps=100).samples[:, 0]
    assert float((mask * (x - truth)).std()) < 0.75 * float((mask * (problem.y - truth)).std())
    # without noise the data come back whole at the end, whatever the weight
    exact = unveil.Problem.simulate(truth, Inpainting(mask), 0.0)
    x = unveil.solve(exact, prior, part, steps=10).samples[:, 0]
    torch.testing.assert_close(mask * x, exact.y)


def test_score_sde_keeps_its_promises_with_noise():
    solver = unveil.get_solver("score-sde", weight=0.7)
    for case in cases():
        for check in (check_recipe, check_batch, check_range):
            assert check(solver, case) <= 1e-8
