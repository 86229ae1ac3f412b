"""Audits: ours are clean by the door that strangers take; slips in copies of our rows are found, at the right call."""

import json
import math
import random
import re
from itertools import pairwise

import pytest
import torch
from typer.testing import CliRunner

import scoreflow as sf
from scoreflow import cli
from scoreflow._audit.result import section
from scoreflow._samplers.step import SAMPLERS, VARIANTS, Linear, get_sampler

VP = sf.VPSDE()
MOST = 40
"""Steps that are looked at: fewer than by default take less time."""
OURS = [name for name in (*SAMPLERS, *VARIANTS) if isinstance(get_sampler(name), Linear)]


@pytest.mark.parametrize("name", OURS[::15])
def test_ours_are_clean(name):
    """Every fifteenth name of the registry: identified by its coefficients, and nothing to find fault with."""
    found = sf.audit(name, 8, most=8)
    assert found.passed, str(found)
    assert name in found.same and max(one.apart for one in found.nearest if one.step is None) < 1e-7


class Loop:
    """DDIM and DDPM on VP as a stranger writes them, with one slip."""

    def __init__(self, slip=None, eta=0.0, at=3):
        self.slip, self.eta, self.at, self.runs = slip, eta, at, 0

    def __call__(self, net, x, n):
        slip, self.runs = self.slip, self.runs + 1
        times = [1 - k / n for k in range(n)] + [0.0]
        if slip == "one more" or (slip == "one more at seven" and n == 7):
            times.insert(-1, times[-2] / 2)
        if slip == "float64 states":
            x = x.double()
        if slip == "first state":
            x = 1.01 * x
        if slip == "level stepped to, not told":
            told = [t if k != self.at else times[k - 1] for k, t in enumerate(times)]
        elif slip == "label rounded":
            told = [round(t, 1) if t > 0.05 else t for t in times]
        else:
            told = times
        if slip == "nan at one" and n == 1:
            return x * math.nan
        for k, (t, s) in enumerate(pairwise(times)):
            here = k == self.at
            if slip == "noise before the step" and here:
                x = x + 0.3 * torch.randn_like(x)
            eps = net(x, torch.full((len(x),), told[k], dtype=x.dtype))
            if slip == "asked twice" and here:
                eps = net(x, torch.full((len(x),), told[k], dtype=x.dtype))
            if slip == "noise after the call" and here:
                x = x + 0.3 * torch.randn_like(x)
            a, b, c, d = (torch.tensor(of(u), dtype=x.dtype) for u in (t, s) for of in (VP.alpha, VP.sigma))
            if slip == "sign" and here:
                eps = -eps
            if slip == "level off by one" and here:
                a, b = (torch.tensor(of(times[k - 1]), dtype=x.dtype) for of in (VP.alpha, VP.sigma))
            x_0 = (x - b * eps) / a
            if slip == "clipped" and here:
                x_0 = x_0.clamp(-1, 1)
            if slip == "factor" and here:
                x_0 = 1.1 * x_0
            if slip == "shared norm" and here:
                x_0 = x_0 / (1 + 0.01 * x_0.square().mean().sqrt())
            if slip == "random weight" and here:
                x_0 = x_0 * (1 + 0.1 * random.random())
            if slip == "by place" and here:
                x_0 = x_0 * (1 + 0.1 * torch.arange(len(x), dtype=x.dtype)).reshape(-1, *[1] * (x.ndim - 1))
            if slip == "constant" and here:
                x_0 = x_0 + 0.125
            std = self.eta * VP.posterior_std(t, s)
            if slip == "root of eta":
                std = math.sqrt(self.eta) * VP.posterior_std(t, s)
            spread = std if slip != "sigma_t for sigma_s" else self.eta * VP.sigma(t) * 0.5
            if slip == "half the noise":
                spread = 0.7 * std
            x = c * x_0 + (d**2 - std**2).clamp(min=0).sqrt() * eps
            if s > 0 and self.eta:
                x = x + spread * torch.randn_like(x)
            if slip == "noise at the end" and s == 0:
                x = x + 0.01 * torch.randn_like(x)
            if slip == "thrown away":
                torch.randn_like(x)
            if slip == "not to data" and s == 0:
                x = x + 0.05 * eps
            if slip == "state kept" and self.runs % 2 == 0 and here:
                x = 1.01 * x
        return x


