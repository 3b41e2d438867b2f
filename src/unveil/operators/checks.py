"""What every operator promises, as checks that measure an error and raise AssertionError if it is too large.

``check_operator`` runs all that apply; the test suite and the command ``unveil check`` use it on any
operator. Numbers are relative errors in double precision. The limits leave room for operators that compute in
single precision inside, and none for a wrong factor.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .base import Linear, Operator, Parametric, Shape, Spectral

LIMIT = 1e-5
ADJOINT = 1e-6
"""Of the dot-product test, which no finite difference blurs."""

Check = Callable[[Any, Shape | None], float]


def check_operator(operator: Operator, in_shape: Shape | None = None) -> list[tuple[str, float]]:
    """Run every check that applies to ``operator``: names and measured errors, in order.

    ``in_shape`` is the shape of one signal, if the operator does not know it; keep it small.
    Raises AssertionError at the first promise that is broken, :class:`InputError` if no shape is known.
    """
    checks: list[Check] = [
        check_shapes,
        check_dtype,
        check_deterministic,
        check_batch,
        check_vjp,
        check_jvp,
        check_placeholders,
    ]
    if isinstance(operator, Parametric):
        checks += [check_parameters]
    if callable(getattr(operator, "pinv", None)) and not isinstance(operator, Linear):
        checks += [check_generalised_inverse]
    if isinstance(operator, Linear):
        checks += [check_linearity, check_adjoint]
    if isinstance(operator, Spectral):
        checks += [check_v, check_u, check_decomposition, check_pinv]
        checks += [check_selects] if operator.selects else []
    return [(check.__name__.removeprefix("check_"), check(operator, in_shape)) for check in checks]


# -- every operator ---------------------------------------------------------------------------------------


def check_shapes(operator: Operator, in_shape: Shape | None = None) -> float:
    """``shape_out`` says the shape of y, ``shape_in`` leads back (or is None), others are refused."""
    x = _signals(operator, in_shape)
    shape = tuple(x.shape[1:])
    out = tuple(operator(x).shape)
    said = operator.shape_out(shape)
    _demand(operator, out == (x.shape[0], *said), f"y has shape {out}, shape_out says [N, {said}]")
    back = operator.shape_in(said)
    _demand(operator, back in (None, shape), f"shape_in({said}) is {back}, the signal has {shape}")
    if operator.in_shape is not None:
        _demand(operator, tuple(operator.in_shape) == shape, f"in_shape is {operator.in_shape}, not {shape}")
        try:
            operator.check((*shape, 2))
        except InputError:
            return 0.0
        raise AssertionError(f"{_name(operator)}: in_shape is {shape}, but check() accepts {(*shape, 2)}")
    return 0.0


def check_dtype(operator: Operator, in_shape: Shape | None = None) -> float:
    """Single stays single and double stays double, and both give the same numbers."""
    x = _signals(operator, in_shape)
    results: list[list[Tensor]] = []
    for dtype in (torch.float32, torch.float64):
        try:
            operator.probe(tuple(x.shape[1:]), x.to(dtype))
        except InputError as error:
            raise AssertionError(f"{_name(operator)}: {error}") from error
        y = operator(x.to(dtype))
        outputs = {"y": y, "vjp": operator.vjp(x.to(dtype), torch.ones_like(y))}
        if isinstance(operator, Linear):
            outputs["adjoint"] = operator.adjoint(torch.ones_like(y))
        if isinstance(operator, Spectral):
            c = operator.Vt(x.to(dtype))
            outputs |= {
                "Vt": c,
                "s": operator.s(c),
                "V": operator.V(c),
                "Ut": operator.Ut(y),
                "U": operator.U(c),
            }
        for part, value in outputs.items():
            real = value.real.dtype if value.is_complex() else value.dtype
            _demand(operator, real == dtype, f"{part} of a {dtype} signal is {value.dtype}")
        results.append(list(outputs.values()))
    # vjp of a non-linear operator may be steep: only values are compared for those
    return _bound(operator, "single against double precision", _distance(results[0][0], results[1][0]), 1e-4)


def check_deterministic(operator: Operator, in_shape: Shape | None = None) -> float:
    """The same signal gives the same bits, it is left alone, and so is the global random state."""
    x = _signals(operator, in_shape)
    kept = x.clone()
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    first, second = operator(x), operator(x)
    after = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002
    _demand(operator, torch.equal(first, second), "two calls with the same signal differ")
    _demand(operator, torch.equal(x, kept), "the call changed its argument")
    same = torch.equal(before[0], after[0]) and before[1] == after[1]
    _demand(operator, same, "the call used the global random state: use a generator of its own")
    return 0.0


def check_batch(operator: Operator, in_shape: Shape | None = None) -> float:
    """A row's result does not depend on who shares its batch; nor do its gradient and its adjoint."""
    x = _signals(operator, in_shape)
    other = torch.cat([x[:1], 2 - 3 * x[1:].flip(0), x[:1]])
    y, y_other = operator(x), operator(other)
    error = max(_distance(y_other[:1], y[:1]), _distance(operator(x[:1]), y[:1]))
    v, v_other = _like(y), _like(y_other, seed=3)
    v_other[0] = v[0]
    error = max(error, _distance(operator.vjp(other, v_other)[:1], operator.vjp(x, v)[:1]))
    if isinstance(operator, Linear):
        error = max(error, _distance(operator.adjoint(v_other)[:1], operator.adjoint(v)[:1]))
    return _bound(operator, "rows of a batch influence each other", error)


