"""Autoencoders in this library's own files: units, the scaling of their latents, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unveil.errors import InputError
from unveil.priors import load_autoencoder, load_prior
from unveil.priors.networks.autoencoder import Autoencoder as Network
from unveil.priors.networks.unet import UNet

MEAN, STD = [0.5, -0.25], [2.0, 0.5]


def write(path: Path, module: torch.nn.Module, config: dict[str, Any], **facts: Any) -> Path:
    header = {"format": 1, "config": config, "sigma_data": 1.0, "value_range": [-1, 1], "sigma_range": [0.002, 80]}
    header |= {"shape": [config["channels"], None, None], "name": path.stem, **facts}
    weights = {k: v.half() for k, v in module.state_dict().items()}
    save_file(weights, path, metadata={"unveil": json.dumps(header)})
    return path


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    module = Network(channels=3, latents=2, widths=(8, 12), blocks=1)
    for p in module.parameters():  # a new one has zeros in its last layers
        p.data = p.data.half().float() + (torch.randn_like(p) * 0.05).half().float()
    return module.eval()


@pytest.fixture
def file(tmp_path: Path, network: Network) -> Path:
    return write(tmp_path / "coder.safetensors", network.half().float(), network.config, network="autoencoder",
                 predicts="code")  # fmt: skip


@pytest.fixture
def latent(tmp_path: Path, file: Path) -> Path:
    config = {"channels": 2, "widths": [8, 8], "blocks": 1, "unshuffle": 1, "features": 16}
    facts = {"autoencoder": "elsewhere/coder.safetensors", "mean": MEAN, "std": STD}  # it has moved with the prior
    return write(tmp_path / "prior.safetensors", UNet(**config), config, network="unet", predicts="edm", latent=facts)


def test_codes_and_images_in_their_units(network: Network, file: Path) -> None:
    coder = load_autoencoder(file)
    assert (coder.channels, coder.latents, coder.factor) == (3, 2, 4)
    x = torch.rand(2, 3, 16, 24)
    z = coder.encode(x)
    assert z.shape == (2, 2, 4, 6)
    torch.testing.assert_close(z, network.encode(2 * x - 1))
    torch.testing.assert_close(coder.decode(z), (network.decode(z) + 1) / 2)
    torch.testing.assert_close(coder.in_range(-1, 1).decode(z), network.decode(z))
    assert coder.decode(z.double()).dtype == torch.float64
    with pytest.raises(InputError, match="multiples of 4, got"):
        coder.encode(x[..., :-1])


def test_latents_of_a_prior_are_scaled_channel_by_channel(network: Network, file: Path, latent: Path) -> None:
    coder, plain = load_autoencoder(latent), load_autoencoder(file)
    x = torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(coder.encode(x), (plain.encode(x) - mean) / std)
    torch.testing.assert_close(coder.decode(coder.encode(x)), plain.decode(plain.encode(x)))
    prior = load_prior(latent)
    assert prior.denoise(coder.encode(x), 0.1).shape == coder.encode(x).shape
    leaf = coder.encode(x).requires_grad_(True)  # a decoder has a gradient, its weights none
    coder.decode(leaf).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert float(leaf.grad.abs().max()) > 0
    assert not any(p.requires_grad for p in coder.module.parameters())


def test_a_text_without_a_table_is_refused(tmp_path: Path) -> None:
    config = {"channels": 2, "widths": [8, 8], "blocks": 1, "unshuffle": 1, "features": 16, "texts": 12}
    prior = load_prior(write(tmp_path / "p.safetensors", UNet(**config), config, network="unet", predicts="edm"))
    with pytest.raises(InputError, match=r"no table of texts: in Python, give the embedding of 'cat' \[1, 12\]"):
        prior.given(text="cat")
    assert prior.given(text=torch.ones(1, 12)).denoise(torch.zeros(1, 2, 8, 8), 1.0).shape == (1, 2, 8, 8)


def test_what_has_no_autoencoder(tmp_path: Path, file: Path, latent: Path) -> None:
    with pytest.raises(InputError, match="prior of images themselves"):
        load_autoencoder("digits")
    with pytest.raises(InputError, match="not a prior: name the prior of its latents, or load_autoencoder"):
        load_prior(file)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a file of this library"):
        load_autoencoder(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is a file: it has no subfolder 'vae'"):
        load_autoencoder(file, subfolder="vae")
    header = {"format": 1, "predicts": "code"}
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors", {"unveil": json.dumps(header)})
    with pytest.raises(InputError, match="cannot be built from the metadata entry config"):
        load_autoencoder(tmp_path / "bare.safetensors")
    file.unlink()
    with pytest.raises(InputError, match=r"there is no file .*coder\.safetensors"):
        load_autoencoder(latent)
