"""sf.analysis: laws by name and their divergence, orders, stability, weights; against formulas of their own."""

import math

import matplotlib
import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow import analysis

PATH = PATHS["vp"]
GAUSSIAN = sf.Gaussian(torch.tensor([0.7, -0.4]), torch.tensor([[0.6, 0.3], [0.3, 0.9]]))


def test_a_law_by_name():
    """As of the plan that the name, the steps and the keywords give."""
    plan = sf.plan("ddim", PATH, 7, grid="logsnr", stop=0.01, eta=0.5)
    a = analysis.law(plan, PATH, GAUSSIAN)
    b = analysis.law("ddim", PATH, GAUSSIAN, 7, grid="logsnr", stop=0.01, eta=0.5)
    assert torch.equal(a.cov, b.cov) and torch.equal(a.mean, b.mean)
    with pytest.raises(ValueError, match="a plan has its steps, but stop"):
        analysis.law(plan, PATH, GAUSSIAN, stop=0.1)
    with pytest.raises(ValueError, match="made for"):
        analysis.law(plan, PATHS["flow"], GAUSSIAN)
    with pytest.raises(ValueError, match="no plan"):
        analysis.law("scipy", PATH, GAUSSIAN)


def test_divergences_are_torchs():
    """KL by torch.distributions; W₂ in one dimension is the distance of means and deviations."""
    out = analysis.law("ddpm", PATH, GAUSSIAN, 9)
    ours, data = (
        torch.distributions.MultivariateNormal(m.double(), c.double())
        for m, c in ((out.mean, out.cov), (GAUSSIAN.mean, GAUSSIAN.cov))
    )
    assert out.kl == pytest.approx(torch.distributions.kl_divergence(ours, data).item(), rel=1e-10)
    line = analysis.law("ddpm", PATH, sf.Gaussian(torch.tensor([0.5]), 0.3), 9)
    off = (line.mean.item() - 0.5, math.sqrt(line.cov.item()) - math.sqrt(0.3))
    assert line.w2 == pytest.approx(math.hypot(*off), rel=1e-10)
    assert analysis.law("ddpm", PATH, sf.Gaussian(torch.zeros(1), 0.0), 9).kl == math.inf


def test_strong_order():
    """On nested Brownian grids: 1 for Euler–Maruyama, 1.5 with areas."""
    em, sra = (analysis.order(name, PATH, [32, 64, 128], kind="strong", stop=0.1) for name in ("euler-maruyama", "sra3"))
    assert em.kind == "strong" and abs(em.order - 1) < 0.25 and abs(sra.order - 1.5) < 0.25


def test_the_published_3m():
    """As published of order 2, corrected of order 3: what docs/orders.md says."""
    published, corrected = (analysis.order(f"dpm-solver++-{method}", PATH, grid="logsnr") for method in ("3m-published", "3m"))
    assert abs(published.order - 2) < 0.15 and abs(corrected.order - 3) < 0.25


@pytest.mark.parametrize("keywords", [{"steps": [5]}, {"kind": "mean"}, {"steps": [0, 3]}])
def test_order_refuses(keywords):
    with pytest.raises(ValueError, match=r"steps must|kind must"):
        analysis.order("ddim", PATH, **keywords)


MU = torch.tensor([0.0, 0.3, 1.0, 2.0, 1 + 2j, -0.5 + 1j], dtype=torch.complex128)


@pytest.mark.parametrize("h", [0.2, 1.0])
def test_stability_of_one_step_methods(h):
    """Of DDIM `|1 + μ (e^{−h} − 1)|`; of EDM's Heun by its two stages."""
    k = math.exp(-h) - 1
    torch.testing.assert_close(analysis.stability("ddim", MU, h), (1 + MU * k).abs(), rtol=1e-8, atol=1e-10)
    euler = 1 + MU * k
    heun = 1 + k * (MU + MU * euler * math.exp(h)) / 2
    torch.testing.assert_close(analysis.stability("edm", MU, h), heun.abs(), rtol=1e-8, atol=1e-10)


def test_stability_of_a_multistep_method():
    """Of order 2 in noise form the largest root of `y² − (1 + a μ) y − b μ e^{−h}`, a and b its weights."""
    h, path = 0.3, sf.VESDE(sigma_min=1.0, sigma_max=1e6)
    times = [path.time(lam) for lam in (-5.0, -4.7, -4.4)]
    row = sf.plan("exponential-ab-2", path, grid=times).steps[1].stages[0].row
    a, b = (m / path.sigma(times[1]) for m in row.m)
    roots = torch.stack([torch.linalg.eigvals(torch.tensor([[1 + a * mu, b * mu * math.exp(-h)], [1.0, 0.0]])) for mu in MU])
    seen = analysis.stability("exponential-ab-2", MU, h, steps=200)
    torch.testing.assert_close(seen, roots.abs().amax(1), rtol=2e-3, atol=1e-6)
    with pytest.raises(ValueError, match="h·steps must be at most 300"):
        analysis.stability("ddim", MU, 10.0)


def test_the_weights_are_drawn():
    matplotlib.use("Agg")
    plan = sf.plan("sde-dpm-solver++-3m", PATH, 6)
    ax = analysis.coefficients(plan)
    labels = [line.get_label() for line in ax.lines]
    assert labels == ["state", "x0 0", "x0 1", "x0 2", "noise"]
    state = ax.lines[0].get_ydata()
    assert list(state) == [step.stages[-1].row.x for step in plan.steps]
    assert analysis.coefficients(sf.plan("ddim", PATH, 3), ax) is ax
