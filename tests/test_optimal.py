"""Times fitted to a sampler (DMN) or to a network (GITS), against closed forms and brute force."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._uses.optimal import word_weights


class Outputs(torch.nn.Module):
    """A network that says given outputs in turn."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.said = outputs, 0

    def forward(self, x, t):
        self.said += 1
        return self.outputs[self.said - 1].expand_as(x)


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++-3m", "exponential-ab-3", "unipc-3", "dpm-solver-3"])
def test_word_weights_are_those_of_a_run(name):
    """A run from x_T = 0 on fixed outputs gives the sum of the outputs by their weights."""
    path = PATHS["vp"]
    plan = sf.plan(name, path, grid=sf.grid(path, 7, "logsnr", stop=0.01))
    outputs = states(plan.nfe, 1, 2)
    model = sf.ScoreModel(Outputs(outputs), path, prediction=plan.prediction)
    x = sf.solve(model, torch.zeros(1, 2, dtype=torch.float64), plan).x
    weights = word_weights(plan, path)
    weighed = sum(
        w / path.convert("x0", plan.prediction, t)[1] * output for (t, w), output in zip(weights, outputs, strict=True)
    )
    torch.testing.assert_close(x, weighed, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("path", ["vp", "ve"])
def test_dmn_of_ddim_is_even_in_lambda(path):
    """DDIM's bound with p = 1 is Σ (κ_i/κ_{i+1} − 1), least where all ratios are one."""
    path = PATHS[path]
    times = sf.dmn_grid("ddim", path, 7)
    np.testing.assert_allclose(
        [path.lam(t) for t in times[:-1]], [path.lam(t) for t in sf.grid(path, 7, "logsnr")[:-1]], atol=2e-2
    )


def test_dmn_makes_the_bound_small():
    """Below uniform λ and uniform t, from which it starts, for a multistep method; and the ends are kept."""
    path = PATHS["vp"]
    sampler = sf.get_sampler("dpm-solver++-2m")

    def bound(times):
        return sum(abs(w) * path.kappa(t) for t, w in word_weights(sampler.plan(path, times), path))

    times = sf.dmn_grid(sampler, path, 5, stop=0.001)
    assert len(times) == 6
    assert (times[0], times[-1]) == (1.0, 0.001)
    assert bound(times) < 0.97 * min(bound(sf.grid(path, 5, name, stop=0.001)) for name in ("logsnr", "uniform"))
    squared = sf.dmn_grid(sampler, path, 5, stop=0.001, power=2.0)

    def weighed(times):
        return sum(abs(w) * path.kappa(t) ** 2 for t, w in word_weights(sampler.plan(path, times), path))

    assert weighed(squared) < 0.95 * weighed(times)
    full = sf.dmn_grid(sampler, path, 6)
    assert full == (*times[:-1], pytest.approx(0.001), 0.0)


def test_dmn_gets_over_kinks():
    """Where a weight changes sign the bound is not smooth, and one descent alone ends at 0.66 of that of uniform λ.

    From the times that are found no node can be moved to better ones.
    """
    path, sampler = PATHS["vp"], sf.get_sampler("unipc-2")

    def bound(times):
        return sum(abs(w) * path.kappa(t) for t, w in word_weights(sampler.plan(path, tuple(times)), path))

    times = sf.dmn_grid(sampler, path, 6, stop=0.001)
    least = bound(times)
    assert least < 0.6 * bound(sf.grid(path, 6, "logsnr", stop=0.001))
    for i in range(1, 6):
        for move in (-0.05, 0.05):
            moved = path.time(path.lam(times[i]) + move)
            assert bound([*times[:i], moved, *times[i + 1 :]]) > least


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (dict(sampler="scipy"), ValueError, "not made of rows"),
        (dict(power=-1), ValueError, "power must be .*≥ 0, got -1"),
        (dict(steps=0), ValueError, "steps must be a whole number"),
        (dict(t_min=2.0), ValueError, "t_min must lie between 0 and start=1.0, got 2.0"),
        (dict(nonsense=1), TypeError, "no option 'nonsense'"),
    ],
)
def test_dmn_refuses(call, error, message):
    with pytest.raises(error, match=message):
        sf.dmn_grid(**{"sampler": "ddim", "path": PATHS["vp"], "steps": 4, **call})


