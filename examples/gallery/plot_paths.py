"""
Paths and grids
===============

A path is two curves, α and σ. DDPM, DDIM, DPM-Solver and Runge–Kutta in λ see them only through λ = log α/σ: here are λ for
five paths, and where three grids of ten steps put their nodes on it.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

paths = {
    "VP, linear β": sf.VPSDE(),
    "VP, cosine": sf.VPSDE.cosine(),
    "sub-VP": sf.SubVPSDE(),
    "VE": sf.VESDE(),
    "flow": sf.Flow(),
}
t = torch.linspace(0.005, 0.995, 400, dtype=torch.float64)
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, path in paths.items():
    ax.plot(t, path.lam(t), label=name)
ax.set(xlabel="t", ylabel="λ")
ax.legend()

# %%
# On one path the grids differ in where they spend their steps: even in t, even in λ, or dense at the data.

path = paths["VP, linear β"]
figure, ax = plt.subplots(figsize=(6, 2.4), layout="constrained")
for row, name in enumerate(("uniform", "logsnr", "karras")):
    times = sf.grid(path, 10, name, start=1.0, stop=1e-3)
    ax.plot([path.lam(u) for u in times], [row] * len(times), "o-")
ax.set(xlabel="λ", yticks=range(3), yticklabels=["uniform", "logsnr", "karras"], ylim=(-0.5, 2.5))
plt.show()
