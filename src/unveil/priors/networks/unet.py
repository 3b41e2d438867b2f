"""A small, fully convolutional U-Net for denoising images of any size on ordinary hardware.

The layout follows the EDM family (Karras et al. 2022, arXiv 2206.00364): residual blocks modulated by an
embedding of the noise level, one resolution per level, skip connections. Three choices make it quick on a CPU
and safe on any image:

* the image is folded by 2x2 (pixel-unshuffle) before the first convolution, so that most channels live at low
  resolution;
* features are normalised *per pixel*, across channels only. No statistic runs over the image, hence a network
  trained on 64x64 crops behaves the same on a large picture, and samples of a batch never mix;
* there is no attention: the receptive field is local and the cost grows linearly with the number of pixels.

With frozen weights a gradient of the input costs little memory: convolutions keep no input, and normalisations and
activations are computed again in the backward pass (:mod:`unveil.priors.networks.lean`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lean import activate, convolve


class PixelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a learnt gain and bias per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return _norm(x, self.gain, self.bias)

    def activated(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """SiLU of the normalised x, modulated to (1 + scale) x + shift if these are given, [N, channels, 1, 1]."""
        return activate(_modulated, x, self.gain, self.bias, scale, shift)


def _norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    # In channels-last memory the permutation is free, and one fused kernel does it all.
    h = x.permute(0, 2, 3, 1)
    return F.layer_norm(h, h.shape[-1:], gain, bias, eps=1e-5).permute(0, 3, 1, 2)


def _modulated(x: Tensor, gain: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    h = _norm(x, gain, bias)
    return h if scale is None or shift is None else torch.addcmul(shift, h, 1 + scale)


class NoiseEmbedding(nn.Module):
    """Map c_noise [N], and optionally a class label [N] or a text's embedding [N, texts], to a vector [N, features]."""

    def __init__(self, features: int, classes: int, texts: int = 0, frequencies: int = 32) -> None:
        super().__init__()
        # c_noise = ln(sigma) / 4 lies in about [-1.6, 1.1]: geometric frequencies from 0.5 to 16 rad per unit
        # resolve it.
        omega = 0.5 * 32.0 ** (torch.arange(frequencies) / (frequencies - 1))
        self.register_buffer("omega", omega, persistent=False)
        self.omega: Tensor
        self.hidden = nn.Linear(2 * frequencies, features)
        self.output = nn.Linear(features, features)
        self.label = nn.Embedding(classes + 1, features) if classes else None  # the last row means "no label"
        self.text = nn.Linear(texts, features) if texts else None  # its bias means "no text"

    def forward(self, c_noise: Tensor, label: Tensor | None, text: Tensor | None = None) -> Tensor:
        phase = c_noise.float()[:, None] * self.omega
        h: Tensor = self.hidden(torch.cat([phase.cos(), phase.sin()], dim=1).to(self.hidden.weight.dtype))
        if self.label is not None:
            if label is None:
                label = torch.full(c_noise.shape, self.label.num_embeddings - 1, device=c_noise.device)
            h = h + self.label(label)
        if self.text is not None:
            size = self.text.in_features
            rows = h.new_zeros(len(h), size) if text is None else text.to(h.dtype)
            h = h + self.text(rows * size**0.5)  # embeddings have length one: make that one per entry
        out: Tensor = F.silu(self.output(F.silu(h)))
        return out


