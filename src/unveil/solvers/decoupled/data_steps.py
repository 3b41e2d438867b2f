"""What decoupled solvers do with the data between two clean estimates: Markov chains, and descents on the residual.

On spectral operators with Gaussian noise neither transforms anything inside its loop; a Markov chain needs no loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...numerics.cg import cg
from ...numerics.inner import inner_loop
from ...numerics.lanczos import irregular
from ...numerics.mcmc import hmc, langevin
from ...operators.base import Linear, Operator, Spectral
from ...priors.base import expand
from ...problem import Problem, squared_norm
from ...rng import Rng


def has_closed_chain(problem: Problem) -> bool:
    """Whether the law of a chain's end is known: a spectral operator and Gaussian noise."""
    return isinstance(problem.operator, Spectral) and problem.noise.sigma is not None


def chain(
    problem: Problem,
    centre: Tensor,
    r: float,
    rng: Rng,
    kind: str = "langevin",
    steps: int = 100,
    leapfrogs: int = 5,
    step_size: float = 0.2,
    start: Tensor | None = None,
    steepest: Tensor | None = None,
) -> Tensor:
    """The end of a Markov chain on the density p(y | u) N(u; centre, r^2 I), [N, *shape].

    Parameters
    ----------
    kind, steps, leapfrogs:
        "langevin", or "hmc" with this many leapfrog steps to a trajectory; unadjusted, ``steps`` of them.
    step_size:
        Relative to the largest curvature: lr = step_size / (|A|^2 / sigma_y^2 + 1 / r^2).
    start:
        Where the chain starts; None: at a draw of N(centre, r^2 I).
    steepest:
        Largest curvature of -log p(y | u) per row [N], see :func:`curvature`; None: that at the centre.

    With Gaussian noise and a spectral operator every coordinate is a chain of its own, whose end is Gaussian. It is
    drawn at once, with ``start`` None: after K steps that each keep a share k of the deviation from the mean m,
    u = m + k^K (start - m) + sqrt((1 - k^2K) v) z. Of precision q, a Langevin step keeps k = 1 - lr q and has the
    stationary variance v = 1 / (q (1 - lr q / 2)); a Hamiltonian one of L leapfrog steps keeps cos(L arccos(1 - lr q /
    2)) and has 1 / (q (1 - lr q / 4)). The law is that of the chain, bias of its step size and finite length included.
    """
    if has_closed_chain(problem) and start is None:
        A, noise_var = problem.operator, problem.sigma_y**2
        assert isinstance(A, Spectral)
        c = A.Vt(centre)
        s = A.s(c)
        q = s**2 / noise_var + 1 / r**2
        lr = step_size / q.amax()
        keep = 1 - lr * q if kind == "langevin" else torch.cos(leapfrogs * torch.arccos(1 - lr * q / 2))
        bias = 2 if kind == "langevin" else 4
        kept = keep**steps
        mean = torch.addcmul(c, s / (noise_var * q), A.Ut(problem.y) - s * c)
        spread = (1 - kept**2) / (q * (1 - lr * q / bias)) + (kept * r) ** 2  # the start is spread by r
        return A.V(torch.lerp(mean, c, kept) + spread.sqrt() * rng.normal(c))

    def score(u: Tensor) -> Tensor:
        return problem.score(u).add_(u - centre, alpha=-1 / r**2)

    bend = curvature(problem, centre) if steepest is None else steepest
    rate = expand(step_size / (bend + 1 / r**2), centre)
    u = centre.add(rng.normal(centre), alpha=r) if start is None else start
    if kind == "hmc":
        return hmc(u, score, rate, steps, rng, leapfrogs)
    return langevin(u, score, rate, steps, rng, reach=r)


def laplace(problem: Problem, centre: Tensor, r: float, rng: Rng, rounds: int = 4, iterations: int = 25) -> Tensor:
    """A draw of the Gaussian that is nearest to p(y | u) N(u; centre, r^2 I) at its mode, [N, *shape].

    Newton's method: at u, with lambda = A(u), J the Jacobian there and W what stands for the curvature of
    -log p(y | lambda) (:meth:`~unveil.noise.Noise.information`; if that is Fisher's, it is called scoring), the next u
    solves (J^T W J + I / r^2) u = J^T (W J u + score) + centre / r^2. Each of ``rounds`` takes ``iterations`` of
    conjugate gradients; the last one, with data and centre perturbed by their noise, is a draw (Papandreou and Yuille
    2010). Its fixed point is the mode; with Gaussian noise and a linear operator the density is this Gaussian. The
    curvature of counts at a point tells too little of that beside it for a chain to be stable where little light is.
    """
    A, noise, u = problem.operator, problem.noise, centre
    for k in range(rounds):
        clean, pullback = A.linearize(u)
        information = noise.information(problem.y, clean)
        assert information is not None
        weight = A.at_data(information * torch.ones_like(clean.real))
        target = weight * A.jvp(u, u) + noise.score(problem.y, clean, A.measured)
        pull = centre / r**2
        if k == rounds - 1:
            white = rng.normal(clean) * (2**0.5 if clean.is_complex() else 1)
            target = target + weight**0.5 * white
            pull = pull + rng.normal(centre) / r
        matvec = partial(_information, A, u, weight, pullback, r)
        u = cg(matvec, pullback(target) + pull, u, steps=iterations)
    return u


