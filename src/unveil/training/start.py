"""Weights to begin a training with: those of a prior of the zoo, of a file, or of another run."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..errors import InputError
from ..priors.loaders import ZOO
from . import checkpoint
from .export import read_weights


def find_weights(name: str, key: str) -> Path:
    """The file of a prior of the zoo, or the file of this name. `key` is what the card calls it."""
    path = ZOO / f"{name}.safetensors"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        raise InputError(f"{key} = {name!r} is neither a prior of the zoo nor a file.")
    return path


def load_start(network: nn.Module, start: str) -> None:
    """Copy weights into a network of the same layers: of a prior of the zoo, by name, the averaged ones of a run, by
    its folder, or those of a .safetensors file.

    Raises InputError for a file that is missing or does not fit.
    """
    ships = (ZOO / f"{start}.safetensors").is_file()  # a folder here may have the name of a prior
    last = None if ships else checkpoint.newest(Path(start))
    if last is not None:
        path, state = last, checkpoint.read_part(last, "shared")["average"]
    else:
        path = find_weights(start, "[training] start")
        state, _ = read_weights(path)
    own = network.state_dict()
    shapes = [{k: v.shape for k, v in weights.items()} for weights in (own, state)]
    wrong = sorted(k for k in own.keys() | state.keys() if shapes[0].get(k) != shapes[1].get(k))
    if wrong:
        raise InputError(f"{path} does not fit the card's [network] ({wrong[0]} differs): copy that of its own card.")
    network.load_state_dict(state)
