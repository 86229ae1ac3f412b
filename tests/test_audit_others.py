"""Samplers of other projects, read by what their classes and functions take: right ones are ours of the same name, slips show.

Their code is not here: `benchmarks/published.py --peers` reads it. These are the same signatures in our words.
"""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import PATHS
from typer.testing import CliRunner

import scoreflow as sf
from scoreflow import cli
from scoreflow._audit.compare import nearest, times_of
from scoreflow._audit.found import found
from scoreflow._audit.stranger import Curves, Stranger
from scoreflow._uses.read_back import read_back

VP, FLOW = PATHS["vp"], sf.Flow()


def apart(stranger, name, end, steps=6, **options):
    """How far a reading is from ours at the times that were told, and at `end`, over each state's largest weight."""
    reading = read_back(stranger.build(steps))
    times = dict.fromkeys(stranger.time_of(label) for label in reading.labels)
    sampler = sf.get_sampler(name, **options)

    def own(net, x):
        model = sf.ScoreModel(lambda x, t: net(x, t), stranger.path, stranger.prediction)
        return sf.solve(model, x, sampler, grid=[*times, *([end] if end < min(times) else [])], seed=0).x

    assert reading.breaks is None
    size = torch.cat([reading.states, reading.end[None]]).abs().amax(1)
    return float((reading.apart(read_back(own)) / size.clamp(min=1.0)).max())


# -- azula -----------------------------------------------------------------------------------------------------------------


class Around:
    """As azula's samplers: made around a denoiser, called on a state; `root` is its slip in DDIM."""

    def __init__(self, denoiser, eta=0.0, root=False, start=1.0, steps=64, silent=False):
        self.denoiser, self.eta, self.root, self.start, self.steps, self.silent = denoiser, eta, root, start, steps, silent

    @property
    def timesteps(self):
        return torch.linspace(self.start, 0.0, self.steps + 1)

    def __call__(self, x):
        assert self.silent
        times = self.timesteps
        for t, s in pairwise(times):
            (a, b), (c, d) = self.denoiser.schedule(t), self.denoiser.schedule(s)
            x_0 = self.denoiser(x, t).mean
            share = (math.sqrt(self.eta) if self.root else self.eta) ** 2 * (1 - (a * d / (b * c)) ** 2)
            x = c * x_0 + d * (1 - share).sqrt() * (x - a * x_0) / b + d * share.sqrt() * torch.randn_like(x)
        return x


def straight(t):
    """A schedule of a flow that begins with a little noise."""
    return 1 - t, t + (1 - t) * 1e-3


def test_around_a_denoiser():
    """In float64, though its times are made in the default dtype; on its own schedule, which is no path of ours."""
    right = found(Around, schedule=straight, eta=0.5)
    assert isinstance(right.path, Curves) and apart(right, "ddim", 0.0, eta=0.5) < 1e-12
    wrong = found(Around, schedule=straight, eta=0.5, root=True)
    assert apart(wrong, "ddim", 0.0, eta=0.5) > 0.1 and apart(wrong, "ddim", 0.0, eta=math.sqrt(0.5)) < 1e-12
    own = Around(type("Denoiser", (), {"schedule": staticmethod(lambda t: (1 - t, t))})(), steps=3)
    assert isinstance(found(own).path, sf.Flow) and apart(found(own), "ddim", 0.0) < 1e-12 and own.steps == 3
    t = torch.tensor([1e-4, 0.3, 0.77, 1.0], dtype=torch.float64)
    torch.testing.assert_close(right.path.time(right.path.lam(t)), t, rtol=1e-12, atol=1e-12)
    for call, match in (
        (lambda: found(Around), r"Around stands on a noise schedule: give schedule=, t to \(alpha, sigma\)"),
        (lambda: found(Around, schedule=straight, path=VP), "path is known of Around, and cannot be given"),
        (lambda: found(own, eta=1.0), "Around has no option 'eta'; it has schedule"),
    ):
        with pytest.raises(TypeError, match=match):
            call()


