"""The suite of promises catches solvers that break one: each check is shown to fail."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import unveil
from unveil.bench.counting import Tally
from unveil.solvers.base import Solver
from unveil.solvers.checks import cases, check_solver
from unveil.solvers.moves import ddim


@dataclass(frozen=True)
class Good(Solver):
    """A sampler that ignores the data, doi: none."""

    def step(self, state, run):
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        x = ddim(state.x, x0, sigma, sigma_next, 0.5, run.rng)
        return state.next(*self.spoil(x, x0, state, run))

    def spoil(self, x, x0, state, run):
        return x, x0


def test_a_good_solver_passes():
    found = dict(check_solver(Good()))
    assert max(found.values()) < 1e-10


def broken(spoil, **attributes):
    cls = type("Broken", (Good,), {"__doc__": Good.__doc__, "spoil": spoil, **attributes})
    return dataclass(frozen=True)(cls)()


def couple(self, x, x0, state, run):
    return x + 1e-3 * (x - x.mean(0)), x0


def with_constant(self, x, x0, state, run):
    return x + 1e-3, x0


def with_global_torch(self, x, x0, state, run):
    return x + 1e-3 * torch.randn_like(x), x0


def with_global_numpy(self, x, x0, state, run):
    return x + 1e-3 * np.random.rand(), x0  # noqa: NPY002


def with_global_python(self, x, x0, state, run):
    return x + 1e-3 * random.random(), x0


def without_seed(self, x, x0, state, run):
    return x0.clone(), x0


def in_place(self, x, x0, state, run):
    state.x.mul_(0.5)
    return x, x0


def in_place_on_data(self, x, x0, state, run):
    run.problem.y.mul_(0.5)
    return x, x0


def in_double(self, x, x0, state, run):
    return x.double(), x0


def with_graph(self, x, x0, state, run):
    with torch.enable_grad():
        leaf = state.x.detach().requires_grad_()
        return x + 0 * run.prior.denoise(leaf, 1.0), x0


def with_prior_graph(self, x, x0, state, run):
    with torch.enable_grad():
        return x.detach(), run.prior.denoise(state.x, 1.0).detach()


def blow_up(self, x, x0, state, run):
    return x * 1e9, x0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (couple, "on a matrix: .*(chunks of 1|row 0)"),
        (with_constant, "on a matrix: samples change with the value range"),
        (with_global_torch, "taken twice"),
        (in_place, "changes x in place"),
        (blow_up, "DIVERGED"),
    ],
)
def test_broken_promises_are_caught(spoil, message):
    with pytest.raises(AssertionError, match=message):
        check_solver(broken(spoil))


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (couple, "check_batch"),
        (couple, "check_chunk"),
        (with_constant, "check_range"),
        (with_global_torch, "check_global_random_state"),
        (with_global_numpy, "check_global_random_state"),
        (with_global_python, "check_global_random_state"),
        (with_global_torch, "check_seed"),
        (with_global_torch, "check_recipe"),
        (with_global_torch, "check_resume"),
        (with_global_torch, "check_purity"),
        (in_place, "check_purity"),
        (in_place_on_data, "check_purity"),
        (in_double, "check_dtype"),
        (with_graph, "check_graph"),
        (with_prior_graph, "check_graph"),
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_each_check_catches_what_it_is_for(spoil, check):
    from unveil.solvers import checks

    case = cases()[1]
    getattr(checks, check)(Good(), case)
    with pytest.raises(AssertionError):
        getattr(checks, check)(broken(spoil), case)


def test_a_solver_that_remembers_between_steps_is_caught():
    @dataclass(frozen=True)
    class Remembers(Good):
        """Keeps a tensor outside of its state, doi: none."""

        last: ClassVar[dict] = {}

        def spoil(self, x, x0, state, run):
            before = self.last.get("x", x) if state.i else x
            self.last["x"] = x
            return (x + 0.1 * before if before.shape == x.shape else x), x0

    with pytest.raises(AssertionError, match=r"other bits|taken twice|depends on|chunks|value range"):
        check_solver(Remembers())


def test_a_solver_that_ignores_its_seed_is_caught():
    @dataclass(frozen=True)
    class Seedless(Good):
        """Starts at the middle and draws nothing, doi: none."""

        def init(self, run):
            state = super().init(run)
            return unveil.State(state.x0 + 0.1 * run.scale, state.x0)

        def spoil(self, x, x0, state, run):
            return x0, x0

    with pytest.raises(AssertionError, match="seeds 0 and 1"):
        check_solver(Seedless())


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: float(x.sum()),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: torch.tensor([0.0, 1.0], device=x.device),
        lambda x: torch.as_tensor(0.5, device=x.device),
        lambda x: x.new_tensor(0.5),
        lambda x: torch.linalg.inv(x.new_ones(1, 1)),
        lambda x: x.clone().__setitem__(x > 0, x.new_zeros(int(x.numel() > 0))),
        lambda x: None if x.abs().max() > 1e9 else x,
    ],
)
def test_waits_for_the_device_are_caught(wait):
    def spoil(self, x, x0, state, run):
        wait(x)
        return x, x0

    with pytest.raises(AssertionError, match="waits for the device"):
        check_solver(broken(spoil))


def test_operations_that_do_not_wait_are_not_reported():
    tally = Tally(1)
    x = torch.arange(6.0)
    with tally:
        y = torch.where(x > 2, x, 0).clamp_min(1).reshape(2, 3)
        y[0] = y[1, :]
        _ = y[:, torch.tensor([0, 2])], y.masked_fill(y > 3, 0), y.double(), y.sum(1), y.argmax()
        _ = torch.as_tensor(x, device=x.device), torch.full((2,), 0.5, device=x.device), x.new_zeros(2)
    assert tally.syncs == []


def test_form():
    class Bare(Good):
        """No dataclass of its own, doi: none."""

        zeta = 1.0

    with pytest.raises(AssertionError, match="dataclass"):
        check_solver(Bare())

    @dataclass(frozen=True)
    class Anonymous(Good):
        """A clever idea."""

    with pytest.raises(AssertionError, match="names no paper"):
        check_solver(Anonymous())

    @dataclass(frozen=True)
    class Misspelt(Good):
        """With the paper's value of an option that it has not, doi: none."""

        paper: ClassVar[dict[str, str]] = {"steps": "10", "zetta": "1"}

    with pytest.raises(AssertionError, match="paper's value of zetta, which is no option"):
        check_solver(Misspelt())

    @dataclass(frozen=True)
    class Tensors(Good):
        """With an option that no recipe can hold, doi: none."""

        weight: object = torch.ones(2)

    with pytest.raises(AssertionError, match="option weight"):
        check_solver(Tensors())
    with pytest.raises(AssertionError, match="needs linaer"):
        check_solver(broken(Good.spoil, needs=frozenset({"linaer"})))


def test_a_solver_that_fits_no_problem_is_said_so():
    @dataclass(frozen=True)
    class Picky(Good):
        """Refuses everything, doi: none."""

        def unfit(self, problem):
            return "it wants the moon"

    with pytest.raises(unveil.NotCompatible, match="it wants the moon"):
        check_solver(Picky())
