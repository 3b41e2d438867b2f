"""Tweedie moment projected diffusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...registry import register
from ..base import Run, Solver, State
from ..moves import ddim, midway
from ..paper import SECOND_ORDER


@register("solver", "tmpd")
@dataclass(frozen=True)
class TMPD(Solver):
    """Tweedie moment projected diffusions.

    Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz 2023, "Tweedie moment projected diffusions for inverse
    problems", arXiv 2310.06721, Algorithm 1 and equation 11 (the diagonal approximation).

    p(x0 | x) is taken as N(D, C) with the true covariance C = sigma^2 J (Tweedie), J the Jacobian of the denoiser, and
    the covariance of y given x as the diagonal matrix of its row sums::

        w  = sigma^2 A J A^T 1 + sigma_y^2
        x0 = D + sigma^2 J^T A^T ((y - A D) / w)

    Two back-propagations and no free parameter. Exact for Gaussian priors where A C A^T is diagonal.

    eta
        Noise of the DDIM step: 1 is ancestral sampling, as in the paper, 0 the probability-flow ODE.
    order
        2 carries x0 on to the middle of the step (DPM-Solver++(2M)), which leaves a tenth of the discretisation error
        of the paper's ancestral step, 1; the paper takes 1000 of those.

    Row sums are right where A C A^T is diagonal or smooth along y; where they come out negative, their
    magnitude is taken: cut at zero, w is sigma_y^2 alone, and runs diverge (spectrum-dense-0.05 of the card).
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    gradient: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {"steps": "1000", "eta": "1", "order": "1"}
    why: ClassVar[dict[str, str]] = {
        "steps": "a tenth of the cost, as steps are of second order",
        "order": SECOND_ORDER,
    }

    eta: float = 1.0
    order: int = 2

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        A, problem = run.linear, run.problem
        mean, pullback = run.prior.vjp(state.x, sigma)
        r = problem.residual(mean)
        w = sigma**2 * A(pullback(A.adjoint(torch.ones_like(r)))).abs()
        # placeholders of y have neither a row sum nor, without noise, a variance
        w = w.clamp_min(1e-9 * sigma**2) + problem.sigma_y**2
        x0 = mean + sigma**2 * pullback(A.adjoint(r / w))
        ahead = midway(x0, state, run.schedule) if self.order == 2 else x0
        return state.next(ddim(state.x, ahead, sigma, sigma_next, self.eta, run.rng), x0)
