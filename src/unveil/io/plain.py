"""Arrays in files: NPY, NPZ, MAT, HDF5 (fastMRI's layout), TIFF with pages. See :mod:`unveil.io.data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .atomic import write_atomic
from .data import DataFormat, choose, floats, package, real

KSPACE = ("kspace", "reconstruction", "reconstruction_rss", "reconstruction_esc")
"""What fastMRI's files hold, in the order in which it is looked for."""


def read_npy(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    if key:
        raise InputError(f"{path} holds one array, without a name: leave out :{key}")
    array = np.load(path, allow_pickle=False)
    return array, DataFormat("npy", str(array.dtype))


def write_npy(path: Path, array: np.ndarray, form: DataFormat) -> None:  # noqa: ARG001
    def save(to: Path) -> None:
        with to.open("wb") as file:
            np.save(file, floats(array), allow_pickle=False)

    write_atomic(path, save)


def read_npz(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    with np.load(path, allow_pickle=False) as file:
        key = choose(file.files, key, path, ("kspace", "y"))
        array = file[key]
    return array, DataFormat("npz", str(array.dtype), key)


def write_npz(path: Path, array: np.ndarray, form: DataFormat) -> None:
    def save(to: Path) -> None:
        with to.open("wb") as file:
            np.savez_compressed(file, **{form.key or "data": floats(array)})  # type: ignore[arg-type]

    write_atomic(path, save)


# -- MATLAB ----------------------------------------------------------------------------------------------------------


def read_mat(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    with path.open("rb") as file:
        newer = b"MATLAB 7.3" in file.read(128)
    if newer:  # an HDF5 file, whose axes are those of Fortran
        array, form = read_hdf5(path, key)
        return array.T, DataFormat("mat", form.dtype, form.key)
    found = {k: v for k, v in package("scipy", "scipy.io").loadmat(path).items() if not k.startswith("__")}
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray) and v.dtype.kind in "fciub"}
    key = choose(list(arrays), key, path, ("kspace", "y"))
    return arrays[key], DataFormat("mat", str(arrays[key].dtype), key)


def write_mat(path: Path, array: np.ndarray, form: DataFormat) -> None:
    scipy = package("scipy", "scipy.io")
    contents = {form.key or "data": floats(array)}

    def save(to: Path) -> None:
        with to.open("wb") as file:
            scipy.savemat(file, contents, do_compression=True)

    write_atomic(path, save)


# -- HDF5 ------------------------------------------------------------------------------------------------------------


def read_hdf5(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    h5py = package("h5py")
    with h5py.File(path, "r") as file:
        found: list[str] = []

        def visit(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.ndim > 0 and (item.dtype.kind in "fciub" or _pairs(item.dtype)):
                found.append(name)

        file.visititems(visit)
        key = choose(found, key, path, KSPACE)
        array, dtype = file[key][()], str(file[key].dtype)
        facts = {k: _plain(v) for k, v in {**file.attrs, **file[key].attrs}.items()}
        header = file["ismrmrd_header"][()] if "ismrmrd_header" in file else b""
    if _pairs(array.dtype):
        first, second = array.dtype.names
        array = array[first] + 1j * array[second]
    facts = {k: v for k, v in facts.items() if v is not None}
    text = header.decode() if isinstance(header, bytes) else str(header)
    return array, DataFormat("hdf5", dtype, key, facts=facts, header=text)


def write_hdf5(path: Path, array: np.ndarray, form: DataFormat) -> None:
    """As fastMRI's challenge wants it: a data set ``reconstruction``, the attributes and the scanner's header."""
    h5py = package("h5py")

    def save(to: Path) -> None:
        with h5py.File(to, "w") as file:
            file.create_dataset("reconstruction", data=floats(array))
            for key, value in form.facts.items():
                file.attrs[key] = value
            if form.header:
                file.create_dataset("ismrmrd_header", data=form.header.encode())

    write_atomic(path, save)


def _pairs(dtype: Any) -> bool:
    """Whether a compound type is a complex number, as MATLAB and others write it."""
    return dtype.names is not None and tuple(n.lower()[:1] for n in dtype.names) == ("r", "i")


def _plain(value: Any) -> Any:
    """An attribute as a value that JSON holds, None for other things."""
    value = (
        value.item() if isinstance(value, np.generic) else value.tolist() if isinstance(value, np.ndarray) else value
    )
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    try:
        json.dumps(value)
    except TypeError:
        return None
    return value


# -- TIFF ------------------------------------------------------------------------------------------------------------

EXIF, EXPOSURE = 34665, {"ExposureTime": 33434, "FNumber": 33437, "ISOSpeedRatings": 34855}


def read_tiff(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    """All pages [pages, H, W] (one page: [H, W]), in every depth."""
    if key:
        raise InputError(f"{path} holds pages, without names: leave out :{key}")
    tifffile = package("tifffile")
    with tifffile.TiffFile(path) as file:
        array, page = file.series[0].asarray(), file.pages.first
        facts: dict[str, Any] = {"axes": file.series[0].axes}
        for name in ("ImageDescription", "Make", "Model", "DateTime"):
            value = page.tags.valueof(name)
            if isinstance(value, str) and not file.is_imagej and not file.is_shaped:
                facts[name] = value
        resolution = [_ratio(page.tags.valueof(n)) for n in ("YResolution", "XResolution")]
        if all(resolution):
            facts["resolution"], facts["unit"] = resolution, int(page.tags.valueof("ResolutionUnit", 1))
        facts |= exposure(page.tags)
    scale = {2: 25.4, 3: 10.0}.get(facts.get("unit", 1), 1.0)
    spacing = tuple(scale / r for r in resolution) if all(resolution) else ()
    return array, DataFormat("tiff", str(array.dtype), spacing=spacing, facts=facts)


def exposure(tags: Any) -> dict[str, Any]:
    """How long, how wide and how sensitive: of a TIFF's tags, in seconds, f-number and ISO."""
    inner = tags.valueof(EXIF)
    found = dict(inner) if isinstance(inner, dict) else {}
    for name, code in EXPOSURE.items():
        value = found.get(name, tags.valueof(code))
        found[name] = _ratio(value) if isinstance(value, tuple) and len(value) == 2 else value
    return {name: found[name] for name in EXPOSURE if isinstance(found[name], int | float)}


def _ratio(value: Any) -> float:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return float(value[0]) / float(value[1])
    return float(value) if isinstance(value, int | float) else 0.0


def write_tiff(path: Path, array: np.ndarray, form: DataFormat) -> None:
    """float32 pages, with resolution and description."""
    tifffile = package("tifffile")
    facts, options = form.facts, {}
    if "resolution" in facts:
        options = {"resolution": tuple(reversed(facts["resolution"])), "resolutionunit": facts.get("unit", 1)}
    extra = [
        (code, "d", 1, float(facts[name]), False)  # outside their directory, where this reader finds them too
        for name, code in EXPOSURE.items()
        if name in facts
    ]
    values = real(array, path).astype(np.float32)

    def save(to: Path) -> None:
        tifffile.imwrite(
            to,
            values,
            photometric="minisblack",
            description=facts.get("ImageDescription"),
            extratags=extra,
            metadata=None,
            **options,
        )

    write_atomic(path, save)
