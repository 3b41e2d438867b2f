"""Options that mean nothing are refused when a solver is made, with the option, the value and what would do."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest

from unveil import get_solver
from unveil.errors import InputError
from unveil.registry import lookup, names
from unveil.solvers.base import Solver
from unveil.solvers.limits import limit_of


def wrong(cls):
    """(option, value) of every type that an option is not, and of numbers outside of what it is declared to take."""
    for f in dataclasses.fields(cls):
        kind = f.type.removesuffix(" | None")
        yield from ((f.name, value) for value in ({} if kind == "str" else {"a": 1}, 1 + 1j))
        if kind in ("int", "float"):
            yield from ((f.name, value) for value in ("a", True, -1, math.nan))
            if limit_of(f.name, kind, cls.limits).startswith(("[1", "(0")):
                yield f.name, 0
        if kind == "int":
            yield f.name, 1.5
        if kind.startswith("tuple"):
            yield from ((f.name, value) for value in ((0.9,), (-0.1, 0.9), ("a", 0.9)))
            if limit_of(f.name, kind, cls.limits) == "[0, 1)":
                yield f.name, (0.9, 1.5)


@pytest.mark.parametrize("name", names("solver"))
def test_wrong_types_and_absurd_values_are_refused(name):
    cls = lookup("solver", name)
    cls()
    for option, value in wrong(cls):
        with pytest.raises(InputError, match=f"{name}.* {option} "):
            get_solver(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dsg", "interval", 0),
        ("resample", "every", 0),
        ("diffpir", "lam", 0),
        ("diffpir", "zeta", 2),
        ("dds", "eta", 1.5),
        ("pigdm", "data_variance", 0),
        ("ddrm", "eta", 2),
        ("ddpg", "zeta", 2),
        ("rsld", "lr", "a"),
        ("dps", "zeta", "a"),
        ("dps", "zeta", -1),
        ("ddnm", "eta", -0.5),
        ("mpgd", "eta", 2),
        ("dds", "iterations", 0),
        ("mmps", "iterations", 0),
        ("pnp-dm", "burn", 2),
        ("dcdp", "purify_steps", 0),
        ("snips", "step_size", 5),
        ("red-diff", "lr", -1),
        ("mmps", "order", 3),
        ("tds", "threshold", 1.5),
        ("dcps", "threshold", 1.5),
        ("fps", "c_rate", 1.5),
        ("fps-smc", "threshold", 1.5),
        ("score-sde", "weight", 2.0),
        ("smrd", "step_size", 2.0),
        ("flair", "t_min", 1.0),
        ("sitcom", "inner_steps", 1),
    ],
)
def test_values_that_broke_a_run_or_spoiled_it(name, option, value):
    with pytest.raises(InputError, match=f"{name}.* {option} .*got {value!r}"):
        get_solver(name, **{option: value})


def test_a_solver_of_ones_own_says_what_its_options_take():
    @dataclass(frozen=True)
    class Mine(Solver):
        limits: ClassVar[dict[str, str]] = {"share": "[0, 0.5)"}
        share: float = 0.1

    Mine(share=0)
    with pytest.raises(InputError, match=r"Mine needs share in \[0, 0.5\), got 0.5"):
        Mine(share=0.5)


def test_the_name_of_a_papers_variant_finds_its_solver():
    assert get_solver("ddnm-plus", eta=0.5) == get_solver("ddnm", eta=0.5)
