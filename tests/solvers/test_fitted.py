"""Solvers that learn a network: flows and likelihoods, what is learned ahead of time, and its files."""

from __future__ import annotations

import pytest
import torch

import unveil
from unveil.errors import CheckpointError, InputError
from unveil.operators import Identity, Matrix
from unveil.priors import GaussianPrior
from unveil.run.fit import unfinished
from unveil.solvers.base import State
from unveil.solvers.variational import FITTED
from unveil.solvers.variational.flows import Flow
from unveil.solvers.variational.likelihood import bound_score, ode_levels, ode_log_prob, unit_probes

RANGE = (-1.0, 1.0)
SHORT = {
    "aps": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2, "couplings": 1},
    "davi": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2},
    "score-prior": {"batch": 4, "ode_steps": 2, "hidden": 4},
    "score-prior-surrogate": {"batch": 4, "hidden": 4},
}


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- flows and likelihoods --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "conditional"), [((1,), False), ((5,), True), ((1, 34, 34), False), ((1500,), True)])
def test_a_flow_goes_back_the_way_it_came(shape, conditional):
    flow = Flow(shape, 3, 6, conditional)
    theta = flow.start().repeat(2, 1)
    theta = theta + 0.1 * draws(*theta.shape)
    z, c = draws(2, 3, *shape, seed=1), draws(2, 1, *shape, seed=2) if conditional else None
    x, logdet = flow.forward(theta, z, torch.zeros(()), c)
    back, again = flow.inverse(theta, x, torch.zeros(()), c)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(again, logdet)
    assert float((x - z).abs().mean()) > 0.1


def test_the_determinant_of_a_flow():
    flow = Flow((5,), 3, 6)
    theta = flow.start() + 0.2 * draws(1, flow.layout.size)
    z = draws(5)
    jacobian = torch.autograd.functional.jacobian(lambda u: flow.forward(theta, u[None, None], torch.zeros(()))[0], z)
    logdet = flow.forward(theta, z[None, None], torch.zeros(()))[1]
    assert float(jacobian.reshape(5, 5).det().abs().log()) == pytest.approx(float(logdet), rel=1e-9)


def test_the_ode_gives_log_p_and_its_slope():
    root = draws(4, 4)
    prior = GaussianPrior(0.3 * draws(4, seed=1), root @ root.T / 4 + 0.05 * torch.eye(4), value_range=RANGE)
    x = prior.sample(3, 0, torch.float64)
    levels = ode_levels(prior, 60, 0.01, 20.0)
    value, slope = ode_log_prob(prior, x, levels, unit_probes(x))
    torch.testing.assert_close(value, prior.log_prob(x, levels[0]), rtol=0, atol=0.1)
    torch.testing.assert_close(slope, prior.score(x, levels[0]), rtol=0.02, atol=0.02)


def test_the_slope_of_the_bound_is_that_of_log_p_on_average():
    prior = GaussianPrior(torch.zeros(2), 0.25, value_range=RANGE)
    x = torch.tensor([[0.4, -0.2]], dtype=torch.float64).expand(20000, 2)
    share = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    found = bound_score(prior, x, 0.01, 20.0, share, draws(20000, 2)).mean(0)
    torch.testing.assert_close(found, prior.score(x[:1], 0.01)[0], rtol=0, atol=0.1)


# -- what is learned --------------------------------------------------------------------------------------------------


def case(rows=2, n=5):
    prior = GaussianPrior(torch.zeros(n), 0.3, value_range=RANGE)
    y = prior.sample(rows, 3, torch.float64)[:, :3]
    return unveil.Problem(y, Matrix(draws(3, n)), unveil.Gaussian(0.2), value_range=RANGE), prior


