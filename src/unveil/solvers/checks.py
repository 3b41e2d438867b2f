"""What every solver promises, as checks that measure a deviation and raise AssertionError if it is too large.

``check_solver`` runs all of them on small problems whose priors are analytic; the test suite and the command
``unveil check`` use it on any solver. Deviations are the largest difference of two samples, relative to the width of
the value range, in double precision; 0 where the promise is about bits.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bench.counting import Tally, particles, walk
from ..errors import NotCompatible
from ..noise import Gaussian, NoNoise
from ..operators import Blur, Inpainting, Matrix, gaussian_kernel
from ..priors.base import Prior, Pullback, Sigma
from ..priors.gaussian import GaussianPrior
from ..priors.mixture import GaussianMixturePrior
from ..problem import Problem, as_noise
from ..run.checkpoint import resume_from, save_checkpoint
from ..run.recipe import recipe, schedule_of, solver_of
from ..run.stream import Status, Stream, stream
from .base import Solver, State
from .paper import departures

LIMIT = 1e-7
"""For promises that rounding keeps from holding to the bit: it leaves 1e-16 to 1e-9, a wrong unit 1e-2."""

STEPS = 5
ROWS = 7
NEEDS = {"linear", "spectral", "gaussian", "noisy", "noiseless"}
CITATION = re.compile(r"arXiv \d{4}\.\d{4,5}|doi[: ]|10\.\d{4,}/|ICLR|ICML|NeurIPS|CVPR|ICCV|ECCV|IEEE|Ann\.|J\. ")


@dataclass(frozen=True)
class Case:
    """A problem with ROWS measurements, in double precision, and a prior in its value range, [0, 1]."""

    name: str
    problem: Problem
    prior: Prior

    def run(self, solver: Solver, seed: int | list[int] | None = None, **options: Any) -> Stream:
        """A run of a few steps, every row with a seed of its own."""
        seeds = list(range(self.problem.y.shape[0])) if seed is None else seed
        options.setdefault("samples", particles(solver))
        if "schedule" not in options:
            options["steps"] = STEPS
        return stream(self.problem, self.prior, solver, seed=seeds, **options)


def check_solver(solver: Solver | str) -> list[tuple[str, float]]:
    """Run every check on a solver, or on the registered one of this name: names and measured deviations, in order.

    Raises AssertionError at the first promise that is broken, and :class:`NotCompatible` if the solver fits none of
    the problems of the suite.
    """
    if isinstance(solver, str):
        from . import get_solver

        solver = get_solver(solver)
    known = cases("noiseless" in solver.needs)
    fitting = [case for case in known if solver.unfit(case.problem) is None]
    if not fitting:
        reasons = "; ".join(f"{case.name}: {solver.unfit(case.problem)}" for case in known)
        raise NotCompatible(f"{_name(solver)} fits none of the suite's problems ({reasons})")
    found = [("form", check_form(solver))]
    for check in CHECKS:
        found.append((check.__name__.removeprefix("check_"), max(check(solver, case) for case in fitting)))
    return found


def cases(noiseless: bool = False) -> list[Case]:
    """The problems of the suite: vectors and images, dense, mask and blur, with and without noise; or all without."""
    r = torch.Generator().manual_seed(7)
    root = torch.randn(6, 6, generator=r, dtype=torch.float64) * 0.1
    dense = GaussianPrior(torch.full((6,), 0.4), root @ root.T + 0.01 * torch.eye(6))
    matrix = torch.randn(4, 6, generator=r, dtype=torch.float64) / 6**0.5
    image = GaussianMixturePrior(
        [0.3, 0.7], torch.rand(2, 2, 4, 3, generator=r, dtype=torch.float64), torch.tensor([0.01, 0.04])
    )
    mask = (torch.rand(4, 3, generator=r) > 0.4).double()
    mask[0, 0] = 0
    kernel = gaussian_kernel(0.7, 3)
    if noiseless:
        return [
            _case("a matrix without noise", dense, Matrix(matrix), 0.0),
            _case("a mask without noise", image, Inpainting(mask), 0.0),
            _case("a blur without noise", image, Blur(kernel), 0.0),
        ]
    return [
        _case("a matrix", dense, Matrix(matrix), 0.05),
        _case("a mask", image, Inpainting(mask), 0.05),
        _case("a blur", image, Blur(kernel), 0.02),
        _case("a mask without noise", image, Inpainting(mask), 0.0),
    ]


def _case(name: str, prior: GaussianPrior | GaussianMixturePrior, operator: Any, sigma_y: float) -> Case:
    x = prior.sample(ROWS, 3, torch.float64)
    return Case(name, Problem.simulate(x, operator, Gaussian(sigma_y) if sigma_y else NoNoise(), 5), prior)


# -- promises about the class ---------------------------------------------------------------------------------------


def check_form(solver: Solver) -> float:
    """A frozen dataclass of plain numbers, with its needs declared and its paper cited."""
    cls = type(solver)
    params = getattr(cls, "__dataclass_params__", None)
    _demand(solver, params is not None and params.frozen, "is not a frozen dataclass: @dataclass(frozen=True)")
    _demand(solver, "__dataclass_params__" in vars(cls), "has no @dataclass(frozen=True) of its own")
    unknown = set(solver.paper) - {"steps", *solver.options()}
    _demand(solver, not unknown, f"has a paper's value of {', '.join(sorted(unknown))}, which is no option of it")
    silent = [option for option, reason in departures(solver).items() if not reason]
    _demand(solver, not silent, f"does not say why the default of {', '.join(silent)} is none of the paper's")
    strange = set(solver.needs) - NEEDS
    _demand(solver, isinstance(solver.needs, frozenset), "must declare needs as a frozenset")
    _demand(solver, not strange, f"needs {', '.join(map(str, strange))}, known are {', '.join(sorted(NEEDS))}")
    _demand(solver, solver.default_steps >= 1, "needs default_steps >= 1")
    _demand(solver, CITATION.search(solver.citation()) is not None, "names no paper in its docstring (arXiv, doi)")
    for key, value in solver.options().items():
        plain = value is None or isinstance(value, bool | int | float | str)
        plain |= isinstance(value, tuple) and all(isinstance(v, int | float | str) for v in value)
        _demand(solver, plain, f"option {key} is {value!r}: a recipe holds numbers, strings and tuples of them")
    return 0.0


# -- promises about the samples ---------------------------------------------------------------------------------------


def check_range(solver: Solver, case: Case) -> float:
    """The same samples when everything is written in [-1, 1] instead of [0, 1]."""
    other = Case(case.name, in_range(case.problem, -1.0, 1.0), case.prior.in_range(-1.0, 1.0))
    there = (finish(other.run(solver), solver) + 1) / 2
    return _close(solver, case, finish(case.run(solver), solver), there, "samples change with the value range")


def check_batch(solver: Solver, case: Case) -> float:
    """A measurement gives the same sample alone and among others."""
    together, n = finish(case.run(solver), solver), particles(solver)
    worst = 0.0
    for k in (0, ROWS - 1):
        alone = finish(Case(case.name, case.problem[k], case.prior).run(solver, [k]), solver)
        mine = together[k * n : (k + 1) * n]
        worst = max(worst, _close(solver, case, mine, alone, f"row {k} depends on its batch"))
    return worst


def check_chunk(solver: Solver, case: Case) -> float:
    """The same samples in chunks of 1 and of 3 as all at once."""
    together = finish(case.run(solver, chunk=ROWS * particles(solver)), solver)
    return max(
        _close(solver, case, together, finish(case.run(solver, chunk=n), solver), f"chunks of {n} change samples")
        for n in (1, 3)
    )


def check_resume(solver: Solver, case: Case) -> float:
    """Going on from a state, or from a checkpoint file, in the middle ends in the same bits."""
    whole = finish(case.run(solver), solver)
    first = case.run(solver)
    for state in first:
        if state.i == STEPS // 2:
            break
    _same(solver, case, whole, finish(case.run(solver, resume=first.state), solver), "resumed from a state")
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(first, Path(folder) / "checkpoint.safetensors")
        second = case.run(solver)
        resume_from(path, second)
    _same(solver, case, whole, finish(second, solver), "resumed from a checkpoint file")
    return 0.0


def check_recipe(solver: Solver, case: Case) -> float:
    """The recipe, written as text and read again, makes the same bits."""
    run = case.run(solver)
    written = finish(run, solver)
    note = json.loads(json.dumps(recipe(run, "sample")))
    if solver.name:
        again = solver_of(note)
        _demand(solver, again == solver, f"its recipe makes {again}, not {solver}")
    else:  # not registered: the options alone
        again = type(solver)(**{k: tuple(v) if isinstance(v, list) else v for k, v in note["options"].items()})
    second = case.run(again, note["seeds"], schedule=schedule_of(note))
    _same(solver, case, written, finish(second, solver), "made from its recipe")
    return 0.0


def check_seed(solver: Solver, case: Case) -> float:
    """Seed 0 works, the same seed gives the same bits, and another seed never leaves the run's states the same."""
    one, two, other = case.run(solver, 0), case.run(solver, 0), case.run(solver, 1)
    _demand(
        solver,
        not torch.equal(next(one).x, next(other).x),
        f"on {case.name}: seeds 0 and 1 give the same states",
    )
    _same(solver, case, finish(one, solver), finish(two, solver), "run again with the same seed")
    return 0.0


