"""What solvers share that learn a network while they run: parameters in the state, Adam, files of what was learned."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..._version import __version__
from ...errors import InputError
from ...io.atomic import write_atomic
from ...io.digest import digest
from ...noise import NoNoise
from ...numerics.adam import adam_update
from ...operators.base import Linear
from ...priors.base import Prior
from ...problem import Problem
from ...rng import Rng
from ...schedules import Schedule, log_linear
from ..base import Run, Solver, State
from ..moves import regularised_inverse
from .flair import curvature
from .networks import Layout

PREVIEWS = 50
"""How often in a run the samples are drawn again from what was learned so far."""


@dataclass(frozen=True)
class Fitted(Solver):
    """Base class: samples are draws from a network that every measurement learns in the steps of its run.

    The parameters of a measurement are a vector, kept in the state with Adam's two moments as ``theta``, ``m`` and
    ``v``, each spread over the rows of the measurement's samples: they are learned once for all of them. What is
    learned depends on the measurement's seed alone, never on the number of samples.

    Networks work on signals in units in which the value range is [-1, 1].
    """

    family: ClassVar[str] = "variational"
    clean: ClassVar[bool] = True
    coupled: ClassVar[bool] = True
    amortised: ClassVar[bool] = False

    batch: int = 64
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 0.0
    fitted: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 2 or self.batch % 2:
            raise InputError(f"{self.name} draws in pairs: batch must be an even number from 2 on, got {self.batch}")

    def unfit(self, problem: Problem) -> str | None:
        if isinstance(problem.noise, NoNoise):
            return "it weighs data by their noise, so there must be some: red-diff takes data without noise"
        return super().unfit(problem)

    def check(self, problem: Problem, prior: Prior) -> None:
        if self.fitted:
            read_fit(self, problem, prior)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """Levels only count the steps here: as many as asked for, or one where what was learned is in a file."""
        low, high = prior.sigma_range
        return log_linear(1 if self.fitted else steps, low, high)

    # -- what a method defines -----------------------------------------------------------------------------------

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """The parameters, for signals of this shape."""
        raise NotImplementedError

    def begin(self, shape: tuple[int, ...]) -> Tensor:
        """The first parameters [1, P], float64."""
        raise NotImplementedError

    def draw(self, theta: Tensor, z: Tensor, centre: Tensor) -> Tensor:
        """Signals for z [B, K, *shape] by B sets of parameters; ``centre`` as :func:`summary` has it, same shape."""
        raise NotImplementedError

    def gradient_of(self, theta: Tensor, state: State, run: Run, rng: Rng) -> Tensor:
        """The gradient of what is minimised [B, P]; ``rng`` has one row for each of B measurements."""
        raise NotImplementedError

    def moved(self, before: Tensor, after: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """The parameters after a step that Adam would take from ``before`` to ``after``, [B, P]."""
        return after

    # -- the run -------------------------------------------------------------------------------------------------

    def init(self, run: Run) -> State:
        return self._begin(run, summary(run.problem))

    def start(self, run: Run, x_init: Tensor) -> State:
        return self._begin(run, x_init)

    def _begin(self, run: Run, centre: Tensor) -> State:
        like, groups = run.like, len(run.like) // run.samples
        if self.fitted:
            theta = read_fit(self, run.problem, run.prior, run.samples).to(like)
        else:
            theta = self.begin(run.problem.shape).to(like).expand(groups, -1)
        aux = {"theta": spread(theta, run.samples), "centre": centre, "z": run.rng.normal(like)}
        if not self.fitted:
            aux |= {"m": torch.zeros_like(aux["theta"]), "v": torch.zeros_like(aux["theta"])}
        return self._drawn(State(centre, centre, 0, {**aux, **self.extras(run)}), aux["theta"], run, 0)

    def extras(self, run: Run) -> dict[str, Tensor]:  # noqa: ARG002
        """What else the state begins with."""
        return {}

    def step(self, state: State, run: Run) -> State:
        aux, n, samples = dict(state.aux), len(run.schedule), run.samples
        if self.fitted:
            return self._drawn(state, aux["theta"], run, 1)
        rng = run.rng if samples == 1 else Rng(run.rng.keys[::samples], run.rng.step)
        size = self.layout(run.problem.shape).size
        theta, m, v = (gathered(aux[k], samples, size) for k in ("theta", "m", "v"))
        gradient = self.gradient_of(theta, state, run, rng)
        if self.clip:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient = gradient * (self.clip / norm.clamp_min(self.clip))
        lr = self.lr * min(1.0, 2 * (1 - state.i / n))
        after, m, v = adam_update(theta, gradient, m, v, state.i + 1, lr, self.betas)
        theta = self.moved(theta, after, run.problem.shape)
        aux |= {k: spread(t, samples) for k, t in (("theta", theta), ("m", m), ("v", v))}
        done, every = state.i + 1, max(1, n // PREVIEWS)
        if done == n or done % every == 0 or done == 1:
            return self._drawn(replace(state, aux=aux), aux["theta"], run, done)
        return replace(state, i=done, aux=aux)

    def _drawn(self, state: State, theta: Tensor, run: Run, i: int) -> State:
        """The state with samples drawn anew: the same z, through what was learned."""
        vector = gathered(theta, run.samples, self.layout(run.problem.shape).size)
        z, centre = (grouped(t, run.samples) for t in (state.aux["z"], to_unit(state.aux["centre"], run.problem)))
        with torch.no_grad():
            x = from_unit(self.draw(vector, z, centre).flatten(0, 1), run.problem)
        return State(x, x, i, state.aux)


# -- units and rows ---------------------------------------------------------------------------------------------------


def to_unit(x: Tensor, problem: Problem) -> Tensor:
    """Signals in units in which the value range is [-1, 1]."""
    return (x - sum(problem.value_range) / 2) / problem.scale


def from_unit(u: Tensor, problem: Problem) -> Tensor:
    """The inverse of :func:`to_unit`."""
    return problem.scale * u + sum(problem.value_range) / 2


def grouped(x: Tensor, samples: int) -> Tensor:
    """Rows [N, ...] as [B, samples, ...]."""
    return x.reshape(-1, samples, *x.shape[1:])


def spread(theta: Tensor, samples: int) -> Tensor:
    """Vectors [B, P] cut into rows [B * samples, ceil(P / samples)], with zeros at the end."""
    share = -(-theta.shape[1] // samples)
    return torch.nn.functional.pad(theta, (0, share * samples - theta.shape[1])).reshape(-1, share)


def gathered(rows: Tensor, samples: int, size: int) -> Tensor:
    """The inverse of :func:`spread`."""
    return rows.reshape(-1, samples * rows.shape[1])[:, :size]


def summary(problem: Problem) -> Tensor:
    """A signal [N, *shape] that holds what a measurement says: the regularised pseudo-inverse where there is one.

    Else one step of gradient descent on the squared residual from the middle of the value range, by 1 / curvature.
    """
    if isinstance(problem.operator, Linear) and problem.noise.sigma is not None:
        return regularised_inverse(problem)
    middle = torch.full_like(problem.like, sum(problem.value_range) / 2)
    gradient = problem.data(middle)[1]
    return middle - gradient / curvature(problem, middle).reshape(-1, *[1] * (middle.ndim - 1))


def repeated(problem: Problem, samples: int, draws: int) -> Problem:
    """The problem with ``draws`` rows for each measurement, from one with ``samples`` rows for each."""
    first = torch.arange(0, len(problem.y), samples, device=problem.device)
    return problem.rows(first[:, None].expand(-1, draws).reshape(-1))


def with_data(problem: Problem, y: Tensor) -> Problem:
    """The problem with other measurements of the same shape, without checking anything again."""
    other = problem.rows(slice(None))
    object.__setattr__(other, "y", y)
    return other


# -- files ------------------------------------------------------------------------------------------------------------


def facts(solver: Fitted, problem: Problem, prior: Prior) -> dict[str, Any]:
    """What must agree for a fit to serve a run: all in units in which the value range is [-1, 1]."""
    about = {k: v for k, v in prior.describe().items() if k != "value_range"}
    sigma = problem.noise.sigma
    noise = {"name": problem.noise.name} if sigma is None else {"sigma": float(f"{sigma / problem.scale:.6g}")}
    return {
        "solver": solver.name,
        "network": [[k, list(shape)] for k, shape in solver.layout(problem.shape).shapes],
        "shape": list(problem.shape),
        "operator": problem.operator.describe(),
        "noise": noise,
        "prior": about,
    }


def save_fit(path: str | Path, solver: Fitted, problem: Problem, prior: Prior, state: State, samples: int = 1) -> Path:
    """Write what a run has learned, as named tensors [B, ...], atomically. Raises :class:`InputError`."""
    layout = solver.layout(problem.shape)
    theta = gathered(state.aux["theta"], samples, layout.size)
    tensors = {k: v.cpu().clone().contiguous() for k, v in layout.split(theta).items()}
    header = {"unveil": __version__, "steps": state.i, "options": solver.options(), **facts(solver, problem, prior)}
    if not solver.amortised:
        header["y"] = [digest(y) for y in problem.y]
    return write_atomic(path, lambda p: save_file(tensors, p, {"unveil-fit": json.dumps(header)}))


def read_fit(solver: Fitted, problem: Problem, prior: Prior, samples: int = 1) -> Tensor:
    """The parameters [B, P] in the solver's file, of a problem with ``samples`` rows for each measurement.

    Raises :class:`InputError` if the file is not there, is damaged, or was fitted to something else, naming what.
    """
    path = Path(solver.fitted).expanduser()
    again = f"fit again (unveil fit {solver.name} ...), or leave out the option fitted"
    if not path.is_file():
        raise InputError(f"there is no file {path} of what {solver.name} has learned: {again}")
    try:
        with safe_open(path, framework="pt") as f:
            header = json.loads((f.metadata() or {}).get("unveil-fit", "{}"))
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is truncated or not a fit ({error}): {again}") from None
    if not header:
        raise InputError(f"{path} is not a fit: {again}")
    mine = json.loads(json.dumps(facts(solver, problem, prior)))
    differ = [k for k, v in mine.items() if header.get(k) != v]
    if differ:
        raise InputError(f"{path} was fitted to another {', '.join(differ)}: {again}")
    theta, groups = solver.layout(problem.shape).join(tensors), len(problem.y) // samples
    if solver.amortised:
        return theta.expand(groups, -1)
    known, wanted = header.get("y", []), [digest(y) for y in problem.y[::samples]]
    if not set(wanted) <= set(known):
        raise InputError(f"{path} was fitted to other measurements: {again}")
    return theta[[known.index(y) for y in wanted]]
