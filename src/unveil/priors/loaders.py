"""Priors from files: the zoo that ships with the library, and safetensors files in its own format.

Files and folders of other projects are read by :mod:`unveil.priors.formats`.

A prior file is a safetensors file with half-precision weights and one metadata entry, ``unveil``, a JSON
object:

    {"format": 1, "network": "unet", "config": {...}, "predicts": "edm", "sigma_data": 0.5, "value_range":
    [-1, 1],
     "sigma_range": [0.002, 80], "shape": [3, null, null], "name": "photos"}

``config`` holds the keyword arguments of the network's class. A prior of the zoo has a card beside it, a TOML
file. Nothing is ever unpickled, and nothing downloaded without a commit and a checksum.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import registry
from ..errors import InputError, unknown
from ..io.atomic import write_atomic
from .adapters import as_prior
from .base import Prior
from .kernels import EDM, RectifiedFlow

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from .formats.files import PICKLES, TORCH_FILES, Weights, fill, read_weights

ZOO = Path(__file__).parent / "zoo"
FORMAT = 1
KEYS = ("network", "config", "predicts", "sigma_data", "value_range", "sigma_range", "shape")
FILE_RANGE = (0.0, 1.0)
"""Loaded priors are handed out in the units of image files as this library reads them."""


def load_prior(
    name_or_path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    sha256: str | None = None,
    **options: Any,
) -> Prior:
    """A prior by name (of the zoo, or registered by a package through ``unveil.priors``), from a file or a folder.

    Files: this library's own; weights of guided-diffusion ("ADM"), EDM and EDM2, as safetensors or as torch files
    without code in them. Folders: those of diffusers, or their name on the hub with a commit, ``org/name@<commit>``
    (the extra ``diffusers``; they are downloaded once and their checksums verified).

    Images of 1 or 3 channels are handed out for values in (0, 1), the units of image files as this library reads
    them, whatever the network was trained in; convert with ``.in_range(-1, 1)``. Other signals (latents) keep the units
    of training. Weights stored in half precision run in float32.

    Parameters
    ----------
    device:
        Where the prior goes; by default it stays on the CPU.
    sha256:
        What the SHA-256 of the file must be, in hexadecimal.
    options:
        What a foreign format does not say: see :func:`unveil.priors.formats.adm.adm_prior`,
        :func:`~unveil.priors.formats.edm.edm_prior`, :func:`~unveil.priors.formats.edm.edm2_prior` and
        :func:`~unveil.priors.formats.diffusers.diffusers_prior`.

    Raises :class:`~unveil.errors.UnknownName` for an unknown name, and :class:`InputError` for a file that is
    missing, truncated, pickled, of another format, checksum or architecture.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    is_file = path.suffix in (".safetensors", *TORCH_FILES, *PICKLES) or os.sep in text or path.exists()
    if text in registry.names("prior"):
        _no_options(f"the prior '{text}'", {**({} if sha256 is None else {"sha256": sha256}), **options})
        prior = _registered(text)
    elif not path.exists() and not isinstance(name_or_path, Path) and (found := _hub(text)):
        prior = _folder(found, sha256, options)
    elif path.is_dir():
        prior = _folder(path, sha256, options)
    elif is_file or isinstance(name_or_path, Path):
        prior = _read(path, sha256, options)
    elif (ZOO / f"{text}.safetensors").is_file():
        prior = _read(ZOO / f"{text}.safetensors")  # an autoencoder, which is refused there
    elif (ZOO / f"{text}.toml").is_file():
        raise InputError(f"prior '{text}' has a card, but no weights beside it in {ZOO}: reinstall unveil")
    else:
        raise unknown("prior", text, registry.names("prior"))
    return prior if device is None else prior.to(device)


def _no_options(what: str, options: Mapping[str, Any]) -> None:
    if options:
        raise InputError(f"{what} takes no option '{next(iter(options))}'")


def _hub(text: str) -> Path | None:
    """The folder of a name on the hub; None for a text that is no such name."""
    from .formats.hub import hub_folder, hub_name

    found = hub_name(text)
    return hub_folder(*found) if found else None


