"""The measurements that solver="auto" picks from: ``unveil bench auto``, from bench images and the solvers' cards."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ..io.atomic import write_text
from ..registry import names
from ..solvers import get_solver
from ..solvers.auto import EXACT, PHOTOS, STORED, Cell, Measured, stored
from .cards import load_card
from .exact import settings_of
from .families import NAMES, get_problem
from .images import CLASSICAL, Row, problem_of

BACK = 1.2
"""What a back-propagation costs, in evaluations of the prior, where it was not timed."""
DIGITS = 4


def of_photos(rows: Sequence[Row]) -> tuple[dict[str, Cell], list[Measured]]:
    """Cells and runs of ``unveil bench images``: every solver, option set and number of steps is a run."""
    cells: dict[str, Cell] = {}
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        if row["status"] != "DONE" or row["method"] in CLASSICAL or row["method"] not in names("solver"):
            continue
        if row["told"] != 1:
            continue
        cells[_photo(row)] = Cell.of(problem_of(row["task"], row["image"], row["size"], row["seed"]), PHOTOS)
        facts = [row["method"], changed(row["method"], row["options"]), row["steps"]]
        grouped.setdefault(json.dumps(facts, sort_keys=True), []).append(row)
    return cells, [_photo_run(its) for its in grouped.values()]


def _photo(row: Row) -> str:
    return f"{row['task']} of {Path(row['image']).stem}"


def changed(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a solver that are not its defaults."""
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in get_solver(name).options().items()}
    return {k: v for k, v in options.items() if k in defaults and defaults[k] != v}


def _photo_run(rows: Sequence[Row]) -> Measured:
    first = rows[0]
    solver = get_solver(first["method"])
    errors = {}
    for row in rows:
        errors[_photo(row)] = {"mmse": _short(10 ** (-row["psnr"] / 20))}
        if "perceptual" in row:
            errors[_photo(row)]["sample"] = _short(row["perceptual"])
    return Measured(
        first["method"],
        changed(first["method"], first["options"]),
        first["steps"],
        median(r["nfe"] for r in rows),
        median(r["vjps"] for r in rows),
        _short(median(r["cpu"] / r["call"] for r in rows)),
        max(r["samples"] for r in rows) if solver.coupled else 1,
        is_point(first["method"]),
        errors,
    )


def is_point(name: str) -> bool:
    """Whether the ruler takes a solver for a point estimate in every setting."""
    return all(setting.point for setting in settings_of(name))


def of_cards(solvers: Iterable[str] = ()) -> tuple[dict[str, Cell], list[Measured]]:
    """Cells and runs of the cards: every setting is a run."""
    cells = {name: Cell.of(get_problem(name).problem, EXACT) for name in NAMES}
    runs = []
    for name in solvers or names("solver"):
        card = load_card(name)
        for setting in settings_of(name) if card else ():
            assert card is not None
            rows = [r for r in card["problems"] if r["setting"] == setting.label and r["status"] == "DONE"]
            rows = [r for r in rows if r["problem"] in cells]
            if rows:
                solver = setting.solver(name)
                options = json.loads(json.dumps(solver.options()))
                nfe, vjps = median(r["nfe"] for r in rows), median(r["vjps"] for r in rows)
                errors = {r["problem"]: _errors(r) for r in rows}
                count = max(r["samples"] for r in rows) if solver.coupled else 1
                steps = setting.steps or solver.default_steps
                work = _short(nfe + BACK * vjps)
                runs.append(
                    Measured(name, changed(name, options), steps, nfe, vjps, work, count, setting.point, errors)
                )
    return cells, runs


def _errors(row: Row) -> dict[str, float]:
    """Of one sample to the posterior mean, in posterior standard deviations; and the distance over its floor."""
    out = {"mmse": _short(math.hypot(row["mean"], row.get("std") or 0.0))}
    if row.get("sw2_floor") is not None:
        out["sample"] = _short(row["sw2_floor"])
    return out


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def of_stored(path: Path = STORED) -> tuple[dict[str, Cell], list[Measured]]:
    """The photographs' cells and runs of a file that is there already."""
    if not path.is_file():
        return {}, []
    known, runs = stored(path)
    cells = {name: cell for name, cell in known.items() if cell.suite == PHOTOS}
    return cells, [run for run in runs if run.solver in names("solver") and cells.keys() & run.errors.keys()]


def table(rows: Sequence[Row] | None = None) -> dict[str, Any]:
    """Everything that "auto" reads, as plain data; without rows of photographs those that are stored already."""
    cells, runs = {}, []
    for found, made in (of_stored() if rows is None else of_photos(rows), of_cards()):
        cells.update(found)
        runs += made
    return {
        "made": "by unveil bench auto, from bench images and the solvers' cards",
        "cells": {name: asdict(cell) for name, cell in cells.items()},
        "runs": [asdict(run) for run in runs],
    }


def write_measured(rows: Sequence[Row] | None = None, path: Path = STORED) -> Path:
    """Write the file that "auto" reads, see :func:`table`: a line for each cell and each run."""
    path = write_text(path, text(rows))
    stored.cache_clear()
    return path


def text(rows: Sequence[Row] | None = None) -> str:
    """The file that "auto" reads."""
    data = table(rows)
    cells = ",\n".join(f"  {json.dumps(name)}: {json.dumps(cell)}" for name, cell in data["cells"].items())
    runs = ",\n".join(f"  {json.dumps(run)}" for run in data["runs"])
    head = f' "made": {json.dumps(data["made"])},\n'
    return "{\n" + head + ' "cells": {\n' + cells + '\n },\n "runs": [\n' + runs + "\n ]\n}\n"
