"""``unveil tune``: from words to a search, its progress, and a recipe for restore and reconstruct."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from ..errors import InputError, unknown
from ..io.ledger import Row
from ..priors.base import Prior
from ..problem import Problem
from ..run.stream import Stream
from ..solvers import get_solver
from ..solvers.base import Solver, State
from ..tuning import Tuning, read_tuned, tune
from ..tuning.recipe import own_file
from .calibrate import pictures, read_pictures
from .check import imported
from .device import pick
from .job import open_prior, prepare, tiled
from .restore import _threads
from .tasks import Asked, resolve, solver_for, typed


@dataclass(frozen=True)
class Wanted:
    """What a user says: ``what`` is a photograph (with a task), a file of an ``instrument``, or FILE.py:NAME."""

    what: str
    asked: Asked
    instrument: str | None = None
    config: Path | None = None
    objective: str | None = None
    calibration: Path | None = None
    pictures: int = 8
    score: str = "psnr"
    ranges: tuple[str, ...] = ()
    trials: int = 30
    probes: int = 1


def run(wanted: Wanted, out: Path, quiet: bool = False) -> Tuning:
    """Search, and write the recipe ``out``; trials are kept beside it, and the same call goes on from them.

    Raises an :class:`UnveilError` before anything is computed if that cannot be done.
    """
    own_file(out)
    prior, problem, solver, steps = setup(wanted)
    clean = None
    if wanted.calibration is not None:
        clean = clean_pictures(wanted.calibration, problem, wanted.pictures)
    with _Progress(wanted.trials, quiet).shown() as progress:
        found = tune(
            problem,
            prior,
            solver,
            objective=wanted.objective or ("discrepancy" if clean is None else "images"),
            calibration=clean,
            score=wanted.score,
            ranges=wanted.ranges or None,
            trials=wanted.trials,
            samples=wanted.asked.samples,
            steps=steps,
            sigma_start=wanted.asked.sigma_start,
            seed=wanted.asked.seed,
            chunk="auto" if wanted.asked.chunk == "auto" else int(wanted.asked.chunk),
            probes=wanted.probes,
            path=trials_file(out),
            on_trial=progress.trial,
            on_step=progress.step,
        )
    found.save(out)
    return found


def trials_file(out: Path) -> Path:
    """Where the trials of a recipe are kept."""
    return out.with_name(f"{out.stem}.trials.jsonl")


def setup(wanted: Wanted) -> tuple[Prior, Problem, Solver, int]:
    """Prior, problem, and the solver and steps that restore or reconstruct would run by themselves."""
    asked = wanted.asked
    if asked.solver == "auto":
        raise InputError("tune needs --solver NAME: auto has no options of its own")
    if wanted.config is not None and wanted.instrument is None:
        raise InputError("--config belongs to --instrument: leave it out")
    if asked.task and wanted.instrument is not None:
        raise InputError("a photograph has a --task, data have an --instrument: say one of them")
    if wanted.instrument is not None:
        return _scan(wanted)
    if asked.task:
        asked = resolve(asked)
        _threads(asked)
        prior = open_prior(asked.prior).to(asked.device)
        job = prepare(wanted.what, asked, prior.shape[0])
        return tiled(prior, job.size), job.problem.to(job.device), *solver_for(asked, job.problem)
    return _own(wanted)


def _scan(wanted: Wanted) -> tuple[Prior, Problem, Solver, int]:
    """The first slice of measured data."""
    from .reconstruct import _problem, _size, plan_of
    from .scan import read_scan

    assert wanted.instrument is not None
    asked = replace(wanted.asked, device=str(pick(wanted.asked.device)))
    _threads(asked)
    scan = read_scan(wanted.what, wanted.instrument, wanted.config)
    _, problem, prior = _problem(scan, 0, open_prior(asked.prior))
    plan = plan_of(asked, problem, wanted.instrument)
    return tiled(prior, _size(problem)).to(asked.device), problem.to(asked.device), plan.solver, plan.steps


def _own(wanted: Wanted) -> tuple[Prior, Problem, Solver, int]:
    """A problem of a file of code."""
    where, colon, name = wanted.what.rpartition(":")
    if not colon:
        raise InputError(
            "tune needs a photograph with --task, a file with --instrument, or FILE.py:NAME, a tuple of prior and "
            f"problem; got {wanted.what} alone"
        )
    module = imported(where)
    if not hasattr(module, name):
        raise InputError(str(unknown(f"name in {where}", name, [n for n in vars(module) if not n.startswith("_")])))
    value = getattr(module, name)
    value = value() if callable(value) else value
    asked, device = wanted.asked, pick(wanted.asked.device)
    _threads(asked)
    match value:
        case (Prior() as prior, Problem() as problem):
            solver = get_solver(asked.solver, **typed(asked.solver, asked.options))
            return prior.to(device), problem.to(device), solver, asked.steps or solver.default_steps
    raise InputError(f"{wanted.what} must be a tuple (prior, problem), or a function that returns one")


def clean_pictures(folder: Path, problem: Problem, most: int) -> Tensor:
    """The middles of up to ``most`` pictures of a folder, in the order of their names [N, *shape]."""
    if not folder.is_dir():
        raise InputError(f"--calibration is a folder of clean pictures, there is none at {folder}")
    if len(problem.shape) != 3:
        raise InputError(f"--calibration takes pictures, signals of shape {problem.shape} are none: use unveil.tune")
    if most < 1:
        raise InputError(f"--pictures must be at least 1, got {most}")
    files = pictures(folder)[:most]
    if not files:
        raise InputError(f"--calibration {folder} holds no pictures")
    return read_pictures(files, problem.shape, problem.value_range)


def with_recipe(asked: Asked, path: Path) -> Asked | None:
    """``asked`` with solver, options and steps of a tuned recipe; None if the file is no such recipe.

    What the user sets goes over it. Raises :class:`InputError` for another solver than the recipe's.
    """
    tuned = read_tuned(path)
    if tuned is None:
        return None
    name = tuned.solver.name
    if asked.solver not in ("auto", name):
        raise InputError(f"{path} is a recipe for {name}: leave out --solver {asked.solver}")
    if asked.budget is not None:
        raise InputError("--budget tells auto what to choose by, the recipe has chosen: leave it out")
    own = typed(name, asked.options)
    # all of them, also those that are None: nothing else is to fill them in
    options = {f.name: getattr(tuned.solver, f.name) for f in fields(tuned.solver)}
    return replace(
        asked,
        solver=name,
        options={**options, **own},
        steps=asked.steps or tuned.steps,
        sigma_start=asked.sigma_start if asked.sigma_start is not None else tuned.sigma_start,
    )


class _Progress:
    """How far a search is, on standard error: in place on a terminal, a line for each trial elsewhere."""

    def __init__(self, trials: int, quiet: bool) -> None:
        self.trials, self.console = trials, Console(stderr=True, quiet=quiet)
        self.done, self.best, self.begun = 0, "", time.monotonic()
        self.fresh = 0
        self.status: Any = None

    @contextmanager
    def shown(self) -> Iterator[_Progress]:
        with self.console.status(f"0 of {self.trials} trials") as self.status:
            yield self

    def step(self, state: State, run: Stream) -> None:
        left = ""
        if self.fresh:
            seconds = (time.monotonic() - self.begun) / self.fresh * (self.trials - self.done)
            left = f", about {seconds:.0f} s left"
        words = f"{self.done} of {self.trials} trials{left}; step {state.i} of {run.steps}"
        self.status.update(f"{words}{self.best}")

    def trial(self, row: Row, so_far: Tuning) -> None:
        self.fresh += 1
        self.done = len(so_far.trials)
        if row["value"] is not None:
            self.best = f"; best {so_far.best['value']:.4g} (trial {so_far.best['trial']})"
        if not self.console.is_terminal:
            options = ", ".join(f"{k}={_short(v)}" for k, v in row["changed"].items()) or "as it is"
            found = row["status"] if row["value"] is None else f"{row['value']:.4g}"
            words = f"{self.done} of {self.trials}: {options}: {found}{self.best}"
            self.console.print(words, highlight=False, markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
