"""FITS, the raw mosaics of cameras, and photographs as data. See :mod:`unveil.io.data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .atomic import write_atomic
from .data import DataFormat, package, real
from .plain import exposure

OWN = ("SIMPLE", "BITPIX", "EXTEND", "XTENSION", "PCOUNT", "GCOUNT", "BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM")
"""Cards of FITS that speak of how numbers are stored."""


def read_fits(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    """The first image, or that of an extension's name or number; rows in the file's order, the lowest first."""
    fits = package("astropy", "astropy.io.fits")
    with fits.open(path) as file:
        images = [n for n, unit in enumerate(file) if unit.is_image and unit.header.get("NAXIS", 0) > 0]
        names = {str(n): n for n in images} | {file[n].name: n for n in images if file[n].name}
        if key and key not in names:
            raise InputError(f"{path} has no image '{key}': there are {', '.join(names)}")
        if not images:
            raise InputError(f"{path} holds no image")
        unit = file[names[key] if key else images[0]]
        array, header = np.asarray(unit.data), unit.header
        array = array.astype(array.dtype.newbyteorder("="))
        facts = {
            name: header[name] for name in ("EXPTIME", "BUNIT", "FILTER", "TELESCOP", "INSTRUME") if name in header
        }
        spacing = tuple(abs(float(header[n])) for n in ("CDELT2", "CDELT1") if n in header)
        text = header.tostring(sep="\n")
    return array, DataFormat("fits", str(array.dtype), key, spacing, (), facts, text)


def write_fits(path: Path, array: np.ndarray, form: DataFormat) -> None:
    """With the cards of ``form``: coordinates, exposure, units."""
    fits = package("astropy", "astropy.io.fits")
    header = fits.Header()
    if form.header:
        old = fits.Header.fromstring(form.header, sep="\n")
        for card in old.cards:
            if card.keyword not in OWN and not card.keyword.startswith("NAXIS"):
                header.append(card, bottom=True)
    unit = fits.PrimaryHDU(real(array, path), header)
    write_atomic(path, lambda to: unit.writeto(to, overwrite=True))


def read_raw(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    """The mosaic [H, W] of a camera's sensor, in [0, 1] between its black and white levels.

    ``facts`` hold the ``pattern`` that :class:`~unveil.operators.Mosaic` takes, ``black`` and ``white``, the factors of
    its white balance, and the exposure where the file says it.
    """
    if key:
        raise InputError(f"{path} holds one picture, without a name: leave out :{key}")
    rawpy = package("rawpy")
    with rawpy.imread(str(path)) as raw:
        if raw.raw_pattern is None or raw.raw_pattern.shape != (2, 2):
            raise InputError(f"{path} has no mosaic of 2 x 2 colours: X-Trans and Foveon files are not read")
        colours = raw.color_desc.decode().lower()
        pattern = "".join(colours[i] for i in raw.raw_pattern.flatten())
        black, white = [int(b) for b in raw.black_level_per_channel], int(raw.white_level)
        levels = np.array(black, dtype=np.float32)[raw.raw_colors_visible]
        array = (raw.raw_image_visible.astype(np.float32) - levels) / (white - levels)
        facts: dict[str, Any] = {"pattern": pattern, "black": black, "white": white}
        facts["white_balance"] = [float(v) for v in raw.camera_whitebalance]
    facts |= _exposure(path)
    return array, DataFormat("raw", "uint16", facts=facts)


def _exposure(path: Path) -> dict[str, Any]:
    """Of a raw file that is a TIFF inside, as DNG is; nothing where that cannot be read."""
    try:
        with package("tifffile").TiffFile(path) as file:
            return exposure(file.pages.first.tags)
    except Exception:  # what the file is for is read already
        return {}


def read_image(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    """A photograph [C, H, W] in [0, 1]."""
    from .images import exposure as exposed
    from .images import read_image as read

    if key:
        raise InputError(f"{path} holds one picture, without a name: leave out :{key}")
    values, form = read(path)
    return values.numpy(), DataFormat("image", f"uint{form.bits}", facts=exposed(form))


def write_image(path: Path, array: np.ndarray, form: DataFormat) -> None:  # noqa: ARG001
    """[C, H, W] or [H, W] in [0, 1] as a 16-bit PNG."""
    import torch

    from .images import ImageFormat
    from .images import write_image as write

    values = torch.from_numpy(np.ascontiguousarray(real(array, path)))
    values = values[None] if values.ndim == 2 else values
    if path.suffix.lower() != ".png" or values.ndim != 3 or values.shape[0] not in (1, 3):
        raise InputError(f"{path}: pictures are written as .png, [H, W], [1, H, W] or [3, H, W]")
    write(path, values, ImageFormat(values.shape[0], 16))
