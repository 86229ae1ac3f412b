"""Intervals that cover as often as they say, discoveries that are seldom false, orders that are found where there is one.

Rates are of 2000 simulated studies. A test that asks for 0.95 within 0.02 fails by chance in 1 of 20 000 (4 standard errors of
0.0049); every other bound is stated with its test.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scoreflow.studies.stats import Difference, Interval, discoveries, interval, paired, slope, unpaired

COUNT = 2000
inf, nan = math.inf, math.nan


def normal(rng, *shape):
    return rng.normal(size=shape)


def means_of_64(rng, *shape):
    """Of exponentials, less their mean."""
    return rng.exponential(size=(*shape, 64)).mean(-1) - 1


def chi_squares(rng, *shape):
    """`Σ λ_i (Z_i² − 1)`, as an unbiased MMD² of data to data; here λ = 1, 1/2, 1/4, …, of skewness 2.1."""
    return sum(0.5**i * (rng.chisquare(1, size=shape) - 1) for i in range(8))


def covers(found, truth=0.0):
    return found.low <= truth <= found.high


def rate(call, seed=0):
    """How often a call with a generator gives True."""
    rng = np.random.default_rng(seed)
    return np.mean([call(rng) for _ in range(COUNT)])


# -- coverage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("law", [normal, means_of_64])
def test_interval_covers(law, n):
    assert rate(lambda rng: covers(interval(law(rng, n)))) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("n", "least"), [(4, 0.90), (8, 0.91), (16, 0.93)])
def test_interval_of_skewed_values(n, least):
    """What the docstring says, within 3 standard errors below, by chance in 1 of 700; and more than Student's of the same."""
    draws = chi_squares(np.random.default_rng(1), COUNT, n)
    ours = np.mean([covers(interval(x)) for x in draws])
    low, high = stats.t.interval(0.95, n - 1, draws.mean(1), stats.sem(draws, axis=1))
    students = np.mean((low <= 0) & (0 <= high))
    assert least - 0.01 < ours < 0.955
    assert ours > students + 0.005


@pytest.mark.parametrize("level", [0.5, 0.8, 0.99])
def test_interval_at_other_levels(level):
    assert rate(lambda rng: covers(interval(normal(rng, 6), level))) == pytest.approx(level, abs=0.045)


@pytest.mark.parametrize(("law", "n"), [(normal, 2), (means_of_64, 4), (means_of_64, 8)])
def test_paired_covers(law, n):
    """What both share cancels, however large; a truth of 0.3."""

    def study(rng):
        shared = 100 * normal(rng, n)
        return covers(paired(shared + law(rng, n) + 0.3, shared), 0.3)

    assert rate(study) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("law", "spread", "n", "m"),
    [
        (normal, 5.0, 8, 8), (means_of_64, 1.0, 8, 16), (means_of_64, 5.0, 8, 16), (means_of_64, 1.0, 16, 4),
        (normal, 5.0, 16, 4),
    ],
)  # fmt: skip
def test_unpaired_covers(law, spread, n, m):
    """Unequal numbers and variances. Welch's freedom is an approximation: 0.94 at 4 blocks, within 0.025 of 0.945."""
    found = rate(lambda rng: covers(unpaired(spread * law(rng, n) + 2, law(rng, m)), 2.0))
    assert found == pytest.approx(0.945, abs=0.025)


def test_nothing_is_found_where_nothing_is():
    """Of skewed values, 8 blocks against 8: 4.1 %; worse than a floor of 16: 1 %. Above these bounds by chance in 1 of 700."""
    assert rate(lambda rng: paired(chi_squares(rng, 8), chi_squares(rng, 8)).significant) < 0.055
    assert rate(lambda rng: unpaired(chi_squares(rng, 8), chi_squares(rng, 16)).low > 0) < 0.017


# -- by hand ------------------------------------------------------------------------------------------------------------


def test_paired_is_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 7))
    found, theirs = paired(a, b), stats.ttest_rel(a, b)
    low, high = theirs.confidence_interval()
    assert found == pytest.approx((np.mean(a - b), low, high, theirs.pvalue), rel=1e-12)


