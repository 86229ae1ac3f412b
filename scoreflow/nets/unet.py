"""A small U-Net: residual blocks, attention at the coarse levels, time and class in every block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoidal(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """The features `cos(t ω_k), sin(t ω_k)` with `ω_k = max_period^{−k/(width/2)}`; t of shape (B,) gives (B, width).

    Reference:
        Attention Is All You Need (Vaswani et al., 2017), Section 3.5.
    """
    rates = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a skip; the embedding scales and shifts between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.conv_1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embed = nn.Linear(embedding, 2 * outputs)
        self.norm_2, self.conv_2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.embed(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = self.norm_2(h) * (1 + scale) + shift
        out: Tensor = self.skip(x) + self.conv_2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention over the pixels, beside a skip."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(8, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, 3, self.heads, -1, height * width).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        out: Tensor = x + self.out(h)
        return out


class UNet(nn.Module):
    """`net(x, t, y)`: x of shape (B, C, H, W), times or labels t (B,), classes y (B,) or None, to (B, C, H, W).

    Args:
        channels: C, of the images.
        widths: the number of features at each level; every level but the first halves the resolution.
        blocks: residual blocks at each level, on the way down and (one more) on the way up.
        attention: the levels, counted from 0, that have attention after each block.
        classes: how many classes; 0 for a network without. The label `classes` stands for "none given", and
            `y=None` means it for the whole batch, so one network runs conditionally and unconditionally.
        heads: attention heads.
        dropout: inside the residual blocks.
        time_scale: t is multiplied by it before the sinusoidal features; 1 for labels 0…T−1, 1000 for t in [0, 1].

    Reference:
        Ho et al. (2020), Appendix B; scale and shift from Nichol & Dhariwal (2021).
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (48, 96),
        blocks: int = 1,
        attention: Sequence[int] = (1,),
        classes: int = 0,
        heads: int = 4,
        dropout: float = 0.0,
        time_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = dict(
            channels=channels, widths=list(widths), blocks=blocks, attention=list(attention), classes=classes,
            heads=heads, dropout=dropout, time_scale=time_scale,
        )  # fmt: skip
        self.classes, self.time_scale = classes, time_scale
        width = widths[0]
        self.features = width
        size = 4 * width
        self.time = nn.Sequential(nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size))
        self.label = nn.Embedding(classes + 1, size) if classes else None

        def block(inputs: int, level: int) -> nn.ModuleList:
            attend = Attention(widths[level], heads) if level in attention else nn.Identity()
            return nn.ModuleList([ResidualBlock(inputs, widths[level], size, dropout), attend])

        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [width]
        for level in range(len(widths)):
            if level:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(block(width, level))
                width = widths[level]
                skips.append(width)
        self.middle = block(width, len(widths) - 1)
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), level))
                width = widths[level]
            if level:
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)))
        self.last = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        embedding = self.time(sinusoidal(t * self.time_scale, self.features).to(x.dtype))
        if self.label is not None:
            embedding = embedding + self.label(torch.full_like(t, self.classes, dtype=torch.long) if y is None else y)
        elif y is not None:
            raise ValueError("y was given to a network without classes")
        h = self.first(x)
        skips = [h]
        for layer in self.down:
            h = _run(layer, h, embedding)
            skips.append(h)
        h = _run(self.middle, h, embedding)
        for layer in self.up:
            h = _run(layer, torch.cat([h, skips.pop()], dim=1) if isinstance(layer, nn.ModuleList) else h, embedding)
        out: Tensor = self.last(h)
        return out


def _run(layer: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    if isinstance(layer, nn.ModuleList):
        residual, attend = layer
        h = attend(residual(h, embedding))
        return h
    out: Tensor = layer(h)
    return out