SLIPS = [
    ("sign", 0.0, {"levels"}, 4),
    ("factor", 0.0, {"signal"}, 4),
    ("level off by one", 0.0, {"levels", "signal"}, 4),
    ("level stepped to, not told", 0.0, {"levels"}, 3),
    ("label rounded", 0.0, {"levels"}, 1),
    ("clipped", 0.0, {"affine"}, 4),
    ("constant", 0.0, {"no-constant"}, None),
    ("first state", 0.0, {"first-state", "levels"}, 0),
    ("shared norm", 0.0, {"affine", "batch"}, 4),
    ("noise before the step", 0.0, {"levels"}, 3),
    ("noise after the call", 0.0, {"levels"}, 4),
    ("noise at the end", 0.0, {"no-last-noise", "ends-at-data"}, None),
    ("not to data", 0.0, {"ends-at-data"}, None),
    ("thrown away", 0.0, {"draws-used"}, None),
    ("one more", 0.0, {"steps"}, None),
    ("nan at one", 0.0, {"finite"}, None),
    ("state kept", 0.0, {"one-object"}, None),
    ("asked twice", 0.0, {"calls-differ", "steps"}, 4),
    ("one more at seven", 0.0, {"counts"}, None),
    ("float64 states", 0.0, {"dtype"}, None),
    ("random weight", 0.0, {"random-state"}, None),
    ("by place", 0.0, {"batch-order"}, None),
    ("half the noise", 1.0, {"levels", "weights", "law"}, 1),
    ("sigma_t for sigma_s", 1.0, {"levels", "weights"}, 1),
]


def test_without_a_slip():
    """The copy is ddim, and with η = 1 ddpm, whatever its code."""
    found = sf.audit(Loop(), 12, most=MOST)
    assert found.passed and found.same[0] == "ddim"
    found = sf.audit(Loop(eta=1.0), 12, most=MOST)
    assert found.passed and "ddpm" in found.same and "is " in str(found)


@pytest.mark.parametrize(("slip", "eta", "checks", "step"), SLIPS, ids=[slip for slip, *_ in SLIPS])
def test_slips_are_found(slip, eta, checks, step):
    """By the checks that are named, at the call where it shows first; where coefficients are wrong it is no registered one."""
    found = sf.audit(Loop(slip, eta), 12, most=MOST if "law" in checks else 12)
    failed = {check.name for check in found.failures}
    assert checks <= failed, str(found)
    steps = [check.step for check in found.failures if check.name in checks and check.step is not None]
    assert step is None or step in steps, str(found)
    rows = (
        "thrown away", "nan at one", "level stepped to, not told", "label rounded", "one more", "one more at seven",
        "float64 states", "by place", "first state",
    )  # fmt: skip
    assert ("ddim" in found.same) == (slip in rows)
    for check in found.failures:
        assert check.name in str(found)


def test_options_are_fitted():
    """√η for η keeps the levels, so that its noise alone tells: which η it is, and where one was given, that it is another."""
    found = sf.audit(Loop("root of eta", 0.5), 12, most=MOST)
    assert found.passed and found.same == ("ddim(eta=0.707107)",)

    def ddim(net, x, n, eta):
        return Loop("root of eta", eta)(net, x, n)

    found = sf.audit(ddim, 12, eta=0.5, most=MOST)
    assert [str(check) for check in found.failures] == ["FAIL options: eta=0.5 acts as eta=0.707107 of ddim"]
    assert sf.audit("ddim", 12, eta=0.5, most=MOST).same == ("ddim(eta=0.5)",)


