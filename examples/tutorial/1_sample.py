"""
1. Sample
=========

A diffusion model is a network that was trained to see the noise in a noisy image. A sampler starts from pure noise and asks the
network again and again, with less noise each time, until an image is left. A small network for 8×8 digits comes with the
library.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

model = sf.zoo.digits()
x = sf.sample(model, (8, 1, 8, 8), nfe=20, seed=0)
print(x.shape, x.min().item(), x.max().item())


def show(images, ax, title=""):
    """A row of images; data are in [−1, 1]."""
    ax.imshow(images.clamp(-1, 1).squeeze(1).permute(1, 0, 2).flatten(1), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_title(title, fontsize=9)
    ax.axis("off")


figure, ax = plt.subplots(figsize=(8, 1.3), layout="constrained")
show(x, ax)

# %%
# ``nfe=20`` is the budget: 20 evaluations of the network for each image. ``seed=0`` makes the result repeatable. Values may lie
# a little outside [−1, 1], because nothing is clipped unless you ask for it; ``show`` clips for the picture.
#
# Seeds
# -----
#
# One number seeds the whole batch. A sequence seeds each image by itself, so that an image does not depend on its neighbours.

alone = sf.sample(model, (1, 1, 8, 8), nfe=20, seed=[3])
together = sf.sample(model, (4, 1, 8, 8), nfe=20, seed=[0, 1, 2, 3])
print((alone - together[3:]).abs().max())

# %%
# The difference is rounding: a network does not add up in the same order in another batch.
#
# Conditions
# ----------
#
# What the network takes besides the image and the time is passed on by name. This one takes a class ``y``.

x = sf.sample(model, (10, 1, 8, 8), nfe=20, seed=0, y=torch.arange(10))
figure, ax = plt.subplots(figsize=(8, 1.1), layout="constrained")
show(x, ax)

# %%
# From noise to data
# ------------------
#
# ``solve`` starts from noise that you give and returns a solution, which knows what happened. With ``trajectory=True`` it keeps
# the states at all times. Time t runs from 1, noise, to 0, data.

x_T = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
sol = sf.solve(model, x_T, "ddim", steps=8, trajectory=True, y=torch.tensor([5]))
print(sol.nfe, "evaluations at", [round(t, 3) for t in sol.times])

figure, ax = plt.subplots(figsize=(8, 1.3), layout="constrained")
show(sol.states[:, 0], ax, "t = 1 on the left, t = 0 on the right")
plt.show()

# %%
# Next: the same images by other samplers.
