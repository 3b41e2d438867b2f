"""Surrogate score-based prior: a flow fitted to the posterior by the evidence bound of a diffusion prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...registry import register
from ...rng import Rng
from ..base import Run
from .flow_fit import FlowFit
from .likelihood import stratified_bound


@register("solver", "score-prior-surrogate")
@dataclass(frozen=True)
class ScorePriorSurrogate(FlowFit):
    """A normalising flow fitted to the posterior, with the evidence bound of denoising score matching as prior.

    Feng, Bouman 2024, "Variational Bayesian imaging with an efficient surrogate score-based prior", arXiv 2309.01949,
    equations 9 to 13 (the bound: Song, Durkan, Murray, Ermon 2021, arXiv 2101.09258, theorem 3).

    As ``score-prior``, but log p(x) is replaced by its bound, one random level and one evaluation with one
    back-propagation per draw, and ``levels`` of them on average::

        b(x) = -int E |D(x + sigma eps, sigma) - x|^2 / sigma^2 dln(sigma) + E log p_T(x + sigma_T eps) + constant

    levels
        Pairs (sigma, eps) per draw (the paper has 1). Levels are uniform in ln sigma, the paper's importance sampling,
        and stratified over the draws of a step.

    The other options are those of ``score-prior``. For the denoiser of a known distribution the bound is tight; the
    noise of its gradient remains, and the fit ends where Adam's falling rate lets it. Deviations: as there; the noise
    of draws comes in pairs eps, -eps; the authors train for 20 000 steps
    and more.
    """

    default_steps: ClassVar[int] = 500
    paper: ClassVar[dict[str, str]] = (
        {
            "steps": "20000 and more",
            "batch": "64",
            "lr": "1e-5",
            "betas": "(0.9, 0.999)",
            "clip": "1",
            "couplings": "32",
            "estimator": "total",
            "anneal": "0; a sigmoid as an option",
            "levels": "1",
        }
        | dict.fromkeys(("hidden", "sigma_low", "sigma_high"), "not at hand")
        | dict.fromkeys(("fitted",), "own")
    )
    why: ClassVar[dict[str, str]] = {
        "steps": "a fortieth of the cost",
        "batch": "its gradient is noisier than the exact one's",
    }

    batch: int = 128
    sigma_low: float = 0.01
    sigma_high: float = 5.0
    levels: int = 1

    def prior_score(self, x: Tensor, groups: int, run: Run, rng: Rng) -> Tensor:
        return stratified_bound(x, groups, run, rng, self.sigma_low, self.sigma_high, self.levels)
