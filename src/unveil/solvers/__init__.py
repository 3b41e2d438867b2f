"""The solvers, one file per method, one folder per family."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import InputError, unknown
from ..registry import lookup, names, ship
from . import decoupled, explicit, smc, variational
from .auto import Choice, choose
from .base import Run, Solver, State

if TYPE_CHECKING:
    from ..problem import Problem

FAMILIES = (explicit, variational, decoupled, smc)
_HOMES = {
    name: (f"{family.__name__}.{name.replace('-', '_')}", cls)
    for family in FAMILIES
    for name, cls in family.SOLVERS.items()
}
_CLASSES = {cls: module for module, cls in _HOMES.values()}
ship("solver", _HOMES)

ALIASES = {"ddnm-plus": "ddnm"}
"""Names of papers for what is one solver here: with noise, ``ddnm`` is DDNM+."""

__all__ = ["Choice", "Run", "Solver", "State", "choose", "get_solver", "list_solvers", *sorted(_CLASSES)]


def __getattr__(name: str) -> Any:
    # the classes: each file is imported when its solver is first used
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_solver(name: str, **options: Any) -> Solver:
    """The solver of this name with these hyper-parameters.

    Raises :class:`UnknownName` with the nearest names, :class:`InputError` for an unknown hyper-parameter.
    """
    cls: type[Solver] = lookup("solver", ALIASES.get(name, name))
    known = {f.name for f in dataclasses.fields(cls)}
    for option in options:
        if option not in known:
            raise InputError(str(unknown(f"option of {name}", option, known)))
    return cls(**options)


def list_solvers(family: str | None = None, fits: Problem | None = None) -> list[str]:
    """Names of the registered solvers, of a family, or of those that fit a problem."""
    found = [(n, lookup("solver", n)) for n in names("solver")]
    fits = None if fits is None else fits.white
    return [
        n
        for n, cls in found
        if (family is None or cls.family == family) and (fits is None or cls().unfit(fits) is None)
    ]
