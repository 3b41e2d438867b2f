"""Rewards: what signals are worth, in the place of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..rng import Rng
from .base import Noise


@dataclass(frozen=True)
class Reward(Noise):
    """A reward in the place of data: samples follow p(x0) exp(r(A x0)), whatever y is.

    ``function`` is r, from clean signals [N, ...] to [N]; minus infinity where a signal is out of the question. y says
    no more than how many independent sets of samples there are to be::

        Problem(torch.zeros(1, *shape), Identity(), Reward(function))

    Solvers with ``rewards`` take it; all but "unveil-exact" ask for r of clean estimates on the way, too, and drop what
    is out of the question there. Those that ask for gradients find them by automatic differentiation; where torch
    cannot, "fk-steering", "scg", or "unveil-exact" with ``langevins=0`` do without.
    """

    name: ClassVar[str] = "reward"

    function: Callable[[Tensor], Tensor]

    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:  # noqa: ARG002
        raise InputError("a reward makes no data: Problem(torch.zeros(1, *shape), Identity(), Reward(function))")

    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:  # noqa: ARG002
        found = self.function(clean)
        if found.shape != clean.shape[:1]:
            raise InputError(
                f"a reward is one number for each signal [N]: {tuple(clean.shape)} gave {tuple(found.shape)}"
            )
        return found

    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:  # noqa: ARG002
        with torch.enable_grad():
            leaf = clean.detach().requires_grad_(True)
            found = self.log_prob(y, leaf).sum()
        if not found.requires_grad:
            raise InputError("torch cannot differentiate this reward: take a solver that only evaluates it")
        (gradient,) = torch.autograd.grad(found, leaf)
        return gradient

    def variance(self, clean: Tensor) -> None:  # noqa: ARG002
        return None

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "function": getattr(self.function, "__qualname__", type(self.function).__name__)}