AZULA = {
    "DDPMSampler": ("ddpm", {}), "DDIMSampler": ("ddim", {}), "EulerSampler": ("ddim", {}), "HeunSampler": ("edm", {}),
    "zABSampler": ("lms", {"order": 2}), "zEABSampler": ("exponential-ab-2", {}), "xEABSampler": ("res-2m", {}),
}  # fmt: skip


def test_azula():
    """Its samplers on its own schedule; η by its root, and σ_t for σ_s in REAB, as docs/published.md has them."""
    sample = pytest.importorskip("azula.sample")
    for theirs, (name, options) in AZULA.items():
        stranger = found(getattr(sample, theirs))
        assert repr(stranger.path) == "the path of VPSchedule" and apart(stranger, name, 0.0, **options) < 1e-10, theirs
        assert times_of(read_back(stranger.build(6)), stranger, 6).end == 0.0  # where their path begins, not at data
    assert apart(found(sample.DDIMSampler, eta=0.5), "ddim", 0.0, eta=0.5) > 0.1
    assert apart(found(sample.DDIMSampler, eta=0.5), "ddim", 0.0, eta=math.sqrt(0.5)) < 1e-10
    assert apart(found(sample.REABSampler), "reab", 0.0) > 0.1
    audit = sf.audit(sample.DDIMSampler, 6, schedule=lambda t: (1 - t, t), most=20)
    half = sf.audit(sample.DDIMSampler, 6, schedule=lambda t: (1 - t, t), eta=0.5, most=6)
    assert half.same == ("ddim(eta=0.707107)",) and "options" in {check.name for check in half.failures}
    assert "ddim" in audit.same and {check.name for check in audit.failures} == {"draws-used"}


# -- DPM-Solver and UniPC --------------------------------------------------------------------------------------------------


class NoiseScheduleVP:
    """Of the linear β, in the dtype of the times."""

    total_N = 1000

    def __init__(self, schedule="discrete", betas=None):
        self.schedule, self.betas = schedule, betas
        if schedule == "discrete":
            self.t_array = torch.linspace(0.0, 1.0, len(betas) + 1)[None, 1:]
            self.log_alpha_array = 0.5 * torch.log(1 - betas).cumsum(0)[None]

    def marginal_alpha(self, t):
        return torch.exp(-0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1)

    def marginal_std(self, t):
        return torch.sqrt(1.0 - self.marginal_alpha(t) ** 2)

    def marginal_lambda(self, t):
        return torch.log(self.marginal_alpha(t) / self.marginal_std(t))


class Solver:
    """DPM-Solver++ multistep of order 1 to 3, `half` with the second difference that the published code has."""

    def __init__(self, model_fn, noise_schedule, half=False):
        self.model, self.noise_schedule, self.half = lambda x, t: model_fn(x, t.expand(len(x))), noise_schedule, half

    def sample(self, x, steps=20, order=2, t_end=1e-3):
        print("sampling")
        ns, times, memory = self.noise_schedule, torch.linspace(1.0, t_end, steps + 1), []
        lam = ns.marginal_lambda(times)
        for i, (t, s) in enumerate(pairwise(times)):
            x_0 = (x - ns.marginal_std(t) * self.model(x, t)) / ns.marginal_alpha(t)
            memory, h = [x_0, *memory[: order - 1]], lam[i + 1] - lam[i]
            grown = -torch.expm1(-h)
            total = grown * x_0
            if len(memory) > 1:
                first = (memory[0] - memory[1]) / (lam[i] - lam[i - 1])
                total = total + (0.5 * h * grown if order == 2 else h - grown) * first
            if len(memory) > 2:
                before = (memory[1] - memory[2]) / (lam[i - 1] - lam[i - 2])
                second = (first - before) / (lam[i] - lam[i - 2])
                weight = (h**2 / 2 - h + grown) * (1 if self.half else 2)
                total = total + weight * second + (h - grown) * (lam[i] - lam[i - 1]) * second
            x = ns.marginal_std(s) / ns.marginal_std(t) * x + ns.marginal_alpha(s) * total
        return x


