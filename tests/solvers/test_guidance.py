"""What the gradient-guided explicit solvers do beyond what every solver promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import unveil
from unveil.errors import InputError, NotCompatible
from unveil.noise import Poisson
from unveil.numerics.diagonal import hutchinson_diagonal
from unveil.operators import JPEG, Blur, HighDynamicRange, Identity, Inpainting, Quantize, gaussian_kernel
from unveil.priors import GaussianPrior, ddpm_linear
from unveil.problem import squared_norm
from unveil.rng import single
from unveil.solvers.base import State
from unveil.solvers.explicit.dpps import best_noise
from unveil.solvers.moves import ddim, misfit


def smooth(n=8, std=0.2, white=0.02):
    """A prior of smooth images [1, n, n] around 0.5."""
    i = torch.arange(n, dtype=torch.float64)
    row = torch.exp(-0.5 * ((i[:, None] - i) / 2) ** 2)
    covariance = std**2 * (torch.kron(row, row) + white * torch.eye(n * n, dtype=torch.float64))
    return GaussianPrior(torch.full((1, n, n), 0.5), covariance)


# -- the misfit ---------------------------------------------------------------------------------------------------


def test_the_misfit_is_the_norm_of_the_residual_and_its_gradient():
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    problem = unveil.Problem.simulate(x, Blur(gaussian_kernel(1.0, 3)), 0.1)
    at = (x + 0.1).requires_grad_()
    norm = problem.residual(at).flatten(1).norm(dim=1)
    (gradient,) = torch.autograd.grad(norm.sum(), at)
    found = misfit(problem, at.detach())
    torch.testing.assert_close(found[0], norm.detach())
    torch.testing.assert_close(found[1], gradient)
    exact = misfit(unveil.Problem(problem.operator(x), problem.operator, 0.1), x)
    assert float(exact[1].abs().max()) <= 1  # and not 0 / 0


def test_the_misfit_of_counts_points_along_the_likelihood():
    light = torch.linspace(0.1, 2.0, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    problem = unveil.Problem.simulate(light, Identity(), Poisson(gain=50.0))
    at = light.clamp_min(0.3)
    norm, gradient = misfit(problem, at)
    r = problem.y - at
    # the likelihood's gradient is r gain / A(x0): dark values weigh more, in proportion
    expected = -r / at * (norm / (r.square() / at).sum())
    torch.testing.assert_close(gradient, expected)


def test_of_even_light_the_misfit_of_counts_is_that_of_white_noise():
    x = torch.full((2, 1, 4, 4), 0.7, dtype=torch.float64)
    counts = unveil.Problem.simulate(x, Identity(), Poisson(gain=200.0))
    white = unveil.Problem(counts.y, counts.operator, 0.05)
    for here, there in zip(misfit(counts, x), misfit(white, x), strict=True):
        torch.testing.assert_close(here, there)


def test_a_step_of_dps_on_counts():
    """zeta / (s s') times the likelihood's direction, as long as that of white noise with the same misfit."""
    from unveil.bench.counting import make_runs

    prior, solver, gain = smooth(), unveil.get_solver("dps", zeta=0.4), 40.0
    operator = Inpainting(torch.ones(8, 8, dtype=torch.float64))
    problem = unveil.Problem.simulate(prior.sample(2, 1, torch.float64), operator, Poisson(gain=gain), seed=3)
    schedule = solver.schedule(prior, 20)
    make = make_runs(problem, prior, schedule)
    state = State(prior.sample(2, 7, torch.float64), make(1, None).like, 14)
    sigma, sigma_next = schedule.pair(14)
    x = state.x.clone().requires_grad_()
    x0 = prior.denoise(x, sigma)
    assert float(x0.detach().min()) > 0  # where the density of counts is smooth
    (g,) = torch.autograd.grad((gain * (problem.y * x0.log() - x0)).sum(), x)
    r = problem.y - x0.detach()
    length = r.flatten(1).norm(dim=1) / (gain * r.square() / x0.detach()).flatten(1).sum(1)
    # data of half-width 1/2: s has 2 sigma
    rate = 0.4 / 2 * ((1 + 4 * sigma**2) * (1 + 4 * sigma_next**2)) ** 0.5
    plain = ddim(state.x, x0.detach(), sigma, sigma_next, 1.0, make(1, None).rng)
    torch.testing.assert_close(solver.step(state, make(1, None)).x, plain + rate * length.reshape(-1, 1, 1, 1) * g)


def test_dps_takes_counts():
    prior = smooth()
    problem = unveil.Problem.simulate(prior.sample(4, 1), Inpainting(torch.ones(8, 8)), Poisson(gain=30.0), seed=2)
    x = unveil.solve(problem, prior, "dps", steps=200, samples=8).samples.flatten(0, 1)
    y = problem.y.repeat_interleave(8, 0)
    before = ((y - 0.5) ** 2 / (y.clamp_min(0.1) / 30)).mean()
    after = ((y - x) ** 2 / (y.clamp_min(0.1) / 30)).mean()
    assert float(after) < 1.5 < float(before)  # per value: about 1 is the noise itself


# -- one by one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator",
    [Quantize(3, in_shape=(1, 8, 8)), JPEG(5, in_shape=(1, 8, 8)), HighDynamicRange(3.0, in_shape=(1, 8, 8))],
    ids=["quantize", "jpeg", "hdr"],
)
def test_pigdm_on_operators_that_are_not_linear(operator):
    prior = smooth()
    truth = prior.sample(4, 1)
    problem = unveil.Problem.simulate(truth, operator, 0)
    assert "pigdm" in unveil.list_solvers(fits=problem)
    assert torch.equal(problem.pinv(), operator.pinv(problem.y))
    samples = unveil.solve(problem, prior, "pigdm", samples=32).samples
    off = (operator(samples.flatten(0, 1)) - problem.y.repeat_interleave(32, 0)).abs()
    assert float((off > 1e-6).float().mean()) < 0.1  # quantised: a value in ten, at the edge of its level
    wrong = (operator(prior.sample(32, 5)) - problem.y.repeat_interleave(8, 0)).abs()
    assert float((wrong > 1e-6).float().mean()) > 0.5
    error, coarse = (samples.mean(1) - truth).square().mean(), (problem.pinv() - truth).square().mean()
    assert float(error) < float(coarse)
    noisy = unveil.Problem.simulate(truth, operator, 0.01)
    with pytest.raises(NotCompatible, match="needs data without noise"):
        unveil.solve(noisy, prior, "pigdm")


def test_pigdm_added_is_the_step_of_the_authors_code():
    """Written in their variables: VP with data in [-1, 1], x' = s' D + sqrt(1 - s'^2) eps + s s' grad."""
    from unveil.bench.counting import make_runs

    prior, solver = smooth(), unveil.get_solver("pigdm", weight="added", eta=0.0, order=1)
    mask = (torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.6).double()
    problem = unveil.Problem.simulate(prior.sample(2, 1, torch.float64), Inpainting(mask), 0.05)
    run = make_runs(problem, prior, solver.schedule(prior, 20))(1, None)
    state = State(prior.sample(2, 7, torch.float64), run.like, 10)
    sigma, sigma_next = (2 * v for v in run.schedule.pair(10))
    s, s_next = (1 / (1 + v**2) ** 0.5 for v in (sigma, sigma_next))
    x = (s * (2 * state.x - 1)).requires_grad_()
    clean = 2 * prior.denoise((x / s + 1) / 2, sigma / 2) - 1
    r2, off = sigma**2 / (1 + sigma**2), mask * (2 * problem.y - 1 - clean)
    (g,) = torch.autograd.grad((r2 / (r2 + 0.1**2) * off.detach() * clean).sum(), x)
    eps = (x - s * clean) / (1 - s**2) ** 0.5
    expected = s_next * clean + (1 - s_next**2) ** 0.5 * eps + s * s_next * g
    torch.testing.assert_close(solver.step(state, run).x, ((expected / s_next + 1) / 2).detach())


def test_pigdm_added_is_stable_where_the_signal_varies_much_in_one_direction():
    """Brightness: a variance of 16 x 16 times that of a value, which the posterior score takes to be that of one."""
    flat = torch.ones(256, 256, dtype=torch.float64)
    prior = GaussianPrior(torch.full((1, 16, 16), 0.5), 0.04 * flat + 1e-4 * torch.eye(256, dtype=torch.float64))
    truth = prior.sample(8, 3)
    problem = unveil.Problem.simulate(truth, Blur(gaussian_kernel(1.0, 5)), 0.02)
    error = {
        weight: float((unveil.solve(problem, prior, unveil.get_solver("pigdm", weight=weight), steps=60).samples[:, 0]
                       - truth).square().mean().sqrt())
        for weight in ("score", "added")
    }  # fmt: skip
    assert error["added"] < 0.02 < error["score"]
    with pytest.raises(InputError, match="has no weight"):
        unveil.get_solver("pigdm", weight="code")


def test_mcg_reproduces_the_data():
    prior = smooth()
    problem = unveil.Problem.simulate(prior.sample(2, 1, torch.float64), Blur(gaussian_kernel(0.8, 3)), 0)
    x = unveil.solve(problem, prior, "mcg", steps=20, samples=2).samples.flatten(0, 1)
    assert float((problem.operator(x) - problem.y.repeat_interleave(2, 0)).abs().max()) < 1e-4


def test_dsg_steps_stay_on_the_sphere():
    from unveil.bench.counting import make_runs
    from unveil.solvers.moves import ancestral

    prior, solver = smooth(), unveil.get_solver("dsg", guidance=1.0)
    problem = unveil.Problem.simulate(prior.sample(3, 1, torch.float64), Inpainting(torch.eye(8)), 0.05)
    run = make_runs(problem, prior, solver.schedule(prior, 20))(1, None)
    state = State(prior.sample(3, 7, torch.float64), run.like, 10)
    new = solver.step(state, run)
    sigma, sigma_next = run.schedule.pair(10)
    mean, std = ancestral(state.x, new.x0, sigma, sigma_next)
    step = new.x - mean
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((3,), 8 * std, dtype=torch.float64))
    # with all of the guidance the step is straight down the gradient, so that no other on the sphere ends lower
    _, pullback = prior.vjp(state.x, sigma)
    slope = (step * pullback(misfit(problem, new.x0)[1])).flatten(1).sum(1)
    other = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = other / other.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * 8 * std
    assert bool((slope < (other * pullback(misfit(problem, new.x0)[1])).flatten(1).sum(1)).all())


@pytest.mark.parametrize("sigma_y", [0.1, 0.0])
def test_tmpd_takes_negative_row_sums_by_their_magnitude(sigma_y):
    from unveil.bench.counting import make_runs

    cov = torch.tensor([[0.1, -0.2], [-0.2, 1.0]], dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(2, dtype=torch.float64), cov, value_range=(-1.0, 1.0))
    problem = unveil.Problem(torch.tensor([[0.3, -0.4]], dtype=torch.float64), Identity((2,)), sigma_y)
    solver = unveil.get_solver("tmpd", order=1)
    run = make_runs(problem, prior, solver.schedule(prior, 20))(1, None)
    state = State(torch.tensor([[0.5, 0.2]], dtype=torch.float64), run.like, 10)
    sigma, _ = run.schedule.pair(10)
    jacobian = cov @ torch.linalg.inv(cov + sigma**2 * torch.eye(2, dtype=torch.float64))
    sums = sigma**2 * jacobian.sum(1)
    assert sums[0] < 0 < sums[1]
    mean = state.x @ jacobian
    r = problem.y - mean
    weighed = r / (sums.abs() + sigma_y**2)
    torch.testing.assert_close(solver.step(state, run).x0, mean + sigma**2 * weighed @ jacobian)


def test_dpps_keeps_the_candidate_that_fits_best():
    problem = unveil.Problem(torch.zeros(2, 1, 4, 4), Inpainting(torch.eye(4)), 0.1)
    clean = torch.rand(2, 1, 4, 4)
    all_of_them = single(3, 2).normal(torch.empty(2, 5, 1, 4, 4))
    best = best_noise(problem, clean, 0.5, 5, single(3, 2))
    for row in range(2):
        candidates = 0.5 * all_of_them[row]
        distance = squared_norm(problem.operator(clean[row] + candidates))
        assert torch.equal(best[row], candidates[distance.argmin()])
    # the number of candidates rises with the signal-to-noise ratio
    assert [unveil.get_solver("dpps").count(s) for s in (100.0, 3.0, 1.0, 0.1)] == [2, 5, 31, 50]


def test_freedom_travels_in_its_band_alone():
    prior = GaussianPrior(torch.zeros(4), 1.0, value_range=(-1.0, 1.0))
    plain, travelling = (unveil.get_solver("freedom", repeats=n).schedule(prior, 20) for n in (1, 3))
    inside = [s for s in plain.sigmas[:-1] if 3.4 <= s <= 26]
    assert len(inside) >= 3
    assert [travelling.sigmas.count(s) for s in inside[1:]] == [5] * (len(inside) - 1)
    rises = [b for a, b in zip(travelling.sigmas, travelling.sigmas[1:], strict=False) if b > a]
    assert sorted(rises) == sorted(inside * 2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dmap", {"ascents": 0}),
        ("dpps", {"candidates": 0}),
        ("freedom", {"repeats": 0}),
        ("lgd-mc", {"weights": "loud"}),
        ("lgd-mc", {"draws": 0}),
        ("peng", {"guidance": "III"}),
        ("peng", {"covariance": "full"}),
        ("peng", {"probes": 0}),
        ("tmpd", {"order": 3}),
    ],
)
def test_options_that_mean_nothing_are_refused(name, options):
    with pytest.raises(InputError, match=name):
        unveil.get_solver(name, **options)


# -- variances --------------------------------------------------------------------------------------------------------


def test_the_diagonal_of_a_diagonal_matrix_is_exact():
    d = torch.rand(2, 30, dtype=torch.float64)
    found = hutchinson_diagonal(lambda v: d * v, d, 1, single(0, 2))
    torch.testing.assert_close(found, d)


def test_an_estimate_that_is_noise_is_drawn_to_its_mean():
    n = 400
    g = torch.Generator().manual_seed(0)
    root = torch.randn(n, n, dtype=torch.float64, generator=g) / n**0.5
    matrix = root @ root.T  # its diagonal is nearly constant, its rows are long
    found = hutchinson_diagonal(lambda v: v @ matrix, torch.empty(1, n, dtype=torch.float64), 1, single(0, 1))[0]
    true = matrix.diagonal()
    assert float(found.mean()) == pytest.approx(float(true.mean()), rel=0.2)
    z = torch.where(torch.rand(n, dtype=torch.float64, generator=g) < 0.5, -1.0, 1.0).double()
    plain = z * (z @ matrix)
    assert float((found - true).std()) < 0.5 * float((plain - true).std())


class Learned(nn.Module):
    """eps of N(0, 1), whose reverse steps have the larger variance of the two bounds, beta."""

    def forward(self, x, time):
        abar = 1 / (1 + torch.as_tensor(unveil.schedules.ddpm_sigmas())[time.long()] ** 2)
        eps = (1 - abar).sqrt().reshape(-1, 1, 1, 1).to(x) * x
        return torch.cat([eps, torch.ones_like(eps)], 1)


def test_learned_variances_need_no_back_propagation():
    options = {"predicts": "eps", "schedule": ddpm_linear(), "shape": (1, 4, 4), "value_range": (-1.0, 1.0)}
    prior = unveil.as_prior(Learned(), channels=1, variance="learned_range", **options)
    problem = unveil.Problem(torch.full((1, 1, 4, 4), 0.3), Inpainting(torch.eye(4)), 0.05, value_range=(-1.0, 1.0))
    costs = {}
    for guidance in ("I", "II"):
        solver = unveil.get_solver("peng", guidance=guidance, threshold=math.inf)
        result = unveil.solve(problem, prior, solver, steps=10, samples=2)
        costs[guidance] = (result.nfe, result.vjps)
        seen = result.samples[0, :, 0].diagonal(dim1=-2, dim2=-1)
        assert float((seen - 0.3).abs().max()) < 0.2  # four standard deviations of the posterior
    assert costs == {"I": (20, 10), "II": (10, 0)}
    # in other units they are the same variances
    x = torch.rand(2, 1, 4, 4)
    mean, var = prior.moments(2 * x - 1, 0.2)
    there = prior.in_range(0, 1).moments(x, 0.1)
    torch.testing.assert_close(there[0], (mean + 1) / 2)
    torch.testing.assert_close(there[1], var / 4)
    assert prior.in_range(0, 1).variance == "learned_range"
    assert smooth().variance is None
    with pytest.raises(InputError, match="learnt no variance"):
        smooth().moments(x, 0.1)
