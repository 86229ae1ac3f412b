"""Runs that their caller drives, alone and several together: the results are those of `solve`."""

import copy
import pickle

import pytest
import torch
from problems import PATHS, mixture, states
from runs import ALL, sampler

import scoreflow as sf

CHAIN, VP = PATHS["chain"], PATHS["vp"]
X = states(4, 3)
SEEDS = (1, 2, 3, 4)
NAMES = [case for case in ALL if isinstance(sampler(case), sf.Linear)]
OTHERS = [case for case in ALL if case not in NAMES]


def net(x, label):
    """Of no data at all: it sees the time."""
    return (x * 0.3 + torch.sin(3 * x + 0.01 * label[:, None].to(x))) / 2


MODEL = sf.ScoreModel(net, CHAIN, time="index")
ASK = {"path": CHAIN, "time": "index"}


def driven(run):
    """The result of a run, by the network."""
    while not run.done:
        run.tell(net(run.x, run.label))
    return run.x


@pytest.mark.parametrize("case", NAMES)
def test_asked_is_solved_to_the_bit(case):
    """Deterministic and stochastic, of several stages and steps; so are the counts."""
    asked = sf.ask(sampler(case), X, steps=4, seed=SEEDS, **ASK)
    solved = sf.solve(MODEL, X, sampler(case), steps=4, seed=SEEDS)
    assert torch.equal(driven(asked), solved.x)
    assert (asked.nfe, asked.step) == (solved.nfe, len(solved.plan.steps))


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))], ids=["copy", "deep", "pickle"]
)
@pytest.mark.parametrize("case", ["ddpm", "unipc", "sde-dpm-solver++", "dpm-solver", "seeds", "restart", "edm-churn", "sra"])
def test_a_run_goes_on_from_wherever_it_stands(case, how):
    """At every question, within a step too, a copy has the same end; the one it was taken from is as it was."""
    whole = sf.solve(MODEL, X, case, steps=3, seed=5).x
    run = sf.ask(case, X, steps=3, seed=5, **ASK)
    while not run.done:
        other = how(run)
        assert torch.equal(driven(other), whole) and not run.done
        run.tell(net(run.x, run.label))
    assert torch.equal(run.x, whole) and torch.equal(how(run).x, whole)


