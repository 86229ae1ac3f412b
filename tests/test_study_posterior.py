"""Studies of posteriors: what samples are compared to, simulated measurements, backward passes, errors."""

import functools
import math
import re
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import pytest
import torch
from forked import FORKED
from problems import states

import scoreflow as sf
from scoreflow.analysis import law
from scoreflow.posterior import METHODS
from scoreflow.studies import draw
from scoreflow.studies.findings import among

pytestmark = pytest.mark.usefixtures("few_floors", "short_reference")
VP, D = sf.VPSDE(), 3
ODE = "unipc(order=3)"


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROOT = numbers(D, D, seed=1)
GAUSSIAN = sf.Gaussian(numbers(D, seed=2), ROOT @ ROOT.mT / D + 0.1 * torch.eye(D, dtype=torch.float64))
MIXTURE = sf.GaussianMixture(torch.tensor([1.0, 2.0, 1.0]), 1.5 * numbers(3, D, seed=7), torch.tensor([0.05, 0.1, 0.2]))
SEEN = sf.Observation(numbers(2, D, seed=3), numbers(2, seed=4), 0.3)
NOISELESS = sf.Observation(SEEN.A, SEEN.y, 0.0)
FAR = sf.Observation(torch.eye(1, D), torch.zeros(1), 1.0)
EXACT = {"iterations": None, "rtol": 1e-12}


def posterior(data=GAUSSIAN, seen=SEEN, method="mmps", **options):
    return sf.Posterior(data.model(VP), seen, method, **options)


def net(x, t):
    return GAUSSIAN.denoise(x, VP.alpha(t), VP.sigma(t))


def unknown():
    """A network that knows the law without saying so."""
    return sf.ScoreModel(net, VP, prediction="x0")


@functools.cache
def conditional(*y):
    return MIXTURE.posterior(SEEN.given(torch.tensor(y, dtype=torch.float64)))


class Exact(sf.Posterior):
    """The exact conditional score of the mixture, y by y."""

    def evaluate(self, x, t, **conditions):
        y = self.observation.values(x).expand(len(x), -1)
        out = torch.empty_like(x)
        for one in y.unique(dim=0):
            rows = (y == one).all(1)
            out[rows] = conditional(*one.tolist()).denoise(x[rows], self.path.alpha(t), self.path.sigma(t))
        return out, None


def run(model, samplers="dpm-solver++-2m", nfe=30, **keywords):
    return sf.study(model, samplers, nfe=nfe, **{"reference": ODE, **keywords})


@pytest.fixture(scope="module")
def short_reference():
    """Of third order in 31 evaluations, as none of these figures is an error of 1 %."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scoreflow.studies.sweep.FINE", 31)
        yield


def means(study, figure):
    """Of the one sampler."""
    (line,) = study.frame[study.frame["figure"] == figure].to_dict("records")
    return line


# -- what samples are compared to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE, sf.Empirical(states(50, D))], ids=lambda d: type(d).__name__)
def test_the_data_are_draws_of_the_exact_posterior(data):
    """Mean and floor of the posterior's kind; beyond 5 standard errors in any entry by chance in 1 of 100 000."""
    what, law = sf.Subject(posterior(data), (D,)), data.posterior(SEEN)
    assert type(what.oracle) is type(data) and what.precision == torch.float64
    torch.testing.assert_close(what.oracle.means, law.means)
    mean = law.weights @ law.means
    for x in (what.truth(0, 4000), what.block(4000, 1)):
        assert float(((x.mean(0) - mean) / (x.std(0) / math.sqrt(4000))).abs().max()) < 5
    assert (mean - data.weights @ data.means).norm() > 0.1


def test_a_posterior_of_a_posterior():
    """Two measurements, one after the other, are one of both."""
    second = sf.Observation(torch.eye(1, D), torch.ones(1), 0.2)
    both = sf.Observation(torch.cat([SEEN.A, second.A]), torch.cat([SEEN.y, second.y]), torch.tensor([0.3, 0.3, 0.2]))
    what = sf.Subject(sf.Posterior(posterior(), second), (D,))
    torch.testing.assert_close(what.oracle.cov, GAUSSIAN.posterior(both).cov)
    # Guidance about it bends the law, and so does guidance within.
    bent = (sf.guidance.Thresholding(posterior()), sf.Posterior(sf.guidance.Thresholding(GAUSSIAN.model(VP)), SEEN))
    assert [sf.Subject(model, (D,)).oracle for model in bent] == [None, None]


