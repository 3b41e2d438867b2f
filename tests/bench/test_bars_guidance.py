"""What the gradient- and covariance-guided explicit solvers must reach on problems with known answers."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.bench.bars import at_the_floor, draw, failures, half_way
from unveil.bench.exact import judge, make_yardstick
from unveil.bench.families import RANGE, exact_problem, get_problem
from unveil.operators import Blur, Inpainting, gaussian_kernel
from unveil.priors import GaussianPrior
from unveil.solvers import get_solver

ISO = ("iso-mask-0", "iso-mask-0.5", "iso-blur-0.05")


@pytest.mark.parametrize("guidance", ["I", "II"])
def test_peng_is_at_the_floor_where_the_covariance_is_a_multiple_of_the_identity(guidance):
    assert not failures(at_the_floor(get_solver("peng", guidance=guidance), ISO, 1.5))


@pytest.mark.parametrize("guidance", ["I", "II"])
@pytest.mark.parametrize(
    ("operator", "sigma_y"), [(Inpainting(torch.eye(8)), 0.05), (Blur(gaussian_kernel(0.8, 5)), 0.1)]
)
def test_peng_is_at_the_floor_where_the_covariance_is_diagonal(guidance, operator, sigma_y):
    # standard deviations from 0.2 to 1; the posterior given a blur is not diagonal, its family is all that has to be
    prior = GaussianPrior(torch.zeros(1, 8, 8), torch.linspace(0.2, 1.0, 64) ** 2, value_range=RANGE)
    problem = exact_problem("diagonal", prior, operator, sigma_y)
    solver = get_solver("peng", guidance=guidance, threshold=math.inf, iterations=60)
    row = judge(problem, draw(problem, solver, 400), make_yardstick(problem, 400))
    assert row["w2_floor"] < 1.5
    assert row["sw2_floor"] < 1.5


def test_peng_is_not_for_another_covariance():
    assert failures(at_the_floor(get_solver("peng", guidance="II"), ["texture-mask-0"], 1.5))


def test_no_estimate_of_a_variance_lets_peng_run_away_without_noise():
    assert not failures(at_the_floor(get_solver("peng"), ["texture-mask-0"], 2.0, samples=1000))


@pytest.mark.parametrize("problem", ["plane-row-0.05", "iso-mask-0", "iso-mask-0.5"])
def test_tmpd_is_at_the_floor_where_the_covariance_of_the_data_is_diagonal(problem):
    assert not failures(at_the_floor(get_solver("tmpd"), [problem], 1.5))


def test_tmpd_is_not_where_it_is_not():
    assert failures(at_the_floor(get_solver("tmpd"), ["iso-blur-0.05"], 1.5))


@pytest.mark.parametrize("solver", ["peng", "tmpd"])
def test_with_equal_noise_and_prior_the_mean_is_half_the_data(solver):
    assert not failures(half_way(get_solver(solver)))


@pytest.mark.parametrize("problem", ["iso-mask-0", "texture-mask-0", "texture-down-0", "clusters-dense-0"])
def test_mcg_reproduces_the_data(problem):
    known = get_problem(problem).problem
    x = draw(get_problem(problem), get_solver("mcg"), 4, steps=50)
    assert float((known.operator(x) - known.y).abs().max()) < 1e-4


def test_dmps_is_right_in_the_limit_of_a_broad_prior():
    # it takes the prior for flat: that is so with a standard deviation of 100 against noise of 1, not with one of 1
    distances = []
    for std in (1.0, 100.0):
        prior = GaussianPrior(torch.zeros(16), std**2, value_range=RANGE)
        problem = exact_problem("broad", prior, Inpainting(torch.ones(16)), 1.0)
        x = draw(problem, get_solver("dmps", lam=1.0), 400, steps=300)
        distances.append(judge(problem, x, make_yardstick(problem, 400))["w2_floor"])
    assert distances[1] < 1.5 < distances[0]
