"""
4. Study
========

A study runs samplers at several budgets, all from the same seeds, measures them, and says which differences are real.
"""

import scoreflow as sf

samplers = ["ddpm", "ddim", "ddim@karras", "unipc"]  # the grid stands after the @
study = sf.study("zoo:digits", samplers, nfe=[5, 10, 20], n=16, seeds=4, metrics=["trajectory", "sliced-w2"])

# %%
# Two questions
# -------------
#
# *How far is a sampler from the ODE that it solves?* ``trajectory/median`` is the distance to a fine solution from the same
# noise, RMS per pixel. It says nothing of samplers with noise, such as DDPM, which go other ways on purpose.

study.plot("trajectory/median")

# %%
# *How far are the samples from data?* ``sliced-w2`` is a distance between sets of images, here to real digits that the network
# never saw.

study.plot("sliced-w2")

# %%
# Bars are intervals of 95 % over the blocks, one block a seed. The line called *floor* is what real digits score against other
# real digits: nobody gets below it, but by chance. A curve that has reached it cannot be told from data with so few samples.
#
# In words
# --------

print(*study.findings("trajectory/median"), sep="\n")

# %%
# *Not told apart* means that the difference may be chance; with more seeds smaller differences are seen. The second question
# has no answer here:

print(*study.findings("sliced-w2")[:2], sep="\n")

# %%
# By this measure all of them draw digits as good as real ones, from 5 evaluations on. That DDPM is named the best is chance.
#
# One answer
# ----------

print(study.best(nfe=10, figure="trajectory/median"))
print(study.cheapest(within=0.05, figure="trajectory/median"))

# %%
# ``study.frame`` is the table as a pandas data frame, and ``out="folder"`` keeps all that was run, so that a study can be
# stopped and goes on, or is extended. From a shell it is one command::
#
#     scoreflow study --model zoo:digits --samplers ddpm,ddim,unipc --nfe 5,10,20 --out folder
#
# Next: what to choose.
