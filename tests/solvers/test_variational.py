"""What is particular to the variational solvers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import unveil
from unveil.operators import MRI, Blur, Identity, Inpainting, Matrix, gaussian_kernel
from unveil.priors import GaussianPrior
from unveil.rng import single
from unveil.schedules import Schedule, ddpm_sigmas
from unveil.solvers.base import Run
from unveil.solvers.variational import sure
from unveil.solvers.variational.flair import calibration, curvature
from unveil.solvers.variational.rsld import repulsion

RANGE = (-1.0, 1.0)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def isotropic(n=16, sigma_y=1.0):
    """Prior N(0, I), A = I: the posterior is N(y / (1 + sigma_y^2), sigma_y^2 / (1 + sigma_y^2) I)."""
    prior = GaussianPrior(torch.zeros(n), 1.0, value_range=RANGE)
    y = torch.linspace(-1, 2, n, dtype=torch.float64)[None]
    return unveil.Problem(y, Identity(), unveil.Gaussian(sigma_y), value_range=RANGE), prior


# -- rsld -------------------------------------------------------------------------------------------------------------


def test_repulsion_is_the_slope_of_the_kernel_sum():
    x = draws(2 * 5, 3)
    rows = x.reshape(2, 5, 3).clone().requires_grad_(True)
    d2 = (rows[:, :, None] - rows.detach()[:, None]).square().sum(-1)
    others = d2.detach()[:, ~torch.eye(5, dtype=torch.bool)].reshape(2, 5, 4)
    h = others.median(-1, keepdim=True).values / math.log(5)
    k = torch.exp(-d2 / h) * (1 - torch.eye(5))
    (slope,) = torch.autograd.grad(k.sum(-1).log().sum(), rows)
    torch.testing.assert_close(repulsion(x, 5).reshape(2, 5, 3), -3 * slope)


def test_two_particles_push_each_other_apart():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    push = repulsion(x, 2)
    assert push[0, 0] < 0 < push[1, 0]
    assert torch.equal(push[0], -push[1])
    assert torch.isfinite(repulsion(torch.zeros(3, 2), 3)).all()  # particles in one place


def test_repulsion_widens_and_a_measurement_keeps_its_particles():
    problem, prior = isotropic()
    two = unveil.Problem(torch.cat([problem.y, -problem.y]), Identity(), unveil.Gaussian(1.0), value_range=RANGE)

    def spread(gamma):
        solver = unveil.get_solver("rsld", gamma=gamma)
        return unveil.solve(problem, prior, solver, samples=6, steps=60).samples

    assert spread(0.3).std(1).mean() > 1.5 * spread(0.0).std(1).mean()
    together = unveil.solve(two, prior, "rsld", samples=6, steps=60, chunk=1).samples
    alone = unveil.solve(problem, prior, "rsld", samples=6, steps=60).samples
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-9)


# -- flair ------------------------------------------------------------------------------------------------------------


def test_curvature_is_the_squared_norm_of_the_operator():
    a = draws(5, 7)
    x = torch.zeros(2, 7, dtype=torch.float64)
    dense = unveil.Problem(draws(2, 5), Matrix(a), unveil.Gaussian(0.1))
    exact = float(torch.linalg.matrix_norm(a, 2)) ** 2
    assert float(curvature(dense, x)[0]) == pytest.approx(exact, rel=1e-3)
    blur = unveil.Problem(torch.rand(2, 1, 9, 9).double(), Blur(gaussian_kernel(1.0, 5)), unveil.Gaussian(0.1))
    assert float(curvature(blur, blur.y)[1]) == pytest.approx(1.0, rel=1e-6)

    class Cube(unveil.operators.Operator):
        def __call__(self, x):
            return x**3

        def shape_in(self, out_shape):
            return out_shape

    cube = unveil.Problem(torch.ones(1, 3).double(), Cube(), unveil.Gaussian(0.1))
    # the Hessian of (1 - x^3)^2 / 2 is 15 x^4 - 6 x
    at = torch.tensor([[1.0, 0.5, 0.2]], dtype=torch.float64)
    assert float(curvature(cube, at)[0]) == pytest.approx(9.0, rel=0.05)


def test_flair_stops_at_the_noise_and_weighs_by_the_error_of_the_velocity():
    assert calibration(0.7) > calibration(0.2) > calibration(0.02) > 0
    prior = GaussianPrior(torch.zeros(1, 8, 8), 1.0, value_range=RANGE)
    mask = Inpainting((draws(8, 8) > 0).double())
    problem = unveil.Problem.simulate(prior.sample(3, 0, torch.float64), mask, 0.1, 1, RANGE)
    misfit = unveil.solve(problem, prior, "flair").misfit
    assert (misfit > 0.5).all()
    assert (misfit < 1.05).all()


# -- sds --------------------------------------------------------------------------------------------------------------


def test_sds_finds_mean_and_spread_where_its_family_holds_the_posterior():
    problem, prior = isotropic(64)
    result = unveil.solve(problem, prior, unveil.get_solver("sds", decay=True), samples=40, steps=400)
    slope = float((result.mean[0] * problem.y[0]).sum() / problem.y.square().sum())
    assert slope == pytest.approx(0.5, abs=0.03)
    assert float(result.samples.var(1).mean()) == pytest.approx(0.5, rel=0.1)


# -- smrd -------------------------------------------------------------------------------------------------------------


def test_the_slope_of_sure_in_lam():
    problem, prior = isotropic(sigma_y=0.3)
    solver = unveil.get_solver("smrd")
    run = Run(problem, prior, Schedule((0.5, 0.0)), single(0))
    state = solver.init(run)

    def sure(lam):
        reading = Run(problem, prior, run.schedule, single(0, step=1))
        return solver._round(state.x, problem.y, torch.tensor([lam], dtype=torch.float64), True, True, state, reading)

    slope = (sure(1.001)[1] - sure(0.999)[1]) / 0.002
    assert float(sure(1.0)[2]) == pytest.approx(float(slope), rel=1e-4)


def test_smrd_learns_its_weight_for_each_sample_and_stops():
    problem, _ = isotropic(sigma_y=0.3)
    prior = GaussianPrior(torch.zeros(16), 0.02, value_range=RANGE)  # the data ask for what it does not have
    run = unveil.stream(problem, prior, unveil.get_solver("smrd", early_stop=0.1), samples=3, steps=40)
    states = list(run)
    lam = states[-1].aux["lam"]
    assert len(set(lam.tolist())) == 3
    assert (lam != 2.0).all()
    stopped = [s.aux["stopped"].clone() for s in states]
    assert stopped[-1].sum() > 0
    row = int(stopped[-1].argmax())
    first = next(i for i, s in enumerate(stopped) if s[row] > 0)
    assert first < 38
    assert torch.equal(states[first].x[row], states[-1].x[row])


# -- red-diff ---------------------------------------------------------------------------------------------------------


def test_red_diff_for_mri_weighs_data_by_their_energy():
    problem, prior = isotropic()
    lam = 0.25 * float(problem.y.square().mean()) / 2
    relative = unveil.solve(problem, prior, unveil.get_solver("red-diff", data="relative"), steps=50).samples
    mean = unveil.solve(problem, prior, unveil.get_solver("red-diff", lam=lam), steps=50).samples
    torch.testing.assert_close(relative, mean, rtol=0, atol=1e-6)


def learned(v=0.25, sigma_y=0.5, steps=300):
    """red-diff with SURE on N(0, v I), A = I, from a tenth and from ten times the best lam: what it makes of it.

    At rest mu = g y with g = 1 / (1 + lam kappa sigma_y^2), whose squared error is (1 - g)^2 v + g^2 sigma_y^2: least
    at lam = 1 / (kappa v); and SURE of y itself is least at g = 1 - n sigma_y^2 / |y|^2 (James and Stein).
    Returns the lam found and that of SURE, both over the best one, and the squared error over the least.
    """
    fine = torch.linspace(0, 999, steps).tolist()
    levels = [math.exp(float(np.interp(t, np.arange(1000), np.log(ddpm_sigmas())))) for t in reversed(fine)]
    kappa = sum(s * s / (v + s * s) for s in levels) / steps
    best = 1 / (kappa * v)
    prior = GaussianPrior(torch.zeros(1024), v, value_range=RANGE)
    problem = unveil.Problem.simulate(prior.sample(3, 0, torch.float64), Identity(), sigma_y, 1, RANGE)
    g = 1 - 1024 * sigma_y**2 / problem.y.square().sum(1)
    lam = []
    for start in (0.1 * best, 10 * best):
        solver = unveil.get_solver(
            "red-diff", data="likelihood", optimizer="sgd", order="random", lr=0.02, lam=start, lam_lr=0.05
        )
        *_, last = unveil.stream(problem, prior, solver, schedule=Schedule((*levels, 0.0)))
        lam.append(last.aux["log_lam"].exp())
    found = torch.stack(lam)
    gain = 1 / (1 + found * kappa * sigma_y**2)
    error = (1 - gain) ** 2 * v + gain**2 * sigma_y**2
    return found / best, (1 / g - 1) / (kappa * sigma_y**2) / best, error * (1 / v + 1 / sigma_y**2)


def learned_well():
    found, stein, error = learned()
    near = (found / stein - 1).abs().max() < 0.1
    return bool(near and (found.log().abs() < 0.25).all() and (error < 1.02).all())


def test_red_diff_learns_the_best_weight_of_a_gaussian():
    assert learned_well(), learned()


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_it_does_not_with_another_divergence(monkeypatch, factor):
    whole = sure.sure

    def broken(fit, moved, y, shift):
        return whole(fit, fit + factor * (moved - fit), y, shift)

    monkeypatch.setattr(sure, "sure", broken)
    assert not learned_well(), learned()


def test_sure_is_the_error_of_the_fit_on_average():
    operator = MRI((draws(6, 8) > 0).double())
    x = draws(1, 2, 6, 8, seed=1).expand(4000, -1, -1, -1)
    problem = unveil.Problem.simulate(x, operator, 0.7, 2, RANGE)
    run = Run(problem, GaussianPrior(torch.zeros(2, 6, 8), 1.0), Schedule((1.0, 0.0)), single(3, 4000))
    shift = sure.probe(run)
    constant = 0.7**2 * problem.m / problem.y[0].numel()
    for g in (0.3, 0.9):
        error = (g * problem.y - operator(x)).abs().square().flatten(1).mean(1)
        estimate = sure.sure(g * problem.y, g * (problem.y + shift), problem.y, shift) - constant
        scatter = float((estimate - error).std()) / 4000**0.5
        assert abs(float((estimate - error).mean())) < 4 * scatter
        assert scatter < 0.02 * float(error.mean())


def test_a_learned_weight_needs_noise_and_a_start():
    problem, _ = isotropic()
    solver = unveil.get_solver("red-diff", lam_lr=0.05)
    assert solver.unfit(problem) is None
    bare = unveil.Problem(problem.y, Identity(), 0.0, value_range=RANGE)
    assert solver.unfit(bare) == "to learn lam (lam_lr > 0) it needs Gaussian noise with sigma_y > 0"
    with pytest.raises(unveil.InputError, match="start from a finite lam > 0, got 0"):
        unveil.get_solver("red-diff", lam=0.0, lam_lr=0.05)
