"""Every solver has a record of its published algorithm: one step and a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from harness import DATA, SHAPE, load

from unveil.registry import names

UNPUBLISHED = {"unveil-exact": "this library's own"}
"""Solvers without a record, and why."""

TESTS = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
RECORDS = {path.stem: load(path.stem) for path in sorted(DATA.glob("*.json"))}


@pytest.mark.parametrize("solver", sorted({*names("solver")} - {*UNPUBLISHED}))
def test_a_solver_has_a_record(solver):
    assert any(record["solver"] == solver for record in RECORDS.values())


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_complete(name):
    record = RECORDS[name]
    assert record["solver"] in names("solver")
    assert record["source"]
    assert record["how"]
    assert len(record["commit"] or "") in (0, 40)  # none of what is transcribed from a paper
    for key in ("one_step", "run"):
        assert len(record[key]) == record.get("particles", 1) * math.prod(SHAPE)
        assert all(map(math.isfinite, record[key]))
    assert f'"{name}"' in TESTS
