"""Where in a measurement there is little but noise: what the estimates of :mod:`unveil.noise` look at.

Each kind of measurement has directions in which its signals are smooth, or frequencies at which they are weak. An
operator names them (:meth:`~unveil.operators.base.Operator.layouts`) as arrangements of y in which white noise is still
white.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """An arrangement of y in which white noise of standard deviation sigma stays what it is.

    Attributes
    ----------
    fine:
        [N, K, h, w]: K planes, which see the same places.
    axes:
        Along which second differences take away what a signal leaves; none where its weakest frequencies were chosen.
    coarse:
        The same with frequencies next to those of ``fine``, where signals are stronger and noise is not; None for
        averages of neighbours along ``axes``.
    seen:
        [K, h, w], True for what was measured; None for all.
    uneven:
        Whether the noise of such data often differs from place to place, so that the level that counts is that in the
        middle, not that of the quietest places.
    """

    fine: Tensor
    axes: tuple[int, ...] = ()
    coarse: Tensor | None = None
    seen: Tensor | None = None
    uneven: bool = False


def plain(y: Tensor, measured: Tensor | None = None) -> Layout:
    """Of images or series [N, ..., H, W] or [N, n]: smooth along the last two axes, or the only one."""
    planes = _planes(y)
    seen = None
    if measured is not None:
        seen = _planes((measured.to(y.device) > 0).expand(y.shape[1:])[None])[0].repeat(1 + y.is_complex(), 1, 1)
    return Layout(planes, (-2, -1) if y.ndim > 2 else (-1,), seen=seen)


def kspace(y: Tensor, measured: Tensor | None = None) -> Layout:
    """Of the Fourier plane [N, C, H, W], zero in the middle, measured in whole columns, whole rows, or at points.

    Along lines that were measured as a whole the outer frequencies are turned back into places: signals are left at
    their edges only, and nothing but noise where there is air.
    """
    h, w = y.shape[-2:]
    seen = torch.ones(h, w, dtype=torch.bool, device=y.device)
    if measured is not None:
        seen = (measured.to(y.device) > 0).expand(y.shape[1:]).flatten(0, -3).all(0)
    for turned, mask in ((y, seen), (y.mT, seen.mT)):
        rows, columns = mask.shape
        whole = mask.all(0)
        far = (torch.arange(columns, device=y.device) - columns // 2).abs().double()
        far = far / (far * whole).max().clamp(min=1)
        outer, inner = (whole & (far >= low) & (far < high) for low, high in ((0.75, 2.0), (0.45, 0.75)))
        if int(outer.sum()) >= 3 and int(inner.sum()) >= 3 and rows >= 16:
            z = torch.fft.ifftshift(turned, (-2,))
            ends = [slice(round(rows * q / 2), rows - round(rows * q / 2)) for q in (0.75, 0.45)]
            fine = torch.fft.ifft(z[..., ends[0], :][..., outer], dim=-2, norm="ortho")
            # as long a band, one further in: it holds what the outer one does, and what lies next to it
            coarse = torch.fft.ifft(z[..., ends[1], :][..., inner], dim=-2, norm="ortho")
            return Layout(_planes(fine), coarse=_planes(coarse))
    ky, kx = ((torch.arange(n, device=y.device) - n // 2) / (n / 2) for n in (h, w))
    return points(y[..., seen], torch.hypot(ky[:, None].expand(h, w), kx.expand(h, w))[seen])


def points(y: Tensor, radius: Tensor) -> Layout:
    """Of points of the Fourier plane [N, C, m] at distances ``radius`` [m] from its middle: the farthest ones."""
    top = radius.max()
    outer, inner = radius >= 0.85 * top, (radius >= 0.55 * top) & (radius < 0.7 * top)
    parts = [_planes(y[..., part][..., None, :]) for part in (outer, inner)]
    return Layout(parts[0], coarse=parts[1] if int(inner.sum()) >= 16 else None)


def _planes(y: Tensor) -> Tensor:
    """[N, K, h, w] of y [N, ..., h, w] or [N, n], real and imaginary parts as planes of their own."""
    y = y[:, None] if y.ndim == 2 else y
    if y.is_complex():
        y = torch.view_as_real(y).movedim(-1, 1)
    return y[:, None] if y.ndim == 3 else y.flatten(1, -3)
