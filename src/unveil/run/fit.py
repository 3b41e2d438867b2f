"""``fit``: let a solver learn ahead of time, and keep what it has learned in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..priors.base import Prior
from ..problem import Problem
from ..solvers.base import Solver, State
from .result import Result
from .solve import OnStep, solve
from .stream import Status, Stream

if TYPE_CHECKING:
    from ..solvers.variational.fitted import Fitted


def fittable(solver: Solver | str) -> Fitted:
    """A solver that learns while it runs, by name or itself. Raises :class:`InputError` for every other."""
    from ..solvers import get_solver
    from ..solvers.variational import FITTED
    from ..solvers.variational.fitted import Fitted

    made = get_solver(solver) if isinstance(solver, str) else solver
    if not isinstance(made, Fitted):
        raise InputError(f"{made.name or type(made).__name__} learns nothing ahead of time: {', '.join(FITTED)} do")
    if made.fitted:
        raise InputError(f"{made.name} would read {made.fitted} and learn nothing: leave out the option fitted")
    return made


def unfinished(path: str | Path) -> Path:
    """Where an interrupted :func:`fit` to ``path`` leaves what it needs to go on."""
    path = Path(path)
    return path.with_name(f"{path.stem}.unfinished.safetensors")


def fit(
    problem: Problem,
    prior: Prior,
    solver: Solver | str,
    path: str | Path,
    *,
    steps: int | None = None,
    seed: int | Sequence[int] = 0,
    on_step: OnStep | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = False,
) -> Result:
    """Learn what a solver draws its samples from, and write it to ``path``, a .safetensors file, atomically.

    ``get_solver(name, fitted=path)`` then draws from it in one step. Of an amortised solver the file serves every
    measurement that the same operator and noise make (the data of ``problem`` are not used, its first row stands for
    all); of the others the measurements of ``problem``. Steps, seed and on_step are as for :func:`unveil.solve`.

    An interrupted fit, or one that ``on_step`` ends, leaves :func:`unfinished` beside ``path``; ``resume`` goes on from
    there, to the same bits. Returns the result of the run, whose samples are draws. Raises :class:`InputError` before
    anything is computed, and if the run diverges.
    """
    solver = fittable(solver)
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"a fit is a .safetensors file, got {path}")
    problem = problem[0] if solver.amortised else problem
    last: list[tuple[State, Stream]] = []

    def keep(state: State, run: Stream) -> object:
        last[:] = [(state, run)]
        return None if on_step is None else on_step(state, run)

    there = unfinished(path)
    result = solve(
        problem,
        prior,
        solver,
        steps=steps,
        seed=seed,
        on_step=keep,
        checkpoint=there,
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
    )
    if result.status is Status.DIVERGED:
        raise InputError(f"the fit diverged: {result.reason}; try a smaller lr, or clip=1")
    if result.status is Status.DONE:
        from ..solvers.variational.fitted import save_fit

        state, run = last[-1]
        save_fit(path, solver, run.problem, prior, state)
        there.unlink(missing_ok=True)
    return result