def test_solvers(tmp_path, monkeypatch):
    """By the class, on the noise schedule beside it, or as it is; the second difference of order 3 shows from call 3 on."""
    right = found(Solver, order=2)
    assert right.path.__class__ is sf.VPSDE and right.prediction == "eps"
    assert apart(right, "dpm-solver++-2m", 1e-3) < 1e-10 and apart(found(Solver, order=3), "dpm-solver++-3m", 1e-3) < 1e-10
    assert apart(found(Solver(lambda x, t: x, NoiseScheduleVP("linear")), order=1), "ddim", 1e-3) < 1e-10
    half = found(Solver, order=3, half=True)
    assert apart(half, "dpm-solver++-3m-published", 1e-3) < 1e-10
    off = read_back(half.build(6)).apart(read_back(found(Solver, order=3).build(6)))
    assert float(off[:3].max()) < 1e-12 and float(off[3]) > 1e-3
    betas = sf.DDPMChain.linear().beta
    chain, ours = found(Solver, noise_schedule=NoiseScheduleVP("discrete", betas)).path, sf.VPSDE.from_betas(betas)
    at = torch.tensor([0.001, 0.2, 0.999, 1.0], dtype=torch.float64)
    torch.testing.assert_close(chain.alpha(at), ours.alpha(at), rtol=1e-6, atol=0)
    torch.testing.assert_close(chain.sigma(at), ours.sigma(at), rtol=1e-5, atol=0)
    with pytest.raises(TypeError, match=r"Solver has no option 'ordr'; it has model_fn, .* did you mean order"):
        found(Solver, ordr=2)
    monkeypatch.delitem(globals(), "NoiseScheduleVP")
    with pytest.raises(TypeError, match="Solver stands on a noise schedule: give noise_schedule="):
        found(Solver)
    monkeypatch.undo()
    (tmp_path / "their_solver.py").write_text("from test_audit_others import NoiseScheduleVP, Solver\n")
    run = CliRunner().invoke(
        cli.app, ["audit", f"{tmp_path}/their_solver.py:Solver(order=2)", "--steps", "6", "--json", "--most", "20"]
    )
    said = json.loads(run.stdout)[0]
    assert "dpm-solver++" in [one["name"] for one in said["nearest"] if one["step"] is None]
    assert "ends-at-data" in [check["name"] for check in said["checks"] if not check["holds"]]


def test_a_last_state_that_is_not_corrected():
    """UniPC's own code leaves its last corrector out: it is unipc all the same."""
    plan = sf.plan("unipc-2", VP, grid=[1.0, 0.8, 0.6, 0.4, 0.2, 0.01])
    last = plan.steps[-1]
    stranger = found(replace(plan, steps=(*plan.steps[:-1], last._replace(stages=last.stages[:1]))))
    reading = read_back(stranger.build(5))
    near = nearest(reading, stranger, times_of(reading, stranger, 5))
    assert reading.nfe == 5 and "unipc-2" in [one.name for one, _ in near if one.step is None]


# -- score_sde -------------------------------------------------------------------------------------------------------------


class VESDE:
    """As of score_sde, in N steps."""

    T = 1

    def __init__(self, sigma_min=0.01, sigma_max=50.0, N=1000):
        self.sigma_min, self.sigma_max, self.N = sigma_min, sigma_max, N

    def marginal_prob(self, x, t):
        return x, self.sigma_min * (self.sigma_max / self.sigma_min) ** t


class Ancestral:
    """A predictor from the level of t to that of a step below."""

    def __init__(self, sde, score_fn, probability_flow=False):
        self.sde, self.score_fn, self.flow = sde, score_fn, probability_flow

    def update_fn(self, x, t):
        below = t - (1 - 1e-3) / (self.sde.N - 1)
        sigma, less = (self.sde.marginal_prob(x, at)[1][:, None, None, None] for at in (t, below))
        mean = x + (sigma**2 - less**2) * self.score_fn(x, t)
        return mean + (less**2 * (sigma**2 - less**2) / sigma**2).sqrt() * torch.randn_like(x), mean