def test_unpaired_is_scipys():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=7), 3 * rng.normal(size=5) + 4
    found, theirs = unpaired(a, b), stats.ttest_ind(a, b, equal_var=False)
    low, high = theirs.confidence_interval()
    assert found == pytest.approx((a.mean() - b.mean(), low, high, theirs.pvalue), rel=1e-12)


def test_interval_without_skewness_is_students():
    x = np.array([1.0, 2.0, 3.0, 4.0, 7.0, 8.0, 9.0, 10.0])
    found = interval(x)
    assert found[1:] == pytest.approx(stats.t.interval(0.95, 7, x.mean(), stats.sem(x)), rel=1e-12)
    assert found.value == x.mean()


def test_interval_solves_halls_equation():
    """`W + γW²/3 + γ²W³/27 + γ/(6n) = ±t/√n` at the ends; longer on the side of the tail."""
    x = np.array([0.1, 0.2, 0.2, 0.3, 0.5, 2.0])
    mean, low, high = interval(x)
    n, s = len(x), x.std(ddof=1)
    g = float((((x - mean) / s) ** 3).mean())
    for end, t in ((low, 1), (high, -1)):
        w = (mean - end) / s
        assert w + g * w**2 / 3 + g**2 * w**3 / 27 + g / (6 * n) == pytest.approx(
            t * stats.t.ppf(0.975, n - 1) / math.sqrt(n), rel=1e-12
        )
    assert 1.5 * (mean - low) < high - mean


numbers = st.lists(st.floats(-100, 100).map(lambda v: round(v, 3)), min_size=2, max_size=9)


@given(numbers, st.floats(-5, 5), st.floats(0.1, 10))
def test_intervals_move_and_scale_with_the_values(x, shift, c):
    """They hold the mean, do not ask for an order, and mirror."""
    x = np.array(x)
    found = np.array(interval(x))
    assert found[1] <= found[0] <= found[2]
    close = dict(rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(interval(c * x + shift), c * found + shift, **close)
    np.testing.assert_allclose(interval(-x), -found[[0, 2, 1]], **close)
    np.testing.assert_allclose(interval(x[::-1]), found, **close)
    p = paired(x, x - shift)
    assert p.significant == (shift != 0 and p.p < 0.05)


@given(numbers, numbers)
def test_differences_change_sign(a, b):
    ab, ba = unpaired(a, b), unpaired(b, a)
    assert ab == pytest.approx((-ba.value, -ba.high, -ba.low, ba.p), rel=1e-9, abs=1e-9)
    assert ab.significant == (ab.p < 0.05)
    k = min(len(a), len(b))
    assert paired(a[:k], b[:k]).significant == (paired(b[:k], a[:k]).p < 0.05)


# -- degenerate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (nan, nan, nan)),
        ([3.0], (3, nan, nan)),
        ([inf], (inf, nan, nan)),
        ([0.1] * 3, (0.1, 0.1, 0.1)),
        ([0.1] * 16, (0.1, 0.1, 0.1)),
        ([inf, inf], (inf, inf, inf)),
        ([inf, 1.0, 2.0], (inf, nan, nan)),
        ([inf, -inf], (nan, nan, nan)),
        ([nan, 1.0, 2.0], (nan, nan, nan)),
        ([1e200, 3e200], (2e200, nan, nan)),
    ],
    ids=str,
)
def test_degenerate_intervals(values, expected):
    """No warning either: they are errors here. Equal values, as of an exact law, are certain."""
    assert interval(values) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("a", "b", "expected", "significant"),
    [
        ([], [], (nan,) * 4, False),
        ([3.0], [1.0], (2, nan, nan, nan), False),
        ([0.3, 0.4], [0.3, 0.4], (0, 0, 0, 1), False),
        ([0.5, 1.5], [0.25, 1.25], (0.25, 0.25, 0.25, 0), True),
        ([inf, inf], [1.0, 2.0], (inf, inf, inf, 0), True),
        ([inf, 1.0], [1.0, 2.0], (inf, nan, nan, nan), False),
        ([inf, inf], [inf, inf], (nan,) * 4, False),
        ([nan, 1.0], [1.0, 2.0], (nan,) * 4, False),
    ],
    ids=str,
)
def test_degenerate_pairs(a, b, expected, significant):
    found = paired(a, b)
    assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert found.significant is significant


