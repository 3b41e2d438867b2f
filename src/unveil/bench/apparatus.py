"""What scenes are made of: instruments, the classical methods that stand beside solvers, and pictures of their data.

An instrument is a function from the shape [C, H, W] of an image to its operator and noise; a rival one from a problem
of the image alone and the truth [1, C, H, W], to choose a parameter by, to an image; a picture one from a problem to
something to look at, [1, C, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..classical import instruments as classic
from ..classical import variation
from ..noise import Noise, Poisson, Quantisation
from ..operators import PET, Interferometer, MultiCoilMRI, Operator, ParallelBeam, Phased
from ..operators.coils import birdcage_maps
from ..operators.masks import random_lines, uv_coverage
from ..operators.nufft import ARCSECOND
from ..operators.tomography import views
from ..problem import Problem, as_noise

SIDE = 128
"""Of the images, in pixels."""

Rival = Callable[[Problem, Tensor], Tensor]
"""A classical method: from a problem of the image alone, and the truth to choose a parameter by, [1, C, H, W]."""


# -- what an instrument measures ---------------------------------------------------------------------------------------


def mri(acceleration: float) -> Callable[[tuple[int, ...]], tuple[Operator, Noise]]:
    """Four coils, some of the lines at random, and a phase over the image."""

    def make(shape: tuple[int, ...]) -> tuple[Operator, Noise]:
        height, width = shape[-2:]
        maps = birdcage_maps(4, (height, width))
        mask = random_lines((height, width), acceleration)
        rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
        phase = 0.6 * rows + 0.9 * rows * columns - 0.5 * columns**2
        return MultiCoilMRI(mask, maps) @ Phased(phase), as_noise(0.02)

    return make


def ct(shape: tuple[int, ...]) -> tuple[Operator, Noise]:
    """Thirty views of parallel rays."""
    # a pixel is 1 / SIDE wide, so that integrals are those of an object one unit across
    return ParallelBeam(views(30), (shape[-2], shape[-1]), spacing=1 / SIDE, pixel=1 / SIDE), as_noise(0.003)


def pet(shape: tuple[int, ...]) -> tuple[Operator, Noise]:
    """Three counts of an activity of 1 along a pixel, in units in which the largest singular value is 1."""
    rays = ParallelBeam(views(60), (shape[-2], shape[-1]), 160)
    largest = float(PET(rays, 2.0).norm(torch.empty(1, *shape)))
    return PET(rays, 2.0, efficiency=torch.tensor(1 / largest)), Poisson(3 * largest, floor=0.25)


def array(shape: tuple[int, ...]) -> tuple[Operator, Noise]:
    """Twenty antennas for eight hours; their longest baseline nearly resolves a pixel."""
    places = 300 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    uv = uv_coverage(places, torch.linspace(-4, 4, 25), 40.0, 34.0, 0.03)
    pixel = 0.45 / float(uv.abs().max()) / ARCSECOND
    return Interferometer(uv, (shape[-2], shape[-1]), pixel), as_noise(0.05)


# -- the classical methods of an instrument, each at its best where it has a parameter ---------------------------------


def nearest(tries: Sequence[Tensor], x: Tensor) -> Tensor:
    """The one that comes nearest to the truth, which favours the method."""
    return min(tries, key=lambda t: float((t.clamp(0, 1) - x).square().sum()))


def back_projected(problem: Problem, x: Tensor) -> Tensor:
    """Filtered back-projection, with the better of two windows."""
    assert isinstance(problem.operator, ParallelBeam)
    tries = [problem.operator.fbp(problem.y, window) for window in ("ramp", "hann")]
    return nearest(tries, x)


def varied(problem: Problem, x: Tensor) -> Tensor:
    """Total variation, with the best of several weights."""
    return nearest(list(classic.variations(problem, problem.sigma_y)), x)


def likeliest(problem: Problem, x: Tensor, steps: int = 200) -> Tensor:
    """Total variation for noise of any kind with the best of five weights, each from the last one's image."""
    tries, here = [], torch.full_like(problem.like, 0.5)
    for weight in (64.0, 32.0, 16.0, 8.0, 4.0):
        here = variation.by_score(problem, weight, here, steps)
        tries.append(here)
    return nearest(tries, x)


def smoothed(problem: Problem, x: Tensor) -> Tensor:
    """The share of ones around a pixel, and the value that gives it through the noise; the best of six widths."""
    noise = problem.noise
    assert isinstance(noise, Quantisation)
    tries = []
    for width in (0.7, 1.0, 1.4, 2.0, 2.8, 4.0):
        share = _blurred(problem.y, width).clamp(0.02, 0.98)
        tries.append(0.5 + noise.scale * torch.special.ndtri(share))
    return nearest(tries, x)


def _blurred(y: Tensor, width: float) -> Tensor:
    n = math.ceil(3 * width)
    line = torch.exp(-0.5 * (torch.arange(-n, n + 1) / width) ** 2)
    line = (line / line.sum()).expand(y.shape[1], 1, -1)
    for kernel, pad in ((line[..., None], (0, 0, n, n)), (line[:, :, None], (n, n, 0, 0))):
        y = torch.nn.functional.conv2d(torch.nn.functional.pad(y, pad, "reflect"), kernel, groups=y.shape[1])
    return y


def emitted(problem: Problem, x: Tensor) -> Tensor:
    """Maximum likelihood, stopped at the best of four numbers of steps."""
    return nearest([classic.mlem(problem, steps=steps) for steps in (5, 10, 20, 50)], x)


def untuned(method: Callable[[Problem], Tensor]) -> Rival:
    """A classical method without a parameter to choose, as a rival."""
    return lambda problem, _: method(problem)


# -- pictures of data --------------------------------------------------------------------------------------------------


def lines(problem: Problem) -> Tensor:
    """Magnitudes of k-space over all coils, dark ones lifted."""
    y = problem.y.abs().square().sum(1, keepdim=True).sqrt()
    return (y / y.amax()) ** 0.25


def itself(problem: Problem) -> Tensor:
    """Data that are a picture."""
    return problem.y.expand(-1, 3, -1, -1) if problem.y.shape[1] == 1 else problem.y


def sinogram(problem: Problem) -> Tensor:
    """Line integrals, views downwards."""
    y = problem.y / problem.y.amax()
    return torch.nn.functional.interpolate(y, problem.shape[-2:], mode="nearest")


def pattern(problem: Problem) -> Tensor:
    """Magnitudes with the zero frequency in the middle, dark ones lifted."""
    y = torch.fft.fftshift(problem.y, dim=(-2, -1)).clamp_min(0)
    y = (y / y.amax()) ** 0.25
    return torch.nn.functional.interpolate(y, problem.shape[-2:], mode="area")


def dirty(problem: Problem) -> Tensor:
    """The dirty image."""
    image = classic.zero_filled(problem)
    return image / image.amax()
