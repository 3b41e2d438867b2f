"""The Gaussian mixtures of Cardoso, Janati, Le Corff, Moulines 2024 (MCGDiff, arXiv 2308.07983), a hard exact test.

The prior has 25 components of covariance I in R^d, with means (-8i, -8j, -8i, -8j, ...), i, j = -2..2, and weights
proportional to squares of normal numbers. A in R^(m x d) has random singular vectors and singular values uniform on
[0, 1]; y = A x + n with x from the prior and sigma_y uniform on [0, max s]. Few measurements leave several components
possible: what is hard is their weights. The cells are d in {8, 80, 800} by m in {1, 2, 4}, with 20 seeds each, or fewer
for solvers that are slow.

The distance is the sliced Wasserstein-1 distance (a mean over random directions) to as many exact draws; its floor is
the distance between two sets of exact draws. Numbers of a published table are not comparable to the digit, because
its seeds are not ours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, mean, stdev
from typing import Any

import torch
from torch import Tensor

from ..io.ledger import Ledger, Row
from ..noise import Gaussian
from ..operators import Matrix
from ..priors.mixture import GaussianMixturePrior
from ..problem import Problem
from ..processes import pool
from ..registry import names
from ..run import solve
from .exact import Setting, settings_of

DIMENSIONS = (8, 80, 800)
MEASUREMENTS = (1, 2, 4)
SEEDS = 20
SAMPLES = 1000
SIDE = 18.0
"""Half the width of the value range: the means lie within 16, with a standard deviation of 1 around them."""
FEWEST = 5
"""Problems of a cell that a solver runs on however long it takes."""
BUDGET = 60.0
"""Seconds of processor time that it may take on a cell for more."""
KEYS = ("solver", "d", "m", "seed", "samples")
"""What tells the rows of a file of results apart."""
SHORT = {name: settings_of(name)[0] for name in ("dmplug", "dpg")}
"""What does not run with its own options and steps, which take many minutes: settings of the ruler."""


def setting_of(name: str) -> Setting:
    """How a solver is run: its defaults, but for those that these would take too long for."""
    return SHORT.get(name, Setting())


@dataclass(frozen=True)
class Cell:
    """One problem: dimension, number of measurements, seed. Everything else follows, in double precision."""

    d: int
    m: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.d}-{self.m}-{self.seed}"

    def _generator(self, purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(((self.seed * 1009 + self.d) * 101 + self.m) * 11 + purpose)

    def mixture(self) -> tuple[Tensor, Tensor]:
        """Weights [25] and means [25, d]; the weights depend on d and the seed, not on m."""
        g = torch.Generator().manual_seed(self.seed * 1009 + self.d)
        w = torch.randn(25, generator=g, dtype=torch.float64).square()
        grid = [(-8.0 * i, -8.0 * j) for i in range(-2, 3) for j in range(-2, 3)]
        return w / w.sum(), torch.tensor(grid, dtype=torch.float64).repeat(1, self.d // 2)

    def measurement(self) -> tuple[Tensor, Tensor, float]:
        """A [m, d], y [m] and sigma_y."""
        g = self._generator(1)
        w, means = self.mixture()
        u, _, vh = torch.linalg.svd(torch.randn(self.m, self.d, generator=g, dtype=torch.float64), full_matrices=False)
        s = torch.rand(self.m, generator=g, dtype=torch.float64).sort(descending=True).values
        A = (u * s) @ vh
        x = means[torch.multinomial(w, 1, generator=g)[0]] + torch.randn(self.d, generator=g, dtype=torch.float64)
        sigma_y = float(torch.rand(1, generator=g, dtype=torch.float64) * s[0])
        return A, A @ x + sigma_y * torch.randn(self.m, generator=g, dtype=torch.float64), sigma_y

    def prior(self) -> GaussianMixturePrior:
        w, means = self.mixture()
        return GaussianMixturePrior(w, means, torch.ones(25), value_range=(-SIDE, SIDE))

    def problem(self) -> Problem:
        A, y, sigma_y = self.measurement()
        return Problem(y[None].float(), Matrix(A.float()), Gaussian(sigma_y), value_range=(-SIDE, SIDE))

    def posterior_weights(self) -> Tensor:
        """Probability of each component given y [25]."""
        w, means = self.mixture()
        A, y, sigma_y = self.measurement()
        factor = torch.linalg.cholesky(A @ A.T + sigma_y**2 * torch.eye(self.m, dtype=torch.float64))
        white = torch.linalg.solve_triangular(factor, (y - means @ A.T).T, upper=False)
        probability: Tensor = (w.log() - 0.5 * white.square().sum(0)).softmax(0)
        return probability

    def posterior(self, n: int, draw: int) -> Tensor:
        """The ``draw``-th set of n exact draws [n, d]: a draw of the prior of a component, moved by the data."""
        g = self._generator(10 + draw)
        A, y, sigma_y = self.measurement()
        which = torch.multinomial(self.posterior_weights(), n, True, generator=g)
        x = self.mixture()[1][which] + torch.randn(n, self.d, generator=g, dtype=torch.float64)
        misfit = y - x @ A.T - sigma_y * torch.randn(n, self.m, generator=g, dtype=torch.float64)
        gain = torch.linalg.solve(A @ A.T + sigma_y**2 * torch.eye(self.m, dtype=torch.float64), A)
        draws: Tensor = x + misfit @ gain
        return draws


def sliced_wasserstein1(a: Tensor, b: Tensor, directions: int = 200, seed: int = 0) -> float:
    """Mean over random directions of the W1 distance of the projections of a and b, both [n, d]."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(a.shape[1], directions, generator=g, dtype=torch.float64)
    v = v / v.norm(dim=0)
    return float(((a @ v).sort(0).values - (b @ v).sort(0).values).abs().mean())


