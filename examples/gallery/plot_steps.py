"""
How many steps?
===============

The distance to the exact solution of the probability-flow ODE against network evaluations, on a Gaussian mixture whose score is
known. The slope is the order. The last step is left out here: it ends at t = 0.02.
"""

import matplotlib.pyplot as plt

import scoreflow as sf

model = sf.analysis.problem(d=3).model(sf.VPSDE())
x_T = sf.White(0).draws("prior")(model.oracle.sample(64))
ends = {"start": 0.98, "stop": 0.02}
exact = sf.solve(model, x_T, "pf-ode", method="dopri5", rtol=1e-9, atol=1e-9, **ends).x

budgets = (6, 12, 24, 48, 96)
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
for sampler in ("ddim", "pf-ode", "dpm-solver++-2m", "unipc-2", "exponential-ab-3"):
    runs = [sf.solve(model, x_T, sampler, nfe=n, grid="logsnr", **ends) for n in budgets]
    errors = [(run.x - exact).square().mean().sqrt() for run in runs]
    ax.loglog(budgets, errors, "o-", label=sampler)
ax.set(xlabel="network evaluations", ylabel="RMS distance to the exact solution")
ax.legend()
plt.show()
