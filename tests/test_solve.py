"""sample, solve, walk and Plan: the loop, what it keeps, what it depends on, and the law of what comes out."""

import json
import math
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import LINEAR, PATHS, linear, mixture, states
from scipy import stats
from torch import nn

import scoreflow as sf
from scoreflow.run import Run
from scoreflow.step import SAMPLERS

RATE = 1e-6
ORACLE = mixture()
VP = ORACLE.model(PATHS["vp"])
CHAIN = ORACLE.model(PATHS["chain"])
ON = {"vp": VP, "chain": CHAIN, "sub-vp": ORACLE.model(PATHS["sub-vp"]), "ve": ORACLE.model(PATHS["ve"])}
X = states(4, 3)

# Made with learned variances, Langevin, torchdiffeq, SciPy and torchsde: steps that are not rows.
OTHERS = {
    "predictor-corrector": {},
    "predictor-corrector bridge": {"corrector": "bridge"},
    "torchdiffeq": {},
    "torchdiffeq rk4": {"method": "rk4"},
    "torchdiffeq sample": {"control": "sample"},
    "scipy": {},
    "scipy sample": {"control": "sample"},
    "torchsde": {},
    "torchsde srk": {"method": "srk"},
}
ALL = [*LINEAR, *OTHERS]


def sampler(case: str) -> sf.Sampler:
    return linear(case) if case in LINEAR else sf.get_sampler(case.split()[0], **OTHERS[case])


def by_hand(model, chosen, times, x, noise):
    """The loop, written out: the last state, and how often the network was asked."""
    run, memory = Run(model, {}, len(x)), ()
    for t, s in pairwise(times):
        x, memory, _ = chosen.step(run, x, t, s, memory, noise)
    return x, int(run.counts.max())


# -- plans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("case", LINEAR)
def test_a_plan_is_its_sampler(case, on):
    """Running the sampler, running its plan, its plan from JSON, and stepping by hand are the same to the bit."""
    model, chosen = ON[on], linear(case)
    start = {"ve": 0.8}.get(on, 1.0)
    x_T = X * model.path.prior_std(start)
    plan = sf.plan(chosen, model.path, steps=5, start=start)
    draws = sf.White(3).draws("step")
    want, asked = by_hand(model, chosen, plan.times, x_T, draws)
    before = model.nfe
    run = sf.solve(model, x_T, chosen, steps=5, start=start, seed=3)
    planned = sf.solve(model, x_T, plan, seed=3)
    again = sf.Plan.from_json(plan.to_json())
    read = sf.solve(model, x_T, again, seed=3)
    for sol in (run, planned, read):
        assert torch.equal(sol.x, want)
        assert sol.nfe == plan.nfe == asked
        assert sol.noise_count == plan.noise_count == draws.count
        assert sol.plan == plan
        assert sol.times == plan.times
        assert sol.nfe_per_sample == (plan.nfe,) * len(X)
    assert model.nfe - before == 3 * plan.nfe
    assert again == plan
    assert hash(again) == hash(plan)


@pytest.mark.parametrize("on", ["cosine", "flow"])
@pytest.mark.parametrize("case", LINEAR)
def test_plans_where_alpha_is_zero(case, on):
    """At t = 1 the rows are finite, and run as the sampler does; or the clock is infinite there and says so."""
    model, chosen = ORACLE.model(PATHS[on]), linear(case)
    noise_form = chosen.wants == "eps" and case != "reverse-diffusion"  # x/α is infinite there
    if noise_form or case in ("dpm-solver++ 2s", "dpm-solver++ 3s"):
        with pytest.raises(ValueError, match="alpha=0"):
            sf.plan(chosen, model.path, steps=5)
        return
    plan = sf.plan(chosen, model.path, steps=5)
    assert all(math.isfinite(c) for step in plan.steps for _, row in step.stages for c in (row.x, *row.m, row.z))
    assert sf.Plan.from_json(plan.to_json()) == plan
    want, _ = by_hand(model, chosen, plan.times, X, sf.White(3).draws("step"))
    assert torch.equal(sf.solve(model, X, plan, seed=3).x, want)


