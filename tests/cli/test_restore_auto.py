"""``unveil restore --solver auto``: what it picks, why, and within what budget."""

from __future__ import annotations

import json

import pytest


def test_the_pick_keeps_to_the_budget_and_is_explained(unveil, photo, tmp_path):
    words = ("restore", photo, "--task", "deblur", "--kernel", "gaussian:1", "--prior", "toy", "--quiet")
    status, out, _ = unveil(*words, "--budget", "nfe:25", "--out", tmp_path / "out")
    assert status == 0
    facts = json.loads((tmp_path / "out" / "result.json").read_text())
    assert facts["nfe"] <= 25
    [note] = facts["notes"]
    assert note.startswith(f"{facts['recipe']['solver']}, for the least error: of ")
    assert note in out
    # and the recipe makes the same again
    recipe = tmp_path / "out" / "recipe.toml"
    assert unveil("restore", "--recipe", recipe, "--out", tmp_path / "again", "--quiet")[0] == 0
    assert (tmp_path / "again" / "restored.png").read_bytes() == (tmp_path / "out" / "restored.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budget", "nfe"), "nfe:NUMBER, seconds:NUMBER"),
        (("--budget", "steps:3"), "nfe:NUMBER, seconds:NUMBER"),
        (("--budget", "nfe:-1"), "nfe:NUMBER, seconds:NUMBER"),
        (("--budget", "nfe:1"), "the cheapest is"),
        (("--budget", "nfe:50", "--solver", "ddrm"), "leave it out, or say --solver auto"),
    ],
)
def test_bad_budgets(unveil, photo, tmp_path, words, message):
    base = ("restore", photo, "--task", "denoise", "--prior", "toy", "--quiet")
    status, _, err = unveil(*base, *words, "--out", tmp_path / "out")
    assert (status, (tmp_path / "out").exists()) == (2, False)
    assert message in err
