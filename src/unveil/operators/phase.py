"""Phase retrieval: detectors that see the magnitude of a complex field and not its phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Linear, Operator, Shape, broadcasts
from .matrix import Matrix


class Magnitude(Operator):
    """y = |A x|^power for a linear A with complex values: a base class, and a detector for any A.

    ``power`` 1 is the amplitude, 2 the intensity. ``linear`` is A. The derivative of the amplitude is zero where A x
    is.
    """

    name = "magnitude"

    def __init__(self, linear: Linear, power: int = 1) -> None:
        if power not in (1, 2):
            raise InputError(f"power is 1 (amplitude) or 2 (intensity), got {power}")
        self.linear, self.power = linear, power
        self.in_shape, self.measured = linear.in_shape, linear.measured

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        self.linear.check(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        return self.linear.shape_out(in_shape)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        return self.linear.shape_in(out_shape)

    def __call__(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        return z.abs() if self.power == 1 else z.abs().square()


class Padded(Linear):
    """The unitary Fourier transform of images [C, H, W] in a larger field of zeros."""

    name = "padded-fourier"

    def __init__(self, field: tuple[int, int], in_shape: Shape, mask: Tensor | None = None) -> None:
        self.field = field
        self.in_shape: Shape = tuple(in_shape)
        self.measured = None if mask is None else torch.as_tensor(mask).detach().float()
        if self.measured is not None and not broadcasts(tuple(self.measured.shape), self.shape_out(self.in_shape)):
            raise InputError(
                f"the mask has shape {tuple(self.measured.shape)}, the field {field}: they must be of one size"
            )

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (*in_shape[:-2], *self.field)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return self.at_data(torch.fft.fft2(x, s=self.field, norm="ortho"))

    def adjoint(self, y: Tensor) -> Tensor:
        z: Tensor = torch.fft.ifft2(self.at_data(y), norm="ortho").real
        return z[..., : self.in_shape[-2], : self.in_shape[-1]].contiguous()


@register("operator", "fourier-magnitude")
class FourierMagnitude(Magnitude):
    """Coherent diffraction: y = |F x| of a real image [C, H, W] in a field of zeros ``oversampling`` times as large.

    The unitary transform, zero frequency at [0, 0]. An oversampling of 2 determines the image up to a shift, a mirror
    image and the sign (Miao, Sayre, Chapman 1998, J. Opt. Soc. Am. A 15, 1662); no method can tell these apart.

    Parameters
    ----------
    in_shape:
        Shape [C, H, W] of the signals.
    oversampling:
        Field over image, per axis, >= 1.
    power:
        1: amplitude; 2: intensity, what a detector counts.
    mask:
        [H', W'] zeros where the detector is blind, as behind a beam stop.
    """

    def __init__(self, in_shape: Shape, oversampling: float = 2.0, power: int = 1, mask: Tensor | None = None) -> None:
        if not oversampling >= 1 or len(in_shape) < 2:
            raise InputError(f"Fourier magnitudes need images and oversampling >= 1, got {in_shape} and {oversampling}")
        h, w = (math.ceil(oversampling * n) for n in in_shape[-2:])
        super().__init__(Padded((h, w), in_shape, mask), power)

    @classmethod
    def example(cls) -> Operator:
        return cls((1, 6, 7))


class CodedField(Linear):
    """The unitary Fourier transforms of images [C, H, W] behind each of K masks: [K, C, H, W]."""

    name = "coded-field"

    def __init__(self, masks: Tensor, in_shape: Shape) -> None:
        self.masks = masks
        self.in_shape: Shape = tuple(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (len(self.masks), *in_shape)

    def _like(self, x: Tensor) -> Tensor:
        masks = self.tensor("masks", x.real if x.is_complex() else x, lambda: self.masks)
        return masks.reshape(len(masks), *[1] * (len(self.in_shape) - 2), *masks.shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        f: Tensor = torch.fft.fft2(x.unsqueeze(1) * self._like(x), norm="ortho")
        return f

    def adjoint(self, y: Tensor) -> Tensor:
        z: Tensor = torch.fft.ifft2(y, norm="ortho") * self._like(y).conj()
        return z.real.sum(1)


@register("operator", "coded-diffraction")
class CodedDiffraction(Magnitude):
    """Diffraction patterns behind known random masks: y_k = |F (m_k x)| / sqrt(K), [K, C, H, W].

    Candes, Li, Soltanolkotabi 2015 (IEEE Trans. Inf. Theory 61, 1985), section 1.4: a few patterns determine the image
    up to its sign.

    Parameters
    ----------
    in_shape:
        Shape [C, H, W] of the signals.
    patterns:
        K, their number.
    kind:
        "phase": random phases; "octanary": one of 1, -1, i, -i times sqrt(1/2) four times in five, else sqrt(3);
        "binary": 0 or sqrt 2. All have mean square 1.
    power, seed:
        As in :class:`FourierMagnitude`; the seed draws the masks.
    """

    def __init__(
        self, in_shape: Shape, patterns: int = 4, kind: str = "octanary", power: int = 1, seed: int = 0
    ) -> None:
        if patterns < 1 or len(in_shape) < 2:
            raise InputError(f"coded diffraction needs images and at least one pattern, got {in_shape} and {patterns}")
        g = torch.Generator().manual_seed(seed)
        u, v = torch.rand(2, patterns, *in_shape[-2:], generator=g, dtype=torch.float64)
        if kind == "phase":
            masks = torch.polar(torch.ones_like(u), 2 * math.pi * u)
        elif kind == "octanary":
            masks = torch.polar(torch.where(v < 0.8, 0.5**0.5, 3**0.5).double(), math.pi / 2 * (4 * u).floor())
        elif kind == "binary":
            masks = torch.where(u < 0.5, 0, 2**0.5).to(torch.complex128)
        else:
            raise InputError(f"unknown kind '{kind}' of masks: choose one of phase, octanary, binary")
        super().__init__(CodedField(masks / patterns**0.5, in_shape), power)

    @classmethod
    def example(cls) -> Operator:
        return cls((2, 5, 6), patterns=3)


@register("operator", "random-magnitude")
class RandomMagnitude(Magnitude):
    """Light through a scattering medium: y = |G x|, G [m, n] with complex normal entries of variance 1 / m.

    The setting of Candes, Strohmer, Voroninski 2013 (Commun. Pure Appl. Math. 66, 1241); G is kept as a matrix.

    Parameters
    ----------
    in_shape:
        Shape of the signals, of n entries.
    m:
        Number of measurements; four times n is plenty for real signals.
    power, seed:
        As in :class:`FourierMagnitude`; the seed draws G.
    """

    def __init__(self, in_shape: Shape, m: int, power: int = 1, seed: int = 0) -> None:
        if m < 1:
            raise InputError(f"m is the number of measurements, at least 1, got {m}")
        g = torch.Generator().manual_seed(seed)
        matrix = torch.randn(m, math.prod(in_shape), generator=g, dtype=torch.complex64) / m**0.5
        super().__init__(Matrix(matrix, in_shape), power)

    @classmethod
    def example(cls) -> Operator:
        return cls((1, 4, 5), 50)
