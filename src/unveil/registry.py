"""Names for solvers, operators, noise models and priors.

``@register("solver", "dps")`` names a class; packages outside add theirs through the entry points
``unveil.solvers``, ``unveil.operators``, ``unveil.noises`` and ``unveil.priors`` (value: module:attribute). Two
different objects under one name are an error, never a silent replacement.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .errors import InputError, unknown

T = TypeVar("T")

KINDS = {"solver": "unveil.solvers", "operator": "unveil.operators", "noise": "unveil.noise", "prior": "unveil.priors"}
_entries: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
_shipped: dict[str, dict[str, tuple[str, str]]] = {kind: {} for kind in KINDS}
_loaded: set[str] = set()


def register(kind: str, name: str) -> Callable[[T], T]:
    """Class decorator: make the object known as ``name`` among the ``kind``s and set its ``name`` attribute.

    Raises :class:`InputError` for an unknown kind or a name that already belongs to another object.
    """
    if kind not in KINDS:
        raise InputError(f"unknown kind '{kind}': register one of {', '.join(KINDS)}")

    def add(thing: T) -> T:
        importlib.import_module(KINDS[kind])  # what ships comes first: its names are taken
        _add(kind, name, thing)
        if isinstance(thing, type):
            thing.name = name  # type: ignore[attr-defined]
        return thing

    return add


def ship(kind: str, homes: dict[str, tuple[str, str]]) -> None:
    """Names with module and attribute, imported when a name is first looked up: ``import unveil`` is quick."""
    _shipped[kind].update(homes)


def _find(kind: str, name: str) -> Any:
    """What has this name so far, or None."""
    if name not in _entries[kind] and name in _shipped[kind]:
        module, attribute = _shipped[kind][name]
        _entries[kind][name] = getattr(importlib.import_module(module), attribute)
    return _entries[kind].get(name)


def _add(kind: str, name: str, thing: Any) -> None:
    ours = _shipped[kind].get(name) == (getattr(thing, "__module__", None), getattr(thing, "__qualname__", None))
    there = None if ours else _find(kind, name)
    same = there is thing or (
        there is not None
        and getattr(there, "__module__", None) == getattr(thing, "__module__", 1)
        and getattr(there, "__qualname__", None) == getattr(thing, "__qualname__", 1)
    )
    if there is not None and not same:
        raise InputError(
            f"{kind} name '{name}' is taken by {there.__module__}.{there.__qualname__}: choose another name"
        )
    _entries[kind][name] = thing


def _load(kind: str) -> dict[str, Any]:
    if kind not in KINDS:
        raise InputError(f"unknown kind '{kind}': one of {', '.join(KINDS)}")
    if kind not in _loaded:
        importlib.import_module(KINDS[kind])
        for entry in entry_points(group=f"unveil.{kind}s"):
            _add(kind, entry.name, entry.load())
            thing = _entries[kind][entry.name]
            if isinstance(thing, type):
                thing.name = entry.name  # type: ignore[attr-defined]
        _loaded.add(kind)
    return _entries[kind]


def lookup(kind: str, name: str) -> Any:
    """The object registered as ``name``; raises :class:`UnknownName` with the nearest names."""
    _load(kind)
    thing = _find(kind, name)
    if thing is None:
        raise unknown(kind, name, names(kind))
    return thing


def names(kind: str) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted({*_load(kind), *_shipped[kind]})
