"""Checkpoints: a run goes on to the same bits, or says in one line why it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import unveil
from unveil import Problem, Status, solve, stream
from unveil.errors import CheckpointError, InputError
from unveil.operators import Inpainting
from unveil.run.checkpoint import read_checkpoint, resume_from, save_checkpoint
from unveil.schedules import karras

SHAPE = (1, 4, 4)
STEPS = 6
SHORT = {
    "aps": {"batch": 4, "measurements": 2, "prior_steps": 2},
    "daps": {"inner_steps": 3},
    "davi": {"batch": 4, "measurements": 2, "prior_steps": 2},
    "pnp-dm": {"inner_steps": 3},
    "score-prior": {"batch": 2, "ode_steps": 1},
    "score-prior-surrogate": {"batch": 2},
}


@pytest.fixture
def prior():
    return unveil.GaussianPrior(torch.full((16,), 0.5), 0.05, shape=SHAPE)


@pytest.fixture
def problem(prior):
    mask = torch.ones(4, 4)
    mask[1:3, 1:3] = 0
    return Problem.simulate(prior.sample(2, 1), Inpainting(mask), 0.1, 2)


def stop_at(k):
    def on_step(state, run):
        return state.i < k

    return on_step


SHORT = {
    "daps": {"inner_steps": 3},
    "pnp-dm": {"inner_steps": 3},
    "unveil-exact": {"prior_steps": 3, "oversampling": 2, "inner_steps": 2, "renoisings": 1, "langevins": 1, "rest": 1},
}


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_a_cancelled_run_goes_on_to_the_same_bits(problem, prior, tmp_path, name):
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    path = tmp_path / "run.safetensors"
    if "noiseless" in solver.needs:
        problem = Problem(problem.y, problem.operator, 0.0, problem.shape)
    n = max(2, solver.particles)
    whole = solve(problem, prior, solver, steps=STEPS, samples=n)
    first = solve(problem, prior, solver, steps=STEPS, samples=n, checkpoint=path, on_step=stop_at(3))
    assert (first.status, first.steps_done) == (Status.CANCELLED, 3)
    assert path.is_file()
    second = solve(problem, prior, solver, steps=STEPS, samples=n, checkpoint=path, resume=True)
    assert second.status is Status.DONE
    assert torch.equal(second.samples, whole.samples)
    assert (second.nfe, second.vjps) == (whole.nfe, whole.vjps)
    assert second.seconds > first.seconds
    assert read_checkpoint(path)[0][0].i == 3, "the checkpoint stays until the result is saved"


def test_a_diverged_run_leaves_its_last_good_state(problem, prior, tmp_path):
    class Breaks(unveil.GaussianPrior):
        broken = True

        def denoise(self, x, sigma):
            return super().denoise(x, sigma) * (float("nan") if self.broken and sigma < 1 else 1)

    breaks = Breaks(torch.full((16,), 0.5), 0.05, shape=SHAPE)
    path = tmp_path / "run.safetensors"
    result = solve(problem, breaks, "diffpir", steps=STEPS, checkpoint=path)
    assert result.status is Status.DIVERGED
    (state, *_), _ = read_checkpoint(path)
    assert state.i == result.steps_done
    assert bool(torch.isfinite(state.x).all())


def test_an_interrupt_leaves_a_checkpoint_and_is_raised_again(problem, prior, tmp_path):
    path = tmp_path / "deep" / "run.safetensors"

    def interrupt(state, run):
        if state.i == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(problem, prior, "ddrm", steps=STEPS, checkpoint=path, on_step=interrupt)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    whole = solve(problem, prior, "ddrm", steps=STEPS)
    again = solve(problem, prior, "ddrm", steps=STEPS, checkpoint=path, resume=True)
    assert torch.equal(again.samples, whole.samples)


def test_an_interrupt_within_a_step_loses_that_step_alone(problem, prior, tmp_path):
    class Interrupted(unveil.GaussianPrior):
        left = 3

        def denoise(self, x, sigma):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().denoise(x, sigma)

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        solve(problem, Interrupted(torch.full((16,), 0.5), 0.05, shape=SHAPE), "ddrm", steps=STEPS, checkpoint=path)
    (state, *_), _ = read_checkpoint(path)
    assert state.i == 3


def test_checkpoints_come_at_intervals(problem, prior, tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    seen = []

    def look(state, run):
        seen.append(read_checkpoint(path)[0][0].i if path.exists() else None)

    solve(problem, prior, "ddrm", steps=4, checkpoint=path, checkpoint_seconds=0, on_step=look)
    assert seen == [None, 1, 2, 3]
    path.unlink()
    seen.clear()
    solve(problem, prior, "ddrm", steps=4, checkpoint=path, checkpoint_seconds=1e6, on_step=look)
    assert seen == [None] * 4


def test_a_checkpoint_may_be_resumed_in_other_chunks(problem, prior, tmp_path):
    path = tmp_path / "run.safetensors"
    solve(problem, prior, "ddrm", steps=STEPS, samples=3, checkpoint=path, on_step=stop_at(2))
    again = solve(problem, prior, "ddrm", steps=STEPS, samples=3, chunk=1, checkpoint=path, resume=True)
    whole = solve(problem, prior, "ddrm", steps=STEPS, samples=3)
    torch.testing.assert_close(again.samples, whole.samples, rtol=0, atol=1e-6)


def test_a_checkpoint_that_cannot_be_written_does_not_cost_the_result(problem, prior, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run.safetensors"
    assert solve(problem, prior, "ddrm", steps=2, checkpoint=path).status is Status.DONE
    with pytest.raises(InputError, match="cannot write"):  # not in silence where it is needed to go on
        solve(problem, prior, "ddrm", steps=STEPS, checkpoint=path, on_step=stop_at(2))


def test_nothing_to_save_before_the_first_step(problem, prior, tmp_path):
    with pytest.raises(CheckpointError, match="before the first step"):
        save_checkpoint(stream(problem, prior, "ddrm"), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# -- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(problem, prior, tmp_path):
    path = tmp_path / "run.safetensors"
    solve(problem, prior, "ddrm", steps=STEPS, checkpoint=path, on_step=stop_at(2))
    return path


def rewrite(path, change):
    with safe_open(path, framework="pt") as f:
        header = json.loads(f.metadata()["unveil-checkpoint"])
        data = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    change(header)
    save_file(data, path, {"unveil-checkpoint": json.dumps(header)})


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_truncated_file(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        read_checkpoint(saved)


def test_another_kind_of_file(tmp_path):
    (tmp_path / "a").write_text("hello, this is text, and long enough to hold a length")
    save_file({"x": torch.zeros(2)}, tmp_path / "b")
    for name in "ab":
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            read_checkpoint(tmp_path / name)


def test_another_format_version(saved):
    rewrite(saved, lambda h: h.update(format=99))
    with pytest.raises(CheckpointError, match=r"checkpoint format 99, this version reads 1: use unveil \d"):
        read_checkpoint(saved)


def test_a_header_with_parts_missing(saved):
    rewrite(saved, lambda h: h.pop("recipe"))
    with pytest.raises(CheckpointError, match="its header has no 'recipe'"):
        read_checkpoint(saved)


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({"solver": "ddnm"}, "solver, options"),
        ({"solver": unveil.get_solver("ddrm", eta=0.5)}, "options"),
        ({"steps": STEPS + 1}, "sigmas"),
        ({"schedule": karras(STEPS), "steps": None}, "sigmas"),
        ({"seed": 1}, "seeds"),
        ({"samples": 2}, "samples"),
    ],
)
def test_a_checkpoint_of_another_run(problem, prior, saved, change, differ):
    options = {"solver": "ddrm", "steps": STEPS, **change}
    with pytest.raises(CheckpointError, match=f"belongs to another run: {differ}"):
        solve(problem, prior, checkpoint=saved, resume=True, **options)
    assert saved.is_file(), "the checkpoint is left alone"


def test_a_checkpoint_of_other_data_or_of_another_prior(problem, prior, saved):
    louder = Problem(problem.y, problem.operator, 0.2)
    other_y = Problem(problem.y + 0.01, problem.operator, problem.noise)
    elsewhere = Problem(problem.y, Inpainting(1 - problem.operator.mask), problem.noise)
    for changed in (louder, other_y, elsewhere):
        with pytest.raises(CheckpointError, match="another run: problem"):
            resume_from(saved, stream(changed, prior, "ddrm", steps=STEPS))
    wider = unveil.GaussianPrior(torch.full((16,), 0.5), 0.06, shape=SHAPE)
    run = stream(problem, wider, "ddrm", schedule=stream(problem, prior, "ddrm", steps=STEPS).schedule)
    with pytest.raises(CheckpointError, match="another run: prior"):
        resume_from(saved, run)


def test_a_state_of_another_shape_cannot_be_resumed(problem, prior):
    state = next(stream(problem, prior, "ddrm", steps=3))
    with pytest.raises(InputError, match="the state to resume from"):
        stream(problem, prior, "ddrm", steps=3, samples=2, resume=state)


def test_resuming_a_finished_state_does_nothing(problem, prior):
    last = list(stream(problem, prior, "ddrm", steps=3))[-1]
    run = stream(problem, prior, "ddrm", steps=3, resume=last)
    assert list(run) == []
    assert (run.status, run.nfe) == (Status.DONE, 0)
