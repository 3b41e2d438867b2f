"""Random streams that belong to a sample, not to a batch.

The noise of sample ``k`` at step ``i`` is a function of (seed, k, i, number of the draw in the step) and of nothing
else: not of the batch that the sample travels in, of the chunk, of the worker, nor of what was drawn before. A step
can therefore be repeated, resumed or retried, and nothing about randomness has to be stored in a checkpoint.

Streams of different purpose (a run, a simulated measurement, a draw from a prior) are distinct for the same seed, so
that the noise in y is never the noise that a solver starts from.

On the CPU the counter-based Philox generator of NumPy is keyed by (seed, sample) and its counter is set to
(step, draw, purpose). On other devices a generator of PyTorch is seeded with a 64-bit hash of the same numbers, so that
nothing is copied from the host; its values differ from those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

_MASK = (1 << 64) - 1
_EMPTY = (0, 0, 0, 0)
_NUMPY_DTYPES: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


def _mix(*words: int) -> int:
    """A 64-bit hash of some integers (splitmix64 finaliser, applied per word)."""
    h = 0x9E3779B97F4A7C15
    for word in words:
        h = (h ^ (word & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & _MASK
        h ^= h >> 31
    return h


@dataclass
class Rng:
    """The random numbers of one step for the samples of one chunk.

    ``keys`` holds a (seed, sample number) pair per row of the batch, or per ``rows`` neighbouring rows. The only thing
    that changes is ``draw``, the number of draws made so far in this step.
    """

    keys: Sequence[tuple[int, int]]
    step: int = 0
    purpose: str = "run"
    rows: int = 1
    draw: int = field(default=0, init=False)
    _made: tuple[np.random.Philox, np.random.Generator] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    def together(self, rows: int) -> Rng:
        """One stream for every ``rows`` neighbouring rows, of the first one's key: for many particles of few values,
        whose own streams cost more than their numbers."""
        return Rng(self.keys[::rows], self.step, f"{self.purpose}, together", rows)

    def normal(self, like: Tensor, shared: int = 1) -> Tensor:
        """Independent N(0, 1) values, shaped, typed and placed as ``like`` [N, ...]; complex: E|z|^2 = 1.

        Of every ``shared`` neighbouring rows all get those of the first, and only these are drawn.
        """
        if like.is_complex():
            # view_as_complex of pairs, so that a sample's values do not depend on N
            real = torch.empty((*like.shape, 2), dtype=like.real.dtype, device=like.device)
            z: Tensor = torch.view_as_complex(self.normal(real, shared)) * 0.5**0.5
            return z
        return self._fill(like, "normal", shared)

    def uniform(self, like: Tensor) -> Tensor:
        """Independent values, uniform on [0, 1), shaped, typed and placed as ``like`` [N, ...]."""
        return self._fill(like, "uniform")

    def poisson(self, mean: Tensor) -> Tensor:
        """Independent counts with the given means >= 0, real, shaped, typed and placed as ``mean`` [N, ...]."""
        return self._with(mean, lambda g, row: g.poisson(row), lambda g, row: torch.poisson(row, generator=g))

    def gamma(self, shape: Tensor) -> Tensor:
        """Independent Gamma values of the given shapes > 0 and scale 1, typed and placed as ``shape`` [N, ...]."""
        return self._with(
            shape, lambda g, row: g.standard_gamma(row), lambda g, row: torch._standard_gamma(row, generator=g)
        )

    def _with(self, parameter: Tensor, on_cpu: Callable[[Any, Any], Any], elsewhere: Callable[..., Tensor]) -> Tensor:
        """Values drawn with a parameter each: ``on_cpu`` from NumPy's generator, ``elsewhere`` from PyTorch's."""
        draw = self._next(parameter)
        rows = []
        for row, key in zip(torch.split(parameter, self.rows), self.keys, strict=True):
            if parameter.device.type == "cpu":
                values = torch.as_tensor(on_cpu(self._numpy(key, draw), row.double().numpy()))
            else:
                values = elsewhere(self._torch(key, draw, parameter.device), row)
            rows.append(values.to(parameter.dtype))
        return torch.cat(rows)

    def _fill(self, like: Tensor, kind: str, shared: int = 1) -> Tensor:
        draw = self._next(like)
        if shared > 1:
            assert self.rows == 1, "rows of one stream share it already"
            first = self._filled(like[::shared], kind, self.keys[::shared], draw)
            return first.repeat_interleave(shared, 0, output_size=like.shape[0])
        return self._filled(like, kind, self.keys, draw)

    def _filled(self, like: Tensor, kind: str, keys: Sequence[tuple[int, int]], draw: int) -> Tensor:
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if out.device.type == "cpu" and out.dtype in _NUMPY_DTYPES:
            dtype, rows = _NUMPY_DTYPES[out.dtype], out.numpy()
            for row, key in enumerate(keys):
                generator = self._numpy(key, draw)
                fill = generator.standard_normal if kind == "normal" else generator.random
                fill(dtype=dtype, out=rows[row * self.rows : (row + 1) * self.rows])
            return out
        for row, key in enumerate(keys):
            view = out[row * self.rows : (row + 1) * self.rows]
            if kind == "normal":
                view.normal_(generator=self._torch(key, draw, out.device))
            else:
                view.uniform_(generator=self._torch(key, draw, out.device))
        return out

    def _next(self, like: Tensor) -> int:
        """The number of a new draw for the rows of ``like``."""
        n = len(self.keys) * self.rows
        if like.shape[0] != n:
            raise InputError(f"asked for noise of {like.shape[0]} samples, this stream has {n}")
        self.draw += 1
        return self.draw - 1

    def _numpy(self, key: tuple[int, int], draw: int) -> np.random.Generator:
        # setting the state of one generator gives the numbers of a new one, many times faster: making one asks the
        # operating system for entropy that is not used. Tuples, as NumPy makes an object of every word of an array,
        # which is what its annotations ask for
        if self._made is None:
            philox = np.random.Philox(key=0)
            self._made = philox, np.random.Generator(philox)
        philox, generator = self._made
        state: Any = {
            "bit_generator": "Philox",
            "state": {
                "counter": (0, draw, self.step & _MASK, _word(self.purpose)),
                "key": (key[0] & _MASK, key[1] & _MASK),
            },
            "buffer": _EMPTY,
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        philox.state = state
        return generator

    def _torch(self, key: tuple[int, int], draw: int, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device=device)
        generator.manual_seed(_mix(*key, self.step, draw, _word(self.purpose)) >> 1)
        return generator


@cache
def _word(text: str) -> int:
    """A purpose as a 64-bit word."""
    return _mix(*text.encode())


def single(seed: int, n: int = 1, step: int = 0, purpose: str = "draw") -> Rng:
    """A stream for ``n`` rows numbered 0..n-1 of one seed, for use outside a run."""
    return Rng([(seed, k) for k in range(n)], step, purpose)
