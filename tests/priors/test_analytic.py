"""The analytic priors against dense formulas, autograd, torch.distributions, quadrature and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unveil.errors import InputError, NotCompatible
from unveil.noise import Gaussian, NoNoise, Poisson
from unveil.operators.base import Linear, Operator
from unveil.priors import GaussianMixturePrior, GaussianPrior, check_prior
from unveil.priors.base import Prior, Pullback, Sigma
from unveil.problem import Problem

F64 = torch.float64
N = 6


class Dense(Linear):
    """A fixed matrix, with optional placeholders."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...] | None = None, measured: Tensor | None = None) -> None:
        self.matrix = matrix
        self.in_shape = shape or (matrix.shape[1],)
        self.measured = measured

    def __call__(self, x: Tensor) -> Tensor:
        y = x.flatten(1).to(self.matrix.dtype) @ self.matrix.T
        return y if self.measured is None else y * self.measured

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.conj().to(y)).real.reshape(-1, *self.in_shape)

    def shape_in(self, out_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.in_shape


def spd(n: int, seed: int) -> Tensor:
    a = normal(n, n, seed=seed)
    return a @ a.T / n + 0.1 * torch.eye(n, dtype=F64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def gaussian(n: int = N) -> GaussianPrior:
    return GaussianPrior(normal(n, seed=1), spd(n, 2))


def mixture(n: int = N) -> GaussianMixturePrior:
    return GaussianMixturePrior(
        [0.2, 0.5, 0.3], 1.5 * normal(3, n, seed=3), torch.stack([spd(n, 4), 0.3 * spd(n, 5), spd(n, 6)])
    )


PRIORS: dict[str, Prior] = {
    "gaussian": gaussian(),
    "gaussian diagonal": GaussianPrior(normal(N, seed=1), spd(N, 2).diagonal()),
    "gaussian isotropic": GaussianPrior(normal(N, seed=1), 0.7),
    "gaussian image": GaussianPrior(normal(N, seed=1), spd(N, 2), shape=(1, 2, 3), value_range=(-1, 1)),
    "mixture": mixture(),
    "mixture diagonal": GaussianMixturePrior([0.4, 0.6], normal(2, N, seed=3), normal(2, N, seed=4).exp()),
    "mixture isotropic": GaussianMixturePrior([0.4, 0.6], normal(2, N, seed=3), [0.3, 1.4]),
    "mixture even": GaussianMixturePrior([0.4, 0.3, 0.3], normal(3, N, seed=3)[[0, 1, 1]], [0.7, 0.7, 0.7]),
    "mixture image": GaussianMixturePrior(
        [0.4, 0.6], normal(2, N, seed=3), torch.stack([spd(N, 4), spd(N, 5)]), shape=(2, 3, 1)
    ),
}
each = pytest.mark.parametrize("name", PRIORS)


def noisy(prior: Prior, sigma: float, n: int = 5) -> Tensor:
    x = prior.sample(n, 3, dtype=F64)  # type: ignore[attr-defined]
    return x + sigma * normal(*x.shape, seed=7)


# -- the denoiser ------------------------------------------------------------------------------------


@each
def test_properties(name: str) -> None:
    report = dict(check_prior(PRIORS[name]))
    assert len(report) == 12
    assert report["vjp against finite differences"] < 1e-6
    assert report["a row does not depend on its batch"] < 1e-12


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 2.0, 50.0])
def test_gaussian_denoiser_is_the_dense_formula(sigma: float) -> None:
    prior = gaussian()
    x, m, c = noisy(prior, sigma), prior.mean, prior.covariance
    gain = c @ torch.linalg.inv(c + sigma**2 * torch.eye(N, dtype=F64))
    torch.testing.assert_close(prior.denoise(x, sigma), m + (x - m) @ gain.T, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(prior.jacobian(x, sigma)[2], gain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["mixture", "mixture diagonal", "mixture isotropic", "mixture even"])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0])
