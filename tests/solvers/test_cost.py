"""What solvers cost, counted: operations and waits per network call, graphs, gradients of weights, live memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import unveil
from unveil import Gaussian, Poisson
from unveil.bench.counting import Tally, count_steps
from unveil.numerics.resampling import SCHEMES
from unveil.operators import Blur, Downsample, Identity, Inpainting, gaussian_kernel
from unveil.operators.base import Linear, Operator, Spectral
from unveil.priors.base import Prior, expand
from unveil.priors.networks.unet import UNet
from unveil.solvers.base import Solver
from unveil.solvers.variational import FITTED

LIMIT = 50
"""Image-sized operations per network call, outside inner loops."""

CHAINS = {
    "aps": {"flow_draws", "flow_gradient"},
    "davi": {"both_gradients", "generate"},
    "dcdp": {"descend"},
    "dds": {"conjugate_gradients"},
    "dpg": {"policy"},
    "dpps": {"best_noise"},
    "eki": {"assimilated"},
    "flair": {"to_data"},
    "lgd-mc": {"averaged_gradient"},
    "mmps": {"conjugate_gradients"},
    "peng": {"conjugate_gradients", "hutchinson_diagonal"},
    "unveil-exact": {"_langevin", "_renoise"},
    "resample": {"descend"},
    "score-prior": {"flow_draws", "flow_gradient"},
    "score-prior-surrogate": {"flow_draws", "flow_gradient"},
}
"""The solvers that have inner loops on operators with a spectral form, and which."""

COUNTED = {
    "aps": {"batch": 16, "measurements": 4, "prior_steps": 5},
    "davi": {"batch": 16, "measurements": 4, "prior_steps": 5},
    "dpg": {"draws": 3},
    "score-prior": {"batch": 8, "ode_steps": 2},
    "score-prior-surrogate": {"batch": 64},
    "unveil-exact": {"prior_steps": 3, "oversampling": 2, "inner_steps": 2, "renoisings": 1, "langevins": 1},
}
"""What the count of operations per network call can do without."""

SHORT = {
    "aps": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2, "couplings": 1},
    "daps": {"inner_steps": 2},
    "davi": {"batch": 4, "measurements": 2, "prior_steps": 2, "hidden": 2},
    "dpg": {"draws": 3},
    "pnp-dm": {"inner_steps": 2},
    "resample": {"every": 1},
    "score-prior": {"batch": 2, "couplings": 1, "hidden": 2, "ode_steps": 1},
    "score-prior-surrogate": {"batch": 2, "couplings": 1, "hidden": 2},
    "unveil-exact": COUNTED["unveil-exact"],
}
"""Loops that tests of gradients and memory need not run at full length."""


class Cheap(nn.Module):
    """A network of one operation, so that what is counted is the solver's, the adapter's and the operator's."""

    def forward(self, x, time):
        return 0.1 * x


def edm(network):
    prior = unveil.as_prior(network, predicts="edm", value_range=(-1, 1), shape=(3, None, None))
    return prior.in_range(0, 1)


def problems():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 16, 16, generator=g)
    mask = torch.rand(3, 16, 16, generator=g) > 0.4  # as large as an image, so that work on it counts too
    found = {
        "mask": (Inpainting(mask), 0.05),
        "mask without noise": (Inpainting(mask), 0.0),
        "blur": (Blur(gaussian_kernel(1.0, 5)), 0.05),
        "pooling": (Downsample(4), 0.05),
        "bicubic": (Downsample(4, "bicubic"), 0.05),
    }
    return {name: unveil.Problem.simulate(x, A, sigma_y) for name, (A, sigma_y) in found.items()}


def fitting(solver):
    """A mask, with noise if the solver takes it."""
    return problems()["mask without noise" if "noiseless" in solver.needs else "mask"]


