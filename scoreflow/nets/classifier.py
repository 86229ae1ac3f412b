"""Small convolutional classifiers: one of clean images, whose last hidden layer serves as a feature space, and one of noisy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from scoreflow._core.check import number, whole
from scoreflow.nets.embedding import Embedding
from scoreflow.nets.unet import ResidualBlock


class Classifier(nn.Module):
    """`net(x)`: images (B, C, H, W) to logits (B, classes); `features(x)` gives (B, width) before the last layer, of mean 0 and
    variance 1 over the width.

    Args:
        channels: C. classes: how many. width: of the features. hidden: channels of the first convolution; the second has
            twice as many, at half the resolution.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 32, hidden: int = 24) -> None:
        super().__init__()
        self.config = dict(channels=channels, classes=classes, width=width, hidden=hidden)
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, padding=1), nn.SiLU(),
            nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * hidden, width), nn.SiLU(),
        )  # fmt: skip
        self.norm, self.last = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, width)."""
        return self.norm(self.body(x.to(self.last.weight.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class NoisyClassifier(nn.Module):
    """`net(x, t)`: noisy states (B, C, H, W) and times or labels (B,) to logits (B, classes), for classifier guidance.

    Args:
        channels: C. classes: how many. widths: of the levels, multiples of 8; every level but the first halves the resolution.
        time_scale, dropout: as of `UNet`.

    Reference:
        Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021), Section 4.
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        widths: Sequence[int] = (32, 64),
        time_scale: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.config = dict(channels=channels, classes=classes, widths=list(widths), time_scale=time_scale, dropout=dropout)
        whole("channels", channels), number("dropout", dropout, 0, 1)
        if not widths or any(whole("widths", w) % 8 for w in widths):
            raise ValueError(f"widths must be multiples of 8, one or more, got {list(widths)}")
        size = 4 * widths[0]
        self.embedding = Embedding(widths[0], size, time_scale=time_scale)
        self.first, self.levels = nn.Conv2d(channels, widths[0], 3, padding=1), nn.ModuleList()
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            self.levels += [nn.Conv2d(before, before, 3, stride=2, padding=1) if i else nn.Identity()]
            self.levels += [ResidualBlock(before, width, size, dropout)]
        self.last = nn.Sequential(nn.GroupNorm(8, widths[-1]), nn.SiLU(), nn.Flatten(2))
        self.logits = nn.Linear(widths[-1], whole("classes", classes, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding, h = self.embedding(t), self.first(x)
        for layer in self.levels:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
        return self.logits(self.last(h).mean(-1))