def _folder(path: Path, sha256: str | None, options: Mapping[str, Any]) -> Prior:
    from .formats.diffusers import diffusers_prior
    from .formats.foreign import accept

    if sha256 is not None:
        raise InputError("sha256 is that of a file, not of a folder: leave it out")
    accept(diffusers_prior, "a diffusers folder", options)
    return _as_image(diffusers_prior(path, **options))


def _as_image(prior: Prior) -> Prior:
    """Pictures in FILE_RANGE; anything else as it is."""
    picture = len(prior.shape) == 3 and prior.shape[0] in (1, 3)
    return prior.in_range(*FILE_RANGE) if picture else prior


def prior_card(name: str) -> dict[str, Any]:
    """The card of a prior of the zoo, as its TOML file has it: data, licences, training, quality."""
    path = ZOO / f"{name}.toml"
    if not path.is_file():
        raise unknown("prior card", name, (card.stem for card in ZOO.glob("*.toml")))
    try:
        card: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return card
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the card {path} is not valid TOML: {error}") from None


def register_zoo() -> None:
    """Register every prior of the zoo that has both card and weights."""
    for name in sorted({*_shipped()} - {*autoencoders()}):
        registry.register("prior", name)(_opener(name))


def autoencoders() -> list[str]:
    """The autoencoders that ship, for the priors of their latents (see :func:`load_autoencoder`)."""
    return sorted(name for name in _shipped() if name.endswith("-autoencoder"))


def _shipped() -> list[str]:
    return [card.stem for card in ZOO.glob("*.toml") if card.with_suffix(".safetensors").is_file()]


def _opener(name: str) -> Callable[[], Prior]:
    def zoo() -> Prior:
        return _read(ZOO / f"{name}.safetensors")

    zoo.__qualname__ = f"zoo.{name}"
    return zoo


def _registered(name: str) -> Prior:
    thing = registry.lookup("prior", name)
    prior = thing if isinstance(thing, Prior) else thing()
    if not isinstance(prior, Prior):
        raise InputError(f"the entry '{name}' of unveil.priors gave a {type(prior).__name__}, not a Prior")
    return prior


PREDICTS = {"unet": "edm", "velocity-unet": "flow"}
"""What the networks of this library's own files predict."""


def _network(name: str) -> type[nn.Module]:
    from .networks.unet import UNet
    from .networks.velocity import VelocityUNet

    networks: dict[str, type[nn.Module]] = {"unet": UNet, "velocity-unet": VelocityUNet}
    if name not in networks:
        raise unknown("network", name, networks)
    return networks[name]


