"""RealNVP: a normalising flow of affine couplings, as a function of its parameters.

Dinh, Sohl-Dickstein, Bengio 2017, "Density estimation using real NVP", arXiv 1605.08803, sections 3.2 to 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ...rng import single
from .networks import Layout, Net, form_of

FULL = 512
"""Signals of at most so many numbers get a last layer with a full matrix, larger ones a diagonal."""

FIRST_STD = math.exp(-1.0)
"""Standard deviation of an untrained flow, in signals scaled to [-1, 1]."""


@dataclass(frozen=True)
class Flow:
    """x = centre + shift + C(c) + L g(z) for z from N(0, I): ``couplings`` affine couplings g, and an affine layer.

    A coupling leaves half of its input as it is and maps the other, y = (x + t) exp(tanh(s)) with s, t a network's
    output for the first half; halves are random for dense networks, the two colours of a checkerboard for
    convolutions. L is lower triangular with a positive diagonal (a positive diagonal alone for large signals), so that
    the family holds every Gaussian. A ``conditional`` flow sees c, a signal made from the measurement: every coupling
    takes it as further input, and C is a network.

    Signals are [B, K, *shape], draws of B sets of parameters [B, P], in units in which the value range is [-1, 1].
    """

    shape: tuple[int, ...]
    couplings: int = 4
    hidden: int = 32
    conditional: bool = False

    @cached_property
    def form(self) -> tuple[int, ...]:
        return form_of(self.shape)

    @cached_property
    def full(self) -> bool:
        return len(self.form) == 1 and self.form[0] <= FULL

    @cached_property
    def nets(self) -> tuple[Net, ...]:
        """The networks of the couplings; and, of a conditional flow, C."""
        n, space = self.form[0], len(self.form) - 1
        extra = n if self.conditional else 0
        out = []
        for k in range(self.couplings if space or n > 1 else 0):
            a, b = (n, n) if space else ((n + 1) // 2, n // 2)
            out.append(Net(f"coupling{k}", (a + extra, self.hidden, 2 * b), space, path=False))
        if self.conditional:
            out.append(Net("context", (n, self.hidden, n), space))
        return tuple(out)

    @cached_property
    def layout(self) -> Layout:
        shapes = [s for net in self.nets for s in net.layout.shapes]
        shapes += [("shift", self.form), ("log_scale", self.form)]
        if self.full:
            shapes.append(("lower", (*self.form, *self.form)))
        return Layout(tuple(shapes))

    def start(self) -> Tensor:
        """The first parameters [1, P], float64: a Gaussian of standard deviation FIRST_STD."""
        tensors = {k: torch.zeros(shape, dtype=torch.float64) for k, shape in self.layout.shapes}
        for net in self.nets:
            tensors |= net.start()
        tensors["log_scale"] += math.log(FIRST_STD)
        return self.layout.join({k: v[None] for k, v in tensors.items()})

    def forward(self, theta: Tensor, z: Tensor, centre: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x for z [B, K, *shape], and log |det dx/dz| [B, K]; ``centre`` and ``c`` are broadcastable to z."""
        p = self.layout.split(theta)
        u, context = self._in(z), None if c is None else self._in(c.expand_as(z))
        logdet = torch.zeros(z.shape[:2], dtype=z.dtype, device=z.device)
        for k, net in enumerate(self._couplings):
            u, change = self._couple(net, p, u, context, k, inverse=False)
            logdet = logdet + change
        log_scale = p["log_scale"][:, None]
        u = u @ self._matrix(p).mT if self.full else u * log_scale.exp()
        u = u + p["shift"][:, None]
        if context is not None:
            u = u + self.nets[-1](p, context)
        return u.reshape(z.shape) + centre, logdet + log_scale.flatten(2).sum(2)

    def inverse(self, theta: Tensor, x: Tensor, centre: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z for x [B, K, *shape], and log |det dx/dz| [B, K]."""
        p = self.layout.split(theta)
        context = None if c is None else self._in(c.expand_as(x))
        u = self._in(x - centre) - p["shift"][:, None]
        if context is not None:
            u = u - self.nets[-1](p, context)
        log_scale = p["log_scale"][:, None]
        if self.full:
            u = torch.linalg.solve_triangular(self._matrix(p), u.mT, upper=False).mT
        else:
            u = u * (-log_scale).exp()
        logdet = log_scale.flatten(2).sum(2).expand(x.shape[:2])
        for k, net in reversed(list(enumerate(self._couplings))):
            u, change = self._couple(net, p, u, context, k, inverse=True)
            logdet = logdet + change
        return u.reshape(x.shape), logdet

    def log_prob_score(self, theta: Tensor, x: Tensor, centre: Tensor, c: Tensor | None = None) -> Tensor:
        """The gradient of log q(x) with respect to x [B, K, *shape], the parameters held fixed."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            z, logdet = self.inverse(theta.detach(), leaf, centre, c)
            log_q = -0.5 * z.square().sum() - logdet.sum()
            (g,) = torch.autograd.grad(log_q, leaf)
        return g

    @property
    def _couplings(self) -> tuple[Net, ...]:
        return self.nets[:-1] if self.conditional else self.nets

    def _in(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], *self.form)

    def _matrix(self, p: Mapping[str, Tensor]) -> Tensor:
        return torch.tril(p["lower"], -1) + torch.diag_embed(p["log_scale"].exp())

    def _couple(
        self, net: Net, p: Mapping[str, Tensor], u: Tensor, context: Tensor | None, k: int, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """A coupling of u [B, K, *form] and the log-determinant of its forward map [B, K]."""
        if len(self.form) == 1:
            keep, move, back = halves(self.form[0], k, u.device)
            here, there = u[..., keep], u[..., move]
        else:
            mask = checkerboard(self.form[1:], k, u.device).to(u.dtype)
            here, there = u * mask, u
        s, t = net(p, here if context is None else torch.cat([here, context], 2)).chunk(2, 2)
        s = torch.tanh(s)
        if len(self.form) > 1:
            s, t = s * (1 - mask), t * (1 - mask)
        there = there * (-s).exp() - t if inverse else (there + t) * s.exp()
        out = torch.cat([here, there], 2)[..., back] if len(self.form) == 1 else there
        return out, s.flatten(2).sum(2)


@lru_cache(maxsize=256)
def halves(n: int, k: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Coupling k's halves of 0..n-1: those that stay, those that move, and what puts them back in order."""
    with torch.inference_mode(False):  # what is kept must serve gradients later on
        order = single(n, purpose="halves", step=k // 2).uniform(torch.empty(1, n, dtype=torch.float64))[0].argsort()
        if k % 2:
            order = order.flip(0)
        stay = (n + 1) // 2
        return order[:stay].to(device), order[stay:].to(device), order.argsort().to(device)


@lru_cache(maxsize=64)
def checkerboard(space: tuple[int, ...], k: int, device: torch.device) -> Tensor:
    """1 where coupling k leaves a place as it is, 0 elsewhere: [1, *space]."""
    with torch.inference_mode(False):
        total = torch.zeros(space, dtype=torch.long)
        for axis, size in enumerate(space):
            total = total + torch.arange(size).reshape(-1, *[1] * (len(space) - 1 - axis))
        return ((total + k) % 2)[None].to(device)
