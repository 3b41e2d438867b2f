"""``unveil restore`` and ``resume``: every task in both modes, what is written, and the same bits again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import png
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file

from unveil.app.job import Job
from unveil.app.restore import tomllib
from unveil.operators import Spectral
from unveil.priors.loaders import save_prior
from unveil.priors.networks.unet import UNet

TASKS = ("inpaint", "deblur", "superres", "denoise", "colorize")
FILES = {
    "recipe.toml",
    "problem.safetensors",
    "measurement.png",
    "result.safetensors",
    "result.json",
    "restored.png",
    "report.html",
}


def restore(unveil, photo, out, *words):
    status, text, err = unveil("restore", photo, "--prior", "toy", "--out", out, "--quiet", *words)
    assert status == 0, err
    return text


def same_results(a, b) -> None:
    assert (a / "restored.png").read_bytes() == (b / "restored.png").read_bytes()
    first, second = load_file(a / "result.safetensors"), load_file(b / "result.safetensors")
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


@pytest.mark.parametrize("task", TASKS)
def test_simulate_mode(unveil, photo, tmp_path, task):
    out = tmp_path / "out"
    text = restore(unveil, photo, out, "--task", task, "--steps", 8)
    assert {p.name for p in out.iterdir()} == FILES
    height, width = (28, 32) if task == "superres" else (29, 32)
    assert Image.open(out / "restored.png").size == (width, height)
    assert Image.open(out / "restored.png").mode == "RGB"
    facts = json.loads((out / "result.json").read_text())
    assert facts["status"] == "DONE"
    assert set(facts["scores"]) >= {"baseline", "restored"}
    assert f"{facts['scores']['restored']['psnr']:.2f}" in text
    assert ("cropped from 32 x 29 to 32 x 28" in text) == (task == "superres")
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 5  # original, measurement, baseline, restored, error
    assert not re.search(r"(src|href)=.?https?:|@import|url\(", page)


@pytest.mark.parametrize("task", TASKS)
def test_measured_mode(unveil, photo, tmp_path, task):
    out, measured = tmp_path / "out", tmp_path / "measured.png"
    status, text, err = unveil("simulate", photo, "--task", task, "--out", measured)
    assert status == 0, err
    words = text.split("to restore it: ")[1].split()
    assert words[:2] == ["unveil", "restore"]
    restore(unveil, words[2], out, "--steps", 8, *words[3:])
    assert {p.name for p in out.iterdir()} == FILES
    height, width = (28, 32) if task == "superres" else (29, 32)
    assert Image.open(out / "restored.png").size == (width, height)
    facts = json.loads((out / "result.json").read_text())
    assert facts["scores"] == {}  # nothing is scored without a truth
    assert "PSNR" not in (out / "report.html").read_text()


def test_samples_are_of_the_posterior(unveil, photo, tmp_path):
    out = tmp_path / "out"
    words = ("--noise", 0.3, "--samples", 9, "--solver", "mmps", "--steps", 90)
    restore(unveil, photo, out, "--task", "denoise", *words)
    samples = load_file(out / "result.safetensors")["samples"][0]
    y = load_file(out / "problem.safetensors")["y"][0]
    # N(0.5, 0.3^2) seen with noise 0.3: the mean is half way to y, the standard deviation 0.3 / sqrt(2), somewhat less
    # with few steps
    std = 0.3 / 2**0.5
    error = (samples.mean(0) - (0.5 + y) / 2).square().mean().sqrt()
    assert 0.8 * std / 3 < error < 1.2 * std / 3
    assert samples.std(0).square().mean().sqrt() == pytest.approx(std, rel=0.1)


def test_samples_give_mean_and_spread(unveil, photo, tmp_path):
    out = tmp_path / "out"
    restore(unveil, photo, out, "--task", "denoise", "--noise", 0.3, "--samples", 4, "--steps", 8)
    names = {"mean.png", "std.png", *(f"sample-{k:02d}.png" for k in range(1, 5))}
    assert {p.name for p in out.iterdir()} == FILES | names
    samples = load_file(out / "result.safetensors")["samples"]
    assert samples.shape == (1, 4, 3, 29, 32)
    mean = (samples[0].mean(0).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(out / "mean.png")), mean)
    page = (out / "report.html").read_text()
    assert re.search(r"over 4 samples; brightest: [0-9.]+ or more", page)


@pytest.mark.parametrize("task", ["inpaint", "deblur", "superres", "denoise"])
def test_grey_stays_grey(unveil, photo, tmp_path, task):
    grey = tmp_path / "grey.png"
    Image.open(photo).convert("L").save(grey)
    restore(unveil, grey, tmp_path / "out", "--task", task, "--steps", 6, "--samples", 2)
    for name in ("restored", "measurement", "mean", "sample-02"):
        assert Image.open(tmp_path / "out" / f"{name}.png").mode == "L"


@pytest.mark.parametrize("solver", ["ddrm", "ddnm", "diffpir"])
@pytest.mark.parametrize("task", ["inpaint", "deblur", "superres", "denoise"])
def test_spectral_solvers_take_grey(unveil, photo, tmp_path, task, solver):
    grey = tmp_path / "grey.png"
    Image.open(photo).convert("L").save(grey)
    restore(unveil, grey, tmp_path / "out", "--task", task, "--solver", solver, "--steps", 10, "--noise", 0)
    job, _ = Job.load(tmp_path / "out")
    assert isinstance(job.problem.operator, Spectral)
    luminance = job.picture(load_file(tmp_path / "out" / "result.safetensors")["samples"][0])
    assert luminance.shape[1] == 1
    assert job.plain.residual(luminance).abs().max() < 1e-4  # without noise, these solvers meet the data
    assert Image.open(tmp_path / "out" / "restored.png").mode == "L"


def deep_grey(picture: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)


def with_alpha(picture: Image.Image) -> Image.Image:
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    return picture


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


KINDS = {
    "grey.png": (lambda p: p.convert("L"), {}, "L"),
    "deep-grey.png": (deep_grey, {}, "I;16"),
    "deep-grey.tif": (deep_grey, {}, "I;16"),
    "grey-alpha.png": (lambda p: with_alpha(p.convert("L")), {}, "LA"),
    "alpha.png": (with_alpha, {}, "RGBA"),
    "alpha.tif": (with_alpha, {}, "RGBA"),
    "palette.png": (lambda p: p.quantize(16), {}, "RGB"),
    "palette-alpha.png": (lambda p: p.quantize(16), {"transparency": 2}, "RGBA"),
    "palette-of-greys.png": (lambda p: p.convert("L").convert("RGB").quantize(16), {}, "L"),
    "one-bit.png": (lambda p: p.convert("1"), {}, "L"),
    "one-colour-transparent.png": (lambda p: p, {"transparency": (255, 0, 0)}, "RGBA"),
    "turned.jpg": (lambda p: p.rotate(90, expand=True), {"exif": orientation(6), "quality": 95}, "RGB"),
    "turned.tif": (lambda p: p.rotate(90, expand=True), {"exif": orientation(6)}, "RGB"),
    "cmyk.jpg": (lambda p: p.convert("CMYK"), {"quality": 95}, "RGB"),
    "moves.gif": (lambda p: p, {"save_all": True, "append_images": [Image.new("RGB", (32, 29))]}, "RGB"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_comes_back_as_what_it_was(unveil, photo, tmp_path, name):
    change, options, mode = KINDS[name]
    path, out = tmp_path / name, tmp_path / "out"
    change(Image.open(photo)).save(path, **options)
    words = ("--task", "denoise", "--measured", "--noise", 0.001, "--steps", 3)
    text = restore(unveil, path, out, *words)
    assert ("several pictures: the first is taken" in text) == (name == "moves.gif")
    back = Image.open(out / f"restored{'.tif' if path.suffix == '.tif' else '.png'}")
    assert (back.size, back.mode) == ((32, 29), mode)
    before = change(Image.open(photo)) if not name.startswith("turned") else Image.open(photo)
    if back.mode == "I;16":
        assert np.abs(np.asarray(back).astype(int) - np.asarray(before).astype(int)).max() < 0.02 * 65535
        return
    if "A" in back.mode:
        assert np.array_equal(np.asarray(back)[..., -1], np.asarray(Image.open(path).convert("RGBA"))[..., -1])
    difference = np.asarray(back.convert("RGB")).astype(int) - np.asarray(before.convert("RGB")).astype(int)
    assert np.abs(difference).mean() < 4  # JPEG and palettes of GIF lose a little


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 13)])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tiny_photographs(unveil, photo, tmp_path, task, size, mode):
    path, out = tmp_path / "tiny.png", tmp_path / "out"
    Image.open(photo).convert(mode).crop((9, 9, 9 + size[0], 9 + size[1])).save(path)
    words = {"inpaint": ("--mask", "random:0"), "deblur": ("--kernel", "box:1"), "superres": ("--measured",)}
    asked = ("--measured",) if (task, mode) == ("colorize", "L") else words.get(task, ())
    restore(unveil, path, out, "--task", task, *asked, "--steps", 3, "--samples", 2)
    factor = 4 if task == "superres" else 1
    assert Image.open(out / "restored.png").size == (factor * size[0], factor * size[1])


@pytest.mark.parametrize("task", ["inpaint", "deblur", "superres"])
def test_what_is_too_small_is_refused_in_one_line(unveil, photo, tmp_path, task):
    Image.open(photo).crop((9, 9, 10, 10)).save(tmp_path / "one.png")
    out = tmp_path / "out"
    status, text, err = unveil("restore", tmp_path / "one.png", "--prior", "toy", "--task", task, "--out", out)
    assert (status, text, err.count("\n")) == (2, "", 1)
    expected = {"inpaint": "choose another --mask", "deblur": "kernel is 13 x 13", "superres": "too small"}
    assert expected[task] in err
    assert not out.exists()


def test_colour_comes_to_a_grey_photograph(unveil, photo, tmp_path):
    grey = tmp_path / "grey.png"
    Image.open(photo).convert("L").save(grey)
    restore(unveil, grey, tmp_path / "out", "--task", "colorize", "--measured", "--steps", 6)
    assert Image.open(tmp_path / "out" / "restored.png").mode == "RGB"


def test_alpha_and_depth_are_kept(unveil, photo, tmp_path):
    colours = np.asarray(Image.open(photo)).astype(np.uint16) * 257
    alpha = np.linspace(0, 65535, 29 * 32).astype(np.uint16).reshape(29, 32, 1)
    data = np.concatenate([colours, alpha], -1)
    deep = tmp_path / "deep.png"
    with deep.open("wb") as file:
        png.Writer(32, 29, greyscale=False, alpha=True, bitdepth=16).write(file, data.reshape(29, -1))
    restore(unveil, deep, tmp_path / "out", "--task", "deblur", "--steps", 6)
    _, _, rows, info = png.Reader(filename=str(tmp_path / "out" / "restored.png")).asDirect()
    back = np.vstack([np.asarray(r) for r in rows]).reshape(29, 32, 4)
    assert info["bitdepth"] == 16
    assert np.array_equal(back[..., 3:], alpha)
    restore(unveil, deep, tmp_path / "big", "--task", "superres", "--scale", 2, "--measured", "--steps", 6)
    width, height, _, info = png.Reader(filename=str(tmp_path / "big" / "restored.png")).asDirect()
    assert (width, height, info["planes"], info["bitdepth"]) == (64, 58, 4, 16)


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_a_16_bit_tiff_stays_one(unveil, photo, tmp_path, planes):
    colours = np.asarray(Image.open(photo)).astype(np.uint16) * 257 + 3
    alpha = np.linspace(0, 65535, 29 * 32).astype(np.uint16).reshape(29, 32, 1)
    data = np.concatenate([colours[..., : 1 if planes < 3 else 3], alpha], -1)[..., :planes]
    extra = {} if planes in (1, 3) else {"extrasamples": ["unassalpha"]}
    kind = "rgb" if planes > 2 else "minisblack"
    stored = data[..., 0] if planes == 1 else data
    tifffile.imwrite(tmp_path / "deep.tif", stored, photometric=kind, **({"planarconfig": "contig"} | extra))
    out = tmp_path / "out"
    restore(unveil, tmp_path / "deep.tif", out, "--task", "inpaint", "--noise", 0, "--solver", "ddnm", "--steps", 4)
    assert {p.name for p in out.iterdir()} == {
        name.replace("ed.png", "ed.tif").replace("ment.png", "ment.tif") for name in FILES
    }
    back = tifffile.imread(out / "restored.tif").reshape(29, 32, planes)
    assert back.dtype == np.uint16
    assert np.array_equal(back[..., 3 if planes > 2 else 1 :], data[..., 3 if planes > 2 else 1 :])
    # what is known is kept, in more than 8 bits
    known = load_file(out / "problem.safetensors")["parameter.mask"].numpy() > 0
    assert np.abs(back[known].astype(int) - data[known].astype(int)).max() <= 2


def test_colour_comes_to_a_deep_grey_tiff(unveil, photo, tmp_path):
    Image.fromarray(np.asarray(Image.open(photo).convert("L")).astype(np.uint16) * 257).save(tmp_path / "grey.tif")
    restore(unveil, tmp_path / "grey.tif", tmp_path / "out", "--task", "colorize", "--measured", "--steps", 4)
    back = tifffile.imread(tmp_path / "out" / "restored.tif")
    assert (back.shape, back.dtype) == ((29, 32, 3), np.uint16)


def test_masks_and_kernels_from_files(unveil, photo, tmp_path):
    mask = np.full((29, 32), 255, np.uint8)
    mask[5:12, 6:20] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    restore(unveil, photo, tmp_path / "a", "--task", "inpaint", "--mask", tmp_path / "mask.png", "--steps", 4)
    kept = load_file(tmp_path / "a" / "problem.safetensors")["parameter.mask"]
    assert torch.equal(kept, torch.from_numpy(mask > 0).float())
    shown = np.asarray(Image.open(tmp_path / "a" / "measurement.png"))
    assert (shown[5:12, 6:20] == 128).all()
    kernel = np.ones((3, 5)) / 15
    np.save(tmp_path / "kernel.npy", kernel)
    restore(unveil, photo, tmp_path / "b", "--task", "deblur", "--kernel", tmp_path / "kernel.npy", "--steps", 4)
    Image.fromarray(np.full((3, 5), 200, np.uint8)).save(tmp_path / "kernel.png")
    restore(unveil, photo, tmp_path / "c", "--task", "deblur", "--kernel", tmp_path / "kernel.png", "--steps", 4)
    same_results(tmp_path / "b", tmp_path / "c")


def test_recipe_makes_the_same_bits(unveil, photo, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    words = ("--task", "inpaint", "--solver", "pigdm", "--set", "eta=0.5", "--samples", 2, "--steps", 7, "--seed", 3)
    restore(unveil, photo, a, *words)
    status, _, err = unveil("restore", "--recipe", a / "recipe.toml", "--out", b, "--quiet")
    assert status == 0, err
    same_results(a, b)
    recipe = tomllib.loads((a / "recipe.toml").read_text())
    assert recipe["run"]["options"]["eta"] == 0.5
    assert len(recipe["run"]["sigmas"]) == 8
    assert recipe["job"]["seed"] == 3
    assert tomllib.loads((b / "recipe.toml").read_text()) == recipe


def test_a_start_near_the_end(unveil, photo, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    words = ("--task", "superres", "--solver", "ccdf", "--noise", 0, "--steps", 6, "--sigma-start", 0.2)
    restore(unveil, photo, a, *words)
    recipe = tomllib.loads((a / "recipe.toml").read_text())
    assert recipe["run"]["sigmas"][0] == recipe["job"]["sigma_start"] == 0.2
    assert recipe["run"]["x_init"]
    status, _, err = unveil("restore", "--recipe", a / "recipe.toml", "--out", b, "--quiet")
    assert status == 0, err
    same_results(a, b)


def test_recipe_refuses_another_photograph_or_prior(unveil, toy, photo, tmp_path):
    restore(unveil, photo, tmp_path / "a", "--task", "denoise", "--steps", 4)
    recipe = tmp_path / "a" / "recipe.toml"
    toy.gain = 0.9
    status, _, err = unveil("restore", "--recipe", recipe, "--out", tmp_path / "b")
    assert (status, "prior differ" in err) == (2, True)
    toy.gain = 1.0
    Image.new("RGB", (32, 29)).save(photo)
    status, _, err = unveil("restore", "--recipe", recipe, "--out", tmp_path / "b")
    assert (status, "SHA-256 has changed" in err) == (2, True)
    photo.unlink()
    status, _, err = unveil("restore", "--recipe", recipe, "--out", tmp_path / "b")
    assert (status, "is gone" in err) == (2, True)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("solver", ["diffpir", "red-diff", "daps"])
def test_an_interrupted_run_ends_in_the_same_bits(unveil, toy, photo, tmp_path, solver):
    words = ("--task", "deblur", "--solver", solver, "--samples", 2, "--steps", 9)
    restore(unveil, photo, tmp_path / "whole", *words)
    calls = 0

    def interrupt() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    toy.before = interrupt
    out = tmp_path / "out"
    status, _, err = unveil("restore", photo, "--prior", "toy", "--out", out, "--quiet", *words)
    assert status == 130
    assert f"unveil resume {out}" in err
    assert (out / "checkpoint.safetensors").is_file()
    assert not (out / "result.json").exists()
    toy.before = None
    photo.unlink()  # a run can go on without its photograph
    status, _, err = unveil("resume", out, "--quiet")
    assert status == 0, err
    same_results(tmp_path / "whole", out)
    assert not (out / "checkpoint.safetensors").exists()
    assert unveil("resume", out)[1].startswith("the run in")


def test_ctrl_c_in_a_process_of_its_own(unveil, photo, tmp_path):
    """A real signal, a real network."""
    torch.manual_seed(0)
    config = {"channels": 3, "widths": [8], "blocks": 1, "unshuffle": 2, "features": 8}
    weights, out = tmp_path / "tiny.safetensors", tmp_path / "out"
    save_prior(weights, UNet(**config), config=config, value_range=(-1, 1), shape=(3, None, None))
    words = ["--prior", str(weights), "--task", "inpaint", "--solver", "dps", "--steps", "250", "--threads", "1"]
    command = [sys.executable, "-m", "unveil.cli", "restore", str(photo), *words, "--out", str(out)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # which tests in the background inherit ignored
    )
    while not (out / "measurement.png").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"unveil resume {out}".encode() in err
    assert b"Traceback" not in err
    assert unveil("resume", out, "--quiet")[0] == 0
    status, _, err = unveil("restore", photo, *words, "--out", tmp_path / "whole", "--quiet")
    assert status == 0, err
    same_results(tmp_path / "whole", out)


def test_progress_goes_to_standard_error(unveil, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("unveil.app.progress.LINE_SECONDS", 0.0)
    status, out, err = unveil(
        "restore", photo, "--prior", "toy", "--task", "denoise", "--steps", 5, "--out", tmp_path / "out"
    )
    assert status == 0
    assert re.search(r"step 2 of 5, [0-9.]+ NFE/s, \d+ s left", err)
    assert "step 2 of" not in out


def test_a_diverging_run_is_reported(unveil, toy, photo, tmp_path):
    toy.gain = -1e6
    status, text, _ = unveil(
        "restore", photo, "--prior", "toy", "--task", "denoise", "--solver", "red-diff", "--set", "optimizer=sgd",
        "--set", "lr=1e5", "--steps", 20, "--out", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert status == 3
    assert "DIVERGED" in text
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "DIVERGED"
    assert torch.isfinite(load_file(tmp_path / "out" / "result.safetensors")["samples"]).all()
    assert "DIVERGED" in (tmp_path / "out" / "report.html").read_text()
