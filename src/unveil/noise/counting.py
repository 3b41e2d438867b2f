"""Noise of light: photons that are counted, with and without the noise of reading them out, and speckle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from ..rng import Rng
from .base import Noise, masked, placed, positive, real, summed

FINE = 4.0
"""Spread, in counts, up to which the density of Poisson-Gaussian noise is summed over every count."""


@register("noise", "poisson")
@dataclass(frozen=True)
class Poisson(Noise):
    """Counting noise: y = k / gain, where k is Poisson with the mean gain * clean.

    ``gain`` is the expected number of counts per unit of the clean measurement: the larger, the less noise;
    the variance of y is clean / gain. y and clean must be real and are meant to be >= 0.

    A mean below zero is taken as zero when sampling. ``log_prob`` is the probability of the counts k (as a
    function of y it differs from a density by a constant), exact where the mean is at least ``floor`` counts;
    below, log(mean) is continued by its tangent, so that a guess of no light where light was seen is
    improbable but not impossible and the score stays finite and pulls upwards.
    """

    gain: float = 100.0
    floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise InputError(f"Poisson noise needs gain > 0, in counts per unit of the measurement, got {self.gain}")
        if not 0 < self.floor < math.inf:
            raise InputError(f"Poisson noise needs floor > 0, in counts, got {self.floor}")

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "Poisson noise counts")
        y = rng.poisson((self.gain * clean).clamp(min=0)) / self.gain
        return placed(y, clean, measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "Poisson noise counts")
        k, mean = self.gain * y, self.gain * clean
        return summed(k * _log_mean(mean, self.floor) - mean.clamp(min=0) - torch.lgamma(k + 1), measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "Poisson noise counts")
        k, mean = self.gain * y, self.gain * clean
        return masked(self.gain * (k / mean.clamp(min=self.floor) - (mean > 0).to(k.dtype)), measured)

    def variance(self, clean: Tensor) -> Tensor:
        return _of_counts(clean, self.gain, self.floor)

    def information(self, y: Tensor, clean: Tensor) -> Tensor:  # noqa: ARG002
        return self.gain / clean.clamp(min=self.floor / self.gain)


@register("noise", "poisson-gaussian")
@dataclass(frozen=True)
class PoissonGaussian(Noise):
    """A camera in low light: y = k / gain + sigma n, with k Poisson of mean gain * clean and n standard normal.

    ``gain`` is in photo-electrons per unit of the clean measurement, ``sigma_read`` the read-out noise in the units
    of y; the variance of y is clean / gain + sigma_read^2 (Foi, Trimeche, Katkovnik, Egiazarian 2008, IEEE Trans.
    Image Process. 17, 1737). The density is the sum over counts k of Poisson times Gaussian densities, six spreads
    around the likeliest k; where their spread exceeds four counts, in steps of a quarter of it, which leaves an error
    below 1e-6. Below ``floor``, in counts, the logarithm of the sum is continued by its tangent, as that of
    :class:`Poisson`.
    """

    gain: float = 100.0
    sigma_read: float = 0.02
    floor: float = 0.01

    def __post_init__(self) -> None:
        positive("Poisson-Gaussian noise", gain=self.gain, sigma_read=self.sigma_read, floor=self.floor)

    @classmethod
    def low_light(cls, photons: float = 20.0, read: float = 2.0) -> PoissonGaussian:
        """``photons`` where the clean measurement is 1, and a read-out noise of ``read`` electrons."""
        positive("low light", photons=photons, read=read)
        return cls(photons, read / photons)

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "Poisson noise counts")
        y = rng.poisson((self.gain * clean).clamp(min=0)) / self.gain
        return placed(y + self.sigma_read * rng.normal(clean), clean, measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        each, _ = self._density(y, clean)
        return summed(each.to(y.dtype), measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        _, k = self._density(y, clean)
        mean = self.gain * clean
        each = self.gain * (k / mean.clamp(min=self.floor) - (mean > 0).to(k.dtype))
        return masked(each.to(y.dtype), measured)

    def variance(self, clean: Tensor) -> Tensor:
        return _of_counts(clean, self.gain, self.floor) + self.sigma_read**2

    def information(self, y: Tensor, clean: Tensor) -> Tensor:  # noqa: ARG002
        """That of a Gaussian of the same variance: exact with many counts, or much noise of reading them out."""
        return 1 / self.variance(clean.clamp(min=0))

    def _density(self, y: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """log p(y | clean) of each entry, and E[k | y, clean] (of ``floor`` below it), float64: large terms cancel."""
        real(clean, "Poisson noise counts")
        z, mean, spread = self.gain * y.double(), self.gain * clean.double(), self.gain * self.sigma_read
        bounded = mean.clamp(min=self.floor)
        log_mean = bounded.log()
        centre, step = _likeliest(z, log_mean.detach(), spread)
        top = centre * log_mean - torch.lgamma(centre + 1) - 0.5 * ((z - centre) / spread) ** 2
        add = _every if spread <= FINE else _some
        total, first = add(z, log_mean, spread, centre, step)
        constant = math.log(self.gain / spread) - 0.5 * math.log(2 * math.pi)
        k = first / total
        tangent = (mean - bounded) * k.detach() / self.floor
        return top + total.log() - mean.clamp(min=0) + tangent + constant, k


def _every(z: Tensor, log_mean: Tensor, spread: float, centre: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over k of p(k) / p(centre) and k p(k) / p(centre), p(k) = Poisson(k) N(z; k, spread^2): by their ratios."""
    terms, v = math.ceil(6 * spread) + 1, spread**2
    total, first = torch.ones_like(log_mean), centre
    mean, up, down = log_mean.exp(), torch.ones_like(log_mean), torch.ones_like(log_mean)
    for j in range(1, terms + 1):
        # p(k) / p(k - 1) = mean / k exp((z - k + 1/2) / v)
        up = up * mean / (centre + j) * ((z - centre - j + 0.5) / v).exp()
        k = (centre - j).clamp(min=-1)
        # no count below zero, however large its ratio would be
        down = down * (k + 1) / mean * torch.where(k >= 0, (centre - z - j + 0.5) / v, 0).exp()
        total, first = total + up + down, first + (centre + j) * up + k * down
    return total, first


