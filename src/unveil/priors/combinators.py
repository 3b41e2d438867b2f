"""Priors made of priors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..schedules import Schedule
from ..shapes import Signals
from .adapters import NetworkPrior
from .base import Prior, Pullback, Sigma, expand

Self = TypeVar("Self", bound="Around")


@dataclass(frozen=True)
class Around(Prior):
    """Base class of a prior made of one other, ``prior``, in whose units it is."""

    prior: Prior

    @property
    def shape(self) -> tuple[int | None, ...]:  # type: ignore[override]
        return self.prior.shape

    @property
    def value_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.prior.value_range

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self.prior.sigma_range

    def given(self: Self, **condition: Any) -> Self:
        return dataclasses.replace(self, prior=self.prior.given(**condition))

    def in_range(self: Self, lo: float, hi: float) -> Self:
        return dataclasses.replace(self, prior=self.prior.in_range(lo, hi))

    def to(self: Self, device: torch.device | str) -> Self:
        return dataclasses.replace(self, prior=self.prior.to(device))

    def describe(self) -> dict[str, Any]:
        return self.prior.describe()


@dataclass(frozen=True)
class Tiled(Around):
    """A prior for large signals: its denoiser is evaluated on overlapping tiles, so that memory stays that of a tile.

    For priors of images [C, H, W] (or signals [C, L], or volumes [C, D, H, W]) of any size whose denoiser looks at a
    neighbourhood only (a convolutional network without attention or global statistics). Tiles of ``tile`` pixels along
    every axis overlap by at least ``3 margin``: the outer ``margin`` of a tile is discarded, the rest of the overlap
    blended linearly. A denoiser that sees no farther than ``margin`` gives the same result as without tiles; one that
    sees farther, a close one without seams.

    A vjp evaluates the denoiser twice, once for the value and once when it is pulled back, so that the graph of one
    tile at a time is kept.

    Raises :class:`InputError` unless tile > 6 margin.
    """

    tile: int = 512
    margin: int = 48

    def __post_init__(self) -> None:
        if self.margin < 1 or self.tile <= 6 * self.margin:
            raise InputError(f"tiles need tile > 6 * margin > 0, got tile {self.tile} and margin {self.margin}")

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        out = torch.zeros_like(x)
        for place, weight in self._tiles(x):
            out[place] += weight * self.prior.denoise(x[place], sigma)
        return out

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        with torch.no_grad():
            x0 = self.denoise(x, sigma)

        def pullback(v: Tensor) -> Tensor:
            out = torch.zeros_like(v)
            for place, weight in self._tiles(x):
                _, back = self.prior.vjp(x[place], sigma)
                out[place] += back(weight * v[place])
            return out

        return x0, pullback

    def describe(self) -> dict[str, Any]:
        return {**self.prior.describe(), "tile": self.tile, "margin": self.margin}

    def _tiles(self, x: Tensor) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
        """Where each tile lies, and its blending weight [...]; the weights of all tiles add up to one."""
        axes = range(2 - x.ndim, 0)  # all but the batch and the channels
        for spans in product(*(self._spans(x, axis) for axis in axes)):
            weights = [w.reshape(-1, *[1] * (-axis - 1)) for (_, w), axis in zip(spans, axes, strict=True)]
            yield (..., *(where for where, _ in spans)), _product(weights)

    def _spans(self, x: Tensor, axis: int) -> list[tuple[slice, Tensor]]:
        """The tiles along one axis, with their weights along it."""
        size, overlap = x.shape[axis], 3 * self.margin
        if size <= self.tile:
            return [(slice(0, size), torch.ones(size, dtype=x.dtype, device=x.device))]
        count = -(-(size - overlap) // (self.tile - overlap))
        starts = [round(k * (size - self.tile) / (count - 1)) for k in range(count)]
        spans, total = [], torch.zeros(size, dtype=x.dtype, device=x.device)
        for k, start in enumerate(starts):
            where, weight = slice(start, start + self.tile), torch.ones(self.tile, dtype=x.dtype, device=x.device)
            if k > 0:
                n = starts[k - 1] + self.tile - start
                weight[:n] *= self._rise(n, x)
            if k + 1 < count:
                n = start + self.tile - starts[k + 1]
                weight[self.tile - n :] *= 1 - self._rise(n, x)
            spans.append((where, weight))
            total[where] += weight
        return [(where, weight / total[where]) for where, weight in spans]  # three tiles may meet in one place

    def _rise(self, n: int, like: Tensor) -> Tensor:
        """Weights over an overlap of n pixels: 0 on the first ``margin``, 1 on the last, a ramp between."""
        k = torch.arange(n, dtype=like.dtype, device=like.device) + 0.5 - self.margin
        return (k / (n - 2 * self.margin)).clamp(0, 1)


def _product(weights: Sequence[Tensor]) -> Tensor:
    out = weights[0]
    for w in weights[1:]:
        out = out * w
    return out


@dataclass(frozen=True)
class Complex(Around):
    """A prior of complex images, written as real channels [2 C, ...]: real parts first, imaginary parts behind.

    Either part has the distribution of ``prior``, of [C, ...], on its own. For what was trained on both parts together
    no wrapper is needed: ``as_prior(..., shape=(2, H, W))``. Both parts are in the units of ``value_range``; a prior of
    magnitudes in (0, 1) takes signed parts as ``Complex(prior.in_range(-1, 1))``, where black is -1.
    """

    @property
    def shape(self) -> tuple[int | None, ...]:  # type: ignore[override]
        channels, *rest = self.prior.shape
        return (None if channels is None else 2 * channels, *rest)

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        return torch.cat([self.prior.denoise(part, sigma) for part in self._parts(x)], 1)

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        (re, back_re), (im, back_im) = (self.prior.vjp(part, sigma) for part in self._parts(x))

        def pullback(v: Tensor) -> Tensor:
            v_re, v_im = v.chunk(2, 1)
            return torch.cat([back_re(v_re), back_im(v_im)], 1)

        return torch.cat([re, im], 1), pullback

    def describe(self) -> dict[str, Any]:
        return {**self.prior.describe(), "complex": True}

    def _parts(self, x: Tensor) -> Sequence[Tensor]:
        if x.ndim != len(self.shape) + 1 or x.shape[1] % 2:
            raise InputError(f"complex signals are [N, 2 C, ...], real parts first, got {tuple(x.shape)}")
        return x.chunk(2, 1)


@dataclass(frozen=True)
class Mirrored(Around):
    """A prior seen in a mirror: its denoiser works on x reversed along ``axes`` (-1 is left and right)."""

    axes: tuple[int, ...] = (-1,)

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        return self.prior.denoise(x.flip(self.axes), sigma).flip(self.axes)

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        x0, back = self.prior.vjp(x.flip(self.axes), sigma)
        return x0.flip(self.axes), lambda v: back(v.flip(self.axes)).flip(self.axes)

    def describe(self) -> dict[str, Any]:
        return {**self.prior.describe(), "mirrored": list(self.axes)}


class _Sum(Prior):
    """A weighted sum of denoisers of the same signals; subclasses say which, and how much of each."""

    def _terms(self, sigma: Sigma) -> list[tuple[Prior, Sigma]]:
        """The priors, and their weights: numbers, or [N]. The weights add up to one."""
        raise NotImplementedError

    def _members(self) -> tuple[Prior, ...]:
        raise NotImplementedError

    def _agree(self) -> None:
        first, *others = self._members()
        for prior in others:
            if prior.shape != first.shape or tuple(prior.value_range) != tuple(first.value_range):
                raise InputError(
                    f"priors of the same signals are needed, got {first.shape} in {first.value_range} and "
                    f"{prior.shape} in {prior.value_range}: prior.in_range converts"
                )

    @property
    def shape(self) -> tuple[int | None, ...]:  # type: ignore[override]
        return self._members()[0].shape

    @property
    def value_range(self) -> tuple[float, float]:  # type: ignore[override]
        return self._members()[0].value_range

    @property
    def sigma_range(self) -> tuple[float, float]:  # type: ignore[override]
        low, high = zip(*(p.sigma_range for p in self._members()), strict=True)
        return max(low), min(high)

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        out = torch.zeros_like(x)
        for prior, weight in self._terms(sigma):
            out = out + expand(weight, x) * prior.denoise(x, sigma)
        return out

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        terms = [(*prior.vjp(x, sigma), expand(weight, x)) for prior, weight in self._terms(sigma)]
        x0 = torch.zeros_like(x)
        for mean, _, weight in terms:
            x0 = x0 + weight * mean

        def pullback(v: Tensor) -> Tensor:
            out = torch.zeros_like(v)
            for _, back, weight in terms:
                out = out + back(weight * v)
            return out

        return x0, pullback


@dataclass(frozen=True)
class Averaged(_Sum):
    """The mean of several priors' denoisers, with ``weights`` that add up to one (equal ones by default).

    For an ensemble of networks, or for one network in all its mirrors: ``Averaged((p, Mirrored(p, (-1,))))``. The mean
    of denoisers is an approximation: that of a mixture weighs them by how likely each finds x.

    Raises :class:`InputError` for priors of different signals or units, and for weights that do not fit.
    """

    priors: tuple[Prior, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.priors:
            raise InputError("an average needs at least one prior")
        if self.weights is not None and (len(self.weights) != len(self.priors) or abs(sum(self.weights) - 1) > 1e-6):
            raise InputError(f"{len(self.priors)} priors need as many weights, of sum one: got {self.weights}")
        self._agree()

    def _members(self) -> tuple[Prior, ...]:
        return self.priors

    def _terms(self, sigma: Sigma) -> list[tuple[Prior, Sigma]]:  # noqa: ARG002
        weights = self.weights or (1 / len(self.priors),) * len(self.priors)
        return list(zip(self.priors, weights, strict=True))

    def _with(self, priors: Iterator[Prior]) -> Averaged:
        return Averaged(tuple(priors), self.weights)

    def given(self, **condition: Any) -> Averaged:
        return self._with(p.given(**condition) for p in self.priors)

    def in_range(self, lo: float, hi: float) -> Averaged:
        return self._with(p.in_range(lo, hi) for p in self.priors)

    def to(self, device: torch.device | str) -> Averaged:
        return self._with(p.to(device) for p in self.priors)

    def describe(self) -> dict[str, Any]:
        weights = [w for _, w in self._terms(0.0)]
        members = [p.describe() for p in self.priors]
        return {"name": "averaged", "value_range": list(self.value_range), "priors": members, "weights": weights}


@dataclass(frozen=True)
class Guided(_Sum):
    """Classifier-free guidance: D = U + scale (C - U), of a denoiser C with a condition and one U without.

    Ho and Salimans 2022, arXiv 2207.12598 (their guidance strength w is scale - 1): scale 1 is the condition alone, 0
    none. ``Guided(prior.given(label=3), prior, 2.0)``.

    CFG++ (Chung et al. 2024, arXiv 2406.08070) with strength lambda adds lambda (C - U) to the estimate and re-noises
    with the unconditional noise. Under DDIM that is guidance of scale lambda / (1 - sigma_next / sigma), which is what
    ``plus``, the schedule of the run, makes of ``scale``: samples are the same, to rounding, while this denoiser's own
    estimate is that of the larger scale.

    Raises :class:`InputError` for priors of different signals or units.
    """

    conditional: Prior
    unconditional: Prior
    scale: float
    plus: Schedule | None = None

    def __post_init__(self) -> None:
        self._agree()

    def _members(self) -> tuple[Prior, ...]:
        return self.conditional, self.unconditional

    def _terms(self, sigma: Sigma) -> list[tuple[Prior, Sigma]]:
        scale: Sigma = self.scale
        if self.plus is not None:
            following = {a: b for a, b in pairwise(self.plus.sigmas) if b < a}
            levels = sorted(following)
            steps = [1 - following[s] / s for s in levels]
            scale = self.scale / _nearest(sigma, levels, steps)
        return [(self.unconditional, 1 - scale), (self.conditional, scale)]

    def given(self, **condition: Any) -> Guided:
        """Another condition for the conditional prior; the other one stays."""
        return dataclasses.replace(self, conditional=self.conditional.given(**condition))

    def in_range(self, lo: float, hi: float) -> Guided:
        a, b = self.value_range
        there, back = self.conditional.in_range(lo, hi), self.unconditional.in_range(lo, hi)
        return Guided(there, back, self.scale, self.plus and self.plus.scaled((hi - lo) / (b - a)))

    def to(self, device: torch.device | str) -> Guided:
        return dataclasses.replace(
            self, conditional=self.conditional.to(device), unconditional=self.unconditional.to(device)
        )

    def describe(self) -> dict[str, Any]:
        guidance: dict[str, Any] = {"scale": self.scale, "without": self.unconditional.describe()}
        if self.plus is not None:
            guidance["plus"] = list(self.plus.sigmas)
        return {**self.conditional.describe(), "guidance": guidance}


def _nearest(sigma: Sigma, levels: list[float], values: list[float]) -> Sigma:
    """The value of the level nearest to sigma."""
    if isinstance(sigma, Tensor):
        middles = torch.tensor([(a + b) / 2 for a, b in pairwise(levels)], dtype=torch.float64, device=sigma.device)
        return torch.tensor(values, dtype=sigma.dtype, device=sigma.device)[torch.bucketize(sigma.double(), middles)]
    return values[min(range(len(levels)), key=lambda k: abs(levels[k] - sigma))]


@dataclass(frozen=True)
class HalfPrecision(Around):
    """A prior whose networks run in bfloat16 (or float16), while the signal and all arithmetic around them keep theirs.

    The networks are copied; their parameters take half the memory. What it costs in accuracy depends on the network
    and is worth measuring; ``make bench-network`` does it for the prior that ships.

    Raises :class:`InputError` for a prior without a network, and for another dtype.
    """

    dtype: torch.dtype = torch.bfloat16
    _inner: Prior = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in (torch.bfloat16, torch.float16):
            raise InputError(f"half precision is torch.bfloat16 or torch.float16, got {self.dtype}")
        object.__setattr__(self, "_inner", _converted(self.prior, self.dtype))

    def denoise(self, x: Signals, sigma: Sigma) -> Signals:
        return self._inner.denoise(x, sigma)

    def vjp(self, x: Signals, sigma: Sigma) -> tuple[Signals, Pullback]:
        return self._inner.vjp(x, sigma)

    @property
    def variance(self) -> str | None:  # type: ignore[override]
        return self._inner.variance

    def moments(self, x: Signals, sigma: Sigma) -> tuple[Signals, Signals]:
        return self._inner.moments(x, sigma)

    def describe(self) -> dict[str, Any]:
        return {**self.prior.describe(), "precision": str(self.dtype).removeprefix("torch.")}


def _converted(prior: Prior, dtype: torch.dtype) -> Prior:
    """The same with every network in it in ``dtype``. Buffers (frequencies of embeddings) keep theirs, and so does the
    time: 8 bits cannot tell step 998 from 1000."""
    if isinstance(prior, NetworkPrior) and isinstance(prior.module, nn.Module):
        module = deepcopy(prior.module)
        for p in module.parameters():
            if p.is_floating_point():
                layout = torch.channels_last if p.ndim == 4 and prod(p.shape[2:]) > 1 else torch.preserve_format
                p.data = p.data.to(dtype, memory_format=layout)
        return dataclasses.replace(prior, module=module, time_dtype=prior.time_dtype or torch.float32, _memo={})
    changes: dict[str, Any] = {}
    for name, f in getattr(prior, "__dataclass_fields__", {}).items():
        value = getattr(prior, name)
        if f.init and isinstance(value, Prior):
            changes[name] = _converted(value, dtype)
        elif f.init and isinstance(value, tuple) and value and all(isinstance(v, Prior) for v in value):
            changes[name] = tuple(_converted(v, dtype) for v in value)
    if changes:
        return dataclasses.replace(prior, **changes)  # type: ignore[type-var]
    raise InputError(f"{type(prior).__name__} has no network to run in half precision")
