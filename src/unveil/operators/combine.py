"""Operators made of operators: compositions, sums, and several instruments looking at one signal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..io.digest import digest
from .base import Linear, Operator, Shape, Spectral
from .layout import Layout


class Composed(Operator):
    """(A @ B)(x) = A(B(x)); made by :func:`compose`."""

    name = "compose"

    def __init__(self, outer: Operator, inner: Operator) -> None:
        self.outer = outer
        self.inner = inner
        if inner.in_shape is not None:
            outer.check(inner.shape_out(inner.in_shape))
            self.in_shape = inner.in_shape
        elif outer.in_shape is not None:
            self.in_shape = inner.shape_in(outer.in_shape)
        self.measured = outer.measured

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        self.inner.check(in_shape)
        self.outer.check(self.inner.shape_out(in_shape))

    def shape_out(self, in_shape: Shape) -> Shape:
        return self.outer.shape_out(self.inner.shape_out(in_shape))

    def shape_in(self, out_shape: Shape) -> Shape | None:
        between = self.outer.shape_in(out_shape)
        known = None if between is None else self.inner.shape_in(between)
        return self.in_shape if known is None else known

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def smooth(self, x: Tensor) -> Tensor:
        return self.outer.smooth(self.inner.smooth(x))

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        return self.outer.layouts(y)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        between, inner_back = self.inner.linearize(x)
        y, outer_back = self.outer.linearize(between)
        return y, lambda v: inner_back(outer_back(v))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        between, inner_back = self.inner.linearize(x)
        return inner_back(self.outer.vjp(between, v))

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.outer.jvp(self.inner(x), self.inner.jvp(x, v))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "parts": [self.outer.describe(), self.inner.describe()]}


class LinearComposed(Composed, Linear):
    """A composition of linear operators."""

    outer: Linear
    inner: Linear

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return self.adjoint(v)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return self(v)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self(x), self.adjoint


class SpectralComposed(LinearComposed, Spectral):
    """A composition A @ B of a spectral A with a B that selects, as a blur of the luminance of a colour image.

    B = U_B (b I) V_B^T sees a part of its coordinates, all with one singular value b, and U_B puts that part in A's
    place. Decomposing A = U_A diag(s) V_A^T there turns the part once more and leaves the rest alone::

        V = V_B (V_A on what B sees, the identity elsewhere),   U = U_A,   singular values b s, and 0 elsewhere

    A Kronecker product of singular vectors where A acts on pixels and B on channels. Coordinates have B's layout.
    """

    outer: Spectral
    inner: Spectral

    def __init__(self, outer: Spectral, inner: Spectral) -> None:
        super().__init__(outer, inner)
        self.selects = outer.selects

    def s(self, c: Tensor) -> Tensor:
        z = self.inner.U(c.new_zeros(1, *c.shape[1:]))
        return self.inner.s(c) * self.inner.Ut(self.outer.s(z).expand(z.shape))[0]

    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        return self._turned(self.inner.Vt(x), self.outer.Vt)

    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        return self.inner.V(self._turned(c, self.outer.V))

    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        return self.inner.Ut(self.outer.Ut(y))

    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        return self.outer.U(self.inner.U(c))

    def _turned(self, c: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """B's coordinates with ``turn`` applied to those that B sees."""
        z = self.inner.U(c)
        turned = turn(z)
        if turned.shape != z.shape:
            raise InputError(
                f"{type(self.outer).__name__} has coordinates of shape {tuple(turned.shape[1:])} for signals of shape "
                f"{tuple(z.shape[1:])}: to be composed with {type(self.inner).__name__} they need the signal's shape"
            )
        return torch.where(self.inner.s(c) > 0, self.inner.Ut(turned), c)


class Several(Operator):
    """Operators that look at the same signal: a base class of sums and stacks."""

    def __init__(self, parts: tuple[Operator, ...], in_shape: Shape | None = None) -> None:
        if not parts:
            raise InputError("give at least one operator")
        self.parts = parts
        shapes = [tuple(in_shape)] if in_shape is not None else []
        shapes += [tuple(p.in_shape) for p in parts if p.in_shape is not None]
        if shapes:
            self.check(shapes[0])
            self.in_shape = shapes[0]

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        for part in self.parts:
            part.check(in_shape)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "parts": [part.describe() for part in self.parts]}


