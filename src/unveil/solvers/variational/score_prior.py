"""Score-based prior: a normalising flow fitted to the posterior by the exact likelihood of a diffusion prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...registry import register
from ...rng import Rng
from ..base import Run
from .flow_fit import FlowFit
from .likelihood import ode_levels, ode_log_prob, unit_probes


@register("solver", "score-prior")
@dataclass(frozen=True)
class ScorePrior(FlowFit):
    """A normalising flow fitted to the posterior, with the exact log-likelihood of the probability-flow ODE as prior.

    Feng, Smith, Rubinstein, Chang, Bouman, Freeman 2023, "Score-based diffusion models as principled priors for inverse
    imaging", arXiv 2304.11751, equations 8 to 11 (deep probabilistic imaging, Sun and Bouman 2021, with this prior).

    For each measurement a RealNVP q over x = G(z), by Adam on the reverse divergence::

        E_z [ -log p(y | x) - log p(x) - log |det dG/dz| ],    log p(x) by the ODE of the prior

    Heun's steps of the ODE and their exact derivative; the trace of the denoiser's Jacobian by probes, or the trace
    itself for signals of at most ``exact`` numbers. A draw of a step costs 4 + 4 probes evaluations and 2 + 4 probes
    back-propagations for each of the ode_steps, shared by all samples of a measurement.

    batch
        Draws in a step, in pairs z, -z.
    couplings, hidden
        Of the flow: RealNVP with a last affine layer, whose family holds every Gaussian up to 512 dimensions.
    estimator
        "total" is the paper's; "path" leaves out the part of the gradient whose mean is 0 (Roeder, Wu, Duvenaud 2017,
        arXiv 1703.09194): it has no variance at all once q is the posterior.
    anneal
        The share of the steps over which the data's weight rises from 0 to 1, evenly. Without it the flow can settle in
        one of several modes; the authors offer it as an option.
    ode_steps, sigma_low, sigma_high
        Of the ODE; levels for images in [-1, 1].
    probes, exact
        Probes of the trace per draw, random signs; the paper has 16.
    lr, betas, clip
        Of Adam, lr falling linearly in the second half; clip is the largest norm of the gradient, 0 for none.
    fitted
        A file made by ``unveil fit``: samples are drawn from what was learned there, in one step.

    Deviations: the authors' RealNVP has 32 couplings and batch normalisation, their Adam lr 1e-5 with a warm-up of 5000
    of 20 000 steps and gradients clipped at norm 1; their ODE's solver is adaptive, here its steps are fixed and the
    same for every draw. The reverse divergence prefers few modes: of several it can lose some.
    """

    default_steps: ClassVar[int] = 200
    paper: ClassVar[dict[str, str]] = (
        {
            "steps": "20000",
            "batch": "64",
            "lr": "1e-5; 2e-4 for denoising",
            "betas": "(0.9, 0.999)",
            "clip": "1",
            "couplings": "32",
            "estimator": "total",
            "anneal": "0; a sigmoid as an option",
            "ode_steps": "adaptive",
            "probes": "16",
        }
        | dict.fromkeys(("hidden", "sigma_low", "sigma_high"), "not at hand")
        | dict.fromkeys(("fitted", "exact"), "own")
    )
    why: ClassVar[dict[str, str]] = {
        "steps": "a hundredth of the cost, and enough for the ruler's Gaussians",
        "ode_steps": "fixed steps, the same for every draw, of a cost that is known",
        "probes": "a sixteenth of the cost, and small signals have the trace itself",
    }

    lr: float = 0.02
    ode_steps: int = 20
    sigma_low: float = 0.01
    sigma_high: float = 5.0
    probes: int = 1
    exact: int = 4

    def prior_score(self, x: Tensor, groups: int, run: Run, rng: Rng) -> Tensor:
        levels = ode_levels(run.prior, self.ode_steps, self.sigma_low * run.scale, self.sigma_high * run.scale)
        if x[0].numel() <= self.exact:
            probes = unit_probes(x)
        else:
            signs = rng.uniform(x.new_empty(groups, self.probes, self.batch, *x.shape[1:])) < 0.5
            probes = torch.where(signs, -1.0, 1.0).to(x).transpose(0, 1).flatten(1, 2)
        return ode_log_prob(run.prior, x, levels, probes)[1]
