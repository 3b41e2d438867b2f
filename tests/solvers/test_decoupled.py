"""What decoupled solvers do with the data: chains in closed form, descents in spectral coordinates, and without."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import unveil
from unveil import Gaussian, NoNoise, Poisson, Problem
from unveil.noise import PoissonGaussian, Speckle
from unveil.operators import Blur, Grayscale, Inpainting, Matrix, gaussian_kernel
from unveil.operators.base import Linear
from unveil.rng import Rng
from unveil.solvers.checks import CHECKS, Case, cases, check_range
from unveil.solvers.decoupled.data_steps import chain, curvature, descend, laplace, noise_floor
from unveil.solvers.moves import regularised_inverse


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class OneStream(Rng):
    """One generator for all rows: quick for many."""

    def __init__(self, seed):
        super().__init__([])
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class Plain(Linear):
    """A linear operator that hides its spectral form."""

    def __init__(self, operator, in_shape):
        self.operator, self.in_shape = operator, in_shape

    def __call__(self, x):
        return self.operator(x)

    def adjoint(self, y):
        return self.operator.adjoint(y)


def hidden(problem):
    """The problem with its operator's spectral form out of sight."""
    return Problem(problem.y, Plain(problem.operator, problem.shape), problem.noise, value_range=problem.value_range)


@pytest.mark.parametrize(("kind", "steps", "leapfrogs"), [("langevin", 6, 1), ("langevin", 50, 1), ("hmc", 3, 4)])
def test_the_end_of_a_chain_drawn_at_once_has_the_law_of_the_chain(kind, steps, leapfrogs):
    rows = 20000
    y, centre = randn(1, 3, seed=1).expand(rows, 3), randn(1, 4, seed=2).expand(rows, 4)
    problem = Problem(y, Matrix(randn(3, 4, seed=3)), Gaussian(0.3))
    settings = {"kind": kind, "steps": steps, "leapfrogs": leapfrogs, "step_size": 0.4}
    at_once = chain(problem, centre, 0.7, OneStream(0), **settings)
    # the largest curvature is exact in closed form, and has a margin without
    top = problem.operator.s(centre).max().square() / 0.3**2
    stepped = chain(hidden(problem), centre, 0.7, OneStream(1), steepest=top.expand(rows), **settings)
    error = 5 / rows**0.5  # five standard errors of a mean or covariance of unit variance
    assert 0.05 < at_once.var(0).min() < at_once.var(0).max() < 0.5
    torch.testing.assert_close(at_once.mean(0), stepped.mean(0), rtol=0, atol=0.7 * error)
    torch.testing.assert_close(at_once.T.cov(), stepped.T.cov(), rtol=0, atol=0.5 * error)


def test_a_long_chain_ends_in_the_density_itself():
    rows = 20000
    problem = Problem(randn(1, 3, seed=1).expand(rows, 3), Matrix(randn(3, 4, seed=3)), Gaussian(0.3))
    centre = randn(1, 4, seed=2).expand(rows, 4)
    x = chain(problem, centre, 0.7, OneStream(0), steps=10**6, step_size=0.01)
    exact = problem.conditional(centre, 0.49, OneStream(1))
    torch.testing.assert_close(x.mean(0), exact.mean(0), rtol=0, atol=0.025)
    torch.testing.assert_close(x.T.cov(), exact.T.cov(), rtol=0, atol=0.018)


