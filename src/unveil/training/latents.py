"""Codes of images as training data: `kind = "latents"` in a card's `[data]` table.

    kind = "latents"
    autoencoder = "emoji-autoencoder"   # a prior of the zoo, or a file that a card with objective = "autoencoder" made

The images are those of the sources (see `training.data`), without augmentation. Codes are shifted and scaled per
channel to mean 0 and standard deviation 1 over the training images; the exported prior says by how much (`latent`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..priors.networks.autoencoder import Autoencoder
from . import data
from .export import load_network
from .recipe import Recipe
from .start import find_weights


class Latents:
    """A source of codes (see the module)."""

    def __init__(
        self,
        table: Mapping[str, Any],
        recipe: Recipe,
        cache: Path | None = None,
        say: Callable[[str], None] = data.quiet,
    ) -> None:
        self.pack = data.build(table, cache, say)
        name = str(table.get("autoencoder", ""))
        network, _ = load_network(find_weights(name, "[data] autoencoder"))
        if not isinstance(network, Autoencoder):
            raise InputError(f"[data] autoencoder = {name!r} holds another network: name one trained to reconstruct.")
        self.network = network
        self.training = [k for k, e in enumerate(self.pack.entries) if e["split"] == "train"]
        self.unseen = [k for k, e in enumerate(self.pack.entries) if e["split"] != "train"]
        codes = self._encode(self.training)
        if codes.shape[-1] != recipe.size:
            raise InputError(f"[training] size = {recipe.size}, but the codes are {codes.shape[-1]} wide: write that.")
        mean, std = codes.mean((0, 2, 3)), codes.std((0, 2, 3))
        self.latent = {"autoencoder": name, "mean": mean.tolist(), "std": std.tolist()}
        self.mean, self.std = mean[:, None, None], std[:, None, None]
        self.codes, self.channels = (codes - self.mean) / self.std, codes.shape[1]

    @torch.inference_mode()
    def _encode(self, indices: list[int]) -> Tensor:
        parts = []
        for start in range(0, len(indices), 64):
            stack = np.stack([self.pack.image(k) for k in indices[start : start + 64]])
            parts.append(self.network.encode(torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1))
        return torch.cat(parts).clone() if parts else torch.empty(0, *self.codes.shape[1:])

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of scaled codes."""
        return torch.cat([self.network.decode(part * self.std + self.mean) for part in torch.split(codes, 32)])

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """[count, channels, size, size] float32, and the conditions of the images."""
        pick = rng.integers(len(self.training), size=count)
        return self.codes[torch.from_numpy(pick)], self.pack.conditions([self.training[k] for k in pick])

    def held_out(self, size: int, count: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes of the images that are held out, evenly spread."""
        del size
        chosen = self.unseen
        if count is not None and count < len(chosen):
            chosen = [chosen[k * len(chosen) // count] for k in range(count)]
        return (self._encode(chosen) - self.mean) / self.std, self.pack.conditions(chosen)
