"""``unveil reconstruct``: instruments from file to images with uncertainty, what is refused, the same bits again."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unveil import registry
from unveil.app.instruments import measure
from unveil.app.reconstruct import _held
from unveil.app.scan import read_scan
from unveil.errors import InputError
from unveil.io.data import read_data
from unveil.operators import (
    PET,
    FanBeam,
    FourierMagnitude,
    Interferometer,
    Mosaic,
    MultiCoilMRI,
    NonCartesianMRI,
    ParallelBeam,
    birdcage_maps,
    radial_trajectory,
    random_lines,
    views,
)
from unveil.priors.base import Prior, expand
from unveil.rng import single
from unveil.training.phantoms import phantom

N = 32
TRUTH = torch.from_numpy(np.stack([phantom(N, np.random.default_rng(k)) for k in (3, 4)]))
NOISE = single(0, 1, purpose="test")


class Smooth(Prior):
    """One channel of any size: pixels independent N(0.2, 0.3^2)."""

    value_range = (0.0, 1.0)
    sigma_range = (0.001, 40.0)
    before = None

    def __init__(self, channels: int = 1, value_range: tuple[float, float] = (0.0, 1.0)) -> None:
        self.shape, self.value_range = (channels, None, None), value_range

    def denoise(self, x, sigma):
        if Smooth.before is not None:
            Smooth.before()
        s = expand(sigma, x)
        return 0.2 + (x - 0.2) * (0.09 / (0.09 + s * s))

    def in_range(self, lo, hi):
        assert (lo, hi) == self.value_range
        return self

    def describe(self):
        return {"name": "smooth", "channels": self.shape[0]}


@pytest.fixture(autouse=True)
def priors():
    registry.names("prior")
    registry._entries["prior"] |= {"grey": Smooth(), "complex": Smooth(2, (-1.0, 1.0))}
    yield
    Smooth.before = None
    for name in ("grey", "complex"):
        del registry._entries["prior"][name]


def noisy(y: torch.Tensor, sigma: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    noise = torch.randn((*y.shape, 2), generator=g)
    return y + sigma * (torch.view_as_complex(noise) if y.is_complex() else noise[..., 0])


def config(tmp_path, text: str):
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "instrument.toml"
    path.write_text(text)
    return path


def run(unveil, file, instrument, out, *words):
    status, text, err = unveil("reconstruct", file, "--instrument", instrument, "--out", out, "--quiet", *words)
    assert status == 0, err
    return text


FAST = ("--prior", "grey", "--steps", 6, "--samples", 3, "--solver", "daps")


def ct_file(tmp_path, scale: float = 0.02, sigma: float = 0.2):
    """A sinogram of two slices in attenuation times mm, pixels of 2 mm."""
    A = ParallelBeam(views(24), (N, N), 48, pixel=2.0, spacing=2.0)
    np.save(tmp_path / "sinogram.npy", noisy(A(TRUTH[:, None]) * scale, sigma * scale)[:, 0].numpy())
    np.save(tmp_path / "angles.npy", views(24).numpy())
    np.save(tmp_path / "truth.npy", (TRUTH * scale).numpy())
    return tmp_path / "sinogram.npy", "angles = 'angles.npy'\nsize = [32, 32]\npixel = 2.0\nspacing = 2.0\n"


# -- instruments -----------------------------------------------------------------------------------------------------


def test_tomography(unveil, tmp_path) -> None:
    file, text = ct_file(tmp_path)
    settings = config(tmp_path, text + 'noise = 0.004\noutput = ".nii.gz"')
    out = tmp_path / "out"
    said = run(unveil, file, "ct", out, "--config", settings, "--truth", tmp_path / "truth.npy", *FAST)
    found = {p.name for p in out.iterdir()}
    assert found == {
        "reconstruction.nii.gz", "uncertainty.nii.gz", "filtered-back-projection.nii.gz", "SART.nii.gz",
        "total-variation.nii.gz", "problem.safetensors", "recipe.toml", "result.json", "report.html", "slices",
    }  # fmt: skip
    images = {name: read_data(out / f"{name}.nii.gz") for name in ("reconstruction", "total-variation")}
    for x, form in images.values():
        assert x.shape == (2, N, N)
        assert float((x - 0.02 * TRUTH).norm() / (0.02 * TRUTH).norm()) < 0.45  # in the units of the data
        assert form.spacing[-2:] == (2.0, 2.0)
    facts = json.loads((out / "result.json").read_text())
    assert [s["number"] for s in facts["slices"]] == [0, 1]
    assert facts["slices"][0]["scores"].keys() == {
        "reconstruction", "filtered back-projection", "SART", "total variation"
    }  # fmt: skip
    assert "PSNR" in said
    assert (read_data(out / "uncertainty.nii.gz")[0] > 0).all()
    page = (out / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 2 * 7


def test_the_fan_of_a_scanner_and_transmitted_light(unveil, tmp_path) -> None:
    A = FanBeam(views(24, 360.0), (N, N), 64, source=90.0, distance=60.0, curved=True, spacing=2.0)
    light = 1e4 * torch.exp(-noisy(A(TRUTH[:1, None]), 0.05) * 0.05)[0, 0]
    np.savez(tmp_path / "scan.npz", light=light.numpy().T, angles=torch.deg2rad(views(24, 360.0)).numpy())
    settings = config(
        tmp_path,
        'beam = "arc"\nangles = ":angles"\nunit = "radians"\nsize = [32, 32]\nsource = 90.0\ndistance = 60.0\n'
        'spacing = 2.0\ndata = "transmission"\ni0 = 1e4\naxes = "detector view"',
    )
    out = tmp_path / "out"
    run(unveil, f"{tmp_path / 'scan.npz'}:light", "ct", out, "--config", settings, *FAST)
    x, _ = read_data(out / "total-variation.npy")
    assert float((x - 0.05 * TRUTH[0]).norm() / (0.05 * TRUTH[0]).norm()) < 0.25


def kspace(coils: int = 4, sigma: float = 0.01) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Of both slices with a slowly varying phase, two columns in three: data, maps, images."""
    maps = birdcage_maps(coils, (N, N))
    phase = torch.linspace(0, 1.5, N).expand(N, N)
    images = torch.stack([TRUTH * phase.cos(), TRUTH * phase.sin()], 1)
    A = MultiCoilMRI(random_lines((N, N), 1.4, 0.3, seed=2), maps)
    y = noisy(A(images) * 1e-4, sigma * 1e-4) * A.measured
    return y.numpy(), maps, images


