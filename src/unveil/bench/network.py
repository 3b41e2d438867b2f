"""What lean back-propagation and half precision save and cost: ``python -m unveil.bench.network``.

Everything is a ratio of pairs: the same network, plain and lean (or in float32 and bfloat16), one after the other in
turns, in CPU seconds of one thread; medians over the pairs, with their quartiles. Peak memory is that of a process of
its own, over what it held before, after one warm call (so that compiled kernels do not count).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ..priors import HalfPrecision, as_prior, load_prior
from ..priors.base import Prior
from ..priors.networks import lean
from ..priors.networks.adm import ADM
from ..priors.networks.unet import UNet, count_parameters

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet, 22 M": lambda: UNet(widths=(96, 160, 256, 368), blocks=2, features=256),
    "unet, 22 M, unfolded": lambda: UNet(widths=(64, 128, 256, 384), blocks=2, unshuffle=1, features=256),
    "adm, 24 M": lambda: ADM(width=64, widths=(64, 64, 128, 128, 256, 256), blocks=1, attention=(4,)),
}
"""Random weights: time and memory do not depend on them."""
MEMORY_LIMIT = 0.5
BF16_GOAL = 1.5
PSNR_LIMIT = 0.1


def network(name: str) -> nn.Module:
    """One of NETWORKS, frozen, with weights everywhere."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for p in module.parameters():
        p.data = 0.05 * torch.randn(p.shape)
    return module.eval().requires_grad_(False)


def gradient(module: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    out = module(leaf, torch.zeros(len(x)))
    (g,) = torch.autograd.grad(out, leaf, torch.ones_like(out))
    return g


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with plain automatic differentiation."""

    def run(*arguments: Any) -> Any:
        with mock.patch.object(lean, "_only", return_value=False):
            return function(*arguments)

    return run


def paired(a: Callable[[], object], b: Callable[[], object], pairs: int) -> list[float]:
    """CPU seconds of a over those of b, pair by pair, who goes first taking turns."""
    ratios = []
    for k in range(pairs + 1):
        seconds = {}
        for function in (a, b) if k % 2 else (b, a):
            start = process_time()
            function()
            seconds[function] = process_time() - start
        if k:  # the first pair warms up
            ratios.append(seconds[a] / seconds[b])
    return ratios


def spread(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return f"{middle:.2f} [{low:.2f}..{high:.2f}]"


# -- memory ------------------------------------------------------------------------------------------


def measure(name: str, kind: str, size: int) -> dict[str, Any]:
    """Peak MiB of a vjp over what the process held, and its gradient's digest: run in a process of its own."""
    from ..io.digest import digest
    from ..run.counted import PeakMemory

    torch.set_num_threads(1)
    module = network(name)
    pull = plainly(gradient) if kind == "plain" else gradient
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    pull(module, x)
    with open("/proc/self/status") as f:
        before = next(int(line.split()[1]) for line in f if line.startswith("VmRSS:")) / 1024
    peak = PeakMemory(torch.device("cpu"))
    g = pull(module, x)
    return {"peak": peak.read() / 2**20 - before, "digest": digest(g)}


def peak(name: str, kind: str, size: int) -> dict[str, Any]:
    """:func:`measure`, with an allocator that returns freed memory at once."""
    command = [sys.executable, "-m", "unveil.bench.network", "--measure", name, kind, "--size", str(size)]
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **settings})
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def memory(size: int, pairs: int) -> bool:
    print(f"back-propagation to the input, {size} x {size}, weights frozen, float32, one thread")
    print(
        f"{'network':24} {'parameters':>10} {'plain MiB':>10} {'lean MiB':>9} {'ratio':>6}  {'CPU time':>18}  gradient"
    )
    good = True
    for name in NETWORKS:
        plain, slim = peak(name, "plain", size), peak(name, "lean", size)
        module, x = network(name), torch.randn(1, 3, size, size)
        times = paired(partial(gradient, module, x), partial(plainly(gradient), module, x), pairs)
        same = plain["digest"] == slim["digest"]
        ratio = slim["peak"] / plain["peak"]
        good &= same and ratio <= MEMORY_LIMIT
        print(
            f"{name:24} {count_parameters(module) / 1e6:9.1f}M {plain['peak']:10.0f} {slim['peak']:9.0f} {ratio:6.2f}  "
            f"{spread(times):>18}  {'the same bits' if same else 'DIFFERS'}"
        )
    return good


