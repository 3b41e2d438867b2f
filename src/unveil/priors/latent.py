"""Autoencoders of latent models (Rombach et al. 2022, arXiv 2112.10752): images to latents and back.

The prior of a latent model lives in the latents' own units (:func:`~unveil.priors.load_prior` of the same name, file
or folder); an :class:`Autoencoder` maps between them and images, with the scaling and shift that the model was trained
with.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..shapes import Images
from .formats.files import fill, read_weights
from .loaders import ZOO, read_header

KINDS = ("AutoencoderKL", "VQModel")
NATIVE = (-1.0, 1.0)


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """Images [N, channels, H, W] in ``value_range`` to latents [N, latents, H / factor, W / factor], and back.

    Frozen; both maps are differentiable in their argument. ``shift`` and ``scale`` are those of the latent model, one
    number, or one per channel [latents, 1, 1]: latents are (code - shift) * scale, of about unit variance.
    """

    module: nn.Module
    channels: int
    latents: int
    factor: int
    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    value_range: tuple[float, float] = (0.0, 1.0)

    def encode(self, x: Images) -> Tensor:
        """The latents of images: the mean of the code's distribution, or the code before it is quantised.

        Raises :class:`InputError` for another number of channels, and for sides that are no multiples of ``factor``.
        """
        _check(x, self.channels, self.factor)
        lo, hi = self.value_range
        native = (x - lo) * (2 / (hi - lo)) - 1
        code = _code(self.module.encode(native.to(self._dtype)))  # type: ignore[operator]
        return ((code - self.shift) * self.scale).to(x.dtype)

    def decode(self, z: Images) -> Tensor:
        """The images of latents, not clipped. Raises :class:`InputError` for another number of channels."""
        _check(z, self.latents, 1)
        lo, hi = self.value_range
        out: Any = self.module.decode((z / self.scale + self.shift).to(self._dtype))  # type: ignore[operator]
        native: Tensor = getattr(out, "sample", out)
        return (native.to(z.dtype) + 1) * ((hi - lo) / 2) + lo

    def in_range(self, lo: float, hi: float) -> Autoencoder:
        """The same for images in (lo, hi)."""
        if not hi > lo:
            raise InputError(f"a value range needs lo < hi, got ({lo}, {hi})")
        return replace(self, value_range=(float(lo), float(hi)))

    def unfit(self, shape: tuple[int, ...]) -> str | None:
        """Why images of this shape [channels, H, W] cannot be encoded, None if they can."""
        return _strange((1, *shape), self.channels, self.factor)

    def to(self, device: torch.device | str) -> Autoencoder:
        """The same on ``device``. This one's network moves too: it is not copied."""
        scale, shift = (v.to(device) if isinstance(v, Tensor) else v for v in (self.scale, self.shift))
        return replace(self, module=self.module.to(device), scale=scale, shift=shift)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype


def _strange(shape: tuple[int, ...], channels: int, factor: int) -> str | None:
    if len(shape) == 4 and shape[1] == channels and not shape[2] % factor and not shape[3] % factor:
        return None
    sides = f", H and W multiples of {factor}" if factor > 1 else ""
    return f"the autoencoder takes [N, {channels}, H, W]{sides}, got {shape}"


def _check(x: Tensor, channels: int, factor: int) -> None:
    why = _strange(tuple(x.shape), channels, factor)
    if why:
        raise InputError(why)


def _code(out: Any) -> Tensor:
    """The code in what an encoder returned: its mean, or itself before it is quantised."""
    if isinstance(out, Tensor):
        return out
    code: Tensor = out.latents if hasattr(out, "latents") else out.latent_dist.mode()
    return code


def load_autoencoder(
    name_or_path: str | os.PathLike[str], *, subfolder: str | None = None, device: torch.device | str | None = None
) -> Autoencoder:
    """The autoencoder of a latent model.

    Of a prior of the zoo whose signals are latents (``emoji-latent``), by its name, or of such a file of one's own; an
    autoencoder itself, which gives its codes as they are, neither shifted nor scaled; of a diffusers folder, or
    ``org/name@<commit>`` on the hub: its own folder, or that of a pipeline with a ``vae`` or ``vqvae`` in it (Stable
    Diffusion 1.5, 2.1, XL and 3, FLUX), :class:`AutoencoderKL` and :class:`VQModel`. Images are in (0, 1);
    ``.in_range(-1, 1)`` changes that.

    Raises :class:`InputError` for a prior or a folder that has none, missing or damaged weights, and, for those of
    diffusers, without that extra.
    """
    shipped = ZOO / f"{os.fspath(name_or_path)}.safetensors"
    path = shipped if shipped.is_file() else Path(name_or_path)
    own = path.suffix == ".safetensors"
    if own and subfolder is not None:
        raise InputError(f"{path} is a file: it has no subfolder '{subfolder}'")
    coder = _own(path) if own else _diffusers(name_or_path, subfolder)
    return coder if device is None else coder.to(device)


def _own(path: Path) -> Autoencoder:
    """The autoencoder in a file of this library, or the one that the prior in it was trained with."""
    from .networks.autoencoder import Autoencoder as Network

    weights = read_weights(path)
    header = read_header(weights)
    if "latent" in header:
        latent = header["latent"]
        places = (ZOO / f"{latent['autoencoder']}.safetensors", Path(latent["autoencoder"]))
        there = next((p for p in places if p.is_file()), path.parent / places[1].name)
        mean, std = (torch.tensor(latent[key])[:, None, None] for key in ("mean", "std"))
        return replace(_own(there), shift=mean, scale=1 / std)
    if header.get("predicts") != "code":
        raise InputError(f"{path} is a prior of images themselves: it has no autoencoder")
    try:
        module = Network(**header["config"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: the autoencoder cannot be built from the metadata entry config: {error}") from None
    fill(path, module, weights.tensors)
    module.eval().requires_grad_(False)
    return Autoencoder(module, module.channels, module.latents, module.factor)


def _diffusers(name_or_path: str | os.PathLike[str], subfolder: str | None) -> Autoencoder:
    from .formats.diffusers import load_model, read_json
    from .formats.hub import hub_folder, hub_name

    path = Path(name_or_path)
    if not path.exists() and isinstance(name_or_path, str) and (found := hub_name(name_or_path)):
        path = hub_folder(*found)
    folders = (path / subfolder,) if subfolder else (path / "vae", path / "vqvae", path)
    folder = next((f for f in folders if (f / "config.json").is_file()), None)
    if folder is None:
        raise InputError(f"{path} holds no autoencoder: it has no config.json, in it or in a folder 'vae' or 'vqvae'")
    config = read_json(folder / "config.json")
    kind = config.get("_class_name")
    if kind not in KINDS:
        raise InputError(f"{folder} is a {kind}, not one of the autoencoders known here: {', '.join(KINDS)}")
    module = load_model(folder, str(kind)).eval().requires_grad_(False)
    return Autoencoder(
        module,
        channels=int(config.get("in_channels", 3)),
        latents=int(config.get("latent_channels", 4 if kind == "AutoencoderKL" else 3)),
        factor=2 ** (len(config.get("block_out_channels", (64,))) - 1),
        scale=float(config.get("scaling_factor") or 0.18215),
        shift=float(config.get("shift_factor") or 0.0),
    )
