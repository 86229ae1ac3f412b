"""Grids: the times of every rule, on every path; the DDPM chain's own nodes; budgets and defaults."""

import math
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from problems import PATHS, mixture, states
from runs import schedule
from scipy.stats import beta
from scipy.stats import laplace as laplace_law

import scoreflow as sf
from scoreflow._core.grid import AYS, GRIDS, check_times, on_chain

ON_CHAIN = ("trailing", "leading", "linspace")
TO_T_MIN = ("logsnr", "karras", "polyexponential", "laplace", "normal")
"""They end at t_min, and then at 0; the variable of all but the last is infinite where α = 0 and where σ = 0."""

BETA, BETA57, LAPLACE = beta(0.6, 0.6), beta(0.5, 0.7), laplace_law(0.0, 0.5)
VARIABLES = {
    "uniform": lambda path, t: t,
    "quadratic": lambda path, t: math.sqrt(t),
    "cosine": lambda path, t: math.atan(path.kappa(t)),
    "logsnr": lambda path, t: path.lam(t),
    "karras": lambda path, t: path.kappa(t) ** (1 / 7),
    "polyexponential": lambda path, t: path.lam(t),
    "rectified": lambda path, t: path.sigma(t) / (path.alpha(t) + path.sigma(t)),
    "beta": lambda path, t: BETA.cdf(t),
    "beta57": lambda path, t: BETA57.cdf(t),
    "laplace": lambda path, t: LAPLACE.cdf(-path.lam(t)),
    "normal": lambda path, t: t,
    "flow-shift": lambda path, t: path.sigma(t) / (3 * path.alpha(t) + path.sigma(t)),
}
"""What each rule steps through evenly."""

CASES = [(name, path) for name in VARIABLES for path in PATHS]
on_every_path = pytest.mark.parametrize(("name", "path"), CASES)


def test_every_grid_is_tested():
    elsewhere = {"simple", "ddim-uniform", "sgm-uniform", "linear-quadratic"}  # test_tool_grid.py
    assert {*VARIABLES, *ON_CHAIN, *elsewhere, "ays", "ode"} == set(GRIDS)


def chain_of(T):
    return sf.VPSDE.from_betas(sf.DDPMChain.linear(T).beta)


def nodes(path, times):
    """The chain's nodes at these times, which must be i/T to the bit."""
    whole = [round(t * path.T) for t in times]
    assert times == tuple(i / path.T for i in whole)
    return whole


@st.composite
def ends(draw, top=1.0):
    """start and stop, 0 among the stops and `top` among the starts."""
    start = draw(st.one_of(st.just(top), st.floats(0.05, top)))
    return start, start * draw(st.one_of(st.just(0.0), st.floats(0.01, 0.95)))


def is_even(values, tolerance=1e-8):
    """Whether values go from the first to the last in equal steps."""
    even = np.linspace(values[0], values[-1], len(values))
    return np.abs(even - values).max() <= tolerance * abs(values[0] - values[-1])


# -- rules in a variable ------------------------------------------------------------------------------------------------


@on_every_path
@given(data=st.data(), steps=st.integers(1, 60))
def test_times_of_a_rule(name, path, data, steps):
    path = PATHS[path]
    start, stop = data.draw(ends(0.999 if name in TO_T_MIN and path.alpha(1.0) == 0 else 1.0))
    times = sf.grid(path, steps, name, start=start, stop=stop)
    assert isinstance(times, tuple)
    assert all(type(t) is float for t in times)
    assert len(times) == steps + 1
    assert (times[0], times[-1]) == (start, stop)
    assert all(s < t for t, s in pairwise(times))

    even = times
    if name in TO_T_MIN and stop == 0:
        even = times[:-1]
        assert steps == 1 or even[-1] == pytest.approx(1e-3, rel=1e-9)
    values = [VARIABLES[name](path, t) for t in even]
    assert is_even(values)