@pytest.mark.parametrize("prior", ["grey", "complex"])
def test_coils_in_the_layout_of_fastmri(unveil, tmp_path, prior) -> None:
    h5py = pytest.importorskip("h5py")
    data, maps, _ = kspace()
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"], file["ismrmrd_header"] = data, b"<ismrmrdHeader/>"
        file.attrs["acquisition"] = "AXT1"
    np.save(tmp_path / "maps.npy", maps.numpy())
    settings = config(tmp_path, 'maps = "maps.npy"\nslices = [1]\nnoise = 1e-6\ncalibration = 8')
    out = tmp_path / "out"
    run(unveil, tmp_path / "scan.h5", "mri", out, "--config", settings, *FAST[2:], "--prior", prior)
    x, form = read_data(out / "reconstruction.h5")
    assert form.facts["acquisition"] == "AXT1"
    assert form.header == "<ismrmrdHeader/>"
    assert x.is_complex() == (prior == "complex")
    error = float((x.abs() * 1e4 - TRUTH[1]).norm() / TRUTH[1].norm())
    zero = read_data(out / "zero-filled.h5")[0]
    assert error < 0.3 < 3 * float((zero.abs() * 1e4 - TRUTH[1]).norm() / TRUTH[1].norm())


def test_one_coil_and_a_mask(unveil, tmp_path) -> None:
    data = kspace(1, 0.03)[0]
    parts = np.stack([data.real, data.imag], -1)[:, 0]
    mask = (np.abs(data).sum((0, 1, 2)) > 0).astype(np.float32)
    np.savez(tmp_path / "scan.npz", kspace=parts, mask=mask)
    settings = config(
        tmp_path, '[mri]\naxes = "slice row column part"\nmask = ":mask"\nsize = [32, 32]\ncalibration = 8'
    )
    out = tmp_path / "out"
    run(unveil, tmp_path / "scan.npz", "mri", out, "--config", settings, *FAST, "--solver", "daps")
    assert read_data(out / "reconstruction.npy")[0].shape == (2, N, N)
    facts = json.loads((out / "result.json").read_text())
    assert 0.3 < facts["slices"][0]["chi2"] < 3  # the noise was found in the data


def test_spokes(unveil, tmp_path) -> None:
    points = radial_trajectory(24, 48)
    maps = birdcage_maps(2, (N, N))
    A = NonCartesianMRI(points, (N, N), maps)
    y = noisy(A(torch.stack([TRUTH[:1], torch.zeros(1, N, N)], 1)), 0.02)
    np.savez(tmp_path / "scan.npz", kspace=y.numpy(), points=points.numpy(), maps=maps.numpy())
    settings = config(
        tmp_path,
        'trajectory = ":points"\nmaps = ":maps"\nsize = [32, 32]\naxes = "slice coil sample"\nnoise = 0.02',
    )
    out = tmp_path / "out"
    run(unveil, tmp_path / "scan.npz", "mri", out, "--config", settings, *FAST)
    x, _ = read_data(out / "total-variation.npy")
    assert float((x - TRUTH[0]).norm() / TRUTH[0].norm()) < 0.2


