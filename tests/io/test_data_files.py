"""Data files of instruments: every value and bit comes in, and what belongs to it goes out again."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch

from unveil.errors import InputError, UnknownName
from unveil.io.data import DataFormat, read_data, write_data

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (3, 7, 5), dtype=np.uint16)
DEEP[0, 0, :4] = 0, 1, 4095, 65535
KSPACE = (RNG.normal(size=(2, 4, 6, 8)) + 1j * RNG.normal(size=(2, 4, 6, 8))).astype(np.complex64)


def same(x: torch.Tensor, array: np.ndarray) -> None:
    assert tuple(x.shape) == array.shape
    np.testing.assert_array_equal(x.numpy(), array.astype(x.numpy().dtype))


# -- plain arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        (DEEP, torch.float32),
        (DEEP.astype(np.int32) * 40000, torch.float64),
        (DEEP.astype(np.float64) / 3, torch.float64),
        (DEEP > 100, torch.float32),
        (KSPACE, torch.complex64),
        (KSPACE.astype(np.complex128), torch.complex128),
    ],
)
def test_numpy(tmp_path, stored, dtype) -> None:
    path = tmp_path / "a.npy"
    np.save(path, stored)
    x, form = read_data(path)
    assert x.dtype == dtype
    assert form.dtype == str(stored.dtype)
    same(x, stored)
    write_data(path, x)
    assert torch.equal(read_data(path)[0], x)


def test_numpy_archives(tmp_path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, mask=DEEP, other=DEEP[0])
    with pytest.raises(InputError, match="holds mask, other: name one"):
        read_data(path)
    same(read_data(f"{path}:mask")[0], DEEP)
    with pytest.raises(UnknownName, match="did you mean mask"):
        read_data(f"{path}:maks")
    np.savez(path, kspace=KSPACE, other=DEEP)
    same(read_data(path)[0], KSPACE)
    write_data(path, torch.ones(2), read_data(path)[1])
    assert read_data(path)[1].key == "kspace"


def test_no_code_comes_in(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="truncated or damaged"):
        read_data(tmp_path / "a.npy")


def test_matlab(tmp_path) -> None:
    io = pytest.importorskip("scipy.io")
    path = tmp_path / "a.mat"
    io.savemat(path, {"kspace": KSPACE, "name": "scan", "n": np.arange(3)})
    x, form = read_data(path)
    same(x, KSPACE)
    same(read_data(f"{path}:n")[0], np.arange(3)[None])
    write_data(path, x * 2, form)
    same(read_data(path)[0], KSPACE * 2)


def test_matlab_of_version_7_3(tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.mat"
    pairs = np.zeros(KSPACE.T.shape, dtype=[("real", "<f4"), ("imag", "<f4")])
    pairs["real"], pairs["imag"] = KSPACE.T.real, KSPACE.T.imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file["kspace"] = pairs
    data = bytearray(path.read_bytes())
    data[:20] = b"MATLAB 7.3 MAT-file "
    path.write_bytes(data)
    same(read_data(path)[0], KSPACE)


def test_fastmri(tmp_path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "file1.h5"
    with h5py.File(path, "w") as file:
        file["kspace"], file["mask"] = KSPACE, np.ones(8, dtype=np.float32)
        file["reconstruction_rss"] = np.ones((2, 6, 6), dtype=np.float32)
        file["ismrmrd_header"] = b"<ismrmrdHeader/>"
        file.attrs["acquisition"], file.attrs["max"] = "AXT2", np.float64(0.001)
    x, form = read_data(path)
    same(x, KSPACE)
    assert form.facts == {"acquisition": "AXT2", "max": 0.001}
    same(read_data(f"{path}:mask")[0], np.ones(8))
    out = tmp_path / "out.h5"
    write_data(out, x.abs(), form)
    with h5py.File(out) as file:
        assert dict(file.attrs) == form.facts
        assert file["ismrmrd_header"][()] == b"<ismrmrdHeader/>"
        np.testing.assert_array_equal(file["reconstruction"][()], x.abs().numpy())


# -- pictures ------------------------------------------------------------------------------------------------------


def test_tiff_with_pages_of_sixteen_bits(tmp_path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tags = [(33434, "2I", 1, (1, 50), True), (34855, "H", 1, 400, True)]
    tifffile.imwrite(
        path, DEEP, photometric="minisblack", resolution=(100.0, 200.0), resolutionunit=3, metadata=None,
        description="a stack", extratags=tags,
    )  # fmt: skip
    x, form = read_data(path)
    same(x, DEEP)
    assert form.spacing == pytest.approx((0.05, 0.1))
    assert form.facts["ExposureTime"] == 0.02
    assert form.facts["ISOSpeedRatings"] == 400
    write_data(path, x / 3, form)
    y, again = read_data(path)
    assert torch.equal(y, x / 3)
    assert again.spacing == pytest.approx(form.spacing)
    assert {k: again.facts[k] for k in form.facts if k != "axes"} == {
        k: v for k, v in form.facts.items() if k != "axes"
    }
    with pytest.raises(InputError, match="complex"):
        write_data(path, torch.ones(2, 2, dtype=torch.complex64))


def test_photographs(tmp_path) -> None:
    picture = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(0))
    write_data(tmp_path / "a.png", picture)
    x, form = read_data(tmp_path / "a.png")
    assert form == DataFormat("image", "uint16")
    torch.testing.assert_close(x, picture, rtol=0, atol=1e-5)


def test_raw_mosaics(tmp_path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("rawpy")
    path = tmp_path / "a.dng"
    sensor = RNG.integers(512, 16383, (64, 96), dtype=np.uint16)
    matrix = (10000, 10000, 0, 10000, 0, 10000, 0, 10000, 0, 10000, 10000, 10000, 0, 10000, 0, 10000, 10000, 10000)
    tags = [
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, bytes([1, 2, 0, 1]), True),  # green blue, red green
        (50706, "B", 4, bytes([1, 4, 0, 0]), True),
        (50708, "s", 5, "unveil"[:5], True),
        (50714, "H", 1, 512, True),
        (50717, "H", 1, 16383, True),
        (50721, "2i", 9, matrix, True),
        (50728, "2I", 3, (1, 2, 1, 1, 2, 3), True),
        (50778, "H", 1, 21, True),
        (33434, "2I", 1, (1, 100), True),
    ]
    tifffile.imwrite(path, sensor, photometric=32803, metadata=None, extratags=tags, subfiletype=0)
    x, form = read_data(path)
    torch.testing.assert_close(x, torch.from_numpy((sensor.astype(np.float32) - 512) / (16383 - 512)))
    assert form.facts["pattern"] == "gbrg"
    assert form.facts["white"] == 16383
    assert form.facts["ExposureTime"] == 0.01
    assert form.suffix == ".tif"
    write_data(tmp_path / "b.tif", x, form)
    assert read_data(tmp_path / "b.tif")[1].facts["ExposureTime"] == 0.01


# -- medicine and the sky ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti(tmp_path, suffix) -> None:
    nibabel = pytest.importorskip("nibabel")
    path, out = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    affine = np.array([[-0.9, 0.1, 0, 10], [0.1, 1.1, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(DEEP.T, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"T1 map"
    image.set_qform(affine, 2)
    nibabel.save(image, path)
    x, form = read_data(path)
    same(x, DEEP)
    assert form.facts["orientation"] == "LAS"
    assert form.spacing == pytest.approx((2.5, np.hypot(0.1, 1.1), np.hypot(0.9, 0.1)), rel=1e-5)
    write_data(out, x / 7, form)
    again = nibabel.load(out)
    np.testing.assert_allclose(again.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(again.get_fdata(dtype=np.float32).T, (x / 7).numpy())
    assert again.header["descrip"].item() == b"T1 map"
    assert int(again.header["qform_code"]) == 2
    assert again.header.get_xyzt_units() == ("mm", "sec")
    write_data(out, torch.as_tensor(KSPACE), form)
    same(read_data(out)[0], KSPACE)


def slices(folder, values: np.ndarray, series: str, missing: int | None = None) -> None:
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(exist_ok=True)
    for n, pixels in enumerate(values):
        if n == missing:
            continue
        s = pydicom.Dataset()
        s.SOPClassUID, s.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{series}.{n + 1}"
        s.SeriesInstanceUID, s.StudyInstanceUID, s.PatientName = series, "1.2", "Doe^J"
        s.Modality, s.KVP, s.Exposure, s.SeriesDescription = "CT", "120", "250", f"head {series}"
        s.PixelSpacing, s.SliceThickness, s.InstanceNumber = [0.5, 0.4], "2", 10 - n  # numbered against their places
        s.ImageOrientationPatient, s.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-12.5, 7, 2.0 * n]
        s.Rows, s.Columns, s.SamplesPerPixel, s.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
        s.BitsAllocated, s.BitsStored, s.HighBit, s.PixelRepresentation = 16, 12, 11, 0
        s.RescaleSlope, s.RescaleIntercept = "1", "-1024"
        s.PixelData = pixels.tobytes()
        s.file_meta = pydicom.dataset.FileMetaDataset()
        s.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        s.save_as(folder / f"{series}-{(7 * n) % 5}.bin", enforce_file_format=True)


def test_dicom_series(tmp_path) -> None:
    pydicom = pytest.importorskip("pydicom")
    twelve = RNG.integers(0, 4096, (4, 6, 5), dtype=np.uint16)
    slices(tmp_path / "in", twelve, "1.2.3")
    (tmp_path / "in" / "notes.txt").write_text("not a slice")
    x, form = read_data(tmp_path / "in")
    same(x, twelve.astype(np.float32) - 1024)  # in the order of their places, every one of 4096 values
    assert form.spacing == (2.0, 0.5, 0.4)
    assert (form.facts["KVP"], form.facts["Exposure"], form.facts["bits"]) == (120.0, 250.0, 12)
    np.testing.assert_allclose(form.affine, [[-0.4, 0, 0, 12.5], [0, -0.5, 0, -7], [0, 0, 2, 0], [0, 0, 0, 1]])
    write_data(tmp_path / "out", x * 1.5 + 0.25, form)
    y, again = read_data(tmp_path / "out")
    assert float((y - x * 1.5 - 0.25).abs().max()) <= 0.51 * float(x.max() - x.min()) * 1.5 / 65535
    assert (again.spacing, again.affine, again.facts["KVP"]) == (form.spacing, form.affine, 120.0)
    first = pydicom.dcmread(tmp_path / "out" / "0001.dcm")
    assert first.PatientName == "Doe^J"
    assert first.StudyInstanceUID == "1.2"
    assert first.SeriesInstanceUID != "1.2.3"
    single, one = read_data(tmp_path / "out" / "0002.dcm")
    assert torch.equal(single, y[1])
    assert one.spacing == (0.5, 0.4)
    nibabel = pytest.importorskip("nibabel")
    write_data(tmp_path / "out.nii.gz", x, form)
    np.testing.assert_allclose(nibabel.load(tmp_path / "out.nii.gz").affine, form.affine)
    with pytest.raises(InputError, match="2 slices, and the headers of 4"):
        write_data(tmp_path / "out2", y[:2], form)
    with pytest.raises(InputError, match="headers of one"):
        write_data(tmp_path / "out2", y)


def test_dicom_folders_with_more_or_less_than_a_series(tmp_path) -> None:
    values = RNG.integers(0, 4096, (4, 6, 5), dtype=np.uint16)
    slices(tmp_path / "in", values, "1.2.3")
    slices(tmp_path / "in", values[:2] // 2, "1.2.4")
    with pytest.raises(InputError, match=r"2 series: name one .*1 \(head 1.2.3, 4 slices\)"):
        read_data(tmp_path / "in")
    same(read_data(f"{tmp_path / 'in'}:2")[0], values[:2] // 2 - 1024.0)
    slices(tmp_path / "gap", values, "1.2.5", missing=2)
    with pytest.warns(UserWarning, match="is one missing"):
        read_data(tmp_path / "gap")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM image"):
        read_data(tmp_path / "empty")


def test_fits(tmp_path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    path = tmp_path / "a.fits"
    unit = fits.ImageHDU(DEEP, name="SCI")
    for key, value in (("EXPTIME", 30.5), ("CRVAL1", 10.25), ("CDELT1", -0.01), ("CDELT2", 0.02), ("BUNIT", "adu")):
        unit.header[key] = value
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path)
    x, form = read_data(path)
    same(x, DEEP)  # unsigned integers are stored with an offset
    assert form.facts == {"EXPTIME": 30.5, "BUNIT": "adu"}
    assert form.spacing == (0.02, 0.01)
    same(read_data(f"{path}:SCI")[0], DEEP)
    with pytest.raises(InputError, match="no image 'ERR'"):
        read_data(f"{path}:ERR")
    write_data(path, x * 1.5, form)
    with fits.open(path) as again:
        np.testing.assert_array_equal(again[0].data, DEEP * np.float32(1.5))
        assert (again[0].header["CRVAL1"], again[0].header["EXPTIME"]) == (10.25, 30.5)


# -- what cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package"),
    [("a.nii", "nibabel"), ("a.dcm", "pydicom"), ("a.h5", "h5py"), ("a.fits", "astropy"), ("a.dng", "rawpy")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, package) -> None:
    (tmp_path / name).write_bytes(b"x" * 400)
    real_import = builtins.__import__
    monkeypatch.setattr(
        "unveil.io.data.importlib.import_module",
        lambda module, anchor=None: (
            (_ for _ in ()).throw(ImportError(module))
            if module.startswith(package)
            else real_import(f"unveil.io{module}", fromlist=["_"])
        ),
    )
    with pytest.raises(InputError, match=rf"needs the package {package}: pip install 'unveil\[files\]'"):
        read_data(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["a.npy", "a.npz", "a.mat", "a.tif", "a.nii", "a.nii.gz", "a.dcm", "a.h5", "a.fits", "a.dng", "a.png"]
)
def test_damaged_files(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"nonsense" * 50)
    with pytest.raises(InputError, match=r"truncated or damaged|not an image|holds no"):
        read_data(tmp_path / name)


def test_no_file_and_no_kind(tmp_path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_data(tmp_path / "a.npy")
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(InputError, match="cannot tell what"):
        read_data(tmp_path / "a.doc")
    with pytest.raises(InputError, match="cannot write"):
        write_data(tmp_path / "a.dng", torch.zeros(2, 2))
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["a.doc"]'
