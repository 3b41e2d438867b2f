"""The packages of MRI: NUFFTs against direct sums, ESPIRiT against the maps that made the data."""

from __future__ import annotations

import pytest
import torch

from unveil.operators import (
    Interferometer,
    MultiCoilMRI,
    NonCartesianMRI,
    Operator,
    birdcage_maps,
    checks,
    espirit_maps,
    radial_trajectory,
)
from unveil.training.phantoms import phantom

MAPS = birdcage_maps(3, (16, 14)).to(torch.complex128)
G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("package", "limit"), [("finufft", 1e-9), ("torchkbnufft", 5e-3)])
def test_nuffts_agree_with_direct_sums(package: str, limit: float) -> None:
    pytest.importorskip(package)
    points = radial_trajectory(7, 24)
    mine, theirs = (NonCartesianMRI(points, (16, 14), MAPS, backend=name) for name in ("direct", package))
    x = torch.rand(2, 2, 16, 14, dtype=torch.float64, generator=G)
    y = mine(x)
    v = torch.complex(*torch.rand(2, *y.shape, dtype=torch.float64, generator=G))
    assert float((theirs(x) - y).norm() / y.norm()) < limit
    assert float((theirs.adjoint(v) - mine.adjoint(v)).norm() / mine.adjoint(v).norm()) < limit
    torch.testing.assert_close(Operator.vjp(theirs, x, v), theirs.adjoint(v), rtol=1e-5, atol=1e-5)
    # not check_operator: derivatives in the points are those of direct sums, which differences of rough ones hide
    assert checks.check_adjoint(theirs) < 1e-6
    single = theirs(x.float())
    assert float((single - y).norm() / y.norm()) < max(limit, 1e-5)


def test_finufft_of_real_signals() -> None:
    pytest.importorskip("finufft")
    uv = 6e4 * torch.rand(50, 2, generator=G) - 3e4
    mine, theirs = (Interferometer(uv, (8, 7), 3.0, name) for name in ("direct", "finufft"))
    x = torch.rand(2, 2, 8, 7, dtype=torch.float64, generator=G)
    torch.testing.assert_close(theirs(x), mine(x), rtol=1e-8, atol=1e-8)


def test_espirit_finds_the_maps() -> None:
    pytest.importorskip("sigpy")
    n = 48
    import numpy as np

    maps = birdcage_maps(4, (n, n))
    image = torch.from_numpy(phantom(n, np.random.default_rng(3)))
    A = MultiCoilMRI(torch.ones(n, n), maps)
    y = A(torch.stack([image, torch.zeros_like(image)])[None])[0]
    found = espirit_maps(y, 20)
    body = (image > 0.05) & (found.abs().sum(0) > 0)
    assert float(body.sum()) > 0.5 * float((image > 0.05).sum())
    # up to a phase of each pixel the maps are those that made the data
    match = (found.conj() * maps).sum(0).abs()[body]
    assert float(match.median()) > 0.99
    assert float(match.quantile(0.05)) > 0.95
