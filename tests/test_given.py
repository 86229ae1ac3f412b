"""What users hand in is theirs: networks that write where they read, states, seeds, rules, numbers of every kind."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from problems import PATHS, mixture, states
from torch import nn

import scoreflow as sf

PATH, ORACLE = sf.VPSDE(), mixture()
MODEL = ORACLE.model(PATH)
ADAPTIVE = ("dpm-adaptive", "dpm-solver-12", "dpm-solver-23", "gotta-go-fast")


def test_a_label_is_the_networks_own():
    """A network may scale its times in place, run after run, with one sample or many."""
    told = []

    def net(x, t):
        t *= 1000
        told.append(t.clone())
        return MODEL.eps(x, t / 1000)

    model = sf.ScoreModel(net, PATH)
    for n in (1, 3):
        runs = [sf.solve(model, states(n, 3), "ddim", steps=2).x for _ in range(3)]
        torch.testing.assert_close(runs[0], runs[2], rtol=0, atol=0)
    assert max(float(t.max()) for t in told) == 1000


def test_labels_follow_the_network():
    net = nn.Linear(3, 3)
    clock = {"scale": 1.0}
    free = sf.ScoreModel(lambda x, t: net(x), PATH, time=lambda t: clock["scale"] * t)
    assert float(free.label(states(1, 3), 0.5)) == 0.5
    clock["scale"] = 2.0
    assert float(free.label(states(1, 3), 0.5)) == 1.0

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(3, 3), []

        def forward(self, x, t):
            self.seen.append(t.dtype)
            return self.layer(x)

    own = Told()
    model = sf.ScoreModel(own, PATH)
    sf.solve(model, states(2, 3, dtype=torch.float32), "ddim", steps=1)
    own.double()
    sf.solve(model, states(2, 3, dtype=torch.float32), "ddim", steps=1)
    assert own.seen == [torch.float32, torch.float64]


def test_a_network_that_writes_into_the_states_is_refused():
    model = sf.ScoreModel(lambda x, t: nn.functional.relu(x, inplace=True), PATH)
    with pytest.raises(RuntimeError, match=r"changes the states that it is given, in place, .* give it a copy"):
        sf.solve(model, states(2, 3), "ddim", steps=3)
    sf.solve(sf.ScoreModel(lambda x, t: nn.functional.relu(x.clone(), inplace=True), PATH), states(2, 3), "ddim", steps=3)


@pytest.mark.parametrize("sampler", ADAPTIVE)
def test_adaptive_runs_leave_what_they_are_given(sampler):
    """A network that gives back its input does not let a run write into x_T."""
    x_T = states(2, 3)
    kept = x_T.clone()
    sf.solve(sf.ScoreModel(lambda x, t: x, PATH), x_T, sampler, start=0.9, stop=0.5, seed=0)
    assert torch.equal(x_T, kept)


@pytest.mark.parametrize("sampler", ADAPTIVE[:3])
def test_adaptive_runs_are_differentiable(sampler):
    """Differences agree; the steps' lengths, which move with x by less than the tolerance, are no part of the derivative."""
    x, h = states(1, 3).requires_grad_(), 1e-6 * torch.eye(3, dtype=torch.float64)
    ends = {"start": 0.9, "stop": 0.3, "rtol": 1e-2, "atol": 1e-2}
    sf.solve(MODEL, x, sampler, grad=True, **ends).x.sum().backward()
    up, down = (torch.stack([sf.solve(MODEL, x + sign * one, sampler, **ends).x.sum() for one in h]) for sign in (1, -1))
    torch.testing.assert_close(x.grad[0], (up - down) / 2e-6, rtol=0.05, atol=0.05)


def test_scipy_says_that_it_records_nothing():
    x = states(2, 3).requires_grad_()
    with pytest.raises(ValueError, match="grad=True: scipy integrates outside torch, which records nothing of it"):
        sf.solve(MODEL, x, "scipy", grid=[0.9, 0.5], grad=True)


@pytest.mark.parametrize("sampler", ["torchdiffeq", "scipy", *ADAPTIVE])
def test_empty_and_half_states(sampler):
    for shape in ((0, 3), (3, 0)):
        assert (
            sf.solve(MODEL if shape[1] else sf.ScoreModel(lambda x, t: x, PATH), torch.zeros(shape), sampler, seed=0).x.shape
            == shape
        )
    half = sf.solve(MODEL, states(4, 3).half(), sampler, start=0.9, stop=0.2, rtol=1e-2, atol=1e-2, seed=0).x
    assert half.dtype is torch.float16 and bool(half.isfinite().all())


@pytest.mark.parametrize("predictor", ["unipc", "unipc-1", "sa-solver", "lms", "ddim"])
@pytest.mark.parametrize("stop", [0.0, 0.1])
def test_a_corrected_predictor_asks_what_was_said(predictor, stop):
    """After a correction the word at s is stale: who would have used it again asks again, and the budget counts it."""
    asked = []
    model = sf.ScoreModel(lambda x, t: (asked.append(1), MODEL.eps(x, t))[1], PATH)
    sampler = sf.get_sampler("predictor-corrector", predictor=predictor)
    run = sf.solve(model, states(2, 3), sampler, steps=6, stop=stop, seed=0)
    assert sampler.evaluations(PATH, run.times) == run.nfe == len(asked)
    assert sf.solve(model, states(2, 3), sampler, nfe=13, stop=stop, seed=0).nfe <= 13


@pytest.mark.parametrize("predictor", ["torchsde", "gotta-go-fast"])
def test_a_predictor_on_a_brownian_path_has_one(predictor):
    x = sf.solve(MODEL, states(2, 3), "predictor-corrector", predictor=predictor, steps=2, start=0.9, stop=0.2, seed=0).x
    assert bool(x.isfinite().all())


