"""Theorems that metrics obey, what data against data give, and what a value may depend on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from metric_inputs import figures, same, two, value
from problems import states

import scoreflow as sf
from scoreflow.studies.metrics import METRICS, MetricInput
from scoreflow.studies.named import ring
from scoreflow.studies.simulated import Simulated

ON_DATA = [name for name, m in METRICS.items() if "data" in m.needs and name != "c2st"]
"""Functions of two sets; c2st trains on them, and has its tests with the other metrics of posteriors."""
seeds = st.integers(0, 1000)
sizes = st.tuples(st.integers(7, 12), st.integers(7, 12), st.integers(1, 5))


def close(a, b):
    assert a == pytest.approx(b, rel=1e-6, abs=1e-9)


def test_which_metrics_look_at_data():
    assert ON_DATA == ["w2", "sliced-w2", "energy", "mmd", "kid", "frechet", "manifold"]


@given(seeds, sizes)
def test_equal_sets_are_at_distance_zero(seed, size):
    """Whatever their order."""
    x = states(size[0], size[2], seed=seed)
    y = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]
    assert value("w2", x, y, seed=seed) == 0
    assert value("sliced-w2", x, y, seed=seed) == pytest.approx(0, abs=1e-15)
    assert 0 <= value("frechet", x, y) < 1e-12
    assert figures("manifold", x, y) == dict.fromkeys(("precision", "recall", "density", "coverage"), 1.0)
    for name in ("trajectory", "strong"):
        assert set(figures(name, x, reference=x, finest=x).values()) == {0.0}


@given(seeds, sizes)
def test_symmetric(seed, size):
    """But mmd, whose width is the data's; in manifold precision and recall change places."""
    x, y = two(*size, seed=seed)
    for name in ("w2", "sliced-w2", "energy", "kid", "frechet"):
        close(value(name, x, y), value(name, y, x))
    found, swapped = figures("manifold", x, y), figures("manifold", y, x)
    assert (found["precision"], found["recall"]) == (swapped["recall"], swapped["precision"])


@given(seeds, sizes)
def test_order_does_not_matter(seed, size):
    x, y = two(*size, seed=seed)
    g = torch.Generator().manual_seed(seed)
    for name in ON_DATA:
        shuffled = (a[torch.randperm(len(a), generator=g)] for a in (x, y))
        close(figures(name, x, y), figures(name, *shuffled))


@given(seeds, sizes, st.floats(-3, 3), st.floats(0.2, 5))
def test_moved_turned_and_scaled_together(seed, size, shift, c):
    x, y = two(*size, seed=seed)
    turn = torch.linalg.qr(states(size[2], size[2], seed=seed)).Q
    for name, moves, turns, power in [
        ("w2", True, True, 1), ("sliced-w2", True, False, 1), ("energy", True, True, 1), ("mmd", True, True, 0),
        ("kid", False, True, None), ("frechet", True, True, 2), ("manifold", True, True, 0),
    ]:  # fmt: skip
        was = figures(name, x, y)
        if moves:
            close(figures(name, x + shift, y + shift), was)
        if turns:
            close(figures(name, x @ turn, y @ turn), was)
        if power is not None:
            close(figures(name, c * x, c * y), {part: v * c**power for part, v in was.items()})


@given(seeds, sizes)
def test_sliced_is_at_most_w2(seed, size):
    """`mean_θ (θ·v)² = |v|²/d` over whole bases, so an optimal plan's projections cost what it costs; equal for a shift."""
    x, y = two(*size, seed=seed)
    assert value("sliced-w2", x, y, seed=seed) <= value("w2", x, y) * (1 + 1e-12)
    delta = states(1, size[2], seed=seed + 1)
    for name in ("w2", "sliced-w2"):
        close(value(name, x, x + delta, seed=seed), float(delta.square().mean().sqrt()))


def test_one_dimension_needs_one_direction():
    x, y = two(30, 50, 1)
    close(value("sliced-w2", x, y), value("w2", x, y))


# -- floors -------------------------------------------------------------------------------------------------------------


def blocks(name, n, m, d=2, count=300, shift=0.0):
    """A figure of one law's samples against others of it, block by block."""
    return np.array([value(name, states(n, d, seed=2 * s) + shift, states(m, d, seed=2 * s + 1), seed=s) for s in range(count)])


@pytest.mark.parametrize(
    ("name", "n", "m"), [("energy", 4, 6), ("energy", 12, 5), ("kid", 4, 6), ("kid", 12, 5), ("mmd", 4, 20), ("mmd", 12, 30)]
)
def test_unbiased_ones_are_zero_on_average(name, n, m):
    """Of 2000 blocks; beyond 4.5 standard errors by chance in 1 of 100 000 (the biased forms are 20 away)."""
    found = blocks(name, n, m, count=2000)
    assert abs(found.mean()) < 4.5 * found.std() / math.sqrt(len(found))
    assert (found < 0).mean() > 0.3


