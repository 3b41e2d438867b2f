"""The photographs that ship, through tasks of every kind, by solvers and by classical methods: cells of one table.

A cell is one method on one task of one photograph. Its row is written as soon as it is measured, so that a run goes on
where it was left; its picture is kept beside the table. What is measured of S samples, values clipped to [0, 1]:

psnr, ssim
    Of a sample against the original, averaged over the samples (dB; at most 1).
psnr_mean
    PSNR of the mean of the samples.
perceptual
    Distance of a sample to the original, averaged, under the name in ``distance``: see :mod:`unveil.perceptual`.
chi2, residual
    Chi-square per degree of freedom of the data at a sample (None without noise), and the root mean square of y - A x.
largest
    The largest |y - A x| of any sample.
diversity
    Root mean square, over pixels, of the standard deviation of the samples (white is 1).
nfe, vjps
    Evaluations of the prior and back-propagations per sample.
seconds, cpu
    Of the whole run on one thread, by the clock and of the processor (also where the ``device`` is another). ``call``
    is the CPU time of one evaluation of the prior on the same samples, measured just before: cpu / call says what a
    run costs on any machine.
peak
    MiB of memory beyond what the process, or the device, held before the run.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from ..classical.anything import METHODS, classical
from ..classical.photographs import baseline
from ..errors import InputError, UnveilError, unknown
from ..io.atomic import write_bytes
from ..io.images import encode, read_image
from ..io.ledger import Ledger
from ..io.ledger import Row as Row
from ..metrics import psnr, ssim
from ..operators import Blur, Downsample, Grayscale, Identity, Inpainting, RandomSensing, kernels
from ..operators.base import Operator
from ..perceptual import perceptual
from ..priors import load_prior
from ..priors.base import Prior
from ..problem import Problem, as_noise
from ..processes import pool
from ..rng import single
from ..run import Result, solve
from ..run.counted import PeakMemory
from ..solvers import get_solver

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
CLASSIC = "classic"
"""The method that the field takes for a task: see :mod:`unveil.classical.photographs`."""
CLASSICAL = (CLASSIC, *METHODS)
QUALITY = 88
"""Of the pictures that are kept (JPEG)."""
KEYS = ("key", "task", "image", "method", "status")
"""What every row of a file of results has."""


# -- tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A way to lose a photograph: ``kind`` is the task of ``unveil restore`` that it belongs to, ``noise`` its sigma_y
    where white is 1."""

    title: str
    kind: str
    noise: float
    make: Callable[[tuple[int, ...], int], Operator]


def _random_mask(shape: tuple[int, ...], seed: int) -> Operator:
    draws = single(seed, purpose="mask").uniform(torch.empty(1, *shape[1:]))
    return Inpainting((draws[0] >= 0.7).float(), in_shape=shape)


