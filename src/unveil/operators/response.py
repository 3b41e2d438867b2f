"""What a detector makes of light, value by value: levels, limits, exposure, and blur before a curved response."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Operator, Parametric, Shape
from .blur import Blur
from .kernels import random_motion_kernel


class Pointwise(Operator):
    """y has the shape of x: a base class."""

    def __init__(self, low: float, high: float, in_shape: Shape | None) -> None:
        if not low < high:
            raise InputError(f"the range needs low < high, got {low} and {high}")
        self.low, self.high = float(low), float(high)
        self.in_shape = None if in_shape is None else tuple(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return tuple(in_shape)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        return tuple(out_shape)


@register("operator", "clip")
class Clip(Pointwise):
    """A detector that saturates: y = min(max(x, low), high). Its derivative is zero beyond the ends.

    For noise before the clipping, with its exact likelihood, take :class:`unveil.noise.Clipped` and no operator.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, in_shape: Shape | None = None) -> None:
        super().__init__(low, high, in_shape)

    @classmethod
    def example(cls) -> Operator:
        return cls(0.3, 0.7, (3, 5, 6))

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return x.clamp(self.low, self.high)

    def pinv(self, y: Tensor) -> Tensor:
        """A generalised inverse: A(pinv(A(x))) = A(x)."""
        return y


@register("operator", "quantize")
class Quantize(Pointwise):
    """A converter of few bits: y is the one of 2**bits levels from low to high that is nearest to x.

    Derivatives are those of the clipped signal, as if it were not rounded: :meth:`smooth`. For noise before the
    converter, with its exact likelihood, take :class:`unveil.noise.Quantisation` and no operator.
    """

    def __init__(self, bits: int = 2, low: float = 0.0, high: float = 1.0, in_shape: Shape | None = None) -> None:
        super().__init__(low, high, in_shape)
        if not isinstance(bits, int) or not 1 <= bits <= 16:
            raise InputError(f"quantisation takes 1 to 16 bits, got {bits}")
        self.bits = bits

    @classmethod
    def example(cls) -> Operator:
        return cls(2, in_shape=(3, 5, 6))

    @property
    def step(self) -> float:
        """The distance of two levels."""
        levels: int = 2**self.bits
        return (self.high - self.low) / (levels - 1)

    def smooth(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        z = self.smooth(x)
        rounded = ((z - self.low) / self.step).round() * self.step + self.low
        return z + (rounded - z).detach()

    def pinv(self, y: Tensor) -> Tensor:
        """A generalised inverse: A(pinv(A(x))) = A(x)."""
        return y


@register("operator", "hdr")
class HighDynamicRange(Parametric, Pointwise):
    """An exposure that is too long for the detector: y = clip(pivot + exposure (x - pivot), low, high).

    Parameters
    ----------
    exposure:
        > 1 loses what is far from the pivot. A parameter that can be unknown: one number, or [N, 1, 1, 1].
    low, high:
        The range of the detector, in the units of the signal.
    pivot:
        What stays as it is. The middle of the range by default, which clips both ends and is 2x clipped to [-1, 1] in
        the papers; ``low`` is light that is exposed for longer.
    """

    parameters: ClassVar[tuple[str, ...]] = ("exposure",)

    def __init__(
        self,
        exposure: float | Tensor = 2.0,
        low: float = 0.0,
        high: float = 1.0,
        pivot: float | None = None,
        in_shape: Shape | None = None,
    ) -> None:
        super().__init__(low, high, in_shape)
        self.exposure = _exposure(exposure)
        self.pivot = (self.low + self.high) / 2 if pivot is None else float(pivot)

    @classmethod
    def example(cls) -> Operator:
        return cls(2.0, in_shape=(3, 5, 6))

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return (self.pivot + _kept(self, self.exposure, x) * (x - self.pivot)).clamp(self.low, self.high)

    def pinv(self, y: Tensor) -> Tensor:
        """A generalised inverse: A(pinv(A(x))) = A(x)."""
        return self.pivot + (y - self.pivot) / _kept(self, self.exposure, y)


@register("operator", "nonlinear-blur")
class NonlinearBlur(Parametric):
    """Blur as a camera makes it: of light, which the picture shows through a curve, and which saturates.

    y = g(min(exposure K * g^-1(x), 1)), with the curve g of sRGB (IEC 61966-2-1) in place of a camera's: the model by
    which blurred photographs are made of sharp ones (Nah, Kim, Lee 2017, CVPR, equation 2). Images in [0, 1]; the curve
    is continued outside. It stands for the learnt non-linear blur of the papers (Tran et al. 2021), whose network is
    not part of this library.

    Parameters
    ----------
    kernel:
        As in :class:`Blur`; a parameter that can be unknown.
    exposure:
        Of the light: above 1 highlights saturate. A parameter that can be unknown: one number, or [N, 1, 1, 1].
    boundary, in_shape:
        As in :class:`Blur`.
    """

    parameters: ClassVar[tuple[str, ...]] = ("kernel", "exposure")

    def __init__(
        self, kernel: Tensor, exposure: float | Tensor = 1.2, boundary: str = "circular", in_shape: Shape | None = None
    ) -> None:
        self.blur = Blur(kernel, boundary)
        self.exposure = _exposure(exposure)
        if in_shape is not None:
            self.check(tuple(in_shape))
            self.in_shape = tuple(in_shape)

    @classmethod
    def random(
        cls, length: float = 20.0, intensity: float = 0.5, seed: int = 0, exposure: float = 1.2
    ) -> NonlinearBlur:
        """A fixed instance of a seed: the trace of a shaking hand (:func:`random_motion_kernel`)."""
        return cls(random_motion_kernel(length, intensity, seed), exposure)

    @classmethod
    def example(cls) -> Operator:
        return cls(random_motion_kernel(4, size=7), in_shape=(3, 9, 8))

    @property
    def kernel(self) -> Tensor:
        """[..., h, w]"""
        return self.blur.kernel

    def bind(self, **parameters: Tensor) -> NonlinearBlur:
        bound = super().bind(**parameters)
        assert isinstance(bound, NonlinearBlur)
        if "kernel" in parameters:
            bound.blur = self.blur.bind(kernel=vars(bound).pop("kernel"))
        return bound

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        self.blur.check(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return self.blur.shape_out(in_shape)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        return self.blur.shape_in(out_shape)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return encoded((_kept(self, self.exposure, x) * self.blur(decoded(x))).clamp(max=1))


def _exposure(exposure: float | Tensor) -> Tensor:
    found = torch.as_tensor(exposure, dtype=torch.float64 if isinstance(exposure, float | int) else None)
    if not bool((found.detach() > 0).all()):
        raise InputError(f"exposure must be > 0, got {exposure}")
    return found


def _kept(operator: Operator, exposure: Tensor, x: Tensor) -> Tensor:
    """The exposure like x; one that is being estimated keeps its graph."""
    return exposure.to(x) if exposure.requires_grad else operator.tensor("exposure", x, lambda: exposure)


def decoded(x: Tensor) -> Tensor:
    """Light of an sRGB picture in [0, 1]; the straight piece at the dark end goes on below 0, the curve above 1."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04) + 0.055) / 1.055) ** 2.4)


def encoded(light: Tensor) -> Tensor:
    """The sRGB picture of light, the inverse of :func:`decoded`."""
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clamp(min=0.003) ** (1 / 2.4) - 0.055)
