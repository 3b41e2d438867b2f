"""What a network is trained for: a denoiser in Karras' parametrisation, or the velocity of a rectified flow.

An objective says which network it takes, its loss on a batch, and how the trained network denoises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..priors.networks.autoencoder import Autoencoder
from ..priors.networks.unet import UNet
from ..priors.networks.velocity import VelocityUNet
from . import edm

LEVELS = (25, 50)
Conditions = Mapping[str, Tensor]
"""Arguments of the network beside image and noise level: `label` [N], `text` [N, D]."""


class Objective(Protocol):
    """See the module. `network` and `predicts` are the names that exported files carry, `levels` (of 255) the noise of
    the validation."""

    network: str
    predicts: str
    levels: tuple[int, ...]
    sigma_data: float

    def build(self, table: Mapping[str, Any]) -> nn.Module:
        """The network of a card's `[network]` table, with fresh weights."""

    def loss(
        self, run: Callable[..., Tensor], x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Conditions
    ) -> Tensor:
        """Mean loss at noise levels sigma [N] of sigma-space; x0 and noise [N, C, H, W]."""

    def denoise(
        self, network: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, conditions: Conditions
    ) -> Tensor:
        """E[x0 | x] for x = x0 + sigma eps [N, C, H, W]."""


class Denoiser:
    """D(x, sigma) by equations 7 and 8 of Karras et al. 2022 (arXiv 2206.00364); see `edm`."""

    network, predicts, levels = "unet", "edm", LEVELS

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def build(self, table: Mapping[str, Any]) -> nn.Module:
        return UNet(**table)

    def loss(
        self, run: Callable[..., Tensor], x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Conditions
    ) -> Tensor:
        return edm.loss(run, x0, noise, sigma, self.sigma_data, conditions)

    def denoise(
        self, network: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, conditions: Conditions
    ) -> Tensor:
        return edm.denoise(network, x, sigma, self.sigma_data, conditions)


class Flow:
    """Conditional flow matching on straight lines: |v(x_t, t) - (eps - x0)|^2, x_t = (1 - t) x0 + t eps.

    Lipman et al. 2023 (arXiv 2210.02747), Liu et al. 2022 (arXiv 2209.03003). A normal distribution of ln(sigma) is
    a logit-normal one of t = sigma / (1 + sigma), as of Esser et al. 2024 (arXiv 2403.03206).
    """

    network, predicts, levels = "velocity-unet", "flow", LEVELS

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def build(self, table: Mapping[str, Any]) -> nn.Module:
        return VelocityUNet(sigma_data=self.sigma_data, **table)

    def loss(
        self, run: Callable[..., Tensor], x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Conditions
    ) -> Tensor:
        t = sigma / (1 + sigma)
        s = t.reshape(-1, 1, 1, 1)
        out = run((1 - s) * x0 + s * noise, t, **conditions)
        return (out.float() - (noise - x0)).square().mean()

    @torch.inference_mode()
    def denoise(
        self, network: Callable[..., Tensor], x: Tensor, sigma: float | Tensor, conditions: Conditions
    ) -> Tensor:
        s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        t = s / (1 + s)
        x_t = x / (1 + s.reshape(-1, 1, 1, 1))
        out: Tensor = x_t - t.reshape(-1, 1, 1, 1) * network(x_t, t, **conditions).float()
        return out


class Reconstruction:
    """An autoencoder: mean absolute and squared error of the image decoded from a drawn code, and a little KL.

    Kingma and Welling 2014 (arXiv 1312.6114), with the weight of Rombach et al. 2022 (arXiv 2112.10752), who call for
    a slight one: the divergence is summed over the code and divided by the number of values of the image.
    """

    network, predicts, levels = "autoencoder", "code", (0,)
    weight = 1e-4

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def build(self, table: Mapping[str, Any]) -> nn.Module:
        return Autoencoder(**table)

    def loss(self, run: Callable[..., Any], x0: Tensor, noise: Tensor, sigma: Tensor, conditions: Conditions) -> Tensor:
        """Neither noise level nor conditions matter; `noise` gives the numbers that draw the code."""
        del sigma, conditions
        n, values = len(x0), x0[0].numel()
        shape = self.code_shape(run, x0)
        out, mean, log_variance = run(x0, noise.flatten(1)[:, : math.prod(shape)].reshape(n, *shape))
        error = out.float() - x0
        mean, log_variance = mean.float(), log_variance.float()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        total: Tensor = error.abs().mean() + error.square().mean() + self.weight * divergence / (n * values)
        return total

    def code_shape(self, run: Any, x0: Tensor) -> tuple[int, int, int]:
        """[latents, h, w] for images [N, C, H, W]."""
        network = getattr(run, "_orig_mod", run)  # what torch.compile has wrapped
        factor, latents = network.factor, network.config["latents"]
        return latents, x0.shape[2] // factor, x0.shape[3] // factor

    @torch.inference_mode()
    def denoise(self, network: Callable[..., Any], x: Tensor, sigma: float | Tensor, conditions: Conditions) -> Tensor:
        """The image decoded from the mean of its code: there is no noise to remove."""
        del sigma, conditions
        out: Tensor = network(x)[0]
        return out.float()


OBJECTIVES: dict[str, type[Denoiser] | type[Flow] | type[Reconstruction]] = {
    "edm": Denoiser,
    "flow": Flow,
    "autoencoder": Reconstruction,
}


def objective(name: str, sigma_data: float) -> Objective:
    """By its name in a card's `[training]` table."""
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return cast("Objective", OBJECTIVES[name](sigma_data))


def validate(
    task: Objective, network: nn.Module, images: Tensor, conditions: Conditions | None = None, clip: bool = True
) -> dict[str, float]:
    """Mean PSNR in dB of denoised `images` [N, C, H, W] per noise level of the task, always the same noise.

    `clip` as `edm.psnr` has it: False for codes.
    """
    scores, given = {}, conditions or {}
    device = next(network.parameters()).device
    for level in task.levels:
        sigma = level / 127.5
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(level))
        noisy = images + sigma * noise
        clean = [
            task.denoise(
                network, noisy[k : k + 1].to(device), sigma, {n: v[k : k + 1].to(device) for n, v in given.items()}
            ).cpu()
            for k in range(len(images))
        ]
        scores[str(level)] = round(float(edm.psnr(torch.cat(clean), images, clip).mean()), 3)
    return scores
