"""Scenes: what instruments measure of images that are known, solvers beside the classical methods of each instrument.

A row is a solver on one image of one scene, from SAMPLES samples. PSNR (dB, values clipped to [0, 1]) is that of their
mean, of a sample on average, and of every classical method. Where the mean is calibrated:

cover
    Share of the pixels whose truth lies between the samples' extremes, and within their middle part. For samples that
    are exchangeable with the truth these are (S - 1) / (S + 1) and, for ranks 5 to 15 of 19, 10 / 20.
spread
    Root mean square of the error of the mean, over what its own samples say: sqrt(1 + 1 / S) times their standard
    deviation. 1 is calibrated, more is over-confident.

Truths are photographs and slices of a head that no prior of this package was trained on, and phantoms of a seed of
their own.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..classical import instruments as classic
from ..errors import UnveilError, unknown
from ..io.digest import digest
from ..io.images import read_image
from ..io.ledger import Ledger, Row
from ..metrics import psnr, ssim
from ..noise import Clipped, Noise, Quantisation
from ..operators import (
    FourierMagnitude,
    Grayscale,
    Identity,
    Mosaic,
    Operator,
)
from ..priors import load_prior
from ..problem import Problem, as_noise
from ..run import Result, solve
from ..solvers import get_solver
from . import apparatus
from .images import truth as photograph

SAMPLES = 19
"""Of each scene: the extremes of 19 samples hold the truth with probability 18 / 20."""
MIDDLE = (5, 15)
"""Ranks of the samples between which the truth lies with probability 10 / 20."""
KEYS = ("scene", "image", "solver", "samples", "steps", "setting", "seed", "prior", "weights")
"""What makes a row another one; what changed is measured again."""
HEADS = Path(__file__).parents[1] / "data" / "heads"


@dataclass(frozen=True)
class Scene:
    """An instrument, the prior and solvers that suit it, and the classical methods of that instrument.

    ``make`` gives operator and noise for images [C, H, W]; ``grey`` scenes see colour priors through their luminance.
    ``show`` turns the data into something to look at. ``ambiguous``: data that do not tell an image from its mirror
    image through the middle, as Fourier magnitudes; pictures are turned to the truth, and only the samples that explain
    the data best count, since every method ends in wrong minima at times. ``start``: a classical method at whose image
    solvers start, and the standard deviation of the noise that is added to it, white being 1.
    """

    title: str
    prior: str
    images: tuple[str, ...]
    make: Callable[[tuple[int, ...]], tuple[Operator, Noise]]
    rivals: dict[str, apparatus.Rival]
    solvers: dict[str, tuple[int, dict[str, Any]]]
    show: Callable[[Problem], Tensor]
    grey: bool = False
    ambiguous: bool = False
    start: tuple[str, float] | None = None
    size: int = apparatus.SIDE


# -- truths ------------------------------------------------------------------------------------------------------------


def truth(scene: str, image: str) -> Tensor:
    """An image [C, H, W] of a scene, in [0, 1]. Raises :class:`UnknownName`."""
    this = find(scene)
    if image not in this.images:
        raise unknown("image of the scene", image, this.images)
    if image.startswith("phantom"):
        from ..training.phantoms import Ellipses

        number = int(image.rpartition("-")[2])
        x: Tensor = Ellipses({}, this.size).held_out(this.size, number + 1)[0][number] / 2 + 0.5
        return x
    if image in ("axial", "coronal", "sagittal"):
        return read_image(HEADS / f"{image}.png")[0][:1]
    x = photograph(image, this.size)
    return Grayscale()(x[None])[0] if this.grey else x


def find(scene: str) -> Scene:
    """A scene by name. Raises :class:`UnknownName`."""
    if scene not in SCENES:
        raise unknown("scene", scene, SCENES)
    return SCENES[scene]


def problem_of(scene: str, image: str, seed: int = 0) -> Problem:
    """The measurement of an image, for the image itself."""
    x = truth(scene, image)
    operator, noise = find(scene).make(tuple(x.shape))
    return Problem.simulate(x[None], operator, noise, seed)


# -- the scenes ------------------------------------------------------------------------------------------------------

SLICES: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (20, {"inner": "exact", "spread": 1.0, "sigma_start": 2.0}),
}
"""Of heads: steps, and options other than the solver's own; ``spread`` is what makes its samples know their error."""
PHANTOM: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (20, {"inner": "exact", "spread": 0.7, "sigma_start": 2.0}),
}
EMISSION: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (20, {"inner": "laplace", "spread": 0.7, "sigma_start": 2.0}),
}
MOSAIC: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (20, {"inner": "exact", "spread": 0.7, "sigma_start": 1.0}),
}
PHASES: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (25, {"inner_steps": 40, "ode_steps": 2, "spread": 0.7}),
}
BITS: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (20, {"inner": "laplace", "spread": 0.6, "sigma_start": 2.0}),
}
CLIPPED: dict[str, tuple[int, dict[str, Any]]] = {
    "daps": (30, {"inner": "laplace", "spread": 1.15, "sigma_start": 5.0}),
}

