"""
One law, two ways down
======================

The probability-flow ODE and the reverse SDE carry the same density from noise to data. In grey the density at each time, in
colour eight runs of each from the same states.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

path = sf.VPSDE()
mixture = sf.GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), torch.tensor([[-1.5], [0.3], [1.6]]), 0.15**2)
model = mixture.model(path)

x = torch.linspace(-3, 3, 300, dtype=torch.float64)
t = torch.linspace(0.001, 1, 200, dtype=torch.float64)
density = torch.stack([mixture.log_prob(x[:, None], path.alpha(u), path.sigma(u)).exp() for u in t.tolist()], dim=1)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
start = torch.randn(8, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
for ax, sampler in zip(axes, ("pf-ode", "euler-maruyama"), strict=True):
    run = sf.solve(model, start, sampler, steps=200, stop=0.001, seed=0, trajectory=True)
    ax.pcolormesh(t, x, density.sqrt(), cmap="Greys", shading="auto")
    ax.plot(run.times, run.states[:, :, 0], linewidth=1)
    ax.set(title=sampler, xlabel="t", xlim=(1, 0))
plt.show()
