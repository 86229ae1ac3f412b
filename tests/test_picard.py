"""Parallel in time: the sequential run in fewer rounds, for every plan; round by round as the theory says."""

from itertools import accumulate

import pytest
import torch
from problems import LINEAR, PATHS, linear, mixture, states
from runs import Toy
from torch import nn

import scoreflow as sf

PATH, DATA, X = sf.VPSDE(), mixture(), states(5, 3)


class Told(nn.Module):
    """Notes every call: states and times."""

    def __init__(self, net) -> None:
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, x, t):
        self.calls.append((x, t))
        return self.net(x, t)


def noted(path=PATH):
    return sf.ScoreModel(Told(Toy(torch.float64)), path)


@pytest.mark.parametrize("window", [1, 3, 12])
@pytest.mark.parametrize("case", LINEAR)
def test_32_the_limit_is_the_sequential_run(case, window):
    """32. With tol = 0 every plan, with memory, stages and draws, gives the sequential run to the bit, on its own draws."""
    model = sf.ScoreModel(Toy(torch.float64), PATH)
    one = sf.solve(model, X, linear(case), steps=12, seed=[3, 1, 4, 1, 5], trajectory=True)
    many = sf.solve(model, X, linear(case), steps=12, seed=[3, 1, 4, 1, 5], trajectory=True, parallel=window)
    assert torch.equal(many.states, one.states)
    assert (many.noise_count, many.plan, many.times) == (one.noise_count, one.plan, one.times)
    assert many.rounds <= one.rounds == one.nfe <= many.nfe
    if window == 1 and all(step.nfe <= 1 for step in one.plan.steps):
        assert many.nfe == one.nfe


@pytest.mark.parametrize("case", ["ddim", "ddpm", "deis tAB3", "dpm-solver 3", "sa-solver", "reverse-sde heun t"])
def test_32_round_k_has_the_first_k_outputs(case):
    """32. In round k the k-th question is asked at the state of the sequential run, and it is not asked again."""
    one, many = noted(), noted()
    sf.solve(one, X, linear(case), steps=8, seed=2)
    sol = sf.solve(many, X, linear(case), steps=8, seed=2, parallel=8)
    sequential, rounds = one.net.calls, many.net.calls
    assert sol.rounds == len(rounds) <= len(sequential)
    for k, (x, t) in enumerate(sequential):
        later = [[y for y, u in zip(*call, strict=True) if u == t[0]] for call in rounds]
        at = [i for i, asked in enumerate(later) if any(torch.equal(y, x[0]) for y in asked)]
        assert at and at[0] <= k  # the first sample's word k is right by round k,
        if sum(float(u[0] == t[0]) for _, u in sequential) == 1:
            assert not any(later[i] for i in range(k + 1, len(rounds)))  # and settled for all


def test_it_takes_fewer_rounds():
    """1000 steps of DDPM on a mixture: at a tolerance of 1e-2 in less than a tenth of the rounds, near the sequential run."""
    model, x = DATA.model(PATHS["chain"]), states(64, 3)
    one, many = (sf.solve(model, x, "ddpm", steps=1000, seed=1, parallel=p) for p in (None, sf.Picard(200, 1e-2)))
    assert many.rounds < 100 and one.rounds == 1000
    assert (many.x - one.x).norm(dim=1).median() < 0.02
    errors = [
        float((sf.solve(model, x, "ddpm", steps=100, seed=1, parallel=sf.Picard(50, tol)).x
               - sf.solve(model, x, "ddpm", steps=100, seed=1).x).norm(dim=1).median())
        for tol in (1e-1, 1e-2, 1e-3, 0.0)
    ]  # fmt: skip
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0


def test_the_first_guess_is_a_constant_answer():
    """A network that always says x̂_0 = c settles in two rounds."""
    model = sf.ScoreModel(lambda x, t: torch.ones_like(x), PATH, "x0")
    sol = sf.solve(model, X, "ddim", steps=30, parallel=30)
    assert (sol.rounds, sol.nfe) == (2, 30)


def test_the_window_bounds_the_batch():
    """No call is larger than the window, the stages and the batch say."""
    for case, stages in (("ddim", 1), ("dpm-solver 3", 3)):
        model = noted()
        sol = sf.solve(model, X, linear(case), steps=12, parallel=4)
        sizes = [len(x) for x, _ in model.net.calls]
        assert max(sizes) <= 4 * stages * len(X) and sum(sizes) == sum(sol.nfe_per_sample) and sol.rounds == len(sizes)


