"""
5. Choose
=========

Which sampler, and how many evaluations? Begin with what the library chooses, and measure on your own model when it matters.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

model = sf.zoo.digits()
y = torch.arange(10).repeat(3)

# %%
# If you name none
# ----------------
#
# Give the budget alone. ``sampler="auto"`` takes solver, order and grid from tables that were measured on trained networks. The
# solution says what it took.

x_T = sf.White(0).draws("prior")(torch.empty(30, 1, 8, 8))
for nfe in (6, 10, 20, 40):
    sol = sf.solve(model, x_T, nfe=nfe, y=y)
    print(nfe, sol.sampler)

# %%
# How many evaluations?
# ---------------------
#
# Draw the distance to the exact solution of the ODE against the budget, on your network. Where the curve is flat enough for
# you, stop.

exact = sf.solve(model, x_T, "unipc", order=3, nfe=200, y=y).x
budgets = (5, 7, 10, 15, 20, 30, 50)
figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in ("auto", "dpm-solver++", "ddim"):
    errors = [
        (sf.solve(model, x_T, name, nfe=nfe, y=y).x - exact).flatten(1).square().mean(1).sqrt().median() for nfe in budgets
    ]
    ax.loglog(budgets, errors, "o-", label=name)
ax.set(xlabel="network evaluations", ylabel="RMS distance to the exact solution")
ax.set_xticks(budgets, map(str, budgets))
ax.minorticks_off()
ax.legend()

# %%
# What the eye sees of it: five, ten and fifty evaluations from the same noise.

figure, axes = plt.subplots(3, 1, figsize=(8, 3), layout="constrained")
for ax, nfe in zip(axes, (5, 10, 50), strict=True):
    x = sf.solve(model, x_T[:10], nfe=nfe, y=y[:10]).x
    ax.imshow(x.clamp(-1, 1).squeeze(1).permute(1, 0, 2).flatten(1), cmap="gray_r", vmin=-1, vmax=1)
    ax.set_title(f"{nfe} evaluations", fontsize=9, loc="left")
    ax.axis("off")
plt.show()

# %%
# With guidance
# -------------
#
# Guidance asks the network twice at each step and pays for both from the budget. It is a model that wraps yours, and ``auto``
# sees that it is guided and takes other entries of its tables.

guided = sf.ClassifierFree(model, scale=3.0)
sol = sf.solve(guided, x_T, nfe=20, y=y)
print(sol.nfe, "evaluations in", len(sol.times) - 1, "steps of", sol.sampler)

# %%
# In short
# --------
#
# - Few evaluations, or no wish to choose: ``auto`` with ``nfe=``.
# - The DDPM of the paper: ``ddpm``, ``variance="beta"``, all steps of its chain.
# - The same noise shall give the same image at any budget: an ODE sampler, such as ``ddim`` or ``unipc``.
# - A tolerance and not a budget: ``dpm-adaptive``.
# - Between candidates: a study on your own model, as on the page before.
#
# The long form is :doc:`/choosing`. If you come from another library, :doc:`/from/index` has its names and what they are here.
