"""A measured file and its configuration, read and checked: what ``unveil reconstruct`` starts from."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, unknown
from ..io.data import DataFormat, read_data, split
from ..operators import espirit_maps, low_resolution_maps, views
from .configuration import COUNTS, KEYS, read_table

AXES: dict[str, tuple[str, ...]] = {
    "mri": ("slice", "coil", "row", "column"),
    "ct": ("slice", "view", "detector"),
    "pet": ("slice", "view", "detector"),
    "mosaic": ("slice", "row", "column"),
    "interferometer": ("slice", "sample"),
    "diffraction": ("slice", "row", "column"),
}
"""The order of axes that the operators want."""


@dataclass(frozen=True)
class Scan:
    """A file made ready: ``arrays`` hold "y" [slices, ...] and what its operator needs, ``table`` the configuration.

    ``slices`` are their numbers in the file, of ``count``; ``form`` is what the file was.
    """

    instrument: str
    table: dict[str, Any]
    arrays: dict[str, Tensor]
    slices: tuple[int, ...]
    count: int
    form: DataFormat
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What is made once for all slices: projectors."""


def read_scan(path: str | Path, instrument: str, config: str | Path | None) -> Scan:
    """Read and check a file and its configuration. Raises :class:`InputError` with the mend for what does not fit."""
    if instrument not in KEYS:
        raise unknown("instrument", instrument, KEYS)
    table, folder = read_table(instrument, config)
    values, form = read_data(path)
    scan = _Reader(instrument, table, folder, str(path), form)
    y = scan.arranged(values)
    count = y.shape[0]
    slices = _slices(table.get("slices", "all"), count)
    y = y[list(slices)]
    bad = int((~torch.isfinite(torch.view_as_real(y) if y.is_complex() else y)).sum())
    if bad:
        raise InputError(f"{path} holds {bad} NaN or infinite values: set them to zero where nothing was measured")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        arrays = getattr(scan, f"_{instrument}")(y)
        found = Scan(instrument, table, arrays, slices, count, form, scan.files)
        from .instruments import measure

        measure(found, 0, 1)  # what cannot be is said now
    notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning) and "beta" not in str(w.message)]
    notes = [note.replace("pass torch.rad2deg(angles)", 'say unit = "radians"') for note in notes]
    return replace(found, notes=tuple(dict.fromkeys(scan.notes + notes)))


