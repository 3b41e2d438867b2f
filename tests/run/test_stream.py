"""The driver: how runs end, what they cost, and that nothing about batches or memory changes a sample."""

from __future__ import annotations

import gc
import math
import sys
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

import unveil
from unveil import Budget, Problem, Status, solve, stream
from unveil.errors import InputError, NotCompatible
from unveil.operators import Identity, Inpainting, Matrix
from unveil.priors.base import Prior
from unveil.run.solve import gather
from unveil.run.stream import BLOW_UP, _first_chunk
from unveil.schedules import Schedule
from unveil.solvers.base import Solver, State

SHAPE = (2, 4, 4)
LEARNT = {"batch": 2, "hidden": 2}
SHORT = {
    "aps": {**LEARNT, "batch": 4, "measurements": 2, "prior_steps": 2, "couplings": 1},
    "daps": {"inner_steps": 2},
    "davi": {**LEARNT, "batch": 4, "measurements": 2, "prior_steps": 2},
    "score-prior": {**LEARNT, "couplings": 1, "ode_steps": 1},
    "score-prior-surrogate": {**LEARNT, "couplings": 1},
    "unveil-exact": {"prior_steps": 3, "oversampling": 2, "inner_steps": 2, "renoisings": 1, "langevins": 1},
}
"""Inner work of solvers that the tests here do not look at."""


@pytest.fixture
def prior():
    return unveil.GaussianPrior(torch.full((32,), 0.5), 0.05, shape=SHAPE)


@pytest.fixture
def problem(prior):
    mask = torch.ones(4, 4)
    mask[1:3, 1:3] = 0
    return Problem.simulate(prior.sample(3, 1), Inpainting(mask), 0.1, 2)


class Explodes(Prior):
    """A prior that is right down to a level, and then is not."""

    def __init__(self, prior, below, factor):
        self.prior, self.below, self.factor = prior, below, factor
        self.shape, self.value_range, self.sigma_range = prior.shape, prior.value_range, prior.sigma_range

    def denoise(self, x, sigma):
        x0 = self.prior.denoise(x, sigma)
        return x0 * self.factor if sigma < self.below else x0


@dataclass(frozen=True)
class Plain(Solver):
    """Ancestral sampling of the prior."""

    def step(self, state, run):
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        x = x0 + sigma_next * run.rng.normal(x0)
        return state.next(x, x0)


# -- the loop -------------------------------------------------------------------------------------------------------


def test_states_count_up_and_the_run_ends_done(problem, prior):
    run = stream(problem, prior, "diffpir", steps=5)
    assert (run.status, run.state) == (Status.RUNNING, None)
    assert [s.i for s in run] == [1, 2, 3, 4, 5]
    assert (run.status, run.nfe, run.vjps) == (Status.DONE, 5, 0)
    assert list(run) == []
    assert run.seconds > 0


def test_cost_is_counted_per_sample(problem, prior):
    for solver, steps, samples, chunk, nfe, vjps in (
        ("dps", 4, 1, "auto", 4, 4),
        ("dps", 4, 3, 2, 4, 4),
        ("mmps", 3, 2, 1, 3, 33),
        (unveil.get_solver("daps", inner_steps=2, ode_steps=5), 3, 2, 4, 15, 0),
        (unveil.get_solver("pnp-dm", inner_steps=4), 2, 1, 2, 8, 0),
    ):
        result = solve(problem, prior, solver, steps=steps, samples=samples, chunk=chunk)
        assert (result.nfe, result.vjps) == (nfe, vjps), solver


def test_rows_are_ordered_measurement_by_measurement(problem, prior):
    run = stream(problem, prior, Plain(), samples=2, steps=3)
    assert run.n == 6
    assert run.index.tolist() == [0, 0, 1, 1, 2, 2]
    result = solve(problem, prior, Plain(), samples=2, steps=3)
    assert result.samples.shape == (3, 2, *SHAPE)
    # sample k of every measurement has the same stream, and samples differ
    assert torch.equal(result.samples[0], result.samples[1])
    assert not torch.equal(result.samples[0, 0], result.samples[0, 1])