def test_a_sample_does_not_depend_on_its_batch_mates():
    """Each has its own window and its own tolerance: also with tol > 0 its result is that of its run alone, to the bit."""
    model = sf.ScoreModel(Toy(torch.float64), PATH)
    how, x = sf.Picard(5, 0.03), X * torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0], dtype=torch.float64)[:, None]
    whole = sf.solve(model, x, "ddpm", steps=20, seed=range(5), parallel=how)
    assert len(set(whole.nfe_per_sample)) > 1
    for b in range(5):
        alone = sf.solve(model, x[b : b + 1], "ddpm", steps=20, seed=[b], parallel=how)
        assert torch.equal(alone.x[0], whole.x[b]) and alone.nfe == whole.nfe_per_sample[b]


def test_conditions_go_with_their_samples():
    """A condition with an entry a sample is handed out with the sample; others as they are."""

    def net(x, t, y, scale):
        return torch.tanh(x) * scale + y.reshape(-1, 1)

    model, y = sf.ScoreModel(net, PATH), torch.arange(5.0, dtype=torch.float64)
    one, many = (sf.solve(model, X, "ddim", steps=9, y=y, scale=0.5, parallel=p) for p in (None, 4))
    assert torch.equal(one.x, many.x)


def test_brownian_noise_the_analytic_word_and_a_sample():
    """One Brownian path, asked in order; the first answer known is no question; `sample` passes it on."""
    model = sf.ScoreModel(Toy(torch.float64), PATH)
    for keywords in (dict(noise=sf.Brownian(2)), dict(noise=states(9, 5, 3)), dict(seed=1, analytic=1.0)):
        one, many = (sf.solve(model, X, "ddpm", steps=10, parallel=p, **keywords) for p in (None, 4))
        assert torch.equal(one.x, many.x)
    assert many.rounds <= one.nfe == 9
    a, b = (sf.sample(model, (3, 2), "sa-solver", steps=6, seed=0, parallel=p) for p in (None, 3))
    assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_shapes(dtype):
    for shape in ((3,), (2, 1, 4, 4)):
        x = states(*shape).to(dtype)
        one, many = (sf.solve(sf.ScoreModel(Toy(dtype), PATH), x, "ddpm", steps=6, seed=0, parallel=p) for p in (None, 4))
        assert torch.equal(one.x, many.x) and many.x.dtype == dtype


def test_an_empty_batch():
    assert sf.solve(noted(), X[:0], "ddpm", steps=7, seed=0, parallel=2).x.shape == (0, 3)


def test_states_come_in_order():
    """The callback sees every time once, in order, with the run's own states."""
    seen = []
    sol = sf.solve(noted(), X, "ddim", steps=7, parallel=3, callback=seen.append, trajectory=True)
    assert [state.t for state in seen] == list(sol.times) and [state.step for state in seen] == list(range(8))
    assert all(torch.equal(state.x, x) for state, x in zip(seen, sol.states, strict=True))


def test_gradients_are_the_sequential_ones():
    grads = []
    for parallel in (None, 5):
        model = sf.ScoreModel(Toy(torch.float64), PATH)
        sf.solve(model, X, "dpm-solver++-2m", steps=5, grad=True, parallel=parallel).x.square().sum().backward()
        grads.append(model.net.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_errors():
    model = noted()
    for wrong, message in (
        (0, "parallel must be a whole number ≥ 1, got 0"),
        (sf.Picard(2, -1.0), "tol must be .*≥ 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            sf.solve(model, X, parallel=wrong)
    with pytest.raises(TypeError, match="parallel must be a whole number"):
        sf.solve(model, X, parallel=0.5)
    with pytest.raises(ValueError, match=r"parallel=4 takes the steps of a plan, and scipy.* is not made of rows"):
        sf.solve(model, X, "scipy", parallel=4)
    bad = sf.ScoreModel(lambda x, t: torch.where(t[:, None] < 0.5, torch.nan, x), PATH)
    with pytest.raises(FloatingPointError, match="network's output is not finite"):
        sf.solve(bad, X, "ddim", steps=8, parallel=4)


def test_the_words_of_a_plan():
    """The number of questions is the plan's nfe, whichever steps ask them."""
    plan = sf.plan("sa-solver", PATH, steps=6)
    assert list(accumulate(step.nfe for step in plan.steps))[-1] == plan.nfe
    sol = sf.solve(noted(), X, plan, seed=0, parallel=6)
    assert sol.rounds <= plan.nfe
