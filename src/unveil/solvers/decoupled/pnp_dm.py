"""PnP-DM: plug-and-play diffusion models by split Gibbs sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...operators.base import Linear
from ...priors.base import Prior
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule, karras
from ..base import Run, Solver, State
from ..moves import ddim, midway
from ..paper import SECOND_ORDER
from ..smc.particles import data_possible
from .data_steps import chain, curvature


@register("solver", "pnp-dm")
@dataclass(frozen=True)
class PnPDM(Solver):
    """PnP-DM: split Gibbs sampling with a diffusion prior.

    Wu, Sun, Chen, Zhang, Yue, Bouman 2024, "Principled probabilistic imaging using diffusion models as plug-and-play
    priors", arXiv 2405.18782, Algorithm 1 and section 3.

    A sweep draws in turn from the two conditionals of p(x) p(y | z) N(x; z, rho^2 I)::

        z ~ p(y | z) exp(-|z - x|^2 / (2 rho^2))     (exact where A is linear and the noise Gaussian; else Langevin)
        x ~ p(x) exp(-|x - z|^2 / (2 rho^2))         (reverse diffusion from level rho, from z)

    while rho falls: rho_k = max(rho0 decay^k, rho_min). Asymptotically exact as rho and the steps of the reverse
    diffusion go to zero and the number of sweeps grows: for fixed rho the stationary distribution is the posterior of a
    measurement with noise sigma_y^2 I + rho^2 A A^T.

    Steps are sweeps.

    rho0, rho_min
        First and last coupling (for images in [-1, 1]).
    burn
        Share of the sweeps in which rho falls geometrically from rho0 to rho_min; the others stay there.
    inner_steps
        Evaluations of the prior in a sweep, on Karras' grid below rho.
    eta
        1: reverse SDE (ancestral), 0: probability-flow ODE.
    order
        Of the steps of the reverse diffusion: 2, which saves most of them, or 1, Euler's.
    chain_steps, step_size
        Of the Langevin chain for a non-linear A or noise that is not Gaussian. Its step is relative to the largest
        curvature of the density at its start; the bias of a stiff direction's variance is 1 / (1 - step_size / 2).

    The authors start the reverse diffusion at the grid level below rho, take plain Euler steps on a grid of 100 levels,
    and anneal from rho0 = 10 to 0.3 (0.1 for phase retrieval). Here rho is the first level, and it ends below the
    sigma_y = 0.05 of the usual problems: with rho_min = 0.1 the standard deviation in directions that A sees would be
    twice too large there. Their chains start at x, with a step size by task (1e-4 for phase retrieval, 1e-3 for coded
    diffraction); ours go on from the z before, so that a sweep leaves the joint density alone however short they are.
    """

    family: ClassVar[str] = "decoupled"
    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 100
    paper: ClassVar[dict[str, str]] = {
        "steps": "100",
        "rho0": "10",
        "rho_min": "0.3; 0.1 for phase retrieval",
        "burn": "0.33 (a decay of 0.9; 0.44 for phase retrieval)",
        "inner_steps": "those of 100 levels that are below rho",
        "eta": "1; 0 for coded diffraction",
        "order": "1",
        "chain_steps": "100",
        "step_size": "1e-4 for phase retrieval, 1e-3 for coded diffraction, not relative",
    }
    limits: ClassVar[Mapping[str, str]] = {"rho0": "(0, inf)", "rho_min": "(0, inf)", "burn": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {
        "rho0": "10 gains nothing on the ruler",
        "rho_min": "it must lie below sigma_y: 0.1 doubles the standard deviation of what A sees at sigma_y = 0.05",
        "burn": "0.33 gains nothing on the ruler",
        "inner_steps": "as many at every rho, on a grid that begins at it",
        "order": SECOND_ORDER,
        "step_size": "relative to the curvature: one number for all operators and noise",
    }

    rho0: float = 1.0
    rho_min: float = 0.02
    burn: float = 0.9
    inner_steps: int = 10
    eta: float = 1.0
    order: int = 2
    chain_steps: int = 100
    step_size: float = 0.2

    def unfit(self, problem: Problem) -> str | None:
        if exact(problem) or problem.noise.sigma != 0:
            return super().unfit(problem)
        return "its Markov chain needs noise: sigma_y > 0, or a linear operator"

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        """The couplings rho_k, and 0."""
        scale = (prior.value_range[1] - prior.value_range[0]) / 2
        low, high = prior.sigma_range
        rho_min = max(self.rho_min * scale, low)
        rho0 = max(min(self.rho0 * scale, high), rho_min)
        n = max(round(self.burn * steps), 1)
        # a schedule never repeats a level, so the plateau falls by a part in a thousand in all
        fall = [rho0 * (rho_min / rho0) ** (k / n) for k in range(n)]
        flat = [rho_min * (1 - 1e-3 * k / max(steps - n, 1)) for k in range(steps - n)]
        return Schedule((*fall, *flat, 0.0))

    def step(self, state: State, run: Run) -> State:
        rho, rho_next = run.schedule.pair(state.i)
        gaussian = exact(run.problem)
        z = run.problem.conditional(state.x, rho**2, run.rng) if gaussian else self.chained(state, rho, run)
        low = max(run.prior.sigma_range[0], 0.002 * run.scale)
        levels = karras(self.inner_steps, min(low, rho / 2), rho)
        inner = State(z, z)
        for i in range(len(levels)):
            sigma, sigma_next = levels.pair(i)
            x0 = run.prior.denoise(inner.x, sigma)
            ahead = midway(x0, inner, levels) if self.order == 2 else x0
            inner = inner.next(ddim(inner.x, ahead, sigma, sigma_next, self.eta, run.rng), x0)
        aux = {} if gaussian else {"z": z}
        if rho_next == 0:
            aux["possible"] = data_possible(run.problem, run.problem.operator(inner.x))
        return state.next(inner.x, inner.x0, **aux)

    def chained(self, state: State, rho: float, run: Run) -> Tensor:
        """A draw of z given x and the data, by a Markov chain from the z before."""
        problem, z = run.problem, state.aux.get("z", state.x0)  # at first the middle of the range
        steps, rate, top = self.chain_steps, self.step_size, curvature(problem, z)
        return chain(problem, state.x, rho, run.rng, steps=steps, step_size=rate, start=z, steepest=top)


def exact(problem: Problem) -> bool:
    """Whether the data's conditional is Gaussian."""
    return isinstance(problem.operator, Linear) and problem.noise.sigma is not None
