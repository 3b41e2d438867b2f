"""Forward models of other packages as operators: ``as_operator(thing)``.

deepinv's ``Physics``, SciPy's and PyLops's ``LinearOperator``, CUQIpy's ``Model``, sigpy's ``Linop``, and any function
y = f(x) of tensors. None of the packages is needed here: things are known by what they can do.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .base import Linear, Operator, Shape
from .fourier import to_complex, to_real
from .rays import transposable

Map = Callable[[Any], Any]


def as_operator(
    thing: Any,
    in_shape: Shape | None = None,
    *,
    out_shape: Shape | None = None,
    linear: bool = False,
    adjoint: Map | None = None,
) -> Operator:
    """An operator that does what ``thing`` does.

    Parameters
    ----------
    thing:
        A deepinv Physics (its noise is left out), SciPy or PyLops LinearOperator, CUQIpy Model, sigpy Linop, or a
        function of tensors [N, *in_shape] that torch can differentiate.
    in_shape:
        Shape of one signal; the package's own, where it says one. Complex signals are [2, ...], real and imaginary
        part: say so with twice as many entries as the thing takes.
    out_shape:
        Shape of one measurement; the package's own, or flat.
    linear, adjoint:
        Of a function: whether it is linear, and its adjoint if that is not to be found by automatic differentiation.

    Raises :class:`InputError` for other things, and where a shape is missing or does not fit.
    """
    roots = {c.__module__.partition(".")[0] for c in type(thing).__mro__}
    if "deepinv" in roots:
        return _deepinv(thing, in_shape)
    if "cuqi" in roots:
        return _cuqi(thing, in_shape, out_shape)
    if hasattr(thing, "ishape") and hasattr(thing, "oshape"):
        return _sigpy(thing, in_shape)
    if hasattr(thing, "matvec") and hasattr(thing, "rmatvec"):
        return _scipy(thing, in_shape, out_shape)
    if not callable(thing):
        raise InputError(f"{type(thing).__name__} is no forward model: bring a function y = f(x), or an Operator")
    return Linearly(thing, in_shape, adjoint) if linear or adjoint is not None else Function(thing, in_shape)


# -- the packages --------------------------------------------------------------------------------------------------


def _deepinv(physics: Any, in_shape: Shape | None) -> Operator:
    if in_shape is None:
        in_shape = getattr(physics, "img_size", None) or getattr(physics, "tensor_size", None)
    if hasattr(physics, "A_adjoint"):
        return Linearly(physics, in_shape, physics.A_adjoint, ("A", "A_adjoint"))
    return Function(physics, in_shape, ("A",))


def _scipy(op: Any, in_shape: Shape | None, out_shape: Shape | None) -> Operator:
    m, n = op.shape
    inside, outside = getattr(op, "dims", None) or (n,), getattr(op, "dimsd", None) or (m,)
    return Numpy(op, op.matvec, op.rmatvec, ((n,), (m,)), in_shape or _tuple(inside), out_shape or _tuple(outside))


def _sigpy(linop: Any, in_shape: Shape | None) -> Operator:
    shape, out = _tuple(linop.ishape), _tuple(linop.oshape)
    return Numpy(linop, linop, linop.H, (shape, out), in_shape or (2, *shape), out)


def _cuqi(model: Any, in_shape: Shape | None, out_shape: Shape | None) -> Operator:
    n, m = int(model.domain_dim), int(model.range_dim)
    inside, outside = in_shape or (n,), out_shape or (m,)
    if hasattr(model, "adjoint"):
        return Numpy(model, model.forward, model.adjoint, ((n,), (m,)), inside, outside)
    return Nonlinear(model, model.forward, model.gradient, (n,), inside, outside)


# -- torch ---------------------------------------------------------------------------------------------------------


class Function(Operator):
    """y = f(x) for a function or module of tensors [N, *in_shape]; ``parts`` name its methods, if it is not called."""

    name = "function"

    def __init__(self, thing: Any, in_shape: Shape | None = None, parts: tuple[str, ...] = ()) -> None:
        self.thing, self.parts = thing, parts
        self.in_shape = None if in_shape is None else _tuple(in_shape)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        y: Tensor = (getattr(self.thing, self.parts[0]) if self.parts else self.thing)(x)
        if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
            made = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise InputError(f"the function must turn a batch [N, ...] of signals into one of measurements, got {made}")
        return y

    def to(self, device: torch.device | str) -> Operator:
        if not isinstance(self.thing, torch.nn.Module):
            return super().to(device)
        other = copy.copy(self)
        other.thing = copy.deepcopy(self.thing).to(device)
        return other

    def describe(self) -> dict[str, Any]:
        return _described(self, self.thing)


class Linearly(Function, Linear):
    """A linear function of tensors; its adjoint is given, or the exact transpose by automatic differentiation."""

    def __init__(
        self, thing: Any, in_shape: Shape | None = None, adjoint: Map | None = None, parts: tuple[str, ...] = ()
    ) -> None:
        super().__init__(thing, in_shape, parts)
        self.back = None if parts else adjoint

    def adjoint(self, y: Tensor) -> Tensor:
        if not self.parts and self.back is None:
            return Linear.adjoint(self, y)
        x: Tensor = (getattr(self.thing, self.parts[1]) if self.parts else self.back)(y)  # type: ignore[misc]
        return x


# -- numpy ---------------------------------------------------------------------------------------------------------


class Numpy(Linear):
    """A linear map of numpy arrays, one signal at a time: ``forward`` and its adjoint ``back``.

    ``shapes`` are what ``forward`` takes and gives; a signal of twice as many entries, [2, ...], is complex.
    """

    name = "numpy"

    def __init__(
        self, thing: Any, forward: Map, back: Map, shapes: tuple[Shape, Shape], in_shape: Shape, out_shape: Shape
    ) -> None:
        self.thing, self.forward, self.back, self.shapes = thing, forward, back, shapes
        self.in_shape: Shape = _tuple(in_shape)
        self.measured_shape = _tuple(out_shape)
        if math.prod(self.measured_shape) != math.prod(shapes[1]):
            raise InputError(
                f"{type(thing).__name__} gives {math.prod(shapes[1])} values, got out_shape {self.measured_shape}"
            )
        have, want = math.prod(self.in_shape), math.prod(shapes[0])
        self.complex_signal = have == 2 * want and self.in_shape[0] == 2
        if have != want and not self.complex_signal:
            raise InputError(
                f"{type(thing).__name__} takes {want} values: in_shape of as many, or [2, ...] of twice as many for "
                f"complex signals, got {self.in_shape}"
            )

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return self.measured_shape

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return transposable(x, self._there, self._home)

    def adjoint(self, y: Tensor) -> Tensor:
        return transposable(y, self._home, self._there)

    def _there(self, x: Tensor) -> Tensor:
        z = to_complex(x) if self.complex_signal else x
        rows = [_numpy(self.forward(_array(r).reshape(self.shapes[0]))) for r in z]
        return _tensor(rows, x).reshape(x.shape[0], *self.measured_shape)

    def _home(self, y: Tensor) -> Tensor:
        rows = [_numpy(self.back(_array(r).reshape(self.shapes[1]))) for r in y]
        z = _tensor(rows, y)
        if self.complex_signal:
            z = z if z.is_complex() else z.to(z.dtype.to_complex())
            return to_real(z.reshape(y.shape[0], *self.in_shape[1:]))
        return (z.real if z.is_complex() else z).reshape(y.shape[0], *self.in_shape)

    def describe(self) -> dict[str, Any]:
        return _described(self, self.thing)


class Nonlinear(Operator):
    """A map of numpy arrays that is not linear: ``forward`` and ``gradient(v, x)`` = J(x)^T v; J by differences."""

    name = "numpy-nonlinear"

    def __init__(
        self, thing: Any, forward: Map, gradient: Any, shape: Shape, in_shape: Shape, out_shape: Shape
    ) -> None:
        self.thing, self.forward, self.gradient = thing, forward, gradient
        self.in_shape: Shape = _tuple(in_shape)
        self.shape, self.measured_shape = shape, _tuple(out_shape)
        if math.prod(self.in_shape) != math.prod(shape):
            raise InputError(f"{type(thing).__name__} takes {math.prod(shape)} values, got in_shape {self.in_shape}")

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return self.measured_shape

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))

        def there(x: Tensor) -> Tensor:
            rows = [_numpy(self.forward(_array(r).reshape(self.shape))) for r in x]
            return _tensor(rows, x).reshape(x.shape[0], *self.measured_shape)

        return _Differentiable.apply(x, there, self._pulled)  # type: ignore[no-untyped-call,no-any-return]

    def _pulled(self, x: Tensor, v: Tensor) -> Tensor:
        try:
            rows = [
                _numpy(self.gradient(_array(w).reshape(-1), _array(r).reshape(self.shape)))
                for r, w in zip(x, v, strict=True)
            ]
        except NotImplementedError as error:
            raise InputError(f"{type(self.thing).__name__} has no gradient: give it one ({error})") from None
        return _tensor(rows, x).reshape(x.shape)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """J v at x by central differences."""
        h = 1e-5 if x.dtype == torch.float64 else 1e-3
        return (self(x + h * v) - self(x - h * v)) / (2 * h)

    def describe(self) -> dict[str, Any]:
        return _described(self, self.thing)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], pulled: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pulled = pulled
        return there(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pulled(ctx.saved_tensors[0], v), None, None


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().resolve_conj().numpy()


def _numpy(found: Any) -> np.ndarray:
    """What a package gives back, as an array; CUQIpy's keep their values inside."""
    return np.asarray(found.to_numpy() if hasattr(found, "to_numpy") else found)


def _tensor(rows: list[np.ndarray], like: Tensor) -> Tensor:
    """In the precision and place of ``like``."""
    found = torch.from_numpy(np.stack(rows))
    real = like.dtype.to_real()
    return found.to(like.device, real.to_complex() if found.is_complex() else real)


def _tuple(shape: Any) -> Shape:
    return tuple(int(n) for n in (shape if np.ndim(shape) else (shape,)))


def _described(operator: Operator, thing: Any) -> dict[str, Any]:
    """A name, and a digest of what it makes of a fixed signal: the thing itself cannot be looked into."""
    from ..io.digest import digest

    name = getattr(thing, "__name__", type(thing).__name__)
    if operator.in_shape is None:
        return {"name": f"{operator.name}: {name}", "digest": ""}
    x = torch.rand(1, *operator.in_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = operator(x.to(operator.device)).cpu()
    return {"name": f"{operator.name}: {name}", "digest": digest(y)}