def test_mixture_denoiser_is_the_dense_formula(name: str, sigma: float) -> None:
    prior, eye = PRIORS[name], torch.eye(N, dtype=F64)
    assert isinstance(prior, GaussianMixturePrior)
    x = noisy(prior, sigma)
    terms, logs = [], []
    for k, w in enumerate(prior.weights):
        m, c = prior.component(k)
        s = c + sigma**2 * eye
        terms.append(m + (x - m) @ torch.linalg.solve(s, c))
        logs.append(w.log() + torch.distributions.MultivariateNormal(m, s).log_prob(x))
    r = torch.softmax(torch.stack(logs), 0)
    expected = (r[..., None] * torch.stack(terms)).sum(0)
    torch.testing.assert_close(prior.denoise(x, sigma), expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(prior.responsibilities(x, sigma), r.T, rtol=1e-9, atol=1e-12)


@each
def test_sigma_zero_returns_x(name: str) -> None:
    prior = PRIORS[name]
    for dtype in (torch.float32, F64):
        x = noisy(prior, 0.5).to(dtype)
        assert torch.equal(prior.denoise(x, 0.0), x)
        assert torch.equal(prior.denoise(x, torch.zeros(len(x))), x)
        assert torch.equal(prior.denoise(x, torch.tensor(0.0)), x)


@each
def test_float32_stays_accurate_over_the_sigma_range(name: str) -> None:
    prior = PRIORS[name]
    low, high = prior.sigma_range
    for sigma in np.geomspace(low, high, 9):
        x = noisy(prior, float(sigma)).float()
        exact = prior.denoise(x.double(), float(sigma))
        # relative to the prior's own spread even where x is 500 times larger
        spread = float(prior.covariance.diagonal().max()) ** 0.5  # type: ignore[attr-defined]
        assert float((prior.denoise(x, float(sigma)) - exact).abs().max()) < 3e-5 * spread


@each
@pytest.mark.parametrize("sigma", [0.02, 0.6, 10.0])
def test_vjp_is_autograd_and_symmetric(name: str, sigma: float) -> None:
    prior = PRIORS[name]
    x, v = noisy(prior, sigma), noisy(prior, 1.0)
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(prior.denoise(leaf, sigma), leaf, v)
    torch.testing.assert_close(prior.vjp(x, sigma)[1](v), expected, rtol=1e-8, atol=1e-10)
    levels = torch.full((len(x),), sigma, dtype=F64)
    torch.testing.assert_close(prior.vjp(x, levels)[1](v), expected, rtol=1e-8, atol=1e-10)
    j = prior.jacobian(x, sigma)  # type: ignore[attr-defined]
    torch.testing.assert_close(j, j.mT, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close((j @ v.flatten(1)[..., None])[..., 0], expected.flatten(1), rtol=1e-8, atol=1e-10)


@each
@pytest.mark.parametrize("sigma", [0.05, 0.6, 8.0])
def test_tweedie(name: str, sigma: float) -> None:
    prior = PRIORS[name]
    leaf = noisy(prior, sigma).requires_grad_(True)
    (score,) = torch.autograd.grad(prior.log_prob(leaf, sigma).sum(), leaf)  # type: ignore[attr-defined]
    x = leaf.detach()
    torch.testing.assert_close((prior.denoise(x, sigma) - x) / sigma**2, score, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(prior.score(x, sigma), score, rtol=1e-9, atol=1e-11)  # type: ignore[attr-defined]


def test_log_prob_is_that_of_torch() -> None:
    x = normal(5, N, seed=9)
    for sigma in (0.0, 0.4):
        eye = sigma**2 * torch.eye(N, dtype=F64)
        g = gaussian()
        reference = torch.distributions.MultivariateNormal(g.mean, g.covariance + eye)
        torch.testing.assert_close(g.log_prob(x, sigma), reference.log_prob(x), rtol=1e-10, atol=1e-10)
        m = mixture()
        parts = [m.component(k) for k in range(3)]
        both = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(m.weights),
            torch.distributions.MultivariateNormal(
                torch.stack([p[0] for p in parts]), torch.stack([p[1] + eye for p in parts])
            ),
        )
        torch.testing.assert_close(m.log_prob(x, sigma), both.log_prob(x), rtol=1e-10, atol=1e-10)
        levels = torch.full((5,), sigma, dtype=F64)
        torch.testing.assert_close(m.log_prob(x, levels), m.log_prob(x, sigma), rtol=1e-12, atol=1e-12)


# -- the distribution --------------------------------------------------------------------------------


@each
def test_sample_moments(name: str) -> None:
    prior, n = PRIORS[name], 4000
    x = prior.sample(n, 0, dtype=F64).flatten(1)  # type: ignore[attr-defined]
    mean, cov = prior.mean.flatten(), prior.covariance  # type: ignore[attr-defined]
    d = x - mean
    assert float((d.mean(0).abs() / cov.diagonal().sqrt()).max()) < 5 / math.sqrt(n)
    products = d[:, :, None] * d[:, None, :]
    z = (products.mean(0) - cov).abs() / products.std(0) * math.sqrt(n)
    assert float(z.max()) < 5


@each
def test_a_sample_does_not_depend_on_how_many_are_drawn(name: str) -> None:
    prior = PRIORS[name]
    many = prior.sample(50, 4)  # type: ignore[attr-defined]
    assert torch.equal(prior.sample(3, 4), many[:3])  # type: ignore[attr-defined]
    assert torch.equal(prior.sample(3, 4, dtype=F64).float(), many[:3])  # type: ignore[attr-defined]
    assert not torch.equal(prior.sample(3, 5), many[:3])  # type: ignore[attr-defined]
    assert many.dtype == torch.float32
    assert many.shape == (50, *prior.shape)


def test_denoise_and_vjp_touch_no_float() -> None:
    """On the meta device any read of a value raises: nothing waits for the device."""
    for prior in PRIORS.values():
        x = torch.empty(3, *prior.shape, device="meta")  # type: ignore[arg-type]
        for sigma in (0.5, torch.empty(3, device="meta")):
            x0, pullback = prior.vjp(x, sigma)
            assert pullback(x0).shape == prior.denoise(x, sigma).shape


def test_sigma_range_dwarfs_the_prior() -> None:
    far = GaussianMixturePrior([0.5, 0.5], torch.tensor([[0.0, 0.0], [30.0, 40.0]]), [1.0, 4.0])
    assert far.sigma_range[1] > 20 * (2 + 25)
    assert far.sigma_range[0] == pytest.approx(1e-3)
    narrow = GaussianPrior([0.5, 0.5], [1.0, 1e-12])
    assert narrow.sigma_range == pytest.approx((1e-5, 50.0))  # not below what float32 resolves
    wide = far.in_range(-1, 1)
    assert wide.sigma_range == pytest.approx((2 * far.sigma_range[0], 2 * far.sigma_range[1]))


@each
def test_in_range_is_the_generic_change_of_units(name: str) -> None:
    from unveil.priors.base import Rescaled

    prior = PRIORS[name]
    own, generic = prior.in_range(-3, 5), Rescaled(prior, (-3.0, 5.0))
    assert type(own) is type(prior)
    x = normal(4, *prior.shape, seed=2)  # type: ignore[arg-type]
    torch.testing.assert_close(own.denoise(x, 0.7), generic.denoise(x, 0.7), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(own.sigma_range, generic.sigma_range, rtol=1e-12, atol=0)


# -- posteriors --------------------------------------------------------------------------------------


def problem(prior: Prior, m: int, sigma_y: float, seed: int = 0, measured: Tensor | None = None) -> Problem:
    a = normal(m, math.prod(prior.shape), seed=seed)  # type: ignore[arg-type]
    x = prior.sample(1, 11, dtype=F64)  # type: ignore[attr-defined]
    return Problem.simulate(
        x,
        Dense(a, prior.shape, measured),  # type: ignore[arg-type]
        Gaussian(sigma_y) if sigma_y else NoNoise(),
        value_range=prior.value_range,
    )


@pytest.mark.parametrize("m", [2, N, 9])
@pytest.mark.parametrize("sigma_y", [1e-3, 0.3])
@pytest.mark.parametrize("name", ["gaussian", "gaussian diagonal", "gaussian image"])
def test_gaussian_posterior_is_the_dense_formula(name: str, m: int, sigma_y: float) -> None:
    prior = PRIORS[name]
    assert isinstance(prior, GaussianPrior)
    p = problem(prior, m, sigma_y)
    a = p.operator.matrix  # type: ignore[attr-defined]
    precision = torch.linalg.inv(prior.covariance) + a.T @ a / sigma_y**2
    right = torch.linalg.solve(prior.covariance, prior.mean.flatten()) + a.T @ p.y[0] / sigma_y**2
    got = prior.posterior(p)
    torch.testing.assert_close(got.covariance, torch.linalg.inv(precision), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(got.mean.flatten(), torch.linalg.solve(precision, right), rtol=1e-6, atol=1e-8)
    assert got.shape == prior.shape


@pytest.mark.parametrize("prior", [gaussian(3), mixture(3)], ids=["gaussian", "mixture"])
def test_posterior_moments_by_importance_sampling(prior: GaussianPrior | GaussianMixturePrior) -> None:
    p = problem(prior, 2, 0.8)
    x = prior.sample(15_000, 1, dtype=F64)
    w = torch.softmax(-0.5 * (p.y - p.operator(x)).square().sum(1) / 0.8**2, 0)
    size = 1 / float(w.square().sum())
    assert size > 1000
    got = prior.posterior(p)
    mean = w @ x
    assert float(((mean - got.mean).abs() / got.covariance.diagonal().sqrt()).max()) < 6 / math.sqrt(size)
    d = x - mean
    cov = (w[:, None] * d).T @ d
    # a product of two entries has a standard deviation of at most sqrt(kurtosis + ...) times the variances
    scale = (got.covariance.diagonal()[:, None] * got.covariance.diagonal()).sqrt()
    assert float(((cov - got.covariance).abs() / scale).max()) < 12 / math.sqrt(size)


def test_mixture_posterior_by_quadrature() -> None:
    prior = mixture(2)
    p = problem(prior, 1, 0.4)
    got = prior.posterior(p)
    axis = torch.linspace(-9, 9, 901, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    log = prior.log_prob(x) + Gaussian(0.4).log_prob(p.y, p.operator(x))
    w = torch.softmax(log, 0)
    mean = w @ x
    torch.testing.assert_close(got.mean, mean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(got.covariance, ((x - mean) * w[:, None]).T @ (x - mean), rtol=1e-6, atol=1e-7)
    evidence = torch.logsumexp(log, 0) + 2 * math.log(18 / 900)
    at = normal(4, 2, seed=5)
    bayes = prior.log_prob(at) + Gaussian(0.4).log_prob(p.y, p.operator(at)) - evidence
    torch.testing.assert_close(got.log_prob(at), bayes, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prior", [gaussian(), mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("m", [2, N, 9])
def test_noiseless_posterior_is_the_limit_and_meets_the_data(prior: Prior, m: int) -> None:
    p = problem(prior, m, 0.0)
    got = prior.posterior(p)  # type: ignore[attr-defined]
    near = prior.posterior(Problem(p.y, p.operator, Gaussian(1e-5)))  # type: ignore[attr-defined]
    torch.testing.assert_close(got.mean, near.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.covariance, near.covariance, rtol=0, atol=1e-6)
    x = got.sample(20, 0, dtype=F64)
    assert float((p.y - p.operator(x)).abs().max()) < 1e-9
    # the denoiser keeps to the subspace at every sigma; x on the subspace stays at sigma = 0
    z = x + 0.5 * normal(*x.shape, seed=4)
    assert float((p.y - p.operator(got.denoise(z, 0.5))).abs().max()) < 1e-9
    torch.testing.assert_close(got.denoise(x, 0.0), x, rtol=0, atol=0)
    torch.testing.assert_close(got.denoise(x, torch.zeros(20, dtype=F64)), x, rtol=0, atol=0)
    assert bool(torch.isfinite(got.vjp(x, 0.0)[1](z)).all())
    assert bool(torch.isfinite(got.log_prob(x, 0.1)).all())
    with pytest.raises(InputError, match="no density"):
        got.log_prob(x)


@pytest.mark.parametrize("prior", [gaussian(), mixture()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
def test_conditioning_twice_is_conditioning_on_both(prior: Prior, sigma_y: float) -> None:
    p = problem(prior, 4, sigma_y)
    a = p.operator.matrix  # type: ignore[attr-defined]
    noise = p.noise
    first, second = (Problem(p.y[:, rows], Dense(a[rows]), noise) for rows in (slice(0, 2), slice(2, 4)))
    once, twice = prior.posterior(p), prior.posterior(first).posterior(second)  # type: ignore[attr-defined]
    torch.testing.assert_close(twice.mean, once.mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(twice.covariance, once.covariance, rtol=1e-8, atol=1e-8)
    if isinstance(once, GaussianMixturePrior):
        torch.testing.assert_close(twice.weights, once.weights, rtol=1e-8, atol=1e-10)


def test_a_noiseless_repetition_and_a_contradiction() -> None:
    prior = gaussian()
    row = normal(1, N, seed=0)
    twice = Dense(torch.cat([row, row]))
    got = prior.posterior(Problem(torch.tensor([[0.3, 0.3]], dtype=F64), twice, NoNoise()))
    once = prior.posterior(Problem(torch.tensor([[0.3]], dtype=F64), Dense(row), NoNoise()))
    torch.testing.assert_close(got.covariance, once.covariance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.mean, once.mean, rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="no signal explains"):
        prior.posterior(Problem(torch.tensor([[0.3, 0.4]], dtype=F64), twice, NoNoise()))


def test_placeholders_are_not_data() -> None:
    prior = gaussian()
    measured = torch.tensor([1.0, 0, 1, 1, 0], dtype=F64)
    p = problem(prior, 5, 0.2, measured=measured)
    kept = measured > 0
    bare = Problem(p.y[:, kept], Dense(p.operator.matrix[kept]), Gaussian(0.2))  # type: ignore[attr-defined]
    a, b = prior.posterior(p), prior.posterior(bare)
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-10, atol=1e-12)


def test_a_complex_entry_counts_as_two_real_ones() -> None:
    prior = gaussian()
    re, im = normal(2, N, seed=5), normal(2, N, seed=6)
    x = prior.sample(1, 11, dtype=F64)
    p = Problem.simulate(x, Dense(torch.complex(re, im)), 0.3)
    both = torch.cat([p.y.real, p.y.imag], 1)
    real = prior.posterior(Problem(both, Dense(torch.cat([re, im])), 0.3))
    got = prior.posterior(p)
    torch.testing.assert_close(got.mean, real.mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(got.covariance, real.covariance, rtol=1e-9, atol=1e-10)


def test_posterior_in_other_units_is_the_posterior_moved() -> None:
    prior = mixture()
    p = problem(prior, 3, 0.2)
    a = p.operator.matrix  # type: ignore[attr-defined]
    # u = 2 x - 1 : A x = A (u + 1) / 2
    moved = Problem(p.y - a.sum(1) / 2, Dense(a / 2), Gaussian(0.2), value_range=(-1, 1))
    with pytest.raises(NotCompatible, match=r"in_range\(-1.0, 1.0\)"):
        prior.posterior(moved)
    got = prior.in_range(-1, 1).posterior(moved)
    torch.testing.assert_close(got.in_range(0, 1).mean, prior.posterior(p).mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.covariance, 4 * prior.posterior(p).covariance, rtol=1e-9, atol=1e-9)


class Single(Dense):
    """Takes float32 signals only."""

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.matrix.T


def test_an_operator_of_fixed_precision_is_accepted() -> None:
    prior, a = gaussian(), normal(2, N, seed=1).float()
    y = torch.tensor([[0.1, 0.2]])
    got = prior.posterior(Problem(y, Single(a), 0.1))
    want = prior.posterior(Problem(y, Dense(a.double()), 0.1))
    torch.testing.assert_close(got.mean, want.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.covariance, want.covariance, rtol=1e-6, atol=1e-6)


class Square(Operator):
    def __call__(self, x: Tensor) -> Tensor:
        return x**2

    def shape_in(self, out_shape: tuple[int, ...]) -> tuple[int, ...]:
        return out_shape


def test_errors_name_the_mend() -> None:
    prior = gaussian()
    y = torch.ones(1, N, dtype=F64)
    a = Dense(torch.eye(N, dtype=F64))
    with pytest.raises(NotCompatible, match="linear"):
        prior.posterior(Problem(y, Square(), Gaussian(0.1)))
    with pytest.raises(NotCompatible, match="Poisson"):
        prior.posterior(Problem(y, a, Poisson(1.0)))
    with pytest.raises(InputError, match=r"problem\[k\]"):
        prior.posterior(Problem(y.expand(2, N), a, Gaussian(0.1)))
    with pytest.raises(InputError, match="symmetric"):
        GaussianPrior([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(InputError, match="multiple of the identity"):
        GaussianPrior([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(InputError, match="positive"):
        GaussianPrior([0.0, 0.0], [1.0, -1.0])
    with pytest.raises(InputError, match="sum one"):
        GaussianMixturePrior([0.5, 0.6], torch.zeros(2, 2), [1.0, 1.0])
    with pytest.raises(InputError, match="means must be"):
        GaussianMixturePrior([0.5, 0.5], torch.zeros(3, 2), [1.0, 1.0])
    with pytest.raises(InputError, match="entries"):
        GaussianPrior(torch.zeros(6), 1.0, shape=(2, 2))
    with pytest.raises(InputError, match="signals are"):
        prior.denoise(torch.zeros(1, N + 1), 0.1)
    with pytest.raises(InputError, match="lo < hi"):
        prior.in_range(1, 0)


def test_describe_changes_with_the_numbers_only() -> None:
    assert gaussian().describe() == gaussian().describe()
    assert gaussian().describe()["digest"] != gaussian().in_range(-1, 1).describe()["digest"]
    assert mixture().describe()["digest"] != GaussianMixturePrior([1.0], torch.zeros(1, 2), [1.0]).describe()["digest"]


# -- the checks find what is broken ------------------------------------------------------------------


class Wrapped(Prior):
    """A correct prior with one fault added by a subclass."""

    def __init__(self) -> None:
        self.inner = mixture()
        self.shape, self.value_range, self.sigma_range = (N,), self.inner.value_range, self.inner.sigma_range
        self.sample, self.log_prob = self.inner.sample, self.inner.log_prob

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        return self.inner.denoise(x, sigma)


class SigmaForVariance(Wrapped):
    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        return self.inner.denoise(x, sigma**0.5)


class DoubleVjp(Wrapped):
    def vjp(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Pullback]:
        x0, pullback = self.inner.vjp(x, sigma)
        return x0, lambda v: 2 * pullback(v)


class Coupled(Wrapped):
    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        return self.inner.denoise(x, sigma) + 1e-2 * x.mean()


class GlobalNoise(Wrapped):
    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        torch.rand(1)
        return self.inner.denoise(x, sigma)


class ShiftedWeights(Wrapped):
    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        return 0.9 * self.inner.denoise(x, sigma) + 0.1 * x


class LeakyVjp(Wrapped):
    def vjp(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Pullback]:
        return self.denoise(x, sigma), self.inner.vjp(x, sigma)[1]


class FixedUnits(Wrapped):
    def in_range(self, lo: float, hi: float) -> Prior:
        return self


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (SigmaForVariance, "sigma to 0|Tweedie|shrinks"),
        (DoubleVjp, "finite differences"),
        (Coupled, "batch"),
        (GlobalNoise, "global random state"),
        (ShiftedWeights, "Tweedie"),
        (LeakyVjp, "graph"),
        (FixedUnits, "in_range"),
    ],
)
def test_checks_fail_on_a_fault(broken: type[Wrapped], message: str) -> None:
    assert check_prior(Wrapped())
    with pytest.raises(AssertionError, match=message):
        check_prior(broken())


def test_draws_do_not_depend_on_how_a_machine_decomposes_the_covariance() -> None:
    """Signs of eigenvectors, and rotations among those of equal eigenvalues, are another library's choice."""
    g = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(N, N, generator=g, dtype=F64))[0]
    variances = torch.tensor([0.5, 0.5, 0.5, 1.0, 2.0, 2.0], dtype=F64)
    mean, covariance = torch.randn(N, generator=g, dtype=F64), (axes * variances) @ axes.T
    turn = torch.block_diag(*(torch.linalg.qr(torch.randn(k, k, generator=g, dtype=F64))[0] for k in (3, 1, 2)))
    assert (turn - torch.eye(N, dtype=F64)).abs().max() > 0.5
    gaussian = GaussianPrior(mean, covariance)
    other = gaussian._like(gaussian._mean, axes @ turn, variances)
    assert (gaussian.sample(5, dtype=F64) - other.sample(5, dtype=F64)).abs().max() < 1e-12
    mixture = GaussianMixturePrior([0.3, 0.7], torch.stack([mean, -mean]), torch.stack([covariance, covariance]))
    log_weights, means, _, _ = mixture._components
    before = mixture.sample(5, dtype=F64)
    mixture._components = (log_weights, means, torch.stack([axes @ turn, axes]), variances.expand(2, -1))
    assert (mixture.sample(5, dtype=F64) - before).abs().max() < 1e-12