def test_what_there_is():
    """Exact laws of rows are those of exact models only; data have no density."""
    of = {name: sf.Subject(posterior(d), (D,)).has() for name, d in
          (("gaussian", GAUSSIAN), ("mixture", MIXTURE), ("data", sf.Empirical(states(9, D))))}  # fmt: skip
    own = {"data", "posterior", "oracle", "mixture", "gaussian", "simulated"}
    assert {name: has & own for name, has in of.items()} == {
        "gaussian": {"data", "posterior", "oracle"}, "mixture": {"data", "posterior", "oracle", "mixture"},
        "data": {"data", "posterior"},
    }  # fmt: skip
    assert "gaussian" in sf.Subject(GAUSSIAN.posterior(SEEN).model(VP), (D,)).has()
    assert sf.Subject(sf.Empirical(states(9, D)).model(VP), (D,)).has() & own == {"data"}
    assert sf.Subject(posterior(), (D,), simulated=4).has() & own == {"posterior", "simulated"}
    assert sf.Subject(sf.Posterior(unknown(), SEEN), (D,), data=states(9, D), simulated=4).has() & own == {"simulated"}
    assert sf.Subject(sf.Posterior(unknown(), SEEN), (D,), data=GAUSSIAN, simulated=4).has() & own == {"simulated", "posterior"}


def test_metrics_go_by_the_posterior():
    """The converged method is at the floor of every metric; one that takes the noise for none is not."""
    names = ["w2", "posterior-w2", "sliced-w2", "energy", "modes", "mode-weights", "log-likelihood"]
    model = Exact(MIXTURE.model(VP), SEEN)
    good = run(model, nfe=30, metrics=names, n=200, seeds=3)
    assert not good.failures
    for figure in ("w2", "energy", "modes", "log-likelihood"):
        (spec,) = good.specs
        assert good.at_floor(spec, figure), figure
    law = MIXTURE.posterior(SEEN)
    shares = [means(good, f"mode-weights/{k}")["value"] for k in range(len(law.weights))]
    assert shares == pytest.approx(law.weights.tolist(), abs=0.09)  # 4.5 standard errors of 600
    assert means(good, "w2")["value"] == means(good, "posterior-w2")["value"]
    bad = run(posterior(MIXTURE, method="ddnm"), nfe=30, metrics=["w2", "modes"], n=200, seeds=3)
    assert means(bad, "w2")["low"] > means(bad, "w2")["floor"]


def test_a_classifier_tells_a_wrong_method_apart(monkeypatch):
    """Samples of the exact score are at its floor, where 1/2 is; those of another law, with the same floor, are not."""
    monkeypatch.setattr("scoreflow.studies.calibration.TREES", 20)
    monkeypatch.setattr("scoreflow.studies.sweep.FLOORS", 5)
    exact = run(GAUSSIAN.posterior(SEEN).model(VP), metrics=["c2st"], n=60, seeds=3)
    assert exact.floor("c2st/accuracy").value == pytest.approx(0.5, abs=0.08)
    monkeypatch.setattr("scoreflow.studies.sweep.FLOORS", 1)
    wrong = run(posterior(method="ddnm"), metrics=["c2st"], n=60, seeds=3)
    for study, right in ((exact, True), (wrong, False)):
        (spec,) = study.specs
        assert (study.mean(spec, "c2st/accuracy").value < 0.58) == right == (study.mean(spec, "c2st/low").value < 0.5)


def test_a_network_with_reference_draws_is_as_one_with_its_oracle():
    """`data=` an oracle, from which draws are made as for the oracle's own model: the same table."""
    keywords = {"metrics": ["w2", "energy", "log-likelihood"], "n": 16, "seeds": 2, "nfe": 6}
    own = run(posterior(), **keywords)
    given = run(sf.Posterior(unknown(), SEEN), shape=(D,), data=GAUSSIAN.posterior(SEEN), dtype=torch.float64, **keywords)
    pd.testing.assert_frame_equal(own.frame, given.frame, rtol=1e-9)
    draws = GAUSSIAN.posterior(SEEN).sample(400, seed=5)
    keywords["metrics"] = ["w2", "energy"]
    some = run(sf.Posterior(unknown(), SEEN), shape=(D,), data=draws, dtype=torch.float64, **keywords)
    assert means(some, "w2")["value"] == pytest.approx(means(own, "w2")["value"], rel=0.5)