class Sum(Several):
    """(A + B)(x) = A(x) + B(x); made by :func:`add`. An entry is measured where any part measures it."""

    name = "add"

    def __init__(self, parts: tuple[Operator, ...], in_shape: Shape | None = None) -> None:
        super().__init__(parts, in_shape)
        if self.in_shape is not None:
            shapes = {part.shape_out(self.in_shape) for part in parts}
            if len(shapes) > 1:
                raise InputError(f"cannot add measurements of shapes {sorted(shapes)}: use stack(A, B)")
        masks = [part.measured for part in parts if part.measured is not None]
        if len(masks) == len(parts):
            missing = torch.ones(())
            for mask in masks:
                missing = missing * (1 - mask)
            self.measured = 1 - missing

    def shape_out(self, in_shape: Shape) -> Shape:
        return self.parts[0].shape_out(in_shape)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        known = (part.shape_in(out_shape) for part in self.parts)
        return next((shape for shape in known if shape is not None), None)

    def __call__(self, x: Tensor) -> Tensor:
        return sum_of([part(x) for part in self.parts])

    def smooth(self, x: Tensor) -> Tensor:
        return sum_of([part.smooth(x) for part in self.parts])

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        values, backs = zip(*(part.linearize(x) for part in self.parts), strict=True)
        return sum_of(values), lambda v: sum_of([back(v) for back in backs])

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return sum_of([part.vjp(x, v) for part in self.parts])

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return sum_of([part.jvp(x, v) for part in self.parts])


class LinearSum(Sum, Linear):
    """A sum of linear operators."""

    parts: tuple[Linear, ...]

    def adjoint(self, y: Tensor) -> Tensor:
        return sum_of([part.adjoint(y) for part in self.parts])


