"""
There and back
==============

Real digits go up to a latent and down again. DDIM inversion misses them by an error that falls with the steps; asking the
network again at the latent (fixed points) takes most of it away; BDIA and EDICT undo their own steps, to rounding.
"""

import matplotlib.pyplot as plt

import scoreflow as sf

model, data = sf.zoo.digits(), sf.zoo.digits_data()
model.net.double()
x_0, y = data.held_out[:4].double(), data.held_out_labels[:4]
ways = {
    "ddim": {"sampler": "ddim"},
    "ddim, 3 fixed points": {"sampler": "ddim", "iterations": 3},
    "bdia-ddim": {"sampler": "bdia-ddim"},
    "edict": {"sampler": "edict"},
}
counts = (10, 20, 40)
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for name, way in ways.items():
    errors = []
    for n in counts:
        up = sf.invert(model, x_0, steps=n, stop=0.02, y=y, **way)
        errors.append((up.decode(model, y=y).x - x_0).square().mean().sqrt().item())
    ax.loglog(counts, errors, "o-", label=name)
ax.set(xlabel="steps", ylabel="RMS error of the round trip")
ax.legend()
plt.show()