@pytest.mark.parametrize(
    ("a", "b", "expected", "significant"),
    [
        ([], [1.0, 2.0], (nan,) * 4, False),
        ([1.0], [1.0, 2.0], (-0.5, nan, nan, nan), False),
        ([0.1] * 3, [0.1] * 16, (0, 0, 0, 1), False),
        ([0.5] * 3, [0.25] * 2, (0.25, 0.25, 0.25, 0), True),
        ([inf, inf], [1.0, 2.0], (inf, inf, inf, 0), True),
        ([inf, 1.0], [1.0, 2.0], (inf, nan, nan, nan), False),
        ([inf, inf], [inf, inf, inf], (nan,) * 4, False),
    ],
    ids=str,
)
def test_degenerate_differences(a, b, expected, significant):
    found = unpaired(a, b)
    assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert found.significant is significant


def test_one_side_without_spread():
    """A floor that is known exactly: Student's interval of the other side."""
    x = [1.0, 2.0, 4.0, 5.0]
    found = unpaired(x, [0.5, 0.5])
    assert found[1:3] == pytest.approx(np.array(stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))) - 0.5, rel=1e-12)


def test_pairs_are_pairs():
    for b in ([1.0], [1.0, 2.0]):
        with pytest.raises(ValueError, match=f"as many of each, got 3 and {len(b)}"):
            paired([1.0, 2.0, 3.0], b)


def test_intervals_in_words():
    assert str(interval([1.0])) == "1"
    assert str(Interval(1.25, 1, 1.5)) == "1.25 (1 to 1.5)"
    assert [Difference(1, *ends, 0.5).significant for ends in ((0.5, 2), (-2, -1), (-1, 1), (0, 1), (nan, nan))] == [
        True, True, False, False, False,
    ]  # fmt: skip


# -- discoveries --------------------------------------------------------------------------------------------------------


def test_discoveries_by_hand():
    """Benjamini and Hochberg's own example, at 5 %: four hold, also those above their own step before the last below."""
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert discoveries(p) == [True] * 4 + [False] * 11
    assert discoveries(p[::-1]) == [False] * 11 + [True] * 4
    assert discoveries([0.03, 0.04, nan]) == [True, True, False]
    assert discoveries([nan, nan]) == [False, False] and discoveries([]) == []
    for q in np.random.default_rng(0).beta(0.4, 1, size=(200, 9)):
        assert discoveries(q) == (stats.false_discovery_control(q) <= 0.05).tolist()
    assert discoveries([0.03, 0.2], rate=0.01) == [False, False] and discoveries([0.0, 1.0]) == [True, False]


@pytest.mark.parametrize(
    ("means", "most"), [((0.0,) * 8, 0.05), ((0, 0, 0, 0, 0, 3, 3, 6), 0.05 * 11 / 28)], ids=["none", "some"]
)
def test_false_discoveries(means, most):
    """Of all pairs of 8 samplers over 8 blocks, of which 28 or 11 do not differ; in 300 studies, 4 standard errors above."""
    rng, false, found = np.random.default_rng(5), [], 0
    pairs = [(i, j) for i in range(8) for j in range(i)]
    ours, theirs = np.array(pairs).T
    for _ in range(300):
        x = np.array(means)[:, None] + 2 * rng.normal(size=8) + rng.normal(size=(8, 8))
        p = stats.ttest_rel(x[ours], x[theirs], axis=1).pvalue  # as of `paired`, in one call
        held = [pair for pair, told in zip(pairs, discoveries(p), strict=True) if told]
        false.append(sum(means[i] == means[j] for i, j in held) / max(len(held), 1))
        found += len(held) - sum(means[i] == means[j] for i, j in held)
    assert np.mean(false) <= most + 4 * np.std(false) / math.sqrt(300)
    assert np.mean(false) > 0
    assert found > 300 * 16 if any(means) else found == 0


# -- orders -------------------------------------------------------------------------------------------------------------

