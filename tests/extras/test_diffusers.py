"""Folders of diffusers: every scheduler against diffusers' own, and small networks of every kind, saved and loaded.

Needs the extra ``diffusers`` (``make test-extras``); without it everything here is skipped.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers")

from unveil.errors import InputError, UnknownName  # noqa: E402
from unveil.priors import NetworkPrior, as_prior, check_prior, ddpm_linear, load_prior  # noqa: E402
from unveil.priors.base import Prior, Rescaled  # noqa: E402
from unveil.priors.formats.schedulers import DISCRETE, EDM_KINDS, FLOW_KINDS, read_scheduler  # noqa: E402
from unveil.priors.latent import load_autoencoder  # noqa: E402
from unveil.priors.networks.lean import lean  # noqa: E402

F64 = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore:::diffusers", "ignore:::numpy")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# -- schedulers --------------------------------------------------------------------------------------

DISCRETE_CONFIGS: list[dict[str, Any]] = [
    {},
    {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.001 * (k + 1) for k in range(60)], "num_train_timesteps": 60},
    {"num_train_timesteps": 400, "beta_end": 0.05},
]
EXTRA: dict[str, list[dict[str, Any]]] = {
    "DDPMScheduler": [
        {"clip_sample": False, "beta_schedule": "sigmoid"},
        {"clip_sample_range": 2.0},
        {"clip_sample": False, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"clip_sample": False, "variance_type": "learned_range"},
    ],
    "DDIMScheduler": [{"clip_sample": False}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}],
    "DPMSolverMultistepScheduler": [
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
        {"variance_type": "learned_range"},
    ],
    "EulerDiscreteScheduler": [{"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}],
}
CASES = [(kind, config) for kind in DISCRETE for config in (*DISCRETE_CONFIGS, *EXTRA.get(kind, ()))]


def scheduler_of(kind: str, config: dict[str, Any]) -> Any:
    if not hasattr(diffusers, kind):
        pytest.skip(f"this diffusers has no {kind}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(diffusers, kind)(**config)
    except (NotImplementedError, TypeError, ImportError) as error:
        pytest.skip(f"{kind} refuses this: {error}")


class Recorder:
    """A network that gives what it is told to, and keeps what it was given."""

    def __init__(self, out: Tensor) -> None:
        self.out = out

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.x, self.t = x, t
        return self.out


def ours(setting: Any, out: Tensor, shape: tuple[int, ...]) -> tuple[NetworkPrior, Recorder]:
    network = Recorder(-out if setting.negative else out)
    call = (lambda m, x, t: -m(x, t)) if setting.negative else None
    prior = as_prior(
        network,
        predicts=setting.predicts,
        schedule=setting.schedule,
        sigma_data=setting.sigma_data,
        value_range=(-1, 1),
        shape=shape,
        clip=setting.clip,
        variance=setting.variance,
        call=call,
    )
    return prior, network


def close(got: Tensor, want: Tensor) -> None:
    assert float((got - want).abs().max()) <= 1e-5 * max(1.0, float(want.abs().max()))


def x0_of(scheduler: Any, out: Tensor, index: int, x: Tensor) -> Tensor:
    """diffusers' own estimate of the clean signal from the network's output at a step, by whatever it has for that."""
    t = scheduler.timesteps[index]
    if hasattr(scheduler, "convert_model_output"):
        scheduler._step_index = index
        made = scheduler.convert_model_output(out, sample=x)
        if getattr(scheduler.config, "algorithm_type", "") != "deis":
            return made
        s, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index])  # this one converts to noise
        return (x - sigma * made) / s
    try:
        result = scheduler.step(out, t, x)
    except (ValueError, NotImplementedError) as error:
        pytest.skip(f"{type(scheduler).__name__} refuses this: {error}")
    if getattr(result, "pred_original_sample", None) is None:
        pytest.skip(f"{type(scheduler).__name__} tells no clean signal")
    return result.pred_original_sample


@pytest.mark.parametrize(
    ("kind", "config"), CASES, ids=lambda c: c if isinstance(c, str) else "-".join(map(str, c)) or "default"
)
def test_the_clean_signal_is_that_of_diffusers(kind, config):
    scheduler = scheduler_of(kind, config)
    if config.get("beta_schedule") == "sigmoid" and kind != "DDPMScheduler":
        pytest.skip("DDPM's alone")
    setting = read_scheduler(json.loads(scheduler.to_json_string()))
    shape = (3, 4, 4)
    learned = setting.variance is not None
    steps = scheduler.config.num_train_timesteps
    indices = (
        (1, steps // 2) if kind.startswith("KDPM2") else (0, 1, steps // 3, steps // 2, steps - 2)
    )  # they are slow
    for k, index in enumerate(indices):
        scheduler = scheduler_of(kind, config)
        out = noise(2, 6 if learned else 3, 4, 4, seed=k, dtype=F64)
        clean, eps = 0.5 * noise(2, *shape, seed=10 + k, dtype=F64), noise(2, *shape, seed=20 + k, dtype=F64)
        scheduler.set_timesteps(steps)
        if setting.predicts == "flow":
            sigma_t = float(scheduler.sigmas[index])
            s = 1 - sigma_t
        elif "sigmas" in vars(scheduler) and not hasattr(scheduler, "convert_model_output"):
            sigma = float(scheduler.sigmas[index])  # these work in x = x0 + sigma eps
            s, sigma_t = 1.0, sigma
        elif "sigmas" in vars(scheduler):
            s, sigma_t = (float(v) for v in scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index]))
        else:
            a = float(scheduler.alphas_cumprod[scheduler.timesteps[index]])
            s, sigma_t = math.sqrt(a), math.sqrt(1 - a)
        if s < 1e-3:
            continue  # pure noise: no finite sigma
        x_t = s * clean + sigma_t * eps
        want = x0_of(scheduler, out, index, x_t)
        prior, network = ours(setting, out, shape)
        if sigma_t / s > prior.sigma_range[1] * (1 + 1e-6):
            continue  # noisier than what we take networks to know
        close(prior.denoise(x_t / s, sigma_t / s), want)
        time = float(scheduler.timesteps[index])
        assert network.t.tolist() == pytest.approx(
            [time, time], abs=0.51 if setting.predicts != "flow" else 1e-3 * steps
        )


@pytest.mark.parametrize("kind", DISCRETE)
def test_the_levels_are_those_of_diffusers(kind):
    for config in (*DISCRETE_CONFIGS, *EXTRA.get(kind, ())):
        if config.get("prediction_type") == "flow_prediction" or config.get("beta_schedule") == "sigmoid":
            continue
        scheduler = scheduler_of(kind, config)
        levels = read_scheduler(json.loads(scheduler.to_json_string())).schedule.alphas_cumprod
        want = scheduler.alphas_cumprod.double()[: len(levels)]
        assert len(levels) >= len(scheduler.alphas_cumprod) - 1
        torch.testing.assert_close(torch.tensor(levels, dtype=F64), want, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", EDM_KINDS)
def test_edm_schedulers(kind, prediction):
    scheduler = scheduler_of(kind, {"prediction_type": prediction, "sigma_data": 0.7})
    setting = read_scheduler(json.loads(scheduler.to_json_string()))
    assert setting.negative == (prediction == "v_prediction")
    for sigma in (0.01, 0.5, 30.0):
        out, x = noise(2, 3, 4, 4, dtype=F64), noise(2, 3, 4, 4, seed=1, dtype=F64) * (1 + sigma)
        network = Recorder(out)
        call = (lambda m, x, t: -m(x, t)) if setting.negative else None
        prior = as_prior(
            network,
            predicts="edm",
            schedule=setting.schedule,
            sigma_data=0.7,
            value_range=(-1, 1),
            shape=(3, 4, 4),
            call=call,
        )
        close(prior.denoise(x, sigma), scheduler.precondition_outputs(x, out, sigma))
        close(network.x, scheduler.precondition_inputs(x, sigma))
        assert float(network.t[0]) == pytest.approx(float(scheduler.precondition_noise(torch.tensor(sigma))), abs=1e-5)


@pytest.mark.parametrize("kind", FLOW_KINDS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_schedulers(kind, shift):
    scheduler = scheduler_of(kind, {"shift": shift})
    setting = read_scheduler(json.loads(scheduler.to_json_string()))
    scheduler.set_timesteps(10)
    for index in (0, 4, 8):
        t = float(scheduler.sigmas[index])
        clean, eps = 0.5 * noise(2, 3, 4, 4, dtype=F64), noise(2, 3, 4, 4, seed=1, dtype=F64)
        x_t = (1 - t) * clean + t * eps
        if t > 0.99:
            continue
        network = Recorder(eps - clean)
        prior = as_prior(network, predicts="flow", schedule=setting.schedule, value_range=(-1, 1), shape=(3, 4, 4))
        close(prior.denoise(x_t / (1 - t), t / (1 - t)), clean)
        assert float(network.t[0]) == pytest.approx(1000 * t, rel=1e-4)
        # and a step with that velocity ends where diffusers' does
        if kind.startswith("FlowMatchEuler"):
            fresh = scheduler_of(kind, {"shift": shift})
            fresh.set_timesteps(10)
            fresh._step_index = index
            later = fresh.step((eps - clean).float(), fresh.timesteps[index], x_t.float()).prev_sample
            s = float(fresh.sigmas[index + 1])
            close(later.double(), (1 - s) * clean + s * eps)


def test_schedulers_that_are_not_known():
    with pytest.raises(UnknownName, match=r"unknown scheduler 'DDPMSchedular': did you mean DDPMScheduler"):
        read_scheduler({"_class_name": "DDPMSchedular"})
    for config, message in (
        ({"_class_name": "DDIMScheduler", "prediction_type": "epsilo"}, "unknown prediction_type 'epsilo'"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "epsilon or v_prediction"),
    ):
        with pytest.raises(InputError, match=message):
            read_scheduler(config)
    # a key that is left out means what diffusers takes it for
    for kind in DISCRETE:
        full = read_scheduler(json.loads(scheduler_of(kind, {}).to_json_string()))
        bare = read_scheduler({"_class_name": kind})
        assert (bare.schedule, bare.predicts, bare.clip) == (full.schedule, full.predicts, full.clip)


# -- networks ----------------------------------------------------------------------------------------


def filled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return module.eval()


def tiny_unet(**changes: Any) -> nn.Module:
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        **changes,
    }
    return filled(diffusers.UNet2DModel(**config))


def inner(prior: Prior) -> NetworkPrior:
    prior = prior.prior if isinstance(prior, Rescaled) else prior
    assert isinstance(prior, NetworkPrior)
    return prior


def pipeline(folder: Path, part: str, module: nn.Module, scheduler: Any, **options: Any) -> Path:
    """A pipeline's folder: the network, its scheduler, and an index."""
    module.save_pretrained(folder / part, **options)
    scheduler.save_pretrained(folder / "scheduler")
    index = {"_class_name": "Pipeline", part: ["diffusers", type(module).__name__], "scheduler": ["diffusers", "x"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("safe", [True, False])
def test_a_pipeline_of_images(tmp_path, safe):
    module = tiny_unet()
    folder = pipeline(tmp_path, "unet", module, diffusers.DDPMScheduler(), safe_serialization=safe)
    prior = load_prior(folder)
    network = inner(prior)
    assert prior.value_range == (0.0, 1.0)
    assert (network.predicts, network.clip, network.shape) == ("eps", True, (3, 16, 16))
    assert load_prior(folder, clip=False).prior.clip is False
    free = load_prior(str(folder), clip=False, shape=(3, None, None))
    x, a = noise(2, 3, 24, 16), ddpm_linear().alphas_cumprod[500]
    sigma = math.sqrt((1 - a) / a)
    with torch.no_grad():
        eps = module(math.sqrt(a) * x, torch.tensor([500, 500])).sample
    close(inner(free).denoise(x, sigma), x - sigma * eps)
    assert len(check_prior(free, (3, 16, 16))) == 9
    # the network's folder beside its scheduler, and a network alone
    assert load_prior(folder / "unet").describe() == {**prior.describe(), "name": "unet"}
    module.save_pretrained(tmp_path / "apart" / "alone")
    with pytest.raises(InputError, match="pass schedule= and predicts="):
        load_prior(tmp_path / "apart" / "alone")
    alone = load_prior(tmp_path / "apart" / "alone", schedule=ddpm_linear(), predicts="v")
    assert (inner(alone).predicts, inner(alone).clip) == ("v", False)


def test_classes_learned_variance_and_half_precision(tmp_path):
    module = tiny_unet(num_class_embeds=4, out_channels=6)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    folder = pipeline(tmp_path / "a", "unet", module, scheduler)
    prior = load_prior(folder).given(label=2)
    x = noise(1, 3, 16, 16).abs()
    assert not torch.equal(prior.denoise(x, 0.5), load_prior(folder).given(label=1).denoise(x, 0.5))
    learned = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    folder = pipeline(tmp_path / "b", "unet", module, learned)
    x0, variance = load_prior(folder).given(label=2).moments(x, 0.5)
    assert x0.shape == variance.shape == x.shape
    assert float(variance.min()) >= 0
    half = pipeline(tmp_path / "c", "unet", tiny_unet().half(), scheduler, variant="fp16")
    weights = next(iter(inner(load_prior(half)).module.parameters()))
    assert weights.dtype == torch.float32


def test_dit(tmp_path):
    module = filled(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=10,
        )
    )
    folder = pipeline(tmp_path, "transformer", module, diffusers.DDIMScheduler(clip_sample=False))
    prior = load_prior(folder)
    assert isinstance(prior, NetworkPrior)  # latents keep their units
    assert prior.shape == (4, 8, 8)
    x, a = noise(2, 4, 8, 8), ddpm_linear().alphas_cumprod[100]
    sigma = math.sqrt((1 - a) / a)
    for label, given in ((3, prior.given(label=3)), (10, prior)):  # 10 stands for no class
        with torch.no_grad():
            t = torch.tensor([100, 100])
            eps = module(math.sqrt(a) * x, timestep=t, class_labels=torch.tensor([label] * 2)).sample[:, :4]
        close(given.denoise(x, sigma), x - sigma * eps)


def test_stable_diffusion(tmp_path):
    module = filled(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    )
    scheduler = diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    prior = load_prior(pipeline(tmp_path, "unet", module, scheduler))
    text = noise(1, 5, 12)
    x, kernel = noise(2, 4, 8, 8), prior.schedule
    a = kernel.alphas_cumprod[600]
    sigma = math.sqrt((1 - a) / a)
    with torch.no_grad():
        t = torch.tensor([600, 600])
        eps = module(math.sqrt(a) * x, t, encoder_hidden_states=text.expand(2, -1, -1)).sample
    close(prior.given(encoder_hidden_states=text).denoise(x, sigma), x - sigma * eps)
    with pytest.raises(InputError, match=r"prior\.given\(encoder_hidden_states=\.\.\.\)"):
        prior.denoise(x, sigma)


def test_stable_diffusion_3_and_flux(tmp_path):
    sd3 = filled(
        diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=6,
            out_channels=4,
            pos_embed_max_size=8,
        )
    )
    flux = filled(
        diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=6,
            guidance_embeds=True,
            axes_dims_rope=(4, 4, 8),
        )
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    text, pooled, guidance = noise(1, 5, 12), noise(1, 6, seed=1), torch.tensor([3.5])
    x, t = noise(2, 4, 8, 8, seed=2), 0.3
    prior = load_prior(pipeline(tmp_path / "sd3", "transformer", sd3, scheduler))
    given = prior.given(encoder_hidden_states=text, pooled_projections=pooled)
    with torch.no_grad():
        u = sd3(
            (1 - t) * x,
            timestep=torch.tensor([300.0, 300.0]),
            encoder_hidden_states=text.expand(2, -1, -1),
            pooled_projections=pooled.expand(2, -1),
        ).sample
    close(given.denoise(x, t / (1 - t)), (1 - t) * x - t * u)
    # FLUX as its pipeline calls it: packed latents, their places, a clock from 0 to 1
    pipe = diffusers.FluxPipeline
    prior = load_prior(pipeline(tmp_path / "flux", "transformer", flux, scheduler))
    assert prior.shape == (4, None, None)
    given = prior.given(encoder_hidden_states=text, pooled_projections=pooled, guidance=guidance)
    x = noise(2, 4, 8, 12, seed=3)
    with torch.no_grad():
        out = flux(
            pipe._pack_latents((1 - t) * x, 2, 4, 8, 12),
            timestep=torch.tensor([t, t]),
            encoder_hidden_states=text.expand(2, -1, -1),
            pooled_projections=pooled.expand(2, -1),
            guidance=guidance.expand(2),
            txt_ids=torch.zeros(5, 3),
            img_ids=pipe._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32),
        ).sample
    u = pipe._unpack_latents(out, 8 * 8, 12 * 8, 8)
    close(given.denoise(x, t / (1 - t)), (1 - t) * x - t * u)
    with pytest.raises(InputError, match="needs guidance"):
        prior.given(encoder_hidden_states=text, pooled_projections=pooled).denoise(x, 0.5)


