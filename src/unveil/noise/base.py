"""What a noise model is: how a measurement y scatters around the clean one, A(x0)."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..errors import InputError
from ..rng import Rng

if TYPE_CHECKING:
    from ..operators.base import Linear, Shape

N = TypeVar("N", bound="Noise")


class Noise(ABC):
    """The conditional density p(y | clean).

    Tensors are [N, ...] with the shape of y. ``measured`` (zeros and ones, broadcastable to one row of y;
    None for all ones) marks the entries that carry data: the others get no noise and count in no density.

    ``sigma`` is the standard deviation of white Gaussian noise in the units of y, 0.0 without noise, None for other
    models.
    """

    name: ClassVar[str] = ""
    sigma: float | None = None

    @abstractmethod
    def sample(self, clean: Tensor, rng: Rng, measured: Tensor | None = None) -> Tensor:
        """A noisy measurement of each row, from the row's own random stream."""

    @abstractmethod
    def log_prob(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        """log p(y | clean) per row: [N]."""

    @abstractmethod
    def score(self, y: Tensor, clean: Tensor, measured: Tensor | None = None) -> Tensor:
        """The gradient of :meth:`log_prob` with respect to ``clean``: [N, ...]."""

    @abstractmethod
    def variance(self, clean: Tensor) -> Tensor | float | None:
        """E (y - clean)^2 of an entry of y (of each part, if complex): as ``clean``, or a number; None if zero."""

    def information(self, y: Tensor, clean: Tensor) -> Tensor | float | None:  # noqa: ARG002
        """What stands for the curvature of -log p(y | clean): as ``clean``, or a number >= 0; None if it is not known.

        Itself where it is >= 0 and bounded; of counts its mean over y, Fisher's information. Each averages E score^2.
        """
        return None

    def whitener(self, shape: Shape, measured: Tensor | None = None) -> tuple[Linear, float] | None:  # noqa: ARG002
        """Of correlated or uneven Gaussian noise on measurements of ``shape``: W with W C W^T = I, and log det W.

        None for all other models; log det W is NaN where it is not known. :attr:`unveil.Problem.white` applies W to y
        and to the operator.
        """
        return None

    @classmethod
    def example(cls: type[N], shape: Shape) -> N:  # noqa: ARG003
        """An instance that fits measurements of ``shape``, for suites and documentation."""
        return cls()

    def to(self: N, device: torch.device | str) -> N:
        """The model with its tensors on ``device``."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **moved) if moved else self  # type: ignore[type-var]

    def describe(self) -> dict[str, Any]:
        """What a recipe records of the model: its name and parameters, a digest for tensors."""
        from ..io.digest import digest

        values = {key: digest(value) if isinstance(value, Tensor) else value for key, value in vars(self).items()}
        return {"name": self.name or type(self).__name__, **values}


# -- shared by the models ------------------------------------------------------------------------------------


def masked(value: Tensor, measured: Tensor | None) -> Tensor:
    """``value`` with zeros where nothing was measured (even where it is not finite there)."""
    return value if measured is None else torch.where(measured.to(value.device) > 0, value, 0)


def placed(y: Tensor, clean: Tensor, measured: Tensor | None) -> Tensor:
    """A noisy y, with ``clean`` where nothing was measured."""
    return y if measured is None else torch.where(measured.to(y.device) > 0, y, clean)


def summed(each: Tensor, measured: Tensor | None) -> Tensor:
    """Log densities of entries [N, ...] added up per row: [N]."""
    return masked(each, measured).flatten(1).sum(1)


def count(y: Tensor, measured: Tensor | None) -> int | Tensor:
    """Number of measured entries of a row; a tensor where the host would have to wait for the device."""
    if measured is None:
        return math.prod(y.shape[1:])
    return (measured.to(y.device) > 0).expand(y.shape[1:]).sum().to(y.real.dtype)


def real(clean: Tensor, what: str) -> None:
    """Raise :class:`InputError` for complex measurements."""
    if clean.is_complex():
        raise InputError(f"{what}: the measurement must be real, got a complex one")


def positive(what: str, **values: float) -> None:
    """Raise :class:`InputError` unless all values are > 0 and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{what} needs {name} > 0, got {value}")


def parts(z: Tensor) -> Tensor:
    """The real and imaginary parts of complex entries on a last axis; real tensors as they are."""
    return torch.view_as_real(z) if z.is_complex() else z


def joined(r: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`parts` for tensors like ``like``."""
    return torch.view_as_complex(r) if like.is_complex() else r
