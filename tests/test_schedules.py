"""Schedules: levels known from the papers, and the moves on them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unveil.errors import InputError
from unveil.schedules import Schedule, ddpm, ddpm_sigmas, flow, karras, log_linear


def test_karras_by_hand():
    s = karras(5, 0.01, 100, rho=7).sigmas
    hi, lo = 100 ** (1 / 7), 0.01 ** (1 / 7)
    assert s == pytest.approx([(hi + k / 4 * (lo - hi)) ** 7 for k in range(5)] + [0])
    assert s[0] == pytest.approx(100)
    assert s[-2] == pytest.approx(0.01)


def test_log_linear_is_geometric():
    s = log_linear(4, 1e-3, 1).sigmas
    assert s == pytest.approx([1, 0.1, 0.01, 0.001, 0])


def test_the_linear_ddpm_schedule():
    s = ddpm_sigmas("linear")
    # Ho et al.: beta_1 = 1e-4, beta_T = 0.02; abar_T = 4.0358e-5
    assert s[0] == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)))
    assert round(s[0], 4) == 0.0100
    assert s[-1] == pytest.approx(157.4, abs=0.05)
    assert 1 / (1 + s[-1] ** 2) == pytest.approx(4.0358e-5, rel=1e-3)
    assert (np.diff(s) > 0).all()


def test_the_cosine_ddpm_schedule():
    s = ddpm_sigmas("cosine")
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    abar = 1 / (1 + s**2)
    assert abar[499] == pytest.approx(f(500) / f(0), rel=1e-9)
    assert abar[998] == pytest.approx(f(999) / f(0), rel=1e-6)
    assert abar[999] == pytest.approx(abar[998] * (1 - 0.999), rel=1e-9)  # the clipped beta


def test_other_numbers_of_training_steps_keep_the_ends():
    assert ddpm_sigmas("linear", 500)[-1] == pytest.approx(ddpm_sigmas("linear", 1000)[-1], rel=0.05)


def test_uniform_sub_sequence():
    s, all_levels = ddpm(20).sigmas, ddpm_sigmas()
    assert len(s) == 21
    assert s[:-1] == tuple(all_levels[np.arange(950, -1, -50)])
    assert s[-1] == 0
    # T is not a multiple of the steps: still as many levels as asked for
    assert len(ddpm(15)) == 15
    assert len(ddpm(1000)) == 1000


def test_full_sub_sequence_has_both_ends():
    s, all_levels = ddpm(7, spacing="full").sigmas, ddpm_sigmas()
    assert (s[0], s[-2]) == (all_levels[-1], all_levels[0])
    assert len(s) == 8


def test_quad_sub_sequence_is_dense_at_low_noise():
    s, all_levels = ddpm(100, spacing="quad").sigmas, ddpm_sigmas()
    t = np.searchsorted(all_levels, np.array(s[:-1]) * (1 - 1e-12))
    assert t[0] == 999
    assert t[-1] == 0
    gaps = -np.diff(t)
    assert gaps[0] > 50  # sqrt: the first jump is T sqrt(1 / 100) or so
    assert gaps[len(gaps) // 2 :].max() <= 10
    assert (gaps > 0).all()


def test_flow_levels():
    assert flow(4, t_max=0.8).sigmas == pytest.approx([0.8 / 0.2, 0.6 / 0.4, 0.4 / 0.6, 0.2 / 0.8, 0])
    assert flow(1).sigmas == pytest.approx([99, 0])
    # t = 0.4 shifted by 3 is 1.2 / 1.8 = 2/3, where sigma is 2
    assert flow(2, shift=3, t_max=0.8).sigmas[1] == pytest.approx(2)


def test_all_schedules_fall_to_zero_and_say_their_length():
    for schedule in (karras(9), log_linear(9), ddpm(9), ddpm(9, "cosine"), ddpm(9, spacing="full"), flow(9)):
        assert len(schedule) == 9
        assert schedule.sigmas[-1] == 0
        assert all(a > b for a, b in zip(schedule.sigmas, schedule.sigmas[1:], strict=False))
        assert all(type(s) is float for s in schedule.sigmas)
        assert schedule.pair(3) == (schedule.sigmas[3], schedule.sigmas[4])
    assert len(karras(1)) == 1


def test_scaled():
    assert karras(3, 1, 4).scaled(0.5).sigmas == tuple(s / 2 for s in karras(3, 1, 4).sigmas)


def test_ddpm_within_a_range():
    all_levels = ddpm_sigmas()
    inside = [v for v in all_levels if 0.05 <= v <= 20]
    assert len(ddpm(100, low=0.05, high=20)) == 100
    assert ddpm(100, spacing="full", low=0.05, high=20).sigmas[0] == pytest.approx(inside[-1])
    assert ddpm(100, spacing="full", low=0.05, high=20).sigmas[-2] == pytest.approx(inside[0])
    # more steps than levels: interpolated, still falling
    crowded = ddpm(1000, low=0.05, high=20)
    assert len(inside) < 1000 == len(crowded)
    assert all(a > b for a, b in zip(crowded.sigmas, crowded.sigmas[1:], strict=False))
    with pytest.raises(InputError, match="no level"):
        ddpm(10, low=1000)


def test_time_travel_by_hand():
    s = Schedule((5.0, 4.0, 3.0, 2.0, 1.0, 0.0))
    assert s.time_travel(2, 1).sigmas == s.sigmas
    assert s.time_travel(2, 2).sigmas == (5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0)
    # what comes down to zero is never noised again
    assert s.time_travel(5, 3).sigmas == s.sigmas


@pytest.mark.parametrize(("steps", "length", "repeats"), [(250, 10, 10), (100, 7, 3), (20, 2, 4)])
def test_time_travel_counts(steps, length, repeats):
    plain = karras(steps)
    travel = plain.time_travel(length, repeats)
    ups = sum(b > a for a, b in zip(travel.sigmas, travel.sigmas[1:], strict=False))
    downs = len(travel) - ups
    blocks = -(-steps // length)
    whole = blocks - 1  # the last block ends at zero and is not repeated
    assert ups == whole * (repeats - 1)
    assert downs == whole * repeats * length + (steps - whole * length)
    # every level between the ends of a block is visited `repeats` times
    visits = travel.sigmas.count(plain.sigmas[1])
    assert visits == repeats
    assert set(travel.sigmas) == set(plain.sigmas)


def test_time_travel_of_repaint_settings():
    # T = 250, jump length 10, 10 resamplings: 24 blocks of 10 taken ten times, and the last one once
    travel = karras(250).time_travel(10, 10)
    ups = sum(b > a for a, b in zip(travel.sigmas, travel.sigmas[1:], strict=False))
    assert (ups, len(travel) - ups) == (24 * 9, 24 * 100 + 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule((1.0,)), "at least two"),
        (lambda: Schedule((1.0, float("nan"))), "finite"),
        (lambda: Schedule((1.0, -1.0)), "not negative"),
        (lambda: Schedule((1.0, 1.0, 0.0)), "equal"),
        (lambda: karras(0), "at least 1 step"),
        (lambda: karras(5, 2.0, 1.0), "sigma_min < sigma_max"),
        (lambda: log_linear(5, 0.0, 1.0), "0 < sigma_min"),
        (lambda: ddpm(0), "1 to 1000 steps"),
        (lambda: ddpm(1001), "1 to 1000 steps"),
        (lambda: ddpm(10, "square"), "linear or cosine"),
        (lambda: ddpm(10, spacing="odd"), "uniform, full or quad"),
        (lambda: flow(5, t_max=1.0), "t_max"),
        (lambda: karras(5).time_travel(0, 1), "length >= 1"),
        (lambda: karras(5).time_travel(1, 0), "repeats >= 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_steps_below_a_level_are_spaced_as_the_schedule_is():
    whole = log_linear(6, 0.01, 10.0)
    low = whole.below(1.0, 6)
    assert low.sigmas == pytest.approx(log_linear(6, 0.01, 1.0).sigmas)
    assert low.sigmas[0] == 1.0
    assert whole.below(1.0).sigmas == (1.0, *whole.sigmas[2:])  # without a number, those that are there
    assert whole.below(10.0, 6) == whole
    dense = karras(100, 0.01, 10.0)
    assert dense.below(1.0, 7).sigmas == pytest.approx(karras(7, 0.01, 1.0).sigmas, rel=1e-3)
    open_end = Schedule((4.0, 2.0, 1.0))
    assert open_end.below(2.0, 4).sigmas == pytest.approx((2.0, 2**0.75, 2**0.5, 2**0.25, 1.0))
    travel = whole.time_travel(2, 2)
    assert travel.below(1.0, 6) == travel.below(1.0)
