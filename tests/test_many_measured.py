"""Moments that add up, the Fréchet distance of them and its extrapolation, and measures of whatever lies in a folder."""

import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from metric_inputs import figures, same, two, value
from PIL import Image

import scoreflow as sf
from scoreflow.data import Folder, Images
from scoreflow.studies import Moments, Statistics
from scoreflow.studies.metrics import METRICS, MetricInput, get_metric
from scoreflow.studies.moments import frechet_infinity, load


def features(n, d=8, seed=0):
    """Positive, correlated, and far from 0 as those of a network are."""
    chance = np.random.default_rng(seed)
    return np.abs(chance.normal(size=(n, d)) @ np.random.default_rng(9).normal(size=(d, d))) + 3


# -- moments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [60, 2500])
def test_moments_of_parts_add_up(n):
    """In any order: n, mean, covariance and distance are those of one process, and the metric's distance to 1e-10."""
    f, g = features(n), features(n + 37, seed=1) * 1.1
    cuts = [0, 1, n // 3, n // 2, n]
    parts = [Moments.of(f[a:b]) for a, b in pairwise(cuts)]
    merged, other = parts[3] + parts[0] + (parts[2] + parts[1]), Moments.of(g)
    assert merged.n == n
    np.testing.assert_allclose(merged.statistics.mean, f.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.statistics.cov, np.cov(f, rowvar=False), rtol=1e-9, atol=1e-11)
    alone = value("frechet", torch.from_numpy(f), torch.from_numpy(g))
    assert alone > 0.01
    for one in (merged, Moments.of(f)):
        assert one.statistics.frechet(other.statistics) == pytest.approx(alone, rel=1e-10)
    assert sf.measure(torch.from_numpy(f), torch.from_numpy(g)).figures["frechet"] == pytest.approx(alone, rel=1e-10)


def test_few_samples():
    """As many as features or fewer, where covariances have no inverse; and too few for one."""
    f, g = features(5), features(30, seed=1)
    alone = value("frechet", torch.from_numpy(f), torch.from_numpy(g))
    assert Moments.of(f).statistics.frechet(Moments.of(g).statistics) == pytest.approx(alone, rel=1e-6)
    assert Moments.of(f).statistics.frechet(Moments.of(f).statistics) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="a covariance needs 2 samples or more, got 1"):
        Moments.of(f[:1]).statistics  # noqa: B018


def test_two_gaussians_whose_distance_is_known():
    """`|μ − μ'|² + Σ (√v − √v')²` of independent entries; between Gaussians that do not commute by the square root itself."""
    one = Statistics(np.array([1.0, 2.0]), np.diag([4.0, 0.25]))
    assert one.frechet(Statistics(np.array([0.0, 2.0]), np.diag([1.0, 1.0]))) == pytest.approx(1 + 1 + 0.25, rel=1e-14)
    a, b = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.3], [-0.3, 3.0]])
    values = np.linalg.eigvals(a @ b)
    expected = np.trace(a + b) - 2 * np.sqrt(values).sum()
    assert Statistics(np.zeros(2), a).frechet(Statistics(np.zeros(2), b)) == pytest.approx(expected, rel=1e-13)
    with pytest.raises(ValueError, match="features must be as many on both sides, got 2 and 3"):
        one.frechet(Statistics(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="moments must be of as many features, got 8 and 2"):
        Moments.of(features(3)) + Moments.of(np.zeros((3, 2)))


def test_files_of_statistics(tmp_path):
    """Ours read as they were, with what other tools read; theirs; and what is none."""
    f = features(40)
    file = Moments.of(f).save(tmp_path / "ours.npz")
    back = load(file)
    assert back.n == 40 and np.array_equal(back.outer, Moments.of(f).outer) and np.array_equal(back.sum, Moments.of(f).sum)
    with np.load(file) as held:
        np.testing.assert_allclose(held["mu"], f.mean(0), rtol=1e-14)
        np.testing.assert_allclose(held["sigma"], np.cov(f, rowvar=False), rtol=1e-10)
    np.savez(tmp_path / "theirs.npz", mu=f.mean(0), sigma=np.cov(f, rowvar=False))
    x = torch.from_numpy(features(50, seed=1))
    found = [sf.measure(x, data, blocks=1) for data in (torch.from_numpy(f), str(file), tmp_path / "theirs.npz")]
    assert [one.m for one in found] == [40, 40, None] and "against statistics" in str(found[2])
    for one in found[1:]:
        assert one.figures["frechet"] == pytest.approx(found[0].figures["frechet"], rel=1e-10)
    np.savez(tmp_path / "other.npz", a=f)
    (tmp_path / "text.npz").write_text("no")
    for name, says in (
        ("other.npz", "must hold mu and sigma, or n, sum and outer; it holds a"),
        ("text.npz", "is no npz file"),
    ):
        with pytest.raises(ValueError, match=says):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        load(tmp_path / "none.npz")


def test_extrapolated_to_infinitely_many():
    """Of n Gaussian samples in d = 4 the distance to the law itself falls as 1/n and is far from 0 at n = 400; the line's
    intercept is 0 on average. Over 40 sets its mean is within 4 standard errors of 0, once in 16 000 not, and its distance
    from the truth is a quarter at most of the plain one's."""
    data = Statistics(np.zeros(4), np.eye(4))
    sets = [np.random.default_rng(k).normal(size=(400, 4)) for k in range(40)]
    plain = np.array([Moments.of(x).statistics.frechet(data) for x in sets])
    found = np.array([frechet_infinity(x, data, seed=1) for x in sets])
    assert abs(found.mean()) < 4 * found.std(ddof=1) / math.sqrt(40) and abs(found.mean()) < plain.mean() / 4
    assert frechet_infinity(sets[0], data, seed=1) == found[0] != frechet_infinity(sets[0], data, seed=2)
    shifted = frechet_infinity(sets[0] + 1.0, data)
    assert shifted == pytest.approx(4, abs=1.0)
    with pytest.raises(ValueError, match="frechet-infinity needs 20 samples or more, got 19"):
        frechet_infinity(sets[0][:19], data)


# -- metrics of many --------------------------------------------------------------------------------------------------------


def test_metrics_of_all_pairs_in_parts():
    """More rows than are held at once: the same figures as of all, in less memory than all pairs take."""
    x, y = two(1203, 1105, 2)
    a, b = x.double().numpy(), y.double().numpy()

    def kernel(p, q):
        return (p @ q.T / 2 + 1) ** 3

    def within(p):
        return (kernel(p, p).sum() - np.trace(kernel(p, p))) / (len(p) * (len(p) - 1))

    assert value("kid", x, y) == pytest.approx(within(a) + within(b) - 2 * kernel(a, b).mean(), rel=1e-10)

    def apart(p, q):
        return np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1))

    radius = {name: np.sort(apart(p, p), axis=1)[:, 5] for name, p in (("a", a), ("b", b))}
    inside = apart(b, a) < radius["b"][:, None]
    assert figures("manifold", x, y) == pytest.approx({
        "precision": inside.any(0).mean(), "recall": (apart(b, a) < radius["a"]).any(1).mean(),
        "density": inside.sum() / 5 / len(a), "coverage": inside.any(1).mean(),
    }, rel=1e-12)  # fmt: skip


