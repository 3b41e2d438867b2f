"""Small networks as functions of their parameters, many sets of parameters at once.

A solver that learns keeps what it learned in its state, as tensors: one set of parameters for each measurement. So a
network here is a description (:class:`Net`), its parameters a vector [B, P] of B sets, and signals come as
[B, K, C, *space]: K draws for each of the B sets, which do not see each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor

from ...rng import single

DENSE = 1024
"""Signals of at most so many numbers get dense networks, larger ones convolutions."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that a vector of parameters holds, in order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """The tensors [B, *shape] in a vector [B, P]; views."""
        parts = torch.split(theta[:, : self.size], [math.prod(shape) for _, shape in self.shapes], 1)
        return {k: part.reshape(-1, *shape) for (k, shape), part in zip(self.shapes, parts, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The vector [B, P] of these tensors [B, *shape]."""
        return torch.cat([tensors[k].flatten(1) for k, _ in self.shapes], 1)


def normal_start(shape: tuple[int, ...], std: float, key: str) -> Tensor:
    """Fixed draws from N(0, std^2), the same on every machine, for a name."""
    return std * single(crc32(key.encode()), purpose="weights").normal(torch.empty(1, *shape, dtype=torch.float64))[0]


@dataclass(frozen=True)
class Net:
    """A stack of layers with SiLU between, and a linear path from input to output beside it.

    ``sizes`` are the numbers of features, from input to output; ``space`` the number of spatial axes: 0 for dense
    layers on [B, K, features], else convolutions of width 3 on [B, K, features, *space]. The last layer and the path
    beside it begin at zero: an untrained network is 0.
    """

    name: str
    sizes: tuple[int, ...]
    space: int = 0
    path: bool = True

    @cached_property
    def layout(self) -> Layout:
        shapes: list[tuple[str, tuple[int, ...]]] = []
        width = (3,) * self.space
        for k, (a, b) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            shapes += [(f"{self.name}.weight{k}", (b, a, *width)), (f"{self.name}.bias{k}", (b,))]
        if self.path:
            shapes.append((f"{self.name}.path", (self.sizes[-1], self.sizes[0], *width)))
        return Layout(tuple(shapes))

    def start(self) -> dict[str, Tensor]:
        """The first parameters, by name."""
        last = len(self.sizes) - 2
        out = {k: torch.zeros(shape, dtype=torch.float64) for k, shape in self.layout.shapes}
        for k in range(last):
            key = f"{self.name}.weight{k}"
            shape = out[key].shape
            out[key] = normal_start(tuple(shape), math.prod(shape[1:]) ** -0.5, key)
        return out

    def __call__(self, p: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The output for x [B, K, sizes[0], *space] with the parameters ``p`` [B, ...]."""
        h = x
        for k in range(len(self.sizes) - 1):
            h = self._linear(F.silu(h) if k else h, p[f"{self.name}.weight{k}"], p[f"{self.name}.bias{k}"])
        return h + self._linear(x, p[f"{self.name}.path"], None) if self.path else h

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.space == 0:
            return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)
        # one set of parameters is one group of channels
        b, k = x.shape[:2]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.space - 1]
        flat = x.transpose(0, 1).reshape(k, -1, *x.shape[3:])
        joined = weight.reshape(-1, *weight.shape[2:])
        y = convolve(flat, joined, None if bias is None else bias.reshape(-1), padding=1, groups=b)
        return y.reshape(k, b, -1, *x.shape[3:]).transpose(0, 1)


def form_of(shape: Sequence[int], dense: int = DENSE) -> tuple[int, ...]:
    """How a network sees a signal: (n,) for a dense one, else (channels, *space) with 1 to 3 spatial axes."""
    n = math.prod(shape)
    if n <= dense:
        return (n,)
    return tuple(shape) if 2 <= len(shape) <= 4 else (1, n)
