"""Models chosen by their evidence: closed forms against plain integrals, estimates against closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import unveil
from unveil.errors import InputError, NotCompatible
from unveil.noise import FullGaussian, Gaussian, Poisson
from unveil.operators import Identity, Matrix
from unveil.priors import GaussianMixturePrior, GaussianPrior
from unveil.problem import Problem
from unveil.solvers.base import Solver

PRIOR = GaussianPrior([0.2, -0.1], [[0.5, 0.2], [0.2, 0.3]], value_range=(-1, 1))
MODES = GaussianMixturePrior([0.4, 0.6], [[-0.5, 0.3], [0.5, 0.1]], torch.tensor([0.1, 0.2]), value_range=(-1, 1))
A, B = torch.tensor([[1.0, 0.5]]), torch.tensor([[0.2, -1.0]])
Y = torch.tensor([[0.6]])


def problem(matrix=A, sigma=0.3, y=Y):
    return Problem(y, Matrix(matrix), sigma, value_range=(-1, 1))


@dataclass(frozen=True)
class Weighted(Solver):
    """Draws of the prior, weighted by the likelihood: an unbiased evidence."""

    coupled: ClassVar[bool] = True
    particles: ClassVar[int] = 2
    default_steps: ClassVar[int] = 1
    tells: bool = True
    dies: bool = False

    def step(self, state, run):
        root = torch.linalg.cholesky(PRIOR.covariance).to(state.x)
        x = PRIOR.mean.to(state.x) + run.rng.normal(state.x) @ root.T
        log_weights = run.problem.log_likelihood(x).double()
        aux = {"log_weights": log_weights - (math.inf if self.dies else 0)}
        if self.tells:
            aux["log_evidence"] = torch.zeros_like(log_weights)
        return state.next(x, x, **aux)


def normal(y, mean, var):
    return -0.5 * (y - mean) ** 2 / var - 0.5 * math.log(2 * math.pi * var)


def test_two_operators_in_closed_form():
    found = unveil.compare({"sum": problem(A), "difference": problem(B)}, PRIOR)
    c, m = PRIOR.covariance, PRIOR.mean
    want = {}
    for name, row in (("sum", A[0].double()), ("difference", B[0].double())):
        want[name] = normal(0.6, float(row @ m), float(row @ c @ row) + 0.09)
    for name, value in zip(found.names, found.log_evidence, strict=True):
        assert float(value) == pytest.approx(want[name], abs=1e-6)
    assert found.names[0] == found.best == max(want, key=want.get)
    odds = math.exp(want["sum"] - want["difference"])
    p = dict(zip(found.names, found.probability.tolist(), strict=True))
    assert p["sum"] / p["difference"] == pytest.approx(odds, rel=1e-5)
    assert found.log_bayes_factor("sum", "difference") == (pytest.approx(math.log(odds), abs=1e-6), 0.0)
    assert found.exact
    assert found.reliable


def two_priors():
    """Two Gaussian priors and the closed form of their Bayes factor: y is N(a m, a C a^T + sigma_y^2) under each."""
    wide = GaussianPrior([-0.3, 0.1], [[0.9, -0.3], [-0.3, 0.6]], value_range=(-1, 1))
    known = []
    for prior in (PRIOR, wide):
        a, c, m = A[0].double(), prior.covariance, prior.mean
        known.append(normal(0.6, float(a @ m), float(a @ c @ a) + 0.09))
    return {"narrow": PRIOR, "wide": wide}, known[0] - known[1]


def test_two_priors_in_closed_form():
    priors, factor = two_priors()
    found = unveil.compare(problem(), priors)
    assert found.log_bayes_factor("narrow", "wide") == (pytest.approx(factor, abs=1e-6), 0.0)
    assert found.best == ("narrow" if factor > 0 else "wide")
    odds = dict(zip(found.names, found.probability.tolist(), strict=True))
    assert odds["narrow"] / odds["wide"] == pytest.approx(math.exp(factor), rel=1e-5)


@pytest.mark.parametrize("solver", ["dcps", "fps-smc", "tds"])
def test_particle_methods_choose_as_the_closed_form_does(solver):
    """Two operators, two priors: the Bayes factor within four standard errors, of at most a tenth."""
    priors, factor = two_priors()
    operators = {"sum": problem(A), "difference": problem(B)}
    between = unveil.compare(operators, PRIOR).log_bayes_factor("sum", "difference")[0]
    for models, names, known in (
        ((operators, PRIOR), ("sum", "difference"), between),
        ((problem(), priors), ("narrow", "wide"), factor),
    ):
        found = unveil.compare(*models, solver, samples=128, repeats=16, steps=50)
        estimate, error = found.log_bayes_factor(*names)
        assert error < 0.1
        assert abs(estimate - known) < 4 * error
        assert abs(known) > 4 * error  # so that a coin would not do
        assert found.best == names[0 if known > 0 else 1]
        assert found.reliable


def test_two_priors_against_an_integral_on_a_grid():
    found = unveil.compare(problem(), [PRIOR, MODES])
    axis = np.linspace(-5, 5, 1001)
    x = torch.tensor(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
    log_likelihood = normal(0.6, (x @ A[0].double()).numpy(), 0.09)
    for prior in (PRIOR, MODES):
        total = np.exp(log_likelihood + prior.log_prob(x).numpy()).sum() * (axis[1] - axis[0]) ** 2
        at = [k for k, name in enumerate(found.names) if type(prior).__name__ == name.split()[0]]
        assert float(found.log_evidence[at[0]]) == pytest.approx(math.log(total), abs=1e-4)


def test_rows_add_up_and_odds_count():
    y = torch.tensor([[0.6], [0.1], [-0.4]])
    both = unveil.compare([problem(A, y=y), problem(B, y=y)], PRIOR)
    alone = [unveil.compare([problem(A, y=y[k : k + 1]), problem(B, y=y[k : k + 1])], PRIOR) for k in range(3)]
    total = sum(a.log_bayes_factor("matrix 1", "matrix 2")[0] for a in alone)
    assert both.log_bayes_factor("matrix 1", "matrix 2")[0] == pytest.approx(total, abs=1e-5)
    even = unveil.compare([problem(A), problem(B)], PRIOR)
    factor = even.log_bayes_factor("matrix 1", "matrix 2")[0]
    told = unveil.compare([problem(A), problem(B)], PRIOR, odds=[1, math.exp(factor)])
    assert told.probability.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_correlated_noise_has_the_density_of_y_itself():
    y = torch.tensor([[0.3, -0.2]])
    white = Problem(y, Identity(), Gaussian(0.3), value_range=(-1, 1))
    full = Problem(y, Identity(), FullGaussian(0.09 * torch.eye(2)), value_range=(-1, 1))
    for solver in (None, Weighted()):
        found = unveil.compare({"white": white, "full": full}, PRIOR, solver, samples=4000, repeats=16)
        factor, error = found.log_bayes_factor("white", "full")
        assert abs(factor) < (1e-4 if solver is None else 4 * error + 1e-4)


def test_an_estimate_agrees_with_the_closed_form_within_its_error():
    problems = {"sum": problem(A), "difference": problem(B)}
    exact = unveil.compare(problems, PRIOR)
    deviations = []
    for seed in range(10):
        found = unveil.compare(problems, PRIOR, Weighted(), samples=100, repeats=20, seed=seed)
        assert not found.exact
        for name in problems:
            i, j = found.names.index(name), exact.names.index(name)
            assert 0 < float(found.error[i]) < 0.1
            deviations.append(float((found.log_evidence[i] - exact.log_evidence[j]) / found.error[i]))
            spread = (found.probability[i] - exact.probability[j]) / found.probability_error[i]
            assert abs(float(spread)) < 5
    # twenty standard normal numbers: their mean square has a standard deviation of 0.32
    assert 0.3 < sum(d**2 for d in deviations) / len(deviations) < 2.3
    assert max(map(abs, deviations)) < 4


def test_few_particles_are_said_to_be_too_few():
    found = unveil.compare([problem(A, 0.001), problem(B, 0.001)], PRIOR, Weighted(), samples=4, repeats=4)
    assert not found.reliable
    assert "more samples" in str(found)


def test_what_is_printed():
    text = str(unveil.compare({"sum": problem(A), "difference": problem(B)}, PRIOR, Weighted()))
    assert {line.split()[0] for line in text.splitlines()} == {"model", "sum", "difference"}
    assert len({line.index("±") for line in text.splitlines()[1:]}) == 1
    assert "±" not in str(unveil.compare([problem(A), problem(B)], PRIOR))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unveil.compare(problem(), PRIOR), "at least two models"),
        (lambda: unveil.compare([problem()] * 2, [PRIOR] * 3), "2 problems and 3 priors"),
        (lambda: unveil.compare([problem(), problem(y=Y + 1)], PRIOR), "different data"),
        (lambda: unveil.compare(PRIOR, [problem()]), "problems first"),
        (lambda: unveil.compare([problem(), problem(B, 0)], PRIOR), "has no noise"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, "dps"), "dps gives no evidence"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, "dsp"), "did you mean .*dps"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, Weighted(tells=False)), "Weighted gives no evidence"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, Weighted(), repeats=1), "at least 2 repeats"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, Weighted(), samples=1), "at least 2 particles"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, Weighted(dies=True)), "diverged"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR, odds=[1, 0]), "odds are 2 numbers above zero"),
        (lambda: unveil.compare([problem(), problem(B)], PRIOR).log_bayes_factor("a", "b"), "no model 'a'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(unveil.UnveilError, match=message):
        call()


def test_no_closed_form():
    counts = Problem(torch.tensor([[0.5]]), Matrix(A), Poisson(10.0), value_range=(-1, 1))
    with pytest.raises(NotCompatible, match="name a particle method"):
        unveil.compare([counts, Problem(counts.y, Matrix(B), Poisson(10.0), value_range=(-1, 1))], PRIOR)
    with pytest.raises(InputError, match="a probability and a density"):
        unveil.compare([counts, problem(y=counts.y)], PRIOR)
