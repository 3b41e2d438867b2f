"""MRI with several coils, and the sensitivities of coils: simulated, from the data, or by ESPIRiT."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Linear, Operator, Parametric, Shape, broadcasts
from .fourier import to_complex, to_real
from .layout import Layout, kspace
from .masks import equispaced_lines


@register("operator", "multicoil-mri")
class MultiCoilMRI(Parametric, Linear):
    """Cartesian MRI with several coils: complex images [2, H, W] to k-space [coils, H, W].

    y_c = mask F (S_c x), with the unitary, centred Fourier transform F, as in fastMRI's files, and sensitivities S_c of
    each coil (SENSE: Pruessmann et al. 1999, Magn. Reson. Med. 42, 952). Where the maps are normalised, sum_c |S_c|^2 =
    1, x is the coil-combined image. Coils whose noise is correlated: ``FullGaussian`` with their covariance.

    Parameters
    ----------
    mask:
        Zeros and ones, broadcastable to [coils, H, W].
    maps:
        Complex sensitivities [coils, H, W]; a parameter that can be unknown. From data: :func:`espirit_maps`,
        :func:`low_resolution_maps`; simulated: :func:`birdcage_maps`.
    """

    parameters: ClassVar[tuple[str, ...]] = ("maps",)

    def __init__(self, mask: Tensor, maps: Tensor) -> None:
        if not isinstance(maps, Tensor) or not maps.is_complex() or maps.ndim < 3:
            raise InputError(
                "MRI with several coils needs their sensitivity maps, complex [coils, H, W]: estimate them with "
                "operators.espirit_maps(kspace) or operators.low_resolution_maps(kspace)"
            )
        mask = torch.as_tensor(mask).detach().float()
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InputError("an MRI mask holds only 0 (skipped) and 1 (measured)")
        shape = tuple(maps.shape)
        check_finite(maps)
        if not broadcasts(tuple(mask.shape), shape):
            raise InputError(f"the mask has shape {tuple(mask.shape)}, the maps {shape}: they must be of one size")
        self.maps = maps
        self.measured: Tensor = mask
        self.in_shape: Shape = (2, *shape[1:])

    @classmethod
    def example(cls) -> Operator:
        return cls(equispaced_lines((10, 12), 2, centre=0.2), birdcage_maps(3, (10, 12)))

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(1 - len(self.in_shape), 0))

    def _sensitivities(self, like: Tensor) -> Tensor:
        if self.maps.requires_grad:
            return self.maps.to(like.dtype.to_complex())
        return self.tensor("maps", like.real if like.is_complex() else like, lambda: self.maps.cpu())

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (self.maps.shape[-len(in_shape)], *in_shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        z = to_complex(x).unsqueeze(1) * self._sensitivities(x)
        f = torch.fft.fftn(torch.fft.ifftshift(z, self._axes), dim=self._axes, norm="ortho")
        return self.at_data(torch.fft.fftshift(f, self._axes))

    def adjoint(self, y: Tensor) -> Tensor:
        f = torch.fft.ifftshift(self.at_data(y), self._axes)
        z = torch.fft.fftshift(torch.fft.ifftn(f, dim=self._axes, norm="ortho"), self._axes)
        return to_real((z * self._sensitivities(y.real).conj()).sum(1))

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        return (kspace(y, self.measured),) if y.ndim == 4 else super().layouts(y)


def check_finite(maps: Tensor) -> None:
    """Raise :class:`InputError` for sensitivities that are NaN or infinite."""
    bad = int((~torch.isfinite(maps.detach())).sum())
    if bad:
        raise InputError(f"the sensitivity maps hold {bad} NaN or infinite values: set them to zero outside the object")


def birdcage_maps(coils: int, size: tuple[int, int], radius: float = 1.5) -> Tensor:
    """Simulated sensitivities [coils, H, W], complex64, normalised: sum_c |S_c|^2 = 1.

    Coils sit at equal angles on a circle of ``radius`` half image sides around the image; a sensitivity falls with the
    distance from its coil and its phase is the direction to it, as the field of a short wire.
    """
    if coils < 1 or not radius > 1:
        raise InputError(f"a birdcage needs coils >= 1 and radius > 1, got {coils} and {radius}")
    rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in size)
    angle = 2 * math.pi * torch.arange(coils, dtype=torch.float64)[:, None, None] / coils
    dy, dx = rows[:, None] - radius * angle.sin(), columns - radius * angle.cos()
    distance = torch.hypot(dx, dy)
    maps = torch.complex(dx, dy) / distance**2 * torch.polar(torch.ones_like(angle), -angle)
    return (maps / maps.abs().square().sum(0, keepdim=True).sqrt()).to(torch.complex64)


def low_resolution_maps(kspace: Tensor, calibration: int = 24) -> Tensor:
    """Sensitivities [coils, H, W] from the middle of centred k-space [coils, H, W]: low-resolution images, normalised.

    Each coil's image of the ``calibration`` x ``calibration`` lowest frequencies, under a Hann window, over the root of
    the sum of squares (the self-calibration of McKenzie et al. 2002, Magn. Reson. Med. 47, 529). The middle must be
    fully sampled. Object phase stays in the maps, so that the image is nearly real. No package is needed.
    """
    _check_kspace(kspace, calibration)
    h, w = kspace.shape[-2:]
    d = [torch.arange(n, device=kspace.device) - n // 2 for n in (h, w)]
    hann = [torch.where(k.abs() <= calibration // 2, (math.pi * k / (calibration + 2)).cos() ** 2, 0) for k in d]
    low = torch.fft.ifftshift(kspace * torch.outer(*hann).to(kspace.real.dtype), (-2, -1))
    images: Tensor = torch.fft.fftshift(torch.fft.ifft2(low, norm="ortho"), (-2, -1))
    rss = images.abs().square().sum(0, keepdim=True).sqrt()
    return images / rss.clamp(min=1e-6 * float(rss.max()))


def espirit_maps(kspace: Tensor, calibration: int = 24, threshold: float = 0.02, crop: float = 0.95) -> Tensor:
    """Sensitivities [coils, H, W] by ESPIRiT from centred k-space [coils, H, W], with the package sigpy.

    Uecker et al. 2014, Magn. Reson. Med. 71, 990. Zero where there is no signal. ``calibration`` is the side of the
    fully sampled middle, ``threshold`` that of singular values, ``crop`` that of eigenvalues. Raises
    :class:`InputError` if sigpy is missing.
    """
    _check_kspace(kspace, calibration)
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError:
        raise InputError(
            "ESPIRiT needs the package sigpy: pip install 'unveil[mri]', or use low_resolution_maps(kspace)"
        ) from None
    app = EspiritCalib(
        kspace.detach().cpu().numpy(), calib_width=calibration, thresh=threshold, crop=crop, show_pbar=False
    )
    return torch.as_tensor(app.run()).to(kspace)


def _check_kspace(kspace: Tensor, calibration: int) -> None:
    if not kspace.is_complex() or kspace.ndim != 3:
        raise InputError(f"k-space is complex [coils, H, W], got {kspace.dtype} {tuple(kspace.shape)}")
    if not 4 <= calibration <= min(kspace.shape[-2:]):
        raise InputError(f"the calibration region has {calibration} points a side, k-space is {tuple(kspace.shape)}")
    h, w = kspace.shape[-2:]
    half = calibration // 2
    middle = kspace[:, h // 2 - half : h // 2 + half, w // 2 - half : w // 2 + half]
    missing = float((middle.abs().sum(0) == 0).float().mean())
    if missing > 0:
        raise InputError(
            f"{missing:.0%} of the middle {2 * half} x {2 * half} of k-space was not measured: choose a smaller "
            "calibration, or shift zero frequency to the middle (torch.fft.fftshift)"
        )