@pytest.mark.parametrize("task", problems())
@pytest.mark.parametrize("name", unveil.list_solvers())
def test_operations_and_waits_per_network_call(name, task):
    solver, problem = unveil.get_solver(name, **COUNTED.get(name, {})), problems()[task]
    if solver.unfit(problem) is not None:
        pytest.skip(solver.unfit(problem))
    loops = set()
    for step in count_steps(problem, edm(Cheap()), solver, 3):
        assert step.forward >= 1
        assert step.tally.syncs == []
        assert step.ops_per_call <= LIMIT, step.tally.ops.most_common()
        loops |= set(step.tally.inner)
    if problem.noise.sigma or loops:  # without noise some need none
        assert loops == CHAINS.get(name, set())


def test_the_counter_counts():
    x = torch.ones(2, 8)
    tally = Tally(8)
    with tally:
        y = x * 2 + 1  # two
        y.view(-1)[3:].unsqueeze(0)  # none
        torch.empty_like(y)  # none
        y[:, :2].add_(1)  # a view of 2 values per row and nothing image-sized but its result, of 4 values: none
        y.sum(1)  # one: it reads all
        torch.fft.rfft(y)  # one
    assert sum(tally.ops.values()) == 4, tally.ops
    with Tally(17) as tally:
        _ = x * 2  # too small
    assert not tally.ops


def test_loops_are_told_apart():
    from unveil.numerics.cg import cg
    from unveil.numerics.mcmc import langevin
    from unveil.rng import single

    b = torch.ones(1, 8)
    tally = Tally(8)
    with tally:
        cg(lambda v: 2 * v, b, steps=3)
        langevin(b, lambda v: cg(lambda u: u, v, steps=1), 0.1, 2, single(0))
        _ = b + 1
    assert dict(tally.ops) == {"add": 1}
    assert set(tally.inner) == {"conjugate_gradients", "langevin"}  # a loop in a loop is the outer one's
    with tally:
        _ = b + 1
    assert tally.ops["add"] == 2


def test_a_step_with_too_many_operations_is_seen():
    @dataclass(frozen=True)
    class Busy(Solver):
        """Does the same thing fifty times."""

        def step(self, state, run):
            x = run.prior.denoise(state.x, run.schedule.sigmas[state.i])
            for _ in range(LIMIT):
                x = x + 1
            return state.next(x, x)

    steps = count_steps(problems()["mask"], edm(Cheap()), Busy(), 2)
    assert all(step.ops_per_call > LIMIT for step in steps)


# -- gradients --------------------------------------------------------------------------------------------------------


