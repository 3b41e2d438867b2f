"""Where training batches come from: packed images, their codes, generated phantoms, slices of volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..errors import unknown
from . import data
from .crops import Crops, held_out_crops
from .latents import Latents
from .phantoms import Ellipses
from .recipe import Recipe
from .volumes import Slices


class Source(Protocol):
    """An endless stream of training batches, and what is held out of it."""

    channels: int

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """[count, channels, size, size] float32 in [-1, 1], and the conditions (`label`, `text`) if there are any."""

    def held_out(self, size: int, count: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Images that `draw` never gives, always the same; at most `count`."""


class Images:
    """Crops of packed images."""

    def __init__(self, pack: data.Pack, recipe: Recipe) -> None:
        r, training = recipe, pack.select(lambda e: e["split"] == "train")
        self.pack, self.channels = pack, pack.channels
        self.crops = Crops(
            training,
            r.size,
            jitter=r.jitter,
            symmetries=r.symmetries,
            contrast=r.contrast,
            warp=r.warp,
            elastic=r.elastic,
        )

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.crops.draw(count, rng)

    def held_out(self, size: int, count: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        return held_out_crops(self.pack, size, count=count)


def open_source(
    table: Mapping[str, Any], recipe: Recipe, cache: Path | None = None, say: Callable[[str], None] = data.quiet
) -> Source:
    """The source of a card's `[data]` table: `kind` is "images" (the default), "ellipses", "slices", "latents".

    Fetches and packs what is not in the cache yet. Raises InputError as `data.build` does.
    """
    kind = table.get("kind", "images")
    if kind == "images":
        return Images(data.build(table, cache, say), recipe)
    if kind == "ellipses":
        return Ellipses(table, recipe.size)
    if kind == "slices":
        return Slices(table, recipe, cache, say)
    if kind == "latents":
        return Latents(table, recipe, cache, say)
    raise unknown("[data] kind =", str(kind), ("images", "ellipses", "slices", "latents"))
