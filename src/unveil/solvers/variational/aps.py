"""Amortised posterior sampling: one conditional flow for all measurements of a kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import InputError
from ...problem import Problem
from ...registry import register
from ...rng import Rng
from ..base import Run, State
from .amortised import simulated
from .flow_fit import FlowFit
from .flows import Flow
from .likelihood import stratified_bound


@register("solver", "aps")
@dataclass(frozen=True)
class APS(FlowFit):
    """Amortised posterior sampling: a normalising flow that is told the measurement, and serves all of a kind.

    Mammadov, Chung, Ye 2024, "Amortized posterior sampling with diffusion prior distillation", arXiv 2407.17907
    (its objective, with the evidence bound of ``score-prior-surrogate`` in place of the prior).

    A conditional RealNVP q(x | y), x = G(z; y), by Adam on the reverse divergence, on average over measurements::

        E_y E_z [ -log p(y | x) - b(x) - log |det dG/dz| ],    b(x) the evidence bound of the prior

    What G is told of y is the regularised pseudo-inverse, or a step of gradient descent. No clean images are needed:
    signals are drawn from the prior, and measured. The measurement that is to be solved is not among those learned
    from, and one fit (``unveil fit aps``) serves all later ones with the same operator and noise, without any
    evaluation of the prior. Without such a file a run learns first, for each measurement anew.

    batch, measurements
        Draws in a step, in pairs z, -z, and the measurements that they belong to.
    prior_steps
        Steps in which a signal is drawn; they shape which measurements are learned from, not the posterior.
    levels, sigma_low, sigma_high
        Of the evidence bound, as for ``score-prior-surrogate``.

    The other options are those of ``score-prior``. Gaussian posteriors are in its family, and it comes near the floor
    of the ruler (0.9 to 1.5 times), but for what 400 steps leave; of several modes it loses some, as ``score-prior``
    does. Deviations: the authors train on the measurements of a data set of images, with a flow of their own.
    """

    amortised: ClassVar[bool] = True
    default_steps: ClassVar[int] = 400
    paper: ClassVar[dict[str, str]] = (
        dict.fromkeys(("steps", "batch", "lr", "betas", "clip", "levels"), "not at hand")
        | dict.fromkeys(("couplings", "hidden", "estimator", "anneal", "sigma_low", "sigma_high"), "not at hand")
        | dict.fromkeys(("fitted", "measurements", "prior_steps"), "own")
    )

    batch: int = 128
    measurements: int = 16
    prior_steps: int = 10
    sigma_low: float = 0.01
    sigma_high: float = 5.0
    levels: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measurements < 1 or self.batch % (2 * self.measurements):
            raise InputError(f"aps needs a batch that is a multiple of 2 measurements = {2 * self.measurements}")

    def flow(self, shape: tuple[int, ...]) -> Flow:
        return Flow(shape, self.couplings, self.hidden, conditional=True)

    def targets(self, state: State, run: Run, rng: Rng) -> tuple[Problem, Tensor]:  # noqa: ARG002
        return simulated(self, run, rng)[:2]

    def prior_score(self, x: Tensor, groups: int, run: Run, rng: Rng) -> Tensor:
        return stratified_bound(x, groups, run, rng, self.sigma_low, self.sigma_high, self.levels)
