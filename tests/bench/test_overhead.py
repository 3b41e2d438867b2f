"""The timing of solvers against one whose costs are known, and which tables the command prints."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from unveil.bench import overhead
from unveil.cli import app
from unveil.numerics.inner import inner_loop
from unveil.solvers.base import Run, Solver, State

NETWORK, OWN, LOOP = 24e-3, 16e-3, 8e-3


def burn(seconds: float) -> None:
    end = process_time() + seconds
    while process_time() < end:
        pass


class Slow(nn.Module):
    """A network whose forward pass takes NETWORK seconds of the processor, whatever the machine."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        del time
        burn(NETWORK)
        return 0.1 * x


@inner_loop
def chain() -> None:
    burn(LOOP)


class Spender(Solver):
    """Two network calls a step, OWN seconds beside them and LOOP in a loop of its own."""

    name: ClassVar[str] = "spender"

    def init(self, run: Run) -> State:
        return State(torch.zeros_like(run.like), torch.zeros_like(run.like))

    def step(self, state: State, run: Run) -> State:
        for _ in range(2):
            x0 = run.prior.denoise(state.x, run.schedule.sigmas[state.i])
        burn(OWN)
        chain()
        return state.next(x0, x0)


def test_known_costs_are_found() -> None:
    problem = overhead._first(overhead.tasks()["inpaint"])
    # the least of three: on top comes what the wrappers of the prior cost, 0.2 ms a call, up to 2 on a busy machine
    cost = min(
        (overhead.measure(Spender(), "inpaint", problem, Slow(), steps=5) for _ in range(3)), key=lambda c: c.own
    )
    assert cost.calls == 2
    assert OWN / 2 * 1e3 <= cost.own < 1.25 * OWN / 2 * 1e3
    assert 1 + OWN / (2 * NETWORK) <= cost.ratio < 1.08 + OWN / (2 * NETWORK)
    assert 1 + (OWN + LOOP) / (2 * NETWORK) <= cost.total < 1.08 + (OWN + LOOP) / (2 * NETWORK)
    assert cost.inner == {"chain": pytest.approx(LOOP / 2 * 1e3, rel=0.1)}
    assert cost.paired[1] == pytest.approx(cost.ratio, rel=0.1)


def test_particles_share_one_measurement(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measured(solver: Solver, task: str, problem: object, network: object, steps: int, samples: int = 1) -> object:
        del network
        seen.append((solver.name, problem.y.shape[0], samples, steps))  # type: ignore[attr-defined]
        # a particle method's own loops count
        return overhead.Cost(solver.name, task, 1.0, 1.2, (1.2, 1.2, 1.2), 1.0, {}, 1.0)

    monkeypatch.setattr(overhead, "measure", measured)
    status = overhead.main(["--tasks", "particles", "--solvers", "tds", "dps", "smcdiff", "--steps", "3"])
    assert seen == [("tds", 1, 64, 3), ("smcdiff", 1, 64, 3)]  # dps has no particles
    said = capsys.readouterr().out
    assert status == 1
    assert "missed: tds with 64 particles; smcdiff with 64 particles" in said
    assert "at most 1.05" in said
    assert "network calls in the run" not in said
    assert "256 x 256" not in said
    assert overhead.main(["--tasks", "loops", "--solvers", "dps"]) == 0
    assert "particles" not in capsys.readouterr().out


def test_the_command_has_the_options_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(overhead, "main", lambda words: asked.append(words) or 0)
    run = CliRunner().invoke
    words = [
        "bench",
        "overhead",
        "--solver",
        "tds",
        "--solver",
        "das",
        "--task",
        "particles",
        "--steps",
        "3",
        "--folded",
    ]
    assert run(app, words).exit_code == 0
    assert asked == [["--steps", "3", "--folded", "--solvers", "tds", "das", "--tasks", "particles"]]
    assert run(app, ["bench", "overhead"]).exit_code == 0
    assert asked[1] == ["--steps", "10"]
    wrong = run(app, ["bench", "overhead", "--task", "sharpen"])
    assert wrong.exit_code != 0
    assert "there is no task 'sharpen'" in str(wrong.exception)
    assert len(asked) == 2
    assert set(overhead.USUAL) < set(overhead.TASKS)
    assert set(overhead.tasks()) < set(overhead.TASKS)