@pytest.mark.parametrize("name", TO_T_MIN)
@pytest.mark.parametrize("path", ["vp", "chain", "sub-vp", "ve"])
@given(steps=st.integers(2, 60), t_min=st.floats(1e-4, 0.5))
def test_t_min(name, path, steps, t_min):
    path = PATHS[path]
    times = sf.grid(path, steps, name, t_min=t_min)
    assert len(times) == steps + 1
    assert times[0] == 1.0
    assert times[-2] == pytest.approx(t_min, rel=1e-9)
    assert times[-1] == 0.0
    assert is_even([VARIABLES[name](path, t) for t in times[:-1]])


@pytest.mark.parametrize("path", PATHS)
@given(steps=st.integers(1, 300), exact=st.booleans())
def test_the_ode_grid_stops_where_networks_do(path, steps, exact):
    """Even in κ^p/(c^p + κ^p) with a free last node; where that falls below the times of training, with that node there."""
    path, low = PATHS[path], 1e-3
    times = sf.grid(path, steps, "ode", exact=exact)
    free = sf.grid(path, steps, "rectified", power=0.6, shift=2.0)
    if exact or free[-2] >= low:
        assert times == free
    else:
        assert times[-2] == pytest.approx(low, rel=1e-9)
        assert times == sf.grid(path, steps, "rectified", power=0.6, shift=2.0, t_min=low)


@pytest.mark.parametrize("name", ["dpm-solver++-2m", "unipc", "deis", "pf-ode-heun", "dpm-solver-3"])
@pytest.mark.parametrize("path", PATHS)
def test_ode_samplers_of_order_2_have_a_grid_of_their_own(name, path):
    """With and without a chain; what is stochastic or of order 1 keeps the chain's nodes, or uniform t."""
    path = PATHS[path]
    assert schedule(sf.get_sampler(name), path, 10) == sf.grid(path, 10, "ode")
    for other in ("ddpm", "ddim", "euler-ancestral", "sde-dpm-solver++-2m", "dpm-solver-1"):
        assert schedule(sf.get_sampler(other), path, 10) == sf.grid(path, 10)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 400, 1000])
@pytest.mark.parametrize("name", ["ode", "uniform", "quadratic", "rectified"])
def test_times_on_the_chain(name, steps):
    """Each time is a node, no two are one, and where the grid is coarse each is the nearest."""
    path = PATHS["chain"]
    times = sf.grid(path, steps, name)
    moved = on_chain(times, 1000)
    assert nodes(path, moved) and all(s < t for t, s in pairwise(moved)) and (moved[0], moved[-1]) == (1.0, 0.0)
    if min(t - s for t, s in pairwise(times)) > 2e-3:
        assert np.abs(np.subtract(moved, times)).max() <= 0.5e-3 + 1e-12
    with pytest.raises(ValueError, match="more than the chain"):
        on_chain(sf.grid(path, 1001, "uniform"), 1000)


@pytest.mark.parametrize("rho", [0.5, 1.0, 3.0, 7.0, 20.0])
@pytest.mark.parametrize("path", ["vp", "ve"])
def test_rho_of_karras(path, rho):
    path = PATHS[path]
    times = sf.grid(path, 12, "karras", rho=rho, stop=0.01)
    assert is_even([path.kappa(t) ** (1 / rho) for t in times])


@pytest.mark.parametrize("rho", [0.5, 2.0])
@pytest.mark.parametrize("path", ["vp", "ve"])
def test_rho_of_polyexponential(path, rho):
    """k-diffusion: log σ = ramp^ρ (log σ_max − log σ_min) + log σ_min, the ramp even from 1 to 0."""
    path = PATHS[path]
    times = sf.grid(path, 12, "polyexponential", rho=rho, stop=0.01)
    low, high = math.log(path.kappa(0.01)), math.log(path.kappa(1.0))
    want = [(1 - i / 12) ** rho * (high - low) + low for i in range(13)]
    assert [math.log(path.kappa(t)) for t in times] == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_karras_at_rho_1_and_infinity():
    """ρ = 1 is even in κ, and ρ → ∞ in log κ, which is logsnr."""
    path = PATHS["vp"]
    assert is_even([path.kappa(t) for t in sf.grid(path, 9, "karras", rho=1.0, stop=0.1)])
    far, logsnr = (sf.grid(path, 9, name, stop=0.1, **o) for name, o in (("karras", {"rho": 1e6}), ("logsnr", {})))
    np.testing.assert_allclose(far, logsnr, rtol=1e-5)