@pytest.mark.parametrize("noise", ["white", "brownian"])
def test_noise_is_that_of_solve(noise):
    assert torch.equal(
        driven(sf.ask("ddpm", X, steps=20, seed=3, noise=noise, **ASK)),
        sf.solve(MODEL, X, "ddpm", steps=20, seed=3, noise=noise).x,
    )
    draws = torch.randn(4, *X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    assert torch.equal(
        driven(sf.ask("ddpm", X, steps=5, noise=draws, **ASK)), sf.solve(MODEL, X, "ddpm", steps=5, noise=draws).x
    )


def test_the_first_answer_may_be_known():
    run = sf.ask("dpm-solver", X, steps=3, analytic=1.0, **ASK)
    solved = sf.solve(MODEL, X, "dpm-solver", steps=3, analytic=1.0)
    assert torch.equal(driven(copy.copy(run)), solved.x) and torch.equal(driven(run), solved.x) and run.nfe == solved.nfe


def test_a_preview_and_the_end():
    """x̂_0 of the last output; at the end the state and its time."""
    run = sf.ask("ddim", X, steps=3, **ASK)
    assert run.x0 is None and run.t == 1.0 and torch.equal(run.x, X)
    said = net(run.x, run.label)
    before = run.x
    run.tell(said)
    torch.testing.assert_close(run.x0, (before - CHAIN.sigma(1.0) * said) / CHAIN.alpha(1.0))
    assert run.step == 1 and run.t == pytest.approx(2 / 3, abs=1e-3) and "step 1 of 3" in repr(run)
    driven(run)
    assert run.done and run.t == 0.0
    with pytest.raises(ValueError, match="the run is done: it has taken its 3 steps"):
        run.tell(said)
    with pytest.raises(ValueError, match="the run is done"):
        _ = run.label


def test_its_state_keeps_its_bits():
    run = sf.ask("pf-ode", X.bfloat16(), steps=3, path=VP)
    assert run.x.dtype == torch.float32
    while not run.done:
        run.tell(0.1 * run.x)
    assert run.x.dtype == torch.bfloat16


@pytest.mark.parametrize("case", OTHERS)
def test_samplers_without_rows_cannot_be_asked(case):
    with pytest.raises(ValueError, match="is not made of rows: it calls its network by itself"):
        sf.ask(sampler(case), X, steps=2, seed=0, **ASK)


def test_refusals():
    with pytest.raises(TypeError, match="path must be a GaussianPath"):
        sf.ask("ddim", X, path="vp")
    with pytest.raises(ValueError, match=r"the network returned shape \(4, 2\)"):
        sf.ask("ddim", X, steps=2, **ASK).tell(X[:, :2])
    with pytest.raises(FloatingPointError, match=r"not finite, in step 1 \(t=1 → 0.5\)"):
        sf.ask("ddim", X, steps=2, **ASK).tell(X * torch.nan)
    with pytest.raises(TypeError, match="'y' is neither"):
        sf.ask("ddim", X, steps=2, y=1, **ASK)


def test_a_run_is_followed_by_gradients():
    x = X.clone().requires_grad_()
    run = sf.ask("unipc", x, steps=3, grad=True, **ASK)
    (one,) = torch.autograd.grad(driven(run).sum(), x)
    (other,) = torch.autograd.grad(sf.solve(MODEL, x, "unipc", steps=3, grad=True).x.sum(), x)
    assert torch.equal(one, other)


# -- several together ----------------------------------------------------------------------------------------------------

RUNS = [
    ("unipc", 6), "ddpm", {"sampler": "ddim", "steps": 5, "eta": 0.5, "seed": 9}, ("auto", 7), sf.get_sampler("dpm-solver++"),
    {"sampler": "dpm-adaptive"}, {"sampler": "pf-ode", "grid": [1.0, 0.5, 0.0]}, sf.plan("deis", CHAIN, 4), {"nfe": 3},
]  # fmt: skip


@pytest.mark.parametrize("batch", [None, 4, 9])
def test_together_is_alone(batch):
    """To rounding; with the seeds, counts and plans of each by itself, in fewer and larger calls."""
    seen = []

    def watched(x, label):
        seen.append(len(x))
        return net(x, label)

    short = [{"sampler": one, "steps": 8} if one == "ddpm" else one for one in RUNS]
    together = sf.solve_many(short, sf.ScoreModel(watched, CHAIN, time="index"), X, seed=SEEDS, batch=batch)
    calls = len(seen)
    assert max(seen) <= max(4, batch or 4 * len(RUNS))
    for one, found in zip(short, together, strict=True):
        asked = dict(one) if isinstance(one, dict) else {"sampler": one}
        if isinstance(one, tuple):
            asked = {"sampler": one[0], "nfe": one[1]}
        alone = sf.solve(MODEL, X, **{"seed": SEEDS, **asked})
        torch.testing.assert_close(found.x, alone.x, rtol=1e-9, atol=1e-9)
        assert (found.nfe, found.nfe_per_sample, found.noise_count) == (alone.nfe, alone.nfe_per_sample, alone.noise_count)
        assert (found.times, found.plan, found.seed, found.sampler) == (alone.times, alone.plan, alone.seed, alone.sampler)
    if batch is None:
        assert calls - together[5].rounds == max(found.nfe for found in together if found.plan)


def test_conditions_and_guidance_together():
    """Rows of conditions go with their samples; guidance that follows a run goes alone, any other shares its calls."""
    y, seen = sf.each(torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=X.dtype)), []

    def told(x, t, y):
        seen.append(len(x))
        return net(x, t) + 0.1 * y[:, None]

    model, null = sf.ScoreModel(told, CHAIN, time="index"), {"y": 0.0}
    plain, momentum = sf.ClassifierFree(model, 2.0, null=null), sf.APG(model, 3.0, momentum=-0.5, null=null)
    for guided, largest in ((model, 8), (plain, 16), (sf.Autoguidance(model, model, 2.0), 8), (momentum, 8)):
        seen.clear()
        sf.solve_many([("ddim", 8), ("unipc", 8)], guided, X, y=y)
        assert max(seen) == largest
        for one, found in zip(("ddim", "unipc"), sf.solve_many([("ddim", 8), ("unipc", 8)], guided, X, y=y), strict=True):
            alone = sf.solve(guided, X, one, nfe=8, y=y)
            torch.testing.assert_close(found.x, alone.x, rtol=1e-9, atol=1e-9)
            assert found.nfe == alone.nfe


def test_conditions_are_those_of_all_runs():
    """Not of one, and never taken for an option."""
    model = sf.ScoreModel(lambda x, t, y=0.0, eta=0.0: net(x, t) + y + eta, CHAIN, time="index")
    with pytest.raises(TypeError, match=r"'y' is no option of 'ddim'; conditions are those of all runs"):
        sf.solve_many([{"sampler": "ddim", "nfe": 4, "y": 1.0}, ("unipc", 4)], model, X)
    (found,) = sf.solve_many([("ddim", 4)], model, X, eta=0.5)
    torch.testing.assert_close(found.x, sf.solve(model, X, "ddim", nfe=4, conditions={"eta": 0.5}).x, rtol=1e-9, atol=1e-9)


def test_the_callers_states_stay():
    x_T = X.clone()
    run = sf.ask("ddim", x_T, steps=2, **ASK)
    run.x.fill_(7.0)
    assert torch.equal(x_T, X) and bool((run.x == 7).all())


def test_runs_refused():
    with pytest.raises(TypeError, match="a run must be a plan, a sampler, a pair"):
        sf.solve_many([5], MODEL, X)
    with pytest.raises(ValueError, match="batch must be a whole number ≥ 1"):
        sf.solve_many(["ddim"], MODEL, X, batch=0)
    assert sf.solve_many([], MODEL, X) == []


def test_an_oracle_together():
    model = mixture().model(VP)
    for one, found in zip(("auto", "unipc"), sf.solve_many([("auto", 9), ("unipc", 9)], model, X), strict=True):
        torch.testing.assert_close(found.x, sf.solve(model, X, one, nfe=9).x, rtol=1e-9, atol=1e-9)
