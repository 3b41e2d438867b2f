"""Slices of volumes (NIfTI files of heads), at random positions, tilts and deformations: `kind = "slices"`.

The `[data]` table says, beside its sources (see `training.data`; `include` names the volumes):

    kind = "slices"
    field = 220.0            # side of a slice in millimetres
    band = [0.55, 0.62]      # part of the head's length along the normal, for every orientation, never trained on
    tilt = 8.0               # degrees about every axis at most

A volume under `hold_out` is not trained on at all. Held-out slices are those of such volumes, and the ones from
the band of the others, upright. A tilted slice centred outside the band may reach into it at its edges.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..io.atomic import write_atomic, write_text
from . import archives, augment, data
from .recipe import Recipe

PACKING = 1
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2"}
# Rows and columns of a slice as axes of the volume (right, front, top), and their signs: top and front are up.
PLANES = {"sagittal": (0, (2, 1), (-1, 1)), "coronal": (1, (2, 0), (-1, 1)), "axial": (2, (1, 0), (-1, 1))}
ORIENTATIONS = tuple(PLANES)


def read_nifti(content: bytes) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """A NIfTI-1 volume, and the millimetres between its voxels; axes towards right, front and top (RAS).

    The axes are permuted and turned round as the header's orientation says, not resampled. Raises InputError for
    another format.
    """
    raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    order = "<" if raw[:4] == struct.pack("<i", 348) else ">"
    if len(raw) < 352 or struct.unpack_from(f"{order}i", raw)[0] != 348 or raw[344:347] not in (b"n+1", b"ni1"):
        raise InputError("Not a NIfTI-1 file.")
    dims = struct.unpack_from(f"{order}8h", raw, 40)
    kind = struct.unpack_from(f"{order}h", raw, 70)[0]
    if dims[0] < 3 or kind not in TYPES:
        raise InputError(f"This NIfTI file has {dims[0]} dimensions and data type {kind}: a grey volume is needed.")
    spacing = struct.unpack_from(f"{order}8f", raw, 76)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    shape = dims[1:4]
    values = np.frombuffer(raw, f"{order}{TYPES[kind]}", int(np.prod(shape)), int(offset))
    volume = values.reshape(shape, order="F").astype(np.float32) * (slope or 1.0) + intercept
    forms = struct.unpack_from(f"{order}2h", raw, 252)
    if forms[1]:
        matrix = np.array(struct.unpack_from(f"{order}12f", raw, 280)).reshape(3, 4)[:, :3]
    elif forms[0]:
        matrix = _rotation(*struct.unpack_from(f"{order}3f", raw, 256)) * (1, 1, -1 if spacing[0] < 0 else 1)
    else:
        matrix = np.eye(3)
    axes = [int(np.abs(matrix[k]).argmax()) for k in range(3)]
    if sorted(axes) != [0, 1, 2]:
        raise InputError("This NIfTI file is turned by about 45 degrees: its axes cannot be named.")
    signs = [1 if matrix[k, axes[k]] > 0 else -1 for k in range(3)]
    volume = volume.transpose(axes)[tuple(slice(None, None, s) for s in signs)]
    millimetres = tuple(float(abs(spacing[1 + a])) or 1.0 for a in axes)
    return np.ascontiguousarray(volume), (millimetres[0], millimetres[1], millimetres[2])


def _rotation(b: float, c: float, d: float) -> NDArray[np.float64]:
    a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


class Head:
    """One volume: [1, 1, top, front, right] uint8, its spacing, and the box in which the head lies (in voxels)."""

    def __init__(self, name: str, voxels: NDArray[np.uint8], spacing: tuple[float, float, float]) -> None:
        self.name, self.spacing = name, np.array(spacing)
        self.size = np.array(voxels.shape)
        box = []
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            inside = np.flatnonzero((voxels > 25).mean(axis=others) > 0.02)
            box.append((inside[0], inside[-1]))
        self.box = np.array(box, dtype=float)
        self.voxels = torch.from_numpy(voxels.transpose(2, 1, 0).copy())[None, None]

    def slices(self, origin: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any], size: int) -> Tensor:
        """Slices [N, 1, size, size] in [0, 1], centred at `origin` [N, 3] (voxels).

        `rows` and `columns` [N, 3] are the steps in millimetres of one pixel down and to the right. A pixel is the
        mean over 2 x 2 points.
        """
        fine = 2 * size
        along = (np.arange(fine) + 0.5) / 2 - size / 2
        out = []
        for o, r, c in zip(origin, rows / self.spacing, columns / self.spacing, strict=True):
            points = o + along[:, None, None] * r + along[None, :, None] * c  # [fine, fine, 3]
            # only what lies around the slice is turned into floats
            low = np.clip(np.floor(points.min(axis=(0, 1))) - 1, 0, self.size - 1).astype(int)
            high = np.clip(np.ceil(points.max(axis=(0, 1))) + 2, low + 1, self.size).astype(int)
            part = self.voxels[..., low[2] : high[2], low[1] : high[1], low[0] : high[0]].float()
            grid = torch.from_numpy((2 * (points - low) + 1) / (high - low) - 1).float()[None, None]
            near = F.grid_sample(part, grid, padding_mode="zeros", align_corners=False)
            out.append(F.avg_pool2d(near[:, :, 0], 2))
        return torch.cat(out) / 255


class Slices:
    """A source of slices (see the module)."""

    channels = 1

    def __init__(
        self,
        table: Mapping[str, Any],
        recipe: Recipe,
        cache: Path | None = None,
        say: Callable[[str], None] = data.quiet,
    ) -> None:
        self.recipe = recipe
        self.pixel = float(table.get("field", 220.0)) / recipe.size
        self.band, self.tilt = tuple(table.get("band", (0.55, 0.62))), float(table.get("tilt", 8.0))
        self.heads: list[tuple[float, Head]] = []
        self.unseen: list[tuple[float, Head]] = []
        for entry, voxels in _build(table, cache, say):
            head = Head(entry["name"], voxels, tuple(entry["spacing"]))
            (self.unseen if entry["split"] == "held-out" else self.heads).append((entry["weight"], head))
        if not self.heads:
            raise InputError("The card's [data] names no volume to train on: add a [[data.source]].")

    def _planes(
        self, head: Head, plane: str, fraction: float, rotation: NDArray[Any], zoom: float
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        normal, axes, signs = PLANES[plane]
        origin = head.box.mean(axis=1)
        low, high = head.box[normal]
        origin[normal] = low + fraction * (high - low)
        step = self.pixel * zoom
        return origin, rotation[:, axes[0]] * signs[0] * step, rotation[:, axes[1]] * signs[1] * step

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """[count, 1, size, size] float32 in [-1, 1]; no conditions.

        Head (by weight), orientation, position outside the band, tilt, size (0.85 to 1.1), shift (6 mm), mirror
        image, gamma and gain, a smooth shading of 10 %, and the warp of the recipe are random.
        """
        weights = np.array([w for w, _ in self.heads])
        size, out = self.recipe.size, []
        for _ in range(count):
            head = self.heads[int(rng.choice(len(weights), p=weights / weights.sum()))][1]
            plane = ORIENTATIONS[int(rng.integers(3))]
            fraction = rng.uniform(0.04, 0.96 - (self.band[1] - self.band[0]))
            fraction += self.band[1] - self.band[0] if fraction > self.band[0] else 0.0
            turn = _turn(np.radians(rng.uniform(-self.tilt, self.tilt, 3)))
            origin, rows, columns = self._planes(head, plane, fraction, turn, rng.uniform(0.85, 1.1))
            origin = origin + rng.uniform(-6, 6, 3) / head.spacing * (np.arange(3) != PLANES[plane][0])
            if plane != "sagittal" and rng.random() < 0.5:
                columns = -columns
            image = head.slices(origin[None], rows[None], columns[None], size)
            jitter = self.recipe.jitter
            image = image ** float(np.exp(rng.uniform(-2 * jitter, 2 * jitter)))
            shade = torch.from_numpy(rng.standard_normal((1, 1, 3, 3))).float() * jitter
            field = F.interpolate(shade, (size, size), mode="bicubic", align_corners=True)
            out.append((image * field.exp() * (1 - rng.uniform(0, jitter))).clamp(0, 1))
        x = torch.cat(out) * 2 - 1
        return augment.warp(x, rng, self.recipe.warp, self.recipe.elastic), {}

    def held_out(self, size: int, count: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Slices of heads never seen (9 each), then of the bands of the others (3 each), upright and undeformed."""
        if size != self.recipe.size:
            raise InputError(f"Slices are {self.recipe.size} pixels wide: set validate_size to that, not {size}.")
        middle = sum(self.band) / 2
        wanted = [(h, p, f) for f in (0.35, 0.5, 0.65) for _, h in self.unseen for p in PLANES]
        wanted += [(h, p, middle) for _, h in self.heads for p in PLANES]
        out = []
        for head, plane, fraction in wanted[:count]:
            origin, rows, columns = self._planes(head, plane, fraction, np.eye(3), 1.0)
            out.append(head.slices(origin[None], rows[None], columns[None], size))
        return torch.cat(out) * 2 - 1, {}


