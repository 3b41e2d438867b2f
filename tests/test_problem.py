"""Problems: data terms, proximal maps and conditional draws against dense algebra and automatic differentiation."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import unveil
from unveil import Gaussian, NoNoise, Poisson, Problem
from unveil.errors import InputError
from unveil.noise import FullGaussian
from unveil.operators import (
    MRI,
    Blur,
    Downsample,
    Identity,
    Inpainting,
    Matrix,
    gaussian_kernel,
    motion_kernel,
    stack,
)
from unveil.operators.base import Linear, Operator, Spectral
from unveil.rng import Rng, single

SHAPE = (1, 4, 4)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Plain(Linear):
    """A matrix without its spectral form: CG has to do."""

    def __init__(self, matrix, in_shape):
        self.matrix, self.in_shape = matrix, in_shape

    def __call__(self, x):
        return x.flatten(1) @ self.matrix.to(x).mT


class Curved(Operator):
    """A mildly non-linear map."""

    in_shape = SHAPE

    def __call__(self, x):
        return torch.tanh(x.flatten(1) @ M.to(x).mT)


class Fourier(Linear):
    """Complex measurements: some frequencies."""

    in_shape = SHAPE

    def __call__(self, x):
        return torch.fft.fft2(x, norm="ortho").flatten(1)[:, :9]


M = randn(10, 16, seed=1) / 4
MASK = (randn(4, 4, seed=2) > -0.3).double()
LINEAR = {
    "identity": Identity(SHAPE),
    "mask": Inpainting(MASK, SHAPE),
    "blur": Blur(gaussian_kernel(0.8, 3), in_shape=SHAPE),
    "reflect": Blur(gaussian_kernel(0.8, 3), "reflect", in_shape=SHAPE),
    "tilted": Blur(motion_kernel(2.5, 30), "reflect", in_shape=SHAPE),
    "pool": Downsample(2, in_shape=SHAPE),
    "bicubic": Downsample(2, "bicubic", in_shape=SHAPE),
    "masked pool": Inpainting(torch.eye(2)) @ Downsample(2, in_shape=SHAPE),
    "matrix": Matrix(M, SHAPE),
    "plain": Plain(M, SHAPE),
    "fourier": Fourier(),
    "stack": stack(Inpainting(MASK, SHAPE), Downsample(2, in_shape=SHAPE)),
}


def dense(operator):
    """The matrix [m, 16] of a linear operator, complex rows as two real ones."""
    columns = operator(torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE))
    return real(columns).mT


def real(y):
    return (torch.view_as_real(y) if y.is_complex() else y).flatten(1)


def measured(operator, noise=0.1, n=3):
    x = randn(n, *SHAPE, seed=3)
    y = operator(x)
    noise_values = randn(*y.shape, seed=4) if not y.is_complex() else torch.complex(randn(*y.shape), randn(*y.shape))
    return Problem(y + 0.1 * noise_values, operator, noise, SHAPE)


@pytest.mark.parametrize("name", [*LINEAR, "curved"])
def test_the_data_term_and_its_gradient(name):
    problem = measured(Curved() if name == "curved" else LINEAR[name])
    x = randn(3, *SHAPE, seed=5).requires_grad_()
    r = real(problem.y - problem.operator(x))
    if problem.operator.measured is not None and name == "mask":
        r = r * problem.operator.measured.expand(SHAPE).flatten()
    half = 0.5 * r.square().sum(1)
    (expected,) = torch.autograd.grad(half.sum(), x)
    loss, gradient = problem.data(x.detach())
    torch.testing.assert_close(loss, half.detach())
    torch.testing.assert_close(gradient, expected)
    assert not gradient.requires_grad
    torch.testing.assert_close(real(problem.residual(x.detach())), r.detach())


@pytest.mark.parametrize("name", [*LINEAR, "curved"])
def test_the_score_is_the_gradient_of_the_log_likelihood(name):
    problem = measured(Curved() if name == "curved" else LINEAR[name], 0.3)
    x = randn(3, *SHAPE, seed=5).requires_grad_()
    value = problem.log_likelihood(x)
    (expected,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(problem.score(x.detach()), expected)
    # and it is that of a Gaussian: -|r|^2 / (2 sigma^2) - m log(2 pi sigma^2) / 2
    loss, _ = problem.data(x.detach())
    m = problem.m
    torch.testing.assert_close(value.detach(), -loss / 0.09 - m / 2 * math.log(2 * math.pi * 0.09))


def test_the_poisson_score_is_the_gradient_of_its_log_likelihood():
    clean = randn(2, *SHAPE).abs() + 0.5
    problem = Problem.simulate(clean, LINEAR["blur"], Poisson(30.0), 1)
    x = (clean * 1.1).requires_grad_()
    (expected,) = torch.autograd.grad(problem.log_likelihood(x).sum(), x)
    torch.testing.assert_close(problem.score(x.detach()), expected)


def steps_for(name, problem):
    """CG ends after as many steps as there are distinct eigenvalues; a few more for rounding."""
    return Problem(problem.y, problem.operator, problem.noise, SHAPE, problem.value_range, cg_steps=40)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("var", [0.3, "per row"])
def test_gain_against_dense_algebra(name, sigma_y, var):
    problem = steps_for(name, measured(LINEAR[name], sigma_y))
    A = dense(problem.operator)
    r = problem.residual(randn(3, *SHAPE, seed=6))
    if sigma_y == 0:  # in the range of A, where the pseudo-inverse is what is meant
        r = problem.operator(randn(3, *SHAPE, seed=6))
    v = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64) if var == "per row" else torch.full((3,), var).double()
    rows = []
    for k in range(3):
        S = v[k] * A @ A.mT + sigma_y**2 * torch.eye(A.shape[0])
        K = v[k] * A.mT @ torch.linalg.pinv(S, rtol=1e-9)
        rows.append(K @ real(r)[k])
    found = problem.gain(r, v if var == "per row" else var)
    torch.testing.assert_close(found.flatten(1), torch.stack(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("sigma_y", [0.05, 0.5])
def test_prox_is_the_minimum(name, sigma_y):
    problem = steps_for(name, measured(LINEAR[name], sigma_y))
    v = randn(3, *SHAPE, seed=7)
    var = torch.tensor([0.02, 0.3, 2.0], dtype=torch.float64)
    z = problem.prox(v, var)
    _, data_gradient = problem.data(z)
    gradient = data_gradient / sigma_y**2 + (z - v) / var.reshape(-1, 1, 1, 1)
    scale = ((z - v) / var.reshape(-1, 1, 1, 1)).abs().max()
    assert float(gradient.abs().max()) < 1e-5 * float(scale)


@pytest.mark.parametrize("name", LINEAR)
def test_prox_without_noise_is_the_projection(name):
    operator = LINEAR[name]
    x = randn(3, *SHAPE, seed=8)
    problem = steps_for(name, Problem(operator(x), operator, 0, SHAPE))
    v = randn(3, *SHAPE, seed=9)
    z = problem.prox(v, 0.7)
    torch.testing.assert_close(operator(z), problem.y, rtol=1e-6, atol=1e-6)
    A = dense(operator)
    null = torch.eye(16) - torch.linalg.pinv(A, rtol=1e-9) @ A
    torch.testing.assert_close((z - v).flatten(1) @ null.mT, torch.zeros(3, 16).double(), rtol=0, atol=1e-6)


def test_prox_of_other_data():
    problem = measured(LINEAR["mask"], 0.2)
    other = Problem(problem.y * 2, problem.operator, 0.2, SHAPE)
    v = randn(3, *SHAPE)
    torch.testing.assert_close(problem.prox(v, 0.5, problem.y * 2), other.prox(v, 0.5))


def test_prox_of_a_non_linear_operator_is_a_stationary_point():
    problem = measured(Curved(), 0.2)
    v, var = 0.3 * randn(3, *SHAPE, seed=10), 0.5
    z = problem.prox(v, var)
    _, data_gradient = problem.data(z)
    at_v = problem.data(v)[1].abs().max() / 0.04
    gradient = data_gradient / 0.04 + (z - v) / var
    assert float(gradient.abs().max()) < 1e-2 * float(at_v)  # what five rounds reach
    loss = lambda u: problem.data(u)[0] / 0.04 + (u - v).flatten(1).square().sum(1) / (2 * var)  # noqa: E731
    assert bool((loss(z) < loss(v)).all())


def test_prox_of_a_non_linear_operator_without_noise_meets_the_data():
    operator = Curved()
    x = 0.3 * randn(3, *SHAPE, seed=11)
    problem = Problem(operator(x), operator, 0, SHAPE)
    z = problem.prox(x + 0.05 * randn(3, *SHAPE, seed=12), 1.0)
    assert float(problem.residual(z).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["mask", "blur", "plain", "matrix", "fourier"])
def test_conditional_draws_have_the_moments_of_dense_algebra(name):
    sigma_y, var, n = 0.3, 0.4, 4000
    operator = LINEAR[name]
    row = measured(operator, sigma_y, 1)
    problem = Problem(row.y.expand(n, *row.y.shape[1:]), operator, sigma_y, SHAPE, cg_steps=17)
    v = randn(1, *SHAPE, seed=13)
    z = problem.conditional(v.expand(n, *SHAPE), var, single(0, n)).flatten(1)
    A = dense(operator)
    if operator.measured is not None:
        A = A[operator.measured.expand(SHAPE).flatten() > 0]
    cov = torch.linalg.inv(A.mT @ A / sigma_y**2 + torch.eye(16) / var)
    y = real(row.y)[0]
    if operator.measured is not None:
        y = y[operator.measured.expand(SHAPE).flatten() > 0]
    mean = cov @ (A.mT @ y / sigma_y**2 + v.flatten() / var)
    std = cov.diagonal().sqrt()
    assert float(((z.mean(0) - mean) / std).abs().max()) < 5 / math.sqrt(n)
    # var of a sample covariance entry: (c_ii c_jj + c_ij^2) / n
    error = (z.mT.cov() - cov).abs() / ((std[:, None] * std) ** 2 + cov**2).sqrt()
    assert float(error.max()) < 5 / math.sqrt(n)


def test_conditional_draws_without_noise_meet_the_data():
    problem = steps_for("matrix", Problem(LINEAR["matrix"](randn(2, *SHAPE)), LINEAR["matrix"], 0, SHAPE))
    z = problem.conditional(randn(2, *SHAPE, seed=3), 0.5, single(0, 2))
    torch.testing.assert_close(problem.operator(z), problem.y)


def test_conditional_spends_two_draws():
    rng = single(0, 3)
    measured(LINEAR["mask"]).conditional(randn(3, *SHAPE), 1.0, rng)
    assert rng.draw == 2


@pytest.mark.parametrize("name", LINEAR)
def test_pinv_against_dense_algebra(name):
    problem = steps_for(name, measured(LINEAR[name]))
    if not isinstance(problem.operator, Spectral):  # CG wants y in the range of A
        problem = steps_for(name, Problem(problem.operator(randn(3, *SHAPE)), problem.operator, 0.1, SHAPE))
    expected = real(problem.y) @ torch.linalg.pinv(dense(problem.operator), rtol=1e-6).mT
    torch.testing.assert_close(problem.pinv().flatten(1), expected, rtol=1e-5, atol=1e-5)


def test_conjugate_gradients_go_on_longer_without_noise():
    x = randn(1, *SHAPE)
    noisy = Problem(LINEAR["plain"](x), LINEAR["plain"], 0.1, SHAPE)
    clean = dataclasses.replace(noisy, noise=0)
    assert (noisy.iterations, clean.iterations, dataclasses.replace(clean, noise=0.1).iterations) == (50, 200, 50)
    assert clean[0].iterations == clean.to("cpu").iterations == clean.rows(torch.zeros(3).long()).iterations == 200
    told = dataclasses.replace(noisy, cg_steps=3)
    assert told.iterations == dataclasses.replace(told, noise=0).iterations == 3
    worse, better = (
        p.residual(p.prox(torch.zeros_like(x), 1.0)).abs().max() for p in (dataclasses.replace(told, noise=0), clean)
    )
    assert float(better) < 1e-3 * float(worse)


def test_whitening_decomposes_nothing_before_a_solver_asks(monkeypatch):
    """Correlated noise makes a matrix of a small operator; its singular values are found for those who need them."""
    prior = unveil.GaussianPrior(torch.zeros(1, 4, 4), 1.0)
    y, noise = LINEAR["plain"](randn(1, *SHAPE)).float(), FullGaussian.example((10,))
    problem = Problem(y, LINEAR["plain"], noise, SHAPE)
    assert isinstance(problem.white.operator, Matrix)

    def refuse(self):
        raise AssertionError("decomposed")

    monkeypatch.setattr(Matrix, "_decompose", refuse)
    for name in ("dps", "mpgd", "dsg"):
        assert unveil.solve(problem, prior, name, samples=2, steps=3).status.value == "DONE"
    with pytest.raises(AssertionError, match="decomposed"):
        unveil.solve(problem, prior, "ddrm", samples=2, steps=3)


def test_pullback_is_the_problem_of_the_latent():
    decoder = Matrix(randn(16, 5, seed=14))

    class Decoder(Linear):
        in_shape = (5,)

        def __call__(self, z):
            return decoder(z).reshape(-1, *SHAPE)

    problem = measured(LINEAR["mask"])
    latent = problem.pullback(Decoder())
    z = randn(3, 5)
    assert latent.shape == (5,)
    torch.testing.assert_close(latent.residual(z), problem.residual(Decoder()(z)))
    loss, gradient = latent.data(z)
    zz = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(
        problem.data(Decoder()(zz).detach())[0].sum() * 0 + _half(problem, Decoder()(zz)), zz
    )
    torch.testing.assert_close(loss, problem.data(Decoder()(z))[0])
    torch.testing.assert_close(gradient, expected)


def _half(problem, x):
    return 0.5 * (problem.y - problem.operator(x)).square().sum()


# -- simulation -----------------------------------------------------------------------------------------------------


def test_simulate_is_reproducible_and_rows_are_independent():
    x = randn(3, *SHAPE)
    one, two = (Problem.simulate(x, LINEAR["blur"], 0.2, 5) for _ in range(2))
    assert torch.equal(one.y, two.y)
    assert not torch.equal(one.y, Problem.simulate(x, LINEAR["blur"], 0.2, 6).y)
    assert torch.equal(one.y[:1], Problem.simulate(x[:1], LINEAR["blur"], 0.2, 5).y)
    noise = one.y - LINEAR["blur"](x)
    assert not torch.allclose(noise[0], noise[1])


def test_simulated_noise_has_the_stated_deviation():
    x = torch.zeros(1, 1, 200, 200, dtype=torch.float64)
    noise = Problem.simulate(x, Identity(), 0.2).y
    assert abs(float(noise.std()) - 0.2) < 5 * 0.2 / math.sqrt(2 * noise.numel())


def test_simulated_noise_is_not_what_a_solver_starts_from():
    x = torch.zeros(1, 4096, dtype=torch.float64)
    noise = Problem.simulate(x, Identity((4096,)), 1.0, 0).y
    for step in range(3):
        for _ in range(3):
            rng = Rng([(0, 0)], step)
            start = rng.normal(x)
            assert abs(float(torch.corrcoef(torch.cat([noise, start]))[0, 1])) < 5 / 64


def test_simulate_leaves_placeholders_at_zero():
    problem = Problem.simulate(torch.ones(1, *SHAPE).double(), LINEAR["mask"], 0.3)
    assert float(problem.y[0, 0][MASK == 0].abs().max()) == 0
    assert problem.m == int(MASK.sum())
    # what a user left there does not count either
    dirty = Problem(problem.y + 9 * (1 - MASK), LINEAR["mask"], 0.3, SHAPE)
    assert torch.equal(dirty.y, problem.y)


def test_facts():
    problem = measured(LINEAR["fourier"], 0.5)
    assert (problem.m, problem.sigma_y, problem.scale) == (18, 0.5, 0.5)
    assert measured(LINEAR["plain"]).m == 10
    assert Problem(torch.zeros(1, 3), Identity((3,)), 0).noise == NoNoise()
    assert Problem(torch.zeros(1, 3), Identity((3,)), 2).noise == Gaussian(2.0)
    assert problem[1].y.shape[0] == 1
    assert torch.equal(problem[1:].y, problem.y[1:])
    rows = problem.rows(torch.tensor([0, 0, 2]))
    assert torch.equal(rows.y, problem.y[[0, 0, 2]])
    assert rows.shape == SHAPE
    changed = Problem(problem.y + 1e-12, problem.operator, 0.5, SHAPE)
    assert problem.describe() != changed.describe()
    assert problem.describe() == measured(LINEAR["fourier"], 0.5).describe()


# -- bad input ------------------------------------------------------------------------------------------------------


def y(*shape):
    return torch.zeros(*shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem(y(1, 3) / 0, Identity((3,)), 0.1), "3 NaN or infinite values"),
        (lambda: Problem(y(1, 3).log(), Identity((3,)), 0.1), "NaN or infinite.*Inpainting"),
        (lambda: Problem([1.0], Identity((1,)), 0.1), "tensor"),
        (lambda: Problem(y(1, 3).int(), Identity((3,)), 0.1), "floating-point"),
        (lambda: Problem(y(1, 4), Identity((3,)), 0.1), "shape"),
        (lambda: Problem(y(3), Identity((3,)), 0.1), "signals of shape"),
        (lambda: Problem(y(4, 4), LINEAR["blur"], 0.1), "batch axis missing"),
        (lambda: Problem(y(1, 3), Identity((3,)), -0.1), "sigma > 0"),
        (lambda: Problem(y(1, 3), Identity((3,)), float("nan")), "sigma"),
        (lambda: Problem(y(1, 3), Identity((3,)), 0.1, value_range=(1, 0)), "lo < hi"),
        (lambda: Problem(y(1, 3), Unknown(), 0.1), "shape="),
        (lambda: Problem(y(1, 3), Identity((3,)), 0.1, cg_steps=-1), "cg_steps is a number of iterations"),
        (lambda: Problem(y(1, 1, 4, 4), MRI(torch.ones(4, 4)), 0.1), "y is real, and MRI makes complex"),
        (lambda: Problem(y(1, 3), Identity((3,)), Poisson()).sigma_y, "no single standard deviation"),
        (lambda: Problem(y(1, 10), Curved(), 0.1).pinv(), "not linear"),
        (lambda: Problem.simulate(y(1, 1, 5, 5), LINEAR["mask"], 0.1), "mask|shape"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


class Unknown(Operator):
    """Does not know the shape of its signals."""

    def __call__(self, x):
        return x

    def shape_in(self, out_shape):
        return None


def test_exact_posteriors_come_from_the_same_data():
    # the prior's posterior and the problem's own algebra agree: N(m, v I) and prox
    problem = measured(LINEAR["matrix"], 0.3, 1)
    prior = unveil.GaussianPrior(torch.zeros(16), 0.5, shape=SHAPE)
    posterior = prior.posterior(problem)
    torch.testing.assert_close(posterior.mean, problem.prox(torch.zeros(1, *SHAPE).double(), 0.5)[0])
