"""What a solver is: a frozen dataclass of hyper-parameters with ``init`` and ``step``.

All solvers work on x = x0 + sigma * eps. A step is pure: the same state, run and random stream give the same next
state. Steps run without gradient; a solver that needs one asks the prior or the problem for a vector-Jacobian product.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from ..noise import Reward
from ..numerics.parts import in_parts
from ..operators.base import Linear, Spectral
from ..priors.base import Prior
from ..problem import Problem
from ..rng import Rng
from ..schedules import Schedule, karras
from .limits import check_options

T = TypeVar("T", bound="Tensor | tuple[Tensor, ...]")


@dataclass(frozen=True)
class State:
    """What a run is, between two steps: tensors with one row per sample, and the number of steps done.

    ``x`` [N, *shape] is the iterate at the current noise level (the result, after the last step), ``x0`` the latest
    clean estimate (the preview), ``aux`` whatever else a solver carries (each tensor [N, ...]).

    Four names in ``aux`` mean the same in every solver. ``log_weights`` [N]: what particles count, up to a factor that
    those of a measurement share; a run whose particles all count nothing is ended. ``log_evidence`` [N]: together with
    the mean of the weights the estimate of log p(y), the same for all particles of a measurement. ``ancestors`` [N]:
    the number of the particle at the start that each one descends from. ``possible`` [N], of methods without weights:
    0, or minus infinity where the likelihood is zero; a run of which nothing is possible is ended, too.
    """

    x: Tensor
    x0: Tensor
    i: int = 0
    aux: dict[str, Tensor] = field(default_factory=dict)

    def next(self, x: Tensor, x0: Tensor, **aux: Tensor) -> State:
        """The state one step later."""
        return State(x, x0, self.i + 1, aux)

    def rows(self, start: int, stop: int) -> State:
        """The samples start..stop-1 of the state."""
        return State(self.x[start:stop], self.x0[start:stop], self.i, {k: v[start:stop] for k, v in self.aux.items()})

    @staticmethod
    def cat(parts: list[State]) -> State:
        """States of different samples, joined."""
        if len(parts) == 1:
            return parts[0]
        aux = {k: torch.cat([p.aux[k] for p in parts]) for k in parts[0].aux}
        return State(torch.cat([p.x for p in parts]), torch.cat([p.x0 for p in parts]), parts[0].i, aux)

    def to(self, device: torch.device | str) -> State:
        return State(self.x.to(device), self.x0.to(device), self.i, {k: v.to(device) for k, v in self.aux.items()})


@dataclass(frozen=True)
class Run:
    """What a step may read: ``problem`` has one row of y per sample, ``prior`` counts its calls.

    ``samples`` neighbouring rows belong to one measurement; it is 1 unless the solver is ``coupled``. ``chunk`` bounds
    the rows that such a solver works on at a time, by way of :meth:`by_rows`; plain calls of the prior are bounded by
    themselves.
    """

    problem: Problem
    prior: Prior
    schedule: Schedule
    rng: Rng
    samples: int = 1
    chunk: int | None = None

    @property
    def scale(self) -> float:
        """Half the width of the value range: turns the constants of papers, written for [-1, 1], into our units."""
        return self.problem.scale

    @property
    def linear(self) -> Linear:
        """The operator, of a solver that needs a linear one."""
        return cast(Linear, self.problem.operator)

    @property
    def spectral(self) -> Spectral:
        """The operator, of a solver that needs a spectral one."""
        return cast(Spectral, self.problem.operator)

    @property
    def like(self) -> Tensor:
        """An empty tensor [N, *shape] of the type and device that states have."""
        return self.problem.like

    def by_rows(self, function: Callable[..., T], *tensors: Tensor) -> T:
        """``function(problem, *tensors)``, a tensor [N, ...] or several, of ``chunk`` rows at a time.

        For what particles do not see each other in: likelihoods and their gradients, back-propagation, chains. The
        problem that it gets has the rows of y that belong to those of the ``tensors`` [N, ...].
        """

        def part(rows: slice) -> T:
            return function(self.problem.rows(rows), *(t[rows] for t in tensors))

        return in_parts(self.problem.y.shape[0], self.chunk, part)


@dataclass(frozen=True)
class Solver:
    """Base class of all solvers; also the plain interface to write one's own.

    Class attributes
    ----------------
    needs:
        What the problem must offer: ``linear`` or ``spectral`` operator, ``gaussian`` noise (no noise counts as
        sigma_y = 0), ``noisy`` (sigma_y > 0), ``noiseless`` (sigma_y = 0).
    default_steps:
        Number of steps when the user does not say.
    gradient:
        True if the solver back-propagates through the prior (a vjp).
    clean:
        True if ``State.x`` is a clean signal throughout, not x0 + sigma eps.
    coupled:
        True if the samples of a measurement see each other (particles). They then go through a step together,
        ``run.samples`` rows for each measurement, whatever the chunk, which bounds what is done to them row by row
        (:meth:`Run.by_rows`); and a sample depends on how many there are.
    particles:
        The fewest samples per measurement that the solver can work with.
    black_box:
        True if the operator is only evaluated, without derivative or adjoint: any program can be one.
    rewards:
        True if all that is asked of the data is the likelihood, so that any reward (:class:`unveil.Reward`) will do.
    sibling:
        Of a solver that needs a measurement without noise: the nearest one that takes noise.
    paper:
        What the paper (or its authors' code, where it is silent) has in its own setting, in our units: of each option,
        and of ``steps``. "own" where the option is this library's, "not at hand" where the number is not known here.
    why:
        Of every default that is none of the paper's values, the reason; those of base classes hold too
        (:mod:`unveil.solvers.paper`).
    limits:
        Intervals of options where they differ from what is usual (:mod:`unveil.solvers.limits`), as "(0, 1]".

    Making one with an option of another type, or outside of its interval, raises :class:`InputError`.
    """

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    default_steps: ClassVar[int] = 100
    gradient: ClassVar[bool] = False
    clean: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    particles: ClassVar[int] = 1
    black_box: ClassVar[bool] = False
    rewards: ClassVar[bool] = False
    sibling: ClassVar[str] = ""
    paper: ClassVar[dict[str, str]] = {}
    why: ClassVar[dict[str, str]] = {}
    limits: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        check_options(self, self.limits)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """The solver's noise levels for a prior, in the prior's units: by default Karras' over its sigma_range."""
        return karras(steps, *prior.sigma_range)

    def below(self, schedule: Schedule, sigma: float, steps: int | None) -> Schedule:
        """The schedule of a run that starts at level sigma, as :meth:`Schedule.below` has it."""
        return schedule.below(sigma, steps)

    def init(self, run: Run) -> State:
        """The state before the first step: pure noise of the first level around the middle of the value range."""
        middle = sum(run.problem.value_range) / 2
        x = middle + run.schedule.sigmas[0] * run.rng.normal(run.like)
        return State(x, torch.full_like(x, middle))

    def start(self, run: Run, x_init: Tensor) -> State:
        """The state before the first step of a run that starts at x_init [N, *shape]: with noise, unless clean."""
        x = x_init if self.clean else x_init.add(run.rng.normal(x_init), alpha=run.schedule.sigmas[0])
        return replace(self.init(run), x=x, x0=x_init)

    def step(self, state: State, run: Run) -> State:
        """One step of the schedule."""
        raise NotImplementedError

    def unfit(self, problem: Problem) -> str | None:
        """Why the solver cannot run on the problem, or None if it can."""
        sigma_y = problem.noise.sigma
        if isinstance(problem.noise, Reward) and not self.rewards:
            return "it compares signals with data, which a reward has none of"
        if "linear" in self.needs and not isinstance(problem.operator, Linear):
            return "it needs a linear operator"
        if "spectral" in self.needs and not isinstance(problem.operator, Spectral):
            return "it needs an operator with a spectral form (a cheap singular value decomposition)"
        if "gaussian" in self.needs and sigma_y is None:
            return "it needs Gaussian noise (or none)"
        if "noisy" in self.needs and not (sigma_y and sigma_y > 0):
            return "it needs Gaussian noise with sigma_y > 0"
        if "noiseless" in self.needs and sigma_y != 0:
            instead = f", with noise take {self.sibling}" if self.sibling else ""
            return f"it needs a measurement without noise{instead}"
        return None

    def check(self, problem: Problem, prior: Prior) -> None:
        """Raise :class:`InputError` where what the solver reads from files does not suit the run; before it starts."""

    @classmethod
    def citation(cls) -> str:
        """The paragraph of the docstring that names the paper: the first with a year, arXiv or doi."""
        paragraphs = [" ".join(p.split()) for p in (inspect.getdoc(cls) or "").split("\n\n")]
        return next((p for p in paragraphs if re.search(r"\b(19|20)\d\d\b|arXiv|doi", p)), "")

    def options(self) -> dict[str, Any]:
        """The hyper-parameters, as a recipe writes them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def with_options(self, **options: Any) -> Solver:
        """A copy with other hyper-parameters."""
        return replace(self, **options)
