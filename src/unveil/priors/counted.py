"""Counting what is asked of a prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..numerics.parts import in_parts, parts
from .base import Prior, Pullback, Sigma


@dataclass
class Cost:
    """Evaluations of the prior, in rows: ``forward`` (denoise and vjp alike) and ``backward`` (pullbacks)."""

    forward: int = 0
    backward: int = 0


@dataclass(frozen=True)
class Counted(Prior):
    """A prior that counts its evaluations, ``chunk`` rows at a time if that is given; the numbers are not changed."""

    prior: Prior
    cost: Cost = field(default_factory=Cost)
    chunk: int | None = None

    @property
    def shape(self) -> tuple[int | None, ...]:  # type: ignore[override]
        return self.prior.shape

    @property
    def value_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.prior.value_range

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.prior.sigma_range

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        self.cost.forward += x.shape[0]
        return in_parts(x.shape[0], self.chunk, lambda part: self.prior.denoise(x[part], _of(sigma, part)))

    def vjp(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Pullback]:
        self.cost.forward += x.shape[0]
        if self.chunk is None or x.shape[0] <= self.chunk:
            x0, pullback = self.prior.vjp(x, sigma)
        else:
            found = [self.prior.vjp(x[part], _of(sigma, part)) for part in parts(x.shape[0], self.chunk)]
            x0, pullback = torch.cat([x0 for x0, _ in found]), _joined([back for _, back in found], self.chunk)

        def counted(v: Tensor) -> Tensor:
            self.cost.backward += v.shape[0]
            return pullback(v)

        return x0, counted

    @property
    def variance(self) -> str | None:  # type: ignore[override]
        return self.prior.variance

    def moments(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
        self.cost.forward += x.shape[0]
        return in_parts(x.shape[0], self.chunk, lambda part: self.prior.moments(x[part], _of(sigma, part)))

    def given(self, **condition: Any) -> Prior:
        return Counted(self.prior.given(**condition), self.cost, self.chunk)

    def in_range(self, lo: float, hi: float) -> Prior:
        return Counted(self.prior.in_range(lo, hi), self.cost, self.chunk)

    def to(self, device: torch.device | str) -> Prior:
        return Counted(self.prior.to(device), self.cost, self.chunk)

    def describe(self) -> dict[str, Any]:
        return self.prior.describe()


def _of(sigma: Sigma, part: slice) -> Sigma:
    """The noise level, one number or [N], of some of the rows."""
    return sigma[part] if isinstance(sigma, Tensor) and sigma.ndim else sigma


def _joined(pullbacks: list[Pullback], chunk: int) -> Pullback:
    """The pullback of parts of ``chunk`` rows, as one."""
    return lambda v: torch.cat([back(part) for back, part in zip(pullbacks, torch.split(v, chunk), strict=True)])