def _read(path: Path, sha256: str | None = None, options: Mapping[str, Any] | None = None) -> Prior:
    """The prior in a file, in FILE_RANGE if it is one of pictures."""
    weights = read_weights(path, sha256)
    if "unveil" not in weights.metadata:
        from .formats.foreign import read_foreign

        return _as_image(read_foreign(weights, options or {}))
    _no_options(f"{path}, a file of this library's own format,", options or {})
    header = read_header(weights)
    _check_header(path, header)
    try:
        module = _network(header["network"])(**header["config"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: the network '{header['network']}' cannot be built from its config: {error}"
        ) from None
    fill(path, module, weights.tensors)
    low, high = header["sigma_range"]
    flow, config = header["predicts"] == "flow", header["config"]
    prior = as_prior(
        module,
        predicts="flow" if flow else "edm",
        schedule=RectifiedFlow(sigma_min=low, sigma_max=high) if flow else EDM(low, high),
        sigma_data=header["sigma_data"],
        value_range=tuple(header["value_range"]),
        shape=header["shape"],
        conditions=tuple(c for c, key in (("label", "classes"), ("text", "texts")) if config.get(key)),
        name=header.get("name") or path.stem,
        classes=config.get("classes") or 0,
    )
    prior = replace(prior, text_size=config.get("texts") or 0)
    if "texts" in header:
        from .texts import Texts

        prior = replace(prior, texts=Texts(path.parent / header["texts"]["file"], header["texts"].get("encoder")))
    elif config.get("texts"):
        prior = replace(prior, texts=_no_texts(path, config["texts"]))
    return prior if "latent" in header else prior.in_range(*FILE_RANGE)  # codes are not pictures


def _no_texts(path: Path, size: int) -> Callable[[str], Tensor]:
    """What a prior that takes texts and brings no embeddings of them makes of one."""

    def refuse(text: str) -> Tensor:
        raise InputError(f"{path} has no table of texts: in Python, give the embedding of '{text}' [1, {size}]")

    return refuse


def read_header(weights: Weights) -> dict[str, Any]:
    """What a file of this library's own format says of itself. Raises :class:`InputError` for another."""
    if "unveil" not in weights.metadata:
        raise InputError(f"{weights.path} is not a file of this library: it has no metadata 'unveil'")
    try:
        header = json.loads(weights.metadata["unveil"])
    except json.JSONDecodeError as error:
        raise InputError(f"{weights.path}: the 'unveil' metadata is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{weights.path}: the 'unveil' metadata is not a JSON object")
    return header


def _check_header(path: Path, header: Mapping[str, Any]) -> None:
    version = header.get("format")
    if version != FORMAT:
        raise InputError(
            f"{path} is of format {version!r}, this version of unveil reads {FORMAT}: update unveil, or save it again"
        )
    missing = [key for key in KEYS if key not in header]
    if missing:
        raise InputError(f"{path}: the metadata lacks {', '.join(missing)}")
    if header["predicts"] == "code":
        raise InputError(
            f"{path} holds an autoencoder, not a prior: name the prior of its latents, or load_autoencoder"
        )
    if header["predicts"] not in ("edm", "flow"):
        raise InputError(f"{path}: predicts '{header['predicts']}', a file of format {FORMAT} holds 'edm' or 'flow'")
    for key, length in (("value_range", 2), ("sigma_range", 2), ("shape", None)):
        value = header[key]
        if not isinstance(value, list) or length not in (None, len(value)):
            raise InputError(f"{path}: the metadata entry {key} is {value!r}, not a list of {length or 'sizes'}")
    numbers = [*header["value_range"], *header["sigma_range"], header["sigma_data"]]
    if not all(type(n) in (int, float) for n in numbers):
        raise InputError(f"{path}: value_range, sigma_range and sigma_data of the metadata must be numbers: {numbers}")
    if not isinstance(header["config"], dict):
        raise InputError(f"{path}: the metadata entry config is not an object")
    channels = header["config"].get("channels", header["shape"][:1])
    if header["shape"][:1] != [channels]:
        raise InputError(f"{path}: shape is {header['shape']}, but the network takes {channels} channels")
    texts = header.get("texts", {"file": ""})
    if not (isinstance(texts, dict) and isinstance(texts.get("file"), str)):
        raise InputError(f"{path}: the metadata entry texts is {texts!r}, not an object that names a file")


def save_prior(
    path: str | os.PathLike[str],
    module: nn.Module,
    *,
    config: Mapping[str, Any],
    value_range: tuple[float, float],
    shape: Sequence[int | None],
    sigma_range: tuple[float, float] = (0.002, 80.0),
    sigma_data: float = 0.5,
    network: str = "unet",
    name: str = "",
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the raw network of an EDM or flow prior as a file that :func:`load_prior` reads; atomic.

    ``network`` is ``unet``, inside Karras' preconditioning, or ``velocity-unet``, the velocity of a rectified flow;
    ``config`` are the keyword arguments that built the module, ``value_range`` the units it was trained in,
    ``dtype`` that of the stored weights. Raises :class:`InputError` if a weight overflows it, or if the file cannot be
    written.
    """
    from safetensors.torch import save_file

    if network not in PREDICTS:
        raise unknown("network", network, PREDICTS)
    path = Path(path)
    header = {
        "format": FORMAT,
        "network": network,
        "config": dict(config),
        "predicts": PREDICTS[network],
        "sigma_data": sigma_data,
        "value_range": list(value_range),
        "sigma_range": list(sigma_range),
        "shape": list(shape),
        "name": name or path.stem,
    }
    weights = {
        k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous()
        for k, v in module.state_dict().items()
    }
    bad = [k for k, v in weights.items() if not bool(torch.isfinite(v).all())]
    if bad:
        raise InputError(f"the weights {', '.join(bad[:3])} are not finite in {dtype}: pass dtype=torch.float32")
    write_atomic(path, lambda p: save_file(weights, p, metadata={"unveil": json.dumps(header)}))