def test_emission(unveil, tmp_path) -> None:
    A = PET(ParallelBeam(views(24), (N, N), 48), attenuation=torch.full((N, N), 0.01))
    mean = 40 * A(TRUTH[:1, None])[0, 0] + 5
    counts = single(3, 1).poisson(mean[None])[0]
    np.save(tmp_path / "mu.npy", np.full((N, N), 0.01, dtype=np.float32))
    np.save(tmp_path / "counts.npy", counts.numpy())
    settings = config(
        tmp_path, "angles = {count = 24}\nsize = [32, 32]\nattenuation = 'mu.npy'\nbackground = [[5.0]]\nwhite = 40"
    )
    out = tmp_path / "out"
    said = run(unveil, tmp_path / "counts.npy", "pet", out, "--config", settings, *FAST, "--solver", "dps")
    assert "whole numbers" not in said
    x = read_data(out / "MLEM.npy")[0]
    assert float((x - 40 * TRUTH[0]).norm() / (40 * TRUTH[0]).norm()) < 0.3


def test_scaled_counts_are_noticed(tmp_path) -> None:
    np.save(tmp_path / "counts.npy", np.full((24, 48), 0.3, dtype=np.float32))
    for instrument, text in (
        ("pet", "angles = {count = 24}\nsize = [32, 32]"),
        ("diffraction", 'size = [12, 24]\nnoise = "poisson"'),
    ):
        notes = read_scan(tmp_path / "counts.npy", instrument, config(tmp_path, text)).notes
        assert any("not whole numbers (the largest is 0.3)" in note for note in notes), notes


def test_a_mosaic_of_sixteen_bits(unveil, tmp_path) -> None:
    tifffile = pytest.importorskip("tifffile")
    image = torch.stack([TRUTH[0], TRUTH[1], (TRUTH[0] + TRUTH[1]) / 2])[None]
    y = noisy(Mosaic("gbrg")(image), 0.01)[0, 0].clamp(0, 1) * 16383
    tifffile.imwrite(tmp_path / "raw.tif", y.round().numpy().astype(np.uint16))
    settings = config(tmp_path, 'pattern = "gbrg"\nwhite = 16383\noutput = ".npy"')
    out = tmp_path / "out"
    run(unveil, tmp_path / "raw.tif", "mosaic", out, "--config", settings, *FAST[2:], "--prior", "toy")
    x = read_data(out / "reconstruction.npy")[0]
    assert x.shape == (3, N, N)
    plain = read_data(out / "interpolated.npy")[0]
    assert float((plain / 16383 - image[0]).square().mean()) < 0.01


def test_visibilities(unveil, tmp_path) -> None:
    uv = 20e3 * (torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1)
    A = Interferometer(uv, (N, N), 4.0)
    np.savez(tmp_path / "v.npz", y=noisy(A(TRUTH[:1, None]), 0.02)[0, 0].numpy(), uv=uv.numpy())
    settings = config(tmp_path, 'uv = ":uv"\nsize = [32, 32]\npixel = 4.0\nnoise = 0.02')
    out = tmp_path / "out"
    run(unveil, tmp_path / "v.npz", "interferometer", out, "--config", settings, *FAST)
    assert read_data(out / "reconstruction.npy")[0].shape == (N, N)


def test_diffraction(unveil, tmp_path) -> None:
    A = FourierMagnitude((1, 16, 12), 2.0, 2)
    image = TRUTH[:1, None, 8:24, 10:22] * 7
    np.save(tmp_path / "d.npy", torch.fft.fftshift(A(image), (-2, -1))[0, 0].numpy())
    out = tmp_path / "out"
    settings = config(tmp_path, "size = [16, 12]\nnoise = 0.01")
    run(unveil, tmp_path / "d.npy", "diffraction", out, "--config", settings, *FAST)
    x = read_data(out / "hybrid-input-output.npy")[0]
    y = A(x[None, None])
    assert float((y - A(image)).norm() / A(image).norm()) < 0.05  # an image with these magnitudes
    assert "as many times" in refused(unveil, tmp_path / "x", tmp_path / "d.npy", "diffraction", "size = [16, 16]")


BY_DEFAULT = {
    "ct": {"inner": "exact", "spread": 1.0},
    "mosaic": {"inner": "exact", "spread": 0.7},
    "pet": {"inner": "laplace", "spread": 0.7},
    "diffraction": {"inner_steps": 40, "ode_steps": 2},
}


