"""What the analytic priors share: checks, and exact conditioning of a Gaussian on linear data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, NotCompatible
from .base import Prior, Sigma

Range = tuple[float, float]
LOG_2PI = math.log(2 * math.pi)


def vector(values: Any, what: str) -> Tensor:
    """``values`` as a finite float64 tensor on the CPU."""
    out = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if out.ndim == 0 or out.numel() == 0 or not bool(torch.isfinite(out).all()):
        raise InputError(f"{what} must be a tensor of finite numbers with at least one axis")
    return out


def sampled_shape(shape: Sequence[int] | None, mean: Tensor) -> tuple[int, ...]:
    """The shape of a sample: ``shape`` if it has as many entries as the mean, else the mean's own."""
    out = tuple(mean.shape) if shape is None else tuple(int(s) for s in shape)
    if math.prod(out) != mean.numel():
        raise InputError(f"shape {out} has {math.prod(out)} entries, the mean has {mean.numel()}")
    return out


def decompose(covariance: Any, n: int) -> tuple[Tensor | None, Tensor]:
    """Eigenvectors [n, n] (None: the axes) and eigenvalues [n] of a covariance [n, n], variances [n] or a
    number.

    Raises :class:`InputError` if it is not symmetric positive definite.
    """
    c = torch.as_tensor(covariance, dtype=torch.float64).detach().cpu()
    if not bool(torch.isfinite(c).all()):
        raise InputError("the covariance holds NaN or infinite values")
    if c.ndim == 0 or tuple(c.shape) == (n,):
        variances = c.expand(n).clone()
        if float(variances.min()) <= 0:
            raise InputError(f"variances must be positive, the smallest is {float(variances.min()):g}")
        return None, variances
    if tuple(c.shape) != (n, n):
        raise InputError(f"the covariance of {n} entries must be [{n}, {n}], [{n}] or a number, got {tuple(c.shape)}")
    if float((c - c.T).abs().max()) > 1e-6 * float(c.abs().max()):
        raise InputError("the covariance is not symmetric: pass (C + C.T) / 2")
    variances, basis = torch.linalg.eigh((c + c.T) / 2)
    low, high = float(variances[0]), float(variances[-1])
    if low <= n * torch.finfo(torch.float64).eps * high:
        raise InputError(
            f"the covariance is not positive definite (eigenvalues from {low:.3g} to {high:.3g}): add a "
            "small multiple of the identity"
        )
    return basis, variances


def coloured(z: Tensor, basis: Tensor | None, variances: Tensor) -> Tensor:
    """L z for rows of z [N, n], with a root L of the covariance: L L^T = C.

    Eigenvectors of equal eigenvalues are any rotation of each other, another one on every machine; the symmetric root
    does not know it, so that draws are the same everywhere.
    """
    if basis is None:
        return z * variances.sqrt()
    positive = variances[variances > 0].sort().values
    equal = bool((positive.diff() < 1e-9 * variances.max()).any())
    return ((z @ basis if equal else z) * variances.sqrt()) @ basis.T


def sigma_bounds(means: Tensor, variances: Tensor, centre: Tensor, value_range: Range) -> Range:
    """Noise levels from far below to far above everything a distribution of components [K, n] contains.

    Low end: 1e-3 of the smallest standard deviation, but not below 1e-5 of the largest (float32 would not
    resolve it). High end: 50 times the largest distance of a component's mean from the common one, plus its
    largest standard deviation, plus the largest entry of the common mean, measured from the middle of the
    value range.
    """
    std = variances.sqrt()
    positive = std[std > 0]
    middle = sum(value_range) / 2
    extent = float(((means - centre).norm(dim=1) + std.amax(1)).max() + (centre - middle).abs().max())
    if extent == 0:  # one point in the middle of its range
        extent = value_range[1] - value_range[0]
    if positive.numel() == 0:
        return 1e-5 * extent, 50 * extent
    return max(1e-3 * float(positive.min()), 1e-5 * float(std.max())), 50 * extent


