"""Computed tomography with parallel, fan and cone beams; positron emission tomography."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Linear, Operator, Parametric, Shape, broadcasts
from .blur import Blur
from .kernels import gaussian_kernel
from .layout import Layout, plain
from .rays import Rays

MEMORY = 2.0**30


class Tomography(Parametric, Rays):
    """Projections of an object at several angles around its z axis: a base class.

    At angle t the rays go along (-sin t, cos t), and the detector's first axis along (cos t, sin t): counter-clockwise,
    with x to the right and y upwards. ``angles`` [views] in degrees and ``offset``, the place of the axis on the
    detector in units of length, are parameters that can be unknown.
    """

    parameters: ClassVar[tuple[str, ...]] = ("angles", "offset")
    source: float = math.inf
    distance: float = 0.0
    curved: bool = False

    def __init__(
        self,
        angles: Tensor,
        size: Shape,
        detector: Shape,
        spacing: float,
        pixel: float,
        offset: float | Tensor,
        memory: float,
    ) -> None:
        angles = torch.as_tensor(angles)
        angles = angles if angles.is_floating_point() else angles.double()
        if angles.ndim != 1 or len(angles) == 0 or not bool(torch.isfinite(angles).all()):
            raise InputError(
                f"angles are a list of degrees, one finite number for each view, got shape {tuple(angles.shape)}"
            )
        if len(angles) >= 3 and float(angles.detach().abs().max()) <= 2 * math.pi + 1e-6:
            warnings.warn(
                f"angles between {float(angles.min()):.3g} and {float(angles.max()):.3g} are taken as degrees; if they "
                "are radians, pass torch.rad2deg(angles)",
                UserWarning,
                stacklevel=3,
            )
        _lengths(spacing, pixel)
        super().__init__(size, (len(angles), *detector), pixel, memory)
        self.angles, self.spacing = angles, float(spacing)
        self.offset = torch.as_tensor(offset, dtype=torch.float64 if isinstance(offset, int | float) else None)
        if not bool(torch.isfinite(self.offset).all()):
            raise InputError(f"the offset is a finite length, from the middle of the detector, got {offset}")

    @property
    def moving(self) -> bool:
        return self.angles.requires_grad or self.offset.requires_grad

    @property
    def far(self) -> float | None:
        """From source to detector; None where rays are parallel."""
        return None if self.source == math.inf else self.source + self.distance

    def fbp(self, y: Tensor, window: str = "ramp") -> Tensor:
        """Filtered back-projection [N, C, ...] of projections [N, C, views, ...] at equidistant angles.

        Over a half circle (parallel) or a full one; where there is less, what was not seen is missing from the image,
        and a fan or cone loses contrast. The window "hann" damps high frequencies, and noise with them. See
        :mod:`unveil.operators.fbp`.
        """
        from .fbp import fbp

        return fbp(self, y, window)

    def layouts(self, y: Tensor) -> tuple[Layout, ...]:
        """Smooth along the detector, and along the views where there are many; rays that met much are the noisier."""
        both = plain(y)
        return replace(both, uneven=True), replace(both, axes=(-1, -1, -1), uneven=True)

    def astra(self, channels: int = 1, kind: str | None = None) -> Linear:
        """The same projections by the package astra-toolbox. See :mod:`unveil.operators.astra`."""
        from .astra import astra

        return astra(self, channels, kind)

    def _view(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of rays: cosine and sine of their angle, place along the detector, and along its second axis, in pixels."""
        columns = self.detector[-1]
        rows = self.detector[1] if len(self.detector) == 3 else 1
        view = torch.div(index, rows * columns, rounding_mode="floor")
        row = torch.div(index, columns, rounding_mode="floor") % rows
        angle = torch.deg2rad(self.angles.to(index.device).double())[view]
        u = (index % columns).double() - (columns - 1) / 2
        along = (u * self.spacing - self.offset.to(index.device).double()) / self.pixel
        across = (row.double() - (rows - 1) / 2) * self.spacing / self.pixel
        return angle.cos(), angle.sin(), along, across


