"""The EDM parametrisation for training (Karras et al. 2022, arXiv 2206.00364, table 1 and equations 7 and 8).

D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) with x = x0 + sigma eps. The loss weight 1 / c_out^2 turns
the weighted squared error of D into the plain squared error of F against (x0 - c_skip x) / c_out, of unit
variance at every sigma when x0 has standard deviation sigma_data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def coefficients(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in shaped [N, 1, 1, 1] and c_noise [N], for sigma [N]."""
    s = sigma.reshape(-1, 1, 1, 1)
    total = torch.sqrt(s**2 + sigma_data**2)
    return sigma_data**2 / total**2, s * sigma_data / total, 1 / total, sigma.log() / 4


def loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    sigma_data: float,
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Mean of (sigma^2 + sd^2) / (sigma sd)^2 |D - x0|^2, for x0 and noise [N, C, H, W], sigma [N]."""
    c_skip, c_out, c_in, c_noise = coefficients(sigma, sigma_data)
    x = x0 + sigma.reshape(-1, 1, 1, 1) * noise
    target = (x0 - c_skip * x) / c_out
    out: Tensor = network((c_in * x).contiguous(memory_format=torch.channels_last), c_noise, **(conditions or {}))
    return (out.float() - target).square().mean()


@torch.inference_mode()
def denoise(
    network: Callable[..., Tensor],
    x: Tensor,
    sigma: float | Tensor,
    sigma_data: float = 0.5,
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """E[x0 | x] by the network, x [N, C, H, W], sigma a number or [N]."""
    s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
    c_skip, c_out, c_in, c_noise = coefficients(s, sigma_data)
    out: Tensor = network((c_in * x).contiguous(memory_format=torch.channels_last), c_noise, **(conditions or {}))
    return c_skip * x + c_out * out.float()


def psnr(estimate: Tensor, truth: Tensor, clip: bool = True) -> Tensor:
    """Per sample [N], in dB, for values in [-1, 1] (peak 2), the estimate clipped to the range (codes have none)."""
    error = ((estimate.clamp(-1, 1) if clip else estimate) - truth).flatten(1).square().mean(1)
    return 10 * torch.log10(4 / error)