MRI_RIVALS: dict[str, apparatus.Rival] = {
    "zero-filled": apparatus.untuned(classic.zero_filled),
    "total variation": apparatus.varied,
}
CT_RIVALS: dict[str, apparatus.Rival] = {
    "filtered back-projection": apparatus.back_projected,
    "SART": apparatus.untuned(classic.sart),
    "total variation": apparatus.varied,
}
PLANES = ("axial", "coronal", "sagittal")

SCENES: dict[str, Scene] = {
    "mri-4x": Scene(
        "MRI, 4 coils, a quarter of the lines", "brain", PLANES, apparatus.mri(4), MRI_RIVALS, SLICES, apparatus.lines
    ),
    "mri-8x": Scene(
        "MRI, 4 coils, an eighth of the lines", "brain", PLANES, apparatus.mri(8), MRI_RIVALS, SLICES, apparatus.lines
    ),
    "ct-head": Scene("CT of a head, 30 views", "brain", PLANES, apparatus.ct, CT_RIVALS, SLICES, apparatus.sinogram),
    "ct-phantom": Scene(
        "CT of a phantom, 30 views",
        "phantoms",
        ("phantom-0", "phantom-1", "phantom-2"),
        apparatus.ct,
        CT_RIVALS,
        PHANTOM,
        apparatus.sinogram,
    ),
    "pet": Scene(
        "PET of a phantom, 60 views",
        "phantoms",
        ("phantom-0", "phantom-1", "phantom-2"),
        apparatus.pet,
        {"MLEM": apparatus.emitted},
        EMISSION,
        apparatus.sinogram,
    ),
    "interferometer": Scene(
        "A radio interferometer of 20 antennas",
        "phantoms",
        ("phantom-0", "phantom-1", "phantom-2"),
        apparatus.array,
        MRI_RIVALS,
        SLICES,
        apparatus.dirty,
    ),
    "diffraction": Scene(
        "Fourier magnitudes, oversampled twice",
        "photos",
        ("mountain", "pagoda"),
        lambda shape: (FourierMagnitude(shape), as_noise(0.02)),
        {"hybrid input-output": apparatus.untuned(classic.hybrid_input_output)},
        PHASES,
        apparatus.pattern,
        grey=True,
        ambiguous=True,
        start=("hybrid input-output", 0.3),
        size=64,
    ),
    "one-bit": Scene(
        "One bit for each value, in noise of 0.2",
        "photos",
        ("mountain", "dahlia"),
        lambda shape: (Identity(in_shape=shape), Quantisation(1, 0.2)),
        {"smoothed shares": apparatus.smoothed, "total variation": apparatus.likeliest},
        BITS,
        apparatus.itself,
    ),
    "clipped": Scene(
        "A detector that saturates below 0.25 and above 0.6",
        "photos",
        ("mountain", "dahlia"),
        lambda shape: (Identity(in_shape=shape), Clipped(0.02, 0.25, 0.6)),
        {"the data": lambda problem, _: problem.y, "total variation": apparatus.likeliest},
        CLIPPED,
        apparatus.itself,
    ),
    "mosaic": Scene(
        "A Bayer mosaic",
        "photos",
        ("mountain", "dahlia"),
        lambda shape: (Mosaic(in_shape=shape), as_noise(0.02)),
        {"interpolated": apparatus.untuned(classic.interpolated), "total variation": apparatus.varied},
        MOSAIC,
        apparatus.itself,
    ),
}
"""What is measured by ``unveil bench scenes``."""


