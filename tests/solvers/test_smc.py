"""Particles: their weights, the twists that they see the data through, and how runs of them end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import unveil
from unveil import Gaussian, Poisson, Problem, Reward
from unveil.bench.families import get_problem
from unveil.bench.mixtures import Cell
from unveil.errors import InputError
from unveil.noise import Noise
from unveil.numerics.resampling import normalise
from unveil.operators import Blur, Identity, Matrix, as_operator, gaussian_kernel
from unveil.operators.base import Linear, Operator
from unveil.rng import Rng
from unveil.run import Status, stream
from unveil.schedules import Schedule
from unveil.solvers.base import Run
from unveil.solvers.smc.metric import PSEUDO, Metric, untied, white, widths
from unveil.solvers.smc.particles import ParticleSolver
from unveil.solvers.smc.spectrum import of_data
from unveil.solvers.smc.twist import blurred_likelihood
from unveil.solvers.smc.unveil_exact import reverse

PLANE = get_problem("plane-row-0.05")
SHORT = {"dpg": {"draws": 4}, "enkg": {"updates": 1}}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Plain(Linear):
    """A linear operator that hides its spectral form."""

    def __init__(self, operator, in_shape):
        self.operator, self.in_shape = operator, in_shape

    def __call__(self, x):
        return self.operator(x)


def test_a_twist_is_the_density_of_the_data_given_a_blurred_signal():
    A = randn(3, 5, seed=1)
    y, x0 = randn(4, 3, seed=2), randn(4, 5, seed=3)
    problem = Problem(y, Matrix(A), Gaussian(0.3))
    for var in (0.01, 0.7):
        law = torch.distributions.MultivariateNormal(x0 @ A.T, 0.09 * torch.eye(3) + var * A @ A.T)
        there = law.log_prob(y)
        value, _ = blurred_likelihood(problem, x0, var)
        # up to a constant that var does not change
        torch.testing.assert_close(value - value[0], there - there[0])
        if var == 0.01:
            first = there[0] - value[0]
        else:
            torch.testing.assert_close(there[0] - value[0], first)


@pytest.mark.parametrize("noise", [Gaussian(0.2), Poisson(50.0)])
@pytest.mark.parametrize("hide", [False, True])
def test_the_gradient_of_a_twist(noise, hide):
    A = Blur(gaussian_kernel(0.7, 3).double(), in_shape=(1, 4, 4))
    x0 = 0.5 + 0.1 * randn(2, 1, 4, 4, seed=4)
    problem = Problem(A(x0 + 0.1).clamp_min(0.1), Plain(A, (1, 4, 4)) if hide else A, noise)
    _, gradient = blurred_likelihood(problem, x0, 0.05)
    towards, h = randn(2, 1, 4, 4, seed=5), 1e-5
    up, down = (blurred_likelihood(problem, x0 + s * h * towards, 0.05)[0] for s in (1, -1))
    torch.testing.assert_close((up - down) / (2 * h), (gradient * towards).flatten(1).sum(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scheme", ["multinomial", "stratified", "systematic", "residual", "ssp"])
def test_every_way_to_resample_every_measurement_by_itself(scheme):
    x = PLANE.prior.sample(3, 4)
    problem = Problem.simulate(x, PLANE.problem.operator, 0.3, 1, PLANE.problem.value_range)
    solver = unveil.get_solver("fps-smc", resampling=scheme, threshold=1.0)
    together = unveil.solve(problem, PLANE.prior, solver, samples=64, steps=20)
    assert together.weights.shape == together.ancestors.shape == (3, 64)
    assert (together.ancestors >= 0).all()
    assert (together.ancestors < 64).all()
    assert len(together.ancestors[0].unique()) < 64
    at = torch.einsum("bs,bsn->bn", together.weights, together.samples.double())
    for b in range(3):
        exact = PLANE.prior.posterior(problem[b])
        # 64 particles know the mean to an eighth of a standard deviation
        assert (at[b] - exact.mean).norm() < 0.5 * exact.covariance.trace().sqrt()
    alone = unveil.solve(problem[1], PLANE.prior, solver, samples=64, steps=20)
    torch.testing.assert_close(alone.samples[0], together.samples[1])


SMC = unveil.list_solvers(family="smc")


def of_plane(solver, y=None):
    """The problem in the plane with data that this solver takes, noisy or not."""
    y = PLANE.problem.y if y is None else torch.full_like(PLANE.problem.y, y)
    noisy, clean = (Problem(y, PLANE.problem.operator, sigma, value_range=(-1.0, 1.0)) for sigma in (0.05, 0))
    return noisy if solver.unfit(noisy) is None else clean


@pytest.mark.parametrize("name", [name for name in SMC if unveil.get_solver(name).coupled])
def test_too_few_particles_are_refused_with_the_mend(name):
    solver = unveil.get_solver(name)
    few = 2 if name in ("eki", "enkg") else 1
    with pytest.raises(InputError, match=rf"at least {few + 1} particles, got {few}: say samples=16"):
        unveil.solve(of_plane(solver), PLANE.prior, solver, samples=few)


@pytest.mark.parametrize("name", SMC)
def test_data_that_nothing_can_have_made_end_the_run_in_words(name):
    """y so far off that its likelihood is zero in every number that there is, wherever the particles are or go."""
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    run = stream(of_plane(solver, 1e25), PLANE.prior, solver, samples=16, steps=6)
    states = list(run)
    assert all(bool(torch.isfinite(state.x).all()) for state in states)
    assert run.status is Status.DIVERGED
    weighs = issubclass(type(solver), ParticleSolver) or name == "unveil-exact"
    for word in ["of 6", "check operator, noise and units", *(["effective sample size"] if weighs and states else [])]:
        assert word in run.reason


@dataclass(frozen=True)
class Barred(Gaussian):
    """Says that some signals, or all, cannot have made the data."""

    share: str = "all"

    def log_prob(self, y, clean, measured=None):
        return torch.where(self.bars(clean), -torch.inf, super().log_prob(y, clean, measured))

    def bars(self, clean):
        """All, or half of what the data allow."""
        return (clean > PLANE.problem.y).any(1) | (self.share == "all")


@dataclass(frozen=True)
class Nameless(Noise):
    """Noise of which no variance is known: twists are its likelihood itself, zeros and all."""

    noise: Barred

    def sample(self, clean, rng, measured=None):
        return self.noise.sample(clean, rng, measured)

    def log_prob(self, y, clean, measured=None):
        return self.noise.log_prob(y, clean, measured)

    def score(self, y, clean, measured=None):
        return self.noise.score(y, clean, measured)

    def variance(self, clean):
        return None


QUICK = {"prior_steps": 30, "oversampling": 4, "inner_steps": 6, "renoisings": 2, "langevins": 2, "rest": 2}
WEIGHED = [
    ("das", {}),
    ("dcps", {}),
    ("fk-steering", {}),
    ("fk-steering", {"potential": "add"}),
    ("fk-steering", {"potential": "max"}),
    ("fk-steering", {"potential": "rt"}),
    ("tds", {}),
    ("unveil-exact", QUICK),
]
UNWEIGHED = [
    ("dcps", {"weights": False}),
    ("dpg", {"draws": 4}),
    ("eki", {}),
    ("enkg", {"updates": 1, "guidance": 0.3}),
    ("pmc", {}),
    ("pnp-dm", {"inner_steps": 4}),
    ("scg", {}),
]


@pytest.mark.parametrize("share", ["all", "some"])
@pytest.mark.parametrize("kind", [Barred, Nameless])
@pytest.mark.parametrize(("name", "options"), WEIGHED + UNWEIGHED)
def test_what_cannot_have_made_the_data_is_dropped_and_ends_the_run_if_it_is_all(name, options, kind, share):
    solver, noise = unveil.get_solver(name, **options), Barred(2.0, share=share)
    bars = noise.bars
    noise = Nameless(noise) if kind is Nameless else noise
    problem = Problem(PLANE.problem.y, PLANE.problem.operator, noise, value_range=(-1.0, 1.0))
    if solver.unfit(problem):
        pytest.skip("knows no noise but a Gaussian's")
    run = stream(problem, PLANE.prior, solver, samples=64, steps=12)
    states = list(run)
    assert all(bool(torch.isfinite(state.x).all()) for state in states)
    if share == "all":
        assert run.status is Status.DIVERGED
        for word in ["of 12", "samples=", *(["effective sample size"] if (name, options) in WEIGHED else [])]:
            assert word in run.reason
        return
    assert run.status is Status.DONE, run.reason
    if (name, options) in WEIGHED:
        result = unveil.solve(problem, PLANE.prior, solver, samples=64, steps=12)
        assert not bool(result.weights[0][bars(problem.operator(result.samples[0]))].any())
        assert bool(torch.isfinite(result.log_evidence).all())


# -- rewards -----------------------------------------------------------------------------------------------------------

TO_REWARD = {"das": {}, "fk-steering": {}, "tds": {}, "unveil-exact": QUICK}


@pytest.mark.parametrize("name", TO_REWARD)
def test_a_gaussian_prior_and_a_linear_reward_are_a_gaussian_moved(name):
    prior, towards, runs = PLANE.prior, torch.tensor([1.0, 1.0]), 8
    problem = Problem(torch.zeros(runs, 2), Identity(), Reward(lambda x: x @ towards), value_range=(-1.0, 1.0))
    solver, steps = unveil.get_solver(name, **TO_REWARD[name]), 12 if name == "unveil-exact" else 50
    result = unveil.solve(problem, prior, solver, samples=128, steps=steps, seed=list(range(runs)))
    shift = prior.covariance @ towards.double()  # log p + a x is Gaussian again, of the same width
    width = prior.covariance.diagonal().sqrt()
    error = (result.mean.double().mean(0) - prior.mean - shift) / width
    assert float(error.abs().max()) < 0.12  # without the reward 1
    assert float((result.std.mean(0) / width - 1).abs().max()) < 0.1
    ratio = (result.log_evidence - towards.double() @ (prior.mean + shift / 2)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / runs**0.5 + 0.01
    assert float(ratio.std()) < 0.5


def test_a_reward_that_torch_cannot_differentiate_is_enough_for_steering():
    problem = Problem(torch.zeros(1, 2), Identity(), Reward(lambda x: 2.0 * (x[:, 0] > 0.5)), value_range=(-1.0, 1.0))
    share = float((PLANE.prior.sample(20000, 0)[:, 0] > 0.5).double().mean())
    wanted = share * np.e**2 / (1 + share * (np.e**2 - 1))
    for solver in ("fk-steering", unveil.get_solver("unveil-exact", **{**QUICK, "langevins": 0})):
        result = unveil.solve(problem, PLANE.prior, solver, samples=512, steps=20)
        found = float((result.weights * (result.samples[..., 0] > 0.5)).sum())
        assert abs(found - wanted) < 0.1
    with pytest.raises(InputError, match="only evaluates"):
        unveil.solve(problem, PLANE.prior, "tds", samples=16, steps=4)


# -- black boxes ------------------------------------------------------------------------------------------------------


class BlackBox(Operator):
    """A program: numpy, one signal at a time, rounds to whole steps, and refuses to be differentiated."""

    in_shape = (2,)

    def __call__(self, x):
        rows = [np.round(4 * (row[0] + 0.5 * row[1])) / 4 for row in x.numpy()]  # raises if x carries a graph
        return torch.from_numpy(np.stack(rows)[:, None]).to(x)


BLACK_BOXES = [name for name in unveil.list_solvers() if unveil.get_solver(name).black_box]


def test_which_solvers_take_black_boxes():
    assert {"dpg", "eki", "enkg", "scg"} <= set(BLACK_BOXES)


@pytest.mark.parametrize("name", BLACK_BOXES)
def test_a_program_without_derivatives_is_operator_enough(name):
    A = BlackBox()
    y = torch.full((1, 1), 0.75)
    problem = Problem(y, A, Gaussian(0.1), value_range=(-1.0, 1.0))
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    result = unveil.solve(problem, PLANE.prior, solver, samples=16, steps=20)
    assert result.status is Status.DONE
    before = float((A(PLANE.prior.sample(200, 0)) - y).abs().mean())
    assert float((A(result.unweighted().samples[0]) - y).abs().mean()) < 0.5 * before
    with pytest.raises(RuntimeError):
        A(result.samples[0].requires_grad_(True))


def test_the_operator_sees_no_more_than_a_chunk_of_particles():
    class Counting(BlackBox):
        most = 0

        def __call__(self, x):
            Counting.most = max(Counting.most, len(x))
            return super().__call__(x)

    problem = Problem(torch.full((2, 1), 0.5), Counting(), Gaussian(0.1), value_range=(-1.0, 1.0))
    for name in ("eki", "enkg"):
        list(stream(problem, PLANE.prior, name, samples=8, steps=4, chunk=3))
    assert Counting.most == 3


def test_enkg_does_not_know_how_noisy_the_data_are():
    runs = []
    for sigma_y in (0.05, 0.5):
        problem = Problem(PLANE.problem.y, PLANE.problem.operator, Gaussian(sigma_y), value_range=(-1.0, 1.0))
        runs.append(unveil.solve(problem, PLANE.prior, "enkg", samples=8, steps=10).samples)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pmc", {"order": "dps"}),
        ("pmc", {"anneal": 2.0}),
        ("pmc", {"step_size": 2.0}),
        ("scg", {"candidates": 0}),
        ("scg", {"unguided": 2.0}),
        ("eki", {"updates": 0}),
        ("enkg", {"factor": 0}),
        ("enkg", {"unguided": 0.9}),
        ("dpg", {"draws": 1}),
    ],
)
def test_options_of_chains_and_ensembles_that_mean_nothing_are_refused(name, options):
    with pytest.raises(InputError, match=next(iter(options)) + "|order"):
        unveil.get_solver(name, **options)


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_the_density_of_the_data_in_single_precision_is_that_in_double(std):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = Problem.simulate(x, Blur(gaussian_kernel(std, 13).double()), 0.02).y
    found = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(y.to(dtype), Blur(gaussian_kernel(std, 13).to(dtype)), Gaussian(0.02))
        found.append(of_data(Run(problem, None, Schedule((1.0, 0.0)), Rng([(0, 0), (0, 1)]))))
    torch.testing.assert_close(*found, rtol=0, atol=0.01)  # of 1e5 nats; was off by 15


def test_particles_that_start_at_a_signal_are_weighed_alike_by_every_method():
    """That of ddsmc is weighed by psi in its first step; the others' starts were not (fps-smc: log p off by 0.2)."""
    runs, n, found = 8, 256, {}
    problem, start = PLANE.problem.rows(torch.zeros(runs, dtype=torch.long)), torch.tensor([-0.4, 0.6])
    for name in ("ddsmc", "fps-smc", "mcgdiff"):
        settings = {"samples": n, "steps": 60, "seed": list(range(runs)), "x_init": start, "sigma_start": 1.0}
        *_, end = stream(problem, PLANE.prior, name, **settings)
        log_mean = normalise(end.aux["log_weights"].view(runs, n))[1]
        found[name] = float((end.aux["log_evidence"].view(runs, n)[:, 0] + log_mean).mean())
    assert abs(found["fps-smc"] - found["ddsmc"]) < 0.1
    assert abs(found["mcgdiff"] - found["ddsmc"]) < 0.15


