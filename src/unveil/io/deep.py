"""Sixteen bits with colour or transparency, of which Pillow keeps eight: PNG by pypng, TIFF by tifffile (an extra)."""

from __future__ import annotations

import importlib.util
import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

EXTRA = "pip install 'unveil[tiff]'"
ICC_PROFILE, ORIENTATION = 34675, 274  # tags of TIFF
TEXTS = (270, 271, 272, 306, 315, 33432)  # description, maker, model, time, artist, copyright
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = range(3)  # its photometric interpretations that are read
ASSOCIATED, UNASSOCIATED = 1, 2  # its kinds of transparency: colours multiplied by it, or not

Decoded = tuple[np.ndarray, int, bytes | None]
"""Pixels [H, W, 1 to 4] of uint8 or uint16, EXIF orientation, ICC profile."""


# -- PNG -------------------------------------------------------------------------------------------------------------


def read_png(path: Path) -> np.ndarray:
    """The pixels [H, W, 1 to 4] of a 16-bit PNG, uint16."""
    import png

    with path.open("rb") as file:
        width, height, rows, info = png.Reader(file=file).asDirect()
        table = np.vstack([np.asarray(row, dtype=np.uint16) for row in rows])
    return table.reshape(height, width, info["planes"])


def write_png(
    pixels: np.ndarray,
    profile: bytes | None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """A 16-bit PNG of pixels [H, W, 1 to 4]."""
    import png

    height, width, planes = pixels.shape
    writer = png.Writer(width, height, greyscale=planes < 3, alpha=planes in (2, 4), bitdepth=16)
    plain = io.BytesIO()
    writer.write(plain, pixels.reshape(height, width * planes))
    more = []
    if profile:
        more.append((b"iCCP", b"profile\0\0" + zlib.compress(profile)))
    if exif:
        more.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    if dpi:
        more.append((b"pHYs", struct.pack(">IIB", *(round(v / 0.0254) for v in dpi), 1)))
    if not more:
        return plain.getvalue()
    chunks = list(png.Reader(bytes=plain.getvalue()).chunks())
    chunks[1:1] = more
    out = io.BytesIO()
    png.write_chunks(out, chunks)
    return out.getvalue()


# -- TIFF ------------------------------------------------------------------------------------------------------------


def has_tiff() -> bool:
    """Whether tifffile is installed."""
    return importlib.util.find_spec("tifffile") is not None


def read_tiff(path: Path, check: Callable[[tuple[int, int]], None]) -> Decoded:
    """The first page of a TIFF of 8 or 16 bits, grey or RGB, with at most one transparency.

    ``check`` is called with (width, height) before anything is decoded. Raises :class:`InputError` for other kinds.
    """
    with _tifffile(path) as tifffile, tifffile.TiffFile(path) as file:
        page = file.pages.first
        check((page.imagewidth, page.imagelength))
        kind, bits = int(page.photometric), page.bitspersample
        if kind not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or page.axes not in ("YX", "YXS", "SYX"):
            raise InputError(f"{path} is a TIFF of {page.photometric.name} {page.axes}: save it as RGB or grey")
        if page.dtype not in (np.uint8, np.uint16) or bits != 8 * page.dtype.itemsize:
            raise InputError(f"{path} is a TIFF with {bits}-bit {page.dtype} values: save it as 16-bit")
        pixels = page.asarray()
        extras = [int(e) for e in page.extrasamples]
        orientation = int(page.tags.valueof(ORIENTATION, 1))
        profile = page.tags.valueof(ICC_PROFILE)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else np.moveaxis(pixels, page.axes.index("S"), -1)
    count, full = 3 if kind == RGB else 1, 2**bits - 1
    colours = full - pixels[:, :, :count] if kind == WHITE_IS_ZERO else pixels[:, :, :count]
    extras = extras or [UNASSOCIATED] * (pixels.shape[2] - count)
    alphas = [count + k for k, kind in enumerate(extras) if kind in (ASSOCIATED, UNASSOCIATED)]
    if not alphas:
        return colours, orientation, profile
    alpha = pixels[:, :, alphas[0], None]
    if extras[alphas[0] - count] == ASSOCIATED:
        colours = (colours / np.maximum(alpha, 1) * full).round().clip(0, full).astype(pixels.dtype)
    return np.concatenate([colours, alpha], 2), orientation, profile


def write_tiff(
    pixels: np.ndarray,
    profile: bytes | None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """A TIFF of pixels [H, W, 1 to 4] in their depth.

    Of the EXIF data it holds who, when and how exposed, as tags of its own: tifffile writes no directory of them.
    """
    planes = pixels.shape[2]
    options: dict[str, Any] = {"photometric": "rgb" if planes > 2 else "minisblack", "iccprofile": profile}
    if exif:
        options["extratags"] = _tags(exif)
    if planes > 1:
        options["planarconfig"] = "contig"
    if dpi:
        options |= {"resolution": dpi, "resolutionunit": 2}
    if planes in (2, 4):
        options["extrasamples"] = ["unassalpha"]
    out = io.BytesIO()
    with _tifffile() as tifffile:
        tifffile.imwrite(out, pixels[:, :, 0] if planes == 1 else pixels, metadata=None, software="unveil", **options)
    return out.getvalue()


def _tags(exif: bytes) -> list[tuple[int, str, int, Any, bool]]:
    """EXIF data as tifffile takes tags: code, type, count, value, whether on the first page only."""
    from PIL.Image import Exif

    from .plain import EXIF, EXPOSURE

    found = Exif()
    found.load(exif)
    inner = found.get_ifd(EXIF)
    texts = [(code, "s", 0, found[code], True) for code in TEXTS if isinstance(found.get(code), str)]
    return [*texts, *((code, "d", 1, float(inner[code]), True) for code in EXPOSURE.values() if code in inner)]


@contextmanager
def _tifffile(path: Path | None = None) -> Iterator[Any]:
    """The package, which says what is wrong in exceptions and not in the log; InputError where something is missing."""
    what = "a TIFF with 16 bits per colour" if path is None else f"{path} is a TIFF with 16 bits per colour:"
    other = "write" if path is None else "save it as"
    try:
        import tifffile
    except ImportError:
        raise InputError(f"{what} needs tifffile: {EXTRA}, or {other} 16-bit PNG") from None
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True
    try:
        yield tifffile
    except Exception as error:  # a KeyError or a ValueError, by where it is noticed
        if "imagecodecs" not in str(error):
            raise
        raise InputError(f"{path} is a TIFF whose compression needs imagecodecs: {EXTRA}") from None
    finally:
        log.disabled = before