def test_lean_networks_of_diffusers_have_the_same_gradient():
    module = tiny_unet().requires_grad_(False)
    slim, x, t = lean(module), noise(2, 3, 16, 16), torch.tensor([10, 700])

    def gradient(network: nn.Module) -> tuple[Tensor, int]:
        own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        kept: dict[int, int] = {}

        def pack(z: Tensor) -> Tensor:
            if z.untyped_storage().data_ptr() not in own:
                kept[z.untyped_storage().data_ptr()] = z.untyped_storage().nbytes()
            return z

        leaf = x.clone().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda z: z):
            out = network(leaf, t).sample
        return torch.autograd.grad(out.sin().sum(), leaf)[0], sum(kept.values())

    got, little = gradient(slim)
    want, much = gradient(module)
    assert torch.equal(got, want)
    assert little < 0.7 * much


# -- autoencoders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel"])
def test_autoencoders(tmp_path, kind):
    blocks = {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 8,
        "latent_channels": 4,
    }
    extra: dict[str, Any] = (
        {"scaling_factor": 0.36, "shift_factor": 0.1} if kind == "AutoencoderKL" else {"num_vq_embeddings": 16}
    )
    module = filled(getattr(diffusers, kind)(**blocks, **extra))
    folder = tmp_path / ("vae" if kind == "AutoencoderKL" else "vqvae")
    module.save_pretrained(folder)
    for path in (tmp_path, folder):
        coder = load_autoencoder(path)
        assert (coder.channels, coder.latents, coder.factor) == (3, 4, 2)
        x = noise(2, 3, 16, 12).sigmoid()
        z = coder.encode(x)
        assert z.shape == (2, 4, 8, 6)
        with torch.no_grad():
            native = 2 * x - 1
            if kind == "AutoencoderKL":
                want = (module.encode(native).latent_dist.mode() - 0.1) * 0.36
                back = module.decode(want / 0.36 + 0.1).sample
            else:
                want = module.encode(native).latents * 0.18215
                back = module.decode(want / 0.18215).sample
        close(z, want)
        close(coder.decode(z), (back + 1) / 2)
    close(coder.in_range(-1, 1).decode(z), back)
    close(coder.in_range(-1, 1).encode(2 * x - 1), z)
    if kind == "AutoencoderKL":  # a decoder has a gradient, and its weights none
        leaf = z.clone().requires_grad_(True)
        coder.decode(leaf).sum().backward()
        assert float(leaf.grad.abs().max()) > 0
        assert all(p.grad is None for p in coder.module.parameters())
    with pytest.raises(InputError, match="multiples of 2, got"):
        coder.encode(noise(1, 3, 15, 16))
    with pytest.raises(InputError, match=r"takes \[N, 4, H, W\], got"):
        coder.decode(noise(1, 3, 8, 8))
    tiny_unet().save_pretrained(tmp_path / "no" / "vae")
    with pytest.raises(InputError, match="not one of the autoencoders"):
        load_autoencoder(tmp_path / "no")
    with pytest.raises(InputError, match="holds no autoencoder"):
        load_autoencoder(tmp_path / "nothing.here")