@pytest.mark.parametrize("instrument", BY_DEFAULT)
def test_the_solver_that_suits_an_instrument(unveil, tmp_path, instrument) -> None:
    """Its samples are as far from the truth as they say; a single estimate is another solver's business."""
    tmp_path.mkdir(exist_ok=True)
    image, prior = TRUTH[:1, None], "grey"
    if instrument == "ct":
        (tmp_path / "a").mkdir()
        file, text = ct_file(tmp_path)
        text += "slices = 0"
    elif instrument == "mosaic":
        file, prior, text = tmp_path / "m.npy", "toy", 'pattern = "rggb"\nnoise = 0.05'
        np.save(file, noisy(Mosaic("rggb")(image.expand(1, 3, N, N)), 0.05)[0, 0].numpy())
    elif instrument == "pet":
        file, text = tmp_path / "p.npy", "angles = {count = 24}\nsize = [32, 32]\nwhite = 3"
        counts = single(3, 1).poisson(3 * PET(ParallelBeam(views(24), (N, N), 48))(image).clamp(min=0))
        np.save(file, counts[0, 0].numpy())
    else:
        file, text = tmp_path / "d.npy", 'size = [16, 12]\nnoise = "poisson"'
        mean = FourierMagnitude((1, 16, 12), 2.0, 2)(image[..., 8:24, 10:22] * 20)
        np.save(file, torch.fft.fftshift(single(3, 1).poisson(mean), (-2, -1))[0, 0].numpy())
    words = ("--config", config(tmp_path, text), "--prior", prior, "--samples", 4, "--steps", 5)
    said = run(unveil, file, instrument, tmp_path / "out", *words)
    assert "solver: daps, 5 steps: of this instrument's solvers the one whose samples differ" in said
    made = json.loads((next((tmp_path / "out" / "slices").iterdir()) / "result.json").read_text())["recipe"]
    assert made["options"].items() >= BY_DEFAULT[instrument].items()
    result = json.loads((tmp_path / "out" / "result.json").read_text())["slices"][0]
    assert 0.2 < result["chi2"] < 5  # of photon counts, and rays that miss the body, too
    said = run(unveil, file, instrument, tmp_path / "one", *words, "--samples", 1)
    assert ("solver: daps" in said) == (instrument == "diffraction")


def test_the_share_of_the_truth_that_samples_should_hold() -> None:
    draws = torch.randn(20000, 1, 1, 12, generator=torch.Generator().manual_seed(0))
    for count, nominal in ((8, 7 / 9), (19, 0.9), (59, 0.9)):
        repeats = 20000 // (count + 1)
        rows = draws[: repeats * (count + 1)].reshape(repeats, count + 1, 1, 1, 12)
        found = [_held(row[1:], row[0]) for row in rows]
        assert found[0]["nominal"] == pytest.approx(nominal)
        assert sum(f["coverage"] for f in found) / repeats == pytest.approx(nominal, abs=0.02)


def test_an_image_and_its_mirror_image_have_the_same_magnitudes(unveil, tmp_path) -> None:
    image = TRUTH[:1, None, 8:24, 10:22] * 20
    y = FourierMagnitude((1, 16, 12), 2.0, 1)(image)
    np.save(tmp_path / "d.npy", torch.fft.fftshift(y, (-2, -1))[0, 0].numpy())
    settings = config(tmp_path, "size = [16, 12]\nnoise = 0.02\npower = 1")
    scores = []
    for name, truth in (("as", image), ("mirrored", image.flip((-2, -1)))):
        np.save(tmp_path / "truth.npy", truth[0, 0].numpy())
        words = (
            "--config",
            settings,
            "--prior",
            "grey",
            "--samples",
            4,
            "--steps",
            5,
            "--truth",
            tmp_path / "truth.npy",
        )
        run(unveil, tmp_path / "d.npy", "diffraction", tmp_path / name, *words)
        scores.append(json.loads((tmp_path / name / "result.json").read_text())["slices"][0]["scores"])
    assert scores[0] == scores[1]


