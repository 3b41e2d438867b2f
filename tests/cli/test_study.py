"""``unveil bench red-diff``: its cells, what its page says, and that it says so when a claim fails."""

from __future__ import annotations

import pytest

from unveil.app import study as app
from unveil.bench import study
from unveil.bench.study import FINDINGS, LAMS, RATES, TOLD, verdict
from unveil.solvers import get_solver
from unveil.solvers.variational.red_diff import ORDERS, WEIGHTINGS


def fake(cells, better=""):
    """Rows as they would be if linear, descending and lam 0.3 were best; ``better`` is better yet."""
    rows = []
    for k, c in enumerate(cells):
        psnr = 25.0 - (c.method != "red-diff") - abs(c.told - 1) * ("likelihood" in c.label)
        psnr += 1.0 * (c.label in ("weighting linear", "order descending", "lam 0.3 lr 0.1")) + 3 * (c.label == better)
        nfe, vjps = c.steps, c.steps * (c.method in ("dps", "pigdm"))
        row = {"key": str(k), **vars(c), "status": "DONE", "psnr": psnr, "perceptual": 1 / psnr, "distance": "d"}
        rows.append(row | {"nfe": nfe, "vjps": vjps, "cpu": 0.01 * (nfe + 1.1 * vjps), "peak": 10.0 + 30 * (vjps > 0)})
    return rows


@pytest.fixture
def cells(toy):
    return app.cells(["superres"], ["mountain"], 32, prior="toy")


def test_the_cells_vary_one_thing_at_a_time(cells):
    by = {(c.method, c.label): c for c in cells}
    assert len(by) == len(cells) == 1 + len(WEIGHTINGS) + len(ORDERS) + len(LAMS) * len(RATES) + 3 * len(TOLD) + 4
    usual = get_solver("red-diff", **by["red-diff", ""].options)
    varied = get_solver("red-diff", **by["red-diff", "weighting square"].options)
    assert varied == usual.with_options(weighting="square")
    assert get_solver("red-diff", **by["red-diff", "lam 3 lr 0.03"].options) == usual.with_options(lam=3.0, lr=0.03)
    assert by["red-diff", "told 4"].told == 4
    assert by["red-diff", "told 4"].options == by["red-diff", ""].options
    assert get_solver("red-diff", **by["red-diff", "likelihood told 0.5"].options).data == "likelihood"
    assert by["diffpir", "told 2"].told == 2


def test_a_claim_reproduces_or_does_not(cells):
    weighting, order = FINDINGS
    rows = fake(cells)
    assert "By PSNR it reproduces: linear is best by 1.00 dB (26.00 dB)." in verdict(rows, weighting)
    assert "By PSNR it reproduces: descending is best" in verdict(rows, order)
    wrong = verdict(fake(cells, "weighting sqrt"), weighting)
    assert "By PSNR it does not reproduce with this prior: sqrt is better than linear by 2.00 dB" in wrong
    part = [r | {"status": "DIVERGED"} if r["label"] == "order random" else r for r in rows]
    assert verdict(part, order).count("some runs diverged") == 2
    same = [r | {"psnr": 25.0} for r in rows]
    assert "best together with ascending, random (25.00 dB)" in verdict(same, order)


def test_the_metrics_are_judged_each_for_itself(cells):
    """As it was measured: linear is best by PSNR, and three others are by perceptual distance."""
    distance = {"linear": 0.755, "log": 0.716, "clipped": 0.728, "power-2/3": 0.729}
    rows = [r | {"perceptual": distance.get(r["label"].removeprefix("weighting "), 1.0)} for r in fake(cells)]
    said = verdict(rows, FINDINGS[0])
    assert said.startswith("Claim: the linear weighting is best. By PSNR it reproduces: linear is best")
    assert said.endswith(
        "By perceptual distance it does not reproduce with this prior: log is better than linear by 0.039 "
        "(0.716 against 0.755); better too: clipped, power-2/3."
    )
    near = [r | {"perceptual": 0.75} if r["label"] == "weighting log" else r for r in rows]
    assert "clipped is better than linear by 0.027" in verdict(near, FINDINGS[0])  # 0.005 is no difference
    assert "perceptual distance not all of it is measured" in verdict(
        [r | {"perceptual": None} for r in rows], FINDINGS[0]
    )


def test_quality_has_a_verdict(cells):
    said = study.quality_words(fake(cells))
    assert "By PSNR it reproduces: red-diff is best by 1.00 dB (28.00 dB). It is number 1 of 5" in said
    close = [r | ({"perceptual": 0.03} if r["method"] == "pigdm" else {}) for r in fake(cells)]
    assert "By perceptual distance it reproduces: red-diff is best together with" in study.quality_words(close)
    better = [r | ({"perceptual": 0.01} if r["method"] == "pigdm" else {}) for r in fake(cells)]
    beaten_by = "By perceptual distance it does not reproduce with this prior: pigdm is better than red-diff by 0.026"
    assert beaten_by in study.quality_words(better)
    beaten = [r | ({"perceptual": 0.01, "psnr": 99.0} if r["method"] == "diffpir" else {}) for r in fake(cells)]
    said = study.quality_words(beaten)  # the claim does not name diffpir
    assert "does not reproduce" not in said
    assert "It is number 2 of 5: diffpir 99.00 dB, red-diff" in said


def test_costs_are_per_evaluation(cells):
    text = study.cost_words(fake(cells))
    assert "dps takes 2.1 times the time per evaluation, and 4.0 times the memory" in text
    assert "Measured: nothing yet" in study.cost_words([])
    assert "number 1 of 5" in study.quality_words(fake(cells))
    assert 'data="likelihood" loses up to 3.00 dB;' in study.told_words(fake(cells))
    own = study.average(fake(cells), "red-diff", "likelihood told 1", "psnr")
    better = [r | {"psnr": own + 1.5} if r["label"] == "likelihood told 4" else r for r in fake(cells)]
    assert "and wins up to 1.50 dB; diffpir" in study.told_words(better)


def test_the_page(cells, tmp_path):
    pytest.importorskip("matplotlib")
    rows = fake(cells)
    rows[-1] |= {"status": "DIVERGED", "reason": "step 3 of 60 gave values that are not finite"}
    page, plot = app.write_study(rows, tmp_path)
    text = page.read_text()
    assert "| linear | 26.00 | 26.00 |" in text
    assert "up to 0.10 dB (PSNR) and 0.020 (perceptual distance) count as none" in text
    assert "Best: lam 0.3 with lr 0.1, 26.00 dB" in text
    assert "DIVERGED, step 3" in text
    assert f"]({plot.relative_to(tmp_path).as_posix()})" in text
    assert plot.stat().st_size > 10_000


def test_a_run_of_one_task(unveil, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(study, "RATES", (0.1,))
    monkeypatch.setattr(study, "LAMS", (0.3,))
    monkeypatch.setattr(study, "TOLD", (1.0,))
    monkeypatch.setattr(study, "RIVALS", ("ddrm",))
    monkeypatch.setattr("unveil.app.tasks.STEPS", {"red-diff": 2, "ddrm": 2, "diffpir": 2})
    words = ("--size", 32, "--image", "mountain", "--task", "superres", "--prior", "toy")
    out = tmp_path / "rows.jsonl"
    status, said, _ = unveil("bench", "red-diff", *words, "--out", out, "--docs", tmp_path / "docs")
    assert status == 0
    assert "superres of mountain" in said
    assert (tmp_path / "docs" / "red-diff-study.md").is_file()
    status, _, err = unveil("bench", "red-diff", "--task", "supeerres", "--out", out)
    assert status == 2
    assert "did you mean superres" in err