def distances(cell: Cell, x: Tensor, sets: int = 4) -> Row:
    """``sw1`` of samples x [n, d], and its ``floor``, each a mean over sets of exact draws."""
    exact = [cell.posterior(len(x), k) for k in range(sets)]
    floor = [sliced_wasserstein1(exact[i], exact[j], seed=i) for i in range(sets) for j in range(i)]
    return {"sw1": mean(sliced_wasserstein1(x.double(), e, seed=k) for k, e in enumerate(exact)), "floor": mean(floor)}


def run_cell(solver: str, cell: Cell, samples: int = SAMPLES, steps: int | None = None) -> Row:
    """Run a solver on a cell, on one thread, and measure its samples; equally weighted ones where it has weights.

    ``seconds`` are of processor time, which other work on the machine does not lengthen.
    """
    torch.set_num_threads(1)
    start = time.process_time()
    method = setting_of(solver).solver(solver)
    steps = setting_of(solver).steps if steps is None else steps
    result = solve(cell.problem(), cell.prior(), method, samples=samples, steps=steps, seed=cell.seed)
    row: Row = {"solver": solver, "d": cell.d, "m": cell.m, "seed": cell.seed, "status": result.status.value}
    row |= {"samples": samples, "steps": result.steps_done, "nfe": result.nfe, "vjps": result.vjps}
    row["seconds"] = time.process_time() - start
    if result.status.value == "DONE":
        row |= distances(cell, _equal(result))
    return row


def _equal(result: Any) -> Tensor:
    x: Tensor = result.samples[0]
    weights = getattr(result, "weights", None)
    if weights is None:
        return x
    ladder = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    return x[torch.searchsorted(weights[0].double().cumsum(0).clamp_max(1.0), ladder).clamp_max(len(x) - 1)]


def run(
    path: Path,
    solvers: Sequence[str] | None = None,
    dimensions: Iterable[int] = DIMENSIONS,
    measurements: Iterable[int] = MEASUREMENTS,
    seeds: int = SEEDS,
    samples: int = SAMPLES,
    steps: int | None = None,
    workers: int = 1,
    on_row: Callable[[Row], object] | None = None,
    budget: float = BUDGET,
) -> list[Row]:
    """Measure every solver on every cell; rows are written to ``path`` as they come, and those that it has are kept.

    All solvers run on the first problem of every cell, then on the second, and so on; those that have spent ``budget``
    seconds on a cell stop there after :data:`FEWEST` problems.

    Raises :class:`InputError` for a file that holds something else, :class:`UnknownName` for an unknown solver.
    """
    ledger = Ledger(path, KEYS)
    methods = {name: setting_of(name).solver(name) for name in solvers or names("solver")}
    cells = [(d, m) for d in dimensions for m in measurements]

    def keep(row: Row) -> None:
        ledger.add(row)
        if on_row is not None:
            on_row(row)

    def todo(seed: int) -> list[tuple[str, Cell, int, int | None]]:
        work = []
        for name, method in methods.items():
            for cell in (Cell(d, m, seed) for d, m in cells):
                row = dict(zip(KEYS, (name, cell.d, cell.m, seed, samples), strict=True))
                if row in ledger or (seed >= FEWEST and _spent(ledger.rows, row) >= budget):
                    continue
                if method.unfit(cell.problem()) is None:
                    work.append((name, cell, samples, steps))
        return work

    if workers <= 1:
        for job in (job for seed in range(seeds) for job in todo(seed)):
            keep(run_cell(*job))
        return ledger.rows
    with pool(workers) as executor:
        for seed in range(seeds):
            for future in [executor.submit(run_cell, *job) for job in todo(seed)]:
                keep(future.result())
    return ledger.rows


