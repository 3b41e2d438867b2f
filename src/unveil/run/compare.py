"""``compare``: which of several operators, noise models or priors the data speak for, by log p(y)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NotCompatible
from ..priors.base import Prior
from ..problem import Problem
from ..registry import lookup, names
from ..solvers.base import Solver
from .solve import solve
from .stream import Status, check_fit

UNSURE = 0.5
"""Relative standard error of an evidence beyond which its own estimate is not to be trusted."""

COUNTS = ("poisson", "quantisation")
"""Noise models whose likelihood is a probability, not a density."""


@dataclass(frozen=True)
class Comparison:
    """The evidence of each model, best first: float64 [K], natural logarithms.

    ``log_evidence`` is log p(y) of all rows together, ``error`` its standard error (0 in closed form), ``probability``
    the posterior probability of each model given that one of them is true, ``probability_error`` its standard error.
    ``exact`` says whether they come from closed forms.
    """

    names: tuple[str, ...]
    log_evidence: Tensor
    error: Tensor
    probability: Tensor
    probability_error: Tensor
    exact: bool

    @property
    def best(self) -> str:
        """The name of the most probable model."""
        return self.names[int(self.probability.argmax())]

    def log_bayes_factor(self, a: str, b: str) -> tuple[float, float]:
        """log p(y | a) - log p(y | b), and its standard error. Raises :class:`InputError` for an unknown name."""
        for name in (a, b):
            if name not in self.names:
                raise InputError(f"there is no model '{name}' here: {', '.join(self.names)}")
        i, j = self.names.index(a), self.names.index(b)
        return float(self.log_evidence[i] - self.log_evidence[j]), float(self.error[i].hypot(self.error[j]))

    @property
    def reliable(self) -> bool:
        """Whether every evidence has a standard error that can be trusted, below ``UNSURE``."""
        return bool((self.error <= UNSURE).all())

    def __str__(self) -> str:
        width = max(len(name) for name in (*self.names, "model"))
        lines = [f"{'model':<{width}}  {'log p(y)':>18}  {'probability':>15}"]
        for name, log_p, error, p, spread in zip(
            self.names, self.log_evidence, self.error, self.probability, self.probability_error, strict=True
        ):
            first = f"{log_p:.3f}" + ("" if self.exact else f" ± {error:.3f}")
            second = f"{p:.4f}" + ("" if self.exact else f" ± {spread:.4f}")
            lines.append(f"{name:<{width}}  {first:>18}  {second:>15}")
        if not self.reliable:
            lines.append(f"errors above {UNSURE:g} cannot be trusted: more samples, or repeats")
        return "\n".join(lines)


Models = list[tuple[str, Problem, Prior]]


def compare(
    problems: Problem | Sequence[Problem] | Mapping[str, Problem],
    priors: Prior | Sequence[Prior] | Mapping[str, Prior],
    solver: Solver | str | None = None,
    *,
    samples: int = 256,
    repeats: int = 8,
    steps: int | None = None,
    seed: int = 0,
    odds: Sequence[float] | None = None,
    chunk: int | str = "auto",
) -> Comparison:
    """Choose between models of the same data by their evidence, p(y) = integral of p(y | x0) p(x0) dx0.

    Parameters
    ----------
    problems, priors:
        Several problems (the same y, with other operators or noise) and one prior, or one problem and several priors,
        or as many of each, which are then pairs. Mappings give names. Rows of y are independent measurements: their
        log p add up.
    solver:
        None: the closed form, of Gaussian and Gaussian-mixture priors with linear data and Gaussian noise. Else a
        particle method that estimates the evidence.
    samples, repeats, steps, chunk:
        Particles of a run, independent runs of each model, and steps. The means over the runs are unbiased if the
        method's are; the standard error comes from their spread. Too few steps bias them, which it does not show: take
        more of them until log p(y) stays (docs/trust.md has numbers).
    odds:
        How probable the models were before the data came, in any unit; equal by default.

    Only models that were given are compared: the best of them may be a poor one. Evidences feel the width of a prior in
    directions that the data do not determine, so that a prior must be meant as it is written.

    Raises :class:`InputError` for models of different data or of less than two, for a solver that gives no evidence,
    or a run that diverged, and :class:`NotCompatible` without a closed form.
    """
    models = _models(problems, priors)
    _same_data(models)
    weights = torch.ones(len(models), dtype=torch.float64)
    if odds is not None:
        weights = torch.as_tensor(list(odds), dtype=torch.float64)
        if len(weights) != len(models) or not bool(((weights > 0) & torch.isfinite(weights)).all()):
            raise InputError(f"odds are {len(models)} numbers above zero, one for each model, got {list(odds)}")
    if solver is None:
        found = [(_closed_form(*model), 0.0) for model in models]
    else:
        made = _particle_method(solver)
        if repeats < 2:
            raise InputError(f"a standard error needs at least 2 repeats, got {repeats}")
        for _, problem, prior in models:
            check_fit(problem.white, prior, made)
        found = [
            _estimated(model, made, samples, repeats, steps, seed + 1_000_003 * k, chunk)
            for k, model in enumerate(models)
        ]
    log_evidence, error = (torch.tensor(v, dtype=torch.float64) for v in zip(*found, strict=True))
    p = torch.softmax(log_evidence + weights.log(), 0)
    # dp_i = p_i (dL_i - sum_j p_j dL_j) for errors dL of the log evidences
    slope = p[:, None] * (torch.eye(len(p), dtype=torch.float64) - p)
    spread = (slope.square() @ error.square()).sqrt()
    order = p.argsort(descending=True)
    return Comparison(
        tuple(models[k][0] for k in order.tolist()),
        log_evidence[order],
        error[order],
        p[order],
        spread[order],
        solver is None,
    )


def _models(problems: Any, priors: Any) -> Models:
    """Names, problems and priors, one for each model."""
    first, second = _named(problems, Problem), _named(priors, Prior)
    count = max(len(first), len(second))
    if count < 2:
        raise InputError("compare needs at least two models: several problems, or several priors")
    if len(first) not in (1, count) or len(second) not in (1, count):
        raise InputError(f"{len(first)} problems and {len(second)} priors: give one of either, or as many of each")
    out = []
    for k in range(count):
        (a, problem), (b, prior) = first[k % len(first)], second[k % len(second)]
        label = " with ".join(word for word, many in ((a, first), (b, second)) if len(many) > 1)
        out.append((label, problem, prior))
    seen = [name for name, _, _ in out]
    return [(name if seen.count(name) == 1 else f"{name} {k + 1}", *rest) for k, (name, *rest) in enumerate(out)]


def _named(given: Any, kind: type) -> list[tuple[str, Any]]:
    if isinstance(given, kind):
        given = [given]
    if not isinstance(given, Mapping | Sequence):
        raise InputError(f"compare takes problems first and priors second, got a {type(given).__name__}")
    pairs = list(given.items()) if isinstance(given, Mapping) else [(_label(thing), thing) for thing in given]
    for _, thing in pairs:
        if not isinstance(thing, kind):
            raise InputError(f"compare takes problems first and priors second, got a {type(thing).__name__}")
    return pairs


def _label(thing: Any) -> str:
    if isinstance(thing, Problem):
        return thing.operator.name or type(thing.operator).__name__
    return getattr(thing, "name", "") or type(thing).__name__


def _same_data(models: Models) -> None:
    (first, problem, _), *others = models
    for name, other, _ in others:
        if other.y.shape != problem.y.shape or not torch.equal(other.y.cpu(), problem.y.cpu().to(other.y.dtype)):
            raise InputError(f"'{name}' and '{first}' have different data: evidences compare models of the same y only")
        if (other.noise.name in COUNTS) != (problem.noise.name in COUNTS):
            raise InputError(
                f"the likelihood of {problem.noise.name} noise ('{first}') and of {other.noise.name} noise ('{name}') "
                "are a probability and a density: they cannot be compared"
            )
    for name, other, _ in models:
        if other.noise.sigma == 0:
            raise InputError(
                f"'{name}' has no noise: p(y) is then a density on the operator's range, which is another for another "
                "operator. Give it some noise: Gaussian(sigma)"
            )


def _constant(problem: Problem) -> float:
    """log p(y) minus log p of the whitened y, per row."""
    found = problem.noise.whitener(tuple(problem.y.shape[1:]), problem.operator.measured)
    if found is not None and math.isnan(found[1]):
        raise InputError(
            f"the evidence of stationary noise on a part of {problem.y[0].numel()} entries is not known: crop y to "
            "where everything was measured"
        )
    return 0.0 if found is None else found[1] * (2 if problem.y.is_complex() else 1)


def _closed_form(name: str, problem: Problem, prior: Prior) -> float:
    log_evidence = getattr(prior, "log_evidence", None)
    mend = f"name a particle method that estimates the evidence, solver=... ({', '.join(_candidates()) or 'none yet'})"
    if log_evidence is None:
        raise NotCompatible(f"log p(y) of '{name}' has no closed form with a {type(prior).__name__}: {mend}")
    try:
        rows = [float(log_evidence(problem[b])) for b in range(problem.y.shape[0])]
    except NotCompatible as error:
        raise NotCompatible(f"log p(y) of '{name}' has no closed form ({error}): {mend}") from None
    return sum(rows) + len(rows) * _constant(problem)


def _candidates() -> list[str]:
    """Solvers whose samples are particles."""
    return [name for name in names("solver") if lookup("solver", name).coupled]


def _particle_method(solver: Solver | str) -> Solver:
    from ..solvers import get_solver

    made = get_solver(solver) if isinstance(solver, str) else solver
    if not made.coupled:
        raise _no_evidence(made)
    return made


def _no_evidence(solver: Solver) -> InputError:
    return InputError(
        f"{solver.name or type(solver).__name__} gives no evidence: compare needs a particle method that estimates "
        "log p(y) (Result.log_evidence), or solver=None for the closed form of exact priors"
    )


def _estimated(
    model: tuple[str, Problem, Prior],
    solver: Solver,
    samples: int,
    repeats: int,
    steps: int | None,
    seed: int,
    chunk: int | str,
) -> tuple[float, float]:
    """log p(y) and its standard error, from ``repeats`` runs at a time."""
    name, problem, prior = model
    rows = problem.y.shape[0]
    # one run of repeats x rows measurements: each has its own seed, and so its own particles
    again = problem.rows(torch.arange(rows, device=problem.device).repeat(repeats))
    seeds = [seed + k for k in range(rows * repeats)]
    result = solve(again, prior, solver, samples=samples, steps=steps, seed=seeds, chunk=chunk)
    if result.status is not Status.DONE:
        raise InputError(f"the run of '{name}' ended {result.status.value.lower()}: {result.reason}")
    if result.log_evidence is None:
        raise _no_evidence(solver)
    log_z = result.log_evidence.double().cpu().reshape(repeats, rows)
    top = log_z.amax(0)
    ratio = (log_z - top).exp()
    mean = ratio.mean(0)
    error = ratio.std(0) / mean / math.sqrt(repeats)
    total = float((top + mean.log()).sum()) + rows * _constant(problem)
    return total, float(error.square().sum().sqrt())