# -- half precision ----------------------------------------------------------------------------------


def speed(size: int, pairs: int) -> bool:
    units = "with" if _has_bf16() else "without"
    print(f"\nbfloat16 against float32, {size} x {size}, one thread, on a processor {units} bfloat16 units")
    print(f"{'network':24} {'forward':>20} {'forward and vjp':>20}   (how many times as fast)")
    good = True
    for name in NETWORKS:
        kernel: dict[str, Any] = {"predicts": "edm", "value_range": (-1, 1), "shape": (3, None, None), "channels": 3}
        full: Prior = as_prior(network(name), **kernel)
        half = HalfPrecision(full)
        x = torch.randn(1, 3, size, size)
        forward = paired(partial(_denoise, full, x), partial(_denoise, half, x), pairs)
        both = paired(partial(_vjp, full, x), partial(_vjp, half, x), pairs)
        good &= statistics.median(forward) >= BF16_GOAL
        print(f"{name:24} {spread(forward):>20} {spread(both):>20}")
    return good


def _denoise(prior: Prior, x: Tensor) -> Tensor:
    with torch.no_grad():
        return prior.denoise(x, 0.3)


def _vjp(prior: Prior, x: Tensor) -> Tensor:
    return prior.vjp(x, 0.3)[1](x)


def _has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo") as f:
            return any(flag in f.read() for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    except OSError:
        return False


def loss(steps: int) -> bool:
    """PSNR of restored photographs in float32 and bfloat16: the held-out ones that ship, three problems, one solver."""
    from ..app.demo import photos
    from ..io.images import read_image
    from ..metrics import psnr
    from ..noise import Gaussian
    from ..operators import Blur, Downsample, Inpainting, gaussian_kernel
    from ..problem import Problem
    from ..run import solve

    full = load_prior("photos")
    half = HalfPrecision(full)
    print("\nphotographs restored by diffpir, PSNR in dB: float32, bfloat16")
    worst = 0.0
    crops = [_crop(read_image(file)) for file in sorted(photos().glob("*.png"))]
    generator = torch.Generator().manual_seed(0)
    operators = {
        "inpaint 70 %": Inpainting((torch.rand(crops[0].shape[-2:], generator=generator) > 0.7).float()),
        "deblur": Blur(gaussian_kernel(2.0)),
        "superres x4": Downsample(4),
    }
    for name, operator in operators.items():
        scores = {"float32": 0.0, "bfloat16": 0.0}
        for x in crops:
            problem = Problem.simulate(x, operator, Gaussian(0.02), seed=0)
            for kind, prior in (("float32", full), ("bfloat16", half)):
                result = solve(problem, prior, "diffpir", steps=steps, seed=0)
                scores[kind] += float(psnr(result.mean.clamp(0, 1), x)[0]) / len(crops)
        lost = scores["float32"] - scores["bfloat16"]
        worst = max(worst, lost)
        print(f"{name:24} {scores['float32']:6.2f} {scores['bfloat16']:6.2f}   {lost:+.3f} lost")
    print(f"the largest loss is {worst:.3f} dB ({'within' if worst <= PSNR_LIMIT else 'ABOVE'} {PSNR_LIMIT} dB)")
    return worst <= PSNR_LIMIT


def _crop(image: Any) -> Tensor:
    """The middle 128 x 128 pixels [1, 3, 128, 128] of a photograph."""
    pixels: Tensor = image[0]
    top, left = (pixels.shape[-2] - 128) // 2, (pixels.shape[-1] - 128) // 2
    return pixels[..., top : top + 128, left : left + 128].reshape(1, -1, 128, 128)[:, :3]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="side of the images")
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs of each measurement")
    parser.add_argument("--steps", type=int, default=20, help="steps of the restorations")
    parser.add_argument("--measure", nargs=2, metavar=("NETWORK", "KIND"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.measure:
        name, kind = asked.measure
        print(json.dumps(measure(name, kind, asked.size)))
        return 0
    good = memory(asked.size, asked.pairs)
    fast = speed(asked.size // 2, asked.pairs)
    close = loss(asked.steps)
    answers = {True: "yes", False: "NO"}
    print(f"\nmemory at most {MEMORY_LIMIT} of plain, same bits: {answers[good]}")
    print(f"bfloat16 at least {BF16_GOAL} times as fast forward: {answers[fast]}")
    print(f"bfloat16 loses at most {PSNR_LIMIT} dB: {answers[close]}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
