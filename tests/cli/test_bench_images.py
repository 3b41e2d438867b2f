"""``unveil bench images``: cells that are kept, tables, pages, and what they say."""

from __future__ import annotations

import json

import pytest
import torch

from unveil.app import suite
from unveil.app.gallery import detail, gallery, margins, markdown, overview, text_page
from unveil.bench import images
from unveil.bench.images import Cell, averages, margin, read, run, truth
from unveil.errors import InputError, UnknownName
from unveil.solvers import get_solver

SMALL = ("--size", 32, "--image", "mountain", "--prior", "toy")


def test_a_run_is_kept_and_goes_on(unveil, tmp_path):
    path = tmp_path / "rows.jsonl"
    words = ("bench", "images", *SMALL, "--task", "denoise", "--task", "random-exact", "--out", path)
    methods = [w for m in ("pseudo-inverse", "ddrm", "ilvr") for w in ("--solver", m)]
    status, out, _ = unveil(*words, *methods, "--effort", 0.2)
    assert status == 0
    rows = read(path)
    # ilvr needs a measurement without noise
    assert [(r["task"], r["method"]) for r in rows] == [
        ("denoise", "pseudo-inverse"),
        ("denoise", "ddrm"),
        ("random-exact", "pseudo-inverse"),
        ("random-exact", "ddrm"),
        ("random-exact", "ilvr"),
    ]
    assert {r["steps"] for r in rows if r["method"] == "ddrm"} == {4}
    # nothing is measured again, and nothing of what is there is lost
    before = path.read_text()
    status, out, _ = unveil(*words, *methods, "--effort", 0.2)
    assert (status, path.read_text()) == (0, before)
    page = tmp_path / "photographs.md"
    status, out, _ = unveil(*words, *methods, "--solver", "ddnm", "--effort", 0.2, "--workers", 1, "--page", page)
    assert path.read_text().startswith(before)
    assert len(read(path)) == 7
    assert (tmp_path / "rows.png").is_file()
    html = (tmp_path / "rows.html").read_text()
    assert "pseudo-inverse" in html
    assert "http" not in html  # nothing is fetched from anywhere
    assert "![The best of each task](images/photographs.jpg)" in page.read_text()
    assert (tmp_path / "images" / "photographs.jpg").is_file()
    assert "denoise" in out


def test_the_numbers_are_right(tmp_path):
    cell = Cell("denoise", "mountain", 32, "pseudo-inverse")
    [row] = run(tmp_path / "rows.jsonl", [cell])
    assert row["psnr"] == pytest.approx(-20 * torch.tensor(0.05).log10().item(), abs=0.3)
    assert row["chi2"] == pytest.approx(0, abs=1e-6)
    assert (tmp_path / "rows-pictures" / f"{row['key']}.jpg").is_file()
    options = {"method": "ddrm", "prior": "toy", "steps": 4}
    [one] = run(tmp_path / "rows.jsonl", [Cell("superres", "mountain", 32, samples=2, **options)])
    assert (one["nfe"], one["vjps"], one["samples"]) == (4, 0, 2)
    assert one["diversity"] > 0
    assert one["psnr_mean"] > one["psnr"]
    # told a tenth of the noise, the samples lie much nearer to the data
    right, wrong = run(
        tmp_path / "rows.jsonl",
        [Cell("denoise", "mountain", 32, "ddrm", prior="toy", steps=20, told=told) for told in (1.0, 0.1)],
    )
    assert right["chi2"] > 0.3
    assert wrong["chi2"] < 0.3 * right["chi2"]
    # without noise a projection ends on the data, and the largest residual is that of the worst pixel and sample
    [exact] = run(tmp_path / "rows.jsonl", [Cell("random-exact", "mountain", 32, samples=2, **options)])
    assert exact["largest"] < 1e-4
    pictures = torch.zeros(2, 3, 32, 32)
    pictures[1, 2, 3, 4] = -0.5
    problem = images.problem_of("denoise", "mountain", 32)
    found = images.scores(pictures, truth("mountain", 32), problem)
    assert found["largest"] == float((pictures - problem.y).abs().max()) > 0.9


def test_an_interrupted_run_keeps_its_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    cells = [Cell(task, "mountain", 32, "pseudo-inverse") for task in ("denoise", "colorize")]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, cells, on_row=stop)
    assert [r["task"] for r in read(path)] == ["denoise"]
    seen = []
    rows = run(path, cells, on_row=lambda row, count, total: seen.append((row["task"], count, total)))
    assert seen == [("colorize", 1, 1)]
    assert [r["task"] for r in rows] == ["denoise", "colorize"]


def test_what_fails_is_said_and_tried_again(tmp_path, monkeypatch, unveil):
    def fail(*_):
        raise InputError("no luck")

    path = tmp_path / "rows.jsonl"
    words = ("bench", "images", *SMALL, "--task", "denoise", "--solver", "pseudo-inverse", "--out", path)
    with monkeypatch.context() as m:
        m.setattr(images, "classical", fail)
        status, out, _ = unveil(*words)
    assert status == 1
    assert "FAILED, no luck" in out
    assert unveil(*words)[0] == 0
    assert [r["status"] for r in read(path)] == ["FAILED", "DONE"]