@pytest.mark.parametrize("case", LINEAR)
def test_a_plan_can_be_read(case):
    plan = sf.plan(linear(case), PATHS["vp"], steps=3)
    text = str(plan)
    assert case.split()[0] in text
    assert f"{plan.nfe} evaluations" in text
    assert len(text.splitlines()) == 2 + sum(len(step.stages) for step in plan.steps)
    assert json.loads(plan.to_json())["sampler"] == case.split()[0]
    assert plan != sf.plan(linear(case), PATHS["vp"], steps=4)
    assert plan == sf.plan(case.split()[0], PATHS["vp"], steps=3, **LINEAR[case])
    assert len({plan, sf.Plan.from_json(plan.to_json())}) == 1
    assert plan.peak_tensors >= 3  # the state, an output, the state being made


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"steps": 3}', '{"steps": [], "options": {}, "colour": 1}'])
def test_other_text_is_no_plan(text):
    with pytest.raises(ValueError, match="no plan"):
        sf.Plan.from_json(text)


def test_a_plan_is_for_its_path():
    plan = sf.plan("ddim", PATHS["vp"], steps=3)
    with pytest.raises(ValueError, match="made for"):
        sf.solve(CHAIN, X, plan)


@pytest.mark.parametrize(
    "extra", [{"steps": 3}, {"nfe": 3}, {"grid": "uniform"}, {"start": 0.5}, {"stop": 0.1}, {"denoise": True}], ids=str
)
def test_a_plan_has_its_times(extra):
    """What would change them is refused, not dropped."""
    plan = sf.plan("ddim", PATHS["vp"], steps=3, stop=0.01)
    with pytest.raises(ValueError, match="a plan has its times"):
        sf.solve(VP, X, plan, **extra)


@pytest.mark.parametrize("name", ["scipy", "predictor-corrector", "torchsde"])
def test_what_is_not_rows_has_no_plan(name):
    with pytest.raises(ValueError, match="no plan"):
        sf.plan(name, PATHS["vp"], steps=3)


# -- solutions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL)
def test_a_solution_tells_the_run(case):
    seen = []
    sol = sf.solve(VP, X, sampler(case), steps=4, seed=5, trajectory=True, callback=seen.append)
    assert len(sol.times) == 5
    assert sol.times[0] == 1.0
    assert sol.times[-1] == 0.0
    assert sol.states.shape == (5, *X.shape)
    assert torch.equal(sol.states[0], X)
    assert torch.equal(sol.states[-1], sol.x)
    assert [state.step for state in seen] == [0, 1, 2, 3, 4]
    assert tuple(state.t for state in seen) == sol.times
    assert torch.equal(torch.stack([state.x for state in seen]), sol.states)
    assert sol.seed == 5
    assert torch.equal(sf.solve(VP, X, sol.sampler, grid=sol.times, seed=sol.seed).x, sol.x)
    assert sol.nfe == max(sol.nfe_per_sample)
    assert sol.citations.count("@") == len(sol.sampler.cites) >= 1
    assert case.split()[0] in repr(sol)
    assert sf.solve(VP, X, sampler(case), steps=4, seed=5).states is None
    if not sol.sampler.stochastic:
        assert sol.noise_count == 0
        assert torch.equal(sf.solve(VP, X, sol.sampler, steps=4, seed=6).x, sol.x)
    else:
        assert sol.noise_count > 0
        assert not torch.equal(sf.solve(VP, X, sol.sampler, steps=4, seed=6).x, sol.x)


def test_no_seed_takes_one_that_repeats_the_run():
    sol = sf.solve(VP, X, "ddpm", steps=4)
    assert torch.equal(sf.solve(VP, X, "ddpm", steps=4, seed=sol.seed).x, sol.x)
    assert not torch.equal(sf.solve(VP, X, "ddpm", steps=4).x, sol.x)
    torch.manual_seed(1)
    a = sf.sample(VP, (2, 3), "ddpm", steps=4, dtype=torch.float64)
    torch.manual_seed(1)
    assert torch.equal(sf.sample(VP, (2, 3), "ddpm", steps=4, dtype=torch.float64), a)


