"""Total variation: its gradient, and three ways to one minimum."""

from __future__ import annotations

import pytest
import torch

from unveil import Problem
from unveil.classical import variation
from unveil.operators import Blur, Identity, gaussian_kernel


@pytest.mark.parametrize("shape", [(7,), (7, 5), (4, 3, 6)])
def test_gradient_and_divergence_are_adjoint(shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *shape, generator=g, dtype=torch.float64)
    p = torch.randn(len(shape), *x.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close((variation.gradient(x) * p).sum(), -(x * variation.divergence(p)).sum())
    torch.testing.assert_close(variation.gradient(x)[-1, ..., :-1], x[..., 1:] - x[..., :-1])


N, SIGMA = 8, 0.1


def step_and_minimiser(weight):
    """Of a noiseless step of height 1 between N columns each, the minimiser moves both sides by weight sigma^2 / N."""
    x = torch.zeros(1, 1, 4, 2 * N)
    x[..., N:] = 1
    return x, x + weight * SIGMA**2 / N * (1 - 2 * x)


def test_a_step_is_known():
    weight = 16.0
    x, expected = step_and_minimiser(weight)
    problem, start = Problem(x, Identity(), SIGMA), torch.full_like(x, 0.5)
    out = variation.by_prox(problem, weight, start, steps=2000)
    torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)
    out = variation.by_adjoint(Identity(), x, start, weight * SIGMA**2, 1.0, 2000)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
    out = variation.by_score(problem, weight, start, steps=2000)
    torch.testing.assert_close(out, expected, atol=4e-3, rtol=0)


def test_two_values_meet():
    """The minimiser of |y - x|^2 / 2 + w |x_1 - x_2| is known: they move by w, no further than their middle."""
    y = torch.tensor([[[[0.0, 1.0]]]])
    for weight, moved in ((0.2, 0.2), (0.7, 0.5)):
        x = variation.by_adjoint(Identity((1, 1, 2)), y, torch.zeros_like(y), weight, 1.0, 2000)
        torch.testing.assert_close(x, torch.tensor([[[[moved, 1 - moved]]]]), atol=1e-4, rtol=0)


def test_three_ways_to_the_minimum_of_a_blurred_image():
    """Two colours, so that a gradient taken channel by channel would be found out."""
    g = torch.Generator().manual_seed(1)
    x = torch.zeros(1, 2, 16, 16)
    x[:, :, 4:12, 5:] = torch.tensor([0.3, 1.0])[:, None, None]
    A = Blur(gaussian_kernel(1.0), in_shape=(2, 16, 16))
    problem = Problem(A(x) + 0.05 * torch.randn(x.shape, generator=g), A, 0.05)
    weight, start = 10.0, torch.full_like(x, 0.5)

    def loss(z):
        lengths = variation.gradient(z).square().sum((0, 2)).sqrt().sum()
        return float((problem.y - A(z)).square().sum() / (2 * 0.05**2) + weight * lengths)

    prox = variation.by_prox(problem, weight, start, 3000)
    adjoint = variation.by_adjoint(A, problem.y, start, weight * 0.05**2, float(A.norm(start)), 6000)
    score = variation.by_score(problem, weight, start, 2000)
    least = loss(prox)
    assert loss(start) > 2 * least
    assert loss(adjoint) == pytest.approx(least, rel=1e-3)
    assert loss(score) == pytest.approx(least, rel=1e-2)
    torch.testing.assert_close(adjoint, prox, atol=0.01, rtol=0)
