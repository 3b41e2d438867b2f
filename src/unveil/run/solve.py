"""``solve``: run a solver to the end and gather a Result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError
from ..numerics.parts import in_parts
from ..numerics.resampling import normalise
from ..priors.base import Prior
from ..problem import Problem, squared_norm
from ..schedules import Schedule
from ..solvers.base import Solver, State
from .checkpoint import resume_from, save_checkpoint
from .counted import PeakMemory
from .recipe import recipe
from .result import Result
from .stream import Budget, Status, Stream, stream

GOALS = ("sample", "mmse", "map")

FIT = 16
"""Samples at most whose fit to the data is computed together."""

OnStep = Callable[[State, Stream], object]


def solve(
    problem: Problem,
    prior: Prior,
    solver: Solver | str = "auto",
    *,
    goal: str = "sample",
    samples: int = 1,
    steps: int | None = None,
    schedule: Schedule | None = None,
    seed: int | Sequence[int] = 0,
    chunk: int | str = "auto",
    budget: Budget | None = None,
    x_init: Tensor | None = None,
    sigma_start: float | None = None,
    on_step: OnStep | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
) -> Result:
    """Recover the signals of a problem.

    Arguments as for :func:`unveil.stream`, and:

    goal:
        What is wanted: a posterior ``sample``, the posterior mean ``mmse`` or the mode ``map``.
    solver:
        With "auto" the solver, its options and its steps are picked from the measurements that ship with the package
        (:mod:`unveil.solvers.auto`), by what the problem allows, the goal, and ``steps`` or the ``budget``; the recipe
        says under ``auto`` what was picked and why.
    on_step:
        Called with (state, stream) after every step; the run is cancelled when it returns False.
    checkpoint, checkpoint_seconds, resume:
        A file that is rewritten at this interval and when the run is cancelled, interrupted or diverges; with
        ``resume`` the run goes on from it, to the same bits as a run without interruption. It is never removed here,
        because the result is in memory only: remove it once :meth:`Result.save` has written that.

    Raises :class:`InputError` or :class:`NotCompatible` before anything is computed.
    """
    if goal not in GOALS:
        raise InputError(f"goal must be one of {', '.join(GOALS)}, got '{goal}'")
    why = ""
    if solver == "auto":
        from ..solvers import choose

        limit = budget or Budget()
        choice = choose(problem, goal, samples=samples, steps=steps, nfe=limit.nfe, seconds=limit.seconds, prior=prior)
        solver, why = choice.solver, choice.reason
        steps = choice.steps if schedule is None else None
    run = stream(
        problem,
        prior,
        solver,
        samples=samples,
        steps=steps,
        schedule=schedule,
        seed=seed,
        chunk=chunk,
        budget=budget,
        x_init=x_init,
        sigma_start=sigma_start,
    )
    if resume:
        if checkpoint is None:
            raise InputError("resume needs the checkpoint to go on from: solve(..., checkpoint=path, resume=True)")
        resume_from(checkpoint, run)
    memory = PeakMemory(problem.device)
    saved = time.monotonic()
    try:
        for state in run:
            if on_step is not None and on_step(state, run) is False:
                run.cancel("cancelled by the caller")
            if checkpoint is not None and time.monotonic() - saved > checkpoint_seconds and state.i < run.steps:
                save_checkpoint(run, checkpoint, goal)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if checkpoint is not None and run.state is not None:
            save_checkpoint(run, checkpoint, goal)
        raise
    # not when it is done: a file that cannot be written must not cost the result
    if checkpoint is not None and run.status is not Status.DONE and run.state is not None:
        save_checkpoint(run, checkpoint, goal)
    result = gather(run, goal, memory.read())
    return replace(result, recipe={**result.recipe, "auto": why}) if why else result


def gather(run: Stream, goal: str, peak_bytes: int = 0) -> Result:
    """The result of a run as far as it has come. Raises :class:`InputError` if it has no state, saying why."""
    state, problem = run.state, run.problem
    if state is None:
        how = {Status.CANCELLED: "was cancelled before its first step", Status.DIVERGED: "diverged"}
        reason = f": {run.reason}" if run.reason else ""
        raise InputError(f"the run {how.get(run.status, 'has not made its first step')}{reason}; there is no result")
    final = state.x if run.status is Status.DONE else state.x0
    with torch.no_grad():
        misfit, residual = _fit(problem, run.index, final, min(run.chunk or FIT, FIT))
    rows = (problem.y.shape[0], run.samples)
    weights = log_evidence = None
    if "log_weights" in state.aux:
        weights, log_mean = normalise(state.aux["log_weights"].reshape(rows))
        if "log_evidence" in state.aux and run.status is Status.DONE and run.x_init is None:
            log_evidence = state.aux["log_evidence"].reshape(rows)[:, 0] + log_mean
    lines = state.aux.get("ancestors")
    return Result(
        samples=final.reshape(*rows, *final.shape[1:]),
        misfit=None if misfit is None else misfit.reshape(rows),
        residual=residual.reshape(rows),
        recipe=recipe(run, goal),
        nfe=run.nfe,
        vjps=run.vjps,
        seconds=run.seconds,
        peak_bytes=peak_bytes,
        status=run.status,
        steps_done=state.i,
        reason=run.reason,
        goal=goal,
        weights=weights,
        log_evidence=log_evidence,
        ancestors=None if lines is None else lines.reshape(rows),
    )


def _fit(problem: Problem, index: Tensor, x0: Tensor, size: int) -> tuple[Tensor | None, Tensor]:
    """Chi-square per degree of freedom (None without noise) and the RMS residual, per row, ``size`` rows at a time.

    ``index`` [N] says which row of y a signal of x0 [N, *shape] belongs to.
    """

    def fit(rows: slice) -> tuple[Tensor, ...]:
        clean = problem.operator(x0[rows])
        r = problem.y[index[rows]] - clean
        residual = (squared_norm(r) / problem.m).sqrt()
        variance = problem.noise.variance(clean)
        return (residual,) if variance is None else (residual, squared_norm(r / variance**0.5) / problem.m)

    residual, *misfit = in_parts(x0.shape[0], size, fit)
    return misfit[0] if misfit else None, residual
