"""Measures of images, of samples and of distributions.

Everything is per sample where that means anything, in float64 inside, and never looks at more than its
arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import InputError
from .rng import single
from .shapes import Rows

# -- images --------------------------------------------------------------------------------------------------


def psnr(x: Tensor, ref: Tensor, data_range: float = 1.0) -> Rows:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / mean squared error) in dB: [N] for x, ref [N, ...].

    The mean is over all values of a sample, colours included. Infinite where x equals ref.
    """
    _same_shape(x, ref)
    mse = (x.double() - ref.double()).flatten(1).square().mean(1)
    return 10 * torch.log10(data_range**2 / mse)


def ssim(x: Tensor, ref: Tensor, data_range: float = 1.0) -> Rows:
    """Structural similarity, at most 1: [N] for images x, ref [N, C, H, W].

    Wang, Bovik, Sheikh, Simoncelli 2004 (IEEE Trans. Image Process. 13, 600), with the authors' settings:
    Gaussian window of 11 x 11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, population moments.
    The mean is over the places where the whole window lies inside the image, then over the channels.

    Raises :class:`InputError` for images smaller than the window.
    """
    _same_shape(x, ref)
    if x.ndim != 4 or min(x.shape[-2:]) < 11:
        raise InputError(f"ssim compares images [N, C, H, W] of at least 11 x 11 pixels, got {tuple(x.shape)}")
    u = torch.arange(-5, 6, dtype=torch.float64, device=x.device)
    window = torch.exp(-0.5 * (u / 1.5) ** 2)
    window = window / window.sum()
    n = x.shape[0]
    a, b = x.double().flatten(0, 1)[:, None], ref.double().flatten(0, 1)[:, None]

    def local(z: Tensor) -> Tensor:
        z = torch.nn.functional.conv2d(z, window.reshape(1, 1, 11, 1))
        return torch.nn.functional.conv2d(z, window.reshape(1, 1, 1, 11))

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    cov = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * contrast).reshape(n, -1).mean(1)


def _same_shape(x: Tensor, ref: Tensor) -> None:
    if x.shape != ref.shape:
        raise InputError(f"cannot compare {tuple(x.shape)} with {tuple(ref.shape)}: shapes must be the same")


# -- distributions -------------------------------------------------------------------------------------------


def sliced_wasserstein2(
    a: Tensor, b: Tensor, projections: int = 200, seed: int = 0, weights: Tensor | None = None
) -> float:
    """Sliced Wasserstein-2 distance of two clouds a, b [S, ...] of the same size, in the units of the
    samples.

    The root of the mean, over random directions, of the squared one-dimensional distances, which sorting
    gives (Bonneel, Rabin, Peyre, Pfister 2015). The directions depend on ``seed`` and the dimension alone,
    so that distances of one problem can be compared. In one dimension this is the Wasserstein distance
    itself. ``weights`` [S], of sum one, are those of a; b is equally weighted.
    """
    a, b = a.flatten(1).double(), b.flatten(1).double()
    if a.shape != b.shape:
        raise InputError(f"clouds must have the same size and dimension, got {tuple(a.shape)} and {tuple(b.shape)}")
    like = torch.empty(projections, a.shape[1], dtype=torch.float64, device=a.device)
    directions = single(seed, projections, purpose="projections").normal(like)
    directions = directions / directions.norm(dim=1, keepdim=True)
    left, right = (a @ directions.T).T.sort(1), (b @ directions.T).T.sort(1).values
    if weights is None:
        return float((left.values - right).square().mean().sqrt())
    # both are steps: between their jumps neither changes
    s = a.shape[0]
    rise = weights.double()[left.indices].cumsum(1)
    rise = rise / rise[:, -1:]
    even = (torch.arange(1, s + 1, dtype=torch.float64, device=a.device) / s).expand_as(rise)
    ends = torch.cat([rise, even], 1).sort(1).values
    width = ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
    middle = ends - width / 2
    i, j = (torch.searchsorted(f.contiguous(), middle).clamp_max(s - 1) for f in (rise, even))
    gap = left.values.gather(1, i) - right.gather(1, j)
    return float((width * gap.square()).sum(1).mean().sqrt())


