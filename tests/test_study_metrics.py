"""Every metric against an independent implementation or a closed form; what is refused; the registry and its page."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_inputs import figures, same, two, value
from problems import states
from scipy import optimize, stats

import scoreflow as sf
from scoreflow.studies import metrics as measures
from scoreflow.studies.metrics import METRICS, MetricInput, get_metric, metric, table
from scoreflow.studies.named import ring

SIZES = [(5, 5, (1,)), (7, 4, (2,)), (6, 9, (1, 2, 3)), (30, 50, (4,))]
every_size = pytest.mark.parametrize(("n", "m", "shape"), SIZES, ids=str)


# -- against independent implementations --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "shape"), [(1, (3,)), (5, (1,)), (17, (3,)), (40, (1, 2, 3))])
def test_w2_is_the_best_assignment(n, shape):
    x, y = two(n, n, *shape)
    cost = ((x[:, None] - y[None]) ** 2).flatten(2).mean(2).numpy()
    rows, columns = optimize.linear_sum_assignment(cost)
    assert value("w2", x, y) == pytest.approx(math.sqrt(cost[rows, columns].mean()), rel=1e-12)


@every_size
def test_w2_is_the_linear_programme(n, m, shape):
    x, y = (a[:9] for a in two(n, m, *shape))
    n, m = len(x), len(y)
    cost = ((x[:, None] - y[None]) ** 2).flatten(2).mean(2).numpy()
    marginals = np.array([*(np.arange(n * m) // m == i for i in range(n)), *(np.arange(n * m) % m == j for j in range(m))])
    least = optimize.linprog(cost.ravel(), A_eq=marginals, b_eq=[1 / n] * n + [1 / m] * m)
    assert value("w2", x, y) == pytest.approx(math.sqrt(least.fun), rel=1e-9)


@every_size
@pytest.mark.parametrize("seed", [0, 3])
def test_sliced_w2_direction_by_direction(n, m, shape, seed):
    """Each sample m times and each datum n times: as many of both, and the distance is that of the sorted ones."""
    x, y = two(n, m, *shape)
    squares = []
    for theta in measures.directions(math.prod(shape), seed).T:
        a, b = (a.flatten(1).numpy() @ theta for a in (x, y))
        squares.append(((np.sort(np.repeat(a, m)) - np.sort(np.repeat(b, n))) ** 2).mean())
    assert value("sliced-w2", x, y, seed=seed) == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-12)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (2, 200), (3, 201), (64, 256), (200, 200), (300, 200)])
def test_directions_are_orthonormal(d, k):
    theta = measures.directions(d, 5)
    assert theta.shape == (d, k)
    for i in range(0, k, d):
        basis = theta[:, i : i + d]
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    if 1 < d <= 200:
        np.testing.assert_allclose(theta @ theta.T, k / d * np.eye(d), atol=1e-9)
        assert not np.allclose(theta, measures.directions(d, 6))


@pytest.mark.parametrize(("n", "m"), [(2, 3), (9, 9), (40, 25)])
def test_energy_is_scipys(n, m):
    """SciPy gives the root of the biased form, in which a point's distance to itself counts."""
    x, y = two(n, m, 1)
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    _, xx, yy = pairwise(math.dist, x, y)
    assert value("energy", x, y) == pytest.approx(biased - xx / n - yy / m, rel=1e-9, abs=1e-12)


