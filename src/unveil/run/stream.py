"""``stream``: the only loop over steps in the library."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NotCompatible
from ..numerics.resampling import effective_size, normalise
from ..priors.base import Prior
from ..problem import Problem
from ..rng import Rng
from ..schedules import Schedule
from ..solvers.base import Run, Solver, State
from ..solvers.moves import regularised_inverse, renoise
from .counted import Cost, Counted

BLOW_UP = 1e3
"""A run has diverged when |x| or |x0| passes this many times the largest value that its noise level and range allow."""


class Status(str, Enum):
    """How a run ended; RUNNING is what a checkpoint of it says."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    CANCELLED = "CANCELLED"
    DIVERGED = "DIVERGED"


@dataclass(frozen=True)
class Budget:
    """Limits of a run; it is cancelled before the step that would pass one. ``nfe`` is per sample."""

    nfe: float | None = None
    seconds: float | None = None


@dataclass
class Stream(Iterator[State]):
    """A run in progress: an iterator over states, with what it has cost so far.

    After the last state, ``status`` says how it ended; ``state`` is always the last good one, None if there is none.
    """

    problem: Problem
    prior: Prior
    solver: Solver
    schedule: Schedule
    seeds: Sequence[int]
    samples: int
    chunk: int | None
    budget: Budget
    x_init: Tensor | None = None
    state: State | None = None
    status: Status = Status.RUNNING
    reason: str = ""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.cost = Cost()
        self.counted = Counted(self.prior, self.cost)
        rows = [(b, s) for b in range(self.problem.y.shape[0]) for s in range(self.samples)]
        self.keys = [(self.seeds[b], s) for b, s in rows]
        self.index = torch.tensor([b for b, _ in rows], device=self.problem.device)
        self._steps_timed = 0
        self._spread: dict[tuple[int, int], Problem] = {}

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return len(self.schedule)

    @property
    def n(self) -> int:
        """Number of rows: measurements times samples."""
        return len(self.keys)

    @property
    def nfe(self) -> float:
        """Evaluations of the prior so far, per sample."""
        return self.cost.forward / self.n

    @property
    def vjps(self) -> float:
        """Back-propagations through the prior so far, per sample."""
        return self.cost.backward / self.n

    def __iter__(self) -> Iterator[State]:
        return self

    def __next__(self) -> State:
        if self.status is not Status.RUNNING:
            raise StopIteration
        if self.state is not None and self.state.i >= self.steps:
            self.status = Status.DONE
            raise StopIteration
        if self._over_budget():
            self.status = Status.CANCELLED
            raise StopIteration
        start = time.perf_counter()
        with torch.no_grad():
            new = self._advance()
            trouble = self._trouble(new)
        self.seconds += time.perf_counter() - start
        self._steps_timed += 1
        if trouble is not None:
            self.status = Status.DIVERGED
            self.reason = f"step {new.i} of {self.steps} {trouble}"
            self._drop_a_bad_start()
            raise StopIteration
        self.state = new
        return new

    def cancel(self, reason: str = "cancelled") -> None:
        """End the run after the state that was last given out."""
        if self.status is Status.RUNNING:
            self.status, self.reason = Status.CANCELLED, reason

    # -- one step, in chunks --------------------------------------------------------------------------------------

    def _advance(self) -> State:
        if self.chunk is None:  # all at once, halved as often as the device runs out of memory
            self.chunk = _first_chunk(self.problem, self.n)
        while True:
            try:
                before = (self.cost.forward, self.cost.backward)
                return self._chunks(self.chunk)
            except torch.OutOfMemoryError:
                if self.chunk == 1:
                    raise
                self.cost.forward, self.cost.backward = before
                self.chunk = (self.chunk + 1) // 2

    def _chunks(self, size: int) -> State:
        if self.solver.coupled:  # whole measurements; the prior takes as few rows at a time as asked
            self.counted = replace(self.counted, chunk=size)
            size = max(1, size // self.samples) * self.samples
        if self.state is None:
            self.state = State.cat([self._start(a, min(a + size, self.n)) for a in range(0, self.n, size)])
        state = self.state
        parts = []
        for a in range(0, self.n, size):
            b = min(a + size, self.n)
            part = state if size >= self.n else state.rows(a, b)
            parts.append(self._step(part, self._run(a, b, state.i + 1)))
        return State.cat(parts)

    def _start(self, a: int, b: int) -> State:
        run = self._run(a, b, 0)
        return self.solver.init(run) if self.x_init is None else self.solver.start(run, self.x_init[a:b])

    def _step(self, state: State, run: Run) -> State:
        sigma, sigma_next = self.schedule.pair(state.i)
        if sigma_next > sigma:  # time travel: the way up is the same for all solvers
            return state.next(renoise(state.x, sigma, sigma_next, run.rng), state.x0, **state.aux)
        return self.solver.step(state, run)

    def _run(self, start: int, stop: int, step: int) -> Run:
        if (start, stop) not in self._spread:
            if self.solver.coupled and stop - start == self.samples:
                spread = self.problem.repeated(start // self.samples, self.samples)
            else:
                spread = self.problem.rows(slice(start, stop) if self.samples == 1 else self.index[start:stop])
            self._spread[start, stop] = spread
        problem = self._spread[start, stop]
        rng = Rng(self.keys[start:stop], step)
        if not self.solver.coupled:
            return Run(problem, self.counted, self.schedule, rng)
        return Run(problem, self.counted, self.schedule, rng, self.samples, self.counted.chunk)

    # -- guards ---------------------------------------------------------------------------------------------------

    def _trouble(self, state: State) -> str | None:
        """What is wrong with a state, None if nothing is."""
        log_weights = _weights(state)
        facts = [state.x.abs().amax(), state.x0.abs().amax()]
        if log_weights is not None:
            best = log_weights.reshape(-1, self.samples).amax(1)
            facts += [(~torch.isfinite(best)).sum().to(state.x), (best == -torch.inf).sum().to(state.x)]
        # the only place where the host waits for the device
        x, x0, bad, dead = (*torch.stack(facts).tolist(), 0.0, 0.0)[:4]
        if dead:
            return self._dead(dead)
        lo, hi = self.problem.value_range
        limit = BLOW_UP * (max(abs(lo), abs(hi)) + (hi - lo) + max(self.schedule.sigmas))
        if not (x < limit and x0 < limit) or bad:
            return (
                f"gave values that are not finite or far out of range{self._size()}: check operator, noise and units, "
                "or take shorter steps"
            )
        return None

    def _dead(self, count: float) -> str:
        return (
            f"left no particle of {count:.0f} of {self.problem.y.shape[0]} measurements with a likelihood above zero"
            f"{self._size()}: use more particles (samples=...) or more steps, and check operator, noise and units"
        )

    def _size(self) -> str:
        """The effective sample size of the last good state in words, of a solver that weighs its particles."""
        before = _weights(self.state) if self.state is not None else None
        if before is None:
            return ""
        ess = float(effective_size(normalise(before.reshape(-1, self.samples))[0]).amin())
        return f" (effective sample size before it: {ess:.3g} of {self.samples})"

    def _drop_a_bad_start(self) -> None:
        start = self.state
        if start is not None and start.i == 0 and not bool((torch.isfinite(start.x) & torch.isfinite(start.x0)).all()):
            self.state = None
            self.reason = "the state before the first step is not finite: check the operator's adjoint (unveil check)"

    def _over_budget(self) -> bool:
        done = self.state.i if self.state is not None else 0
        if self.budget.nfe is not None and done and self.nfe * (1 + 1 / done) > self.budget.nfe:
            self.reason = f"the budget of {self.budget.nfe:g} evaluations is spent after step {done}"
            return True
        timed = self._steps_timed
        if self.budget.seconds is not None and timed and self.seconds * (1 + 1 / timed) > self.budget.seconds:
            self.reason = f"the budget of {self.budget.seconds:g} s is spent after step {done}"
            return True
        return False


def _weights(state: State) -> Tensor | None:
    """What says whether the samples of a state are worth anything, if they are ever not."""
    return state.aux.get("log_weights", state.aux.get("possible"))


def _first_chunk(problem: Problem, n: int) -> int:
    """All samples on a GPU (halved when memory runs out); about a million values at a time elsewhere.

    A CPU gains nothing from larger batches, and running out of memory there cannot be caught.
    """
    if problem.device.type == "cuda":
        return n
    numel = 1
    for k in problem.shape:
        numel *= k
    return max(1, min(n, 2**20 // numel))


def stream(
    problem: Problem,
    prior: Prior,
    solver: Solver | str,
    *,
    samples: int = 1,
    steps: int | None = None,
    schedule: Schedule | None = None,
    seed: int | Sequence[int] = 0,
    chunk: int | str = "auto",
    budget: Budget | None = None,
    x_init: Tensor | None = None,
    sigma_start: float | None = None,
    resume: Any = None,
) -> Stream:
    """Run a solver, one state at a time.

    Parameters
    ----------
    problem, prior:
        In the same value range, else :class:`NotCompatible`.
    solver:
        A solver, or the name of one.
    samples:
        Samples per measurement. Rows of a state are ordered measurement by measurement.
    steps, schedule:
        Number of steps of the solver's own schedule (default: the solver's), or a schedule.
    seed:
        One seed for all measurements, or one for each. Sample k of a measurement depends on its seed and on k,
        never on the batch, the chunk or the worker. With one seed a measurement gives the same samples alone and in
        any batch (measurements then share their random numbers; give one seed each if that matters).
    chunk:
        Samples that go through a step together; of methods whose particles see each other, those that go through
        network, operator and likelihood together. "auto" chooses, and halves on a GPU that is out of memory.
    budget:
        Limits after which the run is cancelled.
    x_init, sigma_start:
        Start at a given signal, [*shape], [B, *shape] or [B * samples, *shape] in the value range, with noise of level
        ``sigma_start`` (default: the first of the schedule) added. All ``steps`` are then spaced below that level, as
        the solver spaces its own; of a ``schedule``, and of one that travels in time, the levels above it are left
        out, and fewer steps remain. Without ``x_init`` the start is the pseudo-inverse, regularised where there is
        noise. "Come closer, diffuse faster", Chung, Sim, Ye 2022, arXiv 2112.05146, equation 8.
    resume:
        A state, or a loaded checkpoint, of the same run to go on from.
    """
    if isinstance(solver, str):
        from ..solvers import get_solver

        solver = get_solver(solver)
    problem = problem.white
    check_fit(problem, prior, solver)
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    if samples < solver.particles:
        raise InputError(
            f"{solver.name or type(solver).__name__} needs at least {solver.particles} particles, got {samples}: "
            f"say samples={max(solver.particles, 16)} (on the command line --samples {max(solver.particles, 16)})"
        )
    if steps is not None and steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    spaced = None
    if schedule is None:
        schedule = solver.schedule(prior, steps or solver.default_steps)
        spaced = len(schedule)
    elif steps is not None:
        raise InputError("give steps or schedule, not both")
    rows = problem.y.shape[0]
    seeds = [seed] * rows if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise InputError(f"got {len(seeds)} seeds for {rows} measurements: give one, or one each")
    if isinstance(chunk, str):
        if chunk != "auto":
            raise InputError(f"chunk must be a number or 'auto', got '{chunk}'")
        size = None
    elif chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    else:
        size = chunk
    if sigma_start is not None:
        schedule = solver.below(schedule, sigma_start, spaced)
        x_init = regularised_inverse(problem) if x_init is None else x_init
    if x_init is not None:
        x_init = _rows_of(x_init, problem, samples)
    running = Stream(problem, prior, solver, schedule, seeds, samples, size, budget or Budget(), x_init)
    if resume is not None:
        state, nfe, vjps, seconds = resume if isinstance(resume, tuple) else (resume, 0.0, 0.0, 0.0)
        if state.x.shape[0] != running.n or tuple(state.x.shape[1:]) != problem.shape:
            raise InputError(f"the state to resume from has shape {tuple(state.x.shape)}, the run needs another")
        running.state, running.seconds = state.to(problem.device), seconds
        running.cost.forward, running.cost.backward = round(nfe * running.n), round(vjps * running.n)
    return running


def _rows_of(x_init: Tensor, problem: Problem, samples: int) -> Tensor:
    """A start for every row of a run."""
    rows, shape = problem.y.shape[0], problem.shape
    if tuple(x_init.shape) == shape:
        x_init = x_init[None]
    if tuple(x_init.shape[1:]) != shape or x_init.shape[0] not in (1, rows, rows * samples):
        raise InputError(
            f"x_init has shape {tuple(x_init.shape)}; give one signal {shape}, one for each of {rows} measurements, or "
            f"one for each of {rows * samples} samples"
        )
    if not bool(torch.isfinite(x_init).all()):
        raise InputError("x_init has values that are not finite")
    x_init = x_init.to(problem.like)
    return x_init.repeat_interleave(rows * samples // x_init.shape[0], 0)


def check_fit(problem: Problem, prior: Prior, solver: Solver) -> None:
    """Raise :class:`NotCompatible`, naming the mend, unless problem, prior and solver fit together."""
    if tuple(prior.value_range) != tuple(problem.value_range):
        lo, hi = problem.value_range
        raise NotCompatible(
            f"the prior lives in {prior.value_range}, the problem in {problem.value_range}: use "
            f"prior.in_range({lo:g}, {hi:g}), or say Problem(..., value_range={prior.value_range})"
        )
    shape = problem.shape
    if len(shape) != len(prior.shape) or any(p not in (None, q) for p, q in zip(prior.shape, shape, strict=False)):
        want = ", ".join("any" if p is None else str(p) for p in prior.shape)
        raise NotCompatible(f"the prior knows signals of shape ({want}), the problem has {tuple(shape)}")
    why = solver.unfit(problem)
    if why:
        from ..solvers import list_solvers

        fits = list_solvers(fits=problem)
        raise NotCompatible(
            f"{solver.name or type(solver).__name__} does not fit this problem: {why}; "
            f"these do: {', '.join(fits) or 'none'}"
        )
    solver.check(problem, prior)
