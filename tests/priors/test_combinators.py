"""Tiles give what the whole image gives, for denoisers that look at a neighbourhood."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unveil.errors import InputError
from unveil.priors.base import Prior
from unveil.priors.combinators import Tiled


class Smooth(Prior):
    """A local, non-linear stand-in for a denoiser: a 5 x 5 mean, bent."""

    shape = (None, None, None)
    value_range = (0.0, 1.0)
    sigma_range = (0.01, 10.0)
    largest = 0

    def denoise(self, x, sigma):
        Smooth.largest = max(Smooth.largest, x.shape[-1] * x.shape[-2])
        mean = F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
        return torch.tanh(mean / (1 + sigma))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (70, 41), (33, 200), (65, 64)])
def test_tiles_agree_with_the_whole_image(height, width):
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = Tiled(Smooth(), tile=32, margin=2).denoise(x, 0.3)
    assert torch.allclose(got, Smooth().denoise(x, 0.3), atol=1e-13, rtol=0)


@pytest.mark.parametrize("width", [33, 34, 45, 52, 60, 61, 85, 200])
def test_weights_add_up_to_one_at_every_width(width):
    """Also where three tiles meet: tiles are spread evenly, and may overlap by more than half."""

    class Same(Smooth):
        def denoise(self, x, sigma):
            return x

    x = torch.ones(1, 1, 20, width, dtype=torch.float64)
    assert torch.allclose(Tiled(Same(), tile=32, margin=5).denoise(x, 0.3), x, atol=1e-13, rtol=0)
    y = torch.randn(1, 1, 20, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Tiled(Smooth(), tile=32, margin=5).denoise(y, 0.3), Smooth().denoise(y, 0.3), atol=1e-13)


def test_a_margin_smaller_than_the_reach_is_not_exact():
    x = torch.randn(1, 1, 70, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = Tiled(Smooth(), tile=32, margin=1).denoise(x, 0.3)
    assert (got - Smooth().denoise(x, 0.3)).abs().max() > 1e-4


def test_tiles_are_exact_for_a_pointwise_denoiser():
    class Pointwise(Smooth):
        def denoise(self, x, sigma):
            return torch.tanh(x) / (1 + sigma)

    x = torch.randn(1, 1, 90, 77, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tiled, plain = Tiled(Pointwise(), tile=33, margin=4), Pointwise()
    assert torch.allclose(tiled.denoise(x, 0.2), plain.denoise(x, 0.2), atol=1e-14, rtol=0)
    v = torch.randn_like(x)
    assert torch.allclose(tiled.vjp(x, 0.2)[1](v), plain.vjp(x, 0.2)[1](v), atol=1e-14, rtol=0)


def test_the_pullback_is_that_of_the_tiled_denoiser():
    x = torch.randn(1, 1, 50, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tiled = Tiled(Smooth(), tile=33, margin=4)
    x0, pullback = tiled.vjp(x, 0.2)
    v = torch.randn_like(x0)
    leaf = x.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(tiled.denoise(leaf, 0.2), leaf, v)
    assert torch.allclose(pullback(v), g, atol=1e-12, rtol=0)


def test_no_evaluation_is_larger_than_a_tile():
    Smooth.largest = 0
    Tiled(Smooth(), tile=50, margin=8).denoise(torch.zeros(1, 3, 300, 211), 1.0)
    assert Smooth.largest == 50 * 50


def test_tiles_too_small_for_their_margin_are_refused():
    with pytest.raises(InputError, match="tile > 6"):
        Tiled(Smooth(), tile=64, margin=16)