class Langevin:
    """A corrector with a step of its own, or one that depends on the norm of the score."""

    def __init__(self, sde, score_fn, snr, norm=False):
        self.sde, self.score_fn, self.snr, self.norm = sde, score_fn, snr, norm

    def update_fn(self, x, t):
        score = self.score_fn(x, t)
        step = self.snr * (self.sde.marginal_prob(x, t)[1] ** 2)[:, None, None, None] / (score.norm() if self.norm else 1)
        mean = x + step * score
        return mean + (2 * step).sqrt() * torch.randn_like(x), mean


def test_predictors():
    """In the loop of score_sde, with and without a corrector; the network is told t and gives the score."""
    stranger = found(Ancestral, sde=VESDE(0.02, 20.0))
    assert stranger.prediction == "score" and stranger.path.sigma(1.0) == pytest.approx(20.0)
    reading = read_back(stranger.build(5))
    assert reading.labels == pytest.approx(torch.linspace(1, 1e-3, 5).tolist()) and reading.unused == (4,)
    below = stranger.time_of(reading.labels[-1]) - (1 - 1e-3) / 4
    assert below < 0  # the last step of their loop
    states = sf.plan("ddpm", stranger.path, grid=list(reading.labels)).steps
    assert reading.states[1, 0] == 1.0 and reading.draws == 5
    kept = [float(row.stages[0].row.z) for row in states]
    assert torch.diagonal(reading.states[1:, 6:]).tolist() == pytest.approx(kept, rel=1e-9)
    assert read_back(found(Ancestral, sde=VESDE, denoise=False).build(5)).unused == ()
    both = read_back(found(Ancestral, sde=VESDE, corrector=Langevin, snr=0.1).build(5))
    assert both.nfe == both.draws == 10 and both.breaks is None
    assert read_back(found(Ancestral, sde=VESDE, corrector=Langevin, snr=0.1, norm=True).build(5)).breaks == 1
    for options, match in (({}, "Ancestral stands on an SDE: give sde="), ({"sde": VESDE, "snr": 1}, "has no option 'snr'")):
        with pytest.raises(TypeError, match=match):
            found(Ancestral, **options)


# -- EDM -------------------------------------------------------------------------------------------------------------------


def heun(net, latents, class_labels=None, randn_like=torch.randn_like, num_steps=18, sigma_max=80, churn=0.0, late=False):
    """EDM's sampler; `late` takes the slope at the level before the noise."""
    ramp = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    top = min(sigma_max, net.sigma_max)
    levels = net.round_sigma((top ** (1 / 7) + ramp * (max(0.002, net.sigma_min) ** (1 / 7) - top ** (1 / 7))) ** 7)
    levels, x = [*levels, torch.zeros(())], latents * levels[0]
    for i, (now, after) in enumerate(pairwise(levels)):
        up = now * (1 + min(churn / num_steps, 2**0.5 - 1))
        at = x + (up**2 - now**2).sqrt() * randn_like(x)
        slope = (at - net(at, up, class_labels)) / (now if late else up)
        x = at + (after - up) * slope
        if i < num_steps - 1:
            x = at + (after - up) * (slope + (x - net(x, after, class_labels)) / after) / 2
    return x


def test_edm():
    """Noise of variance 1 is the first state over its σ; with churn the path goes as far up as the network is told."""
    stranger = found(heun)
    assert apart(stranger, "edm", 0.0) < 1e-11 and stranger.path.sigma(1.0) == pytest.approx(80)
    assert found(heun, sigma_max=10).path.sigma(1.0) == pytest.approx(10)
    churned = found(heun, churn=40)
    assert churned.path.sigma(1.0) == pytest.approx(80 * 2**0.5) and churned.path.sigma(churned.start) == pytest.approx(80)
    reading = read_back(churned.build(6))
    told = [churned.time_of(label) for label in reading.labels]
    levels = reading.levels(churned.path, "x0", told, churned.start)
    at = torch.tensor([churned.path.sigma(t) for t in told], dtype=torch.float64)
    torch.testing.assert_close(levels[:-1, 1], at, rtol=1e-9, atol=0)
    reading = read_back(found(heun, churn=40, late=True).build(6))
    assert float((reading.levels(churned.path, "x0", told, churned.start)[1:-1, 1] / at[1:] - 1).abs().max()) > 0.1
    with pytest.raises(TypeError, match="heun has no option 'rho'"):
        found(heun, rho=7)