def test_settings_are_those_of_restore(toy):
    [cell] = suite.cells(["red-diff"], ["motion"], ["mountain"], 32, prior="toy")
    solver = get_solver("red-diff", **cell.options)
    assert (solver.lr, solver.lam, cell.steps) == (0.1, 0.1, 100)
    half, whole = suite.cells(["dps"], ["denoise"], ["mountain"], 32, efforts=(0.5, 1), prior="toy")
    assert (half.label, half.steps, whole.label, whole.steps) == ("x0.5", 50, "", 100)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "denoising"), "or denoise?"),
        (("--solver", "diffpirr"), "did you mean diffpir"),
        (("--image", "moutain"), "did you mean mountain"),
        (("--size", 30), "multiple of 4"),
        (("--size", 512), "at least 512 x 512"),
        (("--effort", 0), "factor > 0"),
        (("--samples", 0), "at least 1"),
        (("--page", "page.html"), "must end in .md"),
    ],
)
def test_bad_input(unveil, tmp_path, words, message):
    status, _, err = unveil("bench", "images", "--prior", "toy", *words, "--out", tmp_path / "rows.jsonl")
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_something_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(InputError, match="give another file"):
        read(path)


def _row(method, image, psnr, **more):
    base = {"key": method + image, "task": "denoise", "image": image, "size": 32, "method": method, "label": ""}
    return base | {"status": "DONE", "psnr": psnr, "perceptual": 1 / psnr, "distance": "d"} | more


def test_the_table_compares_what_is_comparable(tmp_path):
    rows = [
        _row("classic", "mountain", 30.0, psnr_mean=30.0, name="Wiener filter", samples=1),
        _row("classic", "dahlia", 28.0, psnr_mean=28.0, name="Wiener filter"),
        _row("ddrm", "mountain", 33.0, psnr_mean=34.5),
        _row("ddrm", "dahlia", 29.0, psnr_mean=30.5),
        _row("daps", "mountain", 40.0),  # not yet measured on the other photograph
        _row("dps", "mountain", 41.0, label="x2"),
    ]
    means = averages(rows, "denoise")
    assert list(means) == ["classic", "ddrm"]
    assert margin(means) == ("ddrm", "classic", 2.0)
    assert "| ddrm | **31.00** |" in markdown(overview({"denoise": means}, "psnr"))
    assert margins(means) == (
        "a sample of ddrm +2.00 dB against Wiener filter, the mean of ddrm +3.50 dB against Wiener filter"
    )
    assert f"Denoising: {margins(means)}." in gallery(rows, tmp_path)
    rows = [{"prior": "toy", "samples": 2, **r} for r in rows]
    rows.append(_row("snips", "dahlia", 9.0, samples=2, prior="toy") | {"status": "DIVERGED", "reason": "not finite"})
    text = text_page(rows, "sheet.jpg")
    assert f"- Denoising: {margins(means)}\n" in text
    both, one = text.split("## Every method that was run on mountain")
    assert "## Means over the 2 photographs" in both
    assert "| ddrm | **31.00** |" in both
    assert "daps" not in both
    assert "| daps | **40.00** |" in one
    assert "| ddrm | 33.00 |" in one
    assert "## Means" not in text_page([r for r in rows if r["method"] != "daps"], "sheet.jpg")
    assert "| Wiener filter | 29.00 |" in text
    assert text.endswith("## Not done\n\n- snips on denoise of dahlia: not finite\n")


def test_tables_without_noise_show_how_far_the_worst_pixel_is_from_the_data():
    rows = [
        _row("ddnm", image, 30.0, task="random-exact", largest=largest) for image, largest in (("a", 2e-7), ("b", 6e-5))
    ]
    rows += [_row("daps", "a", 30.0, task="random-exact"), _row("daps", "b", 30.0, task="random-exact", largest=0.2)]
    text = markdown(detail("random-exact", averages(rows, "random-exact")))
    assert "| max \\|y - A x\\| |" in text
    assert "chi-square" not in text
    assert "| 6e-05 |" in text
    assert "| - |" in text  # the row of a was measured before that was kept
    assert "0.2" not in text
    noisy = markdown(detail("denoise", averages([_row("ddnm", "a", 30.0)], "denoise")))
    assert "chi-square" in noisy
    assert "y - A x" not in noisy


def test_cells_that_few_solvers_have_done_are_not_compared_in():
    rows = [_row(method, "mountain", 30.0) for method in ("ddrm", "dps", "ddnm", "daps", "classic")]
    half = [_row(method, "dahlia", 30.0) for method in ("ddrm", "dps")]
    few = [_row(method, "pagoda", 30.0) for method in ("ddrm", "classic", "total variation")]
    few.append(_row("dps", "pagoda", 30.0, status="DIVERGED"))
    assert images.compared(rows + half + few) == rows + half
    assert images.compared([]) == []


def test_unknown_photographs(tmp_path):
    with pytest.raises(UnknownName):
        truth("nowhere", 32)


def test_every_task_makes_a_measurement_that_can_be_shown():
    for task in images.TASKS:
        problem = images.problem_of(task, "pagoda", 64)
        assert problem.sigma_y == images.TASKS[task].noise
        assert images.shown_measurement(task, "pagoda", 64).shape == (3, 64, 64)
