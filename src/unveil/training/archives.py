"""Read files out of what training data come in: Debian packages, wheels, tar files, Qt resource files, folders."""

from __future__ import annotations

import fnmatch
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
READ = (*SUFFIXES, ".rcc", ".gz", ".json", ".nii")  # by any reader

_COMPRESSED, _DIRECTORY = 1, 2


def read_rcc(blob: bytes) -> dict[str, bytes]:
    """Files of a binary Qt resource collection (`rcc --binary`), by path.

    A header of big-endian offsets points to a table of fixed-size nodes, a heap of UTF-16 names and a heap of
    length-prefixed data; directories name a range of nodes. Entries compressed by zstd are left out.
    """
    if blob[:4] != b"qres":
        raise ValueError("Not a Qt resource file: it does not start with 'qres'.")
    version, tree, data, names = struct.unpack_from(">4I", blob, 4)
    node_size = 14 if version < 2 else 22
    found: dict[str, bytes] = {}

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + offset)
        start = names + offset + 6  # two bytes of length, four of hash
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(index: int, path: str) -> None:
        name, flags, first, second = struct.unpack_from(">IHII", blob, tree + index * node_size)
        here = path if index == 0 else f"{path}/{name_at(name)}".lstrip("/")
        if flags & _DIRECTORY:
            for child in range(second, second + first):
                walk(child, here)
            return
        start = data + second
        (length,) = struct.unpack_from(">I", blob, start)
        content = blob[start + 4 : start + 4 + length]
        if flags == _COMPRESSED:
            content = zlib.decompress(content[4:])
        if flags in (0, _COMPRESSED):
            found[here] = content

    walk(0, "")
    return found


@contextmanager
def unpacked(package: Path) -> Iterator[Path]:
    """A folder with the files of a Debian package. Raises InputError without dpkg-deb, and for a damaged package."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["dpkg-deb", "-x", str(package), scratch], check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise InputError(f"There is no dpkg-deb on this machine to unpack {package.name}: install dpkg.") from error
        except subprocess.CalledProcessError as error:
            raise InputError(f"{package} cannot be unpacked: {' '.join(error.stderr.split())}") from error
        yield Path(scratch)


def files(folder: Path) -> list[Path]:
    """All files in a folder and those in it, links to files included, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _folder(folder: Path, suffixes: tuple[str, ...], links: bool = True) -> Iterator[tuple[str, bytes]]:
    for path in files(folder):
        if path.is_symlink() and not links:
            continue
        name = path.relative_to(folder).as_posix()
        if name.lower().endswith(suffixes):
            yield name, path.read_bytes()
        elif path.suffix == ".rcc":
            for inner, content in sorted(read_rcc(path.read_bytes()).items()):
                if inner.lower().endswith(suffixes) or (content[:4] == b"RIFF" and ".webp" in suffixes):
                    yield f"{name}/{inner}", content


def iterate(archive: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[tuple[str, bytes]]:
    """Yield (path inside, content) of the files with one of the suffixes (images by default), in a fixed order.

    From a .deb, a .whl or .zip, a .tar.gz or .tgz, or a folder.
    """
    if archive.is_dir():
        yield from _folder(archive, suffixes)
    elif archive.suffix == ".deb":
        with unpacked(archive) as folder:
            yield from _folder(folder, suffixes, links=False)  # they lead to images that are there as well
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as bundle:
            for name in sorted(bundle.namelist()):
                if name.lower().endswith(suffixes):
                    yield name, bundle.read(name)
    elif archive.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(archive) as bundle:
            found = []  # read in the order of the file: a compressed archive cannot go back cheaply
            for member in bundle:
                stream = bundle.extractfile(member) if member.name.lower().endswith(suffixes) else None
                if stream is not None:
                    found.append((member.name, stream.read()))
        yield from sorted(found)
    else:
        raise ValueError(f"Cannot read {archive}: expected a folder, .deb, .whl, .zip, .tar.gz or .tgz.")


def matches(name: str, patterns: list[str]) -> bool:
    """True if a shell pattern (* also crosses slashes) fits the end of the path; one that begins with / all of it."""
    return any(fnmatch.fnmatchcase(f"/{name}", p if p.startswith("/") else f"*/{p}") for p in patterns)