def test_seeds_per_measurement(problem, prior):
    result = solve(problem, prior, Plain(), steps=3, seed=[5, 6, 5])
    assert torch.equal(result.samples[0], result.samples[2])
    assert not torch.equal(result.samples[0], result.samples[1])
    assert torch.equal(result.samples[1], solve(problem[1], prior, Plain(), steps=3, seed=6).samples[0])


def test_sample_k_does_not_depend_on_how_many_there_are(problem, prior):
    few = solve(problem, prior, "pigdm", samples=2, steps=4).samples
    many = solve(problem, prior, "pigdm", samples=5, steps=4).samples
    torch.testing.assert_close(few, many[:, :2], rtol=0, atol=1e-5)


def test_time_travel_goes_up_by_noise_alone(problem, prior):
    schedule = Schedule((1.0, 0.5, 1.0, 0.5, 0.0))
    states = list(stream(problem, prior, Plain(), schedule=schedule))
    up = states[1]
    added = up.x - states[0].x
    assert torch.equal(up.x0, states[0].x0)
    # sqrt(1 - 0.25) of noise over 96 values
    assert abs(float(added.std()) - math.sqrt(0.75)) < 5 * math.sqrt(0.75 / (2 * added.numel()))


def test_a_schedule_of_ones_own(problem, prior):
    schedule = Schedule((3.0, 1.0, 0.0))
    run = stream(problem, prior, Plain(), schedule=schedule)
    assert run.steps == 2
    with pytest.raises(InputError, match="steps or schedule"):
        stream(problem, prior, Plain(), schedule=schedule, steps=2)


# -- divergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("name", ["diffpir", "ddrm", "dds", "red-diff", "pnp-dm"])
def test_a_diverging_run_stops_and_keeps_its_last_good_state(problem, prior, name, factor):
    solver = unveil.get_solver(name)
    schedule = solver.schedule(prior, 6)
    broken = Explodes(prior, schedule.sigmas[3] * 0.999, factor)  # steps 1 to 4 never see it, except inner loops
    good = stream(problem, prior, solver, steps=6)
    states = list(good)
    result = solve(problem, broken, solver, steps=6)
    assert result.status is Status.DIVERGED
    assert f"step {result.steps_done + 1} of 6" in result.reason
    assert bool(torch.isfinite(result.samples).all())
    if name != "pnp-dm":
        assert result.steps_done == 4
        assert torch.equal(result.samples[:, 0], states[3].x0)
        assert float(result.samples.abs().max()) > 0


def test_divergence_at_the_first_step_gives_no_result_at_all(problem, prior):
    run = stream(problem, Explodes(prior, math.inf, math.nan), Plain(), steps=3)
    assert list(run) == []
    assert run.status is Status.DIVERGED
    assert "step 1 of 3" in run.reason


def test_solve_that_diverges_at_the_first_step_returns_something_finite(problem, prior):
    result = solve(problem, Explodes(prior, math.inf, math.nan), Plain(), steps=3)
    assert (result.status, result.steps_done) == (Status.DIVERGED, 0)
    assert bool(torch.isfinite(result.samples).all())
    assert "step 1 of 3" in result.reason


@pytest.mark.parametrize("name", ["diffpir", "red-diff"])
def test_a_start_that_is_not_finite_is_named_and_never_returned(prior, name):
    class Broken(unveil.operators.Linear):
        """An operator whose adjoint is wrong, which the first guess of these solvers uses."""

        in_shape = SHAPE

        def __call__(self, x):
            return x

        def adjoint(self, y):
            return y * math.nan

    problem = Problem.simulate(prior.sample(2), Broken(), 0.1)
    run = stream(problem, prior, name, steps=3)
    assert list(run) == []
    assert (run.status, run.state) == (Status.DIVERGED, None)
    with pytest.raises(InputError, match=r"the run diverged: the state before the first step is not finite: .*adjoint"):
        solve(problem, prior, name, steps=3)


