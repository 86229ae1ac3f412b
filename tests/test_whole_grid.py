"""Samplers of other tools, against the formulas of their code: DPM-Solver-fast, Heun++, REAB, DC-Solver, SA-Solver in PECE."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf

VE, VP = PATHS["ve"], PATHS["vp"]
MODEL, DATA = mixture().model(VE), mixture()
X = states(5, 3) * VE.prior_std(0.9)


def d(x, sigma):
    """k-diffusion's `to_d`: the slope of the state in σ, which is ε̂."""
    return MODEL(x, VE.time(-math.log(sigma)))


def levels(times):
    return [VE.kappa(t) for t in times]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_heunpp2(steps):
    """Heun++ in σ, as in ComfyUI's `sample_heunpp2` without churn."""
    times = sf.grid(VE, steps, start=0.9)
    sigmas, x = levels(times), X
    for i, (a, b) in enumerate(pairwise(sigmas)):
        first = d(x, a)
        euler = x + first * (b - a)
        if i == steps - 1:
            x = euler
            continue
        second = d(euler, b)
        if i == steps - 2:
            w = b / (2 * sigmas[0])
            x = x + ((1 - w) * first + w * second) * (b - a)
            continue
        c = sigmas[i + 2]
        third = d(euler + second * (c - b), c)
        w, v = b / (3 * sigmas[0]), c / (3 * sigmas[0])
        x = x + ((1 - w - v) * first + w * second + v * third) * (b - a)
    sol = sf.solve(MODEL, X, "heunpp2", grid=times)
    torch.testing.assert_close(sol.x, x, rtol=1e-9, atol=1e-9)
    assert sol.nfe == max(3 * steps - 3, steps)


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.5])
def test_dpm_fast(n, eta):
    """`sample_dpm_fast` with n evaluations, down to a level above 0."""
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    times = sf.grid(VE, len(orders), "logsnr", start=0.9, stop=0.05)
    noise, x = states(len(orders), 5, 3, seed=4), X

    def step(x, t, s, order):
        def at(r):
            return t * (s / t) ** r

        def go(r, extra):
            return x + (at(r) - t) * first + extra

        first = d(x, t)
        h = math.log(t / s)
        if order == 1:
            return go(1, 0)
        if order == 2:
            return go(1, -s * math.expm1(h) * (d(go(0.5, 0), at(0.5)) - first))
        one = d(go(1 / 3, 0), at(1 / 3)) - first
        two = go(2 / 3, -at(2 / 3) * 2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * one)
        return go(1, -s / (2 / 3) * (math.expm1(h) / h - 1) * (d(two, at(2 / 3)) - first))

    for i, (order, a, b) in enumerate(zip(orders, levels(times), levels(times)[1:], strict=False)):
        up = min(b, eta * math.sqrt(b**2 * (a**2 - b**2) / a**2))
        x = step(x, a, math.sqrt(b**2 - up**2), order) + up * noise[i]
    sol = sf.solve(MODEL, X, "dpm-fast", remainder=n % 3, eta=eta, grid=times, noise=noise if eta else None)
    torch.testing.assert_close(sol.x, x, rtol=1e-9, atol=1e-9)
    assert sol.nfe == n