# -- measuring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """What came of one image: its row, and pictures [C, H, W] by name, of which the last two are maps of deviation."""

    row: Row
    pictures: dict[str, Tensor] = field(default_factory=dict)


def facts(scene: str, image: str, solver: str, samples: int = SAMPLES, seed: int = 0) -> Row:
    """What makes the row of a run, with the values of :data:`KEYS`."""
    this = find(scene)
    steps, options = this.solvers.get(solver, (None, {}))
    words = [f"{name}={value}" for name, value in options.items()]
    if this.start:
        words.append(f"from {this.start[0]} with noise of {this.start[1]:g}")
    row = {"scene": scene, "image": image, "solver": solver, "samples": samples, "steps": steps}
    row |= {"setting": ", ".join(words), "seed": seed, "prior": this.prior}
    return row | {"weights": digest(load_prior(this.prior).describe())}


def solved(scene: str, image: str, solver: str, samples: int = SAMPLES, seed: int = 0) -> Shot:
    """Run a solver and the classical methods on an image of a scene."""
    this, row = find(scene), facts(scene, image, solver, samples, seed)
    x, problem = truth(scene, image), problem_of(scene, image, seed)
    steps, options = this.solvers.get(solver, (None, {}))
    method = get_solver(solver, **options)
    prior = load_prior(this.prior).in_range(0.0, 1.0)
    seen = problem
    if prior.shape[0] == 3 and x.shape[0] == 1:  # a prior of colours, seen through its luminance
        operator = problem.operator @ Grayscale(in_shape=(3, *x.shape[1:]))
        seen = Problem(problem.y, operator, problem.noise)
    rivals, count = by_hand(scene, image, seed), max(samples, method.particles)
    x_init, level = None, None
    if this.start:
        x_init, level = rivals[this.start[0]].expand(seen.shape), this.start[1]
    start = time.perf_counter()
    try:
        result = solve(seen, prior, method, samples=count, steps=steps, seed=seed, x_init=x_init, sigma_start=level)
    except UnveilError as error:
        return Shot(row | {"status": "FAILED", "reason": str(error)})
    row |= {"status": result.status.value, "reason": result.reason, "nfe": result.nfe, "vjps": result.vjps}
    row["seconds"] = round(time.perf_counter() - start, 1)
    if row["status"] != "DONE":
        return Shot(row)
    row["chi2"] = None if result.misfit is None else float(result.misfit.mean())
    drawn = _drawn(result, this, x, problem)
    return Shot(row | scores(drawn, x, rivals), pictures(drawn, x, this.show(problem)[0], rivals))


@lru_cache(maxsize=1)
def by_hand(scene: str, image: str, seed: int = 0) -> dict[str, Tensor]:
    """What the classical methods make of an image of a scene, [C, H, W] each."""
    this, x, problem = find(scene), truth(scene, image), problem_of(scene, image, seed)
    return {name: _turned(rival(problem, x), x, this)[0] for name, rival in this.rivals.items()}


def _drawn(result: Result, scene: Scene, x: Tensor, problem: Problem) -> Tensor:
    """The samples [S, C, H, W] that count."""
    drawn = result.unweighted().samples[0]
    if drawn.shape[1] == 3 and x.shape[0] == 1:
        drawn = Grayscale()(drawn)
    if not scene.ambiguous:
        return drawn
    far = (problem.operator(drawn) - problem.y).flatten(1).square().mean(1).sqrt()
    return _turned(drawn[far <= 1.05 * far.min()], x, scene)


def _turned(images: Tensor, x: Tensor, scene: Scene) -> Tensor:
    """Images [N, C, H, W], each or its mirror image through the middle, whichever is nearer to x."""
    if not scene.ambiguous:
        return images
    mirrored = images.flip((-2, -1))
    near = [(t - x).flatten(1).square().sum(1) for t in (images, mirrored)]
    return torch.where((near[0] <= near[1])[:, None, None, None], images, mirrored)


