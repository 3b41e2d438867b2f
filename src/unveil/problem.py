"""A problem is data plus physics plus noise: y = A(x0) + n."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InputError
from .noise import Gaussian, Noise, NoNoise
from .numerics.cg import cg
from .operators.base import Invertible, Linear, Operator, Spectral, reciprocal
from .operators.combine import Affine
from .operators.matrix import Matrix
from .priors.base import Sigma, expand
from .rng import Rng, single
from .shapes import Measurements, Rows, Signals

DEFAULT_RANGE = (0.0, 1.0)
"""The units of image files as this library reads them: black is 0, white is 1."""

DENSE = 1024
"""Real numbers in y and in a signal up to which what whitening leaves without a spectral form is made a matrix."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Measurements ``y`` [B, *out_shape], the operator and the noise model that made them.

    Parameters
    ----------
    y:
        Measurements, one per row.
    operator:
        The forward model A, shared by all rows.
    noise:
        The noise model, in the units of y. A number is short for ``Gaussian(number)``, 0 for ``NoNoise()``.
    shape:
        Shape of one signal; inferred where the operator knows it.
    value_range:
        The units that the signals are to be written in, as black and white of an image.
    cg_steps:
        Iterations of conjugate gradients in :meth:`prox`, :meth:`gain` and :meth:`pinv` for operators without a
        spectral form. By default (0) 50; without noise 200, since nothing but them bounds the misfit of a projection.

    Raises :class:`InputError` if y holds NaN or infinite values, or shapes do not agree.
    """

    y: Tensor
    operator: Operator
    if TYPE_CHECKING:
        noise: Noise
    else:
        noise: Noise | float  # a number is turned into a noise model
    shape: tuple[int, ...] = ()
    value_range: tuple[float, float] = DEFAULT_RANGE
    cg_steps: int = 0  # 0: what is usual

    def __post_init__(self) -> None:
        put = object.__setattr__
        if not isinstance(self.y, Tensor) or not (self.y.is_floating_point() or self.y.is_complex()):
            raise InputError("y must be a floating-point tensor [B, ...]: convert it with torch.as_tensor(y).float()")
        put(self, "noise", as_noise(self.noise))
        if self.cg_steps < 0:
            raise InputError(f"cg_steps is a number of iterations, or 0 for what is usual, got {self.cg_steps}")
        lo, hi = self.value_range
        if not hi > lo:
            raise InputError(f"value_range needs lo < hi, got {self.value_range}")
        put(self, "value_range", (float(lo), float(hi)))
        try:
            shape = self.shape or self.operator.shape_in(tuple(self.y.shape[1:]))
        except InputError:
            raise
        except (IndexError, ValueError) as error:  # too few axes for the operator to say
            raise InputError(
                f"{type(self.operator).__name__} does not make measurements of shape {tuple(self.y.shape[1:])}: "
                "is the batch axis missing (y[None])?"
            ) from error
        if shape is None:
            raise InputError("the operator does not know the shape of its signals: pass Problem(..., shape=...)")
        put(self, "shape", tuple(shape))
        self.operator.check(self.shape)
        probe = self.operator.probe(self.shape, self.y)  # in the type and place of y, as a run will
        out = tuple(probe.shape[1:])
        if out != tuple(self.y.shape[1:]):
            raise InputError(
                f"y has shape {tuple(self.y.shape)}, but signals of shape {self.shape} give [B, "
                f"{', '.join(map(str, out))}]: is the batch axis missing (y[None])?"
            )
        if probe.is_complex() and not self.y.is_complex():
            raise InputError(
                f"y is real, and {type(self.operator).__name__} makes complex measurements: pass them as they were "
                "measured (of real and imaginary part on a last axis: torch.view_as_complex(y))"
            )
        if self.operator.measured is not None:
            put(self, "y", torch.where(self.operator.measured.to(self.y.device) > 0, self.y, 0))
        bad = int((~torch.isfinite(self.y)).sum())
        if bad:
            raise InputError(f"y holds {bad} NaN or infinite values: mask them (operators.Inpainting) or replace them")

    # -- facts ---------------------------------------------------------------------------------------------------

    @property
    def like(self) -> Tensor:
        """An empty tensor [B, *shape] of the type and device that signals have."""
        dtype = self.y.real.dtype if self.y.is_complex() else self.y.dtype
        return torch.empty(self.y.shape[0], *self.shape, dtype=dtype, device=self.y.device)

    @property
    def sigma_y(self) -> float:
        """Standard deviation of Gaussian noise in the units of y, 0 without noise. Raises for other noise."""
        sigma: float | None = self.noise.sigma
        if sigma is None:
            raise InputError(f"{type(self.noise).__name__} noise has no single standard deviation: see Problem.white")
        return sigma

    @cached_property
    def white(self) -> Problem:
        """The problem as solvers of linear problems with white noise take it; itself if it is of that kind.

        Gaussian noise of covariance C becomes white: with W C W^T = I, the data are W y, the operator W A, and the
        noise ``Gaussian(1)``; the likelihood differs by the constant log det W. A known offset b (``A + b``) of
        Gaussian or no noise moves to the data. Where W A has no spectral form and y and a signal have at most 1024
        numbers, it becomes a :class:`~unveil.operators.Matrix`, which has one, so that spectral solvers apply; on
        larger ones they are refused, and solvers of linear problems take it. :func:`unveil.stream` and
        :func:`unveil.solve` do it by themselves.
        """
        y, operator, noise = self.y, self.operator, self.noise
        found = noise.whitener(tuple(y.shape[1:]), operator.measured)
        if isinstance(operator, Affine) and (found is not None or noise.sigma is not None):
            y, operator = y - operator.shift(y), operator.operator
        if found is not None:
            w = found[0].to(self.device)
            assert isinstance(w, Linear)
            y, operator, noise = w(y), w @ operator, Gaussian(1.0)
            if isinstance(operator, Linear) and not isinstance(operator, Spectral):
                y, operator = _dense(y, operator, self.shape)
        if operator is self.operator:
            return self
        return Problem(y, operator, noise, self.shape, self.value_range, self.cg_steps)

    @property
    def m(self) -> int:
        """Number of real numbers measured per row."""
        n = self.y[0].numel() * (2 if self.y.is_complex() else 1)
        measured = self.operator.measured
        if measured is None:
            return n
        return int(measured.to(torch.float64).expand(self.y.shape[1:]).sum()) * (n // self.y[0].numel())

    @property
    def iterations(self) -> int:
        """Of conjugate gradients: ``cg_steps``, or what is usual with this noise."""
        return self.cg_steps or (200 if self.noise.sigma == 0 else 50)

    @property
    def scale(self) -> float:
        """Half the width of the value range: what is 1 for images in [-1, 1]."""
        return (self.value_range[1] - self.value_range[0]) / 2

    @property
    def device(self) -> torch.device:
        return self.y.device

    def __getitem__(self, rows: Any) -> Problem:
        """The problem of some rows of y (an int keeps the batch axis)."""
        return dataclasses.replace(self, y=self.y[[rows] if isinstance(rows, int) else rows])

    def to(self, device: torch.device | str) -> Problem:
        """The problem with its tensors on ``device``."""
        y, operator = self.y.to(device), self.operator.to(device)
        return dataclasses.replace(self, y=y, operator=operator, noise=self.noise.to(device))

    def rows(self, index: Tensor | slice) -> Problem:
        """The problem with rows ``index`` of y, repeated as needed, without checking anything again.

        A slice shares the memory of y.
        """
        return self._with(self.y[index])

    def repeated(self, row: int, n: int) -> Problem:
        """The problem with one row of y, n times, that share its memory."""
        return self._with(self.y[row].expand(n, *self.y.shape[1:]))

    def _with(self, y: Tensor) -> Problem:
        other = object.__new__(Problem)
        for f in dataclasses.fields(self):
            object.__setattr__(other, f.name, getattr(self, f.name))
        object.__setattr__(other, "y", y)
        return other

    # -- fit of a signal -----------------------------------------------------------------------------------------

    def residual(self, x0: Signals) -> Measurements:
        """y - A(x0), zero at placeholders."""
        return self.y - self.operator(x0)

    def data(self, x0: Signals, y: Measurements | None = None) -> tuple[Rows, Signals]:
        """Half the squared residual per sample [N], and its gradient with respect to x0 [N, ...]. ``y`` replaces y."""
        clean, pullback = self.operator.linearize(x0)
        r = (self.y if y is None else y) - clean
        return 0.5 * squared_norm(r), -pullback(r)

    def log_likelihood(self, x0: Signals) -> Rows:
        """log p(y | x0) per sample [N], under the noise model."""
        return self.noise.log_prob(self.y, self.operator(x0), self.operator.measured)

    def score(self, x0: Signals) -> Signals:
        """Gradient of :meth:`log_likelihood` with respect to x0 [N, ...]."""
        y, pullback = self.operator.linearize(x0)
        return pullback(self.noise.score(self.y, y, self.operator.measured))

    # -- linear-Gaussian algebra ---------------------------------------------------------------------------------

    def gain(self, r: Measurements, var: Sigma) -> Signals:
        """K r = var A^T (var A A^T + sigma_y^2 I)^-1 r for a residual r, the gain of a Kalman filter.

        ``var`` (a number or [N]) is the variance of the signal; A^+ r when sigma_y = 0, or var is infinite. Closed form
        for spectral operators, conjugate gradients (``cg_steps``) for linear ones.
        """
        operator, noise_var = self._linear(), self.sigma_y**2
        if isinstance(operator, Spectral):
            return operator.back(r, self._kalman(var))
        # (A^T A + ratio I)^-1 A^T r: unlike the form with A A^T, solvable at sigma_y = 0 for every r
        b = operator.adjoint(r)
        ratio = noise_var / expand(var, b)
        return cg(lambda w: operator.normal(w) + ratio * w, b, steps=self.iterations)

    def prox(self, v: Signals, var: Sigma, y: Measurements | None = None) -> Signals:
        """argmin_z |y - A(z)|^2 / (2 sigma_y^2) + |z - v|^2 / (2 var); the projection of v onto A z = y if sigma_y = 0.

        ``var`` is a number or [N]. For Gaussian noise and a linear operator this is the posterior mean under the
        prior N(v, var I). Non-linear operators: Gauss-Newton, with :meth:`gain`'s equations solved by conjugate
        gradients in the linearisation.
        """
        y = self.y if y is None else y
        if isinstance(self.operator, Spectral):
            return self.operator.update(v, y, self._kalman(var))
        if isinstance(self.operator, Linear):
            return v + self.gain(y - self.operator(v), var)
        return self._gauss_newton(v, var, y)

    def conditional(self, v: Signals, var: Sigma, rng: Rng) -> Signals:
        """A draw from the density proportional to exp(-|y - A z|^2 / (2 sigma_y^2) - |z - v|^2 / (2 var)).

        Perturb and optimise: the proximal point of v and y with noise added to both is an exact draw when A is
        linear (Papandreou and Yuille 2010). Spends two draws of the stream.
        """
        std = var**0.5 if isinstance(var, float) else expand(var, v) ** 0.5
        noisy = v + std * rng.normal(v)
        y = self.noise.sample(self.y, rng, self.operator.measured)
        return self.prox(noisy, var, y)

    def pinv(self) -> Signals:
        """A^+ y [B, *shape]: the least-squares signal of least norm; conjugate gradients without a spectral form.

        For operators that are not linear, but bring a generalised inverse, the signal that it gives.
        """
        if isinstance(self.operator, Invertible):
            return self.operator.pinv(self.y)
        operator = self._linear()
        return cg(operator.normal, operator.adjoint(self.y), steps=self.iterations)

    def pullback(self, decoder: Operator) -> Problem:
        """The problem of the latent z with x0 = decoder(z): same data and noise, operator A @ decoder."""
        return Problem(
            self.y, self.operator @ decoder, self.noise, decoder.in_shape or (), self.value_range, self.cg_steps
        )

    def _linear(self) -> Linear:
        if not isinstance(self.operator, Linear):
            raise InputError(f"{type(self.operator).__name__} is not linear: this needs a Linear operator")
        return self.operator

    def _kalman(self, var: Sigma) -> Callable[[Tensor], Tensor]:
        """:meth:`gain` as a function of singular values."""
        noise_var = self.sigma_y**2

        def kalman(s: Tensor) -> Tensor:
            v = expand(var, s)
            return v * s / (v * s**2 + noise_var)

        return reciprocal if noise_var == 0 or (isinstance(var, float) and var == math.inf) else kalman

    def _gauss_newton(self, v: Tensor, var: Sigma, y: Tensor, rounds: int = 5, steps: int = 10) -> Tensor:
        z = v
        # at sigma_y = 0 a small ridge keeps the normal equations solvable; it vanishes at the solution A(z) = y
        ratio = max(self.sigma_y**2, 1e-8) / expand(var, v)
        for _ in range(rounds):
            value, pullback = self.operator.linearize(z)
            here = z

            def normal(w: Tensor) -> Tensor:
                return pullback(self.operator.jvp(here, w)) + ratio * w  # noqa: B023

            z = z + cg(normal, pullback(y - value) + ratio * (v - z), steps=steps)
        return z

    # -- making problems -----------------------------------------------------------------------------------------

    @classmethod
    def simulate(
        cls,
        x: Tensor,
        operator: Operator,
        noise: Noise | float,
        seed: int = 0,
        value_range: tuple[float, float] = DEFAULT_RANGE,
    ) -> Problem:
        """Measure the clean signals x [B, *shape]: row b gets the noise of stream (seed, b)."""
        operator.check(tuple(x.shape[1:]))
        noise = as_noise(noise)
        operator.probe(tuple(x.shape[1:]), x)
        clean = operator(x)
        bare = cls(clean, operator, noise, tuple(x.shape[1:]), value_range)
        rng = single(seed, x.shape[0], purpose="measure")
        y = bare.noise.sample(clean, rng, operator.measured)
        return cls(y, operator, noise, tuple(x.shape[1:]), value_range)

    def describe(self) -> dict[str, Any]:
        """What a recipe records of the problem."""
        from .io.digest import digest

        return {
            "shape": list(self.shape),
            "value_range": list(self.value_range),
            "operator": self.operator.describe(),
            "noise": self.noise.describe(),
            "y": digest(self.y),
        }


def _dense(y: Tensor, operator: Linear, shape: tuple[int, ...]) -> tuple[Tensor, Linear]:
    """A small operator as a matrix, and y [B, m] as it makes them, without placeholders; large ones as they are."""
    n, m = math.prod(shape), y[0].numel() * (2 if y.is_complex() else 1)
    if max(n, m) > DENSE or any(t.requires_grad for t in operator._tensors()):
        return y, operator
    with torch.no_grad():
        columns = operator(torch.eye(n, dtype=y.real.dtype, device=y.device).reshape(n, *shape)).flatten(1)
    rows = y.flatten(1)
    if operator.measured is not None:
        seen = (operator.measured.to(y.device) > 0).expand(y.shape[1:]).reshape(-1)
        columns, rows = columns[:, seen], rows[:, seen]
    return rows, Matrix(columns.mT.contiguous(), shape)


def as_noise(noise: Noise | float) -> Noise:
    """A noise model; a number is short for ``Gaussian(number)``, 0 for ``NoNoise()``."""
    if isinstance(noise, Noise):
        return noise
    return NoNoise() if noise == 0 else Gaussian(float(noise))


def squared_norm(r: Measurements) -> Rows:
    """Sum of squared magnitudes per row: [N, ...] -> [N]."""
    flat = r.flatten(1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm.square()