def test_a_run_without_a_state_says_what_happened(problem, prior):
    run = stream(problem, prior, "ddrm", steps=3)
    with pytest.raises(InputError, match="has not made its first step"):
        gather(run, "sample")
    run.cancel("enough")
    with pytest.raises(InputError, match="cancelled before its first step: enough"):
        gather(run, "sample")
    run = stream(problem, prior, "ddrm", steps=3)
    run.status, run.reason = Status.DIVERGED, "step 1 of 3"
    with pytest.raises(InputError, match="the run diverged: step 1 of 3"):
        gather(run, "sample")


def test_nothing_diverges_that_only_is_noisy(prior):
    wide = unveil.GaussianPrior(torch.zeros(4), 100.0)
    problem = Problem.simulate(wide.sample(2), Identity((4,)), 1.0)
    assert solve(problem, wide, "pigdm", steps=5).status is Status.DONE
    assert BLOW_UP >= 100


def test_the_nan_of_one_sample_is_not_hidden_by_the_others(problem, prior):
    @dataclass(frozen=True)
    class OneRow(Plain):
        """NaN in one entry of one row."""

        def step(self, state, run):
            new = super().step(state, run)
            if state.i == 2:
                new.x[-1, 0, 0, 0] = math.nan
            return new

    result = solve(problem, prior, OneRow(), steps=5)
    assert (result.status, result.steps_done) == (Status.DIVERGED, 2)


def test_nan_in_the_clean_estimate_alone_is_seen_too(problem, prior):
    @dataclass(frozen=True)
    class Preview(Plain):
        """NaN in the preview, which is what a stopped run returns."""

        def step(self, state, run):
            new = super().step(state, run)
            return State(new.x, new.x0 * math.nan, new.i) if state.i == 2 else new

    result = solve(problem, prior, Preview(), steps=5)
    assert (result.status, result.steps_done) == (Status.DIVERGED, 2)


# -- cancelling and budgets -------------------------------------------------------------------------------------------


def test_cancelled_by_the_caller(problem, prior):
    whole = list(stream(problem, prior, "ddrm", steps=6))
    result = solve(problem, prior, "ddrm", steps=6, on_step=lambda state, run: state.i < 3)
    assert (result.status, result.steps_done) == (Status.CANCELLED, 3)
    assert "caller" in result.reason
    assert torch.equal(result.samples[:, 0], whole[2].x0)


def test_other_answers_of_on_step_do_not_cancel(problem, prior):
    seen = []
    result = solve(problem, prior, "ddrm", steps=4, on_step=lambda state, run: seen.append((state.i, run.nfe)))
    assert result.status is Status.DONE
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize(("nfe", "steps_done"), [(3, 3), (3.5, 3), (100, 6)])
def test_a_budget_of_evaluations_is_kept(problem, prior, nfe, steps_done):
    result = solve(problem, prior, "ddrm", steps=6, budget=Budget(nfe=nfe), samples=2)
    assert result.nfe == steps_done <= nfe
    assert result.steps_done == steps_done
    assert result.status is (Status.DONE if steps_done == 6 else Status.CANCELLED)
    if steps_done < 6:
        assert f"budget of {nfe:g} evaluations" in result.reason


def test_a_budget_of_seconds_is_kept(problem, prior, monkeypatch):
    now = iter(range(1000))
    clock = SimpleNamespace(perf_counter=lambda: float(next(now)))  # every step takes 1 s
    monkeypatch.setattr(sys.modules["unveil.run.stream"], "time", clock)
    result = solve(problem, prior, "ddrm", steps=6, budget=Budget(seconds=3.5))
    assert (result.steps_done, result.seconds, result.status) == (3, 3.0, Status.CANCELLED)
    assert "budget of 3.5 s" in result.reason


def test_a_budget_too_small_for_one_step_says_so(problem, prior):
    # the first step cannot be foreseen, and is taken
    result = solve(problem, prior, "ddrm", steps=6, budget=Budget(nfe=0.5))
    assert (result.steps_done, result.status) == (1, Status.CANCELLED)


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_value_ranges_that_disagree_name_the_mend(problem, prior):
    with pytest.raises(NotCompatible, match=r"use prior\.in_range\(0, 1\), or say Problem\(\.\.\., value_range="):
        stream(problem, prior.in_range(-1, 1), "dps")
    mended = prior.in_range(-1, 1).in_range(0, 1)
    torch.testing.assert_close(
        solve(problem, mended, "dps", steps=3).samples, solve(problem, prior, "dps", steps=3).samples
    )