# -- steps that are functions ----------------------------------------------------------------------------------------------


class Shifted:
    """A scheduler of a flow, in few words."""

    def set_timesteps(self, n, shift=1.0):
        t = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        self.sigmas = shift * t / (1 + (shift - 1) * t)
        self.timesteps = 1000 * self.sigmas[:-1]

    def step(self, velocity, t, x):
        (k,) = (self.timesteps == t).nonzero()[0]
        return x + (self.sigmas[k + 1] - self.sigmas[k]) * velocity


def step_with_density(scheduler: Shifted, model_output, timestep, sample, generator=None, level=0.7):
    """Euler–Maruyama of a flow with noise, as of Flow-GRPO, with the mean of its Gaussian beside the draw."""
    k = [int((scheduler.timesteps == t).nonzero()) for t in timestep]
    t, s = (scheduler.sigmas[torch.tensor(k) + j].view(-1, 1, 1, 1) for j in (0, 1))
    rate = level**2 * t / (1 - torch.where(t == 1, scheduler.sigmas[1], t))
    x_0, eps = sample - t * model_output, sample + (1 - t) * model_output
    mean = sample + (s - t) * (eps - x_0 + rate / (2 * t) * eps)
    return mean + (rate * (t - s)).sqrt() * torch.randn(sample.shape, generator=generator, dtype=sample.dtype), mean


def test_steps_that_are_functions():
    """In the loop of the scheduler that is given, or that the annotation names; noise after the last call shows."""
    words = {"path": FLOW, "prediction": "flow", "time": ("scaled", 1000.0)}
    stranger = found(step_with_density, **words, level=0.5, shift=3.0)
    reading, other = (read_back(one.build(5)) for one in (stranger, found(Shifted, **words, shift=3.0)))
    assert reading.labels == other.labels and reading.draws == 5 and other.draws == 0 and other.breaks is None
    own = read_back(
        lambda net, x: sf.solve(
            sf.ScoreModel(net, FLOW, "flow"), x, sf.get_sampler("flow-sde", a=0.5),
            grid=[*(label / 1000 for label in reading.labels), 0.0], seed=0,
        ).x
    )  # fmt: skip
    torch.testing.assert_close(reading.states[:, :-1], own.states, rtol=1e-12, atol=1e-12)
    assert float(reading.end[-1]) > 0.05 and own.draws == 4
    audit = sf.audit(step_with_density, 5, **words, most=5)
    assert audit.nearest[0].name == "flow-sde" and audit.nearest[0].step == 5  # noise after the last call, nothing else
    assert {"no-last-noise", "ends-at-data"} <= {check.name for check in audit.failures}
    with pytest.raises(TypeError, match="<lambda> is the step of a scheduler, its 'self': give scheduler="):
        found(lambda self, model_output, timestep, sample: sample, **words)


# -- functions and classes of them -----------------------------------------------------------------------------------------


class Function:
    """Made without arguments."""

    def __call__(self, net, x, n):
        return net(x, 1.0)


def test_functions():
    """A class is made; what a network is told by a function of its own is inverted."""
    assert read_back(found(Function).build(1)).end.tolist() == [0.0, 1.0]
    for time in (lambda t: 3 * t**2, lambda t: 1 - t):
        stranger = found(Function(), time=time)
        assert stranger.time_of(float(time(0.3))) == pytest.approx(0.3, abs=1e-12)
    assert isinstance(stranger, Stranger)
    with pytest.raises(TypeError, match=r"sampler must be a class of functions run\(net, x_T, n\), and dict\(\) cannot"):
        found(dict)