def check_vjp(operator: Operator, in_shape: Shape | None = None) -> float:
    """<v, J d> by central differences agrees with <J^T v, d>, and ``linearize`` with ``vjp``."""
    x = _signals(operator, in_shape)
    d = _like(x, seed=1)
    y, pullback = operator.linearize(x)
    v = _like(y, seed=2)
    g = operator.vjp(x, v)
    _demand(
        operator,
        not y.requires_grad and not g.requires_grad,
        "linearize or vjp returns a tensor with a graph",
    )
    slope = _slope(operator, x, d)
    scale = _norm(v) * _norm(slope) + _norm(g) * _norm(d)
    error = float(((_dot(v, slope) - _dot(g, d)).abs() / scale).max())
    error = max(error, _distance(y, operator(x)), _distance(pullback(v), g))
    return _bound(operator, "vjp against finite differences", error)


def check_jvp(operator: Operator, in_shape: Shape | None = None) -> float:
    """J d by central differences agrees with ``jvp``."""
    x = _signals(operator, in_shape)
    d = _like(x, seed=1)
    return _bound(operator, "jvp against finite differences", _distance(operator.jvp(x, d), _slope(operator, x, d)))


def check_placeholders(operator: Operator, in_shape: Shape | None = None) -> float:
    """``measured`` holds zeros and ones, broadcasts to y, and y is zero where it is."""
    measured = operator.measured
    if measured is None:
        return 0.0
    y = operator(_signals(operator, in_shape))
    _demand(operator, bool(((measured == 0) | (measured == 1)).all()), "measured holds other values than 0 and 1")
    try:
        measured = measured.expand(y.shape[1:])
    except RuntimeError:
        text = f"measured {tuple(measured.shape)} does not broadcast to y {tuple(y.shape[1:])}"
        raise AssertionError(f"{_name(operator)}: {text}") from None
    return _bound(operator, "y is not zero at placeholders", float((y * (measured == 0)).abs().max()), 0.0)


def check_parameters(operator: Parametric, in_shape: Shape | None = None) -> float:
    """``bind`` with its own parameters changes nothing, and y has a derivative with respect to each."""
    x = _signals(operator, in_shape)
    y = operator(x)
    worst = 0.0
    for name in operator.parameters:
        value = getattr(operator, name).detach()
        value = value.to(torch.complex128 if value.is_complex() else torch.float64)
        worst = max(worst, _distance(operator.bind(**{name: value})(x), y))
        d, h = _like(value, seed=4), 1e-5
        leaf = value.clone().requires_grad_(True)
        ahead, behind = (operator.bind(**{name: value + t * d}).smooth(x) for t in (h, -h))
        v = _like(y, seed=5)
        (g,) = torch.autograd.grad(operator.bind(**{name: leaf})(x), leaf, v)
        expected = float(_dot(v, (ahead - behind) / (2 * h)).sum())
        got = float(_dot(g.reshape(1, -1), d.reshape(1, -1)))
        worst = max(worst, abs(got - expected) / max(abs(expected), 1e-30))
    try:
        operator.bind(no_such_parameter=torch.zeros(()))
    except InputError:
        return _bound(operator, "its parameters", worst)
    raise AssertionError(f"{_name(operator)}: bind takes a parameter that it does not have")


