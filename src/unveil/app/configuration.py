"""The configuration of an instrument: what ``instrument.toml`` may say, and its checks before any data are read."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMON = ("axes", "slices", "white", "output")
BEAM = ("beam", "angles", "unit", "size", "spacing", "pixel", "offset", "source", "distance")
KEYS: dict[str, tuple[str, ...]] = {
    "mri": ("noise", "maps", "mask", "size", "calibration", "trajectory", "phase"),
    "ct": (*BEAM, "noise", "black", "data", "i0"),
    "pet": (*BEAM, "fwhm", "attenuation", "efficiency", "background"),
    "mosaic": ("noise", "black", "pattern"),
    "interferometer": ("noise", "uv", "size", "pixel"),
    "diffraction": ("noise", "size", "power", "centred"),
}
"""What a configuration may say, by instrument, beside what is common to all."""

ABSENT = {
    ("pet", "noise"): "the noise of counts is Poisson's, and follows from them",
    ("pet", "black"): "activity starts at 0",
    ("mri", "black"): "magnitudes start at 0",
    ("interferometer", "black"): "the sky is 0 where there is nothing",
    ("diffraction", "black"): "amplitudes start at 0",
}
"""Why an instrument has no entry that others have."""

LENGTHS = ("spacing", "pixel", "offset", "source", "distance")
NUMBERS = (*LENGTHS, "noise", "white", "black", "fwhm", "i0")
POSITIVE = ("spacing", "pixel", "source", "i0")
COUNTS = "poisson"
"""What ``noise`` may be, beside a number, of counted photons."""
LARGEST = 2**31
"""Values of an image: more is a mistake in ``size``."""


def read_table(instrument: str, config: str | Path | None) -> tuple[dict[str, Any], Path]:
    """The entries of a configuration (none without a file), and the folder that its files lie in.

    Raises :class:`InputError` with the mend for a file that is no TOML, and entries that are unknown, of another kind,
    out of their range, or belong to another instrument or setting.
    """
    if config is None:
        return {}, Path()
    config = Path(config)
    try:
        table = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {config}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{config} is not TOML: {error}") from None
    table = table.get(instrument, table) if isinstance(table.get(instrument), dict) else table
    try:
        _check(instrument, table)
    except InputError as error:
        raise InputError(f"{config}: {error}") from None
    return table, config.parent


def _check(instrument: str, table: dict[str, Any]) -> None:
    known = (*COMMON, *KEYS[instrument])
    for key in table:
        if (instrument, key) in ABSENT:
            raise InputError(f"{instrument} has no {key}, {ABSENT[instrument, key]}: leave it out")
        if key not in known:
            raise unknown("entry", key, known)
    for key in NUMBERS:
        value = table.get(key, 1)
        if instrument == "diffraction" and key == "noise" and value == COUNTS:
            if "power" in table:
                raise InputError("counts are intensities: leave out power")
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{key} is a number, got {value!r}")
        positive = key in POSITIVE or (key == "white" and "black" not in KEYS[instrument])
        if (value <= 0 and positive) or (value < 0 and key in ("noise", "fwhm")):
            raise InputError(f"{key} must be {'>' if positive else '>='} 0, got {value!r}")
        if value != 0 and not 1e-12 <= abs(value) <= 1e12:
            raise InputError(f"{key} = {value!r} is out of all range: choose units in which it is within 1e-12 to 1e12")
    for key in ("axes", "pattern"):
        value = table.get(key, "")
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            raise InputError(f"{key} is a text or a list of texts, got {value!r}")
    width = table.get("calibration", 1)
    if type(width) is not int or width < 1:
        raise InputError(f"calibration is a whole number of points, >= 1, got {width!r}")
    size = table.get("size")
    if isinstance(size, list) and all(type(n) is int and n > 0 for n in size) and math.prod(size) > LARGEST:
        raise InputError(f"an image of size = {size} has {math.prod(size):.2g} values, more than can be computed with")
    suffix = table.get("output", "")
    if not isinstance(suffix, str) or (suffix and not suffix.startswith(".")):
        raise InputError(f'output is the suffix of a kind of file, as ".nii.gz", got {suffix!r}')
    for key, words in {
        "unit": ("degrees", "radians"),
        "data": ("line-integrals", "transmission"),
        "phase": ("smooth", "none"),
        "power": (1, 2),
        "centred": (True, False),
    }.items():
        value = table.get(key, words[0])
        if not any(type(value) is type(word) and value == word for word in words):
            means = "of amplitudes or of intensities, " if key == "power" else ""
            said = " or ".join(f'"{w}"' if isinstance(w, str) else str(w).lower() for w in words)
            raise InputError(f"{key} is {said}, {means}got {value!r}")
    if "i0" in table and table.get("data") != "transmission":
        raise InputError('i0 belongs to transmitted intensities: say data = "transmission", or leave it out')
    if "trajectory" in table:
        for key in ("mask", "calibration"):
            if key in table:
                raise InputError(f"{key} belongs to k-space on a grid, not to a trajectory: leave it out")