@pytest.mark.parametrize("name", ["kid", "manifold"])
def test_metrics_of_all_pairs_in_little_memory(name):
    """Of 3000 and 2000 points: all pairs of the first alone are 72 MB, and this takes 20 at most."""
    x, y = two(3000, 2000, 2)
    tracemalloc.start()
    try:
        figures(name, x, y)
        assert 5e6 < tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


# -- folders ------------------------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(4).integers(0, 256, (30, 6, 5), dtype=np.uint8)
X = torch.from_numpy(PIXELS.astype(np.float32) / 127.5 - 1)[:, None]


def mean_and_spread(x):
    """Features of images, six of them."""
    return x.flatten(1)[:, :6]


def written(folder, kind):
    """The images as others may keep them."""
    folder.mkdir()
    if kind == "subfolders":
        for i, image in enumerate(PIXELS):
            place = folder / f"class {i // 10}" / f"{i:03d}.png"
            place.parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(place)
    elif kind == "one file":
        np.save(folder / "all.npy", X.numpy())
        return folder / "all.npy"
    else:
        net = sf.ScoreModel(lambda x, t, y: y, sf.VPSDE(), prediction="x0")
        sf.generate(net, (1, 6, 5), range(990, 1020), folder, "ddim", steps=2, format=kind, y=X.roll(990, 0))
    return folder


@pytest.mark.parametrize("kind", ["subfolders", "one file", "png", "npy", "safetensors", "tar"])
def test_whatever_keeps_the_same_samples(tmp_path, kind):
    """The same figures to rounding of 8 bits, and blocks in the order of the seeds."""
    place = written(tmp_path / "kept", kind)
    asked = {"metrics": ["frechet", "kid", get_metric("sliced-w2")], "features": mean_and_spread, "batch": 7}
    told, expected = (sf.measure(one, X[:20] * 0.9, **asked) for one in (place, X))
    assert (told.n, told.m, told.sizes, told.features) == (30, 20, (10, 10, 10), "mean_and_spread")
    assert told.figures == pytest.approx(expected.figures, rel=1e-4) and [*told.figures] == ["frechet", "kid", "sliced-w2"]
    for figure in told.figures:
        assert told.blocks[figure] == pytest.approx(expected.blocks[figure], rel=1e-4)
        mean, std = np.mean(told.blocks[figure]), np.std(told.blocks[figure], ddof=1)
        assert told.spread(figure) == pytest.approx((mean, std)) and std > 0
        assert f"{mean:.5g} ± {std:.2g}" in str(told)
    alone = METRICS["kid"](MetricInput(X[10:20], 0, data=X[:20] * 0.9, features=mean_and_spread))
    assert expected.blocks["kid"][1] == pytest.approx(alone["kid"], rel=1e-9)