def test_white_of_a_sky_is_not_that_of_its_dirty_image(tmp_path) -> None:
    """No baseline is zero: what is measured has no mean."""
    uv = 20e3 * (torch.rand(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1)
    y = noisy(Interferometer(uv[uv.norm(dim=1) > 1e3], (N, N), 4.0)(TRUTH[:1, None]), 0.02)[0, 0]
    np.savez(tmp_path / "v.npz", y=y.numpy(), uv=uv[uv.norm(dim=1) > 1e3].numpy())
    settings = config(tmp_path, 'uv = ":uv"\nsize = [32, 32]\npixel = 4.0\nnoise = 0.02')
    white = measure(read_scan(f"{tmp_path / 'v.npz'}:y", "interferometer", settings), 0, 1).white
    assert 0.8 < white / float(TRUTH[0].max()) < 1.2


def test_a_prior_of_colours(unveil, tmp_path) -> None:
    file, text = ct_file(tmp_path)
    out = tmp_path / "out"
    run(unveil, file, "ct", out, "--config", config(tmp_path, text + "slices = 0"), *FAST[2:], "--prior", "toy")
    x = read_data(out / "reconstruction.npy")[0]
    assert x.shape == (N, N)
    assert float((x - 0.02 * TRUTH[0]).norm() / (0.02 * TRUTH[0]).norm()) < 0.5


# -- going on --------------------------------------------------------------------------------------------------------


def test_resumed_runs_give_the_same_bits(unveil, tmp_path) -> None:
    file, text = ct_file(tmp_path)
    settings = config(tmp_path, text)
    calls = [0, 0]

    def interrupt() -> None:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise KeyboardInterrupt

    Smooth.before = interrupt
    run(unveil, file, "ct", tmp_path / "whole", "--config", settings, *FAST, "--solver", "daps")
    calls = [0, 3 * calls[0] // 4]  # within the second slice
    out = tmp_path / "parts"
    words = ("reconstruct", file, "--instrument", "ct", "--config", settings, "--out", out, "--quiet", *FAST)
    status, _, err = unveil(*words, "--solver", "daps")
    assert status == 130
    assert f"unveil resume {out}" in err
    assert not (out / "report.html").exists()
    Smooth.before = None
    file.unlink()  # the folder has all that is needed
    status, text, err = unveil("resume", out, "--quiet")
    assert status == 0, err
    for k in (0, 1):
        a, b = (load_file(tmp_path / d / "slices" / f"{k:04d}" / "result.safetensors") for d in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (out / "reconstruction.npy").read_bytes() == (tmp_path / "whole" / "reconstruction.npy").read_bytes()
    assert "is complete" in unveil("resume", out)[1]


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(unveil, tmp_path, file, instrument, text, *words) -> str:
    out = tmp_path / "out"
    settings = config(tmp_path, text)
    status, _, err = unveil(
        "reconstruct", file, "--instrument", instrument, "--config", settings, "--out", out, *FAST, *words
    )
    assert status == 2, err
    assert err.count("\n") == 1
    assert not out.exists()
    return err


CT = "angles = 'angles.npy'\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "angles of the views are missing"),
        ("angels = 3", "did you mean angles"),
        ("angles = [1, ", "is not TOML"),
        ("angles = 'nowhere.npy'", "there is no file"),
        ("angles = {count = 20}", "20 angles, and"),
        (CT + 'axes = "slice detector view"', 'looks transposed, say axes = "slice detector view"'),
        (CT + 'axes = "view detector"', "different word of slice, view, detector"),
        (CT + 'axes = "slice view column"', "different word of slice, view, detector"),
        (CT + 'unit = "grad"', "degrees"),
        (CT + 'beam = "fan"', "needs the image's size"),
        (CT + 'beam = "fan"\nsize = [32, 32]', "needs source"),
        (CT + "source = 3.0", "belongs to fan and cone"),
        (CT + 'beam = "helix"', "unknown beam"),
        (CT + 'noise = "much"', "noise is a number"),
        (CT + "slices = 7", "a list of numbers below 2"),
        (CT + "white = -1.0", "white must be larger"),
        (CT + 'data = "transmission"\ni0 = -5.0', "i0 must be > 0"),
        (CT + "i0 = 1e5", "belongs to transmitted intensities"),
        (CT + 'data = "counts"', 'data is "line-integrals" or "transmission"'),
        (CT + "slices = [1, 1]", "names one twice"),
        (CT + "noise = -1", "noise must be >= 0"),
        (CT + "pixel = 0", "pixel must be > 0"),
        (CT + "pixel = 1e-30", "out of all range"),
        (CT + "spacing = 1000", "no ray meets the image"),
        (CT + "size = [1000000, 1000000]", "more than can be computed with"),
        (CT + 'output = "image.npy"', "output is the suffix of a kind of file"),
        ("angles = {count = 24.5}", "count a number of views"),
        ("angles = {count = 1000000000}", "count a number of views"),
        (CT + "fwhm = 2", "unknown entry 'fwhm'"),
        (CT + "axes = 3", "axes is a text or a list of texts"),
        (CT + "slices = true", "a list of numbers below 2"),
        (CT + "noise = nan", "noise is a number"),
        ("angles = [nan, 1.0]", "angles in the configuration holds NaN"),
        ("angles = [[1.0], 2.0]", "angles is a file, or numbers"),
        (CT + 'output = ".xyz"', "cannot tell what"),
        (CT + 'output = ".dcm"', "needs the headers of one"),
    ],
)
def test_tomography_that_does_not_fit(unveil, tmp_path, text, words) -> None:
    file, _ = ct_file(tmp_path)
    if "transposed" in words:
        np.save(file, np.load(file).transpose(0, 2, 1)[:, :24, :24].copy())
        np.save(tmp_path / "angles.npy", views(17).numpy())
        np.save(file, np.random.default_rng(0).random((2, 17, 30)))
    assert words in refused(unveil, tmp_path, file, "ct", text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "4 coils, and no sensitivity maps are given"),
        ("maps = 'wrong.npy'", "the data need [coils, H, W] = (4, 32, 32)"),
        ("maps = 'maps.npy'\nsize = [320, 320]", "is 32 x 32, the configuration says size = [320, 320]"),
        ("maps = 'maps.npy'\nmask = 'mask.npy'", "the mask"),
        ("maps = 'maps.npy'\naxes = 'coil row column'", "different word of"),
        ("maps = 2.0", "the data need [coils, H, W] = (4, 32, 32)"),
        ("maps = 'espirit'\ncalibration = 'wide'", "calibration is a whole number"),
        ("maps = 'maps.npy'\ncalibration = 33", "calibration is a side of the middle of k-space, 1 to 32"),
        ("maps = 'maps.npy'\nphase = 'known'", 'phase is "smooth" or "none"'),
        ("maps = 'maps.npy'\nblack = 0.1", "mri has no black, magnitudes start at 0"),
        ("maps = 'maps.npy'\nwhite = 0", "white must be > 0"),
        ("maps = 'low-resolution'\ncalibration = 24", "of the middle 24 x 24 of k-space was not measured"),
    ],
)
def test_k_space_that_does_not_fit(unveil, tmp_path, text, words) -> None:
    data, maps, _ = kspace()
    np.save(tmp_path / "scan.npy", data)
    np.save(tmp_path / "maps.npy", maps.numpy())
    np.save(tmp_path / "wrong.npy", maps.numpy()[:3])
    np.save(tmp_path / "mask.npy", np.ones(31))
    assert words in refused(unveil, tmp_path, tmp_path / "scan.npy", "mri", text)


