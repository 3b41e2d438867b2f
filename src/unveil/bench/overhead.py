"""What a solver costs beside its network: ``python -m unveil.bench.overhead``.

A run is timed in CPU seconds, in one thread, and so is every network call in it: the forward pass of the bare network,
and the back-propagation to its input. The ratio of a step is its time over that of its network calls, and the median
over the steps must be at most LIMIT. Everything around the network counts as the solver's: preconditioning, schedule,
operator, random numbers, the update. Loops that belong to the method (conjugate gradients, Langevin, Hamiltonian
chains) are taken out and reported beside it, without the network calls in them.

As a check that a solver does not make its network calls dearer than they need be, every step is also paired with a
plain loop over the same calls, before or after it in turns ("paired"). Two timings of one network differ by a tenth
on a busy machine, so that only a lower quartile above PAIRED_LIMIT counts as a miss there.

A second table has the particle methods with PARTICLES particles of one measurement: weights, resampling and their own
loops included, at most LIMIT. A third times methods whose own loops are long, on one 256 x 256 image, and counts those
loops too: their ratio must be at most LOOP_LIMIT.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from ..noise import Gaussian, NoNoise
from ..numerics.inner import watch
from ..operators import Blur, Downsample, Inpainting, gaussian_kernel
from ..priors import as_prior
from ..priors.base import Prior, Pullback, Sigma
from ..priors.networks.unet import UNet, count_parameters
from ..problem import Problem
from ..solvers import get_solver, list_solvers
from ..solvers.base import Solver
from ..solvers.variational import FITTED
from .counting import make_runs

LIMIT = 1.05
PAIRED_LIMIT = 1.2
LOOP_LIMIT = 1.2
LOOP_SIZE = 256
PARTICLES = 64
SIZE = 64
BATCH = 4
TASKS = ("inpaint", "deblur", "superres", "particles", "loops")
USUAL = ("inpaint", "deblur", "particles", "loops")
WARM = 2
"""Steps at the start that are not counted."""

SHORT: dict[str, dict[str, Any]] = {
    "bird": {"ddim_steps": 3},
    "dcdp": {"purify_steps": 5},
    "pnp-dm": {"inner_steps": 5},
    "sitcom": {"inner_steps": 4},
    "unveil-exact": {"prior_steps": 4, "oversampling": 2, "inner_steps": 4, "langevins": 1},
}
"""Settings that shorten a step without changing what it does per network call."""


@dataclass
class Clock:
    """CPU seconds spent in the network and in inner loops, and the calls of it, since it was last reset."""

    network: float = 0.0
    loops: dict[str, float] = field(default_factory=dict)
    calls: list[int] = field(default_factory=list)
    """For every forward call, the number of its pullbacks; -1 for one without a graph."""

    def reset(self) -> None:
        self.network, self.loops, self.calls = 0.0, {}, []

    @contextmanager
    def in_network(self) -> Iterator[None]:
        start = process_time()
        yield
        self.network += process_time() - start

    @contextmanager
    def in_loop(self, name: str) -> Iterator[None]:
        """An inner loop; what the network takes inside it is not the loop's."""
        start, before = process_time(), self.network
        yield
        spent = process_time() - start - (self.network - before)
        self.loops[name] = self.loops.get(name, 0.0) + spent


