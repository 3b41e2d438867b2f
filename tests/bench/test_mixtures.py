"""The mixtures of MCGDiff: their closed form, and a table that can be resumed."""

from __future__ import annotations

import json

import pytest
import torch

from unveil.bench.mixtures import SHORT, Cell, distances, ranking, read, run, sliced_wasserstein1, table
from unveil.errors import InputError


def test_posterior_weights_and_draws_are_those_of_the_exact_prior():
    cell = Cell(8, 2, 0)
    exact = cell.prior().posterior(cell.problem())
    x = cell.posterior(20000, 0)
    torch.testing.assert_close(x.mean(0), exact.mean.double().flatten(), atol=0.1, rtol=0)
    spread = torch.cov(x.T)
    assert float((spread - exact.covariance).norm() / exact.covariance.norm()) < 0.03
    torch.testing.assert_close(cell.posterior_weights().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_floor_is_what_exact_draws_reach_and_a_shift_is_seen():
    cell = Cell(8, 4, 1)
    row = distances(cell, cell.posterior(500, 99))
    assert 0.5 < row["sw1"] / row["floor"] < 1.8
    assert distances(cell, cell.posterior(500, 99) + 1.0)["sw1"] > 3 * row["floor"]


def test_sliced_distance_of_a_shift():
    x = torch.randn(300, 2, dtype=torch.float64)
    # the mean of |cos| over directions in the plane is 2 / pi
    assert sliced_wasserstein1(x, x + torch.tensor([1.0, 0.0]), directions=4000) == pytest.approx(
        2 / torch.pi, rel=0.03
    )


def test_a_run_is_kept_row_by_row(tmp_path):
    path, seen = tmp_path / "rows.jsonl", []
    words = {"solvers": ["ddrm"], "dimensions": [8], "measurements": [2], "samples": 50, "steps": 5}
    with pytest.raises(KeyboardInterrupt):
        run(path, seeds=3, on_row=lambda row: seen.append(row) or (_ for _ in ()).throw(KeyboardInterrupt), **words)
    assert len(read(path)) == 1
    rows = run(path, seeds=3, on_row=seen.append, **words)
    assert [r["seed"] for r in rows] == [0, 1, 2]
    assert len(seen) == 3
    assert rows == read(path)
    text = table(rows)
    assert "| ddrm | 5 |" in text
    assert "exact draws" in text


def test_problems_go_round_and_a_slow_solver_stops_at_the_fewest(tmp_path):
    words = {"solvers": ["ddrm", "mpgd"], "dimensions": [8], "measurements": [1], "samples": 20, "steps": 2}
    rows = run(tmp_path / "slow.jsonl", seeds=7, budget=0.0, **words)
    assert [(r["seed"], r["solver"]) for r in rows] == [(k, name) for k in range(5) for name in ("ddrm", "mpgd")]
    slow, quick = ({"solver": name, "d": 8, "m": 1, "samples": 20} for name in ("ddrm", "mpgd"))
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps(row | {"seed": k, "seconds": s}) + "\n"
            for row, s in ((slow, 12.0), (quick, 1.0))
            for k in range(5)
        )
    )
    rows = run(path, seeds=7, budget=60.0, **words)[10:]
    assert [(r["seed"], r["solver"]) for r in rows] == [(5, "mpgd"), (6, "mpgd")]


def test_what_runs_with_other_settings_than_its_own(tmp_path):
    (row,) = run(tmp_path / "rows.jsonl", ["dmplug"], [8], [1], seeds=1, samples=2)
    assert row["steps"] == SHORT["dmplug"].steps == 300


def test_the_best_come_first():
    row = {"d": 8, "m": 1, "seed": 0, "nfe": 5, "vjps": 0, "floor": 0.2}
    rows = [row | {"solver": "a", "sw1": 900.0}, row | {"solver": "b", "sw1": 0.3}, row | {"solver": "c", "sw1": 0.4}]
    rows.append(row | {"solver": "b", "m": 2, "sw1": 0.7})
    assert ranking(rows)["b"] == pytest.approx({(8, 1): 1.5, (8, 2): 3.5})
    assert list(ranking(rows)) == ["c", "b", "a"]
    assert "| a | 5 | 900 (4.5e+03) |" in table(rows)


def test_the_table_says_multiples_of_the_floor_on_the_same_problems():
    row = {"solver": "a", "d": 8, "m": 1, "seed": 0, "nfe": 5, "vjps": 0, "sw1": 0.6, "floor": 0.2}
    other = row | {"seed": 1, "sw1": 0.8, "floor": 0.3}
    text = table([row, other, row | {"solver": "b", "sw1": 0.3}])
    assert "(2.8) |" in text  # 0.7 / 0.25, of both problems
    assert "| b | 5 | 0.30 (1.5) [1] |" in text


def test_a_file_that_holds_something_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(InputError, match="give another file"):
        read(path)
