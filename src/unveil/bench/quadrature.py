"""Adaptive quadrature of a density in two or three dimensions: its integral, its moments, and draws from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]

CHUNK = 2**18
"""Points at which a density is evaluated at a time."""

MARGIN = 1.5
"""What the largest value at the nodes of a cell is multiplied by, for a bound of the density on the cell."""


@dataclass(frozen=True)
class Quadrature:
    """Cells that tile a box, and what a density has on them, all float64.

    ``low`` [M, d] and ``width`` [M, d] are the cells, ``mass`` [M] their integrals in units of exp(``log_scale``),
    ``top`` [M] the largest value of the density at a cell's nodes in the same units. ``error`` is the sum of what two
    rules differ by on each cell, over the integral: a bound of the relative error that is meant to be pessimistic.
    """

    low: Tensor
    width: Tensor
    mass: Tensor
    top: Tensor
    log_scale: float
    error: float
    mean: Tensor
    covariance: Tensor

    @property
    def log_integral(self) -> float:
        """Logarithm of the integral of the density over the box."""
        return float(self.mass.sum().log()) + self.log_scale

    def draws(self, n: int, log_density: LogDensity, seed: int = 0) -> tuple[Tensor, float]:
        """n independent draws [n, d], and the share of proposals at which the bound of a cell was broken.

        A cell by its mass, a point in it by rejection; the density there is bounded by ``MARGIN`` times the largest
        value at the nodes, which only discontinuities can break.
        """
        g = torch.Generator().manual_seed(seed)
        cells = torch.multinomial((self.mass / self.mass.sum()).float(), n, True, generator=g)
        out, left = torch.empty(n, self.low.shape[1], dtype=torch.float64), torch.arange(n)
        broken = tried = 0
        while len(left):
            at = cells[left]
            u = torch.rand(len(left), self.low.shape[1], generator=g, dtype=torch.float64)
            x = self.low[at] + u * self.width[at]
            ratio = (log_density(x) - self.log_scale).exp() / (MARGIN * self.top[at])
            keep = torch.rand(len(left), generator=g, dtype=torch.float64) < ratio
            out[left[keep]] = x[keep]
            broken, tried = broken + int((ratio > 1).sum()), tried + len(left)
            left = left[~keep]
        return out, broken / tried


def integrate(
    log_density: LogDensity,
    low: Tensor,
    high: Tensor,
    tolerance: float = 1e-5,
    start: int = 16,
    most: int = 1_000_000,
) -> Quadrature:
    """Integrate exp(log_density) over the box from ``low`` [d] to ``high`` [d].

    Lobatto's rule with four points to an axis on each cell, compared with that of three (Simpson's); both look at the
    corners, where a step of the density that cuts one off shows. The cells that differ most are halved along every
    axis until the differences sum to ``tolerance`` of the integral, or there are ``most`` cells. ``start`` cells to an
    axis must be narrow enough to see every peak.

    ``log_density`` takes float64 points [N, d] and gives [N].
    """
    d = len(low)
    fine, coarse = _rule(4, d), _rule(3, d)
    width = ((high - low) / start).expand(start**d, d)
    grid = torch.cartesian_prod(*[torch.arange(start, dtype=torch.float64)] * d)
    corner = low + grid * width
    scale = float(_evaluate(log_density, corner, width, fine[0]).amax())

    def measure(corner: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        volume = width.prod(1)
        p = (_evaluate(log_density, corner, width, fine[0]) - scale).exp()
        q = (_evaluate(log_density, corner, width, coarse[0]) - scale).exp()
        mass = (p @ fine[1]) * volume
        x = corner[:, None] + fine[0] * width[:, None]
        weight = p * fine[1] * volume[:, None]
        first, second = torch.einsum("cn,cnd->cd", weight, x), torch.einsum("cn,cnd,cne->cde", weight, x, x)
        error = (mass - (q @ coarse[1]) * volume).abs()
        return mass, p.amax(1), error, torch.cat([first, second.flatten(1)], 1)

    mass, top, error, moments = measure(corner, width)
    while float(error.sum()) > tolerance * float(mass.sum()) and len(mass) < most:
        # the fewest cells that hold all but half of the error that is allowed
        order = error.argsort(descending=True)
        rest = error.sum() - error[order].cumsum(0)
        count = int((rest > 0.5 * tolerance * mass.sum()).sum()) + 1
        split = torch.zeros(len(mass), dtype=torch.bool)
        split[order[: min(count, (most - len(mass)) // (2**d - 1) + 1)]] = True
        half = (width[split] / 2).repeat_interleave(2**d, 0)
        bits = torch.cartesian_prod(*[torch.arange(2, dtype=torch.float64)] * d).repeat(int(split.sum()), 1)
        born_at = corner[split].repeat_interleave(2**d, 0) + bits * half
        born = measure(born_at, half)
        corner, width = torch.cat([corner[~split], born_at]), torch.cat([width[~split], half])
        mass, top, error, moments = (
            torch.cat([old[~split], new]) for old, new in zip((mass, top, error, moments), born, strict=True)
        )
    total = mass.sum()
    sums = moments.sum(0) / total
    mean, second = sums[:d], sums[d:].reshape(d, d)
    held = mass > 0
    return Quadrature(
        corner[held],
        width[held],
        mass[held],
        top[held],
        scale,
        float(error.sum() / total),
        mean,
        second - torch.outer(mean, mean),
    )


_LOBATTO = {3: ([-1, 0, 1], [1 / 3, 4 / 3, 1 / 3]), 4: ([-1, -(0.2**0.5), 0.2**0.5, 1], [1 / 6, 5 / 6, 5 / 6, 1 / 6])}


def _rule(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Nodes [n^d, d] in the unit cube, and weights [n^d] of sum one."""
    nodes, weights = (torch.tensor(v, dtype=torch.float64) / 2 for v in _LOBATTO[n])
    x = torch.cartesian_prod(*[nodes + 0.5] * d)
    w = torch.cartesian_prod(*[weights] * d).prod(1)
    return x, w


def _evaluate(log_density: LogDensity, corner: Tensor, width: Tensor, nodes: Tensor) -> Tensor:
    """log density at the nodes of each cell [M, n^d]."""
    step = max(1, CHUNK // len(nodes))
    parts = []
    for a in range(0, len(corner), step):
        x = corner[a : a + step, None] + nodes * width[a : a + step, None]
        parts.append(log_density(x.flatten(0, 1)).double().reshape(x.shape[:2]))
    return torch.nan_to_num(torch.cat(parts), nan=-math.inf, neginf=-math.inf)
