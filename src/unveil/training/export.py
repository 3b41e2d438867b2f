"""Turn a checkpoint into the weights that a prior loads: fp16 safetensors that say how to rebuild it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..io.atomic import write_atomic
from ..priors.formats import files
from ..priors.loaders import read_header
from ..priors.networks.autoencoder import Autoencoder
from ..priors.networks.unet import UNet
from ..priors.networks.velocity import VelocityUNet
from ..priors.texts import write_texts
from . import checkpoint, data
from .objectives import objective

FORMAT = 1
NETWORKS: dict[str, type[nn.Module]] = {"unet": UNet, "velocity-unet": VelocityUNet, "autoencoder": Autoencoder}


def description(name: str, config: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the `unveil` key of the file's metadata says.

    The shape is that of any image of the right channels, or of the crops if they were always the whole signal.
    """
    task = objective(recipe.get("objective", "edm"), recipe["sigma_data"])
    side = recipe["size"] if recipe.get("fixed_size") else None
    return {
        "format": FORMAT,
        "network": task.network,
        "config": config,
        "predicts": task.predicts,
        "sigma_data": recipe["sigma_data"],
        "value_range": [-1, 1],
        "sigma_range": list(recipe["sigma_range"]),
        "shape": [config["channels"], side, side],
        "name": name,
    }


def export(run: Path, target: Path, name: str, texts: Mapping[str, Any] | None = None) -> Path:
    """Write the averaged weights of a run's newest checkpoint (or of one `step-N` folder), in fp16.

    `texts`: where the embeddings of texts are, `file` beside the target and `encoder` (see `priors.texts`).
    Raises CheckpointError if there is no checkpoint or a weight does not fit into fp16.
    """
    folder = run if (run / "shared.pt").exists() else checkpoint.newest(run)
    if folder is None:
        raise CheckpointError(f"There is no checkpoint in {run}: train first.")
    shared = checkpoint.read_part(folder, "shared")
    recipe = shared["recipe"]
    meta = description(name, shared["config"], recipe)
    if shared.get("latent"):
        meta["latent"] = shared["latent"]
    if texts:
        meta["texts"] = dict(texts)
    tensors = {k: v.to(torch.float16).contiguous() for k, v in sorted(shared["average"].items())}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"Weight {key} does not fit into fp16: train with lower learning rates.")
    metadata = {"unveil": json.dumps(meta, sort_keys=True)}
    return write_atomic(target, lambda scratch: save_file(tensors, scratch, metadata=metadata))


def write_table(card: Mapping[str, Any], cache: Path | None, folder: Path) -> dict[str, Any] | None:
    """Write the embeddings of a card's captions, a file in `folder` named after the encoder, for a prior beside it.

    What `export` says of them; None for a card whose network takes no texts, or whose images have none.
    """
    encoder = card["data"].get("encoder")
    if not (encoder and card["network"].get("texts")):
        return None
    pack = data.build(card["data"], cache, data.quiet)
    rows = pack.conditions(range(len(pack)))["text"]
    written = write_texts(folder / f"{encoder['package']}.safetensors", [e["caption"] for e in pack.entries], rows)
    return {"file": written.name, "encoder": {k: v for k, v in encoder.items() if k != "licence"}}


def read_weights(weights: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an exported file in float32, and its description. Raises InputError for another file."""
    found = files.read_weights(weights)
    return {key: tensor.float() for key, tensor in found.tensors.items()}, read_header(found)


def load_network(weights: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of an exported file in float32, in evaluation mode, and its description."""
    state, meta = read_weights(weights)
    network = NETWORKS[meta["network"]](**meta["config"])
    network.load_state_dict(state)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False), meta
