"""The problem of each instrument of ``unveil reconstruct``: operator, noise and units of a slice of a scan."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..classical.instruments import hybrid_input_output, mlem, total_variation
from ..errors import InputError, unknown
from ..noise import Noise, Poisson, noise_level
from ..operators import (
    MRI,
    PET,
    ConeBeam,
    FanBeam,
    FourierMagnitude,
    Interferometer,
    Mosaic,
    MultiCoilMRI,
    NonCartesianMRI,
    Operator,
    ParallelBeam,
    Phased,
)
from ..problem import Problem, as_noise
from .configuration import COUNTS
from .scan import Scan


@dataclass(frozen=True)
class Measured:
    """One slice: y [1, ...] in the units in which the signal lies in [0, 1], its operator and noise.

    A value v of the signal is ``black + (white - black) v`` in the units of the instrument. ``kinds`` name the
    classical methods that belong beside it. ``ambiguous``: the data do not tell an image from its mirror image through
    the middle, and solvers end in wrong minima at times.
    """

    y: Tensor
    operator: Operator
    noise: Noise
    black: float
    white: float
    kinds: tuple[str, ...]
    complex_signal: bool = False
    ambiguous: bool = False


@dataclass(frozen=True)
class Suited:
    """What solves an instrument's problems by default, so that its samples differ by as much as they err.

    ``start``: the kind of a classical method at whose image it starts, with noise of ``sigma_start`` added.
    """

    solver: str
    steps: int
    options: dict[str, Any]
    sigma_start: float | None = None
    start: str = ""


_SEEN_THROUGH = Suited("daps", 20, {"inner": "exact", "spread": 1.0, "sigma_start": 2.0})
SUITED: dict[str, Suited] = {
    "mri": _SEEN_THROUGH,
    "ct": _SEEN_THROUGH,
    "interferometer": _SEEN_THROUGH,
    "mosaic": Suited("daps", 20, {"inner": "exact", "spread": 0.7, "sigma_start": 1.0}),
    "pet": Suited("daps", 20, {"inner": "laplace", "spread": 0.7, "sigma_start": 2.0}),
    "diffraction": Suited("daps", 25, {"inner_steps": 40, "ode_steps": 2, "spread": 0.7}, 0.3, "hio"),
}
"""As ``unveil bench scenes`` measured them (docs/scenes.md)."""


def measure(scan: Scan, k: int, channels: int | None) -> Measured:
    """The problem of slice ``k`` of those taken, for a prior of ``channels``: 2 for complex images, else magnitudes."""
    maker: Callable[[Scan, int, int | None], Measured] = globals()[f"_measure_{scan.instrument}"]
    return maker(scan, k, channels)


def _noise(scan: Scan, y: Tensor, operator: Operator) -> float:
    """The standard deviation that the configuration says, else an estimate, and a warning that it is one."""
    if "noise" in scan.table:
        return float(scan.table["noise"])
    level = noise_level(y, operator)
    sigma = float(level.sigma[0])
    how = "at most" if bool(level.upper[0]) else "about"
    why = "; where it was sought the signal is seen too" if bool(level.upper[0]) else ""
    warnings.warn(
        f"the noise is estimated from the data, a standard deviation of {how} {sigma:.3g} in their units{why}; if it "
        "is known, say noise = ... in the configuration",
        UserWarning,
        stacklevel=4,
    )
    return sigma


def _measure_mri(scan: Scan, k: int, channels: int | None) -> Measured:
    arrays, y = scan.arrays, scan.arrays["y"][k : k + 1]
    maps = arrays["maps"][k] if "maps" in arrays else None
    operator: Operator
    if "points" in arrays:
        height, width = scan.table["size"]
        operator = NonCartesianMRI(arrays["points"], (height, width), maps)
        plain = channels == 2 or scan.table.get("phase") == "none"
        phase = torch.zeros(height, width) if plain else _bare(operator, y).angle()
    else:
        operator = (
            MRI(arrays["mask"], in_shape=(2, *y.shape[-2:])) if maps is None else MultiCoilMRI(arrays["mask"], maps)
        )
        phase = arrays["phase"][k]
    sigma = _noise(scan, y, operator)
    white = _white(scan, k, lambda: _bare(operator, y).abs())
    seen = operator if channels == 2 else operator @ Phased(phase)
    return Measured(y / white, seen, as_noise(sigma / white), 0.0, white, ("zero-filled", "tv"), channels == 2)


def _bare(operator: Any, y: Tensor) -> Tensor:
    """The zero-filled complex image [H, W], scaled to explain the data."""
    x = operator.adjoint(y)
    again = operator(x)
    gain = (y.conj() * again).real.sum() / again.abs().square().sum().clamp(min=1e-30)
    image: Tensor = torch.complex(x[0, 0], x[0, 1]) * gain
    return image


def _white(scan: Scan, k: int, image: Callable[[], Tensor]) -> float:
    """What is to be white: what the configuration says, else nearly the largest value of a quick image of slice k."""
    if "white" in scan.table:
        return float(scan.table["white"])
    if ("white", k) not in scan.kept:
        scan.kept["white", k] = _nearly_largest(image())
    return float(scan.kept["white", k])


def _nearly_largest(image: Tensor) -> float:
    flat = image.flatten().float()
    return max(float(flat.kthvalue(max(1, math.ceil(0.999 * flat.numel()))).values), 1e-30)


def _beam(scan: Scan, factor: float = 1.0) -> ParallelBeam | FanBeam | ConeBeam:
    """The projector of a configuration, every length times ``factor``, and its integrals with them; the same for all
    slices."""
    if factor not in scan.kept:
        scan.kept[factor] = _projector(scan, factor)
        scan.kept[factor].in_shape = (1, *scan.kept[factor].size)
    found: ParallelBeam | FanBeam | ConeBeam = scan.kept[factor]
    return found


def _projector(scan: Scan, factor: float) -> ParallelBeam | FanBeam | ConeBeam:
    table, y, angles = scan.table, scan.arrays["y"], scan.arrays["angles"]
    beam = table.get("beam", "parallel")
    if beam not in ("parallel", "fan", "arc", "cone"):
        raise unknown("beam", str(beam), ("parallel", "fan", "arc", "cone"))
    said = {"spacing": 1.0, "pixel": 1.0, **table}
    lengths = {key: factor * float(said[key]) for key in ("spacing", "pixel", "offset", "distance") if key in said}
    size = table.get("size")
    if size is None and beam == "parallel":
        size = [y.shape[-1], y.shape[-1]]
    want = 3 if beam == "cone" else 2
    if not isinstance(size, list) or len(size) != want or not all(isinstance(n, int) and n > 0 for n in size):
        raise InputError(f"a {beam} beam needs the image's size in the configuration: size = {[256] * want}")
    if beam == "parallel":
        for key in ("source", "distance"):
            if key in table:
                raise InputError(f'{key} belongs to fan and cone beams: say beam = "fan", or leave it out')
        return ParallelBeam(angles, (size[0], size[1]), y.shape[-1], **lengths)
    if "source" not in table:
        raise InputError(f"a {beam} beam needs source, its distance from the axis, in the configuration")
    source = factor * float(table["source"])
    if beam == "cone":
        return ConeBeam(angles, (size[0], size[1], size[2]), (y.shape[-2], y.shape[-1]), source=source, **lengths)
    return FanBeam(angles, (size[0], size[1]), y.shape[-1], source=source, curved=beam == "arc", **lengths)


def _measure_ct(scan: Scan, k: int, channels: int | None) -> Measured:  # noqa: ARG001
    y, operator = scan.arrays["y"][k : k + 1, None], _beam(scan)
    shape = (1, *operator.size)
    sigma = _noise(scan, y, operator)
    black = float(scan.table.get("black", 0))
    white = _white(scan, k, lambda: operator.fbp(y, "hann"))
    if not white > black:
        raise InputError(f"white must be larger than black, got {white:g} and {black:g}")
    if black:
        y = y - operator(torch.full((1, *shape), black))
    # in a unit of length in which the largest singular value is 1, as solvers know it from photographs
    largest = float(operator.norm(torch.empty(1, *shape)))
    if not 0 < largest < math.inf:
        raise InputError("no ray meets the image: check size, pixel, spacing and offset, all in one unit of length")
    unit = 1 / largest
    scale = (white - black) / unit
    operator = _beam(scan, unit)
    return Measured(y / scale, operator, as_noise(sigma / scale), black, white, ("fbp", "sart", "tv"))


def _measure_pet(scan: Scan, k: int, channels: int | None) -> Measured:  # noqa: ARG001
    arrays, rays = scan.arrays, _beam(scan)
    y = arrays["y"][k : k + 1, None]
    fwhm = float(scan.table.get("fwhm", 0))
    pet = PET(rays, fwhm, arrays.get("attenuation"), arrays.get("efficiency"))
    largest = float(pet.norm(torch.empty(1, 1, *rays.size)))
    body = PET(rays, 0.0, arrays.get("attenuation")).factors
    if not 0 < largest < math.inf or float(body.max()) < 1e-6 or float(body.median()) < 1e-12:
        raise InputError(
            "no count would reach the detectors: check size, pixel, spacing and offset, all in one unit of length, "
            "attenuation, per that unit, and efficiency"
        )
    # in units of counts in which the largest singular value is 1, as solvers know it from photographs
    white = _white(scan, k, lambda: _bare_activity(pet, y, arrays.get("background")))
    scale = white * largest
    efficiency = arrays.get("efficiency", torch.ones(())) / largest
    operator: Operator = PET(rays, fwhm, arrays.get("attenuation"), efficiency)
    if "background" in arrays:
        operator = operator + arrays["background"] / scale
    # lines of response that count less than once in four scans tell nothing by how much less
    return Measured(y / scale, operator, Poisson(scale, floor=0.25), 0.0, white, ("mlem",))


def _bare_activity(pet: PET, y: Tensor, background: Tensor | None) -> Tensor:
    return mlem(Problem(y, pet, Poisson(1.0)), 0.0 if background is None else background, steps=10)


def _measure_mosaic(scan: Scan, k: int, channels: int | None) -> Measured:  # noqa: ARG001
    y = scan.arrays["y"][k : k + 1]
    black, white = float(scan.table.get("black", 0.0)), float(scan.table.get("white", 1.0))
    if not white > black:
        raise InputError(f"white must be larger than black, got {white:g} and {black:g}")
    operator = Mosaic(scan.table.get("pattern", scan.form.facts.get("pattern", "rggb")), (3, *y.shape[-2:]))
    sigma = _noise(scan, y, operator)
    scale = white - black
    return Measured((y - black) / scale, operator, as_noise(sigma / scale), black, white, ("interpolated",))


def _measure_interferometer(scan: Scan, k: int, channels: int | None) -> Measured:  # noqa: ARG001
    y, table = scan.arrays["y"][k : k + 1], scan.table
    height, width = table["size"]
    if "sky" not in scan.kept:
        scan.kept["sky"] = Interferometer(scan.arrays["uv"], (height, width), float(table["pixel"]))
        scan.kept["sky"].in_shape = (1, height, width)
    operator = scan.kept["sky"]
    sigma = _noise(scan, y, operator)

    def sky() -> Tensor:
        """No baseline measures its level: where it is darkest it is 0."""
        image = total_variation(Problem(y, operator, as_noise(sigma)))
        return image - image.quantile(0.05)

    white = _white(scan, k, sky)
    return Measured(y / white, operator, as_noise(sigma / white), 0.0, white, ("zero-filled", "tv"))


def _measure_diffraction(scan: Scan, k: int, channels: int | None) -> Measured:  # noqa: ARG001
    y, table = scan.arrays["y"][k : k + 1], scan.table
    (h, w), field, counts = table["size"], tuple(y.shape[-2:]), table.get("noise") == COUNTS
    power = 1 if counts else int(table.get("power", 2))
    if h > field[0] or w > field[1]:
        raise InputError(f"the image, {h} x {w}, is larger than the field of {field[0]} x {field[1]}")
    operator = FourierMagnitude((1, h, w), max(1.0, field[0] / h - 1e-9), power)
    if operator.linear.shape_out((1, h, w))[1:] != field:
        raise InputError(
            f"the field, {field[0]} x {field[1]}, is as many times the image, {h} x {w}, along rows as along columns: "
            "correct size, or crop the data"
        )
    sigma = 0.5 if counts else _noise(scan, y, operator)  # of the square root of counts, whatever their mean
    if sigma == 0 and "noise" not in table:
        raise InputError("most values are alike, which tells nothing of the noise: say noise = ..., 0 for none")
    white = _white(scan, k, lambda: hybrid_input_output(Problem(y, operator, as_noise(sigma)), steps=100, restarts=1))
    scale = white**power
    return Measured(y / scale, operator, as_noise(sigma / scale), 0.0, white, ("hio",), ambiguous=True)
