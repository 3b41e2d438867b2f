"""Which defaults are the paper's: what :attr:`Solver.paper` says of an option, read as values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .base import Solver

UNKNOWN = ("own", "not at hand")
"""What stands for an option that the paper does not have, and for a number that is not known here."""
SECOND_ORDER = "second order leaves a tenth of the discretisation error of their step, at the same cost"
"""The reason for an ``order`` of 2 where the paper has 1."""
NUMBER = r"-?(?:\d+\.?\d*(?:e-?\d+)?|inf)"


def departures(solver: Solver) -> dict[str, str]:
    """The options of a solver, and "steps", whose defaults are none of the paper's values.

    Each with the reason that the solver, or one of its base classes, gives in ``why``; "" if there is none.
    """
    cls = type(solver)
    why = {option: words for base in reversed(cls.__mro__) for option, words in vars(base).get("why", {}).items()}
    defaults = {"steps": solver.default_steps, **cls().options()}
    return {
        option: why.get(option, "")
        for option, value in defaults.items()
        if (text := solver.paper.get(option, "own")) not in UNKNOWN and not is_among(value, text)
    }


def is_among(value: Any, text: str) -> bool:
    """Whether a value is one of those that a text of :attr:`Solver.paper` begins its clauses with.

    "0.1 for deblurring, 0.2 to 0.25 for super-resolution; 1 in the code (4 in their units)" has 0.1, all from 0.2 to
    0.25, and 1.
    """
    if isinstance(value, tuple):
        return text.startswith(str(value))
    if isinstance(value, str | bool) or value is None:
        return str(value) in (clause.split(" ")[0] for clause in _clauses(text))
    for clause in _clauses(text):
        span = re.match(rf"({NUMBER})(?: to ({NUMBER}))?(?= |$)", clause)
        if span and float(span[1]) <= value <= float(span[2] or span[1]):
            return True
    return False


def _clauses(text: str) -> Iterator[str]:
    bare = re.sub(r" ?\([^)]*\)", "", text)
    return (clause.strip() for clause in re.split(r"[;,]| and | or ", bare))
