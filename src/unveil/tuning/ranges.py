"""Which options of a solver are worth tuning, and within which limits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, unknown
from ..solvers.base import Solver
from ..solvers.limits import interval

FACTOR = 10.0
"""Positive scales are searched from a tenth to ten times what they are."""

WHOLE = None
"""All that an option takes, by the ``limits`` of its solver (:mod:`unveil.solvers.limits`)."""

Declared = float | tuple[float, float] | None
"""A factor: from value / factor to value * factor, as far as the option takes these, log-uniform. Two numbers: between
them, uniform; so is WHOLE."""

TUNABLE: dict[str, dict[str, Declared]] = {
    "aps": {"lr": FACTOR},
    "bird": {"lr": FACTOR},
    "ccdf": {"sigma_start": FACTOR},
    "daps": {"spread": 5.0, "step_size": (0.05, 1.0)},
    "das": {"gamma": FACTOR, "alpha": FACTOR},
    "davi": {"lr": FACTOR},
    "dcdp": {"lr": FACTOR},
    "dcps": {"gamma": FACTOR},
    "ddnm": {"eta": WHOLE},
    "ddpg": {"gamma": FACTOR, "zeta": WHOLE, "eta_tilde": FACTOR},
    "ddrm": {"eta": WHOLE, "eta_b": WHOLE},
    "dds": {"gamma": FACTOR, "eta": WHOLE},
    "ddsmc": {"data_variance": FACTOR},
    "diffpir": {"lam": FACTOR, "zeta": WHOLE},
    "dmap": {"zeta": FACTOR},
    "dmplug": {"lr": FACTOR},
    "dmps": {"lam": 4.0},
    "dpg": {"guidance": FACTOR},
    "dpps": {"zeta": FACTOR},
    "dps": {"zeta": FACTOR},
    "dsg": {"guidance": WHOLE},
    "eki": {},
    "enkg": {"guidance": FACTOR, "final": (0.0, 1.0)},
    "fk-steering": {"lam": FACTOR, "data_variance": FACTOR},
    "flair": {"weight": 4.0, "data_lr": FACTOR},
    "fps": {"c_rate": (0.5, 1.0)},
    "fps-smc": {"data_variance": FACTOR},
    "freedom": {"rate": FACTOR},
    "ilvr": {"sigma_stop": (0.0, 1.0)},
    "kadkhodaie-simoncelli": {"beta": (0.01, 1.0)},
    "lgd-mc": {"zeta": FACTOR, "data_variance": FACTOR},
    "mcg": {"alpha": FACTOR},
    "mcgdiff": {"kappa": FACTOR},
    "mmps": {"eta": WHOLE},
    "mpgd": {"rate": FACTOR, "eta": WHOLE},
    "peng": {"eta": WHOLE},
    "pigdm": {"data_variance": FACTOR, "eta": WHOLE},
    "pmc": {"step_size": (0.1, 1.5)},
    "pnp-dm": {"rho0": 5.0, "rho_min": 5.0},
    "projdiff": {"lr": (0.1, 2.0)},
    "red-diff": {"lam": FACTOR, "lr": FACTOR},
    "repaint": {},
    "resample": {"gamma": FACTOR},
    "rsld": {"lam": FACTOR, "rho": FACTOR, "gamma": FACTOR, "lr": FACTOR},
    "scg": {"unguided": WHOLE},
    "score-ald": {"step_size": (0.1, 1.5)},
    "score-prior": {"lr": FACTOR},
    "score-prior-surrogate": {"lr": FACTOR},
    "score-sde": {"snr": 4.0, "weight": WHOLE},
    "sds": {"lam": FACTOR, "lr": FACTOR},
    "sitcom": {"lr": FACTOR, "margin": FACTOR},
    "smcdiff": {},
    "smrd": {"lam": FACTOR, "step_size": (0.1, 1.9)},
    "snips": {"step_size": (0.1, 1.5)},
    "tds": {"data_variance": FACTOR},
    "tmpd": {"eta": WHOLE},
    "unveil-exact": {},
}
"""Weights, rates and shares, by solver. What makes a run longer (numbers of steps, draws, inner iterations) is left
out: more is better there, and says nothing about the rest. Of a solver that is not here, every positive number
counts."""


@dataclass(frozen=True)
class Range:
    """Where an option is looked for: from ``low`` to ``high``, log-uniform or uniform, whole numbers or any; or one of
    the ``choices``.
    """

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def __contains__(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        """The values that have to be right for all to be."""
        return self.choices or (self._as(self.low), self._as(self.high))

    def _as(self, value: float) -> float | int:
        return int(value) if self.whole else value

    def __str__(self) -> str:
        if self.choices:
            return "|".join(str(c) for c in self.choices)
        return f"{self.low:.4g}:{self.high:.4g}" + (":log" if self.log else "")


def own_range(solver: Solver, option: str) -> Range | None:
    """The range of an option that is declared here, around its value in ``solver``; None if there is none."""
    value = getattr(solver, option)
    declared = TUNABLE.get(solver.name)
    if declared is None:
        positive = isinstance(value, float) and 0 < value < math.inf
        return _around(solver, option, FACTOR) if positive else None
    if option not in declared:
        return None
    span, number = declared[option], isinstance(value, int | float) and math.isfinite(value)
    if isinstance(span, float | int):
        return _around(solver, option, span) if number and value > 0 else None
    low, high = interval(solver, option) if span is None else span
    return Range(min(low, value), max(high, value)) if number else Range(low, high)


def _around(solver: Solver, option: str, factor: float) -> Range:
    """A factor up and down, as far as the option takes it."""
    value, (low, high) = getattr(solver, option), interval(solver, option)
    return Range(max(value / factor, low), min(value * factor, high), log=True)


def ranges_of(solver: Solver, wanted: Sequence[str] | Mapping[str, Range] | None = None) -> dict[str, Range]:
    """The ranges to search, by option.

    ``wanted`` names options as ``NAME`` (within the range that is declared for it), ``NAME=LOW:HIGH``,
    ``NAME=LOW:HIGH:log`` or ``NAME=A|B|C``; None takes all that are declared. Raises :class:`InputError` where the
    solver cannot take an end of a range.
    """
    name = solver.name or type(solver).__name__
    fields = [f.name for f in dataclasses.fields(solver)]
    if wanted is None:
        found = {f: r for f in fields if (r := own_range(solver, f)) is not None}
        if not found:
            raise InputError(
                f"{name} has no option that is tuned unasked: name some, as in --options NAME=LOW:HIGH, of "
                f"{', '.join(fields)}"
            )
    elif isinstance(wanted, Mapping):
        found = dict(wanted)
    else:
        found = dict(_parse(solver, name, word) for word in wanted)
    if not found:
        raise InputError("there is nothing to tune: name at least one option")
    for option, span in found.items():
        if option not in fields:
            raise InputError(str(unknown(f"option of {name}", option, fields)))
        if not span.choices and not (span.low < span.high and math.isfinite(span.high - span.low)):
            raise InputError(f"the range of {option} needs LOW < HIGH, got {span}")
        if span.log and span.low <= 0:
            raise InputError(f"the range of {option} is logarithmic: it needs LOW > 0, got {span}")
        for value in span.ends():
            try:
                solver.with_options(**{option: value})
            except InputError as error:
                raise InputError(f"the range {span} of {option} is too wide: {error}") from error
    return found


def _parse(solver: Solver, name: str, word: str) -> tuple[str, Range]:
    option, equals, text = (part.strip() for part in word.partition("="))
    option = option.replace("-", "_")
    fields = [f.name for f in dataclasses.fields(solver)]
    if option not in fields:
        raise InputError(str(unknown(f"option of {name}", option, fields)))
    if not equals:
        found = own_range(solver, option)
        if found is None:
            raise InputError(f"say where to look for {option} of {name}, as in {option}=LOW:HIGH or {option}=A|B")
        return option, found
    if "|" in text:
        return option, Range(choices=tuple(_value(part) for part in text.split("|")))
    low, _, rest = text.partition(":")
    high, _, form = rest.partition(":")
    try:
        span = Range(float(low), float(high), form == "log", _whole(getattr(solver, option)))
    except ValueError:
        span = None
    if span is None or form not in ("", "log"):
        raise InputError(f"a range is {option}=LOW:HIGH, {option}=LOW:HIGH:log or {option}=A|B|C, got '{word}'")
    return option, span


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()
