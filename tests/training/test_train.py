"""Training: the loss falls, a resumed run is the same run, plans, optimiser, checkpoints, export."""

from __future__ import annotations

import json
import re
import resource
import shlex
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unveil.cli import main
from unveil.errors import CheckpointError, InputError
from unveil.io.atomic import append_line
from unveil.training import checkpoint, edm
from unveil.training.data import quiet
from unveil.training.export import export, load_network
from unveil.training.optim import MuonAdam, orthogonalise
from unveil.training.recipe import Recipe, draw_sigma, first_stage, rate_factor, read_card, replan
from unveil.training.train import _Worker, train


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """A card for a folder of four small smooth images, one of them held out."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    path = tmp_path / "card.toml"
    path.write_text(
        f"""
[network]
channels = 1
widths = [16, 32]
blocks = 1
features = 32
[data]
channels = 1
[[data.source]]
fetch = "folder"
path = "{folder}"
hold_out = ["3.png"]
[training]
steps = 6
batch = 4
size = 16
average_every = 1
log_every = 1
warmup_steps = 2
decay_steps = 2
ema_steps = 2
precision = "fp32"
compile = "no"
validate_size = 32
"""
    )
    return path


def weights(run: Path) -> dict[str, torch.Tensor]:
    part = checkpoint.read_part(run, "shared")
    return {
        **part["average"],
        **{f"raw.{k}": v for k, v in checkpoint.read_part(run, "worker-0")["network"].items()},
    }


def test_the_loss_falls_and_denoising_beats_doing_nothing(card: Path, tmp_path: Path) -> None:
    text = card.read_text().replace("steps = 6", "steps = 120").replace("decay_steps = 2", "decay_steps = 60")
    card.write_text(text.replace("ema_steps = 2", "ema_steps = 10").replace("batch = 4", "batch = 8"))
    train(card, tmp_path / "run", data=tmp_path, say=quiet)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records]
    assert 0.8 < np.mean(losses[:2]) < 1.2  # the variance of the target
    assert np.mean(losses[-20:]) < 0.65
    noisy = 20 * np.log10(255 / 50)  # 14.15 dB
    assert records[-1]["psnr"]["50"] > noisy + 5


def test_resuming_is_the_same_run_bit_for_bit(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "commit", partial(checkpoint.commit, keep=10))
    card.write_text(card.read_text().replace("[training]", "[training]\ncheckpoint_minutes = 0"))
    whole = train(card, tmp_path / "whole", data=tmp_path, say=quiet)
    (tmp_path / "again").mkdir()
    (tmp_path / "whole" / "step-3").rename(tmp_path / "again" / "step-3")  # as if stopped there
    resumed = train(card, tmp_path / "again", resume=True, data=tmp_path, say=quiet)
    first, second = weights(whole), weights(resumed)
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def test_another_seed_is_another_run(card: Path, tmp_path: Path) -> None:
    one = train(card, tmp_path / "one", data=tmp_path, say=quiet)
    card.write_text(card.read_text().replace("[training]", "[training]\nseed = 1"))
    two = train(card, tmp_path / "two", data=tmp_path, say=quiet)
    assert not torch.equal(weights(one)["first.weight"], weights(two)["first.weight"])


def test_two_workers_train_and_average(card: Path, tmp_path: Path) -> None:
    card.write_text(card.read_text().replace("[training]", "[training]\nworkers = 2"))
    run = train(card, tmp_path / "run", data=tmp_path, say=quiet)
    parts = [checkpoint.read_part(run, f"worker-{rank}")["network"] for rank in range(2)]
    assert all(torch.equal(parts[0][k], parts[1][k]) for k in parts[0])
    momenta = [checkpoint.read_part(run, f"worker-{rank}")["optimiser"]["adam"]["state"][0] for rank in range(2)]
    assert not torch.equal(momenta[0]["exp_avg"], momenta[1]["exp_avg"])  # they saw different crops


def test_wrong_use_is_refused(card: Path, tmp_path: Path) -> None:
    options = {"data": tmp_path, "say": quiet}
    with pytest.raises(InputError, match="no checkpoint"):
        train(card, tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]
    train(card, tmp_path / "run", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds a run already"):
        train(card, tmp_path / "run", **options)  # type: ignore[arg-type]
    card.write_text(card.read_text().replace("[16, 32]", "[16, 16]"))
    with pytest.raises(CheckpointError, match="another \\[network\\]"):
        train(card, tmp_path / "run", resume=True, **options)  # type: ignore[arg-type]
    card.write_text(card.read_text().replace("batch = 4", "bach = 4"))
    with pytest.raises(InputError, match="does not know \\['bach'\\]"):
        train(card, tmp_path / "other", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"steps": "many"}, "steps is a value like 1000, not 'many'"),
        ({"steps": 2.5}, "steps is a value like 1000, not 2.5"),
        ({"fixed_size": 1}, "fixed_size is a value like False, not 1"),
        ({"sigma_range": 3}, r"sigma_range is a value like \(0.002, 80.0\), not 3"),
        ({"sigma_range": [0.1]}, r"sigma_range is \[low, high\], 0 < low < high, not \[0.1\]"),
        ({"sigma_range": [80, 0.1]}, r"0 < low < high, not \[80, 0.1\]"),
        ({"sigma_range": ["a", "b"]}, "0 < low < high, not"),
        ({"first": 3}, r"\[training.first\] is a table of keys and values, not 3"),
        ({"first": {"speed": 3}}, r"does not know \['speed'\]"),
        (3, r"\[training\] is a table of keys and values, not 3"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(table: Any, words: str) -> None:
    def stages() -> None:
        Recipe.from_table(table)
        if first := first_stage(table):
            Recipe.from_table(first)

    with pytest.raises(InputError, match=words):
        stages()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("features = 32", "futures = 32", r"\[network\] cannot be built \(.*'futures'\): correct it"),
        ("[network]", "network = 3\n[other]", r"card.toml: \[network\] is a table of keys and values, not 3"),
        ("[[data.source]]", "[data.source]", r"headed \[\[data.source\]\] in double brackets"),
        ("[training]", "[training]\nstart = 'START'", r"cut\.safetensors is not a readable safetensors file"),
        ("[training]", "[training]\nstart = 'OTHER'", r"other\.safetensors is not a file of this library"),
        ("[network]", "# \xe9\n[network]", "card.toml is not valid TOML: 'utf-8' codec"),
    ],
)
def test_bad_cards_are_said_in_one_line(
    card: Path, old: str, new: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, other = tmp_path / "cut.safetensors", tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(1)}, other)
    cut.write_bytes(other.read_bytes()[:20])
    new = new.replace("START", str(cut)).replace("OTHER", str(other))
    card.write_text(card.read_text().replace(old, new), encoding="latin-1")
    assert main(["train", str(card), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert re.search(words, err)
    assert err.count("\n") == 1


def test_a_folder_is_no_card(tmp_path: Path) -> None:
    (tmp_path / "card.toml").mkdir()
    with pytest.raises(InputError, match=r"card\.toml cannot be read: Is a directory"):
        read_card(tmp_path / "card.toml")


def test_checkpoints_are_complete_or_absent(tmp_path: Path) -> None:
    checkpoint.write_part(tmp_path, 10, "shared", {"step": 10})
    with pytest.raises(CheckpointError, match="1 parts of 2"):
        checkpoint.commit(tmp_path, 10, 2)
    assert checkpoint.newest(tmp_path) is None
    checkpoint.write_part(tmp_path, 10, "worker-0", {"x": torch.ones(3)})
    for step in (10, 9, 200):
        if step != 10:
            checkpoint.write_part(tmp_path, step, "shared", {"step": step})
        checkpoint.commit(tmp_path, step, 2 if step == 10 else 1)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-200"
    assert not (tmp_path / "step-9").exists()  # only the newest two stay
    assert checkpoint.read_part(tmp_path / "step-200", "shared") == {"step": 200}
    damaged = tmp_path / "step-200" / "shared.pt"
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_part(tmp_path / "step-200", "shared")
    with pytest.raises(CheckpointError, match="as many workers"):
        checkpoint.read_part(tmp_path / "step-200", "worker-1")


def test_export_holds_the_averaged_weights_and_says_what_it_is(card: Path, tmp_path: Path) -> None:
    run = train(card, tmp_path / "run", data=tmp_path, say=quiet)
    file = export(tmp_path / "run", tmp_path / "out" / "tiny.safetensors", "tiny")
    network, meta = load_network(file)
    assert meta["shape"] == [1, None, None]
    assert meta["predicts"] == "edm"
    assert meta["name"] == "tiny"
    assert meta["config"]["widths"] == [16, 32]
    assert meta["sigma_data"] == 0.5
    average = checkpoint.read_part(run, "shared")["average"]
    for key, value in network.state_dict().items():
        assert torch.equal(value, average[key].half().float()), key
    assert [f.name for f in file.parent.iterdir()] == ["tiny.safetensors"]


def test_plan_warms_up_stays_and_decays_and_can_be_changed_on_the_way() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, decay_steps=40)
    factors = [rate_factor(k, recipe) for k in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == 1
    assert factors[59] == 1
    assert factors[80] == 0.5
    assert factors[100] == 0
    for step in (30, 80):  # in the constant part, and within the decay
        shorter = replan(recipe, step, 90)
        after = [rate_factor(k, shorter) for k in range(step, 91)]
        assert abs(after[0] - factors[step]) < 0.03
        assert after[-1] == 0
        assert all(a >= b for a, b in pairwise(after))
    assert rate_factor(79, replan(recipe, 30, 200)) == 1
    again = replan(recipe, 100, 200)
    assert [rate_factor(k, again) for k in (100, 109, 159, 180, 200)] == [0.1, 1, 1, 0.5, 0]
    with pytest.raises(InputError, match="step 80 already"):
        replan(recipe, 80, 80)


def test_log_and_validation_follow_their_periods(card: Path, tmp_path: Path) -> None:
    text = card.read_text().replace("steps = 6", "steps = 10").replace("average_every = 1", "average_every = 2")
    card.write_text(text.replace("log_every = 1", "log_every = 3\nvalidate_every = 4"))
    train(card, tmp_path / "run", data=tmp_path, say=quiet)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records] == [4, 6, 10]
    assert ["psnr" in r for r in records] == [True, False, True]
    said: list[str] = []
    card.write_text(card.read_text().replace("batch = 4", "batch = 2"))
    train(card, tmp_path / "run", resume=True, steps=12, data=tmp_path, say=said.append)
    assert any("keeps its own" in line for line in said)
    shared = checkpoint.read_part(tmp_path / "run" / "step-12", "shared")
    assert shared["recipe"]["batch"] == 4
    assert shared["plans"] == [[0, 10, 2], [10, 12, 2]]


def test_the_command_line_sets_the_steps_and_goes_on_with_a_finished_run(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["train", str(card), "--out", str(run), "--cache", str(tmp_path), *map(str, words)])
        out, err = capsys.readouterr()
        return status, out, err

    status, out, _ = command("--steps", 3)  # shorter than the card's 6
    assert (status, out.splitlines()[-1]) == (0, str(run / "card.safetensors"))
    status, out, _ = command("--resume")  # it was planned for 3, and is finished
    assert (status, out.splitlines()[-1]) == (0, str(run / "card.safetensors"))
    assert f"card.toml says 6 steps, the run in {run} has 3: --steps changes that." in out
    status, out, _ = command("--resume", "--steps", 8)  # longer
    assert (status, out.splitlines()[-1]) == (0, str(run / "card.safetensors"))
    shared = checkpoint.read_part(run / "step-8", "shared")
    assert shared["plans"] == [[0, 3, 2], [3, 8, 2]]
    assert shared["recipe"]["steps"] == shared["step"] == 8
    for words, expected in (
        (("--resume", "--steps", 4), "The run is at step 8 already: --steps must be larger, not 4."),
        (("--resume", "--steps", "many"), "--steps"),
        (("--steps", 4), "holds a run already: use --resume"),
    ):
        status, out, err = command(*words)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert expected in err
    assert command("--resume", "--steps", 8)[0] == 0  # as often as one likes


def test_an_interrupted_training_says_how_to_go_on(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card.write_text(card.read_text().replace("[training]", "[training]\ncheckpoint_minutes = 0"))
    run, made = tmp_path / "a run", 0
    step = _Worker.gradient_step

    def interrupt(worker: _Worker) -> torch.Tensor:
        nonlocal made
        made += 1
        if made in (1, 4):
            raise KeyboardInterrupt
        return step(worker)

    monkeypatch.setattr(_Worker, "gradient_step", interrupt)
    words = ["train", str(card), "--out", str(run), "--cache", str(tmp_path), "--steps", "5", "--device", "cpu"]
    assert main(words) == 130
    assert capsys.readouterr().err.endswith("interrupted before the first checkpoint\n")
    assert main(words) == 130
    go_on = f"unveil train {card} --out '{run}' --resume --steps 5 --cache {tmp_path} --device cpu"
    assert capsys.readouterr().err.endswith(f"interrupted; to go on from step-2: {go_on}\n")
    assert main(shlex.split(go_on)[1:]) == 0
    assert checkpoint.newest(run) == run / "step-5"


def test_noise_levels_follow_the_recipe() -> None:
    recipe = Recipe(sigma_log_mean=-1.0, sigma_log_std=1.5, sigma_wide=0.0)
    log = draw_sigma(20000, recipe, torch.Generator().manual_seed(0)).log()
    assert abs(log.mean() + 1.0) < 0.05
    assert abs(log.std() - 1.5) < 0.05
    wide = draw_sigma(20000, Recipe(sigma_wide=1.0), torch.Generator().manual_seed(0))
    assert wide.min() >= 0.002 * 0.999
    assert wide.max() <= 80 * 1.001
    assert abs((wide > 0.4).float().mean() - 0.5) < 0.02  # 0.4 is the geometric middle of the range


def test_orthogonalise_gives_the_polar_factor() -> None:
    torch.manual_seed(0)
    for shape in ((20, 90), (90, 20), (16, 16)):
        u, _, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        spread = torch.linspace(0.05, 1, min(shape))
        out = orthogonalise(u @ torch.diag(spread) @ vt)
        singular = torch.diagonal(u.T @ out @ vt.T)
        assert singular.min() > 0.65
        assert singular.max() < 1.25
        assert torch.allclose(u @ torch.diag(singular) @ vt, out, atol=1e-3)  # the directions are kept
        assert torch.allclose(orthogonalise(5 * out), orthogonalise(out), atol=1e-4)  # scale is forgotten


def test_muon_and_adam_share_the_parameters_and_solve_least_squares() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    optimiser = MuonAdam(module, lr_muon=0.05, lr_adam=0.01)
    assert optimiser.muon is not None
    counts = [sum(len(g["params"]) for g in o.param_groups) for o in (optimiser.muon, optimiser.adam)]
    assert counts == [2, 2]
    x, truth = torch.randn(64, 8), torch.randn(8, 4)
    losses = []
    for k in range(150):
        loss = (module(x) - x @ truth).square().mean()
        loss.backward()
        optimiser.step(1 - k / 150)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


def test_the_loss_is_one_at_every_noise_level_for_a_network_that_gives_zero() -> None:
    torch.manual_seed(0)
    x0, noise = 0.5 * torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128)
    for sigma in (0.002, 0.2, 1.0, 80.0):
        value = edm.loss(lambda x, _: torch.zeros_like(x), x0, noise, torch.full((2,), sigma), 0.5)
        assert abs(float(value) - 1) < 0.03


def test_denoise_recombines_the_network_as_the_loss_does() -> None:
    torch.manual_seed(0)
    x0, noise, sigma = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.1, 3.0])
    x = x0 + sigma.reshape(-1, 1, 1, 1) * noise
    c_skip, c_out, _, _ = edm.coefficients(sigma, 0.5)
    perfect = (x0 - c_skip * x) / c_out

    def constant(*_: torch.Tensor) -> torch.Tensor:
        return perfect

    assert float(edm.loss(constant, x0, noise, sigma, 0.5)) < 1e-10
    assert torch.allclose(edm.denoise(constant, x, sigma), x0, atol=1e-4)
    assert torch.allclose(edm.psnr(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.2)), torch.tensor([20.0]))


def test_a_full_disk_is_said_in_one_line_and_leaves_what_is_whole(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files makes writing fail as a full disk does, in the middle of a file."""
    card.write_text(card.read_text().replace("[training]", "[training]\ncheckpoint_minutes = 0"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit, file, left in ((1000, "pixels.npy", []), (100_000, "worker-0.pt", []), (500_000, "worker-0.pt", [])):
        run, data = tmp_path / f"run-{limit}", tmp_path / f"data-{limit}"
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            status = main(["train", str(card), "--out", str(run), "--cache", str(data)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        err = capsys.readouterr().err
        assert (status, err.count("\n")) == (2, 1)
        assert "cannot write" in err
        assert file in err
        assert [p.name for p in run.iterdir()] == left
        assert not list(data.rglob(".unveil-*"))
        assert (limit > 1000) == bool(list(data.rglob("pixels.npy")))


def test_workers_hand_on_what_is_wrong(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card.write_text(card.read_text().replace("[training]", "[training]\nworkers = 2\nlr_adam = 1e30"))
    assert main(["train", str(card), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert re.search(r"^unveil: The loss is (nan|inf) at step \d+: lower the learning rates and resume\.$", err, re.M)
    assert "Traceback" not in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["log.jsonl"]


def test_a_log_has_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*log\.jsonl: "):
            append_line(path, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "first\n"
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"
    with pytest.raises(InputError, match="cannot write"):
        append_line(tmp_path / "nowhere" / "log.jsonl", "first")


def test_a_file_where_the_folder_should_be(card: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot make the folder"):
        train(card, card, data=tmp_path, say=quiet)
