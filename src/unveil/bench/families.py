"""Problems whose posterior is known exactly: the fixed family that the ruler measures solvers on.

All live in the value range [-1, 1], so that sigma_y reads as in the papers, and are made from fixed seeds:
the signal is a draw of the prior, y one measurement of it. A name says prior, operator and sigma_y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from ..errors import unknown
from ..operators import Blur, Downsample, Grayscale, Inpainting, Matrix, gaussian_kernel
from ..operators.base import Operator
from ..priors import GaussianMixturePrior, GaussianPrior
from ..problem import Problem

if TYPE_CHECKING:
    from .nonlinear import Reference

Exact = GaussianPrior | GaussianMixturePrior
Posterior = Union[GaussianPrior, GaussianMixturePrior, "Reference"]
RANGE = (-1.0, 1.0)

QUICK = (
    "plane-row-0.05",
    "iso-mask-0.5",
    "texture-blur-0.05",
    "texture-mask-0",
    "colour-grey-0.05",
    "modes-row-0.05",
)
"""The problems of a quick run."""

GATE = ("plane-row-0.05", "texture-mask-0", "texture-blur-0.05")
"""The problems on which the tests measure every solver again."""


@dataclass(frozen=True)
class ExactProblem:
    """A problem with one measurement, the prior its signal was drawn from, and the exact posterior.

    A closed form; or, of the problems of :mod:`unveil.bench.nonlinear`, what was computed of it once.
    """

    name: str
    prior: Exact
    problem: Problem
    posterior: Posterior

    @property
    def gaussian(self) -> bool:
        """True if the posterior is Gaussian, so that its mean and covariance say everything."""
        return isinstance(self.posterior, GaussianPrior)

    @property
    def n(self) -> int:
        """Dimension of the signal."""
        return self.posterior.mean.numel()


def exact_problem(name: str, prior: Exact, operator: Operator, sigma_y: float, seed: int = 0) -> ExactProblem:
    """A problem with a known posterior: a signal drawn from ``prior`` and measured once, with ``seed``."""
    x = prior.sample(1, seed=seed)
    problem = Problem.simulate(x, operator, sigma_y, seed, prior.value_range)
    return ExactProblem(name, prior, problem, prior.posterior(problem))


# -- priors ----------------------------------------------------------------------------------------------------------


def plane() -> GaussianPrior:
    """Two correlated values, one broad and one narrow direction."""
    return GaussianPrior([0.3, -0.2], [[0.40, 0.24], [0.24, 0.25]], value_range=RANGE)


def iso() -> GaussianPrior:
    """N(0, I) on 8 x 8 pixels: what PiGDM takes every prior for."""
    return GaussianPrior(torch.zeros(1, 8, 8), 1.0, value_range=RANGE)


def texture() -> GaussianPrior:
    """8 x 8 pixels, smooth over about two of them, with some white noise; standard deviation 0.5."""
    return GaussianPrior(torch.full((1, 8, 8), 0.1), _smooth(8, 8, 2.0, 0.5), value_range=RANGE)


def colour() -> GaussianPrior:
    """4 x 4 pixels of three correlated colours, mean grey-blue; standard deviation 0.5."""
    channels = torch.tensor([[1.0, 0.8, 0.6], [0.8, 1.0, 0.8], [0.6, 0.8, 1.0]], dtype=torch.float64)
    mean = torch.tensor([-0.1, 0.0, 0.2]).reshape(3, 1, 1).expand(3, 4, 4)
    return GaussianPrior(mean, torch.kron(channels, _smooth(4, 4, 1.5, 0.5)), value_range=RANGE)


def spectrum() -> GaussianPrior:
    """80 dimensions in a random basis, standard deviations from 1 down to 0.05 by a power law."""
    std = torch.arange(1, 81, dtype=torch.float64) ** -0.684
    basis = torch.linalg.qr(_normal(80, 80, seed=1)).Q
    return GaussianPrior(torch.zeros(80), (basis * std**2) @ basis.T, value_range=RANGE)


def modes() -> GaussianMixturePrior:
    """Three narrow modes in the plane, two of them at nearly the same first coordinate."""
    means = [[-0.5, 0.6], [-0.4, -0.6], [0.6, 0.1]]
    covariances = [torch.diag(torch.tensor(v)) for v in ((0.02, 0.01), (0.02, 0.02), (0.01, 0.04))]
    return GaussianMixturePrior([0.4, 0.35, 0.25], means, torch.stack(covariances), value_range=RANGE)


def clusters() -> GaussianMixturePrior:
    """Four modes in 16 dimensions, each with a covariance of its own."""
    means = 0.4 * _normal(4, 16, seed=2)
    factors = _normal(4, 16, 16, seed=3)
    covariances = 0.04 * (factors @ factors.mT / 16 + 0.2 * torch.eye(16, dtype=torch.float64))
    return GaussianMixturePrior([0.1, 0.2, 0.3, 0.4], means, covariances, value_range=RANGE)


def patterns() -> GaussianMixturePrior:
    """8 x 8 pixels: stripes along either axis, or a checkerboard of large squares, with smooth deviations."""
    u = torch.arange(8)
    wave = torch.where((u // 2) % 2 == 0, 0.4, -0.4).double()
    board = torch.where(((u[:, None] // 4) + (u[None] // 4)) % 2 == 0, 0.4, -0.4).double()
    means = torch.stack([wave[:, None].expand(8, 8), wave[None].expand(8, 8), board])[:, None]
    return GaussianMixturePrior([0.3, 0.3, 0.4], means, _smooth(8, 8, 1.5, 0.2).repeat(3, 1, 1), value_range=RANGE)


# -- operators -------------------------------------------------------------------------------------------------------


def _mask(h: int, w: int, seed: int, keep: float = 0.5) -> Inpainting:
    scores = _normal(h * w, seed=seed)
    chosen = torch.zeros(h * w)
    chosen[scores.argsort()[: round(keep * h * w)]] = 1
    return Inpainting(chosen.reshape(h, w))


def _dense(m: int, n: int, seed: int) -> Matrix:
    return Matrix(_normal(m, n, seed=seed) / n**0.5)


def _blur() -> Operator:
    # at 8 x 8 the weakest frequency keeps a few per cent of its amplitude
    return Blur(gaussian_kernel(0.8, 5))


_Recipe = tuple[Callable[[], Exact], Callable[[], Operator], float, int]

_FAMILY: dict[str, _Recipe] = {  # prior, operator, sigma_y, seed of the signal and its noise
    "plane-row-0.05": (plane, lambda: Matrix(torch.tensor([[1.0, 0.5]])), 0.05, 0),
    "iso-mask-0": (iso, lambda: _mask(8, 8, 10), 0.0, 1),
    "iso-mask-0.5": (iso, lambda: _mask(8, 8, 10), 0.5, 1),
    "iso-blur-0.05": (iso, _blur, 0.05, 1),
    "texture-mask-0": (texture, lambda: _mask(8, 8, 11), 0.0, 2),
    "texture-mask-0.05": (texture, lambda: _mask(8, 8, 11), 0.05, 2),
    "texture-blur-0.05": (texture, _blur, 0.05, 2),
    "texture-blur-0.5": (texture, _blur, 0.5, 2),
    "texture-down-0": (texture, lambda: Downsample(2), 0.0, 2),
    "texture-down-0.05": (texture, lambda: Downsample(2), 0.05, 2),
    "colour-grey-0.05": (colour, Grayscale, 0.05, 3),
    "spectrum-dense-0.05": (spectrum, lambda: _dense(40, 80, 12), 0.05, 4),
    "modes-row-0.05": (modes, lambda: Matrix(torch.tensor([[1.0, 0.0]])), 0.05, 5),
    "modes-row-0.5": (modes, lambda: Matrix(torch.tensor([[1.0, 0.0]])), 0.5, 5),
    "clusters-dense-0": (clusters, lambda: _dense(2, 16, 13), 0.0, 6),
    "clusters-dense-0.05": (clusters, lambda: _dense(4, 16, 13), 0.05, 6),
    "patterns-mask-0.5": (patterns, lambda: _mask(8, 8, 14, 0.06), 0.5, 7),
    "patterns-down-0.05": (patterns, lambda: Downsample(4), 0.05, 7),
}

NAMES = tuple(_FAMILY)
"""Names of the family, in the order of the tables."""


@cache
def get_problem(name: str) -> ExactProblem:
    """A problem of the family, or of those that are not linear; raises :class:`UnknownName` with the nearest names."""
    from . import nonlinear

    if name in nonlinear.NAMES:
        return nonlinear.load(name)
    if name not in _FAMILY:
        raise unknown("exact problem", name, (*_FAMILY, *nonlinear.NAMES))
    prior, operator, sigma_y, seed = _FAMILY[name]
    return exact_problem(name, prior(), operator(), sigma_y, seed)


def describe() -> list[dict[str, Any]]:
    """One line of facts per problem: name, dimension, shape, measured numbers, sigma_y, kind of posterior."""
    rows = []
    for p in map(get_problem, NAMES):
        kind = "Gaussian" if p.gaussian else "mixture"
        facts = {"shape": list(p.problem.shape), "m": p.problem.m, "sigma_y": p.problem.sigma_y}
        rows.append({"problem": p.name, "n": p.n, **facts, "posterior": kind})
    return rows


# -- pieces ----------------------------------------------------------------------------------------------------------


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _smooth(h: int, w: int, length: float, std: float, white: float = 0.1) -> Tensor:
    """Covariance [hw, hw] of a torus of pixels: Gaussian correlation, and a share of white noise."""

    def axis(n: int) -> Tensor:
        d = torch.arange(n, dtype=torch.float64)
        d = torch.minimum(d, n - d)
        row = torch.exp(-0.5 * (d / length) ** 2)
        circulant = torch.stack([row.roll(k) for k in range(n)])
        # a Gaussian cut at half the torus may have small negative eigenvalues
        values, vectors = torch.linalg.eigh(circulant)
        positive: Tensor = (vectors * values.clamp_min(0)) @ vectors.T
        return positive

    smooth = torch.kron(axis(h), axis(w))
    smooth = smooth / smooth[0, 0]
    return std**2 * ((1 - white) * smooth + white * torch.eye(h * w, dtype=torch.float64))