def check_global_random_state(solver: Solver, case: Case) -> float:
    """The generators of torch, numpy and python are left alone, and are not read."""
    before = _generators()
    first = finish(case.run(solver), solver)
    _demand(solver, before == _generators(), f"on {case.name}: a global random generator was used")
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.manual_seed(12345), np.random.seed(12345), random.seed(12345)  # noqa: NPY002
        _same(solver, case, first, finish(case.run(solver), solver), "run under other global seeds")
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])
    return 0.0


# -- promises about a step --------------------------------------------------------------------------------------------


def check_purity(solver: Solver, case: Case) -> float:
    """A step leaves the state and the data as they were, and taken twice gives the same bits."""
    schedule = solver.schedule(case.prior, STEPS)
    for state, run in walk(case.problem, case.prior, solver, schedule):
        first, second = run(None), run(None)  # both read the same data
        before = _tensors(state, first.problem)
        copies = {k: v.clone() for k, v in before.items()}
        with torch.no_grad():
            one, two = solver.step(state, first), solver.step(state, second)
        for key, value in before.items():
            same = _equal(value, copies[key])
            _demand(solver, same, f"on {case.name}: step {state.i + 1} changes {key} in place")
        _demand(solver, one.i == state.i + 1, "a step must count: return state.next(x, x0, ...)")
        mine, again = _tensors(one), _tensors(two)
        for key, value in mine.items():
            same = _equal(value, again[key])
            _demand(solver, same, f"on {case.name}: step {state.i + 1} taken twice gives another {key}")
    return 0.0