def pairwise(f, x, y):
    """`E f(X, Y)`, `E f(X, X')` and `E f(Y, Y')` by loops, no point with itself."""
    x, y = x.flatten(1).tolist(), y.flatten(1).tolist()
    return (
        np.mean([f(a, b) for a in x for b in y]),
        np.mean([f(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]),
        np.mean([f(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]),
    )


@every_size
def test_energy_pair_by_pair(n, m, shape):
    x, y = two(n, m, *shape)
    xy, xx, yy = pairwise(math.dist, x, y)
    assert value("energy", x, y) == pytest.approx(2 * xy - xx - yy, rel=1e-10)


@every_size
def test_mmd_pair_by_pair(n, m, shape):
    x, y = two(n, m, *shape)
    flat = y.flatten(1).tolist()
    width2 = np.median([math.dist(a, b) ** 2 for i, a in enumerate(flat) for b in flat[:i]])
    xy, xx, yy = pairwise(lambda a, b: math.exp(-(math.dist(a, b) ** 2) / (2 * width2)), x, y)
    assert value("mmd", x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


@every_size
def test_kid_pair_by_pair(n, m, shape):
    x, y = two(n, m, *shape)
    d = math.prod(shape)
    xy, xx, yy = pairwise(lambda a, b: (np.dot(a, b) / d + 1) ** 3, x, y)
    assert value("kid", x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


@pytest.mark.parametrize(("n", "d"), [(5, 1), (20, 6), (64, 32)])
def test_kid_is_torchmetrics(n, d):
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = two(n, n, d)
    assert value("kid", x, y) == pytest.approx(float(kid.poly_mmd(y, x)), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(10, 12, 1), (50, 80, 6), (200, 100, 32)])
def test_frechet_is_torchmetrics(n, m, d):
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = two(n, m, d)
    C, D = (a.mT.cov().reshape(d, d) for a in (x, y))
    assert value("frechet", x, y) == pytest.approx(float(fid._compute_fid(x.mean(0), C, y.mean(0), D)), rel=1e-9)


def whitened(n, d, seed=0):
    """n points of mean 0 and of covariance 1 as it is estimated."""
    x = states(n, d, seed=seed)
    return torch.linalg.qr(x - x.mean(0)).Q * math.sqrt(n - 1)


@pytest.mark.parametrize(("n", "m", "d"), [(9, 9, 1), (20, 33, 5)])
def test_frechet_of_commuting_covariances(n, m, d):
    """`|μ − μ'|² + Σ (σ_i − σ'_i)²`."""
    turn = torch.linalg.qr(states(d, d, seed=7)).Q
    a, b = (torch.linspace(lo, hi, d, dtype=torch.float64) for lo, hi in ((0.5, 2), (3, 0.1)))
    x, y = whitened(n, d) * a @ turn + 0.7, whitened(m, d, seed=1) * b @ turn
    assert value("frechet", x, y) == pytest.approx(0.49 * d + float(((a - b) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 20), (4, 40, 20), (40, 4, 20)])
def test_frechet_of_fewer_samples_than_features(n, m, d):
    """Singular covariances: by the roots of the matrices, whose eigenvalues lose half the digits; finite on any."""
    x, y = two(n, m, d)
    C, D = (a.mT.cov().numpy() for a in (x, y))
    values, turn = np.linalg.eigh(C)
    root = turn * np.sqrt(values.clip(0)) @ turn.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ D @ root).clip(0)).sum()
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(C) + np.trace(D) - 2 * shared
    assert value("frechet", x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_one_set_scaled():
    """Of n < d points and c times them: `(1 − c)² (tr C + |μ|²)`, to rounding where roots of matrices are not."""
    x = states(6, 50) + 0.2
    expected = 0.0625 * float(x.mT.cov().trace() + x.mean(0).square().sum())
    assert value("frechet", x, 1.25 * x) == pytest.approx(expected, rel=1e-12)


def manifolds(real, fake, k=5):
    """Precision, recall, density and coverage as Kynkäänniemi et al. and Naeem et al. define them, point by point."""
    radius = [sorted(math.dist(a, b) for j, b in enumerate(real) if j != i)[k - 1] for i, a in enumerate(real)]
    other = [sorted(math.dist(a, b) for j, b in enumerate(fake) if j != i)[k - 1] for i, a in enumerate(fake)]
    return {
        "precision": np.mean([any(math.dist(f, r) < R for r, R in zip(real, radius, strict=True)) for f in fake]),
        "recall": np.mean([any(math.dist(f, r) < R for f, R in zip(fake, other, strict=True)) for r in real]),
        "density": np.mean([sum(math.dist(f, r) < R for r, R in zip(real, radius, strict=True)) / k for f in fake]),
        "coverage": np.mean([any(math.dist(f, r) < R for f in fake) for r, R in zip(real, radius, strict=True)]),
    }


@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 2), (40, 25, 8)])
def test_manifold_point_by_point(n, m, d):
    x, y = two(n, m, d)
    found = figures("manifold", x, y)
    assert found == pytest.approx(manifolds(y.tolist(), x.tolist()), abs=1e-12)
    assert 0 < found["precision"] < 1 or 0 < found["recall"] < 1


