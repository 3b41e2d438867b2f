"""Image files as tensors, and back as what they were.

A photograph is a float tensor [C, H, W] in [0, 1] with one channel (grey) or three (colour); what else the file was
(bit depth, transparency, colour profile) travels in an :class:`ImageFormat`. Pillow reads and writes everything but
what has 16 bits and colour or transparency (:mod:`unveil.io.deep`).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import deep
from .atomic import write_atomic
from .plain import EXPOSURE

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 80_000_000
"""Larger images are refused before they are decoded."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # the EXIF tag
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: of more than 4 GB
TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262
TIFFS = (".tif", ".tiff")
EXIF_TAGS = (270, 271, 272, 305, 306, 315, 33432)  # description, maker, model, software, time, artist, copyright
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
EXIF_LEFT_OUT = (0xA002, 0xA003, 0xA005)  # the size, which may change, and an offset


@dataclass(frozen=True)
class ImageFormat:
    """What an image file was, beyond the values of its pixels.

    ``channels`` is 1 or 3, ``bits`` 8 or 16, ``alpha`` [1, H, W] in [0, 1] or None, ``suffix`` that of the lossless
    file it is written to (".png", or ".tif" for what was a TIFF), ``profile`` its ICC colour profile; ``several`` says
    that the file holds more pictures than this, its first. ``exif`` says who, when and how exposed, the picture being
    turned as it is seen, ``dpi`` dots per inch along rows and columns, (x, y).
    """

    channels: int = 3
    bits: int = 8
    alpha: Tensor | None = None
    suffix: str = ".png"
    profile: bytes | None = None
    several: bool = False
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None

    def words(self) -> str:
        """For example "16-bit grey with transparency"."""
        colour = "grey" if self.channels == 1 else "colour"
        return f"{self.bits}-bit {colour}" + ("" if self.alpha is None else " with transparency")