@register("operator", "parallel-beam")
class ParallelBeam(Tomography):
    """Parallel-beam tomography: images [C, H, W] to sinograms [C, views, detectors].

    y = integrals of the image along the lines x cos t + y sin t = s (Radon 1917), by :mod:`unveil.operators.rays`.

    Parameters
    ----------
    angles:
        [views] in degrees; few make sparse-view, a part of the half circle limited-angle tomography (:func:`views`).
    size:
        (H, W).
    detectors:
        Their number; enough for the diagonal of the image by default.
    spacing, pixel:
        Of detectors, and of pixels, in one unit of length.
    offset:
        Where the axis of rotation falls on the detector, from its middle, in that unit.
    memory:
        Bytes that may be kept to make projections fast.

    Raises :class:`InputError` for sizes that do not fit; warns when angles look like radians.
    """

    def __init__(
        self,
        angles: Tensor,
        size: tuple[int, int],
        detectors: int | None = None,
        *,
        spacing: float = 1.0,
        pixel: float = 1.0,
        offset: float | Tensor = 0.0,
        memory: float = MEMORY,
    ) -> None:
        _lengths(spacing, pixel)
        count = math.ceil(math.hypot(*size) * pixel / spacing) + 1 if detectors is None else detectors
        super().__init__(angles, size, (count,), spacing, pixel, offset, memory)

    @classmethod
    def example(cls) -> Operator:
        operator = cls(views(5, start=7.0), (8, 7))
        operator.in_shape = (2, 8, 7)
        return operator

    def rays(self, index: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin, s, _ = self._view(index)
        return torch.stack([s * cos, s * sin], 1), torch.stack([-sin, cos], 1)


class Divergent(Tomography):
    """Rays from a point source to a detector on the other side of the axis: a base class."""

    def _distances(self, source: float, distance: float) -> None:
        _finite(source, distance)
        reach = math.hypot(*self.size[-2:]) / 2 * self.pixel
        if not source > reach:
            raise InputError(
                f"the source, {source:g} from the axis, lies within the image, whose corners reach {reach:.4g}"
            )
        if not distance >= 0:
            raise InputError(f"the detector's distance from the axis is >= 0, got {distance}")
        self.source, self.distance = float(source), float(distance)

    def _between(self, cos: Tensor, sin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Source, and direction to points ``end`` of the turned frame (along the detector, along the beam[, z])."""
        origin = torch.zeros_like(end)
        origin[:, 1] = -self.source / self.pixel
        direction = end - origin
        direction = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)

        def turned(v: Tensor) -> Tensor:
            return torch.stack([v[:, 0] * cos - v[:, 1] * sin, v[:, 0] * sin + v[:, 1] * cos, *v[:, 2:].unbind(1)], 1)

        return turned(origin), turned(direction)


@register("operator", "fan-beam")
class FanBeam(Divergent):
    """Fan-beam tomography: images [C, H, W] to sinograms [C, views, detectors].

    Parameters
    ----------
    angles, size, detectors, spacing, pixel, offset, memory:
        As in :class:`ParallelBeam`. Spacing and offset are on the detector.
    source, distance:
        Of the source and of the detector from the axis, in the unit of ``pixel``.
    curved:
        Detectors at equal angles on an arc around the source, as in medical scanners; on a line by default.
    """

    def __init__(
        self,
        angles: Tensor,
        size: tuple[int, int],
        detectors: int | None = None,
        *,
        source: float,
        distance: float = 0.0,
        curved: bool = False,
        spacing: float = 1.0,
        pixel: float = 1.0,
        offset: float | Tensor = 0.0,
        memory: float = MEMORY,
    ) -> None:
        _lengths(spacing, pixel)
        _finite(source, distance)
        reach = math.hypot(*size) / 2 * pixel
        half = math.asin(min(1.0, reach / source)) if source > 0 else 0.0
        wide = (half if curved else min(math.tan(half), 1e3)) * (source + distance)
        count = 2 * math.ceil(wide / spacing) + 1 if detectors is None else detectors
        super().__init__(angles, size, (count,), spacing, pixel, offset, memory)
        self._distances(source, distance)
        self.curved = bool(curved)

    @classmethod
    def example(cls) -> Operator:
        operator = cls(views(5, 360.0, start=7.0), (8, 7), source=20.0, distance=10.0)
        operator.in_shape = (2, 8, 7)
        return operator

    def rays(self, index: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin, u, _ = self._view(index)
        far = (self.source + self.distance) / self.pixel
        if self.curved:
            end = torch.stack([far * (u / far).sin(), far * (u / far).cos() - self.source / self.pixel], 1)
        else:
            end = torch.stack([u, torch.full_like(u, self.distance / self.pixel)], 1)
        return self._between(cos, sin, end)


@register("operator", "cone-beam")
class ConeBeam(Divergent):
    """Cone-beam tomography on a circle: volumes [C, D, H, W] to projections [C, views, rows, detectors].

    The axis is that of the slices; rows of the flat detector go along it.

    Parameters
    ----------
    angles, spacing, pixel, offset, memory:
        As in :class:`ParallelBeam`; voxels are cubes of side ``pixel``, detector pixels squares of side ``spacing``.
    size:
        (D, H, W).
    detectors:
        (rows, columns) of the detector.
    source, distance:
        Of the source and of the detector from the axis, in the unit of ``pixel``.
    """

    def __init__(
        self,
        angles: Tensor,
        size: tuple[int, int, int],
        detectors: tuple[int, int],
        *,
        source: float,
        distance: float = 0.0,
        spacing: float = 1.0,
        pixel: float = 1.0,
        offset: float | Tensor = 0.0,
        memory: float = MEMORY,
    ) -> None:
        if len(size) != 3 or len(detectors) != 2:
            raise InputError(
                f"a cone beam has size (D, H, W) and detectors (rows, columns), got {size} and {detectors}"
            )
        super().__init__(angles, size, detectors, spacing, pixel, offset, memory)
        self._distances(source, distance)

    @classmethod
    def example(cls) -> Operator:
        operator = cls(views(3, 360.0, start=7.0), (3, 5, 4), (4, 9), source=12.0, distance=4.0)
        operator.in_shape = (1, 3, 5, 4)
        return operator

    def rays(self, index: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin, u, v = self._view(index)
        end = torch.stack([u, torch.full_like(u, self.distance / self.pixel), v], 1)
        return self._between(cos, sin, end)


@register("operator", "pet")
class PET(Parametric, Linear):
    """Positron emission tomography: activity [C, H, W] to mean counts [C, views, detectors].

    y = factors * P(K x): line integrals P of the activity blurred by the scanner's resolution K, times what attenuation
    and efficiency leave. Known means of random and scattered coincidences are an offset, ``PET(...) + background``;
    the noise is :class:`~unveil.noise.Poisson`. (Shepp and Vardi 1982, IEEE Trans. Med. Imaging 1, 113.)

    Parameters
    ----------
    projector:
        The lines of response, as :class:`ParallelBeam`.
    fwhm:
        Full width at half maximum of the scanner's resolution, in pixels; 0 for a sharp one.
    attenuation:
        [H, W] map of the attenuation coefficient, per unit of length of the projector; None for none.
    efficiency:
        Of the detectors, broadcastable to [views, detectors]; None for 1.

    The product of efficiency and attenuation is ``factors``, a parameter that can be unknown.
    """

    parameters: ClassVar[tuple[str, ...]] = ("factors",)

    def __init__(
        self,
        projector: Rays,
        fwhm: float = 0.0,
        attenuation: Tensor | None = None,
        efficiency: Tensor | None = None,
    ) -> None:
        if not fwhm >= 0:
            raise InputError(f"the resolution's fwhm is >= 0 pixels, got {fwhm}")
        self.projector = projector
        self.blur = Blur(gaussian_kernel(fwhm / math.sqrt(8 * math.log(2))), "reflect") if fwhm > 0 else None
        factors = torch.ones(projector.detector, dtype=torch.float64)
        for name, value in (("attenuation", attenuation), ("efficiency", efficiency)):
            if value is not None and not bool(((value >= 0) & torch.isfinite(value)).all()):
                raise InputError(f"{name} must be finite and >= 0")
        if attenuation is not None:
            if not broadcasts(tuple(attenuation.shape), projector.size):
                raise InputError(
                    f"the attenuation has shape {tuple(attenuation.shape)}, the image {projector.size}: they must be "
                    "of one size"
                )
            channels = 1 if projector.in_shape is None else projector.in_shape[0]
            factors = torch.exp(-projector(attenuation.double().expand(1, channels, *projector.size))[0, 0])
        if efficiency is not None:
            shape = tuple(efficiency.shape)
            if not broadcasts(shape, projector.detector):
                raise InputError(f"the efficiency {shape} does not broadcast to {projector.detector}: one per detector")
            factors = factors * efficiency
        self.factors = factors
        self.in_shape = projector.in_shape

    @classmethod
    def example(cls) -> Operator:
        return cls(ParallelBeam.example(), 1.5, 0.02 * torch.ones(8, 7), torch.linspace(0.8, 1.2, 5)[:, None])  # type: ignore[arg-type]

    def check(self, in_shape: Shape) -> None:
        super().check(in_shape)
        self.projector.check(in_shape)

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return self.projector.shape_out(in_shape)

    def shape_in(self, out_shape: Shape) -> Shape | None:
        return self.projector.shape_in(out_shape)

    def _factors(self, like: Tensor) -> Tensor:
        if self.factors.requires_grad:
            return self.factors.to(like)
        return self.tensor("factors", like, lambda: self.factors.cpu())

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return self.projector(x if self.blur is None else self.blur(x)) * self._factors(x)

    def adjoint(self, y: Tensor) -> Tensor:
        x = self.projector.adjoint(y * self._factors(y))
        return x if self.blur is None else self.blur.adjoint(x)


def _lengths(spacing: float, pixel: float) -> None:
    if not 0 < spacing < math.inf:
        raise InputError(f"detector pixels have a spacing > 0, got {spacing}")
    if not 0 < pixel < math.inf:
        raise InputError(f"a pixel has a side > 0, got {pixel}")


def _finite(source: float, distance: float) -> None:
    if not (math.isfinite(source) and math.isfinite(distance)):
        raise InputError(
            f"source and distance are finite lengths, got {source} and {distance}: a source far away is a ParallelBeam"
        )


def views(count: int, span: float = 180.0, start: float = 0.0) -> Tensor:
    """``count`` angles in degrees, equidistant from ``start`` on over ``span`` (its end excluded): float64."""
    if count < 1 or not span > 0:
        raise InputError(f"views needs count >= 1 and span > 0 degrees, got {count} and {span}")
    return start + span * torch.arange(count, dtype=torch.float64) / count
