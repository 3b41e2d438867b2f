"""Weights of EDM (Karras et al. 2022, arXiv 2206.00364; DDPM++, NCSN++ and ADM, with VP, VE, iDDPM or EDM
preconditioning) and EDM2 (Karras et al. 2024, arXiv 2312.02696), once they are safetensors.

They are published as pickles with code in them, which :func:`~unveil.priors.formats.files.read_weights` refuses with
the command that converts them; it keeps the class of the preconditioning and its arguments. The architecture is read
off the names of the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..adapters import NetworkPrior, as_prior
from ..kernels import DDPM, EDM, VE, VPLinear
from ..networks.edm import EDMUNet
from ..networks.edm2 import EDM2UNet, effective
from .files import Weights, fill

Preconditioning = Literal["edm", "vp", "ve", "iddpm"]
CLASSES: dict[str, Preconditioning] = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
}


def _said(weights: Weights) -> dict[str, Any]:
    """The arguments of the preconditioning, as the conversion command has kept them."""
    try:
        said = json.loads(weights.metadata.get("kwargs", "{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"{weights.path}: the metadata entry kwargs is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise InputError(f"{weights.path}: the metadata entry kwargs is not an object")
    for key in ("sigma_data", "beta_min", "beta_d", "M", "epsilon_t", "sigma_min", "sigma_max"):
        if type(said.get(key, 0)) not in (int, float):
            raise InputError(f"{weights.path}: {key} in the metadata entry kwargs is {said[key]!r}, not a number")
    return said


def edm_prior(
    weights: Weights,
    *,
    preconditioning: Preconditioning | None = None,
    sigma_data: float | None = None,
    shape: Sequence[int | None] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> NetworkPrior:
    """The prior of an EDM network, in the units of its training.

    ``preconditioning`` and ``sigma_data`` (0.5) are known for files that the conversion command made; iDDPM's leaves a
    trace in the weights. ``shape``: of a sample, by default that of the training images. Raises :class:`InputError` for
    weights that are not such a network, and where the preconditioning is not known.
    """
    said = _said(weights)
    tensors = {k.removeprefix("model."): v for k, v in weights.tensors.items()}
    levels = tensors.pop("u", None)
    if preconditioning is None:
        preconditioning = CLASSES.get(weights.metadata.get("class", ""), "iddpm" if levels is not None else None)
    if preconditioning is None:
        raise InputError(
            f"{weights.path}: the weights do not say how the network was preconditioned: pass "
            "load_prior(..., preconditioning='edm'), or 'vp' or 've'"
        )
    if preconditioning not in get_args(Preconditioning):
        raise InputError(f"unknown preconditioning '{preconditioning}': one of {', '.join(get_args(Preconditioning))}")
    config = edm_config(weights, tensors)
    with torch.device("meta"):
        module = EDMUNet(**config)
    fill(weights.path, module, tensors)
    size, channels = config["size"], config["channels"]
    shape = (channels, size, size) if shape is None else tuple(shape)
    common: dict[str, Any] = {
        "value_range": value_range,
        "shape": shape,
        "conditions": ("label",) if config["classes"] else (),
        "classes": config["classes"],
        "name": weights.path.stem,
    }
    if preconditioning == "edm":
        data = said.get("sigma_data", 0.5) if sigma_data is None else sigma_data
        return as_prior(module, predicts="edm", schedule=EDM(), sigma_data=float(data), **common)
    if preconditioning == "vp":
        low, steep, steps = said.get("beta_min", 0.1), said.get("beta_d", 19.9), said.get("M", 1000)
        kernel = VPLinear(low, low + steep, float(said.get("epsilon_t", 1e-5)), float(steps - 1))
        return as_prior(module, predicts="eps", schedule=kernel, **common)
    if preconditioning == "ve":
        ve = VE(float(said.get("sigma_min", 0.02)), float(said.get("sigma_max", 100.0)), clock="log")
        return as_prior(module, predicts="eps", schedule=ve, call=_negative, **common)
    if levels is None:
        raise InputError(
            f"{weights.path}: iDDPM preconditioning needs its noise levels, the tensor 'u', which is missing"
        )
    variances = levels.double().flip(0)[1:].square()  # levels fall from the noisiest on, and end in 0
    ddpm = DDPM(tuple((1 / (1 + variances)).tolist()))
    learnt = "learned_range" if config["out_channels"] == 2 * channels else None
    return as_prior(module, predicts="eps", schedule=ddpm, variance=learnt, **common)  # type: ignore[arg-type]


def _negative(module: nn.Module, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
    """VE preconditioning adds sigma F to x, where the other noise predictions subtract it."""
    out: Tensor = module(x, time, label)
    return -out


def edm2_prior(
    weights: Weights,
    *,
    sigma_data: float | None = None,
    shape: Sequence[int | None] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
) -> NetworkPrior:
    """The prior of an EDM2 network, in the units of its training: images, or latents for the networks of 512 x 512.

    ``shape``: of a sample, by default that of training. Raises :class:`InputError` for weights that are not such a
    network.
    """
    said = _said(weights)
    tensors = {k.removeprefix("unet."): v for k, v in weights.tensors.items() if not k.startswith("logvar_")}
    layout = _layout(weights, tensors)
    try:
        stem = tensors[f"enc.{layout.size}x{layout.size}_conv.weight"]
        widths = [tensors[f"enc.{at}x{at}_block0.conv_res1.weight"].shape[0] for at in layout.resolutions]
        config: dict[str, Any] = {
            "size": layout.size,
            "channels": stem.shape[1] - 1,
            "width": stem.shape[0],
            "multiples": [w // stem.shape[0] for w in widths],
            "blocks": layout.blocks,
            "attention": [a for a in layout.resolutions if f"enc.{a}x{a}_block0.attn_qkv.weight" in tensors],
            "classes": tensors["emb_label.weight"].shape[1] if "emb_label.weight" in tensors else 0,
        }
    except KeyError as error:
        raise InputError(f"{weights.path} looks like EDM2 weights, but lacks {error}: truncated?") from None
    with torch.device("meta"):
        module = EDM2UNet(**config)
    fill(weights.path, module, effective(tensors))
    return as_prior(
        module,
        predicts="edm",
        schedule=EDM(),
        sigma_data=float(said.get("sigma_data", 0.5) if sigma_data is None else sigma_data),
        value_range=value_range,
        shape=(config["channels"], layout.size, layout.size) if shape is None else shape,
        conditions=("label",) if config["classes"] else (),
        classes=config["classes"],
        name=weights.path.stem,
    )


@dataclass(frozen=True)
class Layout:
    """Resolutions, from that of the images down, and blocks per level."""

    resolutions: list[int]
    blocks: int

    @property
    def size(self) -> int:
        return self.resolutions[0]


def _layout(weights: Weights, tensors: dict[str, Tensor]) -> Layout:
    """What the names of the encoder say."""
    found = [m for k in tensors if (m := re.match(r"enc\.(\d+)x\d+_block(\d+)\.", k))]
    if not found:
        raise InputError(f"{weights.path} looks like EDM weights, but has no encoder: truncated?")
    return Layout(sorted({int(m[1]) for m in found}, reverse=True), 1 + max(int(m[2]) for m in found))


def edm_config(weights: Weights, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of :class:`EDMUNet`, read off the names and shapes of its weights."""
    layout = _layout(weights, tensors)
    size, song = layout.size, "out_conv.weight" not in tensors
    if any("_aux_skip." in k for k in tensors) or sum(k.endswith("_aux_norm.weight") for k in tensors) > 1:
        raise InputError(f"{weights.path}: encoders and decoders of the 'skip' kind are not known here")
    try:
        stem = tensors[f"enc.{size}x{size}_conv.weight"]
        taps = [v for k, v in tensors.items() if k.endswith("_down.conv0.resample_filter")]
        noise_width = tensors["map_layer0.weight"].shape[1]
        last = tensors[f"dec.{size}x{size}_aux_conv.weight" if song else "out_conv.weight"]
        label, augment = tensors.get("map_label.weight"), tensors.get("map_augment.weight")
        return {
            "kind": "song" if song else "adm",
            "size": size,
            "channels": stem.shape[1],
            "out_channels": last.shape[0],
            "width": stem.shape[0] if song else noise_width,
            "widths": [tensors[f"enc.{at}x{at}_block0.conv1.weight"].shape[0] for at in layout.resolutions],
            "blocks": layout.blocks,
            "attention": [a for a in layout.resolutions if f"enc.{a}x{a}_block0.qkv.weight" in tensors],
            "classes": 0 if label is None else label.shape[1],
            "augment": 0 if augment is None else augment.shape[1],
            "noise": "fourier" if "map_noise.freqs" in tensors else "positional",
            "noise_width": noise_width,
            "residual": any("_aux_residual." in k for k in tensors),
            "taps": (1, 3, 3, 1) if taps and taps[0].shape[-1] == 4 else (1, 1),
        }
    except KeyError as error:
        raise InputError(f"{weights.path} looks like EDM weights, but lacks {error}: truncated?") from None
