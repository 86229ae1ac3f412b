"""`Plan.check`: what a plan does to Gaussian data and to an error of the network, from its rows alone."""

import math

import pytest
import torch
from problems import LINEAR, PATHS, linear

import scoreflow as sf
from scoreflow._samplers.health import Health


class Erring:
    """The exact x̂_0 of N(0, v) data, but that the k-th answer to sample first + k is wrong by 1."""

    def __init__(self, path, v, first):
        self.path, self.v, self.k = path, v, first

    def __call__(self, x, t):
        out = self.path.gaussian(t, "x0", self.v)[:, None] * x
        out[self.k] += 1.0
        self.k += 1
        return out


def by_runs(plan, path, v):
    """The standard deviation of the outputs, and what an error in each word does, from one run: sample 0 begins at the
    prior's standard deviation, the next ones take one draw each, the last ones see one error each."""
    n = 1 + plan.noise_count
    x, draws = torch.zeros(n + plan.nfe, 1, dtype=torch.float64), torch.zeros(plan.noise_count, n + plan.nfe, 1)
    x[0] = path.prior_std(plan.times[0])
    draws[torch.arange(n - 1), torch.arange(1, n)] = 1.0
    noise = draws.double() if n > 1 else None
    out = sf.solve(sf.ScoreModel(Erring(path, v, n), path, prediction="x0"), x, plan, noise=noise).x[:, 0]
    return float(out[:n].norm()), out[n:].abs()


@pytest.mark.parametrize("case", LINEAR)
def test_health_is_what_runs_show(case):
    """The run is linear, so unit vectors tell all, to 1e-9."""
    path = PATHS["vp"]
    budget = {"steps": 4} if case.startswith("restart") else {"nfe": 9}  # its loops take more
    plan = sf.plan(linear(case), path, grid="logsnr", **budget)
    health = plan.check()
    (std, wide), (tight, narrow) = (by_runs(plan, path, v) for v in (1.0, 0.01))
    assert (health.std, health.std_tight) == pytest.approx((std, tight), rel=1e-9)
    worst = torch.maximum(wide, narrow)
    assert health.amplification == pytest.approx(float(worst.max()), rel=1e-9)
    assert max(e for e, t in zip(worst, plan.evaluation_times, strict=True) if t == health.at) == pytest.approx(
        health.amplification
    )
    assert (health.data, health.data_tight) == (1.0, 0.1)


@pytest.mark.parametrize("name", ["ve", "flow", "cosine", "sub-vp"])
def test_health_on_other_paths(name):
    """And where a run stops early, with a first word from N(0, I) data: it is no word of the network's."""
    path = PATHS[name]
    plan = sf.plan("sde-dpm-solver++-2m", path, 6, stop=0.2, analytic=1.0)
    health, (std, errors) = plan.check(), by_runs(plan, path, 1.0)
    assert health.std == pytest.approx(std, rel=1e-9)
    assert health.amplification == pytest.approx(float(torch.maximum(errors, by_runs(plan, path, 0.01)[1]).max()), rel=1e-9)
    assert health.data_tight == pytest.approx(math.hypot(0.1 * path.alpha(0.2), path.sigma(0.2)))
    assert health.last_row == sum(map(abs, plan.steps[-1].stages[-1].row.m))


def test_one_step_by_hand():
    """DDIM from t = 1 to 0 puts out x̂_0 = α v/(α² v + σ²) x, of x with deviation 1, and an error as it is."""
    path = sf.VPSDE()
    health, a, s = sf.plan("ddim", path, 1).check(), path.alpha(1.0), path.sigma(1.0)
    assert health.std == pytest.approx(a) and health.std_tight == pytest.approx(0.01 * a / (0.01 * a**2 + s**2))
    assert health.amplification == pytest.approx(1.0) and health.at == 1.0 and health.last_row == pytest.approx(1.0)


