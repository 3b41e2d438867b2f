"""What a step does, counted and not timed: image-sized operations, and waits of the host for the device.

Counts are the same on every machine, so that a test can gate them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..numerics.inner import watch
from ..priors.base import Prior
from ..problem import Problem
from ..rng import Rng
from ..run.counted import Counted
from ..schedules import Schedule
from ..solvers.base import Run, Solver, State
from ..solvers.moves import renoise

FREE = {
    "_conj", "_neg_view", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "detach_",
    "diagonal", "empty", "empty_like", "empty_permuted", "empty_strided", "expand", "expand_as", "imag",
    "lift_fresh", "movedim", "narrow", "new_empty", "new_empty_strided", "permute", "real", "reshape",
    "reshape_as", "resize_", "resolve_conj", "select", "set_", "slice", "split", "split_with_sizes",
    "squeeze", "t", "transpose", "unbind", "unflatten", "unfold", "unsafe_split", "unsqueeze", "view",
    "view_as", "view_as_complex", "view_as_real",
}  # fmt: skip
"""Operations that touch no values: views and allocations."""

SYNCS = {
    "_assert_scalar", "_linalg_check_errors", "_local_scalar_dense", "_unique", "_unique2", "argwhere",
    "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_consecutive",
    "unique_dim",
}  # fmt: skip
"""Operations whose result, or whose size, the host has to wait for."""

READS = (Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.__array__)
"""Methods that bring values to the host without showing as an operation on the CPU."""

PUTS = (torch.tensor, torch.as_tensor, torch.asarray)
"""Functions that, told a device, bring numbers of the host to it, for which the host waits too."""


@dataclass(eq=False)
class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that counts, while it is active, the operations that touch ``size`` or more values at once.

    ``ops`` are those outside inner loops (:mod:`unveil.numerics.inner`), ``inner`` those inside, by the name of
    the outermost loop; each by the operation's name. ``syncs`` names the host synchronisations, inner loops
    included. Views and allocations are free.
    """

    size: int
    ops: Counter[str] = field(default_factory=Counter)
    inner: dict[str, Counter[str]] = field(default_factory=dict)
    syncs: list[str] = field(default_factory=list)
    where: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Tally:
        self._stack = contextlib.ExitStack()
        token = watch.set(self.loop)
        self._stack.callback(watch.reset, token)
        self._stack.enter_context(_Reads(self.syncs))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    @contextlib.contextmanager
    def loop(self, name: str) -> Iterator[None]:
        """An inner loop."""
        self.where.append(name)
        try:
            yield
        finally:
            self.where.pop()

    def add(self, name: str, n: int = 1) -> None:
        """Count ``n`` image-sized operations here."""
        if self.where:
            self.inner.setdefault(self.where[0], Counter())[name] += n
        else:
            self.ops[name] += n

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        if _waits(name, args, kwargs, out):
            self.syncs.append(name)
        if name not in FREE and any(t.numel() >= self.size for t in tensors):
            self.add(name)
        return out


def _waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
    if name in SYNCS:
        return True
    if name in ("index", "index_put", "index_put_"):  # a boolean index has a size that only the device knows
        return any(isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in args[1])
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("_to_copy", "copy_") and isinstance(out, Tensor):
        source = args[0] if name == "_to_copy" else args[1]
        return source.device.type != "cpu" and out.device.type == "cpu"
    return False


class _Reads(TorchFunctionMode):
    """Notes the methods of READS, and the functions of PUTS that are given numbers and a device."""

    def __init__(self, syncs: list[str]) -> None:
        super().__init__()
        self.syncs = syncs

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # item ends in _local_scalar_dense, which the other mode sees
        if func in READS and func is not Tensor.item:
            self.syncs.append(func.__name__)
        numbers = func is Tensor.new_tensor or (func in PUTS and (kwargs or {}).get("device") is not None)
        if numbers and not any(isinstance(a, Tensor) for a in args[-1:]):
            self.syncs.append(func.__name__)
        return func(*args, **(kwargs or {}))


class TalliedRng(Rng):
    """A random stream whose draws count as one image-sized operation each (on a GPU: a kernel per row)."""

    def __init__(self, keys: Any, step: int, tally: Tally | None) -> None:
        super().__init__(keys, step)
        self.tally = tally

    def _next(self, like: Tensor) -> int:
        if self.tally is not None and like.numel() >= self.tally.size:
            self.tally.add("random")
        return super()._next(like)


@dataclass(frozen=True)
class StepCount:
    """What one step did: calls of the prior, forward and pullback, and the tally of everything it did."""

    forward: int
    backward: int
    tally: Tally

    @property
    def ops_per_call(self) -> float:
        """Image-sized operations per forward call, outside inner loops."""
        return sum(self.tally.ops.values()) / max(self.forward, 1)

    @property
    def inner_per_call(self) -> dict[str, float]:
        """The same inside inner loops, by loop."""
        return {k: sum(v.values()) / max(self.forward, 1) for k, v in self.tally.inner.items()}


def make_runs(
    problem: Problem, prior: Prior, schedule: Schedule, samples: int = 1
) -> Callable[[int, Tally | None], Run]:
    """A maker of what step i of a run reads (i = 0 for the start), of some samples per measurement.

    Every call gives a fresh random stream, so that a step can be taken more than once.
    """
    n = problem.y.shape[0]
    keys = [(k, s) for k in range(n) for s in range(samples)]
    rows = problem.rows(slice(None) if samples == 1 else torch.arange(n).repeat_interleave(samples))
    return lambda i, tally: Run(rows, prior, schedule, TalliedRng(keys, i, tally), samples)


def particles(solver: Solver) -> int:
    """Samples per measurement to count or time a solver with: one, or a few where they see each other."""
    return max(4, solver.particles) if solver.coupled else 1


def walk(
    problem: Problem, prior: Prior, solver: Solver, schedule: Schedule
) -> Iterator[tuple[State, Callable[[Tally | None], Run]]]:
    """The states that a solver steps from, each with what makes its run; :func:`particles` samples per measurement."""
    runs = make_runs(problem, prior, schedule, particles(solver))
    with torch.no_grad():
        state = solver.init(runs(0, None))
    for i in range(1, len(schedule) + 1):
        sigma, sigma_next = schedule.pair(i - 1)
        if sigma_next > sigma:  # time travel: the way up is the driver's, not the solver's
            state = state.next(renoise(state.x, sigma, sigma_next, runs(i, None).rng), state.x0, **state.aux)
            continue
        yield state, partial(runs, i)
        with torch.no_grad():
            state = solver.step(state, runs(i, None))


def count_steps(
    problem: Problem, prior: Prior, solver: Solver, steps: int = 4, schedule: Schedule | None = None
) -> list[StepCount]:
    """Count every step of a short run, each taken once before: what is made only once is not counted."""
    counted = Counted(prior)
    n, size = problem.y.shape[0] * particles(solver), prod(problem.shape)
    out = []
    for state, run in walk(problem, counted, solver, schedule or solver.schedule(prior, steps)):
        tally = Tally(size)
        with torch.no_grad():
            solver.step(state, run(None))
            forward, backward = counted.cost.forward, counted.cost.backward
            reading = run(tally)
            with tally:
                solver.step(state, reading)
        out.append(StepCount((counted.cost.forward - forward) // n, (counted.cost.backward - backward) // n, tally))
    return out