def test_unbiased_away_from_zero():
    """Normals 1 apart: `2 E|N(1, 2)| − 4/√π`, and `E(xy/d + 1)³` by moments. Beyond 4.5 standard errors in 1 of 100 000."""
    folded = 2 * math.exp(-0.25) / math.sqrt(math.pi) + math.erf(0.5)
    cases = {"energy": 2 * folded - 4 / math.sqrt(math.pi)}

    def cubed(p, q):  # moments 1, 2, 3 of N(p, 1) and N(q, 1)
        (p1, p2, p3), (q1, q2, q3) = ((u, u**2 + 1, u**3 + 3 * u) for u in (p, q))
        return p3 * q3 + 3 * p2 * q2 + 3 * p1 * q1 + 1

    cases["kid"] = cubed(1, 1) + cubed(0, 0) - 2 * cubed(1, 0)
    for name, expected in cases.items():
        found = blocks(name, 5, 7, d=1, count=3000, shift=1.0)
        assert abs(found.mean() - expected) < 4.5 * found.std() / math.sqrt(len(found)), name


@pytest.mark.parametrize(("name", "rate"), [("frechet", 1.0), ("w2", 0.4), ("sliced-w2", 0.5)])
def test_floors_fall_with_n(name, rate):
    """From 25 to 100 of each by about 4^rate, of 60 blocks."""
    many, few = (blocks(name, n, n, count=60).mean() for n in (100, 25))
    assert 0 < many < few
    assert math.log(few / many, 4) == pytest.approx(rate, abs=0.12)


def test_floor_of_modes():
    """It falls as n^(−1/2); each share is the mode's weight on average (|z| < 4.5 for 8 modes: by chance in 1 of 18 000)."""
    mixture, means = ring(), []
    for n in (40, 640):
        means.append(np.mean([value("modes", mixture.sample(n, seed=s), oracle=mixture) for s in range(100)]))
    assert means[0] / means[1] == pytest.approx(4, rel=0.15)
    shares = np.array([list(figures("mode-weights", mixture.sample(640, seed=s), oracle=mixture).values()) for s in range(100)])
    spread = (mixture.weights * (1 - mixture.weights) / 64000).sqrt().numpy()
    assert (np.abs(shares.mean(0) - mixture.weights.numpy()) < 4.5 * spread).all()


def test_floor_of_manifold():
    """Naeem et al., 2020: density 1 and coverage `1 − Π_{i<5} (m−1−i)/(n+m−1−i)` on average, whatever the law.

    Over 200 blocks, beyond 4.5 standard errors by chance in 1 of 70 000.
    """
    n, m = 20, 40
    found = [figures("manifold", states(n, 3, seed=2 * s), states(m, 3, seed=2 * s + 1)) for s in range(200)]
    miss = math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(5))
    for part, expected in (("density", 1.0), ("coverage", 1 - miss)):
        values = np.array([one[part] for one in found])
        assert abs(values.mean() - expected) < 4.5 * values.std() / math.sqrt(len(values)), part
    assert 0.5 < np.mean([one["precision"] for one in found]) < 1


# -- what a value depends on --------------------------------------------------------------------------------------------


def all_figures():
    """Of every metric on one inputs."""
    mixture, gaussian, path = ring(), sf.Gaussian(torch.zeros(2)), sf.VPSDE()
    x, y = two(80, 300, 2)
    seen = sf.Observation(torch.eye(2), states(8, 2, seed=5), 0.5)
    simulated = Simulated(states(8, 2, seed=4), seen, 10, gaussian, 3)
    inputs = MetricInput(x, 3, x + 0.1, x - 0.1, y, same, mixture, path, sf.plan("ddim", path, 5), 2.0, 0.5, simulated)
    out = {}
    known, noisy = sf.Posterior(gaussian.model(path), seen.given(seen.y[0])), sf.plan("ddpm", path, 5)
    of = {"gaussian": inputs._replace(oracle=gaussian), "evidence": inputs._replace(posterior=known, plan=noisy)}
    for m in METRICS.values():
        out |= m(next((of[need] for need in m.needs if need in of), inputs))
    return out


def test_nothing_global_matters():
    """Neither torch's nor NumPy's generator is read or moved."""
    first = all_figures()
    torch.manual_seed(99)
    np.random.seed(99)
    assert all_figures() == first
    a, b = float(torch.rand(())), np.random.rand()
    torch.manual_seed(99)
    np.random.seed(99)
    assert (a, b) == (float(torch.rand(())), np.random.rand())


def test_threads_do_not_matter():
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    first = all_figures()
    try:
        torch.set_num_threads(2)
        with limits(2):
            second = all_figures()
    finally:
        torch.set_num_threads(1)
    assert second == pytest.approx(first, rel=1e-12)


def test_only_what_draws_depends_on_the_seed():
    x, y = two(20, 30, 3)
    changed = [name for name in ON_DATA if figures(name, x, y, seed=1) != figures(name, x, y, seed=2)]
    assert changed == ["sliced-w2"]


@pytest.mark.parametrize("name", ON_DATA)
def test_states_of_any_dtype_and_shape(name):
    x, y = two(20, 30, 4)
    bent = figures(name, x.float().reshape(20, 1, 2, 2).requires_grad_(), y.float().reshape(30, 1, 2, 2))
    assert bent == pytest.approx(figures(name, x, y), rel=1e-4, abs=1e-6)
