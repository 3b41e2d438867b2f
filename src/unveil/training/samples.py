"""Samples of a network fresh from training, and sheets of images."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..io.atomic import write_atomic
from .objectives import Conditions, Objective


def sample(
    task: Objective,
    network: Callable[..., Tensor],
    shape: tuple[int, ...],
    *,
    conditions: Conditions | None = None,
    guidance: float = 1.0,
    steps: int = 24,
    sigma_max: float = 80.0,
    seed: int = 0,
    chunk: int = 32,
) -> Tensor:
    """Samples [N, C, H, W] by Heun's method on the probability flow (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    `shape` includes N. `guidance` w: the denoiser is D + (w - 1)(D - D without conditions) (Ho and Salimans 2022,
    arXiv 2207.12598). Takes 2 steps - 1 evaluations, or twice as many with guidance.
    """
    given = conditions or {}
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(1, 0, steps)
    ends = sigma_max ** (1 / 7), 0.002 ** (1 / 7)
    sigmas = [*((ends[1] + ramp * (ends[0] - ends[1])) ** 7).tolist(), 0.0]
    out = []
    for start in range(0, shape[0], chunk):
        part = {k: v[start : start + chunk] for k, v in given.items()}
        x = sigmas[0] * noise[start : start + chunk]

        def slope(x: Tensor, sigma: float, part: Conditions = part) -> Tensor:
            clean = task.denoise(network, x, sigma, part)
            if guidance != 1 and part:
                free = task.denoise(network, x, sigma, {})
                clean = free + guidance * (clean - free)
            return (x - clean) / sigma

        for sigma, following in pairwise(sigmas):
            first = slope(x, sigma)
            ahead = x + (following - sigma) * first
            if following > 0:
                ahead = x + (following - sigma) * (first + slope(ahead, following)) / 2
            x = ahead
        out.append(x)
    return torch.cat(out)


def sheet(rows: list[Tensor], path: Path, gap: int = 2) -> Path:
    """Write rows of images, each [N, C, H, W] in [-1, 1] with the same H, W and C, as one PNG."""
    count, channels, height, width = max(len(r) for r in rows), *rows[0].shape[1:]
    canvas = torch.ones(channels, len(rows) * (height + gap) - gap, count * (width + gap) - gap)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + gap), j * (width + gap)
            canvas[:, top : top + height, left : left + width] = image.clamp(-1, 1)
    pixels = ((canvas + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return write_atomic(path, lambda p: picture.save(p, format="PNG", optimize=True))
