"""Diffusion prior-based amortised variational inference: a network that draws from the posterior in one step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.inner import inner_loop
from ...registry import register
from ...rng import Rng
from ..base import Run, State
from .amortised import simulated
from .fitted import Fitted, from_unit, to_unit
from .networks import Layout, Net, form_of

BENDS = 3
"""Powers of ln sigma, from 0 on, that the score's network sees its signals times."""


@register("solver", "davi")
@dataclass(frozen=True)
class DAVI(Fitted):
    """Amortised variational inference: a generator F(y, z) learns to draw from p(x | y), and does so in one step.

    Lee, Park, Kong, Kim 2024, "Diffusion prior-based amortized variational inference for noisy inverse problems",
    arXiv 2407.16125, section 4 (the gradient of the divergence: Luo et al. 2023, arXiv 2305.18455).

    F has no density; an implicit score stands in for it, a second network that learns, by denoising, the denoiser
    D_q(x + sigma eps, sigma | y) of what F draws. Both take a step of Adam at a time::

        score:      E | D_q(F + sigma eps) - F |^2
        generator:  int E < stop-gradient( D_q(x) - D(x) ) / sigma^2, F > dln(sigma)
                    - lam E log p(y | F)  + reg E |F - x0|^2 / 2,            x = F + sigma eps,

    D the prior's denoiser: the first term is the gradient of the divergence of F's draws from the prior's, both with
    noise added. They are learned on measurements of signals x0 that are drawn from the prior; as of
    ``aps``, one fit (``unveil fit davi``) serves all measurements with the same operator and noise, at no evaluation of
    the prior. Without such a file a run learns first.

    sigma_low, sigma_high, skew
        Noise levels of the divergence, for [-1, 1]: ln sigma lies u^skew of the way up, u uniform and stratified over
        the draws of a step, and the integral weighs levels as they are drawn. With noise added the divergence says less
        of directions that are narrower than the noise, and the likelihood then all too much: most levels are small.
    lag
        How many times slower F learns than the score, which must have caught up for its answer to be F's.
    lam, reg
        Weights of the likelihood and of what pulls draws to the signal measured (|F - x0|^2 in units of [-1, 1]). None
        for lam is ln(sigma_high / sigma_low), with which the prior counts as much as the likelihood.
    perturb
        How strongly F's input is perturbed to begin with: F starts as the regularised pseudo-inverse plus perturb z.
    hidden
        Features of the layers of both networks.
    batch, measurements, prior_steps, lr, betas, clip, fitted
        As for ``aps``.

    On the ruler's Gaussians it has 0.89 to 1.01 times the right spread, but a third to a half of it in directions that
    the data make twenty times narrower than the prior; it is 2.1 to 3.5 times as far off as exact draws, 1.4 to 2.8
    in sliced distance. Of several modes it keeps few.

    Deviations: the score is told the measurement, so that what it learns is the posterior's, and starts as the prior's
    own denoiser, of which its network learns the difference; z is an input beside y's signal instead of noise on it,
    and there is no tanh. The authors weigh levels uniformly in time, up to 400 or 1000 of 1000, and both networks learn
    at one rate: with skew, lag and lam at 1 the spread along the data is 0.1 to 1.5 times the right one on the ruler.
    They pull to true images (reg 0.1 to 1, and lam |y - A F|^2 with 0.01 to 1), with a discriminator and LPIPS besides.
    Here reg is 0: it takes the spread away.
    """

    amortised: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, str]] = {"skew": "(0, inf)", "lag": "[1, inf)"}
    default_steps: ClassVar[int] = 2000
    paper: ClassVar[dict[str, str]] = (
        {
            "lr": "1e-4",
            "sigma_high": "2 for deblurring, 157 for the rest (t = 400, 1000)",
            "skew": "1 in time",
            "lag": "1",
            "lam": "0.01 to 1, of the squared residual",
            "reg": "0.1 to 1",
            "perturb": "0.1 on faces, 0.01 to 0.1 on ImageNet",
        }
        | dict.fromkeys(("steps", "batch", "betas", "clip", "sigma_low"), "not at hand")
        | dict.fromkeys(("fitted", "measurements", "prior_steps", "hidden"), "own")
    )
    why: ClassVar[dict[str, str]] = {
        "lr": "2000 steps of a small network ask for a larger one",
        "skew": "at high levels the divergence says little of directions that the data make narrow",
        "lag": "a score that is behind gives the wrong spread",
        "lam": "the prior counts once beside the likelihood, as in the posterior",
        "reg": "it pulls the draws together and takes the posterior's spread away",
    }

    batch: int = 128
    lr: float = 0.01
    measurements: int = 16
    prior_steps: int = 10
    hidden: int = 128
    sigma_low: float = 0.02
    sigma_high: float = 2.0
    skew: float = 4.0
    lag: float = 10.0
    lam: float | None = None
    reg: float = 0.0
    perturb: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measurements < 1 or self.batch % self.measurements:
            raise InputError(f"davi needs a batch that is a multiple of measurements, {self.measurements}")
        if not 0 < self.sigma_low < self.sigma_high:
            raise InputError(f"davi needs 0 < sigma_low < sigma_high, got {self.sigma_low:g} and {self.sigma_high:g}")

    def moved(self, before: Tensor, after: Tensor, shape: tuple[int, ...]) -> Tensor:
        size = networks(shape, self.hidden)[0].layout.size
        return torch.cat([before[:, :size].lerp(after[:, :size], 1 / self.lag), after[:, size:]], 1)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return Layout(tuple(s for net in networks(shape, self.hidden) for s in net.layout.shapes))

    def begin(self, shape: tuple[int, ...]) -> Tensor:
        tensors: dict[str, Tensor] = {}
        for net in networks(shape, self.hidden):
            tensors |= net.start()
        return self.layout(shape).join({k: v[None] for k, v in tensors.items()})

    def draw(self, theta: Tensor, z: Tensor, centre: Tensor) -> Tensor:
        shape = tuple(z.shape[2:])
        form, (generator, _) = form_of(shape), networks(shape, self.hidden)
        seen = torch.cat([t.expand_as(z).reshape(*z.shape[:2], *form) for t in (centre, z)], 2)
        change = generator(self.layout(shape).split(theta), seen)
        return centre + self.perturb * z + change.reshape(z.shape)

    def gradient_of(self, theta: Tensor, state: State, run: Run, rng: Rng) -> Tensor:  # noqa: ARG002
        problem, centre, truth = simulated(self, run, rng)
        z, eps = rng.normal(centre), rng.normal(centre)
        span, groups = math.log(self.sigma_high / self.sigma_low), len(theta)
        place = torch.arange(self.batch, dtype=z.dtype, device=z.device).add(
            rng.uniform(z.new_empty(groups, self.batch))
        )
        share = (place / self.batch).gather(1, rng.uniform(place).argsort(1)) ** self.skew
        sigma = self.sigma_low * torch.exp(span * share)
        leaf, drawn = self.generate(theta, z, centre)
        x = drawn.detach()
        noisy = x + expand2(sigma, x) * eps
        level = (sigma * run.scale).flatten()
        x0 = to_unit(run.prior.denoise(from_unit(noisy, run.problem).flatten(0, 1), level), run.problem)
        lam = span if self.lam is None else self.lam
        up = problem.score(from_unit(x, run.problem).flatten(0, 1)).reshape(x.shape) * (-lam * run.scale)
        if self.reg:
            up = up + self.reg * (x - truth)
        return self.both_gradients(leaf, drawn, noisy, sigma, (2 * share - 1), x0.reshape(x.shape), centre, up)

    @inner_loop
    def generate(self, theta: Tensor, z: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            return leaf, self.draw(leaf, z, centre)

    @inner_loop
    def both_gradients(
        self,
        leaf: Tensor,
        drawn: Tensor,
        noisy: Tensor,
        sigma: Tensor,
        place: Tensor,
        x0: Tensor,
        centre: Tensor,
        up: Tensor,
    ) -> Tensor:
        """The gradients of the generator's loss, whose part for draws is ``up``, and of the score's, added up."""
        shape = tuple(drawn.shape[2:])
        form, (_, score) = form_of(shape), networks(shape, self.hidden)
        gain = 1 / (1 + sigma**2) ** 0.5
        rows = [t.reshape(*t.shape[:2], *form) for t in (expand2(gain, noisy) * noisy, centre)]
        powers = [expand2(place, rows[0]) ** k for k in range(BENDS)]
        plain = torch.ones_like(rows[0][:, :, :1])
        seen = torch.cat([w * t for w in powers for t in rows] + [w * plain for w in powers[1:]], 2)
        with torch.enable_grad():
            found = score(self.layout(shape).split(leaf), seen).reshape(drawn.shape)
            wanted = (drawn.detach() - x0) / expand2(sigma * gain, x0)
            loss = (found - wanted).square().sum() / self.batch
        (own,) = torch.autograd.grad(loss, leaf)
        span = math.log(self.sigma_high / self.sigma_low)  # span times the mean over levels is the integral
        up = up + expand2(span * gain / sigma, found) * found.detach()
        (g,) = torch.autograd.grad(drawn, leaf, up / self.batch)
        return g + own


def expand2(a: Tensor, like: Tensor) -> Tensor:
    """[B, K] with axes of 1 behind, to multiply ``like`` [B, K, ...]."""
    return a.reshape(*a.shape, *[1] * (like.ndim - 2))


@lru_cache(maxsize=32)
def networks(shape: tuple[int, ...], hidden: int) -> tuple[Net, Net]:
    """The generator and the score's difference to the prior's."""
    form = form_of(shape)
    n, space = form[0], len(form) - 1
    generator = Net("generator", (2 * n, hidden, n), space)
    ones = BENDS - 1
    return generator, Net("score", (BENDS * 2 * n + ones, hidden, hidden, n), space)
