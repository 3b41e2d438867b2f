"""What values the options of a solver may have: by their types, and by what a solver or its family declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..errors import InputError

USUAL = {
    "eta": "[0, 1]",
    "sigma_end": "(0, inf)",
    "sigma_start": "(0, inf]",
    "sigma_min": "(0, inf)",
    "order": "[1, 2]",
}
"""Options that mean the same in all solvers; of others, counts begin at 1 and numbers at 0."""

_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a word"}


def limit_of(option: str, kind: str, declared: Mapping[str, str]) -> str:
    """The interval of a number, as in "[0, 1)"."""
    by_kind = "[0, 1)" if kind.startswith("tuple") else "[1, inf)" if kind == "int" else "[0, inf]"
    return declared.get(option, USUAL.get(option, by_kind))


def interval(solver: Any, option: str) -> tuple[float, float]:
    """The ends of what an option of a solver takes, whether it takes these or not."""
    return _ends(limit_of(option, _kinds(solver)[option], solver.limits))


def check_options(solver: Any, declared: Mapping[str, str]) -> None:
    """Raise :class:`InputError` where an option is of another type, or outside of its interval; NaN is in none."""
    name = solver.name or type(solver).__name__
    for option, kind in _kinds(solver).items():
        value = getattr(solver, option)
        if kind.endswith(" | None"):
            kind = kind.removesuffix(" | None")
            if value is None:
                continue
        numbers = tuple(value) if kind == "tuple[float, float]" and isinstance(value, tuple | list) else (value,)
        if kind == "tuple[float, float]":
            right = len(numbers) == 2 and all(_is("float", v) for v in numbers)
        else:
            right = _is(kind, value)
        if not right:
            raise InputError(f"{name}: {option} is {_KINDS.get(kind, 'two numbers')}, got {value!r}")
        if kind in ("int", "float", "tuple[float, float]"):
            limit = limit_of(option, kind, declared)
            if not all(_inside(v, limit) for v in numbers):
                raise InputError(f"{name} needs {option} in {limit}, got {value}")


def _kinds(solver: Any) -> dict[str, str]:
    """The types of the options, in words of Python."""
    return {
        f.name: f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        for f in dataclasses.fields(solver)
    }


def _is(kind: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    known = {
        "bool": isinstance(value, bool),
        "int": number and isinstance(value, int),
        "float": number,
        "str": isinstance(value, str),
    }
    return known.get(kind, True)


def _inside(value: float, limit: str) -> bool:
    low, high = _ends(limit)
    return (low <= value if limit[0] == "[" else low < value) and (value <= high if limit[-1] == "]" else value < high)


def _ends(limit: str) -> tuple[float, float]:
    low, high = (float(end) for end in limit[1:-1].split(","))
    return low, high