class Stop(Exception):
    pass


@pytest.mark.parametrize("case", ["ddpm", "torchdiffeq"])
def test_an_exception_in_the_callback_propagates(case):
    def callback(state):
        if state.step == 2:
            raise Stop

    with pytest.raises(Stop):
        sf.solve(VP, X, sampler(case), steps=4, callback=callback)


def test_progress(capsys):
    quiet = sf.solve(VP, X, "ddpm", steps=4, seed=0)
    assert capsys.readouterr() == ("", "")
    shown = sf.solve(VP, X, "ddpm", steps=4, seed=0, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "ddpm" in err
    assert "100%" in err
    assert torch.equal(quiet.x, shown.x)


@pytest.mark.parametrize("case", ALL)
def test_x_T_is_not_modified(case):
    x = X.clone()
    sf.solve(VP, x, sampler(case), steps=3, seed=0)
    assert torch.equal(x, X)


# -- every sampler ---------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """A small nonlinear network of any shape, with one parameter."""

    def __init__(self, dtype=torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=dtype))

    def forward(self, x, t):
        return torch.tanh(x * self.weight) * t.reshape(-1, *[1] * (x.ndim - 1)).to(x)


def twice(net):
    """The same network with a word on the variance, for ddpm's learned variance."""
    return lambda x, t: torch.cat([net(x, t), torch.zeros_like(x)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 5), (4,)], ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_dtype_and_shape_are_kept(name, shape, dtype):
    model = sf.ScoreModel(Toy(dtype), sf.VPSDE())
    sol = sf.solve(model, states(*shape, dtype=dtype), name, steps=4, seed=0, trajectory=True)
    assert sol.x.shape == shape
    assert sol.x.dtype == sol.states.dtype == dtype
    assert sol.x.isfinite().all()
    assert sol.nfe >= 4
    x = sf.sample(model, shape, name, steps=4, seed=0)
    assert (x.shape, x.dtype) == (shape, dtype)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step(name):
    """From t = 1 to 0 in one step every sampler gives x̂_0."""
    sol = sf.solve(VP, X, name, steps=1, seed=0)
    assert sol.times == (1.0, 0.0)
    torch.testing.assert_close(sol.x, VP.x0(X, 1.0), rtol=1e-9, atol=1e-9)
    assert sol.nfe == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_defaults_run(name):
    sol = sf.solve(sf.ScoreModel(Toy(), sf.VPSDE()), states(2, 3, dtype=torch.float32), name, seed=0)
    assert sol.x.isfinite().all()
    assert sol.times[-1] == 0


@pytest.mark.parametrize("variance", ["learned", "interpolated"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_learned_variance_keeps_dtype(variance, dtype):
    model = sf.ScoreModel(twice(Toy(dtype)), sf.VPSDE())
    sol = sf.solve(model, states(2, 3, dtype=dtype), "ddpm", variance=variance, steps=4, seed=0)
    assert (sol.x.dtype, sol.x.shape) == (dtype, (2, 3))
    assert (sol.nfe, sol.noise_count) == (4, 3)


def test_interpolated_by_the_network_is_interpolated_by_hand():
    """A word o means the share v = (o + 1)/2; here o = 0."""
    model = sf.ScoreModel(lambda x, t: torch.tanh(x), sf.VPSDE())
    told = sf.ScoreModel(twice(model.net), sf.VPSDE())
    a = sf.solve(told, X, "ddpm", variance="interpolated", steps=6, seed=0).x
    b = sf.solve(model, X, "ddpm", variance="interpolated", v=0.5, steps=6, seed=0).x
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("v", [-1.0, 0.0, 0.4])
def test_learned_variance_is_the_networks(v):
    """On a chain: the textbook's posterior mean, plus exp(o/2) times the draw, none at the last step."""
    chain = sf.DDPMChain.linear(6, 0.05, 0.6)
    path = sf.VPSDE.from_betas(chain.beta)

    def net(x, t):
        return torch.cat([torch.tanh(x), torch.full_like(x, v)], 1)

    got = sf.solve(sf.ScoreModel(net, path, "x0"), X, "ddpm", variance="learned", seed=0)
    x, draws = X, sf.White(0).draws("step")
    for i in range(6, 0, -1):
        x = chain.posterior_mean(x, torch.tanh(x), i)
        x = x if i == 1 else x + math.exp(v / 2) * draws(x)
    torch.testing.assert_close(got.x, x, rtol=1e-12, atol=1e-12)
    assert (got.nfe, got.noise_count) == (6, 5)


@pytest.mark.parametrize("case", [*LINEAR, "predictor-corrector"])
def test_an_empty_batch(case):
    sol = sf.solve(VP, X[:0], sampler(case), steps=3, seed=())
    assert sol.x.shape == (0, 3)
    assert sol.nfe_per_sample == ()


COUNTED = {
    **{f"torchdiffeq {m}": m for m in ("euler", "midpoint", "heun2", "heun3", "rk4")},
    "torchsde euler": "euler",
}


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("stop", [0.0, 0.05])
@pytest.mark.parametrize("case", COUNTED)
def test_declared_evaluations_are_those_counted(case, stop, substeps):
    chosen = sf.get_sampler(case.split()[0], method=COUNTED[case], substeps=substeps)
    sol = sf.solve(VP, X, chosen, steps=4, stop=stop, seed=0)
    assert sol.nfe == chosen.evaluations(PATHS["vp"], sol.times)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "RK45", "DOP853", "LSODA"])
