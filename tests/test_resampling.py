"""Schemes of resampling: how many copies each particle gets, on average and at most."""

from __future__ import annotations

import pytest
import torch

from unveil.numerics.resampling import SCHEMES, ancestors

SIZE, CLOUDS = 16, 20000
WEIGHTS = torch.rand(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
WEIGHTS[5] = 0
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def copies(scheme: str) -> torch.Tensor:
    """How often each particle is drawn: [CLOUDS, SIZE]."""
    drawn = ancestors(WEIGHTS.expand(CLOUDS, SIZE), uniform(CLOUDS, SIZE), scheme)
    return torch.nn.functional.one_hot(drawn, SIZE).sum(1).double()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_counts_are_unbiased(scheme: str) -> None:
    found = copies(scheme)
    assert (found.sum(1) == SIZE).all()
    error = found.std(0) / CLOUDS**0.5
    assert ((found.mean(0) - SIZE * WEIGHTS).abs() < 5 * error + 1e-9).all()
    assert float(error.max()) < 0.02  # a bias of a tenth of a copy would be seen
    assert not found[:, 5].any()  # of weight zero


@pytest.mark.parametrize("scheme", ["systematic", "ssp"])
def test_counts_are_within_one_copy(scheme: str) -> None:
    assert float((copies(scheme) - SIZE * WEIGHTS).abs().max()) < 1


@pytest.mark.parametrize("scheme", ["stratified", "residual"])
def test_counts_are_no_fewer_than_the_scheme_promises(scheme: str) -> None:
    slack = {"stratified": 1, "residual": 0}[scheme]
    assert (copies(scheme) >= (SIZE * WEIGHTS).floor() - slack).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_cloud_has_its_own_stream_and_no_other_randomness(scheme: str) -> None:
    weights = uniform(5, SIZE).flip(0)
    weights = weights / weights.sum(1, keepdim=True)
    u, before = uniform(5, SIZE), torch.get_rng_state()
    together = ancestors(weights, u, scheme)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(ancestors(weights, u, scheme), together)
    assert (together.diff(dim=1) >= 0).all()
    for b in range(5):
        assert torch.equal(ancestors(weights[b : b + 1], u[b : b + 1], scheme)[0], together[b])
    other = ancestors(weights, 1 - u, scheme)
    assert not torch.equal(other, together)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="bootstrap"):
        ancestors(WEIGHTS[None], uniform(1, SIZE), "bootstrap")
