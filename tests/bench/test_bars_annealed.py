"""What the projected and the annealed solvers must reach on problems with known answers."""

from __future__ import annotations

import pytest

from unveil.bench.bars import at_the_floor, failures, improving, masked_blur, reproduces
from unveil.solvers import get_solver

PROJECTED = ["ccdf", "ddpg", "ilvr", "kadkhodaie-simoncelli", "repaint", "score-sde"]

KNOWN = ["texture-mask-0", "texture-down-0", "clusters-dense-0"]


@pytest.mark.parametrize("solver", [*PROJECTED, "mcg"])
def test_projections_reproduce_the_data(solver):
    assert not failures(reproduces(get_solver(solver), [*KNOWN, masked_blur()]))


def test_so_does_ddrm_with_operators_that_are_spectral():
    assert not failures(reproduces(get_solver("ddrm"), KNOWN))


def test_without_the_last_projection_they_do_not():
    assert failures(reproduces(get_solver("ilvr", sigma_stop=0.1), ["texture-mask-0"]))


@pytest.mark.parametrize(
    ("solver", "problem", "steps"),
    [
        ("kadkhodaie-simoncelli", "texture-mask-0", (20, 60, 240)),
        ("score-ald", "texture-mask-0.05", (30, 90, 300)),
        ("score-ald", "iso-blur-0.05", (250, 1000, 4000)),
        ("snips", "texture-mask-0.05", (20, 60, 200)),
    ],
)
def test_slow_annealing_is_exact_in_the_limit(solver, problem, steps):
    assert not failures(improving(get_solver(solver), problem, steps))


def test_fast_annealing_is_not():
    assert failures(improving(get_solver("score-ald"), "texture-mask-0.05", (30, 60)))


@pytest.mark.parametrize(
    ("solver", "problem", "steps", "limit"),
    [
        ("kadkhodaie-simoncelli", "iso-mask-0", 100, 1.5),
        ("score-ald", "plane-row-0.05", 200, 2.0),
        ("snips", "spectrum-dense-0.05", 150, 1.5),
        ("score-sde", "texture-mask-0", 150, 2.0),
    ],
)
def test_they_are_near_the_floor(solver, problem, steps, limit):
    assert not failures(at_the_floor(get_solver(solver), [problem], limit, samples=100, steps=steps))


def test_it_is_the_corrector_that_brings_the_projected_diffusion_there():
    assert failures(at_the_floor(get_solver("score-sde", corrections=0), ["texture-mask-0"], 2.0, 100, 150))
