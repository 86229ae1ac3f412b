"""Noise sources: what a draw depends on, what it does not depend on, and its law.

Tests of a law state one false-alarm rate for all their statistics together; the seeds are fixed.
"""

import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import scoreflow as sf
from scoreflow._core.noise import check_seed

RATE = 1e-6
CELL = 2.0**-18
SHAPES = [(), (3,), (2, 4, 4)]
SOURCES = [sf.White, sf.Brownian, functools.partial(sf.Brownian, times=(1.0, 0.7, 0.3, 0.1, 0.0))]


def like(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


def assert_standard_normal(z: np.ndarray) -> None:
    """Rows of z (k, n) are independent N(0, 1): means, variances and every pair's product, by exact or CLT quantiles."""
    k, n = z.shape
    tail = RATE / (2 * k + k * (k - 1) / 2) / 2
    bound = stats.norm.isf(tail)
    assert np.abs(z.mean(1) * math.sqrt(n)).max() < bound
    squares = (z**2).sum(1)
    assert squares.min() > stats.chi2.ppf(tail, n)
    assert squares.max() < stats.chi2.isf(tail, n)
    if k > 1:
        products = (z @ z.T / math.sqrt(n))[np.triu_indices(k, 1)]
        # Products of normals have tails heavier than normal; at n ≥ 20000 and this rate that is below 5 %.
        assert np.abs(products).max() < 1.05 * bound


# -- white -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("seeds", [7, (7, 8, 9)])
def test_the_same_key_gives_the_same_draws(source, seeds):
    a, b = source(seeds).draws("step"), source(seeds).draws("step")
    for t, s in pairwise((1.0, 0.7, 0.3, 0.0)):
        assert torch.equal(a(like(3, 5), t, s), b(like(3, 5), t, s))
    assert a.count == b.count == 3


def test_seed_purpose_and_index_all_matter():
    draws = []
    for seeds in (0, 1, -1, (0, 0, 0), (0, 1, 2)):
        for purpose in ("prior", "step", "probe"):
            cursor = sf.White(seeds).draws(purpose)
            draws += [cursor(like(3, 50)) for _ in range(3)]
    for i, a in enumerate(draws):
        for b in draws[i + 1 :]:
            assert (a != b).any()
    rows = sf.White((4, 5)).draws("step")(like(2, 50))
    assert (rows[0] != rows[1]).any()


def test_a_cursor_does_not_share_its_place():
    source = sf.White(3)
    a, b = source.draws("step"), source.draws("step")
    first = a(like(2, 3))
    a(like(2, 3))
    assert torch.equal(first, b(like(2, 3)))
    assert (a.count, b.count) == (2, 1)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shape", SHAPES)
@given(seeds=st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=6), data=st.data())
def test_a_row_depends_on_its_own_seed_only(source, shape, seeds, data):
    order = data.draw(st.lists(st.sampled_from(range(len(seeds))), min_size=1, max_size=6))
    whole, part = source(tuple(seeds)).draws("step"), source(tuple(seeds[i] for i in order)).draws("step")
    for t, s in ((1.0, 0.6), (0.6, 0.1)):
        a, b = whole(like(len(seeds), *shape), t, s), part(like(len(order), *shape), t, s)
        assert torch.equal(a[order], b)


