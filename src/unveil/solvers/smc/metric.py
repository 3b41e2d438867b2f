"""The preconditioner of Langevin moves: what the particles say of the prior's widths, and the data's term exactly."""

from __future__ import annotations

from torch import Tensor

from ...numerics.cg import cg
from ...operators.base import Linear, Spectral
from ...problem import Problem, squared_norm
from ...rng import Rng
from .particles import per_row, total

PSEUDO = 10
"""How many particles the mean over all coordinates counts for, beside those of a coordinate itself."""


def untied(problem: Problem, u: Tensor) -> Tensor:
    """Q^T u [N, ...], with Q the V of a spectral operator, which unties what is measured from what is not, or I."""
    return problem.operator.Vt(u) if isinstance(problem.operator, Spectral) else u


def widths(score: Tensor, samples: int) -> Tensor:
    """v [N, ...]: 1 / v is the mean square of a coordinate of Q^T score [N, ...] over the particles of a measurement.

    Those are ``samples`` neighbouring rows; where they are few, it is drawn to its mean over the coordinates.
    """
    square = score.square().reshape(-1, samples, *score.shape[1:]).mean(1)
    pooled = per_row(square.flatten(1).mean(1), square)
    v = (samples + PSEUDO) / (samples * square + PSEUDO * pooled)
    return v.repeat_interleave(samples, 0, output_size=score.shape[0])


def white(problem: Problem, like: Tensor, rng: Rng) -> tuple[Tensor, ...]:
    """The noise N(0, I) that a draw is made of: shaped as coordinates ``like`` [N, ...], and as y where need be."""
    A = problem.operator
    if isinstance(A, Spectral) or not (problem.noise.sigma and isinstance(A, Linear)):
        return (rng.normal(like),)
    of_y = rng.normal(A(like[:1]).expand(like.shape[0], *problem.y.shape[1:]))
    return rng.normal(like), of_y


class Metric:
    """P = (Q diag(1 / v) Q^T + beta A^T A / sigma_y^2)^-1 per row, beta [N]; without data's term for other noises."""

    def __init__(self, problem: Problem, v: Tensor, beta: Tensor) -> None:
        self.A, self.steps, self.v = problem.operator, problem.iterations, v
        self.weight = beta / problem.sigma_y**2 if problem.noise.sigma and isinstance(self.A, Linear) else None

    def __call__(self, u: Tensor) -> Tensor:
        """P u."""
        if self.weight is None or isinstance(self.A, Spectral):
            return self._back(self._to(u) * self._gains())
        A, w = self.A, per_row(self.weight, u)
        assert isinstance(A, Linear)
        return cg(lambda x: x / self.v + w * A.normal(x), u, steps=self.steps)

    def draw(self, eps: Tensor, of_y: Tensor | None = None) -> Tensor:
        """A draw from N(0, P), made of :func:`white`: in general P (eps / sqrt(v) + sqrt(beta) A^T eps' / sigma_y)."""
        if self.weight is None or of_y is None:
            return self._back(eps * self._gains().sqrt())
        assert isinstance(self.A, Linear)
        return self(eps / self.v.sqrt() + self.A.adjoint(per_row(self.weight, of_y).sqrt() * of_y))

    def norm2(self, u: Tensor) -> Tensor:
        """u^T P^-1 u per row."""
        plain = total(self._to(u).square() / self.v)
        return plain if self.weight is None else plain + self.weight * squared_norm(self.A(u))

    def _gains(self) -> Tensor:
        if self.weight is None or not isinstance(self.A, Spectral):
            return self.v
        inverse: Tensor = 1 / self.v + per_row(self.weight, self.v) * self.A.s(self.v) ** 2
        return 1 / inverse

    def _to(self, u: Tensor) -> Tensor:
        return self.A.Vt(u) if isinstance(self.A, Spectral) else u

    def _back(self, c: Tensor) -> Tensor:
        return self.A.V(c) if isinstance(self.A, Spectral) else c