def test_a_plan_from_json_is_told_its_path():
    path = sf.VPSDE()
    plan = sf.plan("ddim", path, 5)
    read = sf.Plan.from_json(plan.to_json())
    with pytest.raises(ValueError, match=r"give check the path, VPSDE\("):
        read.check()
    assert read.check(path) == plan.check()
    with pytest.raises(ValueError, match="the plan was made for"):
        plan.check(sf.Flow())


@pytest.mark.parametrize("name", ["sra", "edm", "pndm", "dpm-solver-3", "reverse-sde"])
@pytest.mark.parametrize("nfe", [5, 8])
def test_what_is_not_sensible_is_said(name, nfe):
    """At few evaluations on logsnr these put out values far from the data's, whatever the network; one step of restart too."""
    for plan in (sf.plan(name, sf.VPSDE(), nfe=nfe, grid="logsnr"), sf.plan("restart", sf.VPSDE(), nfe=19)):
        assert plan.check().warnings and "; not sensible: " in str(plan.check())


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm-solver++", "unipc", "sde-dpm-solver++", "sa-solver", "er-sde", "ipndm"])
@pytest.mark.parametrize("nfe", [5, 20, 100])
def test_what_is_sensible_is_let_be(name, nfe):
    health = sf.plan(name, sf.VPSDE(), nfe=nfe, grid="logsnr").check()
    assert health.warnings == () and "sensible" not in str(health)


def test_warnings_stand_at_their_bounds():
    """Three times too wide at either variance, a third at variance 1 only, ten times an error."""
    good = Health(1.0, 0.1, 1.0, 0.1, 1.0, 0.5, 1.0)
    assert good.warnings == good._replace(std=2.9, std_tight=0.29, amplification=9.9).warnings == ()
    assert good._replace(std=0.34, std_tight=0.001).warnings == ()
    assert good._replace(std=0.33).warnings == ("outputs of std 0.33 for 1",)
    assert good._replace(std=3.1).warnings == ("outputs of std 3.1 for 1",)
    assert good._replace(std_tight=0.31).warnings == ("outputs of std 0.31 for 0.1",)
    assert good._replace(amplification=10.1).warnings == ("an error at t=0.5 comes out 10.1 times as large",)
    assert len(good._replace(std=math.inf, std_tight=math.inf, amplification=math.inf).warnings) == 3


def test_the_table_has_the_least_budget():
    """The first at which nothing is said; none for what is not made of rows."""
    least = {line.name: line.least for line in sf.samplers()}
    assert least["scipy"] is least["predictor-corrector"] is None
    for name in ("ddim", "dpm-solver-3", "pndm"):
        assert not sf.plan(name, sf.VPSDE(), nfe=least[name]).check().warnings
        assert sf.plan(name, sf.VPSDE(), nfe=least[name] - 1).check().warnings


def test_a_study_tells_the_health_of_its_cells(tmp_path):
    """Those of their plans, kept with the figures; what is not sensible is named in the report."""
    study = sf.study(
        "oracle:white(d=3)", ["edm@logsnr", "ddim", "pf-ode(method=dopri5)"], nfe=[5, 10], n=4, seeds=2, out=tmp_path
    )
    path = sf.VPSDE()
    wrong, right = (sf.plan(name, path, nfe=5, grid=grid).check() for name, grid in (("edm", "logsnr"), ("ddim", None)))
    for done in (study, sf.studies.Study.open(tmp_path)):
        assert {str(spec): health for spec, health in done.health.items() if spec.size == 5} == {
            "edm@logsnr, nfe=5": wrong, "ddim, nfe=5": right,
        }  # fmt: skip
        assert len(done.health) == 4  # an adaptive solver has no plan
        assert done.warnings == [f"edm@logsnr, nfe=5: {', '.join(wrong.warnings)}"]
        assert not any("Plan.check" in figure for figure in (*done.figures, *done.cells["figure"], *done.frame["figure"]))
    page = study.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Not sensible, whatever the network: {study.warnings[0]}" in page
    assert "What the plans do" in page and f"{wrong.std:.3g}" in page
