"""sample, solve, walk and Plan: the loop, what it keeps and what it gives back."""

import json
import math

import pytest
import torch
from problems import CLIMBING, LINEAR, PATHS, PLACED, linear, states
from runs import ALL, CHAIN, ON, ORACLE, VP, Toy, X, by_hand, sampler
from torch.utils._python_dispatch import TorchDispatchMode

import scoreflow as sf
from scoreflow._samplers.step import SAMPLERS

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
    if case in CLIMBING or case in PLACED:  # a step by hand does not know of the others
        noise = torch.cat([x_T[None][:0], *(draws(x_T)[None] for _ in range(plan.noise_count))])
        want, asked = sf.solve(model, x_T, plan, noise=noise).x, plan.nfe
    else:
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
    noise_form = chosen.prediction == "eps" and case != "reverse-diffusion"  # x/α is infinite there
    in_lambda = chosen.prediction == "x0" and any(
        u != step.s for step in sf.plan(chosen, VP.path, steps=2, stop=0.1).steps for u, _ in step.stages
    )
    if noise_form or in_lambda or chosen.name in ("er-sde", "richardson") or case == "res 2s c2=1":
        with pytest.raises(ValueError, match="alpha=0"):
            sf.plan(chosen, model.path, steps=5)
        return
    plan = sf.plan(chosen, model.path, steps=5)
    rows = [row for step in plan.steps for _, row in step.stages]
    assert all(math.isfinite(c) for row in rows for c in (row.x, *row.m, *(z for _, z in row.draws)))
    assert sf.Plan.from_json(plan.to_json()) == plan
    if case not in CLIMBING:
        want, _ = by_hand(model, chosen, plan.times, X, sf.White(3).draws("step"))
        assert torch.equal(sf.solve(model, X, plan, seed=3).x, want)


@pytest.mark.parametrize("case", LINEAR)
def test_a_plan_can_be_read(case):
    plan = sf.plan(linear(case), PATHS["vp"], steps=3)
    text = str(plan)
    assert linear(case).name in text
    assert f"{plan.nfe} evaluations" in text
    assert len(text.splitlines()) == 2 + sum(len(step.stages) for step in plan.steps)
    assert json.loads(plan.to_json())["sampler"] == linear(case).name
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
    n = 4 if sol.plan is None else len(sol.plan.steps)
    assert n == 4 or case in CLIMBING
    assert len(sol.times) == n + 1
    assert sol.times[0] == 1.0
    assert sol.times[-1] == 0.0
    assert sol.states.shape == (n + 1, *X.shape)
    assert torch.equal(sol.states[0], X)
    assert torch.equal(sol.states[-1], sol.x)
    assert [state.step for state in seen] == list(range(n + 1))
    assert tuple(state.t for state in seen) == sol.times
    assert torch.equal(torch.stack([state.x for state in seen]), sol.states)
    assert sol.seed == 5
    again = {"sampler": sol.sampler, "grid": sol.times} if sol.plan is None else {"sampler": sol.plan}
    assert torch.equal(sf.solve(VP, X, **again, seed=sol.seed).x, sol.x)
    assert sol.nfe == max(sol.nfe_per_sample)
    assert sol.citations.count("@") == len(sol.sampler.cites) >= 1
    assert sampler(case).name in repr(sol)
    assert sf.solve(VP, X, sampler(case), steps=4, seed=5).states is None
    if sol.noise_count == 0:
        assert not sol.sampler.stochastic or case in CLIMBING  # four steps may pass where these add noise
        assert torch.equal(sf.solve(VP, X, sol.sampler, steps=4, seed=6).x, sol.x)
    else:
        assert sol.sampler.stochastic
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


def twice(net):
    """The same network with a word on the variance, for ddpm's learned variance."""
    return lambda x, t: torch.cat([net(x, t), torch.zeros_like(x)], 1)


SHAPES, DTYPES = [(2, 1, 2, 3, 3), (2, 1, 4, 4), (3, 5), (4,)], [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [(name, shape, DTYPES[(i + k) % 3]) for i, name in enumerate(SAMPLERS) for k, shape in enumerate(SHAPES)],
    ids=str,
)
def test_dtype_and_shape_are_kept(name, shape, dtype):
    """Pairwise: every sampler in every dtype and shape, and every dtype in every shape."""
    model = sf.ScoreModel(Toy(dtype), sf.VPSDE())
    sol = sf.solve(model, states(*shape, dtype=dtype), name, steps=4, seed=0, trajectory=True)
    assert sol.x.shape == shape
    assert sol.x.dtype == sol.states.dtype == dtype
    assert sol.x.isfinite().all()
    assert sol.nfe >= 4
    x = sf.sample(model, shape, name, steps=4, seed=0)
    assert (x.shape, x.dtype) == (shape, torch.float32 if dtype == torch.bfloat16 else dtype)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("edict", "restart")])
def test_one_step(name):
    """From t = 1 to 0 in one step every sampler gives x̂_0; all but EDICT, whose last step mixes two states like any other,
    and Restart, which stops for its loops."""
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
    least = {"edict": 2, "restart": 15 if case == "restart long" else 19}.get(chosen.name, 1)
    if budget < least:
        with pytest.raises(ValueError, match=f"nfe={budget} is less than the {least} evaluations of one step"):
            sf.solve(VP, X, chosen, nfe=budget)
        return
    sol = sf.solve(VP, X, chosen, nfe=budget, seed=0)
    assert sol.nfe <= budget
    assert sf.solve(VP, X, chosen, steps=len(sol.times), seed=0).nfe > budget


class Passes(TorchDispatchMode):
    """Counts the operations on tensors of the size of the state."""

    def __init__(self, size):
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in (*args, out) if isinstance(a, torch.Tensor)]
        self.count += any(a.numel() == self.size for a in tensors) and func._schema.name not in ("aten::detach", "aten::empty")
        return out


@pytest.mark.parametrize(
    ("name", "passes"),
    [("ddim", 2), ("ddpm", 4), ("dpm-solver++-2m", 5), ("exponential-ab-3", 4), ("sde-dpm-solver++-2m", 7)],
)
def test_passes_over_the_state(name, passes):
    """A step makes one pass for every tensor that its row weighs, two to say ε̂ as x̂_0, one to draw; and in 8 steps one look."""
    output = torch.randn(8, 16)
    model = sf.ScoreModel(lambda x, t: output, PATHS["chain"])
    x = torch.randn(8, 16)
    counts = []
    for steps in (16, 32):
        with Passes(x.numel()) as seen, torch.no_grad():
            sf.solve(model, x, name, steps=steps, grid="uniform", seed=0)
        counts.append(seen.count)
    assert counts[1] - counts[0] == 16 * passes + 2, counts
