"""A diffusion transformer: patches, blocks with adaptive layer norms, tokens by cross-attention."""

from __future__ import annotations

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
    sinusoidal,
    zeros,
)


class Block(nn.Module):
    """Self-attention, cross-attention and a perceptron, each beside a skip; the embedding scales, shifts and gates."""

    def __init__(self, width: int, heads: int, tokens: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.cross = CrossAttention(width, tokens, heads) if tokens else None
        self.body = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )  # fmt: skip
        self.embed = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.embed.weight)
        nn.init.zeros_(self.embed.bias)

    def forward(self, h: Tensor, embedding: Tensor, tokens: Tensor | None) -> Tensor:
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.embed(embedding)[:, None].chunk(6, dim=-1)
        inner = self.norm_1(h) * (1 + scale_1) + shift_1
        q, k, v = (u.unflatten(-1, (self.heads, -1)).transpose(1, 2) for u in self.qkv(inner).chunk(3, dim=-1))
        h = h + gate_1 * self.out(attention(q, k, v).transpose(1, 2).flatten(-2))
        if self.cross is not None:
            h = self.cross(h, tokens)
        return h + gate_2 * self.body(self.norm_2(h) * (1 + scale_2) + shift_2)


class DiT(nn.Module):
    """`net(x, t, y, tokens, image)`: x of shape (B, C, S, S), the rest as of `UNet`, to (B, C, S, S). At first it gives 0. With
    `times=2` it is `net(x, t, r, y, tokens, image)`; `guidance=True` adds a last argument `scale`.

    Args:
        channels: C. size: S. patch: the side of the squares that are one place each.
        width: of a place, a multiple of 4 and of `heads`. depth: how many blocks.
        classes, tokens, heads, dropout, time_scale, time, learned_variance, condition_channels, times, guidance: as of `UNet`.

    Raises:
        ValueError: sizes that do not go together; on a call, shapes. TypeError: an image or a scale of another type.

    Reference:
        Scalable Diffusion Models with Transformers (Peebles & Xie, 2023), Section 3.2, adaLN-Zero; cross-attention after
        self-attention as in PixArt-α (Chen et al., 2024).
    """

    places: Tensor

    def __init__(
        self,
        channels: int = 1,
        size: int = 8,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        classes: int = 0,
        tokens: int = 0,
        dropout: float = 0.0,
        time_scale: float = 1.0,
        time: str = "sinusoidal",
        learned_variance: bool = False,
        condition_channels: int = 0,
        times: int = 1,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.config = dict(
            channels=channels, size=size, patch=patch, width=width, depth=depth, heads=heads, classes=classes, tokens=tokens,
            dropout=dropout, time_scale=time_scale, time=time, learned_variance=learned_variance,
            condition_channels=condition_channels, times=times, guidance=guidance,
        )  # fmt: skip
        for name in ("channels", "size", "patch", "width", "depth", "heads"):
            whole(name, self.config[name])
        for name in ("classes", "tokens", "condition_channels"):
            whole(name, self.config[name], 0)
        whole("times", times, 1, 2), number("dropout", dropout, 0, 1)
        flag("learned_variance", learned_variance), flag("guidance", guidance)
        if size % patch:
            raise ValueError(f"patch={patch} must divide size={size}")
        if width % 4 or width % heads:
            raise ValueError(f"width={width} must be a multiple of 4 and of heads={heads}")
        self.channels, self.size, self.patch, self.classes, self.tokens = channels, size, patch, classes, tokens
        self.condition_channels, self.times, self.guidance = condition_channels, times, guidance
        self.embedding = Embedding(width, width, classes, time, time_scale)
        self.first = nn.Linear(channels * patch**2, width)
        side = torch.arange(size // patch, dtype=torch.float32)
        rows, columns = (sinusoidal(v.flatten(), width // 2) for v in torch.meshgrid(side, side, indexing="ij"))
        self.register_buffer("places", torch.cat([rows, columns], dim=1), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, tokens, dropout) for _ in range(depth))
        self.norm, self.embed = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, channels * (1 + learned_variance) * patch**2)
        for layer in (self.embed, self.last):
            zeros(layer)
        if times == 2:  # after the other weights, which are drawn as without it
            self.embedding.add_second()
        given = (condition_channels + 1) * patch**2
        self.condition = zeros(nn.Linear(given, width, bias=False)) if condition_channels else None
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
        check_images(x, self.channels)
        if x.shape[-2:] != (self.size, self.size):
            raise ValueError(f"states must be (B, C, {self.size}, {self.size}), got shape {tuple(x.shape)}")
        if tokens is not None and not self.tokens:
            raise ValueError("tokens were given to a network without cross-attention: make it with tokens=")
        embedding = F.silu(self.embedding(t, y, r, scale))
        h = self.first(F.pixel_unshuffle(x, self.patch).flatten(2).mT) + self.places.to(x.dtype)
        if image is not None:
            seen = condition_map(image, x, self.condition_channels)
            h = h + self.condition(F.pixel_unshuffle(seen, self.patch).flatten(2).mT)  # type: ignore[misc]
        for block in self.blocks:
            h = block(h, embedding, tokens)
        gain, shift = self.embed(embedding)[:, None].chunk(2, dim=-1)
        h = self.last(self.norm(h) * (1 + gain) + shift)
        return F.pixel_shuffle(h.mT.unflatten(-1, (self.size // self.patch, -1)), self.patch)
