"""The Fourier transform at any points: non-Cartesian MRI, radio interferometry."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Linear, Operator, Parametric, Shape
from .coils import birdcage_maps, check_finite
from .fourier import to_complex, to_real
from .layout import Layout, points
from .masks import radial_trajectory
from .rays import transposable

BACKENDS = ("auto", "finufft", "torchkbnufft", "direct")
ARCSECOND = math.pi / 180 / 3600


class NonuniformFourier(Parametric, Linear):
    """y_m = sum_r x(r) exp(-i k_m . r) / sqrt(n) at points k_m, r the place of a pixel from the middle (n // 2).

    Parameters
    ----------
    points:
        [m, 2] in radians per pixel along rows and columns, within [-pi, pi]; a parameter that can be unknown. While
        they need a gradient, sums are direct.
    size:
        (H, W).
    complex_signal:
        False: real signals [C, H, W] give y [C, m]. True: complex ones, [2, H, W], give y [1, m].
    backend:
        "finufft" (package of that name; fastest on the CPU), "torchkbnufft" (also on a GPU; accurate to about 1e-3),
        "direct": sums of all terms by two matrix products, exact, without a package, slower from some thousand points
        on. "auto" is the first that is installed and suits the device.
    """

    parameters: ClassVar[tuple[str, ...]] = ("points",)

    def __init__(
        self, points: Tensor, size: tuple[int, int], complex_signal: bool = False, backend: str = "auto"
    ) -> None:
        points = torch.as_tensor(points)
        if points.ndim != 2 or points.shape[1] != 2 or not points.is_floating_point() or len(points) == 0:
            raise InputError(f"points of the Fourier plane are [m, 2], in radians per pixel, got {tuple(points.shape)}")
        bad = int((~torch.isfinite(points.detach())).any(1).sum())
        if bad:
            raise InputError(f"{bad} points of the Fourier plane are NaN or infinite: leave them and their data out")
        top = float(points.detach().abs().max())
        if not top <= math.pi * (1 + 1e-6):
            raise InputError(
                f"points reach {top:.4g} radians per pixel, the grid resolves pi: if they are in cycles per field of "
                "view, multiply them by 2 pi / number of pixels"
            )
        if top <= 0.5 and len(points) > 4:
            warnings.warn(
                f"points lie within {top:.3g} of zero: they are taken as radians per pixel; if they are cycles per "
                "pixel, multiply them by 2 pi",
                UserWarning,
                stacklevel=3,
            )
        if backend not in BACKENDS:
            raise InputError(f"unknown backend '{backend}': choose one of {', '.join(BACKENDS)}")
        self.points = points
        self.complex_signal, self.backend = complex_signal, backend
        self.size = (int(size[0]), int(size[1]))
        if complex_signal:
            self.in_shape = (2, *self.size)

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        if len(in_shape) != 3 or tuple(in_shape[1:]) != self.size:
            raise InputError(f"{type(self).__name__} takes signals [C, {self.size[0]}, {self.size[1]}], got {in_shape}")

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (1 if self.complex_signal else in_shape[0], len(self.points))

    def shape_in(self, out_shape: Shape) -> Shape | None:
        if len(out_shape) != 2:
            raise InputError(f"{type(self).__name__} measures [channels, points], got {tuple(out_shape)}")
        return (2 if self.complex_signal else out_shape[0], *self.size)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        z = to_complex(x).unsqueeze(1) if self.complex_signal else torch.complex(x, torch.zeros_like(x))
        return self._type2(z)

    def adjoint(self, y: Tensor) -> Tensor:
        z = self._type1(y)
        return to_real(z.squeeze(1)) if self.complex_signal else z.real

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x, a convolution: by two fast Fourier transforms of twice the size, whatever the number of points.

        (Fessler, Lee, Olafsson, Shi, Noll 2005, IEEE Trans. Signal Process. 53, 3393.)
        """
        if any(t.requires_grad for t in self._tensors()) or self._chosen(x.device) == "torchkbnufft":
            return super().normal(x)  # a gradient is wanted, or the transforms are not accurate enough to be replaced
        self.check(tuple(x.shape[1:]))
        return self._convolved(x)

    def _convolved(self, x: Tensor) -> Tensor:
        if not self.complex_signal:
            h, w = self.size
            transfer = self.tensor("transfer, real", x, lambda: torch.fft.rfft2(self._response().real).real)
            wide: Tensor = torch.fft.irfft2(torch.fft.rfft2(x, s=(2 * h, 2 * w)) * transfer, s=(2 * h, 2 * w))
            return wide[..., :h, :w]
        return to_real(self._filtered(to_complex(x)))

    def _filtered(self, z: Tensor) -> Tensor:
        """A^H A of complex images [..., H, W]."""
        h, w = self.size
        transfer = self.tensor("transfer", z.real, lambda: torch.fft.fft2(self._response()).real)
        wide: Tensor = torch.fft.ifft2(torch.fft.fft2(z, s=(2 * h, 2 * w)) * transfer)
        return wide[..., :h, :w]

    def _response(self) -> Tensor:
        """sum_m exp(i k_m . d) / n at differences d of pixels, in the order of fft2 [2 H, 2 W], complex128."""
        h, w = self.size
        wide = NonuniformFourier(self.points.detach(), (2 * h, 2 * w), True, self.backend)
        ones = torch.ones(1, 1, len(self.points), dtype=torch.complex128, device=self.points.device)
        response = wide._type1(ones)[0, 0].cpu() * (2 / math.sqrt(h * w))
        response[0], response[:, 0] = 0, 0  # no two pixels are as far apart
        ordered: Tensor = torch.fft.ifftshift(response)
        return ordered

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        return (points(y, torch.linalg.vector_norm(self.points.detach().to(y.device), dim=1)),)

    # -- transforms of complex images [N, C, H, W] ----------------------------------------------------------------

    def _type2(self, z: Tensor) -> Tensor:
        """Images to points: [N, C, m]."""
        return self._transform(z, "forward") / math.sqrt(math.prod(self.size))

    def _type1(self, y: Tensor) -> Tensor:
        """Points to images, the adjoint."""
        return self._transform(y, "adjoint") / math.sqrt(math.prod(self.size))

    def _transform(self, data: Tensor, way: str) -> Tensor:
        backend = "direct" if self.points.requires_grad else self._chosen(data.device)
        flat = data.flatten(0, 1)
        if backend == "direct":
            out = self._direct(flat, way)
        else:
            other = "adjoint" if way == "forward" else "forward"
            run: Callable[[Tensor, str], Tensor] = self._finufft if backend == "finufft" else self._kbnufft
            out = transposable(flat, lambda v: run(v, way), lambda v: run(v, other))
        return out.reshape(*data.shape[:2], *out.shape[1:])

    def _chosen(self, device: torch.device) -> str:
        wanted = (self.backend,) if self.backend != "auto" else ("finufft", "torchkbnufft", "direct")
        for name in wanted:
            if name == "direct":
                return name
            suits = device.type == "cpu" if name == "finufft" else device.type != "cpu" or self.backend == name
            if suits and _package(name) is not None:
                return name
        mend = "'unveil[mri]'" if self.backend == "finufft" else self.backend
        raise InputError(
            f"the backend '{self.backend}' needs the package of that name (pip install {mend})"
            + (", and runs on the CPU" if self.backend == "finufft" else "")
        )

    def _direct(self, flat: Tensor, way: str) -> Tensor:
        def phases(axis: int) -> Tensor:
            n = self.size[axis]
            r = torch.arange(n, dtype=torch.float64) - n // 2
            angle = -self.points[:, axis, None].cpu().double() * r
            return torch.polar(torch.ones_like(angle), angle)

        if self.points.requires_grad:  # a path that is being estimated: gradients flow, nothing is kept
            rows, columns = phases(0).to(flat), phases(1).to(flat)
        else:
            rows = self.tensor("rows", flat.real, lambda: phases(0))
            columns = self.tensor("columns", flat.real, lambda: phases(1))
        if way == "forward":
            return ((rows @ flat) * columns).sum(-1)
        return rows.mH @ (flat[..., None] * columns.conj())

    def _finufft(self, flat: Tensor, way: str) -> Tensor:
        finufft = _package("finufft")
        double = flat.dtype == torch.complex128
        at = self.tensor("points", flat.real, lambda: self.points.cpu().double().mT.contiguous()).numpy()
        data, eps = flat.detach().contiguous().numpy(), 1e-12 if double else 1e-6
        if way == "forward":
            found = finufft.nufft2d2(at[0], at[1], data, eps=eps, isign=-1)
        else:
            found = finufft.nufft2d1(at[0], at[1], data, self.size, eps=eps, isign=1)
        return torch.as_tensor(found).reshape(flat.shape[0], *found.shape[-(1 if way == "forward" else 2) :])

    def _kbnufft(self, flat: Tensor, way: str) -> Tensor:
        tkbn = _package("torchkbnufft")
        at = self.tensor("points", flat.real, lambda: self.points.cpu().double().mT.contiguous())
        make = tkbn.KbNufft if way == "forward" else tkbn.KbNufftAdjoint
        module = make(im_size=self.size).to(flat)
        out: Tensor = module(flat[:, None].detach(), at)[:, 0]
        return out


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@register("operator", "noncartesian-mri")
class NonCartesianMRI(NonuniformFourier):
    """MRI along any path through k-space: complex images [2, H, W] to y [coils, m].

    y_c = sum_r S_c(r) x(r) exp(-i k_m . r) / sqrt(n), as in :class:`NonuniformFourier` (Fessler and Sutton 2003, IEEE
    Trans. Signal Process. 51, 560).

    Parameters
    ----------
    points:
        [m, 2] in radians per pixel (:func:`radial_trajectory`, :func:`spiral_trajectory`); a parameter that can be
        unknown.
    size:
        (H, W).
    maps:
        Complex sensitivities [coils, H, W], a parameter that can be unknown; one coil that sees all without them.
    backend:
        As in :class:`NonuniformFourier`.
    """

    parameters: ClassVar[tuple[str, ...]] = ("points", "maps")

    def __init__(
        self, points: Tensor, size: tuple[int, int], maps: Tensor | None = None, backend: str = "auto"
    ) -> None:
        super().__init__(points, size, True, backend)
        if maps is not None and (not maps.is_complex() or tuple(maps.shape[1:]) != self.size):
            raise InputError(f"maps are complex [coils, {size[0]}, {size[1]}], got {maps.dtype} {tuple(maps.shape)}")
        if maps is not None:
            check_finite(maps)
        self.maps = torch.ones(1, *self.size, dtype=torch.complex64) if maps is None else maps

    @classmethod
    def example(cls) -> Operator:
        return cls(radial_trajectory(5, 9), (8, 7), birdcage_maps(2, (8, 7)), backend="direct")

    def _sensitivities(self, like: Tensor) -> Tensor:
        if self.maps.requires_grad:
            return self.maps.to(like.dtype.to_complex())
        return self.tensor("maps", like, lambda: self.maps.cpu())

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (self.maps.shape[-3], len(self.points))

    def shape_in(self, out_shape: Shape) -> Shape | None:  # noqa: ARG002
        return self.in_shape

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return self._type2(to_complex(x).unsqueeze(1) * self._sensitivities(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return to_real((self._type1(y) * self._sensitivities(y.real).conj()).sum(1))

    def _convolved(self, x: Tensor) -> Tensor:
        maps = self._sensitivities(x)
        return to_real((self._filtered(to_complex(x).unsqueeze(1) * maps) * maps.conj()).sum(1))


@register("operator", "interferometer")
class Interferometer(NonuniformFourier):
    """A radio interferometer: real images of the sky [C, H, W] to visibilities y [C, m], complex.

    V(u, v) = sum_r I(r) exp(-2 pi i (u l + v m)) / sqrt(n), with l and m the angles of a pixel from the middle along
    columns and rows (Thompson, Moran, Swenson, equation 3.7, for a small field). For visibilities on a grid, a mask of
    the Fourier plane will do: :class:`Fourier`.

    Parameters
    ----------
    uv:
        [m, 2] points (u, v) in wavelengths (:func:`uv_coverage`).
    size:
        (H, W).
    pixel:
        Side of a pixel in seconds of arc; the grid must be fine enough for the longest baseline.
    backend:
        As in :class:`NonuniformFourier`.
    """

    def __init__(self, uv: Tensor, size: tuple[int, int], pixel: float, backend: str = "auto") -> None:
        if not pixel > 0:
            raise InputError(f"a pixel has a side > 0, in seconds of arc, got {pixel}")
        points = 2 * math.pi * pixel * ARCSECOND * torch.as_tensor(uv).double().flip(-1)
        top = float(points.abs().max())
        if top > math.pi:
            raise InputError(
                f"pixels of {pixel:g} seconds of arc are too coarse for the longest baseline: at most "
                f"{pixel * math.pi / top:.3g} will do"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a coarse array on a fine grid is not a mistaken unit
            super().__init__(points, size, False, backend)
        self.pixel = float(pixel)

    @classmethod
    def example(cls) -> Operator:
        operator = cls(
            60e3 * torch.rand(20, 2, generator=torch.Generator().manual_seed(0)) - 30e3, (8, 7), 3.0, "direct"
        )
        operator.in_shape = (2, 8, 7)
        return operator