@pytest.mark.parametrize("name", FITTED)
def test_a_fit_gives_the_samples_of_the_run_that_it_replaces(name, tmp_path):
    (problem, prior), solver = case(), unveil.get_solver(name, **SHORT[name])
    if solver.amortised:
        problem = problem[0]
    whole = unveil.solve(problem, prior, solver, samples=3, steps=6)
    file = tmp_path / "learned.safetensors"
    unveil.fit(problem, prior, solver, file, steps=6)
    again = unveil.solve(problem, prior, solver.with_options(fitted=str(file)), samples=3)
    assert again.recipe["steps"] == 1
    assert again.nfe == 0
    torch.testing.assert_close(again.samples, whole.samples, rtol=0, atol=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_fit_serves_its_measurements_in_any_order(tmp_path):
    (problem, prior), solver = case(), unveil.get_solver("score-prior", **SHORT["score-prior"])
    file = tmp_path / "learned.safetensors"
    unveil.fit(problem, prior, solver, file, steps=4)
    from_file = solver.with_options(fitted=str(file))
    both = unveil.solve(problem, prior, from_file, samples=2).samples
    second = unveil.solve(problem[1], prior, from_file, samples=2).samples
    torch.testing.assert_close(second[0], both[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in FITTED if unveil.get_solver(n).amortised])
def test_an_amortised_fit_serves_every_measurement(name, tmp_path):
    (problem, prior), solver = case(), unveil.get_solver(name, **SHORT[name])
    file = tmp_path / "learned.safetensors"
    unveil.fit(problem, prior, solver, file, steps=6)
    solver = solver.with_options(fitted=str(file))
    others = unveil.Problem(problem.y.flip(0) + 0.1, problem.operator, problem.noise, value_range=RANGE)
    found = unveil.solve(others, prior, solver, samples=2)
    assert found.nfe == 0
    assert float((found.samples - unveil.solve(problem, prior, solver, samples=2).samples).abs().min()) > 0


@pytest.mark.parametrize("name", FITTED)
def test_an_interrupted_fit_goes_on_to_the_same_bits(name, tmp_path):
    (problem, prior), solver = case(), unveil.get_solver(name, **SHORT[name])
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    unveil.fit(problem, prior, solver, whole, steps=6)

    def interrupt(state: State, run: object) -> None:
        if state.i == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unveil.fit(problem, prior, solver, parts, steps=6, on_step=interrupt)
    assert not parts.exists()
    assert unfinished(parts).is_file()
    with pytest.raises(CheckpointError, match="another run"):
        unveil.fit(problem, prior, solver, parts, steps=7, resume=True)
    unveil.fit(problem, prior, solver, parts, steps=6, resume=True)
    assert parts.read_bytes() == whole.read_bytes()
    assert not unfinished(parts).exists()


def test_files_that_do_not_fit_are_refused_before_anything_is_computed(tmp_path):
    (problem, prior), solver = case(), unveil.get_solver("score-prior", **SHORT["score-prior"])
    file = tmp_path / "learned.safetensors"
    unveil.fit(problem, prior, solver, file, steps=2)
    learned = solver.with_options(fitted=str(file))

    def refused(problem, prior, solver, why):
        with pytest.raises(InputError, match=why) as caught:
            unveil.stream(problem, prior, solver)
        assert "\n" not in str(caught.value)

    other = unveil.Problem(problem.y + 0.1, problem.operator, problem.noise, value_range=RANGE)
    refused(other, prior, learned, "other measurements")
    wider = GaussianPrior(torch.zeros(5), 0.4, value_range=RANGE)
    refused(problem, wider, learned, "another prior:")
    noisier = unveil.Problem(problem.y, problem.operator, unveil.Gaussian(0.3), value_range=RANGE)
    refused(noisier, prior, learned, "another noise:")
    small, its = (
        unveil.Problem(problem.y, Identity(), problem.noise, value_range=RANGE),
        GaussianPrior(torch.zeros(3), 0.3, value_range=RANGE),
    )
    refused(small, its, learned, "another network, shape, operator")
    refused(problem, prior, learned.with_options(hidden=5), "another network:")
    file.write_bytes(file.read_bytes()[:-100])
    refused(problem, prior, learned, "truncated or not a fit")
    refused(problem, prior, solver.with_options(fitted=str(tmp_path / "nothing")), "there is no file")


def test_what_cannot_be_fitted_is_said(tmp_path):
    problem, prior = case()
    with pytest.raises(InputError, match=r"dps learns nothing ahead of time: .*score-prior"):
        unveil.fit(problem, prior, "dps", tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a \.safetensors file"):
        unveil.fit(problem, prior, "score-prior", tmp_path / "a.bin")
    with pytest.raises(InputError, match="even number"):
        unveil.get_solver("score-prior", batch=3)
    exact = unveil.Problem(problem.y, problem.operator, 0.0, value_range=RANGE)
    with pytest.raises(unveil.NotCompatible, match="red-diff takes data without noise"):
        unveil.fit(exact, prior, "score-prior", tmp_path / "a.safetensors")
