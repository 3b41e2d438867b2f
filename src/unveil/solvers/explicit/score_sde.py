"""Projection of a diffusion onto the data, with a predictor and a corrector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...operators.base import Linear
from ...priors.base import Prior, expand
from ...problem import Problem, squared_norm
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, log_levels, replaced


@register("solver", "score-sde")
@dataclass(frozen=True)
class ScoreSDE(Solver):
    """The reverse diffusion, with what the operator sees replaced by the data at the same level of noise.

    Song, Shen, Xing, Ermon 2022, "Solving inverse problems in medical imaging with score-based generative models",
    arXiv 2111.08005, Algorithm 1 (with the predictor-corrector sampler); without corrector, Song et al. 2021, arXiv
    2011.13456, appendix I.2.

    Before each move of a level, the projection; then the move::

        x <- x + weight A^+ (y + sigma A z - A x)
        corrector:  x + e (D - x) / sigma^2 + sqrt(2 e) z',     e = 2 (snr |z'| / |(D - x) / sigma^2|)^2
        predictor:  D + (sigma'^2 / sigma^2) (x - D) + sigma' sqrt(1 - sigma'^2 / sigma^2) z

    and at the end the data themselves, so that the result reproduces y. The paper has A = P T with T invertible
    (Fourier, Radon) and P a choice of its values, and replaces those: for an orthogonal T that is the projection here,
    which any linear A has. Where T is not orthogonal the paper's T^-1 keeps the other values of T x, and A^+ takes the
    nearest x instead; the paper's form, x + weight T^-1 P^T (...), is not offered.

    The corrector is what brings the directions that A does not see to their law given the data: on Gaussians one step
    of it per level reaches the floor, where the plain projection stays several times above.

    snr
        Of the corrector, 0.16 (Song et al. 2021; the medical paper tunes 0.2 to 0.5 by task).
    corrections
        Corrector steps at each level, of one evaluation each; 0 is the plain projected reverse diffusion.
    weight
        The paper's lambda, 1; less leaves room for errors in y, and takes data with noise (0.72 and 0.84 in the
        authors' runs of CT). It is a way with noise that does not know its size.

    Deviations: the ancestral predictor, which the authors' code offers, in place of their default with noise
    sqrt(sigma^2 - sigma'^2): no noise is left at the end, and no denoising needed. |z'| and |score| are of each sample,
    not means over the batch. Data with noise are not put back whole at the end, but by ``weight`` once more.
    """

    family: ClassVar[str] = "explicit"
    needs: ClassVar[frozenset[str]] = frozenset({"linear", "noiseless"})
    sibling: ClassVar[str] = "ddnm"
    default_steps: ClassVar[int] = 500
    paper: ClassVar[dict[str, str]] = {
        "steps": "not at hand",
        "snr": "0.52 for MRI, 0.25 and 0.4 for tomography; 0.16 in 2021",
        "corrections": "1",
        "weight": "1 for MRI, 0.84 and 0.72 for tomography",
    }
    limits: ClassVar[Mapping[str, str]] = {"corrections": "[0, inf)", "weight": "[0, 1]"}

    snr: float = 0.16
    corrections: int = 1
    weight: float = 1.0

    def unfit(self, problem: Problem) -> str | None:
        if not problem.noise.sigma:
            return super().unfit(problem)
        if self.weight == 1:
            return f"{super().unfit(problem)}, or weight < 1"
        return None if isinstance(problem.operator, Linear) else "it needs a linear operator"

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return log_levels(prior, steps, 700.0, 0.02)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x = state.x
        for _ in range(self.corrections):
            x = replaced(x, sigma, run, self.weight)
            x = self.correct(x, run.prior.denoise(x, sigma), sigma, run)
        x = replaced(x, sigma, run, self.weight)
        x0 = run.prior.denoise(x, sigma)
        x = ddim(x, x0, sigma, sigma_next, 1.0, run.rng)
        whole = 1.0 if run.problem.sigma_y == 0 else self.weight
        return state.next(x if sigma_next > 0 else replaced(x, 0.0, run, whole), x0)

    def correct(self, x: Tensor, x0: Tensor, sigma: float, run: Run) -> Tensor:
        """The corrector's step, with e = share sigma^2."""
        z, away = run.rng.normal(x), x0 - x
        share = 2 * (self.snr * sigma) ** 2 * squared_norm(z) / squared_norm(away).clamp_min(1e-20)
        return x + expand(share, x) * away + expand((2 * share).sqrt() * sigma, x) * z
