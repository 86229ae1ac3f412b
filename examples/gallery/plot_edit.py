"""
From an image to an image
=========================

SDEdit noises an image to a time and samples from there, here with another class. The later the start, the more is new. The
first column is the image itself, a seven that is asked to be a nine.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

model, data = sf.zoo.mnist(), sf.data.load("mnist").held_out
x_0 = data.x[data.y == 7][:4]
nine = torch.full((4,), 9)
starts = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
columns = [x_0]
for start in starts:
    columns.append(sf.image_to_image(model, x_0, "dpm-solver++", start=start, nfe=12, seed=range(4), y=nine).x)

figure, axes = plt.subplots(1, 7, figsize=(9, 5.5), layout="constrained")
for ax, images, title in zip(axes, columns, ("image", *starts), strict=True):
    ax.imshow(images.clamp(-1, 1).squeeze(1).flatten(0, 1), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_title(title, fontsize=9)
    ax.axis("off")
plt.show()