N = np.array([5.0, 10, 20, 40, 80, 160])


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 5])
def test_order_of_a_power(p):
    found = slope(N, 3 * N**-p)
    assert found == pytest.approx((p, 5, 160, 6), rel=1e-9)
    assert slope(N[::-1], 3 * N[::-1] ** -p) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3, 5])
def test_order_above_a_floor(p):
    """The floor, said or left out by itself, is not fitted."""
    floor = 40.0**-p
    found = slope(N, np.maximum(N**-p, floor), floor)
    assert found == pytest.approx((p, 5, 20, 3), rel=1e-9)
    assert slope(N, np.maximum(N**-p, floor)) == pytest.approx((p, 5, 40, 4), rel=1e-9)
    added = slope(N, N**-p + floor, 3 * floor)
    assert added is None or (added.order == pytest.approx(p, abs=0.2) and added.last <= 40)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("early", [-1, 1])
def test_order_after_a_bend(p, early):
    """`n^−p (1 + (10/n)²)^±1`: too steep or too flat at first."""
    found = slope(N, N**-p * (1 + (10 / N) ** 2) ** early)
    assert found.order == pytest.approx(p, abs=0.15)
    assert (found.first, found.last) == (20, 160)


def test_the_later_of_two_runs():
    """And the longer, be it the earlier."""
    errors = np.array([1, 1 / 2, 1 / 4, 1 / 64, 1 / 1024, 1 / 16384])
    assert slope(N, errors) == pytest.approx((4, 20, 160, 4), rel=1e-9)
    assert slope(N[:5], errors[:5]) == pytest.approx((4, 20, 80, 3), rel=1e-9)
    assert slope(N[1:], [1, 1 / 4, 1 / 16, 1 / 64, 1 / 128]) == pytest.approx((2, 10, 80, 4), rel=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_order_under_noise(p):
    """Errors that scatter by 5 %: within 0.25 in all but few of 300 (0.06 is a standard error)."""
    rng = np.random.default_rng(0)
    found = [slope(N, N**-p * np.exp(0.05 * rng.normal(size=6))) for _ in range(300)]
    assert all(found) and np.mean([abs(one.order - p) < 0.25 for one in found]) > 0.98
    assert np.mean([one.order for one in found]) == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize(("scatter", "most"), [(0.0, 0.0), (0.05, 0.0), (0.1, 0.002), (0.2, 0.045), (0.3, 0.1)])
def test_no_order_in_noise(scatter, most):
    """What the docstring says; of 1000, above it by 3 standard errors in 1 of 700."""
    rng = np.random.default_rng(0)
    found = np.mean([slope(N, np.exp(scatter * rng.normal(size=6))) is not None for _ in range(1000)])
    assert found <= most + 3 * math.sqrt(most * (1 - most) / 1000)


@pytest.mark.parametrize(
    ("nfe", "errors", "least"),
    [
        ([], [], 0), ([10, 20], [1, 0.5], 0), (N, N**0.0, 0), (N, N**1.0, 0), (N, N**-0.1, 0), (N, N**-1, 1), (N, 0 * N, 0),
        (N, N * nan, 0), (N, N * inf, 0), (N[:3], [1, 0.9, 0.1], 0), ([10, 10, 10, 20], [4, 3, 2, 1], 0),
    ],
    ids=str,
)  # fmt: skip
def test_no_order(nfe, errors, least):
    assert slope(nfe, errors, least) is None


def test_what_is_left_out():
    """Errors that are no numbers; of one budget all but the least."""
    assert slope([5, 10, 10, 20, 30, 40], [1 / 5, 1 / 10, 1 / 3, 1 / 20, nan, 1 / 40]) == pytest.approx((1, 5, 40, 4), rel=1e-9)
    with pytest.raises(ValueError):
        slope([1, 2], [1.0])


def test_a_slope_is_steady_to_a_quarter_of_it():
    """Local slopes 1 ± 0.22 are one fall, 1 ± 0.28 none."""
    for off, there in ((0.22, True), (0.28, False)):
        y = np.cumsum([0.0, 1 + off, 1 - off, 1 + off, 1 - off])
        assert (slope([8, 16, 32, 64, 128], 2.0**-y) is not None) == there