@pytest.mark.parametrize("variable", ["t", "lambda"])
def test_adaptive_solvers_reach_the_exact_flow(method, variable):
    """On a Gaussian, from t = 0.9 to 0.05, to the tolerance."""
    gaussian = sf.Gaussian(torch.tensor([0.5, -1.0, 0.0]), torch.tensor([0.5, 1.0, 2.0]))
    sol = sf.solve(
        gaussian.model(PATHS["vp"]), X, "pf-ode", method=method, variable=variable, rtol=1e-9, atol=1e-9, start=0.9, stop=0.05
    )
    assert sol.times == (0.9, 0.05)
    torch.testing.assert_close(sol.x, gaussian.flow(PATHS["vp"], X, 0.9, 0.05), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", LINEAR)
def test_meta_device(case):
    model = sf.ScoreModel(Toy().to("meta"), sf.VPSDE())
    sol = sf.solve(model, torch.empty(2, 3, device="meta"), linear(case), steps=3, seed=0)
    assert (sol.x.device.type, sol.x.shape, sol.x.dtype) == ("meta", (2, 3), torch.float32)
    assert sol.nfe == sf.plan(linear(case), sf.VPSDE(), steps=3).nfe
    assert sf.sample(model, (2, 3), linear(case), steps=3, seed=0).device.type == "meta"


@pytest.mark.parametrize("budget", [1, 2, 7, 20])
@pytest.mark.parametrize("case", ALL)
def test_a_budget_is_respected_and_used(case, budget):
    chosen = sampler(case)
    if chosen.evaluations(PATHS["vp"], (1.0, 0.5, 0.0)) is None:
        with pytest.raises(ValueError, match="cannot be held to nfe"):
            sf.solve(VP, X, chosen, nfe=budget)
        return
    sol = sf.solve(VP, X, chosen, nfe=budget, seed=0)
    assert sol.nfe <= budget
    assert sf.solve(VP, X, chosen, steps=len(sol.times), seed=0).nfe > budget


# -- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", [*LINEAR, "predictor-corrector", "predictor-corrector bridge"])
def test_recorded_draws_replay_the_run(case, dtype):
    x = X.to(dtype)
    run = sf.solve(VP, x, sampler(case), steps=4, seed=8)
    cursor = sf.White(8).draws("step")
    draws = [cursor(x) for _ in range(run.noise_count)]
    draws = torch.stack(draws) if draws else x.new_empty(0, *x.shape)
    replayed = sf.solve(VP, x, sampler(case), steps=4, noise=draws)
    assert torch.equal(replayed.x, run.x)
    assert replayed.seed is None
    assert replayed.noise_count == run.noise_count
    assert torch.equal(sf.solve(VP, x, sampler(case), steps=4, noise=sf.White(8)).x, run.x)
    with pytest.raises(ValueError, match="draws"):
        sf.solve(VP, x, sampler(case), steps=4, noise=torch.cat([draws, x[None]]))
    if len(draws):
        with pytest.raises(ValueError, match="draws"):
            sf.solve(VP, x, sampler(case), steps=4, noise=draws[:-1])


@pytest.mark.parametrize("on", ON)
def test_sample_is_the_prior_and_solve(on):
    model, start = ON[on], {"ve": 0.8}.get(on, 1.0)
    std = math.hypot(model.path.alpha(start), model.path.sigma(start))
    draws = states(5, 2, 3, seed=1)
    got = sf.sample(model, (2, 3), "ddpm", steps=5, start=start, noise=draws, dtype=torch.float64)
    assert torch.equal(got, sf.solve(model, draws[0] * std, "ddpm", steps=5, start=start, noise=draws[1:]).x)
    prior = sf.White(4).draws("prior")(X[:2])
    got = sf.sample(model, (2, 3), "ddpm", steps=5, start=start, seed=4, dtype=torch.float64)
    assert torch.equal(got, sf.solve(model, prior * std, "ddpm", steps=5, start=start, seed=4).x)


def test_sample_replays_a_source_as_it_does_a_tensor():
    """With given draws the first is the prior's, in a tensor or in a Replay."""
    draws = states(5, 2, 3, seed=1)
    want = sf.sample(VP, (2, 3), "ddpm", steps=5, noise=draws, dtype=torch.float64)
    assert torch.equal(sf.sample(VP, (2, 3), "ddpm", steps=5, noise=sf.Replay(draws), dtype=torch.float64), want)


def test_sample_with_draws_too_few_or_too_many():
    for count in (0, 1, 4, 6):
        with pytest.raises(ValueError, match="draws"):
            sf.sample(VP, (2, 3), "ddpm", steps=5, noise=states(count, 2, 3), dtype=torch.float64)


@pytest.mark.parametrize("noise", [sf.White(3), sf.Brownian(3)])
def test_sample_takes_a_source(noise):
    name = type(noise).__name__.lower()
    want = sf.sample(VP, (2, 3), "ddpm", steps=5, noise=name, seed=3, dtype=torch.float64)
    assert torch.equal(sf.sample(VP, (2, 3), "ddpm", steps=5, noise=noise, dtype=torch.float64), want)


def test_sample_has_the_dtype_of_the_network():
    assert sf.sample(sf.ScoreModel(Toy(torch.float64), sf.VPSDE()), (2, 3), steps=2, seed=0).dtype == torch.float64
    assert sf.sample(sf.ScoreModel(lambda x, t: x, sf.VPSDE()), (2, 3), steps=2, seed=0).dtype == torch.float32
    assert sf.sample(sf.ScoreModel(Toy(), sf.VPSDE()), (2, 3), steps=2, seed=0, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(0.9, 0.5, 0.0), torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)])
