"""The package astra-toolbox as a backend: the projections of this library's parallel and fan beams, on its CPU kernels.

In single precision, as ASTRA computes (van Aarle et al. 2016, Opt. Express 24, 25129). It has other models of a pixel's
share in a ray than Joseph's, and is what the projector of this library is tested against.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .base import Linear, Shape
from .rays import transposable
from .tomography import Tomography


class Astra(Linear):
    """Projections of images [C, H, W] by ASTRA: [C, views, detectors]. Made by :meth:`Tomography.astra`.

    ``vectors`` [views, 6] are ASTRA's: a ray (or the source), the detector's middle and its step, in pixels.
    """

    name = "astra"

    def __init__(
        self, kind: str, geometry: str, vectors: Tensor, detectors: int, in_shape: Shape, pixel: float
    ) -> None:
        self.kind, self.geometry, self.vectors = kind, geometry, vectors
        self.detectors, self.pixel = detectors, pixel
        self.in_shape: Shape = in_shape

    @contextmanager
    def _tomo(self) -> Iterator[Any]:
        package = _package()
        vectors = self.vectors.double().numpy()
        rays = package.create_proj_geom(self.geometry, self.detectors, vectors)
        image = package.create_vol_geom(*self.in_shape[1:])
        projector = package.create_projector(self.kind, rays, image)
        try:
            yield package.OpTomo(projector)
        finally:
            package.projector.delete(projector)

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (in_shape[0], len(self.vectors), self.detectors)

    def _forward(self, x: Tensor) -> Tensor:
        with self._tomo() as tomo:
            rows = [tomo.FP(image) for image in x.flatten(0, 1).float().numpy()]
        return self.pixel * torch.from_numpy(np.stack(rows)).to(x).reshape(*x.shape[:2], *rows[0].shape)

    def _back(self, y: Tensor) -> Tensor:
        with self._tomo() as tomo:
            rows = [tomo.BP(sinogram) for sinogram in y.flatten(0, 1).float().numpy()]
        return self.pixel * torch.from_numpy(np.stack(rows)).to(y).reshape(*y.shape[:2], *rows[0].shape)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return transposable(x, lambda v: self._forward(v.detach()), lambda v: self._back(v.detach()))

    def adjoint(self, y: Tensor) -> Tensor:
        return transposable(y, lambda v: self._back(v.detach()), lambda v: self._forward(v.detach()))


def astra(operator: Tomography, channels: int = 1, kind: str | None = None) -> Astra:
    """``operator`` with ASTRA's projector ``kind``: by default Joseph's for parallel beams, lengths in pixels for fans.

    Raises :class:`InputError` for beams that ASTRA's CPU kernels do not have, and where the package is missing.
    """
    _package()
    if len(operator.size) != 2 or operator.curved:
        raise InputError("ASTRA projects parallel and flat fan beams of images on the CPU: use the operator itself")
    t = torch.deg2rad(operator.angles.detach().cpu().double())
    one, zero = torch.ones_like(t), torch.zeros_like(t)

    def turned(across: Tensor, along: Tensor) -> Tensor:
        return torch.stack([across * t.cos() - along * t.sin(), across * t.sin() + along * t.cos()], 1) / operator.pixel

    middle = turned(-float(operator.offset) * one, operator.distance * one)
    step = turned(operator.spacing * one, zero)
    parallel = operator.far is None
    first = turned(zero, operator.pixel * one) if parallel else turned(zero, -operator.source * one)
    return Astra(
        kind or ("linear" if parallel else "line_fanflat"),
        "parallel_vec" if parallel else "fanflat_vec",
        torch.cat([first, middle, step], 1),
        operator.detector[-1],
        (channels, *operator.size),
        operator.pixel,
    )


def _package() -> Any:
    try:
        import astra as package
    except ImportError:
        raise InputError("ASTRA's projections need its package: pip install 'unveil[ct]'") from None
    return package
