"""
Densities by the ODE
====================

The probability-flow ODE carries densities. On a mixture the value is the exact density; its difference, on the right, is the
prior's: N(0, I) is not quite the law of the data at t = 1.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

path, stop = sf.VPSDE(), 0.05
mixture = sf.GaussianMixture(torch.ones(3), torch.tensor([[-0.8, -0.4], [0.9, -0.3], [0.0, 0.8]]), 0.04)
axis = torch.linspace(-1.5, 1.5, 40, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)
found = sf.log_prob(mixture.model(path), grid, stop=stop, divergence="exact", rtol=1e-4, atol=1e-4)
exact = mixture.log_prob(grid, path.alpha(stop), path.sigma(stop))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for ax, values, title in zip(axes, (found.value, found.value - exact), ("log p, in nats", "minus the exact one"), strict=True):
    image = ax.pcolormesh(axis, axis, values.reshape(40, 40).T, shading="auto")
    figure.colorbar(image, ax=ax)
    ax.set(title=title, aspect="equal")
plt.show()