# -- what is wrong -----------------------------------------------------------------------------------


def test_incomplete_and_damaged_folders(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = pipeline(tmp_path / "x", "unet", tiny_unet(), diffusers.DDPMScheduler())
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole, weights = file.read_bytes(), load_file(file)
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({k: v for k, v in weights.items() if k != "conv_in.bias"}, "lacks tensors conv_in.bias"),
        ({**weights, "more": torch.zeros(1)}, "unknown tensors more"),
        ({**weights, "conv_in.bias": torch.zeros(5)}, r"conv_in\.bias"),
        ({**weights, "conv_in.bias": torch.full((32,), torch.inf)}, r"conv_in\.bias hold NaN or infinite"),
    ]
    for broken, message in cases:
        save_file(broken, file)
        with pytest.raises(InputError, match=message):
            load_prior(folder)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        load_prior(folder)
    file.unlink()
    with pytest.raises(InputError, match="holds no weights"):
        load_prior(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        load_prior(folder)
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet3DModel"}')
    with pytest.raises(UnknownName, match="did you mean"):
        load_prior(folder)
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match="pass subfolder=, one of unet, scheduler"):
        load_prior(folder)
    with pytest.raises(InputError, match="no option 'prediction'"):
        load_prior(folder, prediction="eps")
    with pytest.raises(InputError, match="leave it out"):
        load_prior(folder, sha256="0" * 64)


def test_code_in_a_folder_never_runs(tmp_path):
    folder = pipeline(tmp_path / "x", "unet", tiny_unet(), diffusers.DDPMScheduler(), safe_serialization=False)
    file, mark = folder / "unet" / "diffusion_pytorch_model.bin", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (mark,))

    torch.save({"conv_in.weight": Evil()}, file)
    with pytest.raises(InputError, match="is a pickle"):
        load_prior(folder)
    assert not mark.exists()
