"""Noise that is not light: heavy tails, dead pixels, magnitudes, levels and the ends of a detector's range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import i0e, i1e, log_ndtr, ndtr

from ..errors import InputError
from ..registry import register
from ..rng import Rng
from .base import Noise, joined, masked, parts, placed, positive, real, summed

_FAR = 1e4
"""Standard deviations that stand for infinitely many: the normal density there is zero in every precision."""


@register("noise", "laplace")
@dataclass(frozen=True)
class Laplace(Noise):
    """y = clean + n, n with the density exp(-|n| / scale) / (2 scale); of complex y each part.

    ``scale`` is in the units of y; the variance is 2 scale^2. The score is that of the sign of the residual, zero where
    it is zero.
    """

    scale: float = 0.05

    def __post_init__(self) -> None:
        positive("Laplace noise", scale=self.scale)

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        u = rng.uniform(parts(clean)) - 0.5
        # 1 - 2|u| lies in (0, 1] but for u = -1/2, which the smallest number stands in for
        tiny = torch.finfo(u.dtype).tiny
        n = -self.scale * torch.sign(u) * (1 - 2 * u.abs()).clamp(min=tiny).log()
        return clean + masked(joined(n, clean), measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        each = -parts(y - clean).abs() / self.scale - math.log(2 * self.scale)
        return summed(each.sum(-1) if y.is_complex() else each, measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        return masked(joined(torch.sign(parts(y - clean)) / self.scale, y), measured)

    def variance(self, clean: Tensor) -> float:  # noqa: ARG002
        return 2 * self.scale**2


@register("noise", "impulse")
@dataclass(frozen=True)
class Impulse(Noise):
    """Salt and pepper: with ``probability`` an entry is ``low`` or ``high``, else clean + sigma n.

    The density is with respect to the line plus an atom at each of the two values: half the probability at an atom,
    whatever was there, and (1 - probability) times the Gaussian elsewhere. So entries at an atom count for nothing in
    the score. ``background`` is the standard deviation of the Gaussian, in the units of y.
    """

    probability: float = 0.1
    background: float = 0.02
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        positive("impulse noise", background=self.background)
        if not 0 < self.probability < 1:
            raise InputError(f"impulse noise needs a probability in (0, 1), got {self.probability}")
        if not self.low < self.high:
            raise InputError(f"impulse noise needs low < high, got {self.low} and {self.high}")

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "salt and pepper are real values")
        u = rng.uniform(clean)
        y = clean + self.background * rng.normal(clean)
        y = torch.where(u < self.probability, torch.where(u < self.probability / 2, self.low, self.high), y)
        return placed(y, clean, measured)

    def _atom(self, y: Tensor) -> Tensor:
        return (y == self.low) | (y == self.high)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "salt and pepper are real values")
        constant = math.log(1 - self.probability) - math.log(self.background) - 0.5 * math.log(2 * math.pi)
        each = constant - 0.5 * ((y - clean) / self.background) ** 2
        return summed(torch.where(self._atom(y), math.log(self.probability / 2), each), measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "salt and pepper are real values")
        return masked(torch.where(self._atom(y), 0, (y - clean) / self.background**2), measured)

    def variance(self, clean: Tensor) -> Tensor:
        ends = ((self.low - clean) ** 2 + (self.high - clean) ** 2) / 2
        return (1 - self.probability) * self.background**2 + self.probability * ends


@register("noise", "rician")
@dataclass(frozen=True)
class Rician(Noise):
    """Magnitudes of complex data: y = |clean + scale (n1 + i n2)|, as in MRI images (Gudbjartsson and Patz 1995).

    ``scale`` is the standard deviation of each part, in the units of y. y >= 0, and its sign does not tell clean's.
    """

    scale: float = 0.05

    def __post_init__(self) -> None:
        positive("Rician noise", scale=self.scale)

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "Rician noise is that of magnitudes")
        y = torch.hypot(clean + self.scale * rng.normal(clean), self.scale * rng.normal(clean))
        return placed(y, clean, measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "Rician noise is that of magnitudes")
        v = self.scale**2
        tiny = torch.finfo(y.dtype).tiny
        z = y * clean / v
        # log I0(z) = log i0e(z) + |z|: the squares are completed, and nothing overflows
        each = y.clamp(min=tiny).log() - math.log(v) - (y - clean.abs()) ** 2 / (2 * v) + i0e(z).log()
        return summed(each, measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "Rician noise is that of magnitudes")
        v, c = y.double(), clean.double()  # at high signal nearly equal terms are subtracted
        z = v * c / self.scale**2
        return masked(((v * i1e(z) / i0e(z) - c) / self.scale**2).to(y.dtype), measured)

    def variance(self, clean: Tensor) -> Tensor:
        # E y^2 = clean^2 + 2 scale^2; E y = scale sqrt(pi / 2) L(-clean^2 / 2 scale^2), L Laguerre's of degree 1/2
        c = clean.double()
        q = c**2 / (4 * self.scale**2)
        mean = self.scale * (math.pi / 2) ** 0.5 * ((1 + 2 * q) * i0e(q) + 2 * q * i1e(q))
        variance: Tensor = 2 * c**2 + 2 * self.scale**2 - 2 * c * mean
        return variance.to(clean.dtype)


@register("noise", "clipped")
@dataclass(frozen=True)
class Clipped(Noise):
    """A detector that saturates: y = clip(clean + scale n, low, high), n standard normal.

    The density is with respect to the line plus an atom at each end: an entry at an end says that clean + scale n lies
    beyond it (Tobin 1958, Econometrica 26, 24). ``scale`` is in the units of y.
    """

    scale: float = 0.02
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        positive("clipped noise", scale=self.scale)
        if not self.low < self.high:
            raise InputError(f"clipped noise needs low < high, got {self.low} and {self.high}")

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "clipping is of real values")
        return placed((clean + self.scale * rng.normal(clean)).clamp(self.low, self.high), clean, measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "clipping is of real values")
        r = (y - clean) / self.scale
        inside = -0.5 * r**2 - math.log(self.scale) - 0.5 * math.log(2 * math.pi)
        each = torch.where(y <= self.low, log_ndtr(r), torch.where(y >= self.high, log_ndtr(-r), inside))
        return summed(each, measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "clipping is of real values")
        r = (y - clean) / self.scale
        each = torch.where(y <= self.low, -_hazard(r), torch.where(y >= self.high, _hazard(-r), r))
        return masked(each / self.scale, measured)

    def variance(self, clean: Tensor) -> Tensor:
        a, b = (self.low - clean) / self.scale, (self.high - clean) / self.scale
        inside = ndtr(b) - ndtr(a) - b * _density(b) + a * _density(a)
        variance: Tensor = self.scale**2 * (inside + a**2 * ndtr(a) + b**2 * ndtr(-b))
        return variance

    def information(self, y: Tensor, clean: Tensor) -> Tensor:
        r = (y - clean) / self.scale
        low, high = _hazard(r), _hazard(-r)
        ends = torch.where(y <= self.low, low * (low + r), high * (high - r))
        inside = (y > self.low) & (y < self.high)
        return torch.where(inside, 1.0, ends.clamp(0, 1)) / self.scale**2


@register("noise", "quantisation")
@dataclass(frozen=True)
class Quantisation(Noise):
    """A converter of few bits: y is the one of 2**bits levels from low to high that is nearest to clean + scale n.

    ``log_prob`` is the probability of the level: that of a normal variable in the interval around it, open at the ends
    of the range, so that saturation is part of the model (Zymnis, Boyd, Candes 2010, IEEE Signal Process. Lett. 17,
    149). One bit tells which half of the range. ``scale`` > 0 is the noise before the converter, in the units of y.
    """

    bits: int = 4
    scale: float = 0.02
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        positive("quantisation", scale=self.scale)
        if not 1 <= self.bits <= 16:
            raise InputError(f"quantisation takes 1 to 16 bits, got {self.bits}")
        if not self.low < self.high:
            raise InputError(f"quantisation needs low < high, got {self.low} and {self.high}")

    @property
    def step(self) -> float:
        """The distance of two levels, in the units of y."""
        levels: int = 2**self.bits
        return (self.high - self.low) / (levels - 1)

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "levels are real values")
        z = clean + self.scale * rng.normal(clean)
        return placed(self._levels(z) * self.step + self.low, clean, measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "levels are real values")
        return summed(_log_between(*self._edges(y, clean)).to(y.dtype), measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "levels are real values")
        a, b = self._edges(y, clean)
        log_p = _log_between(a, b)
        each = (torch.exp(_log_density(a) - log_p) - torch.exp(_log_density(b) - log_p)) / self.scale
        return masked(each.to(y.dtype), measured)

    def variance(self, clean: Tensor) -> Tensor:
        if self.bits > 8:  # levels far denser than anything that is asked of their error
            return torch.full_like(clean, self.scale**2 + self.step**2 / 12)
        total = torch.zeros_like(clean)
        for level in range(2**self.bits):
            y = torch.full_like(clean, self.low + level * self.step)
            total = total + _log_between(*self._edges(y, clean)).exp() * (y - clean) ** 2
        return total.to(clean.dtype)

    def information(self, y: Tensor, clean: Tensor) -> Tensor:
        a, b = self._edges(y, clean)
        log_p = _log_between(a, b)
        low, high = torch.exp(_log_density(a) - log_p), torch.exp(_log_density(b) - log_p)
        bend = (low - high) ** 2 - (a * low - b * high)
        return (bend.clamp(0, 1) / self.scale**2).to(clean.dtype)

    def _levels(self, z: Tensor) -> Tensor:
        return ((z - self.low) / self.step).round().clamp(0, 2**self.bits - 1)

    def _edges(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """The interval of y's level around clean in units of scale: float64, since it can be very short."""
        y, clean = y.double(), clean.double()
        level = self._levels(y)
        a = ((level - 0.5) * self.step + self.low - clean) / self.scale
        b = a + self.step / self.scale
        return torch.where(level == 0, -_FAR, a), torch.where(level == 2**self.bits - 1, _FAR, b)


def _log_density(t: Tensor) -> Tensor:
    """Of the standard normal."""
    return -0.5 * t**2 - 0.5 * math.log(2 * math.pi)


def _density(t: Tensor) -> Tensor:
    return _log_density(t).exp()


def _hazard(t: Tensor) -> Tensor:
    """phi(t) / Phi(t), far out as well: float64, since the logarithms are large and nearly cancel."""
    far = t.double()
    return torch.exp(_log_density(far) - log_ndtr(far)).to(t.dtype)


def _log_between(a: Tensor, b: Tensor) -> Tensor:
    """log(Phi(b) - Phi(a)) for a < b, from the side where both are small."""
    upper = a + b > 0
    lo, hi = torch.where(upper, -b, a), torch.where(upper, -a, b)
    top: Tensor = log_ndtr(hi)
    return top + torch.log(-torch.expm1(log_ndtr(lo) - top))
