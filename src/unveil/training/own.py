"""A card for a folder of one's own images, and cards by name."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import tomli_w
from PIL import Image, UnidentifiedImageError

from ..errors import InputError, unknown
from ..io.atomic import write_text
from ..priors.loaders import ZOO
from .archives import SUFFIXES, files


def find_card(card: Path) -> Path:
    """The card that a path names, or that of the prior of the zoo with this name."""
    if card.is_file() or card.suffix == ".toml":
        return card
    if not (ZOO / f"{card}.toml").is_file():
        raise unknown("card", str(card), {path.stem for path in ZOO.glob("*.toml")})
    return ZOO / f"{card}.toml"


def own_card(folder: Path, name: str, size: int = 64, steps: int = 4000, workers: int = 1) -> dict[str, Any]:
    """The tables of a card for the images in a folder.

    Images that are all `size` x `size` are taken as whole signals, and the prior is for that size. From others crops
    are taken at their own resolution, turned and mirrored, and the prior is for any size. Every twentieth image is
    held out (at least one of three or more). Grey if all images are.

    Raises InputError for a folder without images, or with none that is large enough.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: name one with images.")
    names = [path for path in files(folder) if path.suffix.lower() in SUFFIXES]
    if not names:
        raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES)}).")
    sizes, grey = set(), True
    for path in names:
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
                grey = grey and image.mode.startswith(("1", "L", "I"))
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path} is not an image that can be read: repair or remove it.") from error
    usable = [min(s) for s in sizes if min(s) >= size]
    if not usable:
        raise InputError(f"No image in {folder} is at least {size}x{size}: use --size {max(min(s) for s in sizes)}.")
    whole = sizes == {(size, size)}
    kept = names[7::20] or names[2:3]
    decay = steps * 2 // 3
    return {
        "name": name,
        "network": {
            "channels": 1 if grey else 3,
            "widths": [32, 64, 96, 128] if size > 32 else [32, 64, 128],
            "blocks": 2,
            "unshuffle": 2,
            "features": 128,
        },
        "data": {
            "channels": 1 if grey else 3,
            "source": [
                {
                    "fetch": "folder",
                    "path": str(folder.resolve()),
                    "hold_out": ["/" + glob.escape(p.relative_to(folder).as_posix()) for p in kept],
                }
            ],
        },
        "training": {
            "steps": steps,
            "batch": 16,
            "size": size,
            "fixed_size": whole,
            "workers": workers,
            "decay_steps": decay,
            "ema_steps": max(1, steps // 30),
            "jitter": 0.0 if whole else 0.1,
            "symmetries": 1 if whole else 8,
            "contrast": 0.0 if whole else 0.5,
            "compile": "auto" if steps >= 2000 else "no",  # compiling takes a minute or two
            "validate_every": 500,
            "validate_size": size if whole else max(size, min(256, min(usable) // 2 * 2)),
        },
    }


def write_card(path: Path, tables: dict[str, Any]) -> Path:
    """Write a card."""
    return write_text(path, tomli_w.dumps(tables))
