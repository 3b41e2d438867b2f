"""Projection of a diffusion onto the data, with a predictor and a corrector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...operators import Fourier, Inpainting
from ...operators.base import Linear, Spectral
from ...operators.combine import LinearComposed
from ...operators.tomography import Tomography
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

    and at the end the data themselves, so that the result reproduces y. That takes the nearest x, and any linear A has
    it. The medical form is for A = P T with T invertible and P a choice among its values, P^T P = diag(Lambda)::

        x <- T^-1 [weight Lambda (P^T y + sigma T z) + (1 - weight Lambda) T x]
           = x + weight T^-1 P^T (y + sigma A z - A x)

    and keeps the values of T x that were not chosen. The same for an orthogonal T, as of MRI.

    The corrector is what brings the directions that A does not see to their law given the data: on Gaussians one step
    of it per level reaches the floor, where the plain projection stays several times above.

    form
        "nearest": A^+. "transform": T^-1 P^T, of Fourier and MRI with weights 0 and 1, and of ``Inpainting(mask) @ T``:
        with a spectral T without zeros T^-1 is exact; with tomography of all views it is filtered back-projection, as
        good as that inverts the views, and the data are put back at the end by A^+. Of a real signal, Fourier values
        come in pairs: T^-1 takes the real part, which is exact only where the mask has both of a pair.
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
        "form": "transform in 2022",
    }
    limits: ClassVar[Mapping[str, str]] = {"corrections": "[0, inf)", "weight": "[0, 1]"}
    why: ClassVar[dict[str, str]] = {"form": "every linear operator has A^+; of an orthogonal T both are the same"}

    snr: float = 0.16
    corrections: int = 1
    weight: float = 1.0
    form: str = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("nearest", "transform"):
            raise InputError(f"score-sde has no form '{self.form}': one of nearest, transform")

    def unfit(self, problem: Problem) -> str | None:
        reason = super().unfit(problem)
        if problem.noise.sigma and isinstance(problem.operator, Linear):
            reason = f"{reason}, or weight < 1" if self.weight == 1 else None
        if reason is None and self.form == "transform" and not chosen(problem):
            reason = (
                "with form='transform' it needs values chosen of an invertible transform: Fourier or MRI with a mask "
                "of 0 and 1, or Inpainting(mask) @ T with a spectral T without zeros or tomography of all views"
            )
        return reason

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return log_levels(prior, steps, 700.0, 0.02)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x, back = state.x, inverse(run.linear) if self.form == "transform" else None
        for _ in range(self.corrections):
            x = replaced(x, sigma, run, self.weight, back)
            x = self.correct(x, run.prior.denoise(x, sigma), sigma, run)
        x = replaced(x, sigma, run, self.weight, back)
        x0 = run.prior.denoise(x, sigma)
        x = ddim(x, x0, sigma, sigma_next, 1.0, run.rng)
        if sigma_next > 0:
            return state.next(x, x0)
        exact = run.problem.sigma_y == 0
        x = replaced(x, 0.0, run, 1.0 if exact else self.weight, back)
        return state.next(replaced(x, 0.0, run) if exact and back is not None else x, x0)

    def correct(self, x: Tensor, x0: Tensor, sigma: float, run: Run) -> Tensor:
        """The corrector's step, with e = share sigma^2."""
        z, away = run.rng.normal(x), x0 - x
        share = 2 * (self.snr * sigma) ** 2 * squared_norm(z) / squared_norm(away).clamp_min(1e-20)
        return x + expand(share, x) * away + expand((2 * share).sqrt() * sigma, x) * z


def inverse(operator: Linear) -> Callable[[Tensor], Tensor] | None:
    """T^-1 P^T, of residuals [N, *shape of y], of an operator P T; None where it is no such composition."""
    if isinstance(operator, Fourier):
        return operator.adjoint
    if not isinstance(operator, LinearComposed) or not isinstance(operator.outer, Inpainting):
        return None
    P, T = operator.outer, operator.inner
    if isinstance(T, Tomography):
        return lambda r: T.fbp(P.adjoint(r))
    return (lambda r: T.pinv(P.adjoint(r))) if isinstance(T, Spectral) else None


def chosen(problem: Problem) -> bool:
    """Whether the data are values chosen, by 0 and 1, of an invertible transform."""
    operator = problem.operator
    if isinstance(operator, Fourier):
        return bool(((operator.weights == 0) | (operator.weights == 1)).all())
    if not isinstance(operator, LinearComposed) or inverse(operator) is None:
        return False
    T = operator.inner
    return not isinstance(T, Spectral) or bool((T.s(T.Vt(torch.zeros_like(problem.like[:1]))) > 0).all())
