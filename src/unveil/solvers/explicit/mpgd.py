"""Manifold preserving guided diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...priors.base import Prior
from ...priors.latent import Autoencoder, load_autoencoder
from ...problem import Problem
from ...registry import register
from ...schedules import Schedule
from ..base import Run, Solver, State
from ..moves import ddim, misfit, vp_scale, vp_schedule

FORMS = {"ae": 0.0075, "z": 0.01}
"""The forms with an autoencoder, and what the authors' code multiplies c by where it is used."""


@register("solver", "mpgd")
@dataclass(frozen=True)
class MPGD(Solver):
    """Manifold preserving guided diffusion, without or with an autoencoder (MPGD, MPGD-AE, MPGD-Z).

    He, Murata, Lai, Takida, Uesaka, Kim, Liao, Mitsufuji, Kolter, Salakhutdinov, Ermon 2024, "Manifold preserving
    guided diffusion", arXiv 2311.16424, Algorithm 1, and the constants of the authors' code.

    A step down the gradient of the misfit on the clean estimate itself, not on x, so that nothing is back-propagated
    through the network; then a DDIM step with the network's own eps::

        x0c    = x0 - c / s' grad_x0 |y - A(x0)|,   x0 = D(x, sigma),  s = 1 / sqrt(1 + sigma^2)
        x_next = ddim(x, x0) + x0c - x0

    With an autoencoder (E, G), whose images are taken for the manifold of the data, at the levels of a band::

        ae:  x0c = x0 - share c / s' grad_x0 |y - A(G(E(x0)))|
        z:   x0c = x0 + G(z - share c / s' grad_z |y - A(G(z))|) - G(z),   z = E(x0)

    The gradient of ae is tangent to the manifold where G(E(x0)) = x0; z moves along it. Back-propagation is through
    the autoencoder alone.

    rate
        c as a root mean square per value, times the number of steps, for images in [-1, 1]: c = rate sqrt(n) / steps.
        The authors' scripts have c = 17.5, 7.5 and 4 in 20, 50 and 100 steps for images of 3 x 256 x 256, which is a
        rate of 0.79, 0.85 and 0.9; a c that is not scaled with the size of the signal throws small ones about. With an
        autoencoder they have 20, 10 and 5: 0.9, 1.13 and 1.13.
    eta
        Noise of the DDIM step, 0.5 as in the authors' configuration.
    autoencoder
        Name or file, as :func:`~unveil.priors.load_autoencoder` takes it; "" for none. It is read once, before the
        run starts, and works in the problem's value range.
    form
        "ae" or "z".
    share
        None is the authors': 0.0075 for ae, 0.01 for z.
    band
        The levels at which the autoencoder is used, for images in [-1, 1]: t between 300 and 500 of DDPM's 1000.

    The steps are of one length however near the data are: the misfit ends at about that length. Noise is not weighed.
    """

    family: ClassVar[str] = "explicit"
    default_steps: ClassVar[int] = 50
    paper: ClassVar[dict[str, str]] = {
        "steps": "20, 50 or 100",
        "rate": "0.79, 0.85 and 0.9 in 20, 50 and 100 steps",
        "eta": "0.5",
        "autoencoder": "one of the diffusion's own data; none without",
        "form": "ae or z",
        "share": "0.0075 for ae, 0.01 for z",
        "band": "(1.25, 3.4), t between 300 and 500",
    }
    limits: ClassVar[Mapping[str, str]] = {"band": "[0, inf]"}
    why: ClassVar[dict[str, str]] = {
        "autoencoder": "the form without one, which asks for nothing beside the prior",
        "share": "None is theirs, by form",
    }

    rate: float = 0.85
    eta: float = 0.5
    autoencoder: str = ""
    form: str = "ae"
    share: float | None = None
    band: tuple[float, float] = (1.25, 3.4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise InputError(f"mpgd has no form '{self.form}': {' or '.join(FORMS)}")
        if self.form == "z" and not self.autoencoder:
            raise InputError("mpgd of the form z needs an autoencoder, such as autoencoder='emoji-autoencoder'")
        if len(self.band) != 2 or not 0 <= self.band[0] < self.band[1]:
            raise InputError(f"mpgd's band is two levels, the lower first, got {self.band}")

    @cached_property
    def coder(self) -> Autoencoder:
        """The autoencoder, read when it is first asked for."""
        return load_autoencoder(self.autoencoder)

    def unfit(self, problem: Problem) -> str | None:
        return (self.coder.unfit(problem.shape) if self.autoencoder else None) or super().unfit(problem)

    def schedule(self, prior: Prior, steps: int) -> Schedule:
        return vp_schedule(prior, steps)

    def step(self, state: State, run: Run) -> State:
        sigma, sigma_next = run.schedule.pair(state.i)
        x0 = run.prior.denoise(state.x, sigma)
        c = self.rate * x0[0].numel() ** 0.5 / len(run.schedule) / vp_scale(sigma_next, run.scale)
        low, high = self.band
        if self.autoencoder and low < sigma / run.scale < high:
            move = self.along(x0, c * (FORMS[self.form] if self.share is None else self.share), run)
        else:
            move = misfit(run.problem, x0)[1].mul_(-c * run.scale)
        x = ddim(state.x, x0, sigma, sigma_next, self.eta, run.rng)
        return state.next(x.add_(move), x0 + move)

    def along(self, x0: Tensor, c: float, run: Run) -> Tensor:
        """x0c - x0 with the autoencoder, c for images in [-1, 1]."""
        coder = self.coder.to(x0.device).in_range(*run.problem.value_range)
        if self.form == "ae":
            _, gradient = slope(run.problem, x0, lambda x: coder.decode(coder.encode(x)))
            return gradient.mul_(-c * run.scale)
        z = coder.encode(x0)
        image, gradient = slope(run.problem, z, coder.decode)
        return coder.decode(z.sub(gradient, alpha=c / run.scale)).sub_(image)


def slope(problem: Problem, z: Tensor, decode: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The images of z, and the gradient of their misfit with respect to z."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        image = decode(leaf)
    (gradient,) = torch.autograd.grad(image, leaf, misfit(problem, image.detach())[1])
    return image.detach(), gradient