@pytest.mark.parametrize("nodes", AYS)
def test_ays_nodes(nodes):
    """As many steps as nodes give them back, but for the ends; half and twice as many are log-linear between."""
    path, kappas = PATHS["vp"], AYS[nodes]
    kappas = [k for k in kappas if k < path.kappa(1.0)]
    n = len(kappas) - 1
    times = sf.grid(path, n, "ays", nodes=nodes if n == len(AYS[nodes]) - 1 else kappas)
    assert [path.kappa(t) for t in times[1:-1]] == pytest.approx(kappas[1:-1], rel=1e-9)
    twice = sf.grid(path, 2 * n, "ays", nodes=kappas)
    assert [path.kappa(t) for t in twice[1:-1:2]] == pytest.approx([math.sqrt(a * b) for a, b in pairwise(kappas)], rel=1e-9)
    assert sf.grid(path, 1, "ays", nodes=kappas) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("sd3", "nodes must be one of sd1, sdxl, svd, got 'sd3'"),
        ([1.0], "nodes must be at least two decreasing values"),
        ([1.0, 2.0], "nodes must be at least two decreasing values"),
        ([1.0, 0.0], "nodes must be .*> 0"),
        ([9e9, 8e9, 1.0], "must lie below kappa=.*got 8e"),
    ],
)
def test_ays_refuses(nodes, message):
    with pytest.raises(ValueError, match=message):
        sf.grid(PATHS["vp"], 2, "ays", nodes=nodes)


def test_cosine_grid_on_its_own_path():
    """On ᾱ = cos²(t π/2) the angle is t π/2, and equal angles are equal times."""
    path = sf.VPSDE.cosine(s=0.0)
    np.testing.assert_allclose(sf.grid(path, 10, "cosine"), sf.grid(path, 10, "uniform"), rtol=0, atol=1e-12)


@on_every_path
def test_options_do_not_leak(name, path):
    """Two calls with the same arguments give the same times, whatever was asked in between."""
    path = PATHS[path]
    first = sf.grid(path, 8, name, start=0.9)
    sf.grid(path, 9, name, start=0.7, stop=0.1, **({"t_min": 0.01} if name in TO_T_MIN else {}))
    assert sf.grid(path, 8, name, start=0.9) == first


# -- on a chain ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 7, 20, 1000])
@pytest.mark.parametrize("name", [None, "trailing", "leading", "linspace"])
def test_as_many_steps_as_the_chain_is_the_chain(T, name):
    assert sf.grid(chain_of(T), T, name) == tuple(i / T for i in range(T, -1, -1))


def test_default_name():
    for path in PATHS.values():
        assert sf.grid(path, 30) == sf.grid(path, 30, "uniform" if path.T is None else "trailing")


