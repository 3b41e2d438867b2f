"""``unveil sample``: sheets and values of samples, and what it refuses before it computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import unveil as package


def test_a_sheet_of_images(unveil, tmp_path):
    out = tmp_path / "sheet.png"
    status, said, _ = unveil("sample", "toy", "--count", "5", "--size", "10x20", "--steps", "3", "--out", str(out))
    assert status == 0
    assert f"wrote {out}: 5 samples of toy in " in said
    # three columns of 20 pixels would be no wider than high: two columns, three rows, two pixels between them
    assert Image.open(out).size == (2 * 20 + 2, 3 * 10 + 4)


def test_values_are_those_of_the_library(unveil, tmp_path, toy):
    out = tmp_path / "values.npy"
    words = ("--count", "3", "--size", "8", "--steps", "30", "--sampler", "heun", "--seed", "5", "--chunk", "2")
    assert unveil("sample", "toy", *words, "--out", str(out))[0] == 0
    values = np.load(out)
    expected = package.sample(toy, 3, "heun", shape=(3, 8, 8), steps=30, seed=5)
    assert values.shape == (3, 3, 8, 8)
    assert torch.allclose(torch.from_numpy(values), expected, atol=1e-6)
    assert abs(values.std() - 0.3) < 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sampler", "hoin"), "unknown sampler 'hoin': did you mean heun"),
        (("--size", "8x8x8"), "this prior takes 2 sizes, got --size 8x8x8"),
        (("--size", "big"), "--size is a number, or numbers as 64x96, not big"),
        (("--label", "3"), "takes no condition"),
        (("--guidance", "2"), "--guidance strengthens a condition: add --label or --text"),
        (("--out", "there.png"), "there.png exists: choose another name"),
        (("--out", "samples.jpg"), "must end in .png (a sheet of images) or .npy"),
    ],
)
def test_bad_input(unveil, tmp_path, monkeypatch, toy, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_bytes(b"mine")
    toy.before = lambda: pytest.fail("something was computed")
    status, _, err = unveil("sample", "toy", *words)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.png"]


def test_unknown_prior(unveil, tmp_path):
    status, _, err = unveil("sample", "fotos", "--out", str(tmp_path / "s.png"))
    assert (status, "photos" in err) == (2, True)
