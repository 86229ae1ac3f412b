"""Networks of other libraries, as `net(x, t, **conditions)`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from scoreflow._score.network import attribute

NAMES = {"y": "class_labels", "tokens": "encoder_hidden_states"}


class FromDiffusers(nn.Module):
    """Networks of diffusers: `y` is passed as `class_labels`, `tokens` as `encoder_hidden_states`, the rest as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training, self.null = net.training, attribute(net, "null")

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        named = {NAMES.get(name, name): value for name, value in conditions.items()}
        out = self.net(x, timestep=t, **named)
        return out[0] if isinstance(out, tuple) else out.sample


def from_diffusers(net: nn.Module) -> nn.Module:
    """A network of diffusers as `net(x, t, **conditions)`, its time `time="index"`; `sf.from_diffusers` reads a whole model.

    Raises:
        TypeError: net is no module.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch module, got {type(net).__name__}")
    return FromDiffusers(net)
