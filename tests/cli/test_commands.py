"""The other commands: list, show, simulate, check, bench, demo, version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil as package
from unveil.app.demo import Entry, demo
from unveil.app.tasks import Asked, read_mask
from unveil.classical.photographs import baseline, biharmonic, laplacian, wiener
from unveil.io.images import read_image
from unveil.operators import Blur, Identity, gaussian_kernel
from unveil.priors.loaders import ZOO
from unveil.problem import Problem


def test_version(unveil):
    assert unveil("--version")[:2] == (0, f"unveil {package.__version__}\n")


@pytest.mark.parametrize("what", ["solvers", "operators", "priors"])
def test_list(unveil, what):
    status, out, _ = unveil("list", what)
    assert status == 0
    for name in getattr(package, f"list_{what}")():
        assert name in out


def test_list_of_nothing(unveil):
    status, _, err = unveil("list", "solver")
    assert (status, "did you mean solvers" in err) == (2, True)


def test_show_every_solver(unveil):
    for name in package.list_solvers():
        status, out, _ = unveil("show", name)
        assert status == 0
        for option in package.get_solver(name).options():
            assert option in out
        assert "needs" in out
    assert "arXiv 2305.04391" in unveil("show", "red-diff")[1]


def test_show_prints_the_papers_values_beside_the_defaults(unveil, monkeypatch):
    out = unveil("show", "ddrm")[1]
    assert "50 by default; paper: 20\n" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["name", "default", "paper", "type", "tuned", "within"] in rows
    assert ["eta_b", "1.0", "1", "float", "0:1"] in rows
    assert "why these are not the paper's\n  steps: the ancestral step" in out
    assert "\n  eta: 0.85 leaves 85 % of the standard deviation" in out
    monkeypatch.setattr(type(package.get_solver("ddrm")), "paper", {})
    out = unveil("show", "ddrm")[1]
    assert "50 by default\n" in out
    assert "why these" not in out
    assert ["eta_b", "1.0", "float", "0:1"] in [line.split() for line in out.splitlines()]


def test_show_says_where_the_sheet_of_a_prior_is(unveil):
    for card in ZOO.glob("*.toml"):
        sheet = f"docs/images/zoo-{card.stem}.png"
        assert sheet in unveil("show", card.stem)[1]
        assert (Path(__file__).parents[2] / sheet).is_file()


def test_show_operator_prior_and_card(unveil, monkeypatch):
    for name in package.list_operators():
        status, out, _ = unveil("show", name)
        assert status == 0
        assert all(words in out for words in ("offers   ", "example  A = ops.", "y is ["))
    assert "MRI scanner" in unveil("list", "operators")[1]
    assert "any x any" in unveil("show", "toy")[1]
    assert "3 x 64 x 64; codes 4 x 16 x 16" in unveil("show", "emoji-autoencoder")[1]
    row = {"solver": "dps", "setting": "", "problem": "dense", "status": "DONE", "w2_floor": 1.234567, "nfe": 40.0}
    card = {"version": "9.9", "settings": {"default": "zeta=0.3"}, "problems": [row]}
    monkeypatch.setattr("unveil.app.show.load_card", {"dps": card}.get)
    out = unveil("show", "dps")[1]
    for words in ("dense", "1.23", "9.9", "default: zeta=0.3"):
        assert words in out
    assert "no card yet" in unveil("show", "ddrm")[1]
    status, _, err = unveil("show", "pigmd")
    assert (status, "did you mean pigdm" in err) == (2, True)


def test_simulate_writes_the_measurement_with_16_bits(unveil, photo, tmp_path):
    out = tmp_path / "measured.png"
    status, text, _ = unveil("simulate", photo, "--task", "inpaint", "--mask", "random:0.5", "--noise", 0, "--out", out)
    assert (status, "--mask" in text) == (0, True)
    y, form = read_image(out)
    mask = read_image(tmp_path / "measured.mask.png")[0]
    assert form.bits == 16
    truth = read_image(photo)[0]
    assert torch.allclose(y, truth * mask, atol=1e-4)
    assert 0.4 < float(mask.mean()) < 0.6


def test_simulated_noise_has_the_stated_size(unveil, photo, tmp_path):
    Image.new("RGB", (64, 64), (128, 128, 128)).save(photo)
    assert unveil("simulate", photo, "--task", "denoise", "--noise", 0.05, "--out", tmp_path / "y.png")[0] == 0
    y, _ = read_image(tmp_path / "y.png")
    assert float(y.std()) == pytest.approx(0.05, rel=0.05)


def test_random_masks_depend_on_the_seed_alone():
    a, b = (read_mask("random:0.7", (40, 50), seed) for seed in (0, 1))
    assert torch.equal(a, read_mask("random:0.7", (40, 50), 0))
    assert not torch.equal(a, b)
    assert 0.25 < float(a.mean()) < 0.35
    box = read_mask("box:10x20", (40, 50), 0)
    assert float((1 - box).sum()) == 200
    assert float(box[15:25, 15:35].sum()) == 0


GOOD = """
from dataclasses import dataclass
import torch
from unveil.operators.base import Linear
from unveil.solvers.base import Solver