def test_shapes_that_disagree(problem):
    other = unveil.GaussianPrior(torch.zeros(4), 1.0)
    with pytest.raises(NotCompatible, match=r"shape \(4\), the problem has \(2, 4, 4\)"):
        stream(problem, other, "dps")


def test_a_solver_that_does_not_fit_names_those_that_do(prior):
    class Curved(unveil.operators.Operator):
        in_shape = SHAPE

        def __call__(self, x):
            return torch.tanh(x)

    problem = Problem.simulate(prior.sample(1), Curved(), 0.1)
    with pytest.raises(NotCompatible) as error:
        stream(problem, prior, "ddrm")
    text = str(error.value)
    assert text.startswith("ddrm does not fit this problem: it needs an operator with a spectral form")
    named = text.split("these do: ")[1].split(", ")
    assert set(named) == set(unveil.list_solvers(fits=problem))
    assert "dps" in named
    assert "ddrm" not in named
    for name in named:
        solver = unveil.get_solver(name, **SHORT.get(name, {}))
        assert solve(problem, prior, solver, samples=solver.particles, steps=2).status is Status.DONE


def test_needs_of_noise(prior):
    x = prior.sample(1)
    counts = Problem.simulate(x.clamp_min(0), Identity(SHAPE), unveil.Poisson(50.0))
    with pytest.raises(NotCompatible, match="pigdm does not fit this problem: it needs Gaussian noise"):
        stream(counts, prior, "pigdm")
    exact = Problem.simulate(x, Identity(SHAPE), 0)
    with pytest.raises(NotCompatible, match="its Markov chain needs noise"):
        stream(exact, prior, "daps")
    dense = torch.eye(32)[:8]

    class Dense(unveil.operators.Linear):
        in_shape = SHAPE

        def __call__(self, x):
            return x.flatten(1) @ dense.to(x).mT

    with pytest.raises(NotCompatible, match=r"ddnm .*with noise it needs an operator with a spectral form"):
        stream(Problem.simulate(x, Dense(), 0.1), prior, "ddnm")
    assert "ddnm" in unveil.list_solvers(fits=Problem.simulate(x, Dense(), 0))
    assert "ddnm" in unveil.list_solvers(fits=Problem.simulate(x, Matrix(dense, SHAPE), 0.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"seed": [1, 2]}, "2 seeds for 3 measurements"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"chunk": "small"}, "a number or 'auto'"),
        ({"goal": "best"}, "goal must be one of sample, mmse, map"),
        ({"resume": True}, "resume needs the checkpoint"),
        ({"solver": "pigmd"}, "did you mean pigdm"),
    ],
)
def test_bad_options_are_refused_before_anything_is_computed(problem, prior, options, message):
    class Never(Prior):
        shape, value_range, sigma_range = prior.shape, prior.value_range, prior.sigma_range

        def denoise(self, x, sigma):
            raise RuntimeError("computed")

    with pytest.raises(unveil.UnveilError, match=message):
        solve(problem, Never(), **{"solver": "dps", **options})


def test_auto_says_what_it_picks_and_runs_it(problem, prior):
    for goal in ("sample", "mmse", "map"):
        recipe = solve(problem, prior, goal=goal, steps=2).recipe
        assert (recipe["goal"], recipe["steps"]) == (goal, 2)
        assert recipe["auto"].startswith(f"{recipe['solver']}, for ")
    exact = Problem.simulate(prior.sample(1), Identity(SHAPE), 0)
    result = solve(exact, prior, budget=Budget(nfe=25))
    assert result.status is Status.DONE
    assert result.nfe <= 25
    assert "auto" not in solve(exact, prior, "ddrm", steps=2).recipe


# -- memory -----------------------------------------------------------------------------------------------------------


class Small(Prior):
    """A prior whose device holds only so many samples."""

    def __init__(self, prior, most):
        self.prior, self.most, self.asked = prior, most, []
        self.shape, self.value_range, self.sigma_range = prior.shape, prior.value_range, prior.sigma_range

    def denoise(self, x, sigma):
        self.asked.append(x.shape[0])
        if x.shape[0] > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return self.prior.denoise(x, sigma)


