"""The projector against scikit-image's, on the same work in turns: ``python -m unveil.bench.projector``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from ..operators import ParallelBeam, views


def seconds(work: Callable[[], object]) -> float:
    """CPU time of a call, which neighbours on the machine change little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main(arguments: list[str]) -> int:
    """Print seconds of one projection and their ratio; 1 if ours is slower than ten times theirs."""
    import skimage.transform

    radon: Any = skimage.transform.radon

    size, count, rounds = (int(a) for a in (*arguments, "256", "180", "5")[:3])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        axis = torch.linspace(-1, 1, size)
        x = (axis[:, None].square() + axis.square() < 0.9).float() * torch.rand(size, size)
        angles = views(count)
        kept = ParallelBeam(angles, (size, size), size)
        anew = ParallelBeam(angles, (size, size), size, memory=0)
        work: dict[str, Callable[[], object]] = {
            "scikit-image": lambda: radon(x.numpy(), angles.numpy(), circle=True),
            "matrix kept": lambda: kept(x[None, None]),
            "computed anew": lambda: anew(x[None, None]),
        }
        print(f"{size} x {size} pixels, {count} views, one thread; the first call, which makes the matrix: ", end="")
        print(f"{seconds(work['matrix kept']):.2f} s")
        times: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(rounds):
            for name, call in work.items():
                times[name].append(seconds(call))
        worst = 0.0
        for name, found in times.items():
            ratios = [a / b for a, b in zip(found, times["scikit-image"], strict=True)]
            print(f"{name:<14} {median(found):.3f} s  {median(ratios):.2f} times scikit-image's")
            worst = max(worst, median(ratios))
        return int(worst > 10)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
