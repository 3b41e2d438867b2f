"""Measure a denoiser on the held-out images of its card against classical denoisers.

    python -m unveil.training.evaluate WEIGHTS CARD [--cache DIR] [--baselines FILE] [--out FILE]

WEIGHTS is an exported .safetensors file or a training run's folder. Every method gets the same noisy images,
noise added without clipping; every estimate is clipped to the range before its PSNR. Baselines: the noisy
image itself, scikit-image's bilateral filter (its two widths tuned per noise level on training images) and,
where the package `bm3d` is installed, BM3D (in colour for colour) with the true noise level. They are slow, and kept
in the file --baselines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, UnveilError
from ..io.atomic import write_text
from . import edm
from .export import export, load_network
from .objectives import Conditions, Objective, objective
from .recipe import Recipe, read_card
from .sources import Source, open_source

LEVELS = (15, 25, 50, 100)
Method = Callable[[Tensor, float], Tensor]  # noisy [N, C, H, W] in about [-1, 1], sigma -> estimate


def noisy(images: Tensor, level: int) -> Tensor:
    """The images plus Gaussian noise of standard deviation level/255 of the range; always the same."""
    generator = torch.Generator().manual_seed(level)
    return images + level / 127.5 * torch.randn(images.shape, generator=generator)


def score(method: Method, images: Tensor, level: int) -> Tensor:
    """PSNR [N] in dB of a method at one level (of 255)."""
    return edm.psnr(method(noisy(images, level), level / 127.5), images)


def _per_image(function: Callable[[Any], Any], x: Tensor) -> Tensor:
    """Apply a function of one [H, W, C] array in [0, 1] to a batch in [-1, 1]."""
    arrays = [(image.permute(1, 2, 0).numpy().astype(np.float64) + 1) / 2 for image in x]
    results = [torch.from_numpy(np.ascontiguousarray(function(a))).float().permute(2, 0, 1) for a in arrays]
    return torch.stack(results) * 2 - 1


def bilateral(width_colour: float, width_space: float) -> Method:
    """scikit-image's bilateral filter: `width_colour` in units of the noise, `width_space` in pixels."""
    from skimage.restoration import denoise_bilateral

    def method(x: Tensor, sigma: float) -> Tensor:
        def one(image: Any) -> Any:
            grey = image.shape[2] == 1
            out = denoise_bilateral(
                np.clip(image[..., 0] if grey else image, 0, 1),
                sigma_color=width_colour * sigma / 2,
                sigma_spatial=width_space,
                channel_axis=None if grey else -1,
            )
            return out.reshape(image.shape)

        return _per_image(one, x)

    return method


def tuned_bilateral(images: Tensor, level: int) -> tuple[Method, dict[str, float]]:
    """The bilateral filter with the best mean PSNR on `images`, and its widths."""
    grid = [(c, s) for c in (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0) for s in (1.0, 1.5, 2.0, 3.0)]
    best = max(grid, key=lambda g: float(score(bilateral(*g), images, level).mean()))
    return bilateral(*best), {"colour": best[0], "space": best[1]}


def bm3d(channels: int) -> Method | None:
    """BM3D of the package `bm3d`, or None where it is not installed."""
    try:
        from bm3d import bm3d as grey
        from bm3d import bm3d_rgb as colour
    except ImportError:
        return None
    if channels == 1:
        return lambda x, sigma: _per_image(lambda image: grey(image[..., 0], sigma / 2).reshape(image.shape), x)
    return lambda x, sigma: _per_image(lambda image: colour(image, sigma / 2), x)


