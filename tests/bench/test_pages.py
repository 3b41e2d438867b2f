"""The solvers' pages of the documentation, and the README's table, are what the docstrings and cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

from unveil.bench.mixtures import student
from unveil.bench.pages import authors, pages, with_table
from unveil.bench.tables import mixtures_page, nonlinear_page, results
from unveil.registry import names
from unveil.solvers import get_solver

ROOT = Path(__file__).parents[2]


def test_the_pages_are_current():
    found = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "solvers").glob("*.md")}
    assert found == pages(), "run: make docs"


def test_the_pages_have_the_papers_values_beside_the_defaults():
    text = pages()["ddrm.md"]
    assert "| option | default | paper |\n|---|---|---|\n| `steps` | `50` | 20 |\n" in text
    assert "| `eta` | `None` | 0.85 |\n" in text
    assert "| `eta_b` | `1.0` | 1 |\n\nWhy these are not the paper's:\n\n- `steps`: the ancestral" in text
    assert "\n- `eta`: 0.85 leaves 85 %" in text
    assert "`eta_b`: " not in text
    assert "Why these" not in pages()["dps.md"]  # which has the paper's numbers


def test_the_table_of_the_readme_is_current():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme), "run: make docs"


@pytest.mark.parametrize("name", names("solver"))
def test_every_solver_names_its_authors(name):
    assert authors(get_solver(name)).split()[-1].isdigit()


def test_authors_are_short():
    assert authors(get_solver("red-diff")) == "Mardani et al. 2023"


def test_the_pages_of_results_are_current():
    made = results(ROOT)
    assert {"mixtures.md", "nonlinear.md"} <= set(made)
    for name, text in made.items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, "run: make docs"
    assert results(ROOT / "src") == {}


def test_the_page_of_mixtures_has_means_intervals_and_the_floor():
    cell = {"solver": "ddrm", "d": 8, "m": 2, "samples": 100, "status": "DONE", "nfe": 20.0, "vjps": 0.0, "floor": 0.25}
    rows = [{**cell, "seed": k, "sw1": value} for k, value in enumerate((1.0, 2.0, 3.0))]
    rows.append({**cell, "seed": 0, "solver": "dps", "status": "DIVERGED"})
    text = mixtures_page(rows)
    assert "| ddrm | 20 | 2.00 ± 2.4" in text  # 4.30 / sqrt(3)
    assert "| exact draws |  | 0.25 ± 0.00 |" in text
    assert "left out: dps (d = 8, m = 2)" in text
    assert "dmplug has lr = 0.05, 300 steps." in text


def test_the_page_of_mixtures_says_who_is_near_the_floor():
    cell = {"d": 8, "m": 2, "samples": 100, "status": "DONE", "nfe": 20.0, "vjps": 0.0, "floor": 0.2, "seed": 0}
    found = {"tds": (0.3, 0.5), "mcgdiff": (0.36, 1.3), "ddrm": (3.0, 3.0)}
    text = mixtures_page(
        [{**cell, "solver": k, "m": m, "sw1": v} for k, pair in found.items() for m, v in enumerate(pair)]
    )
    text = " ".join(text.split())
    assert "and more on others: tds (1.5 to 2.5, 2 problems), mcgdiff (1.8 to 6.5, 2 problems). " in text
    assert "- More than 2 times on every cell: ddrm (15.0, 2 problems)." in text
    rows = [{**cell, "solver": "tds", "seed": k, "sw1": v} for k, v in enumerate((0.2, 0.56))]
    said = "every cell that was run: tds (1.9, 2 problems of 1 of 9 cells, 2.8 on the worst of them)."
    assert said in " ".join(mixtures_page(rows).split())


def test_the_quantile_of_student():
    for freedom, value in ((2, 4.3027), (4, 2.7764), (19, 2.0930), (1000, 1.9623)):
        assert student(freedom) == pytest.approx(value, rel=1e-3 if freedom >= 4 else 0.03)


def test_the_page_of_problems_that_are_not_linear():
    row = {"solver": "sds", "setting": "", "problem": "phase-2", "samples": 100, "status": "DONE", "nfe": 20.0}
    row |= {"vjps": 0.0, "sw2_floor": 1.26, "sw2_spread": 0.2, "std": 0.934, "mean": 0.111, "seed": 0}
    point = {k: v for k, v in row.items() if not k.startswith("sw2")} | {"solver": "red-diff", "samples": 64}
    lost = {**row, "solver": "dps", "status": "DIVERGED"}
    exact = [{**row, "solver": "exact draws", "sw2_floor": 1.0, "seed": k} for k in range(15)]
    second = {**row, "sw2_floor": 3.26, "seed": 1}
    text = nonlinear_page([row, second, point, {**lost, "seed": 1}, {**row, "solver": "dps"}, *exact])
    assert "of 100 samples" in text
    assert "over 15 sets" in text
    assert "over 2 runs" in text
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if line.startswith("| exact draws"))
    assert lines[first].startswith("| exact draws |  | 1 of 1 | 1.0 ± 0.0 (0.93) | - |")
    # Student's t of one degree of freedom: 12.7 times 1, the standard error of 1.26 and 3.26
    assert lines[first + 1].startswith("| dps | 20 |  | 1 of 2 diverged | - |")
    assert lines[first + 2].startswith("| red-diff | 20 |  | *0.11* | - |")
    assert lines[first + 3].startswith("| sds | 20 | 0 of 1 | 2.3 ± 12.7 (0.93) | - |")
    for name in ("phase-8", "bits-3"):
        assert f"| {name} | " in text
