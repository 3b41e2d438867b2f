"""Operators beside deepinv's, instrument by instrument: the same values where both mean the same thing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unveil.operators import (
    MRI,
    Inpainting,
    Magnitude,
    Matrix,
    Mosaic,
    MultiCoilMRI,
    ParallelBeam,
    SuperResolution,
    birdcage_maps,
    gaussian_kernel,
    random_lines,
)

physics = pytest.importorskip("deepinv.physics")
G = torch.Generator().manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.rand(shape, generator=G)


def same(own: Tensor, theirs: Tensor, rel: float = 1e-5) -> None:
    assert own.shape == theirs.shape
    assert float((own - theirs).norm() / theirs.norm()) < rel


def test_inpainting() -> None:
    mask = (rand(1, 12, 10) > 0.4).float()
    theirs, own = physics.Inpainting((3, 12, 10), mask), Inpainting(mask)
    x = rand(2, 3, 12, 10)
    same(own(x), theirs.A(x))
    same(own.adjoint(x), theirs.A_adjoint(x))
    same(own.pinv(own(x)), theirs.A_dagger(theirs.A(x)))


def test_mri_with_one_coil() -> None:
    mask = random_lines((12, 10), 2, 0.2)
    theirs, own = physics.MRI(mask=mask[None, None], img_size=(2, 12, 10)), MRI(mask, in_shape=(2, 12, 10))
    x = rand(2, 2, 12, 10)
    y = own(x)
    same(torch.stack([y[:, 0].real, y[:, 0].imag], 1), theirs.A(x))
    same(own.adjoint(y), theirs.A_adjoint(theirs.A(x)))


def test_mri_with_coils() -> None:
    mask, maps = random_lines((12, 10), 2, 0.2), birdcage_maps(3, (12, 10))
    theirs = physics.MultiCoilMRI(mask=mask[None, None], coil_maps=maps[None], img_size=(2, 12, 10))
    own, x = MultiCoilMRI(mask, maps), rand(2, 2, 12, 10)
    y = own(x)
    same(torch.stack([y.real, y.imag], 1), theirs.A(x))
    same(own.adjoint(y), theirs.A_adjoint(theirs.A(x)))


def test_super_resolution() -> None:
    kernel = gaussian_kernel(0.8)
    theirs = physics.Downsampling(img_size=(3, 16, 12), filter=kernel[None, None], factor=2, padding="circular")
    own, x = SuperResolution(kernel, 2, in_shape=(3, 16, 12)), rand(2, 3, 16, 12)
    y = theirs.A(x)
    same(own(x), y)
    same(own.adjoint(y), theirs.A_adjoint(y))


def test_mosaic() -> None:
    theirs, x = physics.Demosaicing((3, 8, 6)), rand(2, 3, 8, 6)
    y = theirs.A(x)  # keeps the three planes
    own = Mosaic("bggr")  # what deepinv calls bayer
    same(own(x), y.sum(1, keepdim=True))
    same(own.adjoint(own(x)), theirs.A_adjoint(y))


def test_compressed_sensing() -> None:
    theirs, x = (
        physics.CompressedSensing(m=20, img_size=(1, 6, 7), rng=torch.Generator().manual_seed(0)),
        rand(2, 1, 6, 7),
    )
    own = Matrix(theirs._A.detach(), in_shape=(1, 6, 7))
    y = theirs.A(x)
    same(own(x), y)
    same(own.adjoint(y), theirs.A_adjoint(y))
    same(own.pinv(y), theirs.A_dagger(y), 1e-3)


def test_phase_retrieval() -> None:
    theirs = physics.RandomPhaseRetrieval(m=50, img_size=(1, 4, 5), rng=torch.Generator().manual_seed(0))
    matrix = theirs.B._A.detach()
    own, x = Magnitude(Matrix(matrix, (1, 4, 5)), 2), rand(2, 1, 4, 5)
    same(own(x), theirs.A(x.to(torch.complex64)))
    v = rand(2, 50)
    leaf = x.to(torch.complex64).requires_grad_(True)
    (g,) = torch.autograd.grad(theirs.A(leaf), leaf, v)
    same(own.vjp(x, v), g.real)


def test_projections() -> None:
    n = 48
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, n)] * 2, indexing="ij")
    x = torch.exp(-12 * ((rows - 0.2) ** 2 + 2 * (columns + 0.15) ** 2))[None, None]
    angles = torch.tensor([0.0, 30.0, 90.0, 140.0])
    theirs = physics.Tomography(angles=angles, img_width=n, circle=True, normalize=False)
    same(ParallelBeam(angles.double(), (n, n), n)(x).mT, theirs.A(x), 3e-3)  # [detectors, views]; it turns the image
