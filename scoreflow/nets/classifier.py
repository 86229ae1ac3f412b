"""A small convolutional classifier, whose last hidden layer serves as a feature space."""

from __future__ import annotations

from torch import Tensor, nn


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
        out: Tensor = self.norm(self.body(x.to(self.last.weight.dtype)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.features(x))
        return out