class Stack(Several):
    """Measurements of several operators, flattened and concatenated to y [N, m]; made by :func:`stack`."""

    name = "stack"

    def __init__(self, parts: tuple[Operator, ...], in_shape: Shape | None = None) -> None:
        super().__init__(parts, in_shape)
        if self.in_shape is None:
            raise InputError("no part knows the shape of its signals: pass stack(..., in_shape=...)")
        probes = [part.probe(self.in_shape) for part in parts]
        self.shapes: tuple[Shape, ...] = tuple(tuple(probe.shape[1:]) for probe in probes)
        self.complex = tuple(probe.is_complex() for probe in probes)
        self.sizes = [math.prod(shape) for shape in self.shapes]
        if any(part.measured is not None for part in parts):
            masks = [
                torch.ones(shape, device=self.device) if part.measured is None else part.measured.expand(shape)
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
            self.measured = torch.cat([mask.reshape(-1) for mask in masks])

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (sum(self.sizes),)

    def split(self, y: Tensor) -> tuple[Tensor, ...]:
        """y [N, m] as the measurements of the parts, each [N, *its shape] and real where the part's is."""
        if y.ndim != 2 or y.shape[1] != sum(self.sizes):
            raise InputError(f"this stack's measurements have shape [N, {sum(self.sizes)}], got {tuple(y.shape)}")
        pieces = torch.split(y, self.sizes, dim=1)
        return tuple(
            (piece if is_complex or not y.is_complex() else piece.real).reshape(-1, *shape)
            for piece, shape, is_complex in zip(pieces, self.shapes, self.complex, strict=True)
        )

    def __call__(self, x: Tensor) -> Tensor:
        return self._join([part(x) for part in self.parts])

    def _join(self, values: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        flat = [value.flatten(1) for value in values]
        if any(self.complex):
            flat = [v if v.is_complex() else v.to(v.dtype.to_complex()) for v in flat]
        return torch.cat(flat, 1)

    def smooth(self, x: Tensor) -> Tensor:
        return self._join([part.smooth(x) for part in self.parts])

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        values, backs = zip(*(part.linearize(x) for part in self.parts), strict=True)
        return self._join(values), lambda v: sum_of(
            [back(piece) for back, piece in zip(backs, self.split(v), strict=True)]
        )

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return sum_of([part.vjp(x, piece) for part, piece in zip(self.parts, self.split(v), strict=True)])

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._join([part.jvp(x, v) for part in self.parts])


class LinearStack(Stack, Linear):
    """A stack of linear operators."""

    parts: tuple[Linear, ...]

    def adjoint(self, y: Tensor) -> Tensor:
        return sum_of([part.adjoint(piece) for part, piece in zip(self.parts, self.split(y), strict=True)])


class Affine(Operator):
    """(A + b)(x) = A(x) + b, with a known tensor b that broadcasts to one row of y: a background, dark current.

    Made by ``A + b``. :attr:`unveil.Problem.white` moves b to the data, so that solvers of linear problems apply where
    A is linear and the noise Gaussian.
    """

    name = "affine"

    def __init__(self, operator: Operator, offset: Tensor) -> None:
        self.operator = operator
        self.offset = offset.detach()
        self.in_shape = operator.in_shape
        self.measured = operator.measured
        if self.in_shape is not None:
            self.shape_out(self.in_shape)

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        self.operator.check(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        out, shape = self.operator.shape_out(in_shape), tuple(self.offset.shape)
        fits = all(b in (1, n) for b, n in zip(reversed(shape), reversed(out), strict=False))
        if not fits or len(shape) > len(out):
            raise InputError(f"the offset has shape {shape}, the measurement {out}: they must broadcast to the latter")
        return out

    def shape_in(self, out_shape: Shape) -> Shape | None:
        return self.operator.shape_in(out_shape)

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        return self.operator.layouts(y - self.shift(y))

    def shift(self, like: Tensor) -> Tensor:
        """b like ``like`` [N, ...], zero at placeholders."""
        return self.at_data(self.tensor("b", like, lambda: self.offset.cpu()))

    def __call__(self, x: Tensor) -> Tensor:
        y = self.operator(x)
        return y + self.shift(y)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y, back = self.operator.linearize(x)
        return y + self.shift(y), back

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.operator.vjp(x, v)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.operator.jvp(x, v)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "digest": digest(self.offset), "parts": [self.operator.describe()]}


def sum_of(values: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The sum of some tensors of one shape."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def compose(outer: Operator, inner: Operator) -> Operator:
    """``outer @ inner``: x -> outer(inner(x)). y has the placeholders of ``outer``.

    Linear if both are; spectral if both are and ``inner`` selects, as :class:`Grayscale`, :class:`WalshHadamard` and
    down-sampling by averages do.
    """
    if outer.in_shape is not None and inner.in_shape is not None:
        outer.check(inner.shape_out(inner.in_shape))
    merged = outer.merge(inner)
    if merged is None and isinstance(inner, Composed):
        merged = outer.merge(inner.outer)
        merged = None if merged is None else compose(merged, inner.inner)
    if merged is not None:
        return merged
    if isinstance(outer, Spectral) and isinstance(inner, Spectral) and inner.selects:
        return SpectralComposed(outer, inner)
    both = isinstance(outer, Linear) and isinstance(inner, Linear)
    return LinearComposed(outer, inner) if both else Composed(outer, inner)


def add(*parts: Operator) -> Operator:
    """``A + B``: x -> A(x) + B(x); linear if all are. Raises :class:`InputError` if shapes of y differ."""
    return LinearSum(parts) if all(isinstance(part, Linear) for part in parts) else Sum(parts)


def stack(*parts: Operator, in_shape: Shape | None = None) -> Stack:
    """Several instruments looking at one signal: their measurements flattened and concatenated, y [N, m].

    ``.split(y)`` gives them back in their shapes. Linear if all parts are. ``in_shape`` is needed where no
    part knows the shape of its signals. The noise model applies to the joint y.
    """
    linear = all(isinstance(part, Linear) for part in parts)
    return LinearStack(parts, in_shape) if linear else Stack(parts, in_shape)
