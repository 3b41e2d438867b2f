"""What an operator is: the deterministic part of a measurement, y = A(x), batch first.

Three promises, each a class: any :class:`Operator` is differentiable; a :class:`Linear` one has an adjoint; a
:class:`Spectral` one has a singular value decomposition that is cheap to apply. Noise is never part of an
operator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import InputError
from ..numerics.lanczos import irregular, largest_eigenvalue
from .layout import Layout, plain

Shape = tuple[int, ...]


class Operator(ABC):
    """A differentiable map from signals [N, *in_shape] to measurements [N, *out_shape].

    ``in_shape`` is None where the operator takes any size. ``measured`` is None when every entry of y carries
    data; else it is a tensor of zeros and ones, broadcastable to ``out_shape``, and the entries under a zero
    are placeholders that are always zero and count neither as data nor in the misfit.
    """

    name: ClassVar[str] = ""
    in_shape: Shape | None = None
    measured: Tensor | None = None

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A(x) for x [N, *in_shape]: [N, *out_shape]."""

    @classmethod
    def example(cls) -> Operator:
        """A small instance whose ``in_shape`` is known, for suites and documentation."""
        raise InputError(f"{cls.__name__} has no example: define the class method example()")

    @property
    def out_shape(self) -> Shape | None:
        """Shape of one measurement, None where ``in_shape`` is."""
        return None if self.in_shape is None else self.shape_out(self.in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        """Shape of the measurement of a signal of ``in_shape`` (no batch axis). Raises if it does not fit."""
        self.check(in_shape)
        return tuple(self.probe(in_shape).shape[1:])

    def probe(self, in_shape: Shape, like: Tensor | None = None) -> Tensor:
        """A(0) [1, *out_shape] for a signal of this shape, in the precision and place of ``like``.

        Without ``like`` those of the operator's own tensors, or what else it takes. Raises :class:`InputError`, naming
        the mend, where it cannot be applied.
        """
        if like is None:
            own = (t.dtype.to_real() for t in self._tensors() if t.is_floating_point() or t.is_complex())
            dtypes = dict.fromkeys((next(own, torch.float32), torch.float32, torch.float64))
            device = self.device
        else:
            dtypes, device = {like.dtype.to_real(): None}, like.device
        errors: list[RuntimeError] = []
        for dtype in dtypes:
            try:
                with torch.no_grad():
                    return self(torch.zeros(1, *in_shape, dtype=dtype, device=device))
            except RuntimeError as error:
                if type(error) is not RuntimeError:  # out of memory, not implemented
                    raise
                errors.append(error)
        tried = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(
            f"{type(self).__name__} cannot be applied to a signal of shape {tuple(in_shape)}, {tried}, on {device}: "
            f"{str(errors[0]).splitlines()[0]}; if its tensors are of another type or elsewhere, convert them as in "
            "self.weights.to(x), or give it data of their kind"
        ) from errors[0]

    def shape_in(self, out_shape: Shape) -> Shape | None:  # noqa: ARG002
        """Shape of the signals that a measurement of ``out_shape`` belongs to, None if not determined."""
        return self.in_shape

    def check(self, in_shape: Shape) -> None:
        """Raise :class:`InputError`, naming the mend, if signals of this shape cannot be measured."""
        if self.in_shape is not None and tuple(in_shape) != tuple(self.in_shape):
            raise InputError(
                f"{type(self).__name__} takes signals of shape {tuple(self.in_shape)}, got {tuple(in_shape)}"
            )

    @property
    def device(self) -> torch.device:
        """The device that the operator's own tensors are on."""
        return next((value.device for value in self._tensors()), torch.device("cpu"))

    def _tensors(self) -> Iterator[Tensor]:
        """The operator's own tensors and those of its parts."""
        for value in self.__getstate__().values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Tensor):
                    yield item
                elif isinstance(item, Operator):
                    yield from item._tensors()

    def tensor(self, key: Hashable, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """``make()`` on the device and in the precision of ``like``, made once and kept.

        For the tensors that an operator needs in every call: ``make`` builds them in double precision on the
        CPU. Real values become the real dtype of ``like``, complex ones its complex partner; integers keep
        their dtype.
        """
        real = like.dtype.to_real()
        cache: dict[Hashable, Tensor] | None = vars(self).get("_cache")
        if cache is None:
            object.__setattr__(self, "_cache", cache := {})
        found = cache.get((key, real, like.device))
        if found is None:
            # made outside any inference mode: what is kept must serve gradients later on
            with torch.inference_mode(False), torch.no_grad():
                value = make()
                if value.is_complex():
                    value = value.to(real.to_complex())
                elif value.is_floating_point():
                    value = value.to(real)
                value = value.to(like.device)
                found = value.clone() if value.is_inference() else value
            cache[key, real, like.device] = found
        return found

    def at_data(self, y: Tensor) -> Tensor:
        """y with zeros at placeholders."""
        measured = self.measured
        return y if measured is None else y * self.tensor("measured", y, lambda: measured)

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        """Arrangements of measurements [N, *out_shape] in which signals leave little and white noise is still white.

        For :func:`~unveil.noise.noise_level`, which believes the lowest. Smooth images, if not said otherwise.
        """
        return (plain(y, self.measured),)

    def __getstate__(self) -> dict[str, Any]:
        """What makes the operator: its attributes without what :meth:`tensor` keeps."""
        return {key: value for key, value in vars(self).items() if key != "_cache"}

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J^T v at x, with J the Jacobian of A; for complex y the real inner product Re<v, dy> is meant."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            (g,) = torch.autograd.grad(self(leaf), leaf, v)
        return g

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:
        """J v at x."""
        slope: Tensor = torch.func.jvp(self.__call__, (x,), (v,))[1]
        return slope

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """A(x) and the map v -> J^T v, for the price of one evaluation; neither carries a graph."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            y = self(leaf)

        def pullback(v: Tensor) -> Tensor:
            (g,) = torch.autograd.grad(y, leaf, v, retain_graph=True)
            return g

        return y.detach(), pullback

    def to(self, device: torch.device | str) -> Operator:
        """The operator with its tensors on ``device`` (itself if they are there)."""
        target = torch.device(device)

        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                parts = tuple(map(move, value))
                return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
            return value.to(target) if isinstance(value, Tensor | Operator) else value

        state = self.__getstate__()
        moved = {key: move(value) for key, value in state.items()}
        if all(moved[key] is value for key, value in state.items()):
            return self
        other = object.__new__(type(self))
        vars(other).update(moved)
        return other

    def __matmul__(self, other: Operator) -> Operator:
        """Composition: (A @ B)(x) = A(B(x))."""
        from .combine import compose

        return compose(self, other)

    def merge(self, inner: Operator) -> Operator | None:  # noqa: ARG002
        """One operator that does what ``self @ inner`` does, with a spectral form that a composition would lose.

        None if there is none. :func:`~unveil.operators.combine.compose` asks for it.
        """
        return None

    def __add__(self, other: Operator | Tensor) -> Operator:
        """Sum: (A + B)(x) = A(x) + B(x); with a tensor b, shaped as one row of y, (A + b)(x) = A(x) + b."""
        from .combine import Affine, add

        return Affine(self, other) if isinstance(other, Tensor) else add(self, other)

    def smooth(self, x: Tensor) -> Tensor:
        """A(x) without rounding, which has no derivative: what :meth:`vjp` and :meth:`jvp` belong to.

        A(x) itself for operators that round nothing.
        """
        return self(x)

    def describe(self) -> dict[str, Any]:
        """What a recipe records of the operator: its name and a digest of its tensors."""
        from ..io.digest import digest

        return {"name": self.name or type(self).__name__, "digest": digest(self.__getstate__())}


@runtime_checkable
class Invertible(Protocol):
    """An operator, linear or not, with a generalised inverse."""

    def pinv(self, y: Tensor) -> Tensor:
        """Signals [N, *in_shape] of measurements [N, *out_shape], with A(pinv(A(x))) = A(x)."""


class Linear(Operator):
    """A linear operator. The default adjoint is the exact transpose, by automatic differentiation."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y (A^H for complex y) for y [N, *out_shape]: [N, *in_shape]."""
        shape = self.shape_in(tuple(y.shape[1:]))
        if shape is None:
            raise InputError(
                f"{type(self).__name__} does not know the shape of its signals: give it in_shape, or define adjoint"
            )
        x = torch.zeros(y.shape[0], *shape, device=y.device, dtype=y.real.dtype if y.is_complex() else y.dtype)
        return Operator.vjp(self, x, y)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return self.adjoint(v)

    def jvp(self, x: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        return self(v)

    def linearize(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self(x), self.adjoint

    def normal(self, x: Tensor) -> Tensor:
        """A^T A x."""
        return self.adjoint(self(x))

    def gram(self, y: Tensor) -> Tensor:
        """A A^T y."""
        return self(self.adjoint(y))

    def norm(self, like: Tensor) -> Tensor:
        """|A|, the largest singular value for signals [N, *in_shape] of the kind of ``like``: one number, as a tensor.

        To 1e-3 or better, from A and its adjoint. Found once and kept, but for operators whose tensors need a gradient.
        """

        def make() -> Tensor:
            return torch.tensor(self._norm(like), dtype=torch.float64)

        if any(t.requires_grad for t in self._tensors()):
            with torch.no_grad():
                return make().to(like)
        return self.tensor(("norm", tuple(like.shape[1:])), like, make)

    def _norm(self, like: Tensor) -> float:
        return math.sqrt(largest_eigenvalue(self.normal, irregular(like)))


class Spectral(Linear):
    """A linear operator with a cheap singular value decomposition A = U diag(s) V^T.

    ``Vt`` turns signals [N, *in_shape] into spectral coordinates and ``V`` is its inverse; V is orthogonal
    (unitary). ``Ut`` turns measurements into the *same* coordinates (zero where s is zero) and ``U`` is its
    adjoint. ``s(c)`` gives the singular values that belong to coordinates c, whatever their size, dtype and
    device. Zero marks directions that A does not see; so do values below ``rtol`` times the largest, whose
    inverse would turn the rounding of single precision into signal. Coordinates are real and have the shape of
    the signal for all operators of this library.

    ``selects`` says that the measurement is some of the coordinates, all with one singular value and in any order,
    so that A @ selection is spectral for every spectral A (:class:`~unveil.operators.combine.SpectralComposed`).
    """

    rtol: float = 1e-6
    selects: bool = False

    @abstractmethod
    def s(self, c: Tensor) -> Tensor:
        """Singular values >= 0, real, broadcastable to the coordinates c [N, ...] of ``Vt`` or ``Ut``."""

    @abstractmethod
    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        """Spectral coordinates V^T x of signals."""

    @abstractmethod
    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        """The signals of spectral coordinates."""

    @abstractmethod
    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        """U^T y, in the coordinates of ``Vt``."""

    @abstractmethod
    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        """The measurement whose coordinates are c (those where s = 0 are ignored)."""

    def __call__(self, x: Tensor) -> Tensor:
        c = self.Vt(x)
        return self.U(self.s(c) * c)

    def adjoint(self, y: Tensor) -> Tensor:
        c = self.Ut(y)
        return self.V(self.s(c) * c)

    def spectral(self, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """V f(s) V^T x: a function of A^T A applied to a signal; ``f`` maps singular values to gains."""
        c = self.Vt(x)
        return self.V(f(self.s(c)) * c)

    def _norm(self, like: Tensor) -> float:
        return float(self.s(self.Vt(torch.zeros_like(like[:1]))).amax())

    def back(self, y: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """V f(s) U^T y: to signals by gains ``f`` of singular values, which have as many axes as coordinates."""
        c = self.Ut(y)
        s = self.s(c)
        return self.V(f(s.reshape(*[1] * (c.ndim - s.ndim), *s.shape)) * c)

    def update(self, v: Tensor, y: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """v + V f(s) U^T (y - A v): a signal drawn to the data by gains ``f`` of singular values."""
        return v + self.back(y - self(v), f)

    def s_inv(self, c: Tensor) -> Tensor:
        """1/s(c), and 0 where s is 0."""
        return reciprocal(self.s(c))

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the least-squares solution of least norm."""
        return self.back(y, reciprocal)

    def _truncated(self, s: Tensor) -> Tensor:
        """``s`` with the values below ``rtol`` times the largest set to zero."""
        return torch.where(s > self.rtol * s.max(), s, 0)


def broadcasts(shape: Shape, onto: Shape) -> bool:
    """Whether a tensor of ``shape`` broadcasts to one of shape ``onto``."""
    fits = all(m in (1, n) for m, n in zip(reversed(shape), reversed(onto), strict=False))
    return fits and len(shape) <= len(onto)


def reciprocal(s: Tensor) -> Tensor:
    """1 / s, and 0 where s is 0."""
    return torch.where(s > 0, 1 / torch.where(s > 0, s, 1), 0)


class Parametric(Operator):
    """An operator with parameters that may be unknown: ``parameters`` names them, ``bind`` gives them values.

    A bound tensor keeps its graph: y is differentiable with respect to it. One that was given to the constructor is a
    guess, or the truth where it is known.
    """

    parameters: ClassVar[tuple[str, ...]] = ()

    def bind(self, **parameters: Tensor) -> Parametric:
        """The operator with these parameters in place of its own.

        Raises :class:`InputError` for unknown names, and for values that are not finite. Those that carry a graph, as
        in every step of an optimisation, are not looked at, since a GPU would be waited for.
        """
        for name, value in parameters.items():
            if name not in self.parameters:
                raise InputError(
                    f"{type(self).__name__} has no parameter '{name}': it has {', '.join(self.parameters)}"
                )
            if not value.requires_grad and not bool(torch.isfinite(value).all()):
                raise InputError(f"{type(self).__name__}: {name} holds NaN or infinite values: was a step too long?")
        other = object.__new__(type(self))
        vars(other).update(self.__getstate__())
        vars(other).update(parameters)
        return other