def check_generalised_inverse(operator: Any, in_shape: Shape | None = None) -> float:
    """A(pinv(A(x))) = A(x) for an operator that is not linear."""
    y = operator(_signals(operator, in_shape))
    return _bound(operator, "A(pinv(y)) = y for y = A(x)", _distance(operator(operator.pinv(y)), y))


# -- linear operators -------------------------------------------------------------------------------------


def check_linearity(operator: Linear, in_shape: Shape | None = None) -> float:
    """A(a x + b z) = a A(x) + b A(z)."""
    x = _signals(operator, in_shape)
    z = _like(x, seed=1)
    return _bound(operator, "linearity", _distance(operator(2 * x - 3 * z), 2 * operator(x) - 3 * operator(z)))


def check_adjoint(operator: Linear, in_shape: Shape | None = None) -> float:
    """Re<A x, y> = Re<x, A^T y> per row, also for measurements that are complex; and A^T is linear."""
    x = _like(_signals(operator, in_shape), seed=1)
    ax = operator(x)
    y, z = _like(ax, seed=2), _like(ax, seed=3)
    aty = operator.adjoint(y)
    _demand(operator, aty.shape == x.shape, f"adjoint gives {tuple(aty.shape)}, the signals have {tuple(x.shape)}")
    _demand(operator, not aty.is_complex(), "adjoint of a real signal's operator must be real: take the real part")
    scale = _norm(ax) * _norm(y) + _norm(x) * _norm(aty)
    error = float(((_dot(ax, y) - _dot(x, aty)).abs() / scale).max())
    error = max(error, _distance(operator.adjoint(2 * y - 3 * z), 2 * aty - 3 * operator.adjoint(z)))
    return _bound(operator, "adjoint test <Ax, y> = <x, A'y>", error, ADJOINT)


# -- spectral operators -----------------------------------------------------------------------------------


def check_v(operator: Spectral, in_shape: Shape | None = None) -> float:
    """V is orthogonal: its transpose is its inverse from both sides, and lengths are kept."""
    x = _like(_signals(operator, in_shape), seed=1)
    c = operator.Vt(x)
    e = operator.Vt(_like(x, seed=2)) if c.is_complex() else _like(c, seed=2)
    error = max(
        _distance(operator.V(c), x),
        _distance(operator.Vt(operator.V(e)), e),
        float((_norm(c) / _norm(x) - 1).abs().max()) if not c.is_complex() else 0.0,
        float(((_dot(c, e) - _dot(x, operator.V(e))).abs() / (_norm(c) * _norm(e))).max())
        if not c.is_complex()
        else 0.0,
    )
    return _bound(operator, "V is not orthogonal", error)


def check_u(operator: Spectral, in_shape: Shape | None = None) -> float:
    """U is orthonormal where s > 0 and ignores the rest, where Ut is zero; Ut is U's adjoint."""
    x = _like(_signals(operator, in_shape), seed=1)
    c = operator.Vt(x)
    s = operator.s(c)
    _demand(operator, not s.is_complex() and bool((s >= 0).all()), "s must be real and not negative")
    try:
        seen = (s > 0).expand(c.shape[1:]).to(s.dtype)
    except RuntimeError:
        text = f"s {tuple(s.shape)} does not broadcast to coordinates {tuple(c.shape[1:])}"
        raise AssertionError(f"{_name(operator)}: {text}") from None
    y = _like(operator(x), seed=2)
    uty, uc = operator.Ut(y), operator.U(c)
    _demand(operator, uty.shape == c.shape, f"Ut gives {tuple(uty.shape)}, Vt gives {tuple(c.shape)}")
    error = max(_distance(operator.Ut(uc), c * seen), _distance(uty * seen, uty), _distance(operator.U(c * seen), uc))
    if not c.is_complex():
        error = max(error, float(((_dot(uc, y) - _dot(c, uty)).abs() / (_norm(c) * _norm(y))).max()))
    return _bound(operator, "U is not orthogonal", error)


