"""From data of instruments: zero-filling, total variation, back-projection, SART, MLEM, input-output, interpolation.

Where a method has a parameter it comes from the data: the residual is to be as large as the noise (the discrepancy
principle of Morozov 1966, Soviet Math. Dokl. 7, 414).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..operators.base import Linear
from ..operators.combine import Affine
from ..operators.phase import FourierMagnitude, Padded
from ..operators.tomography import Tomography
from ..problem import Problem, squared_norm
from ..rng import single
from . import variation


def zero_filled(problem: Problem) -> Tensor:
    """A^H y, scaled to explain the data best, [B, *shape]: for k-space what was not measured is zero."""
    operator = linear(problem)
    x = operator.adjoint(problem.y)
    again = operator(x)
    gain = _dot(problem.y, again) / squared_norm(again).clamp(min=1e-30)
    return x * gain.to(x).reshape(-1, *[1] * (x.ndim - 1))


def total_variation(problem: Problem, sigma: float | None = None) -> Tensor:
    """The first image of :func:`variations` whose residual is no larger than that of noise ``sigma``, [B, *shape].

    ``sigma`` is the problem's, if it has one; of the image before it and that one, the one that is nearer to the noise.
    Without noise the image of a small weight.
    """
    sigma = problem.noise.sigma if sigma is None else sigma
    before, gap = None, float("inf")
    for x in variations(problem, sigma):
        if not sigma:
            return x
        ratio = float(squared_norm(problem.y - linear(problem)(x)).mean() / (problem.m * sigma**2))
        if before is not None and abs(math.log(max(ratio, 1e-30))) > gap:
            return before
        before, gap = x, abs(math.log(max(ratio, 1e-30)))
        if ratio <= 1:
            break
    assert before is not None
    return before


def variations(problem: Problem, sigma: float | None) -> Iterator[Tensor]:
    """Images [B, *shape] of a :func:`~unveil.classical.variation.path` of weights, from the zero-filled one."""
    return variation.path(problem, linear(problem), zero_filled(problem), sigma)


def sart(
    problem: Problem, sweeps: int = 20, subsets: int = 10, relaxation: float = 0.3, sigma: float | None = None
) -> Tensor:
    """The simultaneous algebraic reconstruction technique [B, *shape] for tomography, in ordered subsets of views.

    x <- x + relaxation A_k^T ((y_k - A_k x) / A_k 1) / A_k^T 1 for subsets k of the views in turn, from zero (Andersen
    and Kak 1984, Ultrason. Imaging 6, 81), until the residual of an image is that of noise ``sigma`` (the problem's),
    at most ``sweeps`` times.
    """
    operator, y = problem.operator, problem.y
    if not isinstance(operator, Tomography):
        raise InputError("SART is for tomography")
    sigma = problem.noise.sigma if sigma is None else sigma
    count = min(subsets, len(operator.angles))
    parts = []
    for k in range(count):
        index = torch.arange(k, len(operator.angles), count)
        part = copy.copy(operator)
        part.__dict__.pop("_cache", None)
        part.angles, part.detector = operator.angles[index], (len(index), *operator.detector[1:])
        rows = part(torch.ones_like(problem.like[:1]))
        columns = part.adjoint(torch.ones_like(rows))
        parts.append((part, index, _inverse(rows), relaxation * _inverse(columns)))
    x = torch.zeros_like(problem.like)
    for _ in range(sweeps):
        far: Tensor | float = 1.0
        if sigma:
            far = (squared_norm(y - operator(x)) > problem.m * sigma**2).to(x).reshape(-1, *[1] * (x.ndim - 1))
        for part, index, rows, columns in parts:
            x = x + far * columns * part.adjoint(rows * (y[:, :, index.to(y.device)] - part(x)))
    return x


def filtered_back_projection(problem: Problem) -> Tensor:
    """Filtered back-projection of a sinogram [B, *shape], with Hann's window where there is noise."""
    operator = problem.operator
    if not isinstance(operator, Tomography):
        raise InputError("filtered back-projection is for tomography")
    return operator.fbp(problem.y, "hann" if problem.noise.sigma else "ramp")


def mlem(problem: Problem, background: Tensor | float = 0.0, steps: int = 50) -> Tensor:
    """The likeliest activity [B, *shape] of Poisson counts by expectation maximisation, stopped after ``steps``.

    x <- x A^T (y / (A x + b)) / A^T 1 (Shepp and Vardi 1982, IEEE Trans. Med. Imaging 1, 113), from a flat image.
    """
    operator = linear(problem)
    seen = operator.adjoint(torch.ones_like(problem.y))
    x = torch.ones_like(problem.like) * (problem.y.mean() / operator(torch.ones_like(problem.like)).mean())
    for _ in range(steps):
        mean = (operator(x) + background).clamp(min=1e-12)
        x = x * operator.adjoint(problem.y.clamp(min=0) / mean) * _inverse(seen)
    return x


def hybrid_input_output(
    problem: Problem, steps: int = 400, restarts: int = 4, beta: float = 0.9, seed: int = 0
) -> Tensor:
    """Images >= 0 [B, *shape] of Fourier magnitudes by Fienup's hybrid input-output method, the best of some starts.

    Inside the image and where it is positive g <- g', elsewhere g <- g - beta g', with g' the field whose magnitudes
    are the measured ones; the last tenth of the steps are error reduction, g <- 0 elsewhere (Fienup 1982, Appl. Opt.
    21, 2758). Each image comes out up to a shift and a mirror image, as phase retrieval has it.
    """
    operator = problem.operator
    if not isinstance(operator, FourierMagnitude):
        raise InputError("hybrid input-output is for Fourier magnitudes")
    field = operator.linear
    assert isinstance(field, Padded)
    amplitude = problem.y.clamp(min=0) if operator.power == 1 else problem.y.clamp(min=0).sqrt()
    h, w = problem.shape[-2:]
    inside = torch.zeros(field.field, dtype=torch.bool, device=problem.device)
    inside[:h, :w] = True
    blind = None if field.measured is None else field.measured.to(problem.device) == 0
    best, least = torch.zeros_like(problem.like), torch.full((len(problem.y),), math.inf, device=problem.device)
    for start in range(restarts):
        g = single(seed, len(problem.y), start, "input-output").uniform(amplitude) * amplitude.mean() * inside
        for step in range(steps):
            f = torch.fft.fft2(g, norm="ortho")
            size = amplitude if blind is None else torch.where(blind, f.abs(), amplitude)
            new = torch.fft.ifft2(torch.polar(size, f.angle()), norm="ortho").real
            good = inside & (new > 0)
            g = torch.where(good, new, g - beta * new if step < 0.9 * steps else torch.zeros_like(g))
        x = g[..., :h, :w].contiguous()
        error = squared_norm(problem.y - operator(x))
        best = torch.where((error < least).reshape(-1, *[1] * (x.ndim - 1)), x, best)
        least = torch.minimum(error, least)
    return best


def activity(problem: Problem) -> Tensor:
    """:func:`mlem`, with the offset of the operator as the background."""
    operator = problem.operator
    if isinstance(operator, Affine):
        bare = Problem(problem.y, operator.operator, problem.noise, problem.shape)
        return mlem(bare, operator.shift(problem.y))
    return mlem(problem)


def interpolated(problem: Problem) -> Tensor:
    """Each colour of a mosaic between its pixels, weighted by their distance, [B, 3, H, W]."""
    operator = linear(problem)
    seen = operator.adjoint(torch.ones_like(problem.y))
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).expand(3, 1, 3, 3)

    def smooth(x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, kernel.to(x), padding=1, groups=3)

    values = operator.adjoint(problem.y)
    return torch.where(seen > 0, values, smooth(values) / smooth(seen).clamp(min=1e-6))


def linear(problem: Problem) -> Linear:
    """The operator, if it is linear."""
    if not isinstance(problem.operator, Linear):
        raise InputError(f"{type(problem.operator).__name__} is not linear: this needs a linear operator")
    return problem.operator


def _inverse(x: Tensor) -> Tensor:
    """1 / x, zero where x is nearly."""
    small = 1e-6 * float(x.max())
    return torch.where(x > small, 1 / x.clamp(min=small if small > 0 else 1), 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Re<a, b> per row."""
    product = (a * b.conj()).real if a.is_complex() or b.is_complex() else a * b
    return product.flatten(1).sum(1)


METHODS: dict[str, Callable[[Problem], Tensor]] = {
    "zero-filled": zero_filled,
    "tv": total_variation,
    "fbp": filtered_back_projection,
    "sart": sart,
    "mlem": activity,
    "interpolated": interpolated,
    "hio": hybrid_input_output,
}
"""By the names that files keep them under."""
