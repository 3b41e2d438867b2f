"""``unveil fit``: learn, go on after an interruption, restore with what was learned."""

from __future__ import annotations

from unveil.app.suite import cells
from unveil.solvers.variational import FITTED

FIT = ("--task", "denoise", "--noise", "0.1", "--prior", "toy", "--quiet", "--steps", "3")
SMALL = ("--set", "batch=2", "--set", "couplings=1", "--set", "hidden=2")


def test_fit_and_restore(unveil, photo, tmp_path):
    file = tmp_path / "learned.safetensors"
    status, out, _ = unveil("fit", "score-prior-surrogate", photo, *FIT, *SMALL, "--out", file)
    assert status == 0
    assert f"--solver score-prior-surrogate --set fitted={file}" in out
    words = ("restore", photo, *FIT[:-2], *SMALL, "--solver", "score-prior-surrogate")
    status, out, err = unveil(*words, "--set", f"fitted={file}", "--out", tmp_path / "out")
    assert status == 0, err
    assert (tmp_path / "out" / "report.html").is_file()
    status, _, err = unveil(*words, "--set", f"fitted={file}", "--seed", "1", "--out", tmp_path / "other")
    assert status == 2
    assert "was fitted to other measurements: fit again (unveil fit score-prior-surrogate ...)" in err
    assert not (tmp_path / "other").exists()


def test_an_interrupted_fit_goes_on(unveil, photo, toy, tmp_path):
    calls = 0

    def before():
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    toy.before = before
    file = tmp_path / "learned.safetensors"
    words = ("fit", "score-prior-surrogate", photo, *FIT, *SMALL, "--out", file)
    status, _, err = unveil(*words)
    assert status == 130
    assert "to go on: the same command with --resume" in err
    assert not file.exists()
    status, _, err = unveil(*words, "--resume")
    assert status == 0, err
    assert file.is_file()


def test_bad_input_to_fit_is_one_line(unveil, photo, tmp_path):
    file = tmp_path / "learned.safetensors"
    for words, why in (
        (("fit", "dps", photo, *FIT, "--out", file), "dps learns nothing ahead of time"),
        (("fit", "score-prior", photo, *FIT, "--out", tmp_path / "a.pt"), "a fit is a .safetensors file"),
        (("fit", "score-prior", photo, *FIT, "--out", file, "--resume"), "to go on from: leave out --resume"),
        (("fit", "score-prior", photo, *FIT, "--out", file, "--set", "hiden=3"), "did you mean hidden"),
        (("fit", "score-prior", photo, *FIT, "--out", photo), "exists: choose another name"),
    ):
        status, out, err = unveil(*words)
        assert (status, out) == (2, ""), words
        assert why in err
        assert err.count("\n") == 1
    assert not file.exists()


def test_the_suite_of_photographs_takes_solvers_that_learn_only_if_they_are_named():
    methods = {c.method for c in cells(tasks=["denoise"], photos=["mountain"], size=32, prior="toy")}
    assert "dps" in methods
    assert not methods & set(FITTED)
    assert {c.method for c in cells(FITTED, ["denoise"], ["mountain"], 32, prior="toy")} == set(FITTED)
