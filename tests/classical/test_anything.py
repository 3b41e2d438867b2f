"""Classical methods that the solvers are compared with."""

from __future__ import annotations

import pytest
import torch

from unveil.bench.images import problem_of, truth
from unveil.classical.anything import bm3d, plug_and_play, total_variation_best
from unveil.metrics import psnr
from unveil.operators import Inpainting


def test_total_variation_keeps_what_is_known():
    x = truth("pagoda", 32)
    problem = problem_of("random-exact", "pagoda", 32)
    assert isinstance(problem.operator, Inpainting)
    out = total_variation_best(problem, x)
    torch.testing.assert_close(problem.operator(out), problem.y, atol=1e-5, rtol=0)
    assert psnr(out, x[None]) > psnr(problem.pinv(), x[None]) + 8


def test_total_variation_deblurs():
    """Where the pseudo-inverse is nothing but noise, the start must not be one either."""
    x = truth("mountain", 64)
    problem = problem_of("gaussian", "mountain", 64)
    out = total_variation_best(problem, x)
    assert psnr(problem.pinv(), x[None]) < 6
    assert psnr(out, x[None]) > psnr(problem.y, x[None]) + 0.5


def test_bm3d_in_a_loop():
    pytest.importorskip("bm3d")
    x = truth("pagoda", 32)
    noisy = problem_of("denoise", "pagoda", 32)
    assert psnr(bm3d(noisy.y, 0.05), x[None]) > psnr(noisy.y, x[None]) + 2
    torch.testing.assert_close(plug_and_play(noisy, x), bm3d(noisy.y, 0.05))
    enlarged = problem_of("superres", "pagoda", 32)
    assert psnr(plug_and_play(enlarged, x, steps=2), x[None]) > psnr(enlarged.pinv(), x[None])
