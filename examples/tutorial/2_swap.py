"""
2. Swap the sampler
===================

The network stays, the way from noise to data changes. A sampler is chosen by its name.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

model = sf.zoo.digits()
y = torch.arange(10)
names = ("ddim", "dpm-solver++", "unipc", "pf-ode", "ddpm", "euler-maruyama")
figure, axes = plt.subplots(len(names), 1, figsize=(8, 6), layout="constrained")
for ax, name in zip(axes, names, strict=True):
    x = sf.sample(model, (10, 1, 8, 8), name, nfe=20, seed=range(10), y=y)
    ax.imshow(x.clamp(-1, 1).squeeze(1).permute(1, 0, 2).flatten(1), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_title(name, fontsize=9, loc="left")
    ax.axis("off")

# %%
# All rows start from the same noise. The first four solve one equation, the probability-flow ODE, so that they give nearly the
# same digits. The last two add noise on their way and give other digits of the same kind.
#
# Options
# -------
#
# A sampler has options, which are given by name. DDIM's ``eta`` is the share of noise: 0 is the ODE, 1 is DDPM.

x_T = sf.White(0).draws("prior")(torch.empty(10, 1, 8, 8))
ode = sf.solve(model, x_T, "ddim", steps=20, y=y).x
for eta in (0.0, 0.3, 1.0):
    x = sf.solve(model, x_T, "ddim", eta=eta, steps=20, seed=0, y=y).x
    print(f"eta = {eta}: {(x - ode).square().mean().sqrt():.3f} from eta = 0")

# %%
# The times
# ---------
#
# The *grid* says where the steps are. It is chosen apart from the sampler, and often matters more. Here are distances to a very
# fine solution of the ODE, at ten evaluations.

exact = sf.solve(model, x_T, "unipc", order=3, nfe=150, y=y).x
grids = ("uniform", "quadratic", "logsnr", "karras", "ode")
print(f"{'':14}" + "".join(f"{grid:>10}" for grid in grids))
for name in ("ddim", "dpm-solver++", "unipc"):
    runs = [sf.solve(model, x_T, name, nfe=10, grid=grid, y=y).x for grid in grids]
    print(f"{name:14}" + "".join(f"{(x - exact).square().mean().sqrt():10.3f}" for x in runs))

# %%
# Steps and evaluations
# ---------------------
#
# ``steps=`` counts the intervals of the grid, ``nfe=`` the evaluations of the network. They differ where a step asks the
# network more than once. Compare samplers at the same ``nfe``.

for name in ("ddim", "pf-ode", "dpm-solver-3"):
    print(name, sf.solve(model, x_T, name, steps=10, y=y).nfe, "evaluations in 10 steps")

# %%
# What a sampler does can be read before it runs: its *plan* is the list of its coefficients.

print(sf.plan("ddim", model.path, steps=4))

# %%
# ``print(sf.samplers())`` lists all names, ``scoreflow show unipc`` explains one. Next: your own network.
