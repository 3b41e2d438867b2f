"""Credits of training images, from the machine-readable copyright files of Debian packages (DEP-5).

python -m unveil.training.notice CARD [--cache DIR] > NOTICE
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UnveilError
from . import archives, data
from .recipe import read_card

MANY = 400  # a source of more images is credited as a whole
Paragraph = tuple[list[str], list[str], str]  # patterns, copyright holders, licence


def parse_copyright(text: str) -> list[Paragraph]:
    """The `Files:` paragraphs of a copyright file, in order."""
    paragraphs: list[Paragraph] = []
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in block.splitlines():
            start = re.match(r"([A-Za-z-]+):\s*(.*)", line)
            if start:
                name = start[1].lower()
                fields[name] = [start[2].strip()]
            elif name and line[:1].isspace():
                fields[name].append(line.strip())
        if "files" in fields:
            holders = [h for h in fields.get("copyright", []) if h]
            licence = fields.get("license", ["unknown"])[0]
            paragraphs.append((" ".join(fields["files"]).split(), holders, licence))
    return paragraphs


def credit(path: str, paragraphs: list[Paragraph]) -> tuple[list[str], str, bool]:
    """Holders and licence of a file, and whether a paragraph names it more closely than by `*`.

    The last fitting paragraph counts, as the format says. Packages install files elsewhere and convert .jpg
    to .webp: so a pattern may fit any tail of the path, whatever the suffix, and one with at most one folder
    the bare name. A pattern with stars needs two folders, lest `data/*` fit another folder called data.
    """
    stem = str(PurePosixPath(path).with_suffix(""))
    best: tuple[list[str], str, bool] = ([], "unknown", False)
    for patterns, holders, licence in paragraphs:
        for pattern in patterns:
            general = pattern == "*"
            folders = pattern.count("/")
            if "*" in pattern and folders < 2 and not general:
                continue
            bare = pattern if "*" in pattern else str(PurePosixPath(pattern).with_suffix(""))
            names_it = fnmatch.fnmatchcase(stem, f"*/{bare}") or fnmatch.fnmatchcase(stem, bare)
            if folders < 2:
                names_it = names_it or PurePosixPath(stem).name == PurePosixPath(bare).name
            if (general and not best[2]) or (names_it and not general):
                best = (holders, licence, not general)
    return best


def _copyright_text(source: Mapping[str, Any], archive: Path) -> str | None:
    """The copyright file of a .deb, or the README beside the images of a wheel."""
    if archive.suffix == ".deb":
        with archives.unpacked(archive) as folder:
            file = folder / "usr/share/doc" / str(source["package"]) / "copyright"
            return file.read_text(encoding="utf-8") if file.is_file() else None
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as bundle:
            names = [n for n in bundle.namelist() if n.endswith("images/README.txt")]
            return bundle.read(names[0]).decode() if names else None
    return None


def notice(card: Mapping[str, Any], cache: Path | None = None) -> str:
    """The credits of a card's data as text: one line per image, or per source of more than `MANY` or of volumes.

    What a source says under `credit` is quoted. Raises InputError as `data.build` does.
    """
    cache = data.default_cache() if cache is None else cache
    table = card.get("data", {})
    if table.get("kind") == "ellipses":
        return "The training data are generated: there is nobody to credit.\n"
    pack = None if table.get("kind") == "slices" else data.build(table, cache, data.quiet)
    lines: list[str] = []
    for source in [*table.get("source", []), *([table["encoder"]] if "encoder" in table else [])]:
        name = source.get("package") or source["path"]
        lines += [
            "",
            f"{name} {source.get('version', '')}",
            f"  stated licence: {source.get('licence', 'unknown')}",
        ]
        lines += ["  " + line for line in str(source.get("credit", "")).strip().splitlines()]
        entries = [e for e in pack.entries if e["source"] == name] if pack else []
        splits = {e["name"]: e["split"] for e in entries}
        if 0 < len(splits) <= MANY:
            lines += _per_image(source, data.fetch(source, cache), splits)
        elif splits:
            seen = sum(split == "train" for split in splits.values())
            lines.append(f"  {len(splits)} images, {seen} of them trained on")
        else:
            held = set(source.get("hold_out", []))
            marks = {p: " [held out: not trained on]" if p in held else "" for p in source.get("include", [])}
            lines += [f"  {path}{mark}" for path, mark in marks.items()]
    return "\n".join(lines).strip() + "\n"


def _per_image(source: Mapping[str, Any], archive: Path, splits: Mapping[str, str]) -> list[str]:
    text = _copyright_text(source, archive)
    paragraphs = parse_copyright(text) if text else []
    lines = ["  " + line for line in text.strip().splitlines()] if text and not paragraphs else []
    package_holders: list[str] = []
    for path, split in sorted(splits.items()):
        mark = "" if split == "train" else " [held out: not trained on]"
        holders, licence, specific = credit(path, paragraphs)
        if not paragraphs:
            lines.append(f"  {path}{mark}")
        elif specific:
            lines.append(f"  {path}: {licence}; {'; '.join(holders)}{mark}")
        else:
            package_holders = holders
            lines.append(f"  {path}: {licence}; the package's authors{mark}")
    if package_holders:
        lines.append(f"  The package's authors: {'; '.join(package_holders)}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Print the credits; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m unveil.training.notice", description="Credits of a card's images.")
    parser.add_argument("card", type=Path)
    parser.add_argument("--cache", type=Path, help="cache of packages and images (default: $UNVEIL_DATA)")
    given = parser.parse_args(arguments)
    try:
        print(notice(read_card(given.card), given.cache), end="")
    except UnveilError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