def _spent(rows: Sequence[Row], like: Row) -> float:
    """Seconds of processor time of a solver on a cell, so far."""
    seconds: float = sum(r["seconds"] for r in rows if all(r[k] == like[k] for k in KEYS if k != "seed"))
    return seconds


def read(path: Path) -> list[Row]:
    """The rows of a file of results, none if there is no such file. Raises :class:`InputError` for another file."""
    return Ledger(path, KEYS).rows


def table(rows: Sequence[Row]) -> str:
    """Markdown: per solver and cell the mean distance and its 95 % interval (Student's t), and the floor above them.

    In round brackets the mean as a multiple of the floor on the same problems, in square ones how many these are, where
    others have more. The nearest to the floor come first, by the geometric mean of the multiples.
    """
    cells = sorted({(r["d"], r["m"]) for r in rows})
    head = "| solver | evaluations | " + " | ".join(f"d = {d}, m = {m}" for d, m in cells) + " |\n"
    out = head + "|---|--:|" + "--:|" * len(cells) + "\n"
    good = [r for r in rows if "sw1" in r]
    floors = {(r["d"], r["m"], r["seed"]): r["floor"] for r in good}
    most = max((sum((d, m) == cell for d, m, _ in floors) for cell in cells), default=0)
    shown = [interval([v for (d, m, _), v in floors.items() if (d, m) == cell]) for cell in cells]
    out += "| exact draws |  | " + " | ".join(shown) + " |\n"
    for solver, found in ranking(good).items():
        its = [r for r in good if r["solver"] == solver]
        cost = f"{mean(r['nfe'] for r in its):.0f}"
        if any(r["vjps"] for r in its):
            cost += f" + {mean(r['vjps'] for r in its):.0f} vjp"
        shown = [_cell([r for r in its if (r["d"], r["m"]) == cell], found.get(cell), most) for cell in cells]
        out += f"| {solver} | {cost} | " + " | ".join(shown) + " |\n"
    return out


def ranking(rows: Sequence[Row]) -> dict[str, dict[tuple[int, int], float]]:
    """For each solver the mean distance on each cell as a multiple of the floor on the same problems, best first."""
    sums: dict[str, dict[tuple[int, int], list[float]]] = {}
    for r in (r for r in rows if "sw1" in r):
        pair = sums.setdefault(r["solver"], {}).setdefault((r["d"], r["m"]), [0.0, 0.0])
        pair[0] += r["sw1"]
        pair[1] += r["floor"]
    found = {name: {cell: a / b for cell, (a, b) in its.items()} for name, its in sums.items()}
    return dict(sorted(found.items(), key=lambda item: geometric_mean(item[1].values())))


def _cell(rows: Sequence[Row], multiple: float | None, most: int) -> str:
    if multiple is None:
        return ""
    text = f"{interval([r['sw1'] for r in rows])} ({_short(multiple, 1)})"
    return text if len(rows) == most else f"{text} [{len(rows)}]"


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value < 100 else f"{value:.3g}"


def interval(values: Sequence[float], digits: int = 2) -> str:
    """The mean and its 95 % interval (Student's t) in words, without one for a single value."""
    if not values:
        return ""
    if len(values) == 1:
        return _short(values[0], digits)
    half = student(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{_short(mean(values), digits)} ± {_short(half, digits)}"


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t with so many degrees of freedom, to 0.1 % from 4 on and 3 % below.

    By the expansion around the normal one (Abramowitz and Stegun 1964, 26.7.5).
    """
    if freedom == 1:
        return 12.706
    z, n = 1.959964, float(freedom)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4
