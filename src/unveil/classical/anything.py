"""Classical methods that take any linear problem: pseudo-inverse, total variation, plug-and-play with BM3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ..errors import InputError
from ..problem import Problem
from ..solvers.moves import regularised_inverse
from . import variation

METHODS = ("pseudo-inverse", "total variation", "BM3D plug-and-play")
TV_WEIGHTS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Weights of the total variation that are tried; without noise the weight means nothing, and one is enough."""
PNP_STEPS = 6
PNP_START, PNP_WEIGHT = 49 / 255, 0.23
"""First noise level, and weight of the denoiser against the data, of plug-and-play (white is 1)."""


def classical(method: str, problem: Problem, truth: Tensor) -> Tensor:
    """The restoration [1, C, H, W] by a method of METHODS; ``problem`` has one measurement of ``truth`` [C, H, W].

    The weight of the total variation is the one that comes nearest to the truth, which favours it. Raises
    :class:`InputError` for BM3D where the package ``bm3d`` is not installed.
    """
    if method == METHODS[0]:
        return problem.pinv()
    if method == METHODS[1]:
        return total_variation_best(problem, truth)
    return plug_and_play(problem, truth)


def available() -> list[str]:
    """The methods that can run here."""
    return [m for m in METHODS if m != METHODS[2] or find_spec("bm3d") is not None]


def total_variation_best(problem: Problem, truth: Tensor, weights: Sequence[float] = TV_WEIGHTS) -> Tensor:
    """Total variation with the weight that comes nearest to the truth."""
    x, tries = regularised_inverse(problem), []  # the plain one of a blur is nothing but noise
    for weight in weights if problem.sigma_y else weights[:1]:
        x = variation.by_prox(problem, weight, x)
        tries.append(x)
    return min(tries, key=lambda x: float((x - truth).square().sum()))


def plug_and_play(problem: Problem, truth: Tensor, steps: int = PNP_STEPS) -> Tensor:
    """Half-quadratic splitting with colour BM3D for the prior's step, from the total variation's restoration.

    Noise levels fall from PNP_START to that of the measurement (at least 1/255), equally spaced in their logarithm
    (Zhang et al. 2021, arXiv 2008.13751, section 4). Where nothing but noise is measured it is BM3D itself.
    """
    if problem.shape == tuple(problem.y.shape[1:]) and type(problem.operator).__name__ == "Identity":
        return bm3d(problem.y, problem.sigma_y)
    x = total_variation_best(problem, truth)
    last = math.log(max(problem.sigma_y, 1 / 255))
    for k, level in enumerate(torch.linspace(math.log(PNP_START), last, steps).exp().tolist(), 1):
        x = bm3d(problem.prox(x, level**2 / PNP_WEIGHT), level, quick=k < steps)
    return x


def bm3d(x: Tensor, sigma: float, quick: bool = False) -> Tensor:
    """Colour (or grey) BM3D of images [1, C, H, W] with noise of standard deviation ``sigma``.

    ``quick`` takes fewer blocks and a smaller window: a third of the time, for 0.3 dB.
    """
    try:
        import bm3d as package
    except ImportError:
        raise InputError("BM3D is in the package bm3d: pip install 'unveil[bench]'") from None
    profile = package.BM3DProfile()
    if quick:
        profile.step_ht = profile.step_wiener = 6
        profile.search_window_ht = profile.search_window_wiener = 25
        profile.max_3d_size_wiener = 16
    values = x[0].permute(1, 2, 0).double().numpy()
    run = package.bm3d_rgb if values.shape[2] == 3 else package.bm3d
    out = run(values, sigma, profile)
    return torch.from_numpy(out).reshape(values.shape).permute(2, 0, 1)[None].to(x)
