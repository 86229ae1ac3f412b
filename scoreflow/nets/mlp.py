"""A network for vectors: residual layers, time and class in every one."""

from __future__ import annotations

from torch import Tensor, nn

from scoreflow._core.check import flag, number, whole
from scoreflow.nets.embedding import Embedding, by_place, nulls


class Layer(nn.Module):
    """`h + W₂ SiLU(W₁ (norm(h)(1 + a) + b))`, a and b from the embedding; at first it changes nothing."""

    def __init__(self, width: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.embed = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(embedding, 2 * width)
        self.body = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(2 * width, width))
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.body[-1].bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.embed(embedding).chunk(2, dim=1)
        return h + self.body(self.norm(h) * (1 + scale) + shift)


class MLP(nn.Module):
    """`net(x, t, y)`: x of shape (B, d), times t (B,), classes y (B,) or None, to (B, d). At first it gives 0. With
    `times=2` it is `net(x, t, r, y)`; `guidance=True` adds a last argument `scale`.

    Args:
        channels: d. width: of the layers. depth: how many.
        classes, time_scale, time, dropout, learned_variance, times, guidance: as of `UNet`.
    """

    def __init__(
        self,
        channels: int = 2,
        width: int = 128,
        depth: int = 3,
        classes: int = 0,
        dropout: float = 0.0,
        time_scale: float = 1000.0,
        time: str = "sinusoidal",
        learned_variance: bool = False,
        times: int = 1,
        guidance: bool = False,
    ) -> None:
        super().__init__()
        self.config = dict(
            channels=channels, width=width, depth=depth, classes=classes, dropout=dropout, time_scale=time_scale, time=time,
            learned_variance=learned_variance, times=times, guidance=guidance,
        )  # fmt: skip
        for name, value, least in (
            ("channels", channels, 1),
            ("width", width, 2),
            ("depth", depth, 1),
            ("classes", classes, 0),
        ):
            whole(name, value, least)
        whole("times", times, 1, 2), number("dropout", dropout, 0, 1)
        flag("learned_variance", learned_variance), flag("guidance", guidance)
        self.classes, self.times, self.guidance = classes, times, guidance
        self.embedding = Embedding(width // 2 * 2, 2 * width, classes, time, time_scale)
        self.first = nn.Linear(channels, width)
        self.layers = nn.ModuleList(Layer(width, 2 * width, dropout) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels * (1 + learned_variance)))
        nn.init.zeros_(self.last[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last[-1].bias)  # type: ignore[arg-type]
        # After the other weights, which are drawn as without these.
        if times == 2:
            self.embedding.add_second()
        if guidance:
            self.embedding.add_guidance()

    @property
    def null(self) -> dict[str, float]:
        """What means "none given", by the condition's name."""
        return nulls(self.classes)

    def forward(
        self, x: Tensor, t: Tensor, *given: float | Tensor | None, r: Tensor | None = None, y: Tensor | None = None,
        scale: float | Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        r, y, scale = by_place(self.times, self.guidance, given, r=r, y=y, scale=scale)
        if x.ndim != 2 or x.shape[1] != self.first.in_features:
            raise ValueError(f"states must be of shape (B, {self.first.in_features}) for this network, got {tuple(x.shape)}")
        embedding = nn.functional.silu(self.embedding(t, y, r, scale))
        h = self.first(x)
        for layer in self.layers:
            h = layer(h, embedding)
        return self.last(h)