def gaussian_wasserstein2(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Wasserstein-2 distance of N(mean1, cov1) and N(mean2, cov2), means [n] (or any shape), covariances
    [n, n].

    W^2 = |mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) (Dowson and Landau 1982). Degenerate
    covariances are allowed.
    """
    c1, c2 = cov1.double(), cov2.double()
    root = _root(c1)
    # tr (C1^1/2 C2 C1^1/2)^1/2 is the sum of the singular values of C2^1/2 C1^1/2: no square root of
    # rounding errors
    cross = torch.linalg.svdvals(_root(c2) @ root).sum()
    shift = (mean1.double().flatten() - mean2.double().flatten()).square().sum()
    squared = shift + torch.trace(c1) + torch.trace(c2) - 2 * cross
    return float(squared.clamp_min(0).sqrt())


def _root(c: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh((c + c.T) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def moments(samples: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean [n] and covariance [n, n] (divided by S - 1) of a cloud [S, ...], float64.

    With ``weights`` [S] of sum one the divisor is 1 - sum w^2, which is the same for equal ones; where a single sample
    has all the weight the covariance is zero.
    """
    flat = samples.flatten(1).double()
    if weights is None:
        return flat.mean(0), torch.cov(flat.T).reshape(flat.shape[1], -1)
    w = weights.double()
    mean = w @ flat
    d = flat - mean
    return mean, (d * w[:, None]).T @ d / spare(w)


def spare(weights: Tensor) -> Tensor:
    """1 - sum w^2 of weights [..., S] of sum one: the share of a variance that weighted samples leave, (S - 1) / S if
    they are equal. Never zero, so that it may divide.
    """
    return (1 - weights.square().sum(-1)).clamp_min(1e-12)


def weighted_quantile(values: Tensor, weights: Tensor, q: float) -> Tensor:
    """The smallest of the values [..., S] that q of the weight [..., S] lies at or below: [...]."""
    ordered, index = values.sort(-1)
    rise = weights.expand_as(values).gather(-1, index).cumsum(-1)
    at = (rise < q * rise[..., -1:] * (1 - 1e-12)).sum(-1, keepdim=True)
    return ordered.gather(-1, at)[..., 0]


# -- uncertainty ---------------------------------------------------------------------------------------------


def coverage(samples: Tensor, truth: Tensor, level: float, weights: Tensor | None = None) -> Tensor:
    """How often the truth lies in the central credible interval of the samples: one number per value, [...].

    ``samples`` [S, ...] are draws of one distribution, ``truth`` [T, ...] values that it should predict.
    The interval is that between the quantiles (1 - level)/2 and (1 + level)/2 of the samples, ends
    included. If the truths are draws of the same distribution, the result is ``level`` up to terms of order
    1/S and the spread of T draws. ``weights`` [S], of sum one, are those of the samples.
    """
    if not 0 < level < 1:
        raise InputError(f"a credible level lies between 0 and 1, got {level}")
    if samples.shape[1:] != truth.shape[1:]:
        raise InputError(f"samples {tuple(samples.shape)} and truths {tuple(truth.shape)} differ in more than number")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=samples.device)
    if weights is None:
        low, high = samples.double().quantile(ends, dim=0)
    else:
        columns = samples.double().movedim(0, -1)
        low, high = (weighted_quantile(columns, weights.double(), float(q)) for q in ends)
    t = truth.double()
    inside: Tensor = (t >= low) & (t <= high)
    return inside.double().mean(0)


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """Continuous ranked probability score of each value, smaller is better: [...] for samples [S, ...],
    truth [...].

    The unbiased estimate E|X - t| - E|X - X'| / 2 (Gneiting and Raftery 2007, equation 21; Zamo and Naveau
    2018 for the factor S - 1), in the units of the samples. With one sample it is the absolute error.
    """
    if samples.shape[1:] != truth.shape:
        raise InputError(f"samples {tuple(samples.shape)} need a truth of shape {tuple(samples.shape[1:])}")
    x, s = samples.double().sort(0).values, samples.shape[0]
    error: Tensor = (x - truth.double()).abs().mean(0)
    if s == 1:
        return error
    # sum over pairs of |x_i - x_j| / 2 from the order statistics
    rank = torch.arange(s, dtype=torch.float64, device=x.device) * 2 - (s - 1)
    spread = torch.tensordot(rank, x, dims=([0], [0])) / (s * (s - 1))
    score: Tensor = error - spread
    return score


