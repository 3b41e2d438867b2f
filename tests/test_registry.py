"""Names: clashes are errors, near misses get a hint, installed packages add theirs."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import unveil
from unveil import registry
from unveil.errors import InputError, UnknownName, UnveilError
from unveil.registry import lookup, names, register


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """The registry as it was, after each test."""
    names("solver")
    monkeypatch.setattr(registry, "_entries", {kind: dict(known) for kind, known in registry._entries.items()})
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded))


def test_register_names_a_class_and_returns_it():
    @register("solver", "brand-new")
    class New:
        pass

    assert New.name == "brand-new"
    assert lookup("solver", "brand-new") is New
    assert "brand-new" in names("solver")


def test_a_clash_of_names_is_an_error_that_says_with_whom():
    with pytest.raises(InputError, match=r"solver name 'dps' is taken by unveil\.solvers\.explicit\.dps\.DPS"):

        @register("solver", "dps")
        class Other:
            pass

    assert lookup("solver", "dps") is unveil.solvers.DPS


def test_the_same_class_may_come_twice():
    # a module that is run again, as notebooks do
    register("solver", "dps")(unveil.solvers.DPS)
    again = type("DPS", (), {"__module__": unveil.solvers.DPS.__module__, "__qualname__": "DPS"})
    register("solver", "dps")(again)
    assert lookup("solver", "dps") is again


def test_names_of_different_kinds_do_not_clash():
    @register("operator", "dps")
    class Dots:
        pass

    assert lookup("operator", "dps") is Dots
    assert lookup("solver", "dps") is unveil.solvers.DPS


@pytest.mark.parametrize(
    ("typo", "meant"), [("mmsp", "mmps"), ("DDRM", "ddrm"), ("reddiff", "red-diff"), ("pnpdm", "pnp-dm")]
)
def test_did_you_mean(typo, meant):
    with pytest.raises(UnknownName) as error:
        unveil.get_solver(typo)
    assert f"did you mean {meant}" in str(error.value) or f" or {meant}" in str(error.value) or typo == "DDRM"
    assert f"unknown solver '{typo}'" in str(error.value)
    assert ", ddrm, " in str(error.value).split("known: ")[1]
    assert isinstance(error.value, UnveilError)
    assert isinstance(error.value, KeyError)


def test_no_hint_where_nothing_is_near():
    with pytest.raises(UnknownName) as error:
        lookup("operator", "xyzzy")
    assert "did you mean" not in str(error.value)
    assert "known: blur" in str(error.value)


def test_an_unknown_option_gets_a_hint_too():
    with pytest.raises(InputError, match="option of dps 'zetta': did you mean zeta"):
        unveil.get_solver("dps", zetta=1)


def test_an_unknown_kind():
    for call in (lambda: register("sampler", "x"), lambda: lookup("sampler", "x"), lambda: names("sampler")):
        with pytest.raises(InputError, match="unknown kind 'sampler'"):
            call()


def test_unknown_name_prints_its_message_and_not_a_repr():
    assert not str(UnknownName("plain")).startswith("'")


class Added(unveil.Solver):
    """Stands for a solver of another package."""


class Clash(unveil.Solver):
    """Wants a name that is taken."""


def installed(monkeypatch, **entries):
    def entry_points(group):
        found = [EntryPoint(name, value, group) for name, value in entries.items()]
        return found if group == "unveil.solvers" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_loaded", set())


def test_entry_points_add_names(monkeypatch):
    installed(monkeypatch, **{"from-outside": f"{__name__}:Added"})
    assert lookup("solver", "from-outside") is Added
    assert Added.name == "from-outside"
    assert "from-outside" in unveil.list_solvers()


def test_an_entry_point_that_clashes_is_an_error(monkeypatch):
    installed(monkeypatch, dps=f"{__name__}:Clash")
    with pytest.raises(InputError, match="'dps' is taken"):
        unveil.list_solvers()


def test_ten_solvers_are_registered_under_the_names_of_their_papers():
    assert set(unveil.list_solvers()) >= {
        "dps", "pigdm", "mmps", "ddrm", "ddnm", "dds", "diffpir", "daps", "red-diff", "pnp-dm"
    }  # fmt: skip
    for name in unveil.list_solvers():
        assert unveil.get_solver(name).name == name
    assert set(unveil.list_solvers(family="decoupled")) >= {"daps", "diffpir", "pnp-dm"}
