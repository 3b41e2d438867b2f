"""The data in the spectral coordinates of A = U diag(s) V^T, in which every coordinate is measured by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...numerics.parts import in_parts
from ...operators.base import Spectral
from ...problem import Problem
from ..base import Run
from .particles import exact, total


@dataclass(frozen=True)
class Spectrum:
    """ybar = U^T y / s [N, ...], which is the signal with noise sigma_y / s, where ``seen``.

    ``noise`` and its square ``var``, ``seen``, and ``middle``, the middle of the value range, are shared by all rows.
    All that is done to particles here is done to ``chunk`` of them at a time.
    """

    operator: Spectral
    chunk: int | None
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
            s_inv = A.s_inv(A.Ut(run.problem.y[:1]))
            ybar = run.by_rows(lambda problem: s_inv * A.Ut(problem.y))
            noise = run.problem.sigma_y * s_inv
            middle = A.Vt(torch.full_like(run.like[:1], sum(run.problem.value_range) / 2))
            found = _KNOWN[run.problem] = cls(A, None, ybar, noise, noise**2, s_inv > 0, middle)
        return replace(found, chunk=run.chunk)

    def Vt(self, x: Tensor) -> Tensor:  # noqa: N802
        """Spectral coordinates of signals [N, ...]."""
        return in_parts(len(x), self.chunk, lambda rows: self.operator.Vt(x[rows]))

    def V(self, c: Tensor) -> Tensor:  # noqa: N802
        """The signals of coordinates [N, ...]."""
        return in_parts(len(c), self.chunk, lambda rows: self.operator.V(c[rows]))

    def log_normal(self, d: Tensor, var: Tensor) -> Tensor:
        """The sum over coordinates that are seen of log N(d; 0, var), of var for all rows: [N]."""
        size = (2 * math.pi * var).log()
        return self._total(len(d), self.seen, lambda rows: d[rows].square().div_(var).add_(size))

    def log_ratio(self, d: Tensor, var: Tensor, d0: Tensor, var0: Tensor, where: Tensor | None = None) -> Tensor:
        """The sum over coordinates (seen, or those of ``where``) of log N(d; 0, var) - log N(d0; 0, var0): [N]."""
        size = (var / var0).log()

        def terms(rows: slice) -> Tensor:
            return d[rows].square().div_(var).sub_(d0[rows].square().div_(var0)).add_(size)

        return self._total(len(d), self.seen if where is None else where, terms)

    def _total(self, n: int, where: Tensor, terms: Callable[[slice], Tensor]) -> Tensor:
        # in place, here and in the terms: new memory of the size of a cloud costs more than arithmetic on it
        hidden = ~where
        return in_parts(n, self.chunk, lambda rows: -0.5 * total(terms(rows).masked_fill_(hidden, 0)))


_KNOWN: WeakKeyDictionary[Problem, Spectrum] = WeakKeyDictionary()


def of_data(run: Run) -> Tensor:
    """log p(y) - log p(ybar) [N]: the change of variables, and the part of y that no signal makes."""
    return run.by_rows(_of_data)


def _of_data(problem: Problem) -> Tensor:
    A, y = cast(Spectral, problem.operator), problem.y
    c = A.Ut(y)
    s_inv = A.s_inv(c).expand_as(c)
    seen = s_inv > 0
    change = total(torch.where(seen, torch.where(seen, s_inv, 1).log(), 0))
    sigma_y = problem.sigma_y
    if sigma_y == 0:
        return change
    # not |y|^2 - |c|^2: two large numbers, of which single precision leaves no difference
    left = total((y - A.U(torch.where(seen, c, 0))).abs().square())
    spare = problem.m - total(seen.to(exact(c)))
    return change - 0.5 * (left / sigma_y**2 + spare * math.log(2 * math.pi * sigma_y**2))
