"""Cards: what was measured of a solver, as a file in the package; and the same as a table on a screen."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .._version import __version__
from ..errors import InputError
from ..io.atomic import write_text
from .exact import Row, Setting, Task, run_exact, settings_of
from .families import GATE, get_problem

FOLDER = Path(__file__).parent / "cards"

GATE_SAMPLES = 50
"""Samples of the reduced measurement that a card carries for the tests."""

COLUMNS = (
    ("w2_floor", "W2 / floor"),
    ("sw2_floor", "sliced W2 / floor"),
    ("mean", "mean"),
    ("std", "std"),
    ("std_seen", "seen"),
    ("std_unseen", "unseen"),
    ("cover50", "50 %"),
    ("cover90", "90 %"),
    ("nfe", "NFE"),
    ("vjps", "vjps"),
    ("seconds", "s"),
)
"""Numbers of a row that a table shows, with their headings."""

BAND = {"w2": 0.1, "sw2": 0.1, "mean": 0.02, "std": 0.02, "std_seen": 0.02, "std_unseen": 0.02}
"""The band of a card: see :func:`outside_band`."""


def make_card(solver: str, rows: Sequence[Row], gate: Sequence[Row]) -> dict[str, Any]:
    """The card of a solver from its rows of a full run and those of the reduced one."""
    return {
        "solver": solver,
        "version": __version__,
        "torch": torch.__version__.split("+")[0],
        "settings": {s.label or "default": _settings(solver, s) for s in settings_of(solver)},
        "problems": [_rounded(row) for row in rows],
        "gate": [_rounded(row, 6) for row in gate],
    }


def _settings(solver: str, setting: Setting) -> str:
    made = setting.solver(solver)
    options = {**made.options(), "steps": setting.steps or made.default_steps}
    return ", ".join(f"{k}={v}" for k, v in options.items())


def _rounded(row: Row, digits: int = 4) -> Row:
    short = {k: float(f"{v:.{digits}g}") if isinstance(v, float) else v for k, v in row.items()}
    return {k: v for k, v in short.items() if k not in ("solver", "seed")}


def write_card(card: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write a card as ``<folder>/<solver>.json``, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_text(folder / f"{card['solver']}.json", json.dumps(card, indent=1) + "\n")


def load_card(name: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The card of a solver, None if it has none."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return card


def measure_gate(solver: str, problems: Sequence[str] = GATE) -> list[Row]:
    """The reduced measurement of a solver: few problems and samples, the same seeds every time."""
    reduced = [replace(s, steps=s.gate_steps or s.steps) for s in settings_of(solver)]
    work = [
        Task(solver, setting, p, min(GATE_SAMPLES, setting.samples), (0,))
        for setting in reduced
        for p in problems
        if setting.solver(solver).unfit(get_problem(p).problem) is None
    ]
    return [row for task in work for row in task.measure()]


def gate(solver: str, problems: Sequence[str] = GATE) -> list[str]:
    """What of a solver has left the band of its card on these problems of the reduced measurement; empty if nothing."""
    card = load_card(solver)
    if card is None:
        return [f"{solver} has no card"]
    recorded = [row for row in card["gate"] if row["problem"] in problems]
    return outside_band(recorded, measure_gate(solver, problems))


def outside_band(recorded: Iterable[Row], measured: Iterable[Row]) -> list[str]:
    """What of a reduced measurement has left the band of the card's: one line each, empty if all is well.

    The seeds are the same, so that only the arithmetic of another machine may change the numbers. Band:
    distances within 10 % of the recorded ones; the error of the mean, and ratios of standard deviations,
    within 0.02 plus 2 %; NFE and vjps equal.
    """
    there = {(row["setting"], row["problem"]): row for row in recorded}
    out = []
    for row in measured:
        known = there.pop((row["setting"], row["problem"]), None)
        where = f"{row['setting'] or 'default'} on {row['problem']}"
        if known is None:
            out.append(f"{where}: not on the card")
            continue
        for key in ("status", "nfe", "vjps"):
            if row[key] != known[key]:
                out.append(f"{where}: {key} was {known[key]}, is {row[key]}")
        for key, band in BAND.items():
            was, now = known.get(key), row.get(key)
            if was is None and now is None:
                continue
            limit = band * (was or 0) if key in ("w2", "sw2") else band + band * abs(was or 0)
            if was is None or now is None or not abs(now - was) <= limit:
                out.append(f"{where}: {key} was {was}, is {now}")
    return out + [f"{label or 'default'} on {problem}: not measured" for label, problem in there]


# -- on a screen -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Rows of :func:`run_exact` as a table."""
    out = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    out.add_column("solver", no_wrap=True)
    out.add_column("problem", no_wrap=True)
    for _, heading in COLUMNS:
        out.add_column(heading, justify="right")
    for row in rows:
        name = " ".join(filter(None, (row.get("solver", ""), row["setting"])))
        cells = [cell(key, row.get(key)) for key, _ in COLUMNS]
        if row["status"] != "DONE":
            cells[0] = row["status"]
        out.add_row(name, row["problem"], *cells)
    return out


def cell(key: str, value: float | None) -> str:
    """A number of a row as a table shows it."""
    if value is None:
        return "-"
    return f"{value:.0f}" if key in ("nfe", "vjps") else f"{value:.1f}" if key == "seconds" else f"{value:.2f}"


LEGEND = (
    "W2 / floor: Wasserstein-2 distance to the exact posterior in units of what as many exact draws have (1 is "
    "perfect); mean: error of the mean in posterior standard deviations; std: ratio of standard deviations, over "
    "all, seen and unseen directions; 50 %, 90 %: coverage of the credible intervals; NFE and vjps per sample; "
    "s: of the whole run"
)


def run_exact_cli(solvers: list[str] | None, quick: bool, write_cards: bool) -> int:
    """``unveil bench exact``: measure, print the table, and write the cards if asked to. Returns the exit
    status.

    Status 1 if a run diverged. Cards need all problems: raises :class:`InputError` with ``quick``.
    """
    if quick and write_cards:
        raise InputError("cards are written from a full run: leave out --quick")
    console = Console()
    console.width = max(console.width, 125)  # narrower, the table is not readable
    with console.status("measuring") as status:
        rows = run_exact(
            solvers,
            quick=quick,
            workers=os.cpu_count() or 1,
            on_row=lambda row: status.update(f"{row['solver']} {row['setting']} on {row['problem']}: done"),
        )
        if write_cards:
            for name in dict.fromkeys(row["solver"] for row in rows):
                status.update(f"card of {name}")
                mine = [row for row in rows if row["solver"] == name]
                write_card(make_card(name, mine, measure_gate(name)))
    console.print(table(rows))
    console.print(LEGEND, style="dim", highlight=False)
    return int(any(row["status"] != "DONE" for row in rows))