def test_gits_finds_the_least_total_cost():
    """Against every choice of three intervals among a teacher's eight."""
    path, x_T = PATHS["vp"], states(8, 3)
    model = mixture().model(path)
    run = sf.solve(model, x_T, "ddim", steps=8, grid="logsnr", trajectory=True)

    def cost(i, j):
        leap = sf.solve(model, run.states[i], "ddim", grid=[run.times[i], run.times[j]]).x
        return math.sqrt(float((leap - run.states[j]).square().mean()))

    best = min(combinations(range(1, 8), 2), key=lambda c: cost(0, c[0]) + cost(c[0], c[1]) + cost(c[1], 8))
    times = sf.gits_grid(model, x_T, 3, teacher=8)
    assert times == tuple(run.times[i] for i in (0, *best, 8))
    assert sf.gits_grid(model, x_T, 8, teacher=8) == run.times


def test_gits_serves_other_seeds():
    """On new noise DDIM strays less on its times than on any even ones."""
    path, x_T = PATHS["vp"], states(64, 3, seed=5)
    model = mixture().model(path)
    exact = sf.solve(model, x_T, "exponential-ab-4", steps=400, grid="logsnr").x

    def error(grid):
        return float((sf.solve(model, x_T, "ddim", grid=grid).x - exact).norm(dim=1).median())

    times = sf.gits_grid(model, states(32, 3, seed=6), 6)
    assert error(times) < min(error(sf.grid(path, 6, name)) for name in ("uniform", "logsnr", "karras", "quadratic"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (dict(steps=9), "steps=9 is more than the teacher's 8"),
        (dict(discount=0), "discount must be .*> 0"),
        (dict(steps=0), "steps"),
    ],
)
def test_gits_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        sf.gits_grid(mixture().model(PATHS["vp"]), states(2, 3), **{"steps": 3, "teacher": 8, **call})


# -- DC-Solver's ratios --------------------------------------------------------------------------------------------------


def test_dc_ratios_serve_other_seeds():
    """On new noise DC-Solver with them is nearer to the ODE than UniPC, which is the same with ratio 1."""
    path = PATHS["vp"]
    model, times, x_T = mixture().model(path), sf.grid(path, 6, "ode"), states(64, 3, seed=5)
    ratio = sf.dc_ratios(model, states(32, 3, seed=6), times)
    assert (len(ratio), ratio[:2], ratio[-1]) == (6, (1.0, 1.0), 1.0)
    exact = sf.solve(model, x_T, "unipc", steps=400, grid="logsnr", stop=times[-2]).x

    def error(**options):
        return float((sf.solve(model, x_T, "dc-solver", grid=times[:-1], **options).x - exact).norm(dim=1).median())

    assert error(ratio=ratio) < 0.7 * error()


def test_a_ratio_is_the_best_of_its_step():
    """The third step's state is nearer to the ODE's than with ratios beside it."""
    path = PATHS["vp"]
    model, times, x_T = mixture().model(path), sf.grid(path, 6, "ode")[:4], states(32, 3, seed=6)
    ratio = sf.dc_ratios(model, x_T, times)
    exact = sf.solve(model, x_T, "unipc", steps=400, grid="logsnr", stop=times[-1]).x

    def off(value):
        return float((sf.solve(model, x_T, "dc-solver", grid=times, ratio=(1.0, 1.0, value)).x - exact).square().mean())

    assert ratio[2] != 1 and off(ratio[2]) < min(off(ratio[2] - 0.02), off(ratio[2] + 0.02))


def test_dc_ratios_refuse():
    model, x_T = mixture().model(PATHS["vp"]), states(2, 3)
    for call, match in (
        ({"parts": 0}, "parts must be"),
        ({"limits": (1.0, 1.0)}, "limits must be two numbers, the lower first"),
    ):
        with pytest.raises(ValueError, match=match):
            sf.dc_ratios(model, x_T, (0.9, 0.5, 0.1), **call)