def test_sample_begins_where_the_times_begin(grid):
    """On a VE path the prior of t = 0.9 is narrower than that of t = 1."""
    model = ON["ve"]
    prior = sf.White(4).draws("prior")(X[:2]) * math.hypot(1, model.path.sigma(0.9))
    want = sf.solve(model, prior, "ddim", grid=grid).x
    assert torch.equal(sf.sample(model, (2, 3), "ddim", grid=grid, seed=4, dtype=torch.float64), want)
    plan = sf.plan("ddim", model.path, grid=grid)
    assert torch.equal(sf.sample(model, (2, 3), plan, seed=4, dtype=torch.float64), want)


SEEDED = {
    "ddpm": ({}, True),
    "ddim": ({"eta": 0.5}, True),
    "euler-maruyama": ({}, True),
    "reverse-sde": ({"method": "heun", "solver": "scoreflow"}, True),
    "predictor-corrector langevin": ({}, False),
    "predictor-corrector bridge": ({"corrector": "bridge"}, False),
    "torchsde euler": ({"method": "euler"}, False),
    "torchsde srk": ({"method": "srk"}, False),
    "scipy": ({"control": "sample"}, False),
    "torchdiffeq": ({"control": "sample"}, False),
}


@pytest.mark.parametrize("noise", ["white", "brownian"])
@pytest.mark.parametrize("case", SEEDED)
def test_a_sample_depends_on_its_own_seed_only(case, noise):
    """Not on its batch-mates, the batch split or the order."""
    options, exact = SEEDED[case]
    noise = None if case.startswith("torchsde") else noise

    def draw(seeds):
        chosen = sf.get_sampler(case.split()[0], **options)
        return sf.sample(VP, (len(seeds), 3), chosen, steps=6, seed=seeds, noise=noise, dtype=torch.float64)

    def same(a, b):
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    whole = draw(range(6))
    same(torch.cat([draw(range(2)), draw([2]), draw(range(3, 6))]), whole)
    same(draw([4, 0, 5]), whole[[4, 0, 5]])
    same(draw([3, 100, 101])[:1], whole[3:4])
    assert (whole[0] != draw([7])[0]).any()


