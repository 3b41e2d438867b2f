"""Weighted sums of channels: grayscale, spectral bands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Operator, Shape, Spectral


@register("operator", "grayscale")
class Grayscale(Spectral):
    """The weighted sum of the channels of a signal [C, ...], as a signal of one channel [1, ...].

    V is, at every pixel, the Householder reflection that brings the direction of the weights to the first
    channel.

    Parameters
    ----------
    weights:
        One number per channel; the default is luma (ITU-R BT.601) for colour images. Not all may be zero.
    in_shape:
        Shape of the signals, None for any with that many channels.
    """

    selects = True

    def __init__(
        self, weights: Sequence[float] | Tensor = (0.299, 0.587, 0.114), in_shape: Shape | None = None
    ) -> None:
        self.weights: Tensor = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
        norm = float(torch.linalg.vector_norm(self.weights))
        if self.weights.ndim != 1 or not 0 < norm < float("inf"):
            raise InputError(f"weights is one number per channel, finite and not all zero, got {weights}")
        if in_shape is not None:
            self.check(tuple(in_shape))
            self.in_shape = tuple(in_shape)

    @property
    def mixes(self) -> bool:
        """Whether all weights have one sign, so that a grey signal has the sum for its measurement up to a factor."""
        return bool((self.weights >= 0).all()) or bool((self.weights <= 0).all())

    @classmethod
    def example(cls) -> Operator:
        return cls(in_shape=(3, 8, 8))

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        if len(in_shape) == 0 or in_shape[0] != len(self.weights):
            raise InputError(
                f"{len(self.weights)} weights need signals of as many channels, got {tuple(in_shape)}: "
                "pass one weight per channel"
            )

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (1, *in_shape[1:])

    def shape_in(self, out_shape: Shape) -> Shape | None:
        return (len(self.weights), *out_shape[1:])

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        w = self.tensor("weights", x, lambda: self.weights)
        y = w @ x.flatten(2) if x.ndim > 2 else x @ w
        return y.reshape(x.shape[0], 1, *x.shape[2:])

    def adjoint(self, y: Tensor) -> Tensor:
        w = self.tensor("weights", y, lambda: self.weights)
        return y * w.reshape(-1, *[1] * (y.ndim - 2))

    def _reflection(self) -> Tensor:
        """A symmetric orthogonal [C, C] matrix whose first row is the weights' direction."""
        u = self.weights / torch.linalg.vector_norm(self.weights)
        sign = torch.where(u[0] < 0, -1.0, 1.0).double()
        v = u.clone()
        v[0] += sign  # the sign that avoids cancellation
        reflection: Tensor = sign * (2 * torch.outer(v, v) / (v @ v) - torch.eye(len(u), dtype=u.dtype))
        return reflection

    def s(self, c: Tensor) -> Tensor:
        def make() -> Tensor:
            return torch.nn.functional.pad(torch.linalg.vector_norm(self.weights)[None], (0, len(self.weights) - 1))

        return self.tensor("s", c, make).reshape(-1, *[1] * (c.ndim - 2))

    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        matrix = self.tensor("V", x, self._reflection)
        return (matrix @ x.flatten(2)).reshape(x.shape) if x.ndim > 2 else x @ matrix

    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        return self.Vt(c)  # symmetric and orthogonal: its own inverse

    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        return torch.cat([y, y.new_zeros(y.shape[0], len(self.weights) - 1, *y.shape[2:])], 1)

    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        return c[:, :1]
