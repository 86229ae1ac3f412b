"""Adaptive steps, sample by sample: DPM-Solver-12 and -23, Gotta Go Fast; and SRA on paths with areas."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._core.control import Control
from scoreflow._samplers.adaptive import DPMAdaptive, GottaGoFast

PATH = PATHS["vp"]
MODEL, X = mixture().model(PATH), states(6, 3)
SEEDS = tuple(range(6))
CASES = ["dpm-solver-12", "dpm-solver-23", "gotta-go-fast"]


@pytest.fixture
def attempts(monkeypatch):
    """What the samplers try: for each attempt the samples, their times, and where each wanted to go."""
    tried = []
    for kind in (DPMAdaptive, GottaGoFast):

        def attempt(self, path, x, word, t, s, ask, draws, one=kind.attempt):
            tried.append((list(ask.samples), list(t), list(s)))
            return one(self, path, x, word, t, s, ask, draws)

        monkeypatch.setattr(kind, "attempt", attempt)
    return tried


@pytest.mark.parametrize("name", CASES[:2])
def test_the_error_follows_the_tolerance(name):
    """To the ODE's solution by DOP853 at 1e-11: within ten tolerances, and an evaluation buys its order."""
    exact = sf.solve(MODEL, X, "scipy", method="DOP853", rtol=1e-11, atol=1e-11, grid=[0.9, 0.05]).x
    errors, asked = [], []
    for rtol in (1e-2, 1e-3, 1e-4):
        sol = sf.solve(MODEL, X, name, rtol=rtol, atol=rtol / 5, grid=[0.9, 0.05])
        errors.append((sol.x - exact).norm(dim=1).median().item())
        asked.append(np.median(sol.nfe_per_sample))
        assert errors[-1] < 10 * rtol
    order = -np.polyfit(np.log(asked), np.log(errors), 1)[0]
    assert order > sol.sampler.options["order"] - 0.3


@pytest.mark.parametrize("name", CASES)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    noise = {"seed": SEEDS} if name == "gotta-go-fast" else {}
    whole = sf.solve(MODEL, X, name, **noise)
    assert len(set(whole.nfe_per_sample)) > 1
    for b in (0, 4):
        alone = sf.solve(MODEL, X[b : b + 1], name, **({"seed": (b,)} if noise else {}))
        torch.testing.assert_close(alone.x[0], whole.x[b], rtol=1e-12, atol=1e-12)
        assert alone.nfe_per_sample == whole.nfe_per_sample[b : b + 1]


@pytest.mark.parametrize("name", CASES)
def test_who_has_arrived_leaves_the_batch(name, attempts):
    """The network is asked for those under way only; a step refused costs one evaluation less, its word at t being known."""
    sizes = []

    def net(x, t):
        sizes.append(len(x))
        return MODEL.net(x, t)

    model = sf.ScoreModel(net, PATH, MODEL.prediction, MODEL.time)
    sol = sf.solve(model, X, name, rtol=1e-2, atol=1e-3, seed=SEEDS, grid=[0.9, 0.05])
    assert sum(sizes) == sum(sol.nfe_per_sample)
    assert min(sizes) < len(X)
    stages = sol.sampler.options.get("order", 2)
    for b in range(len(X)):
        mine = [(t[tried.index(b)], s[tried.index(b)]) for tried, t, s in attempts if b in tried]
        taken = len({t for t, _ in mine})
        assert sol.nfe_per_sample[b] == taken + (stages - 1) * len(mine)
        assert mine[0][0] == 0.9 and mine[-1][1] == 0.05
    assert any(len({t for t in times}) > 1 for _, times, _ in attempts)  # each at a time of its own


@pytest.mark.parametrize("name", CASES[:2])
def test_its_steps_are_dpm_solvers(name, attempts):
    """Run on the nodes of the steps taken, `dpm-solver` gives the same states."""
    sol = sf.solve(MODEL, X[:1], name, rtol=1e-3, atol=1e-4, grid=[0.9, 0.05])
    nodes = [0.9]
    for _, (t,), (s,) in attempts:
        if t != nodes[-1]:
            nodes.append(t)
        last = s
    order = sol.sampler.options["order"]
    by_rows = sf.solve(MODEL, X[:1], "dpm-solver", order=order, grid=[*nodes, last])
    torch.testing.assert_close(by_rows.x, sol.x, rtol=1e-11, atol=1e-11)
    assert len(attempts) > len(nodes)  # some were refused