def test_brownian_runs_of_two_step_counts_are_near():
    """Euler–Maruyama of 64 and 128 steps on one path: strong order 1; with white noise two unrelated samples."""
    model = sf.Gaussian(torch.zeros(3), 1.5).model(sf.VPSDE(0.1, 10.0))

    def apart(noise):
        runs = [
            sf.sample(model, (500, 3), "euler-maruyama", steps=n, seed=1, noise=noise, dtype=torch.float64) for n in (64, 128)
        ]
        return (runs[0] - runs[1]).square().mean().sqrt().item()

    assert apart("white") > 5 * apart("brownian")


def test_threads_share_a_sampler_and_a_model():
    """As many runs in threads as one after another, to the bit."""
    jobs = [(case, seed) for case in ("ddpm", "predictor-corrector", "torchdiffeq", "pf-ode heun lambda") for seed in range(3)]
    samplers = {case: sampler(case) for case, _ in jobs}
    model = ORACLE.model(sf.VPSDE())

    def run(case, seed):
        sol = sf.solve(model, states(4, 3, seed=seed), samplers[case], steps=20, seed=seed)
        return sol.x, sol.nfe

    want = {job: run(*job) for job in jobs}
    got, failed = {}, []

    def work(mine):
        try:
            for job in mine:
                got[mine[0], job] = run(*job)
        except Exception as error:
            failed.append(error)

    orders = [jobs, jobs[::-1]]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(got) == 2 * len(jobs)
    for (_, job), (x, nfe) in got.items():
        assert torch.equal(x, want[job][0])
        assert nfe == want[job][1]


# -- gradients and conditions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*LINEAR, "predictor-corrector", "torchdiffeq rk4", "torchsde"])
def test_gradients(case):
    """With grad=True the run is differentiable in x_T and in the parameters; without it no graph is built."""
    net = Toy(torch.float64)
    model = sf.ScoreModel(net, sf.VPSDE())
    x_T = X.clone().requires_grad_()
    sol = sf.solve(model, x_T, sampler(case), steps=3, seed=0, grad=True)
    direction = states(4, 3, seed=9)
    on_x, on_weight = torch.autograd.grad((sol.x * direction).sum(), (x_T, net.weight))

    def value(x, weight):
        with torch.no_grad():
            net.weight.fill_(weight)
        return (sf.solve(model, x, sampler(case), steps=3, seed=0).x * direction).sum().item()

    h, along = 1e-5, states(4, 3, seed=10)
    weight = net.weight.item()
    slope_x = (value(X + h * along, weight) - value(X - h * along, weight)) / (2 * h)
    slope_w = (value(X, weight + h) - value(X, weight - h)) / (2 * h)
    assert (on_x * along).sum().item() == pytest.approx(slope_x, rel=1e-5, abs=1e-7)
    assert on_weight.item() == pytest.approx(slope_w, rel=1e-5, abs=1e-7)
    plain = sf.solve(model, x_T, sampler(case), steps=3, seed=0, trajectory=True)
    assert not plain.x.requires_grad
    assert torch.is_grad_enabled()