def third(factor):
    """DPM-Solver++(3M) as a stranger writes it, the second difference times a factor."""

    def run(net, x, n):
        times, seen = [1 - k / n for k in range(n)] + [0.0], []
        for t, s in pairwise(times):
            a, b, c, d = (of(u) for u in (t, s) for of in (VP.alpha, VP.sigma))
            seen.insert(0, (math.log(a / b), (x - b * net(x, torch.tensor([t], dtype=torch.float64))) / a))
            if s == 0:
                return seen[0][1]
            h = math.log(c / d) - seen[0][0]
            e = -math.expm1(-h)
            x = d / b * x + c * e * seen[0][1]
            if len(seen) > 1:
                slope = (seen[0][1] - seen[1][1]) / (seen[0][0] - seen[1][0])
                if len(seen) > 2:
                    before = (seen[1][1] - seen[2][1]) / (seen[1][0] - seen[2][0])
                    bend = (slope - before) / (seen[0][0] - seen[2][0])  # half the second derivative
                    slope = slope + bend * (seen[0][0] - seen[1][0])
                    x = x + factor * c * 2 * bend * (h * h / 2 - h + e)
                x = x + c * slope * (h - e)

    return run


def test_a_weight_that_is_off_is_named():
    """The second difference of a third-order method at half its weight: at which calls, by which factor, what it costs."""
    assert "dpm-solver++-3m" in sf.audit(third(1.0), 12, most=MOST).same
    found = sf.audit(third(0.5), 12, most=320)
    assert found.mends[0][:2] == ("dpm-solver++-3m", "the second difference of x̂_0") and found.mends[0].calls == tuple(
        range(3, 12)
    )
    assert found.mends[0].factor == pytest.approx(0.5) and "multiply it by 2" in str(found)
    assert {check.name for check in found.failures} == {"weights", "order"}, str(found)
    theirs, ours = found.distances[320]
    assert theirs > 3 * ours and found.order == pytest.approx(2.0, abs=0.3)


