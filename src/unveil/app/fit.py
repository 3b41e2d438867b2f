"""``unveil fit``: what a solver can learn about a photograph, or about all that are degraded alike, ahead of time."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..run.fit import fit as learn
from ..run.fit import fittable, unfinished
from .job import open_prior, prepare, tiled
from .progress import Bar
from .restore import _threads
from .tasks import Asked, resolve, solver_for


def fit(photo: Path, asked: Asked, out: Path, resume: bool = False, quiet: bool = False) -> list[str]:
    """Fit the solver that ``asked`` names and write ``out``; returns what to tell the user.

    Raises :class:`InputError` before anything is computed if that cannot be done, or if ``out`` exists;
    KeyboardInterrupt leaves what ``resume`` goes on from.
    """
    if out.exists():
        raise InputError(f"{out} exists: choose another name with --out")
    if resume and not unfinished(out).is_file():
        raise InputError(f"there is no {unfinished(out)} to go on from: leave out --resume")
    asked = resolve(asked)
    fittable(asked.solver)
    _threads(asked)
    prior = open_prior(asked.prior).to(asked.device)
    job = prepare(photo, asked, prior.shape[0])
    solver, steps = solver_for(asked, job.problem)
    with Bar(f"fit {solver.name}", steps, quiet=quiet) as bar:
        result = learn(
            job.problem.to(job.device),
            tiled(prior, job.size),
            solver,
            out,
            steps=steps,
            seed=asked.seed,
            on_step=bar,
            resume=resume,
        )
    of = "photographs of this size that are degraded so" if fittable(asked.solver).amortised else "this measurement"
    lines = [f"note: {note}" for note in job.notes]
    words = f"unveil restore ... --solver {asked.solver} --set fitted={out}"
    return [*lines, f"wrote {out} in {result.seconds:.0f} s; for {of}: {words}"]
