"""Weights: a factor for every entry, mixtures of entries or channels, powers of an operator. What whitens noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Linear, Operator, Shape, broadcasts
from .elementary import Diagonal, Identity, Inpainting
from .fourier import Fourier
from .matrix import Matrix


@register("operator", "weights")
class Weights(Diagonal):
    """y = w * x with weights w >= 0: a vignette, an exposure, the inverse of a standard deviation.

    Parameters
    ----------
    weights:
        Real, not negative, broadcastable to one signal. Entries with weight zero are not measured.
    in_shape:
        Shape of the signals, where the weights leave it open.

    Complex arguments are allowed, as measurements to be weighted. ``Weights @ A`` is spectral where A is an identity,
    a mask, weights itself, or a part of the Fourier plane. Raises :class:`InputError` for negative or infinite weights.
    """

    def __init__(self, weights: Tensor, in_shape: Shape | None = None) -> None:
        weights = torch.as_tensor(weights).detach()
        if not weights.is_floating_point() or not bool(((weights >= 0) & torch.isfinite(weights)).all()):
            raise InputError("weights are real, finite and >= 0: take signs and phases out of them")
        self.weights = weights
        if not bool((weights > 0).all()):
            self.measured = (weights > 0).float()
        if in_shape is not None:
            self.check(tuple(in_shape))
            self.in_shape = tuple(in_shape)

    @classmethod
    def example(cls) -> Operator:
        return cls(torch.linspace(0, 2, 15).reshape(3, 5), in_shape=(2, 3, 5))

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        shape = tuple(self.weights.shape)
        if not broadcasts(shape, in_shape):
            raise InputError(f"the weights have shape {shape} and the signal {tuple(in_shape)}: give one per entry")

    def _like(self, x: Tensor) -> Tensor:
        return self.tensor("weights", x.real if x.is_complex() else x, lambda: self.weights)

    def s(self, c: Tensor) -> Tensor:
        return self._truncated(self._like(c))

    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * (self.s(y) > 0)

    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        return c * (self.s(c) > 0)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return x * self._like(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self._like(y)

    def merge(self, inner: Operator) -> Operator | None:
        shape = inner.in_shape or self.in_shape
        if isinstance(inner, Identity):
            return Weights(self.weights, shape)
        if isinstance(inner, Weights):
            return Weights(self.weights * inner.weights.to(self.weights), shape)
        if isinstance(inner, Inpainting):
            return Weights(self.weights * inner.mask.to(self.weights), shape)
        return inner.weighted(self.weights) if isinstance(inner, Fourier) else None


class Mix(Linear):
    """y = M x: mixtures of all entries of x, or of the entries along its first axis.

    Parameters
    ----------
    matrix:
        [k, m], real or complex; x may be complex, as a measurement.
    in_shape:
        Shape of x, of m entries, or with a first axis of m. y is then [k], or [k, ...].
    first_axis:
        Which of the two.
    kept:
        Indices of m entries of x [n] to take first.
    measured:
        Entries of y that carry data.
    """

    name = "mix"

    def __init__(
        self,
        matrix: Tensor,
        in_shape: Shape,
        *,
        first_axis: bool = False,
        kept: Tensor | None = None,
        measured: Tensor | None = None,
    ) -> None:
        self.matrix, self.first_axis, self.kept, self.measured = matrix.detach(), first_axis, kept, measured
        self.in_shape: Shape = tuple(in_shape)
        entries = self.in_shape[0] if first_axis else math.prod(self.in_shape)
        if matrix.shape[1] != (entries if kept is None else len(kept)):
            raise InputError(f"a matrix {tuple(matrix.shape)} cannot mix {entries} entries of x {self.in_shape}")

    def _like(self, x: Tensor) -> Tensor:
        m = self.tensor("M", x, lambda: self.matrix.cpu())
        return m.to(x.dtype) if x.is_complex() else m

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        m = self._like(x)
        if self.first_axis:
            return self.at_data((m @ x.flatten(2).to(m.dtype)).reshape(x.shape[0], -1, *x.shape[2:]))
        rows = x.flatten(1)
        if self.kept is not None:
            rows = rows.index_select(1, self._index(self.kept, x))
        return rows.to(m.dtype) @ m.mT

    def adjoint(self, y: Tensor) -> Tensor:
        m = self._like(y).mH
        if self.first_axis:
            return (m @ self.at_data(y).flatten(2).to(m.dtype)).reshape(y.shape[0], *self.in_shape)
        rows = y.to(m.dtype) @ m.mT
        if self.kept is not None:
            full = rows.new_zeros(y.shape[0], math.prod(self.in_shape))
            rows = full.index_copy(1, self._index(self.kept, y), rows)
        return rows.reshape(y.shape[0], *self.in_shape)

    def _index(self, kept: Tensor, like: Tensor) -> Tensor:
        return self.tensor("kept", like, lambda: kept)

    def merge(self, inner: Operator) -> Operator | None:
        if not isinstance(inner, Matrix) or self.first_axis or self.matrix.is_complex() or inner.matrix.is_complex():
            return None
        rows = inner.matrix if self.kept is None else inner.matrix[self.kept.to(inner.matrix.device)]
        return Matrix(self.matrix.double() @ rows.double(), inner.in_shape)


class Power(Linear):
    """y = B^p x on the entries that are measured, of B = M C M: a part of a positive definite C, to a real power.

    By Chebyshev's polynomials of B (three-term recurrence), of the lowest degree that is right to ``tol`` between the
    ends of C's spectrum, which bound that of B (Cauchy's interlacing). A polynomial is linear and symmetric, as
    conjugate gradients are not. It costs one application of C for each degree, about 8 sqrt(high / low) of them.

    Parameters
    ----------
    operator:
        C, symmetric.
    exponent:
        p.
    low, high:
        The ends of the spectrum of C, > 0.
    measured:
        M, 0 or 1, broadcastable to one signal.

    Raises :class:`InputError` if high / low needs more than ``DEGREES``.
    """

    name = "power"
    DEGREES = 1000

    def __init__(
        self, operator: Linear, exponent: float, low: float, high: float, measured: Tensor, tol: float = 1e-7
    ) -> None:
        self.operator, self.exponent, self.measured = operator, exponent, measured
        self.in_shape = operator.in_shape
        low, high = low * (1 - 1e-3), high * (1 + 1e-3)  # rounding leaves eigenvalues inside
        self.centre, self.half = (high + low) / 2, (high - low) / 2
        self.coefficients = self._fit(low, high, tol)

    def _fit(self, low: float, high: float, tol: float) -> tuple[float, ...]:
        degree = self.DEGREES
        nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))  # of T_{degree + 1}
        values = (self.centre + self.half * nodes) ** self.exponent
        k = np.arange(degree + 1)
        found = 2 / (degree + 1) * np.cos(np.arccos(nodes)[None] * k[:, None]) @ values
        found[0] /= 2
        # a tail of coefficients bounds the error, which counts against the smallest value of the power
        tail = np.cumsum(np.abs(found[::-1]))[::-1] / min(low**self.exponent, high**self.exponent)
        enough = np.flatnonzero(tail <= tol)
        if not len(enough):
            raise InputError(
                f"the spectrum reaches from {low:.3g} to {high:.3g}, more than a polynomial of {degree} degrees "
                "follows: add some white noise to it, or crop y to where everything was measured"
            )
        return tuple(float(c) for c in found[: max(int(enough[0]), 2)])

    def __call__(self, x: Tensor) -> Tensor:
        before = self.at_data(x)
        now = self._scaled(before)
        y = self.coefficients[0] * before + self.coefficients[1] * now
        for c in self.coefficients[2:]:
            before, now = now, 2 * self._scaled(now) - before
            y = y + c * now
        return y

    def _scaled(self, x: Tensor) -> Tensor:
        """B, shifted and scaled to a spectrum within [-1, 1]."""
        return (self.at_data(self.operator(x)) - self.centre * x) / self.half

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)