def _turn(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix by three angles in radians, about one axis after the other."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        out = turn @ out
    return out


def _build(
    table: Mapping[str, Any], cache: Path | None, say: Callable[[str], None]
) -> list[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """The volumes of a `[data]` table as bytes, 99.8 % of the brightness of the head being white; packed once."""
    cache = data.default_cache() if cache is None else cache
    folder = data.pack_folder(cache, PACKING, "volumes", table=table)
    if not (folder / "index.json").exists():
        entries: list[dict[str, Any]] = []
        for source in table.get("source", []):
            archive, include = data.fetch(source, cache), source.get("include", ["*"])
            unused = set(include) | set(source.get("hold_out", []))
            for path, content in archives.iterate(archive, (".nii", ".nii.gz")):
                if not archives.matches(path, include):
                    continue
                unused = {p for p in unused if not archives.matches(path, [p])}
                volume, spacing = read_nifti(content)
                volume -= np.quantile(volume[::3, ::3, ::3], 0.01)
                bright = volume[volume > 0.1 * volume.max()]
                voxels = (volume / np.quantile(bright, 0.998) * 255).clip(0, 255).astype(np.uint8)
                name = f"{len(entries)}.npy"
                write_atomic(folder / name, lambda p, v=voxels: np.save(p, v))  # type: ignore[misc]
                split = "held-out" if archives.matches(path, source.get("hold_out", [])) else "train"
                entry = {"name": path, "file": name, "split": split, "spacing": spacing}
                package = source.get("package") or source["path"]
                entries.append({**entry, "source": package, "weight": float(source.get("weight", 1.0))})
            if unused:
                raise InputError(f"{source.get('package')}: no volume fits {sorted(unused)}: correct the card.")
            say(f"{source.get('package') or source['path']}: volumes packed")
        write_text(folder / "index.json", json.dumps({"entries": entries}))
    found = json.loads((folder / "index.json").read_text())["entries"]
    return [(e, np.load(folder / e["file"])) for e in found]
