"""Functions of rows that do not see each other, some rows at a time, to bound their memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from torch import Tensor

T = TypeVar("T", bound="Tensor | tuple[Tensor, ...]")


def parts(rows: int, size: int | None) -> list[slice]:
    """0..rows-1 in slices of at most ``size``; in one where that is None."""
    size = size or rows
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def in_parts(rows: int, size: int | None, function: Callable[[slice], T]) -> T:
    """What ``function`` makes of a slice of n rows, a tensor [n, ...] or several, for ``rows`` rows.

    It is called with slices of at most ``size`` rows; beside the result, what one call needs is held at a time.
    """
    first, *others = parts(rows, size)
    found = function(first)
    if not others:
        return found
    single = isinstance(found, Tensor)
    whole = tuple(_room(t, rows) for t in _several(found))
    del found
    for part in others:
        for out, t in zip(whole, _several(function(part)), strict=True):
            out[part] = t
    return cast(T, whole[0] if single else whole)


def _room(t: Tensor, rows: int) -> Tensor:
    """Room for ``rows`` rows, of which t [n, ...] are the first."""
    out = t.new_empty(rows, *t.shape[1:])
    out[: t.shape[0]] = t
    return out


def _several(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found
