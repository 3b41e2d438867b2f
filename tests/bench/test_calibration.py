"""Calibration of solvers of which the truth is known: exact ones, wide ones, narrow ones, ones beside the point."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from unveil.bench.calibration import Calibration, calibrate, chi_square, draw_prior
from unveil.errors import InputError
from unveil.operators import Identity, Matrix
from unveil.priors import GaussianPrior
from unveil.priors.base import Prior
from unveil.solvers import get_solver
from unveil.solvers.base import Solver

N = 6
PRIOR = GaussianPrior(torch.zeros(N), 1.0, value_range=(-1.0, 1.0))
SIGMA = 0.7


@dataclass(frozen=True)
class Drawn(Solver):
    """Draws of N(y / (1 + sigma^2) + shift, width^2 sigma^2 / (1 + sigma^2)): exact for the prior above and A = I."""

    default_steps: ClassVar[int] = 1
    width: float = 1.0
    shift: float = 0.0
    fails: bool = False

    def step(self, state, run):
        var = SIGMA**2 / (1 + SIGMA**2)
        x = run.problem.y / (1 + SIGMA**2) + self.shift + self.width * var**0.5 * run.rng.normal(state.x)
        if self.fails:
            x = torch.where(run.problem.y.amax(1, keepdim=True) > 2, torch.nan, x)
        return state.next(x, x)


def found(solver, **words):
    words = {"trials": 100, "samples": 31, **words}
    return calibrate(PRIOR, Identity(in_shape=(N,)), SIGMA, solver, **words)


def test_exact_draws_are_called_calibrated_as_often_as_stated():
    many = [found(Drawn(), seed=seed, trials=50, batch=50) for seed in range(40)]
    # at a level of 0.05 more than 6 of 40 happen once in 300 times
    assert sum(one.word != "calibrated" for one in many) <= 6
    for k, name in enumerate(("spread", "tarp", "centre")):
        assert many[0].tests[k].name == name
        p = torch.tensor([one.tests[k].p for one in many], dtype=torch.float64).sort().values
        gap = (p - (torch.arange(40) + 0.5) / 40).abs().max()
        assert float(gap) < 1.63 / 40**0.5  # uniform, by Kolmogorov's 1 %


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"width": 0.8}, "over-confident"),
        ({"width": 1.25}, "under-confident"),
        ({"width": 0.0}, "over-confident"),
        ({"shift": 0.1}, "biased"),
        ({"shift": 1.0}, "over-confident"),
    ],
)
def test_wrong_draws_are_called_by_their_name(change, word):
    got = found(Drawn(**change), trials=200)
    assert got.word == word
    assert got.verdict().startswith(f"{word}: ")
    stated, held = got.covered()
    assert stated == pytest.approx(0.875)
    if word != "biased":
        assert (held < stated - 0.04) == (word == "over-confident")
    # balls around the mean hold too little, or too much, where TARP's curve bends both ways
    level, curve = got.coverage("centre")
    worst = float((curve - level).abs().max())
    assert (worst > got.band) == (word != "biased")


def test_a_solver_of_linear_problems_and_a_wrong_noise_level():
    g = torch.Generator().manual_seed(0)
    factor = torch.randn(5, 5, generator=g, dtype=torch.float64)
    prior = GaussianPrior(torch.zeros(5), factor @ factor.T / 5 + 0.2 * torch.eye(5), value_range=(-1.0, 1.0))
    operator = Matrix(torch.randn(3, 5, generator=g) / 5**0.5)
    words = {"trials": 100, "samples": 31, "steps": 25}
    mmps = get_solver("mmps")
    assert calibrate(prior, operator, 0.5, mmps, **words).word == "calibrated"
    assert calibrate(prior, operator, 0.5, mmps, assumed=0.15, **words).word == "over-confident"
    assert calibrate(prior, operator, 0.5, mmps, assumed=1.5, **words).word == "under-confident"


def test_signals_of_a_prior_without_a_sampler_follow_its_flow():
    class Bare(Prior):
        shape, value_range, sigma_range = PRIOR.shape, PRIOR.value_range, PRIOR.sigma_range

        def denoise(self, x, sigma):
            return PRIOR.denoise(x, sigma)

    signals = draw_prior(Bare(), (N,), seed=3)
    x = signals(range(400))
    assert torch.equal(signals([7, 2]), x[[7, 2]])
    assert float(x.std()) == pytest.approx(1, abs=0.05)
    assert float(x.mean()) == pytest.approx(0, abs=0.05)


def test_the_numbers_do_not_depend_on_the_batch():
    one, many = (found(Drawn(), trials=25, batch=batch) for batch in (1, 25))
    assert torch.equal(one.ranks, many.ranks)
    assert torch.equal(one.tarp, many.tarp)


def test_a_calibration_goes_on_from_its_folder(tmp_path):
    seen = []

    def stop(done):
        seen.append(done)
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found(Drawn(), trials=40, batch=8, folder=tmp_path, on_trial=stop)
    resumed = found(Drawn(), trials=40, batch=8, folder=tmp_path, on_trial=seen.append)
    assert seen == [*range(1, 25), *range(25, 41)]
    whole = found(Drawn(), trials=40)
    assert torch.equal(resumed.ranks, whole.ranks)
    with pytest.raises(InputError, match=r"other settings \(options: .*1.0.* not .*2.0"):
        found(Drawn(width=2.0), folder=tmp_path)


def test_a_trial_that_diverges_is_left_out_alone():
    got = found(Drawn(fails=True), trials=60)
    lost = sum(bool(r > 2) for r in measured_maxima(60))
    assert 0 < lost < 40
    assert got.diverged == lost
    assert got.trials == 60 - lost
    assert f"{lost} more diverged" in got.verdict()


def measured_maxima(trials):
    seen = []

    @dataclass(frozen=True)
    class Watching(Drawn):
        def step(self, state, run):
            seen.append(run.problem.y[::31].amax(1))
            return super().step(state, run)

    found(Watching(), trials=trials)
    return torch.cat(seen)


def test_ties_are_broken_evenly():
    ranks = found(Drawn(width=0.0), trials=40).ranks
    assert ((ranks == 0) | (ranks == 31)).double().mean() > 0.9
    even = replace(found(Drawn()), ranks=torch.full((100, 9), 7.0).double())
    assert even.tests[-1].p < 1e-6


def test_chi_square():
    # 11 of 20 where a half is expected: statistic 0.2, one degree of freedom
    assert chi_square(torch.tensor([11.0, 9.0]), torch.tensor([0.5, 0.5])) == pytest.approx(0.6547, abs=1e-4)


def test_bad_input():
    for words, message in (
        ({"samples": 3}, "at least 9"),
        ({"trials": 5}, "at least 20 trials"),
        ({"level": 2.0}, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=message):
            found(Drawn(), **words)
    got = found(Drawn(), trials=20)
    with pytest.raises(InputError, match="20 trials that came to an end"):
        Calibration(got.quantities, got.ranks[:5], got.centre[:5], got.tarp[:5], 31).verdict()
