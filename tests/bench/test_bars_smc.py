"""What the particle methods must reach on problems with known answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from unveil.bench.bars import at_the_floor, failures, knows_the_evidence, particles_at_work
from unveil.bench.exact import judge, make_yardstick
from unveil.bench.families import get_problem
from unveil.bench.particles import measure, slope
from unveil.bench.tables import particles_page
from unveil.cli import main
from unveil.run import solve
from unveil.solvers import get_solver
from unveil.solvers.smc.tds import TDS


@pytest.mark.parametrize("solver", ["dcps", "ddsmc", "fps-smc", "mcgdiff", "tds"])
def test_the_error_falls_with_the_particles_and_the_evidence_is_unbiased(solver):
    bars = particles_at_work(get_solver(solver))
    assert len(bars) == 3
    assert not failures(bars)


@pytest.mark.parametrize(("solver", "options"), [("dcps", {}), ("fps-smc", {}), ("tds", {})])
def test_the_evidence_of_a_blurred_texture_is_unbiased(solver, options):
    assert not failures(knows_the_evidence(get_solver(solver, **options), "texture-blur-0.5"))


def test_unveil_exact_is_at_the_floor_of_a_mixture_and_knows_the_evidence():
    exact, runs = get_problem("modes-row-0.05"), 8
    short = {"prior_steps": 30, "oversampling": 4, "inner_steps": 6, "renoisings": 2, "langevins": 2, "rest": 2}
    solver = get_solver("unveil-exact", **short)
    problem = replace(exact.problem, y=exact.problem.y.repeat(runs, 1))
    result = solve(problem, exact.prior, solver, samples=64, steps=8, seed=list(range(runs)))
    ratio = (result.log_evidence.double() - exact.prior.log_evidence(exact.problem)).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / runs**0.5
    assert float(ratio.std()) < 0.5
    row = judge(exact, result.samples.flatten(0, 1), make_yardstick(exact, runs * 64))
    assert row["sw2_floor"] < 2


def test_eki_is_exact_for_gaussians_in_the_limit_of_particles():
    """The error of the mean falls as one over the root of the particles, and the spread is right."""
    known, runs, few, many = get_problem("plane-row-0.05"), 16, 16, 128
    problem = replace(known.problem, y=known.problem.y.repeat(runs, 1))
    errors = []
    for count in (few, many):
        # fewer steps leave a draw of the prior itself too wide: 7 % in 30 of them, 1 % in 100
        x = solve(problem, known.prior, "eki", samples=count, steps=80, seed=list(range(runs))).samples.double()
        errors.append(float((x.mean(1) - known.posterior.mean).square().sum(1).mean().sqrt()))
    assert -0.7 < math.log(errors[1] / errors[0]) / math.log(many / few) < -0.3
    spread = (x - x.mean(1, keepdim=True)).square().sum() / (runs * (many - 1))
    assert abs(float((spread / known.posterior.covariance.trace()).sqrt()) - 1) < 0.05


def test_pmc_is_at_the_floor_and_the_weighted_annealing_of_the_paper_stays_too_narrow():
    problems = ["texture-blur-0.05"]
    for order in ("red", "pnp"):
        assert not failures(at_the_floor(get_solver("pmc", order=order), problems, 1.5, samples=100, steps=400))
    weighted = get_solver("pmc", weight=1.0)
    assert failures(at_the_floor(weighted, ["colour-grey-0.05"], 1.5, samples=100, steps=400))


class Halved(TDS):
    """Forgets that the last twist is the likelihood itself."""

    def likelihood(self, problem, x0):
        return super().likelihood(problem, x0) / 2


def test_without_the_likelihood_at_the_end_they_do_not():
    assert failures(particles_at_work(Halved(), few=8, many=64, runs=16))
    assert failures(knows_the_evidence(Halved(), "texture-blur-0.5", particles=16, runs=16))


# -- the table of particles --------------------------------------------------------------------------------------------


def test_the_slope_is_that_of_a_weighted_line_with_its_error():
    rows = [{"particles": n, "error": 3 * n**-0.5, "error_spread": 0.1} for n in (16, 64, 256)]
    found, error = slope(rows)
    assert found == pytest.approx(-0.5)
    assert error == pytest.approx(0.1 / math.log(4) / 2**0.5)  # sum of squared distances in log n: 2 log(4)^2
    draws = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)).mul(0.1).exp().tolist()
    seen = torch.tensor(
        [slope([{**r, "error": r["error"] * e} for r, e in zip(rows, es, strict=True)]) for es in draws]
    )
    assert float(seen[:, 0].std()) == pytest.approx(error, rel=0.1)


def test_the_error_of_a_root_mean_square_is_what_runs_say():
    found = [measure(get_solver("tds"), "plane-row-0.05", 8, 10, 40, seed=100 * k) for k in range(12)]
    errors = torch.tensor([row["error"] for row in found])
    said = sum(row["error_spread"] for row in found) / 12
    assert float(errors.std() / errors.mean()) == pytest.approx(said, rel=0.6)  # twelve runs know it to a fifth


def test_the_command_goes_on_from_its_file_and_the_page_shows_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unveil.bench.particles.COUNTS", (8, 16))
    path = tmp_path / "rows.jsonl"
    words = ["bench", "particles", "--out", str(path), "--problem", "plane-row-0.05", "--steps", "6", "--runs", "4"]
    assert main([*words, "--solver", "tds"]) == 0
    before = path.read_text()
    assert main([*words, "--solver", "tds", "--solver", "dcps"]) == 0
    assert path.read_text().startswith(before)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["solver"], r["setting"], r["particles"]) for r in rows] == [
        (name, setting, n) for name, setting in (("tds", ""), ("dcps", ""), ("dcps", "blocks=3")) for n in (8, 16)
    ]
    out = capsys.readouterr().out
    assert "| dcps blocks=3 | 6 | " in out
    page = particles_page(rows)
    assert "`plane-row-0.05`, 2 dimensions:" in page
    assert f"| tds | 6 | {slope(rows[:2])[0]:.2f} ± " in page
    assert f"| {rows[0]['error']:.3f}; {rows[0]['evidence']:.2f} ± " in page
    assert f" | {rows[1]['bias']:.3f} |" in page
    assert main([*words, "--solver", "tds", "--particles", "12"]) == 0
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["solver"], last["particles"]) == ("tds", 12)
    assert main([*words, "--solver", "mmps"]) == 2
    assert "solver here 'mmps'" in capsys.readouterr().err
