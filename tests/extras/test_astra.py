"""The projector against ASTRA's: the same numbers by Joseph's method, and nearly the same by other models."""

from __future__ import annotations

import pytest
import torch

from unveil.errors import InputError
from unveil.operators import ConeBeam, FanBeam, ParallelBeam, views

pytest.importorskip("astra")

SMOOTH = torch.nn.functional.interpolate(torch.rand(2, 2, 9, 8, generator=torch.Generator().manual_seed(0)), (36, 32))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "options", [{}, {"spacing": 1.5, "pixel": 2.0, "offset": 3.3}, {"detectors": 20, "offset": -1.0}]
)
def test_parallel_beams_are_the_same(options) -> None:
    mine = ParallelBeam(views(31, start=3.0), (36, 32), **options)
    theirs = mine.astra(channels=2)
    y = mine(SMOOTH)
    assert theirs.out_shape == tuple(y.shape[1:])
    assert distance(theirs(SMOOTH), y) < 1e-5
    assert distance(theirs.adjoint(y), mine.adjoint(y)) < 1e-5
    assert distance(mine.astra(2, "strip")(SMOOTH), y) < 0.02


def test_fans_are_nearly_the_same() -> None:
    options = {"source": 150.0, "distance": 80.0, "spacing": 1.3, "pixel": 2.0, "offset": 4.0}
    mine = FanBeam(views(40, 360.0, start=1.0), (36, 32), **options)
    theirs = mine.astra(channels=2)
    y = mine(SMOOTH)
    assert distance(theirs(SMOOTH), y) < 0.02
    wrong = FanBeam(views(40, 360.0, start=1.0), (36, 32), **{**options, "offset": 3.0})
    assert distance(theirs(SMOOTH), wrong(SMOOTH)) > 0.03  # half a pixel shows


def test_its_adjoint_and_derivative() -> None:
    theirs = ParallelBeam(views(7), (36, 32)).astra(channels=2)
    x = SMOOTH.clone().requires_grad_(True)
    y = theirs(x)
    v = torch.rand(y.shape, generator=torch.Generator().manual_seed(1))
    (g,) = torch.autograd.grad(y, x, v)
    assert torch.equal(g, theirs.adjoint(v))
    torch.testing.assert_close((y * v).sum(), (x * g).sum(), rtol=1e-5, atol=0)


def test_beams_that_it_does_not_have() -> None:
    for beam in (
        FanBeam(views(3), (8, 8), source=30.0, curved=True),
        ConeBeam(views(3), (4, 8, 8), (5, 9), source=30.0),
    ):
        with pytest.raises(InputError, match="use the operator itself"):
            beam.astra()