# -- simulated measurements -----------------------------------------------------------------------------------------------


def test_a_block_of_simulated_measurements():
    """Truths of the prior, measurements of these, K samples each; the same in every call, others in every block."""
    what = sf.Subject(posterior(), (D,), simulated=5)
    made = what.simulate(4000, 3)
    assert made.truths.shape == (800, D) and made.observation.y.shape == (800, 2) and made.each == 5
    off = (made.observation.y - SEEN.measure(made.truths)) / 0.3
    assert abs(float(off.square().mean()) - 1) < 4.5 * math.sqrt(2 / 1600)
    assert float(((made.truths.mean(0) - GAUSSIAN.mean) / (GAUSSIAN.cov.diagonal() / 800).sqrt()).abs().max()) < 4.5
    assert torch.equal(what.simulate(4000, 3).observation.y, made.observation.y)
    assert not torch.equal(what.simulate(4000, 4).truths, made.truths)
    y = what.posed(20, 3).observation.y
    assert torch.equal(y, what.simulate(20, 3).observation.y.repeat_interleave(5, 0))
    # Of data that are few: some of them, none twice.
    data = states(30, D)
    truths = sf.Subject(sf.Posterior(unknown(), SEEN), (D,), data=data, simulated=2).simulate(40, 0).truths
    assert len(truths.unique(dim=0)) == 20 and all((data.float() == one).all(1).any() for one in truths)


def test_a_cell_is_a_run_with_these_measurements():
    study = run(posterior(**EXACT), "ddpm", 5, n=12, seeds=[4], simulated=3, metrics=["coverage"])
    what = sf.Subject(posterior(**EXACT), (D,), simulated=3)
    (cell,) = [c for c in study.runs if c["kind"] == "cell"]
    x = torch.from_numpy(study.store.samples(cell["key"]))
    prior = sf.White(4).draws("prior")(torch.empty(12, D, dtype=torch.float64)) * VP.prior_std(1.0)
    for j, y in enumerate(what.simulate(12, 4).observation.y):
        own = sf.solve(GAUSSIAN.posterior(SEEN.given(y)).model(VP), prior, "ddpm", nfe=5, noise=sf.Brownian(4)).x
        torch.testing.assert_close(x[3 * j : 3 * j + 3], own[3 * j : 3 * j + 3], rtol=1e-7, atol=1e-8)


CALIBRATION = {"metrics": ["sbc", "tarp", "coverage", "posterior-w2"], "n": 960, "seeds": 2, "simulated": 15}


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_an_exact_sampler_is_calibrated(kind):
    """64 truths in each of 2 blocks: p ≤ 0.01 of one in at most 2 %; coverage 4.5 standard errors off in 1 of 100 000."""
    model = posterior(**EXACT) if kind == "gaussian" else Exact(MIXTURE.model(VP), SEEN)
    study = run(model, nfe=24, **CALIBRATION)
    assert not study.failures
    (spec,) = study.specs
    assert min(study.blocks(spec, "sbc/p").values()) > 0.01
    assert means(study, "tarp/distance")["value"] < 0.2  # Kolmogorov's: above 0.2 for 64 in 1 of 100, of the mean of two rarer
    for level in (0.5, 0.8, 0.95):
        off = abs(means(study, f"coverage/{100 * level:g}")["value"] - level)
        assert off < 4.5 * math.sqrt(level * (1 - level) / 128)
    assert study.at_floor(spec, "posterior-w2")


@pytest.mark.parametrize("method", ["ddnm", "diffpir"])
def test_a_wrong_one_is_flagged(method):
    """One that believes the noise, and one that knows nothing of the data's covariance."""
    study = run(posterior(method=method), nfe=24, **CALIBRATION)
    (spec,) = study.specs
    assert max(study.blocks(spec, "sbc/p").values()) < 1e-3
    assert means(study, "posterior-w2")["value"] > 1.2 * means(study, "posterior-w2")["floor"]
    if method == "ddnm":
        assert means(study, "coverage/95")["value"] < 0.87 and means(study, "tarp/distance")["value"] > 0.2


