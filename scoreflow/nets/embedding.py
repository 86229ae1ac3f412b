"""What a network is told of one time or two and of a guidance scale, and tokens and images that may be missing."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.nn import functional as F

from scoreflow._core.check import number, one_of


def sinusoidal(t: Tensor, width: int, max_period: float = 10_000.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The features `cos(t ω_k), sin(t ω_k)` with `ω_k = max_period^{−k/(width/2)}`; t of shape (B,) gives (B, width), in dtype.

    Reference:
        Attention Is All You Need (Vaswani et al., 2017), Section 3.5.
    """
    rates = torch.exp(-math.log(max_period) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].to(dtype) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Fourier(nn.Module):
    """The features `cos(2π t ω), sin(2π t ω)` with `ω ~ N(0, scale²)`, drawn once and kept; t of shape (B,) gives (B, width),
    in float32 or the dtype that is asked for.

    Times much nearer than `1/(2π scale)` look alike, others look unlike. The ω are a function of the seed. They are a buffer,
    saved with the weights.

    Reference:
        Fourier Features Let Networks Learn High Frequency Functions (Tancik et al., 2020); scale 16 in Song et al. (2021).
    """

    rates: Tensor

    def __init__(self, width: int, scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        draws = torch.randn(width // 2, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rates", number("scale", scale, above=0) * draws)

    def forward(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        angles = 2 * math.pi * t[:, None].to(dtype) * self.rates.float()
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Embedding(nn.Module):
    """Times, class and guidance scale as one vector (B, size), of times t (B,), classes y (B,), second times r (B,) and scales,
    a number or (B,); all but t may be None.

    A second time adds a perceptron of `features(t − r) − features(0)`. It has no biases, so that it is 0 at r = t, to the bit,
    whatever its weights. A guidance scale adds one of `features(scale) − features(1)`, which is 0 at scale 1 in the same way.

    Args:
        width: of the features of the time. size: of the embedding.
        classes: how many. The label `classes` stands for "none given", and so does None.
        time: "sinusoidal", or "fourier" features. time_scale: what t is multiplied by before, so that it runs to about 1000.
        scale: of the Fourier features, for a time from 0 to 1: of `t·time_scale/1000`.
    """

    def __init__(
        self,
        width: int,
        size: int,
        classes: int = 0,
        time: str = "sinusoidal",
        time_scale: float = 1.0,
        scale: float = 16.0,
    ) -> None:
        super().__init__()
        one_of("time", time, ("sinusoidal", "fourier"))
        self.width, self.classes, self.time_scale = width, classes, number("time_scale", time_scale, above=0)
        self.fourier = Fourier(width, scale / 1000) if time == "fourier" else None
        self.time = nn.Sequential(nn.Linear(width, size), nn.SiLU(), nn.Linear(size, size))
        self.label = nn.Embedding(classes + 1, size) if classes else None
        self.size = size
        self.second: nn.Module | None = None
        self.guidance: nn.Module | None = None

    def add_second(self) -> None:
        """Take a second time from now on. Its last layer begins at 0, so that at first it changes nothing."""
        self.second = _addition(self.width, self.size)

    def add_guidance(self) -> None:
        """Take a guidance scale from now on. Its last layer begins at 0, so that at first it changes nothing."""
        self.guidance = _addition(self.width, self.size)

    def features(self, t: Tensor) -> Tensor:
        """In float32; of two times in float64 if they are, where derivatives need it."""
        t = t * self.time_scale
        dtype = torch.float32 if self.second is None else torch.promote_types(t.dtype, torch.float32)
        return sinusoidal(t, self.width, dtype=dtype) if self.fourier is None else self.fourier(t, dtype)

    def forward(
        self, t: Tensor, y: Tensor | None = None, r: Tensor | None = None, scale: float | Tensor | None = None
    ) -> Tensor:
        """The embedding, in the dtype of the weights. No r is r = t, no scale is 1."""
        embedding: Tensor = self.time(self.features(t).to(next(self.time.parameters()).dtype))
        if r is not None:
            embedding = embedding + self._of_second(t, r)
        if scale is not None:
            embedding = embedding + self._of_guidance(t, scale)
        if self.label is None:
            if y is not None:
                raise ValueError("y was given to a network without classes: make it with classes=")
            return embedding
        if y is None:
            y = torch.full_like(t, self.classes, dtype=torch.long)
        elif not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor of whole numbers of shape {tuple(t.shape)}, got {y!r}")
        elif y.shape != t.shape or y.is_floating_point():
            raise ValueError(f"y must be whole numbers of shape {tuple(t.shape)}, got {y.dtype} of shape {tuple(y.shape)}")
        elif y.device.type == "cpu" and bool(((y < 0) | (y > self.classes)).any()):
            raise ValueError(f"y must lie in 0…{self.classes - 1}, or be {self.classes} for none given, got {y.tolist()}")
        embedding = embedding + self.label(y)
        return embedding

    def _of_second(self, t: Tensor, r: Tensor) -> Tensor:
        if self.second is None:
            raise ValueError("r was given to a network of one time: make it with times=2")
        kind = f"{'floating-point' if t.is_floating_point() else 'whole'} numbers of shape {tuple(t.shape)}"
        if not isinstance(r, Tensor):
            raise TypeError(f"r must be times as t, {kind}, got {r!r}")
        if r.shape != t.shape or r.is_floating_point() != t.is_floating_point():
            raise ValueError(f"r must be times as t, {kind}, got {r.dtype} of shape {tuple(r.shape)}")
        apart = t - r
        features = self.features(apart) - self.features(torch.zeros_like(apart))
        return self.second(features.to(next(self.second.parameters()).dtype))

    def _of_guidance(self, t: Tensor, scale: float | Tensor) -> Tensor:
        if self.guidance is None:
            raise ValueError("scale was given to a network without guidance: make it with guidance=True")
        weights = next(self.guidance.parameters()).dtype
        scales = _scales(scale, t, torch.promote_types(weights, torch.float32))
        features = scale_features(scales, self.width) - scale_features(torch.ones_like(scales), self.width)
        return self.guidance(features.to(weights))


def scale_features(scale: Tensor, width: int) -> Tensor:
    """Sinusoidal features (B, width) of guidance scales (B,), in their dtype.

    The wavelengths run from 2π to 200π, whatever the times are: scales in 0…10 look unlike, those much nearer than 1 alike.
    """
    return sinusoidal(scale, width, max_period=100.0, dtype=scale.dtype)


def _scales(scale: float | Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Guidance scales as a tensor in the shape of the times t."""
    allowed = f"a finite number, or floating-point numbers of shape {tuple(t.shape)}, or (1,) for all"
    if not isinstance(scale, Tensor):
        if isinstance(scale, bool) or not isinstance(scale, Real):
            raise TypeError(f"scale must be {allowed}, got {scale!r}")
        if not -math.inf < scale < math.inf:
            raise ValueError(f"scale must be {allowed}, got {scale}")
        return torch.full(t.shape, float(scale), dtype=dtype, device=t.device)
    if not scale.is_floating_point():
        raise TypeError(f"scale must be {allowed}, got {scale.dtype} of shape {tuple(scale.shape)}")
    if scale.shape not in ((), (1,), t.shape):
        raise ValueError(f"scale must be {allowed}, got {scale.dtype} of shape {tuple(scale.shape)}")
    return scale.to(t.device, dtype).expand(t.shape)


def _addition(width: int, size: int) -> nn.Module:
    """A perceptron that is 0 where its input is 0, whatever its weights, and everywhere at first."""
    last = zeros(nn.Linear(size, size, bias=False))
    return nn.Sequential(nn.Linear(width, size, bias=False), nn.SiLU(), last)


def by_place(times: int, guidance: bool, given: tuple[Any, ...], **named: Any) -> list[Any]:
    """All that a network is given after x and t, by place or by name, in the order of the names. The first of them, r, has a
    place in a network of two times only; the last, scale, in one with guidance.

    Raises:
        TypeError: more than the network takes, or one by place and by name.
    """
    places = [*named][2 - times : len(named) - (not guidance)]
    if len(given) > len(places):
        raise TypeError(f"a network with times={times} takes x, t, {', '.join(places)}, got {2 + len(given)} arguments")
    for name, value in zip(places, given, strict=False):
        if named[name] is not None:
            raise TypeError(f"{name} was given twice, by place and by name")
        named[name] = value
    return [*named.values()]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`softmax(q kᵀ/√D) v` over the last two dimensions of (…, N, D), where the mask is True; with forward-mode derivatives.

    Torch's fused kernels have none, so where a tensor has a tangent the formula is written out.
    """
    if all(unpack_dual(u).tangent is None for u in (q, k, v)):  # type: ignore[no-untyped-call]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    weights = q.shape[-1] ** -0.5 * q @ k.mT
    if mask is not None:
        weights = weights.masked_fill(~mask, -math.inf)
    return weights.softmax(-1) @ v


class CrossAttention(nn.Module):
    """Attention of places (B, N, C) to tokens (B, L, D), beside a skip.

    A token of zeros is no token: so may sequences be padded, and conditions dropped. A learned token that is always there
    stands for "none given"; None is a sequence of none.
    """

    def __init__(self, channels: int, tokens: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.heads = tokens, heads
        self.norm = nn.LayerNorm(channels)
        self.q, self.kv = nn.Linear(channels, channels), nn.Linear(tokens, 2 * channels)
        self.none, self.out = nn.Parameter(torch.randn(1, 1, tokens)), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, tokens: Tensor | None) -> Tensor:
        none = self.none.expand(len(h), 1, -1)
        if tokens is None:
            tokens = none[:, :0]
        if tokens.ndim != 3 or tokens.shape[::2] != (len(h), self.tokens):
            raise ValueError(f"tokens must be ({len(h)}, L, {self.tokens}), got shape {tuple(tokens.shape)}")
        there = torch.cat([torch.ones_like(none[..., 0], dtype=torch.bool), tokens.any(-1)], dim=1)
        k, v = self.kv(torch.cat([none, tokens.to(none.dtype)], dim=1)).chunk(2, dim=-1)
        q, k, v = (u.unflatten(-1, (self.heads, -1)).transpose(1, 2) for u in (self.q(self.norm(h)), k, v))
        found = attention(q, k, v, there[:, None, None, :])
        return h + self.out(found.transpose(1, 2).flatten(-2))


def zeros(layer: nn.Module) -> nn.Module:
    """The layer, all its parameters 0."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def condition_map(image: Tensor, x: Tensor, channels: int) -> Tensor:
    """An image condition (B, K, h, w) as channels beside the states x (B, C, H, W): (B, K + 1, H, W), in the dtype of x.

    A pixel is given if it is NaN in no channel. The last channel is 1 where pixels are given. Where they are not, all channels
    are 0; so a map of zeros is not taken for one that is missing. A coarse image is enlarged, each pixel to a block.

    Raises:
        TypeError: no floating-point tensor. ValueError: other channels than K, another batch, a resolution that does not divide
            that of x.
    """
    if not channels:
        raise ValueError("image was given to a network without image conditions: make it with condition_channels=")
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"image must be a floating-point tensor, such as mask.float(), got {got}")
    batch, _, height, width = x.shape
    if image.ndim != 4 or image.shape[1] != channels or len(image) not in (1, batch):
        raise ValueError(
            f"image must be ({batch}, {channels}, h, w), or (1, {channels}, h, w) for all samples, got {tuple(image.shape)}"
        )
    rows, columns = image.shape[2:]
    if not rows or not columns or height % rows or width % columns:
        raise ValueError(
            f"image must have the height and width of the states, {height}×{width}, or divide them, got {rows}×{columns}"
        )
    given = ~image.isnan().any(1, keepdim=True)
    seen = torch.cat([torch.where(given, image, 0.0), given.to(image.dtype)], dim=1).to(x.dtype)
    return seen.repeat_interleave(height // rows, -2).repeat_interleave(width // columns, -1).expand(batch, -1, -1, -1)


def nulls(classes: int, tokens: int = 0, image: int = 0) -> dict[str, float]:
    """What means "none given", by the condition's name."""
    every = {"y": (classes, classes), "tokens": (tokens, 0.0), "image": (image, math.nan)}
    return {name: null for name, (there, null) in every.items() if there}


def check_images(x: Tensor, channels: int) -> None:
    """Raise ValueError unless states are images of so many channels."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"states must be images of shape (B, {channels}, H, W) for this network, got shape {tuple(x.shape)}")
