"""``tune``: optima that are known in closed form are found, estimates of errors are unbiased, and searches go on."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import unveil
from unveil.errors import InputError, NotCompatible, UnknownName
from unveil.noise import Gaussian, NoNoise, Poisson
from unveil.operators import Identity, Matrix
from unveil.priors import GaussianMixturePrior, GaussianPrior
from unveil.problem import Problem
from unveil.registry import names
from unveil.rng import single
from unveil.run import solve
from unveil.schedules import Schedule
from unveil.solvers import get_solver
from unveil.solvers.base import Solver
from unveil.solvers.limits import interval
from unveil.tuning import Range, read_tuned
from unveil.tuning.objectives import GSURE, Discrepancy, Images
from unveil.tuning.ranges import TUNABLE, WHOLE, ranges_of

V, SIGMA, N = 0.04, 0.15, 400
MIDDLE = torch.full((N,), 0.5)
PRIOR = GaussianPrior(MIDDLE, V)
SPEED = {"steps": 1, "trials": 16}


@dataclass(frozen=True)
class Ridge(Solver):
    """0.5 + k (y - 0.5) for y = x + n, with k = V / (V + lam sigma_y^2): the posterior mean at lam = 1."""

    clean: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1
    lam: float = 0.2
    jitter: float = 0.0
    worst: float = math.inf
    order: int = 1

    def __post_init__(self):
        if self.lam <= 0:
            raise InputError("ridge needs lam > 0")

    def schedule(self, prior, steps):
        return Schedule((1.0, 0.0))

    def step(self, state, run):
        if self.lam > self.worst:
            return state.next(state.x * math.nan, state.x0)
        x = run.problem.prox(torch.full_like(state.x, 0.5), V / self.lam)
        x = x + self.jitter * run.rng.normal(x)
        return state.next(x, x)


@pytest.fixture(scope="module")
def problem():
    return Problem.simulate(PRIOR.sample(1, seed=1), Identity(in_shape=(N,)), SIGMA, seed=3)


def lam_of(k):
    return V * (1 / float(k) - 1) / SIGMA**2


# -- what is known in closed form --------------------------------------------------------------------------------------


def test_the_discrepancy_principle_finds_its_weight(problem):
    found = unveil.tune(problem, PRIOR, Ridge(), ranges=["lam=0.02:20:log"], **SPEED)
    d = (problem.y - 0.5).norm()
    lam = lam_of(1 - SIGMA * N**0.5 / d)  # |y - x| = (1 - k) |y - 0.5| = sigma sqrt(n)
    assert found.solver.lam == pytest.approx(lam, rel=0.2)
    assert found.best["facts"]["chi-square / dof"] == pytest.approx(1, abs=0.1)
    assert found.best["value"] < 0.1 < found.default["value"]
    assert found.default["changed"] == {}


def test_gsure_finds_its_weight(problem):
    found = unveil.tune(problem, PRIOR, Ridge(), objective="gsure", ranges=["lam=0.02:20:log"], **SPEED)
    d2 = float((problem.y - 0.5).square().sum())
    k = 1 - SIGMA**2 * N / d2  # where (1 - k)^2 d2 + 2 sigma^2 k n is least
    assert found.solver.lam == pytest.approx(lam_of(k), rel=0.2)
    # the divergence of a linear map along signs is exact, and so is the estimate
    w = (0.25 / (0.25**2 + SIGMA**2)) * 0.25
    least = w**2 * ((1 - k) ** 2 * d2 + 2 * SIGMA**2 * k * N - SIGMA**2 * N) / N
    assert least <= found.best["value"] < least + 0.01 * SIGMA**2
    k = V / (V + 0.2 * SIGMA**2)
    value = w**2 * ((1 - k) ** 2 * d2 + 2 * SIGMA**2 * k * N - SIGMA**2 * N) / N
    assert found.default["value"] == pytest.approx(value, rel=1e-3)


def test_clean_signals_find_the_posterior_mean(problem):
    clean = PRIOR.sample(8, seed=9)
    found = unveil.tune(
        problem, PRIOR, Ridge(), objective="images", calibration=clean, score="mse", ranges=["lam=0.02:20:log"], **SPEED
    )
    d, truth = Images(problem, clean, "mse").problem.y - 0.5, clean.float() - 0.5
    k = (d * truth).sum() / d.square().sum()
    assert lam_of(k) == pytest.approx(1, rel=0.1)
    assert found.solver.lam == pytest.approx(lam_of(k), rel=0.25)
    least = float((k * d - truth).square().mean())
    assert least <= found.best["value"] < 1.02 * least


def test_a_solver_of_the_library(problem):
    # pigdm is exact for the variance of this prior, in units of [-1, 1]
    found = unveil.tune(
        problem, PRIOR, "pigdm", objective="images", calibration=PRIOR.sample(6, seed=9), score="crps", samples=8,
        ranges=["data_variance"], trials=14, steps=8,
    )  # fmt: skip
    assert found.solver.data_variance == pytest.approx(V / 0.25, rel=0.5)
    assert found.best["value"] < found.default["value"]


# -- GSURE -------------------------------------------------------------------------------------------------------------

MODES = GaussianMixturePrior([0.4, 0.6], [[0.1] * 6, [0.8, 0.7] * 3], torch.tensor([0.01, 0.02]))


@pytest.mark.parametrize("rows", [6, 4])
def test_gsure_is_the_squared_error_in_expectation(rows):
    """A solver that is not linear in y, over many draws of the noise: the paired difference has mean zero."""
    g = torch.Generator().manual_seed(0)
    A = torch.randn(rows, 6, generator=g, dtype=torch.float64) * torch.logspace(0, -1.5, rows)[:, None]
    x, sigma, draws = torch.tensor([[0.7, 0.3, 0.5, 0.6, 0.4, 0.8]]).double(), 0.15, 4000
    problem = Problem.simulate(x.expand(draws, -1).contiguous(), Matrix(A), sigma, seed=5)
    objective = GSURE(problem, probes=4)
    result = solve(objective.problem, MODES, get_solver("pigdm", eta=0.0), steps=6)
    estimates = objective.risks(result)
    h = result.mean[:draws]
    W = torch.linalg.solve(A.T @ A + sigma**2 / 0.25**2 * torch.eye(6), A.T)
    true = ((h - x) @ (W @ A).T).square().sum(1) / 6
    gap = estimates - true
    error = float(gap.std()) / draws**0.5
    assert abs(float(gap.mean())) < 3 * error
    assert error < 0.1 * float(true.mean())
    # and without the divergence it would be far off
    misfit = ((h @ A.T - problem.y) @ W.T).square().sum(1) / 6 - sigma**2 * float((W**2).sum()) / 6
    assert abs(float((misfit - true).mean())) > 5 * error


def test_gsure_of_complex_data():
    operator = unveil.example_operator("fourier")
    x = 0.5 + 0.2 * single(0, 1).normal(torch.empty(1, *operator.in_shape))
    problem = Problem.simulate(x.expand(300, *x.shape[1:]).contiguous(), operator, 0.2, seed=2)
    assert problem.y.is_complex()
    objective = GSURE(problem)
    result = solve(objective.problem, GaussianPrior(torch.full(operator.in_shape, 0.5), V), Ridge(lam=1.0))
    h = result.mean[:300]
    true = problem.gain(operator(h) - operator(x), 0.25**2).flatten(1).square().mean(1)
    gap = objective.risks(result) - true
    assert abs(float(gap.mean())) < 3 * float(gap.std()) / 300**0.5 < 0.15 * float(true.mean())


def test_gsure_refuses_what_it_does_not_hold_for(problem):
    y = torch.rand(1, 4)
    for operator, noise, solver, message in (
        (unveil.example_operator("clip"), Gaussian(0.1), "dps", "linear operators only"),
        (Identity(in_shape=(4,)), NoNoise(), "dps", "sigma_y > 0 only"),
        (Identity(in_shape=(4,)), Poisson(10.0), "dps", "sigma_y > 0 only"),
    ):
        data = y if operator.in_shape == (4,) else operator(torch.rand(1, *operator.in_shape))
        with pytest.raises(InputError, match=message):
            unveil.tune(Problem(data, operator, noise), PRIOR, solver, objective="gsure")
    with pytest.raises(NotCompatible, match="resamples particles"):
        unveil.tune(problem, PRIOR, "tds", objective="gsure", samples=4)
    with pytest.raises(InputError, match="at least 1 probe"):
        unveil.tune(problem, PRIOR, Ridge(), objective="gsure", probes=0)


# -- the discrepancy principle is not met by noise ---------------------------------------------------------------------


def test_noise_on_top_is_not_mistaken_for_the_noise_of_the_data():
    """Both signals are as far from the data as the noise: the prior tells the right one from the one with its noise."""
    n = 256
    variances = torch.logspace(-1, -5, n)
    prior = GaussianPrior(torch.full((n,), 0.5), variances)
    x = prior.sample(1, seed=0)
    problem = Problem.simulate(x, Identity(in_shape=(n,)), 0.05, seed=1)
    judge = Discrepancy(problem)
    jittered = problem.y + 0.05 * single(4, 1).normal(problem.y)
    assert judge.excess(x, prior) < 0.02
    assert judge.excess(prior.posterior(problem).sample(1, seed=2), prior) < 0.02
    assert judge.excess(jittered, prior) > 0.5
    base = solve(problem, prior, Ridge())
    values = {}
    for name, samples in (("right", x), ("jittered", jittered)):
        chi2 = (samples - problem.y).square().mean() / 0.05**2
        result = replace(base, samples=samples[:, None].float(), misfit=chi2.reshape(1, 1))
        values[name], facts = judge(result, prior)
        assert facts["chi-square / dof"] == pytest.approx(1, abs=0.2)
    assert values["right"] + 0.3 < values["jittered"]


def test_the_discrepancy_needs_noise():
    with pytest.raises(InputError, match="states none"):
        unveil.tune(Problem(torch.rand(1, 4), Identity(in_shape=(4,)), 0), PRIOR, "dps")
    counts = Problem(torch.rand(1, 4), Identity(in_shape=(4,)), Poisson(50.0))
    assert Discrepancy(counts).problem is counts


# -- searching ---------------------------------------------------------------------------------------------------------


def strip(found):
    return [{k: v for k, v in t.items() if k != "seconds"} for t in found.trials]


def test_a_search_goes_on_to_the_same_trials(problem, tmp_path):
    path = tmp_path / "trials.jsonl"
    words = {"ranges": ["lam=0.02:20:log", "order=1:3"], "steps": 1}
    whole = unveil.tune(problem, PRIOR, Ridge(worst=2.0), trials=10, **words)
    assert {t["status"].partition(":")[0] for t in whole.trials} == {"DONE", "DIVERGED"}
    assert {type(t["changed"]["order"]) for t in whole.trials[1:]} == {int}

    def stop(row, so_far):
        if row["trial"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unveil.tune(problem, PRIOR, Ridge(worst=2.0), trials=10, path=path, on_trial=stop, **words)
    assert len(path.read_text().splitlines()) == 8
    with open(path, "a") as file:
        file.write('{"trial": 7, "chan')  # the machine was switched off
    seen = []
    again = unveil.tune(
        problem, PRIOR, Ridge(worst=2.0), trials=10, path=path, on_trial=lambda row, _: seen.append(row), **words
    )
    assert [row["trial"] for row in seen] == [7, 8, 9]
    assert strip(again) == strip(whole)
    assert again.best == min((t for t in again.trials if t["value"] is not None), key=lambda t: t["value"])
    before = path.read_text()
    fewer = unveil.tune(problem, PRIOR, Ridge(worst=2.0), trials=5, path=path, **words)
    assert (path.read_text(), len(fewer.trials)) == (before, 10)
    with pytest.raises(InputError, match=r"holds a run with other settings \(seed: 0, not 1\): give another file"):
        unveil.tune(problem, PRIOR, Ridge(worst=2.0), trials=10, path=path, seed=1, **words)
    path.write_text(json.dumps({"trial": 0}) + "\n")
    with pytest.raises(InputError, match="does not hold trials of unveil tune"):
        unveil.tune(problem, PRIOR, Ridge(worst=2.0), trials=10, path=path, **words)


def test_the_result_is_never_worse_than_the_default(problem):
    d = (problem.y - 0.5).norm()
    best = Ridge(lam=lam_of(1 - SIGMA * N**0.5 / d))
    found = unveil.tune(problem, PRIOR, best, ranges=["lam=5:20"], steps=1, trials=6)
    assert found.best is found.default
    assert found.solver == best
    assert str(found).splitlines()[-1] == "none of 6 trials is better than the default by more than chance (0.14)"
    # the noise's own chi-square differs from 1 by as much as this default's
    near = Ridge(lam=1.1 * best.lam)
    found = unveil.tune(problem, PRIOR, near, ranges=[f"lam={0.95 * best.lam}:{1.05 * best.lam}"], steps=1, trials=4)
    assert min(t["value"] for t in found.trials) < found.default["value"] < found.scatter
    assert found.solver == near
    with pytest.raises(InputError, match="none of 3 trials came to an end: DIVERGED"):
        unveil.tune(problem, PRIOR, Ridge(worst=0.01), ranges=["lam=0.1:1"], steps=1, trials=3)


def test_the_table_says_what_changed(problem):
    found = unveil.tune(problem, PRIOR, Ridge(), ranges=["lam=0.02:20:log"], steps=1, trials=8)
    lines = str(found).splitlines()
    assert lines[0].split() == ["default", "best", "searched"]
    assert lines[1].split() == ["lam", "0.2", f"{found.solver.lam:.4g}", "0.02:20:log"]
    assert lines[-2].split()[:2] == ["objective", "(discrepancy)"]
    assert lines[-1] == f"trial {found.best['trial']} of 7 is the best"


# -- ranges ------------------------------------------------------------------------------------------------------------


def test_every_solver_takes_its_declared_ranges():
    assert set(TUNABLE) <= set(names("solver"))
    for name in names("solver"):
        solver = get_solver(name)
        if not TUNABLE.get(name, True):
            with pytest.raises(InputError, match=f"{name} has no option that is tuned unasked"):
                ranges_of(solver)
            continue
        found = ranges_of(solver)
        assert set(found) == set(TUNABLE.get(name, found)), name
        for option, span in found.items():
            value = getattr(solver, option)
            assert value is None or value in span
            assert span.low < span.high


def test_what_an_option_takes_is_said_once(monkeypatch):
    for name in names("solver"):
        solver = get_solver(name)
        for option, declared in TUNABLE.get(name, {}).items():
            low, high = interval(solver, option)
            assert declared != (low, high), f"{name} {option}: WHOLE"
            if isinstance(declared, tuple):
                assert low <= declared[0] < declared[1] <= high, (name, option)

    @dataclass(frozen=True)
    class Mine(Solver):
        name: ClassVar[str] = "mine"
        limits: ClassVar[dict[str, str]] = {"share": "[0, 0.5]", "rate": "[0.02, 3]"}
        share: float | None = None
        rate: float = 0.4

    assert ranges_of(Mine()) == {"rate": Range(0.04, 3.0, log=True)}  # ten times 0.4, and no more than it takes
    monkeypatch.setitem(TUNABLE, "mine", {"share": WHOLE, "rate": 30.0})
    assert ranges_of(Mine()) == {"share": Range(0.0, 0.5), "rate": Range(0.02, 3.0, log=True)}


def test_ranges_in_words():
    solver = get_solver("red-diff")
    words = ["lam", "lr=0.01:1:log", "weighting=linear|sqrt", "sigma-x0=0:0.5"]
    assert ranges_of(solver, words) == {
        "lam": Range(0.025, 2.5, log=True),
        "lr": Range(0.01, 1.0, log=True),
        "weighting": Range(choices=("linear", "sqrt")),
        "sigma_x0": Range(0.0, 0.5),
    }
    assert ranges_of(get_solver("dds"), ["iterations=2:9"]) == {"iterations": Range(2, 9, whole=True)}
    # around what the solver has, and a range that does not hold it is widened
    assert ranges_of(get_solver("dps", zeta=5.0)) == {"zeta": Range(0.5, 50.0, log=True)}
    assert ranges_of(get_solver("projdiff", lr=4.0)) == {"lr": Range(0.1, 4.0)}
    # a solver that is not in the table: its positive numbers
    assert ranges_of(Ridge()) == {"lam": Range(0.2 / 10, 2.0, log=True)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lamm"], "did you mean lam"),
        (["lam=1"], "a range is lam=LOW:HIGH"),
        (["lam=1:2:lin"], "a range is lam=LOW:HIGH"),
        (["lam=a:b"], "a range is lam=LOW:HIGH"),
        (["lam=2:1"], "needs LOW < HIGH"),
        (["lam=0:1:log"], "needs LOW > 0"),
        (["lam=-1:1"], "the range -1:1 of lam is too wide: ridge needs lam > 0"),
        (["jitter"], "say where to look for jitter"),
        (["lam=1:inf"], "needs LOW < HIGH"),
        ([], "nothing to tune"),
    ],
)
def test_bad_ranges(problem, words, message):
    with pytest.raises(InputError, match=message):
        unveil.tune(problem, PRIOR, Ridge(), ranges=words)


def test_bad_input(problem, monkeypatch):
    clean = PRIOR.sample(2, seed=0)
    for words, error, message in (
        ({"objective": "gsur"}, UnknownName, "did you mean gsure"),
        ({"objective": "images"}, InputError, "give clean signals"),
        ({"calibration": clean}, InputError, "for no other"),
        ({"objective": "images", "calibration": clean[:, :7]}, InputError, r"a tensor \[N, 400\]"),
        ({"objective": "images", "calibration": clean, "score": "snr"}, UnknownName, "unknown score"),
        ({"objective": "images", "calibration": clean, "score": "crps"}, NotCompatible, "at least 2 are needed"),
        ({"trials": 0}, InputError, "trials must be at least 1"),
        ({"samples": 0}, InputError, "samples must be at least 1"),
    ):
        with pytest.raises(error, match=message):
            unveil.tune(problem, PRIOR, Ridge(), **words)
    with pytest.raises(InputError, match="auto has no options of its own"):
        unveil.tune(problem, PRIOR, "auto")
    with pytest.raises(InputError, match="has no name for a recipe"):
        unveil.tune(problem, PRIOR, Ridge(), trials=1).save("recipe.toml")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install 'unveil\[tune\]'"):
        unveil.tune(problem, PRIOR, Ridge())


# -- clean signals, recipes --------------------------------------------------------------------------------------------


def test_scores_of_clean_signals(problem, monkeypatch):
    clean = PRIOR.sample(3, seed=0).clamp(0, 1)
    base = solve(Images(problem, clean).problem, PRIOR, Ridge(), samples=2)
    shift = torch.tensor([0.1, 0.3])[None, :, None]
    result = replace(base, samples=clean[:, None].float() + shift)
    value, facts = Images(problem, clean, "mse")(result, PRIOR)
    assert value == pytest.approx(0.2**2, rel=1e-4)
    assert facts == {"mse": value}
    # |x - t| on average, less half the mean distance of two samples
    assert Images(problem, clean, "crps")(result, PRIOR)[0] == pytest.approx(0.2 - 0.1, rel=1e-4)
    own = Images(problem, clean, lambda samples, truth: (samples[:, 1] - truth).abs().mean(1))
    assert own(result, PRIOR)[0] == pytest.approx(0.3, rel=1e-4)
    exact = replace(base, samples=clean[:, None].float() - 0.5e-3)
    value, facts = Images(problem, clean)(exact, PRIOR)
    assert -value == facts["PSNR (dB)"] == pytest.approx(66.02, abs=0.3)
    monkeypatch.setattr("unveil.perceptual.perceptual", lambda: None)
    with pytest.raises(NotCompatible, match="no weights of a perceptual distance"):
        Images(problem, clean, "perceptual")


def test_a_recipe_comes_back(tmp_path):
    problem = Problem.simulate(torch.full((1, 3, 8, 8), 0.5), Identity(in_shape=(3, 8, 8)), 0.1)
    prior = GaussianPrior(torch.full((3, 8, 8), 0.5), 0.04)
    for name, option in (("ddrm", "eta_b"), ("diffpir", "lam"), ("red-diff", "lam")):
        found = unveil.tune(problem, prior, name, ranges=[option], trials=3, steps=2, sigma_start=0.5)
        path = found.save(tmp_path / f"{name}.toml")
        tuned = read_tuned(path)
        assert tuned.solver == found.solver  # None, infinite and tuples included
        assert (tuned.steps, tuned.sigma_start) == (2, 0.5)
    assert [p.suffix for p in tmp_path.iterdir()] == [".toml"] * 3
    for text, message in (("[tuned]\nsteps = 3\n", "damaged"), ('[tuned]\nsolver = "ddr"\noptions = {}\n', "damaged")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_tuned(path)
    path.write_text("[run]\n")
    assert read_tuned(path) is None
    with pytest.raises(InputError, match="is no recipe of unveil tune: choose another name"):
        found.save(path)
    with pytest.raises(InputError, match=r"a recipe is a .toml file"):
        found.save(tmp_path / "recipe.txt")