def test_the_prior_is_that_of_the_first_time():
    """A chain's grid and a rule may begin below `start`: x_T has the level of the time that is asked first."""
    chain = sf.SubVPSDE.from_betas(sf.DDPMChain.linear().beta)
    for path, grid in ((chain, "leading"), (sf.VESDE(), lambda p, n, a, b: np.linspace(0.8, b, n + 1))):
        seen = []
        model = sf.ScoreModel(lambda x, t, seen=seen: (seen.append((float(t[0]), float(x.std()))), 0 * x)[1], path)
        sf.sample(model, (4000, 2), "ddim", steps=3, grid=grid, seed=0)
        t, std = seen[0]
        assert t < 1 and std == pytest.approx(path.prior_std(t), rel=0.05)


RULES = [
    (lambda p, n, a, b: torch.linspace(1, 0, 4), dict(nfe=7), "a rule must give .* times"),
    (lambda p, n, a, b: np.linspace(a, 0.1, n + 1), dict(steps=3), "to stop=0.0; it gave 4, from 1.0 to 0.1"),
    (lambda p, n, a, b: np.linspace(1, b, n + 1), dict(steps=3, start=0.5), "from start=0.5 or below"),
]


@pytest.mark.parametrize(("rule", "budget", "says"), RULES)
def test_a_rule_gives_what_it_is_asked(rule, budget, says):
    with pytest.raises(ValueError, match=says):
        sf.solve(MODEL, states(2, 3), "ddim", grid=rule, **budget)


def test_numbers_of_every_kind():
    """Ends and seeds may be NumPy's, fractions, tensors of one number; float32 times find the nodes of a chain."""
    plain = sf.solve(MODEL, states(2, 3), "ddpm", steps=4, start=0.5, seed=5).x
    for start, seed in ((np.float32(0.5), np.array(5)), (Fraction(1, 2), torch.tensor(5)), (torch.tensor(0.5), np.int64(5))):
        assert torch.equal(sf.solve(MODEL, states(2, 3), "ddpm", steps=4, start=start, seed=seed).x, plain)
    chain = PATHS["chain"]
    told = []
    model = sf.ScoreModel(lambda x, t: (told.append(int(t[0])), 0 * x)[1], chain, time="label")
    sf.solve(model, states(2, 3), "ddim", grid=torch.tensor([1, 0.8, 0.6, 0.4, 0.2, 0]))
    assert told == [999, 799, 599, 399, 199]
    with pytest.raises(ValueError, match="takes whole labels"):
        sf.solve(model, states(2, 3), "ddim", grid=[1.0, 0.8001, 0.0])


def test_what_draws_nothing_moves_no_generator():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert sf.solve(MODEL, states(2, 3), "ddim", steps=2).seed is None
    assert torch.equal(torch.random.get_rng_state(), before)
    sf.solve(MODEL, states(2, 3), "ddpm", steps=2)
    assert not torch.equal(torch.random.get_rng_state(), before)


def test_conditions_in_lists_go_with_their_samples():
    """As tuples of tensors do, under samplers that split the batch."""

    def net(x, t, y):
        assert all(len(part) == len(x) for part in y)
        return MODEL.eps(x, t) * y[0][:, None]

    y = (torch.ones(4, dtype=torch.float64), torch.zeros(4))
    for sampler, more in (
        ("ddim", {"steps": 4, "parallel": 2}),
        ("dpm-adaptive", {"stop": 0.2}),
        ("scipy", {"control": "sample"}),
    ):
        sf.solve(sf.ScoreModel(net, PATH), states(4, 3), sampler, start=0.9, y=y, **more)


REFUSED = [
    (
        lambda: sf.solve(MODEL, states(2, 3), "ddim", steps=2, callback="no"),
        TypeError,
        "callback must be a function of a State",
    ),
    (lambda: sf.Brownian(0, depth=2.5), TypeError, "depth must be a whole number ≥ 1, got 2.5"),
    (lambda: sf.Brownian(0, times=(1.0, 2.0)), ValueError, r"times must lie between 0 \(data\) and 1 \(prior\), got 2.0"),
    (lambda: sf.Brownian(0, depth=-3), ValueError, "depth must be a whole number ≥ 1, got -3"),
    (lambda: sf.solve(MODEL, torch.zeros(2, 3, dtype=torch.int64), "ddim"), TypeError, r"got torch.int64 of shape \(2, 3\)"),
    (lambda: sf.solve(MODEL, [1.0], "ddim"), TypeError, "got list"),
]


@pytest.mark.parametrize(("call", "kind", "says"), REFUSED)
def test_refusals(call, kind, says):
    with pytest.raises(kind, match=says):
        call()


def test_seeds_2_elsewhere_is_in_data_form():
    """ComfyUI's sample_seeds_2 is SDE-DPM-Solver++(2S): its weights on the state and the words at r = ½, η = 1, written out."""
    t, s = 0.7, 0.45
    h = PATH.lam(s) - PATH.lam(t)
    u = PATH.time(PATH.lam(t) + h / 2)
    (_, first), (_, last) = sf.get_sampler("sample_seeds_2").plan(PATH, (t, s)).steps[0].stages
    for row, to, part in ((first, u, h / 2), (last, s, h)):
        assert row.x == pytest.approx(PATH.sigma(to) / PATH.sigma(t) * np.exp(-part), rel=1e-12)
        assert row.m[0] == pytest.approx(-PATH.alpha(to) * np.expm1(-2 * part), rel=1e-12)
    assert sum(map(abs, last.m[1:])) == pytest.approx(0, abs=1e-15)  # fac = 1/(2r) puts all on the second word
