"""The solvers' pages of the documentation, made from their docstrings and cards, the operators' pages
(:mod:`unveil.bench.operator_pages`) and the pages of results (:mod:`unveil.bench.tables`):
``python -m unveil.bench.pages``.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from ..io.atomic import write_text
from ..registry import names
from ..solvers import Solver, get_solver
from ..solvers.paper import departures
from . import measured
from .cards import COLUMNS, LEGEND, cell, load_card
from .operator_pages import operator_pages
from .tables import results

MADE = "Made by `make docs` from the docstrings and the cards; not to be edited by hand."

HEAD = f"""# Solvers

{MADE} A card is what `unveil bench exact` measured on problems whose posterior is known exactly: see a solver's page.
The last two columns are medians over those problems, of the sliced Wasserstein-2 distance as a multiple of what as many
exact draws have (1 is perfect), and of the ratio of standard deviations.

On its page, beside the default of every option, is what the paper (or its authors' code) has in its own setting, in the
units used here: "own" is an option of this library's, "not at hand" a number that is not known here. Where the default
is another, the page says why.

"""

MEASURED = Path("src/unveil/solvers/measured.json")
FAMILIES = ("explicit", "variational", "decoupled", "smc")
TITLES = {"smc": "Sequential Monte Carlo"}
TABLE = "| solver | paper | needs | distance / floor | std |\n|---|---|---|--:|--:|\n"
START, END = "<!-- solvers: made by make docs -->\n", "<!-- /solvers -->\n"
YEAR = re.compile(r"(.+?) ((?:19|20)\d\d)\b")


def pages() -> dict[str, str]:
    """All pages as Markdown, by their file name: one of each solver, and the list of them in README.md."""
    found = {f"{name}.md": _page(name) for name in names("solver")}
    return {"README.md": HEAD + solvers_table(by_family=True), **found}


def solvers_table(folder: str = "", by_family: bool = False) -> str:
    """Every registered solver in a line, with a link to its page in ``folder``."""
    solvers = [get_solver(name) for name in names("solver")]
    families = [*FAMILIES, *sorted({s.family for s in solvers} - {*FAMILIES})]
    solvers.sort(key=lambda s: families.index(s.family))
    if not by_family:
        return TABLE + "".join(_line(s, folder) for s in solvers)
    parts = []
    for family in families:
        lines = [_line(s, folder) for s in solvers if s.family == family]
        if lines:
            parts.append(f"## {TITLES.get(family, family.capitalize())}\n\n{TABLE}{''.join(lines)}")
    return "\n".join(parts)


def with_table(readme: str) -> str:
    """The text of the README with the table of solvers between its marks made anew."""
    before, rest = readme.split(START)
    return before + START + solvers_table("docs/solvers/") + END + rest.split(END)[1]


def authors(solver: Solver) -> str:
    """First author and year, from the paragraph that names the paper."""
    found = YEAR.match(solver.citation())
    if not found:
        return ""
    who, year = found.groups()
    several = "," in who or " and " in who
    return f"{re.split(',| and ', who)[0]}{' et al.' if several else ''} {year}"


def needs(solver: Solver) -> str:
    """What a problem must offer, and whether the solver back-propagates, in words."""
    kind = "spectral" if "spectral" in solver.needs else "linear" if "linear" in solver.needs else "differentiable"
    if solver.black_box:
        kind = "any operator"
    words = [kind]
    words += [{"gaussian": "Gaussian noise"}.get(w, w) for w in sorted(solver.needs - {"spectral", "linear"})]
    return ", ".join(words + ["back-propagation"] * solver.gradient)


def _line(solver: Solver, folder: str) -> str:
    card = load_card(solver.name)
    figures = _medians(card["problems"]) if card else "| |"
    return f"| [`{solver.name}`]({folder}{solver.name}.md) | {authors(solver)} | {needs(solver)} | {figures}\n"


def _medians(rows: Sequence[dict[str, Any]]) -> str:
    """Of the default setting; of the closest, with its name, where every setting has one."""
    distances = {label: _median(rows, label, "sw2_floor") for label in sorted({row["setting"] for row in rows})}
    label = "" if "" in distances else min(distances, key=lambda label: distances[label] or inf)
    figures = distances[label], _median(rows, label, "std")
    first, second = (f"{v:.{digits}f}" if v is not None else "" for v, digits in zip(figures, (1, 2), strict=True))
    return f"{first}{f' ({label})' if label else ''} | {second} |"


def _median(rows: Sequence[dict[str, Any]], label: str, key: str) -> float | None:
    values = [float(row[key]) for row in rows if row["setting"] == label and row.get(key) is not None]
    return median(values) if values else None


def _page(name: str) -> str:
    solver = get_solver(name)
    text = inspect.getdoc(type(solver)) or ""
    out = f"# {name}\n\n{MADE}\n\n```text\n{text}\n```\n\n"
    out += f"Family: {solver.family}. Needs: {needs(solver)}.\n\n{_options(solver)}"
    card = load_card(name)
    return out + (_card(card) if card else "\nNo card yet.\n")


def _options(solver: Solver) -> str:
    """The steps and the options in a table: default, and what the paper has."""
    values = {"steps": solver.default_steps, **solver.options()}
    rows = [f"| `{name}` | `{value!r}` | {solver.paper.get(name, '')} |\n" for name, value in values.items()]
    table = "| option | default | paper |\n|---|---|---|\n" + "".join(rows)
    reasons = "".join(f"- `{option}`: {reason}\n" for option, reason in departures(solver).items())
    return table + (f"\nWhy these are not the paper's:\n\n{reasons}" if reasons else "")


def _card(card: dict[str, Any]) -> str:
    rows: Sequence[dict[str, Any]] = card["problems"]
    head = "| setting | problem | " + " | ".join(h for _, h in COLUMNS) + " |\n"
    line = "|---|---|" + "--:|" * len(COLUMNS) + "\n"
    body = ""
    for row in rows:
        cells = " | ".join(cell(key, row.get(key)) for key, _ in COLUMNS)
        body += f"| {row['setting'] or 'default'} | {row['problem']} | {cells} |\n"
    settings = "".join(f"- {label}: {text}\n" for label, text in card["settings"].items())
    title = f"Card of version {card['version']} (torch {card['torch']}), with the settings"
    return f"\n{title}\n\n{settings}\n{head}{line}{body}\n{LEGEND}.\n"


def write_pages(root: Path) -> None:
    """Write ``docs/solvers/``, ``docs/operators/``, the pages of results, the README's table and what "auto" reads, all
    under a checkout's root.

    Pages of solvers and operators that are gone are removed.
    """
    _write_folder(root / "docs" / "solvers", pages())
    _write_folder(root / "docs" / "operators", operator_pages())
    for name, text in results(root).items():
        write_text(root / "docs" / name, text)
    write_text(root / MEASURED, measured.text())
    readme = root / "README.md"
    write_text(readme, with_table(readme.read_text(encoding="utf-8")))


def _write_folder(folder: Path, made: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        write_text(folder / name, text)


if __name__ == "__main__":
    write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