def test_what_was_read_runs_here():
    """The plan of a stranger gives the stranger's samples, from the same first state."""
    model, x = (
        sf.analysis.problem().model(VP),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    for loop in (Loop("factor"), third(0.5)):
        plan = sf.audit(loop, 8, most=8).plan
        theirs = loop(lambda x, t: model(x, float(t[0]), "eps"), x, 8)
        torch.testing.assert_close(sf.solve(model, x, plan).x, theirs, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sf.solve(model, x, sf.Plan.from_json(plan.to_json())).x, theirs, rtol=1e-9, atol=1e-9)


def test_others(k_diffusion):
    """Found from outside without hints: which samplers they are, and known slips of published code."""
    heun = sf.audit(k_diffusion.sample_heun, 10, most=MOST)
    assert "edm" in heun.same and {check.name for check in heun.failures} == {"draws-used"}
    assert sf.audit(k_diffusion.sample_dpmpp_2m, 10, most=MOST).passed
    third = sf.audit(k_diffusion.sample_dpmpp_3m_sde, 10, most=MOST)
    assert not third.same and third.nearest[0].name == "sde-dpm-solver++-3m" and third.nearest[0].step == 3
    assert third.mends[0].factor == pytest.approx(0.5) and third.mends[0].weight == "the second difference of x̂_0"
    assert {check.name for check in third.failures} == {"finite", "weights"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_schedulers():
    diffusers = pytest.importorskip("diffusers")
    ddim = sf.audit(diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing"), 10, most=MOST)
    assert ddim.passed and "ddim" in ddim.same
    flow = sf.audit(diffusers.FlowMatchHeunDiscreteScheduler(), 6, most=MOST)
    assert flow.passed and "pf-ode" in flow.same
    clips = sf.audit(diffusers.DDIMScheduler(), 10, most=MOST)
    assert {"affine", "levels"} <= {check.name for check in clips.failures}
    bent = sf.audit(diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3), 12, most=MOST)
    assert {"weights", "law"} <= {check.name for check in bent.failures} and any(
        mend.weight == "the second difference of x̂_0" and mend.calls[0] == 3 for mend in bent.mends
    )
    leading = sf.audit(diffusers.DDIMScheduler(clip_sample=False), 10, most=MOST)
    assert "ddim" in leading.same and "at call 0 the network is told σ/α = 60.8" in str(leading)


def test_the_command(tmp_path, monkeypatch):
    """Exit code 1 where a check fails, 2 for what was typed wrongly; JSON; a file's function, a scheduler's class, a name."""
    (tmp_path / "audited.py").write_text(
        "def noisy(net, x, n):\n    import torch\n    return x - net(x, 0.5) + torch.randn_like(x)\n"
    )
    runner = CliRunner()
    bad = runner.invoke(cli.app, ["audit", f"{tmp_path / 'audited.py'}:noisy", "--steps", "1,2", "--most", "20"])
    assert bad.exit_code == 1 and bad.output.count("FAIL no-last-noise") == 2
    good = runner.invoke(
        cli.app, ["audit", "ddim(eta=0.5)", "--steps", "5", "--json", "--most", "20", "--out", str(tmp_path / "r.html")]
    )
    assert (tmp_path / "r.html").exists()
    assert good.exit_code == 0 and json.loads(good.output)[0]["passed"] is True
    for words, says in (
        (["audit", "ddim", "--steps", "5,x"], "steps must be whole numbers with commas between, got 'x'"),
        (["audit", f"{tmp_path / 'audited.py'}:noise"], "sampler: .* has no function 'noise'; did you mean noisy"),
        (["audit", "ddim", "--path", "vpp"], "path must be one of"),
    ):
        wrong = runner.invoke(cli.app, words)
        assert isinstance(wrong.exception, ValueError) and re.search(says, str(wrong.exception))


def test_a_page_goes_from_the_first_state_on():
    """One that is scaled otherwise shows in its own check, and not in every state and row."""
    shown = section(sf.audit(Loop("first state"), 6, most=6))
    assert shown.right == "ddim" and max(shown.apart) < 1e-12 and not shown.passed
    assert all(its == ours and its.count("·") == 2 for _, its, ours in shown.rows[:-1]) and len(shown.rows) == 6


def test_what_is_said(tmp_path):
    found = sf.audit(Loop("noise at the end"), 6, waive=["ends-at-data"], most=MOST)
    said = json.loads(found.to_json())
    assert json.loads(found.save(tmp_path / "one.json").read_text())[0] == said
    page = found.save(tmp_path / "one.html").read_text()
    assert page.count("<img") == 4 and "1 checks fail" in page and "no-last-noise" in page and found.head in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page) and "FAIL" not in page
    assert "no-last-noise" in found._repr_html_() and str(found).splitlines()[-len(found.checks)].startswith("FAIL no-last")
    assert said["passed"] is False and said["nfe"] == 6 and len(said["times"]) == 6
    assert {check["name"] for check in said["checks"]} >= {"affine", "batch", "law"} and "ends-at-data" not in str(found)
    for call, error, match in (
        (lambda: sf.audit(3), TypeError, "sampler must be a name, a Sampler, a scheduler or a function, got int"),
        (lambda: sf.audit("ddim", 0), ValueError, "steps must be a whole number ≥ 1, got 0"),
        (lambda: sf.audit("ddim", waive=["levls"]), ValueError, "waive must be one of affine, .* got 'levls'"),
        (lambda: found.save(tmp_path / "one.txt"), ValueError, "the ending of out must be one of .html, .json, got '.txt'"),
        (lambda: found.save(tmp_path / "no" / "one.html"), FileNotFoundError, "no"),
        (lambda: sf.audit("ddin"), ValueError, "no sampler is called 'ddin'"),
    ):
        with pytest.raises(error, match=match):
            call()


def test_the_fixture(scoreflow_audit):
    """It gives the audit, and fails the test with the report."""
    assert "ddim" in scoreflow_audit(Loop(), 6, most=MOST, same="ddim").same
    scoreflow_audit(Loop("noise at the end"), 6, most=MOST, waive=["ends-at-data", "no-last-noise"])
    with pytest.raises(pytest.fail.Exception, match="FAIL no-last-noise"):
        scoreflow_audit(Loop("noise at the end"), 6, most=MOST)
    with pytest.raises(pytest.fail.Exception, match="it is not ddpm"):
        scoreflow_audit(Loop(), 6, most=MOST, same="ddpm")
