"""``unveil check``: the property suites on a user's own class or instance."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, unknown
from ..noise import Noise
from ..operators.base import Operator
from ..priors.base import Prior
from ..registry import lookup, names
from ..solvers.base import Solver

BASES = {"solver": Solver, "operator": Operator, "noise": Noise, "prior": Prior}


def check(target: str, console: Console) -> bool:
    """Check what ``target`` names (FILE.py, FILE.py:NAME, MODULE, MODULE:NAME, or a registered name): True if every
    promise is kept.

    Raises :class:`InputError` if it cannot be imported or holds nothing to check.
    """
    where, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    kinds = [kind for kind in BASES if target in names(kind)]
    found = {target: (kinds[0], lookup(kinds[0], target))} if kinds else {}
    if not found:
        found = dict(_found(imported(where), name))
    if not found:
        what = f"'{name}'" if name else "a Solver, Operator, Noise or Prior"
        raise InputError(f"{where} holds no {what}: check FILE.py:NAME with the name of your class or instance")
    passed = [_check_one(label, kind, thing, console) for label, (kind, thing) in found.items()]
    return all(passed)


def imported(where: str) -> ModuleType:
    """The module of a name, or of a file. Raises :class:`InputError` if there is none."""
    path = Path(where)
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise InputError(f"there is no file {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        sys.path.insert(0, str(path.resolve().parent))
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is None or not where.startswith(error.name):
            raise
        raise InputError(
            f"there is no module {where}: name a file FILE.py, or a module that Python can import"
        ) from None


def _found(module: ModuleType, name: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Labels, kinds and things: the one that is named, or all that the module defines."""
    if name:
        for kind in BASES:
            if name in names(kind) and (not hasattr(module, name)):
                yield name, (kind, lookup(kind, name))
                return
        if not hasattr(module, name):
            raise InputError(
                str(unknown(f"name in {module.__name__}", name, [n for n in vars(module) if not n.startswith("_")]))
            )
        thing = getattr(module, name)
        what = _kind(thing)
        if what is None:
            raise InputError(
                f"{name} is a {type(thing).__name__}: it must be a Solver, an Operator, a Noise or a Prior"
            )
        yield name, (what, thing)
        return
    for label, thing in vars(module).items():
        what = _kind(thing)
        mine = not isinstance(thing, type) or thing.__module__ == module.__name__
        if what is not None and mine and not label.startswith("_"):
            yield label, (what, thing)


def _kind(thing: Any) -> str | None:
    for kind, base in BASES.items():
        if isinstance(thing, base) or (isinstance(thing, type) and issubclass(thing, base) and thing is not base):
            return kind
    return None


def _check_one(label: str, kind: str, thing: Any, console: Console) -> bool:
    console.print(f"[bold]{escape(label)}[/bold]  {kind}", highlight=False)
    try:
        rows = _suite(kind, thing)
    except AssertionError as error:
        console.print(f"[red]FAILED[/red]  {escape(' '.join(str(error).split()))}\n", highlight=False)
        return False
    table = Table(box=None, pad_edge=False)
    table.add_column("promise")
    table.add_column("measured", justify="right")
    for name, measured in rows:
        table.add_row(escape(name), f"{measured:.2g}")
    console.print(table)
    console.print(f"[green]all {len(rows)} kept[/green]\n", highlight=False)
    return True


def _suite(kind: str, thing: Any) -> list[tuple[str, float]]:
    if isinstance(thing, type):
        thing = _instance(kind, thing)
    if kind == "solver":
        from ..solvers.checks import check_solver

        return check_solver(thing)
    if kind == "noise":
        from ..noise.checks import check_noise

        return check_noise(thing)
    if kind == "operator":
        from ..operators.checks import check_operator

        return check_operator(thing)
    from ..priors.checks import check_prior

    return check_prior(thing)


def _instance(kind: str, cls: Any) -> Any:
    if kind == "operator":
        return cls.example()
    if kind == "noise":
        from ..noise.checks import SHAPE

        return cls.example(SHAPE)
    try:
        return cls()
    except TypeError as error:
        raise InputError(
            f"{cls.__name__}() cannot be made without arguments ({error}): check FILE.py:INSTANCE"
        ) from None