def read_image(path: str | Path) -> tuple[Tensor, ImageFormat]:
    """The pixels [C, H, W] in [0, 1] of an image file, and what it was.

    Palettes become colours (or greys), the EXIF orientation is applied, CMYK and the like become RGB; of several frames
    the first is taken. Raises :class:`InputError` for a file that is missing, truncated, not an image, or too large,
    and for a TIFF with 16 bits per colour where the extra ``unveil[tiff]`` is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is a folder, not an image" if path.is_dir() else f"there is no file {path}")
    pixels, orientation, kind, facts = _decode(path)
    bits, full = 8 * pixels.itemsize, np.iinfo(pixels.dtype).max
    values = torch.from_numpy(pixels.astype(np.float32) / np.float32(full)).permute(2, 0, 1)
    values = _oriented(values, orientation).contiguous()
    colours = 1 if values.shape[0] < 3 else 3
    alpha = values[colours:].clone() if values.shape[0] > colours else None
    suffix = ".tif" if kind == "TIFF" else ".png"
    facts["profile"] = _fitting(facts["profile"], colours)
    return values[:colours].clone(), ImageFormat(colours, bits, alpha, suffix, **facts)


def write_image(path: str | Path, image: Tensor, form: ImageFormat | None = None) -> Path:
    """Write [C, H, W] in [0, 1] (values outside are clipped) atomically, with the depth and alpha of ``form``.

    The suffix of ``path`` chooses the file type; all that this module writes (.png, .tif) are lossless.
    """
    path = Path(path)
    form = form or ImageFormat(image.shape[0])
    data = encode(image, form, "TIFF" if path.suffix.lower() in TIFFS else "PNG")
    return write_atomic(path, lambda p: p.write_bytes(data))


def encode(image: Tensor, form: ImageFormat | None = None, kind: str = "PNG", quality: int | None = None) -> bytes:
    """The bytes of an image file of [C, H, W] in [0, 1]; ``kind`` PNG, TIFF, or JPEG with a ``quality``."""
    from PIL import Image

    form = form or ImageFormat(image.shape[0])
    values = image if form.alpha is None else torch.cat([image, form.alpha.to(image)])
    full = 65535 if form.bits == 16 else 255
    scaled = (values.detach().cpu().double().clamp(0, 1) * full).round().permute(1, 2, 0).contiguous().numpy()
    profile = _fitting(form.profile, image.shape[0])
    pixels = scaled.astype(np.uint16 if form.bits == 16 else np.uint8)
    if form.bits == 16 and kind == "PNG":
        return deep.write_png(pixels, profile, form.exif, form.dpi)
    if form.bits == 16 and kind == "TIFF" and pixels.shape[2] > 1:
        return deep.write_tiff(pixels, profile, form.exif, form.dpi)
    out = io.BytesIO()
    picture: Image.Image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    options: dict[str, Any] = {} if quality is None else {"quality": quality}
    options |= {k: v for k, v in {"icc_profile": profile, "exif": form.exif, "dpi": form.dpi}.items() if v}
    picture.save(out, kind, **options)
    return out.getvalue()


def in_colour(form: ImageFormat) -> ImageFormat:
    """The format of a picture that gets colours."""
    if form.channels == 3:
        return form
    suffix = ".png" if form.bits == 16 and not deep.has_tiff() else form.suffix
    return replace(form, channels=3, suffix=suffix)


def resized_alpha(form: ImageFormat, size: tuple[int, int]) -> ImageFormat:
    """The format with its transparency brought to (height, width)."""
    if form.alpha is None or tuple(form.alpha.shape[1:]) == size:
        return form
    alpha = torch.nn.functional.interpolate(form.alpha[None], size, mode="bicubic", align_corners=False)[0]
    return replace(form, alpha=alpha.clamp(0, 1))


# -- decoding --------------------------------------------------------------------------------------------------------


def exposure(form: ImageFormat) -> dict[str, float]:
    """How long, how wide and how sensitive, in seconds, f-number and ISO, as far as the EXIF data say it."""
    from PIL.Image import Exif

    exif = Exif()
    exif.load(form.exif or b"")
    found = exif.get_ifd(EXIF_IFD)
    return {name: float(found[code]) for name, code in EXPOSURE.items() if code in found}


def _decode(path: Path) -> tuple[np.ndarray, int, str, dict[str, Any]]:
    """Pixels [H, W, 1 to 4] of uint8 or uint16, EXIF orientation, file type, and more of what ImageFormat holds."""
    from PIL import Image, UnidentifiedImageError

    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    check = partial(_check_size, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                picture = Image.open(path)
            except UnidentifiedImageError:
                if head[:4] in TIFF_SIGNATURES and deep.has_tiff():
                    pixels, orientation, profile = deep.read_tiff(path, check)
                    return pixels, orientation, "TIFF", {"profile": profile}
                raise
            with picture:
                check(picture.size)
                kind = str(picture.format)
                if kind == "TIFF" and _is_deep(picture):
                    pixels, orientation, profile = deep.read_tiff(path, check)
                    return pixels, orientation, kind, {"profile": profile, **_facts(picture)}
                is_deep = head.startswith(PNG_SIGNATURE) and head[24] == 16
                pixels = deep.read_png(path) if is_deep else _pixels(path, picture)
                # only now: Pillow turns a TIFF while it decodes, and says so by taking the tag away
                orientation, profile = _orientation(picture), picture.info.get("icc_profile")
                return pixels, orientation, kind, {"profile": profile, **_facts(picture)}
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(_too_large(path)) from None
    except UnidentifiedImageError:
        why = "not an image file that can be read" if head else "empty"
        hint = f" (a TIFF that is damaged, or needs tifffile: {deep.EXTRA})" if head[:4] in TIFF_SIGNATURES else ""
        raise InputError(f"{path} is {why}{hint}") from None
    except Exception as error:  # decoders raise anything on damaged data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read {path}: truncated or damaged ({reason})") from None


def _several(picture: Image) -> bool:
    """Whether the file is an animation or has more pages. (A phone's second picture in a JPEG is no photograph.)"""
    try:
        return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
    except Exception:  # what follows the first picture is damaged
        return True


def _facts(picture: Image) -> dict[str, Any]:
    """What belongs to a picture beside its pixels, for :class:`ImageFormat`; nothing where it is damaged."""
    dpi = picture.info.get("dpi")
    sound = isinstance(dpi, tuple) and len(dpi) == 2 and all(0 < float(v) < 1e6 for v in dpi)
    return {
        "several": _several(picture),
        "exif": _exif(picture),
        "dpi": (float(dpi[0]), float(dpi[1])) if dpi and sound else None,
    }


def _exif(picture: Image) -> bytes | None:
    """The EXIF data without thumbnail and orientation, which the pixels have already; not the tags of a TIFF itself."""
    from PIL.Image import Exif

    try:
        old, new = picture.getexif(), Exif()
        for tag in EXIF_TAGS:
            if tag in old:
                new[tag] = old[tag]
        for part in (EXIF_IFD, GPS_IFD):
            inner = {k: v for k, v in old.get_ifd(part).items() if k not in EXIF_LEFT_OUT}
            if part == EXIF_IFD:  # some TIFFs, those of 16 bits by this module among them, have these as own tags
                inner = {k: old[k] for k in EXPOSURE.values() if k in old} | inner
            if inner:
                new[part] = inner
        if not len(new):
            return None
        new[ORIENTATION] = 1
        data: bytes = new.tobytes()
        Exif().load(data)
        return data
    except Exception:  # damaged EXIF data raise anything, and leave the pixels good
        return None


def _orientation(picture: Image) -> int:
    """The EXIF orientation, 1 (as stored) where there is none that can be read."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF data raise anything, and leave the pixels good
        return 1


def _is_deep(picture: Any) -> bool:
    """Whether a TIFF has more than 8 bits in more than one channel."""
    bits = picture.tag_v2.get(TIFF_BITS, (8,))
    return len(bits) > 1 and max(bits) > 8


def _check_size(path: Path, size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise InputError(f"{path} has no pixels ({size[0]} x {size[1]})")
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(_too_large(path))


def _too_large(path: Path) -> str:
    return f"{path} has more than {MAX_PIXELS // 1_000_000} million pixels: crop or reduce it"


def _pixels(path: Path, picture: Image) -> np.ndarray:
    """The pixels [H, W, 1 to 4] of what Pillow reads in full depth, uint8 or (grey only) uint16."""
    mode, grey16 = picture.mode, deep_grey(path, picture)
    if grey16 is not None:
        return grey16[:, :, None]
    transparent = "transparency" in picture.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    grey = mode in ("1", "L", "LA", "La")
    target = ("LA" if transparent else "L") if grey else ("RGBA" if transparent else "RGB")
    if mode == "La":  # Pillow converts premultiplied grey to LA only
        picture = picture.convert("LA")
    pixels = np.asarray(picture if picture.mode == target else picture.convert(target))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if mode in ("P", "PA") and bool((pixels[:, :, :1] == pixels[:, :, 1:3]).all()):
        return np.delete(pixels, (1, 2), 2)  # a palette of greys
    return pixels


def deep_grey(path: str | Path, picture: Image) -> np.ndarray | None:
    """The values [H, W] of a grey picture of 16 bits, uint16; None for one of 8 bits or of colours.

    Raises :class:`InputError` for 32 bits.
    """
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format == "PPM"):
        values = np.asarray(picture).astype(np.uint16)
        white_is_zero = picture.format == "TIFF" and picture.tag_v2.get(TIFF_PHOTOMETRIC) == deep.WHITE_IS_ZERO  # type: ignore[attr-defined]
        return 65535 - values if white_is_zero else values
    if mode in ("I", "F"):
        raise InputError(
            f"{path} has 32-bit values without a known black and white: save it as 16-bit, or use the Python interface"
        )
    return None


def _fitting(profile: bytes | None, channels: int) -> bytes | None:
    """The colour profile, if it is one of colour or grey as the image is (that of a CMYK file is neither)."""
    space = b"GRAY" if channels == 1 else b"RGB "
    return profile if profile and profile[16:20] == space else None


def _oriented(x: Tensor, orientation: int) -> Tensor:
    """Turn stored pixels [C, H, W] the way they are meant to be seen (EXIF orientations 1 to 8)."""
    if orientation in (5, 6, 7, 8):
        x = x.transpose(1, 2)
    if orientation in (2, 3, 6, 7):
        x = x.flip(2)
    if orientation in (3, 4, 7, 8):
        x = x.flip(1)
    return x