def test_the_defaults():
    study = run(posterior(), "ddim", 4, n=8, seeds=2, simulated=4)
    assert {f.partition("/")[0] for f in study.figures} == {"trajectory", "sbc", "tarp", "coverage"}
    assert among(study) is None and "second look" not in " ".join(study.findings("coverage/80"))
    assert study.floor("coverage/80") is not None and study.reference("coverage/80") is not None
    data = run(sf.Posterior(unknown(), SEEN), "ddim", 4, n=8, seeds=2, simulated=4, shape=(D,), data=states(30, D))
    assert data.floor("coverage/80") is None and data.reference("coverage/80") is not None
    # Without a floor the level is what is best.
    assert data.loss("coverage/80", 0.7) == pytest.approx(0.1) == data.loss("coverage/80", 0.9)
    assert data.loss("tarp/area", -0.2) == pytest.approx(0.2) and data.loss("sbc/p", 0.3) == -0.3
    assert draw.arrow(data, "coverage/80") == "0.8 is best" and draw.arrow(data, "sbc/p") == "higher is better"


def test_runs_anywhere(tmp_path):
    """In processes, and in lockstep, whose network calls have others beside; sent with what was measured."""
    keywords = {
        "samplers": ["ddim", "ddpm"],
        "nfe": [4, 6],
        "n": 12,
        "seeds": 2,
        "simulated": 3,
        "metrics": ["tarp", "coverage"],
    }
    here = run(posterior(), **keywords)
    with ProcessPoolExecutor(2, FORKED) as pool:
        pd.testing.assert_frame_equal(run(posterior(), executor=pool, **keywords).frame, here.frame, check_exact=True)
        own = sf.Posterior(GAUSSIAN.model(VP), sf.Observation(lambda x: x[:, :1], torch.zeros(1), 0.1))
        with pytest.raises(ValueError, match="executor: the model cannot be sent to another process"):
            run(own, executor=pool, **keywords)
    together = run(posterior(), batch=64, **keywords)
    pd.testing.assert_frame_equal(together.frame.drop(columns="backward"), here.frame.drop(columns="backward"), rtol=1e-6)


# -- the store ------------------------------------------------------------------------------------------------------------


def test_resumed_and_told_apart(tmp_path):
    """What ran is not run again, also by a model that has run; another y, noise, A, method, option or K is another study."""
    keywords = {"samplers": "ddim", "nfe": [4], "n": 12, "seeds": 2, "metrics": ["coverage"], "out": tmp_path}
    model = posterior()
    first = run(model, simulated=3, **keywords)
    model.x0(states(2, D), 0.5)
    SEEN.matrix((D,))
    made = first.store.rows("SELECT key, made FROM cell ORDER BY key")
    second = run(model, simulated=3, **{**keywords, "metrics": ["coverage", "tarp"]})
    assert second.store.rows("SELECT key, made FROM cell ORDER BY key") == made and "tarp/area" in second.figures
    others = {
        "y": (posterior(seen=SEEN.given(SEEN.y + 1)), 3), "K": (model, 4), "method": (posterior(method="ddnm"), 3),
        "noise": (posterior(seen=sf.Observation(SEEN.A, SEEN.y, 0.31)), 3), "option": (posterior(iterations=2), 3),
        "A": (posterior(seen=sf.Observation(SEEN.A + 0.1, SEEN.y, 0.3)), 3),
    }  # fmt: skip
    for other, each in others.values():
        with pytest.raises(ValueError, match="is of something else"):
            run(other, simulated=each, **keywords)
    assert "Posterior(" in second.store.identity["network"] and second.store.identity["simulated"] == "3"
    assert "simulated" not in sf.Subject(model, (D,)).identity()


# -- backward passes ------------------------------------------------------------------------------------------------------


