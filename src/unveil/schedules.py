"""Noise schedules: the list of noise levels that a run goes through.

A schedule holds ``steps + 1`` values of sigma (the noise level of x = x0 + sigma * eps), in the units of the prior,
and step ``i`` goes from ``sigmas[i]`` to ``sigmas[i + 1]``. Levels fall, except in time travel, where a step may go
up again. Schedules are made of Python floats, so that a step on a GPU never waits for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .errors import InputError


@dataclass(frozen=True)
class Schedule:
    """Noise levels ``sigmas[0] > ... > sigmas[-1] >= 0`` (rising in places with time travel)."""

    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sigmas) < 2:
            raise InputError("a schedule needs at least two noise levels, that is one step")
        if not all(math.isfinite(s) and s >= 0 for s in self.sigmas):
            raise InputError("noise levels must be finite and not negative")
        if any(a == b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False)):
            raise InputError("two neighbouring noise levels of a schedule are equal: use fewer steps")

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    def pair(self, i: int) -> tuple[float, float]:
        """(sigma, sigma_next) of step i."""
        return self.sigmas[i], self.sigmas[i + 1]

    def scaled(self, gain: float) -> Schedule:
        """The schedule in other units: every level times ``gain``."""
        return Schedule(tuple(s * gain for s in self.sigmas))

    def below(self, sigma: float, steps: int | None = None) -> Schedule:
        """The schedule from level ``sigma`` on: that, and the levels under it.

        With ``steps``, as many are spaced between ``sigma`` and the last level as the levels are: evenly in their
        number, logarithms interpolated. Levels that rise in places (time travel) are only cut.

        Raises :class:`InputError` unless sigma lies between the first level and the last but 0.
        """
        positive = [s for s in self.sigmas if s > 0]
        if not min(positive) < sigma <= self.sigmas[0]:
            raise InputError(
                f"cannot start at sigma = {sigma:g}: the schedule goes from {self.sigmas[0]:g} down to "
                f"{min(positive):g}"
            )
        first = next(i for i, s in enumerate(self.sigmas) if s < sigma)
        cut = Schedule((sigma, *self.sigmas[first:]))
        if steps is None or len(cut) == steps or any(a < b for a, b in pairwise(self.sigmas)):
            return cut
        logs, place = -np.log(positive), np.arange(len(positive))
        count = steps + len(positive) - len(self)  # one less where the last level is 0
        inner = np.linspace(np.interp(-math.log(sigma), logs, place), place[-1], count)[1:]
        between = np.exp(-np.interp(inner, place, logs))
        return Schedule((sigma, *(float(s) for s in between), *self.sigmas[len(positive) :]))

    def time_travel(self, length: int, repeats: int) -> Schedule:
        """Go back ``length`` levels and come down again, ``repeats`` times in all, after every ``length`` levels.

        The resampling of RePaint (Lugmayr et al. 2022, arXiv 2201.09865, section 4.2), as levels to visit.
        ``repeats = 1`` is the plain schedule. The way up is one re-noising step.
        """
        if length < 1 or repeats < 1:
            raise InputError("time travel needs length >= 1 and repeats >= 1")
        out = [self.sigmas[0]]
        start = 0
        while start < len(self):
            end = min(start + length, len(self))
            for k in range(repeats if self.sigmas[end] > 0 else 1):
                if k:
                    out.append(self.sigmas[start])
                out.extend(self.sigmas[start + 1 : end + 1])
            start = end
        return Schedule(tuple(out))


def _grid(steps: int) -> np.ndarray:
    if steps < 1:
        raise InputError(f"a schedule needs at least 1 step, got {steps}")
    return np.linspace(0.0, 1.0, max(steps, 2))[:steps]


def _with_zero(values: np.ndarray) -> Schedule:
    return Schedule((*(float(v) for v in values), 0.0))


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Karras et al. 2022 (arXiv 2206.00364), equation 5: ``steps`` levels from sigma_max to sigma_min, then 0."""
    _check(sigma_min, sigma_max)
    u = _grid(steps)
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _with_zero((hi + u * (lo - hi)) ** rho)