def test_out_of_memory_halves_the_chunk_and_changes_nothing(problem, prior):
    small = Small(prior, 2)
    run = stream(problem, small, Plain(), samples=4, steps=3)
    states = list(run)
    assert small.asked[:4] == [12, 6, 3, 2]
    assert set(small.asked[3:]) == {2}
    assert run.chunk == 2
    assert run.nfe == 3  # what was tried in vain is not counted
    plain = list(stream(problem, prior, Plain(), samples=4, steps=3))
    torch.testing.assert_close(states[-1].x, plain[-1].x, rtol=0, atol=1e-6)


def test_a_device_too_small_for_one_sample_raises(problem, prior):
    with pytest.raises(torch.OutOfMemoryError):
        list(stream(problem, Small(prior, 0), Plain(), steps=2))


def test_chunks_that_were_asked_for_are_kept(problem, prior):
    small = Small(prior, 99)
    list(stream(problem, small, Plain(), samples=3, steps=2, chunk=4))
    assert small.asked == [4, 4, 1] * 2


def test_auto_chunks_on_the_cpu_hold_about_a_million_values(problem):
    assert _first_chunk(problem, 5) == 5
    big = Problem(torch.zeros(1, 3, 512, 512), Identity(), 0.1)
    assert _first_chunk(big, 5) == 1
    assert _first_chunk(Problem(torch.zeros(1, 3, 256, 256), Identity(), 0.1), 50) == 5


def test_the_driver_keeps_a_constant_number_of_states(problem, prior):
    # by what python holds on to; the bytes of every solver are measured in the tests of the solvers
    size = 3 * 32

    def alive():
        gc.collect()
        return sum(1 for t in gc.get_objects() if type(t) is torch.Tensor and t.numel() == size and t.ndim == 4)

    before, counts = alive(), []
    for state in stream(problem, prior, "red-diff", steps=50):
        if state.i in (5, 49):
            counts.append(alive() - before)
    assert 4 <= counts[0] == counts[1] <= 8, counts


# -- starts, and solvers whose samples see each other ------------------------------------------------------------------


def test_a_start_of_ones_own(problem, prior):
    x_init = prior.sample(3, 9)
    schedule = stream(problem, prior, "diffpir", steps=8).schedule
    run = stream(problem, prior, "diffpir", steps=8, x_init=x_init, sigma_start=0.2, samples=2)
    assert run.schedule.sigmas[0] == 0.2
    assert len(run.schedule) == 8
    assert run.schedule.sigmas[-2] == pytest.approx(schedule.sigmas[-2])
    own = stream(problem, prior, "diffpir", schedule=schedule, x_init=x_init, sigma_start=0.2)
    assert own.schedule.sigmas == (0.2, *(s for s in schedule.sigmas if s < 0.2))
    start = run._start(0, 6)
    noise = (start.x - x_init.repeat_interleave(2, 0)) / 0.2
    assert torch.equal(start.x0, x_init.repeat_interleave(2, 0))
    assert 0.8 < float(noise.std()) < 1.2
    one = stream(problem, prior, "diffpir", steps=8, x_init=x_init[0], sigma_start=0.2)
    assert torch.equal(one._start(0, 1).x, run._start(0, 1).x)


def test_a_start_without_a_signal_is_the_regularised_inverse(problem, prior):
    run = stream(problem, prior, "ddrm", steps=8, sigma_start=0.3)
    x0 = run._start(0, 3).x0
    assert torch.equal(x0, unveil.solvers.moves.regularised_inverse(problem))
    assert float((problem.operator(x0) - problem.y).std()) < 0.01


def test_a_clean_iterate_starts_without_noise(problem, prior):
    x_init = prior.sample(3, 9)
    for name in ("red-diff", "pnp-dm"):
        assert torch.equal(stream(problem, prior, name, steps=4, x_init=x_init)._start(0, 3).x, x_init)