def test_laplace_is_exact_where_the_density_is_gaussian():
    rows = 20000
    problem = Problem(randn(1, 3, seed=1).expand(rows, 3), Matrix(randn(3, 4, seed=3)), Gaussian(0.3))
    centre = randn(1, 4, seed=2).expand(rows, 4)
    x = laplace(problem, centre, 0.7, OneStream(0))
    exact = problem.conditional(centre, 0.49, OneStream(1))
    torch.testing.assert_close(x.mean(0), exact.mean(0), rtol=0, atol=0.025)
    torch.testing.assert_close(x.T.cov(), exact.T.cov(), rtol=0, atol=0.018)
    mask = Inpainting(torch.tensor([1.0, 0, 1, 1]))
    problem = Problem(mask(randn(1, 4, seed=5)).expand(rows, 4), mask, Gaussian(0.3))
    x, exact = laplace(problem, centre, 0.7, OneStream(0)), problem.conditional(centre, 0.49, OneStream(1))
    torch.testing.assert_close(x.mean(0), exact.mean(0), rtol=0, atol=0.025)
    torch.testing.assert_close(x.T.cov(), exact.T.cov(), rtol=0, atol=0.018)


@pytest.mark.parametrize("noise", [Poisson(60.0), PoissonGaussian(60.0, 0.02), Speckle(100.0)])
def test_laplace_draws_near_the_density_of_counts(noise):
    """Mean and deviation by quadrature, for some tens of counts."""
    rows, r, centre = 20000, 0.3, 0.8
    y = torch.tensor([[0.5]], dtype=torch.float64)
    u = torch.linspace(0.01, 2, 4000, dtype=torch.float64)[:, None]
    log = noise.log_prob(y.expand_as(u), u) - (u[:, 0] - centre) ** 2 / (2 * r**2)
    weight = (log - log.max()).exp()
    mean = float((weight * u[:, 0]).sum() / weight.sum())
    std = float((weight * (u[:, 0] - mean) ** 2).sum() / weight.sum()) ** 0.5
    problem = Problem(y.expand(rows, 1), Matrix(torch.eye(1, dtype=torch.float64)), noise)
    x = laplace(problem, torch.full((rows, 1), centre, dtype=torch.float64), r, OneStream(0))
    assert float(x.mean()) == pytest.approx(mean, abs=0.25 * std)  # mode and mean differ
    assert float(x.std()) == pytest.approx(std, rel=0.1)


def test_laplace_is_stable_where_hardly_any_light_is():
    """Counts of sums over pixels, most of them none: chains leap away."""
    sums = Matrix((randn(40, 30, seed=3) > 0.8).double())
    truth = torch.zeros(1, 30, dtype=torch.float64)
    truth[:, 4:8] = 1.0
    problem = Problem.simulate(truth, sums, Poisson(5.0, floor=0.25), seed=1)
    problem = Problem(problem.y.expand(200, 40), sums, problem.noise)
    centre = truth.expand(200, 30) + 0.3 * randn(200, 30, seed=4)
    x = laplace(problem, centre, 0.3, OneStream(0))
    assert 0.5 < float((x - truth).square().mean().sqrt()) / 0.25 < 1.2
    laplacian = Problem(truth, unveil.operators.Identity((30,)), unveil.noise.Laplace(0.1))
    assert "counts" in unveil.get_solver("daps", inner="laplace").unfit(laplacian)