def log_linear(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """A geometric sequence of ``steps`` levels from sigma_max to sigma_min, then 0 (VE; Song et al. 2021)."""
    _check(sigma_min, sigma_max)
    return _with_zero(sigma_max * (sigma_min / sigma_max) ** _grid(steps))


def _check(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise InputError(f"a schedule needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")


def ddpm_sigmas(kind: str = "linear", train_steps: int = 1000) -> np.ndarray:
    """sqrt((1 - abar_t) / abar_t), rising, t = 0..T-1, of the DDPM schedules, for data in [-1, 1].

    ``linear``: Ho et al. 2020, betas from 1e-4 to 0.02 (both times 1000/T); ``cosine``: Nichol and Dhariwal 2021,
    betas clipped at 0.999.
    """
    if kind == "linear":
        scale = 1000 / train_steps
        betas = np.linspace(1e-4 * scale, 0.02 * scale, train_steps, dtype=np.float64)
    elif kind == "cosine":
        t = np.arange(train_steps + 1, dtype=np.float64) / train_steps
        f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        raise InputError(f"unknown DDPM schedule '{kind}': linear or cosine")
    abar = np.cumprod(1 - betas)
    return np.sqrt((1 - abar) / abar)


def ddpm(
    steps: int,
    kind: str = "linear",
    spacing: str = "uniform",
    train_steps: int = 1000,
    low: float = 0.0,
    high: float = math.inf,
) -> Schedule:
    """A sub-sequence of the levels of a DDPM schedule that lie in [low, high], for data in [-1, 1], then 0.

    With T levels in that range, ``uniform`` takes every (T // steps)-th from the lowest (DDIM, DDRM, DDNM: of 20 the
    highest is t = 950); ``full`` spreads them over all T, both ends included; ``quad`` is DiffPIR's sequence, dense at
    low noise. Where that asks for levels between those of training, their logarithms are interpolated.
    """
    if not 1 <= steps <= train_steps:
        raise InputError(f"a DDPM schedule of {train_steps} levels has 1 to {train_steps} steps, got {steps}")
    levels = ddpm_sigmas(kind, train_steps)
    # a bound that was one of the levels, but for rounding, takes it in
    levels = levels[(levels >= low * (1 - 1e-6)) & (levels <= high * (1 + 1e-6))]
    top = len(levels) - 1
    if top < 0:
        raise InputError(f"no level of the DDPM schedule lies between {low:g} and {high:g}")
    if spacing == "uniform" and steps <= top + 1:
        index = np.arange(steps, dtype=np.float64) * ((top + 1) // steps)
    elif spacing in ("uniform", "full"):
        index = np.linspace(0, top, steps)
    elif spacing == "quad":
        index = top - np.minimum(np.sqrt(np.linspace(0, (top + 1) ** 2, steps)), top)[::-1]
    else:
        raise InputError(f"unknown spacing '{spacing}': uniform, full or quad")
    whole = np.round(index) if spacing == "full" else np.ceil(index)
    if len(np.unique(whole)) == steps:
        return _with_zero(levels[whole.astype(int)[::-1]])
    return _with_zero(np.exp(np.interp(index[::-1], np.arange(top + 1), np.log(levels))))


def flow(steps: int, shift: float = 1.0, t_max: float = 0.99) -> Schedule:
    """Rectified flow: t linear from ``t_max`` to 0, sigma = t / (1 - t), for data in [-1, 1].

    ``shift`` > 1 moves levels towards noise, t <- shift t / (1 + (shift - 1) t) (Esser et al. 2024, equation 23).
    """
    if not 0 < t_max < 1:
        raise InputError(f"flow needs 0 < t_max < 1, got {t_max}")
    t = np.linspace(t_max, 0.0, steps + 1)[:-1]
    t = shift * t / (1 + (shift - 1) * t)
    return _with_zero(t / (1 - t))
