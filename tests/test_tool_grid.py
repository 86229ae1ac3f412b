"""Grids by the names of other tools, against the formulas that these publish."""

import math

import numpy as np
import pytest
from problems import PATHS
from scipy.stats import laplace

import scoreflow as sf

CHAIN, FLOW = PATHS["chain"], PATHS["flow"]


def labels(name, steps, **options):
    """The labels of a chain of 1000 nodes, −1 for t = 0."""
    return [pytest.approx(1000 * t - 1, abs=1e-9) for t in sf.grid(CHAIN, steps, name, **options)]


@pytest.mark.parametrize("steps", [1, 4, 7, 30, 1000])
def test_simple(steps):
    """ComfyUI's `sigmas[−(1 + int(x · len/steps))]`."""
    theirs = [1000 - (1 + int(x * (1000 / steps))) for x in range(steps)]
    assert labels("simple", steps) == [*theirs, -1]
    assert sf.grid(FLOW, steps, "simple") == sf.grid(FLOW, steps, "uniform")


def test_simple_cuts_off_where_trailing_rounds():
    assert sf.grid(CHAIN, 3, "simple") == (1.0, 0.667, 0.334, 0.0)
    assert sf.grid(CHAIN, 3, "trailing") == (1.0, 0.667, 0.333, 0.0)
    assert sf.grid(CHAIN, 3, "simple", start=0.5, stop=0.2) == (0.5, 0.4, 0.3, 0.2)


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_ddim_uniform(steps):
    """ComfyUI's: every ⌊1000/steps⌋-th entry from the second on."""
    theirs = [0, *range(1, 1000, 1000 // steps)][::-1]
    assert labels("ddim-uniform", steps) == [*theirs[:-1], -1]


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_normal_and_sgm_uniform(steps):
    """ComfyUI's labels: `linspace(999, 0, n)`, and `linspace(999, 0, n + 1)` without its last."""
    assert labels("normal", steps) == [*np.linspace(999, 0, steps), -1]
    assert labels("sgm_uniform", steps) == [*np.linspace(999, 0, steps + 1)[:-1], -1]
    assert sf.grid(CHAIN, 2, "sgm-uniform", start=0.5, stop=0.1) == (0.5, 0.3, 0.1)
    assert sf.grid(CHAIN, 2, "sgm-uniform", t_min=0.2) == pytest.approx((1.0, 0.6, 0.0))


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.02, "linear_steps": 1}])
def test_linear_quadratic(steps, options):
    """Mochi's: linear, then a parabola that meets it and its slope, in the coefficients of its code."""
    n, tau = options.get("linear_steps", steps // 2), options.get("threshold", 0.025)
    if steps == 1:
        assert sf.grid(FLOW, 1, "linear-quadratic") == (1.0, 0.0)
        return
    rest, off = steps - n, n - tau * steps
    square, slope = off / (n * rest**2), tau / n - 2 * off / rest**2
    way = [i * tau / n if i < n else square * i**2 + slope * i + square * n**2 for i in range(steps)]
    assert sf.grid(FLOW, steps, "linear-quadratic", **options) == pytest.approx([*(1 - w for w in way), 0.0], abs=1e-12)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"linear_steps": 5}, "linear_steps must be a whole number from 0 to 4, got 5"),
        ({"threshold": 0.9, "linear_steps": 1}, "threshold=0.9 in linear_steps=1 of steps=5 leaves too little"),
        ({"threshold": 1.5}, "threshold must be a finite number"),
    ],
)
def test_linear_quadratic_refuses(options, match):
    with pytest.raises(ValueError, match=match):
        sf.grid(FLOW, 5, "linear-quadratic", **options)


def test_laplace_is_the_published_one_between_wide_ends():
    """Diffusers' formula on the whole law, which ends at σ of 1e-7 and 1e7 as good as do not cut."""
    path = sf.VESDE(1e-7, 1e7)
    for mu, b in ((0.0, 0.5), (-0.7, 1.0)):
        times = sf.grid(path, 12, "laplace", sigma_min=1e-7, mu=mu, b=b)
        theirs = laplace(mu, b).ppf(np.linspace(1, 0, 12))[1:-1]
        assert [math.log(path.kappa(t)) for t in times[1:-2]] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("seq_len", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63)])
def test_flow_shift(seq_len, mu):
    """`e^μ/(e^μ + 1/u − 1)`, as Flux has it, and `3u/(1 + 2u)`, as SD3."""
    u = np.linspace(1, 0, 9)[:-1]
    theirs = math.exp(mu) / (math.exp(mu) + (1 / u - 1))
    assert sf.grid(FLOW, 8, "flow_shift", seq_len=seq_len) == pytest.approx([*theirs, 0.0])
    assert sf.grid(FLOW, 8, "flow-shift") == pytest.approx([*(3 * u / (1 + 2 * u)), 0.0])
    with pytest.raises(ValueError, match=r"shift=2\.0 and seq_len=256 exclude each other"):
        sf.grid(FLOW, 8, "flow-shift", seq_len=256, shift=2.0)


@pytest.mark.parametrize("typed", ["sgm_uniform", "SGM Uniform", "Linear Quadratic", "DDIM_uniform", "Karras", "kl_optimal"])
def test_spellings(typed):
    """As samplers: case, spaces, `_` and `-` do not matter; the run takes them too."""
    assert sf.plan("ddim", CHAIN, 5, grid=typed).times == sf.grid(CHAIN, 5, typed.lower().replace(" ", "-").replace("_", "-"))
