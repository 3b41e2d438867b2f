"""A Gaussian prior: it and its posteriors given linear data are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..rng import single
from ..shapes import Rows, Signals
from .base import Prior, Pullback, Sigma
from .exact import (
    LOG_2PI,
    Range,
    affine,
    coloured,
    condition,
    decompose,
    flat_rows,
    noise_variance,
    on,
    sampled_shape,
    sigma_bounds,
    vector,
)


class GaussianPrior(Prior):
    """x0 ~ N(mean, covariance). Immutable; kept in float64, evaluated in the dtype and on the device of x.

    Parameters
    ----------
    mean:
        [n], or an image [C, H, W] whose shape becomes the prior's.
    covariance:
        Symmetric positive definite [n, n]; or the variances [n] of independent entries; or one number.
    shape:
        How the n entries are read as a signal, (n,) by default.
    value_range:
        Nominal units; Gaussian values leave any range.

    ``sigma_range`` goes from 1/1000 of the smallest standard deviation, where denoising changes x by less
    than one part in a million, to 50 times the extent (largest standard deviation, plus the largest offset of
    the mean from the middle of the value range): a run that starts from pure noise around that middle instead
    of from the exact marginal is then off by at most 2 % of a standard deviation in each coordinate.

    Raises :class:`InputError` for sizes that do not agree or a covariance that is not positive definite. (The
    posterior of a noiseless measurement is degenerate; :meth:`posterior` makes it, the constructor does not.)
    """

    def __init__(
        self,
        mean: Any,
        covariance: Any,
        *,
        shape: Sequence[int] | None = None,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        m = vector(mean, "mean")
        basis, variances = decompose(covariance, m.numel())
        self._fill(m.flatten(), basis, variances, sampled_shape(shape, m), value_range, torch.device("cpu"))

    def _fill(
        self,
        mean: Tensor,
        basis: Tensor | None,
        variances: Tensor,
        shape: tuple[int, ...],
        value_range: Range,
        device: torch.device,
    ) -> None:
        self._mean, self._basis, self._variances = mean, basis, variances
        self.shape: tuple[int, ...] = shape
        lo, hi = value_range
        if not hi > lo:
            raise InputError(f"a value range needs lo < hi, got ({lo}, {hi})")
        self.value_range = (float(lo), float(hi))
        self.sigma_range = sigma_bounds(mean[None], variances[None], mean, self.value_range)
        self.device = device
        self._top = float(variances.max())
        self._singular = float(variances.min()) == 0
        self._casts: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor | None, Tensor]] = {}

    def _like(
        self,
        mean: Tensor,
        basis: Tensor | None,
        variances: Tensor,
        value_range: Range | None = None,
        device: torch.device | None = None,
    ) -> GaussianPrior:
        """The same kind of prior with other moments, given by their eigen-decomposition."""
        other = object.__new__(type(self))
        other._fill(mean, basis, variances, self.shape, value_range or self.value_range, device or self.device)
        return other

    def _cast(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Mean [n], eigenvectors [n, n] (None: the axes) and eigenvalues [n], as x is typed and placed."""
        key = (x.dtype, x.device)
        if key not in self._casts:
            basis = None if self._basis is None else self._basis.to(x)
            self._casts[key] = (self._mean.to(x), basis, self._variances.to(x))
        return self._casts[key]

    # -- the denoiser ------------------------------------------------------------------------------

    def _gains(self, flat: Tensor, variances: Tensor, sigma: Sigma) -> tuple[float | Tensor, Tensor]:
        """Gains lam / (lam + sigma^2) of the eigenvectors, as one common gain and the differences to it."""
        var = noise_variance(sigma, flat)
        if not self._singular:
            common = self._top / (self._top + var)
            return common, variances / (variances + var) - common
        # directions without variance: gain 0, except at sigma = 0, where x is on the subspace and stays
        if not isinstance(var, Tensor):
            if var == 0:
                return 1.0, torch.zeros_like(variances)
            common = self._top / (self._top + var)
            return common, variances / (variances + var) - common
        still = var == 0
        var = torch.where(still, 1.0, var)
        common = torch.where(still, 1.0, self._top / (self._top + var))
        return common, torch.where(still, 1.0, variances / (variances + var)) - common

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        """m + C (C + sigma^2 I)^-1 (x - m); x [N, *shape]. Bit-equal to x at sigma = 0."""
        flat = flat_rows(x, self.shape)
        mean, basis, variances = self._cast(x)
        common, rest = self._gains(flat, variances, sigma)
        # the common part is an interpolation, so that rounding is relative to the distance that x is moved
        moved = torch.lerp(flat, mean, 1 - common)
        return (moved + _sandwich(flat - mean, basis, rest)).reshape(x.shape)

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        _, basis, variances = self._cast(x)
        with torch.no_grad():
            x0 = self.denoise(x, sigma)
            common, rest = self._gains(flat_rows(x, self.shape), variances, sigma)

        def pullback(v: Tensor) -> Tensor:  # the Jacobian is symmetric and does not depend on x
            with torch.no_grad():
                flat = flat_rows(v, self.shape)
                return (common * flat + _sandwich(flat, basis, rest)).reshape(v.shape)

        return x0, pullback

    def jacobian(self, x: Tensor, sigma: Sigma) -> Tensor:
        """The Jacobian C (C + sigma^2 I)^-1 of the denoiser, dense: [N, n, n] for x [N, *shape]."""
        flat = flat_rows(x, self.shape)
        _, basis, variances = self._cast(x)
        common, rest = self._gains(flat, variances, sigma)
        gains = (common + rest).expand(flat.shape)
        return torch.diag_embed(gains) if basis is None else (basis * gains[:, None, :]) @ basis.T

    def log_prob(self, x: Signals, sigma: Sigma = 0.0) -> Rows:
        """log density [N] of N(mean, covariance + sigma^2 I) at x [N, *shape].

        Raises :class:`InputError` for a degenerate distribution at sigma = 0: it has no density.
        """
        flat = flat_rows(x, self.shape)
        mean, basis, variances = self._cast(x)
        require_density(self._singular, sigma)
        total = (variances + noise_variance(sigma, flat)).expand(flat.shape)
        c = flat - mean if basis is None else (flat - mean) @ basis
        return -0.5 * (c.square() / total + total.log() + LOG_2PI).sum(1)

    def score(self, x: Signals, sigma: Sigma) -> Signals:
        """Gradient of :meth:`log_prob` at x: -(covariance + sigma^2 I)^-1 (x - mean), [N, *shape]."""
        flat = flat_rows(x, self.shape)
        mean, basis, variances = self._cast(x)
        require_density(self._singular, sigma)
        return _sandwich(mean - flat, basis, 1 / (variances + noise_variance(sigma, flat))).reshape(x.shape)

    # -- the distribution --------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """[*shape], float64."""
        return on(self._mean.reshape(self.shape), self.device)

    @property
    def covariance(self) -> Tensor:
        """[n, n], float64."""
        return on(dense(self._basis, self._variances), self.device)

    def sample(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """n independent draws [n, *shape]; draw k of a seed is the same for every n, dtype and device."""
        z = single(seed, n, purpose="prior").normal(torch.empty(n, self._mean.numel(), dtype=torch.float64))
        out = self._mean + coloured(z, self._basis, self._variances)
        return out.reshape(n, *self.shape).to(dtype).to(self.device)

    def posterior(self, problem: Any) -> GaussianPrior:
        """p(x0 | y) of a :class:`~unveil.problem.Problem` with one row of y, a linear operator and Gaussian
        noise.

        Without noise the posterior is degenerate: N(mean, covariance) on the subspace of signals that agree
        with y. Its ``sample``, ``mean``, ``covariance`` and denoiser work (in directions without variance the
        denoiser returns the mean); its ``log_prob`` needs sigma > 0. For float32 data, directions that the
        operator damps below the rounding error of y then count as not measured.

        Raises :class:`~unveil.errors.NotCompatible` for other problems or another value range, and
        :class:`InputError` if y has several rows, or if no signal explains a noiseless y.
        """
        data = affine(problem, self)
        mean, basis, variances, _ = condition(self._mean, self._basis, self._variances, data)
        return self._like(mean, basis, variances)

    def log_evidence(self, problem: Any) -> float:
        """log p(y), exact; conditions and errors as for :meth:`posterior`. Without noise: a density on A's range."""
        return condition(self._mean, self._basis, self._variances, affine(problem, self))[3]

    # -- the same prior elsewhere ------------------------------------------------------------------

    def in_range(self, lo: float, hi: float) -> GaussianPrior:
        if not hi > lo:
            raise InputError(f"a value range needs lo < hi, got ({lo}, {hi})")
        if (lo, hi) == self.value_range:
            return self
        a, b = self.value_range
        gain = (hi - lo) / (b - a)
        return self._like(gain * (self._mean - a) + lo, self._basis, gain**2 * self._variances, (lo, hi))

    def to(self, device: torch.device | str) -> GaussianPrior:
        """The prior with ``sample``, ``mean`` and ``covariance`` on ``device``; the denoiser follows x."""
        if torch.device(device) == self.device:
            return self
        return self._like(self._mean, self._basis, self._variances, device=torch.device(device))

    def describe(self) -> dict[str, Any]:
        from ..io.digest import digest

        covariance = self._variances if self._basis is None else dense(self._basis, self._variances)
        moments = [self._mean, covariance]
        return {**super().describe(), "shape": list(self.shape), "digest": digest(moments)}


def _sandwich(v: Tensor, basis: Tensor | None, gains: Tensor) -> Tensor:
    """Q diag(gains) Q^T v for rows v [N, n]."""
    return gains * v if basis is None else (gains * (v @ basis)) @ basis.T


def dense(basis: Tensor | None, variances: Tensor) -> Tensor:
    """Q diag(variances) Q^T."""
    return torch.diag(variances) if basis is None else (basis * variances) @ basis.T


def require_density(singular: bool, sigma: Sigma) -> None:
    """Raise :class:`InputError` if a degenerate distribution is asked for its density without noise."""
    if singular and (bool((sigma == 0).any()) if isinstance(sigma, Tensor) else sigma == 0):
        raise InputError(
            "a degenerate distribution (the posterior of a noiseless measurement) has no density: give "
            "log_prob a sigma > 0, or the problem some noise"
        )
