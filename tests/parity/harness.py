"""What parity tests share: a tiny network, small problems, and noise that is fed to both sides.

A published algorithm is run outside the project on :class:`TinyEps`, with its noise taken in order from
:func:`noises`; the numbers it gives lie in ``data/NAME.json`` with where they come from::

    {"solver": "name", "source": "owner/repository", "commit": "...", "how": "what was run, or transcribed",
     "problem": "mask", "options": {...}, "sigmas": [...], "seed": 0,
     "one_step": [192 numbers], "run": [192 numbers]}

``tied``, ``learned`` choose the network, ``particles`` says how many samples see each other (and there are so many of
the numbers).

The test gives our solver the same start, levels and noise, and compares (:func:`check_parity`). Both outputs are our x
(x_t / sqrt(abar_t) of variance-preserving code), shape [1, 3, 8, 8], values in [-1, 1], double precision.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import nn

from unveil import Gaussian, NoNoise, Poisson, Problem, as_prior, get_solver
from unveil.operators import Blur, Downsample, Inpainting, Quantize, gaussian_kernel
from unveil.priors import ddpm_linear
from unveil.rng import Rng
from unveil.schedules import Schedule, ddpm_sigmas
from unveil.solvers.base import Run
from unveil.solvers.moves import renoise

DATA = Path(__file__).parent / "data"
SHAPE = (3, 8, 8)


def waves(*shape, pace=1.0):
    """Fixed numbers in [-1, 1] that any language can make: sin(pace (k + 1)^1.5), k = 0, 1, ... in row-major order."""
    k = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
    return torch.sin(pace * k**1.5).reshape(shape)


class TinyEps(nn.Module):
    """eps(x_t, t), t = 0..999 of DDPM's linear betas: right for N(0, 0.25 I), and a little non-linear. float64.

    ``forward(x [N, 3, H, W], t [N])``. ``learned`` gives six channels, as networks with a learned variance do. ``tied``
    is a network whose denoiser has a symmetric, positive Jacobian, as exact ones do; that of the other has not.
    """

    def __init__(self, learned=False, tied=False):
        super().__init__()
        sigmas = torch.as_tensor(ddpm_sigmas("linear"))
        self.register_buffer("abar", 1 / (1 + sigmas**2))
        self.register_buffer("first", 0.3 * waves(8, 3, 3, 3))
        second = -0.05 * self.first.transpose(0, 1).flip(2, 3) if tied else 0.1 * waves(3, 8, 3, 3, pace=0.7)
        self.register_buffer("second", second)
        self.learned = learned

    def forward(self, x, t, *args, **kwargs):
        t = torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(x.shape[0])
        low = t.floor().long().clamp(0, 999)
        part = (t - low).clamp(0, 1)
        level = torch.lerp(self.abar[low].log(), self.abar[(low + 1).clamp(max=999)].log(), part).exp()
        abar = level.view(-1, 1, 1, 1)
        bent = nn.functional.conv2d(torch.tanh(nn.functional.conv2d(x, self.first, padding=1)), self.second, padding=1)
        eps = (1 - abar).sqrt() * (x / (0.25 * abar + 1 - abar) + bent)
        return torch.cat([eps, torch.tanh(eps)], 1) if self.learned else eps


def prior(learned=False, tied=False):
    """TinyEps as a prior, in [-1, 1]; with its learned variance if asked."""
    options = {"variance": "learned_range"} if learned else {}
    return as_prior(
        TinyEps(learned, tied),
        predicts="eps",
        value_range=(-1, 1),
        schedule=ddpm_linear(),
        shape=(3, None, None),
        channels=3,
        **options,
    )


def truth():
    return 0.5 * waves(1, *SHAPE, pace=0.31)


def operator(name):
    """One of these.

    ``mask`` (a third lost), ``blur`` (circular, Gaussian of width 1, 5 x 5), ``down`` (means of 2 x 2), ``bits`` (2),
    ``counts`` (means of 2 x 2, and 1 more).
    """
    if name == "mask":
        return Inpainting((waves(8, 8, pace=1.3) > -0.5).double())
    if name == "blur":
        return Blur(gaussian_kernel(1.0, 5).double())
    if name == "bits":
        return Quantize(2, -1.0, 1.0)
    if name == "counts":
        return Downsample(2) + torch.ones(3, 4, 4, dtype=torch.float64)
    return Downsample(2)


def problem(name, sigma_y=0.05):
    """y = A(truth) + sigma_y waves, in [-1, 1]; ``counts``: whole ones, 50 for 1."""
    A = operator(name)
    clean = A(truth())
    if name == "counts":
        y = (50 * clean + 5 * waves(*clean.shape, pace=2.1)).round() / 50
        return Problem(y, A, Poisson(50.0), shape=SHAPE, value_range=(-1.0, 1.0))
    noise = Gaussian(sigma_y) if sigma_y else NoNoise()
    y = clean + sigma_y * waves(*clean.shape, pace=2.1)
    return Problem(y, A, noise, shape=SHAPE, value_range=(-1.0, 1.0))


def noises(seed, n, shape=(1, *SHAPE)):
    """The first n draws from N(0, I), in order."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(n)]


class Fed(Rng):
    """A random stream that hands out the draws of :func:`noises`, in order."""

    def __init__(self, seed):
        super().__init__([(0, 0)])
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, like, shared=1):
        assert not like.is_complex()
        # the records draw for all rows, also where neighbours get those of the first
        drawn = torch.randn(like.shape, generator=self.generator, dtype=torch.float64).to(like)
        return drawn[::shared].repeat_interleave(shared, 0)


def ours(record, steps=None):
    """x after some steps (default: all) of our solver, on the record's problem, levels and noise.

    A rise of the levels (time travel) is a step, too.
    """
    solver = get_solver(record["solver"], **record["options"])
    rng = Fed(record["seed"])
    data = problem(record["problem"], record.get("sigma_y", 0.05))
    denoiser = prior(record.get("learned", False), record.get("tied", False))
    count = record.get("particles", 1)
    run = Run(data.rows(torch.zeros(count).long()), denoiser, Schedule(tuple(record["sigmas"])), rng, count)
    with torch.no_grad():
        state = solver.init(run)
        for _ in range(len(run.schedule) if steps is None else steps):
            sigma, sigma_next = run.schedule.pair(state.i)
            if sigma_next > sigma:  # the driver's
                state = state.next(renoise(state.x, sigma, sigma_next, rng), state.x0, **state.aux)
            else:
                state = solver.step(state, run)
    return state.x


def load(name):
    return json.loads((DATA / f"{name}.json").read_text())


def check_parity(name, rtol=1e-8):
    """One step and the whole run agree with the recorded numbers."""
    record = load(name)
    for key, steps in (("one_step", 1), ("run", None)):
        there = torch.tensor(record[key], dtype=torch.float64).reshape(-1, *SHAPE)
        here = ours(record, steps)
        torch.testing.assert_close(here, there, rtol=rtol, atol=rtol, msg=lambda m, key=key: f"{name}, {key}: {m}")