def _box(shape: tuple[int, ...], seed: int) -> Operator:
    del seed
    mask = torch.ones(shape[1:])
    height, width = (n // 4 for n in shape[1:])
    top, left = (shape[1] - height) // 2, (shape[2] - width) // 2
    mask[top : top + height, left : left + width] = 0
    return Inpainting(mask, in_shape=shape)


TASKS: dict[str, Task] = {
    "box": Task("Inpainting, a box of a quarter of the sides", "inpaint", 0.02, _box),
    "random": Task("Inpainting, 70 % lost at random", "inpaint", 0.02, _random_mask),
    "gaussian": Task(
        "Deblurring, Gaussian of 2 pixels", "deblur", 0.02, lambda s, _: Blur(kernels.gaussian_kernel(2.0), in_shape=s)
    ),
    "motion": Task(
        "Deblurring, a shaking hand",
        "deblur",
        0.02,
        lambda s, seed: Blur(kernels.random_motion_kernel(20.0, 0.5, seed), in_shape=s),
    ),
    "superres": Task("Super-resolution x 4", "superres", 0.02, lambda s, _: Downsample(4, "bicubic", in_shape=s)),
    "denoise": Task("Denoising", "denoise", 0.05, lambda s, _: Identity(in_shape=s)),
    "colorize": Task("Colouring", "colorize", 0.02, lambda s, _: Grayscale(in_shape=s)),
    "sensing": Task(
        "Compressed sensing, a quarter of the numbers",
        "sensing",
        0.02,
        lambda s, seed: RandomSensing(s, fraction=0.25, seed=seed),
    ),
    "random-exact": Task("Inpainting, 70 % lost, no noise", "inpaint", 0.0, _random_mask),
    "superres-exact": Task(
        "Super-resolution x 4, no noise", "superres", 0.0, lambda s, _: Downsample(4, "bicubic", in_shape=s)
    ),
}
"""The suite. Two tasks are without noise, for the solvers that need that."""


def names_of_photos() -> list[str]:
    """The photographs that ship."""
    return sorted(p.stem for p in PHOTOS.glob("*.png"))


@lru_cache(maxsize=8)
def truth(image: str, size: int) -> Tensor:
    """The middle [3, size, size] of a photograph that ships, or of a file.

    Raises :class:`InputError` for a smaller or grey one, or an odd size.
    """
    path = PHOTOS / f"{image}.png"
    if not path.is_file():
        path = Path(image)
        if not path.is_file():
            raise unknown("photograph", image, names_of_photos())
    picture, _ = read_image(path)
    height, width = picture.shape[1:]
    if size < 32 or size % 4:
        raise InputError(f"--size is a multiple of 4 of at least 32 pixels, got {size}")
    if picture.shape[0] != 3 or min(height, width) < size:
        raise InputError(f"{path} is {width} x {height}, the suite takes colour images of at least {size} x {size}")
    top, left = (height - size) // 2, (width - size) // 2
    return picture[:, top : top + size, left : left + size].contiguous()


@lru_cache(maxsize=4)
def problem_of(task: str, image: str, size: int, seed: int = 0) -> Problem:
    """One measurement of a photograph. Raises :class:`UnknownName` for another task."""
    if task not in TASKS:
        raise unknown("task of the suite", task, TASKS)
    x = truth(image, size)
    return Problem.simulate(x[None], TASKS[task].make(tuple(x.shape), seed), TASKS[task].noise, seed)


# -- cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One method on one task of one photograph; ``method`` is a solver, or one of CLASSICAL.

    ``label`` tells settings of one solver apart ("" is the one that the suite stands for), ``told`` is the noise level
    that the solver is told, as a multiple of the true one. Classical methods run on the CPU, whatever the ``device``.
    """

    task: str
    image: str
    size: int
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    samples: int = 1
    seed: int = 0
    prior: str = "photos"
    label: str = ""
    told: float = 1.0
    device: str = "cpu"

    @property
    def place(self) -> tuple[str, ...]:
        """Which cell of the table this is, whatever its numbers."""
        return self.task, self.image, str(self.size), self.method, self.label

    @property
    def words(self) -> str:
        return " ".join(filter(None, (self.method, self.label, "on", self.task, "of", Path(self.image).stem)))

    def key(self, prior: str = "") -> str:
        """A digest of all that makes the row; ``prior`` is the digest of the weights."""
        facts = asdict(self)
        if self.method in CLASSICAL:
            facts |= {"prior": "", "samples": 1, "device": "cpu"}
        else:
            facts["weights"] = prior
        if facts["device"] == "cpu":  # as in files that know of no other
            del facts["device"]
        text = json.dumps(facts, sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=2)
def _prior(name: str) -> Prior:
    return load_prior(name).in_range(0.0, 1.0)


def weights_digest(name: str) -> str:
    """A digest of what a prior is."""
    return hashlib.sha256(json.dumps(_prior(name).describe(), sort_keys=True).encode()).hexdigest()[:16]


def fits(cell: Cell) -> bool:
    """Whether the cell's solver can run on its task."""
    if cell.method in CLASSICAL:
        return not (cell.method == CLASSIC and TASKS[cell.task].kind == "sensing")
    problem = problem_of(cell.task, cell.image, cell.size, cell.seed)
    return get_solver(cell.method, **cell.options).unfit(problem) is None


def measure(cell: Cell, folder: Path | None = None, key: str = "") -> Row:
    """Run a cell on one thread: its row, whose picture is kept in ``folder``. See the module's text.

    A run that diverges or fails has a row too, with its ``status`` and ``reason``.
    """
    torch.set_num_threads(1)
    x = truth(cell.image, cell.size)
    problem = problem_of(cell.task, cell.image, cell.size, cell.seed)
    row: Row = {"key": key, **asdict(cell), "noise": TASKS[cell.task].noise}
    began, cpu = time.perf_counter(), time.process_time()
    try:
        if cell.method in CLASSICAL:
            name, picture = _by_hand(cell, problem, x)
            row |= {"status": "DONE", "name": name}
            pictures = picture[None]
            row |= {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        else:
            costs, result = _solved(cell, problem)
            row |= costs
            if result.status.value != "DONE":
                return row
            pictures = result.unweighted().samples[0]
    except UnveilError as error:
        return row | {"status": "FAILED", "reason": str(error)}
    if folder is not None:
        keep_picture(folder / f"{key}.jpg", pictures[0])
    return row | scores(pictures, x, problem)


def _by_hand(cell: Cell, problem: Problem, x: Tensor) -> tuple[str, Tensor]:
    if cell.method == CLASSIC:
        return baseline(TASKS[cell.task].kind, problem, x)
    return cell.method, classical(cell.method, problem, x)[0]


def _solved(cell: Cell, problem: Problem) -> tuple[Row, Result]:
    prior, solver = _prior(cell.prior).to(cell.device), get_solver(cell.method, **cell.options)
    problem = problem.to(cell.device)
    if cell.told != 1.0:
        problem = replace(problem, noise=as_noise(problem.sigma_y * cell.told))
    samples = max(cell.samples, solver.particles)
    call = _call_seconds(prior, problem, samples)
    before, peak = _held(problem.device), PeakMemory(problem.device)
    cpu = time.process_time()
    result = solve(problem, prior, solver, samples=samples, steps=cell.steps, seed=cell.seed)
    row: Row = {"cpu": time.process_time() - cpu, "seconds": result.seconds, "call": call}
    row |= {"peak": max(0.0, (peak.read() - before) / 2**20), "nfe": result.nfe, "vjps": result.vjps}
    row |= {"status": result.status.value, "reason": result.reason, "steps": result.steps_done, "samples": samples}
    return row | {"options": solver.options(), "gradient": solver.gradient}, result.to("cpu")


def _call_seconds(prior: Prior, problem: Problem, samples: int, tries: int = 3) -> float:
    """CPU seconds of an evaluation of the prior, the median of a few."""
    x, spent = torch.zeros(samples, *problem.shape, device=problem.device), []
    with torch.no_grad():
        for _ in range(tries):
            start = time.process_time()
            prior.denoise(x, 1.0).flatten()[0].item()  # which waits for the device
            spent.append(time.process_time() - start)
    return median(spent)


def _held(device: torch.device) -> int:
    """Bytes that this process holds, once what is free has gone back to the system; 0 where it cannot be told.

    On a CUDA device: bytes held there.
    """
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmRSS:"))
    except (OSError, AttributeError, StopIteration):
        return 0


def scores(pictures: Tensor, x: Tensor, problem: Problem) -> Row:
    """What is measured of samples [S, 3, H, W] of a photograph x [3, H, W]: see the module's text."""
    shown, ref = pictures.clamp(0, 1), x[None].expand_as(pictures)
    residual = problem.operator(pictures) - problem.y
    rms = residual.flatten(1).double().square().mean(1).sqrt()
    row: Row = {
        "psnr": float(psnr(shown, ref).mean()),
        "psnr_mean": float(psnr(pictures.mean(0, keepdim=True).clamp(0, 1), x[None])[0]),
        "ssim": float(ssim(shown, ref).mean()),
        "residual": float(rms.mean()),
        "largest": float(residual.abs().max()),
        "chi2": float((rms / problem.sigma_y).square().mean()) if problem.sigma_y else None,
        "diversity": float(pictures.double().std(0).square().mean().sqrt()) if len(pictures) > 1 else None,
    }
    distance = perceptual()
    if distance is not None:
        row |= {"perceptual": float(distance(shown, ref).mean()), "distance": distance.name}
    return row


# -- pictures --------------------------------------------------------------------------------------------------------


def keep_picture(path: Path, picture: Tensor) -> None:
    """Write a picture [C, H, W] as a small file, atomically."""
    write_bytes(path, encode(picture.clamp(0, 1), kind="JPEG", quality=QUALITY))


def shown_measurement(task: str, image: str, size: int, seed: int = 0) -> Tensor:
    """The measurement as something to look at [3, size, size]: holes in grey, small ones enlarged."""
    problem = problem_of(task, image, size, seed)
    y, operator = problem.y, problem.operator
    if isinstance(operator, Inpainting):
        y = torch.where(operator.mask.to(y) > 0, y, 0.5)
    elif isinstance(operator, Downsample):
        y = torch.nn.functional.interpolate(y, (size, size), mode="nearest")
    elif y.ndim != 4:
        y = problem.pinv()
    return y[0].expand(3, -1, -1).clamp(0, 1)


# -- runs ------------------------------------------------------------------------------------------------------------


def run(
    path: Path,
    cells: Iterable[Cell],
    workers: int = 1,
    on_row: Callable[[Row, int, int], object] | None = None,
) -> list[Row]:
    """Measure cells and return their rows, in their order; those that ``path`` has are not measured again.

    Rows go to ``path`` (JSON, a line each) as they are ready, pictures to the folder ``<its stem>-pictures`` beside it.
    Rows that failed are tried again. ``on_row`` is called with each new row, its number and their count. Raises
    :class:`InputError` for a file that holds something else.
    """
    wanted = [c for c in cells if fits(c)]
    digests = {name: weights_digest(name) for name in {c.prior for c in wanted if c.method not in CLASSICAL}}
    keys = [c.key(digests.get(c.prior, "")) for c in wanted]
    ledger = Ledger(path, KEYS)
    known = {row["key"]: row for row in ledger.rows}
    work = [(c, k) for c, k in zip(wanted, keys, strict=True) if known.get(k, {}).get("status", "FAILED") == "FAILED"]
    folder = pictures_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep(row: Row, count: int) -> None:
        known[row["key"]] = row
        ledger.add(row)
        if on_row is not None:
            on_row(row, count, len(work))

    if workers <= 1:
        threads = torch.get_num_threads()
        try:
            for count, (cell, key) in enumerate(work, 1):
                keep(measure(cell, folder, key), count)
        finally:
            torch.set_num_threads(threads)
    else:
        with pool(workers) as executor:
            futures = [executor.submit(measure, cell, folder, key) for cell, key in work]
            for count, future in enumerate(as_completed(futures), 1):
                keep(future.result(), count)
    return [known[k] for k in keys]


def pictures_of(path: Path) -> Path:
    """The folder of the pictures that belong to a file of rows."""
    return path.with_name(f"{path.stem}-pictures")


def read(path: Path) -> list[Row]:
    """The rows of a file of results, none if there is no such file. Raises :class:`InputError` for another file."""
    return Ledger(path, KEYS).rows


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of rows of the same task, photograph, size, method and label the last one."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        place = tuple(row[k] for k in ("task", "image", "size", "method", "label"))
        found.pop(place, None)
        found[place] = row
    return list(found.values())


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows of the cells (a task and a photograph) that at least half as many solvers have done as that of the most.

    Places and medians among a few solvers do not say what they do among all.
    """
    solvers: dict[tuple[str, str, int], set[str]] = {}
    for row in rows:
        if row["status"] == "DONE" and row["method"] not in CLASSICAL:
            solvers.setdefault((row["task"], row["image"], row["size"]), set()).add(row["method"])
    most = max(map(len, solvers.values()), default=0)
    full = {cell for cell, its in solvers.items() if 2 * len(its) >= most}
    return [row for row in rows if (row["task"], row["image"], row["size"]) in full]


# -- summaries -------------------------------------------------------------------------------------------------------

COLUMNS = (
    ("psnr", "PSNR (dB)", ".2f"),
    ("ssim", "SSIM", ".3f"),
    ("perceptual", "perceptual", ".3f"),
    ("psnr_mean", "of the mean", ".2f"),
    ("chi2", "chi-square / dof", ".2f"),
    ("diversity", "diversity", ".3f"),
    ("nfe", "NFE", ".0f"),
    ("vjps", "vjps", ".0f"),
    ("cpu", "CPU s", ".1f"),
    ("peak", "MiB", ".0f"),
)
"""Numbers of a row that a table shows, with their headings and formats."""
LARGEST = ("largest", "max |y - A x|", ".0e")
"""What stands in the place of chi-square where there is no noise."""
LARGER = ("psnr", "psnr_mean", "ssim")
"""Those of which more is better."""


def columns(task: str) -> list[tuple[str, str, str]]:
    """The columns of a task's table."""
    return [LARGEST if column[0] == "chi2" and not TASKS[task].noise else column for column in COLUMNS]


def averages(rows: Sequence[Row], task: str) -> dict[str, Row]:
    """Of every method that is done with all photographs of a task that any is: the means of its numbers.

    Of ``largest`` the largest, and none where a row, from before it was kept, has none.
    """
    mine = [r for r in rows if r["task"] == task and r["status"] == "DONE" and not r["label"]]
    images = {r["image"] for r in mine}
    out: dict[str, Row] = {}
    for method in dict.fromkeys(r["method"] for r in mine):
        its = [r for r in mine if r["method"] == method]
        if {r["image"] for r in its} != images:
            continue
        means: Row = {"name": its[0].get("name", method)}
        for key, _, _ in columns(task):
            values = [r[key] for r in its if r.get(key) is not None]
            means[key] = mean(values) if values else None
        if "largest" in means:
            means["largest"] = max(r["largest"] for r in its) if all("largest" in r for r in its) else None
        out[method] = means
    return out


def margin(means: dict[str, Row], key: str = "psnr") -> tuple[str, str, float] | None:
    """The best solver, the best classical method, and by how much the solver is better; None if one is missing."""
    sign = 1 if key in LARGER else -1
    have = {m: sign * r[key] for m, r in means.items() if r.get(key) is not None}
    solvers, others = ({m: v for m, v in have.items() if (m in CLASSICAL) == hand} for hand in (False, True))
    if not solvers or not others:
        return None
    first, second = max(solvers, key=lambda m: solvers[m]), max(others, key=lambda m: others[m])
    return first, second, solvers[first] - others[second]


def shown(value: float | None, form: str) -> str:
    """A number as a table has it."""
    return "" if value is None else f"{value:{form}}"
