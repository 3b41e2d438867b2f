"""Samples of priors whose flow is known in closed form, and of the networks that ship."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch

import unveil
from unveil.errors import InputError, UnknownName
from unveil.priors import GaussianMixturePrior, GaussianPrior
from unveil.rng import Rng
from unveil.run.sample import SAMPLERS
from unveil.schedules import karras

MEAN, STD = 0.3, torch.tensor([0.05, 0.4, 2.0], dtype=torch.float64)


def gaussian() -> GaussianPrior:
    return GaussianPrior(torch.full((3,), MEAN, dtype=torch.float64), torch.diag(STD**2), value_range=(-1, 1))


def ends(samples: int, sigma: float) -> torch.Tensor:
    """Where the flow takes the noise that ``sample`` starts from: m + s (x - m) / sqrt(s^2 + sigma^2)."""
    x = sigma * Rng([(0, k) for k in range(samples)], 0, "sample").normal(torch.empty(samples, 3, dtype=torch.float64))
    return MEAN + STD * (x - MEAN) / (STD**2 + sigma**2).sqrt()


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp-2m", 2)])
def test_error_falls_with_the_order_of_the_method(name, order):
    prior, exact = gaussian(), ends(20, 20.0)
    errors = []
    for steps in (64, 128, 256):
        x = unveil.sample(prior, 20, name, schedule=karras(steps, 0.002, 20.0), dtype=torch.float64)
        errors.append(float((x - exact).square().mean().sqrt()))
    for coarse, fine in pairwise(errors):
        assert 0.75 * 2**order < coarse / fine < 1.35 * 2**order
    assert errors[-1] < {1: 0.02, 2: 6e-4}[order]


def test_ancestral_samples_have_the_variance_of_their_recursion():
    # x' = r^2 x + (1 - r^2) D + c z is linear in x: its variance can be carried along
    count, schedule = 2000, karras(80, 0.002, 20.0)
    x = unveil.sample(gaussian(), count, "ancestral", schedule=schedule, chunk=count, dtype=torch.float64)
    variance = torch.full((3,), 400.0, dtype=torch.float64)
    for sigma, after in pairwise(schedule.sigmas):
        r2, gain = (after / sigma) ** 2, STD**2 / (STD**2 + sigma**2)
        variance = (r2 + (1 - r2) * gain) ** 2 * variance + after**2 * (1 - r2)
    std = variance.sqrt()
    assert torch.all((std / STD - 1).abs() < 0.1)  # the price of the smaller variance in 80 steps
    assert torch.all((x.mean(0) - MEAN).abs() < 4 * std / count**0.5)
    assert torch.all((x.std(0) / std - 1).abs() < 4 / (2 * count) ** 0.5)
    assert torch.all((torch.corrcoef(x.T) - torch.eye(3)).abs() < 4 / count**0.5)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_mixture_keeps_the_weights_of_its_modes(name):
    means = torch.tensor([[-0.6], [0.6]], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.8], dtype=torch.float64)
    prior = GaussianMixturePrior(weights, means, torch.tensor([0.01, 0.01]), value_range=(-1, 1))
    x = unveil.sample(prior, 1000, name, steps=50, chunk=1000, dtype=torch.float64)
    assert abs(float((x > 0).double().mean()) - 0.8) < 4 * (0.16 / 1000) ** 0.5


@pytest.mark.parametrize("photographs", ["photos", "photos-flow"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_samples_of_photos_are_stable_and_agree_between_precisions(name, photographs, monkeypatch):
    monkeypatch.setattr(sys.modules["unveil.run.sample"], "Rng", Same)
    prior = unveil.load_prior(photographs)
    x = unveil.sample(prior, 3, name, shape=(3, 24, 24), steps=12, chunk=2)
    assert bool(x.isfinite().all())
    assert float(x.min()) > -1
    assert float(x.max()) < 2
    assert float(x.std()) > 0.03
    precise = unveil.sample(double(prior), 3, name, shape=(3, 24, 24), steps=12, dtype=torch.float64)
    assert float((x - precise).abs().max()) < 2e-3
    # one of them alone is the same sample: a convolution's rounding depends on the batch
    assert torch.allclose(unveil.sample(prior, 1, name, shape=(3, 24, 24), steps=12)[0], x[0], atol=1e-3)


class Same(Rng):
    """The same noise in either precision."""

    def normal(self, like):
        return super().normal(like.float()).to(like)


def double(prior):
    inner = prior.prior
    module = type(inner.module)(**inner.module.config).double()
    module.load_state_dict(inner.module.state_dict())
    return type(prior)(type(inner)(**{**vars(inner), "module": module.eval()}), prior.value_range)


def test_bad_input_says_what_to_do():
    prior = unveil.load_prior("photos")
    with pytest.raises(InputError, match=r"takes any size: give shape=\(3, \?, \?\)"):
        unveil.sample(prior)
    with pytest.raises(InputError, match=r"has signals of shape \(3, None, None\), asked for \(1, 32, 32\)"):
        unveil.sample(prior, shape=(1, 32, 32))
    with pytest.raises(UnknownName, match="did you mean heun"):
        unveil.sample(gaussian(), 1, "huen")
    with pytest.raises(InputError, match="at least 1"):
        unveil.sample(gaussian(), 0)


def test_progress_counts_every_step_of_every_chunk():
    seen = []
    unveil.sample(gaussian(), 5, steps=3, chunk=2, dtype=torch.float64, on_step=lambda k, n: seen.append((k, n)))
    assert seen == [(k + 1, 9) for k in range(9)]
