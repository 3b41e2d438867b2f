"""Kernels of blurs: float32, non-negative, summing to one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError


def _normalised(kernel: Tensor) -> Tensor:
    """A float64 kernel as float32, its sum one to within a rounding of the largest weight."""
    out = (kernel / kernel.sum()).float()
    top = int(out.argmax())
    out.view(-1)[top] += (1 - out.double().sum()).float()
    return out


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """A Gaussian of ``std`` pixels [size, size], float32, summing to one.

    ``size`` defaults to three standard deviations on either side. An even size is centred on its pixel ``size
    // 2``.
    """
    if not std > 0:
        raise InputError(f"a Gaussian kernel needs std > 0 (in pixels), got {std}")
    size = 2 * math.ceil(3 * std) + 1 if size is None else size
    g = torch.exp(-0.5 * ((torch.arange(size, dtype=torch.float64) - size // 2) / std) ** 2)
    return _normalised(torch.outer(g, g))


def box_kernel(size: int) -> Tensor:
    """Equal weights [size, size], float32, summing to one."""
    if size < 1:
        raise InputError(f"a box kernel needs size >= 1, got {size}")
    return _normalised(torch.ones(size, size, dtype=torch.float64))


def motion_kernel(length: float, angle: float = 0.0) -> Tensor:
    """Motion along a straight line, antialiased: [size, size], odd size, float32, summing to one.

    ``length`` is the number of pixels that the trace covers, from the middle of its first to the middle of
    its last (1 is no blur); ``angle`` in degrees, counter-clockwise from the horizontal. The trace is centred
    and its weight is spread over neighbouring pixels by linear interpolation.
    """
    if not length >= 1:
        raise InputError(f"a motion kernel needs length >= 1 (in pixels), got {length}")
    half = (length - 1) / 2
    radius = math.ceil(half)
    count = 64 * max(1, math.ceil(length))
    along = ((torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5) * 2 * half
    row = radius - along * math.sin(math.radians(angle))
    col = radius + along * math.cos(math.radians(angle))
    return _traced(row, col, 2 * radius + 1)


def random_motion_kernel(length: float, intensity: float = 0.5, seed: int = 0, size: int | None = None) -> Tensor:
    """The trace of a shaking hand: [size, size], float32, summing to one; the same for the same arguments.

    A particle at constant speed is turned by random forces, is pulled back to where it started and gets sudden jerks
    (the model of Boracchi and Foi 2012, IEEE Trans. Image Process. 21, 3502). Its trace is centred at its centre of
    mass and spread over neighbouring pixels by linear interpolation.

    Parameters
    ----------
    length:
        Of the path, in pixels, as in :func:`motion_kernel`: 1 is no blur.
    intensity:
        Of the shaking: 0 is a straight line of random direction, 1 a tangle.
    seed:
        Of the path; a generator of its own.
    size:
        Side of the kernel; the smallest odd one that holds the trace by default.

    Raises :class:`InputError` if the trace does not fit into ``size``.
    """
    if not length >= 1 or not 0 <= intensity <= 1:
        raise InputError(
            f"a motion kernel needs length >= 1 (pixels) and intensity in [0, 1], got {length}, {intensity}"
        )
    g = torch.Generator().manual_seed(seed)
    count = max(1, math.ceil(16 * (length - 1)))
    step = (length - 1) / count
    angle = 2 * math.pi * float(torch.rand((), generator=g, dtype=torch.float64))
    force = torch.randn(count, 2, generator=g, dtype=torch.float64)
    jerk = torch.rand(count, generator=g, dtype=torch.float64) < 0.15 * intensity * step
    kick = 1.5 * torch.randn(count, 2, generator=g, dtype=torch.float64)
    v = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
    path = [torch.zeros(2, dtype=torch.float64)]
    for k in range(count):
        v = v + intensity * (0.5 * step**0.5 * force[k] - 0.03 * step * path[-1])
        v = v + kick[k] if jerk[k] else v
        v = v / torch.linalg.vector_norm(v)
        path.append(path[-1] + step * v)
    trace = torch.stack(path)
    trace = (trace[1:] + trace[:-1]) / 2
    trace = trace - trace.mean(0)
    need = 2 * math.ceil(float(trace.abs().max())) + 1
    size = need if size is None else size
    if size < need:
        raise InputError(f"the trace needs a kernel of {need} x {need}, got size {size}: ask for less length")
    row, col = (trace + size // 2).unbind(1)
    return _traced(row, col, size)


def path_kernel(path: Tensor, size: int) -> Tensor:
    """The kernel [size, size] of a motion along a path [k, 2] of points at equal times, differentiable in them.

    Points are rows and columns in pixels from the middle of the kernel; each is spread over its four neighbours and
    weighs as much as the others. What an unknown motion is fitted by: ``blur.bind(kernel=path_kernel(path, 15))``.
    Raises :class:`InputError` for points that leave the kernel.
    """
    if not isinstance(path, Tensor) or path.ndim != 2 or path.shape[1] != 2 or not path.is_floating_point():
        raise InputError("a path is [k, 2]: rows and columns of its points, in pixels from the middle")
    if not float(path.detach().abs().max()) <= (size - 1) / 2:
        raise InputError(f"the path leaves a kernel of {size} x {size}: take a larger size, or shorter steps")
    row, col = (path + (size - 1) / 2).unbind(1)
    return _spread(row, col, size) / len(path)


def disk_kernel(radius: float) -> Tensor:
    """A lens out of focus: a disk of ``radius`` pixels, antialiased, [size, size], float32, summing to one."""
    if not radius >= 0:
        raise InputError(f"a disk kernel needs radius >= 0 (in pixels), got {radius}")
    half, fine = math.ceil(radius), 16
    n = 2 * half + 1
    at = (torch.arange(n * fine, dtype=torch.float64) + 0.5) / fine - n / 2
    inside = (at[:, None] ** 2 + at**2 <= max(radius, 0.5) ** 2).double()
    return _normalised(inside.reshape(n, fine, n, fine).mean((1, 3)))


def read_kernel(path: str | Path) -> Tensor:
    """The kernel [h, w] in a file: an image, whose brightness means nothing, or numbers (.npy, .txt, .csv) of sum one.

    Raises :class:`InputError` if it cannot be read or is no kernel.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no kernel file {path}")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".txt", ".csv"):
        try:
            raw = (
                np.load(path, allow_pickle=False)
                if suffix == ".npy"
                else np.loadtxt(path, delimiter="," if suffix == ".csv" else None, ndmin=2)
            )
            kernel = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32))
        except (ValueError, OSError, EOFError, TypeError) as error:
            raise InputError(f"cannot read the kernel {path}: {str(error).splitlines()[0]}") from None
    else:
        from ..io.images import read_image

        kernel = read_image(path)[0].mean(0).double()
        if float(kernel.sum()) == 0:
            raise InputError(f"the kernel {path} is black")
        kernel = (kernel / kernel.sum()).float()
    if kernel.ndim != 2 or kernel.numel() == 0:
        raise InputError(f"the kernel {path} has shape {tuple(kernel.shape)}: it must be one plane of numbers")
    if not bool(torch.isfinite(kernel).all()):
        raise InputError(f"the kernel {path} holds NaN or infinite values")
    total = float(kernel.double().sum())
    if abs(total - 1) > 1e-3:
        raise InputError(f"the kernel {path} sums to {total:.4g}, not to one: divide it by its sum")
    return kernel


def _traced(row: Tensor, col: Tensor, size: int) -> Tensor:
    """A kernel [size, size] of the points of a trace, in pixels, float32, summing to one."""
    return _normalised(_spread(row, col, size))


def _spread(row: Tensor, col: Tensor, size: int) -> Tensor:
    """How often each of size x size pixels was met by points, each spread over its four neighbours."""
    pixels = torch.arange(size, dtype=row.dtype, device=row.device)
    weight_row = (1 - (row[:, None] - pixels).abs()).clamp(min=0)
    weight_col = (1 - (col[:, None] - pixels).abs()).clamp(min=0)
    return weight_row.T @ weight_col
