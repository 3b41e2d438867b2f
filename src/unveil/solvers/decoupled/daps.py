"""Decoupled annealing posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import InputError
from ...operators.base import Linear
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule, karras
from ..base import Run, Solver, State
from ..moves import ode
from .data_steps import chain, curvature, has_closed_chain, laplace

INNER = ("langevin", "hmc", "exact", "laplace")


@register("solver", "daps")
@dataclass(frozen=True)
class DAPS(Solver):
    """Decoupled annealing posterior sampling.

    Zhang, Chu, Berner, Meng, Anandkumar, Song 2024, "Improving diffusion inverse problem solving with decoupled noise
    annealing", arXiv 2407.01521, Algorithm 1 and equation 8.

    At every level: a clean estimate by the probability-flow ODE, a Markov chain on the density proportional to
    p(y | u) N(u; x0, sigma^2 I), and fresh noise of the next level::

        x0 = ode(x, sigma);   u ~ exp(log p(y | u) - |u - x0|^2 / (2 r^2)), r = spread sigma;   x_next = u + sigma' z

    inner
        "langevin" (the paper), "hmc", or "exact": the Gaussian density itself, for linear operators and Gaussian noise.
        "laplace": the Gaussian nearest to the density at its mode, for noise of known information (counts, clipping,
        levels): where hardly any light is expected, chains are unstable.
    inner_steps, leapfrogs
        Length of the chain: ``inner_steps`` Langevin steps, or Hamiltonian steps of ``leapfrogs`` each. On spectral
        operators with Gaussian noise its end is drawn from the law that it has, at once.
    step_size
        Of the chain, relative to the largest curvature |A|^2 / sigma_y^2 + 1 / r^2: 1 is half way to instability for
        Langevin. The bias of a stiff direction's variance is 1 / (1 - step_size / 2).
    spread
        r / sigma. The paper has 1, which is the spread of x0 given x under a flat prior; the error of a good denoiser
        of photographs is a quarter of that, and whatever is too much reaches the next level as noise.
    ode_steps, ode_end
        Euler steps of the ODE, and the level it stops at (for images in [-1, 1]). One step is the posterior mean D.
        Evaluations are better spent on levels: 32 x 32 pixels of a photograph, 70 % of them lost, come back with 26.2
        dB from 60 levels of one (spread 0.5, sigma_start 2), with 23.4 from 20 of three (spread 0.3, sigma_start 10).
    sigma_start, sigma_end
        First and last noise level (for images in [-1, 1]).

    Deviations: the likelihood has the problem's own sigma_y (the authors use 0.01, and the whole squared norm where its
    half belongs, which makes it another sqrt(2) narrower); the chain starts at a draw of N(x0, r^2 I), not at its mean,
    so that directions without data have their variance at once (on operators that are not linear: at x0); its step
    follows the curvature, not a table by task. The authors take 5 steps of the ODE, from sigma_start = 100. But the end
    of the ODE is spread like a sample already, and the chain adds r^2 to that: standard deviations come out 10 to 55 %
    too large on Gaussian priors. Around the mean they are right to 5 % or better, in 200 steps of one evaluation.
    """

    family: ClassVar[str] = "decoupled"
    default_steps: ClassVar[int] = 200
    paper: ClassVar[dict[str, str]] = {
        "steps": "200",
        "inner": "langevin",
        "inner_steps": "100",
        "leapfrogs": "own",
        "step_size": "2 for Gaussian blur, 1 for box inpainting, falling to a hundredth",
        "spread": "1",
        "ode_steps": "5",
        "ode_end": "0.01",
        "sigma_start": "100",
        "sigma_end": "0.1",
    }
    why: ClassVar[dict[str, str]] = {
        "step_size": "relative to the curvature: one number for all operators and noise",
        "ode_steps": "after 5 steps standard deviations are 10 to 55 % too large, after one right to 5 %",
        "sigma_start": "levels above 10 gain nothing on the ruler",
        "sigma_end": "0.1 leaves standard deviations up to 8 % too large on the ruler",
    }

    inner: str = "langevin"
    inner_steps: int = 100
    leapfrogs: int = 5
    step_size: float = 0.2
    spread: float = 1.0
    ode_steps: int = 1
    ode_end: float = 0.01
    sigma_start: float = 10.0
    sigma_end: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner not in INNER:
            raise InputError(f"daps has no inner sampler '{self.inner}': one of {', '.join(INNER)}")

    def unfit(self, problem: Problem) -> str | None:
        sigma = problem.noise.sigma
        if self.inner == "exact":
            if sigma is None or not isinstance(problem.operator, Linear):
                return "with inner='exact' it needs a linear operator and Gaussian noise"
            return None
        if self.inner == "laplace" and problem.noise.information(problem.y, problem.y) is None:
            return "with inner='laplace' it needs noise of known information: Gaussian, counts, clipping, levels"
        if sigma == 0:
            return "its Markov chain needs noise: sigma_y > 0, or inner='exact'"
        return super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = prior.sigma_range
        end = max(self.sigma_end * scale, low)
        return karras(steps, end, max(min(self.sigma_start * scale, high), 2 * end))

    def init(self, run: Run) -> State:
        state = super().init(run)
        problem = run.problem
        chained = self.inner not in ("exact", "laplace") and not has_closed_chain(problem)
        if not chained or not isinstance(problem.operator, Linear) or problem.noise.sigma is None:
            return state
        return State(state.x, state.x0, 0, {"curvature": curvature(problem, state.x0)})

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = ode(run.prior, state.x, sigma, self.ode_end * run.scale, self.ode_steps)
        r = self.spread * sigma
        if self.inner == "exact":
            u = run.problem.conditional(x0, r**2, run.rng)
        elif self.inner == "laplace":
            u = laplace(run.problem, x0, r, run.rng)
        else:
            start = None if isinstance(run.problem.operator, Linear) else x0
            steps, leapfrogs, steepest = self.inner_steps, self.leapfrogs, state.aux.get("curvature")
            u = chain(run.problem, x0, r, run.rng, self.inner, steps, leapfrogs, self.step_size, start, steepest)
        x = u.add(run.rng.normal(u), alpha=sigma_next) if sigma_next > 0 else u
        return state.next(x, u, **state.aux)
