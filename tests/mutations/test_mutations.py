"""The ruler fails when the arithmetic underneath is tampered with, and not otherwise."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

import pytest
import torch

import unveil.problem
from unveil.bench.bars import (
    Bar,
    at_the_floor,
    draw,
    failures,
    falling,
    half_way,
    red_diff_fixed_point,
    unseen_spread,
)
from unveil.bench.cards import gate
from unveil.bench.exact import judge, yardstick
from unveil.bench.families import get_problem
from unveil.numerics import cg
from unveil.operators.base import Linear
from unveil.problem import Problem, squared_norm
from unveil.rng import Rng
from unveil.run.counted import Counted
from unveil.schedules import Schedule
from unveil.solvers import get_solver
from unveil.solvers.checks import cases, check_batch
from unveil.solvers.decoupled import daps

PLANE = ("plane-row-0.05",)
SAMPLES = 300

# -- what the ruler demands, as in the tests of bars and cards, on less ----------------------------------------------

CHECKS = {
    "mmps": lambda: failures(
        at_the_floor(get_solver("mmps"), ["texture-blur-0.5", "iso-blur-0.05"], 1.5, SAMPLES, steps=30)
    ),
    "pigdm": lambda: failures(
        at_the_floor(get_solver("pigdm"), ["iso-mask-0", "iso-mask-0.5"], 1.5, SAMPLES, steps=30)
    ),
    "pnp-dm": lambda: failures(at_the_floor(get_solver("pnp-dm"), PLANE, 2.0, SAMPLES, steps=60)),
    "pnp-dm sweeps": lambda: failures(falling(get_solver("pnp-dm"), PLANE[0], [(0.3, 20), (0.03, 20)], SAMPLES)),
    "ddrm": lambda: failures(unseen_spread(get_solver("ddrm"), ["iso-mask-0.5"], SAMPLES)),
    "ddrm mean": lambda: failures(half_way(get_solver("ddrm"))),
    "ddnm": lambda: failures(unseen_spread(get_solver("ddnm"), ["iso-mask-0"], SAMPLES)),
    "red-diff": lambda: failures(red_diff_fixed_point(variances=(1.0,), steps=3000)),
    "dps card": lambda: gate("dps", PLANE),
    "dds card": lambda: gate("dds", PLANE),
    "diffpir card": lambda: gate("diffpir", PLANE),
    "daps card": lambda: gate("daps", PLANE),
    "daps chain": lambda: failures(chain_spread()),
    "mmps card": lambda: gate("mmps", ["texture-blur-0.05"]),
    "mmps batch": lambda: broken(check_batch, "mmps", cases()[0]),
    "red-diff card": lambda: gate("red-diff", PLANE),
}


class Plain(Linear):
    """The operator of the plane without its spectral form, on which chains have to be walked."""

    in_shape = (2,)

    def __call__(self, x):
        return get_problem(PLANE[0]).problem.operator(x)


def chain_spread(samples=200):
    """DAPS by Langevin steps has the posterior's spread in the direction that is seen, within a fifth."""
    exact = get_problem(PLANE[0])
    problem = Problem(exact.problem.y, Plain(), exact.problem.noise, value_range=exact.problem.value_range)
    x = draw(dataclasses.replace(exact, problem=problem), get_solver("daps", inner_steps=30), samples, 8)
    spread = judge(exact, x, yardstick(PLANE[0], samples)).get("std_seen", math.nan) if x.isfinite().all() else math.nan
    return [Bar("daps by steps, std_seen", spread, 0.8, 1.25)]


def broken(check, solver, case):
    """A promise of the property suite, as the ruler's bars say it: empty if it is kept."""
    try:
        check(get_solver(solver), case)
    except AssertionError as error:
        return [str(error)]
    return []


@functools.cache
def untouched(check):
    """The verdict on the code as it is. It also fills the yardsticks, before anything is tampered with."""
    return CHECKS[check]()


def verdict(check):
    """What a check finds; an error is a finding."""
    try:
        return CHECKS[check]()
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]


# -- the mutations -----------------------------------------------------------------------------------------------------


def noise_times_root_two(patch):
    normal = Rng.normal
    # of runs alone: exact draws and projections are not to be touched
    patch.setattr(Rng, "normal", lambda self, like: normal(self, like) * (2**0.5 if self.purpose == "run" else 1))


