"""How noisy are these data? Estimates of noise levels from y alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..operators.layout import Layout, plain
from .base import real
from .counting import PoissonGaussian

if TYPE_CHECKING:
    from ..operators.base import Operator

UPPER = 1.15
"""How much more the next frequencies hold where a noise level is called an upper bound."""
SPREAD = 1.3
"""The same for the median place, where the quietest ones count."""
_MAD = 0.6744897501960817
"""The median of |n| for standard normal n."""


@dataclass(frozen=True)
class NoiseLevel:
    """What :func:`noise_level` found: ``sigma`` [N], and where it is only an ``upper`` bound [N]."""

    sigma: Tensor
    upper: Tensor


def noise_level(y: Tensor, operator: Operator) -> NoiseLevel:
    """The standard deviation of white Gaussian noise in measurements y [N, ...] of an operator, per row.

    It is taken where the operator's signals leave least (:meth:`~unveil.operators.Operator.layouts`): outer frequencies
    of k-space, differences along the detector of a sinogram, the planes of one colour of a mosaic. The energy of what
    is left there, in blocks of 4 x 4, is compared with that of white noise laid out in the same way: its lowest tenth,
    in the quietest places of an image, or the median for data whose noise is seldom even. For complex y it is that of
    each part, as in :class:`~unveil.noise.Gaussian`.

    An estimate can be too large, where even there the signal is not weak; it is called an upper bound where the
    frequencies next to those hold more by a seventh, or by a third in the median place. Of slices and photographs of
    128 pixels a side one that is not called so was within a fifth (within a third where fewer than eight columns of one
    coil lie far out). Raises :class:`InputError` where there is nothing to estimate it from.
    """
    found = [_level(layout) for layout in operator.layouts(y)]
    sigma = torch.stack([level.sigma for level in found])
    best = sigma.argmin(0, keepdim=True)
    upper = torch.stack([level.upper for level in found])
    return NoiseLevel(sigma.gather(0, best)[0], upper.gather(0, best)[0])


def estimate_sigma(y: Tensor, measured: Tensor | None = None) -> Tensor:
    """The standard deviation of white Gaussian noise in images or series y [N, ..., H, W] or [N, n], per row: [N].

    As :func:`noise_level`, which knows other data too: second differences along the last two axes (the last one, if
    there is no other) take away what varies slowly (the mask of Immerkaer 1996, Comput. Vis. Image Underst. 64, 300),
    in the quietest tenth of the image. Where there is fine texture everywhere, it counts as noise.

    ``measured`` marks the entries that carry data; only places whose whole neighbourhood does are used. Raises
    :class:`InputError` where there are none.
    """
    return _level(plain(y, measured)).sigma


def _level(layout: Layout) -> NoiseLevel:
    quantile = 0.5 if layout.uneven else 0.1
    sigma = _scale(layout.fine, layout.axes, layout.seen, quantile)
    coarse, axes = layout.coarse, layout.axes
    if coarse is None and axes and layout.seen is None and all(layout.fine.shape[a] >= 12 for a in axes):
        coarse = layout.fine
        for axis in set(axes):  # means of neighbours, scaled to keep the variance of white noise
            half = torch.arange(coarse.shape[axis] // 2, device=coarse.device) * 2
            coarse = (coarse.index_select(axis, half) + coarse.index_select(axis, half + 1)) / 2**0.5
    if coarse is None:
        return NoiseLevel(sigma, torch.ones_like(sigma, dtype=torch.bool))
    upper = _scale(coarse, axes, None, quantile) > UPPER * sigma
    if not layout.uneven:
        upper |= _scale(coarse, axes, None, 0.5) > SPREAD * sigma
    return NoiseLevel(sigma, upper)


def _scale(planes: Tensor, axes: tuple[int, ...], seen: Tensor | None, quantile: float) -> Tensor:
    """A quantile of the energies of blocks of differenced planes [N, K, h, w], against that of white noise: [N]."""
    draws = max(1, min(8, 2**22 // planes[0].numel()))
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(draws, *planes.shape[1:], generator=generator, dtype=torch.float64).to(planes.device)
    found, expected = (_quantiles(*_differences(z, axes, seen), quantile) for z in (planes.double(), white))
    return (found / expected.mean()).to(planes.dtype)


def _quantiles(r: Tensor, seen: Tensor | None, quantile: float) -> Tensor:
    """That quantile of the root mean squares of blocks of r [N, K, h, w], per row: [N]."""
    h, w = r.shape[-2:]
    size = (min(4, h), min(4, w)) if h > 1 else (1, min(64, w))
    step = (max(1, size[0] // 2), max(1, size[1] // 2))

    def blocks(z: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(z.mean(-3, keepdim=True), size, step).flatten(1)

    energy = blocks(r.square() if seen is None else r.square() * seen)
    if seen is not None:
        share = blocks(seen.expand(r.shape[1:])[None].to(r))[0]
        if not bool(share.any()):
            raise InputError("nothing to estimate the noise from: no entry has all its neighbours measured")
        full = share >= 0.25 * share.max()
        energy = energy[:, full] / share[full]
    rows = []
    for e in energy.sqrt():
        # blocks that are constant, as of a saturated detector, are no measurement of noise; if most are there is none
        alive = e[e > 0]
        rows.append(alive.quantile(quantile) if 2 * len(alive) > len(e) else e.new_zeros(()))
    return torch.stack(rows)


def estimate_poisson_gaussian(y: Tensor, bins: int = 24) -> PoissonGaussian:
    """Gain and read-out noise of a camera from one picture y [N, ..., H, W] of it, all rows together.

    The variance of second differences, taken robustly in classes of equal brightness, is fitted by a line: its slope is
    1 / gain and its value at zero sigma_read^2 (after Foi et al. 2008, IEEE Trans. Image Process. 17, 1737). Bright and
    dark, smooth areas are needed, and values that are not clipped.
    """
    real(y, "a camera's noise")
    r, _ = _differences(y.double(), (-2, -1))
    mean = torch.nn.functional.avg_pool2d(y.double().flatten(0, -3)[:, None], 3, 1).reshape(r.shape)
    order = mean.flatten().argsort()
    groups = [g for g in order.chunk(bins) if len(g) >= 16]
    if len(groups) < 4:
        raise InputError(f"{r.numel()} pixels are too few to tell photon noise from read-out noise: use estimate_sigma")
    m = torch.stack([mean.flatten()[g].mean() for g in groups])
    v = torch.stack([(r.flatten()[g].abs().median() / _MAD) ** 2 for g in groups])
    # the variance of an estimated variance grows as its square; a floor keeps the darkest class from deciding alone
    weights = 1 / (v + 0.1 * v.mean()) ** 2
    centre = (weights * m).sum() / weights.sum()
    slope = (weights * (m - centre) * v).sum() / (weights * (m - centre) ** 2).sum()
    offset = (weights * v).sum() / weights.sum() - slope * centre
    least = 1e-6 * v.mean()
    if slope <= 0:
        raise InputError("the noise does not grow with brightness: use Gaussian(estimate_sigma(y))")
    return PoissonGaussian(float(1 / slope), float(torch.maximum(offset, least).sqrt()))


def _differences(y: Tensor, axes: tuple[int, ...], seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Second differences along axes, one after the other, each scaled to keep the variance of white noise."""
    for axis in axes:
        if y.shape[axis] < 3:
            raise InputError(
                f"y of shape {tuple(y.shape)} is too small to estimate its noise: 3 entries along each axis"
            )
        n = y.shape[axis] - 2
        y = (y.narrow(axis, 0, n) - 2 * y.narrow(axis, 1, n) + y.narrow(axis, 2, n)) / 6**0.5
        if seen is not None:
            seen = seen.narrow(axis, 0, n) & seen.narrow(axis, 1, n) & seen.narrow(axis, 2, n)
    return y, seen
