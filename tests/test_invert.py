"""Inversion: exact for BDIA and EDICT whatever the network, of first order for DDIM, of higher order when corrected."""

import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import LINEAR, PATHS, linear, mixture, states
from runs import Toy
from torch import nn

import scoreflow as sf
from scoreflow._core.grid import GRIDS
from scoreflow._run.walk import Run

EVERY = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
PATH, DATA = sf.VPSDE(), mixture()
EXACT = {
    "bdia": ("bdia-ddim", {}),
    "bdia γ=0.9": ("bdia-ddim", {"gamma": 0.9}),
    "edict": ("edict", {}),
    "edict p=1": ("edict", {"p": 1.0}),
}
exact = pytest.mark.parametrize(("sampler", "options"), EXACT.values(), ids=EXACT)


class Rough(nn.Module):
    """A network that no density has: steep, and different at every time."""

    def forward(self, x, t, y=None):
        at = 1 + t.reshape(-1, *[1] * (x.ndim - 1)).to(x)
        return torch.sin(5 * x * at) + at * x.flip(-1) / 2 + (0 if y is None else y)


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def apart(a, b):
    return (a.double() - b.double()).norm(dim=1).median().item()


# -- exact ---------------------------------------------------------------------------------------------------------------


@EVERY
@exact
def test_31_decode_undoes_encode(path, sampler, options):
    """31. decode ∘ encode is the identity for any network: 1e-10 in float64, on every path, whatever the answer is worth."""
    x_0 = states(4, 3)
    for model in (DATA.model(path), sf.ScoreModel(Rough(), path, "v")):
        up = sf.invert(model, x_0, sampler, steps=12, start=0.95, **options)
        back = up.decode(model)
        scale = float(up.x.abs().max().clamp(min=1)) / path.prior_std(0.95)
        assert float((back.x - x_0).abs().max()) < 1e-10 * max(scale, 1), up
        assert back.times == up.times[::-1] and up.times[-1] == 0.95
        assert float((up.x - x_0).abs().max()) > 0.1  # and it went somewhere


@EVERY
def test_31_in_float32(path):
    """31. In float32, 50 steps of BDIA come back to 1e-5 of the latent's scale (measured: 2e-6), DDIM's inversion to 0.1."""
    x_0 = sf.solve(DATA.model(path), states(32, 3) * path.prior_std(0.9), "ddim", steps=50, start=0.9, stop=0.01).x.float()
    model, errors = DATA.model(path), {}
    for sampler in ("bdia-ddim", "ddim"):
        up = sf.invert(model, x_0, sampler, steps=50, start=0.99)
        errors[sampler] = float((up.decode(model).x - x_0).abs().max())
        assert up.x.dtype == torch.float32
    assert errors["bdia-ddim"] < 1e-5 * max(1, path.prior_std(0.99)) < 0.1 < errors["ddim"]


@exact
def test_31_encode_undoes_decode(sampler, options):
    """31. The other way round too: from what decoding leaves, the latent."""
    model = DATA.model(PATH)
    up = sf.invert(model, states(4, 3), sampler, steps=10, start=0.9, **options)
    walker, run = up.sampler, Run(model, {}, 4)
    run.memory = up.decode(model).memory
    *_, last = sf.walk(run, walker, up.times, up.decode(model).x, sf.White(0).draws())
    torch.testing.assert_close(last.x, up.x, rtol=1e-9, atol=1e-9)


def test_bdia_as_published():
    """`z_{i−1} = z_{i+1} − (1−γ)(z_{i+1} − z_i) − γ Δ(t_i → t_{i+1}) + Δ(t_i → t_{i−1})`, Δ the change that DDIM makes."""
    model, gamma, times = DATA.model(PATH), 0.7, (0.9, 0.7, 0.4, 0.1, 0.0)

    def delta(z, t, s):
        eps = model(z, t)
        return PATH.alpha(s) * (z - PATH.sigma(t) * eps) / PATH.alpha(t) + PATH.sigma(s) * eps - z

    z = [states(4, 3)]
    z.append(z[0] + delta(z[0], *times[:2]))
    for u, t, s in zip(times, times[1:], times[2:], strict=False):
        z.append(
            z[-2] - (1 - gamma) * (z[-2] - z[-1]) - gamma * delta(z[-1], t, u) + delta(z[-1], t, s)
        )  # fmt: skip
    sol = sf.solve(model, z[0], "bdia-ddim", gamma=gamma, grid=times, trajectory=True)
    torch.testing.assert_close(sol.states, torch.stack(z), rtol=1e-11, atol=1e-11)
    assert sol.nfe == 4


