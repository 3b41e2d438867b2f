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


class Metric:
    """P = (Q diag(1 / v) Q^T + beta A^T A / sigma_y^2)^-1 per row, beta [N]; without data's term for other noises.

    Q is V of a spectral operator, which unties what is measured from what is not, else the identity. 1 / v is the mean
    square, over the ``samples`` neighbouring rows of a measurement, of a coordinate of Q^T score [N, *shape], drawn to
    its mean over the coordinates where particles are few.
    """

    def __init__(self, problem: Problem, score: Tensor, beta: Tensor, samples: int) -> None:
        self.A, self.steps = problem.operator, problem.iterations
        self.weight = beta / problem.sigma_y**2 if problem.noise.sigma and isinstance(self.A, Linear) else None
        square = self._to(score).square().reshape(-1, samples, *score.shape[1:]).mean(1)
        pooled = per_row(square.flatten(1).mean(1), square)
        v = (samples + PSEUDO) / (samples * square + PSEUDO * pooled)
        self.v = v.repeat_interleave(samples, 0)

    def __call__(self, u: Tensor) -> Tensor:
        """P u."""
        if self.weight is None or isinstance(self.A, Spectral):
            return self._back(self._to(u) * self._gains())
        A, w = self.A, per_row(self.weight, u)
        assert isinstance(A, Linear)
        return cg(lambda x: x / self.v + w * A.normal(x), u, steps=self.steps)

    def draw(self, like: Tensor, rng: Rng) -> Tensor:
        """A draw from N(0, P): in general P (eps / sqrt(v) + sqrt(beta) A^T eps' / sigma_y)."""
        if self.weight is None or isinstance(self.A, Spectral):
            return self._back(rng.normal(self.v) * self._gains().sqrt())
        A = self.A
        assert isinstance(A, Linear)
        noise = rng.normal(A(like))
        return self(rng.normal(like) / self.v.sqrt() + A.adjoint(per_row(self.weight, noise).sqrt() * noise))

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
