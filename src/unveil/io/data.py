"""Data files of instruments as tensors, and back with what belongs to them.

``read_data(path)`` gives values as they are stored, in their own units and with every bit they have: integers of up to
16 bits become float32, which holds them exactly, wider ones float64, and complex stays complex. The rest is in a
:class:`DataFormat`: spacing, affine, exposure and the file's own header, which :func:`write_data` puts into the file
that it writes.

    .npy .npz             numpy, without pickles
    .mat                  MATLAB (scipy; h5py for version 7.3)
    .tif .tiff            every page, all depths (tifffile)
    .nii .nii.gz          NIfTI (nibabel)
    .dcm, or a folder     DICOM, a series as a volume (pydicom)
    .h5 .hdf5             HDF5, fastMRI's layout included (h5py)
    .fits .fit .fits.gz   FITS (astropy)
    .dng and other raws   the colour mosaic of a camera (rawpy)
    .png .jpg ...         photographs [C, H, W] in [0, 1]

Of a file that holds several arrays one is chosen by its name: ``scan.h5:kspace``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, UnveilError, unknown

EXTRAS = {
    "scipy": "unveil[files]",
    "tifffile": "unveil[tiff]",
    "nibabel": "unveil[files]",
    "pydicom": "unveil[files]",
    "h5py": "unveil[files]",
    "astropy": "unveil[files]",
    "rawpy": "unveil[files]",
}
"""Where the packages of the formats are found."""

SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".mat": "mat",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".fits": "fits",
    ".fit": "fits",
    ".fits.gz": "fits",
    ".dng": "raw",
    ".cr2": "raw",
    ".nef": "raw",
    ".arw": "raw",
    ".raf": "raw",
}
MODULES = {
    "npy": "plain",
    "npz": "plain",
    "mat": "plain",
    "tiff": "plain",
    "hdf5": "plain",
    "nifti": "medical",
    "dicom": "medical",
    "fits": "sensors",
    "raw": "sensors",
    "image": "sensors",
}


@dataclass(frozen=True)
class DataFormat:
    """What a data file was, beyond its values.

    ``kind`` is that of the table above, ``dtype`` numpy's name of the stored type, ``key`` the name of the array in the
    file. ``spacing`` are distances of neighbours along the last axes of the tensor (mm for DICOM and NIfTI),
    ``affine`` [4][4] the map from (x, y, z) indices to the patient. ``facts`` are plain values worth knowing
    (exposure, black and white level, colour pattern). ``header`` is the file's own, for writing it again.
    """

    kind: str
    dtype: str = "float32"
    key: str = ""
    spacing: tuple[float, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    header: str = ""

    @property
    def suffix(self) -> str:
        """Of the file that a reconstruction of such data is written to."""
        same = {"nifti": ".nii.gz", "dicom": "", "hdf5": ".h5", "fits": ".fits", "mat": ".mat", "tiff": ".tif"}
        return {**same, "raw": ".tif", "image": ".tif"}.get(self.kind, ".npy")


def read_data(path: str | Path) -> tuple[Tensor, DataFormat]:
    """The values of a data file, or of one array in it (``file.h5:name``), and what it was.

    Raises :class:`InputError` for a file that is missing, damaged or of an unknown kind, a file of several arrays none
    of which is named, and a package that is missing, with the command that installs it.
    """
    where, key = split(path)
    if not where.exists():
        raise InputError(f"there is no file {where}")
    kind = kind_of(where)
    module = importlib.import_module(f".{MODULES[kind]}", __package__)
    try:
        array, form = getattr(module, f"read_{kind}")(where, key)
    except UnveilError:
        raise
    except Exception as error:  # readers raise anything on damaged data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot read {where}: truncated or damaged ({reason})") from None
    return tensor(array, str(path)), form


def write_data(path: str | Path, x: Tensor, form: DataFormat | None = None) -> Path:
    """Write a tensor atomically, with the metadata of ``form`` where the file type can hold them.

    The suffix chooses the type; a path without one is a folder of DICOM slices, which needs a ``form`` read from DICOM.
    Real values are written as float32 (float64 where they are), in DICOM as 16-bit integers with their slope.
    """
    path = Path(path)
    kind = kind_of(path)
    if form is None or form.kind != kind:
        form = _of_another_kind(kind, form or DataFormat(kind))
    module = importlib.import_module(f".{MODULES[kind]}", __package__)
    writer: Callable[[Path, np.ndarray, DataFormat], object] | None = getattr(module, f"write_{kind}", None)
    if writer is None:
        raise InputError(f"cannot write {path}: choose .npy, .tif, .nii.gz, .h5, .fits or .mat")
    writer(path, x.detach().cpu().resolve_conj().numpy(), form)
    return path


def _of_another_kind(kind: str, form: DataFormat) -> DataFormat:
    """What means the same in another kind of file: places, and the exposure of cameras."""
    from .plain import EXPOSURE

    # DICOM has an ExposureTime too, in milliseconds
    facts = form.facts if form.kind in ("raw", "image", "tiff") else {}
    return DataFormat(kind, "float32", "", form.spacing, form.affine, {k: facts[k] for k in EXPOSURE if k in facts})


def split(path: str | Path) -> tuple[Path, str]:
    """A path and the name of an array in it, "" if none is named."""
    where = Path(path)
    if where.exists():
        return where, ""
    text, colon, key = str(path).rpartition(":")
    return (Path(text), key) if colon and Path(text).exists() else (where, "")


def kind_of(path: Path) -> str:
    """The kind of a file by its name, of a folder DICOM."""
    name = path.name.lower()
    if path.is_dir() or "." not in name:
        return "dicom"
    for suffix in (".nii.gz", ".fits.gz", path.suffix.lower()):
        if name.endswith(suffix) and suffix in SUFFIXES:
            return SUFFIXES[suffix]
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".pgm", ".ppm"):
        return "image"
    raise InputError(f"cannot tell what {path} is: known are {', '.join(sorted({*SUFFIXES, '.png', '.jpg'}))}")


def package(name: str, module: str | None = None) -> Any:
    """A package of a format. Raises :class:`InputError` with the command that installs it."""
    try:
        return importlib.import_module(module or name)
    except ImportError:
        raise InputError(f"this file needs the package {name}: pip install '{EXTRAS[name]}'") from None


def tensor(array: Any, name: str = "the array") -> Tensor:
    """An array as a float or complex tensor that holds its values exactly."""
    array = np.asarray(array)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "c":
        array = array.astype(np.complex128 if size > 8 else np.complex64)
    elif kind in "iub" and size <= 2:
        array = array.astype(np.float32)
    elif kind in "iu":
        array = array.astype(np.float64)
    elif kind == "f":
        array = array.astype(np.float64 if size > 4 else np.float32)
    else:
        raise InputError(f"{name} holds {array.dtype}, not numbers")
    return torch.from_numpy(np.ascontiguousarray(array))


def choose(found: Sequence[str], key: str, path: Path, usual: Sequence[str] = ()) -> str:
    """The name of the array to read. Raises if it is not there, or several are and none is named."""
    if key:
        if key not in found:
            raise unknown(f"array in {path}", key, found)
        return key
    named = [name for name in usual if name in found]
    if named or len(found) == 1:
        return (named or list(found))[0]
    if not found:
        raise InputError(f"{path} holds no array")
    raise InputError(f"{path} holds {', '.join(sorted(found))}: name one, as in {path}:{sorted(found)[0]}")


def floats(array: np.ndarray) -> np.ndarray:
    """float64, complex and float32 as they are, the rest as float32."""
    return array if array.dtype.kind in "fc" else array.astype(np.float32)


def real(array: np.ndarray, path: Path) -> np.ndarray:
    """Floats; complex values are refused, for formats that have none."""
    if np.iscomplexobj(array):
        raise InputError(f"{path} cannot hold complex values: write .npy, .h5 or .mat, or its magnitude")
    return floats(array)
