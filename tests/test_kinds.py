"""One way of checking for each kind of argument: flags, counts and numbers, of whoever makes them."""

import json

import numpy as np
import pytest
import torch
from problems import mixture, states
from refusals import CHAIN, VP, X, zero_model

import scoreflow as sf
from scoreflow._core.check import flag, number, whole
from scoreflow._core.row import Row
from scoreflow._samplers.plan import Plan
from scoreflow._samplers.step import Linear

MODEL, PLAN = zero_model(), sf.plan("ddpm", VP, 3)
STATES = sf.solve(MODEL, X, PLAN, seed=0, trajectory=True).states

FLAGS = {
    **{f"solve {name}": (lambda v, name=name: sf.solve(MODEL, X, steps=2, **{name: v}), name)
       for name in ("trajectory", "progress", "grad", "denoise")},
    **{f"sample {name}": (lambda v, name=name: sf.sample(MODEL, (2, 3), steps=2, **{name: v}), name)
       for name in ("progress", "grad", "denoise")},
    **{f"invert {name}": (lambda v, name=name: sf.invert(MODEL, X, "ddim", steps=2, **{name: v}), name)
       for name in ("trajectory", "progress", "grad")},
    "plan denoise": (lambda v: sf.plan("ddim", VP, 3, stop=0.1, denoise=v), "denoise"),
    "explicit times": (lambda v: sf.solve(MODEL, X, "ddim", grid=[1, 0.1], denoise=v), "denoise"),
    "image_to_image": (lambda v: sf.image_to_image(MODEL, X, strength=0.5, steps=2, denoise=v), "denoise"),
    "log_prob grad": (lambda v: sf.log_prob(MODEL, X, method="rk4", steps=2, grad=v), "grad"),
    "bits_per_dim grad": (lambda v: sf.bits_per_dim(MODEL, X, method="rk4", steps=2, grad=v), "grad"),
    "step_log_prob grad": (lambda v: sf.step_log_prob(MODEL, PLAN, STATES, grad=v), "grad"),
    "vlb progress": (lambda v: sf.vlb(zero_model(CHAIN), X, steps=2, progress=v), "progress"),
    "continuous_bound progress": (lambda v: sf.continuous_bound(MODEL, X, points=2, progress=v), "progress"),
    "torchsde adaptive": (lambda v: sf.get_sampler("torchsde", adaptive=v), "adaptive"),
}  # fmt: skip


@pytest.mark.parametrize("bad", ["no", "yes", 1, 0, None, [True], "True"], ids=repr)
@pytest.mark.parametrize(("run", "name"), FLAGS.values(), ids=FLAGS)
def test_flags(run, name, bad):
    """Text is true in Python: "no" would be a yes."""
    with pytest.raises(TypeError, match=rf"^{name} must be True or False, got "):
        run(bad)


def test_flag_takes_both():
    assert flag("grad", True) is True and flag("grad", False) is False


FIVE = [np.int64(5), np.uint8(5), torch.tensor(5), torch.tensor(5, dtype=torch.int16), np.array(5)]
any_five = pytest.mark.parametrize("five", FIVE, ids=repr)


