"""``unveil bench tradeoff``: who is best at what cost."""

from __future__ import annotations

import json

import pytest

from unveil.app.tradeoff import Point, distances, front, relative


def row(method, task, psnr, nfe, label="", vjps=0, image="mountain"):
    return {
        "key": f"{method}{task}{label}{image}",
        "task": task,
        "image": image,
        "size": 32,
        "method": method,
        "label": label,
        "status": "DONE",
        "psnr": psnr,
        "perceptual": 1 / psnr,
        "distance": "some distance",
        "nfe": nfe,
        "vjps": vjps,
        "cpu": nfe / 100,
        "samples": 2,
    }


ROWS = [
    row("ddrm", "denoise", 30.0, 20),
    row("ddnm", "denoise", 32.0, 50),
    row("dps", "denoise", 31.0, 100, vjps=100),
    row("ddrm", "motion", 20.0, 20),
    row("ddnm", "motion", 24.0, 50),
    row("ddrm", "motion", 21.0, 40, label="x2"),
    row("classic", "denoise", 50.0, 0),
    row("ilvr", "random-exact", 25.0, 60),
]


def test_solvers_are_compared_cell_by_cell():
    points = {(p.solver, p.label): p for p in relative(ROWS, "psnr", lambda v, m: v - m)}
    # medians of the solvers at their usual steps: 31 on denoise, 22 on motion
    assert points["ddrm", ""].value == pytest.approx((30 - 31 + 20 - 22) / 2)
    assert points["ddnm", ""].value == pytest.approx((32 - 31 + 24 - 22) / 2)
    assert points["dps", ""] == Point("dps", "", 200, 0.5, 0.0)  # half of the cells are enough
    assert points["ddrm", "x2"].value == pytest.approx(21 - 22)
    assert points["ilvr", ""].value == 0  # measured where it fits
    assert ("classic", "") not in points


def test_the_front_has_what_none_beats():
    points = [Point(n, "", w, 1.0, v) for n, w, v in (("a", 10, 3.0), ("b", 20, 2.0), ("c", 30, 4.0), ("d", 30, 5.0))]
    assert [p.solver for p in front(points, 1, lambda p: p.work)] == ["a", "d"]
    assert [p.solver for p in front(points, -1, lambda p: p.work)] == ["a", "b"]


def test_cards_have_distances():
    points = {p.name: p for p in distances()}
    assert points["pnp-dm"].value < 1.3 < points["mpgd"].value
    assert points["dps"].work == 2000


def test_the_page(unveil, tmp_path):
    pytest.importorskip("matplotlib")
    results, out = tmp_path / "images.jsonl", tmp_path / "page.html"
    results.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    status, said, _ = unveil("bench", "tradeoff", results, "--out", out)
    assert status == 0
    assert str(out) in said
    text = out.read_text()
    assert "some distance" in text
    assert "ddrm x2" in text
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_page_in_markdown(unveil, tmp_path):
    pytest.importorskip("matplotlib")
    results, out = tmp_path / "images.jsonl", tmp_path / "docs" / "tradeoff.md"
    results.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    assert unveil("bench", "tradeoff", results, "--out", out)[0] == 0
    text = out.read_text()
    assert "](images/tradeoff.png)" in text
    assert "| ddrm x2 | -1.000 | 40 | 0.2 | best at its cost |" in text  # 21 dB where the median is 22
    assert "| ddnm | 1.500 | 50 | 0.25 | best at its cost |" in text
    assert (tmp_path / "docs" / "images" / "tradeoff.png").stat().st_size > 10_000