@pytest.mark.parametrize(("n", "m", "d"), [(20, 30, 2), (60, 200, 8)])
def test_manifold_is_prdc(n, m, d):
    prdc = pytest.importorskip("prdc.prdc")
    x, y = two(n, m, d)
    assert figures("manifold", x, y) == pytest.approx(prdc.compute_prdc(y.numpy(), x.numpy(), nearest_k=5), abs=1e-12)


def test_modes_by_counting():
    """The means themselves, some more often than others."""
    mixture = ring(4)
    x = mixture.means[[0, 0, 1, 2, 2, 2, 2, 2]]
    share = np.array([2, 1, 5, 0]) / 8
    assert list(figures("mode-weights", x, oracle=mixture).values()) == list(share)
    assert list(figures("mode-weights", x, oracle=mixture)) == ["0", "1", "2", "3"]
    weights = np.array([1, 2, 3, 1]) / 7
    assert value("modes", x, oracle=mixture) == pytest.approx(np.maximum(share - weights, 0).sum(), rel=1e-12)


def test_log_likelihood_is_torchs():
    mixture = sf.GaussianMixture(torch.tensor([1.0, 3.0]), states(2, 3), 0.25)
    normal = torch.distributions.Independent(torch.distributions.Normal(states(2, 3), 0.5), 1)
    torchs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.tensor([0.25, 0.75])), normal)
    x = states(50, 3, seed=1)
    assert value("log-likelihood", x, oracle=mixture) == pytest.approx(float(torchs.log_prob(x).mean()), rel=1e-6)


@pytest.mark.parametrize("name", ["trajectory", "strong"])
def test_distances_from_one_seed(name):
    """Five samples of four entries, off by 1, 2, 3, 4 and 12 in each."""
    x = states(5, 2, 2)
    off = torch.tensor([3.0, 1, 12, 2, 4], dtype=torch.float64).reshape(5, 1, 1) * torch.tensor([1.0, -1.0])
    found = figures(name, x + off, reference=x, finest=x)
    assert found == pytest.approx({"median": 3, "q90": 4 + 0.6 * 8, "rms": math.sqrt(174 / 5)}, rel=1e-12)
    assert METRICS[name].figures == (f"{name}/median", f"{name}/q90", f"{name}/rms")


def test_time_is_a_ratio():
    assert value("time", states(2, 1), seconds=3.0, evaluation=0.25) == 12


# -- exact laws ---------------------------------------------------------------------------------------------------------


def ddim(v, steps, path):
    """The standard deviation of DDIM's output on N(0, v): a product of `(α_s α_t v + σ_s σ_t)/(α_t² v + σ_t²)`."""
    plan = sf.plan("ddim", path, steps)
    std = path.prior_std(plan.times[0])
    for t, s in zip(plan.times, plan.times[1:], strict=False):
        a, b, c, e = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
        std *= (c * a * v + e * b) / (a**2 * v + b**2)
    return plan, std


@pytest.mark.parametrize("d", [1, 3])
def test_exact_laws_of_ddim(d):
    """`|s − √v|` and `(s²/v − 1 − ln(s²/v)) d/2`."""
    v, path = 0.3, sf.VPSDE()
    plan, std = ddim(v, 8, path)
    inputs = MetricInput(torch.empty(0), 0, oracle=sf.Gaussian(torch.zeros(d), v), path=path, plan=plan)
    assert abs(std - math.sqrt(v)) > 1e-3
    assert METRICS["w2-exact"](inputs) == pytest.approx({"w2-exact": abs(std - math.sqrt(v))}, rel=1e-9)
    ratio = std**2 / v
    assert METRICS["kl-exact"](inputs) == pytest.approx({"kl-exact": d / 2 * (ratio - 1 - math.log(ratio))}, rel=1e-9)


def test_w2_tends_to_the_exact_one():
    """In two dimensions at 4 steps; both are an RMS an entry."""
    gaussian, path = sf.Gaussian(torch.zeros(2), torch.tensor([0.4, 2.0])), sf.VPSDE()
    x = sf.solve(gaussian.model(path), states(1500, 2), "ddim", steps=4).x
    exact = value("w2-exact", x, oracle=gaussian, path=path, plan=sf.plan("ddim", path, 4))
    assert exact > 0.1
    assert value("w2", x, gaussian.sample(1500)) == pytest.approx(exact, rel=0.25)
    assert value("log-likelihood", gaussian.sample(1500), oracle=gaussian) == pytest.approx(
        -(1 + math.log(2 * math.pi) + math.log(0.8) / 2), abs=0.15
    )


