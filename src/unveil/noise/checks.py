"""What every noise model promises, as checks that measure an error and raise AssertionError if it is too large.

``check_noise`` runs all; the test suite and the command ``unveil check`` use it on any model. Statistical errors are in
standard errors: 5 is the limit, which chance passes once in a million.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rng import Rng, single
from .base import Noise

SHAPE = (2, 3, 4)
"""Shape of one measurement in the checks."""
ROWS = 1000
LIMIT = 1e-7
ERRORS = 5.5


def check_noise(noise: Noise) -> list[tuple[str, float]]:
    """Run every check on a model that fits measurements of :data:`SHAPE`: names and measured errors, in order.

    Raises AssertionError at the first promise that is broken.
    """
    checks: list[Any] = [check_streams, check_mask, check_precision]
    if noise.sigma != 0:
        checks += [check_score, check_variance, check_information, check_mean_score, check_density]
    return [(check.__name__.removeprefix("check_"), check(noise)) for check in checks]


def light(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Clean measurements between 0.2 and 0.8, the same in every row."""
    g = torch.Generator().manual_seed(0)
    return (0.2 + 0.6 * torch.rand(SHAPE, generator=g, dtype=torch.float64)).to(dtype).expand(rows, *SHAPE).contiguous()


def check_streams(noise: Noise) -> float:
    """A row's noise is that of its stream: the same in any batch, another for another seed."""
    clean, state = light(4), torch.get_rng_state()
    y = noise.sample(clean, single(1, 4))
    _demand(noise, torch.equal(torch.get_rng_state(), state), "sample uses the global random state: use rng")
    _demand(noise, torch.equal(noise.sample(clean, single(1, 4)), y), "the same stream gives other noise")
    alone = noise.sample(clean[2:3], Rng([(1, 2)], purpose="draw"))
    _bound(noise, "a row's noise depends on its batch", float((alone[0] - y[2]).abs().max()), 1e-12)
    if noise.sigma != 0:
        _demand(noise, not torch.equal(noise.sample(clean, single(2, 4)), y), "two seeds give the same noise")
        _demand(noise, not torch.equal(y[0], y[1]), "two rows have the same noise")
    return 0.0


def check_mask(noise: Noise) -> float:
    """Placeholders get no noise and count in no density, even where they are not finite."""
    clean, measured = light(3), (torch.arange(SHAPE[-1]) % 3 > 0).double()
    y = noise.sample(clean, single(1, 3), measured)
    _demand(noise, torch.equal((y - clean) * (1 - measured), torch.zeros_like(y)), "placeholders get noise")
    other = torch.where(measured > 0, y, torch.nan)
    same = torch.equal(noise.log_prob(other, clean, measured), noise.log_prob(y, clean, measured))
    _demand(noise, same, "log_prob depends on placeholders")
    if noise.sigma == 0:
        return 0.0
    scores = noise.score(y, clean, measured), noise.score(other, clean, measured)
    _demand(noise, torch.equal(*scores), "score depends on placeholders")
    _demand(noise, not bool((scores[0] * (1 - measured)).any()), "placeholders have a score")
    return 0.0


def check_precision(noise: Noise) -> float:
    """Single stays single, double stays double, and both give the same numbers."""
    found = []
    for dtype in (torch.float32, torch.float64):
        clean = light(3, dtype)
        y = noise.sample(light(3), single(1, 3)).to(dtype)
        values = {"sample": noise.sample(clean, single(1, 3)), "log_prob": noise.log_prob(y, clean)}
        if noise.sigma != 0:
            values["score"] = noise.score(y, clean)
            values["variance"] = torch.as_tensor(noise.variance(clean), dtype=dtype) * torch.ones_like(clean)
        for part, value in values.items():
            _demand(noise, value.dtype == dtype, f"{part} of {dtype} is {value.dtype}")
            _demand(noise, bool(torch.isfinite(value).all()), f"{part} is not finite")
        found.append([v.double() for k, v in values.items() if k in ("score", "variance")])
    error = max([float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True)], default=0.0)
    return _bound(noise, "single against double precision", error, 1e-3)


def check_score(noise: Noise) -> float:
    """``score`` is the gradient of ``log_prob``."""
    clean = light(3)
    y = noise.sample(clean, single(1, 3))
    worst = 0.0
    for measured in (None, (torch.arange(SHAPE[-1]) % 3 > 0).double()):
        leaf = (clean + 0.03).requires_grad_(True)
        (expected,) = torch.autograd.grad(noise.log_prob(y, leaf, measured).sum(), leaf)
        got = noise.score(y, leaf.detach(), measured)
        worst = max(worst, float((got - expected).norm() / expected.norm()))
    return _bound(noise, "score against the gradient of log_prob", worst, LIMIT)


def check_variance(noise: Noise) -> float:
    """``variance`` is the mean of (y - clean)^2 over samples, at every entry."""
    clean = light(ROWS)
    square = (noise.sample(clean, single(3, ROWS)) - clean).square()
    expected = torch.as_tensor(noise.variance(clean), dtype=clean.dtype).expand(clean.shape)
    return _bound(noise, "variance against samples, in standard errors", _errors(square - expected), ERRORS)


def check_information(noise: Noise) -> float:
    """``information``, where it is known, has the mean of the squared score, at every entry."""
    clean = light(ROWS)
    y = noise.sample(clean, single(6, ROWS))
    found = noise.information(y, clean)
    if found is None:
        return 0.0
    square = noise.score(y, clean).square()
    return _bound(noise, "information against squared scores, in standard errors", _errors(square - found), ERRORS)


def check_mean_score(noise: Noise) -> float:
    """E score = 0 at the clean measurement that made y: samples and density belong together."""
    clean = light(ROWS)
    score = noise.score(noise.sample(clean, single(4, ROWS)), clean)
    return _bound(noise, "mean of the score, in standard errors", _errors(score), ERRORS)


def check_density(noise: Noise) -> float:
    """E p(y | other) / p(y | clean) = 1: log_prob is normalised, whatever measure it is a density of."""
    clean = light(ROWS)
    y = noise.sample(clean, single(5, len(clean)))
    # a step along the score's direction that changes log p by about one
    step = 1 / noise.score(y, clean).flatten(1).norm(dim=1).mean() * torch.ones_like(clean)
    ratio = (noise.log_prob(y, clean + step) - noise.log_prob(y, clean)).exp()
    return _bound(noise, "normalisation of the density, in standard errors", _errors(ratio - 1), ERRORS)


def _errors(values: Tensor) -> float:
    """The largest |mean over rows| in standard errors."""
    rows = values.reshape(values.shape[0], -1)
    error = rows.std(0) / rows.shape[0] ** 0.5
    return float((rows.mean(0).abs() / error.clamp(min=1e-12)).max())


def _demand(noise: Noise, fulfilled: bool, text: str) -> None:
    if not fulfilled:
        raise AssertionError(f"{noise.name or type(noise).__name__}: {text}")


def _bound(noise: Noise, text: str, error: float, limit: float) -> float:
    if not error <= limit:
        raise AssertionError(
            f"{noise.name or type(noise).__name__}: {text}: {error:.3g}, at most {limit:.2g} is allowed"
        )
    return error
