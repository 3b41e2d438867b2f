"""Weights of other projects: small files with their names, made here, become priors; what is wrong is said."""

from __future__ import annotations

import json
import logging
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unveil.errors import InputError
from unveil.priors import NetworkPrior, check_prior, ddpm_cosine, ddpm_linear, load_prior
from unveil.priors.base import Prior, Rescaled
from unveil.priors.formats.adm import PUBLISHED, adm_config
from unveil.priors.formats.diffusers import _setting
from unveil.priors.formats.edm import edm_config
from unveil.priors.formats.files import Weights, read_weights
from unveil.priors.formats.schedulers import read_scheduler
from unveil.priors.kernels import DDPM, EDM, VE, VPLinear
from unveil.priors.networks.adm import ADM
from unveil.priors.networks.edm import EDMUNet
from unveil.priors.networks.edm2 import EDM2UNet, effective

SMALL: dict[str, Any] = {"width": 32, "widths": (32, 64), "blocks": 1, "attention": (1,), "head_channels": 32}
EDM_SMALL: dict[str, Any] = {"size": 16, "width": 32, "widths": (32, 64), "blocks": 1, "attention": (8,)}


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if not name.endswith("resample_filter"):
            tensor.data = 0.1 * torch.randn(tensor.shape, generator=generator)
    return network.eval()


def saved(path: Path, network: nn.Module, prefix: str = "", metadata: dict[str, str] | None = None) -> Path:
    weights = {prefix + k: v.contiguous() for k, v in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(weights, path, metadata=metadata)
    else:
        torch.save(weights, path)
    return path


def network_of(prior: Prior) -> NetworkPrior:
    if isinstance(prior, Rescaled):
        assert prior.value_range == (0.0, 1.0)
        prior = prior.prior
    assert isinstance(prior, NetworkPrior)
    return prior


def pictures(n: int = 2, channels: int = 3, side: int = 16) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(5))


# -- diffusers (the rest needs the extra: tests/extras) ----------------------------------------------


def test_what_overrules_a_scheduler_leaves_the_rest_of_it(tmp_path):
    said = {"_class_name": "DDPMScheduler", "variance_type": "learned_range", "clip_sample_range": 2.0}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(said))
    found = _setting(tmp_path, None, None)
    assert (found.predicts, found.clip, found.variance) == ("eps", (-2.0, 2.0), "learned_range")
    assert _setting(tmp_path, None, "v") == replace(found, predicts="v")
    assert _setting(tmp_path, ddpm_cosine(), None) == replace(found, schedule=ddpm_cosine())
    assert _setting(tmp_path, VPLinear(), None) == replace(found, schedule=VPLinear(), variance=None)
    said = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.7, "prediction_type": "v_prediction"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(said))
    found = _setting(tmp_path, None, None)
    assert (found.sigma_data, found.negative) == (0.7, True)
    assert _setting(tmp_path, EDM(0.01, 50.0), None) == replace(found, schedule=EDM(0.01, 50.0))
    assert not _setting(tmp_path, None, "eps").negative


# -- ADM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_adm_weights_become_the_prior_that_their_network_is(tmp_path, suffix):
    module = filled(ADM(**SMALL))
    path = saved(tmp_path / f"faces{suffix}", module)
    prior = load_prior(path, head_channels=32, shape=(3, None, None))
    inner = network_of(prior)
    assert (inner.predicts, inner.value_range, inner.name) == ("eps", (-1.0, 1.0), "faces")
    assert (inner.variance, inner.channels, inner.clip) == ("learned_range", 3, False)
    assert inner.schedule == ddpm_linear()
    x, index = 2 * pictures() - 1, 300
    a = ddpm_linear().alphas_cumprod[index]
    sigma = math.sqrt((1 - a) / a)
    with torch.no_grad():
        eps = module(math.sqrt(a) * x, torch.full((2,), float(index)))[:, :3]
    torch.testing.assert_close(inner.denoise(x, sigma), x - sigma * eps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior.denoise((x + 1) / 2, sigma / 2), (x - sigma * eps + 1) / 2, rtol=1e-5, atol=1e-5)
    assert len(check_prior(prior, (3, 16, 16))) == 9


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"classes": 7, "film": False},
        {"updown": False, "out_channels": 3},
        {"widths": (32, 32, 64), "blocks": 2, "attention": (0, 2)},
        {"channels": 1, "out_channels": 2},
        {"widths": (64,), "attention": ()},
    ],
)
def test_the_architecture_is_read_off_the_weights(config):
    config = {**SMALL, **config}
    module = ADM(**config)
    got = adm_config(Weights(Path("x.pt"), dict(module.state_dict()), {}))
    assert {k: v for k, v in got.items() if k != "updown"}.items() <= {
        "channels": 3,
        "out_channels": 6,
        "classes": 0,
        "film": True,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in config.items()},
    }.items()
    again = ADM(**got, head_channels=32)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