def check_decomposition(operator: Spectral, in_shape: Shape | None = None) -> float:
    """A = U s V^T and A^T = V s U^T, up to the singular values that ``rtol`` drops."""
    x = _like(_signals(operator, in_shape), seed=1)
    y = operator(x)
    z = _like(y, seed=2)
    c, e = operator.Vt(x), operator.Ut(z)
    error = max(
        _distance(operator.U(operator.s(c) * c), y),
        _distance(operator.V(operator.s(e) * e), operator.adjoint(z)),
    )
    return _bound(operator, "A = U s V^T", error, LIMIT + 2 * operator.rtol)


def check_pinv(operator: Spectral, in_shape: Shape | None = None) -> float:
    """The four Moore-Penrose conditions of ``pinv``: A P A = A, P A P = P, A P and P A symmetric."""
    x, z = (_like(_signals(operator, in_shape), seed=seed) for seed in (1, 2))
    y = operator(x)
    w, v = _like(y, seed=3), _like(y, seed=4)
    px, pz = operator.pinv(y), operator.pinv(operator(z))
    pw, apw, apv = operator.pinv(w), operator(operator.pinv(w)), operator(operator.pinv(v))
    error = max(
        _distance(operator(px), y),
        _distance(operator.pinv(apw), pw),
        float(((_dot(apw, v) - _dot(w, apv)).abs() / (_norm(w) * _norm(v))).max()),
        float(((_dot(px, z) - _dot(x, pz)).abs() / (_norm(x) * _norm(z))).max()),
    )
    return _bound(operator, "pinv is not the Moore-Penrose inverse", error, 1e-4)


def check_selects(operator: Spectral, in_shape: Shape | None = None) -> float:
    """y is some of the coordinates, each entry one of them, all with one singular value (``selects``)."""
    c = operator.Vt(_like(_signals(operator, in_shape), seed=1))
    e, y = _like(c, seed=2), _like(operator.U(c), seed=3)
    s = operator.s(c).expand(c.shape[1:])
    one = float((s[s > 0] / s.max() - 1).abs().max())
    # a linear map that keeps products of entries picks them
    error = max(
        one, _distance(operator.U(c * e), operator.U(c) * operator.U(e)), _distance(operator.U(operator.Ut(y)), y)
    )
    return _bound(operator, "it does not select", error)


# -- tools ------------------------------------------------------------------------------------------------


def _signals(operator: Operator, in_shape: Shape | None) -> Tensor:
    """Three signals around the middle of [0, 1], float64."""
    shape = operator.in_shape if in_shape is None else in_shape
    if shape is None:
        raise InputError(f"{type(operator).__name__} takes any size: say the shape of one signal, as (3, 16, 16)")
    g = torch.Generator().manual_seed(0)
    x = 0.5 + 0.25 * torch.randn((3, *shape), generator=g, dtype=torch.float64)
    return x.to(operator.device)


def _like(t: Tensor, seed: int = 0) -> Tensor:
    """Normal values in the shape, dtype and place of ``t``."""
    g = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(t.shape, generator=g, dtype=t.dtype).to(t.device)


def _slope(operator: Operator, x: Tensor, d: Tensor, h: float = 1e-5) -> Tensor:
    with torch.no_grad():
        return (operator.smooth(x + h * d) - operator.smooth(x - h * d)) / (2 * h)


def _flat(t: Tensor) -> Tensor:
    return torch.view_as_real(t).flatten(1) if t.is_complex() else t.flatten(1)


def _dot(u: Tensor, v: Tensor) -> Tensor:
    return (_flat(u) * _flat(v)).sum(1)


def _norm(u: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(_flat(u), dim=1)
    return norm.clamp(min=1e-30)


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest distance of rows of ``a`` and ``b``, relative to their lengths; NaN counts as infinite."""
    if a.shape != b.shape:
        return float("inf")
    error = float((torch.linalg.vector_norm(_flat(a) - _flat(b), dim=1) / torch.maximum(_norm(a), _norm(b))).max())
    return float("inf") if math.isnan(error) else error


def _name(operator: Operator) -> str:
    return operator.name or type(operator).__name__


def _demand(operator: Operator, fulfilled: bool, text: str) -> None:
    if not fulfilled:
        raise AssertionError(f"{_name(operator)}: {text}")


def _bound(operator: Operator, text: str, error: Any, limit: float = LIMIT) -> float:
    if not error <= limit:
        raise AssertionError(f"{_name(operator)}: {text}: relative error {error:.3g}, at most {limit:.0e} is allowed")
    return float(error)
