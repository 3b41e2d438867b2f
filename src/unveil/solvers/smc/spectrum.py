"""The data in the spectral coordinates of A = U diag(s) V^T, in which every coordinate is measured by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...problem import Problem
from ..base import Run
from .particles import exact, total


@dataclass(frozen=True)
class Spectrum:
    """ybar = U^T y / s [N, ...], which is the signal with noise sigma_y / s, where ``seen``.

    ``noise`` and its square ``var``, ``seen``, and ``middle``, the middle of the value range, are shared by all rows.
    """

    ybar: Tensor
    noise: Tensor
    var: Tensor
    seen: Tensor
    middle: Tensor

    @classmethod
    def of(cls, run: Run) -> Spectrum:
        """That of a run's data, made once."""
        found = _KNOWN.get(run.problem)
        if found is None:
            A = run.spectral
            c = A.Ut(run.problem.y)
            s_inv = A.s_inv(c)
            noise = run.problem.sigma_y * s_inv
            middle = A.Vt(torch.full_like(run.like[:1], sum(run.problem.value_range) / 2))
            found = _KNOWN[run.problem] = cls(s_inv * c, noise, noise**2, s_inv > 0, middle)
        return found

    def log_normal(self, d: Tensor, var: Tensor) -> Tensor:
        """The sum over coordinates that are seen of log N(d; 0, var): [N]."""
        return -0.5 * total(torch.where(self.seen, d.square() / var + (2 * math.pi * var).log(), 0))

    def log_ratio(self, d: Tensor, var: Tensor, d0: Tensor, var0: Tensor, where: Tensor | None = None) -> Tensor:
        """The sum over coordinates (seen, or those of ``where``) of log N(d; 0, var) - log N(d0; 0, var0): [N]."""
        terms = (d.square() / var).sub_(d0.square() / var0).add_((var / var0).log())
        return -0.5 * total(torch.where(self.seen if where is None else where, terms, 0))


_KNOWN: WeakKeyDictionary[Problem, Spectrum] = WeakKeyDictionary()


def of_data(run: Run) -> Tensor:
    """log p(y) - log p(ybar) [N]: the change of variables, and the part of y that no signal makes."""
    A, y = run.spectral, run.problem.y
    c = A.Ut(y)
    s_inv = A.s_inv(c).expand_as(c)
    seen = s_inv > 0
    change = total(torch.where(seen, torch.where(seen, s_inv, 1).log(), 0))
    sigma_y = run.problem.sigma_y
    if sigma_y == 0:
        return change
    # not |y|^2 - |c|^2: two large numbers, of which single precision leaves no difference
    left = total((y - A.U(torch.where(seen, c, 0))).abs().square())
    spare = run.problem.m - total(seen.to(exact(c)))
    return change - 0.5 * (left / sigma_y**2 + spare * math.log(2 * math.pi * sigma_y**2))