def test_backward_passes_are_told(tmp_path):
    """Two for each evaluation of tmpd; in the table, the answers, the charts and the report."""
    study = run(posterior(method="tmpd"), ["ddim", "ddpm"], [4, 8], n=8, seeds=2, metrics=["energy"], out=tmp_path)
    for found in (study, sf.Study.open(tmp_path)):
        assert {spec.nfe: passes for spec, passes in found.backward.items()} == {4: 8.0, 8: 16.0}
        assert (found.frame["backward"] == 2 * found.frame["nfe"]).all()
        best = found.best(8)
        assert best.backward == 2 * best.nfe
        assert re.search(r"at \d evaluations and \d+ backward passes: energy ", str(best))
        assert found.cheapest(within=100, figure="energy").backward == 8
        assert found.best(passes=12).nfe == 4 == found.best(9, passes=23).nfe and found.best(passes=24) == found.best(8)
        assert (front := found.pareto("energy"))["value"].is_monotonic_decreasing and "cost" not in front
        assert set(found.figures) == {"energy"} and set(found.cells["figure"]) == {"energy"}
        assert draw.passes(found) == "network evaluations + backward passes" and draw.budgets(found) == [12, 24]
        ax = found.plot("energy")
        assert ax.get_xlabel() == draw.passes(found) and list(ax.lines[0].get_xdata()) == [12, 24]
    text = study.report(tmp_path / "r.html", light=True).read_text()
    assert '<th scope="col" class="n">backward passes</th>' in text and "against network evaluations + backward passes" in text
    assert study.merge(found).backward == study.backward


def test_without_backward_passes_nothing_is_said(tmp_path):
    study = run(posterior(method="ddnm"), "ddim", 4, n=8, seeds=2, metrics=["energy"])
    assert not study.backward and "backward" not in study.frame and draw.passes(study) == "network evaluations"
    assert (
        "backward" not in str(study.best(4))
        and "backward passes" not in study.report(tmp_path / "r.html", light=True).read_text()
    )


def test_budgets_that_no_cell_meets():
    study = run(posterior(method="tmpd"), "ddim", 4, n=8, seeds=2, metrics=["energy"])
    with pytest.raises(ValueError, match=r"passes=11: no finished cell of energy has so few; the least is nfe=4, passes=12"):
        study.best(passes=11)
    with pytest.raises(TypeError, match="give a budget: nfe, evaluations, or passes, forward and backward"):
        study.best()
    with pytest.raises(ValueError, match="passes must be"):
        study.best(passes=-1)


def test_evidence_is_that_of_the_steps():
    """On Gaussian data the steps' law is known, and so is its p(y); 5 standard errors of 16 blocks: an alarm in 1 of 5000."""
    study = run(posterior(), "ddpm", [8, 32], n=128, seeds=16, metrics=["evidence"])
    for spec in study.specs:
        out = law(sf.plan("ddpm", VP, nfe=spec.nfe), VP, GAUSSIAN)
        exact = sf.Gaussian(out.mean, out.cov).evidence(SEEN) - GAUSSIAN.evidence(SEEN)
        found = torch.tensor(list(study.blocks(spec, "evidence").values()), dtype=torch.float64)
        assert abs(found.mean() - exact) < 5 * found.std() / 4 and exact < -0.8
    assert study.best(32).nfe == 32 and study.target("evidence") == 0
    with pytest.raises(ValueError, match="no metric asked for applies to ddim"):
        run(posterior(), "ddim", 4, metrics=["evidence"])


def test_exact_laws_of_methods():
    """What `analysis.law` says of the method's plan, to the exact posterior; no sample is drawn."""
    study = run(posterior(method="ddnm"), ["ddim", "ddpm"], 6, n=8, seeds=1, metrics=["w2-exact", "kl-exact"])
    law = sf.analysis.law("ddpm", VP, posterior(method="ddnm"), 6)
    table = study.frame.set_index(["sampler", "figure"])["value"]
    assert table["ddpm", "w2-exact"] == pytest.approx(law.w2 / D**0.5)
    assert table["ddpm", "kl-exact"] == pytest.approx(law.kl)
    assert table["ddim", "w2-exact"] != pytest.approx(law.w2 / D**0.5)


# -- errors ---------------------------------------------------------------------------------------------------------------

