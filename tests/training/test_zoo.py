"""The priors that ship are the files that their cards describe, and denoise as well as when they were measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.errors import InputError
from unveil.io.images import read_image
from unveil.priors import Guided, load_autoencoder
from unveil.training import edm
from unveil.training.data import checksum
from unveil.training.evaluate import noisy
from unveil.training.export import load_network
from unveil.training.recipe import Recipe, read_card

PACKAGE = Path(unveil.__file__).parent
ROOT = Path(__file__).parents[2]
ZOO = PACKAGE / "priors" / "zoo"
NAMES = sorted(f.stem for f in ZOO.glob("*.toml"))


def photographs() -> torch.Tensor:
    """The four test photographs, [4, 3, 256, 256] in [-1, 1]."""
    files = sorted((PACKAGE / "data" / "photos").glob("*.png"))
    assert [f.stem for f in files] == ["brushes", "dahlia", "mountain", "pagoda"]
    stack = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("name", NAMES)
def test_the_card_describes_the_file(name: str) -> None:
    card = read_card(ZOO / f"{name}.toml")
    file = ZOO / card["file"]
    assert card["name"] == name
    assert checksum(file) == card["sha256"]
    assert file.stat().st_size < 15e6
    network, meta = load_network(file)
    assert sum(p.numel() for p in network.parameters()) == card["parameters"]
    for key, value in card["network"].items():
        assert meta["config"][key] == value
    recipe = Recipe.from_table(card["training"])
    assert meta["sigma_data"] == recipe.sigma_data
    assert meta["sigma_range"] == list(recipe.sigma_range) == card["sigma_range"]
    assert card["run"]["images_seen"] == recipe.steps * recipe.batch * recipe.workers
    assert card["run"]["steps"] == recipe.steps
    assert card["run"]["command"] == f"unveil train {name}.toml --out RUN"
    assert card["weaknesses"]
    notice = (ZOO / f"NOTICE.{name}.txt").read_text()
    assert all(source["package"] in notice for source in card["data"].get("source", []))


@pytest.mark.parametrize("name", NAMES)
def test_licences_are_said_everywhere(name: str) -> None:
    card, notice = read_card(ZOO / f"{name}.toml"), (ZOO / f"NOTICE.{name}.txt").read_text()
    sources = [f"stated licence: {source['licence']}\n" for source in card["data"].get("source", [])]
    assert name == "photos-flow" or all(line in notice for line in sources)  # its notice is that of photos
    found = re.match(r"[\w.-]+", card["licence"])
    assert found
    assert found[0] in read_card(ROOT / "pyproject.toml")["project"]["license"].split(" AND ")
    if found[0] != "Apache-2.0":
        assert re.search(rf"`{name}`[^.]* under {found[0]}", " ".join((ROOT / "README.md").read_text().split()))
        assert [text for text in re.findall(r"LICENSE\.[\w.-]+\.txt", notice) if (ZOO / text).is_file()]


def test_the_zoo_is_small() -> None:
    assert sum(f.stat().st_size for f in ZOO.iterdir()) < 45e6


@pytest.mark.parametrize(("level", "measured"), [(25, 29.65), (50, 26.41)])
def test_denoising_on_the_test_photographs(level: int, measured: float) -> None:
    network, _ = load_network(ZOO / "photos.safetensors")
    truth = photographs()
    x = noisy(truth, level)
    clean = torch.cat([edm.denoise(network, x[k : k + 1], level / 127.5) for k in range(4)])
    assert abs(float(edm.psnr(clean, truth).mean()) - measured) < 0.05


def test_denoising_of_a_head_that_was_never_trained_on() -> None:
    planes = [
        read_image(PACKAGE / "data" / "heads" / f"{plane}.png")[0][:1] for plane in ("axial", "coronal", "sagittal")
    ]
    truth = torch.stack(planes) * 2 - 1
    network, meta = load_network(ZOO / "brain.safetensors")
    clean = edm.denoise(network, noisy(truth, 25), 25 / 127.5, meta["sigma_data"])
    assert abs(float(edm.psnr(clean, truth).mean()) - 28.31) < 0.05


def test_the_flow_denoises_as_well_through_its_adapter() -> None:
    truth = photographs()
    x = noisy(truth, 25)
    psnr = {}
    for name in ("photos", "photos-flow"):
        prior = unveil.load_prior(name).in_range(-1.0, 1.0)
        psnr[name] = float(
            edm.psnr(torch.cat([prior.denoise(x[k : k + 1], 25 / 127.5) for k in range(4)]), truth).mean()
        )
    assert abs(psnr["photos-flow"] - psnr["photos"]) < 0.1  # measured: 29.66 and 29.65 dB


@pytest.mark.parametrize("name", ["photos", "photos-flow"])
def test_stable_over_the_whole_range_of_noise(name: str) -> None:
    prior = unveil.load_prior(name).in_range(-1.0, 1.0)
    truth = photographs()[:, :, 96:160, 96:160]
    eps = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    errors = []
    for sigma in torch.logspace(*torch.tensor(prior.sigma_range).log10().tolist(), 9).tolist():
        error = float((prior.denoise(truth + sigma * eps, sigma) - truth).square().mean().sqrt())
        assert error < 1.01 * sigma  # never worse than leaving the noise in
        errors.append(error)
    assert errors == sorted(errors)
    assert errors[-1] < 0.8  # about the spread of photographs themselves


def test_digits_know_their_labels() -> None:
    """With a label, the denoiser of pure noise is the mean of a class: guided samples are nearest to their own."""
    prior = unveil.load_prior("digits")
    labels, top = range(10), prior.sigma_range[1]
    means = torch.cat([prior.given(label=k).denoise(torch.zeros(1, 1, 32, 32), top) for k in labels])
    x = torch.cat([unveil.sample(Guided(prior.given(label=k), prior, 2.0), 2, "heun", steps=12) for k in labels])
    found = torch.cdist(x.flatten(1), means.flatten(1)).argmin(1)
    assert int((found == torch.arange(10).repeat_interleave(2)).sum()) >= 16  # this classifier is right on four of five


@pytest.mark.parametrize("label", [10, -1, torch.tensor([3, 12]), "three", [3, "four"], [[3]], 2.5])
def test_labels_that_were_not_learnt_are_refused(label: Any) -> None:
    words = r"knows labels 0 to 9, one or a list of them, not (10|-1|12|'three'|\[3, 'four'\]|those of shape|2\.5)"
    with pytest.raises(InputError, match=words):
        unveil.load_prior("digits").given(label=label)


def test_labels_of_any_kind() -> None:
    prior = unveil.load_prior("digits")
    x = torch.zeros(2, 1, 32, 32)
    want = prior.given(label=3).denoise(x, 1.0)
    for label in (np.int64(3), [3], [3, 3], np.array([3, 3], dtype=np.uint8), torch.tensor(3), torch.tensor([3, 3])):
        assert torch.equal(prior.given(label=label).denoise(x, 1.0), want)


@pytest.mark.parametrize("text", [torch.zeros(1, 383), torch.zeros(384), 3])
def test_embeddings_of_another_length_are_refused(text: Any) -> None:
    with pytest.raises(InputError, match=r"takes embeddings of texts \[N, 384\], not (\(1, 383\)|\(384,\)|int)"):
        unveil.load_prior("emoji").given(text=text)


@pytest.mark.parametrize("name", ["emoji", "emoji-latent"])
def test_emoji_have_the_colour_that_their_text_says(name: str) -> None:
    prior = unveil.load_prior(name)
    texts = [f"large {colour} circle" for colour in ("red", "green", "blue")]
    x = torch.cat([unveil.sample(Guided(prior.given(text=t), prior, 3.0), 2, "heun", steps=12) for t in texts])
    if name == "emoji-latent":
        x = load_autoencoder(name).decode(x)
    assert x.shape == (6, 3, 64, 64)
    assert float(x[..., :4, :4].mean()) > 0.9  # on white
    ink = (1 - x.clamp(0, 1)).flatten(2).sum(2)  # what is missing of each colour: least of their own
    assert ink.argmin(1).tolist() == [0, 0, 1, 1, 2, 2]