@pytest.mark.parametrize("purpose", ["prior", "step", "probe"])
def test_splits_of_a_batch_draw_the_same(purpose):
    whole = sf.White(range(7)).draws(purpose)(like(7, 33))
    parts = [sf.White(range(a, b)).draws(purpose)(like(b - a, 33)) for a, b in ((0, 3), (3, 4), (4, 7))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("seeds", [11, (11, 12)])
@pytest.mark.parametrize("shape", SHAPES)
def test_white_dtypes_are_the_same_numbers(seeds, shape):
    single = sf.White(seeds).draws("step")(like(2, *shape, dtype=torch.float32))
    assert single.dtype == torch.float32
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = sf.White(seeds).draws("step")(like(2, *shape, dtype=dtype))
        assert other.dtype == dtype
        assert torch.equal(other, single.to(dtype))


def test_the_device_of_the_draws():
    """Where none is named that of the states; a source names another, and the draws come back to the states."""
    like = torch.zeros(2, 3, dtype=torch.float64)
    for source in (sf.White, sf.Brownian):
        here, told = source((4, 5)), source((4, 5), device="cpu")
        assert torch.equal(here.draws()(like, 0.9, 0.4), told.draws()(like, 0.9, 0.4)) and told.device.type == "cpu"
    assert sf.Brownian((4, 5), device="cpu").draws().of(1).source.device.type == "cpu"
    elsewhere = sf.White(4, device="cuda")
    if torch.cuda.is_available():
        drawn = elsewhere.normal(like)
        assert drawn.device == like.device and not torch.equal(drawn, sf.White(4).normal(like))
    else:
        with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda"):
            elsewhere.normal(like)
    with pytest.raises(ValueError, match="device must be one of torch's, such as 'cpu' or 'cuda', got 'abacus'"):
        sf.White(4, device="abacus")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("seeds", [1, (1, 2)])
def test_the_global_generator_is_left_alone(source, seeds):
    before = torch.get_rng_state()
    cursor = source(seeds).draws("step")
    for t, s in ((1.0, 0.5), (0.5, 0.2)):
        cursor(like(2, 3), t, s)
    source(seeds).draws("prior")(like(2, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_no_seed_takes_one_from_the_global_generator():
    torch.manual_seed(5)
    a, b = check_seed(None), check_seed(None)
    torch.manual_seed(5)
    assert (check_seed(None), check_seed(None)) == (a, b)
    assert a != b
    torch.manual_seed(6)
    assert check_seed(None) != a


@pytest.mark.parametrize("wrong", ["abc", 1.5, True, [1.5, 2], [True], [None], object()])
def test_a_seed_is_an_int_or_ints(wrong):
    with pytest.raises(TypeError, match="seed"):
        check_seed(wrong)


def test_seeds_must_fit_the_batch():
    assert check_seed(np.arange(3), 3) == check_seed(torch.arange(3), 3) == check_seed(range(3), 3) == (0, 1, 2)
    with pytest.raises(ValueError, match="3 entries for a batch of 2"):
        check_seed(range(3), 2)
    with pytest.raises(ValueError, match="entries for a batch"):
        sf.White((1, 2, 3)).draws("step")(like(2, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_white_draws_are_standard_normal(dtype):
    cursor = sf.White(2).draws("step")
    z = torch.stack([cursor(like(40_000, dtype=dtype)) for _ in range(10)]).double().numpy()
    assert_standard_normal(z)
    assert stats.kstest(z.flatten(), "norm").pvalue > RATE


def test_streams_of_neighbouring_seeds_and_purposes_are_independent():
    rows = sf.White(range(8)).draws("step")(like(8, 40_000))
    purposes = [sf.White(0).draws(purpose)(like(1, 40_000)) for purpose in ("prior", "probe")]
    assert_standard_normal(torch.cat([rows, *purposes]).numpy())


# -- Brownian --------------------------------------------------------------------------------------------------------

times_in_unit = st.floats(0, 1, allow_nan=False, allow_subnormal=False)


def test_increments_add_up():
    incr = sf.Brownian(0).draws("step").increment
    x = like(4, 3)
    torch.testing.assert_close(incr(x, 1.0, 0.5) + incr(x, 0.5, 0.2), incr(x, 1.0, 0.2), rtol=0, atol=1e-14)


@given(st.lists(times_in_unit, min_size=3, max_size=6, unique_by=lambda t: int(t * 2**18)), st.randoms(use_true_random=False))
@settings(max_examples=25)  # the path is walked anew for every pair
def test_w_is_a_function_of_time(times, random):
    """For times in different cells increments add up to rounding, whatever was asked before and in which order."""
    x = like(2, 2)
    pairs = [(t, s) for t in times for s in times if t != s]
    random.shuffle(pairs)
    cursor = sf.Brownian((1, 2)).draws("step")
    asked = {pair: cursor.increment(x, *pair) for pair in pairs}
    for t, s in pairs:
        assert torch.equal(asked[t, s], -asked[s, t])
        assert torch.equal(asked[t, s], sf.Brownian((1, 2)).draws("step").increment(x, t, s))
        for u in times:
            if u not in (t, s):
                torch.testing.assert_close(asked[t, s] + asked[s, u], asked[t, u], rtol=0, atol=1e-13)


def test_falling_times_in_one_cell_add_up():
    """However close, times asked in falling order are on one path."""
    x, times = like(4, 3), [0.5 - k * 1e-8 for k in range(6)]
    cursor = sf.Brownian(0).draws("step")
    steps = [cursor.increment(x, t, s) for t, s in pairwise(times)]
    torch.testing.assert_close(sum(steps), sf.Brownian(0).draws("step").increment(x, times[0], times[-1]), rtol=0, atol=1e-3)
    assert all(1e-5 < float(step.std()) < 1e-3 for step in steps)


@pytest.mark.parametrize("fine", [20, 70, 1000])
def test_step_counts_share_the_path(fine):
    """Ten draws are the sums of the draws of a finer run over their intervals."""
    coarse = [1 - i / 10 for i in range(10)] + [0.0]
    at = [1 - i / fine for i in range(fine)] + [0.0]
    at = [coarse[i * 10 // fine] if i * 10 % fine == 0 else t for i, t in enumerate(at)]
    a, b = sf.Brownian(3).draws("step"), sf.Brownian(3).draws("step")
    x = like(5, 4)
    many = [math.sqrt(t - s) * b(x, t, s) for t, s in pairwise(at)]
    for i, (t, s) in enumerate(pairwise(coarse)):
        part = torch.stack(many[i * fine // 10 : (i + 1) * fine // 10]).sum(0)
        torch.testing.assert_close(math.sqrt(t - s) * a(x, t, s), part, rtol=0, atol=1e-12)


GRIDS = {
    "uniform": [i / 10 for i in range(10, -1, -1)],
    "non-dyadic": [1.0, 0.9, 0.7, 0.61, 1 / 3, 0.2, 0.1, 0.03, 0.01, 0.0],
    "dyadic": [1.0, 0.75, 0.5, 0.25, 0.125, 0.0625, 0.0],
    "graded": [1.0, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 4e-6, 3e-6, 2e-6, 1e-6, 0.0],
    "steps of 1e-6": [1.0, *(0.3 + i * 1e-6 for i in range(12, -1, -1)), 0.0],
    "two times a cell": [1.0, *((1000 + i + p) * CELL for i in (3, 2, 1, 0) for p in (0.7, 0.3)), 0.0],
    "a time a cell": [1.0, *((1000 + 1.1 * i) * CELL for i in (5, 4, 3, 2, 1, 0)), 0.0],
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(("depth", "known"), [(18, False), (6, False), (18, True), (6, True)])
def test_brownian_draws_are_standard_normal(name, depth, known):
    """Along any grid the normalised draws are independent N(0, 1), above the tree's cells and inside them."""
    cursor, x = sf.Brownian(4, depth=depth, times=GRIDS[name] if known else None).draws("step"), like(40_000)
    z = torch.stack([cursor(x, t, s) for t, s in pairwise(GRIDS[name])]).numpy()
    assert_standard_normal(z)
    assert min(stats.kstest(row, "norm").pvalue for row in z) > RATE / len(z)


def test_w_has_variance_t():
    cursor, n = sf.Brownian(5).draws("step"), 40_000
    times = (1.0, 0.77, 0.5, 0.1234, 1e-3)
    for t in times:
        squares = (cursor.increment(like(n), t, 0.0) ** 2).sum().item() / t
        assert stats.chi2.ppf(RATE / 10, n) < squares < stats.chi2.isf(RATE / 10, n)


@pytest.mark.parametrize("depth", [6, 9, 25])
def test_depth_does_not_change_the_path_at_coarser_dyadic_times(depth):
    deep, other = sf.Brownian((1, 2)).draws("step"), sf.Brownian((1, 2), depth=depth).draws("step")
    for t, s in pairwise([i / 32 for i in range(32, -1, -1)]):
        assert torch.equal(deep(like(2, 3), t, s), other(like(2, 3), t, s))


@pytest.mark.parametrize("purpose", ["prior", "probe"])
def test_only_steps_are_brownian(purpose):
    assert torch.equal(sf.Brownian(3).draws(purpose)(like(2, 5)), sf.White(3).draws(purpose)(like(2, 5)))


def test_brownian_dtypes_share_the_path():
    runs = {d: sf.Brownian((1, 2)).draws("step") for d in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
    for t, s in pairwise((1.0, 0.7, 0.3, 0.299, 1e-4, 0.0)):
        z = {dtype: cursor(like(2, 50, dtype=dtype), t, s) for dtype, cursor in runs.items()}
        assert all(z[dtype].dtype == dtype for dtype in runs)
        # W is of size 1 and known to float32 rounding; the draw divides by √(t − s).
        torch.testing.assert_close(z[torch.float32].double(), z[torch.float64], rtol=0, atol=2e-6 / math.sqrt(t - s))
        for half in (torch.bfloat16, torch.float16):
            assert torch.equal(z[half], z[torch.float32].to(half))


@pytest.mark.parametrize("times", [GRIDS["non-dyadic"], GRIDS["graded"]], ids=["non-dyadic", "graded"])
def test_brownian_batch_split(times):
    whole = sf.Brownian(range(5)).draws("step")
    parts = [(slice(a, b), sf.Brownian(range(a, b)).draws("step")) for a, b in ((0, 2), (2, 3), (3, 5))]
    for t, s in pairwise(times):
        z = whole(like(5, 3), t, s)
        for rows, cursor in parts:
            assert torch.equal(z[rows], cursor(like(rows.stop - rows.start, 3), t, s))


# -- along known times ------------------------------------------------------------------------------------------------


def uniform(n):
    return (*(1 - i / n for i in range(n)), 0.0)


def test_known_times_have_one_path():
    """Whatever else a sampler asks between them, and though some of the times are not asked."""
    times, x = GRIDS["non-dyadic"], like(3, 2)
    source = sf.Brownian((1, 2, 3), times=times)
    plain, asked = source.draws(), source.draws()
    for t, s in pairwise(times):
        middle = 0.3 * t + 0.7 * s
        parts = asked.increment(x, t, middle) + asked.increment(x, middle, s)
        torch.testing.assert_close(plain.increment(x, t, s), parts, rtol=0, atol=1e-14)
    whole = source.draws().increment(x, 0.7, 0.1)
    parts = sum(source.draws().increment(x, t, s) for t, s in pairwise(times[2:7]))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)


def test_known_times_share_the_path():
    """All at the sixteenths, to rounding; those of n and 2n steps elsewhere too, to less than the noise of a step."""
    x, runs = like(2000), {n: sf.Brownian(3, times=uniform(n)).draws() for n in (16, 50, 100, 1000)}
    for t, s in pairwise(uniform(16)):
        first, *others = (run.increment(x, t, s) for run in runs.values())
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=1e-14)
    for n in (50, 400):
        paths = []
        for steps in (n, 2 * n):
            run = sf.Brownian(3, times=uniform(steps)).draws()
            paths.append(torch.stack([run.increment(x, t, s) for t, s in pairwise(uniform(steps))]).cumsum(0))
        off = (paths[0] - paths[1][1::2]).square().mean(1) * n
        # In a cell of three steps the coarser has a bridge of its own, of variance 3h/4 at most in the middle; most are shorter
        assert float(off.max()) < 1 and float(off.mean()) < 0.4, n


def test_known_times_take_few_normals_and_hold_few_states(monkeypatch):
    """A bit more than 1.5 a draw, where the tree takes 25; ten states at most, in what is kept."""
    taken, normal = [], sf.White.normal
    monkeypatch.setattr(sf.White, "normal", lambda *args: taken.append(args[2:]) or normal(*args))
    for n, most, states in ((10, 2.5, 6), (50, 1.7, 6), (1000, 1.6, 9)):
        taken.clear()
        cursor, x, held = sf.Brownian(0, times=uniform(n)).draws(), like(1), []
        for t, s in pairwise(uniform(n)):
            cursor(x, t, s)
            held.append(len({id(w) for cell in cursor._cells for w in (cell.w_lo, cell.w_hi)}))
        assert len(taken) == len(set(taken)) <= most * n and max(held) <= states


def test_areas_along_known_times_have_their_law():
    """Increments and areas of three steps, of which cells are a part: independent, 21 comparisons at 1e-9 each."""
    x, times = like(40_000), (0.83, 0.61, 0.37, 0.36)
    cursor = sf.Brownian(7, times=times).draws()
    parts = torch.stack([cursor(x, a, b, area) for a, b in pairwise(times) for area in (False, True)])
    moments, bound = parts @ parts.mT / x.numel(), stats.norm.isf(1e-9) / math.sqrt(x.numel())
    off = (moments - torch.eye(6, dtype=torch.float64)).abs()
    assert float(off.fill_diagonal_(0).max()) < bound
    assert float((moments.diag() - 1).abs().max()) < math.sqrt(2) * bound


# -- replay ----------------------------------------------------------------------------------------------------------


def test_replay_hands_out_in_order():
    given_draws = torch.arange(24, dtype=torch.float64).reshape(4, 2, 3)
    cursor = sf.Replay(given_draws).draws("step")
    for i in range(4):
        assert torch.equal(cursor(like(2, 3), 0.9, 0.1), given_draws[i])
    assert cursor.count == 4
    with pytest.raises(ValueError, match="4 draws"):
        cursor(like(2, 3))
    assert len(sf.Replay(given_draws)) == 4
    assert torch.equal(sf.Replay(given_draws).draws("step")(like(2, 3)), given_draws[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_replay_casts_to_the_state(dtype):
    given_draws = torch.tensor([[0.1, 1 / 3]], dtype=torch.float64)[None]
    draw = sf.Replay(given_draws).draws("step")(like(1, 2, dtype=dtype))
    assert draw.dtype == dtype
    assert torch.equal(draw, given_draws[0].to(dtype))


def test_replay_refuses_another_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        sf.Replay(torch.zeros(4, 2, 3)).draws("step")(like(3, 2))


# -- areas ----------------------------------------------------------------------------------------------------------------


def test_areas_have_their_law():
    """Increments and areas of two steps that touch: independent, of variances h and h³/12. 14 comparisons at 1e-9 each."""
    like, (t, m, s) = torch.zeros(40_000, dtype=torch.float64), (0.83, 0.61, 0.37)
    cursor = sf.Brownian(7).draws()
    parts = [cursor(like, a, b, area) for a, b in ((t, m), (m, s)) for area in (False, True)]
    moments = torch.stack(parts) @ torch.stack(parts).mT / len(like)
    bound = stats.norm.isf(1e-9) / math.sqrt(len(like))
    off = (moments - torch.eye(4, dtype=torch.float64)).abs()
    assert float(off.fill_diagonal_(0).max()) < bound
    assert float((moments.diag() - 1).abs().max()) < math.sqrt(2) * bound


@pytest.mark.parametrize("m", [0.61, 0.5, 0.370001])
def test_areas_of_parts_make_the_whole(m):
    """`A = A_1 + A_2 + ½ h (W̄_m − chord)`, whatever the middle, asked in one run or in two."""
    like, (t, s) = torch.zeros(3, 2, dtype=torch.float64), (0.83, 0.37)
    cursor = sf.Brownian(7).draws()
    whole, w = cursor.area(like, t, s), cursor.increment(like, t, s)
    one, w_one = cursor.area(like, t, m), cursor.increment(like, t, m)
    two = cursor.area(like, m, s)
    middle = w_one - (t - m) / (t - s) * w
    torch.testing.assert_close(one + two + (t - s) / 2 * middle, whole, rtol=1e-10, atol=1e-12)


def test_an_area_is_an_integral():
    """Against the trapezoid rule along the path itself at 4096 times."""
    like, (t, s), n = torch.zeros(5, dtype=torch.float64), (0.75, 0.25), 4096
    cursor = sf.Brownian(2).draws()
    times = [t + (s - t) * k / n for k in range(n + 1)]
    walked = torch.cumsum(torch.stack([cursor.increment(like, a, b) for a, b in pairwise(times)]), 0)
    chord = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:, None] * walked[-1]
    integral = (walked - chord).sum(0) * (t - s) / n
    area = sf.Brownian(2).draws().area(like, t, s)
    # What is left has the variance n (h/n)³/12.
    assert float((integral - area).abs().max()) < 6 * math.sqrt((t - s) ** 3 / 12) / n