def test_k_space_in_another_order(unveil, tmp_path) -> None:
    data, maps, _ = kspace()
    np.save(tmp_path / "maps.npy", maps.numpy())
    np.save(tmp_path / "scan.npy", data.transpose(2, 3, 1, 0))  # as MATLAB has it
    text = "maps = 'maps.npy'\n"
    said = refused(unveil, tmp_path, tmp_path / "scan.npy", "mri", text)
    assert "would have 32 coils of 4 x 2 points: name its axes" in said
    scan = read_scan(tmp_path / "scan.npy", "mri", config(tmp_path, text + 'axes = "row column coil slice"'))
    assert np.array_equal(scan.arrays["y"].numpy(), data)


def test_zero_frequency_in_the_corner_gives_a_note(tmp_path) -> None:
    data, maps, _ = kspace()
    np.save(tmp_path / "maps.npy", maps.numpy())
    np.save(tmp_path / "scan.npy", data)
    settings = config(tmp_path, "maps = 'maps.npy'\nnoise = 1e-6\ncalibration = 8")
    assert not any("corners" in note for note in read_scan(tmp_path / "scan.npy", "mri", settings).notes)
    np.save(tmp_path / "scan.npy", np.fft.ifftshift(data, (-2, -1)))
    assert any("in its corners" in note for note in read_scan(tmp_path / "scan.npy", "mri", settings).notes)