class Watching(nn.Module):
    """A small network that notes whether its evaluations could grow a graph, and what they hold on to."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.graphs = []

    def forward(self, x, time):
        out = self.body(x)
        self.graphs.append(out.requires_grad)
        return out


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_weights_never_receive_gradients_and_graphs_are_grown_only_for_a_vjp(name):
    network = Watching()
    prior = edm(network)
    assert not any(p.requires_grad for p in network.parameters())
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    result = unveil.solve(fitting(solver), prior, solver, samples=solver.particles, steps=3)
    assert network.graphs
    assert any(network.graphs) == solver.gradient
    assert not result.samples.requires_grad
    # not even when someone else has turned them on again, to train the network
    network.requires_grad_(True)
    network.graphs.clear()
    unveil.solve(fitting(solver), prior, solver, samples=solver.particles, steps=3)
    assert all(p.grad is None for p in network.parameters())
    assert any(network.graphs) == solver.gradient


# -- memory -----------------------------------------------------------------------------------------------------------


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive among those made while it is active, and their peak. Views are free."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for storage in self.storages((args, kwargs)):
            self.known[storage] = None  # it was there before
        out = func(*args, **(kwargs or {}))
        for storage in self.storages(out):
            self.known[storage] = None
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def storages(self, tree):
        for t in tree_leaves(tree):
            if isinstance(t, torch.Tensor) and t.untyped_storage() not in self.known:
                yield t.untyped_storage()

    def _free(self, size):
        self.now -= size


def peak_of(function):
    live = Live()
    with live:
        result = function()
    del result
    return live.peak


def test_the_meter_of_memory():
    def three_then_one():
        a = torch.zeros(1000)
        b = a + 1
        c = a.view(10, 100) + b.view(10, 100)
        del a, b
        return c * 2

    assert peak_of(three_then_one) == 3 * 4000
    before = torch.zeros(1000)
    assert peak_of(lambda: before[10:].view(99, 10)) == 0
    assert peak_of(lambda: before + before) == 4000


def big_case(solver=None):
    torch.manual_seed(0)
    network = UNet(widths=(16, 32), blocks=1)
    sigma_y = 0.0 if solver is not None and "noiseless" in solver.needs else 0.05
    problem = unveil.Problem.simulate(torch.rand(1, 3, 64, 64), Inpainting(torch.rand(64, 64) > 0.5), sigma_y)
    prior = edm(network)
    x = torch.rand(1, 3, 64, 64)
    state = x.numel() * x.element_size()
    with torch.no_grad():
        prior.denoise(x, 1.0)
        forward = peak_of(lambda: prior.denoise(x + 0, 1.0))  # with its input
    return problem, prior, forward, state


@pytest.mark.parametrize("options", [{}, {"sigma_x0": 0.01}, {"data": "likelihood"}])
def test_red_diff_peaks_at_one_forward_and_five_states(options):
    problem, prior, forward, state = big_case()
    solver = unveil.get_solver("red-diff", **options)
    peak = peak_of(lambda: unveil.solve(problem, prior, solver, steps=4))
    assert forward > 10 * state, "the network is too small for the test to mean anything"
    assert peak <= forward + 5 * state, (peak - forward) / state


# those that learn hold a batch of draws, whatever the number of samples
@pytest.mark.parametrize(
    "name", [n for n in unveil.list_solvers() if not unveil.get_solver(n).gradient and n not in FITTED]
)
def test_solvers_without_a_vjp_need_little_beside_one_forward(name):
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    problem, prior, forward, state = big_case(solver)
    n = solver.particles
    peak = peak_of(lambda: unveil.solve(problem, prior, solver, samples=n, chunk=1, steps=3))
    assert peak <= forward + 10 * n * state + 4096, (peak - forward) / state  # beside states, some numbers per particle


@pytest.mark.parametrize("name", unveil.list_solvers())
def test_memory_does_not_grow_with_the_steps(name):
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    problem, prior = fitting(solver), edm(Cheap())

    def peak(steps):
        return peak_of(lambda: unveil.solve(problem, prior, solver, samples=solver.particles, steps=steps))

    few, many = peak(5), peak(25)
    assert many <= few + problem.y.nbytes / 2


# -- particles --------------------------------------------------------------------------------------------------------

PARTICLES = [n for n in unveil.list_solvers() if unveil.get_solver(n).family == "smc"]
VARIANTS = [(n, {}) for n in PARTICLES] + [
    ("tds", {"variance": "dps"}),
    ("dcps", {"weights": False}),
    ("fk-steering", {"data_variance": 0.0}),
    ("fps-smc", {"path": True}),
    ("unveil-exact", {"renoisings": 0, "langevins": 2}),
]
WIDE = 40
"""Signals that the operators below hold beside their argument, as those of instruments do (coils, rays)."""


class Rows:
    """The most rows seen at a time, by what saw them."""

    def __init__(self):
        self.most = {}
        self.graphs = 0

    def see(self, what, x):
        self.most[what] = max(self.most.get(what, 0), x.shape[0])
        return x.unsqueeze(-1).expand(*x.shape, WIDE).contiguous().mean(-1)


class WatchedMask(Spectral):
    """A mask that notes the rows it sees, and needs much room."""

    def __init__(self, rows):
        self.mask, self.rows = torch.arange(3 * 8 * 8).reshape(3, 8, 8) % 3 > 0, rows
        self.in_shape = (3, 8, 8)
        self.measured = self.mask.float()

    def s(self, c):
        return self.mask.to(c)

    def Vt(self, x):
        return self.rows.see("Vt", x)

    def V(self, c):
        return self.rows.see("V", c)

    def Ut(self, y):
        return self.rows.see("Ut", y) * self.mask

    def U(self, c):
        return self.rows.see("U", c) * self.mask


class WatchedLinear(Linear):
    """The same mask, whose spectral form nobody knows."""

    def __init__(self, rows):
        self.mask, self.rows, self.in_shape = WatchedMask(rows).mask, rows, (3, 8, 8)

    def __call__(self, x):
        return self.rows.see("forward", x) * self.mask

    def adjoint(self, y):
        return self.rows.see("adjoint", y) * self.mask


class WatchedCurve(Operator):
    """A response that is not linear."""

    def __init__(self, rows):
        self.rows, self.in_shape = rows, (3, 8, 8)

    def __call__(self, x):
        return torch.tanh(2 * self.rows.see("forward", x))


class WatchedNoise(Gaussian):
    """White noise that notes the rows it is asked of."""

    rows = None

    def log_prob(self, y, clean, measured=None):
        self.rows.see("log_prob", clean)
        return super().log_prob(y, clean, measured)

    def score(self, y, clean, measured=None):
        self.rows.see("score", clean)
        return super().score(y, clean, measured)


class WatchedPrior(Prior):
    """The prior N(1/2, 1), which notes the rows it sees, and of how many graphs are alive."""

    shape, value_range, sigma_range = (3, 8, 8), (0.0, 1.0), (0.002, 80.0)

    def __init__(self, rows):
        self.rows, self.now = rows, 0

    def denoise(self, x, sigma):
        self.rows.most["denoise"] = max(self.rows.most.get("denoise", 0), x.shape[0])
        return 0.5 + (x - 0.5) / (1 + expand(sigma, x) ** 2)

    def vjp(self, x, sigma):
        x0 = self.denoise(x, sigma)
        self.now += x.shape[0]
        self.rows.graphs = max(self.rows.graphs, self.now)

        def pullback(v):
            return v / (1 + expand(sigma, v) ** 2)

        weakref.finalize(pullback, self.drop, x.shape[0])
        return x0, pullback

    def drop(self, n):
        self.now -= n


def watched(solver, kind):
    """A problem of one measurement that the solver takes, its prior, and what notes the rows; None if there is none."""
    rows = Rows()
    noise = WatchedNoise(0.3)
    object.__setattr__(noise, "rows", rows)
    if "noiseless" in solver.needs:
        noise = 0.0
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    problem = unveil.Problem.simulate(x, kind(rows), noise)
    return (problem, WatchedPrior(rows), rows) if solver.unfit(problem) is None else None


@pytest.mark.parametrize("kind", [WatchedMask, WatchedLinear, WatchedCurve])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_no_more_than_a_chunk_of_particles_is_seen_at_a_time(name, options, kind):
    solver = unveil.get_solver(name, **{**SHORT.get(name, {}), **options})
    found = watched(solver, kind)
    if found is None:
        pytest.skip(f"{name} does not take it")
    problem, prior, rows = found

    def run(chunk):
        rows.most.clear()
        rows.graphs = 0
        return unveil.solve(problem, prior, solver, samples=8, steps=4, chunk=chunk).samples

    together = run(8)
    # of a sample of dpg the operator sees all the draws around it at once
    draws = solver.draws if name == "dpg" else 1
    assert max(rows.most.values()) == 8 * draws  # all can be seen
    apart = run(2)
    assert rows.most["denoise"] == 2
    assert rows.graphs == (2 if solver.gradient else 0)
    assert max(rows.most.values()) == 2 * draws, rows.most
    assert torch.equal(apart, together)


class Placeholders(Linear):
    """A linear operator without a spectral form, a part of whose measurements are placeholders."""

    def __init__(self, rows):
        self.mask, self.in_shape = WatchedMask(rows).mask, (3, 8, 8)
        self.measured = self.mask.float()

    def __call__(self, x):
        return x.roll(1, -1) * self.mask

    def adjoint(self, y):
        return (y * self.mask).roll(-1, -1)


def particle_problems():
    """A problem of every kind that the particle methods treat in their own way."""
    mask, x = WatchedMask(Rows()), torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kinds = {
        "spectral": (mask, 0.3),
        "spectral without noise": (mask, 0.0),
        "placeholders": (Placeholders(Rows()), 0.3),
        "curve": (WatchedCurve(Rows()), 0.3),
        "photons": (mask, Poisson(30.0)),
        "photons of a curve": (WatchedCurve(Rows()), Poisson(30.0)),
    }
    found = {name: unveil.Problem.simulate(x, operator, noise) for name, (operator, noise) in kinds.items()}
    reward = unveil.Reward(lambda x: -x.flatten(1).square().sum(1))
    return found | {"reward": unveil.Problem(torch.zeros(2, 3, 8, 8), Identity(), reward)}


UNHEARD = [
    *VARIANTS,
    *(("tds", {"resampling": scheme}) for scheme in SCHEMES),
    *(("tds", {"threshold": share}) for share in (0.0, 1.0)),
    *(("tds", {"variance": variance}) for variance in ("sigma", "step")),
    *(("fk-steering", {"potential": potential}) for potential in ("max", "add", "rt")),
    ("das", {"alpha": 2.0, "capped": False}),
    ("ddsmc", {"order": 1}),
    ("pmc", {"order": "pnp"}),
]
"""Ways through the particle methods: every scheme of resampling, due at every step, at none or at some."""


@pytest.mark.parametrize("kind", particle_problems())
@pytest.mark.parametrize(("name", "options"), UNHEARD)
def test_no_step_of_particles_waits_for_the_device(name, options, kind):
    solver, problem = unveil.get_solver(name, **{**SHORT.get(name, {}), **options}), particle_problems()[kind]
    if solver.unfit(problem) is not None:
        pytest.skip(solver.unfit(problem))
    for step in count_steps(problem, WatchedPrior(Rows()), solver, 3):
        assert step.tally.syncs == []


class Detectors(Operator):
    """Many measurements of a signal."""

    in_shape = (3, 8, 8)

    def __init__(self, rows):
        del rows

    def __call__(self, x):
        return torch.tanh(x.repeat(1, WIDE, 1, 1))


@pytest.mark.parametrize("name", ["fk-steering", "tds", "unveil-exact"])
def test_particles_share_the_data_however_many(name):
    solver = unveil.get_solver(name, **SHORT.get(name, {}))
    problem, prior, _ = watched(solver, Detectors)
    few, many = (
        peak_of(lambda n=n: unveil.solve(problem, prior, solver, samples=n, steps=3, chunk=2)) for n in (12, 24)
    )
    assert (many - few) / 12 < 15 * 3 * 8 * 8 * 4


@pytest.mark.parametrize("kind", [WatchedMask, WatchedCurve])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_particle_more_takes_a_few_states_more(name, options, kind):
    solver = unveil.get_solver(name, **{**SHORT.get(name, {}), **options})
    found = watched(solver, kind)
    if found is None:
        pytest.skip(f"{name} does not take it")
    problem, prior, _ = found

    def peak(particles):
        return peak_of(lambda: unveil.solve(problem, prior, solver, samples=particles, steps=4, chunk=2))

    few, many, state = 12, 24, 3 * 8 * 8 * 4
    peak(4)  # what is kept is made
    states = (peak(many) - peak(few)) / (many - few) / state
    assert 2 < states < 15, f"{states:.1f} states for a particle, of which one in the operator has {WIDE}"
