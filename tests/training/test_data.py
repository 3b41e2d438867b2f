"""Training images: checksums, splits, copies, crops, Qt resources, credits."""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.errors import InputError
from unveil.training import archives, crops, data, notice


def picture(path: Path, height: int, width: int, seed: int = 0) -> None:
    """A smooth random colour image."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)


def folder_table(folder: Path, **more: object) -> dict[str, object]:
    return {"channels": 3, "source": [{"fetch": "folder", "path": str(folder), **more}]}


def test_a_wrong_checksum_is_a_clear_error(tmp_path: Path) -> None:
    archive = tmp_path / "downloads" / "images.whl"
    archive.parent.mkdir()
    archive.write_bytes(b"not what the card promises")
    table = {"source": [{"fetch": "wheel", "package": "images", "file": "images.whl", "sha256": "0" * 64}]}
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=rf"sha256 {found}, the card says 0000.*delete the file"):
        data.build(table, tmp_path)
    assert not (tmp_path / "packed").exists()


def test_copies_and_splits(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "large.png", 300, 600)
    picture(tmp_path / "images" / "small.png", 90, 60)
    picture(tmp_path / "images" / "other" / "kept.png", 300, 600)
    table = folder_table(tmp_path / "images", hold_out=["other/*"])
    table |= {"long_sides": [400, 200, 150], "reduce": 1.5}
    pack = data.build(table, tmp_path / "cache", data.quiet)
    sizes = {(e["name"], e["height"], e["width"], e["split"]) for e in pack.entries}
    assert sizes == {
        ("large.png", 200, 400, "train"),
        ("large.png", 100, 200, "train"),
        ("large.png", 75, 150, "train"),
        ("small.png", 60, 40, "train"),
        ("other/kept.png", 200, 400, "held-out"),
        ("other/kept.png", 100, 200, "held-out"),
        ("other/kept.png", 75, 150, "held-out"),
    }
    original = np.asarray(Image.open(tmp_path / "images" / "large.png"), dtype=float)
    copy = pack.image([e["height"] for e in pack.entries].index(100)).astype(float)
    means = original.reshape(100, 3, 200, 3, 3).mean((1, 3))
    assert np.abs(copy - means)[5:-5, 5:-5].max() < 6
    held_out = crops.evaluation_crops(pack, 64)
    assert held_out.shape == (1, 3, 64, 64)
    assert held_out.abs().max() <= 1


def test_a_pattern_that_fits_nothing_and_an_empty_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", 64, 64)
    with pytest.raises(InputError, match=r"no image fits the pattern\(s\) \['b.png'\]"):
        data.build(folder_table(tmp_path / "images", exclude=["b.png"]), tmp_path, data.quiet)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="names no image"):
        data.build(folder_table(tmp_path / "none"), tmp_path, data.quiet)
    with pytest.raises(InputError, match="does not exist"):
        data.build(folder_table(tmp_path / "missing"), tmp_path)


def test_crops_are_reproducible_cover_all_symmetries_and_stay_in_range(tmp_path: Path) -> None:
    ramp = np.zeros((16, 16, 3), np.uint8)
    ramp[..., 0] = 10 * np.arange(16)[:, None] + 5 * np.arange(16)[None, :]
    (tmp_path / "images").mkdir()
    Image.fromarray(ramp).save(tmp_path / "images" / "ramp.png")
    pack = data.build(folder_table(tmp_path / "images"), tmp_path, data.quiet)
    plain = crops.Crops(pack, 16, jitter=0)
    batch = plain.batch(200, np.random.default_rng(1))
    assert torch.equal(batch, plain.batch(200, np.random.default_rng(1)))
    assert len({tuple(b.flatten().tolist()) for b in batch[:, 0]}) == 8
    upright = torch.tensor(ramp[..., 0])
    assert any(torch.equal(((b + 1) * 127.5).round().byte(), upright) for b in batch[:, 0])
    jittered = crops.Crops(pack, 8).batch(50, np.random.default_rng(2))
    assert jittered.min() >= -1
    assert jittered.max() <= 1
    with pytest.raises(InputError, match="at least 17x17"):
        crops.Crops(pack, 17)


def rcc(files: dict[str, tuple[bytes, bool]]) -> bytes:
    """A flat binary Qt resource collection, version 1, as `rcc --binary` lays it out."""
    names, blobs, nodes = b"", b"", b""
    for name, (content, squeeze) in files.items():
        body = struct.pack(">I", len(content)) + zlib.compress(content) if squeeze else content
        nodes += struct.pack(">IHHHI", len(names), int(squeeze), 0, 0, len(blobs))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
        blobs += struct.pack(">I", len(body)) + body
    root = struct.pack(">IHII", 0, 2, len(files), 1)
    start = 20
    header = b"qres" + struct.pack(">4I", 1, start + len(blobs) + len(names), start, start + len(blobs))
    return header + blobs + names + root + nodes


def test_qt_resources() -> None:
    files = {"Käfer.webp": (b"RIFF....", False), "b.txt": (b"words " * 50, True)}
    assert archives.read_rcc(rcc(files)) == {name: content for name, (content, _) in files.items()}
    with pytest.raises(ValueError, match="qres"):
        archives.read_rcc(b"other")


def test_credits_follow_the_last_and_closest_paragraph() -> None:
    text = (
        "Format: x\n\nFiles: *\nCopyright: 2014 The team\nLicense: GPL-3+\n\n"
        "Files: src/birds/*\nCopyright: 2001 Ann\n           2002 Ben\nLicense: CC0-1.0\n\n"
        "Files: src/birds/owl.jpg\nCopyright: Cat\nLicense: CC-BY-4.0\n\nFiles: data/*\nLicense: BSD\n"
    )
    paragraphs = notice.parse_copyright(text)
    assert notice.credit("usr/share/src/birds/jay.webp", paragraphs) == (
        ["2001 Ann", "2002 Ben"],
        "CC0-1.0",
        True,
    )
    assert notice.credit("usr/share/src/birds/owl.webp", paragraphs) == (["Cat"], "CC-BY-4.0", True)
    assert notice.credit("usr/examples/data/cow.png", paragraphs) == (["2014 The team"], "GPL-3+", False)


def test_a_changed_picture_is_packed_anew(tmp_path: Path) -> None:
    table = folder_table(tmp_path / "images")
    picture(tmp_path / "images" / "a.png", 32, 32)
    first = data.build(table, tmp_path / "cache", data.quiet).image(0).copy()
    assert np.array_equal(data.build(table, tmp_path / "cache", data.quiet).image(0), first)
    picture(tmp_path / "images" / "a.png", 32, 32, seed=1)
    assert not np.array_equal(data.build(table, tmp_path / "cache", data.quiet).image(0), first)
    picture(tmp_path / "images" / "b.png", 32, 32)
    assert len(data.build(table, tmp_path / "cache", data.quiet)) == 2


def test_a_card_of_packages_keeps_its_pack(tmp_path: Path) -> None:
    table = {"channels": 3, "source": [{"fetch": "deb", "package": "p", "sha256": "0" * 64}]}
    assert data.pack_folder(tmp_path, 2, table=table) == tmp_path / "packed" / "739eaf10997b"


def test_greys_of_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "images" / "deep.png")
    Image.fromarray(ramp).save(tmp_path / "images" / "deep.tif")
    pack = data.build(folder_table(tmp_path / "images"), tmp_path, data.quiet)
    assert [e["name"] for e in pack.entries] == ["deep.png", "deep.tif"]
    for k in range(2):
        assert np.array_equal(pack.image(k), np.repeat((ramp / 257).round().astype(np.uint8)[..., None], 3, axis=2))
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "images" / "float.tif")
    with pytest.raises(InputError, match=r"float.tif has 32-bit values"):
        data.build(folder_table(tmp_path / "images"), tmp_path, data.quiet)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"fetch": "deb", "package": "p"}, "lacks file, sha256: add what is missing"),
        ({"fetch": "deb", "package": "p", "file": "p.deb", "sha256": "0"}, "lacks version: add"),
        ({"fetch": "folder"}, "lacks path: add"),
        ({"fetch": "rpm"}, "Unknown fetch = 'rpm' in the card: use deb, wheel"),
        ({"fetch": "wheel", "package": "p", "version": "1", "file": "p.whl", "sha256": "0"}, "'p.whl' is not the name"),
    ],
)
def test_a_source_that_says_too_little(source: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        data.build({"source": [source]}, tmp_path, data.quiet)


def test_packages_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "p_1.deb"
    package.write_bytes(b"no package")
    if shutil.which("dpkg-deb"):
        with pytest.raises(InputError, match=r"p_1\.deb cannot be unpacked: "):
            list(archives.iterate(package))
    monkeypatch.setenv("PATH", "")
    for read in (lambda: list(archives.iterate(package)), lambda: notice._copyright_text({"package": "p"}, package)):
        with pytest.raises(InputError, match=r"no dpkg-deb on this machine to unpack p_1\.deb: install dpkg"):
            read()