def test_curvature_is_that_of_the_likelihood():
    problem = Problem(randn(2, 3, seed=1), Matrix(randn(3, 4, seed=3)), Gaussian(0.3))
    top = problem.operator.s(randn(1, 4)).max().square() / 0.3**2
    torch.testing.assert_close(curvature(problem, randn(2, 4)), 1.1 * top.expand(2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("floored", [False, True])
def test_descent_in_spectral_coordinates_is_descent(floored):
    x = randn(3, 1, 8, 8, seed=4)
    problem = Problem.simulate(x, Blur(gaussian_kernel(1.0)), 0.1)
    floor = noise_floor(problem) if floored else None
    args = (torch.zeros_like(x), torch.full((3,), 0.9, dtype=torch.float64), 12, 0.8, floor)
    fast, slow = descend(problem, *args), descend(hidden(problem), *args)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    if floored:  # it comes to rest where the residual is the noise, not a step beyond
        assert bool((problem.data(args[0])[0] > 2 * floor).all())
        torch.testing.assert_close(problem.data(fast)[0], floor, rtol=1e-9, atol=0)
        return
    # and it is what PyTorch calls SGD with momentum
    leaf = torch.zeros_like(x).requires_grad_(True)
    optimiser = torch.optim.SGD([leaf], lr=0.9, momentum=0.8)
    for _ in range(12):
        optimiser.zero_grad()
        (0.5 * (problem.y - problem.operator(leaf)).square().sum()).backward()
        optimiser.step()
    torch.testing.assert_close(fast, leaf.detach(), rtol=0, atol=1e-10)


def test_a_descent_already_at_the_noise_moves_nothing():
    x = randn(3, 1, 8, 8, seed=4)
    problem = Problem.simulate(x, Blur(gaussian_kernel(1.0)), 0.1)
    near = descend(problem, x, torch.full((3,), 0.9, dtype=torch.float64), 12, 0.8, 2 * noise_floor(problem))
    torch.testing.assert_close(near, x, rtol=0, atol=1e-12)


def test_the_noise_floor_is_half_of_what_noise_leaves():
    mask = Inpainting((randn(8, 8) > 0).double())
    x = randn(4000, 1, 8, 8, seed=1).abs() + 1
    for noise in (Gaussian(0.2), Poisson(40.0)):
        problem = Problem.simulate(x, mask, noise)
        left = problem.data(x)[0]
        assert float(noise_floor(problem).mean() / left.mean()) == pytest.approx(1, abs=0.02)
    assert not noise_floor(Problem(mask(x[:2]), mask, NoNoise())).any()
    complex_y = torch.complex(randn(4000, 6), randn(4000, 6, seed=1)) * 0.2
    problem = Problem(complex_y, Matrix(randn(6, 4).to(torch.complex128)), Gaussian(0.2))
    assert float(noise_floor(problem)[0] / problem.data(torch.zeros(4000, 4).double())[0].mean()) == pytest.approx(
        1, abs=0.02
    )


# the suite's problems are all spectral: these have to go the long way
LONG_WAY = [
    ("daps", {"inner_steps": 3}),
    ("daps", {"inner": "hmc", "inner_steps": 2, "leapfrogs": 2}),
    ("daps", {"inner": "laplace"}),
    ("dcdp", {"inner_steps": 3, "purify_steps": 2}),
    ("resample", {"every": 1, "inner_steps": 3}),
]


@pytest.mark.parametrize(("name", "options"), LONG_WAY)
def test_promises_are_kept_without_a_spectral_form(name, options):
    case = cases()[0]
    plain = Case("a plain matrix", hidden(case.problem), case.prior)
    solver = unveil.get_solver(name, **options)
    for check in CHECKS:
        assert check(solver, plain) <= 1e-8
    assert check_range in CHECKS


MINE = {
    "bird": {"ddim_steps": 2},
    "daps": {"inner_steps": 3},
    "dcdp": {"inner_steps": 3, "purify_steps": 2},
    "diffpir": {},
    "dmplug": {"ddim_steps": 2},
    "pnp-dm": {"inner_steps": 2},
    "projdiff": {},
    "resample": {"every": 1, "inner_steps": 3},
    "sitcom": {"inner_steps": 2},
}


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 5)])
def test_signals_of_any_shape(name, shape):
    prior = unveil.priors.GaussianPrior(torch.full(shape, 0.4), 0.04)
    mask = torch.ones(shape[-1])
    mask[1] = 0
    problem = Problem.simulate(prior.sample(2, 1), Inpainting(mask, in_shape=shape), 0.1)
    result = unveil.solve(problem, prior, unveil.get_solver(name, **MINE[name]), samples=2, steps=3)
    assert result.samples.shape == (2, 2, *shape)
    assert result.status is unveil.Status.DONE