def _information(
    A: Operator, u: Tensor, weight: Tensor, pullback: Callable[[Tensor], Tensor], r: float, v: Tensor
) -> Tensor:
    """(J^T W J + I / r^2) v at u."""
    return pullback(weight * A.jvp(u, v)) + v / r**2


def curvature(problem: Problem, x0: Tensor) -> Tensor:
    """Largest curvature of -log p(y | x) at x0 per row [N], with a margin of 10 %."""
    return _steepest(lambda x: -problem.score(x), x0, 0.01 * problem.scale)


def steepness(problem: Problem, x0: Tensor) -> Tensor:
    """Largest curvature of |y - A(x)|^2 / 2 at x0 per row [N]: |A|^2 where A is linear, else with a margin of 10 %."""
    A = problem.operator
    if isinstance(A, Linear):
        return A.norm(x0).square().expand(x0.shape[0])
    return _steepest(lambda x: problem.data(x)[1], x0, 0.01 * problem.scale)


@inner_loop
def _steepest(gradient: Callable[[Tensor], Tensor], x0: Tensor, size: float, rounds: int = 20) -> Tensor:
    """Power iteration on a Hessian, by differences of the gradient over ``size``; exact for quadratic functions."""
    v = irregular(x0).expand_as(x0)
    here, top = gradient(x0), torch.ones(x0.shape[0], device=x0.device, dtype=x0.dtype)
    for _ in range(rounds):
        v = v / expand(torch.linalg.vector_norm(v.flatten(1), dim=1).clamp_min(1e-20), x0)
        v = (gradient(x0 + size * v) - here) / size
        top = torch.linalg.vector_norm(v.flatten(1), dim=1)
    return 1.1 * top


@inner_loop
def descend(
    problem: Problem, x: Tensor, rate: Tensor, steps: int, momentum: float = 0.0, floor: Tensor | None = None
) -> Tensor:
    """Gradient descent on |y - A(x)|^2 / 2 with momentum: v <- momentum v + gradient, x <- x - rate v.

    ``rate`` is [N]. A row rests once half its squared residual would fall below ``floor`` [N]: on the way to that point
    where it is ``floor`` (where A is linear; else nearly).
    """
    A = problem.operator
    if isinstance(A, Spectral):  # in the coordinates of V^T, an orthogonal change of basis
        c, target = A.Vt(x), A.Ut(problem.y)
        s = A.s(c)
        beyond = squared_norm(problem.y) - squared_norm(target)  # what no signal explains

        def data(c: Tensor) -> tuple[Tensor, Tensor]:
            r = target - s * c
            return r, s * r
    else:
        c, beyond = x, torch.zeros_like(rate)

        def data(c: Tensor) -> tuple[Tensor, Tensor]:
            y, pullback = A.linearize(c)
            r = problem.y - y
            return r, pullback(r)

    v, before = torch.zeros_like(c), c
    for _ in range(steps):
        r, downhill = data(c)
        v = downhill.add(v, alpha=momentum)
        further = c + expand(rate, c) * v
        if floor is not None:
            far = squared_norm(r) + beyond > 2 * floor
            before, further = where_rows(far, c, before), where_rows(far, further, c)
        c = further
    if floor is not None:  # between the last two points |r|^2 is quadratic: |r0|^2 - 2 t b + t^2 a
        r0, r1 = data(before)[0], data(c)[0]
        a, there, here = squared_norm(r1 - r0), squared_norm(r0), squared_norm(r1)
        b, excess = (there + a - here) / 2, there + beyond - 2 * floor
        t = excess / (b + (b * b - a * excess).clamp_min(0).sqrt()).clamp_min(1e-30)
        c = torch.lerp(before, c, expand(torch.where(here + beyond < 2 * floor, t, 1), c))
    return A.V(c) if isinstance(A, Spectral) else c


def noise_floor(problem: Problem, variance: float | None = None) -> Tensor:
    """Half the squared residual that noise leaves at the truth, per row [N]: half the sum of its variances.

    Of noise whose variance depends on the signal it is that at y. ``variance`` is taken instead of the noise's, if
    given. Waits for the device: for ``init`` only.
    """
    y, measured = problem.y, problem.operator.measured
    found = problem.noise.variance(y) if variance is None else variance
    each = torch.zeros_like(y.real) + (0.0 if found is None else found)
    if measured is not None:
        each = torch.where(measured.to(each.device) > 0, each, 0)
    return (0.5 if not y.is_complex() else 1.0) * each.flatten(1).sum(1)


def where_rows(holds: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The rows of a for which ``holds`` [N] does, and those of b for the others."""
    return torch.where(holds.reshape(-1, *[1] * (a.ndim - 1)), a, b)