def baselines(images: Tensor, tuning: Tensor, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Mean PSNR per method and level on held-out `images`: {"noisy": {"15": ...}, ...}.

    `tuning`: training images [N, C, H, W] for the widths of the bilateral filter.
    """
    table: dict[str, Any] = {"noisy": {}, "bilateral": {}, "bilateral widths": {}, "bm3d": {}}
    peer = bm3d(images.shape[1])
    for level in LEVELS:
        key = str(level)
        table["noisy"][key] = round(float(edm.psnr(noisy(images, level), images).mean()), 2)
        filter_, widths = tuned_bilateral(tuning, level)
        table["bilateral widths"][key] = widths
        table["bilateral"][key] = round(float(score(filter_, images, level).mean()), 2)
        if peer is not None:
            table["bm3d"][key] = round(float(score(peer, images, level).mean()), 2)
        say(f"{level}/255: " + ", ".join(f"{m} {table[m].get(key)}" for m in ("noisy", "bilateral", "bm3d")))
    return table


def evaluate(
    task: Objective, network: torch.nn.Module, images: Tensor, conditions: Conditions | None = None
) -> dict[str, float]:
    """Mean PSNR in dB of a network on images [N, C, H, W], per level; image k given row k of the conditions."""

    def method(x: Tensor, sigma: float) -> Tensor:
        rows = [{n: v[k : k + 1] for n, v in (conditions or {}).items()} for k in range(len(x))]
        return torch.cat([task.denoise(network, x[k : k + 1], sigma, rows[k]) for k in range(len(x))])

    return {str(level): round(float(score(method, images, level).mean()), 2) for level in LEVELS}


def held_out(source: Source, recipe: Recipe) -> tuple[Tensor, dict[str, Tensor]]:
    """The images that a card is measured on, and their conditions."""
    return source.held_out(recipe.validate_size, recipe.validate_count)


def measure(
    weights: Path,
    card: Path,
    cache: Path | None = None,
    baselines_file: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """PSNR per method and level: the network's under its name, then those of the baselines.

    Networks with conditions are measured without any, and with the true one under their name and "given". Also
    `images` [N, height, width] and `cpu seconds per call`.
    """
    tables = read_card(card)
    recipe = Recipe.from_table(tables["training"])
    source = open_source(tables["data"], recipe, cache)
    network, meta = load_network(weights)
    task = objective(recipe.objective, meta["sigma_data"])
    images, conditions = held_out(source, recipe)
    if not len(images):
        raise InputError(f"{card} holds out no image to measure on: name some under hold_out.")
    started = time.process_time()
    table: dict[str, Any] = {meta["name"]: evaluate(task, network, images)}
    seconds = (time.process_time() - started) / len(images) / len(LEVELS)
    taken = {k: v for k, v in conditions.items() if meta["config"].get("classes" if k == "label" else "texts")}
    if taken:
        table[f"{meta['name']}, given {' and '.join(taken)}"] = evaluate(task, network, images, taken)
    if baselines_file is not None and baselines_file.exists():
        table.update(json.loads(baselines_file.read_text()))
    else:
        tuning = source.draw(4, np.random.default_rng(0))[0]
        measured = baselines(images, tuning, say)
        if baselines_file is not None:
            write_text(baselines_file, json.dumps(measured, indent=1) + "\n")
        table.update(measured)
    table["images"] = [len(images), *images.shape[2:]]
    table["cpu seconds per call"] = round(seconds, 3)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m unveil.training.evaluate", description="Denoising PSNR of a prior."
    )
    parser.add_argument("weights", type=Path, help="exported .safetensors, or the folder of a run")
    parser.add_argument("card", type=Path)
    parser.add_argument("--cache", type=Path, help="cache of packages and images (default: $UNVEIL_DATA)")
    parser.add_argument(
        "--baselines", type=Path, help="JSON of the baselines: read if there, else measured and written"
    )
    parser.add_argument("--out", type=Path, help="write all numbers here, as JSON")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        weights = given.weights
        if weights.is_dir():
            weights = export(weights, weights / "evaluated.safetensors", given.card.stem)
        table = measure(weights, given.card, given.cache, given.baselines)
    except UnveilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count, height, width = table["images"]
    print(f"{count} held-out images {height}x{width}, {table['cpu seconds per call']} cpu-seconds per network call")
    print("sigma/255".ljust(24) + "".join(f"{level:>8}" for level in LEVELS))
    for method, row in table.items():
        if isinstance(row, dict) and "widths" not in method:
            print(method.ljust(24) + "".join(f"{row.get(str(level), float('nan')):8.2f}" for level in LEVELS))
    if given.out is not None:
        write_text(given.out, json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
