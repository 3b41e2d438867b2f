"""Line integrals through an image or a volume, by Joseph's method, with an exact adjoint.

A ray crosses the planes of pixel centres that it meets most steeply, and the image is interpolated linearly where it
crosses each; the sum, times the distance of two crossings, is its integral (Joseph 1982, IEEE Trans. Med. Imaging 1,
192). The weights make a sparse matrix. It and its transpose are kept where memory allows, which makes a projection one
sparse product for a whole batch; else the weights are computed anew each time, some rays at a time.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .base import Linear, Shape

Taps = tuple[Tensor, Tensor]
"""Of some rays: indices [r, k] of pixels, int32, and their weights [r, k]."""


class Rays(Linear):
    """y = line integrals of images [C, H, W] or volumes [C, D, H, W], every channel alike: a base class.

    Places are in units of the pixel's side, from the middle of the image: (x, y) with x to the right along columns and
    y upwards against rows; in volumes (x, y, z), z along slices.

    Parameters
    ----------
    size:
        (H, W) or (D, H, W).
    detector:
        Shape of the measurement of one channel.
    pixel:
        Side of a pixel: integrals are in its unit times that of the image.
    memory:
        Bytes that the matrix and its transpose may take; beyond that they are not kept.
    """

    def __init__(self, size: Shape, detector: Shape, pixel: float, memory: float) -> None:
        self.size, self.detector = tuple(int(n) for n in size), tuple(int(n) for n in detector)
        if len(self.size) not in (2, 3) or min(self.size) < 1 or min(self.detector) < 1:
            raise InputError(f"the image is (H, W) or (D, H, W) and detectors are >= 1, got {size} and {detector}")
        if not 0 < pixel < math.inf:
            raise InputError(f"a pixel has a side > 0, got {pixel}")
        self.pixel, self.memory = float(pixel), float(memory)

    @abstractmethod
    def rays(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A point and the unit direction of each of some rays, numbered as in y: [r, 2] or [r, 3], float64."""

    @property
    def moving(self) -> bool:
        """Whether the geometry is being estimated, so that y depends on it differentiably."""
        return False

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        if tuple(in_shape[1:]) != self.size:
            shape = ", ".join(map(str, self.size))
            raise InputError(f"{type(self).__name__} takes signals [C, {shape}], got {tuple(in_shape)}")

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (in_shape[0], *self.detector)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        if tuple(out_shape[1:]) != self.detector:
            shape = ", ".join(map(str, self.detector))
            raise InputError(f"{type(self).__name__} measures [C, {shape}], got {tuple(out_shape)}")
        return (out_shape[0], *self.size)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return self._map(x, self._project, self._back_project).reshape(*x.shape[:2], *self.detector)

    def adjoint(self, y: Tensor) -> Tensor:
        self.shape_in(tuple(y.shape[1:]))
        return self._map(y, self._back_project, self._project).reshape(*y.shape[:2], *self.size)

    def _map(self, data: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        columns = data.flatten(0, 1).flatten(1).mT  # entries by images
        found = there(columns) if self.moving else transposable(columns, there, back)
        return found.mT.contiguous()

    # -- the matrix -----------------------------------------------------------------------------------------------

    def _project(self, x: Tensor) -> Tensor:
        """[pixels, b] to [rays, b]."""
        order = self._order(x)
        if self._kept(x):
            y = self._matrix("A", x) @ x.contiguous()
        else:
            y = torch.cat(
                [
                    torch.einsum("rk,rkb->rb", w, x.index_select(0, i.flatten()).reshape(*i.shape, -1))
                    for _, (i, w) in self._chunks(x)
                ]
            )
        return torch.zeros_like(y).index_copy(0, order, y)

    def _back_project(self, y: Tensor) -> Tensor:
        """[rays, b] to [pixels, b]."""
        y = y.index_select(0, self._order(y))
        if self._kept(y):
            return self._matrix("T", y) @ y
        x = y.new_zeros(math.prod(self.size), y.shape[1])
        for start, (i, w) in self._chunks(y):
            part = w[..., None] * y[start : start + len(i), None]
            x = x.index_add(0, i.flatten(), part.flatten(0, 1))
        return x

    def _kept(self, like: Tensor) -> bool:
        taps = 2 ** (len(self.size) - 1) * max(self.size)
        bytes_each = 2 * (4 + like.element_size())
        return (
            not self.moving
            and math.prod(self.detector) * taps * bytes_each <= self.memory
            and (like.is_cuda or (like.device.type == "cpu" and torch.backends.mkl.is_available()))  # type: ignore[no-untyped-call]
        )

    def _axes(self) -> Tensor:
        """The axis of each ray's planes: 0, 1, 2 for x, y, z. [rays], on the CPU."""
        n = math.prod(self.detector)
        with torch.no_grad():
            parts = [self.rays(torch.arange(a, min(a + 2**20, n)))[1] for a in range(0, n, 2**20)]
            # a hair of preference, so that the diagonal falls on one side whatever the rounding
            bias = 1 + 1e-9 * torch.arange(len(self.size), 0, -1, dtype=torch.float64)
            return torch.cat([(p.detach().cpu().abs() * bias).argmax(1) for p in parts])

    def _order(self, like: Tensor) -> Tensor:
        """Rays sorted by axis: the rows of the matrix."""
        if self.moving:
            return self._axes().argsort(stable=True).to(like.device)
        return self.tensor("order", like, lambda: self._axes().argsort(stable=True))

    def _groups(self) -> Tensor:
        return self._axes().bincount(minlength=len(self.size))

    def _chunks(self, like: Tensor) -> Iterator[tuple[int, Taps]]:
        """Positions in the order of rays, and the taps from there on; pixels outside have weight zero."""
        order = self._order(like)
        counts = self._groups() if self.moving else self.tensor("groups", torch.empty(0), self._groups)
        step = max(1, 2**20 // (2 ** (len(self.size) - 1) * max(self.size) * max(1, like.shape[-1] // 4)))
        start = 0
        for axis, count in enumerate(counts.tolist()):
            for a in range(start, start + count, step):
                yield a, self._taps(order[a : min(a + step, start + count)], axis, like)
            start += count

    def _taps(self, index: Tensor, axis: int, like: Tensor) -> Taps:
        """What rays whose planes are along ``axis`` touch."""
        point, direction = (t.to(like.device) for t in self.rays(index))
        point = point - (point * direction).sum(1, keepdim=True) * direction  # nearest to the middle: small numbers
        sizes = self.size[::-1]  # along x, y, z
        n, steps = sizes[axis], self._steps()
        plane = torch.arange(n, device=like.device)
        at = plane.to(point.dtype) - (n - 1) / 2
        at = at if axis != 1 else -at  # rows go down, y goes up
        along = (at - point[:, axis, None]) / direction[:, axis, None]  # [r, n]
        index_of = (plane * steps[axis]).to(torch.int32)[None, :, None]
        weight = (self.pixel / direction[:, axis].abs())[:, None, None].to(like.dtype)
        for other in (a for a in range(len(sizes)) if a != axis):
            place = point[:, other, None] + along * direction[:, other, None]
            place = (place if other != 1 else -place) + (sizes[other] - 1) / 2
            low = place.detach().floor()
            share = (place - low).to(like.dtype)
            near = torch.stack([low, low + 1], -1)
            inside = (near >= 0) & (near <= sizes[other] - 1)
            shares = torch.stack([1 - share, share], -1) * inside
            tap = near.clamp(0, sizes[other] - 1).to(torch.int32) * steps[other]
            index_of = (index_of[..., None] + tap[..., None, :]).flatten(-2)
            weight = (weight[..., None] * shares[..., None, :]).flatten(-2)
        return index_of.flatten(1), weight.flatten(1)

    def _steps(self) -> tuple[int, ...]:
        """Distances in memory of neighbours along x, y, z."""
        h, w = self.size[-2:]
        return (1, w, h * w)

    def _matrix(self, part: str, like: Tensor) -> Tensor:
        """ "A" [rays in order, pixels], or "T", its transpose."""

        def matrix() -> Tensor:
            host = torch.empty(0, 1, dtype=like.dtype)
            columns, values, counts = [], [], [torch.zeros(1, dtype=torch.int64)]
            for _, (index, weight) in self._chunks(host):
                seen = weight != 0
                columns.append(index[seen])
                values.append(weight[seen])
                counts.append(seen.sum(1))
            rows = torch.cat(counts).cumsum(0).to(torch.int32)
            shape = (math.prod(self.detector), math.prod(self.size))
            return _csr(rows, torch.cat(columns), torch.cat(values), shape)

        def transpose() -> Tensor:
            a = self._matrix("A", torch.empty(0, dtype=like.dtype))
            order = a.col_indices().argsort(stable=True)
            rays = torch.arange(a.shape[0], dtype=torch.int32).repeat_interleave(a.crow_indices().diff())
            rows = torch.zeros(a.shape[1] + 1, dtype=torch.int64)
            rows[1:] = a.col_indices().bincount(minlength=a.shape[1]).cumsum(0)
            return _csr(rows.to(torch.int32), rays[order], a.values()[order], (a.shape[1], a.shape[0]))

        return self.tensor(part, like, matrix if part == "A" else transpose)


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the layout is in beta state
        return torch.sparse_csr_tensor(rows, columns, values, shape)


class _Transposable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.maps = there, back
        return there(x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.maps
        return transposable(v, back, there), None, None


def transposable(x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
    """there(x) for a linear map that automatic differentiation cannot see through, given its adjoint ``back``."""
    y: Tensor = _Transposable.apply(x, there, back)  # type: ignore[no-untyped-call]
    return y
