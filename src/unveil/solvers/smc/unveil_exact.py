"""Tempered sequential Monte Carlo with moves that need nothing of a prior but its denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...numerics.inner import inner_loop
from ...numerics.resampling import ancestors, effective_size, normalise
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...rng import Rng
from ...schedules import Schedule, karras
from ..base import Run, Solver, State
from .metric import Metric, untied, white, widths
from .particles import exact, per_row, total

BISECTIONS = 50
LOBATTO = (0.5 - 5**-0.5 / 2, 0.5 + 5**-0.5 / 2)
"""Inner nodes on [0, 1] of the Gauss-Lobatto rule of four points; weights 1/12 at the ends, 5/12 inside."""


@register("solver", "unveil-exact")
@dataclass(frozen=True)
class UnveilExact(Solver):
    """Tempered sequential Monte Carlo, moved by Metropolis chains that are exact for a prior known by its denoiser.

    This library 2026. After Del Moral, Doucet, Jasra 2006, "Sequential Monte Carlo samplers", J. R. Stat. Soc. B 68
    (the frame); Neal 1998, "Regression and classification using Gaussian process priors" (a proposal that leaves the
    prior invariant needs the likelihood only); Roberts and Tweedie 1996, Bernoulli 2 (Langevin proposals).

    ``oversampling`` clouds of particles are drawn from the prior, p(x0), and go through the densities
    p(x0) p(y | x0)^beta, beta from 0 to 1. A stage raises beta until the effective sample size of the weights
    p(y | x0)^(beta' - beta) falls to ``ess``, resamples, and moves every particle:

    1. *Renoise, denoise*: z = x + s eps, x' from the reverse diffusion that starts at (z, s). The pair (x, x') is
       exchangeable under the prior, so x' is accepted with probability min(1, (p(y | x') / p(y | x))^beta): for any
       likelihood, without gradients. s follows the acceptance rate.
    2. *Langevin* proposals x' = x + h^2 / 2 P grad + h P^(1/2) eps, P = (Q diag(1 / v) Q^T + beta A^T A / sigma_y^2)^-1
       for linear operators and Gaussian noise, without data's term for others. The test needs log p(x') - log p(x),
       which no denoiser gives, but its gradient (D(x, sigma) - x) / sigma^2 at a small sigma is known everywhere, and
       integrated along the segment by Gauss-Lobatto quadrature. h follows the acceptance rate, and 1 / v is the mean
       square of the gradient over the particles, per coordinate (:class:`~unveil.solvers.smc.metric.Metric`).

    Exact as particles, stages and the evaluations of a reverse diffusion grow; smoothed by ``sigma_min``. The
    product of mean weights estimates the evidence p(y).

    Steps are stages; once beta is 1 they only move. Why these moves, on the mixtures of `unveil bench mixtures`: the
    weights of modes are settled while beta is small, by many draws of the prior (``oversampling``), and renoising
    carries particles from one to another as long as beta lets it; within a mode, where the data leave little room,
    Langevin moves go on when renoising is no longer accepted. What decides is that a reverse diffusion ends at the
    prior. With 12 evaluations, and levels that fall from s to a fiftieth of it, chains of them drifted towards the
    middle modes: ten times the floor in one problem of 8 dimensions, whatever ``oversampling``. Many small stages
    (``ess=0.9``) weigh modes better than few large ones with as many moves. On the ruler (`unveil bench exact`) it is
    within a fifth of the floor on every problem; with two Langevin moves of one width for all coordinates it was 2.8
    times the floor where colours are measured by their mean alone, and much of the signal is not measured. What it
    reaches on the mixtures, cell by cell, is in docs/mixtures.md.

    Two other frames were tried with the same moves and 1000 particles. Annealed importance weights (150 stages without
    resampling, 6570 evaluations) came to 0.9 and 1.0 times the floor on two problems of 8 dimensions with m = 1, and to
    2.1 and 1.1 on two of 80 with m = 2, where this form, with two Langevin moves, came to 1.1 and 0.9: the effective
    sample size was 72 on the harder one. Replica exchange (eight temperatures, 60 sweeps, 25 380 evaluations) came to
    0.7 and 1.1 on the former, and to 3.3 on the harder of the latter, where too few states came down from the prior.

    prior_steps, oversampling
        Evaluations of a draw from the prior, and how many are drawn for every particle that is kept.
    inner_steps, renoisings, langevins
        Evaluations of a reverse diffusion; moves of each kind in a stage. A Langevin move costs 3 evaluations.
        ``langevins=0`` asks nothing of the operator but its values.
    ess
        As a share of the particles.
    sigma_min
        The level at which signals count as clean (for data in [-1, 1]): reverse diffusions go from there to 0, and
        the score of Langevin moves is that of this level.
    rest
        Last stages, which only move.
    """

    family: ClassVar[str] = "smc"
    clean: ClassVar[bool] = True
    coupled: ClassVar[bool] = True
    particles: ClassVar[int] = 2
    default_steps: ClassVar[int] = 60
    rewards: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = dict.fromkeys(
        ("steps", "prior_steps", "oversampling", "inner_steps", "renoisings", "langevins", "ess", "sigma_min", "rest"),
        "own",
    )
    limits: ClassVar[Mapping[str, str]] = {"renoisings": "[0, inf)", "langevins": "[0, inf)"}

    prior_steps: int = 120
    oversampling: int = 16
    inner_steps: int = 36
    renoisings: int = 1
    langevins: int = 8
    ess: float = 0.9
    sigma_min: float = 0.005
    rest: int = 4

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """A clock: the prior's levels, of which only the first is used as a noise level."""
        return karras(steps, *prior.sigma_range)

    def unfit(self, problem: Problem) -> str | None:
        if problem.noise.sigma == 0:
            return "it needs noise: state a small sigma_y instead of none"
        return super().unfit(problem)

    def init(self, run: Run) -> State:
        x = super().init(run).x
        zero = x.new_zeros(x.shape[0])
        wide = zero.to(exact(x))
        number = torch.arange(x.shape[0], device=x.device) % run.samples
        size = {"sigma": zero + 2 * run.scale, "h": zero + x[0].numel() ** (-1 / 6)}
        return State(x, x, 0, {"beta": wide, **size, "log_weights": wide, "log_evidence": wide, "ancestors": number})

    def step(self, state: State, run: Run) -> State:
        aux, n = state.aux, run.samples
        run = replace(run, rng=run.rng.together(n))
        clouds = [self._prior_draw(run) for _ in range(self.oversampling)] if state.i == 0 else [state.x]
        found = [run.by_rows(Problem.log_likelihood, x) for x in clouds]
        log_p = torch.cat([log_likelihood.to(aux["beta"]).view(-1, n) for log_likelihood in found], 1)
        # -- temper
        beta = aux["beta"].view(-1, n)[:, :1]
        rise = 1 - beta if state.i + self.rest >= len(run.schedule) - 1 else self._rise(log_p, beta, n)
        weights, log_mean = normalise(_power(log_p, rise))
        # -- resample: n of the particles of all clouds, every K-th of K n, from a random one on
        u = run.rng.uniform(log_p.new_empty(state.x.shape[0], 2)).view(-1, n, 2)[:, 0]
        first = (u[:, 1:] * len(clouds)).long().clamp_max(len(clouds) - 1)
        every = torch.arange(n, device=first.device) * len(clouds) + first
        chosen = ancestors(weights, u[:, :1].expand_as(weights)).gather(1, every)
        x = _pick(clouds, chosen)
        del clouds
        log_p, log_mean = log_p.gather(1, chosen).flatten(), log_mean.repeat_interleave(n)
        books = {
            "beta": (beta + rise).expand(-1, n).flatten(),
            "log_weights": torch.where(log_mean > -torch.inf, 0.0, log_mean),
            "log_evidence": aux["log_evidence"] + log_mean,
            "ancestors": aux["ancestors"].view(-1, n).gather(1, chosen % n).flatten(),
        }
        # -- move
        x, log_p, sigma = self._renoise(x, log_p, books["beta"], aux["sigma"], state.i, run)
        h = aux["h"]
        if self.langevins:
            x, h = self._langevin(x, log_p, books["beta"], h, run)
        return state.next(x, x, sigma=sigma, h=h, **books)

    def _prior_draw(self, run: Run) -> Tensor:
        middle, top = sum(run.problem.value_range) / 2, run.schedule.sigmas[0]
        x = middle + top * run.rng.normal(run.like)
        return reverse(run.prior, x, x.new_full((len(x),), top), self._low(run), self.prior_steps, run.rng)

    def _low(self, run: Run) -> float:
        return max(self.sigma_min * run.scale, run.prior.sigma_range[0])

    def _rise(self, log_p: Tensor, beta: Tensor, n: int) -> Tensor:
        """How far beta can rise, to 1 at most, with an effective sample size of at least ``ess`` n: [B, 1]."""
        low, high = torch.zeros_like(beta), 1 - beta
        rise = high
        for _ in range(BISECTIONS):
            enough = effective_size(normalise(_power(log_p, rise))[0])[:, None] >= self.ess * n
            low, high = torch.where(enough, rise, low), torch.where(enough, high, rise)
            rise = (low + high) / 2
        return low

    @inner_loop
    def _renoise(
        self, x: Tensor, log_p: Tensor, beta: Tensor, sigma: Tensor, i: int, run: Run
    ) -> tuple[Tensor, Tensor, Tensor]:
        low = self._low(run)
        for k in range(i * self.renoisings, (i + 1) * self.renoisings):
            level = (sigma * 2.0 ** (k % 3 - 1)).clamp(2 * low, run.schedule.sigmas[0])
            z = x + per_row(level, x) * run.rng.normal(x)
            there = reverse(run.prior, z, level, low, self.inner_steps, run.rng)
            log_there = run.by_rows(Problem.log_likelihood, there).to(beta)
            accept = run.rng.uniform(log_p).log() < beta * (log_there - log_p)
            x, log_p = torch.where(per_row(accept, x) > 0, there, x), torch.where(accept, log_there, log_p)
            rate = accept.to(sigma).view(-1, run.samples).mean(1).repeat_interleave(run.samples)
            sigma = sigma * (0.5 * (rate - 0.4)).exp()
        return x, log_p, sigma.clamp(2 * low, run.schedule.sigmas[0])

    @inner_loop
    def _langevin(self, x: Tensor, log_p: Tensor, beta: Tensor, h: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        level = self._low(run)

        def slope(x: Tensor) -> Tensor:
            return (run.prior.denoise(x, level) - x).div_(level**2)

        def moved(
            problem: Problem, x: Tensor, s: Tensor, g: Tensor, log_p: Tensor, h: Tensor, beta: Tensor, v: Tensor,
            u: Tensor, *noise: Tensor,
        ) -> tuple[Tensor, ...]:  # fmt: skip
            metric, hx = Metric(problem, v, beta), per_row(h, x)
            jump = hx * metric.draw(*noise)
            forth = metric.norm2(jump)
            along = hx**2 / 2 * metric(g) + jump
            del jump
            # log p(x') - log p(x), the work of the prior's score along the way
            s_there = slope(x + along)
            work = total(along * (s + s_there)) / 12
            for t in LOBATTO:
                work = work + total(along * slope(x + t * along)) * (5 / 12)
            there = x + along
            g_there = s_there + per_row(beta.to(x), x) * problem.score(there)
            back = metric.norm2(along + hx**2 / 2 * metric(g_there))
            log_there = problem.log_likelihood(there).to(beta)
            accept = u.log() < work + (forth - back) / (2 * h**2) + beta * (log_there - log_p)
            rows = per_row(accept, x) > 0
            x, s, g = torch.where(rows, there, x), torch.where(rows, s_there, s), torch.where(rows, g_there, g)
            return x, s, g, torch.where(accept, log_there, log_p), accept

        s = slope(x)
        v = widths(run.by_rows(untied, s), run.samples)
        g = s + per_row(beta.to(x), x) * run.by_rows(Problem.score, x)
        for _ in range(self.langevins):
            noise = white(run.problem, v, run.rng)
            u = run.rng.uniform(log_p)
            x, s, g, log_p, accept = run.by_rows(moved, x, s, g, log_p, h, beta, v, u, *noise)
            rate = accept.to(h).view(-1, run.samples).mean(1).repeat_interleave(run.samples)
            h = (h * (0.5 * (rate - 0.57)).exp()).clamp_max(2.0)
        return x, h


def reverse(prior: Prior, x: Tensor, top: Tensor, low: float, steps: int, rng: Rng) -> Tensor:
    """The reverse diffusion from x at levels ``top`` [N] to 0, ancestral and of second order, in ``steps`` evaluations.

    Levels are geometric down to ``low``, so that the estimate is carried on by half a step in every row alike
    (:func:`~unveil.solvers.moves.midway`), and no part of the way is hurried over: chains that end at the prior only as
    far as this does would drift.
    """
    sigma, before = top, None
    r = (low / top) ** (1 / max(steps - 1, 1))
    rows = per_row(r, x)
    for _ in range(steps - 1):
        x0 = prior.denoise(x, sigma)
        ahead = x0 if before is None else torch.lerp(before, x0, 1.5)
        sigma, before = sigma * r, x0
        x = ahead + rows**2 * (x - ahead) + per_row(sigma, x) * (1 - rows**2).sqrt() * rng.normal(x)
    return prior.denoise(x, sigma)


def _power(log_p: Tensor, exponent: Tensor) -> Tensor:
    """The logarithm of p^exponent, with 0^0 = 1."""
    return torch.where(exponent > 0, exponent * log_p, 0)


def _pick(clouds: list[Tensor], chosen: Tensor) -> Tensor:
    """Particles of K clouds [B S, ...], by their number 0..K S - 1 in each measurement: [B, S] -> [B S, ...]."""
    b, n = chosen.shape
    first = torch.arange(b, device=chosen.device)[:, None] * n
    cloud, row = chosen // n, (first + chosen % n).flatten()
    picked = clouds[0][row]
    for k, other in enumerate(clouds[1:], 1):
        picked = torch.where(per_row((cloud == k).flatten(), picked) > 0, other[row], picked)
    return picked