@any_five
def test_counts(five):
    """NumPy's and torch's whole numbers count as Python's do."""
    assert whole("n", five) == 5 and type(whole("n", five)) is int
    model, x = mixture().model(CHAIN), states(2, 3)
    for budget in ("nfe", "steps"):
        for sampler in ("auto", "ddim", "unipc"):
            run = sf.solve(model, x, sampler, **{budget: five})
            assert torch.equal(run.x, sf.solve(model, x, sampler, **{budget: 5}).x)
            assert sf.plan(sampler, CHAIN, **{budget: five}) == sf.plan(sampler, CHAIN, **{budget: 5})
    assert torch.equal(sf.solve(model, x, "ddpm", steps=3, seed=five).x, sf.solve(model, x, "ddpm", steps=3, seed=5).x)
    assert torch.equal(
        sf.solve(model, x, "ddpm", steps=3, seed=[five, five]).x, sf.solve(model, x, "ddpm", steps=3, seed=(5, 5)).x
    )
    assert torch.equal(sf.solve(model, x, "ddim", steps=8, parallel=five).x, sf.solve(model, x, "ddim", steps=8, parallel=5).x)
    assert torch.equal(sf.sample(model, (five, 3), steps=3, seed=0), sf.sample(model, (5, 3), steps=3, seed=0))
    assert torch.equal(sf.interpolate(x[:1], x[1:], five), sf.interpolate(x[:1], x[1:], 5))
    assert sf.estimate_variance(model, x, five, batch=five) == sf.estimate_variance(model, x, 5)
    assert sf.get_sampler("sa-solver", predictor=five // 2) == sf.get_sampler("sa-solver", predictor=2)
    assert sf.invert(model, x, "ddim", steps=five).x.equal(sf.invert(model, x, "ddim", steps=5).x)
    assert sf.vlb(model, x, steps=five, draws=five, seed=0).value.equal(sf.vlb(model, x, steps=5, draws=5, seed=0).value)


@pytest.mark.parametrize("half", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), np.array(0.5)], ids=repr)
def test_numbers(half):
    """And their real numbers, as times and as options; a plan keeps plain ones."""
    assert number("x", half) == 0.5 and type(number("x", half)) is float
    model, x = mixture().model(VP), states(2, 3)
    assert torch.equal(sf.solve(model, x, "ddim", steps=3, start=half).x, sf.solve(model, x, "ddim", steps=3, start=0.5).x)
    assert sf.plan("ddim", VP, grid=[1.0, half, 0.0]) == sf.plan("ddim", VP, grid=[1.0, 0.5, 0.0])
    for sampler, option in (("ddim", "eta"), ("dpm-solver", "r1"), ("edm-churn", "S_churn"), ("ddim", "analytic")):
        made = sf.plan(sampler, VP, 3, **{option: half})
        assert made == sf.plan(sampler, VP, 3, **{option: 0.5}) and Plan.from_json(made.to_json()) == made
        assert type(dict(made.options)[option]) is float
    assert sf.interpolate(x[:1], x[1:], half).equal(sf.interpolate(x[:1], x[1:], 0.5))


NO_COUNTS = [True, np.True_, torch.tensor(True), 2.0, np.float64(5), torch.tensor(5.0), "5", b"5", [5], 5j, None]


@pytest.mark.parametrize("bad", [*NO_COUNTS, torch.tensor([5, 5]), np.array([5])], ids=repr)
def test_no_counts(bad):
    for run, name in (
        (lambda v: sf.solve(MODEL, X, "ddim", steps=v) if v is not None else whole("steps", v), "steps"),
        (lambda v: sf.solve(MODEL, X, nfe=v) if v is not None else whole("nfe", v), "nfe"),
        (lambda v: sf.get_sampler("unipc", order=v), "order"),
        (lambda v: sf.estimate_variance(MODEL, X, 3, batch=v), "batch"),
    ):
        with pytest.raises(TypeError, match=rf"^{name} must be a whole number"):
            run(bad)


NO_NUMBERS = [1j, np.complex64(1), torch.tensor(1j), "a", b"1", True, np.True_, torch.tensor(True), [0.5]]


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=repr)
def test_no_numbers(bad):
    for run, name in (
        (lambda v: sf.solve(MODEL, X, "ddim", steps=2, eta=v), "eta"),
        (lambda v: sf.get_sampler("restart", t_max=v), "t_max"),
        (lambda v: sf.solve(MODEL, X, "ddim", steps=2, start=v), "start"),
        (lambda v: sf.solve(MODEL, X, "ddim", grid=[1.0, v]), "time 1 of the grid|grid"),
    ):
        with pytest.raises(TypeError, match=rf"^({name}) must be"):
            run(bad)


def test_what_does_not_fit_into_json():
    """The option that does not, by name; else the step whose rows have a value a sample."""
    with pytest.raises(ValueError, match=r"^the option tau=<function .* of this plan does not fit into JSON"):
        sf.plan("sa-solver", VP, 3, tau=lambda t: 1.0).to_json()

    def rows(path, times, s):
        row = path.bridge(times[0], s)
        return Row(torch.tensor([row.x, row.x]), row.m) if s == 0.5 else row

    plan = Linear(name="own", rows=rows, lands=True).plan(VP, (1.0, 0.7, 0.5, 0.0))
    with pytest.raises(
        ValueError, match=r"^step 2 of this plan \(0\.7 → 0\.5\) does not fit into JSON: the weights of its rows are"
    ):
        plan.to_json()
    assert json.loads(sf.plan("sa-solver", VP, 3).to_json())["options"]["tau"] == 1.0
