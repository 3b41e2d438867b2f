"""Prior files and the zoo: what loads, in which units, and what each bad file is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unveil import registry
from unveil.errors import InputError, UnknownName
from unveil.priors import (
    GaussianPrior,
    Prior,
    check_prior,
    load_autoencoder,
    load_prior,
    loaders,
    prior_card,
    save_prior,
)
from unveil.priors.adapters import as_prior
from unveil.priors.kernels import EDM, RectifiedFlow
from unveil.priors.networks.unet import UNet
from unveil.priors.networks.velocity import VelocityUNet

CONFIG: dict[str, Any] = {"channels": 3, "widths": [8, 12], "blocks": 1, "unshuffle": 2, "features": 16}


def unet(seed: int = 0) -> UNet:
    module, generator = UNet(**CONFIG), torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = (0.2 * torch.randn(p.shape, generator=generator)).half().float()
    return module


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_prior(path, unet(), config=CONFIG, value_range=(-1, 1), shape=(3, None, None), sigma_data=0.4)
    return path


def rewrite(path: Path, drop: str = "", **changes: Any) -> Path:
    """The file with another header."""
    with safe_open(path, framework="pt") as f:
        header = json.loads(f.metadata()["unveil"])
        weights = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    header.update(changes)
    header.pop(drop, None)
    save_file(weights, path, metadata={"unveil": json.dumps(header)})
    return path


def test_a_file_is_the_network_in_the_units_of_image_files(file: Path) -> None:
    prior = load_prior(file)
    assert prior.value_range == (0.0, 1.0)
    assert prior.sigma_range == pytest.approx((0.001, 40.0))
    assert prior.shape == (3, None, None)
    native = as_prior(
        unet(),
        predicts="edm",
        schedule=EDM(),
        sigma_data=0.4,
        value_range=(-1, 1),
        shape=(3, None, None),
    )
    x = torch.rand(2, 3, 10, 7, generator=torch.Generator().manual_seed(0))
    want = native.denoise(2 * x - 1, 0.3)
    torch.testing.assert_close(prior.denoise(x, 0.15), (want + 1) / 2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prior.in_range(-1, 1).denoise(2 * x - 1, 0.3), want, rtol=1e-5, atol=1e-6)
    assert float((want - (2 * x - 1)).abs().max()) > 0.01
    assert prior.describe()["name"] == "tiny"
    assert load_prior(str(file), device="cpu").describe() == prior.describe()
    assert len(check_prior(prior, (3, 8, 8))) == 9


def test_a_flow_is_saved_as_one(tmp_path: Path) -> None:
    config = {**CONFIG, "sigma_data": 0.5}
    module = VelocityUNet(**config)
    save_prior(
        tmp_path / "flow.safetensors", module, config=config, value_range=(-1, 1), shape=(3, None, None),
        network="velocity-unet", dtype=torch.float32,
    )  # fmt: skip
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    want = as_prior(module, predicts="flow", schedule=RectifiedFlow(), value_range=(-1, 1), shape=(3, None, None))
    got = load_prior(tmp_path / "flow.safetensors").in_range(-1, 1)
    torch.testing.assert_close(got.denoise(x, 0.3), want.denoise(x, 0.3))
    with pytest.raises(UnknownName, match="did you mean velocity-unet"):
        save_prior(tmp_path / "x", module, config=config, value_range=(-1, 1), shape=(3,), network="velocity")


def test_stored_in_half_precision_and_replaced_at_once(file: Path) -> None:
    with safe_open(file, framework="pt") as f:
        assert {f.get_tensor(k).dtype for k in f.keys()} == {torch.float16}  # noqa: SIM118
    before = file.read_bytes()
    module = unet(1)
    module.last.weight.data[0] = 1e6
    with pytest.raises(InputError, match="float32"):
        save_prior(file, module, config=CONFIG, value_range=(-1, 1), shape=(3, None, None))
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("key", loaders.KEYS)
def test_a_missing_key_is_named(file: Path, key: str) -> None:
    with pytest.raises(InputError, match=f"lacks {key}"):
        load_prior(rewrite(file, drop=key))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this version of unveil reads 1"),
        ({"format": None}, "format None"),
        ({"predicts": "eps"}, "holds 'edm'"),
        ({"value_range": [0]}, "value_range"),
        ({"shape": 3}, "shape"),
        ({"config": {**CONFIG, "depth": 3}}, "depth"),
        ({"config": {**CONFIG, "widths": [8, 16]}}, "misshapen"),
        ({"config": {**CONFIG, "blocks": 2}}, "lacks tensors"),
        ({"config": {**CONFIG, "widths": [8]}}, "unknown tensors|misshapen"),
        ({"sigma_range": [1, 0.1]}, "low < high"),
        ({"sigma_range": ["0.002", "80"]}, "must be numbers"),
        ({"value_range": ["-1", "1"]}, "must be numbers"),
        ({"sigma_data": "0.5"}, "must be numbers"),
        ({"texts": {}}, r"texts is {}, not an object that names a file"),
        ({"shape": [1, 32, 32]}, r"shape is \[1, 32, 32\], but the network takes 3 channels"),
    ],
)
def test_a_header_that_does_not_fit(file: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_prior(rewrite(file, **changes))


def test_unknown_network(file: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean unet"):
        load_prior(rewrite(file, network="unett"))


def test_files_that_are_no_priors(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_prior(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match="truncated"):
        load_prior(file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="as_prior"):
        load_prior(file)
    save_file({"a": torch.zeros(2)}, file, metadata={"unveil": "{"})
    with pytest.raises(InputError, match="not JSON"):
        load_prior(file)
    with pytest.raises(InputError, match="no file"):
        load_prior(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="folder"):
        load_prior(tmp_path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    path, module = tmp_path / "bad.safetensors", unet()
    save_prior(path, module, config=CONFIG, value_range=(-1, 1), shape=(3, None, None))
    with safe_open(path, framework="pt") as f:
        metadata, weights = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    weights["last.bias"][0] = torch.nan
    save_file(weights, path, metadata=metadata)
    with pytest.raises(InputError, match=r"last\.bias"):
        load_prior(path)


@pytest.mark.parametrize("suffix", [*loaders.PICKLES, *loaders.TORCH_FILES])
def test_a_pickle_is_refused_unread(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(InputError, match=rf"is a pickle.*refused.*python -c .*model\{suffix}.*model\.safetensors"):
        load_prior(path)
    assert not (tmp_path / "ran").exists()


# -- names -------------------------------------------------------------------------------------------


@pytest.fixture
def zoo(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one prior, ``tiny``, and one card without weights, ``lost``."""
    registry.names("prior")
    monkeypatch.setitem(registry._entries, "prior", dict(registry._entries["prior"]))
    monkeypatch.setattr(loaders, "ZOO", tmp_path)
    (tmp_path / "tiny.toml").write_text('name = "tiny"\n[data]\nlicence = "CC0"\n')
    (tmp_path / "lost.toml").write_text('name = "lost"\n')
    loaders.register_zoo()
    return tmp_path


