"""Noise models: densities against torch.distributions, scores against autograd, samples against moments."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from torch.distributions import Poisson as TorchPoisson

from unveil import GaussianPrior, Problem, compare, list_solvers, operators, registry, solve
from unveil.errors import InputError, NotCompatible
from unveil.noise import (
    CirculantGaussian,
    Clipped,
    DiagonalGaussian,
    FullGaussian,
    Gaussian,
    Impulse,
    Laplace,
    Noise,
    NoNoise,
    Poisson,
    PoissonGaussian,
    Quantisation,
    Reward,
    Rician,
    Speckle,
    checks,
    estimate_poisson_gaussian,
    estimate_sigma,
)
from unveil.operators import Spectral
from unveil.operators.weights import Power
from unveil.priors.base import Prior, expand
from unveil.rng import Rng, single
from unveil.run import Status

MODELS = [Gaussian(0.3), Poisson(20.0), NoNoise()]
SHAPE = (4, 3, 5)
MASK = torch.tensor([[1.0, 1, 0, 0, 1]])


def light(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 0.2 + torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def counts(clean: Tensor, gain: float, seed: int = 1) -> Tensor:
    return torch.poisson(gain * clean, generator=torch.Generator().manual_seed(seed)) / gain


def test_registered_and_frozen() -> None:
    assert {"gaussian", "none", "poisson"} <= set(registry.names("noise"))
    assert registry.lookup("noise", "gaussian") is Gaussian
    assert [model.name for model in MODELS] == ["gaussian", "poisson", "none"]
    assert [model.sigma for model in MODELS] == [0.3, None, 0.0]
    assert dataclasses.asdict(Poisson(3.0)) == {"gain": 3.0, "floor": 0.01}
    with pytest.raises(dataclasses.FrozenInstanceError):
        Gaussian(0.1).sigma = 0.2  # type: ignore[misc]


def test_bad_parameters() -> None:
    with pytest.raises(InputError, match="NoNoise"):
        Gaussian(0)
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="sigma > 0"):
            Gaussian(bad)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="gain > 0"):
            Poisson(bad)
    with pytest.raises(InputError, match="floor > 0"):
        Poisson(1.0, floor=0.0)
    with pytest.raises(InputError, match="complex"):
        Poisson(1.0).sample(torch.ones(1, 2, dtype=torch.complex64), single(0))


# -- densities and scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize("measured", [None, MASK])
def test_gaussian_density(measured: Tensor | None) -> None:
    clean, y = light(*SHAPE), light(*SHAPE).flip(0)
    each = Normal(clean, 0.3).log_prob(y)
    expected = (each if measured is None else each * measured).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian(0.3).log_prob(y, clean, measured), expected)


def test_complex_gaussian_density_is_that_of_its_parts() -> None:
    clean, y = torch.randn(3, 4, dtype=torch.complex128), torch.randn(3, 4, dtype=torch.complex128)
    expected = Normal(clean.real, 0.3).log_prob(y.real) + Normal(clean.imag, 0.3).log_prob(y.imag)
    torch.testing.assert_close(Gaussian(0.3).log_prob(y, clean), expected.sum(1))
    mask = torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(Gaussian(0.3).log_prob(y, clean, mask), (expected * mask).sum(1))


@pytest.mark.parametrize("measured", [None, MASK])
def test_poisson_density(measured: Tensor | None) -> None:
    clean = light(*SHAPE)
    y = counts(clean, 20.0)
    each = TorchPoisson(20.0 * clean).log_prob(20.0 * y)
    expected = (each if measured is None else each * measured).flatten(1).sum(1)
    torch.testing.assert_close(Poisson(20.0).log_prob(y, clean, measured), expected)


@pytest.mark.parametrize("model", [Gaussian(0.3), Poisson(20.0), Poisson(0.5)])
@pytest.mark.parametrize("measured", [None, MASK])
def test_score_is_the_gradient(model: Noise, measured: Tensor | None) -> None:
    clean = light(*SHAPE) - 0.4  # some below zero
    y = counts(light(*SHAPE), 20.0)
    leaf = clean.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(model.log_prob(y, leaf, measured).sum(), leaf)
    torch.testing.assert_close(model.score(y, clean, measured), expected, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(expected).all()


def test_complex_score_is_the_gradient() -> None:
    y = torch.randn(3, 4, dtype=torch.complex128)
    leaf = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    (expected,) = torch.autograd.grad(Gaussian(0.3).log_prob(y, leaf).sum(), leaf)
    torch.testing.assert_close(Gaussian(0.3).score(y, leaf.detach()), expected)


def test_poisson_in_the_dark() -> None:
    model = Poisson(10.0)
    dark = torch.tensor([[-0.5], [0.0], [1e-6]], dtype=torch.float64)
    seen, nothing = torch.full((3, 1), 0.3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    assert (model.score(seen, dark) > 0).all(), "light that was seen must pull the guess upwards"
    assert torch.isfinite(model.log_prob(seen, dark)).all()
    torch.testing.assert_close(model.log_prob(nothing, dark), torch.tensor([0, 0, -1e-5], dtype=torch.float64))
    assert (model.score(nothing, dark) <= 0).all()
    assert torch.equal(model.sample(-torch.ones(2, 3), single(0, 2)), torch.zeros(2, 3))


def test_no_noise() -> None:
    clean = light(3, 4)
    y = clean.clone()
    y[1, 2] += 1e-9
    model = NoNoise()
    assert torch.equal(model.sample(clean, single(0, 3)), clean)
    assert model.log_prob(y, clean).tolist() == [0.0, -math.inf, 0.0]
    assert model.log_prob(y, clean, torch.tensor([1.0, 1, 0, 1])).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(InputError, match="projects"):
        model.score(y, clean)


def test_placeholders_that_are_not_finite_do_not_count() -> None:
    clean, y = light(2, 5), light(2, 5)
    bad = y.clone()
    bad[:, 2:4] = math.nan
    for model in (Gaussian(0.3), Poisson(20.0)):
        assert torch.equal(model.log_prob(bad, clean, MASK[0]), model.log_prob(y, clean, MASK[0]))
        assert torch.equal(model.score(bad, clean, MASK[0]), model.score(y, clean, MASK[0]))


# -- samples -------------------------------------------------------------------------------------------------


def test_gaussian_moments() -> None:
    # n = 200000: the mean scatters by 0.3 / sqrt(n), the variance by 0.09 sqrt(2 / n); five standard errors
    n = 200_000
    r = Gaussian(0.3).sample(torch.full((2, n // 2), 0.7, dtype=torch.float64), single(3, 2)) - 0.7
    assert abs(float(r.mean())) < 5 * 0.3 / n**0.5
    assert abs(float(r.square().mean()) - 0.09) < 5 * 0.09 * (2 / n) ** 0.5


def test_complex_gaussian_moments() -> None:
    n = 200_000
    z = Gaussian(0.3).sample(torch.zeros(1, n, dtype=torch.complex128), single(4))
    for part in (z.real, z.imag):
        assert abs(float(part.square().mean()) - 0.09) < 5 * 0.09 * (2 / n) ** 0.5
    assert abs(float((z.real * z.imag).mean())) < 5 * 0.09 / n**0.5


@pytest.mark.parametrize(("gain", "clean"), [(0.5, 1.0), (20.0, 0.4), (1000.0, 0.7)])
def test_poisson_moments(gain: float, clean: float) -> None:
    # mean mu = gain * clean of the counts k; Var[(k - mu)^2] = mu + 2 mu^2
    n, mu = 200_000, gain * clean
    y = Poisson(gain).sample(torch.full((2, n // 2), clean, dtype=torch.float64), single(5, 2))
    k = y * gain
    torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-9)
    assert abs(float(y.mean()) - clean) < 5 * (clean / gain / n) ** 0.5
    assert abs(float((k - mu).square().mean()) - mu) < 5 * ((mu + 2 * mu**2) / n) ** 0.5


@pytest.mark.parametrize("model", [Gaussian(0.3), Poisson(20.0)])
def test_variance_is_that_of_the_samples(model: Noise) -> None:
    n, clean = 200_000, 0.6
    y = model.sample(torch.full((1, n), clean, dtype=torch.float64), single(6))
    expected = float(torch.as_tensor(model.variance(torch.tensor(clean, dtype=torch.float64))))
    kurtosis = 3 + (1 / (20 * clean) if isinstance(model, Poisson) else 0)
    error = float((y - clean).square().mean()) - expected
    assert abs(error) < 5 * expected * ((kurtosis - 1) / n) ** 0.5
    assert NoNoise().variance(torch.ones(1)) is None


def test_score_has_zero_mean_and_the_fisher_information() -> None:
    # E score = 0 and E score^2 = information: ties sample and score together, no factor can hide in both
    n, clean = 200_000, torch.full((1, 200_000), 0.6, dtype=torch.float64)
    for model, information in ((Gaussian(0.3), 1 / 0.09), (Poisson(20.0), 20.0 / 0.6)):
        score = model.score(model.sample(clean, single(7)), clean)
        assert abs(float(score.mean())) < 5 * (information / n) ** 0.5
        assert abs(float(score.square().mean()) - information) < 5 * information * (2.2 / n) ** 0.5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_mask_and_streams(model: Noise, dtype: torch.dtype) -> None:
    clean = light(*SHAPE, dtype=dtype)
    y = model.sample(clean, single(1, 4), MASK)
    assert y.dtype == clean.dtype
    assert torch.equal(y[..., MASK[0] == 0], clean[..., MASK[0] == 0]), "placeholders get no noise"
    assert torch.equal(model.sample(clean, single(1, 4), MASK), y), "the same seed, the same noise"
    # the mask does not shift the noise of other entries, nor does the batch
    full = model.sample(clean, single(1, 4))
    assert torch.equal(full[..., MASK[0] == 1], y[..., MASK[0] == 1])
    alone = model.sample(clean[2:3], Rng([(1, 2)], purpose="draw"))
    assert torch.equal(alone[0], full[2])
    if not isinstance(model, NoNoise):
        assert not torch.equal(model.sample(clean, single(2, 4)), full)
        assert not torch.equal(model.sample(clean[:1], Rng([(1, 1)], purpose="draw")), full[:1])
    assert model.log_prob(y, clean).dtype == dtype
    assert model.log_prob(y, clean).shape == (4,)


def test_log_prob_of_rows_is_independent() -> None:
    clean = light(*SHAPE)
    y = counts(clean, 20.0)
    for model in (Gaussian(0.3), Poisson(20.0)):
        both = model.log_prob(y, clean)
        torch.testing.assert_close(model.log_prob(y[1:2], clean[1:2]), both[1:2], rtol=1e-14, atol=0)


def test_no_global_random_state() -> None:
    state = torch.get_rng_state()
    for model in MODELS:
        model.sample(light(2, 3), single(0, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_poisson_stream_of_wrong_size() -> None:
    with pytest.raises(InputError, match="this stream has 2"):
        single(0, 2).poisson(torch.ones(3, 4))


# -- rewards ------------------------------------------------------------------------------------------------


def test_a_reward_is_the_likelihood_and_its_gradient_the_score() -> None:
    clean, y = light(3, 4), torch.zeros(3, 4, dtype=torch.float64)
    model = Reward(lambda x: -x.square().sum(1))
    assert model.sigma is None
    assert model.variance(clean) is None
    torch.testing.assert_close(model.log_prob(y, clean), -clean.square().sum(1))
    with torch.no_grad():
        torch.testing.assert_close(model.score(y, clean), -2 * clean)
    assert model.describe()["name"] == "reward"
    with pytest.raises(InputError, match="makes no data"):
        model.sample(clean, single(0, 3))
    with pytest.raises(InputError, match=r"one number for each signal \[N\]: \(3, 4\) gave \(\)"):
        Reward(lambda x: x.sum()).log_prob(y, clean)
    with pytest.raises(InputError, match="only evaluates"):
        Reward(lambda x: x.detach().sum(1)).score(y, clean)


def test_which_solvers_take_rewards() -> None:
    problem = Problem(torch.zeros(1, 2), operators.Identity(), Reward(lambda x: x.sum(1)))
    assert set(list_solvers(fits=problem)) == {"das", "fk-steering", "scg", "tds", "unveil-exact"}


# -- every registered model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registry.names("noise"))
def test_model_keeps_its_promises(name: str) -> None:
    results = dict(checks.check_noise(registry.lookup("noise", name).example(checks.SHAPE)))
    assert ("density" in results) == (name != "none")


@pytest.mark.parametrize(
    "model",
    [
        PoissonGaussian(1000.0, 0.02),  # twenty counts of read-out noise: summed in steps
        PoissonGaussian(5.0, 0.002),  # a hundredth of a count
        Quantisation(1, 0.3),
        Quantisation(12, 0.001),
        Rician(0.001),
        Clipped(0.3, 0.3, 0.7),
        Speckle(1.0),
    ],
    ids=str,
)
def test_models_far_from_their_examples(model: Noise) -> None:
    checks.check_noise(model)


class NoiseTooLarge(Gaussian):
    def sample(self, clean, rng, measured=None):
        return clean + 2**0.5 * (super().sample(clean, rng, measured) - clean)


class ScoreTwice(Gaussian):
    def score(self, y, clean, measured=None):
        return 2 * super().score(y, clean, measured)


class NotNormalised(Speckle):
    """Without log(clean): the gradient is right for what it is, but no density."""

    def log_prob(self, y, clean, measured=None):
        return super().log_prob(y, clean, measured) + self.looks * clean.log().flatten(1).sum(1)

    def score(self, y, clean, measured=None):
        return super().score(y, clean, measured) + self.looks / clean


class VarianceIsStd(Gaussian):
    def variance(self, clean):
        return self.sigma


class Together(Gaussian):
    def sample(self, clean, rng, measured=None):
        y = super().sample(clean, rng, measured)
        return y - (y - clean).mean(0, keepdim=True)


class LoudPlaceholders(Gaussian):
    def sample(self, clean, rng, measured=None):
        return super().sample(clean, rng, None)


@pytest.mark.parametrize(
    ("check", "model"),
    [
        (checks.check_variance, NoiseTooLarge(0.3)),
        (checks.check_density, NoiseTooLarge(0.3)),
        (checks.check_score, ScoreTwice(0.3)),
        (checks.check_mean_score, NotNormalised()),
        (checks.check_density, NotNormalised()),
        (checks.check_variance, VarianceIsStd(0.3)),
        (checks.check_streams, Together(0.3)),
        (checks.check_mask, LoudPlaceholders(0.3)),
    ],
    ids=lambda p: getattr(p, "__name__", type(p).__name__),
)
def test_broken_model_fails(check, model: Noise) -> None:
    with pytest.raises(AssertionError, match=f"^{model.name}: "):
        check(model)


@pytest.mark.parametrize(("gain", "read"), [(3.0, 0.001), (3.0, 0.3), (100.0, 0.02), (1000.0, 0.02), (100.0, 0.2)])
def test_poisson_gaussian_is_the_sum_over_counts(gain: float, read: float) -> None:
    model = PoissonGaussian(gain, read, floor=1e-9)
    clean = torch.tensor([0.001, 0.01, 0.1, 0.5, 1.0, 3.0], dtype=torch.float64)[:, None]
    k = torch.arange(8000, dtype=torch.float64)
    for value in (-0.05, 0.0, 0.02, 0.5, 2.0):
        y = torch.full_like(clean, value)
        each = TorchPoisson(gain * clean).log_prob(k) + Normal(k / gain, read).log_prob(y)
        torch.testing.assert_close(model.log_prob(y, clean), each.logsumexp(1), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("read", [0.02, 2.0, 8.0])
def test_low_light_in_the_dark(read: float) -> None:
    model = PoissonGaussian.low_light(20.0, read)
    clean = torch.tensor([[-50.0, -1.0, -0.4, -0.05, -1e-6, 1e-5, 5e-4, 0.02, 1.0]], dtype=torch.float64)
    for value in (-0.3, 0.0, 0.05, 0.2, 3.0):
        y = torch.full_like(clean, value)
        leaf = clean.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(model.log_prob(y, leaf).sum(), leaf)
        score = model.score(y, clean)
        assert torch.isfinite(slope).all()
        assert torch.isfinite(model.log_prob(y, clean)).all()
        torch.testing.assert_close(score, slope, rtol=1e-7, atol=1e-7)
        if value >= 0.2:  # light was seen: less than none is not believed
            assert (score[clean < 0] > 1).all()
    assert torch.isfinite(model.score(torch.full((1, 1), -1e4), torch.zeros(1, 1)))


def test_low_light_is_solved_to_the_end() -> None:
    prior = GaussianPrior(torch.zeros(1, 4, 4), torch.eye(16), value_range=(0.0, 1.0))
    dark = torch.linspace(0.0, 1.0, 16, dtype=torch.float64).reshape(1, 1, 4, 4)
    problem = Problem.simulate(dark, operators.Identity(), PoissonGaussian.low_light(20.0, 1.0))
    result = solve(problem, prior, "daps", samples=2, steps=5)
    assert result.status is Status.DONE
    assert torch.isfinite(result.samples).all()


def test_densities_of_torch() -> None:
    clean, y = light(*SHAPE), light(*SHAPE).flip(0)
    laplace = torch.distributions.Laplace(clean, 0.3).log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close(Laplace(0.3).log_prob(y, clean), laplace)
    speckle = torch.distributions.Gamma(3.5, 3.5 / clean).log_prob(y).flatten(1).sum(1)
    torch.testing.assert_close(Speckle(3.5).log_prob(y, clean), speckle)
    z = torch.randn(3, 4, dtype=torch.complex128)
    parts = torch.distributions.Laplace(0.0, 0.3).log_prob(torch.view_as_real(z)).sum((1, 2))
    torch.testing.assert_close(Laplace(0.3).log_prob(z, torch.zeros_like(z)), parts)


def test_quantisation_is_the_probability_of_a_level() -> None:
    model = Quantisation(2, 0.2)
    levels = torch.linspace(0, 1, 4, dtype=torch.float64)[:, None]
    clean = torch.full((4, 1), 0.6, dtype=torch.float64)
    probability = model.log_prob(levels, clean).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-12)
    edges = Normal(0.6, 0.2).cdf(torch.tensor([1 / 6, 0.5, 5 / 6], dtype=torch.float64))
    torch.testing.assert_close(probability.cumsum(0)[:3], edges)
    far = model.score(torch.ones(1, 1), torch.full((1, 1), -8.0))  # forty standard deviations away
    assert 200 < float(far) < 300
    one = Quantisation(1, 0.2).sample(clean, single(0, 4))
    assert set(one.flatten().tolist()) <= {0.0, 1.0}


def test_clipping_far_out_in_single_precision() -> None:
    for deviations in (3.0, 100.0, 1500.0):
        clean = torch.tensor([[-deviations * 0.02, 1 + deviations * 0.02]], dtype=torch.float64)
        y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        exact = Clipped(0.02).score(y, clean)
        torch.testing.assert_close(Clipped(0.02).score(y.float(), clean.float()).double(), exact, rtol=1e-4, atol=0)


def test_clipping_and_impulses_leave_atoms() -> None:
    clean = torch.full((1, 20000), 0.95, dtype=torch.float64)
    y = Clipped(0.05).sample(clean, single(0))
    assert abs(float((y == 1).double().mean()) - float(Normal(0.0, 1.0).cdf(torch.tensor(-1.0)))) < 0.015
    z = Impulse(0.3).sample(clean, single(0))
    for end in (0.0, 1.0):
        assert abs(float((z == end).double().mean()) - 0.15) < 0.015
    assert not Impulse(0.3).score(z, clean)[(z == 0) | (z == 1)].any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: PoissonGaussian(0.0),
        lambda: PoissonGaussian.low_light(read=-1),
        lambda: Speckle(math.nan),
        lambda: Laplace(0),
        lambda: Impulse(1.0),
        lambda: Impulse(0.1, 0.1, 1, 0),
        lambda: Rician(math.inf),
        lambda: Clipped(0.1, 1, 1),
        lambda: Quantisation(0),
        lambda: Quantisation(4, 0),
        lambda: Quantisation(4, 0.1, 2, 1),
        lambda: DiagonalGaussian(torch.zeros(3)),
        lambda: CirculantGaussian(torch.zeros(3, 3)),
        lambda: CirculantGaussian(torch.rand(4, 4) + 0.1),
        lambda: FullGaussian(torch.eye(3)[:2]),
        lambda: FullGaussian(-torch.eye(3)),
        lambda: FullGaussian(torch.eye(3) + torch.ones(3, 3).triu(1)),
        lambda: Rician().sample(torch.ones(1, 2, dtype=torch.complex64), single(0)),
        lambda: CirculantGaussian(torch.ones(4, 4)).sample(torch.ones(1, 4, 5), single(0)),
        lambda: FullGaussian(torch.eye(3)).sample(torch.ones(1, 4, 5), single(0)),
    ],
)
def test_bad_models_are_refused(make) -> None:
    with pytest.raises(InputError):
        make()


# -- correlated noise, and problems made white -----------------------------------------------------------------

OUT = (2, 4, 5)


def covariance(model: Noise, shape: tuple[int, ...]) -> Tensor:
    """The covariance matrix of all entries, from what each model says of itself."""
    n = math.prod(shape)
    if isinstance(model, DiagonalGaussian):
        return torch.diag(model.std.double().expand(shape).reshape(n) ** 2)
    if isinstance(model, CirculantGaussian):
        eye = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
        return torch.fft.ifft2(torch.fft.fft2(eye) * model.power).real.reshape(n, n)
    return model.covariance.double()


CORRELATED = [model.example(OUT) for model in (DiagonalGaussian, CirculantGaussian, FullGaussian)]


@pytest.mark.parametrize("model", CORRELATED, ids=lambda m: m.name)
def test_correlated_densities_are_multivariate_normal(model: Noise) -> None:
    clean, y = light(3, *OUT), light(3, *OUT).flip(0)
    c = covariance(model, OUT)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(c), dtype=torch.float64), c)
    torch.testing.assert_close(model.log_prob(y, clean), normal.log_prob((y - clean).flatten(1)))
    kept = torch.rand(OUT, generator=torch.Generator().manual_seed(3)) > 0.4
    index = kept.reshape(-1).nonzero().squeeze(1)
    part = torch.distributions.MultivariateNormal(torch.zeros(len(index), dtype=torch.float64), c[index][:, index])
    expected = part.log_prob((y - clean).flatten(1)[:, index])
    torch.testing.assert_close(model.log_prob(y, clean, kept.double()), expected)
    score = torch.linalg.solve(c[index][:, index], (y - clean).flatten(1)[:, index].mT).mT
    torch.testing.assert_close(model.score(y, clean, kept.double()).flatten(1)[:, index], score)


@pytest.mark.parametrize("model", CORRELATED, ids=lambda m: m.name)
def test_correlated_samples_have_the_covariance(model: Noise) -> None:
    n = 20000
    r = model.sample(torch.zeros(n, *OUT, dtype=torch.float64), single(0, n)).flatten(1)
    c = covariance(model, OUT)
    error = (r.mT @ r / n - c) / ((c.diagonal()[:, None] * c.diagonal() + c**2) / n).sqrt()
    assert float(error.abs().max()) < 5.5


def test_noise_of_coils() -> None:
    """Complex, correlated between coils: E n n^H = 2 C, and independent between pixels."""
    psi = torch.tensor([[1.0, 0.4 + 0.3j], [0.4 - 0.3j, 0.5]], dtype=torch.complex128) * 0.02
    model, n = FullGaussian(psi), 20000
    r = model.sample(torch.zeros(n, 2, 3, dtype=torch.complex128), single(0, n))
    got = torch.einsum("ncp,ndq->cpdq", r, r.conj()) / n
    for p in range(3):
        for q in range(3):
            expected = 2 * psi if p == q else torch.zeros_like(psi)
            torch.testing.assert_close(got[:, p, :, q], expected, rtol=0, atol=2e-3)
    same = FullGaussian(0.09 * torch.eye(2, dtype=torch.complex128))
    y, clean = torch.randn(2, 4, 2, 3, dtype=torch.complex128)
    mask = torch.tensor([1.0, 0, 1])
    for measured in (None, mask):
        torch.testing.assert_close(same.log_prob(y, clean, measured), Gaussian(0.3).log_prob(y, clean, measured))
        torch.testing.assert_close(same.score(y, clean, measured), Gaussian(0.3).score(y, clean, measured))
    with pytest.raises(InputError, match="same mask"):
        same.log_prob(y, clean, torch.eye(2, 3))
    with pytest.raises(InputError, match="real covariance"):
        model.sample(torch.zeros(1, 2, 3), single(0))


A = {
    "blur": operators.Blur(operators.gaussian_kernel(1.0, 3), in_shape=OUT),
    "mask": operators.Inpainting(torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.4, OUT),
    "matrix": operators.Matrix(torch.randn(40, 12, dtype=torch.float64)),
    "identity": operators.Identity(OUT),
    "reflect": operators.Blur(operators.gaussian_kernel(1.0, 3), "reflect", in_shape=OUT),
}


@pytest.mark.parametrize("model", CORRELATED, ids=lambda m: m.name)
@pytest.mark.parametrize("name", A)
def test_white_problem_is_the_same_problem(model: Noise, name: str) -> None:
    operator = A[name]
    if name == "matrix":
        if isinstance(model, CirculantGaussian):
            pytest.skip("has no grid")
        model = type(model).example((40,))
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, *operator.in_shape, dtype=torch.float64, generator=g)
    problem = Problem.simulate(x, operator, model, seed=1)
    white = problem.white
    assert white.noise == Gaussian(1.0)
    assert white.m == problem.m
    z, other = torch.randn(2, 2, *operator.in_shape, dtype=torch.float64, generator=g)
    # one likelihood, but for the determinant of W
    torch.testing.assert_close(
        white.log_likelihood(z) - problem.log_likelihood(z), white.log_likelihood(other) - problem.log_likelihood(other)
    )
    torch.testing.assert_close(white.score(z), problem.score(z))
    # and one posterior mean: here from the dense matrices
    n = math.prod(operator.in_shape)
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *operator.in_shape)
    dense, c = operator(eye).flatten(1).mT, covariance(model, problem.y.shape[1:])
    kept = torch.ones(problem.y.shape[1:]) if operator.measured is None else operator.measured.expand(OUT)
    index = kept.reshape(-1).nonzero().squeeze(1)
    dense, c = dense[index], c[index][:, index]
    r = (problem.y - operator(z)).flatten(1)[:, index]
    k = 0.7 * dense.mT @ torch.linalg.inv(0.7 * dense @ dense.mT + c)
    expected = z + (r @ k.mT).reshape(z.shape)
    torch.testing.assert_close(white.prox(z, 0.7), expected, rtol=0, atol=1e-6)


def test_what_stays_spectral_when_white() -> None:
    def white(operator, noise, shape):
        return Problem.simulate(torch.rand(1, *shape), operator, noise).white.operator

    diagonal, circulant, full = CORRELATED
    for name, model in (("mask", diagonal), ("identity", diagonal), ("blur", circulant), ("identity", full)):
        found = white(A[name], model, OUT)
        assert isinstance(found, Spectral)
        assert isinstance(found, operators.Matrix) == (model is full)
    large = DiagonalGaussian.example((1, 33, 32))
    assert not isinstance(white(operators.Blur(torch.ones(3, 3) / 9), large, (1, 33, 32)), Spectral)
    assert isinstance(white(A["matrix"], FullGaussian.example((40,)), (12,)), Spectral)
    grey = operators.Inpainting(torch.eye(4, 5)) @ operators.Grayscale(in_shape=(3, 4, 5))
    assert isinstance(white(grey, DiagonalGaussian(torch.rand(4, 5) + 0.1), (3, 4, 5)), Spectral)
    assert Problem.simulate(torch.rand(1, *OUT), A["blur"], 0.1).white.operator is A["blur"]


def test_a_known_background_moves_to_the_data() -> None:
    b, blur = torch.linspace(0, 1, 20).reshape(4, 5), A["blur"]
    x = torch.rand(2, *OUT)
    operator = blur + b
    torch.testing.assert_close(operator(x), blur(x) + b)
    problem = Problem.simulate(x, operator, 0.1)
    torch.testing.assert_close(problem.white.y, problem.y - b)
    assert problem.white.operator is blur
    assert problem.white.noise == problem.noise
    assert Problem.simulate(x, operator, Poisson(100.0)).white.operator is operator
    assert "mmps" in list_solvers(fits=problem)
    with pytest.raises(InputError, match="broadcast"):
        _ = blur + torch.zeros(3, 5)


MIXED = {
    "blur, diagonal": (A["blur"], CORRELATED[0]),
    "blur, full": (A["blur"], CORRELATED[2]),
    "mask, circulant": (A["mask"], CORRELATED[1]),
    "mask, full": (A["mask"], CORRELATED[2]),
    "down-sampling, full": (operators.Downsample(2, in_shape=(2, 4, 6)), FullGaussian.example((2, 2, 3))),
}


@pytest.mark.parametrize("case", MIXED)
def test_every_gaussian_solver_fits_every_small_gaussian(case: str) -> None:
    operator, noise = MIXED[case]
    problem = Problem.simulate(0.5 * torch.rand(1, *operator.in_shape), operator, noise)
    needs = {name: registry.lookup("solver", name).needs for name in list_solvers()}
    gaussian = {name for name, need in needs.items() if "gaussian" in need and "noiseless" not in need}
    assert len(gaussian) > 10
    assert gaussian <= set(list_solvers(fits=problem))


SPECTRAL = ("ddnm", "ddrm", "ddsmc", "fps", "fps-smc", "mcgdiff", "projdiff", "snips")


@pytest.mark.parametrize("solver", SPECTRAL)
def test_spectral_solvers_take_every_gaussian(solver: str) -> None:
    operator, noise = MIXED["mask, circulant"]
    prior = GaussianPrior(torch.zeros(OUT), torch.eye(40) * 0.25, value_range=(0.0, 1.0))
    problem = Problem.simulate(0.5 * torch.rand(1, *OUT), operator, noise)
    result = solve(problem, prior, solver, samples=2, steps=4)
    assert result.status is Status.DONE
    assert result.samples.shape[2:] == OUT


def test_gaussian_solvers_take_every_gaussian() -> None:
    prior = GaussianPrior(torch.zeros(OUT), torch.eye(40) * 0.25, value_range=(0.0, 1.0))
    problem = Problem.simulate(0.5 * torch.rand(1, *OUT), A["blur"], CORRELATED[2])
    exact = prior.posterior(problem)
    result = solve(problem, prior, "pigdm", samples=100, steps=20)
    z = (result.mean[0] - exact.mean.reshape(OUT)) / (result.std[0] / 10)
    assert float(z.square().mean()) < 2
    assert 0.6 < float(result.misfit.mean()) < 1.4


def part(size: tuple[int, int]) -> tuple[operators.Inpainting, CirculantGaussian]:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(2)) > 0.4
    return operators.Inpainting(mask, (1, *size)), CirculantGaussian.example((1, *size))


def test_a_power_of_a_part_is_that_of_its_matrix() -> None:
    operator, noise = part((12, 14))
    c = noise._filter(1.0, (1, 12, 14))
    eye = torch.eye(168, dtype=torch.float64).reshape(-1, 1, 12, 14)
    index = operator.measured.reshape(-1).nonzero().squeeze(1)
    values, vectors = torch.linalg.eigh(c(eye).flatten(1)[index][:, index])
    for exponent in (-0.5, 0.5, -1.0):
        power = Power(c, exponent, float(noise.power.min()), float(noise.power.max()), operator.measured.double())
        found = power(eye).flatten(1)
        expected = (vectors * values**exponent) @ vectors.mT
        torch.testing.assert_close(found[index][:, index], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
        assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=1e-5)  # nothing beside the part
        torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-12 * float(expected.abs().max()))
    with pytest.raises(InputError, match="add some white noise"):
        Power(c, -0.5, 1e-9, 1.0, operator.measured.double())


def test_a_part_of_a_large_stationary_field(monkeypatch) -> None:
    operator, noise = part((12, 14))
    problem = Problem.simulate(torch.rand(1, 1, 12, 14, dtype=torch.float64), operator, noise)
    z = torch.rand(2, 1, 12, 14, dtype=torch.float64)
    dense = problem.white
    monkeypatch.setattr("unveil.noise.gaussian.DENSE", 100)
    large = Problem(problem.y, operator, noise).white
    torch.testing.assert_close(noise.score(problem.y, z, operator.measured), problem.score(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(large.score(z), dense.score(z), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(large.prox(z, 0.3), dense.prox(z, 0.3), rtol=0, atol=1e-5)
    # whitened by itself, not by a matrix: what differs is a constant
    assert isinstance(noise.whitener((1, 12, 14), operator.measured)[0], Power)
    with pytest.raises(InputError, match="needs the determinant"):
        problem.log_likelihood(z)
    prior = GaussianPrior(torch.zeros(1, 12, 14), torch.eye(168) * 0.1)
    with pytest.raises(InputError, match="evidence of stationary noise on a part"):
        compare({"a": problem, "b": problem}, prior)


class Pixels(Prior):
    """Independent N(0, 0.3^2)."""

    shape, value_range, sigma_range = (1, None, None), (-1.0, 1.0), (0.001, 40.0)

    def denoise(self, x, sigma):
        s = expand(sigma, x)
        return x * (0.09 / (0.09 + s * s))


def test_solvers_on_a_part_of_a_large_stationary_field() -> None:
    """As many measurements as their chi^2 says, on more entries than a matrix is made for."""
    size = (96, 90)
    operator = part(size)[0]
    noise = CirculantGaussian.of_kernel(torch.tensor([[0, 0.1, 0], [0.1, 1.0, 0.1], [0, 0.1, 0]]), size, 0.2)
    truth = 0.3 * torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(3))
    problem = Problem.simulate(truth, operator, noise, value_range=(-1.0, 1.0))
    white = problem.white
    assert float((white.y - white.operator(truth)).square().sum()) / white.m == pytest.approx(1, abs=0.05)
    with pytest.raises(NotCompatible, match="spectral"):
        solve(problem, Pixels(), "ddrm", steps=3)
    result = solve(problem, Pixels(), "daps", steps=8)
    assert 0.7 < float(result.misfit.mean()) < 1.3
    # a sample is as far from the truth as another: twice the posterior variance, about that of white noise
    clear = (operator.measured > 0).expand(truth.shape)
    v = float((problem.y - truth)[clear].square().mean())
    assert float((result.mean - truth)[clear].square().mean()) == pytest.approx(2 * 0.09 * v / (0.09 + v), rel=0.1)


# -- estimates ---------------------------------------------------------------------------------------------------


def scene(h: int = 128, w: int = 128) -> Tensor:
    """Smooth shades with sharp edges, between 0.1 and 0.9."""
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    return (0.1 + 0.5 * x * y + 0.3 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.1))[None].double()


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.3])
def test_sigma_is_estimated(sigma: float) -> None:
    clean = scene().expand(3, 1, 128, 128)
    y = Gaussian(sigma).sample(clean, single(0, 3))
    got = estimate_sigma(y)
    assert got.shape == (3,)
    assert torch.allclose(got, torch.tensor(sigma).double(), rtol=0.05), got
    noisy = y.clone()
    mask = torch.ones(128, 128)
    mask[:, 40:] = 0
    noisy[..., 40:] = 1e3
    assert torch.allclose(estimate_sigma(noisy, mask), torch.tensor(sigma).double(), rtol=0.08)
    z = Gaussian(sigma).sample(torch.fft.fft2(clean, norm="ortho"), single(1, 3))
    # a spectrum that falls slowly hides little noise
    assert sigma < 0.05 or torch.allclose(estimate_sigma(z), torch.tensor(sigma).double(), rtol=0.1)
    with pytest.raises(InputError, match="neighbours"):
        estimate_sigma(y, torch.zeros(128, 128))
    with pytest.raises(InputError, match="3 entries"):
        estimate_sigma(y[..., :2])


@pytest.mark.parametrize(("gain", "read"), [(200.0, 0.02), (1000.0, 0.05)])
def test_a_camera_is_estimated(gain: float, read: float) -> None:
    y = PoissonGaussian(gain, read).sample(scene(256, 256)[None], single(2))
    found = estimate_poisson_gaussian(y)
    assert found.gain == pytest.approx(gain, rel=0.2)
    assert found.sigma_read == pytest.approx(read, rel=0.25)
    with pytest.raises(InputError, match="too few"):
        estimate_poisson_gaussian(y[..., :8, :8])


@pytest.mark.parametrize("model", [Clipped(0.1, 0.2, 0.7), Quantisation(2, 0.1), Quantisation(1, 0.2)])
def test_information_of_clipping_and_levels_is_the_curvature(model: Noise) -> None:
    """At the ends too, and on the far side of them: against differences of the score."""
    clean = torch.linspace(-0.3, 1.3, 33, dtype=torch.float64).expand(3, -1)
    y = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64).expand(3, 33)
    y = y.clamp(0.2, 0.7) if isinstance(model, Clipped) else model.sample(y, single(0, 3))
    bend = (model.score(y, clean - 1e-5) - model.score(y, clean + 1e-5)) / 2e-5
    torch.testing.assert_close(model.information(y, clean), bend, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("model", [Poisson(20.0), PoissonGaussian(20.0, 0.05)])
def test_a_mean_below_zero_is_as_far_from_the_data_as_zero(model: Noise) -> None:
    clean = torch.full((20000, 1), -0.5, dtype=torch.float64)
    square = (model.sample(clean, single(0, 20000)) - clean).square().mean()
    assert float(model.variance(clean)[0]) == pytest.approx(float(square), rel=0.03)