def scores(drawn: Tensor, x: Tensor, rivals: dict[str, Tensor]) -> Row:
    """What is measured of samples [S, C, H, W] of x [C, H, W]: see the module's text."""
    mean, count = drawn.mean(0), len(drawn)
    row: Row = {
        "kept": count,
        "psnr": float(psnr(mean.clamp(0, 1)[None], x[None])[0]),
        "psnr_sample": float(psnr(drawn.clamp(0, 1), x.expand_as(drawn)).mean()),
        "ssim": float(ssim(mean.clamp(0, 1)[None], x[None])[0]),
        "rivals": {name: float(psnr(r.clamp(0, 1)[None], x[None])[0]) for name, r in rivals.items()},
    }
    if count < 2:
        return row
    error, var = (mean - x).double(), drawn.double().var(0)
    row["spread"] = float((error.square().mean() / (var.mean() * (1 + 1 / count))).sqrt())
    if count == SAMPLES:
        ordered = drawn.sort(0).values
        ends = ((0, count - 1), (MIDDLE[0] - 1, MIDDLE[1] - 1))
        row["cover"] = [float(((x >= ordered[a]) & (x <= ordered[b])).float().mean()) for a, b in ends]
    return row


def pictures(drawn: Tensor, x: Tensor, data: Tensor, rivals: dict[str, Tensor]) -> dict[str, Tensor]:
    """What there is to see, [C, H, W] in [0, 1]; standard deviation and error on one scale, white three deviations."""
    mean = drawn.mean(0)
    shown = {"truth": x, "data": data, **rivals, "mean": mean, "a sample": drawn[0]}
    if len(drawn) > 1:
        std = drawn.std(0).mean(0, keepdim=True)
        top = 3 * float(std.square().mean().sqrt()) + 1e-12
        shown["deviation"] = std / top
        shown["error"] = (mean - x).abs().mean(0, keepdim=True) / top
    return {name: image.clamp(0, 1) for name, image in shown.items()}


def run(
    path: Path,
    draw: Callable[[str, Shot], object],
    scenes: Sequence[str] = (),
    images: Sequence[str] = (),
    solvers: Sequence[str] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    say: Callable[[str], object] = print,
) -> int:
    """Measure what ``path`` lacks; ``draw(scene, shot)`` gets the first image of a scene, by the best solver so far.

    Without ``images`` all those of the scenes; else, of each scene, those of its images that are named. A run that
    failed is tried again. Returns 1 if a run did not end well, else 0. Raises :class:`UnknownName` before anything is
    computed.
    """
    chosen = {name: find(name) for name in scenes or SCENES}
    known = {image for scene in chosen.values() for image in scene.images}
    for image in images:
        if image not in known:
            raise unknown("image of these scenes", image, sorted(known))
    for solver in solvers:
        get_solver(solver)
    ledger = Ledger(path, KEYS)
    there = {_key(row) for row in ledger.rows if row["status"] != "FAILED"}
    bad = 0
    for name, scene in chosen.items():
        for image in scene.images:
            if images and image not in images:
                continue
            for solver in solvers or scene.solvers:
                if _key(facts(name, image, solver, samples, seed)) in there:
                    continue
                shot = solved(name, image, solver, samples, seed)
                rest = [row for row in newest(ledger.rows) if (row["scene"], row["image"]) == (name, image)]
                best = max((row["psnr"] for row in rest if row["solver"] != solver), default=-math.inf)
                if shot.pictures and image == scene.images[0] and shot.row["psnr"] > best:
                    draw(name, shot)
                ledger.add(json.loads(json.dumps(shot.row)))
                say(words(shot.row))
                bad |= int(shot.row["status"] != "DONE")
    return bad


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in KEYS)


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of every solver on every image of a scene the last row that has numbers."""
    return list({(row["scene"], row["image"], row["solver"]): row for row in rows if "psnr" in row}.values())


def words(row: Row) -> str:
    """A row in a line."""
    what = f"{row['scene']}, {row['image']}, {row['solver']}"
    if "psnr" not in row:
        return f"{what}: {row['status']}, {row.get('reason', '')}"
    others = ", ".join(f"{name} {value:.2f}" for name, value in row["rivals"].items())
    return f"{what}: {row['psnr']:.2f} dB ({others})"
