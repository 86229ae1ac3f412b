"""
One right sampler and three wrong ones
======================================

DDPM as somebody writes it by hand, and three copies with a slip each: η under a root, the levels of the step before, and
labels that are rounded to a tenth. All four make pictures. :func:`scoreflow.audit` reads them back as coefficients and says
which is which.
"""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch

import scoreflow as sf

path = sf.VPSDE()


def ddim(eta=1.0, root=False, late=False, rounded=False):
    """A loop in the words of many a notebook; the options are its slips."""

    def run(net, x, n):
        times = [1 - k / n for k in range(n + 1)]
        for k, (t, s) in enumerate(pairwise(times)):
            label = round(t, 1) if rounded and t > 0.1 else t
            eps = net(x, torch.full((len(x),), label, dtype=x.dtype))
            at = times[k - 1] if late and k else t
            x_0 = (x - path.sigma(at) * eps) / path.alpha(at)
            std = (eta**0.5 if root else eta) * path.posterior_std(t, s)
            x = path.alpha(s) * x_0 + max(path.sigma(s) ** 2 - std**2, 0) ** 0.5 * eps
            if s > 0:
                x = x + std * torch.randn_like(x)
        return x

    return run


loops = {
    "right": ddim(),
    "η under a root": ddim(eta=0.5, root=True),
    "levels of the step before": ddim(late=True),
    "labels rounded": ddim(rounded=True),
}
found = {name: sf.audit(loop, 20, most=80) for name, loop in loops.items()}

# %%
# The right one is ``ddpm`` in every coefficient, and no check fails. The second is a sampler, but not the one that was meant:
# at η = ½ it draws the noise of another η. The other two leave the path, and the audit says at which call. The checks are those
# of :doc:`the page on audits </audit>`.

for name, one in found.items():
    print(f"{name}: {one.says()[0]}")
    for check in one.failures:
        print(f"    {check}")

# %%
# What comes of it needs no samples: on Gaussian data the law of the outputs is exact, from the coefficients alone.

figure, (laws, gaps) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, one in found.items():
    laws.plot(list(one.law), list(one.law.values()), "o-", label=name)
    gaps.plot(list(one.law), [abs(ratio - 1) for ratio in one.law.values()], "o-", label=name)
laws.axhline(1, color="black", linewidth=0.8)
laws.set(xlabel="steps", ylabel="variance over the data's", xscale="log")
gaps.set(xlabel="steps", ylabel="how far from 1", xscale="log", yscale="log")
for ax in (laws, gaps):
    ax.set_xticks([5, 10, 20, 40, 80], [5, 10, 20, 40, 80])
    ax.set_xticks([], minor=True)
laws.legend(fontsize=8)
plt.show()

# %%
# A stranger's loop is a plan, which runs here like any other.

plan = found["levels of the step before"].plan
samples = sf.solve(sf.analysis.problem().model(path), torch.randn(1000, 3, dtype=torch.float64), plan, seed=0).x
print(repr(plan))
print(f"standard deviation {samples.std():.3f}")