@pytest.mark.parametrize("name", MINE)
def test_operators_that_are_not_linear(name):
    class Tone(unveil.operators.Operator):
        in_shape = (1, 4, 4)

        def __call__(self, x):
            return torch.tanh(2 * x)

    prior = unveil.priors.GaussianPrior(torch.full((1, 4, 4), 0.4), 0.04)
    problem = Problem.simulate(prior.sample(2, 1), Tone(), 0.1)
    solver = unveil.get_solver(name, **MINE[name])
    if name == "projdiff":
        assert "spectral" in solver.unfit(problem)
        return
    result = unveil.solve(problem, prior, solver, samples=2, steps=5)
    assert result.status is unveil.Status.DONE


@pytest.mark.parametrize("name", ["bird", "dcdp", "dmplug", "projdiff", "pnp-dm"])
def test_starts_of_ones_own(name):
    case = cases()[1]
    x = case.prior.sample(len(case.problem.y), 9)
    solver = unveil.get_solver(name, **MINE[name])
    run = unveil.stream(case.problem, case.prior, solver, steps=3, x_init=x)
    assert torch.equal(run._start(0, len(x)).x, x)
    plain = unveil.stream(case.problem, case.prior, solver, steps=3)
    assert not torch.equal(next(run).x, next(plain).x)


def test_a_chain_that_needs_noise_says_so():
    y = torch.tanh(randn(1, 4))

    class Tone(unveil.operators.Operator):
        in_shape = (4,)

        def __call__(self, x):
            return torch.tanh(x)

    assert "noise" in unveil.get_solver("pnp-dm").unfit(Problem(y, Tone(), NoNoise()))
    assert unveil.get_solver("pnp-dm").unfit(Problem(y, Inpainting(torch.ones(4)), NoNoise())) is None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dcdp", {"time_start": 20.0, "time_end": 400.0}, "time_end < time_start"),
        ("dmplug", {"stop": "psnr"}, "noise or none"),
        ("pnp-dm", {"order": 3}, r"order in \[1, 2\]"),
        ("resample", {"optimizer": "sgd"}, "descent or adam"),
        ("sitcom", {"inner_steps": 1}, r"inner_steps in \[2, inf\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, words):
    with pytest.raises(unveil.InputError, match=words):
        unveil.get_solver(name, **options)


def test_sitcom_moves_no_row_that_fits_already():
    case = cases()[1]
    far = unveil.get_solver("sitcom", inner_steps=4, margin=100.0)  # everything is within this margin
    run = unveil.stream(case.problem, case.prior, far, steps=1)
    start = run._start(0, len(case.problem.y))
    sigma = run.schedule.sigmas[0]
    state = next(run)
    torch.testing.assert_close(state.x0, case.prior.denoise(start.x, sigma), rtol=0, atol=1e-12)


def test_a_first_guess_of_colours_is_grey():
    """The posterior mean with colours that vary together, and the pseudo-inverse where weights have two signs."""
    y, sigma_y = torch.tensor([[[[0.2, 0.9]]]]), 0.1
    w = torch.tensor([0.3, 0.5, 0.4])
    problem = Problem(y, Grayscale(w), Gaussian(sigma_y), value_range=(0.0, 1.0))
    guess = regularised_inverse(problem)
    assert torch.equal(guess, guess[:, :1].expand_as(guess))
    # dense, at each pixel: m + C w (w^T C w + sigma_y^2)^-1 (y - w^T m) with C = 1 1^T / 4 and m = 1/2
    c = torch.full((3, 3), 0.25)
    expected = 0.5 + (c @ w)[:, None] * (y[0, 0] - 0.6) / (w @ c @ w + sigma_y**2)
    torch.testing.assert_close(guess[0, :, 0], expected)
    apart = replace(problem, operator=Grayscale(torch.tensor([0.3, 0.5, -0.4])))
    middle = torch.full((1, 3, 1, 2), 0.5)
    torch.testing.assert_close(regularised_inverse(apart), apart.prox(middle, 0.25))
