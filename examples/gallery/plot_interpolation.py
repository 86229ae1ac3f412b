"""
Between two images
==================

Two images go up to their latents by the probability-flow ODE, and what lies between the latents comes down again. Spherical
interpolation keeps the length of the latents. In the middle a linear one is shorter, by √½ between independent draws.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

model, data = sf.zoo.mnist(), sf.data.load("mnist").held_out
x = torch.stack([data.x[data.y == 4][0], data.x[data.y == 9][1]])
ends = {"method": "heun", "steps": 15, "stop": 0.01}
z_0, z_1 = sf.encode(model, x, **ends).split(1)

figure, axes = plt.subplots(2, 1, figsize=(9, 2.8), layout="constrained")
for ax, kind in zip(axes, ("spherical", "linear"), strict=True):
    between = sf.interpolate(z_0, z_1, 9, kind).flatten(0, 1)
    images = sf.decode(model, between, **ends)
    ax.imshow(images.clamp(-1, 1).squeeze(1).permute(1, 0, 2).flatten(1), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_title(kind, fontsize=9)
    ax.axis("off")
plt.show()
