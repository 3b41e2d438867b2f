"""``unveil sample``: what a prior holds likely without a measurement."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ..errors import InputError
from ..io.atomic import write_bytes
from ..io.images import encode
from ..priors import Autoencoder, Guided, Prior, load_autoencoder, load_prior
from ..run.sample import sample
from .device import pick


@dataclass(frozen=True)
class Wanted:
    """What the command line asked for."""

    prior: str
    count: int = 16
    size: str | None = None
    sampler: str = "dpmpp-2m"
    steps: int = 32
    label: int | None = None
    text: str | None = None
    guidance: float | None = None
    seed: int = 0
    chunk: int = 16
    device: str = "auto"


def draw(wanted: Wanted, out: Path, quiet: bool = False) -> list[str]:
    """Draw samples and write them, a sheet of images as .png or all values as .npy; returns what to tell the user.

    Latents go through their autoencoder for a sheet, and are written as they are for .npy.

    Raises :class:`InputError`, before anything is computed, for a file that exists, a prior whose samples are no images
    where a sheet is asked for, a size or a condition that the prior does not take.
    """
    if out.suffix.lower() not in (".png", ".npy"):
        raise InputError(f"--out {out} must end in .png (a sheet of images) or .npy (the values)")
    if out.exists():
        raise InputError(f"{out} exists: choose another name with --out")
    device = pick(wanted.device)
    plain = load_prior(wanted.prior).to(device)
    shape = _shape(plain, wanted.size)
    coder = _decoder(wanted.prior, shape) if out.suffix.lower() == ".png" else None
    prior = _conditioned(plain, wanted)
    started = time.monotonic()
    with Progress(disable=quiet, transient=True) as progress:
        task = progress.add_task("sampling", total=None)
        x = sample(
            prior,
            wanted.count,
            wanted.sampler,
            shape=shape,
            steps=wanted.steps,
            seed=wanted.seed,
            chunk=wanted.chunk,
            device=device,
            on_step=lambda done, total: progress.update(task, completed=done, total=total),
        ).cpu()
    if not bool(x.isfinite().all()):
        raise InputError(f"samples of {wanted.prior} are not finite: more --steps, or another --sampler")
    lo, hi = prior.value_range
    if out.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, x.numpy())
        write_bytes(out, buffer.getvalue())
    else:
        parts = torch.split(x, wanted.chunk)
        images = (x - lo) / (hi - lo) if coder is None else torch.cat([coder.decode(z) for z in parts])
        write_bytes(out, encode(sheet(images)))
    return [f"wrote {out}: {wanted.count} samples of {wanted.prior} in {time.monotonic() - started:.1f} s"]


def sheet(images: Tensor, gap: int = 2) -> Tensor:
    """Images [N, C, H, W] in [0, 1] side by side, about as wide as high: [C, H', W'], white between them."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n * height / width))
    rows = -(-n // columns)
    out = torch.ones(channels, rows * (height + gap) - gap, columns * (width + gap) - gap)
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        out[:, top : top + height, left : left + width] = image.clamp(0, 1)
    return out


def _decoder(name: str, shape: tuple[int, ...]) -> Autoencoder | None:
    """What makes images of a prior's samples, None for images."""
    if len(shape) == 3 and shape[0] in (1, 3):
        return None
    try:
        return load_autoencoder(name)
    except InputError as error:
        raise InputError(
            f"samples of {name} have shape {shape}, no images: write them to a .npy file ({error})"
        ) from None


def _shape(prior: Prior, size: str | None) -> tuple[int, ...]:
    """The shape of a sample: what the prior leaves open is what --size says, or 64."""
    try:
        asked = [] if size is None else [int(n) for n in size.split("x")]
    except ValueError:
        raise InputError(f"--size is a number, or numbers as 64x96, not {size}") from None
    left = sum(n is None for n in prior.shape)
    if not left:
        own = tuple(int(n) for n in prior.shape if n is not None)
        if asked and tuple(asked * (len(own) - 1) if len(asked) == 1 else asked) != own[1:]:
            raise InputError(f"samples of this prior have shape {own}: leave out --size")
        return own
    asked = (asked or [64]) * (left if len(asked) < 2 else 1)
    if len(asked) != left or min(asked) < 1:
        raise InputError(f"this prior takes {left} sizes, got --size {size}")
    sizes = iter(asked)
    return tuple(next(sizes) if n is None else int(n) for n in prior.shape)


def _conditioned(prior: Prior, wanted: Wanted) -> Prior:
    asked = {k: v for k, v in {"label": wanted.label, "text": wanted.text}.items() if v is not None}
    if not asked:
        if wanted.guidance is not None:
            raise InputError("--guidance strengthens a condition: add --label or --text")
        return prior
    given = prior.given(**asked)
    return given if wanted.guidance in (None, 1.0) else Guided(given, prior, float(wanted.guidance or 1.0))