def test_resampling_waits_for_the_effective_sample_size():
    kinds = {}
    for threshold in (0.0, 0.5, 1.0):
        solver = unveil.get_solver("mcgdiff", threshold=threshold)
        result = unveil.solve(PLANE.problem, PLANE.prior, solver, samples=32, steps=20)
        kinds[threshold] = len(result.ancestors.unique())
    assert kinds[0.0] == 32 > kinds[0.5] > kinds[1.0]


@pytest.mark.parametrize(
    ("solver", "options", "word"),
    [
        ("tds", {"resampling": "bootstrap"}, "resampling"),
        ("tds", {"threshold": 2.0}, "threshold"),
        ("tds", {"order": 3}, "order"),
        ("tds", {"variance": "none"}, "variance"),
    ],
)
def test_options_that_mean_nothing_are_refused(solver, options, word):
    with pytest.raises(InputError, match=word):
        unveil.get_solver(solver, **options)


def test_methods_that_need_noise_name_one_that_does_not():
    clean = Problem(PLANE.problem.y, PLANE.problem.operator, 0.0, value_range=(-1.0, 1.0))
    assert "mcgdiff" in unveil.get_solver("tds").unfit(clean)
    assert unveil.get_solver("mcgdiff").unfit(clean) is None


@pytest.mark.parametrize(("steps", "right"), [(36, True), (8, False)])
def test_renoised_and_denoised_again_draws_stay_draws_of_the_prior(steps, right):
    """From far above the modes' distance, six times: a chain whose ends are not the prior's drifts to other modes."""
    cell, n, low = Cell(8, 1, 2), 4000, 0.09
    prior, (weights, means) = cell.prior(), cell.mixture()
    x = prior.sample(n, 1)
    for k in range(6):
        rng = Rng([(0, j) for j in range(n)], k).together(n)
        x = reverse(prior, x + 64 * rng.normal(x), x.new_full((n,), 64.0), low, steps, rng)
    mode = torch.cdist(x.double(), means).argmin(1)
    share = torch.bincount(mode, minlength=25) / n
    assert (0.5 * float((share - weights).abs().sum()) < 0.045) == right  # of exact draws 0.02 to 0.03
    assert (abs(float((x - means[mode]).std()) - 1) < 0.02) == right