@pytest.mark.parametrize("name", ["bird", "dmplug"])
def test_a_solver_of_seeds_says_where_it_starts(problem, prior, name):
    with pytest.raises(InputError, match=r"leave sigma_start \(--sigma-start\) out and give x_init alone"):
        stream(problem, prior, name, steps=4, sigma_start=0.3)
    x_init = prior.sample(3, 9)
    assert torch.equal(stream(problem, prior, name, steps=4, x_init=x_init)._start(0, 3).x0, x_init)
    top = stream(problem, prior, name, steps=4).schedule
    assert stream(problem, prior, name, steps=4, x_init=x_init, sigma_start=top.sigmas[0]).schedule == top


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_the_steps_asked_for_are_below_the_start(problem, prior, name):
    solver = unveil.get_solver(name)
    schedule = solver.schedule(prior, 4)
    rising = any(a < b for a, b in pairwise(schedule.sigmas))
    sigma = (schedule.sigmas[0] * schedule.sigmas[1]) ** 0.5 if schedule.sigmas[1] else schedule.sigmas[0]
    if name in ("bird", "dmplug"):
        sigma = schedule.sigmas[0]
    low = solver.below(schedule, sigma, len(schedule))
    assert low.sigmas[0] == sigma
    assert rising or len(low) == len(schedule)
    assert rising or all(a > b for a, b in pairwise(low.sigmas))


def test_a_start_belongs_to_the_run(problem, prior, tmp_path):
    x_init, path = prior.sample(3, 9), tmp_path / "run"
    run = stream(problem, prior, "diffpir", steps=4, x_init=x_init)
    next(run)
    unveil.run.checkpoint.save_checkpoint(run, path)
    unveil.run.checkpoint.resume_from(path, stream(problem, prior, "diffpir", steps=4, x_init=x_init))
    for other in (x_init + 0.1, None):
        with pytest.raises(unveil.errors.CheckpointError, match="x_init"):
            unveil.run.checkpoint.resume_from(path, stream(problem, prior, "diffpir", steps=4, x_init=other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_start": 1e5}, "the schedule goes from"),
        ({"sigma_start": 0.0}, "the schedule goes from"),
        ({"x_init": torch.zeros(2, *SHAPE)}, "one for each of 3 measurements"),
        ({"x_init": torch.full(SHAPE, math.nan)}, "not finite"),
    ],
)
def test_bad_starts_are_refused(problem, prior, options, message):
    with pytest.raises(InputError, match=message):
        stream(problem, prior, "diffpir", steps=4, **options)


@dataclass(frozen=True)
class Flock(Solver):
    """Particles that are pulled to the mean of their group; with the prior's slope, so that vjp is chunked too."""

    coupled = True
    gradient = True

    def step(self, state, run):
        sigma, sigma_next = run.schedule.pair(state.i)
        x0, pullback = run.prior.vjp(state.x, sigma)
        groups = x0.view(-1, run.samples, *x0.shape[1:])
        pull = (groups.mean(1, keepdim=True) - groups).flatten(0, 1)
        return state.next(x0 + 0.5 * pullback(pull) + sigma_next * run.rng.normal(x0), x0)


def test_coupled_samples_stay_together_in_any_chunk(problem, prior):
    whole = solve(problem, prior, Flock(), samples=4, steps=5, chunk=12)
    for chunk in (1, 3, 5, "auto"):
        counted = solve(problem, prior, Flock(), samples=4, steps=5, chunk=chunk)
        assert torch.allclose(counted.samples, whole.samples, atol=1e-5)
        assert (counted.nfe, counted.vjps) == (5, 5)
    alone = solve(problem.rows(slice(1, 2)), prior, Flock(), samples=4, steps=5)
    assert torch.allclose(alone.samples[0], whole.samples[1], atol=1e-5)


def test_a_chunk_bounds_the_calls_of_the_prior_of_coupled_samples(problem, prior):
    largest = []

    class Watched(Explodes):
        def denoise(self, x, sigma):
            largest.append(x.shape[0])
            return self.prior.denoise(x, sigma)

    solve(problem, Watched(prior, 0, 1), Flock(), samples=5, steps=3, chunk=2)
    assert set(largest) == {1, 2}
