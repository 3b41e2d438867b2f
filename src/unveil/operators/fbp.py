"""Filtered back-projection of parallel, fan and cone beams: the classical inverse of tomography, and its baseline.

Each view is weighted, filtered along the detector by the ramp of Ramachandran and Lakshminarayanan, and smeared back
over the image with linear interpolation: Kak and Slaney, Principles of Computerized Tomographic Imaging (1988),
sections 3.3 (parallel), 3.4.1 (arc) and 3.4.2 (line); Feldkamp, Davis and Kress 1984, J. Opt. Soc. Am. A 1, 612 (cone).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import unknown

if TYPE_CHECKING:
    from .tomography import Tomography

WINDOWS = ("ramp", "hann")


def fbp(operator: Tomography, y: Tensor, window: str = "ramp") -> Tensor:
    """Images or volumes [N, C, ...] of projections [N, C, views, ...]; see :meth:`Tomography.fbp`."""
    if window not in WINDOWS:
        raise unknown("window", window, WINDOWS)
    operator.shape_in(tuple(y.shape[1:]))
    flat = y.detach().reshape(y.shape[0] * y.shape[1], operator.detector[0], -1, operator.detector[-1])
    places, weights, scale = _detector(operator, flat)
    filtered = _filtered(flat * weights, places, window) * (scale * _step(operator))
    angles = torch.deg2rad(operator.angles.detach().cpu().double())
    out = flat.new_zeros(1, flat.shape[0], math.prod(operator.size[:-1]), operator.size[-1])
    grid = _pixels(operator)
    for view, angle in enumerate(angles.tolist()):
        columns, rows, gain = _seen(operator, grid, angle)
        at = torch.stack([columns, rows], -1).reshape(1, *out.shape[2:], 2).to(flat)
        part = torch.nn.functional.grid_sample(filtered[None, :, view], at, align_corners=True)
        out += part * gain.reshape(out.shape[2:]).to(flat)
    return out.reshape(*y.shape[:2], *operator.size)


def _step(operator: Tomography) -> float:
    """The angle that a view stands for: of a half circle of parallel rays, of half of a full one of others."""
    around = math.pi if operator.far is None else 2 * math.pi
    angles = torch.deg2rad(operator.angles.detach().cpu().double()).sort().values
    gap = float(angles.diff().median()) if len(angles) > 1 else around
    step = min(gap, around / len(angles)) if gap > 0 else around / len(angles)
    return step if operator.far is None else step / 2


def _detector(operator: Tomography, like: Tensor) -> tuple[float, Tensor, float]:
    """Of the arc between detectors (0 for a line), weights of each [rows, columns], and the filter's scale."""
    rows, columns = like.shape[-2:]
    u = (torch.arange(columns, dtype=torch.float64) - (columns - 1) / 2) * operator.spacing - float(operator.offset)
    v = (torch.arange(rows, dtype=torch.float64)[:, None] - (rows - 1) / 2) * operator.spacing
    if operator.far is None:
        return 0.0, torch.ones(1, 1).to(like), 1 / operator.spacing
    source, far = operator.source, operator.far
    if operator.curved:
        arc = operator.spacing / far
        return arc, (source * (u / far).cos())[None].to(like), 1 / arc
    return 0.0, (far / (far**2 + u**2 + v**2).sqrt()).to(like), far / (operator.spacing * source)


def _filtered(y: Tensor, arc: float, window: str) -> Tensor:
    """The ramp filter along the last axis; on an arc with (angle / sine)^2."""
    n = y.shape[-1]
    k = torch.arange(-(n - 1), n, dtype=torch.float64)
    ramp = torch.where(k == 0, 0.25, torch.where(k % 2 == 0, 0.0, -1 / (math.pi * k).square().clamp(min=1e-9)))
    if arc:
        ramp = ramp / torch.sinc(k * (arc / math.pi)).square()
    length = 2 ** math.ceil(math.log2(3 * n))
    response = torch.fft.rfft(ramp, n=length)
    if window == "hann":
        response = response * (0.5 + 0.5 * (2 * math.pi * torch.fft.rfftfreq(length, dtype=torch.float64)).cos())
    found: Tensor = torch.fft.irfft(
        torch.fft.rfft(y, n=length) * response.to(y.dtype.to_complex()).to(y.device), n=length
    )
    return found[..., n - 1 : 2 * n - 1].contiguous()


def _pixels(operator: Tomography) -> list[Tensor]:
    """Places x, y[, z] of pixels, flat, in units of length."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in operator.size]
    axes[-2] = -axes[-2]  # rows go down, y goes up
    grid = torch.meshgrid(*axes, indexing="ij")
    return [operator.pixel * g.flatten() for g in reversed(grid)]


def _seen(operator: Tomography, grid: list[Tensor], angle: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where a view's detector sees each pixel, columns and rows within [-1, 1], and with what weight it is smeared."""
    x, y, *z = grid
    across = x * math.cos(angle) + y * math.sin(angle)
    deep = y * math.cos(angle) - x * math.sin(angle)
    up = z[0] if z else torch.zeros_like(x)
    gain = torch.ones_like(x)
    if operator.far is not None:
        source, far = operator.source, operator.far
        depth = source + deep
        if operator.curved:
            gain = 1 / (across**2 + depth**2)
            across = far * torch.atan2(across, depth)
        else:
            gain = (source / depth) ** 2
            across, up = across * far / depth, up * far / depth
    half = [(n - 1) / 2 * operator.spacing for n in (operator.detector[-1], operator.detector[1])]
    columns = (across + float(operator.offset)) / max(half[0], 1e-12)
    rows = up / max(half[1], 1e-12) if z else torch.zeros_like(up)
    return columns, rows, gain
