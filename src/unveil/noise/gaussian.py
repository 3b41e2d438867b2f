"""Gaussian noise: white, uneven, stationary and of any covariance; and no noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from ..rng import Rng
from .base import Noise, count, masked, placed

if TYPE_CHECKING:
    from ..operators.base import Linear, Shape

DENSE = 8192
"""Entries of y up to which the covariance of a part of a stationary field is made a matrix."""


@register("noise", "gaussian")
@dataclass(frozen=True)
class Gaussian(Noise):
    """y = clean + sigma n, with n standard normal.

    ``sigma`` is in the units of y. For complex y it is the standard deviation of the real and of the
    imaginary part each, so that E|y - clean|^2 = 2 sigma^2, and a complex entry counts as two real ones.
    Raises :class:`InputError` unless sigma > 0 and finite; use :class:`NoNoise` for zero.
    """

    sigma: float = 0.05

    def __post_init__(self) -> None:
        if self.sigma == 0:
            raise InputError("Gaussian(0) has no density: use NoNoise() for a noiseless measurement")
        if not 0 < self.sigma < math.inf:
            raise InputError(f"Gaussian noise needs sigma > 0, in the units of y, got {self.sigma}")

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        return clean + masked(self.sigma * _white(clean, rng), measured)

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        r = masked((y - clean) / self.sigma, measured)
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.sigma)
        return _half_square(r) - constant * count(y, measured) * (2 if r.is_complex() else 1)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        return masked((y - clean) / self.sigma**2, measured)

    def variance(self, clean: Tensor) -> float:  # noqa: ARG002
        return self.sigma**2

    def information(self, y: Tensor, clean: Tensor) -> float:  # noqa: ARG002
        return 1 / self.sigma**2


@register("noise", "none")
@dataclass(frozen=True)
class NoNoise(Noise):
    """y = clean exactly: data are a constraint.

    ``log_prob`` is 0 where they agree exactly and minus infinity elsewhere; it has no gradient, so that
    ``score`` raises :class:`InputError`.
    """

    sigma: ClassVar[float] = 0.0  # type: ignore[misc]

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return clean

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        agree = (masked((y != clean).to(y.real.dtype), measured) == 0).flatten(1).all(1)
        return torch.where(agree, 0.0, -math.inf).to(y.real.dtype)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:  # noqa: ARG002
        raise InputError(
            "a noiseless measurement has no likelihood score: use a solver that projects, or Gaussian(sigma) "
            "with a small sigma"
        )

    def variance(self, clean: Tensor) -> None:  # noqa: ARG002
        return None


class CorrelatedGaussian(Noise):
    """y = clean + n with n ~ N(0, C): a base class.

    C is the covariance of the real numbers in y; of complex y that of the real and of the imaginary parts each, so
    that E n n^H = 2 C. Solvers that need Gaussian noise see the problem through W with W C W^T = I
    (:meth:`~unveil.noise.Noise.whitener`, :attr:`unveil.Problem.white`).
    """

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        w, log_det = self._whitener(y, measured)
        if math.isnan(log_det):
            raise InputError(
                f"the density of stationary noise on a part of {y[0].numel()} entries needs the determinant of their "
                f"covariance, a matrix: at most {DENSE} entries; its score needs none, nor do solvers"
            )
        n = count(y, measured)
        constant = 0.5 * math.log(2 * math.pi) * n - log_det
        return _half_square(w(masked(y - clean, measured))) - constant * (2 if y.is_complex() else 1)

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        w, _ = self._whitener(y, measured)
        return masked(w.normal(masked(y - clean, measured)), measured)

    def _whitener(self, y: Tensor, measured: Tensor | None) -> tuple[Linear, float]:
        found = self.whitener(tuple(y.shape[1:]), measured)
        assert found is not None
        return found


@register("noise", "gaussian-diagonal")
@dataclass(frozen=True, eq=False)
class DiagonalGaussian(CorrelatedGaussian):
    """y = clean + std n: Gaussian noise of another standard deviation at every entry.

    ``std`` is a tensor, broadcastable to one row of y, in its units; infinite marks entries that carry no data.
    Raises :class:`InputError` unless all are > 0.
    """

    std: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.std, Tensor) or not self.std.is_floating_point() or not bool((self.std > 0).all()):
            raise InputError("std is a real tensor of standard deviations > 0: one for each entry of y")

    @classmethod
    def example(cls, shape: Shape) -> DiagonalGaussian:
        return cls(torch.linspace(0.1, 0.4, math.prod(shape), dtype=torch.float64).reshape(shape))

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        std = self.std.to(clean.real)
        noise = torch.where(torch.isfinite(std), std, 0) * _white(clean, rng)
        return clean + masked(noise, measured)

    def variance(self, clean: Tensor) -> Tensor:
        return self.std.to(clean.real).square()

    def whitener(self, shape: Shape, measured: Tensor | None = None) -> tuple[Linear, float]:
        from ..operators.weights import Weights

        weights = (1 / self.std.double().cpu()).expand(shape)
        if measured is not None:
            weights = weights * (measured.cpu() > 0)
        return Weights(weights.to(self.std.device)), float(weights[weights > 0].log().sum())


@register("noise", "gaussian-circulant")
@dataclass(frozen=True, eq=False)
class CirculantGaussian(CorrelatedGaussian):
    """Stationary Gaussian noise on a periodic grid: its covariance is diagonal in frequency.

    ``power`` [..., H, W] is the noise's power spectrum, in the units of y squared, in the order of ``fft2``: the
    variance of each coefficient of the unitary Fourier transform of the last two axes. White noise has power sigma^2
    everywhere. For real noise it is even in frequency. Raises :class:`InputError` unless it is even and > 0.

    Where only a part of y is measured, and y has more than 8192 entries, the whitener is a polynomial of the covariance
    (:class:`~unveil.operators.weights.Power`), and ``log_prob`` raises :class:`InputError`: its constant is not known.
    """

    power: Tensor

    def __post_init__(self) -> None:
        p = self.power
        if not isinstance(p, Tensor) or not p.is_floating_point() or p.ndim < 2 or not bool((p > 0).all()):
            raise InputError("power is a real tensor [..., H, W] of variances > 0: one for each frequency")
        mirrored = p.flip((-2, -1)).roll((1, 1), (-2, -1))
        if not bool(((p - mirrored).abs() <= 1e-5 * p.max()).all()):
            raise InputError("power must be even in frequency, in the order of fft2: was it shifted? use ifftshift")

    @classmethod
    def example(cls, shape: Shape) -> CirculantGaussian:
        return cls.of_kernel(torch.tensor([[0.1, 0.3, 0.1], [0.3, 1.0, 0.3], [0.1, 0.3, 0.1]]), shape[-2:], 0.2)

    @classmethod
    def of_kernel(cls, kernel: Tensor, size: tuple[int, ...], sigma: float = 1.0) -> CirculantGaussian:
        """White noise of standard deviation ``sigma`` filtered with ``kernel`` [h, w], on a grid of size (H, W).

        Raises :class:`InputError` if the kernel suppresses some frequency: no noise there has no density.
        """
        transfer = torch.fft.fft2(kernel.double(), s=size[-2:])
        return cls(sigma**2 * transfer.abs().square())

    def _gain(self, exponent: float) -> Tensor:
        """power**exponent as the kernel of a circular filter [..., H, W], centred: float64, on the CPU."""
        h, w = self.power.shape[-2:]
        kernel: Tensor = torch.fft.ifft2(self.power.detach().cpu().double() ** exponent).real
        return kernel.roll((h // 2, w // 2), (-2, -1))

    def _filter(self, exponent: float, shape: Shape) -> Linear:
        from ..operators.blur import Blur

        if len(shape) < 2 or tuple(shape[-2:]) != tuple(self.power.shape[-2:]):
            raise InputError(f"the power spectrum is {tuple(self.power.shape[-2:])}, y has shape {tuple(shape)}")
        operator: Linear = Blur(self._gain(exponent).to(self.power.device), unit_sum=False, in_shape=shape)
        return operator

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        colour, white = self._filter(0.5, tuple(clean.shape[1:])), _white(clean, rng)
        return clean + masked(colour(white), measured)

    def variance(self, clean: Tensor) -> Tensor:
        return self.power.to(clean.real).mean((-2, -1), keepdim=True)

    def whitener(self, shape: Shape, measured: Tensor | None = None) -> tuple[Linear, float]:
        if measured is not None and not bool((measured > 0).all()):  # a part of a stationary field is not stationary
            return self._whitener_of_part(shape, measured)
        channels = math.prod(shape) / math.prod(self.power.shape)
        log_det = -0.5 * float(self.power.double().log().sum()) * channels
        return self._filter(-0.5, shape), log_det

    def _whitener_of_part(self, shape: Shape, measured: Tensor) -> tuple[Linear, float]:
        from ..operators.weights import Power

        stationary, n = self._filter(1.0, shape), math.prod(shape)
        if n > DENSE:
            low, high = float(self.power.min()), float(self.power.max())
            return Power(stationary, -0.5, low, high, (measured > 0).to(self.power)), math.nan
        columns = stationary(torch.eye(n, dtype=torch.float64).reshape(n, *shape))
        return FullGaussian(columns.reshape(n, n)).whitener(shape, measured)


@register("noise", "gaussian-full")
@dataclass(frozen=True, eq=False)
class FullGaussian(CorrelatedGaussian):
    """Gaussian noise of any covariance: of all entries of y, or of its first axis (coils, bands) at each place alone.

    ``covariance`` [m, m] for y of m entries, or [C, C] for y [C, ...]; symmetric and positive definite. For complex y
    it may be Hermitian, as the noise of the coils of an MRI scanner. Raises :class:`InputError` if it is not.
    """

    covariance: Tensor

    def __post_init__(self) -> None:
        c = self.covariance
        if not isinstance(c, Tensor) or c.ndim != 2 or c.shape[0] != c.shape[1]:
            raise InputError("covariance is a square matrix [m, m], or [C, C] for measurements [C, ...]")
        if not bool(((c - c.mH).abs() <= 1e-5 * c.abs().max()).all()):
            raise InputError("the covariance is not symmetric: pass (C + C.mH) / 2")
        if int(torch.linalg.cholesky_ex(self._double)[1]) != 0:
            raise InputError("the covariance is not positive definite: add a small multiple of the identity")

    @classmethod
    def example(cls, shape: Shape) -> FullGaussian:
        n = math.prod(shape)
        mix = torch.eye(n, dtype=torch.float64) + 0.3 * torch.ones(n, n, dtype=torch.float64).tril()
        return cls(0.02 * mix @ mix.mT)

    @property
    def _double(self) -> Tensor:
        c = self.covariance.detach().cpu()
        return c.to(torch.complex128) if c.is_complex() else c.double()

    def _axis(self, shape: Shape) -> bool:
        """True if the covariance is that of the first axis, False if that of all entries."""
        m = self.covariance.shape[0]
        if m == math.prod(shape):
            return False
        if len(shape) > 1 and m == shape[0]:
            return True
        raise InputError(f"a covariance of {m} x {m} fits neither y of shape {tuple(shape)} nor its first axis")

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        from ..operators.weights import Mix

        shape = tuple(clean.shape[1:])
        colour = Mix(torch.linalg.cholesky(self._double), shape, first_axis=self._axis(shape))
        noise = colour(_white(clean, rng)).reshape(clean.shape)
        if noise.is_complex() and not clean.is_complex():
            raise InputError("the covariance is complex and y is real: pass a real covariance")
        return placed(clean + noise, clean, measured)

    def variance(self, clean: Tensor) -> Tensor:
        shape = tuple(clean.shape[1:])
        diagonal = self.covariance.diagonal().real.to(clean.real)
        return diagonal.reshape(-1, *[1] * (len(shape) - 1)) if self._axis(shape) else diagonal.reshape(shape)

    def whitener(self, shape: Shape, measured: Tensor | None = None) -> tuple[Linear, float]:
        from ..operators.weights import Mix

        c, kept, copies = self._double, None, 1.0
        first_axis = self._axis(shape)
        if measured is not None:
            seen = (measured.cpu() > 0).expand(shape)
            if not first_axis:
                kept = torch.nonzero(seen.reshape(-1)).squeeze(1)
                c = c[kept][:, kept]
            elif not bool((seen == seen[:1]).all()):
                raise InputError("noise that is correlated along the first axis needs the same mask for all of it")
        if first_axis:
            one = torch.ones(shape[1:]) if measured is None else (measured.cpu() > 0).expand(shape)[0]
            copies = float(one.sum())
        factor = torch.linalg.cholesky(c)
        identity = torch.eye(c.shape[0], dtype=c.dtype)
        w = torch.linalg.solve_triangular(factor, identity, upper=False).to(self.covariance.device)
        log_det = -float(factor.diagonal().real.log().sum()) * copies
        return Mix(w, shape, first_axis=first_axis, kept=kept, measured=measured if first_axis else None), log_det


def _white(clean: Tensor, rng: Rng) -> Tensor:
    """Standard normal values like ``clean``; the parts of complex ones are standard normal each."""
    # the stream's complex normal has E|z|^2 = 1: half of it in each part
    return rng.normal(clean) * 2**0.5 if clean.is_complex() else rng.normal(clean)


def _half_square(r: Tensor) -> Tensor:
    """-|r|^2 / 2 per row."""
    half: Tensor = -0.5 * torch.linalg.vector_norm(r.flatten(1), dim=1) ** 2
    return half