def test_blocks_and_parts():
    asked = {"data": X[:20], "features": mean_and_spread}
    whole = sf.measure(X, blocks=1, **asked)
    assert whole.blocks == {} and whole.to_dict()["figures"] == {"frechet": {"all": whole.figures["frechet"]}}
    assert sf.measure(X, blocks=4, **asked).sizes == (7, 8, 7, 8)
    several = sf.measure([X[:4], Images(X[4:30])], **asked)
    assert several.sizes == (4, 26) and several.figures["frechet"] == pytest.approx(whole.figures["frechet"], rel=1e-10)
    parts = [sf.measure(X, features=mean_and_spread, shard=(i, 4)) for i in range(4)]
    assert [part.n for part in parts] == [7, 8, 7, 8] and not parts[0].figures
    merged = parts[2].moments + parts[1].moments + parts[3].moments + parts[0].moments
    assert merged.statistics.frechet(Moments.of(mean_and_spread(X[:20]).numpy()).statistics) == pytest.approx(
        whole.figures["frechet"], rel=1e-10
    )


def test_samples_that_are_not_finite():
    x = X.clone()
    x[3, 0, 0, 0], x[7, 0, 0, 1] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 of 30 samples have features that are not finite"):
        sf.measure(x, X, features=mean_and_spread, batch=40)


def test_images_of_several_sizes(tmp_path):
    for i, (high, wide) in enumerate([(4, 4), (6, 8)]):
        Image.fromarray(np.full((high, wide), 50 * i, np.uint8)).save(tmp_path / f"{i}.jpg", quality=100)
    with pytest.raises(ValueError, match=r"one shape, and .*1.jpg has \(1, 6, 8\), the first \(1, 4, 4\): of images give"):
        sf.measure(tmp_path, X)
    assert sf.measure(tmp_path, size=4).n == 2
    assert Folder([tmp_path / "1.jpg"], None, None, 1)[0].shape == (1, 6, 8)


def test_data_by_name():
    """With the features of that name; its parts."""
    digits = sf.data.load("digits")
    found = {part: sf.measure(digits.train.x[:60], "digits", blocks=1, part=part) for part in ("held-out", "train", "all")}
    assert {part: one.m for part, one in found.items()} == {"held-out": 500, "train": 1297, "all": 1797}
    assert {one.features for one in found.values()} == {"digits"}
    alone = METRICS["frechet"](MetricInput(digits.train.x[:60], 0, data=digits.held_out.x, features=sf.zoo.digits_features()))
    assert found["held-out"].figures["frechet"] == pytest.approx(alone["frechet"], rel=1e-4)


WRONG = [
    ({"metrics": "trajectory"}, ValueError, "metric 'trajectory' needs more than samples and data: measure it in a study"),
    ({"metrics": "frechett"}, ValueError, "did you mean frechet"),
    ({"blocks": 0}, ValueError, "blocks must be a whole number ≥ 1, got 0"),
    ({"part": "test"}, ValueError, "part must be one of train, held-out, all, got 'test'"),
    ({"features": "nothing"}, ValueError, "no features are called 'nothing'"),
    ({"shard": (4, 4)}, ValueError, "shard must be a whole number from 0 to 3"),
    ({"samples": []}, ValueError, "samples is empty"),
    (
        {"data": torch.zeros(4, 3), "metrics": "sliced-w2"},
        ValueError,
        r"compares states of one shape, got \(1, 6, 5\) and data \(3,\)",
    ),
    ({"data": torch.zeros(4, 3)}, ValueError, "features must be as many on both sides, got 30 and 3"),
]


@pytest.mark.parametrize(("changes", "kind", "says"), WRONG)
def test_wrong_calls(changes, kind, says):
    with pytest.raises(kind, match=says):
        sf.measure(**{"samples": X, "data": X, **changes})


def test_what_moments_do_not_give(tmp_path):
    ours, theirs = Moments.of(features(40)).save(tmp_path / "ours.npz"), tmp_path / "theirs.npz"
    np.savez(theirs, mu=np.zeros(8), sigma=np.eye(8))
    assert sf.measure([ours, ours], theirs).sizes == (40, 40)
    for wrong, says in [
        ({"samples": theirs}, "holds mu and sigma, and no n: give it as data"),
        ({"samples": [ours, X]}, "is no .npz file, and others that were given are"),
        ({"samples": ours, "metrics": "kid"}, "metric 'kid' needs samples, and there are only moments"),
        ({"samples": ours, "metrics": "frechet-infinity"}, "metric 'frechet-infinity' needs samples"),
        ({"samples": torch.from_numpy(features(30)), "metrics": "kid", "features": same}, "metric 'kid' needs samples"),
        ({"samples": ours, "shard": (0, 2)}, r"shard=\(0, 2\) is of samples, and moments were given"),
    ]:
        with pytest.raises(ValueError, match=says):
            sf.measure(**{"data": theirs, **wrong})
