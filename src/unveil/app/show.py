"""``unveil list`` and ``unveil show``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..bench import operator_pages
from ..bench.cards import LEGEND, load_card
from ..bench.cards import table as table_of
from ..bench.examples import EXAMPLES
from ..errors import unknown
from ..registry import lookup, names
from ..solvers import get_solver
from ..solvers.base import Solver
from ..solvers.paper import departures
from ..tuning.ranges import own_range

SHEET = "docs/images/zoo-{}.png"
KINDS = {"solvers": "solver", "operators": "operator", "priors": "prior"}


def listing(what: str, console: Console) -> None:
    """Print the names of a kind with the first line of what they are."""
    if what not in KINDS:
        raise unknown("kind", what, KINDS)
    kind = KINDS[what]
    columns = {"solver": ("family", "needs"), "operator": ("kind", "instrument"), "prior": ()}[kind]
    table = Table(box=None, pad_edge=False, show_header=bool(columns))
    table.add_column("name", style="bold", no_wrap=True, min_width=max(map(len, names(kind)), default=0))
    for column in columns:
        table.add_column(column)
    table.add_column("what it is")
    for name in names(kind):
        row = [name]
        if kind == "solver":
            solver = get_solver(name)
            row += [solver.family, ", ".join(_needs(solver))]
        elif kind == "operator":
            row += [_kind(name), operator_pages.instrument(name)]
        table.add_row(*row, escape(_about(kind, name).split("\n\n")[0].replace("\n", " ")))
    console.print(table)


def show(name: str, console: Console) -> None:
    """Print what a solver, operator, prior or autoencoder is. Raises :class:`UnknownName` with the nearest names."""
    from ..priors import autoencoders

    known = {kind: names(kind) for kind in KINDS.values()} | {"autoencoder": autoencoders()}
    kind = next((kind for kind in known if name in known[kind]), None)
    if kind is None:
        raise unknown("solver, operator or prior", name, [n for kind in known for n in known[kind]])
    console.print(f"[bold]{escape(name)}[/bold]  [dim]{kind}[/dim]\n", highlight=False)
    console.print(_about(kind, name), markup=False, highlight=False, soft_wrap=True)
    if kind == "solver":
        _show_solver(get_solver(name), console)
    elif kind == "prior":
        _show_prior(name, console)
    elif kind == "autoencoder":
        _show_autoencoder(name, console)
    else:
        _show_operator(name, console)


def _about(kind: str, name: str) -> str:
    if kind in ("prior", "autoencoder"):
        from ..priors import prior_card

        try:
            return str(prior_card(name).get("description", "")) or f"the prior {name} of the zoo"
        except Exception:  # a prior of another package has no card here
            pass
    return inspect.getdoc(lookup(kind, name)) or ""


def _needs(solver: Solver) -> list[str]:
    any_operator = ["any operator, only evaluated"] if solver.black_box else []
    return any_operator + sorted(solver.needs) + (["back-propagation"] if solver.gradient else [])


def _kind(name: str) -> str:
    """An operator in a few words: linear, and what else it offers."""
    parts = [operator_pages.kind(name)] + ["spectral"] * bool(operator_pages.spectral(name))
    return ", ".join(parts + ["parametric"] * bool(operator_pages.unknowns(name)))


def _show_operator(name: str, console: Console) -> None:
    console.print(f"\n{operator_pages.signature(name)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\n[bold]offers[/bold]   {operator_pages.offers(name)}", highlight=False, soft_wrap=True)
    if name in EXAMPLES:
        example = EXAMPLES[name]
        lines = example.lines.replace("\n", "\n         ")
        console.print(f"[bold]example[/bold]  {escape(lines)}", highlight=False, soft_wrap=True)
        console.print("         # import torch, unveil.operators as ops", highlight=False, style="dim", soft_wrap=True)
        console.print(f"         # {operator_pages.shapes(example)}", markup=False, highlight=False, soft_wrap=True)


def _show_solver(solver: Solver, console: Console) -> None:
    console.print(
        f"\n[bold]needs[/bold]    {', '.join(_needs(solver)) or 'nothing: any differentiable operator and any noise'}"
    )
    steps = f"; paper: {solver.paper['steps']}" if "steps" in solver.paper else ""
    console.print(f"[bold]steps[/bold]    {solver.default_steps} by default{steps}", highlight=False)
    table = Table(box=None, pad_edge=False, title="options", title_justify="left", title_style="bold")
    table.add_column("name", no_wrap=True)
    for column in ("default", "paper", "type", "tuned within"):
        table.add_column(column)
    for option in dataclasses.fields(solver):
        span, paper = own_range(solver, option.name), solver.paper.get(option.name, "")
        row = (option.name, str(option.default), paper, str(option.type), "" if span is None else str(span))
        table.add_row(*map(escape, row))
    console.print()
    console.print(table)
    reasons = departures(solver)
    if reasons:
        console.print("\n[bold]why these are not the paper's[/bold]")
    for name, reason in reasons.items():
        console.print(f"  {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    card = load_card(solver.name)
    if card is None:
        console.print(f"\nno card yet: unveil bench exact --solver {solver.name}", highlight=False)
    else:
        _show_card(card, console)


def _show_card(card: dict[str, Any], console: Console) -> None:
    console.print(f"\n[bold]card[/bold]     measured with unveil {card['version']}", highlight=False)
    for label, settings in card["settings"].items():
        console.print(f"         {label}: {settings}", markup=False, highlight=False)
    console.print()
    console.print(table_of(card["problems"]))
    console.print(LEGEND, style="dim", highlight=False)


def _show_prior(name: str, console: Console) -> None:
    from ..priors import load_prior, prior_card

    prior = load_prior(name)
    sizes = " x ".join("any" if n is None else str(n) for n in prior.shape)
    console.print(
        f"\n[bold]signals[/bold]  {sizes}, values in {prior.value_range}, noise levels {prior.sigma_range}",
        highlight=False,
    )
    try:
        card = prior_card(name)
    except Exception:
        return
    _show_made(card, console)


def _show_autoencoder(name: str, console: Console) -> None:
    from ..priors import load_autoencoder, prior_card

    card, coder = prior_card(name), load_autoencoder(name)
    sides = [n // coder.factor for n in card["shape"][1:]]
    sizes, codes = (" x ".join(map(str, shape)) for shape in (card["shape"], (coder.latents, *sides)))
    console.print(f"\n[bold]pictures[/bold]  {sizes}; codes {codes}", highlight=False)
    _show_made(card, console)


def _show_made(card: dict[str, Any], console: Console) -> None:
    """What a card says of how it was made, and how good it is."""
    said = {k: v for k, v in card.items() if isinstance(v, str | int) and k not in ("name", "description", "file")}
    sources = card.get("data", {}).get("source", [])
    data = {f"{d['package']} {d['version']}": d["licence"] for d in sources}
    sections = {"card": said, "run": card.get("run", {}), "results": card.get("results", {}), "data": data}
    for section, content in sections.items():
        if content:
            console.print(f"\n[bold]{section}[/bold]")
        for key, value in content.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            console.print(f"  {key} = {text}", markup=False, highlight=False)
    console.print(f"\n[bold]sheet[/bold]    {SHEET.format(card['name'])} of the repository", highlight=False)
    if card.get("weaknesses"):
        console.print("\n[bold]known weaknesses[/bold]")
    for text in card.get("weaknesses", ()):
        console.print(f"  {text}", markup=False, highlight=False)