class TimedNetwork(nn.Module):
    """A network whose forward passes are timed."""

    def __init__(self, network: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.network, self.clock = network, clock

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.clock.calls.append(0 if torch.is_grad_enabled() else -1)
        with self.clock.in_network():
            out: Tensor = self.network(x, time)
        return out


@dataclass(frozen=True)
class TimedPrior(Prior):
    """A prior whose pullbacks are timed."""

    prior: Prior
    clock: Clock

    def __post_init__(self) -> None:
        for name in ("shape", "value_range", "sigma_range"):
            object.__setattr__(self, name, getattr(self.prior, name))

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        return self.prior.denoise(x, sigma)

    def vjp(self, x: Tensor, sigma: Sigma) -> tuple[Tensor, Pullback]:
        x0, pullback = self.prior.vjp(x, sigma)
        call = len(self.clock.calls) - 1

        def timed(v: Tensor) -> Tensor:
            self.clock.calls[call] += 1
            with self.clock.in_network():
                return pullback(v)

        return x0, timed


def plain_loop(network: nn.Module, calls: Sequence[int], x: Tensor, time: Tensor) -> float:
    """CPU seconds of these calls of the bare network on x [N, C, H, W] at times [N]."""
    start = process_time()
    for pullbacks in calls:
        if pullbacks < 0:
            with torch.no_grad():
                network(x, time)
            continue
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            out = network(leaf, time)
        for k in range(pullbacks):
            torch.autograd.grad(out, leaf, x, retain_graph=k < pullbacks - 1)
    return process_time() - start


@dataclass(frozen=True)
class Cost:
    """What was measured for a solver on a task: medians over the steps."""

    solver: str
    task: str
    ratio: float
    total: float
    """The ratio with inner loops counted as the solver's."""
    paired: tuple[float, float, float]
    """Quartiles of the ratio to the plain loop."""
    own: float
    """CPU milliseconds per network call outside of the network and of inner loops."""
    inner: dict[str, float]
    """CPU milliseconds per network call in inner loops, network not included."""
    calls: float
    """Network calls per step."""


def measure(solver: Solver, task: str, problem: Problem, network: nn.Module, steps: int = 10, samples: int = 1) -> Cost:
    """Time ``steps`` steps of a solver with ``samples`` to a measurement, each beside the plain loop of its calls."""
    clock = Clock()
    prior = as_prior(
        TimedNetwork(network, clock), predicts="edm", value_range=(-1.0, 1.0), shape=(3, None, None)
    ).in_range(0.0, 1.0)
    rows = problem.y.shape[0] * samples
    x = torch.randn(rows, *(problem.shape or ()), generator=torch.Generator().manual_seed(0))
    time = torch.zeros(x.shape[0])
    ratios, totals, paired, own, inner, calls = [], [], [], [], [], []
    schedule = solver.schedule(prior, steps + WARM)
    runs = make_runs(problem, TimedPrior(prior, clock), schedule, samples)
    token = watch.set(clock.in_loop)
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            state = solver.init(runs(0, None))
        made: list[int] = []
        while state.i < len(schedule):
            reading = runs(state.i + 1, None)
            floor = plain_loop(network, made, x, time) if state.i % 2 else 0.0
            clock.reset()
            with torch.no_grad():
                start = process_time()
                state = solver.step(state, reading)
                spent = process_time() - start
            made, loops, inside = list(clock.calls), dict(clock.loops), clock.network
            floor = floor or plain_loop(network, made, x, time)
            if state.i <= WARM:
                continue
            around = spent - sum(loops.values())
            ratios.append(around / inside)
            totals.append(spent / inside)
            paired.append(around / floor)
            own.append((around - inside) / len(made))
            inner.append({k: v / len(made) for k, v in loops.items()})
            calls.append(len(made))
    finally:
        gc.enable()
        watch.reset(token)
    loop_names = sorted({name for step in inner for name in step})
    low, middle, high = statistics.quantiles(paired, n=4) if len(paired) > 1 else paired * 3
    return Cost(
        solver.name,
        task,
        statistics.median(ratios),
        statistics.median(totals),
        (low, middle, high),
        1e3 * statistics.median(own),
        {k: 1e3 * statistics.median(step.get(k, 0.0) for step in inner) for k in loop_names},
        statistics.mean(calls),
    )


def tasks() -> dict[str, Problem]:
    """Problems on 64 x 64 colour images, four at a time, in [0, 1]."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 3, SIZE, SIZE, generator=g)
    mask = torch.rand(SIZE, SIZE, generator=g) > 0.5
    operators = {
        "inpaint": Inpainting(mask),
        "deblur": Blur(gaussian_kernel(3.0, 61)),
        "superres": Downsample(4),
    }
    return {name: Problem.simulate(x, operator, Gaussian(0.05)) for name, operator in operators.items()}


def _first(problem: Problem) -> Problem:
    return problem.rows(slice(0, 1))


def loop_tasks() -> list[tuple[str, Solver, Problem]]:
    """Methods with loops of their own, each on a blur of 61 x 61 pixels of a 256 x 256 colour image."""
    x = torch.rand(1, 3, LOOP_SIZE, LOOP_SIZE, generator=torch.Generator().manual_seed(0))
    kernel = gaussian_kernel(3.0, 61)
    circular, mirrored = (Problem.simulate(x, Blur(kernel, boundary), 0.05) for boundary in ("circular", "reflect"))
    return [
        ("100 Langevin steps, blur", get_solver("daps"), circular),
        ("20 x 5 Hamiltonian steps, blur", get_solver("daps", inner="hmc", inner_steps=20), circular),
        ("exact draw, blur", get_solver("daps", inner="exact"), circular),
        ("100 Langevin steps, mirrored blur", get_solver("daps"), mirrored),
        ("proximal point, mirrored blur", get_solver("diffpir"), mirrored),
    ]


def network_of_3m(folded: bool = False) -> UNet:
    """A network of about 3 million parameters with random weights.

    It works at full resolution, at about 40 ms per image, as networks of this size in the field do. ``folded`` halves
    the resolution first, as the networks of this library do, which makes it three times as quick.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if folded:
            network = UNet(widths=(32, 64, 96, 128), blocks=2, unshuffle=2)
        else:
            network = UNet(widths=(48, 64, 96, 128), blocks=2, unshuffle=1)
        for p in network.parameters():
            if not p.any():  # no layer that is zero
                nn.init.normal_(p, 0, 0.02)
    return network.eval().requires_grad_(False)


def _image_tasks(options: argparse.Namespace, network: nn.Module) -> list[str]:
    """Print the table of single images in batches; returns what costs too much."""
    missed = []
    print(f"{'solver':9} {'task':9} {'calls':>6} {'ratio':>7} {'own':>8}  {'paired':17}  inner loops")
    for task, problem in tasks().items():
        for name in options.solvers if task in options.tasks else []:
            solver = get_solver(name, **SHORT.get(name, {}))
            if solver.unfit(problem) is not None:
                continue
            cost = measure(solver, task, problem, network, options.steps)
            loops = ", ".join(f"{k} {v:.2f} ms" for k, v in cost.inner.items()) or "-"
            print(
                f"{name:9} {task:9} {cost.calls:6.0f} {cost.ratio:7.3f} {cost.own:5.2f} ms  "
                f"{cost.paired[1]:.2f} ({cost.paired[0]:.2f}-{cost.paired[2]:.2f})  {loops}",
                flush=True,
            )
            if cost.ratio > LIMIT or cost.paired[0] > PAIRED_LIMIT:
                missed.append(f"{name} on {task}")
    print(
        f"ratio: CPU time over that of the network calls in the run, at most {LIMIT}; own time and inner loops: per "
        "network call; paired: over a plain loop of the same calls, median and quartiles"
    )
    return missed


def _particles(options: argparse.Namespace, network: nn.Module) -> list[str]:
    """Print the table of particle methods; returns what costs too much."""
    missed = []
    noisy = _first(tasks()["inpaint"])
    clean = Problem(noisy.y, noisy.operator, NoNoise())
    print(f"\n{PARTICLES} particles of one measurement, inpaint; with inner loops at most {LIMIT}")
    print(f"{'solver':13} {'calls':>5} {'ratio':>7} {'with loops':>10} {'own':>10}")
    for name in options.solvers:
        solver = get_solver(name, **SHORT.get(name, {}))
        problem = clean if "noiseless" in solver.needs else noisy
        if solver.family != "smc" or not solver.coupled or solver.unfit(problem) is not None:
            continue
        cost = measure(solver, "particles", problem, network, min(options.steps, 4), PARTICLES)
        print(f"{name:13} {cost.calls:5.0f} {cost.ratio:7.3f} {cost.total:10.3f} {cost.own:7.2f} ms", flush=True)
        if cost.total > LIMIT:
            missed.append(f"{name} with {PARTICLES} particles")
    return missed


def _loops(options: argparse.Namespace, network: nn.Module) -> list[str]:
    """Print the table of methods with long loops of their own; returns what costs too much."""
    missed = []
    print(f"\nwith their own loops, on {LOOP_SIZE} x {LOOP_SIZE} colour, batch 1; at most {LOOP_LIMIT}")
    for what, solver, problem in loop_tasks():
        if solver.name not in options.solvers:
            continue
        cost = measure(solver, what, problem, network, min(options.steps, 5))
        print(f"{solver.name:9} {what:34} {cost.total:7.3f}", flush=True)
        if cost.total > LOOP_LIMIT:
            missed.append(f"{solver.name} on {what}")
    return missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables that were asked for, and return 1 if a solver costs more than its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--solvers", nargs="+", default=[n for n in list_solvers() if n not in FITTED], metavar="NAME")
    parser.add_argument("--tasks", nargs="+", default=USUAL, choices=TASKS)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--folded", action="store_true", help="a network that is three times as quick")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = network_of_3m(options.folded)
    print(
        f"{count_parameters(network) / 1e6:.1f} million parameters, {SIZE} x {SIZE} colour, batch {BATCH}, one thread, "
        f"{options.steps} pairs; CPU time"
    )
    missed = _image_tasks(options, network) if set(options.tasks) & set(tasks()) else []
    missed += _particles(options, network) if "particles" in options.tasks else []
    missed += _loops(options, network) if "loops" in options.tasks else []
    if missed:
        print("missed:", "; ".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
