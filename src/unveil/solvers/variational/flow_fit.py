"""What the score priors share: a normalising flow fitted to the posterior of each measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...numerics.inner import inner_loop
from ...problem import Problem
from ...rng import Rng
from ..base import Run, State
from .fitted import Fitted, from_unit, repeated, to_unit
from .flows import Flow
from .networks import Layout

ESTIMATORS = ("path", "total")


@dataclass(frozen=True)
class FlowFit(Fitted):
    """A RealNVP for each measurement, fitted by the reverse divergence; a prior's log p(x) enters by its gradient."""

    gradient: ClassVar[bool] = True
    limits: ClassVar[Mapping[str, str]] = {"couplings": "[0, inf)"}
    why: ClassVar[dict[str, str]] = {
        "lr": "a hundredth of their steps ask for a larger one",
        "betas": "moments of the last hundred steps, as there are hundreds and not thousands",
        "clip": "the path estimator's gradient goes to 0 at the posterior",
        "couplings": "with the last affine layer the family holds every Gaussian as it is",
        "estimator": "its gradient has no variance once the flow is the posterior",
        "anneal": "without it the flow can settle in one of several modes",
    }

    couplings: int = 4
    hidden: int = 32
    estimator: str = "path"
    anneal: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ESTIMATORS:
            raise InputError(f"{self.name} has no estimator '{self.estimator}': one of {', '.join(ESTIMATORS)}")

    def flow(self, shape: tuple[int, ...]) -> Flow:
        """The family."""
        return Flow(shape, self.couplings, self.hidden)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return self.flow(shape).layout

    def begin(self, shape: tuple[int, ...]) -> Tensor:
        return self.flow(shape).start()

    def draw(self, theta: Tensor, z: Tensor, centre: Tensor) -> Tensor:
        flow = self.flow(tuple(z.shape[2:]))
        return flow.forward(theta, z, centre, centre if flow.conditional else None)[0]

    def prior_score(self, x: Tensor, groups: int, run: Run, rng: Rng) -> Tensor:
        """The gradient of log p(x), or of a bound on it, for draws x [groups * batch, *shape]."""
        raise NotImplementedError

    def targets(self, state: State, run: Run, rng: Rng) -> tuple[Problem, Tensor]:  # noqa: ARG002
        """The measurements that draws belong to, [groups * batch] rows, and their centres, broadcastable to draws."""
        centre = to_unit(state.aux["centre"], run.problem)[:: run.samples, None]
        return repeated(run.problem, run.samples, self.batch), centre

    def gradient_of(self, theta: Tensor, state: State, run: Run, rng: Rng) -> Tensor:
        shape, groups, scale = run.problem.shape, len(theta), run.scale
        flow, (problem, centre) = self.flow(shape), self.targets(state, run, rng)
        half = rng.normal(centre.new_empty(groups, self.batch // 2, *shape))
        z = torch.cat([half, -half], 1)
        leaf, u, logdet = self.flow_draws(flow, theta, z, centre)
        x = from_unit(u.detach().flatten(0, 1), run.problem)
        up = problem.score(x)
        if self.anneal:
            up = up * min(1.0, (state.i + 1) / (self.anneal * len(run.schedule)))
        up = (up + self.prior_score(x, groups, run, rng)).mul_(scale).reshape(u.shape)
        return self.flow_gradient(flow, leaf, u, logdet, up, centre)

    @inner_loop
    def flow_draws(self, flow: Flow, theta: Tensor, z: Tensor, centre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            return leaf, *flow.forward(leaf, z, centre, centre if flow.conditional else None)

    @inner_loop
    def flow_gradient(self, flow: Flow, leaf: Tensor, u: Tensor, logdet: Tensor, up: Tensor, centre: Tensor) -> Tensor:
        """The gradient of the mean over draws of log q(x) - log p(x, y), from the gradient ``up`` of log p(x, y)."""
        if self.estimator == "path":
            up = up - flow.log_prob_score(leaf, u.detach(), centre, centre if flow.conditional else None)
            (g,) = torch.autograd.grad(u, leaf, -up / self.batch)
        else:
            ones = torch.full_like(logdet, -1 / self.batch)
            (g,) = torch.autograd.grad((u, logdet), leaf, (-up / self.batch, ones))
        return g
