"""NIfTI and DICOM. See :mod:`unveil.io.data`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .atomic import write_atomic
from .data import DataFormat, floats, package

EXPOSURE = ("KVP", "ExposureTime", "XRayTubeCurrent", "Exposure", "EchoTime", "RepetitionTime", "FlipAngle")
"""What DICOM says about the exposure, where it does."""


def read_nifti(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    """[..., D, H, W]: the file's axes (x, y, z, ...) in reverse, scaled by its slope."""
    if key:
        raise InputError(f"{path} holds one array, without a name: leave out :{key}")
    nibabel = package("nibabel")
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj).T
    affine = tuple(tuple(float(v) for v in row) for row in image.affine)
    zooms = tuple(float(z) for z in image.header.get_zooms())
    facts = {
        "units": "/".join(image.header.get_xyzt_units()),
        "orientation": "".join(nibabel.aff2axcodes(image.affine)),
    }
    header = image.header.binaryblock.hex()
    return array, DataFormat("nifti", str(image.get_data_dtype()), "", zooms[::-1], affine, facts, header)


def write_nifti(path: Path, array: np.ndarray, form: DataFormat) -> None:
    """With affine, orientation and units of ``form``; without one, voxels of ``form.spacing`` mm at the origin."""
    nibabel = package("nibabel")
    header, affine = nibabel.Nifti1Header(), np.eye(4)
    if form.header:
        kind = (
            nibabel.Nifti2Header if len(form.header) // 2 == nibabel.Nifti2Header.sizeof_hdr else nibabel.Nifti1Header
        )
        header = kind(bytes.fromhex(form.header))
    if form.affine:
        affine = np.array(form.affine)
    elif form.spacing:
        space = form.spacing[::-1][:3]
        affine[range(len(space)), range(len(space))] = space
    values = floats(array).T
    header.set_data_dtype(values.dtype)
    header["scl_slope"], header["scl_inter"] = np.nan, np.nan  # values are as they are
    build = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = build(values, affine, header)
    # a temporary name ends in .gz or .nii, whichever tells nibabel what to write
    write_atomic(path, lambda to: to.write_bytes(_packed(image, path)))


def _packed(image: Any, path: Path) -> bytes:
    import gzip

    data: bytes = image.to_bytes()
    return gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data


# -- DICOM -----------------------------------------------------------------------------------------------------------


def read_dicom(path: Path, key: str) -> tuple[np.ndarray, DataFormat]:
    """A slice [H, W], or the slices of a folder's series [D, H, W] in the order of their places, in stored units times
    slope plus intercept (Hounsfield units for CT).

    ``key`` is the end of a SeriesInstanceUID, or its number, where a folder holds several series.
    """
    pydicom = package("pydicom")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    sets: list[Any] = []
    for file in files:
        try:
            found = pydicom.dcmread(file)
        except pydicom.errors.InvalidDicomError:
            if file is path:
                raise
            continue
        if "PixelData" in found:
            sets.append(found)
    if not sets:
        raise InputError(f"{path} holds no DICOM image")
    series: dict[str, list[Any]] = {}
    for found in sets:
        series.setdefault(str(found.get("SeriesInstanceUID", "")), []).append(found)
    if len(series) > 1:
        chosen = [uid for n, uid in enumerate(series, 1) if key in (str(n), uid)]
        if not chosen:
            several = ", ".join(
                f"{n} ({found[0].get('SeriesDescription', uid)}, {len(found)} slices)"
                for n, (uid, found) in enumerate(series.items(), 1)
            )
            raise InputError(f"{path} holds {len(series)} series: name one by its number, as in {path}:1; {several}")
        sets = series[chosen[0]]
    sets.sort(key=lambda s: (_height(s), int(s.get("InstanceNumber") or 0)))
    shapes = {(int(s.Rows), int(s.Columns)) for s in sets}
    if len(shapes) > 1:
        raise InputError(f"the slices in {path} differ in size: {', '.join(map(str, sorted(shapes)))}")
    slices = [_values(s) for s in sets]
    array = slices[0] if len(slices) == 1 else np.stack(slices)
    return array, _dicom_format(sets, path)


def _values(found: Any) -> np.ndarray:
    """Stored values times slope plus intercept."""
    pixels = found.pixel_array
    slope, intercept = float(found.get("RescaleSlope", 1)), float(found.get("RescaleIntercept", 0))
    if (slope, intercept) == (1.0, 0.0):
        return np.asarray(pixels)
    return np.asarray(pixels.astype(np.float64) * slope + intercept, dtype=np.float32)


