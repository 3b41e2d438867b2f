"""The colour mosaic of a camera's sensor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Operator, Shape, Spectral
from .layout import Layout, plain

PATTERNS = {
    "rggb": ("rg", "gb"),
    "bggr": ("bg", "gr"),
    "grbg": ("gr", "bg"),
    "gbrg": ("gb", "rg"),
    "xtrans": ("gbggrg", "rgrbgb", "gbggrg", "grggbg", "bgbrgr", "grggbg"),
}


@register("operator", "mosaic")
class Mosaic(Spectral):
    """A sensor behind a colour filter array sees one colour per pixel: [3, H, W] in red, green, blue to [1, H, W].

    Parameters
    ----------
    pattern:
        The colours of the first rows, read like text: "rggb", "bggr", "grbg", "gbrg" (Bayer 1976, US patent 3971065),
        "xtrans", or rows of one's own, as ("rg", "gb").
    in_shape:
        Shape of the signals, None for any.

    y keeps one of the three values of each pixel (:attr:`~unveil.operators.Spectral.selects`). Values are those of the
    sensor, linear in light; white balance and gamma come after.
    """

    selects = True

    def __init__(self, pattern: str | tuple[str, ...] = "rggb", in_shape: Shape | None = None) -> None:
        rows = PATTERNS.get(pattern.lower()) if isinstance(pattern, str) else tuple(pattern)
        if not rows or any(len(row) != len(rows[0]) or not row or set(row) - set("rgb") for row in rows):
            raise InputError(f"unknown pattern {pattern!r}: one of {', '.join(PATTERNS)}, or rows of r, g and b")
        self.pattern = rows
        if in_shape is not None:
            self.check(tuple(in_shape))
            self.in_shape = tuple(in_shape)

    @classmethod
    def example(cls) -> Operator:
        return cls(in_shape=(3, 6, 7))

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        if len(in_shape) != 3 or in_shape[0] != 3:
            raise InputError(f"a mosaic is made of signals [3, H, W] in red, green and blue, got {tuple(in_shape)}")

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (1, *in_shape[1:])

    def shape_in(self, out_shape: Shape) -> Shape | None:
        if len(out_shape) != 3 or out_shape[0] != 1:
            raise InputError(f"a mosaic has shape [1, H, W], got {tuple(out_shape)}: did it lose its channel axis?")
        return (3, *out_shape[1:])

    def s(self, c: Tensor) -> Tensor:
        size = (c.shape[-2], c.shape[-1])

        def make() -> Tensor:
            tile = torch.tensor([["rgb".index(colour) for colour in row] for row in self.pattern])
            times = [-(-n // k) for n, k in zip(size, tile.shape, strict=True)]
            colour = tile.repeat(*times)[: size[0], : size[1]]
            return (colour == torch.arange(3)[:, None, None]).double()

        return self.tensor(size, c, make)

    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        return x

    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        return c

    def U(self, c: Tensor) -> Tensor:  # noqa: N802
        return (c * self.s(c)).sum(1, keepdim=True)

    def Ut(self, y: Tensor) -> Tensor:  # noqa: N802
        return y * self.s(y)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return self.U(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.Ut(y)

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        """Each place of the pattern is an image of its own, of one colour."""
        h, w = len(self.pattern), len(self.pattern[0])
        rows, columns = y.shape[-2] // h, y.shape[-1] // w
        cells = y[:, 0, : rows * h, : columns * w].reshape(-1, rows, h, columns, w)
        return (plain(cells.permute(0, 2, 4, 1, 3).flatten(1, 2)),)
