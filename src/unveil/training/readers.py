"""What is in an archive: images, the digits of a table, emoji with their names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import unknown
from ..io.images import deep_grey
from . import archives


@dataclass(frozen=True)
class Picture:
    """One image of an archive, not yet decoded, and what is known of it (`label`: int, `caption`: str)."""

    name: str
    open: Callable[[str], Image.Image]  # in a mode of Pillow: "L" or "RGB"
    known: dict[str, Any] = field(default_factory=dict)


def pictures(source: Mapping[str, Any], archive: Path) -> Iterator[Picture]:
    """The images of an archive in a fixed order, read as the source's `read` says."""
    kind = source.get("read", "images")
    if kind not in READERS:
        raise unknown("read =", str(kind), READERS)
    yield from READERS[kind](archive)


def _open(path: str, encoded: bytes) -> Callable[[str], Image.Image]:
    def decode(mode: str) -> Image.Image:
        Image.MAX_IMAGE_PIXELS = None  # wallpapers are large, and the sources are verified
        image = Image.open(io.BytesIO(encoded))
        grey16 = deep_grey(path, image)  # which Pillow would clip to 8 bits
        return (image if grey16 is None else Image.fromarray((grey16 / 257).round().astype(np.uint8))).convert(mode)

    return decode


def _images(archive: Path) -> Iterator[Picture]:
    """All image files."""
    for path, encoded in archives.iterate(archive):
        yield Picture(path, _open(path, encoded))


def _digits(archive: Path) -> Iterator[Picture]:
    """Rows of 28 x 28 grey values and a label, in .csv.gz files: white on black, extended to 32 x 32.

    An image is called `FILE/LABEL/NUMBER`, counting three digits within its class.
    """
    for path, encoded in archives.iterate(archive, (".csv.gz",)):
        counts: dict[int, int] = {}
        for row in csv.reader(io.StringIO(gzip.decompress(encoded).decode())):
            if len(row) != 28 * 28 + 1:
                continue  # another table
            values = np.array(row, dtype=float).astype(np.uint8)
            label, pixels = int(values[-1]), np.pad(values[:-1].reshape(28, 28), 2)
            number = counts[label] = counts.get(label, -1) + 1
            yield Picture(f"{path}/{label}/{number:03d}", Image.fromarray(pixels).convert, {"label": label})


def _emoji(archive: Path) -> Iterator[Picture]:
    """The images in `emoji.json` at 64 x 64 on white, captioned by their names, without the variants of skin."""
    files = dict(archives.iterate(archive, (".png", "emoji.json")))
    table = next(content for path, content in files.items() if path.endswith("/emoji.json"))
    images = {path.rpartition("/")[2]: (path, content) for path, content in files.items() if "/64/" in path}
    for entry in json.loads(table):
        if entry["image"] in images:
            path, encoded = images[entry["image"]]
            yield Picture(path, _on_white(encoded), {"caption": caption(entry["name"]), "short": entry["short_name"]})


def caption(name: str) -> str:
    """A name as one would write it: `KISSING CAT FACE` becomes `kissing cat face`."""
    return re.sub(r"\s+", " ", name.replace("_", " ").strip().lower())


def _on_white(encoded: bytes) -> Callable[[str], Image.Image]:
    def decode(mode: str) -> Image.Image:
        image = Image.open(io.BytesIO(encoded)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)

    return decode


READERS: dict[str, Callable[[Path], Iterator[Picture]]] = {"images": _images, "digits": _digits, "emoji": _emoji}
