"""Guidance with the optimal diagonal posterior covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.cg import cg
from ...numerics.diagonal import hutchinson_diagonal
from ...priors.base import Pullback, expand
from ...registry import register
from ..base import Run, Solver, State
from ..moves import ddim, midway

GUIDANCE = ("I", "II")
COVARIANCES = ("diagonal", "scalar")


@register("solver", "peng")
@dataclass(frozen=True)
class Peng(Solver):
    """Guidance with the optimal diagonal posterior covariance.

    Peng, Zheng, Dai, Xiao, Li, Zou, Xiong 2024, "Improving diffusion models for inverse problems using optimal
    posterior covariance", arXiv 2402.02149, equations 9 (type I), 13 (type II), 19 to 22 (variances).

    p(x0 | x) is taken as N(D, C) with C = diag(Var[x0 | x]), the best of all diagonal matrices in maximum likelihood::

        v       = A^T (A C A^T + sigma_y^2 I)^-1 (y - A D)
        type I:   x0 = D + sigma^2 J^T v       (J the Jacobian of the denoiser)
        type II:  x0 = D + C v                 (no further back-propagation)

    The variances are the prior's, if it has learnt them; else C = sigma^2 diag(J) (Tweedie's second moment), whose
    diagonal is estimated by z J^T z over random signs z (Hutchinson): exactly where J is diagonal, and elsewhere drawn
    to its mean over the sample as far as it is noise. No estimate is taken below a tenth of that mean. The system is
    solved by conjugate gradients.

    guidance
        "I" or "II".
    covariance
        "diagonal", or "scalar": one variance for all values of a sample, the mean of the diagonal.
    probes
        Random signs in each half of the estimate, a back-propagation each; a prior that has learnt its variances needs
        none, but one more evaluation for type I.
    iterations
        Of conjugate gradients, none of which evaluates the network.
    threshold
        Above this noise level (for images in [-1, 1]) C is r^2 I with r^2 = sigma^2 / (sigma^2 + 1), as in ``pigdm``.
        At high noise the values of x0 go together, a diagonal C says too little of their sum, and the step overshoots.
    eta, order
        Noise of the DDIM step, 0 the probability-flow ODE; 2 carries x0 on to the middle of the step.

    Deviations: the paper has a threshold of 0.2 and solves the ODE, by Heun's method of two evaluations a step; on the
    ruler's problems estimated variances serve up to 1, and fresh noise mends what is left (the setting "paper" of the
    card). It clips x0, and without learnt variances takes one number per level from a table of errors over a data set.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "gaussian"})
    gradient: ClassVar[bool] = True
    default_steps: ClassVar[int] = 50
    paper: ClassVar[dict[str, str]] = {
        "steps": "not at hand",
        "guidance": "I and II",
        "covariance": "diagonal; scalar without learnt variances",
        "probes": "own",
        "iterations": "until the error is 1e-4, 1000 at most",
        "threshold": "0.2",
        "eta": "0",
        "order": "Heun's",
    }
    why: ClassVar[dict[str, str]] = {
        "iterations": "a fixed number, none of which evaluates the network, asks for no residual on the way",
        "threshold": "with 0.2, and eta = 0, samples are up to four times as far off on the ruler",
        "eta": "fresh noise mends what a diagonal covariance leaves wrong",
        "order": "second order with one evaluation a step, where Heun's method takes two",
    }

    guidance: str = "I"
    covariance: str = "diagonal"
    probes: int = 1
    iterations: int = 30
    threshold: float = 0.5
    eta: float = 1.0
    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for value, known, what in (
            (self.guidance, GUIDANCE, "guidance"),
            (self.covariance, COVARIANCES, "covariance"),
        ):
            if value not in known:
                raise InputError(f"{self.name} has no {what} {value!r}: one of {', '.join(map(str, known))}")

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        mean, var, pullback = self.moments(state.x, sigma, run)
        r = run.problem.residual(mean)
        if var.ndim == 1:
            shift = run.problem.gain(r, var)
            v = shift / expand(var, shift)
        else:
            shift, v = self.solve(r, var, run)
        x0 = mean + (shift if pullback is None else sigma**2 * pullback(v))
        ahead = midway(x0, state, run.schedule) if self.order == 2 else x0
        return state.next(ddim(state.x, ahead, sigma, sigma_next, self.eta, run.rng), x0)

    def moments(self, x: Tensor, sigma: float, run: Run) -> tuple[Tensor, Tensor, Pullback | None]:
        """E[x0 | x] [N, ...], its variances [N, ...] or [N] (one for a sample), and J^T for guidance of type I."""
        prior = run.prior
        flat = sigma**2 * run.scale**2 / (sigma**2 + run.scale**2)
        var, pullback = x.new_full(x.shape[:1], flat), None
        near = sigma < self.threshold * run.scale
        if near and prior.variance is not None:
            mean, var = prior.moments(x, sigma)
            if self.guidance == "I":
                _, pullback = prior.vjp(x, sigma)
        else:
            mean, pullback = prior.vjp(x, sigma)
            if near:
                var = sigma**2 * hutchinson_diagonal(pullback, x, self.probes, run.rng)
                # an estimate's noise reaches down to zero, and v divides by it: without sigma_y nothing else bounds v
                var = torch.maximum(var, 0.1 * var.mean(tuple(range(1, var.ndim)), keepdim=True))
        if self.covariance == "scalar" and var.ndim > 1:
            var = var.flatten(1).mean(1)
        # learnt or estimated, a small variance can come out negative
        least = min(1e-6 * run.scale**2, 1e-3 * flat)
        return mean, var.clamp_min(least), pullback if self.guidance == "I" else None

    def solve(self, r: Tensor, var: Tensor, run: Run) -> tuple[Tensor, Tensor]:
        """C v and v = A^T (A C A^T + sigma_y^2 I)^-1 r, C = diag(var), in a form that is solvable without noise."""
        A, noise_var, root = run.linear, run.problem.sigma_y**2, var.sqrt()

        def system(w: Tensor) -> Tensor:
            return root * A.normal(root * w) + noise_var * w

        w = cg(system, root * A.adjoint(r), steps=self.iterations)
        return root * w, w / root
