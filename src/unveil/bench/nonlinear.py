"""Problems that are not linear, or not Gaussian, with reference posteriors: phases, clipping, few bits, photons.

The priors are Gaussian mixtures in 2, 3 and 8 dimensions. The posteriors are no closed forms: in two and three
dimensions they come from adaptive quadrature, in eight from replica exchange (:mod:`unveil.bench.tempered`), which is
checked against quadrature in three dimensions and against draws of the prior, weighted by the likelihood, in all. They
are stored with the package, each with its measurement: mean, covariance, log p(y), and ``POOL`` independent draws, or
draws so far apart in the chains as to be nearly independent. ``python -m unveil.bench.references`` makes them again.

phase
    y = |G x| + n with complex G, as many magnitudes as dimensions: the sign and more is lost.
clip
    y = clip(A x, -0.3, 0.3) + n: half of the measurements say no more than "beyond".
bits
    Two bits. In the plane y = quantize(A x) + n, an operator with steps; else y = quantize(A x + n), with the
    exact likelihood of the level (noise ``quantisation``).
photons
    Poisson counts of P (x + 1) / 2, about 20 of them where x = 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from ..noise import Gaussian, Noise, Poisson, Quantisation
from ..operators import Clip, Magnitude, Matrix, Operator, Quantize
from ..priors import GaussianMixturePrior
from ..problem import Problem
from .families import RANGE, ExactProblem, modes

FOLDER = Path(__file__).parent / "posteriors"

POOL = 3000
"""Draws that are stored of a posterior."""

DIMENSIONS = (2, 3, 8)
KINDS = ("phase", "clip", "bits", "photons")
NAMES = tuple(f"{kind}-{n}" for kind in KINDS for n in DIMENSIONS)
"""Names of the problems, in the order of the tables."""


@dataclass(frozen=True)
class Reference:
    """A posterior that was computed: the moments, draws, and how good they are.

    ``mean`` [n] and ``covariance`` [n, n] float64, ``draws`` [POOL, n] float32, ``facts`` from the file: method, its
    diagnostics, ``log_evidence``.
    """

    mean: Tensor
    covariance: Tensor
    draws: Tensor
    facts: dict[str, Any]

    @property
    def log_evidence(self) -> float:
        """log p(y)."""
        return float(self.facts["log_evidence"])

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n of the draws [n, dim]; neighbouring seeds give different ones, as many times as there are."""
        sets = len(self.draws) // n
        if sets < 1:
            raise InputError(f"there are {len(self.draws)} draws of a reference posterior, not {n}: take fewer samples")
        k = seed % sets
        return self.draws[k * n : (k + 1) * n]


def prior(n: int) -> GaussianMixturePrior:
    """The mixture in n dimensions: three modes in the plane, else four, of which two are nearly mirror images."""
    if n == 2:
        return modes()
    g = torch.Generator().manual_seed(40 + n)
    a, b, c = 0.45 * torch.randn(3, n, generator=g, dtype=torch.float64)
    factors = torch.randn(4, n, n, generator=g, dtype=torch.float64)
    covariances = 0.05 * (factors @ factors.mT / n + 0.3 * torch.eye(n, dtype=torch.float64))
    means = torch.stack([a, -a + 0.1, b, c])
    return GaussianMixturePrior([0.3, 0.2, 0.3, 0.2], means, covariances, value_range=RANGE)


def physics(name: str) -> tuple[Operator, Noise]:
    """Operator and noise of a problem, in double precision."""
    kind, _, dim = name.partition("-")
    n = int(dim)
    g = torch.Generator().manual_seed(60 + 10 * KINDS.index(kind) + n)
    if kind == "phase":
        matrix = torch.randn(n, n, generator=g, dtype=torch.complex128) / n**0.5
        return Magnitude(Matrix(matrix)), Gaussian(0.1 if n == 8 else 0.05)
    m = {2: 2, 3: 2, 8: 4}[n]
    if kind == "photons":
        shares = torch.rand(m, n, generator=g, dtype=torch.float64) ** 3
        shares = shares / shares.sum(1, keepdim=True)
        return Matrix(shares / 2) + torch.full((m,), 0.5, dtype=torch.float64), Poisson(20.0)
    row = Matrix(torch.randn(m, n, generator=g, dtype=torch.float64) / n**0.5)
    if kind == "clip":
        return Clip(-0.3, 0.3) @ row, Gaussian(0.05)
    if n == 2:
        return Quantize(2, -0.75, 0.75) @ row, Gaussian(0.1)
    return row, Quantisation(2, 0.1, -0.75, 0.75)


def simulate(name: str) -> Problem:
    """The problem with a measurement of a draw of its prior, drawn anew; that of the tables is in the fixture."""
    _, _, dim = name.partition("-")
    operator, noise = physics(name)
    x = prior(int(dim)).sample(1, seed=NAMES.index(name), dtype=torch.float64)
    drawn = Problem.simulate(x, operator, noise, NAMES.index(name), RANGE)
    return Problem(drawn.y.float(), operator, noise, drawn.shape, RANGE)


def load(name: str, folder: Path = FOLDER) -> ExactProblem:
    """A problem of ``NAMES`` with its reference posterior, as the fixtures have them."""
    path = folder / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = json.loads((file.metadata() or {})["unveil-reference"])
        t: Callable[[str], Tensor] = file.get_tensor
        reference = Reference(t("mean"), t("covariance"), t("draws"), facts)
        y = t("y")
    operator, noise = physics(name)
    mixture = prior(len(reference.mean))
    return ExactProblem(name, mixture, Problem(y, operator, noise, mixture.shape, RANGE), reference)