class Block(nn.Module):
    """Residual block: norm, SiLU, 3x3, modulated norm, SiLU, 3x3. [N, cin, h, w] -> [N, cout, h, w]."""

    def __init__(self, cin: int, cout: int, features: int) -> None:
        super().__init__()
        self.norm1 = PixelNorm(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.modulate = nn.Linear(features, 2 * cout)
        self.norm2 = PixelNorm(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = convolve(self.conv1, self.norm1.activated(x))
        h = convolve(self.conv2, self.norm2.activated(h, scale, shift))
        return (convolve(self.skip, x) if isinstance(self.skip, nn.Conv2d) else x) + h


class Canvas(nn.Module):
    """Features [N, width, h, w] with a picture that an embedding [N, features] paints; `size` is (channels, h, w)."""

    def __init__(self, features: int, width: int, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)
        self.paint = nn.Linear(features, math.prod(size))
        self.mix = nn.Conv2d(size[0], width, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        if x.shape[-2:] != self.size[1:]:
            raise ValueError(
                f"This network has a canvas of {self.size[1:]}, not {tuple(x.shape[-2:])}: one image size."
            )
        picture = self.paint(embedding).reshape(-1, *self.size)
        out: Tensor = x + self.mix(picture)
        return out


class UNet(nn.Module):
    """F(x, c_noise) of an EDM denoiser; the preconditioning around it is the caller's.

    Args:
        channels: colour channels of the input.
        out_channels: of the output; as many as the input by default.
        widths: feature channels per level, highest resolution first; each level halves the resolution.
        blocks: residual blocks per level on the way down (and as many on the way up).
        unshuffle: the image is folded by this factor before the first level (1: not at all).
        features: length of the noise embedding.
        classes: number of class labels; 0 for a network without.
        texts: length of a text's embedding (of Euclidean norm 1); 0 for a network without.
        canvas: [channels, height, width] of a picture that the embedding of noise level and condition paints onto the
            lowest level, which has that height and width: a fully convolutional network knows where it is from the
            borders alone. For signals of one size; none by default.

    The output of a sample depends on that sample alone, never on the rest of its batch. Without a
    canvas any height and width from 1 pixel work: the image is extended by replicating its border to the next multiple
    of `multiple`, then cropped.
    """

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        widths: Sequence[int] = (32, 64, 128, 192),
        blocks: int = 2,
        unshuffle: int = 2,
        features: int = 192,
        classes: int = 0,
        texts: int = 0,
        canvas: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not widths or blocks < 1 or unshuffle < 1:
            raise ValueError("UNet needs at least one width, one block per level and unshuffle >= 1.")
        out_channels = channels if out_channels is None else out_channels
        self.config = {
            "channels": channels,
            "out_channels": out_channels,
            "widths": list(widths),
            "blocks": blocks,
            "unshuffle": unshuffle,
            "features": features,
            "classes": classes,
            **({"texts": texts} if texts else {}),
            **({"canvas": list(canvas)} if canvas else {}),
        }
        self.multiple = unshuffle * 2 ** (len(widths) - 1)
        self.embed = NoiseEmbedding(features, classes, texts)
        self.fold = nn.PixelUnshuffle(unshuffle)
        self.unfold = nn.PixelShuffle(unshuffle)
        self.first = nn.Conv2d(channels * unshuffle**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(nn.ModuleList(Block(width, width, features) for _ in range(blocks)))
            self.up.append(nn.ModuleList(Block(2 * width if k == 0 else width, width, features) for k in range(blocks)))
            if level + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.grow.append(nn.Conv2d(widths[level + 1], 4 * width, 1))
        self.canvas = Canvas(features, widths[-1], canvas) if canvas else None
        self.last_norm = PixelNorm(widths[0])
        self.last = nn.Conv2d(widths[0], out_channels * unshuffle**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """F of x [N, channels, H, W] (already scaled by c_in) and c_noise [N] = ln(sigma) / 4.

        The result is [N, out_channels, H, W]. `label` [N] holds class numbers, if the network has classes;
        the number `classes` stands for none, as leaving the label out does. `text` [N, texts] holds embeddings, if
        the network takes them; a row of zeros stands for none.
        """
        if label is not None and self.embed.label is None:
            raise ValueError("This network knows no classes: leave out the label.")
        if text is not None and self.embed.text is None:
            raise ValueError("This network knows no texts: leave out the text.")
        height, width = x.shape[-2:]
        right, below = -width % self.multiple, -height % self.multiple
        if right or below:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        embedding = self.embed(c_noise, label, text).to(x.dtype)
        # The norms are fast in channels-last memory, whatever the caller's layout is.
        h = convolve(self.first, self.fold(x).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, stage in enumerate(self.down):
            if self.canvas is not None and level == len(self.shrink):
                h = self.canvas(h, embedding)
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, embedding)
            skips.append(h)
            if level < len(self.shrink):
                h = convolve(self.shrink[level], h)  # type: ignore[arg-type]
        for level in reversed(range(len(self.up))):
            if level < len(self.grow):
                h = F.pixel_shuffle(convolve(self.grow[level], h), 2)  # type: ignore[arg-type]
            h = torch.cat([h, skips[level]], dim=1)
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(h, embedding)
        out: Tensor = self.unfold(convolve(self.last, self.last_norm.activated(h)))
        return out[..., :height, :width]


def count_parameters(module: nn.Module) -> int:
    """Number of learnt scalars."""
    return sum(math.prod(p.shape) for p in module.parameters())
