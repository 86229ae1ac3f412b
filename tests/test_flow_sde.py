"""Stochastic samplers of other libraries: dpm-2-ancestral, flow-sde, cps."""

import math

import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow import analysis

PATH = PATHS["vp"]


def test_dpm_2_ancestral_as_published():
    """k-diffusion's `sample_dpm_2_ancestral` on a VE path: sigma_down, sigma_up and the midpoint in log σ, written out."""
    path = sf.VESDE()
    t, s = path.time(-math.log(3.0)), path.time(-math.log(1.2))
    for eta in (1.0, 0.6, 0.0):
        a, b = 3.0, 1.2
        up = min(b, eta * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
        down = (b**2 - up**2) ** 0.5
        middle = math.exp((math.log(a) + math.log(down)) / 2)
        (_, first), (_, last) = sf.get_sampler("dpm-2-ancestral", eta=eta).plan(path, (t, s)).steps[0].stages
        assert (first.x, *first.m) == pytest.approx((1.0, middle - a))
        assert (last.x, *last.m, last.z) == pytest.approx((1.0, down - a, 0.0, up), abs=1e-9)


def shifted(n, shift=3.0):
    """Uniform times, moved by a flow's shift."""
    return [shift * u / (1 + (shift - 1) * u) for u in (1 - k / n for k in range(n + 1))]


def test_flow_sde_as_published():
    """Flow-GRPO's step: `std = a √(σ/(1 − σ))`, with the next σ in the denominator at σ = 1."""
    t, s, a = 0.8, 0.6, 0.7
    for t, under in ((0.8, 1 - 0.8), (1.0, 1 - 0.6)):
        std = a * math.sqrt(t / under)
        row = sf.get_sampler("flow-sde", a=a).plan(sf.Flow(), (t, s)).steps[0].stages[0].row
        dt = s - t
        wanted = 1 + std**2 / (2 * t) * dt, (1 + std**2 * (1 - t) / (2 * t)) * dt, std * math.sqrt(-dt)
        assert (row.x, *row.m, row.z) == pytest.approx(wanted)


@pytest.mark.parametrize("path", [PATHS[p] for p in PATHS], ids=list(PATHS))
@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_flow_sde_is_reverse_sde_euler(path, a):
    """With η = a/√2, row by row where α_t > 0; the step to the data, where ours ends by x̂_0, aside."""
    times = sf.grid(path, 5, "uniform")[1:-1]
    mine = sf.get_sampler("flow-sde", a=a).plan(path, times)
    other = sf.get_sampler("reverse-sde-euler", eta=a / math.sqrt(2)).plan(path, times)
    for t, flow, score in zip(times[:-1], mine.steps, other.steps, strict=True):
        want, row = score.stages[-1].row.through(*path.convert("flow", "eps", t)), flow.stages[-1].row
        assert (row.x, *row.m, row.z) == pytest.approx((want.x, *want.m, want.z), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("name", "variances"), [("flow-sde", (0.80, 0.90, 0.95)), ("cps", (0.52, 0.60, 0.65))])
def test_variances_at_few_steps(name, variances):
    """On N(0, 1) data, shift 3, at 10, 20 and 40 steps: known values, to their two digits."""
    gaussian = sf.Gaussian(torch.zeros(1), 1.0)
    for n, variance in zip((10, 20, 40), variances, strict=True):
        assert float(analysis.law(name, sf.Flow(), gaussian, grid=shifted(n)).cov) == pytest.approx(variance, abs=0.006)


def test_cps_has_a_wrong_limit():
    """Exact laws at finer and finer grids: the variance tends to 0.727 and not to 1, as that of `flow-sde` does."""
    gaussian = sf.Gaussian(torch.zeros(1), 1.0)
    found = {
        name: [float(analysis.law(name, sf.Flow(), gaussian, grid=shifted(n)).cov) for n in (1000, 4000)]
        for name in ("cps", "flow-sde")
    }
    # Errors fall as 1/√n for cps: Richardson's limit of the two.
    assert 2 * found["cps"][1] - found["cps"][0] == pytest.approx(0.727, abs=2e-3)
    assert found["flow-sde"][1] == pytest.approx(1.0, abs=3e-3)


def test_cps_without_noise_is_ddim():
    times = sf.grid(PATH, 5, "uniform")
    plans = sf.plan("cps", PATH, grid=times, a=0.0), sf.plan("ddim", PATH, grid=times)
    for mine, ddim in zip(*(plan.steps for plan in plans), strict=True):
        a, b = mine.stages[-1].row, ddim.stages[-1].row
        assert (a.x, *a.m, a.z) == pytest.approx((b.x, *b.m, b.z), abs=1e-15)
    with pytest.raises(ValueError, match=r"a must be a finite number ≥ 0 and ≤ 1, got 1\.5"):
        sf.get_sampler("cps", a=1.5)
