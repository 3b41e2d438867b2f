"""A small convolutional autoencoder with a Gaussian code, for diffusion in its latents.

As in Rombach et al. 2022 (arXiv 2112.10752) the encoder gives a mean and a log-variance per entry of the code, weakly
drawn to the standard normal law (Kingma and Welling 2014, arXiv 1312.6114). The blocks are those of the U-Net without
a noise level, so any size works and a sample depends on itself alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .unet import PixelNorm


class Residual(nn.Module):
    """Norm, SiLU, 3x3, twice, added to the input: [N, c, h, w] -> [N, c, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = PixelNorm(channels), PixelNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return out


class Autoencoder(nn.Module):
    """Images [N, channels, H, W] to codes [N, latents, H / f, W / f] and back; f = unshuffle 2^(len(widths) - 1).

    Args:
        channels: of the image.
        latents: channels of the code.
        widths: features per level of the encoder, finest first; the decoder has the same, backwards.
        blocks: residual blocks per level.
        unshuffle: the image is folded by this factor before the first level.

    Height and width must be multiples of `factor`.
    """

    def __init__(
        self,
        channels: int = 3,
        latents: int = 4,
        widths: Sequence[int] = (48, 96),
        blocks: int = 2,
        unshuffle: int = 2,
    ) -> None:
        super().__init__()
        self.config = {
            "channels": channels,
            "latents": latents,
            "widths": list(widths),
            "blocks": blocks,
            "unshuffle": unshuffle,
        }
        self.channels, self.latents = channels, latents
        self.factor = unshuffle * 2 ** (len(widths) - 1)
        first: list[nn.Module] = [
            nn.PixelUnshuffle(unshuffle),
            nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1),
        ]
        last: list[nn.Module] = [
            PixelNorm(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], channels * unshuffle**2, 3, padding=1),
            nn.PixelShuffle(unshuffle),
        ]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for level, width in enumerate(widths):
            down += [Residual(width) for _ in range(blocks)]
            up = [*(Residual(width) for _ in range(blocks)), *up]
            if level + 1 < len(widths):
                down.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                up = [nn.Conv2d(widths[level + 1], 4 * width, 1), nn.PixelShuffle(2), *up]
        code = [PixelNorm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 2 * latents, 1)]
        self.encoder = nn.Sequential(*first, *down, *code)
        self.decoder = nn.Sequential(nn.Conv2d(latents, widths[-1], 3, padding=1), *up, *last)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the code, [N, latents, H / f, W / f] each."""
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"An image of {tuple(x.shape[-2:])} has no code: sides must be multiples of {self.factor}."
            )
        out = self.encoder(x.contiguous(memory_format=torch.channels_last))
        mean, log_variance = out.chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def encode(self, x: Tensor) -> Tensor:
        """The mean of the code."""
        return self.moments(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The image of a code."""
        out: Tensor = self.decoder(z.contiguous(memory_format=torch.channels_last))
        return out

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded image, and the moments. With `noise` (standard normal, shaped as the code) the code is drawn."""
        mean, log_variance = self.moments(x)
        z = mean if noise is None else mean + (log_variance / 2).exp() * noise
        return self.decode(z), mean, log_variance