def _height(found: Any) -> float:
    """Of a slice along the normal of its plane, 0 where it does not say."""
    if "ImagePositionPatient" not in found or "ImageOrientationPatient" not in found:
        return 0.0
    turn = np.array(found.ImageOrientationPatient, dtype=float)
    return float(np.cross(turn[:3], turn[3:]) @ np.array(found.ImagePositionPatient, dtype=float))


def _dicom_format(sets: list[Any], path: Path) -> DataFormat:
    first = sets[0]
    spacing = tuple(float(v) for v in first.get("PixelSpacing", first.get("ImagerPixelSpacing", ())) or ())
    facts: dict[str, Any] = {"modality": str(first.get("Modality", "")), "bits": int(first.get("BitsStored", 16))}
    for name in EXPOSURE:
        if first.get(name) not in (None, ""):
            facts[name] = float(first.get(name))
    affine: tuple[tuple[float, ...], ...] = ()
    if len(sets) > 1:
        heights = np.array([_height(s) for s in sets])
        steps = np.diff(heights)
        if np.abs(steps).max() > 0:
            if np.abs(steps - np.median(steps)).max() > 0.01 * abs(float(np.median(steps))) + 1e-3:
                warnings.warn(
                    f"the slices of {path} are {steps.min():.4g} to {steps.max():.4g} mm apart: is one missing?",
                    UserWarning,
                    stacklevel=4,
                )
            spacing = (float(np.median(steps)), *spacing)
        else:
            spacing = (float(first.get("SliceThickness") or 1), *spacing)
    if "ImageOrientationPatient" in first and "ImagePositionPatient" in first and "PixelSpacing" in first:
        turn = np.array(first.ImageOrientationPatient, dtype=float)
        rows, columns = (float(v) for v in first.PixelSpacing)
        step = spacing[0] if len(sets) > 1 else float(first.get("SliceThickness") or 1)
        matrix = np.eye(4)
        place = np.array(first.ImagePositionPatient, dtype=float)
        normal = np.cross(turn[:3], turn[3:])
        matrix[:3] = np.stack([turn[:3] * columns, turn[3:] * rows, normal * step, place], 1)
        matrix[:2] *= -1  # DICOM counts to the left and the back, NIfTI to the right and the front
        affine = tuple(tuple(float(v) for v in row) for row in matrix)
    header = []
    for found in sets:
        del found.PixelData
        table = found.to_json_dict()
        meta = {"transfer": "1.2.840.10008.1.2.1", "class": str(found.get("SOPClassUID", ""))}
        header.append({"meta": meta, "set": table})
    return DataFormat("dicom", "int16", "", spacing, affine, facts, json.dumps(header))


def write_dicom(path: Path, array: np.ndarray, form: DataFormat) -> None:
    """A new series with the headers of the old: a file, or a folder of slices. Values are 16-bit, with a slope.

    Raises :class:`InputError` where the form is not that of DICOM, or of another number of slices.
    """
    pydicom = package("pydicom")
    if not form.header:
        raise InputError(f"{path}: a DICOM series needs the headers of one: write .nii.gz, .tif or .npy")
    sets = json.loads(form.header)
    slices = array.reshape(-1, *array.shape[-2:])
    if len(slices) != len(sets):
        raise InputError(f"{path}: there are {len(slices)} slices, and the headers of {len(sets)}")
    if np.iscomplexobj(array):
        raise InputError(f"{path}: DICOM holds no complex values: write .npy, .h5 or .mat, or the magnitude")
    low, high = float(slices.min()), float(slices.max())
    slope = (high - low) / 65535 or 1.0
    uid = pydicom.uid.generate_uid()
    for n, (values, saved) in enumerate(zip(slices, sets, strict=True)):
        found = pydicom.Dataset.from_json(saved["set"])
        pixels = np.rint((values.astype(np.float64) - low) / slope).clip(0, 65535).astype("<u2")
        found.Rows, found.Columns = pixels.shape
        found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
        found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 16, 15, 0
        found.RescaleSlope, found.RescaleIntercept = f"{slope:.10g}"[:16], f"{low:.10g}"[:16]
        found.SeriesInstanceUID, found.SOPInstanceUID = uid, pydicom.uid.generate_uid()
        found.ImageType = ["DERIVED", "SECONDARY"]
        found.PixelData = pixels.tobytes()
        for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "WindowCenter", "WindowWidth"):
            if name in found:
                delattr(found, name)
        found.file_meta = pydicom.dataset.FileMetaDataset()
        found.file_meta.TransferSyntaxUID = saved["meta"]["transfer"]
        found.file_meta.MediaStorageSOPClassUID = saved["meta"]["class"] or "1.2.840.10008.5.1.4.1.1.7"
        found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
        target = path if path.suffix else path / f"{n + 1:04d}.dcm"
        write_atomic(target, lambda to, found=found: found.save_as(to, enforce_file_format=True))  # type: ignore[misc]
