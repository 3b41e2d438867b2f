"""Scenes of instruments: what is measured of samples, and runs that are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from unveil.bench import apparatus, scenes
from unveil.bench.scenes import SAMPLES, SCENES, Scene, newest, problem_of, scores, truth
from unveil.bench.tables import scenes_page
from unveil.cli import main
from unveil.errors import UnknownName
from unveil.operators import Identity
from unveil.priors import GaussianPrior
from unveil.problem import as_noise


@pytest.mark.parametrize("name", SCENES)
def test_every_scene_is_measured_and_its_solvers_take_it(name):
    from unveil.solvers import get_solver

    scene = SCENES[name]
    for image in scene.images:
        x = truth(name, image)
        assert x.shape[1:] == (scene.size, scene.size)
        assert 0 <= float(x.min()) < float(x.max()) <= 1
    problem = problem_of(name, scene.images[0])
    shown = scene.show(problem)[0]
    assert shown.shape[1:] == x.shape[1:]
    assert bool(torch.isfinite(shown).all())
    assert scene.start is None or scene.start[0] in scene.rivals
    for solver, (_, options) in scene.solvers.items():
        assert get_solver(solver, **options).unfit(problem) is None


def test_samples_that_are_exchangeable_with_the_truth_are_calibrated():
    draws = torch.randn(SAMPLES + 1, 3, 80, 80, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.5
    row = scores(draws[1:], draws[0], {"nothing": torch.full((3, 80, 80), 0.5)})
    # of 19200 values, with a standard error of 0.2 % and 0.4 %
    assert row["cover"] == pytest.approx([18 / 20, 10 / 20], abs=0.015)
    assert row["spread"] == pytest.approx(1, abs=0.02)
    assert row["rivals"]["nothing"] == pytest.approx(20, abs=0.1)
    assert row["psnr_sample"] == pytest.approx(17, abs=0.1)
    assert row["psnr"] == pytest.approx(20 - 10 * torch.tensor(1 + 1 / SAMPLES).log10().item(), abs=0.1)
    narrow = scores(0.5 + (draws[1:] - 0.5) / 2, draws[0], {})
    assert narrow["spread"] > 1.8
    assert narrow["cover"][0] < 0.75


def test_pictures_are_turned_to_the_truth_only_where_the_data_do_not_tell():
    x = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    both = torch.stack([x, x.flip((-2, -1))])
    assert torch.equal(scenes._turned(both, x, SCENES["diffraction"]), x.expand(2, -1, -1, -1))
    assert torch.equal(scenes._turned(both, x, SCENES["mosaic"]), both)


def test_the_likeliest_image_of_bits_is_better_than_the_bits():
    x = torch.linspace(0.2, 0.8, 32).expand(1, 32, 32)
    operator, noise = SCENES["one-bit"].make((1, 32, 32))
    problem = scenes.Problem.simulate(x[None], operator, noise)
    found, smooth = apparatus.likeliest(problem, x, steps=60), apparatus.smoothed(problem, x)
    error = [float((v - x).square().mean().sqrt()) for v in (problem.y, smooth, found)]
    assert error[2] < 0.08 < 0.3 < error[0]
    assert error[1] < 0.1


SMALL = Scene(
    "Noise", "exact", ("mountain", "dahlia"), lambda s: (Identity(in_shape=s), as_noise(0.1)),
    {"the data": lambda problem, _: problem.y}, {"ddrm": (5, {})}, lambda problem: problem.y, size=32,
)  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """A scene of its own: the middle of a photograph in noise, with a prior that knows its mean."""

    def prior(_):
        return GaussianPrior(truth("small", "mountain"), 0.01)

    monkeypatch.setattr(scenes, "SCENES", {"small": SMALL})
    monkeypatch.setattr(scenes, "load_prior", prior)
    scenes.by_hand.cache_clear()
    yield
    scenes.by_hand.cache_clear()


def test_a_run_is_kept_and_goes_on(small, tmp_path, capsys):
    out, pictures = tmp_path / "rows.jsonl", tmp_path / "pictures"
    command = ["bench", "scenes", "--out", str(out), "--pictures", str(pictures), "--samples", "3"]
    assert main(command) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["image"], r["solver"], r["samples"]) for r in rows] == [("mountain", "ddrm", 3), ("dahlia", "ddrm", 3)]
    # the posterior of N(truth, 0.1^2) with noise of 0.1: the mean is nearer than the data, by the prior's knowledge
    assert rows[0]["psnr"] > rows[0]["rivals"]["the data"] + 3
    assert rows[0]["rivals"]["the data"] == pytest.approx(20, abs=0.6)
    assert (pictures / "small.png").read_bytes()[:4] == b"\x89PNG"
    text = capsys.readouterr().out
    assert text.count("small, ") == 2
    assert main(command) == 0
    assert "small, " not in capsys.readouterr().out
    page = scenes_page(rows)
    assert "| the data | 2" in page
    assert "images/scenes/small.png" in page
    assert "than the best classical method, the data" in page
    assert main([*command[:2], "--scene", "nowhere"]) == 2
    assert main([*command[:2], "--image", "nowhere"]) == 2


def test_a_run_of_one_image_and_what_changed_is_measured_again(small, tmp_path, monkeypatch):
    path, said, drawn = tmp_path / "rows.jsonl", [], []

    def run(**chosen):
        said.clear()
        scenes.run(path, lambda name, _: drawn.append(name), samples=2, say=said.append, **chosen)
        return [words.split(", ")[1] for words in said]

    assert run(images=["dahlia"]) == ["dahlia"]
    assert run() == ["mountain"]
    assert run() == []
    assert drawn == ["small"]  # the first image only
    more = replace(SMALL, solvers={"ddrm": (5, {"eta": 0.5})})
    monkeypatch.setattr(scenes, "SCENES", {"small": more})
    assert run(images=["mountain"]) == ["mountain"]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["setting"] for row in rows] == ["", "", "eta=0.5"]
    assert [row["setting"] for row in newest(rows)] == ["", "eta=0.5"]
    failed = [json.dumps({**row, "status": "FAILED"}) for row in rows]
    path.write_text("\n".join(failed) + "\n")
    assert run(images=["mountain"]) == ["mountain"]


def test_a_run_that_is_killed_goes_on_with_the_next_image(small, tmp_path):
    path = tmp_path / "rows.jsonl"

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scenes.run(path, lambda *_: None, samples=2, say=stop)
    said = []
    scenes.run(path, lambda *_: None, samples=2, say=said.append)
    assert [words.split(", ")[1] for words in said] == ["dahlia"]
    assert len(path.read_text().splitlines()) == 2


def test_solvers_start_at_the_image_of_a_classical_method(small, monkeypatch):
    # a flat prior, and chains that hardly move: what comes out is what went in
    monkeypatch.setattr(scenes, "load_prior", lambda _: GaussianPrior(truth("small", "mountain"), 100.0))
    kinds = {"zeros": lambda problem, _: torch.zeros_like(problem.like), "the data": lambda problem, _: problem.y}
    still = replace(SMALL, rivals=kinds, solvers={"daps": (2, {"inner": "exact", "spread": 0.1})})
    for name in kinds:
        monkeypatch.setattr(scenes, "SCENES", {"small": replace(still, start=(name, 0.03))})
        shot = scenes.solved("small", "mountain", "daps", samples=2)
        assert shot.row["setting"] == f"inner=exact, spread=0.1, from {name} with noise of 0.03"
        assert torch.allclose(shot.pictures["mean"], shot.pictures[name], atol=0.15)


def test_the_page_says_who_is_better_and_whose_samples_do_not_know_their_error(small):
    row = {"scene": "small", "solver": "ddrm", "prior": "exact", "samples": 3, "steps": 5, "setting": "", "nfe": 5}
    row |= {"psnr": 30.0, "psnr_sample": 28.0, "spread": 2.0, "rivals": {"the data": 31.5}}
    page = scenes_page([row | {"image": "mountain", "spread": 9.0}, row | {"image": "mountain"}])
    assert "The mean of `ddrm` is 1.50 dB WORSE than the best classical method, the data." in page
    assert "over-confident: its error is 2.0 times what its samples say" in page  # of the newest row
    assert "over-confident: " not in scenes_page([row | {"image": "mountain", "spread": 1.1}])
    assert "too careful: its error is 0.50 times" in scenes_page([row | {"image": "mountain", "spread": 0.5}])


def test_unknown_names():
    with pytest.raises(UnknownName):
        truth("mosaic", "nowhere")
    with pytest.raises(UnknownName):
        problem_of("nowhere", "mountain")