def test_the_controller_is_gustafssons(attempts):
    """On one number the lengths in λ are those of the formula, from the errors by hand."""
    model, x = mixture(1).model(PATH), states(1, 1)
    sf.solve(model, x, "dpm-solver-12", rtol=1e-2, atol=1e-3, grid=[0.8, 0.1])
    before, refused = 1.0, False
    for (_, (t,), (s,)), (_, (t_2,), (s_2,)) in pairwise(attempts[:-1]):
        low, high = (sf.solve(model, x, "dpm-solver", order=p, grid=[t, s]).x.item() for p in (1, 2))
        error = abs(high - low) / max(1e-3, 1e-2 * max(abs(low), abs(x.item())))
        h, h_2 = PATH.lam(s) - PATH.lam(t), PATH.lam(s_2) - PATH.lam(t_2)
        if error <= 1:
            factor = min(max(0.9 * error**-0.35 * before**0.2, 0.2), 1.0 if refused else 5.0)
            before, refused, x = max(error, 1e-4), False, torch.tensor([[high]], dtype=torch.float64)
            assert t_2 == s
        else:
            factor, refused = min(max(0.9 * error**-0.55, 0.2), 0.9), True
            assert t_2 == t
        assert h_2 == pytest.approx(factor * h, rel=1e-6)


def test_gotta_go_fast_follows_its_brownian_path():
    """With one seed a sample, it tends to what 512 steps of order 1.5 give on the same path."""
    noise = sf.Brownian(SEEDS, depth=15)
    fine = sf.solve(MODEL, X, "sra3", steps=512, start=0.9, stop=0.1, noise=noise).x
    errors = [
        (sf.solve(MODEL, X, "gotta-go-fast", rtol=tol, atol=tol / 5, grid=[0.9, 0.1], noise=noise).x - fine)
        .norm(dim=1)
        .median()
        for tol in (0.1, 0.015)
    ]
    assert errors[1] < 0.015 and errors[1] < errors[0] / 3


def test_refused_steps_do_not_bias(attempts):
    """By hand, with the increments of the path over the steps that were taken only: a refused step leaves no trace."""
    noise = sf.Brownian((5,), depth=40)
    sol = sf.solve(MODEL, X[:1], "gotta-go-fast", rtol=1e-2, atol=1e-3, grid=[0.9, 0.2], noise=noise)
    starts = [t for _, (t,), _ in attempts]
    taken = [(t, s) for i, (_, (t,), (s,)) in enumerate(attempts) if starts[i + 1 : i + 2] != [t]]
    assert len(taken) < 0.9 * len(attempts) and taken[-1][1] == 0.2

    def euler(x, t, dt, dw):
        return (PATH.f(t) * x - PATH.g2(t) * MODEL.score(x, t)) * dt + math.sqrt(PATH.g2(t)) * dw

    x, cursor = X[:1], noise.draws()
    for t, s in taken:
        dw = cursor.increment(x, t, s)
        first = euler(x, t, s - t, dw)
        x = x + (first + euler(x + first, s, s - t, dw)) / 2
    torch.testing.assert_close(sol.x, x, rtol=1e-4, atol=1e-4)