def test_a_kept_trajectory_builds_no_graph():
    sol = sf.solve(VP, X.clone().requires_grad_(), "ddim", steps=3, trajectory=True)
    assert not sol.x.requires_grad
    assert not sol.states.requires_grad


class Conditional(nn.Module):
    """x̂_0 = y at every level, so that every run ends at its label; keeps the labels it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def forward(self, x, t, y, scale=1.0):
        assert y.shape[0] == x.shape[0]
        self.seen.append(y)
        return (scale * y).reshape(-1, 1).expand_as(x)


@pytest.mark.parametrize("case", ALL)
def test_conditions_reach_the_network(case):
    y = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    net = Conditional()
    model = sf.ScoreModel(net, sf.VPSDE(), "x0")
    sol = sf.solve(model, X, sampler(case), steps=3, seed=0, y=y, scale=2.0)
    assert net.seen
    if case not in ("predictor-corrector",):
        torch.testing.assert_close(sol.x, 2 * y[:, None].expand(4, 3), rtol=1e-9, atol=1e-9)
    if case.endswith(" sample"):
        assert all(part.shape == (1,) for part in net.seen[:-1])
        assert {part.item() for part in net.seen[:-1]} == set(y.tolist())
    else:
        assert all(part is y for part in net.seen)


def test_a_condition_the_network_does_not_take_is_refused():
    with pytest.raises(TypeError, match="'y' is neither"):
        sf.solve(VP, X, "ddim", steps=3, y=torch.zeros(4))
    with pytest.raises(TypeError, match="'etaa' is neither"):
        sf.solve(VP, X, "ddim", steps=3, etaa=1.0)


@pytest.mark.parametrize("case", ["scipy", "torchdiffeq"])
def test_samples_have_their_own_counts(case):
    """With error controlled by sample, the counts are those of the samples alone."""
    chosen = sf.get_sampler(case, control="sample", rtol=1e-6, atol=1e-6)
    x_T = X * torch.tensor([[1.0], [3.0], [0.1], [6.0]])
    sol = sf.solve(VP, x_T, chosen)
    alone = [sf.solve(VP, x_T[i : i + 1], chosen).nfe for i in range(4)]
    assert list(sol.nfe_per_sample) == alone
    assert sol.nfe == max(alone)


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["ddpm", "ddim", "euler-maruyama", "pf-ode heun t", "predictor-corrector", "scipy", "torchsde"]
)
@pytest.mark.parametrize("start", [1.0, 0.6])
def test_stop_and_denoise(case, start):
    """A run that stops at t, and the same with a last step to x̂_0."""
    kept = sf.solve(VP, X, sampler(case), steps=8, start=start, stop=1e-3, seed=2)
    assert kept.times[0] == start
    assert kept.times[-1] == 1e-3
    assert len(kept.times) == 9
    clean = sf.solve(VP, X, sampler(case), steps=8, start=start, stop=1e-3, denoise=True, seed=2)
    assert clean.times == (*kept.times, 0.0)
    assert clean.nfe == kept.nfe + 1
    torch.testing.assert_close(clean.x, VP.x0(kept.x, 1e-3), rtol=1e-10, atol=1e-10)


def test_denoise_after_explicit_times():
    times = (0.9, 0.4, 0.1)
    kept, clean = (sf.solve(VP, X, "ddim", grid=times, denoise=flag) for flag in (False, True))
    assert kept.times == times
    assert clean.times == (*times, 0.0)
    torch.testing.assert_close(clean.x, VP.x0(kept.x, 0.1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("on", ["cosine", "flow"])
def test_an_eps_network_cannot_start_where_alpha_is_zero(on):
    with pytest.raises(ValueError, match="alpha=0"):
        sf.solve(sf.ScoreModel(lambda x, t: x, PATHS[on]), X, "ddim", steps=3)
    assert sf.solve(sf.ScoreModel(lambda x, t: x, PATHS[on]), X, "ddim", steps=3, start=0.9).x.isfinite().all()
    assert sf.solve(ORACLE.model(PATHS[on]), X, "ddim", steps=3).x.isfinite().all()


def test_a_state_that_is_not_finite_names_the_step():
    def net(x, t):
        return x * (math.nan if float(t[0]) < 0.6 else 1.0)

    with pytest.raises(FloatingPointError, match=r"step 3 .*t=0.5"):
        sf.solve(sf.ScoreModel(net, sf.VPSDE()), X, "ddim", steps=4)


# -- the law of the samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "steps", "bias"),
    [
        ("ddpm", 1000, 0.01),
        ("euler-maruyama", 1000, 0.02),
        ("pf-ode heun t", 100, 0.005),
        ("reverse-sde heun lambda", 200, 0.01),
    ],
)
def test_a_gaussian_comes_out(case, steps, bias):
    """Mean and covariance of 4000 samples, at one false-alarm rate.

    `bias` bounds the error of the discretisation and of the prior, as a share of the data's standard deviations.
    """
    cov = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.3]], dtype=torch.float64)
    mean = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    n, d = 4000, 3
    model = sf.Gaussian(mean, cov).model(PATHS["chain"])
    grid = "logsnr" if "lambda" in case else None
    x = sf.sample(model, (n, d), sampler(case), steps=steps, grid=grid, seed=12, dtype=torch.float64)
    white = np.linalg.solve(np.linalg.cholesky(cov.numpy()), (x - mean).numpy().T)  # N(0, I) if all is well
    tests = d + d * (d + 1) / 2
    bound = stats.norm.isf(RATE / tests / 2)
    assert np.abs(white.mean(1)).max() < bound / math.sqrt(n) + bias
    second = white @ white.T / n
    low, high = (stats.chi2.ppf(q, n) / n for q in (RATE / tests / 2, 1 - RATE / tests / 2))
    assert low - 2 * bias < np.diag(second).min()
    assert np.diag(second).max() < high + 2 * bias
    assert np.abs(second[np.triu_indices(d, 1)]).max() < bound / math.sqrt(n) + 2 * bias


# -- the front door --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "keywords", "match"),
    [
        (ValueError, {"sampler": "dimm"}, "did you mean.*ddim"),
        (TypeError, {"sampler": 3}, "sampler must"),
        (ValueError, {"steps": 0}, "steps must"),
        (TypeError, {"steps": 2.5}, "steps must"),
        (ValueError, {"steps": 3, "nfe": 3}, "exclude"),
        (ValueError, {"nfe": 0}, "nfe must"),
        (ValueError, {"start": 1.5}, "start must"),
        (ValueError, {"start": 0.2, "stop": 0.5}, "start must lie above stop"),
        (ValueError, {"grid": "unifrom"}, "uniform"),
        (ValueError, {"grid": (0.1, 0.5)}, "decrease"),
        (ValueError, {"grid": (1.0, 0.0), "steps": 3}, "exclude"),
        (ValueError, {"seed": (1, 2)}, "2 entries for a batch of 4"),
        (TypeError, {"seed": 1.5}, "seed must"),
        (ValueError, {"noise": "pink"}, "noise must"),
        (TypeError, {"noise": 3}, "noise must"),
        (ValueError, {"noise": sf.White(0), "seed": 0}, "exclude"),
        (ValueError, {"noise": sf.White((1, 2))}, "2 entries for a batch of 4"),
        (ValueError, {"sampler": "torchsde", "noise": "white", "steps": 3}, "Brownian path"),
    ],
)
def test_wrong_arguments_are_refused(error, keywords, match):
    with pytest.raises(error, match=match):
        sf.solve(VP, X, **keywords)


@pytest.mark.parametrize("x_T", [[1.0], torch.zeros(2, 3, dtype=torch.int64), torch.tensor(1.0)])
def test_x_T_must_be_a_batch(x_T):
    with pytest.raises(TypeError, match="x_T must"):
        sf.solve(VP, x_T)
    with pytest.raises(TypeError, match="model must"):
        sf.solve(lambda x, t: x, X)


@pytest.mark.parametrize("shape", [(), (0, 3), (2.0, 3), (-1, 3)])
def test_a_shape_is_whole_numbers(shape):
    with pytest.raises((TypeError, ValueError), match="shape must"):
        sf.sample(VP, shape)
