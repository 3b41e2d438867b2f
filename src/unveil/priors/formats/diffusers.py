"""Folders of diffusers: a pipeline's, or a model's beside its scheduler. Needs the extra ``diffusers``, and no network.

The network comes from diffusers itself, which knows how old weights were named; the scheduler's configuration is read
here (:mod:`.schedulers`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError, unknown
from ..adapters import Call, NetworkPrior, Prediction, as_prior
from ..kernels import DDPM, Kernel
from .files import TORCH_FILES, few, read_weights
from .schedulers import Setting, read_scheduler

DENOISERS = ("unet", "transformer")


def diffusers_prior(
    path: Path,
    *,
    subfolder: str | None = None,
    schedule: Kernel | None = None,
    predicts: Prediction | None = None,
    clip: bool | None = None,
    shape: Sequence[int | None] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> NetworkPrior:
    """The prior of a diffusers folder, in the units of its training: UNet2D, UNet2DCondition, DiT, SD3 and FLUX models.

    ``subfolder``: the network's, by default ``unet`` or ``transformer`` of a pipeline. ``schedule``, ``predicts`` and
    ``clip`` overrule the scheduler's configuration, and are needed without one (``clip`` is off then). ``shape``: of a
    sample, by default that of training; ``(3, None, None)`` takes any size that the network does. Text is given as
    embeddings, under the network's own names: ``prior.given(encoder_hidden_states=...)``; classes as ``label``.

    Raises :class:`InputError` for a folder that is none of these, incomplete or damaged, and without the extra.
    """
    folder = _network_folder(path, subfolder)
    config = read_json(folder / "config.json")
    kind = str(config.get("_class_name", ""))
    if kind not in CALLS:
        raise unknown("network of diffusers", kind, CALLS)
    call, conditions = CALLS[kind]
    setting = _setting(folder, schedule, predicts)
    module = load_model(folder, kind)
    channels, out = int(config.get("in_channels", 3)), config.get("out_channels")
    if kind == "FluxTransformer2DModel":
        channels, out = channels // 4, None  # 2 x 2 latents are one token
    size = config.get("sample_size")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    common: dict[str, Any] = {"channels": channels} if out == 2 * channels else {}
    if setting.variance is not None and common:
        common["variance"] = setting.variance
    return as_prior(
        module,
        predicts=setting.predicts,
        schedule=setting.schedule,
        sigma_data=setting.sigma_data,
        value_range=value_range,
        shape=(channels, height, width) if shape is None else shape,
        clip=setting.clip if clip is None else clip,
        call=_Negative(call) if setting.negative else call,
        conditions=conditions,
        name=path.name,
        **common,
    )


def _network_folder(path: Path, subfolder: str | None) -> Path:
    if subfolder is not None:
        if not (path / subfolder / "config.json").is_file():
            raise InputError(f"{path / subfolder} is no model of diffusers: it has no config.json")
        return path / subfolder
    for folder in (*(path / part for part in DENOISERS), path):
        if (folder / "config.json").is_file():
            return folder
    if (path / "model_index.json").is_file():
        parts = [k for k, v in read_json(path / "model_index.json").items() if isinstance(v, list)]
        raise InputError(f"{path} has no unet or transformer folder: pass subfolder=, one of {few(parts, 8)}")
    raise InputError(f"{path} is no folder of diffusers (it has no config.json): name the file in it")


def _setting(folder: Path, schedule: Kernel | None, predicts: Prediction | None) -> Setting:
    """By the scheduler's configuration, within the folder or beside it, and by what the caller says."""
    for file in (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"):
        if file.is_file():
            found = read_scheduler(read_json(file))
            found = replace(found, schedule=schedule or found.schedule, predicts=predicts or found.predicts)
            # what is said of a prediction or a kernel is not said of another
            variance = found.variance if isinstance(found.schedule, DDPM) else None
            return replace(found, variance=variance, negative=found.negative and found.predicts == "edm")
    if schedule is None or predicts is None:
        raise InputError(
            f"{folder} has no scheduler_config.json (in it, or in a folder 'scheduler' beside it): pass schedule= and "
            "predicts="
        )
    return Setting(schedule, predicts)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises :class:`InputError` for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object")
    return found


def load_model(folder: Path, kind: str) -> nn.Module:
    """A model of diffusers with the weights in its folder, as float32; every weight must be there and fit.

    Raises :class:`InputError` for missing, damaged or pickled weights, and without the extra.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError(f"{folder} needs the extra: pip install 'unveil[diffusers]'") from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        weights = sorted(p for p in folder.iterdir() if p.suffix in TORCH_FILES)
        for file in weights:
            read_weights(file)  # refuses code
    if not weights:
        raise InputError(f"{folder} holds no weights")
    plain = any(".fp16." not in p.name for p in weights)
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(logging.CRITICAL)  # what matters is raised below
    try:
        module, info = getattr(diffusers, kind).from_pretrained(
            str(folder),
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            use_safetensors=weights[0].suffix == ".safetensors",
            variant=None if plain else "fp16",
            torch_dtype=torch.float32,
        )
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder} cannot be loaded (truncated, or misshapen weights?): {reason}") from None
    finally:
        diffusers.utils.logging.set_verbosity(level)
    for what, key in (
        ("lacks", "missing_keys"),
        ("has misshapen", "mismatched_keys"),
        ("has unknown", "unexpected_keys"),
    ):
        keys = [str(k[0] if isinstance(k, tuple) else k) for k in info.get(key, ())]
        if keys:
            raise InputError(
                f"{folder} {what} tensors {few(sorted(keys))}: the weights are not those of its config.json"
            )
    bad = [k for k, v in module.state_dict().items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if bad:
        raise InputError(f"{folder}: the weights {few(bad)} hold NaN or infinite values")
    found: nn.Module = module
    return found


# -- how each network is called ----------------------------------------------------------------------


def _need(given: Tensor | None, name: str) -> Tensor:
    if given is None:
        raise InputError(f"this network needs {name}: prior.given({name}=...)")
    return given


def _unet(module: Any, x: Tensor, t: Tensor, label: Tensor | None = None) -> Any:
    return module(x, t, class_labels=label)


def _unet_condition(
    module: Any, x: Tensor, t: Tensor, encoder_hidden_states: Tensor | None = None, **condition: Any
) -> Any:
    return module(x, t, encoder_hidden_states=_need(encoder_hidden_states, "encoder_hidden_states"), **condition)


def _dit(module: Any, x: Tensor, t: Tensor, label: Tensor | None = None) -> Any:
    if label is None:  # the class that stands for none
        label = torch.full((len(x),), module.config.num_embeds_ada_norm, device=x.device)
    return module(x, timestep=t, class_labels=label)


def _sd3(
    module: Any,
    x: Tensor,
    t: Tensor,
    encoder_hidden_states: Tensor | None = None,
    pooled_projections: Tensor | None = None,
) -> Any:
    return module(
        x,
        timestep=t,
        encoder_hidden_states=_need(encoder_hidden_states, "encoder_hidden_states"),
        pooled_projections=_need(pooled_projections, "pooled_projections"),
    )


def _flux(
    module: Any,
    x: Tensor,
    t: Tensor,
    encoder_hidden_states: Tensor | None = None,
    pooled_projections: Tensor | None = None,
    guidance: Tensor | None = None,
) -> Tensor:
    """Tokens are 2 x 2 latents, with their place; the clock runs from 0 to 1."""
    text: Tensor = _need(encoder_hidden_states, "encoder_hidden_states")
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    place = torch.zeros(rows, columns, 3, dtype=x.dtype, device=x.device)
    place[..., 1] = torch.arange(rows, device=x.device)[:, None]
    place[..., 2] = torch.arange(columns, device=x.device)
    if module.config.guidance_embeds:
        _need(guidance, "guidance")
    out = module(
        F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
        timestep=t / 1000,
        encoder_hidden_states=text,
        pooled_projections=_need(pooled_projections, "pooled_projections"),
        img_ids=place.flatten(0, 1),
        txt_ids=torch.zeros(text.shape[1], 3, dtype=x.dtype, device=x.device),
        guidance=guidance,
    )
    return F.pixel_shuffle(out.sample.transpose(1, 2).unflatten(2, (rows, columns)), 2)


TEXT = ("encoder_hidden_states", "pooled_projections")
CALLS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "UNet2DModel": (_unet, ("label",)),
    "UNet2DConditionModel": (
        _unet_condition,
        ("encoder_hidden_states", "added_cond_kwargs", "class_labels", "timestep_cond"),
    ),
    "DiTTransformer2DModel": (_dit, ("label",)),
    "Transformer2DModel": (_dit, ("label",)),
    "SD3Transformer2DModel": (_sd3, TEXT),
    "FluxTransformer2DModel": (_flux, (*TEXT, "guidance")),
}
"""For every network that is known: how to call it, and what it can be given."""


class _Negative:
    """A call whose result is negated."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __call__(self, *arguments: Any, **condition: Any) -> Tensor:
        out: Any = self.call(*arguments, **condition)
        return -getattr(out, "sample", out)  # type: ignore[no-any-return]
