"""A Gaussian-mixture prior: the simplest multi-modal distribution whose posteriors are still exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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
from .gaussian import dense, require_density

Components = tuple[Tensor, Tensor, "Tensor | None", Tensor]
"""Log-weights [K], means [K, n], eigenvectors [K, n, n] (None: the axes), eigenvalues [K, n]."""


Span = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of the means around the common one, float64: an orthonormal basis [n, r] of their span and their coordinates [K, r];
the common one, [n], and its coordinates [r]."""


class _Spheres(NamedTuple):
    """What isotropic components make of rows x [N, n], float64: D(x) = kept x + lost m, with the means m [K, n].

    c is x around the common mean (None where all variances are equal), r [N, K] responsibilities, total [N, K] or
    [N, 1] variances with noise, kept [N, 1] and lost [N, K] (neither is 1 minus the other, which loses what is small),
    var sigma^2.
    """

    c: Tensor | None
    r: Tensor
    total: Tensor
    kept: Tensor
    lost: Tensor
    var: Sigma


class GaussianMixturePrior(Prior):
    """x0 ~ sum_k weights[k] N(means[k], covariances[k]). Immutable; float64 inside, evaluated as x is.

    Parameters
    ----------
    weights:
        [K], positive, of sum one.
    means:
        [K, n], or images [K, C, H, W] whose shape becomes the prior's.
    covariances:
        Symmetric positive definite [K, n, n]; or variances [K, n] of independent entries; or isotropic
        variances [K].
    shape, value_range:
        As for :class:`~unveil.priors.gaussian.GaussianPrior`, and so is ``sigma_range``, whose extent counts
        the distance of the means from the common mean.

    Raises :class:`InputError` for sizes that do not agree, weights that are no distribution, or a covariance
    that is not positive definite.
    """

    def __init__(
        self,
        weights: Any,
        means: Any,
        covariances: Any,
        *,
        shape: Sequence[int] | None = None,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        w = vector(weights, "weights").flatten()
        m = vector(means, "means")
        k = w.numel()
        if m.ndim < 2 or m.shape[0] != k:
            raise InputError(f"means must be [K, n] with K = {k} as in the weights, got {tuple(m.shape)}")
        if float(w.min()) <= 0 or abs(float(w.sum()) - 1) > 1e-5:
            raise InputError("weights must be positive and of sum one: pass weights / weights.sum()")
        c = torch.as_tensor(covariances, dtype=torch.float64)
        if c.ndim == 0 or c.shape[0] != k:
            raise InputError(f"covariances must be [K, n, n], [K, n] or [K] with K = {k}, got {tuple(c.shape)}")
        parts = [decompose(c[i], m[0].numel()) for i in range(k)]
        bases = [b for b, _ in parts if b is not None]
        basis = torch.stack(bases) if bases else None
        components = (w.log() - w.sum().log(), m.flatten(1), basis, torch.stack([v for _, v in parts]))
        self._fill(components, sampled_shape(shape, m[0]), value_range, torch.device("cpu"))

    def _fill(self, components: Components, shape: tuple[int, ...], value_range: Range, device: torch.device) -> None:
        log_weights, means, _, variances = self._components = components
        self.shape: tuple[int, ...] = shape
        lo, hi = value_range
        if not hi > lo:
            raise InputError(f"a value range needs lo < hi, got ({lo}, {hi})")
        self.value_range = (float(lo), float(hi))
        self._mean = log_weights.exp() @ means
        self.sigma_range = sigma_bounds(means, variances, self._mean, self.value_range)
        self.device = device
        self._top = float(variances.max())
        self._singular = float(variances.min()) == 0
        self._round = components[2] is None and not self._singular and bool((variances == variances[:, :1]).all())
        self._even = self._round and bool((variances == variances[0]).all())
        self._casts: dict[tuple[torch.dtype, torch.device], Components] = {}
        self._spans: dict[torch.device, Span] = {}

    def _like(
        self, components: Components, value_range: Range | None = None, device: torch.device | None = None
    ) -> GaussianMixturePrior:
        other = object.__new__(type(self))
        other._fill(components, self.shape, value_range or self.value_range, device or self.device)
        return other

    def _cast(self, x: Tensor) -> Components:
        key = (x.dtype, x.device)
        if key not in self._casts:
            w, m, q, v = self._components
            self._casts[key] = (w.to(x), m.to(x), None if q is None else q.to(x), v.to(x))
        return self._casts[key]

    # -- the denoiser ------------------------------------------------------------------------------

    def _inside(self, flat: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor, Tensor]:
        """For rows [N, n]: eigen-coordinates and total variances [K, N, n], joint log densities [K, N]."""
        log_weights, means, basis, variances = self._cast(flat)
        c = _turn(flat - means[:, None], basis)
        total = variances[:, None] + noise_variance(sigma, flat)
        if self._singular:  # without variance and noise x is on the component's subspace: c = 0 there
            total = torch.where(total > 0, total, 1.0)
        log_density = -0.5 * (c.square() / total + total.log()).sum(2) + log_weights[:, None]
        return c, total, log_density

    def _gains(self, flat: Tensor, total: Tensor, sigma: Sigma) -> tuple[float | Tensor, Tensor]:
        """Gains of the eigenvectors: a common one (a number or [N, 1]) and differences [K, N, n] to it."""
        variances, var = self._cast(flat)[3][:, None], noise_variance(sigma, flat)
        if not self._singular:
            common = self._top / (self._top + var)
            return common, variances / total - common
        gains = torch.where(variances + var > 0, variances / total, 1.0)
        if isinstance(var, Tensor):
            common = torch.where(var > 0, self._top / torch.where(var > 0, self._top + var, 1.0), 1.0)
        else:
            common = self._top / (self._top + var) if var > 0 else 1.0
        return common, gains - common

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        """sum_k r_k(x) D_k(x): the components' denoisers, weighted by their responsibilities for x."""
        flat = flat_rows(x, self.shape)
        if self._is_round(flat):
            return self._spheres_mean(flat, self._spheres(flat, sigma)).reshape(x.shape)
        _, means, basis, _ = self._cast(flat)
        c, total, log_density = self._inside(flat, sigma)
        r = torch.softmax(log_density, 0)
        common, rest = self._gains(flat, total, sigma)
        moved = torch.lerp(flat, r.T @ means, 1 - common)
        return (moved + _back(r[..., None] * rest * c, basis).sum(0)).reshape(x.shape)

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        # J = sum_k r_k G_k + sigma^2 sum_k r_k t_k t_k^T, with G_k the components' (constant) Jacobians and
        # t_k their scores minus the mixture's: symmetric
        if self._is_round(x):
            return self._spheres_vjp(x, sigma)
        with torch.no_grad():
            flat = flat_rows(x, self.shape)
            _, means, basis, _ = self._cast(flat)
            c, total, log_density = self._inside(flat, sigma)
            r = torch.softmax(log_density, 0)[..., None]
            common, rest = self._gains(flat, total, sigma)
            moved = torch.lerp(flat, r[..., 0].T @ means, 1 - common)
            x0 = (moved + _back(r * rest * c, basis).sum(0)).reshape(x.shape)
            scores = _back(-c / total, basis)
            spread = scores - (r * scores).sum(0)
            var = noise_variance(sigma, flat)
            weighted = r * rest

        def pullback(v: Tensor) -> Tensor:
            with torch.no_grad():
                rows = flat_rows(v, self.shape)
                inner = (spread * rows).sum(2, keepdim=True)
                out = common * rows + var * (r * inner * spread).sum(0)
                turned = _turn(rows.expand(r.shape[0], -1, -1), basis)
                return (out + _back(weighted * turned, basis).sum(0)).reshape(v.shape)

        return x0, pullback

    # -- the denoiser of isotropic components: in the span of the means; float64, for they cancel --

    def _is_round(self, x: Tensor) -> bool:
        return self._round and x.device.type != "mps"

    def _span(self, x: Tensor) -> Span:
        if x.device not in self._spans:
            centre, means = self._mean, self._components[1]
            _, size, axes = torch.linalg.svd(means - centre, full_matrices=False)
            basis = axes[size > 1e-13 * size.max()].T
            its = basis, (means - centre) @ basis, centre, centre @ basis
            self._spans[x.device] = tuple(part.to(x.device) for part in its)  # type: ignore[assignment]
        return self._spans[x.device]

    def _spheres(self, flat: Tensor, sigma: Sigma) -> _Spheres:
        x = flat.double()
        basis, means, centre, start = self._span(x)
        log_weights, variances = self._cast(x)[0], self._cast(x)[3][:, 0]
        var = noise_variance(sigma, x)
        p = x @ basis - start
        square = p.square().sum(1, keepdim=True) - 2 * p @ means.T + means.square().sum(1)
        c = None
        if self._even:  # what is far from the span of the means is as far from all of them
            total = (variances[:1] + var).expand(len(x), 1)
            r = torch.softmax(log_weights - 0.5 * square / total, 1)
        else:
            c = x - centre
            square = square + (c.square().sum(1, keepdim=True) - p.square().sum(1, keepdim=True)).clamp_min(0)
            total = (variances + var).expand(len(x), -1)
            r = torch.softmax(log_weights - 0.5 * (square / total + centre.numel() * total.log()), 1)
        lost = r * (var / total)
        kept = (r * (variances / total)).sum(1, keepdim=True)
        kept = kept / (kept + lost.sum(1, keepdim=True))  # 1 to the bit without noise
        return _Spheres(c, r, total, kept, lost, var)

    def _spheres_mean(self, flat: Tensor, its: _Spheres) -> Tensor:
        basis, means, centre, _ = self._span(flat)
        moved = torch.addmm(its.lost.sum(1, keepdim=True) * centre, its.lost @ means, basis.T)
        return moved.add_(its.kept * flat).to(flat)

    def _spheres_vjp(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Pullback]:
        with torch.no_grad():
            flat = flat_rows(x, self.shape)
            its = self._spheres(flat, sigma)
            x0 = self._spheres_mean(flat, its).reshape(x.shape)
            basis, means, _, _ = self._span(flat)
            inverse = 1 / its.total

        def pullback(v: Tensor) -> Tensor:
            with torch.no_grad():
                rows = flat_rows(v, self.shape).double()
                along = inverse * (rows @ basis @ means.T)
                inner = along - (its.r * along).sum(1, keepdim=True)
                out = its.kept * rows
                if its.c is not None:  # x, far larger than the means, cancels here alone
                    apart = inverse - (its.r * inverse).sum(1, keepdim=True)
                    inner = inner - apart * (its.c * rows).sum(1, keepdim=True)
                    out -= its.var * (its.r * inner * apart).sum(1, keepdim=True) * its.c
                out += its.var * (its.r * inner * inverse) @ means @ basis.T
                return out.to(v).reshape(v.shape)

        return x0, pullback

    def jacobian(self, x: Tensor, sigma: Sigma) -> Tensor:
        """The Jacobian of the denoiser, dense: [N, n, n] for x [N, *shape]."""
        _, pullback = self.vjp(x, sigma)
        n = math.prod(self.shape)
        identity = torch.eye(n, dtype=x.dtype, device=x.device)
        rows = [pullback(e.reshape(1, *self.shape).expand(x.shape)).reshape(x.shape[0], n) for e in identity]
        return torch.stack(rows, 1)

    def responsibilities(self, x: Tensor, sigma: Sigma = 0.0) -> Tensor:
        """The probability of each component given x [N, *shape]: [N, K]."""
        return torch.softmax(self._inside(flat_rows(x, self.shape), sigma)[2], 0).T

    def log_prob(self, x: Signals, sigma: Sigma = 0.0) -> Rows:
        """log density [N] of x0 + sigma * eps at x [N, *shape]; a degenerate distribution needs sigma > 0."""
        require_density(self._singular, sigma)
        flat = flat_rows(x, self.shape)
        return torch.logsumexp(self._inside(flat, sigma)[2], 0) - 0.5 * flat.shape[1] * LOG_2PI

    def score(self, x: Signals, sigma: Sigma) -> Signals:
        """Gradient of :meth:`log_prob` at x, [N, *shape]."""
        require_density(self._singular, sigma)
        flat = flat_rows(x, self.shape)
        c, total, log_density = self._inside(flat, sigma)
        r = torch.softmax(log_density, 0)[..., None]
        return _back(-r * c / total, self._cast(flat)[2]).sum(0).reshape(x.shape)

    # -- the distribution --------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """[K], float64."""
        return on(self._components[0].exp(), self.device)

    @property
    def mean(self) -> Tensor:
        """Mean of the whole distribution [*shape], float64."""
        return on(self._mean.reshape(self.shape), self.device)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the whole distribution [n, n], float64."""
        log_weights, means, basis, variances = self._components
        d = (means - self._mean) * log_weights.exp().sqrt()[:, None]
        out = d.T @ d
        for k, w in enumerate(log_weights.exp()):
            out += w * dense(None if basis is None else basis[k], variances[k])
        return on(out, self.device)

    def component(self, k: int) -> tuple[Tensor, Tensor]:
        """Mean [*shape] and covariance [n, n] of component k, float64."""
        _, means, basis, variances = self._components
        covariance = dense(None if basis is None else basis[k], variances[k])
        return on(means[k].reshape(self.shape), self.device), on(covariance, self.device)

    def sample(self, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """n independent draws [n, *shape]; draw k of a seed is the same for every n, dtype and device."""
        log_weights, means, basis, variances = self._components
        rng = single(seed, n, purpose="prior")
        u = rng.uniform(torch.empty(n, dtype=torch.float64))
        k = torch.searchsorted(log_weights.exp().cumsum(0), u, right=True).clamp(max=len(means) - 1)
        z = rng.normal(torch.empty(n, means.shape[1], dtype=torch.float64))
        for j in range(len(means)):
            z[k == j] = coloured(z[k == j], None if basis is None else basis[j], variances[j])
        return (means[k] + z).reshape(n, *self.shape).to(dtype).to(self.device)

    def posterior(self, problem: Any) -> GaussianMixturePrior:
        """p(x0 | y), exact: every component conditioned, and weighted by its evidence.

        Conditions, degenerate case and errors as for :meth:`unveil.priors.gaussian.GaussianPrior.posterior`.
        """
        data = affine(problem, self)
        log_weights, means, basis, variances = self._components
        parts = [
            condition(means[k], None if basis is None else basis[k], variances[k], data) for k in range(len(means))
        ]
        joint = log_weights + torch.tensor([p[3] for p in parts], dtype=torch.float64)
        bases = [p[1] for p in parts if p[1] is not None]
        components = (
            torch.log_softmax(joint, 0),
            torch.stack([p[0] for p in parts]),
            torch.stack(bases) if bases else None,
            torch.stack([p[2] for p in parts]),
        )
        return self._like(components)

    def log_evidence(self, problem: Any) -> float:
        """log p(y), exact; conditions and errors as for :meth:`posterior`. Without noise: a density on A's range."""
        data = affine(problem, self)
        log_weights, means, basis, variances = self._components
        parts = [
            condition(means[k], None if basis is None else basis[k], variances[k], data)[3] for k in range(len(means))
        ]
        return float(torch.logsumexp(log_weights + torch.tensor(parts, dtype=torch.float64), 0))

    # -- the same prior elsewhere ------------------------------------------------------------------

    def in_range(self, lo: float, hi: float) -> GaussianMixturePrior:
        if not hi > lo:
            raise InputError(f"a value range needs lo < hi, got ({lo}, {hi})")
        if (lo, hi) == self.value_range:
            return self
        a, b = self.value_range
        gain = (hi - lo) / (b - a)
        w, m, q, v = self._components
        return self._like((w, gain * (m - a) + lo, q, gain**2 * v), (lo, hi))

    def to(self, device: torch.device | str) -> GaussianMixturePrior:
        """The prior with ``sample``, ``mean`` and ``covariance`` on ``device``; the denoiser follows x."""
        if torch.device(device) == self.device:
            return self
        return self._like(self._components, device=torch.device(device))

    def describe(self) -> dict[str, Any]:
        from ..io.digest import digest

        w, m, q, v = self._components
        covariances = v if q is None else torch.stack([dense(q[k], v[k]) for k in range(len(m))])
        return {**super().describe(), "shape": list(self.shape), "digest": digest([w, m, covariances])}


def _turn(d: Tensor, basis: Tensor | None) -> Tensor:
    """Coordinates of [K, N, n] in each component's eigenvectors."""
    return d if basis is None else torch.bmm(d, basis)


def _back(c: Tensor, basis: Tensor | None) -> Tensor:
    """The vectors [K, N, n] of coordinates in each component's eigenvectors."""
    return c if basis is None else torch.bmm(c, basis.mT)