def check_dtype(solver: Solver, case: Case) -> float:
    """In single precision the signals of the state stay single, and the shapes stay; numbers of a row may be double."""
    problem = dataclasses.replace(case.problem, y=case.problem.y.float())
    for state in Case(case.name, problem, case.prior).run(solver):
        for key, value in _tensors(state).items():
            single = value.ndim == 1 or value.dtype == torch.float32
            _demand(solver, single, f"{key} becomes {value.dtype} for float32 data")
            rows = value.shape[0] == ROWS * particles(solver)
            _demand(solver, rows, f"{key} has shape {tuple(value.shape)}: one row per sample")
    return 0.0


def check_synchronisation(solver: Solver, case: Case) -> float:
    """No step waits for the device: no item, bool or float of a tensor, no boolean index, no copy to the host."""
    schedule = solver.schedule(case.prior, STEPS)
    for state, run in walk(case.problem, case.prior, solver, schedule):
        if state.i not in (0, STEPS // 2, len(schedule) - 1):
            continue
        tally = Tally(1)
        with torch.no_grad():
            solver.step(state, run(None))  # what operators and priors make once may wait
            reading = run(tally)
            with tally:
                solver.step(state, reading)
        waits = ", ".join(sorted(set(tally.syncs)))
        _demand(solver, not tally.syncs, f"on {case.name}: step {state.i + 1} waits for the device ({waits})")
    return 0.0


def check_graph(solver: Solver, case: Case) -> float:
    """No state carries a graph, and a solver that does not declare ``gradient`` evaluates its prior without one."""
    watched = _Watched(case.prior)
    for state in Case(case.name, case.problem, watched).run(solver):
        for key, value in _tensors(state).items():
            _demand(solver, not value.requires_grad, f"{key} carries a graph: detach it")
    if not solver.gradient:
        _demand(
            solver,
            not watched.graphs,
            "evaluates the prior with a graph: declare gradient = True, or use no vjp",
        )
    return 0.0


CHECKS: tuple[Callable[[Solver, Case], float], ...] = (
    check_graph,
    check_dtype,
    check_purity,
    check_synchronisation,
    check_global_random_state,
    check_seed,
    check_resume,
    check_recipe,
    check_chunk,
    check_batch,
    check_range,
)


class _Watched(Prior):
    """A prior that notes how often it was evaluated where a graph could grow."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior
        self.shape, self.value_range, self.sigma_range = prior.shape, prior.value_range, prior.sigma_range
        self.graphs = 0

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        self.graphs += x.requires_grad or torch.is_grad_enabled()
        return self.prior.denoise(x, sigma)

    def vjp(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Pullback]:
        self.graphs += 1
        return self.prior.vjp(x, sigma)


# -- helpers ----------------------------------------------------------------------------------------------------------


def in_range(problem: Problem, lo: float, hi: float) -> Problem:
    """A problem with a linear operator and Gaussian noise (or none), written in other units."""
    a, b = problem.value_range
    gain = (hi - lo) / (b - a)
    ones = torch.ones(1, *problem.shape, dtype=problem.y.dtype, device=problem.device)
    y = gain * problem.y + problem.operator((lo - gain * a) * ones)
    return Problem(y, problem.operator, as_noise(gain * problem.sigma_y), problem.shape, (lo, hi), problem.cg_steps)


def finish(run: Stream, solver: Solver) -> Tensor:
    """The samples of a run gone through to its end."""
    for _ in run:
        pass
    _demand(solver, run.status is Status.DONE, f"a run ended {run.status.value}: {run.reason}")
    assert run.state is not None
    _demand(solver, bool(torch.isfinite(run.state.x).all()), "a run ended in values that are not finite")
    return run.state.x


def _close(solver: Solver, case: Case, a: Tensor, b: Tensor, what: str) -> float:
    lo, hi = case.problem.value_range
    error = float((a - b).abs().max()) / (hi - lo)
    _demand(solver, error <= LIMIT, f"on {case.name}: {what} (by {error:.2g} of the range, allowed {LIMIT:g})")
    return error


def _same(solver: Solver, case: Case, a: Tensor, b: Tensor, what: str) -> None:
    _demand(
        solver,
        torch.equal(a, b),
        f"on {case.name}: other bits when {what} (by {float((a - b).abs().max()):.2g})",
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _tensors(state: State, problem: Problem | None = None) -> dict[str, Tensor]:
    data = {} if problem is None else {"y": problem.y}
    return {"x": state.x, "x0": state.x0, **{f"aux['{k}']": v for k, v in state.aux.items()}, **data}


def _generators() -> tuple[bytes, str, str]:
    state = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), repr(state), repr(random.getstate())


def _name(solver: Solver) -> str:
    return solver.name or type(solver).__name__


def _demand(solver: Solver, kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(f"{_name(solver)}: {message}")
