"""The projected and the annealed solvers keep their promises with other options too."""

from __future__ import annotations

import math

import pytest
import torch

import unveil
from unveil.operators import (
    MRI,
    Blur,
    Fourier,
    Inpainting,
    Matrix,
    ParallelBeam,
    Quantize,
    gaussian_kernel,
    random_lines,
    views,
)
from unveil.priors import GaussianPrior
from unveil.rng import single
from unveil.schedules import Schedule
from unveil.solvers.base import Run
from unveil.solvers.checks import cases, check_batch, check_range, check_recipe, check_solver
from unveil.solvers.explicit.score_sde import inverse
from unveil.solvers.moves import replaced

OPTIONS = [
    ("ddpg", {"inject": False, "decay": False}),
    ("kadkhodaie-simoncelli", {"h0": 0.2, "beta": 0.5}),
    ("score-ald", {"keep_level": True, "inner_steps": 2}),
    ("snips", {"keep_level": True, "step_size": 1.0}),
    ("smrd", {"keep_level": True, "repeats": 1}),
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


# what a step of this length leaves, in variance: 1 / (1 - e / 2) with e = 1 / 2, 1 / 2 and 1.148
@pytest.mark.parametrize(("name", "excess"), [("score-ald", 4 / 3), ("snips", 4 / 3), ("smrd", 1 / (1 - 0.574))])
@pytest.mark.parametrize("keep_level", [False, True])
def test_the_level_of_what_is_not_seen(name, excess, keep_level):
    inner = {"repeats": 40, "tune": 0.0} if name == "smrd" else {"inner_steps": 40}
    mask = (torch.arange(2000) < 200).double()
    prior = GaussianPrior(torch.full((2000,), 0.5), 1e-8)  # the denoiser knows the signal
    problem = unveil.Problem(torch.full((1, 2000), 0.5).double() * mask, Inpainting(mask), unveil.Gaussian(1e-3))
    solver = unveil.get_solver(name, keep_level=keep_level, **inner)
    state = next(iter(unveil.stream(problem, prior, solver, schedule=Schedule((0.3, 0.2, 0.0)))))
    unseen = ((state.x - 0.5)[:, mask == 0] / 0.3).square().mean()
    assert float(unseen) == pytest.approx(1.0 if keep_level else excess, rel=0.1)


# -- the medical form -------------------------------------------------------------------------------------------------


def noiseless(operator, shape, n=3):
    x = torch.rand(n, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return unveil.Problem.simulate(x, operator, 0.0), x


def symmetric(size):
    """A random mask of the Fourier plane, in the order of fft2, that has k where it has -k."""
    mask = torch.rand(size, generator=torch.Generator().manual_seed(6)) < 0.3
    return (mask | mask.flip(0, 1).roll((1, 1), (0, 1))).double()


FORM_WORDS = ("nearest", "transform")

FORMS = {
    "mri": (MRI(random_lines((12, 10), 3, centre=0.2)), (2, 12, 10)),
    "fourier": (Fourier(symmetric((8, 9))), (1, 8, 9)),
    "masked fourier": (Inpainting(symmetric((8, 9))) @ Fourier(torch.ones(8, 9)), (1, 8, 9)),
    "masked matrix": (
        Inpainting((torch.arange(16) % 3 > 0).float())
        @ Matrix(torch.eye(16) + 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(7))),
        (16,),
    ),
    "masked blur": (Inpainting((torch.arange(8) % 2).float()) @ Blur(gaussian_kernel(0.6, 3)), (1, 8, 8)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_the_medical_form_replaces_chosen_values_of_the_transform(name, weight):
    """x <- T^-1 [weight Lambda y_t + (1 - weight Lambda) T x], y_t = y + sigma T z, with T as a matrix."""
    operator, shape = FORMS[name]
    problem, x = noiseless(operator, shape)
    sigma = 0.7
    noise = single(9, 3)
    run = Run(problem, GaussianPrior(torch.zeros(shape), 1.0), Schedule((1.0, 0.0)), single(9, 3))
    found = replaced(x + 1, sigma, run, weight, inverse(operator))

    whole = {"mri": MRI(torch.ones(12, 10)), "fourier": Fourier(torch.ones(8, 9))}.get(name)
    T = operator.inner if whole is None else whole
    mask = (operator.measured > 0).double()
    y_t = problem.y + mask * T(sigma * noise.normal(x))
    wanted = weight * mask * y_t + (1 - weight * mask) * T(x + 1)
    torch.testing.assert_close(T(found), wanted, rtol=0, atol=1e-9)
    if weight == 1:  # what was imputed is exact
        torch.testing.assert_close(operator(found), mask * y_t, rtol=0, atol=1e-9)
    nearest = replaced(x + 1, sigma, Run(problem, run.prior, run.schedule, single(9, 3)), weight)
    same = float((found - nearest).abs().max()) < 1e-9
    assert same == (name not in ("masked matrix", "masked blur"))


@pytest.mark.parametrize("name", FORMS)
def test_the_medical_form_reproduces_the_data_and_keeps_promises(name):
    operator, shape = FORMS[name]
    problem, _ = noiseless(operator, shape)
    solver = unveil.get_solver("score-sde", form="transform")
    assert solver.unfit(problem) is None
    prior = GaussianPrior(torch.full(shape, 0.5), 0.05)
    x = unveil.solve(problem, prior, solver, steps=8, seed=1).samples[:, 0]
    torch.testing.assert_close(operator(x), problem.y, rtol=0, atol=1e-8)
    one_by_one = unveil.solve(problem, prior, solver, steps=8, seed=1, chunk=1).samples[:, 0]
    torch.testing.assert_close(one_by_one, x, rtol=0, atol=1e-9)


def test_the_medical_form_is_that_of_2021_for_mri():
    problem, _ = noiseless(*FORMS["mri"])
    prior = GaussianPrior(torch.zeros(2, 12, 10), 0.1)
    results = [unveil.solve(problem, prior, unveil.get_solver("score-sde", form=f), steps=8) for f in FORM_WORDS]
    torch.testing.assert_close(results[0].samples, results[1].samples, rtol=0, atol=1e-8)


def test_the_medical_form_takes_tomography_by_filtered_back_projection():
    size = (16, 16)
    scan = ParallelBeam(views(40), size)
    some = Inpainting((torch.arange(40) % 4 == 0).float()[:, None]) @ scan
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    x = torch.exp(-((row - 7) ** 2 + (column - 9) ** 2) / 12)[None, None].double()
    problem = unveil.Problem.simulate(x, some, 0.0)
    # of all the views it is an inverse, as good as filtered back-projection is
    assert float((inverse(Inpainting(torch.ones(40, 1)) @ scan)(scan(x)) - x).square().mean().sqrt()) < 0.03
    solver = unveil.get_solver("score-sde", form="transform")
    assert solver.unfit(problem) is None
    prior = GaussianPrior(torch.full((1, *size), 0.3), 0.1)
    found = unveil.solve(problem, prior, solver, steps=10).samples[:, 0]
    left = float((some(found) - problem.y).abs().max() / problem.y.abs().max())
    run = Run(problem, prior, Schedule((1.0, 0.0)), single(9))
    once = replaced(torch.zeros_like(x), 0.0, run, 1.0, inverse(some))
    assert left < 1e-3 < 0.1 < float((some(once) - problem.y).abs().max() / problem.y.abs().max())


def test_the_medical_form_says_what_it_needs():
    solver = unveil.get_solver("score-sde", form="transform")
    mask = Inpainting((torch.arange(8) % 2).float())
    for operator, shape in (
        (mask, (1, 8, 8)),  # T is missing
        (mask @ Blur(torch.full((2, 2), 0.25)), (1, 8, 8)),  # T has zeros
        (Fourier(0.5 * torch.ones(8, 8)), (1, 8, 8)),  # weights, not a choice
    ):
        problem, _ = noiseless(operator, shape)
        assert "values chosen of an invertible transform" in solver.unfit(problem)
    with pytest.raises(unveil.InputError, match="one of nearest, transform"):
        unveil.get_solver("score-sde", form="medical")


def test_where_a_frequency_has_no_partner_the_transform_alone_is_not_exact():
    mask = torch.zeros(8, 9)
    mask[1, 2] = 1
    problem, x = noiseless(Fourier(mask), (1, 8, 9))
    run = Run(problem, GaussianPrior(torch.zeros(1, 8, 9), 1.0), Schedule((1.0, 0.0)), single(9, 3))
    assert float(run.problem.residual(replaced(x + x.flip(2), 0.0, run)).abs().max()) < 1e-9
    half = replaced(x + x.flip(2), 0.0, run, 1.0, inverse(problem.operator))
    before = run.problem.residual(x + x.flip(2)).abs().max()
    assert float(run.problem.residual(half).abs().max()) == pytest.approx(float(before) / 2)