@pytest.mark.parametrize("k", [k for k in range(1, 1001) if 1000 % k == 0])
def test_a_divisor_gives_its_stride(k):
    assert nodes(PATHS["chain"], sf.grid(PATHS["chain"], k)) == list(range(1000, -1, -1000 // k))


@pytest.mark.parametrize("name", ON_CHAIN)
def test_every_size_has_distinct_nodes(name):
    """Published code repeats an index, or gives n + 1 steps, for some sizes."""
    path = PATHS["chain"]
    for k in range(1, 1001):
        labels = [i - 1 for i in nodes(path, sf.grid(path, k, name))]
        assert len(set(labels)) == k + 1
        assert labels == sorted(labels, reverse=True)
        assert labels[-1] == -1  # the data
        if name == "trailing":
            assert labels[0] == 999
            assert labels[:-1] == (np.round(np.arange(1000, 0, -1000 / k))[:k] - 1).tolist()
        elif name == "leading":
            assert labels[:-1] == [j * (1000 // k) for j in range(k)][::-1]
        elif k > 1:
            assert labels[:-1] == np.linspace(0, 999, k).round()[::-1].tolist()


def test_spacings_of_the_papers():
    """Ten labels of a chain of 1000, as in published tables."""
    labels = {name: [i - 1 for i in nodes(PATHS["chain"], sf.grid(PATHS["chain"], 10, name))] for name in ON_CHAIN}
    assert labels["trailing"] == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]
    assert labels["leading"] == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, -1]
    assert labels["linspace"] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1]


@given(data=st.data())
def test_trailing_from_and_to_nodes(data):
    path = PATHS["chain"]
    bottom = data.draw(st.integers(0, 998))
    top = data.draw(st.integers(bottom + 1, 1000))
    steps = data.draw(st.integers(1, min(60, top - bottom)))
    times = sf.grid(path, steps, "trailing", start=top / 1000, stop=bottom / 1000)
    found = nodes(path, times)
    assert (times[0], times[-1], len(times)) == (top / 1000, bottom / 1000, steps + 1)
    assert all(s < t for t, s in pairwise(found))
    assert all(abs(i - (top + (bottom - top) * j / steps)) <= 0.5 for j, i in enumerate(found))


@pytest.mark.parametrize("name", ["leading", "linspace"])
@given(data=st.data())
def test_leading_and_linspace_from_a_node(name, data):
    top = data.draw(st.integers(1, 1000))
    steps = data.draw(st.integers(1, min(60, top)))
    labels = [i - 1 for i in nodes(PATHS["chain"], sf.grid(PATHS["chain"], steps, name, start=top / 1000))]
    assert len(labels) == steps + 1
    assert labels[-1] == -1
    assert all(s < t for t, s in pairwise(labels))
    if name == "leading":
        assert labels[:-1] == [j * (top // steps) for j in range(steps)][::-1]
    else:
        assert labels[0] == top - 1
        assert steps == 1 or labels[-2] == 0


# -- explicit times -----------------------------------------------------------------------------------------------------

GIVEN = (0.9, 0.35, 0.1)


@pytest.mark.parametrize(
    "times", [GIVEN, list(GIVEN), torch.tensor(GIVEN, dtype=torch.float64), np.array(GIVEN)], ids=lambda t: type(t).__name__
)
def test_explicit_times(times):
    assert check_times(times) == GIVEN
    ddim, path = sf.get_sampler("ddim"), PATHS["ve"]
    assert schedule(ddim, path, grid=times) == GIVEN
    assert schedule(ddim, path, grid=times, denoise=True) == (*GIVEN, 0.0)
    assert sf.plan("ddim", path, grid=times).times == GIVEN

    model, seeds = mixture().model(path), [1, 2]
    solution = sf.solve(model, states(2, 3), "ddim", grid=times)
    assert solution.times == GIVEN
    expected = sf.sample(model, (2, 3), "ddim", grid=list(GIVEN), seed=seeds, dtype=torch.float64)
    assert torch.equal(sf.sample(model, (2, 3), "ddim", grid=times, seed=seeds, dtype=torch.float64), expected)


def test_the_prior_stands_at_the_first_time():
    """On a VE path the standard deviation of the prior is √(1 + σ²) at the first of the times, however they are given."""
    path, kept = PATHS["ve"], []
    model = mixture().model(path)
    for keywords in (dict(start=0.6, steps=2), dict(grid=[0.6, 0.2]), dict(grid=torch.tensor([0.6, 0.2], dtype=torch.float64))):
        first = []
        sf.sample(
            model, (2000, 3), "ddim", seed=0, dtype=torch.float64, callback=lambda s, to=first: to.append(s.x), **keywords
        )
        kept.append(first[0])
        assert first[0].std().item() == pytest.approx(math.sqrt(1 + path.sigma(0.6) ** 2), rel=0.05)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])


def test_denoise():
    ddim, path = sf.get_sampler("ddim"), PATHS["vp"]
    assert schedule(ddim, path, 3, stop=0.1, denoise=True) == (*sf.grid(path, 3, stop=0.1), 0.0)
    assert schedule(ddim, path, 3, denoise=True) == sf.grid(path, 3)
    assert schedule(ddim, path, grid=[1.0, 0.5, 0.0], denoise=True) == (1.0, 0.5, 0.0)
    assert schedule(ddim, path, 3, grid="karras", stop=0.1, denoise=True) == (*sf.grid(path, 3, "karras", stop=0.1), 0.0)


@pytest.mark.parametrize("name", VARIABLES)
def test_names_and_ends_reach_the_run(name):
    solution = sf.solve(mixture().model(PATHS["vp"]), states(2, 3), grid=name, steps=4, start=0.8, stop=0.05)
    assert solution.times == sf.grid(PATHS["vp"], 4, name, start=0.8, stop=0.05)


def test_ays_nodes_are_the_published_ones():
    """As near as diffusers prints those of images, which it ends at 0."""
    schedules = pytest.importorskip("diffusers.schedulers").AysSchedules
    for name, theirs in (("sd1", "StableDiffusion"), ("sdxl", "StableDiffusionXL"), ("svd", "StableDiffusionVideo")):
        published = [sigma for sigma in schedules[f"{theirs}Sigmas"] if sigma > 0]
        assert AYS[name][: len(published)] == pytest.approx(published, rel=1.5e-2)


# -- ends in σ ----------------------------------------------------------------------------------------------------------


def test_edms_own_grid():
    """Equation 5 of the paper, at 18 steps from 80 to 0.002, and 0."""
    path = sf.VESDE(0.002, math.hypot(80.0, 0.002))
    levels = [(80 ** (1 / 7) + k / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for k in range(18)]
    times = sf.grid(path, 18, "karras", sigma_min=0.002, sigma_max=80.0)
    assert [path.kappa(t) for t in times] == pytest.approx([*levels, 0.0], rel=1e-9)


@pytest.mark.parametrize("path", ["vp", "chain", "ve", "flow"])
def test_times_of_levels(path):
    """κ at the times is the levels; 0 is t = 0, and the level of t = 1 is 1."""
    path = PATHS[path]
    most = path.kappa(1.0)
    levels = [min(most, 20.0), 3.0, 0.1, 0.0]
    times = sf.sigmas(path, torch.tensor(levels, dtype=torch.float64))
    assert [path.kappa(t) for t in times] == pytest.approx(levels, rel=1e-9) and times[-1] == 0
    if math.isfinite(most):
        assert sf.sigmas(path, [most]) == (1.0,)
        with pytest.raises(ValueError, match="sigma 0 must be at most that of t = 1"):
            sf.sigmas(path, [2 * most])
    with pytest.raises(ValueError, match="sigma 1 must be"):
        sf.sigmas(path, [1.0, -1.0])


def test_ends_are_given_once():
    for more, match in (({"start": 0.5, "sigma_max": 1.0}, "start=0.5 and sigma_max=1.0 exclude"),
                        ({"t_min": 0.1, "sigma_min": 1.0}, "t_min=0.1 and sigma_min=1.0 exclude")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            sf.grid(PATHS["vp"], 5, "karras", **more)
    with pytest.raises(ValueError, match="grid 'uniform' has no option 't_min'"):
        sf.grid(PATHS["vp"], 5, "uniform", sigma_min=0.1)


def test_leading_with_an_offset():
    path = PATHS["chain"]
    assert sf.grid(path, 5, "leading", steps_offset=1, stop=1e-3) == pytest.approx([0.802, 0.602, 0.402, 0.202, 0.002, 0.001])
    for options, match in [
        ({"steps_offset": 300}, "does not fit the chain"),
        ({"stop": 1e-3}, "does not fit the chain"),
        ({"stop": 0.5}, "ends at stop=0 or at the first node"),
        ({"steps_offset": -1}, "steps_offset must be"),
    ]:
        with pytest.raises(ValueError, match=match):
            sf.grid(path, 5, "leading", **options)