def _some(z: Tensor, log_mean: Tensor, spread: float, centre: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The same sums in steps of ``step`` counts, where p is smooth."""
    total, first = torch.zeros_like(log_mean), torch.zeros_like(log_mean)
    for j in range(-24, 25):
        k = (centre + j * step).clamp(min=0)
        log_ratio = (k - centre) * log_mean + torch.lgamma(centre + 1) - torch.lgamma(k + 1)
        log_ratio = log_ratio + ((z - centre) ** 2 - (z - k) ** 2) / (2 * spread**2)
        each = torch.where(centre + j * step >= 0, step * log_ratio.exp(), 0)
        total, first = total + each, first + k * each
    return total, first


def _log_mean(mean: Tensor, floor: float) -> Tensor:
    """log(mean), continued by its tangent below ``floor``."""
    bounded = mean.clamp(min=floor)
    return bounded.log() + (mean - bounded) / floor


def _likeliest(z: Tensor, log_mean: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    """The count k with the largest Poisson(k) N(z; k, spread^2), and the step to sum with: whole numbers."""
    # log k solves u = log_mean + (z - exp(u)) / spread^2: Newton's iterations fall to it from above
    u = torch.maximum(log_mean, z.clamp(min=1e-3).log())
    for _ in range(12):
        pull = u.exp() / spread**2
        u = u - (u - log_mean - z / spread**2 + pull) / (1 + pull)
    k = u.exp()
    width = 1 / (1 / spread**2 + 1 / k.clamp(min=1)).sqrt()
    return k.round(), (width / 4).ceil().clamp(min=1)


@register("noise", "speckle")
@dataclass(frozen=True)
class Speckle(Noise):
    """Multiplicative noise of coherent light: y = clean * g with g Gamma of mean 1 and variance 1 / looks.

    ``looks`` is the number of independent intensities averaged, in radar or
    ultrasound, not necessarily whole (Goodman 1976, J. Opt. Soc. Am.
    66, 1145); y and clean are intensities > 0. Below ``floor`` the clean one counts as ``floor``.
    """

    looks: float = 4.0
    floor: float = 1e-4

    def __post_init__(self) -> None:
        positive("speckle", looks=self.looks, floor=self.floor)

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        real(clean, "speckle multiplies intensities")
        g = rng.gamma(torch.full_like(clean, self.looks)) / self.looks
        return placed(clean * g, clean, measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "speckle multiplies intensities")
        mean, k = clean.clamp(min=self.floor), self.looks
        tiny = torch.finfo(y.dtype).tiny
        each = k * (math.log(k) - mean.log() - y / mean) + (k - 1) * y.clamp(min=tiny).log() - math.lgamma(k)
        return summed(each, measured)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        real(clean, "speckle multiplies intensities")
        mean = clean.clamp(min=self.floor)
        return masked(torch.where(clean > self.floor, self.looks * (y / mean - 1) / mean, 0), measured)

    def variance(self, clean: Tensor) -> Tensor:
        return clean.clamp(min=self.floor).square() / self.looks

    def information(self, y: Tensor, clean: Tensor) -> Tensor:  # noqa: ARG002
        return 1 / self.variance(clean)


def _of_counts(clean: Tensor, gain: float, floor: float) -> Tensor:
    """E (k / gain - clean)^2 of counts k; a mean below zero is taken as zero, and y is then as far from it as zero."""
    return clean.clamp(min=floor / gain) / gain + clean.clamp(max=0).square()
