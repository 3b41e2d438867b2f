"""The weight of the prior, learned by Stein's unbiased estimate of the error (SURE) while a fit goes on.

Four fits go along, row by row: to y and to y + e b, with lam and with RATIO lam. Of the first two the estimate is made,
and its slope in log lam of all four.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...numerics.adam import adam_update
from ...problem import squared_norm
from ...rng import Rng
from ..base import Run, State
from ..moves import regularised_inverse

STEP, RATIO, FLAT = 0.1, 1.02, 1e-4
"""Of the finite differences: of y in units of sigma_y, and of lam, as a factor. A slope, in sigma_y^2, to ignore."""

Descend = Callable[..., tuple[Tensor, Tensor, dict[str, Tensor]]]
"""descend(mu, y, lam, moments, i, run, copies=4): the new mu, D and moments; 4 neighbouring rows get the same noise."""


def four_fits(mu: Tensor, lam: float, adam: bool, run: Run) -> dict[str, Tensor]:
    """What the fits have beside mu [N, *shape], the first of them: how far the others are from it, moments, log lam."""
    moved = regularised_inverse(replace(run.problem, y=run.problem.y + probe(run))) - mu
    none = torch.zeros_like(mu)
    aux = {"apart": torch.stack([moved, none, moved], 1)}
    aux |= {k: none[:, None].repeat(1, 4, *[1] * (mu.ndim - 1)) for k in ("m", "v") if adam}
    flat = none.flatten(1)[:, 0]
    return aux | {"log_lam": flat + math.log(lam), "lam_m": flat, "lam_v": flat.clone()}


def tuned(descend: Descend, rate: float, state: State, run: Run) -> State:
    """A step of the four fits, and one of log lam down SURE, by Adam at a rate that falls to 0 with the steps."""
    aux, y, i, shift = state.aux, run.problem.y, state.i, probe(run)
    rows = torch.cat([state.x[:, None], state.x[:, None] + aux["apart"]], 1).flatten(0, 1)
    ys = torch.stack([y, y + shift, y, y + shift], 1).flatten(0, 1)
    lam = aux["log_lam"].exp()
    lams = torch.stack([lam, lam, RATIO * lam, RATIO * lam], 1).flatten()
    moments: dict[str, Tensor] = {k: aux[k].flatten(0, 1) for k in ("m", "v") if k in aux}
    mu, denoised, moments = descend(rows, ys, lams, moments, i, run, copies=4)
    here, moved, there, there_moved = _fours(run.problem.operator(mu)).unbind(1)
    rise = sure(there, there_moved, y, shift) - sure(here, moved, y, shift)
    slope = rise / (math.log(RATIO) * run.problem.sigma_y**2)
    rate = rate * (1 - i / len(run.schedule))
    # below FLAT a slope is rounding, which Adam would blow up
    log_lam, lam_m, lam_v = adam_update(aux["log_lam"], slope, aux["lam_m"], aux["lam_v"], i + 1, rate, eps=FLAT)
    mu = _fours(mu)
    moments = {k: _fours(v) for k, v in moments.items()}
    apart = mu[:, 1:] - mu[:, :1]
    return state.next(mu[:, 0], denoised[::4], **moments, log_lam=log_lam, lam_m=lam_m, lam_v=lam_v, apart=apart)


def probe(run: Run) -> Tensor:
    """e b for y: the same in every step, STEP sigma_y in size, of random sign."""
    y = run.problem.y
    b = Rng(run.rng.keys, purpose="probe", rows=run.rng.rows).normal(y)
    signs = torch.complex(b.real.sign(), b.imag.sign()) if b.is_complex() else b.sign()
    return run.problem.operator.at_data(signs).mul_(STEP * run.problem.sigma_y)


def sure(fit: Tensor, moved: Tensor, y: Tensor, shift: Tensor) -> Tensor:
    """Stein's estimate of |fit - A(x)|^2 / m, up to a constant, of fits A(mu) to y and to y + shift: per row [N].

    |y - fit|^2 / m + 2 sigma_y^2 <b, moved - fit> / (e m) with shift = e b, e = STEP sigma_y, and signs b: Stein 1981,
    Ann. Statist. 9, 1135; the divergence along b, Ramani, Blu, Unser 2008, IEEE Trans. Image Process. 17, 1540.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).real.flatten(1).sum(1) if a.is_complex() else (a * b).flatten(1).sum(1)

    return (squared_norm(y - fit) + (2 / STEP**2) * dot(shift, moved - fit)) / y[0].numel()


def _fours(x: Tensor) -> Tensor:
    """[4 N, ...] as [N, 4, ...]."""
    return x.reshape(-1, 4, *x.shape[1:])
