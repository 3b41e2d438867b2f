"""Every registered solver keeps every promise of the suite, without being asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

import unveil
from unveil.solvers.base import Solver
from unveil.solvers.checks import CHECKS, cases, check_form, check_solver
from unveil.solvers.paper import departures, is_among

# the chains and sweeps that a method makes in a step, shortened: the promises do not depend on their number
SHORT = {
    "aps": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2, "couplings": 1},
    "bird": {"ddim_steps": 3},
    "daps": {"inner_steps": 10},
    "davi": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2},
    "dcdp": {"inner_steps": 5, "purify_steps": 3},
    "dmplug": {"ddim_steps": 2},
    "dpg": {"draws": 3},
    "enkg": {"updates": 1},
    "flair": {"data_steps": 3},
    "pnp-dm": {"inner_steps": 5},
    "resample": {"every": 1, "inner_steps": 5},
    "scg": {"candidates": 3},
    "sitcom": {"inner_steps": 3},
    "score-prior": {"batch": 2, "ode_steps": 1, "hidden": 2, "couplings": 1},
    "score-prior-surrogate": {"batch": 2, "hidden": 2, "couplings": 1},
    "smrd": {"repeats": 1},
    "unveil-exact": {
        "prior_steps": 3,
        "oversampling": 2,
        "inner_steps": 2,
        "renoisings": 1,
        "langevins": 1,
        "rest": 1,
    },
}

VARIANTS = [
    ("daps", {"inner": "hmc", "inner_steps": 3, "leapfrogs": 2}),
    ("daps", {"inner": "exact"}),
    ("dcdp", {"inner_steps": 3, "purify_steps": 1, "lr": 0.5}),
    ("ddnm", {"travel_length": 2, "travel_repeats": 2}),
    ("ddrm", {"eta": 0.5, "eta_b": 0.4}),
    ("dmplug", {"ddim_steps": 2, "stop": "none"}),
    ("dps", {"zeta": 1.0}),
    ("dcps", {"weights": False, "blocks": 2, "langevin": 2}),
    ("fk-steering", {"potential": "max", "data_variance": 0.0, "every": 0.2}),
    ("fk-steering", {"potential": "add", "lam": 0.5, "every": 0.2}),
    ("fps-smc", {"path": True, "threshold": 1.0, "resampling": "ssp"}),
    ("mmps", {"eta": 0.0}),
    ("pigdm", {"eta": 0.0, "data_variance": 0.5}),
    ("pnp-dm", {"inner_steps": 3, "order": 1, "eta": 0.0}),
    ("pmc", {"order": "pnp", "weight": 1.0}),
    ("pmc", {"anneal": 0.0}),
    ("projdiff", {"lr": 0.5}),
    ("red-diff", {"optimizer": "sgd", "lr": 0.01, "order": "ascending", "weighting": "square"}),
    ("red-diff", {"data": "relative"}),
    ("red-diff", {"lam_lr": 0.05, "sigma_x0": 0.01}),
    ("red-diff", {"lam_lr": 0.05, "data": "likelihood", "optimizer": "sgd", "lr": 1e-3}),
    ("resample", {"every": 2, "inner_steps": 5, "optimizer": "adam"}),
    ("rsld", {"rho": 0.0, "decay": False}),
    ("sitcom", {"inner_steps": 3, "lam": 0.5}),
    ("score-prior-surrogate", {"batch": 2, "couplings": 0, "estimator": "total", "clip": 1.0, "levels": 2}),
    ("smrd", {"early_stop": 0.2, "repeats": 1}),
    ("tds", {"variance": "dps", "threshold": 1.0}),
    ("tds", {"variance": "step", "order": 1}),
    ("red-diff", {"data": "likelihood", "order": "random", "sigma_x0": 0.01, "weighting": "log"}),
]


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_every_solver_keeps_every_promise(name):
    found = check_solver(unveil.get_solver(name, **SHORT.get(name, {})))
    assert [k for k, _ in found] == ["form", *(c.__name__.removeprefix("check_") for c in CHECKS)]
    assert all(deviation <= 1e-8 for _, deviation in found), found


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_so_do_their_other_settings(name, options):
    found = check_solver(unveil.get_solver(name, **options))
    assert all(deviation <= 1e-8 for _, deviation in found), found


def test_every_solver_fits_problems_of_the_suite():
    # otherwise a promise would be kept by not being tested
    for name in unveil.list_solvers():
        solver = unveil.get_solver(name)
        check_form(solver)
        fitting = [case.name for case in cases("noiseless" in solver.needs) if solver.unfit(case.problem) is None]
        assert len(fitting) >= 3, (name, fitting)


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_every_solver_says_what_the_paper_has_for_each_option(name):
    solver = unveil.get_solver(name)
    assert "paper" in vars(type(solver)), "inherited: another paper's"
    assert set(solver.paper) == {"steps", *solver.options()}
    assert all(text and "|" not in text for text in solver.paper.values()), "an empty cell, or two, of the page's table"


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_every_default_that_is_not_the_papers_has_a_reason(name):
    solver = unveil.get_solver(name)
    found = departures(solver)
    assert all(found.values()), "no reason for " + ", ".join(o for o, reason in found.items() if not reason)
    stale = set(vars(type(solver)).get("why", {})) - set(found)
    assert not stale, "a reason for what is the paper's own"


@pytest.mark.parametrize(
    ("value", "text", "same"),
    [
        (20, "20, 50 or 100", True),
        (100, "20, 50 or 100", True),
        (30, "20, 50 or 100", False),
        (0.2, "0.1 for deblurring, 0.1 to 0.25 for super-resolution, 1 for inpainting", True),
        (0.3, "0.1 for deblurring, 0.1 to 0.25 for super-resolution, 1 for inpainting", False),
        (1.0, "0.25 (1 in mixed units)", False),
        (1e-4, "1e-4 for phase retrieval, 1e-3 for coded diffraction", True),
        (12.0, "0.1 for inpainting and 12-fold super-resolution", False),
        (2.0, "2 (1 for [0, 1])", True),
        (float("inf"), "inf", True),
        (30, "until the error is 1e-4, 1000 at most", False),
        (None, "0.85", False),
        ("pnp", "red and pnp", True),
        ("descent", "adam", False),
        (True, "True; False for noise 0.01", True),
        (False, "True", False),
        (2, "Heun's", False),
        ((0.9, 0.99), "(0.9, 0.99)", True),
        ((0.9, 0.99), "(0.9, 0.999)", False),
    ],
)
def test_values_in_what_is_said_of_a_paper(value, text, same):
    assert is_among(value, text) == same


def test_reasons_are_inherited_and_unknown_numbers_need_none():
    @dataclass(frozen=True)
    class Base(Solver):
        why: ClassVar[dict[str, str]] = {"lam": "it is base"}

    @dataclass(frozen=True)
    class Mine(Base):
        paper: ClassVar[dict[str, str]] = {"steps": "100", "lam": "2", "lr": "1", "mu": "own", "nu": "not at hand"}
        why: ClassVar[dict[str, str]] = {"steps": "-"}
        lam: float = 1.0
        lr: float = 0.5
        mu: float = 0.5
        nu: float = 0.5

    assert departures(Mine()) == {"lam": "it is base", "lr": ""}
    assert departures(Mine(lam=2.0)) == {"lam": "it is base", "lr": ""}  # of defaults
    with pytest.raises(AssertionError, match="does not say why the default of lr is none of the paper's"):
        check_form(Mine())


@pytest.mark.parametrize("name", [n for n in unveil.list_solvers() if "noiseless" in unveil.get_solver(n).needs])
def test_a_solver_for_data_without_noise_names_one_that_takes_it(name):
    solver, noisy = unveil.get_solver(name), cases()[1].problem
    assert unveil.get_solver(solver.sibling).unfit(noisy) is None
    assert solver.sibling in solver.unfit(noisy)