@pytest.mark.parametrize(("key", "known"), PUBLISHED.items())
def test_published_networks_are_recognised(key, known, monkeypatch):
    width, multiples, blocks = key
    widths = [width * m // 2 for m in multiples]
    with torch.device("meta"):
        module = ADM(width=width, widths=widths, blocks=blocks, attention=(len(widths) - 2,))
    seen: dict[str, Any] = {}
    monkeypatch.setattr("unveil.priors.formats.adm.fill", lambda path, module, tensors: seen.update(module=module))
    from unveil.priors.formats.adm import adm_prior

    prior = adm_prior(Weights(Path("x.pt"), dict(module.state_dict()), {}))
    assert prior.shape == (3, known.size, known.size)
    attention = seen["module"].middle_block[1]
    assert attention.heads == (4 if known.size == 128 else widths[-1] // 64)
    assert attention.merged == (known.size != 64)
    assert prior.schedule == (ddpm_cosine() if known.size == 64 else ddpm_linear())


def test_an_adm_network_of_ones_own_needs_what_its_weights_do_not_say(tmp_path):
    path = saved(tmp_path / "mine.pt", filled(ADM(**SMALL, classes=3)))
    with pytest.raises(InputError, match=r"head_channels=64"):
        load_prior(path)
    prior = load_prior(path, heads=2, schedule=ddpm_cosine(), shape=(3, 16, 16), merged_heads=False)
    assert network_of(prior).schedule == ddpm_cosine()
    x = pictures()
    assert not torch.equal(prior.given(label=1).denoise(x, 0.2), prior.given(label=2).denoise(x, 0.2))
    with pytest.raises(InputError, match=r"trained with classes"):
        prior.denoise(x, 0.2)
    with pytest.raises(InputError, match="takes label"):
        prior.given(text="a cat")
    with pytest.raises(InputError, match="no option 'head_chanels': it takes heads, head_channels"):
        load_prior(path, head_chanels=64)


def test_half_precision_and_nested_checkpoints(tmp_path):
    module = filled(ADM(**SMALL)).half()
    path = tmp_path / "run.ckpt"
    torch.save({"step": 7, "ema": {f"module.{k}": v for k, v in module.state_dict().items()}}, path)
    prior = load_prior(path, head_channels=32)
    weights = dict(network_of(prior).module.named_parameters())
    assert {p.dtype for p in weights.values()} == {torch.float32}
    assert torch.equal(weights["out.2.weight"], module.out[2].weight.float())


def test_an_upsampler_is_no_prior(tmp_path):
    path = saved(tmp_path / "up.pt", filled(ADM(**{**SMALL, "channels": 6, "out_channels": 3})))
    with pytest.raises(InputError, match="3 channels out of 6"):
        load_prior(path, head_channels=32)


# -- EDM ---------------------------------------------------------------------------------------------

EDM_KINDS: list[dict[str, Any]] = [
    {"classes": 5, "augment": 9},
    {"noise": "fourier", "noise_width": 64, "residual": True, "taps": (1, 3, 3, 1)},
    {"kind": "adm", "width": 64, "widths": (64, 128), "classes": 5},
]


@pytest.mark.parametrize("config", EDM_KINDS)
def test_the_edm_architecture_is_read_off_the_weights(config):
    module = EDMUNet(**{**EDM_SMALL, **config})
    weights = dict(module.state_dict())
    again = EDMUNet(**edm_config(Weights(Path("x.safetensors"), weights, {}), weights))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in weights.items()}
    for name in ("kind", "classes", "noise_width", "multiple"):
        assert getattr(again, name) == getattr(module, name)
    heads = [m.heads for m in module.modules() if hasattr(m, "heads")]
    assert [m.heads for m in again.modules() if hasattr(m, "heads")] == heads
    for name, buffer in module.named_buffers():
        if name.endswith("resample_filter"):
            assert torch.equal(dict(again.named_buffers())[name], buffer)


@pytest.mark.parametrize("kind", ["edm", "vp", "ve", "iddpm"])
def test_edm_preconditioning(tmp_path, kind):
    """Against the table of the paper: c_skip, c_out, c_in and c_noise, written out."""
    six = kind == "iddpm"
    module = filled(EDMUNet(**EDM_SMALL, out_channels=6 if six else 3))
    path = tmp_path / "net.safetensors"
    weights = {f"model.{k}": v.contiguous() for k, v in module.state_dict().items()}
    levels = torch.zeros(1001, dtype=torch.float64)
    if six:
        bar = torch.sin(math.pi / 2 * torch.arange(1001) / 1000 / 1.008).square().double()
        for j in range(1000, 0, -1):
            levels[j - 1] = ((levels[j] ** 2 + 1) / (bar[j - 1] / bar[j]).clip(min=1e-3) - 1).sqrt()
        weights["u"] = levels.float()
    save_file(weights, path)
    if not six:
        with pytest.raises(InputError, match="preconditioning='edm'"):
            load_prior(path)
    prior = network_of(load_prior(path) if six else load_prior(path, preconditioning=kind))
    assert isinstance(prior.schedule, {"edm": EDM, "vp": VPLinear, "ve": VE, "iddpm": DDPM}[kind])
    x = 2 * pictures(1) - 1
    for sigma in (0.03, 0.5, 20.0):
        if six:
            index = int((levels - sigma).abs().argmin())
            sigma = float(levels[index].float())
        c_noise = {
            "edm": math.log(sigma) / 4,
            "vp": 999 * (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9,
            "ve": math.log(0.5 * sigma),
            "iddpm": 999.0 - index if six else 0,
        }[kind]
        c_in = {"edm": 1 / math.sqrt(0.25 + sigma**2), "ve": 1.0}.get(kind, 1 / math.sqrt(1 + sigma**2))
        c_out = {"edm": sigma * 0.5 / math.sqrt(0.25 + sigma**2), "ve": sigma}.get(kind, -sigma)
        c_skip = 0.25 / (sigma**2 + 0.25) if kind == "edm" else 1.0
        with torch.no_grad():
            want = c_skip * x + c_out * module(c_in * x, torch.tensor([c_noise]))[:, :3]
        scale = float(want.abs().max())
        assert float((prior.denoise(x, sigma) - want).abs().max()) < 2e-4 * scale
    assert prior.variance == ("learned_range" if six else None)


def test_the_conversion_command_keeps_what_the_network_is(tmp_path):
    """The command in the message runs, on a pickle like those that are published."""
    (tmp_path / "theirs.py").write_text(
        "import torch\n"
        "from unveil.priors.networks.edm import EDMUNet\n"
        "class VEPrecond(torch.nn.Module):\n"
        "    def __init__(self, **kwargs):\n"
        "        super().__init__()\n"
        "        self.init_kwargs = kwargs\n"
        f"        self.model = EDMUNet(**{EDM_SMALL!r})\n"
    )
    import subprocess
    import sys

    make = (
        "import pickle, torch; from theirs import VEPrecond; torch.manual_seed(0); "
        "n = VEPrecond(sigma_max=70, img_resolution=16); pickle.dump({'ema': n}, open('net.pkl', 'wb'))"
    )
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True)
    with pytest.raises(InputError) as refused:
        load_prior(tmp_path / "net.pkl")
    command = str(refused.value).partition("is installed: ")[2]
    assert command.startswith('python -c "')
    code = command.removeprefix('python -c "').removesuffix('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    prior = network_of(load_prior(tmp_path / "net.safetensors"))
    assert prior.schedule == VE(0.02, 70.0, clock="log")
    assert prior.shape == (3, 16, 16)


def test_edm2(tmp_path):
    config = {"size": 16, "channels": 4, "width": 64, "multiples": (1, 2), "blocks": 1, "attention": (8,), "classes": 5}
    module = filled(EDM2UNet(**config))
    module.out_gain.data.fill_(0.8)
    path = saved(tmp_path / "latents.safetensors", module, "unet.", {"kwargs": json.dumps({"sigma_data": 0.4})})
    prior = load_prior(path)  # latents keep their units
    assert isinstance(prior, NetworkPrior)
    assert (prior.shape, prior.sigma_data) == ((4, 16, 16), 0.4)
    module.load_state_dict(effective(module.state_dict()))
    x, sigma = 2 * pictures(2, 4) - 1, 0.7
    total = math.sqrt(0.16 + sigma**2)
    with torch.no_grad():
        raw = module(x / total, torch.full((2,), math.log(sigma) / 4), torch.tensor([2, 2]))
    want = 0.16 / total**2 * x + sigma * 0.4 / total * raw
    torch.testing.assert_close(prior.given(label=2).denoise(x, sigma), want, rtol=1e-5, atol=1e-5)


# -- what is wrong -----------------------------------------------------------------------------------


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_never_runs(tmp_path, suffix, zipped):
    path, mark = tmp_path / f"model{suffix}", tmp_path / "ran"
    thing = {"weights": torch.zeros(2), "extra": Evil(mark)}
    if zipped:
        torch.save(thing, path)
    else:
        path.write_bytes(pickle.dumps(thing))
    with pytest.raises(InputError, match=r"is a pickle.*python -c"):
        load_prior(path)
    assert not mark.exists()


def test_torch_files_wait_for_a_torch_that_reads_them_safely(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pt", filled(ADM(**SMALL)))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(InputError, match=r"before version 2\.6.*update torch"):
        load_prior(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_files(tmp_path, suffix):
    path = saved(tmp_path / f"x{suffix}", filled(ADM(**SMALL)))
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:100], b""):
        path.write_bytes(part)
        with pytest.raises(InputError, match="truncated"):
            load_prior(path)


def test_checksums(tmp_path):
    import hashlib

    path = saved(tmp_path / "x.safetensors", filled(ADM(**SMALL)))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    load_prior(path, sha256=right.upper(), head_channels=32)
    with pytest.raises(InputError, match=f"has the SHA-256 {right}, not {'0' * 64}"):
        load_prior(path, sha256="0" * 64, head_channels=32)
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        load_prior(path, sha256="abc", head_channels=32)
    with pytest.raises(InputError, match="takes no option 'sha256'"):
        load_prior("photos", sha256=right)


@pytest.mark.parametrize("make", [lambda: ADM(**SMALL), lambda: EDMUNet(**EDM_SMALL)])
def test_missing_strange_and_misshapen_weights_are_named(tmp_path, make):
    options = {"head_channels": 32} if isinstance(make(), ADM) else {"preconditioning": "edm"}
    path, whole = tmp_path / "x.safetensors", {k: v.contiguous() for k, v in filled(make()).state_dict().items()}
    victim = next(k for k in whole if "conv1.bias" in k or "out_layers.3.bias" in k)
    changes: list[tuple[dict[str, Tensor], str]] = [
        ({k: v for k, v in whole.items() if k != victim}, f"lacks tensors {victim}"),
        ({**whole, "more": torch.zeros(1)}, "unknown tensors more"),
        ({**whole, victim: torch.zeros(5)}, f"misshapen tensors {victim}"),
        ({**whole, victim: whole[victim] * torch.nan}, f"weights {victim} hold NaN"),
    ]
    for weights, message in changes:
        save_file(weights, path)
        with pytest.raises(InputError, match=message):
            load_prior(path, **options)
    for start in ("time_embed.2", "output_blocks", "input_blocks.1.", "input_blocks.2", "enc.", "map_layer0", "dec."):
        rest = {k: v for k, v in whole.items() if not k.startswith(start)}
        if len(rest) < len(whole):
            save_file(rest, path)
            with pytest.raises(
                InputError, match=r"lacks|do not make a U-Net|no output_blocks|no encoder|not of a network"
            ):
                load_prior(path, **options)


def test_weights_of_something_else(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"layer.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"layer\.weight.*not of a network known here.*as_prior"):
        load_prior(path)
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="diffusers folder"):
        load_prior(path)
    torch.save([1, 2], tmp_path / "x.pt")
    with pytest.raises(InputError, match="no weights by name"):
        load_prior(tmp_path / "x.pt")
    with pytest.raises(InputError, match="is a folder"):
        read_weights(tmp_path)


def test_a_wrong_size_of_image_says_what_would_fit(tmp_path):
    path = saved(tmp_path / "x.safetensors", filled(EDMUNet(**EDM_SMALL)))
    fixed = load_prior(path, preconditioning="edm")
    with pytest.raises(InputError, match=r"\[N, 3, 16, 16\], got \(1, 3, 24, 24\)"):
        fixed.denoise(pictures(1, 3, 24), 0.3)
    free = load_prior(path, preconditioning="edm", shape=(3, None, None))
    assert free.denoise(pictures(1, 3, 24), 0.3).shape == (1, 3, 24, 24)
    with pytest.raises(InputError, match="multiples of 2, got 25 x 25"):
        free.denoise(pictures(1, 3, 25), 0.3)
    with pytest.raises(InputError, match="unknown preconditioning 'eddm'"):
        load_prior(path, preconditioning="eddm")


# -- the hub -----------------------------------------------------------------------------------------


def test_the_hub_is_silent_without_a_network(monkeypatch, caplog):
    hub = pytest.importorskip("huggingface_hub")
    logger = logging.getLogger("huggingface_hub")

    def unreachable(*_, **__):
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    monkeypatch.setattr(logger, "propagate", True)
    level = logger.level
    with pytest.raises(InputError, match=r"could not be downloaded \(no network\)"):
        load_prior("org/name@" + "0" * 40)
    assert caplog.text == ""
    assert logger.level == level


def test_a_name_on_the_hub_needs_a_commit():
    for name in ("google/ddpm-celebahq-256", "google/ddpm-celebahq-256@main"):
        with pytest.raises(InputError, match=r"there is no folder google/.*name the commit, 40 hexadecimal digits"):
            load_prior(name)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (ADM(**SMALL, classes=5), {"head_channels": 32}),
        (EDMUNet(**EDM_SMALL, classes=5), {"preconditioning": "edm"}),
        (EDM2UNet(size=16, channels=3, width=64, multiples=(1, 2), blocks=1, attention=(8,), classes=5), {}),
    ],
)
def test_labels_are_counted_off_the_weights(network, options, tmp_path):
    prior = load_prior(saved(tmp_path / "classes.safetensors", filled(network)), **options)
    prior.given(label=4)
    with pytest.raises(InputError, match="the network knows labels 0 to 4, one or a list of them, not 5"):
        prior.given(label=5)


def test_broken_arguments_of_a_preconditioning(tmp_path):
    network = filled(EDMUNet(**EDM_SMALL))
    for kwargs, said in (
        ("{", "the metadata entry kwargs is not JSON"),
        ("[]", "the metadata entry kwargs is not an object"),
        ('{"sigma_data": null}', "sigma_data in the metadata entry kwargs is None, not a number"),
    ):
        path = saved(tmp_path / "a.safetensors", network, "model.", {"class": "EDMPrecond", "kwargs": kwargs})
        with pytest.raises(InputError, match=rf"a\.safetensors: {said}"):
            load_prior(path)


@pytest.mark.parametrize("kind", ["DDPMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_scheduler_with_values_of_another_kind(kind):
    said = {"_class_name": kind, **dict.fromkeys(("beta_start", "sigma_min", "num_train_timesteps"), "x")}
    with pytest.raises(InputError, match=f"{kind} with a value of another kind than its key's: .*'x'"):
        read_scheduler(said)