# -- Markov chains -------------------------------------------------------------------------------------------


def split_rhat(chains: Tensor, groups: int | None = None) -> Tensor:
    """The potential scale reduction of chains [C, T, ...], halved: [...], 1 if all halves agree.

    Of ranks turned into normal quantiles, so that heavy tails do not hide a difference (Vehtari, Gelman, Simpson,
    Carpenter, Burkner 2021, Bayesian Anal. 16, 667, equations 3, 4 and 14); 1.01 is their limit. Many short chains are
    above it by their length alone: joined in ``groups`` of as many chains each they are compared as groups (Margossian
    et al. 2024, Bayesian Anal., nested R-hat).
    """
    z = _halves(_normal_scores(chains))
    if groups is not None:
        z = z.reshape(2 * groups, -1, *z.shape[2:])
    t = z.shape[1]
    within, between = z.var(1).mean(0), t * z.mean(1).var(0)
    ratio: Tensor = ((t - 1) / t * within + between / t) / within
    return torch.where(within + between > 0, ratio, 1.0).sqrt()  # a quantity that never changes agrees


def chain_ess(chains: Tensor) -> Tensor:
    """How many independent draws the means over chains [C, T, ...] are worth: [...].

    From the autocorrelations of all halves, summed in pairs as long as these are positive and fall (Geyer 1992; Vehtari
    et al. 2021, section 3.2); at most C T log10(C T).
    """
    z = _halves(chains.double())
    c, t = z.shape[:2]
    d = z - z.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(d, n=2 * t, dim=1)
    auto = torch.fft.irfft(spectrum.abs().square(), n=2 * t, dim=1)[:, :t] / t  # [C, T, ...]
    within = (auto[:, 0] * t / (t - 1)).mean(0)
    total = within * (t - 1) / t + z.mean(1).var(0)
    rho = 1 - (within - (auto * t / (t - 1)).mean(0)) / total  # [T, ...]
    rho[0] = 1
    pairs = rho[: t // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cumprod(0)
    falling = torch.cummin(pairs, 0).values.clamp_min(0) * positive
    size = c * t
    tau = (-1 + 2 * falling.sum(0)).clamp_min(1 / math.log10(size))
    worth: Tensor = size / tau
    return worth


def _halves(chains: Tensor) -> Tensor:
    """Each chain [C, T, ...] as two [2 C, T // 2, ...]."""
    t = chains.shape[1] // 2
    return torch.cat([chains[:, :t], chains[:, -t:]])


def _normal_scores(values: Tensor) -> Tensor:
    """The normal quantiles of the ranks of all values [C, T, ...] of a quantity; values that are equal share theirs."""
    columns = values.double().flatten(0, 1).movedim(0, -1).contiguous()
    ordered = columns.sort(-1).values
    rank = (torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True) + 1) / 2
    scores: Tensor = torch.special.ndtri((rank.double() - 0.375) / (columns.shape[-1] + 0.25))
    return scores.movedim(-1, 0).reshape(values.shape)