def test_exact_ones_need_rows():
    """The sweep leaves them out where there are none; called all the same they do not pass for a figure."""
    for name in ("w2-exact", "kl-exact"):
        assert METRICS[name].needs == ("gaussian", "rows") and not METRICS[name].samples
        with pytest.raises(AssertionError):
            value(name, states(3, 2), oracle=sf.Gaussian(torch.zeros(2)), path=sf.VPSDE())


def test_infinite_is_a_figure():
    """Of data that have no density."""
    gaussian, path = sf.Gaussian(torch.zeros(2), torch.tensor([0.0, 1.0])), sf.VPSDE()
    assert value("kl-exact", torch.empty(0), oracle=gaussian, path=path, plan=sf.plan("ddim", path, 4)) == math.inf


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.fixture
def registry():
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(bad):
    """Also by metrics that would count them somewhere."""
    x, y = two(9, 9, 2)
    x[1, 0] = x[4, 1] = bad
    inputs = MetricInput(x, 0, y, y, y, same, ring(), seconds=1.0, evaluation=1.0)
    for name, m in METRICS.items():
        if m.samples:
            with pytest.raises(ValueError, match=rf"metric '{name}': 2 of 9 samples are not finite"):
                m(inputs)


def test_nan_is_no_figure(registry):
    with pytest.raises(ValueError, match="metric 'time' gives NaN for its figure 'time'"):
        value("time", states(2, 1))
    metric("odd", parts=("a", "b"))(lambda inputs: {"a": 1.0, "b": math.nan})
    with pytest.raises(ValueError, match="metric 'odd' gives NaN for its figure 'odd/b'"):
        figures("odd", states(2, 1))
    metric("far")(lambda inputs: math.inf)
    assert value("far", states(2, 1)) == math.inf
    with pytest.raises(ValueError, match="metric 'mmd' needs data that differ"):
        value("mmd", states(4, 2), torch.ones(5, 2))


def test_names(registry):
    assert get_metric("kid") is METRICS["kid"] and get_metric(METRICS["kid"]) is METRICS["kid"]
    with pytest.raises(ValueError, match=r"no metric is called 'frechett'; did you mean frechet\? Known: c2st, coverage, "):
        get_metric("frechett")
    with pytest.raises(ValueError, match="the metric name 'kid' is taken"):
        metric("kid")(lambda inputs: 0.0)
    assert METRICS["kid"].measure is measures.kid


def test_a_metric_of_ones_own(registry):
    @metric("spread", better="either", needs=("data",), positive=False, parts=("x", "y"))
    def spread(inputs):
        """Standard deviations of samples and data."""
        x, y = inputs.pair()
        return {"x": x.std(), "y": y.std()}

    x, y = two(9, 9, 2)
    mine = METRICS["spread"]
    assert mine(MetricInput(x, 0, data=y)) == pytest.approx(
        {"spread/x": float(x.std(correction=0)), "spread/y": y.numpy().std()}
    )
    assert (mine.meaning, mine.floor, mine.reference) == ("Standard deviations of samples and data.", "", "")
    assert mine.figures == ("spread/x", "spread/y")
    assert "| `spread/x`<br>`spread/y` | Standard deviations of samples and data. | either | data |  |  |" in table()


# -- what is written ----------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs/metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METRICS)
def test_docstring_of_a_metric(name):
    """One sentence of meaning, what data against data give, and the works by author and year."""
    m = METRICS[name]
    assert m.meaning.endswith(".") and m.floor.endswith(".")
    assert not m.reference or re.search(r"\(.+, \d{4}\)", m.reference)


def test_the_page_has_the_table():
    """`python -c "from scoreflow.studies.metrics import table; print(table())"` prints what docs/metrics.md has."""
    assert table() in PAGE
    assert table().count("\n") == len(METRICS) + 1


def test_the_page_runs(registry):
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(compile(code, "docs/metrics.md", "exec"), {})
    assert "ink" in registry
