"""Bits an entry by score_sde's likelihood and by ours, with the same probe, as the tolerance falls.

    OMP_NUM_THREADS=1 python benchmarks/likelihood.py

score_sde (Song et al., 2021, Appendix D.2) hands SciPy's RK45 one vector, the states of the batch and then its log-densities,
in t. Here that is written anew from its formulas, in float64. Its last constant, 7 bits for data in bins of 2/256, is left out
on both sides.
"""

import math

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.integrate import solve_ivp

import scoreflow as sf

PATH, D, STOP = sf.VPSDE(), 48, 1e-5
VAR = torch.logspace(-4, 0, D, dtype=torch.float64)
"""Of Gaussian data with a diagonal Jacobian, of which a probe of ±1 gives the exact trace."""
DATA = sf.Gaussian(torch.zeros(D), VAR)


def score_sde(model, x, v, tolerance, stop=STOP):
    """log p (B,) and evaluations: `dx/dt = f x − ½ g² s`, `d log p/dt = vᵀ ∂(dx/dt)/∂x v`, one error norm for all."""
    path, batch = model.path, len(x)

    def slope(t, z):
        with torch.enable_grad():
            y = torch.from_numpy(z[:-batch].reshape(x.shape)).requires_grad_()
            drift = path.f(float(t)) * y - path.g2(float(t)) / 2 * model(y, float(t), "score")
            (back,) = torch.autograd.grad(drift, y, v)
        return np.concatenate([drift.detach().numpy().ravel(), (back * v).flatten(1).sum(1).numpy()])

    begin = np.concatenate([x.numpy().ravel(), np.zeros(batch)])
    out = solve_ivp(slope, (stop, 1.0), begin, method="RK45", rtol=tolerance, atol=tolerance)
    end = torch.from_numpy(out.y[:, -1])
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(end[:-batch].reshape(x.shape)).flatten(1).sum(1)
    return prior + end[-batch:], out.nfev


def gaussian(x, stop=STOP):
    """log p (B,) of what the exact flow makes of N(0, I): the known answer."""
    (a, s), (b, r) = ((PATH.alpha(t), PATH.sigma(t)) for t in (stop, 1.0))
    stretch = ((b**2 * VAR + r**2) / (a**2 * VAR + s**2)).sqrt()
    end = DATA.flow(PATH, x, stop, 1.0)
    return torch.distributions.Normal(0.0, 1.0).log_prob(end).sum(1) + stretch.log().sum()


def network(gain):
    """A random perceptron, its weights scaled up: the larger, the rougher."""
    torch.manual_seed(0)
    sizes = [(D + 1, 128), (128, 128), (128, D)]
    layers = [layer for n, m in sizes for layer in (torch.nn.Linear(n, m, dtype=torch.float64), torch.nn.SiLU())][:-1]
    net = torch.nn.Sequential(*layers).requires_grad_(False)
    for weight in net.parameters():
        weight.mul_(gain)
    return sf.ScoreModel(lambda x, t: net(torch.cat([x, t.double().reshape(-1, 1).expand(len(x), 1)], 1)), PATH)


def probe(x):
    """The vectors of ±1 that `log_prob` draws from seed 0."""
    return sf.White(0).draws("probe")(x).sign()


def bits(log_p):
    return float(-log_p.mean() / (D * math.log(2)))


def main():
    draws = torch.Generator().manual_seed(0)
    noised = PATH.q_sample(DATA.sample(4), STOP, torch.randn(4, D, generator=draws, dtype=torch.float64))
    x = torch.randn(4, D, generator=draws, dtype=torch.float64) / 2
    cases = {"Gaussian, known": (DATA.model(PATH), noised)}
    cases |= {f"random network × {gain}": (network(gain), x) for gain in (2.0, 2.5, 2.75)}
    table = Table("case", "tolerance", "score_sde, off", "evaluations", "ours, off", "evaluations", box=box.MARKDOWN)
    for name, (model, at) in cases.items():
        fine = sf.log_prob(model, at, stop=STOP, rtol=1e-9, atol=1e-9).value
        truth = bits(gaussian(at) if "known" in name else fine)
        for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-7):
            theirs, asked = score_sde(model, at, probe(at), tolerance)
            ours = sf.log_prob(model, at, stop=STOP, rtol=tolerance, atol=tolerance)
            row = f"{bits(theirs) - truth:+.1e}", str(asked), f"{bits(ours.value) - truth:+.1e}", str(ours.nfe)
            table.add_row(f"{name}, {truth:.4f} bits", f"{tolerance:g}", *row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