def test_its_noise_is_its_increments():
    """Two attempts from one time and the steps that follow see one path: their increments add up."""
    draws = sf.Brownian((3,)).draws().of(0)
    like = torch.zeros(1, 4, dtype=torch.float64)
    whole = draws.increment(like, 0.7, 0.3)
    parts = [draws.increment(like, a, b) for a, b in ((0.7, 0.5), (0.7, 0.61), (0.61, 0.45), (0.61, 0.48), (0.48, 0.3))]
    torch.testing.assert_close(parts[0] * 0 + parts[1] + parts[3] + parts[4], whole, rtol=1e-12, atol=1e-12)
    batch = sf.Brownian((5, 3)).draws()
    torch.testing.assert_close(batch.increment(like.expand(2, 4), 0.7, 0.3)[1:], whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "error", "match"),
    [
        ("dpm-adaptive", {"order": 4}, ValueError, "order must be 2 or 3, got 4"),
        ("dpm-adaptive", {"rtol": -1.0}, ValueError, "rtol must"),
        ("gotta-go-fast", {"atol": 0.0}, ValueError, "atol must"),
        ("gotta-go-fast", {"eta": 0.0}, ValueError, "eta must"),
        ("gotta-go-fast", {"noise": "white"}, ValueError, "gotta-go-fast needs a Brownian path"),
        ("dpm-adaptive", {"nfe": 20}, ValueError, "cannot be held to nfe"),
        ("dpm-solver-12", {"rtol": 0.0, "atol": 1e-30}, RuntimeError, "sample 0 takes no step at t=.*raise rtol or atol"),
    ],
)
def test_refusals(name, options, error, match):
    with pytest.raises(error, match=match):
        sf.solve(MODEL, X[:1], name, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_network_out_of_bounds_ends_the_run(name):
    """Words so large that states overflow: no step is short enough, or one is not finite; never a run without end."""
    model = sf.ScoreModel(lambda x, t: torch.full_like(x, 1.7e308), PATH)
    with pytest.raises((RuntimeError, FloatingPointError), match=r"raise rtol or atol|not finite"):
        sf.solve(model, X[:2], name, seed=0)


@pytest.mark.parametrize("name", CASES)
def test_where_alpha_is_zero(name):
    path = PATHS["cosine"]
    model = mixture().model(path)
    with pytest.raises(ValueError, match="alpha=0"):
        sf.solve(model, X, name, seed=0)
    assert sf.solve(model, X, name, start=0.99, seed=0).x.isfinite().all()


# -- SRA -----------------------------------------------------------------------------------------------------------------


def test_strong_order_of_sra():
    """On one path with areas the error against 2048 steps falls at order 1.5, where Euler–Maruyama's does at 1."""
    noise, x = sf.Brownian(0, depth=13), states(64, 3)

    def run(name, n):
        return sf.solve(MODEL, x, name, steps=n, start=0.9, stop=0.1, noise=noise).x

    fine, steps = run("sra3", 2048), [32, 64, 128]
    slopes = {}
    for name in ("sra1", "sra3", "euler-maruyama"):
        errors = [(run(name, n) - fine).norm(dim=1).mean().item() for n in steps]
        slopes[name] = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert all(1.35 < slopes[method] < 1.9 for method in ("sra1", "sra3")) and 0.8 < slopes["euler-maruyama"] < 1.3, slopes


def test_sra_needs_the_area():
    """Its second draw is the area over the first's step: replayed by hand it gives the run."""
    noise = sf.Brownian(4)
    plan = sf.plan("sra1", PATH, 4, start=0.9, stop=0.1)
    assert [d.area for d in plan.steps[0].draws] == [False, True] and plan.noise_count == 8
    cursor = noise.draws()
    given = torch.stack([cursor(X, d.t, d.s, d.area) for step in plan.steps for d in step.draws])
    assert torch.equal(sf.solve(MODEL, X, plan, noise=given).x, sf.solve(MODEL, X, plan, noise=noise).x)


def test_the_controller():
    """Its formula, its limits, and what follows a refusal."""
    control = Control(0.2, 0.1)
    assert control.factor(0.5, 0.25, refused=False) == pytest.approx(0.9 * 0.5**-0.2 * 0.25**0.1)
    assert control.factor(0.0, 1.0, refused=False) == 5.0 and control.factor(1e-9, 1.0, refused=True) == 1.0
    assert control.factor(1.0, 1e-9, refused=False) == 0.2
    assert control.factor(8.0, 0.3, refused=False) == pytest.approx(0.9 * 8**-0.3)
    assert control.factor(1.0001, 1.0, refused=True) == pytest.approx(0.9, abs=1e-3)
    assert control.factor(1e9, 1.0, refused=False) == control.factor(math.inf, 1.0, refused=False) == 0.2