def flat_rows(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x [N, *shape] as [N, n]; raises :class:`InputError` for another shape."""
    if tuple(x.shape[1:]) != shape:
        raise InputError(f"the prior's signals are [N, {', '.join(map(str, shape))}], got {tuple(x.shape)}")
    return x.reshape(x.shape[0], -1)


def noise_variance(sigma: Sigma, flat: Tensor) -> Sigma:
    """sigma^2, shaped to go with rows [N, n]."""
    if not isinstance(sigma, Tensor):
        return float(sigma) ** 2
    s = sigma.to(flat)
    return (s[:, None] if s.ndim else s).square()


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, as float32 where the device has no float64."""
    return tensor.to(torch.float32).to(device) if device.type == "mps" else tensor.to(device)


@dataclass(frozen=True)
class LinearData:
    """y = A x0 + sigma_y n in real float64: A [m, n], y [m]; and the relative rounding error of y."""

    matrix: Tensor
    y: Tensor
    sigma_y: float
    rounding: float


def affine(problem: Any, prior: Prior) -> LinearData:
    """The data of a problem, if a Gaussian prior can be conditioned on them exactly.

    The matrix is made by applying the operator to the identity, in float64 (float32 if it takes no other).
    Complex measurements count as pairs of real ones. Entries that ``operator.measured`` marks as placeholders
    are dropped.
    """
    from ..operators.base import Linear

    problem = problem.white
    operator, y = problem.operator, problem.y
    if not isinstance(operator, Linear):
        raise NotCompatible(f"an exact posterior needs a linear operator, {type(operator).__name__} is not Linear")
    sigma_y = getattr(problem.noise, "sigma", None)
    if sigma_y is None:
        raise NotCompatible(f"an exact posterior needs Gaussian noise or none, not {type(problem.noise).__name__}")
    if y.shape[0] != 1:
        raise InputError(f"the problem has {y.shape[0]} rows of y: take the posterior of one, problem[k]")
    if tuple(problem.value_range) != tuple(prior.value_range):
        lo, hi = problem.value_range
        raise NotCompatible(
            f"the prior lives in {tuple(prior.value_range)}, the problem in ({lo}, {hi}): use "
            f"prior.in_range({lo}, {hi}).posterior(problem)"
        )
    shape = tuple(int(s or 0) for s in prior.shape)
    operator.check(shape)
    n = math.prod(shape)
    identity = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    with torch.no_grad():
        try:
            columns = operator.to("cpu")(identity)
        except RuntimeError:  # an operator whose own tensors are float32 and not cast
            columns = operator.to("cpu")(identity.float())
    if tuple(columns.shape[1:]) != tuple(y.shape[1:]):
        raise InputError(
            f"signals of shape {shape} are measured as {tuple(columns.shape[1:])}, y is {tuple(y.shape[1:])}"
        )
    columns, row = columns.reshape(n, -1), y.detach().cpu().reshape(-1)
    if operator.measured is not None:
        kept = (operator.measured.cpu() != 0).expand(y.shape[1:]).reshape(-1)
        columns, row = columns[:, kept], row[kept]
    if columns.is_complex() or row.is_complex():
        columns = torch.view_as_real(columns.to(torch.complex128)).reshape(n, -1)
        row = torch.view_as_real(row.to(torch.complex128)).reshape(-1)
    data = LinearData(
        columns.T.to(torch.float64).contiguous(),
        row.to(torch.float64),
        float(sigma_y),
        torch.finfo(y.dtype).eps,
    )
    return data if data.sigma_y > 0 else _independent(data)


def _independent(data: LinearData) -> LinearData:
    """Noiseless data as equations of full rank: combinations that rounding of y would drown are dropped."""
    m, n = data.matrix.shape
    if m == 0:
        return data
    u, s, vh = torch.linalg.svd(data.matrix, full_matrices=False)
    seen = (s > data.rounding * max(m, n) * s[0]) & (s > 0)
    y = u[:, seen].T @ data.y
    _consistent(data.y - u[:, seen] @ y, data.y, data.rounding)
    return LinearData(s[seen, None] * vh[seen], y, 0.0, data.rounding)


def _consistent(left_over: Tensor, y: Tensor, rounding: float) -> None:
    """Raise if noiseless equations leave more of y unexplained than rounding does."""
    if float(left_over.norm()) > 100 * rounding * math.sqrt(y.numel()) * float(y.norm()):
        raise InputError(
            "no signal explains this noiseless measurement (it is outside the operator's range): give the "
            "problem its noise, Gaussian(sigma)"
        )


def condition(
    mean: Tensor, basis: Tensor | None, variances: Tensor, data: LinearData
) -> tuple[Tensor, Tensor | None, Tensor, float]:
    """Mean [n], eigenvectors and eigenvalues of N(mean, C) given ``data``, and the log evidence log p(y).

    With C = L L^T and x0 = mean + L z, z ~ N(0, I), the singular values s of A L give everything without a
    difference of covariances: z has variance sigma_y^2 / (s^2 + sigma_y^2) along the right singular vectors,
    1 elsewhere. The same formula holds at sigma_y = 0, where the evidence is a density on the range of A L,
    and :class:`InputError` is raised if y is outside it.
    """
    a, r = data.matrix, data.y - data.matrix @ mean
    m, n = a.shape
    if m == 0:
        return mean, basis, variances, 0.0
    root = torch.diag(variances.sqrt()) if basis is None else basis * variances.sqrt()
    u, s, vh = torch.linalg.svd(a @ root, full_matrices=m < n)
    k = s.numel()
    u = u[:, :k]
    var, tiny = data.sigma_y**2, max(m, n) * torch.finfo(torch.float64).eps
    seen = s > tiny * s[0] if var == 0 else torch.ones_like(s, dtype=torch.bool)
    total = torch.where(seen, s.square() + var, 1.0)
    c = (u.T @ r) * seen
    outside = r - u @ c
    z = vh[:k].T @ (s / total * c)
    keep = torch.ones(n, dtype=torch.float64)
    keep[:k] = torch.where(seen, var / total, 1.0)
    q, std, _ = torch.linalg.svd((root @ vh.T) * keep.sqrt())
    std = torch.where(std > n * torch.finfo(torch.float64).eps * std[0], std, 0.0)

    rank = int(seen.sum())
    log_evidence = -0.5 * float((c.square() / total)[seen].sum() + total[seen].log().sum() + rank * LOG_2PI)
    if var > 0:
        log_evidence -= 0.5 * (float(outside.square().sum()) / var + (m - k) * (math.log(var) + LOG_2PI))
    else:
        _consistent(outside, data.y, data.rounding)
    return mean + root @ z, q, std.square(), log_evidence