def test_edict_as_published():
    """Equations 14 and 15 with a_t = √(ᾱ_s/ᾱ_t), b_t = √(1−ᾱ_s) − √(ᾱ_s(1−ᾱ_t)/ᾱ_t)."""
    model, p, times = DATA.model(PATH), 0.93, (0.9, 0.7, 0.4, 0.1, 0.0)
    x = y = states(4, 3)
    for t, s in pairwise(times):
        bar_t, bar_s = PATH.alpha(t) ** 2, PATH.alpha(s) ** 2
        a, b = math.sqrt(bar_s / bar_t), math.sqrt(1 - bar_s) - math.sqrt(bar_s * (1 - bar_t) / bar_t)
        x = a * x + b * model.eps(y, t)
        y = a * y + b * model.eps(x, t)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    sol = sf.solve(model, states(4, 3), "edict", grid=times)
    torch.testing.assert_close(sol.x, x, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(sol.memory[0][1], y, rtol=1e-11, atol=1e-11)
    assert sol.nfe == 8


@pytest.mark.parametrize(("case", "order"), [("bdia", 2), ("bdia γ=0.9", 1), ("edict", 1)])
def test_order(case, order):
    """The declared order is the observed one on a mixture, median error against DOP853."""
    model, x, (name, options) = DATA.model(PATHS["cosine"]), states(64, 3), EXACT[case]
    reference = sf.solve(model, x, "scipy", method="DOP853", rtol=1e-11, atol=1e-11, grid=[0.9, 0.05]).x
    steps = [40, 80, 160, 320]
    errors = [apart(sf.solve(model, x, name, steps=n, start=0.9, stop=0.05, **options).x, reference) for n in steps]
    assert sf.get_sampler(name, **options).order == order
    assert order - 0.25 < slope(steps, errors) < order + 0.25, errors


def test_edict_begins_at_the_data():
    """The network is asked at the upper ends of steps only, so t = 0 may be the start; the others say why not."""
    model, x_0 = DATA.model(PATH), states(4, 3)
    up = sf.invert(model, x_0, "edict", steps=10, stop=0.0)
    assert up.times[0] == 0
    torch.testing.assert_close(up.decode(model).x, x_0, rtol=1e-10, atol=1e-10)
    for sampler in ("bdia-ddim", "ddim"):
        with pytest.raises(ValueError, match=r"cannot leave t=0\.0 upwards, where sigma=0"):
            sf.invert(model, x_0, sampler, steps=10, stop=0.0)


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_a_latent_where_alpha_is_zero(name):
    """BDIA goes up to α = 0 and comes back, even with an ε-network, which is not asked there; EDICT divides by α."""
    model, x_0 = sf.ScoreModel(Toy(torch.float64), PATHS[name]), states(4, 3)
    up = sf.invert(model, x_0, steps=10)
    assert up.times[-1] == 1
    torch.testing.assert_close(up.decode(model).x, x_0, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="edict divides by alpha"):
        sf.invert(model, x_0, "edict", steps=10)


# -- DDIM and other rows -------------------------------------------------------------------------------------------------


@EVERY
def test_ddim_inversion_as_published(path):
    """`x_t = α_t (x_s − σ_s ε̂)/α_s + σ_t ε̂` with ε̂ at (x_s, s), step by step."""
    model, x, times = DATA.model(path), states(4, 3), (0.9, 0.6, 0.3, 0.05)
    up = sf.invert(model, x, "ddim", grid=times)
    for t, s in zip(times[-2::-1], times[:0:-1], strict=True):
        eps = model.eps(x, s)
        x = path.alpha(t) * (x - path.sigma(s) * eps) / path.alpha(s) + path.sigma(t) * eps
    torch.testing.assert_close(up.x, x, rtol=1e-11, atol=1e-11)
    assert up.nfe == 3 and up.times == times[::-1]


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_31_ddim_comes_back_to_an_order(iterations):
    """31. One step and back misses by O(h²), a run by O(h); each fixed-point iteration gains an order."""
    path, x_0 = PATHS["flow"], 0.7 * states(64, 3)
    model, sizes = DATA.model(path), [0.02, 0.01, 0.005]
    local = []
    for h in sizes:
        up = sf.invert(model, x_0, "ddim", grid=[0.5 + h, 0.5], iterations=iterations)
        assert up.nfe == 1 + iterations
        local.append(apart(up.decode(model).x, x_0))
    assert 2 + iterations - 0.1 < -slope(sizes, local) < 2 + iterations + 0.1, local
    steps, errors = [40, 80, 160, 320], []
    for n in steps:
        up = sf.invert(model, x_0, "ddim", steps=n, start=0.9, stop=0.2, iterations=iterations)
        assert up.nfe == n * (1 + iterations) and len(up.times) == n + 1
        errors.append(apart(up.decode(model).x, x_0))
    assert 1 + iterations - 0.25 < slope(steps, errors) < 1 + iterations + 0.25, errors


def test_enough_iterations_solve_the_step():
    """The fixed point is the state from which DDIM steps to x_s."""
    model, x_0 = DATA.model(PATH), states(8, 3)
    up = sf.invert(model, x_0, "ddim", grid=[0.52, 0.5], iterations=40)
    torch.testing.assert_close(up.decode(model).x, x_0, rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def upwards():
    """Data and the latent that the ODE leads them to: the latent's own way down, by DOP853, ends on the data."""
    model, x_0 = DATA.model(PATHS["cosine"]), 0.7 * states(64, 3)
    top = sf.invert(model, x_0, "dpm-solver-3", steps=640, start=0.9, stop=0.1).x
    down = sf.solve(model, top, "scipy", method="DOP853", rtol=1e-11, atol=1e-11, grid=[0.9, 0.1]).x
    assert apart(down, x_0) < 1e-6
    return model, x_0, top


@pytest.mark.parametrize("case", [case for case in LINEAR if not linear(case).stochastic])
def test_rows_walk_up(case, upwards):
    """Every deterministic sampler made of rows goes up to the ODE's latent, at order 1 or better."""
    model, x_0, top = upwards
    errors = [apart(sf.invert(model, x_0, linear(case), steps=n, start=0.9, stop=0.1).x, top) for n in (20, 40)]
    assert errors[1] < errors[0] / 1.7 or errors[1] < 1e-6, errors


def test_a_budget():
    """`nfe=` counts what the way up asks."""
    model, x_0 = DATA.model(PATH), states(2, 3)
    for sampler, options, steps in (("ddim", {}, 12), ("ddim", {"iterations": 2}, 4), ("edict", {}, 6), ("bdia-ddim", {}, 12)):
        up = sf.invert(model, x_0, sampler, nfe=13 if sampler == "edict" else 12, **options)
        assert (len(up.times) - 1, up.nfe) == (steps, 12)


def test_a_chain_and_its_labels():
    """On a chain the times are its nodes, from the first: a network with a table of embeddings can be inverted."""
    told = []

    def net(x, t):
        told.append(t)
        return x.tanh()

    model = sf.ScoreModel(net, PATHS["chain"], time="label")
    x_0 = states(2, 1, 8, 8)
    up = sf.invert(model, x_0, steps=20)
    assert up.times[0] == 1 / 1000 and told[0].tolist() == [0, 0] and told[0].dtype == torch.int64
    torch.testing.assert_close(up.decode(model).x, x_0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", ["bdia-ddim", "edict", "ddim"])
def test_conditions_dtypes_and_shapes(sampler):
    """Conditions reach the network, other ones give another result; the result has the shape and dtype of the data."""
    model = sf.ScoreModel(Rough(), PATH)
    for shape, dtype in (((3,), torch.float64), ((2, 1, 4, 4), torch.float32), ((2, 5), torch.bfloat16)):
        x_0 = states(*shape).to(dtype)
        up = sf.invert(model, x_0, sampler, steps=3, start=0.3, y=0.2)
        assert up.x.shape == x_0.shape and up.x.dtype == dtype
        assert not torch.equal(up.x, sf.invert(model, x_0, sampler, steps=3, start=0.3).x)
        assert not torch.equal(up.decode(model, y=0.2).x, up.decode(model, y=0.5).x)
    path = up.decode(model, y=0.2, trajectory=True)
    assert path.states.shape == (4, 2, 5) and torch.equal(path.states[-1], path.x) and path.nfe == path.nfe_per_sample[0]
    assert "Inversion(" in repr(up) and "Solution(" in repr(path)


def test_gradients_go_through():
    """A latent's derivative by the data is the one by finite differences."""
    model, x_0 = DATA.model(PATH), states(1, 3)
    for sampler in ("bdia-ddim", "edict", "ddim"):
        x = x_0.clone().requires_grad_()
        sf.invert(model, x, sampler, steps=4, start=0.5, grad=True).x.sum().backward()
        step = 1e-6 * torch.eye(3, dtype=torch.float64)
        up, down = (sf.invert(model, x_0 + sign * step, sampler, steps=4, start=0.5).x.sum(1) for sign in (1, -1))
        torch.testing.assert_close(x.grad[0], (up - down) / 2e-6, rtol=1e-6, atol=1e-6)
        assert not sf.invert(model, x, sampler, steps=2).x.requires_grad


# -- errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(sampler="ddpm"), "ddpm.*draws noise"),
        (dict(sampler="ddim", eta=0.5), "draws noise"),
        (dict(sampler="scipy"), "not made of rows"),
        (dict(sampler="ddim", analytic=1.0), "analytic=1.0 replaces"),
        (dict(iterations=2), "iterations=2 corrects the inversion of ddim"),
        (dict(sampler="ddim", iterations=-1), "iterations must be a whole number ≥ 0"),
        (dict(gamma=0.0), "gamma must be .*> 0 and ≤ 1, got 0.0"),
        (dict(sampler="edict", p=1.5), "p must be .*≤ 1, got 1.5"),
        (dict(stop=0.9, start=0.5), "start"),
        (dict(z=1), "'z' is neither an argument"),
    ],
)
def test_errors(keywords, message):
    model = sf.ScoreModel(Rough(), PATH)
    with pytest.raises((ValueError, TypeError), match=message):
        sf.invert(model, states(2, 3), **keywords)


def test_a_rule_of_ones_own_begins_where_a_named_grid_does():
    model, x_0 = DATA.model(PATH), states(2, 3)
    rule = functools.partial(GRIDS["karras"], rho=7.0)
    mine, named = (sf.invert(model, x_0, "ddim", steps=4, grid=grid) for grid in (rule, "karras"))
    assert mine.times == pytest.approx(named.times)
    torch.testing.assert_close(mine.x, named.x)


def test_a_latent_stands_on_its_path():
    up = sf.invert(DATA.model(PATH), states(2, 3), "ddim", steps=2)
    with pytest.raises(ValueError, match=r"the latent stands on VPSDE.*, the model on VESDE"):
        up.decode(DATA.model(PATHS["ve"]))


def test_errors_of_what_is_inverted():
    with pytest.raises(TypeError, match="x_0 must be a floating-point tensor"):
        sf.invert(DATA.model(PATH), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="model must be a ScoreModel"):
        sf.invert(Rough(), states(2, 3))
    with pytest.raises(TypeError, match="model must be a ScoreModel"):
        sf.invert(DATA.model(PATH), states(2, 3), steps=2).decode(Rough())
