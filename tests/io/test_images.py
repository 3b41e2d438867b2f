"""Image files come back as what they were."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import replace

import numpy as np
import png
import pytest
import tifffile
import torch
from PIL import Image

from unveil.errors import InputError
from unveil.io import deep, images
from unveil.io.images import ImageFormat, encode, in_colour, read_image, resized_alpha, write_image


def pixels(planes: int, dtype: type = np.uint8, size: tuple[int, int] = (13, 17)) -> np.ndarray:
    """Every value of the type's range is possible."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(planes).integers(0, top, (*size, planes), dtype=dtype, endpoint=True)


def save_png16(path, data: np.ndarray) -> None:
    height, width, planes = data.shape
    writer = png.Writer(width, height, greyscale=planes < 3, alpha=planes in (2, 4), bitdepth=16)
    with path.open("wb") as file:
        writer.write(file, data.reshape(height, -1))


def read_png16(path) -> np.ndarray:
    width, height, rows, info = png.Reader(filename=str(path)).asDirect()
    assert info["bitdepth"] == 16
    return np.vstack([np.asarray(r, np.uint16) for r in rows]).reshape(height, width, info["planes"])


@pytest.mark.parametrize(("mode", "planes"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_8_bit_round_trip(tmp_path, mode, planes):
    data = pixels(planes)
    Image.fromarray(data[:, :, 0] if planes == 1 else data, mode).save(tmp_path / "a.png")
    x, form = read_image(tmp_path / "a.png")
    assert x.shape == (1 if planes < 3 else 3, 13, 17)
    assert (form.bits, form.alpha is not None) == (8, planes in (2, 4))
    assert torch.equal(x[0], torch.from_numpy(data[:, :, 0] / np.float32(255)))
    write_image(tmp_path / "b.png", x, form)
    back = Image.open(tmp_path / "b.png")
    assert back.mode == mode
    assert np.array_equal(np.asarray(back).reshape(data.shape), data)


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_16_bit_png_round_trip(tmp_path, planes):
    data = pixels(planes, np.uint16)
    save_png16(tmp_path / "a.png", data)
    x, form = read_image(tmp_path / "a.png")
    assert form.bits == 16
    write_image(tmp_path / "b.png", x, form)
    assert np.array_equal(read_png16(tmp_path / "b.png"), data)


def test_16_bit_grey_tiff_round_trip(tmp_path):
    data = pixels(1, np.uint16)[:, :, 0]
    Image.fromarray(data).save(tmp_path / "a.tif")
    x, form = read_image(tmp_path / "a.tif")
    assert (form.bits, form.suffix) == (16, ".tif")
    write_image(tmp_path / "b.tif", x, form)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.tif")), data)


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_16_bit_tiff_round_trip(tmp_path, planes):
    data = pixels(planes, np.uint16)
    (tmp_path / "a.tif").write_bytes(deep.write_tiff(data, None))
    x, form = read_image(tmp_path / "a.tif")
    assert (form.channels, form.bits, form.suffix) == (1 if planes < 3 else 3, 16, ".tif")
    write_image(tmp_path / "b.tif", x, form)
    assert np.array_equal(tifffile.imread(tmp_path / "b.tif").reshape(data.shape), data)
    if planes != 2:  # Pillow, an independent reader, knows no 16-bit grey with transparency
        with Image.open(tmp_path / "b.tif") as other:
            assert set(other.tag_v2[258]) == {16}
            high = np.asarray(other) if planes > 1 else np.asarray(other) >> 8
        assert np.array_equal(high.reshape(data.shape), data >> 8)


TIFFS = {
    "big-endian": {"byteorder": ">"},
    "planes": {"planarconfig": "separate"},
    "strips": {"rowsperstrip": 4},
    "tiles": {"tile": (16, 16)},
    "lzw": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "zlib", "predictor": True},
    "over-4-gb": {"bigtiff": True},
}


@pytest.mark.parametrize("name", TIFFS)
def test_kinds_of_16_bit_tiff_and_what_is_left_of_them(tmp_path, capfd, name):
    options, path = TIFFS[name], tmp_path / "a.tif"
    data = (np.mgrid[0:48, 0:32].sum(0)[..., None] * [800, 500, 300]).astype(np.uint16)
    stored = data.transpose(2, 0, 1) if "planarconfig" in options else data
    tifffile.imwrite(path, stored, photometric="rgb", metadata=None, **options)
    whole, form = read_image(path)
    assert np.array_equal((whole * 65535).round().permute(1, 2, 0).numpy().astype(np.uint16), data)
    assert form.alpha is None
    good = path.read_bytes()
    for end in (2, 9, 30, 200, 400, len(good) // 2, len(good) - 8):
        path.write_bytes(good[:end])
        with pytest.raises(InputError, match=r"a\.tif") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")  # no log of the decoder's either


def test_unusual_16_bit_tiffs(tmp_path):
    path, data = tmp_path / "a.tif", pixels(4, np.uint16)
    alpha = np.maximum(data[..., 3:], 30000)
    once = (data[..., :3].astype(np.float64) * alpha / 65535).round().astype(np.uint16)
    options = {"photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, np.concatenate([once, alpha], 2), extrasamples=["assocalpha"], **options)
    x, form = read_image(path)  # colours that were multiplied by alpha
    assert torch.allclose(x, torch.from_numpy(data[..., :3] / 65535).float().permute(2, 0, 1), rtol=0, atol=2e-5)
    assert torch.equal(form.alpha, torch.from_numpy(alpha / np.float32(65535)).permute(2, 0, 1))
    tifffile.imwrite(path, data, extrasamples=["unspecified"], **options)
    x, form = read_image(path)
    assert (x.shape[0], form.alpha) == (3, None)
    tifffile.imwrite(path, data[..., 0], photometric="miniswhite", metadata=None)
    assert torch.equal(read_image(path)[0][0], torch.from_numpy((65535 - data[..., 0]) / np.float32(65535)))
    tifffile.imwrite(path, data[..., :2], photometric="miniswhite", extrasamples=["unassalpha"], metadata=None)
    x, form = read_image(path)
    assert torch.equal(x[0], torch.from_numpy((65535 - data[..., 0]) / np.float32(65535)))
    assert torch.equal(form.alpha[0], torch.from_numpy(data[..., 1] / np.float32(65535)))
    for kind, planes, words in (("separated", data, "save it as RGB"), ("rgb", data[..., :3] / 65535, "save it as 16")):
        tifffile.imwrite(path, planes, photometric=kind, metadata=None)
        with pytest.raises(InputError, match=words):
            read_image(path)


def test_tiff_without_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels(3, np.uint16), photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setattr(deep, "has_tiff", lambda: False)
    with pytest.raises(InputError, match=r"needs tifffile: pip install 'unveil\[tiff\]'.* 16-bit PNG"):
        read_image(path)
    with pytest.raises(InputError, match=r"pip install 'unveil\[tiff\]'"):
        write_image(tmp_path / "b.tif", torch.rand(3, 4, 5), ImageFormat(3, 16))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif"]
    path.write_bytes(path.read_bytes()[:6])
    with pytest.raises(InputError, match=r"damaged, or needs tifffile: pip install 'unveil\[tiff\]'"):
        read_image(path)
    # grey needs no extra, and what is coloured becomes a PNG
    Image.fromarray(pixels(1, np.uint16)[:, :, 0]).save(path)
    form = read_image(path)[1]
    assert (form.suffix, in_colour(form).suffix) == (".tif", ".png")


def test_tiff_without_half_of_the_extra(tmp_path):
    """tifffile alone reads what is not compressed, or by deflate; for the rest it takes imagecodecs."""
    for name, compression in (("plain", None), ("deflate", "zlib"), ("lzw", "lzw")):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels(3, np.uint16), photometric="rgb", compression=compression)
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from unveil.io.images import read_image\n"
        "for name in ('plain', 'deflate', 'lzw'): print(read_image(f'{name}.tif')[1].words())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["16-bit colour"] * 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(
        "InputError: lzw.tif is a TIFF whose compression needs imagecodecs: pip install 'unveil[tiff]'"
    )


def test_palette_becomes_colour_and_keeps_transparency(tmp_path):
    palette = Image.fromarray(pixels(3)).quantize(16)
    palette.save(tmp_path / "a.png")
    x, form = read_image(tmp_path / "a.png")
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / np.float32(255)
    assert torch.equal(x, torch.from_numpy(expected))
    assert form.alpha is None
    palette.save(tmp_path / "b.png", transparency=0)
    assert read_image(tmp_path / "b.png")[1].alpha is not None


def test_a_palette_of_greys_is_grey(tmp_path):
    grey = Image.fromarray(pixels(1)[:, :, 0] // 32 * 32)
    grey.convert("RGB").quantize(8).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    x, form = read_image(tmp_path / "a.png")
    assert (x.shape[0], form.channels, form.alpha) == (1, 1, None)
    expected = np.asarray(Image.open(tmp_path / "a.png").convert("L")) / np.float32(255)
    assert torch.equal(x[0], torch.from_numpy(expected))
    Image.open(tmp_path / "a.png").save(tmp_path / "b.png", transparency=0)
    _, form = read_image(tmp_path / "b.png")
    assert form.channels == 1
    assert set(form.alpha.unique().tolist()) == {0.0, 1.0}


def test_the_first_of_several_pictures(tmp_path):
    frames = [Image.fromarray(pixels(1)[:, :, 0] // k) for k in (1, 2, 3)]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        x, form = read_image(tmp_path / name)
        assert form.several
        assert torch.equal(x[0], torch.from_numpy(pixels(1)[:, :, 0] / np.float32(255)))
        frames[0].save(tmp_path / name, **options)
        assert not read_image(tmp_path / name)[1].several


def test_deep_grey_of_another_file_type(tmp_path):
    data = pixels(1, np.uint16)
    (tmp_path / "a.pgm").write_bytes(b"P5 17 13 65535\n" + data.astype(">u2").tobytes())
    x, form = read_image(tmp_path / "a.pgm")
    assert (form.bits, form.suffix) == (16, ".png")
    assert torch.equal(x[0], torch.from_numpy(data[..., 0] / np.float32(65535)))


def test_one_bit_and_cmyk(tmp_path):
    Image.fromarray(pixels(1)[:, :, 0] > 127).save(tmp_path / "a.png")
    x, form = read_image(tmp_path / "a.png")
    assert form.channels == 1
    assert set(x.unique().tolist()) == {0.0, 1.0}
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg")[0].shape == (3, 4, 5)


def seen(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as they are meant to be seen: row 0 and column 0 of the EXIF standard's table, spelt out."""
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}  # quarters, counter-clockwise
    out = np.rot90(stored, turns[orientation])
    return out[:, ::-1] if orientation in (2, 4, 5, 7) else out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.tif", "packed.tif", "deep.tif", "a.webp"])
def test_exif_orientation(tmp_path, name, orientation):
    data, path = pixels(3, np.uint16 if "deep" in name else np.uint8), tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = orientation
    if path.suffix == ".tif":
        options = {"compression": "zlib"} if name == "packed.tif" else {}
        tifffile.imwrite(path, data, photometric="rgb", extratags=[(274, 3, 1, orientation, True)], **options)
    elif name == "deep.png":
        save_png16(path, data)
        chunks = list(png.Reader(bytes=path.read_bytes()).chunks())
        with path.open("wb") as file:
            png.write_chunks(file, [chunks[0], (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), *chunks[1:]])
    else:
        Image.fromarray(data).save(path, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    x, _ = read_image(path)
    back = (x * np.iinfo(data.dtype).max).round().permute(1, 2, 0).numpy()
    assert np.array_equal(back, seen(data, orientation))


def test_damaged_exif_leaves_the_pixels(tmp_path):
    Image.fromarray(pixels(3)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff\xff")
    assert read_image(tmp_path / "a.png")[0].shape == (3, 13, 17)


@pytest.mark.parametrize("bits", [8, 16])
def test_colour_profile_is_kept(tmp_path, bits):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("a.png", "a.tif"):
        write_image(tmp_path / name, torch.rand(3, 4, 5), ImageFormat(3, bits, profile=profile))
        assert read_image(tmp_path / name)[1].profile == profile
        # a profile of colours does not belong to a grey picture
        write_image(tmp_path / name, torch.rand(1, 4, 5), ImageFormat(1, bits, profile=profile))
        assert "icc_profile" not in Image.open(tmp_path / name).info
    Image.new("CMYK", (5, 4)).save(tmp_path / "a.jpg", icc_profile=profile[:16] + b"CMYK" + profile[20:])
    assert read_image(tmp_path / "a.jpg")[1].profile is None


def read_tags(path) -> dict[int, object]:
    with tifffile.TiffFile(path) as file:
        return {tag.code: tag.value for tag in file.pages.first.tags}


@pytest.mark.parametrize("bits", [8, 16])
def test_exposure_and_resolution_are_kept(tmp_path, bits):
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "Leica"
    exif[0x8769] = {33434: 0.01, 33437: 2.8, 34855: 400, 0xA002: 17}
    Image.fromarray(pixels(3)).save(tmp_path / "a.jpg", exif=exif, dpi=(300, 150), quality=100)
    x, form = read_image(tmp_path / "a.jpg")
    assert x.shape == (3, 17, 13)
    assert images.exposure(form) == pytest.approx({"ExposureTime": 0.01, "FNumber": 2.8, "ISOSpeedRatings": 400})
    for name in ("a.png", "a.tif"):
        write_image(tmp_path / name, x, replace(form, bits=bits))
        y, again = read_image(tmp_path / name)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-6)  # it is not turned twice
        assert again.dpi == pytest.approx((300, 150), rel=1e-4)
        found = Image.open(tmp_path / name).getexif() if bits == 8 or name == "a.png" else read_tags(tmp_path / name)
        assert (found[271], found.get(0x0112, 1)) == ("Leica", 1)
        assert images.exposure(again) == pytest.approx(images.exposure(form))
        assert 0xA002 not in found.get_ifd(0x8769) if hasattr(found, "get_ifd") else 0xA002 not in found


def test_values_are_clipped_and_rounded():
    data = encode(torch.tensor([[[-1.0, 0.4999 / 255, 0.501 / 255, 2.0]]]))
    import io

    assert np.asarray(Image.open(io.BytesIO(data))).tolist() == [[0, 0, 1, 255]]


def test_alpha_is_resized():
    form = ImageFormat(3, 8, torch.full((1, 4, 6), 0.25))
    bigger = resized_alpha(form, (8, 12)).alpha
    assert bigger is not None
    assert torch.allclose(bigger, torch.full((1, 8, 12), 0.25))
    assert resized_alpha(form, (4, 6)) is form


def test_bad_files(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(pixels(3, size=(64, 64))).save(good)
    data = good.read_bytes()
    save_png16(tmp_path / "deep.png", pixels(3, np.uint16, (64, 64)))
    deep = (tmp_path / "deep.png").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    Image.fromarray(pixels(3, size=(64, 64))).save(tmp_path / "good.jpg")
    jpeg = (tmp_path / "good.jpg").read_bytes()
    cases = {
        "truncated.png": data[: len(data) // 2],
        "header.png": data[:30],
        "flipped.png": bytes(flipped),
        "deep-truncated.png": deep[: len(deep) // 2],
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.png": b"this is no image",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="folder"):
        read_image(tmp_path)


def test_huge_and_float_images_are_refused(tmp_path, monkeypatch):
    Image.new("L", (200, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    with pytest.raises(InputError, match="crop or reduce"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="crop or reduce"):
        read_image(tmp_path / "a.png")
    Image.new("F", (4, 4)).save(tmp_path / "f.tif")
    with pytest.raises(InputError, match="16-bit"):
        read_image(tmp_path / "f.tif")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        write_image(tmp_path / "a.png", torch.rand(3, 4, 4))
    assert list(tmp_path.iterdir()) == []