def pullback_times_two(patch):
    vjp = Counted.vjp

    def doubled(self, x, sigma):
        x0, pullback = vjp(self, x, sigma)
        return x0, lambda v: 2 * pullback(v)

    patch.setattr(Counted, "vjp", doubled)


def data_gradient_times_two(patch):
    data, score = Problem.data, Problem.score
    patch.setattr(Problem, "data", lambda self, *args: (data(self, *args)[0], 2 * data(self, *args)[1]))
    patch.setattr(Problem, "score", lambda self, x0: 2 * score(self, x0))


def sigmas_swapped(patch):
    pair = Schedule.pair
    # the end of the run, sigma' = 0, cannot be swapped
    patch.setattr(Schedule, "pair", lambda self, i: pair(self, i)[:: -1 if pair(self, i)[1] > 0 else 1])


def denoised_at_the_next_level(patch):
    pair, denoise, vjp, following = Schedule.pair, Counted.denoise, Counted.vjp, {}

    def noted(self, i):
        sigma, sigma_next = pair(self, i)
        following[sigma] = sigma_next or sigma
        return sigma, sigma_next

    patch.setattr(Schedule, "pair", noted)
    patch.setattr(Counted, "denoise", lambda self, x, sigma: denoise(self, x, following[sigma]))
    patch.setattr(Counted, "vjp", lambda self, x, sigma: vjp(self, x, following[sigma]))


def mean_for_a_sum(patch):
    data, score = Problem.data, Problem.score

    def entries(problem):
        return problem.y[0].numel() + 1  # at least 2: in the plane there is a single measurement

    patch.setattr(Problem, "data", lambda self, *args: tuple(v / entries(self) for v in data(self, *args)))
    patch.setattr(Problem, "score", lambda self, x0: score(self, x0) / entries(self))


def norm_over_the_batch(patch):
    patch.setattr(unveil.problem, "squared_norm", lambda r: squared_norm(r).sum().expand(r.shape[0]))


def curvature_over_the_batch(patch):
    curvature = daps.curvature
    patch.setattr(daps, "curvature", lambda *args: curvature(*args).sum().expand(args[1].shape[0]))


def dot_over_the_batch(patch):
    dot = cg._dot
    patch.setattr(cg, "_dot", lambda u, v: dot(u, v).sum().expand(u.shape[0]))


@dataclass(frozen=True)
class Case:
    mutation: object
    checks: tuple[str, ...]


CASES = (
    Case(
        noise_times_root_two,
        ("mmps", "pigdm", "pnp-dm", "ddrm", "ddnm", "dps card", "dds card", "diffpir card", "daps card"),
    ),
    Case(pullback_times_two, ("mmps", "pigdm", "dps card")),
    # the card of red-diff, whose default hardly weighs the prior on these problems, cannot see it: its fixed point does
    Case(data_gradient_times_two, ("red-diff", "dps card", "daps chain")),
    Case(sigmas_swapped, tuple(c for c in CHECKS if c != "mmps batch")),
    Case(
        denoised_at_the_next_level, ("mmps", "pigdm", "pnp-dm", "ddrm", "ddnm", "dds card", "diffpir card", "daps card")
    ),
    Case(mean_for_a_sum, ("red-diff", "dps card", "daps chain")),
    Case(norm_over_the_batch, ("dps card",)),
    Case(dot_over_the_batch, ("mmps batch",)),
    Case(curvature_over_the_batch, ("daps chain",)),
)


@pytest.mark.parametrize(
    ("mutation", "check"),
    [(case.mutation, check) for case in CASES for check in case.checks],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_the_ruler_sees_it(mutation, check, monkeypatch):
    assert untouched(check) == []
    mutation(monkeypatch)
    assert verdict(check) != []


def test_yardsticks_are_not_made_of_tampered_noise(monkeypatch):
    before = yardstick.__wrapped__(PLANE[0], 50)
    noise_times_root_two(monkeypatch)
    after = yardstick.__wrapped__(PLANE[0], 50)
    assert all(torch.equal(a, b) for a, b in zip(before.draws, after.draws, strict=True))
    assert torch.equal(before.sw2, after.sw2)
