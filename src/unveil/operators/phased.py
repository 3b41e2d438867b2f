"""Real images with a known phase, for priors of magnitudes."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..registry import register
from .base import Linear, Operator, Parametric, Shape


@register("operator", "phased")
class Phased(Parametric, Linear):
    """A real image with a phase that is known: x [1, H, W] to the complex image [2, H, W], exp(i phase) x.

    What a prior of magnitudes needs for MRI: ``MultiCoilMRI(mask, maps) @ Phased(phase)``. The phase varies slowly and
    is taken from the middle of k-space (Noll, Nishimura, Macovski 1991, IEEE Trans. Med. Imaging 10, 154).

    Parameters
    ----------
    phase:
        [H, W], or [D, H, W], in radians; a parameter that can be unknown.
    """

    parameters: ClassVar[tuple[str, ...]] = ("phase",)

    def __init__(self, phase: Tensor) -> None:
        phase = torch.as_tensor(phase)
        if phase.is_complex() or not bool(torch.isfinite(phase.detach()).all()) or phase.ndim < 1:
            raise InputError("the phase is real, finite, in radians: torch.angle(z) of a complex image z")
        self.phase = phase
        self.in_shape: Shape = (1, *phase.shape)

    @classmethod
    def example(cls) -> Operator:
        return cls(torch.linspace(-3, 4, 20).reshape(4, 5))

    def shape_out(self, in_shape: Shape) -> Shape:
        self.check(in_shape)
        return (2, *in_shape[1:])

    def _turn(self, like: Tensor) -> Tensor:
        def make() -> Tensor:
            phase = self.phase.double()
            return torch.stack([phase.cos(), phase.sin()])

        if self.phase.requires_grad:  # one that is being estimated: gradients flow, nothing is kept
            return make().to(like)
        return self.tensor("turn", like, make)

    def __call__(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return x * self._turn(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y * self._turn(y)).sum(1, keepdim=True)
