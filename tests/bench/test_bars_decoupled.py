"""What the decoupled solvers must reach on problems with known answers."""

from __future__ import annotations

import pytest
import torch

from unveil import Gaussian, Poisson, Problem, get_solver, solve
from unveil.bench.bars import at_the_floor, draw, failures, improving, masked_blur, reproduces
from unveil.bench.families import get_problem
from unveil.operators import Identity
from unveil.operators.base import Operator
from unveil.priors.base import Prior

# -- DAPS: around the posterior mean, near the floor on Gaussians ------------------------------------------------------


@pytest.mark.parametrize("options", [{"inner": "exact"}, {}, {"inner": "hmc", "inner_steps": 20}])
def test_daps_is_near_the_floor_on_blurs(options):
    problems = ["iso-blur-0.05", "texture-blur-0.05"]
    assert not failures(at_the_floor(get_solver("daps", **options), problems, 1.5, samples=200))


# -- pnp-dm: exact in the limit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["texture-mask-0.05", "iso-blur-0.05"])
def test_more_steps_of_pnp_dm_come_closer_to_the_floor(problem):
    assert not failures(improving(get_solver("pnp-dm"), problem, (8, 20, 60)))


def test_too_few_do_not_reach_it():
    assert failures(improving(get_solver("pnp-dm"), "texture-mask-0.05", (4, 8)))


# -- projections -------------------------------------------------------------------------------------------------------


PROJECTED = ["iso-mask-0", "texture-mask-0", "texture-down-0", "clusters-dense-0"]


@pytest.mark.parametrize("name", ["projdiff", "resample", "diffpir", "ddnm"])
def test_projections_reproduce_data_without_noise(name):
    assert not failures(reproduces(get_solver(name), PROJECTED))


@pytest.mark.parametrize("name", ["resample", "diffpir", "ddnm"])
def test_so_they_do_without_a_spectral_form(name):
    assert not failures(reproduces(get_solver(name), [masked_blur()]))


def test_a_descent_that_is_cut_short_does_not():
    solver = get_solver("resample", optimizer="adam", inner_steps=5)
    assert failures(reproduces(solver, PROJECTED[:1]))


# -- the discrepancy principle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [("sitcom", {"lr": 0.05}, 12), ("dmplug", {"lr": 0.05}, 120), ("resample", {}, 30)],
)
def test_solvers_rest_at_the_noise(name, options, steps):
    exact = get_problem("iso-mask-0.5")
    x = draw(exact, get_solver(name, **options), 10, steps)
    misfit = exact.problem.residual(x).square().flatten(1).sum(1) / (exact.problem.m * exact.problem.sigma_y**2)
    assert float(misfit.max()) < 1.02
    assert float(misfit.min()) > 0.8, "the noise is fitted"


def test_without_a_stop_the_noise_is_fitted():
    exact = get_problem("iso-mask-0.5")
    x = draw(exact, get_solver("dmplug", lr=0.05, stop="none"), 10, 120)
    misfit = exact.problem.residual(x).square().flatten(1).sum(1) / (exact.problem.m * exact.problem.sigma_y**2)
    assert float(misfit.max()) < 0.7


# -- non-linear and non-Gaussian: independent values, each with a posterior that quadrature gives ----------------------

N = 2048


class Independent(Prior):
    """N(mean, var) for each of N values."""

    shape, sigma_range = (N,), (0.002, 80.0)

    def __init__(self, mean, var, value_range):
        self.mean, self.var, self.value_range = mean, var, value_range

    def denoise(self, x, sigma):
        return self.mean + (x - self.mean) * (self.var / (self.var + sigma**2))


class Bent(Operator):
    """y = x + x^3 / 2."""

    in_shape = (N,)

    def __call__(self, x):
        return x + 0.5 * x**3


def bent():
    prior = Independent(0.0, 0.25, (-1.0, 1.0))
    x = 0.5 * torch.randn(1, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return prior, Problem.simulate(x, Bent(), Gaussian(0.3), 0, prior.value_range)


def counts():
    prior = Independent(0.5, 0.04, (0.0, 1.0))  # some values are below 0, where there is no light
    x = 0.5 + 0.2 * torch.randn(1, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return prior, Problem.simulate(x, Identity((N,)), Poisson(30.0), 0)


def posterior(prior, problem):
    """Mean and standard deviation of each value, by quadrature."""
    grid = prior.mean + prior.var**0.5 * torch.linspace(-6, 6, 601, dtype=torch.float64)
    rows = grid[:, None].expand(-1, N)
    # every value by itself: as a measurement [1] in a batch of all of them
    y, clean = problem.y.expand_as(rows).reshape(-1, 1), problem.operator(rows).reshape(-1, 1)
    log = problem.noise.log_prob(y, clean).reshape(rows.shape) - (rows - prior.mean) ** 2 / (2 * prior.var)
    weight = torch.softmax(log, 0)
    mean = (weight * rows).sum(0)
    return mean, ((weight * rows**2).sum(0) - mean**2).sqrt()


@pytest.mark.parametrize("make", [bent, counts])
def test_pnp_dm_by_langevin_steps_samples_the_posterior_and_improves_with_sweeps(make):
    prior, problem = make()
    mean, std = posterior(prior, problem)
    spread = []
    for sweeps in (5, 12, 40):
        z = (solve(problem, prior, "pnp-dm", steps=sweeps).samples[0, 0] - mean) / std
        spread.append(float(z.square().mean().sqrt()))
    assert spread[0] > spread[1] > spread[2]
    assert 0.95 < spread[2] < 1.1
    assert abs(float(z.mean())) < 0.08


def test_daps_on_a_steep_operator_stays_where_the_posterior_is():
    # from ten times the range a cubic throws a plain Langevin step ever further out
    prior, problem = bent()
    mean, std = posterior(prior, problem)
    z = (solve(problem, prior, "daps", steps=40).samples[0, 0] - mean) / std
    assert 0.9 < float(z.square().mean().sqrt()) < 1.1