def test_spokes_that_do_not_fit(unveil, tmp_path) -> None:
    points = radial_trajectory(4, 16)
    np.savez(tmp_path / "scan.npz", kspace=np.ones((1, 1, 64), np.complex64), coils=np.ones((1, 3, 64), np.complex64))
    for name, values in {"points": points, "fewer": points[:60], "cycles": points * 5, "far": points / 7}.items():
        np.save(tmp_path / f"{name}.npy", values.numpy())

    def said(name: str, size: str = "size = [16, 16]", key: str = "kspace") -> str:
        text = f"trajectory = '{name}.npy'\n{size}"
        return refused(unveil, tmp_path, f"{tmp_path / 'scan.npz'}:{key}", "mri", text)

    assert "has (60, 2) points, the data 64 samples" in said("fewer")
    assert "points reach 15.71 radians per pixel, the grid resolves pi" in said("cycles")
    assert "needs the size of the image" in said("points", "")
    assert "needs the size of the image" in said("points", "size = [16, 16, 16]")
    assert "has 3 coil(s) on a trajectory: give their maps as a file" in said("points", key="coils")
    assert "has () points" in refused(
        unveil, tmp_path, f"{tmp_path}/scan.npz:kspace", "mri", "trajectory = 1\nsize = [16, 16]"
    )
    assert "mask belongs to k-space on a grid" in said("points", "size = [16, 16]\nmask = 1")
    assert "give their maps as a file" in said("points", 'size = [16, 16]\nmaps = "espirit"')
    settings = config(tmp_path, "trajectory = 'far.npy'\nsize = [16, 16]\nnoise = 1.0")
    notes = read_scan(f"{tmp_path / 'scan.npz'}:kspace", "mri", settings).notes
    assert any("points lie within 0.449 of zero: they are taken as radians per pixel" in note for note in notes)


@pytest.mark.parametrize(
    ("instrument", "text", "words"),
    [
        ("pet", "noise = 1.0", "pet has no noise, the noise of counts is Poisson's"),
        ("pet", "background = [1.0, 2.0]", "background has shape (2,), the counts of a slice (24, 48)"),
        ("pet", "background = -1.0", "background is the mean of counts"),
        ("pet", "background = 1e300", "absurdly large"),
        ("pet", "attenuation = 1000.0", "no count would reach the detectors"),
        ("pet", "fwhm = -1.0", "fwhm must be >= 0"),
        ("mosaic", "pattern = 'rggb'\nblack = 2.0", "white must be larger than black"),
        ("mosaic", "pattern = 'rgb'", "pattern"),
        ("diffraction", "size = [16, 16]\npower = 3", "power is 1 or 2"),
        ("diffraction", "size = [16, 16]\ncentred = 1", "centred is true or false"),
        ("diffraction", "size = [16, 16]\nnoise = true", "noise is a number"),
        ("diffraction", "size = [16, 16]\nnoise = 'poisson'\npower = 2", "leave out power"),
        ("mosaic", "pattern = 'rggb'\nnoise = 'poisson'", "noise is a number"),
    ],
)
def test_settings_that_do_not_fit(unveil, tmp_path, instrument, text, words) -> None:
    counts = np.random.default_rng(0).poisson(9.0, (24, 48)).astype(np.float32)
    np.save(tmp_path / "counts.npy", counts if instrument == "pet" else counts[:, :24])
    geometry = "angles = {count = 24}\nsize = [32, 32]\n" if instrument == "pet" else ""
    assert words in refused(unveil, tmp_path, tmp_path / "counts.npy", instrument, geometry + text)


def test_a_mosaic_with_a_black_level_is_the_mosaic_without(tmp_path) -> None:
    y = np.random.default_rng(0).random((16, 16)).astype(np.float32)
    for name, values, text in (("plain", y, ""), ("raw", 64 + 960 * y, "black = 64\nwhite = 1024\n")):
        np.save(tmp_path / f"{name}.npy", values)
        noise = 0.1 if name == "plain" else 96
        settings = config(tmp_path / name, f"pattern = 'rggb'\nnoise = {noise}\n{text}")
        found = measure(read_scan(tmp_path / f"{name}.npy", "mosaic", settings), 0, 3)
        torch.testing.assert_close(found.y[0, 0], torch.from_numpy(y), rtol=0, atol=1e-6)
        assert float(found.noise.sigma) == pytest.approx(0.1)


def test_packages_that_are_missing(unveil, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "scan.npy", kspace()[0])
    (tmp_path / "scan.h5").write_bytes(b"")
    file, text = ct_file(tmp_path)
    for name in ("sigpy", "sigpy.mri", "sigpy.mri.app", "h5py", "nibabel"):
        monkeypatch.setitem(sys.modules, name, None)
    said = refused(unveil, tmp_path, tmp_path / "scan.npy", "mri", 'maps = "espirit"\ncalibration = 8')
    assert "ESPIRiT needs the package sigpy: pip install 'unveil[mri]'" in said
    said = refused(unveil, tmp_path, tmp_path / "scan.h5", "mri", "")
    assert "needs the package h5py: pip install 'unveil[files]'" in said
    said = refused(unveil, tmp_path, file, "ct", text + 'output = ".nii.gz"')
    assert "needs the package nibabel: pip install 'unveil[files]'" in said


def estimated(path, instrument: str, settings) -> float:
    """The standard deviation in the units of the data, of which a note tells."""
    scan = read_scan(path, instrument, settings)
    (note,) = [note for note in scan.notes if "the noise is estimated" in note]
    return float(note.split(" in their units")[0].split()[-1])


