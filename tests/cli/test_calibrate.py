"""``unveil calibrate``: problems of the ruler, of files and of tasks; figures, resuming, and what it refuses."""

from __future__ import annotations

from unveil.cli import main
from unveil.io.images import read_image


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["calibrate", "--solver", "ddrm", "--problem", "plane-row-0.05", "--trials", "30", "--samples", "15"]
    words += ["--out", str(out), "--steps", "20"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "30 trials of 15 samples, level 0.05" in text
    assert (out / "verdict.txt").read_text().strip() == text.splitlines()[0]
    before = (out / "trials.jsonl").read_bytes()
    for name in ("ranks", "coverage"):
        picture, _ = read_image(out / f"{name}.png")
        assert picture.shape[0] == 3
        assert float((picture[2] - picture[0]).amax()) > 0.3  # something blue was drawn
    assert main(words) == 0
    assert (out / "trials.jsonl").read_bytes() == before
    assert main([*words[:-1], "21"]) == 2
    assert "other settings (solver" in capsys.readouterr().err


def test_weighted_particles_and_data_that_are_neither_linear_nor_gaussian(tmp_path, capsys):
    for problem in ("phase-2", "photons-2"):
        out = tmp_path / problem
        words = ["calibrate", "--solver", "tds", "--problem", problem, "--trials", "20", "--samples", "9"]
        assert main([*words, "--steps", "20", "--out", str(out)]) == 0
        assert "20 trials of 9 samples" in capsys.readouterr().out
        assert {path.name for path in out.iterdir()} >= {"ranks.png", "coverage.png", "verdict.txt", "trials.jsonl"}


def test_a_problem_of_a_file(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch, unveil\n"
        "prior = unveil.GaussianPrior(torch.zeros(4), 1.0)\n"
        "mine = (prior, unveil.operators.Identity(in_shape=(4,)), 0.5)\n"
        "def made(): return prior\n"
    )
    words = ["calibrate", "--solver", "ddrm", "--trials", "20", "--samples", "9", "--out", str(tmp_path / "out")]
    assert main([*words, "--problem", f"{path}:mine", "--set", "eta=0.85"]) == 0
    for problem, message in ((f"{path}:made", "must be a tuple"), (f"{path}:mien", "did you mean mine")):
        assert main([*words, "--problem", problem]) == 2
        assert message in capsys.readouterr().err


def test_a_task_of_a_network(tmp_path, capsys):
    words = ["calibrate", "--solver", "ddrm", "--prior", "toy", "--task", "inpaint", "--mask", "box:4", "--size", "16"]
    words += ["--trials", "20", "--samples", "9", "--steps", "2", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "confident" in capsys.readouterr().out


def test_bad_words(tmp_path, capsys):
    for words, message in (
        ((), "--problem, or --task"),
        (("--problem", "plane-row-0.06"), "did you mean plane-row-0.05"),
        (("--problem", "plane-row-0.05", "--size", "8"), "--size belongs to --task"),
        (("--problem", "plane-row-0.05", "--scale", "2"), "--scale belongs to --task"),
        (("--problem", "plane-row-0.05", "--boundary", "reflect"), "--boundary belongs to --task"),
        (("--problem", "plane-row-0.05", "--assumed", "-1"), "--assumed"),
        (("--problem", "plane-row-0.05", "--trials", "5"), "at least 20 trials"),
        (("--problem", "plane-row-0.05", "--samples", "3"), "at least 9"),
        (("--problem", "plane-row-0.05", "--level", "2"), "between 0 and 1"),
        (("--problem", "plane-row-0.05", "--set", "zeta=1"), "option of ddrm"),
        (("--problem", "phase-2"), "it needs an operator"),
        (("--task", "denoise"), "say --size"),
        (("--task", "denoise", "--size", "16", "--truths", str(tmp_path)), "holds 0 pictures"),
    ):
        assert main(["calibrate", "--solver", "ddrm", "--out", str(tmp_path / "out"), *words]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "out" / "trials.jsonl").exists()