def test_one_evaluation_of_a_reverse_diffusion_is_the_denoiser():
    prior = Cell(8, 1, 2).prior()
    x, top = prior.sample(3, 1), torch.tensor([1.0, 2.0, 9.0])
    there = reverse(prior, x, top, 0.09, 1, Rng([(0, j) for j in range(3)]))
    torch.testing.assert_close(there, prior.denoise(x, top))


@pytest.mark.parametrize("kind", ["spectral", "linear", "black box"])
def test_the_metric_of_langevin_moves_is_one_matrix(kind):
    """Applied, drawn from and measured by, it is (Q diag(1/v) Q^T + beta A^T A / sigma_y^2)^-1, made here densely."""
    A, rows, few = randn(3, 5, seed=1), 20000, 5
    spectral = Matrix(A)
    operator = {"spectral": spectral, "linear": Plain(spectral, (5,)), "black box": as_operator(torch.sin, (5,))}[kind]
    y = torch.zeros(rows + few, 5 if kind == "black box" else 3, dtype=torch.float64)
    problem = Problem(y, operator, Gaussian(0.5), shape=(5,))
    score = randn(rows + few, 5, seed=3) * torch.tensor([0.1, 1.0, 2.0, 5.0, 9.0], dtype=torch.float64)
    beta = torch.cat([torch.full((rows,), 0.2), torch.ones(few)]).double()
    u = randn(rows, 5, seed=5)
    Q = spectral.V(torch.eye(5, dtype=torch.float64)).T if kind == "spectral" else torch.eye(5, dtype=torch.float64)
    for part in (slice(0, rows), slice(rows, None)):  # two measurements, of many particles and of few
        some, n = problem.rows(part), len(y[part])
        metric = Metric(some, widths(untied(some, score[part]), n), beta[part])
        square = (score[part] @ Q).square().mean(0)
        inverse = Q @ torch.diag((n * square + PSEUDO * square.mean()) / (n + PSEUDO)) @ Q.T
        if kind != "black box":
            inverse = inverse + beta[part][0] * A.T @ A / 0.25
        torch.testing.assert_close(metric(u[:n]), torch.linalg.solve(inverse, u[:n].T).T, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(metric.norm2(u[:n]), ((u[:n] @ inverse) * u[:n]).sum(1))
        if n == rows:
            noise = white(some, u, Rng([(0, j) for j in range(n)]).together(n))
            drawn = metric.draw(*noise) @ torch.linalg.cholesky(inverse)
            assert float((torch.cov(drawn.T) - torch.eye(5)).abs().max()) < 0.04  # five times its standard error
