"""
3. Your network
===============

Any function of states and times can be sampled from. Here is a small one, trained from nothing on points of a spiral.
"""

import math
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from torch import nn

import scoreflow as sf

torch.manual_seed(0)


def spiral(n):
    """n points in the plane."""
    angle = 2.5 * math.pi * torch.rand(n).sqrt()
    return torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1) / 3.8 + 0.1 * torch.randn(n, 2)


class Net(nn.Module):
    """The noise in x, where t in [0, 1] says how noisy it is."""

    def __init__(self):
        super().__init__()
        widths = (8, 96, 96, 96)
        hidden = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(96, 2))

    def forward(self, x, t):
        waves = [f(k * math.pi * t) for k in (0.5, 1, 2) for f in (torch.sin, torch.cos)]
        return self.layers(torch.cat([x, torch.stack(waves, dim=1)], dim=1))


# %%
# The path
# --------
#
# A *path* says how data become noise: ``x_t = α_t x_0 + σ_t ε``. The loop is the plain one: noise the data, ask the network for
# the noise, take the squared error. Times near the data, where the shape is decided, are drawn more often.

path = sf.VPSDE()
net = Net()
optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(3000):
    x_0, t = spiral(256), torch.rand(256) ** 2
    eps = torch.randn_like(x_0)
    x_t = path.alpha(t)[:, None] * x_0 + path.sigma(t)[:, None] * eps
    loss = (net(x_t, t) - eps).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"{loss:.2f}")

# %%
# The model
# ---------
#
# ``ScoreModel`` joins the network with what it was trained for: the path, what it predicts, and what it is told of the time.
# Here it predicts the noise, ``"eps"``, and is told t itself, ``"unit"``.

model = sf.ScoreModel(net, path, prediction="eps", time="unit")
samplers = ("ddpm", "ddim", "auto")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), sharex=True, sharey=True, layout="constrained")
axes[0].scatter(*spiral(500).T, s=2)
axes[0].set_title("data")
for ax, name in zip(axes[1:], samplers, strict=True):
    ax.scatter(*sf.sample(model, (500, 2), name, nfe=25, seed=0).T, s=2)
    ax.set_title(f"{name}, 25 evaluations")
for ax in axes:
    ax.set_aspect("equal")
plt.show()

# %%
# All three ask the same network, 25 times. What lies between the arms is mostly the error of the sampler: the first two have
# order 1, and ``auto`` takes one of a higher order.
#
# Is it the network or the sampler?
# ---------------------------------
#
# On the same spiral the best possible network is known: that of the data set itself. ``sf.Empirical`` is it. If a sampler does
# well with it and badly with yours, train longer.

oracle = sf.Empirical(spiral(2000)).model(path)
t = torch.full((500,), 0.3)
x_t = path.alpha(0.3) * spiral(500) + path.sigma(0.3) * torch.randn(500, 2)
error = (model.eps(x_t, t) - oracle.eps(x_t, t)).square().mean().sqrt()
print(f"at t = 0.3 the network's noise is {error:.2f} from the best answer, RMS; noise itself has 1")

# %%
# A network trained elsewhere is wrapped in the same way: ``prediction=`` is one of ``eps``, ``x0``, ``v``, ``score``, ``flow``,
# and ``time=`` says what it is told: :doc:`/own_network`. For networks of other libraries there is a function each, such as
# ``sf.from_diffusers``: :doc:`/from/index`. Next: which sampler is better?