def test_noise_that_is_not_said_is_estimated_with_a_note(tmp_path) -> None:
    file, text = ct_file(tmp_path)
    assert 0.7 < estimated(file, "ct", config(tmp_path, text)) / (0.2 * 0.02) < 1.6
    assert not any("estimated" in note for note in read_scan(file, "ct", config(tmp_path, text + "noise = 1")).notes)
    points = radial_trajectory(30, N)
    image = torch.stack([TRUTH[:1], 0 * TRUTH[:1]], 1)
    np.save(tmp_path / "points.npy", points.numpy())
    np.save(tmp_path / "spokes.npy", noisy(NonCartesianMRI(points, (N, N))(image), 0.1).numpy())
    settings = config(tmp_path, 'trajectory = "points.npy"\nsize = [32, 32]\naxes = "coil slice sample"')
    assert 0.8 < estimated(tmp_path / "spokes.npy", "mri", settings) / 0.1 < 1.3
    y = FourierMagnitude((1, N, N), 2.0, 2)(20 * TRUTH[:1, None])
    np.save(tmp_path / "d.npy", torch.fft.fftshift(noisy(y, 0.5), (-2, -1))[0, 0].clamp(min=0).numpy())
    settings = config(tmp_path, "size = [32, 32]\nwhite = 20")
    assert 0.5 < estimated(tmp_path / "d.npy", "diffraction", settings) / 0.5 < 1.5
    np.save(tmp_path / "d.npy", np.zeros((64, 64), np.float32))
    with pytest.raises(InputError, match="say noise = "):
        read_scan(tmp_path / "d.npy", "diffraction", settings)


def test_values_that_do_not_fit(unveil, tmp_path) -> None:
    data, _, _ = kspace(1)
    np.save(tmp_path / "three.npy", data[:, 0])
    assert "say what its axes are" in refused(unveil, tmp_path, tmp_path / "three.npy", "mri", "")
    np.save(tmp_path / "real.npy", data.real)
    assert "real values (2, 1, 32, 32)" in refused(unveil, tmp_path, tmp_path / "real.npy", "mri", "")
    broken = data.copy()
    broken[0, 0, 3, 4:7] = math.nan
    np.save(tmp_path / "nan.npy", broken)
    assert "holds 3 NaN or infinite" in refused(unveil, tmp_path, tmp_path / "nan.npy", "mri", "")
    file, text = ct_file(tmp_path)
    assert "unknown instrument 'xray'" in refused(unveil, tmp_path, file, "xray", "")
    assert "holds real values" in refused(unveil, tmp_path, tmp_path / "angles.npy", "interferometer", "")
    assert "needs the package" not in refused(unveil, tmp_path, tmp_path / "no.h5", "mri", "")
    assert "the truth" in refused(unveil, tmp_path, file, "ct", text, "--truth", tmp_path / "angles.npy")
    np.save(tmp_path / "truth.npy", np.full((2, N, N), math.inf))
    assert "holds NaN or infinite" in refused(unveil, tmp_path, file, "ct", text, "--truth", tmp_path / "truth.npy")
    assert "knows signals of 2 channel(s)" in refused(unveil, tmp_path, file, "ct", text, "--prior", "complex")


def test_angles_in_radians_give_a_note(unveil, tmp_path) -> None:
    file, text = ct_file(tmp_path)
    np.save(tmp_path / "angles.npy", torch.deg2rad(views(24)).numpy())
    said = run(unveil, file, "ct", tmp_path / "out", "--config", config(tmp_path, text + "slices = 0"), *FAST)
    assert "note: angles between 0 and 3.01 are taken as degrees; if they are radians, say unit" in said


def test_angles_in_degrees_called_radians_give_a_note(tmp_path) -> None:
    file, text = ct_file(tmp_path)
    settings = config(tmp_path, text + 'unit = "radians"')
    assert "angles between 0 and 172.5 are taken as radians" in " ".join(read_scan(file, "ct", settings).notes)
    np.save(tmp_path / "angles.npy", torch.deg2rad(views(24)).numpy())
    assert not any("angles" in note for note in read_scan(file, "ct", settings).notes)


def test_projectors_are_made_once_for_all_slices(tmp_path) -> None:
    file, text = ct_file(tmp_path)
    scan = read_scan(file, "ct", config(tmp_path, text + "white = 0.02\nnoise = 0.004"))
    first, second = (measure(scan, k, 1).operator for k in (0, 1))
    assert first is second
    assert float(first.norm(torch.empty(1, 1, N, N))) == pytest.approx(1, rel=2e-3)