def test_zoo_names(zoo: Path) -> None:
    assert "tiny" in registry.names("prior")
    assert "lost" not in registry.names("prior")
    assert load_prior("tiny").describe() == load_prior(zoo / "tiny.safetensors").describe()
    assert prior_card("tiny") == {"name": "tiny", "data": {"licence": "CC0"}}
    with pytest.raises(UnknownName, match="did you mean tiny"):
        load_prior("tinny")
    with pytest.raises(UnknownName, match="did you mean tiny"):
        prior_card("tinny")
    with pytest.raises(InputError, match="card, but no weights"):
        load_prior("lost")
    (zoo / "tiny.toml").write_text("name = ")
    with pytest.raises(InputError, match="TOML"):
        prior_card("tiny")


def test_registered_priors(zoo: Path) -> None:
    def mine() -> Prior:
        return GaussianPrior([0.5, 0.5], 0.1)

    registry.register("prior", "mine")(mine)
    assert isinstance(load_prior("mine"), GaussianPrior)
    registry.register("prior", "not mine")(lambda: {"a": 1})
    with pytest.raises(InputError, match="dict, not a Prior"):
        load_prior("not mine")


@pytest.mark.parametrize("name", registry.names("prior"))
def test_a_prior_that_ships_loads_and_has_a_card(name: str) -> None:
    prior = load_prior(name)
    assert prior_card(name)["name"] == name
    assert prior.value_range == ((-1.0, 1.0) if name.endswith("-latent") else (0.0, 1.0))  # codes are not pictures
    # the simplest image: flat grey, or for priors of whole images their background
    flat = torch.full((1, *(s or 16 for s in prior.shape)), 0.5 if None in prior.shape else float("emoji" in name))
    if name.endswith("-latent"):
        flat = load_autoencoder(name).encode(torch.ones(1, 3, 64, 64))
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    error = prior.denoise(flat + 0.1 * noise, 0.1) - flat
    assert float(error.square().mean().sqrt()) < 0.05


def test_a_file_that_cannot_be_written_leaves_the_old_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def full(data: Any, path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match=r"cannot write .*tiny\.safetensors: No space left on device"):
        save_prior(file, unet(), config=CONFIG, value_range=(-1, 1), shape=(3, None, None))
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
