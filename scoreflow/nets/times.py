"""Networks of one time as networks of two."""

from __future__ import annotations

from typing import Any

from torch import nn

from scoreflow._core.check import flag
from scoreflow._score.network import unwrapped
from scoreflow.nets.dit import DiT
from scoreflow.nets.mlp import MLP
from scoreflow.nets.unet import UNet


def two_times(net: nn.Module, guidance: bool = False) -> nn.Module:
    """A new network of two times, `net(x, t, r, …)`, with copies of the weights of a network of one time.

    At first it is that network for all r: to the bit, but in float64, where that one rounds its features of t to float32.
    What r adds is 0 at r = t, whatever its weights are. So training them alone, the parameters of `net.embedding.second`, keeps
    the score of the one-time network; training all weights moves both.

    Args:
        net: `UNet`, `DiT` or `MLP` with `times=1`. Wrappers such as `torch.compile` are left out.
        guidance: whether the new network takes a guidance scale, which at first changes nothing either. A net that takes one
            keeps it.

    Raises:
        TypeError: net is none of these, or guidance no bool. ValueError: it has two times already.
    """
    inner: Any = unwrapped(net)
    if not isinstance(inner, (MLP, UNet, DiT)):
        raise TypeError(f"net must be one of MLP, UNet, DiT, got {type(inner).__name__}")
    if inner.times != 1:
        raise ValueError(f"net must be of one time, got {type(inner).__name__} with times={inner.times}")
    kind: Any = type(inner)
    more = {"times": 2} | ({"guidance": True} if flag("guidance", guidance) else {})
    made, like = kind(**inner.config | more), next(inner.parameters())
    made.to(like.device, like.dtype).load_state_dict(made.state_dict() | inner.state_dict())
    trained: nn.Module = made.train(inner.training)
    return trained