def _slices(wanted: Any, count: int) -> tuple[int, ...]:
    if wanted == "all":
        return tuple(range(count))
    if wanted == "middle":
        return (count // 2,)
    chosen = [wanted] if isinstance(wanted, int) else wanted
    if not isinstance(chosen, list) or not all(type(k) is int and 0 <= k < count for k in chosen) or not chosen:
        raise InputError(f'slices is "all", "middle", a number or a list of numbers below {count}, got {wanted!r}')
    if len(set(chosen)) < len(chosen):
        raise InputError(f"slices = {wanted} names one twice")
    return tuple(chosen)


@dataclass
class _Reader:
    """Arrays of an instrument, from values and the files that a configuration names."""

    instrument: str
    table: dict[str, Any]
    folder: Path
    path: str
    form: DataFormat
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def arranged(self, values: Tensor) -> Tensor:
        """The values with the axes that the operators want; one that is missing has length 1."""
        order = list(AXES[self.instrument])
        if self.instrument == "mri" and "trajectory" in self.table:
            order = ["slice", "coil", "sample"]
        if self.instrument in ("ct", "pet") and self.table.get("beam") == "cone":
            order = ["slice", "view", "row", "detector"]
        said = self.table.get("axes")
        usual = " ".join(order)
        if said is None:
            if values.ndim == len(order) - 1 and self.instrument == "mri" and self.form.kind != "hdf5":
                raise InputError(
                    f"{self.path} has shape {tuple(values.shape)}: say what its axes are in the configuration, as in "
                    f'axes = "{" ".join(order[1:])}" or axes = "slice {" ".join(order[2:])}"'
                )
            if values.ndim > len(order):
                raise InputError(
                    f"{self.path} has shape {tuple(values.shape)}, {values.ndim} axes, and {self.instrument} has "
                    f'{usual}: name them in the configuration, axes = "..."; "part" is real and imaginary part'
                )
            tail = order[len(order) - values.ndim :]
            if self.instrument == "mri" and len(tail) == len(order) - 1:
                tail = ["slice", *order[2:]]  # fastMRI's files of one coil
            said = tail
        else:
            said = said.split() if isinstance(said, str) else list(said)
        allowed = [*order, "part"]
        if len(said) != values.ndim or len(set(said)) != len(said) or not set(said) <= set(allowed):
            raise InputError(
                f'axes = "{" ".join(map(str, said))}" does not describe {self.path} {tuple(values.shape)}: one '
                f"different word of {', '.join(allowed)} for each of its {values.ndim} axes"
            )
        if "part" in said:
            values = values.movedim(said.index("part"), -1)
            said = [a for a in said if a != "part"]
            if values.shape[-1] != 2 or values.is_complex():
                raise InputError(f"the axis part of {self.path} holds real and imaginary part, got {values.shape[-1]}")
            values = torch.view_as_complex(values.contiguous())
        values = values.permute([said.index(a) for a in order if a in said])
        for place, axis in enumerate(order):
            if axis not in said:
                if axis not in ("slice", "coil"):
                    raise InputError(f'{self.path} has no axis "{axis}": {self.instrument} has {usual}')
                values = values.unsqueeze(place)
        coils, rows, columns = values.shape[1:] if self.instrument == "mri" and values.ndim == 4 else (1, 1, 1)
        if "axes" not in self.table and coils > max(rows, columns):
            raise InputError(
                f"{self.path}, taken as {usual}, would have {coils} coils of {rows} x {columns} points: name its axes "
                f'in the order of the file, as in axes = "row column coil slice", or axes = "{usual}" if it is so'
            )
        values = values.to(torch.complex64) if values.is_complex() else values.float()
        if self.instrument in ("mri", "interferometer"):
            if not values.is_complex():
                raise InputError(
                    f"{self.path} holds real values {tuple(values.shape)}, {self.instrument} measures complex ones: "
                    'for an axis of real and imaginary part say axes = "... part"; an image is no k-space'
                )
        elif values.is_complex():
            raise InputError(f"{self.path} holds complex values, and {self.instrument} measures real ones")
        return values.contiguous()

    def other(self, key: str) -> Tensor:
        """The array that a configuration names: a file, ``file:name``, ``:name`` in the file itself, or numbers."""
        value = self.table[key]
        if isinstance(value, str):
            where = f"{split(self.path)[0]}{value}" if value.startswith(":") else str(self.folder / value)
            found = read_data(where)[0]
            self.files[key] = where
        else:
            where = "in the configuration"
            try:
                found = torch.as_tensor(value, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError):
                raise InputError(f"{key} is a file, or numbers, got {value!r}") from None
        if not bool((found.abs() < 1e30).all()):
            raise InputError(f"{key} {where} holds NaN, infinite or absurdly large values")
        return found

    def size(self) -> tuple[int, int]:
        size = self.table.get("size")
        if not isinstance(size, list) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
            raise InputError(f"{self.instrument} needs the size of the image in the configuration: size = [256, 256]")
        return (size[0], size[1])

    # -- each instrument: y [slices, ...] to its arrays ------------------------------------------------------------

    def _mri(self, y: Tensor) -> dict[str, Tensor]:
        if "trajectory" in self.table:
            return self._spokes(y)
        height, width = y.shape[2:]
        if "size" in self.table and self.size() != (height, width):
            raise InputError(
                f"k-space of {self.path} is {height} x {width}, the configuration says size = {list(self.size())}: "
                "correct it, or the axes"
            )
        seen = (y.abs().sum((0, 1)) > 0).float()
        mask = self._mask(height, width) if "mask" in self.table else seen
        if not bool(mask.any()):
            raise InputError(f"{self.path} holds nothing but zeros")
        if "mask" in self.table and bool(((mask > 0) & (seen == 0)).all(0).any()):
            self.notes.append("the mask calls columns measured that hold only zeros")
        if _cornered(y):
            self.notes.append(
                "most of k-space's energy lies in its corners: zero frequency belongs in the middle; if images look "
                "folded, shift the data's last two axes (numpy.fft.fftshift)"
            )
        y = y * mask
        arrays = {"y": y, "mask": mask}
        maps = self._maps(y, (height, width))
        if maps is not None:
            arrays["maps"] = maps
        arrays["phase"] = _phase(y, maps, self.calibration(y))
        if self.table.get("phase") == "none":
            arrays["phase"] = torch.zeros_like(arrays["phase"])
        return arrays

    def calibration(self, y: Tensor) -> int:
        """Side of the fully sampled middle of k-space."""
        least = min(y.shape[-2:])
        width = int(self.table.get("calibration", min(24, least)))
        if width > least:
            raise InputError(f"calibration is a side of the middle of k-space, 1 to {least}, got {width}")
        return width

    def _mask(self, height: int, width: int) -> Tensor:
        mask = self.other("mask").squeeze()
        if tuple(mask.shape) not in ((width,), (height, width)):
            raise InputError(
                f"the mask {self.files.get('mask', '')} has shape {tuple(mask.shape)}, k-space is {height} x {width}: "
                f"it is [{width}] or [{height}, {width}]"
            )
        return (mask.real > 0).float().expand(height, width).clone()

    def _maps(self, y: Tensor, size: tuple[int, ...]) -> Tensor | None:
        coils, said = y.shape[1], self.table.get("maps")
        if coils == 1 and said is None:
            return None
        if said is None:
            raise InputError(
                f"{self.path} has {coils} coils, and no sensitivity maps are given: say in the configuration maps = "
                '"espirit" (needs sigpy), "low-resolution", or a file of complex maps [coils, H, W]'
            )
        if said in ("espirit", "low-resolution"):
            estimate = espirit_maps if said == "espirit" else low_resolution_maps
            return torch.stack([estimate(k, self.calibration(y)) for k in y])
        maps = self.other("maps")
        maps = maps[None] if maps.ndim == 3 else maps
        want = (coils, *size)
        if tuple(maps.shape[1:]) != want or maps.shape[0] not in (1, y.shape[0]):
            raise InputError(
                f"the maps {self.files.get('maps', '')} have shape {tuple(maps.shape)}, the data need [coils, H, W] = "
                f"{want}"
            )
        return maps.to(torch.complex64).expand(y.shape[0], *want).contiguous()

    def _spokes(self, y: Tensor) -> dict[str, Tensor]:
        points, size = self.other("trajectory"), self.size()
        if points.ndim < 2 or points.is_complex() or tuple(points.flatten(0, -2).shape) != (y.shape[-1], 2):
            raise InputError(f"the trajectory has {tuple(points.shape)} points, the data {y.shape[-1]} samples: [m, 2]")
        arrays = {"y": y, "points": points.flatten(0, -2).double()}
        if y.shape[1] > 1 or "maps" in self.table:
            if self.table.get("maps") in (None, "espirit", "low-resolution"):
                raise InputError(
                    f"{self.path} has {y.shape[1]} coil(s) on a trajectory: give their maps as a file, maps = FILE"
                )
            arrays["maps"] = self._maps(y, size)  # type: ignore[assignment]
        return arrays

    def _ct(self, y: Tensor) -> dict[str, Tensor]:
        if self.table.get("data", "line-integrals") == "transmission":
            i0 = float(self.table.get("i0", float(y.max())))
            if float(y.min()) <= 0:
                raise InputError(
                    f'{self.path}: transmitted intensities are > 0; say data = "line-integrals" for others'
                )
            y = -(y / i0).log()
        return {"y": y, "angles": self._angles(y)}

    def whole(self, y: Tensor) -> None:
        """Note it if counts are not whole: their noise is then another one than that of counts of such a size."""
        if not torch.equal(y, y.round()):
            self.notes.append(
                f"the counts in {self.path} are not whole numbers (the largest is {float(y.max()):.3g}): if they were "
                "scaled or corrected, their noise is not that of counts and the uncertainty is wrong: give the raw ones"
            )

    def _pet(self, y: Tensor) -> dict[str, Tensor]:
        if float(y.min()) < 0:
            raise InputError(f"{self.path}: counts are >= 0; corrected data are no counts: give the raw ones")
        self.whole(y)
        arrays = {"y": y, "angles": self._angles(y)}
        for key in ("attenuation", "efficiency", "background"):
            if key in self.table:
                arrays[key] = self.other(key).float()
        if "background" in arrays:
            added, want = arrays["background"], tuple(y.shape[1:])
            if added.ndim > len(want) or any(
                n not in (1, m) for n, m in zip(added.shape[::-1], want[::-1], strict=False)
            ):
                raise InputError(f"background has shape {tuple(added.shape)}, the counts of a slice {want}")
            if float(added.min()) < 0:
                raise InputError(f"background is the mean of counts, >= 0, got {float(added.min()):g}")
        return arrays

    def _angles(self, y: Tensor) -> Tensor:
        said = self.table.get("angles")
        if said is None:
            raise InputError(
                "the angles of the views are missing: in the configuration angles = FILE, numbers in degrees, or "
                "{count = 180, span = 180, start = 0}"
            )
        if isinstance(said, dict):
            count = said.get("count")
            try:
                if type(count) is not int or count > 10**6:
                    raise TypeError
                angles = views(**said)
            except TypeError:
                raise InputError(f"angles = {{count, span, start}}, count a number of views, got {said}") from None
        else:
            angles = self.other("angles").flatten().double()
        if self.table.get("unit") == "radians":
            if len(angles) and float(angles.abs().max()) > 4 * math.pi:
                low, high = float(angles.min()), float(angles.max())
                self.notes.append(
                    f"angles between {low:.4g} and {high:.4g} are taken as radians, as the configuration says; if they "
                    "are degrees, leave out unit"
                )
            angles = torch.rad2deg(angles)
        if len(angles) != y.shape[1]:
            hint = ""
            if len(angles) == y.shape[-1]:
                hint = f': it looks transposed, say axes = "{"slice " if y.shape[0] > 1 else ""}detector view"'
            raise InputError(f"there are {len(angles)} angles, and {self.path} has {y.shape[1]} views{hint}")
        return angles

    def _mosaic(self, y: Tensor) -> dict[str, Tensor]:
        if "pattern" not in self.table and "pattern" not in self.form.facts:
            raise InputError('the file does not say its colours: in the configuration pattern = "rggb"')
        return {"y": y[:, None]}

    def _diffraction(self, y: Tensor) -> dict[str, Tensor]:
        if float(y.min()) < 0:
            raise InputError(f"{self.path}: magnitudes and intensities are >= 0, got {float(y.min()):g}")
        self.size()
        if self.table.get("noise") == COUNTS:
            self.whole(y)
            y = y.sqrt()
        y = torch.fft.ifftshift(y, (-2, -1)) if self.table.get("centred", True) else y
        return {"y": y[:, None].contiguous()}

    def _interferometer(self, y: Tensor) -> dict[str, Tensor]:
        for key in ("uv", "pixel"):
            if key not in self.table:
                raise InputError(
                    f"an interferometer needs {key} in the configuration (uv in wavelengths, pixel in arcsec)"
                )
        uv = self.other("uv")
        if tuple(uv.shape) != (y.shape[-1], 2):
            raise InputError(f"uv has shape {tuple(uv.shape)}, the data {y.shape[-1]} visibilities: [m, 2]")
        self.size()
        return {"y": y[:, None], "uv": uv.double()}


def _cornered(y: Tensor) -> bool:
    """Whether k-space [..., H, W] has more in a block around its corners than in one of that size in the middle."""
    power = y.abs().square().flatten(0, -3).sum(0)
    h, w = power.shape

    def middle(p: Tensor) -> float:
        return float(p[h // 2 - h // 8 : h // 2 + h // 8 + 1, w // 2 - w // 8 : w // 2 + w // 8 + 1].sum())

    return middle(torch.fft.fftshift(power)) > middle(power)


def _phase(y: Tensor, maps: Tensor | None, width: float) -> Tensor:
    """The slowly varying phase [slices, H, W] of images, from the middle of k-space under a Hann window."""
    h, w = y.shape[-2:]
    windows = []
    for n in (h, w):
        k = torch.arange(n, dtype=torch.float32) - n // 2
        windows.append(torch.where(k.abs() <= width / 2, (math.pi * k / (width + 2)).cos() ** 2, 0))
    low = torch.fft.ifftshift(y * torch.outer(*windows), (-2, -1))
    images = torch.fft.fftshift(torch.fft.ifft2(low, norm="ortho"), (-2, -1))
    phase: Tensor = (images if maps is None else images * maps.conj()).sum(1).angle()
    return phase