class Double(Linear):
    in_shape = (5,)
    factor = {factor}
    def __call__(self, x):
        return 2 * x
    def adjoint(self, y):
        return self.factor * y
    def shape_in(self, out_shape):
        return out_shape
    @classmethod
    def example(cls):
        return cls()

double = Double()
"""


def test_check(unveil, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD.format(factor=2))
    status, out, _ = unveil("check", f"{path}:Double")
    assert (status, "kept" in out, "adjoint" in out) == (0, True, True)
    assert unveil("check", path)[0] == 0
    path.write_text(GOOD.format(factor=3))
    status, out, _ = unveil("check", f"{path}:double")
    assert (status, "FAILED" in out) == (1, True)
    for target, words in (
        (f"{path}:Duoble", "did you mean Double"),
        ("nowhere.py", "no file"),
        ("no_such", "no module"),
    ):
        status, _, err = unveil("check", target)
        assert (status, words in err) == (2, True)
    path.write_text("x = 1")
    assert unveil("check", path)[0] == 2


def test_check_a_solver_of_a_module(unveil, monkeypatch):
    seen = []
    monkeypatch.setattr("unveil.solvers.checks.check_solver", lambda solver: seen.append(solver) or [("resume", 0.0)])
    status, out, _ = unveil("check", "unveil.solvers:DDRM")
    assert (status, "resume" in out) == (0, True)
    assert seen == [package.get_solver("ddrm")]


def test_check_what_is_registered(unveil):
    status, out, _ = unveil("check", "grayscale")
    assert (status, "adjoint" in out) == (0, True)


def test_bench_exact(unveil, monkeypatch):
    seen = []
    monkeypatch.setattr("unveil.bench.cards.run_exact_cli", lambda *words: seen.append(words) or 1)
    assert unveil("bench", "exact", "--solver", "dps", "--quick")[0] == 1
    assert seen == [(["dps"], True, False)]
    status, _, err = unveil("bench", "exact", "--solver", "pigmd")
    assert (status, "did you mean pigdm" in err) == (2, True)


def test_demo_in_small(photo, tmp_path):
    from rich.console import Console

    console = Console(record=True, width=200)
    problems = (("Holes", Asked("inpaint", mask="box:6")), ("Blur", Asked("deblur", kernel="gaussian:1")))
    solvers = (Entry("diffpir", 4), Entry("ddrm", 4, samples=2))
    page = demo(tmp_path / "out", photo, console, "toy", problems, solvers).read_text()
    text = console.export_text()
    for words in ("biharmonic", "Wiener", "diffpir", "ddrm, mean of 2"):
        assert words in page
        assert words in text
    # per problem: original, measurement, baseline, diffpir, ddrm, its mean and its spread
    assert page.count("<img") == 14


# -- classical baselines -----------------------------------------------------------------------------------------------


def test_biharmonic_reproduces_a_plane_and_keeps_what_is_known():
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(20.0), indexing="ij")
    plane = (0.2 + 0.02 * x - 0.01 * y).expand(3, -1, -1)
    mask = read_mask("box:8", (24, 20), 0)
    filled = biharmonic((plane * mask)[None], mask)[0]
    assert torch.allclose(filled, plane, atol=1e-4)
    assert torch.equal(filled[:, mask > 0], plane[:, mask > 0])


def test_laplacian_is_symmetric_and_kills_constants():
    g = torch.Generator().manual_seed(0)
    u, v = (torch.randn(1, 1, 7, 9, generator=g, dtype=torch.float64) for _ in range(2))
    assert float((laplacian(u) * v).sum() - (u * laplacian(v)).sum()) == pytest.approx(0, abs=1e-12)
    assert float((laplacian(u) * u).sum()) > 0
    assert float(laplacian(torch.ones_like(u)).abs().max()) == 0


@pytest.mark.parametrize("boundary", ["circular", "reflect", "valid"])
def test_wiener_sharpens(photo, boundary):
    rng = np.random.default_rng(0)
    steps = torch.from_numpy(np.kron(rng.random((1, 3, 6, 6)), np.ones((1, 1, 6, 6)))).float()
    problem = Problem.simulate(steps, Blur(gaussian_kernel(1.5), boundary, in_shape=(3, 36, 36)), 0.01)
    name, best = baseline("deblur", problem, steps[0])
    inside = (..., slice(5, -5), slice(5, -5))
    blurred = Blur(gaussian_kernel(1.5), "reflect")(steps)
    assert name.startswith("Wiener")
    assert (best - steps[0])[inside].square().mean() < 0.6 * (blurred - steps)[inside].square().mean()


def test_wiener_without_noise_or_blur_changes_nothing():
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(wiener(Problem(x, Identity(), 0.1), 0.0), x, atol=1e-5)