def test_dpm_fast_runs_on_even_steps_in_lambda():
    assert sf.plan("dpm-fast", VP, 5).times == sf.grid(VP, 5, "logsnr")
    assert sf.plan("dpm-fast", PATHS["flow"], 5, start=0.9).nfe == 12  # no logsnr from α = 0
    with pytest.raises(ValueError, match="remainder must be a whole number from 0 to 2, got 3"):
        sf.get_sampler("dpm-fast", remainder=3)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_reab(order):
    """`x ← √((1+e^{2s})/(1+e^{2t})) x + √(1+e^{2s}) Σ f_i ∫ e^u/(1+e^{2u}) ℓ_i du` in u = log σ where α = 1, by trapezoids."""
    times = sf.grid(VE, 5, "logsnr", start=0.9, stop=0.1)
    u, x, past = [math.log(k) for k in levels(times)], X, []
    for i, (a, b) in enumerate(pairwise(u)):
        share = math.exp(2 * a) / (1 + math.exp(2 * a))
        past.insert(0, ((1 - share) * x - MODEL.x0(x, times[i])) / math.sqrt(share))
        knots = u[i::-1][:order]
        at = np.linspace(a, b, 20001)
        x = math.sqrt((1 + math.exp(2 * b)) / (1 + math.exp(2 * a))) * x
        for j, f in enumerate(past[:order]):
            basis = np.prod([(at - k) / (knots[j] - k) for k in knots if k != knots[j]], axis=0) * np.exp(at)
            x = x + math.sqrt(1 + math.exp(2 * b)) * float(np.trapezoid(basis / (1 + np.exp(2 * at)), at)) * f
    torch.testing.assert_close(sf.solve(MODEL, X, "reab", order=order, grid=times).x, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_reab_is_exact_on_data_of_variance_1(path):
    """Of order 1 too, in one step, and from α = 0."""
    path = PATHS[path]
    x, one = states(4, 3), sf.Gaussian(torch.zeros(3), torch.eye(3))
    x = x * path.prior_std(0.9)
    out = sf.solve(one.model(path), x, "reab-1", grid=[0.9, 0.2]).x
    torch.testing.assert_close(out, x * path.prior_std(0.2) / path.prior_std(0.9), rtol=1e-10, atol=1e-12)


def test_reab_begins_at_pure_noise():
    """An output at α = 0 is taken once, and then has no weight."""
    path = PATHS["flow"]
    first, second = sf.plan("reab-3", path, grid=[1.0, 0.7, 0.4]).steps
    assert len(first.stages[0].row.m) == 1
    assert len(second.stages[0].row.m) == 1


@pytest.mark.parametrize("form", ["data", "noise"])
def test_dc_solver(form):
    """Algorithm of the authors' code: the newest output of the buffer is replaced before each step, and stays so."""
    ratio, times = (1.0, 1.0, 0.7, 1.2, 0.9), sf.grid(VP, 5, start=0.9, stop=0.1)
    model, prediction = DATA.model(VP), {"data": "x0", "noise": "eps"}[form]
    x, buffer, seen = states(5, 3), [model(states(5, 3), times[0], prediction)], [times[0]]
    for k, s in enumerate(times[1:]):
        if k >= 2:
            at, knots = ratio[k] * seen[0] + (1 - ratio[k]) * seen[1], seen[:3]
            buffer[0] = sum(
                math.prod((at - b) / (a - b) for b in knots if b != a) * out for a, out in zip(knots, buffer, strict=False)
            )
        rows = sf.get_sampler("unipc", form=form).rows_at(VP, tuple(seen[:3]), s)
        y = rows[0][1](x, buffer[: len(rows[0][1].m)], None)
        output = model(y, s, prediction)
        x = rows[1][1](x, [output, *buffer][: len(rows[1][1].m)], None)
        buffer, seen = [output, *buffer], [s, *seen]
    sol = sf.solve(model, states(5, 3), "dc-solver", ratio=ratio, form=form, grid=times)
    torch.testing.assert_close(sol.x, x, rtol=1e-11, atol=1e-11)
    assert sol.nfe == sf.plan("unipc", VP, grid=times).nfe


def test_dc_solver_at_ratio_1_is_unipc():
    model, x = DATA.model(VP), states(5, 3)
    for ratio in (1.0, 1, (1.0,), [1.0, 1.0, 1.0]):
        assert torch.equal(sf.solve(model, x, "dc-solver", steps=8, ratio=ratio).x, sf.solve(model, x, "unipc", steps=8).x)
    with pytest.raises(TypeError, match="ratio must be a finite number, got 'a'"):
        sf.get_sampler("dc-solver", ratio="a")


def test_sa_solver_pece():
    """The corrected states are where the network is evaluated; predictor and corrector share the draw."""
    model, x, times = DATA.model(VP), states(5, 3), sf.grid(VP, 5, start=0.9, stop=0.1)
    noise, past, seen, y = states(5, 5, 3, seed=4), [], [], x
    rows = sf.get_sampler("sa-solver", tau=0.6)
    for k, (t, s) in enumerate(pairwise(times)):
        past, seen = [model.x0(y, t), *past][:2], [t, *seen][:2]
        predict, correct = (row for _, row in rows.rows_at(VP, tuple(seen), s))
        at_s = model.x0(predict(y, past[: len(predict.m)], lambda _, k=k: noise[k]), s)
        y = correct(y, [at_s, *past][: len(correct.m)], lambda _, k=k: noise[k])
    sol = sf.solve(model, x, "sa-solver-pece", tau=0.6, grid=times, noise=noise)
    torch.testing.assert_close(sol.x, y, rtol=1e-11, atol=1e-11)
    assert sol.nfe == 10 and sf.plan("sa-solver-pece", VP, 5).nfe == 9
    with pytest.raises(ValueError, match="mode='pece' evaluates at the corrected state, and corrector=0 makes none"):
        sf.get_sampler("sa-solver", corrector=0, mode="pece")
