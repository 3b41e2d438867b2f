"""A part of the Fourier plane: MRI with one coil, radio interferometry on a grid, diffraction with a phase.

The unitary transform of a real signal x has F(-k) = conj F(k). In the real coordinates c of the Hartley transform
(:mod:`unveil.operators.blur`), F(k) = ((1 - i) c(k) + (1 + i) c(-k)) / 2: one rotation per pair of frequencies, so that
weights w on the Fourier plane have the singular values s(k)^2 = (w(k)^2 + w(-k)^2) / 2. A complex signal comes as two
real ones, its coordinates are the parts of F, and s = w.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Operator, Shape, Spectral, broadcasts
from .layout import Layout, kspace
from .masks import radial_mask, random_lines


@register("operator", "fourier")
class Fourier(Spectral):
    """y = w F x: the unitary Fourier transform of the last axes, weighted, and zero where w is.

    Parameters
    ----------
    mask:
        Weights w >= 0, mostly 0 (not measured) and 1; broadcastable to y.
    dims:
        Number of axes that are transformed: 2 for images, 3 for volumes.
    complex_signal:
        False: real signals [C, H, W] give y [C, H, W]. True: complex signals come as [2, H, W], real and imaginary
        part, and give y [1, H, W].
    centred:
        Whether the origins of signal and Fourier plane lie in the middle (pixel n // 2), as in k-space data, or at
        pixel 0, as in ``fft2``. The mask has the order of y.
    in_shape:
        Shape of the signals, None for any that fits.

    Raises :class:`InputError` for negative weights and for sizes that do not fit.
    """

    def __init__(
        self,
        mask: Tensor,
        *,
        dims: int = 2,
        complex_signal: bool = False,
        centred: bool = False,
        in_shape: Shape | None = None,
    ) -> None:
        weights = torch.as_tensor(mask).detach()
        weights = weights if weights.is_floating_point() else weights.float()
        if not bool(((weights >= 0) & torch.isfinite(weights)).all()) or weights.ndim < 1:
            raise InputError("the mask of the Fourier plane holds weights >= 0: 1 for what was measured, 0 elsewhere")
        if dims < 1:
            raise InputError(f"dims is the number of axes to transform, at least 1, got {dims}")
        self.weights = weights
        self.dims, self.complex_signal, self.centred = dims, complex_signal, centred
        if not bool((weights > 0).all()):
            self.measured = (weights > 0).float()
        if in_shape is not None:
            self.check(tuple(in_shape))
            self.in_shape = tuple(in_shape)

    @classmethod
    def example(cls) -> Operator:
        return cls(radial_mask((9, 8), 4), in_shape=(2, 9, 8))

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        what = "[2, ...], real and imaginary part" if self.complex_signal else "[C, ...]"
        if len(in_shape) != 1 + self.dims or (self.complex_signal and in_shape[0] != 2):
            raise InputError(f"{type(self).__name__} takes signals {what} of {self.dims} axes, got {tuple(in_shape)}")
        out, mask = self._out(in_shape), tuple(self.weights.shape)
        if not broadcasts(mask, out):
            raise InputError(f"the mask has shape {mask}, the Fourier plane {out}: they must be of one size")

    def _out(self, in_shape: Shape) -> Shape:
        return (1, *in_shape[1:]) if self.complex_signal else tuple(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return self._out(in_shape)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        if len(out_shape) != 1 + self.dims or (self.complex_signal and out_shape[0] != 1):
            lead = 1 if self.complex_signal else "C"
            raise InputError(
                f"{type(self).__name__} measures [{lead}, ...] of {self.dims} axes, got {tuple(out_shape)}"
            )
        return (2, *out_shape[1:]) if self.complex_signal else tuple(out_shape)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.dims, 0))

    def _in(self, x: Tensor) -> Tensor:
        """Signals, complex if they are, their origin at pixel 0."""
        z = to_complex(x).unsqueeze(1) if self.complex_signal else x
        return torch.fft.ifftshift(z, self._axes) if self.centred else z

    def _back(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`_in`."""
        z = torch.fft.fftshift(z, self._axes) if self.centred else z
        return to_real(z.squeeze(1)) if self.complex_signal else z.real

    def _shown(self, f: Tensor) -> Tensor:
        """Frequencies in the order of y, from that of ``fft2``."""
        return torch.fft.fftshift(f, self._axes) if self.centred else f

    def _natural(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`_shown`."""
        return torch.fft.ifftshift(y, self._axes) if self.centred else y

    def _mirrored(self, f: Tensor) -> Tensor:
        """f(-k), in the order of ``fft2``."""
        return f.flip(self._axes).roll((1,) * self.dims, self._axes)

    def _w(self, like: Tensor) -> Tensor:
        """Weights in the order of y."""
        return self.tensor("w", like.real if like.is_complex() else like, lambda: self.weights)

    def _even(self, like: Tensor) -> bool:
        """Whether shifts are by half of every side: signs, which cost less.

        With D = (-1)^j along every axis the centred transform is D F D times (-1)^(n / 2) of every side n.
        """
        return self.centred and all(n % 2 == 0 for n in like.shape[-self.dims :])

    def _signs(self, part: str, like: Tensor) -> Tensor:
        """D, or "w D" with the constant sign, for planes like ``like``."""
        size = tuple(like.shape[-self.dims :])

        def make() -> Tensor:
            signs = torch.ones((), dtype=torch.float64)
            for n in size:
                signs = signs[..., None] * (1 - 2 * (torch.arange(n) % 2))
            if part == "D":
                return signs
            return self.weights.cpu().double() * (signs if sum(size) % 4 == 0 else -signs)

        return self.tensor((part, size), like.real if like.is_complex() else like, make)

    def _plane(self, part: str, like: Tensor) -> Tensor:
        """In the order of ``fft2``: "s", singular values; "share", w / s, zero where s is."""
        size = tuple(like.shape[-self.dims :])

        def make() -> Tensor:
            w = self.weights.cpu().double()
            w = self._natural(w.expand(*w.shape[: -self.dims], *size))
            s = w if self.complex_signal else ((w**2 + self._mirrored(w) ** 2) / 2).sqrt()
            s = self._truncated(s)
            return s if part == "s" else torch.where(s > 0, w / torch.where(s > 0, s, 1), 0)

        return self.tensor((part, size), like.real if like.is_complex() else like, make)

    def s(self, c: Tensor) -> Tensor:
        return self._plane("s", c)

    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        f: Tensor = torch.fft.fftn(self._in(x), dim=self._axes, norm="ortho")
        return to_real(f.squeeze(1)) if self.complex_signal else f.real - f.imag

    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        if self.complex_signal:
            return self._back(torch.fft.ifftn(to_complex(c).unsqueeze(1), dim=self._axes, norm="ortho"))
        f: Tensor = torch.fft.fftn(c, dim=self._axes, norm="ortho")
        x = f.real - f.imag  # the Hartley transform is its own inverse
        return torch.fft.fftshift(x, self._axes) if self.centred else x

    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        if self.complex_signal:
            f = to_complex(c).unsqueeze(1)
        else:
            m = self._mirrored(c)
            f = torch.complex(c + m, m - c) / 2
        return self._shown(f * self._plane("share", c))

    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        f = self._natural(y) * self._plane("share", y)
        if self.complex_signal:
            return to_real(f.squeeze(1))
        m = self._mirrored(f)
        return (f.real + m.real - f.imag + m.imag) / 2

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        if self._even(x):
            z = x * self._signs("D", x)
            z = to_complex(z).unsqueeze(1) if self.complex_signal else z
            f: Tensor = torch.fft.fftn(z, dim=self._axes, norm="ortho")
            return f * self._signs("w D", x)
        return self._shown(torch.fft.fftn(self._in(x), dim=self._axes, norm="ortho")) * self._w(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if self._even(y):
            z = torch.fft.ifftn(y * self._signs("w D", y), dim=self._axes, norm="ortho")
            return (to_real(z.squeeze(1)) if self.complex_signal else z.real) * self._signs("D", y)
        return self._back(torch.fft.ifftn(self._natural(y * self._w(y)), dim=self._axes, norm="ortho"))

    def back(self, y: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        # gains are even in frequency where signals are real: they may come before the real part is taken
        s = self._plane("s", y)
        gain = f(s.reshape(*[1] * (y.ndim - s.ndim), *s.shape)) * self._plane("share", y)
        return self._back(torch.fft.ifftn(self._natural(y) * gain, dim=self._axes, norm="ortho"))

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        if self.dims != 2:
            return super().layouts(y)
        mask = (self.weights > 0).expand(*self.weights.shape[:-2], *y.shape[-2:])
        if not self.centred:
            y, mask = torch.fft.fftshift(y, self._axes), torch.fft.fftshift(mask, self._axes)
        return (kspace(y, mask),)

    def weighted(self, weights: Tensor) -> Fourier:
        """The same operator with its weights multiplied by others."""
        other = object.__new__(type(self))
        vars(other).update(self.__getstate__())
        other.weights = self.weights.double() * weights.to(self.weights.device).double()
        other.measured = None if bool((other.weights > 0).all()) else (other.weights > 0).float()
        return other


@register("operator", "mri")
class MRI(Fourier):
    """Cartesian MRI with one coil: complex images [2, H, W] to k-space [1, H, W], both with their origin in the middle.

    k-space is the unitary, centred Fourier transform of the image, as fastMRI's files have it, with zeros where
    ``mask`` is (masks: :func:`random_lines`, :func:`equispaced_lines`, :func:`radial_mask`). ``dims=3`` takes volumes.
    """

    def __init__(self, mask: Tensor, *, dims: int = 2, in_shape: Shape | None = None) -> None:
        super().__init__(mask, dims=dims, complex_signal=True, centred=True, in_shape=in_shape)

    @classmethod
    def example(cls) -> Operator:
        return cls(random_lines((10, 12), 3, centre=0.2), in_shape=(2, 10, 12))


def to_complex(x: Tensor) -> Tensor:
    """[N, 2, ...] as complex [N, ...]."""
    return torch.complex(x[:, 0], x[:, 1])


def to_real(z: Tensor) -> Tensor:
    """Complex [N, ...] as [N, 2, ...]."""
    return torch.stack([z.real, z.imag], 1)
