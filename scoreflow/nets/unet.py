"""A small U-Net: residual blocks, attention at the coarse levels, time and class in every block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoreflow._core.check import flag, number, whole
from scoreflow.nets.embedding import (
    CrossAttention,
    Embedding,
    attention,
    by_place,
    check_images,
    condition_map,
    nulls,
    zeros,
)


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
        return self.skip(x) + self.conv_2(self.dropout(F.silu(h)))


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
        h = attention(q, k, v).transpose(-1, -2).reshape(x.shape)
        return x + self.out(h)


class UNet(nn.Module):
    """`net(x, t, y, tokens, image)`: x of shape (B, C, H, W), times or labels t (B,), classes y (B,), tokens (B, L, D) and an
    image (B, K, h, w), each or None, to (B, C, H, W). With `times=2` it is `net(x, t, r, y, tokens, image)`;
    `guidance=True` adds a last argument `scale`.

    Args:
        channels: C, of the images.
        widths: the number of features at each level, multiples of 8; every level but the first halves the resolution.
        blocks: residual blocks at each level, on the way down and (one more) on the way up.
        attention: the levels, counted from 0, that have attention after each block; by default level 1, if there is one.
        classes: how many classes; 0 for a network without. The label `classes` stands for "none given", and
            `y=None` means it for the whole batch, so one network runs conditionally and unconditionally.
        tokens: D, the width of tokens that the levels with attention attend to; 0 for a network without. A token of zeros is
            no token, and `tokens=None` means a sequence of none.
        heads: attention heads.
        dropout: inside the residual blocks.
        time_scale: t is multiplied by it before its features; 1 for labels 0…T−1, 1000 for t in [0, 1].
        time: "sinusoidal" or "fourier" features.
        patch: the side of the squares of pixels that are taken as one place with more channels.
        learned_variance: give twice the channels, the second half the variance output.
        condition_channels: K, the channels of a map that `image` gives; 0 for a network without. It enters the first layer
            beside the state. Pixels that are NaN are not given, an image of NaN is none, and `image=None` means one for
            the whole batch. A coarse map, whose height and width divide those of the states, is enlarged. The weights of the
            map begin at 0, so that at first the network is the one without.
        times: 2 for a network of two times, a flow map from t to r: r (B,) is told as t is. None is r = t, where the network is
            the one-time network with its weights, to the bit in float32. The weights of r begin at 0, so that at first r
            changes nothing. Features of two times are taken in the precision of the times, not always in float32.
        guidance: whether it takes a guidance scale: `scale` is a number, or a floating-point tensor (B,), (1,) or (). None is
            1, the conditional model: there the network is the one without guidance, to the bit, whatever the weights of the
            scale. These begin at 0, so that at first it changes nothing. `null` leaves it out: where conditions are dropped,
            the scale stays.

    Raises:
        ValueError: widths, heads or levels that do not go together; tokens without a level of attention. On a call, states,
            times and conditions of other shapes than these. TypeError: an image or a scale of another type.

    Reference:
        Ho et al. (2020), Appendix B; scale and shift from Nichol & Dhariwal (2021); cross-attention from Rombach et al. (2022);
        images beside the state from SR3 (Saharia et al., 2021) and Palette (Saharia et al., 2022); t and t − r as in
        MeanFlow (Geng et al., 2025), Section 4.3; the guidance scale as a condition from Meng et al. (2023), Section 3.1.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (48, 96),
        blocks: int = 1,
        attention: Sequence[int] | None = None,
        classes: int = 0,
        heads: int = 4,
        dropout: float = 0.0,
        time_scale: float = 1.0,
        tokens: int = 0,
        time: str = "sinusoidal",
        patch: int = 1,
        learned_variance: bool = False,
        condition_channels: int = 0,
        times: int = 1,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(widths, Sequence):
            raise TypeError(f"widths must be a sequence of whole numbers, got {widths!r}")
        if attention is None:
            attention = (1,) if len(widths) > 1 else ()
        self.config = dict(
            channels=channels, widths=list(widths), blocks=blocks, attention=list(attention), classes=classes,
            heads=heads, dropout=dropout, time_scale=time_scale, tokens=tokens, time=time, patch=patch,
            learned_variance=learned_variance, condition_channels=condition_channels, times=times, guidance=guidance,
        )  # fmt: skip
        _check(self.config)
        self.channels, self.classes, self.tokens, self.patch, self.levels = channels, classes, tokens, patch, len(widths)
        self.condition_channels, self.times, self.guidance = condition_channels, times, guidance
        width = widths[0]
        size = 4 * width
        self.embedding = Embedding(width, size, classes, time, time_scale)

        def block(inputs: int, level: int) -> nn.ModuleList:
            parts: list[nn.Module] = [ResidualBlock(inputs, widths[level], size, dropout)]
            if level in attention:
                parts += [Attention(widths[level], heads)]
                parts += [CrossAttention(widths[level], tokens, heads)] if tokens else []
            return nn.ModuleList(parts)

        self.first = nn.Conv2d(channels * patch**2, width, 3, padding=1)
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
        outputs = channels * (1 + learned_variance) * patch**2
        self.last = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1))
        # A convolution of state and image is the sum of two. Made last, so that the other weights are drawn as without it.
        given = (condition_channels + 1) * patch**2
        if times == 2:
            self.embedding.add_second()
        self.condition = zeros(nn.Conv2d(given, widths[0], 3, padding=1, bias=False)) if condition_channels else None
        if guidance:  # the last of all
            self.embedding.add_guidance()

    @property
    def null(self) -> dict[str, float]:
        """What means "none given", by the condition's name."""
        return nulls(self.classes, self.tokens, self.condition_channels)

    def forward(
        self, x: Tensor, t: Tensor, *given: float | Tensor | None, r: Tensor | None = None, y: Tensor | None = None,
        tokens: Tensor | None = None, image: Tensor | None = None, scale: float | Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        r, y, tokens, image, scale = by_place(
            self.times, self.guidance, given, r=r, y=y, tokens=tokens, image=image, scale=scale
        )
        if tokens is not None and not self.tokens:
            raise ValueError("tokens were given to a network without cross-attention: make it with tokens=")
        check_images(x, self.channels)
        step = self.patch * 2 ** (self.levels - 1)
        if x.shape[-2] % step or x.shape[-1] % step:
            raise ValueError(f"height and width must be multiples of {step}, got states of shape {tuple(x.shape)}")
        embedding = self.embedding(t, y, r, scale)
        h = self.first(F.pixel_unshuffle(x, self.patch))
        if image is not None:
            seen = condition_map(image, x, self.condition_channels)
            h = h + self.condition(F.pixel_unshuffle(seen, self.patch))  # type: ignore[misc]
        skips = [h]
        for layer in self.down:
            h = _run(layer, h, embedding, tokens)
            skips.append(h)
        h = _run(self.middle, h, embedding, tokens)
        for layer in self.up:
            h = torch.cat([h, skips.pop()], dim=1) if isinstance(layer, nn.ModuleList) else h
            h = _run(layer, h, embedding, tokens)
        return F.pixel_shuffle(self.last(h), self.patch)


def _run(layer: nn.Module, h: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
    if not isinstance(layer, nn.ModuleList):
        return layer(h)
    residual, *attend = layer
    h = residual(h, embedding)
    for part in attend:
        if isinstance(part, CrossAttention):
            h = part(h.flatten(2).mT, tokens).mT.reshape(h.shape)
        else:
            h = part(h)
    return h


def _check(config: dict[str, Any]) -> None:
    widths, heads = config["widths"], config["heads"]
    for name in ("channels", "blocks", "heads", "patch"):
        whole(name, config[name])
    for name in ("classes", "tokens", "condition_channels"):
        whole(name, config[name], 0)
    if not widths or any(whole("widths", w) % 8 for w in widths):
        raise ValueError(f"widths must be multiples of 8, one or more, got {widths}")
    for level in config["attention"]:
        if whole("attention", level, 0) >= len(widths):
            raise ValueError(f"attention must name levels from 0 to {len(widths) - 1}, got {level}")
        if widths[level] % heads:
            raise ValueError(f"heads={heads} must divide the width of every level with attention, got {widths[level]}")
    if config["tokens"] and not config["attention"]:
        raise ValueError(f"tokens={config['tokens']} are attended to at the levels in attention, and attention=() names none")
    whole("times", config["times"], 1, 2), number("dropout", config["dropout"], 0, 1), flag("guidance", config["guidance"])
