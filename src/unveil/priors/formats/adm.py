"""Checkpoints of guided-diffusion ("ADM", Dhariwal and Nichol 2021, arXiv 2105.05233), and of what was trained with it:
FFHQ (the "10 M" network of many papers on inverse problems), ImageNet 64 to 512, LSUN, AFHQ.

The architecture is read off the weights, but for two things that leave no trace in them: how the attention's channels
are split into heads, and the noise schedule. For the published networks both are known (PUBLISHED).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..adapters import NetworkPrior, as_prior
from ..kernels import Kernel, ddpm_cosine, ddpm_linear
from ..networks.adm import ADM
from ..variance import Variance
from .files import Weights, fill


@dataclass(frozen=True)
class Published:
    """What the weights of a published network do not say."""

    size: int
    heads: int | None = None
    merged_heads: bool = True
    cosine: bool = False


PUBLISHED: dict[tuple[int, tuple[int, ...], int], Published] = {
    # width, multiples of it (times two) per level, blocks
    (128, (2, 2, 4, 4, 8, 8), 1): Published(256),  # FFHQ, AFHQ
    (192, (2, 4, 6, 8), 3): Published(64, merged_heads=False, cosine=True),  # ImageNet
    (256, (2, 2, 4, 6, 8), 2): Published(128, heads=4),  # ImageNet
    (256, (2, 2, 4, 4, 8, 8), 2): Published(256),  # ImageNet, LSUN
    (256, (1, 2, 2, 4, 4, 8, 8), 2): Published(512),  # ImageNet
}


def adm_prior(
    weights: Weights,
    *,
    heads: int | None = None,
    head_channels: int | None = None,
    merged_heads: bool | None = None,
    schedule: Kernel | None = None,
    shape: Sequence[int | None] | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    clip: bool = False,
) -> NetworkPrior:
    """The prior of a guided-diffusion checkpoint, which predicts the noise, in the units of its training.

    ``heads`` or ``head_channels`` (64 almost always), ``merged_heads`` (True but for ``use_new_attention_order``) and
    ``schedule`` (:func:`ddpm_linear` almost always) need to be given for networks that are not the published ones.
    ``shape``: of a sample, by default that of the training images where it is known; ``(3, None, None)`` takes any
    size whose sides are multiples of 32. Raises :class:`InputError` for weights that are not such a network.
    """
    config = adm_config(weights)
    width = config["width"]
    known = PUBLISHED.get((width, tuple(2 * w // width for w in config["widths"]), config["blocks"]))
    if known is None and heads is None and head_channels is None:
        raise InputError(
            f"{weights.path}: the weights of this ADM network do not say how its attention is split: pass "
            "load_prior(..., head_channels=64) (num_head_channels of its training) or heads=4 (num_heads), and "
            "schedule=unveil.priors.ddpm_cosine() unless it is linear"
        )
    if heads is None and head_channels is None:
        assert known is not None
        heads, head_channels = known.heads, None if known.heads else 64
    if merged_heads is None:
        merged_heads = known is None or known.merged_heads
    if schedule is None:
        schedule = ddpm_cosine() if known is not None and known.cosine else ddpm_linear()
    with torch.device("meta"):
        module = ADM(**config, heads=heads, head_channels=head_channels, merged_heads=merged_heads)
    fill(weights.path, module, weights.tensors)
    channels, size = config["channels"], known.size if known else None
    learnt: Variance | None = "learned_range" if config["out_channels"] == 2 * channels else None
    return as_prior(
        module,
        predicts="eps",
        schedule=schedule,
        value_range=value_range,
        shape=(channels, size, size) if shape is None else shape,
        variance=learnt,
        clip=clip,
        conditions=("label",) if config["classes"] else (),
        classes=config["classes"],
        name=weights.path.stem,
    )


def adm_config(weights: Weights) -> dict[str, Any]:
    """The arguments of :class:`ADM` but for the heads, read off the names and shapes of its weights."""
    tensors = weights.tensors

    def bad(what: str) -> InputError:
        return InputError(
            f"{weights.path} looks like ADM weights, but {what}: truncated, or of a variant not known here"
        )

    steps = [
        int(m[1]) for k in tensors if (m := re.match(r"output_blocks\.(\d+)\.[12]\.(in_layers\.0|conv)\.weight", k))
    ]
    count = _count(tensors, "output_blocks")
    if not count:
        raise bad("it has no output_blocks")
    per_level = min(steps) + 1 if steps else count
    levels, rest = divmod(count, per_level)
    if rest or per_level < 2 or _count(tensors, "input_blocks") != levels * per_level:
        raise bad(f"{_count(tensors, 'input_blocks')} input and {count} output blocks do not make a U-Net")
    blocks = per_level - 1
    try:
        width = tensors["time_embed.0.weight"].shape[1]
        firsts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
        widths = [tensors[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
        config: dict[str, Any] = {
            "channels": tensors["input_blocks.0.0.weight"].shape[1],
            "out_channels": tensors["out.2.weight"].shape[0],
            "width": width,
            "widths": widths,
            "blocks": blocks,
            "attention": [k for k, first in enumerate(firsts) if f"{first}.1.qkv.weight" in tensors],
            "classes": tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else 0,
            "film": tensors[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
            "updown": levels > 1 and f"input_blocks.{per_level}.0.in_layers.0.weight" in tensors,
        }
    except KeyError as error:
        raise bad(f"it lacks {error}") from None
    if config["out_channels"] not in (config["channels"], 2 * config["channels"]):
        raise InputError(
            f"{weights.path}: this network makes {config['out_channels']} channels out of {config['channels']}, so it "
            "is no prior of images alone (an upsampler takes a small image as well)"
        )
    return config


def _count(tensors: Mapping[str, Tensor], kind: str) -> int:
    return 1 + max((int(m[1]) for k in tensors if (m := re.match(rf"{kind}\.(\d+)\.", k))), default=-1)
