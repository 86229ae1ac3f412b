"""
Guidance bends the law
======================

Classifier-free guidance on a mixture of two classes whose scores are known: at scale 1 samples have the law of their class,
above it they crowd at the side that is away from the other class. 0 is the law of both.
"""

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

path = sf.VPSDE()
means = torch.tensor([[-0.5, 0.0], [0.5, 0.0]])
one, both = sf.GaussianMixture(torch.ones(1), means[1:], 0.16), sf.GaussianMixture(torch.ones(2), means, 0.16)


def network(x, t, y):
    """ε̂ of class 1 where y = 1, of both classes where y = −1, "none given"."""
    known, unknown = (law.model(path).eps(x, t) for law in (one, both))
    return torch.where((y == 1)[:, None], known, unknown)


model = sf.ScoreModel(network, path)
figure, axes = plt.subplots(1, 4, figsize=(10, 3), sharex=True, sharey=True, layout="constrained")
for ax, scale in zip(axes, (0, 1, 3, 8), strict=True):
    guided = sf.ClassifierFree(model, scale, null={"y": -1})
    x = sf.sample(guided, (600, 2), "dpm-solver++", steps=30, seed=0, y=torch.ones(600, dtype=torch.long))
    ax.scatter(*x.T, s=3)
    ax.plot(*means.T, "k+")
    ax.set(title=f"scale {scale}", aspect="equal")
plt.show()
