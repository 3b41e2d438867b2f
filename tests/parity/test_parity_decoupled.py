"""The decoupled solvers agree with their published algorithms; what each record holds is said in it."""

from __future__ import annotations

import harness
import pytest
import torch
from harness import SHAPE, check_parity, load, prior, truth, waves

from unveil import Gaussian, Problem, get_solver
from unveil.operators.base import Linear, Operator


class Bent(Operator):
    """y = x + x^3 / 2."""

    in_shape = SHAPE

    def __call__(self, x):
        return x + 0.5 * x**3


class Hidden(Linear):
    """The blur of the harness without its spectral form, on which a Markov chain is walked."""

    in_shape = SHAPE

    def __call__(self, x):
        return harness.operator("blur")(x)

    def adjoint(self, y):
        return harness.operator("blur").adjoint(y)


def own_problem(name, sigma_y=0.05):
    A = Bent() if name == "bent" else Hidden()
    return Problem(
        A(truth()) + sigma_y * waves(1, *SHAPE, pace=2.1), A, Gaussian(sigma_y), SHAPE, value_range=(-1.0, 1.0)
    )


@pytest.mark.parametrize(
    "name",
    ["bird", "dcdp", "diffpir", "dmplug", "pnp-dm", "projdiff", "projdiff-noiseless", "resample", "sitcom"],
)
def test_the_published_algorithm_step_by_step(name):
    check_parity(name)


@pytest.mark.parametrize("name", ["daps", "pnp-dm-nonlinear"])
def test_those_with_a_markov_chain(name, monkeypatch):
    monkeypatch.setattr(harness, "problem", own_problem)
    check_parity(name)


@pytest.mark.parametrize("name", ["bird", "dcdp", "diffpir", "dmplug", "pnp-dm", "projdiff", "resample", "sitcom"])
def test_the_levels_are_the_solvers_own(name):
    record = load(name)
    solver = get_solver(name, **record["options"])
    ours = solver.schedule(prior(), len(record["sigmas"]) - 1).sigmas
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(record["sigmas"]), rtol=1e-6, atol=0)