IMAGES = sf.Gaussian(torch.zeros(1, 4, 4), 0.2 * torch.ones(1, 4, 4))
CURVED = sf.Observation(lambda x: x.square()[:, :1], torch.ones(1), 0.1, linear=False)


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        (posterior(), {"simulated": 3, "n": 8}, "n must be a multiple of simulated=3, the samples of a truth, got 8"),
        (posterior(), {"simulated": 1}, "simulated must be 2 or more samples of each truth, or 0 for none, got 1"),
        (posterior(), {"simulated": 2.5}, "simulated must be a whole number"),
        (GAUSSIAN.model(VP), {"simulated": 2}, "simulated=2 needs a Posterior, not wrapped by guidance, as the model"),
        (sf.guidance.Thresholding(posterior()), {"simulated": 2, "shape": (D,)}, "simulated=2 needs a Posterior, not wrapped"),
        (sf.Posterior(unknown(), SEEN), {"simulated": 2}, "simulated=2 needs data=, from which truths are drawn"),
        (sf.Posterior(unknown(), SEEN), {"simulated": 2, "data": states(3, D)}, "n/simulated must be at most 3, the data"),
        (posterior(), {"data": states(9, D)}, "data: those of an oracle's model are drawn from it; give none"),
        (posterior(), {"data": GAUSSIAN, "simulated": 2}, "data: those of an oracle's model are drawn from it; give none"),
        (sf.Posterior(unknown(), SEEN), {"data": IMAGES}, r"data must be an oracle of states of shape \(3,\), got one of "),
        (posterior(), {"metrics": ["w2-exact"]}, "'w2-exact' needs a Gaussian's model, or a Posterior of it by a method that"),
        (posterior(), {"metrics": ["kl-exact"]}, "'kl-exact' needs a Gaussian's model, or a Posterior of it by a method that"),
        (posterior(method="ddnm"), {"metrics": ["evidence"]}, "'evidence' needs a Posterior of an oracle's model, one y, "),
        (posterior(seen=NOISELESS), {"metrics": ["evidence"]}, "'evidence' needs .* noise above 0, a method with a V"),
        (posterior(), {"simulated": 2, "metrics": ["evidence"]}, "'evidence' needs .* and no simulated="),
        (posterior(), {"metrics": ["sbc"]}, "metric 'sbc' needs simulated=, how many samples each simulated measurement gets"),
        (posterior(), {"simulated": 2, "metrics": ["w2"]}, "'w2' needs .* and one measurement: with simulated= each truth has"),
        (GAUSSIAN.model(VP), {"metrics": ["posterior-w2"]}, "metric 'posterior-w2' needs a Posterior, and of an oracle's"),
        (
            sf.Posterior(unknown(), SEEN), {"metrics": ["posterior-w2"], "simulated": 2, "data": states(9, D)},
            "'posterior-w2' needs a law of the truths whose posteriors are known: an oracle's model, or data= an oracle",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(model, given, says):
    own = model.oracle is not None or model.model.oracle is not None
    with pytest.raises((ValueError, TypeError), match=says):
        run(model, "ddim", 4, **{"n": 8, "seeds": 1, "shape": None if own else (D,), "metrics": ["trajectory"], **given})


def test_why_a_posterior_is_not_known():
    """Of a map that is not linear, and of measurements one a sample, the reason is said; data= takes their place."""
    METHODS["none"] = METHODS["ddnm"].__class__(lambda at, seen: torch.zeros_like(at.x_0), False, False, (), {})
    try:
        for seen, why in ((CURVED, "is not linear"), (SEEN.given(numbers(8, 2)), r"y must be \(2,\), or 1 of these")):
            model = posterior(seen=seen, method="none")
            with pytest.raises(ValueError, match=rf"metric 'w2' needs .*the exact posterior is not known: .*{why}"):
                run(model, "ddim", 4, n=8, seeds=1, metrics=["w2"])
            assert not run(model, "ddim", 4, n=8, seeds=1, metrics=["w2"], data=states(40, D)).failures
        floorless = run(posterior(seen=CURVED, method="none"), "ddim", 4, n=8, seeds=1, metrics=["sbc"], simulated=2)
        assert not floorless.failures and floorless.floor("sbc/p") is None
    finally:
        del METHODS["none"]
