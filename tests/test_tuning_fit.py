"""What a tuned plan is made of: rows whose numbers move, and the fit against closed forms."""

import dataclasses
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._core.grid import ode
from scoreflow._samplers.plan import Fit
from scoreflow.tuning import fit as fits
from scoreflow.tuning.problem import Part, Problem, errors
from scoreflow.tuning.student import Student

VP = PATHS["vp"]
DATA = mixture()
ANY = Fit("", "", 0)


def answer(model):
    return lambda x, t, prediction: model(x, torch.as_tensor(t, dtype=torch.float64), prediction)


def student(path, name="ipndm-4", steps=6, **options):
    """A student on the grid `rectified`, and the plan of a sampler on it."""
    times, noise = sf.grid(path, steps, "rectified"), path.alpha(1.0) > 0
    chosen = {"form": "noise" if noise else "data", "most": path.lam(1e-4), **options}
    one = Student(path, times, chosen.pop("form"), chosen.pop("most"), **chosen)
    return one, sf.plan(name if noise else "ddim", path, grid=times)


# -- rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["vp", "chain", "ve", "sub-vp"])
def test_it_begins_as_ipndm(path):
    """Before anything is fitted the rows are those of iPNDM of order 4 on the same times, also the last."""
    path = PATHS[path]
    one, theirs = student(path)
    ours = one.plan(fit=ANY)
    assert ours.times == pytest.approx(theirs.times, rel=1e-9)
    for a, b in zip(ours.steps[:-1], theirs.steps[:-1], strict=True):
        assert a.stages[0].row.x == pytest.approx(b.stages[0].row.x, rel=1e-8)
        assert a.stages[0].row.m == pytest.approx(b.stages[0].row.m, rel=1e-7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["noise", "data"])
def test_rows_carry_marginals_whatever_the_numbers_are(path, form):
    """`x α_t + Σm = α_s` in data form, `x α_t = α_s` in noise form, and the other half of it; `free` gives that up."""
    path = PATHS[path]
    if form == "noise" and path.alpha(1.0) == 0:
        return
    for free in (False, True):
        one = student(path, form=form, free=free)[0]
        generator = torch.Generator().manual_seed(0)
        one.shares = one.shares + torch.randn(len(one.shares), generator=generator, dtype=torch.float64)
        one.weights = [w + torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in one.weights]
        off = []
        for step in one.plan(fit=ANY).steps:
            (u, (x, m, z)), alpha, sigma = step.stages[0], path.alpha(step.t), path.sigma(step.t)
            whole = x * alpha + (sum(m) if form == "data" else 0.0)
            noise = x * sigma + (sum(m) if form == "noise" else 0.0)
            off += [abs(whole - path.alpha(u)), abs(noise - path.sigma(u))]
            assert z == 0.0
        assert (max(off) < 1e-9) != free


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("v", [None, 0.8])
def test_the_differentiable_run_is_the_plans(path, v):
    """The same `advance`: the state that is differentiated is that of `solve` with the plan, to rounding."""
    path = PATHS[path]
    one, model, x = student(path, v=v)[0], DATA.model(path), states(5, 3) * path.prior_std(1.0)
    one.weights = [w + 0.05 * torch.arange(len(w), dtype=torch.float64) for w in one.weights]
    run = one.run(answer(model), x)
    sol = sf.solve(model, x, one.plan(fit=ANY))
    torch.testing.assert_close(run, sol.x, rtol=1e-9, atol=1e-9)
    assert sol.nfe == one.steps - (v is not None)


@pytest.mark.parametrize("labels", [False, True])
def test_slopes_are_those_of_finite_differences(labels):
    """Through times, weights, the first answer's variance and labels."""
    one, model, x = student(VP, v=0.8, labels=labels, steps=4)[0], DATA.model(VP), states(4, 3)
    parameters = [p.requires_grad_() for p in one.parameters]
    value = lambda: one.run(answer(model), x).square().sum()  # noqa: E731
    slopes = torch.autograd.grad(value(), parameters)
    with torch.no_grad():
        for p, slope in zip(parameters, slopes, strict=True):
            for i in np.ndindex(*p.shape):
                kept, h = p[i].item(), 1e-5
                ends = []
                for side in (h, -h):
                    p[i] = kept + side
                    ends.append(float(value()))
                p[i] = kept
                assert float(slope[i]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-5)


COSINE = sf.VPSDE.from_betas(sf.DDPMChain.cosine().beta)


@pytest.mark.parametrize("path", [*PATHS.values(), COSINE], ids=[*PATHS, "cosine"])
def test_times_stay_in_order_and_in_bounds_whatever_the_shares(path):
    """Also of a line search that went far, so that all shares but one round to 0."""
    for k in range(6):
        one = student(path)[0]
        one.shares = one.shares + 600 * torch.nn.functional.one_hot(torch.tensor(k), len(one.shares))
        one.shares.requires_grad_()
        times = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in one.times()])
        assert all(s <= t for t, s in pairwise(times.tolist())) and bool(times.isfinite().all())
        assert bool(torch.autograd.grad(times.sum(), one.shares)[0].isfinite().all())


def test_times_stay_in_order_and_in_bounds():
    one = student(VP)[0]
    one.shares = 50 * states(1, 6, seed=3)[0]
    times = one.plan(fit=ANY).times
    assert all(s <= t for t, s in pairwise(times)) and times[-2] >= 1e-4 * (1 - 1e-6)
    ends = Student(VP, (0.9, 0.5, 0.2), "noise", VP.lam(1e-3)).plan(fit=ANY).times
    assert (ends[0], ends[-1]) == (0.9, 0.2)


# -- the fit --------------------------------------------------------------------------------------------------------------


def problem(data, path=VP, n=64, **more):
    model = data.model(path)
    made = Problem(model, tuple(data.event), {}, {"fit": range(n), "validate": range(n, 2 * n)}, 1.0, 0.0, 200, n)
    return dataclasses.replace(made, **more)


def part(of, name="fit"):
    x, told = of.states(name)
    return Part(x, told, of.ode(x, told)[0][-1])


def test_a_gaussian_is_fitted_to_rounding():
    """On N(μ, S) data the ODE is linear, and two evaluations of a direction are enough: weights alone end where it does."""
    data = sf.Gaussian(torch.zeros(1), torch.eye(1) * 0.3)
    of = problem(data)
    begin = fits.Start("", tuple(sf.grid(VP, 4, "rectified")))
    asked = fits.Asked("noise", 4, False, True, False, 0, 1.0)
    some = part(of)
    before = errors(of.run(fits.student(of, begin, asked).plan(fit=ANY), some.x, some.told)[0], some.target)
    done = fits.descend(of, begin, asked, some, math.inf)
    one = fits.student(of, begin, asked)
    one.load(done.state)
    after = errors(of.run(one.plan(fit=ANY), some.x, some.told)[0], some.target)
    assert after.median() < 0.02 * before.median()  # states are of 32 bits


@pytest.mark.parametrize("off", [0.0, 1e-15, 1e-9])
def test_the_odes_states_at_times_that_are_nearly_its_own(off):
    """A node of the student beside one of the solver makes no step of no length."""
    of = problem(DATA, n=8)
    x, told = of.states("fit")
    times = sf.grid(VP, 200, partial(ode, exact=True))
    (middle, end), _ = of.ode(x, told, [times[100] + off])
    (there,), _ = of.ode(x, told)
    torch.testing.assert_close(end, there, rtol=1e-4, atol=1e-4)
    assert middle.isfinite().all()


def test_fitting_lowers_the_loss_on_other_seeds():
    of = problem(DATA, n=128)
    begin = fits.Start("", tuple(sf.grid(VP, 5, "ode")))
    some, other = part(of), part(of, "validate")
    medians = []
    for asked in (
        fits.Asked("noise", 4, False, False, False, 0, 0.1),
        fits.Asked("noise", 4, False, False, False, 300, 0.1),
        fits.Asked("noise", 4, False, True, False, 300, 0.1),
    ):
        done = fits.descend(of, begin, asked, some, math.inf)
        one = fits.student(of, begin, asked)
        one.load(done.state)
        medians.append(float(errors(of.run(one.plan(fit=ANY), other.x, other.told)[0], other.target).median()))
    assert medians[1] < 0.7 * medians[0] and medians[2] < 0.6 * medians[1], medians


def test_conditions_are_drawn_by_seed():
    """A row of a tensor by the sample's own seed; marked, so that parts of a batch take their rows."""
    of = problem(DATA, conditions={"y": torch.arange(100, 110), "w": 2.0, "f": lambda n, seed: torch.arange(n)})
    told, again = of.told(range(20)), of.told(range(10, 20))
    assert torch.equal(told["y"].value[10:], again["y"].value) and len(set(told["y"].value.tolist())) > 3
    assert told["w"] == 2.0 and told["f"].rows
    few = Part(torch.zeros(20, 3), told, torch.zeros(20, 3)).of(torch.tensor([3, 5]))
    assert torch.equal(sf.each(few.told["y"]).value.value, told["y"].value[[3, 5]])


def test_the_loss_is_not_ruled_by_a_sample_at_another_mode():
    x, target = torch.zeros(10, 2), torch.full((10, 2), 0.1)
    far = target.clone()
    far[0] = 100.0
    near, off = fits.loss_of(x, target, 0.1), fits.loss_of(x, far, 0.1)
    assert near == pytest.approx(math.log(2)) and off < near + 1.5


@pytest.mark.parametrize("kind", ["wild", "nan", "astray"])
def test_a_descent_that_goes_wrong_gives_the_best_it_has_seen(monkeypatch, kind):
    """A minimizer that walks away, losses and steps that are no numbers."""
    of, begin = problem(DATA), fits.Start("", tuple(sf.grid(VP, 5, "ode")))
    some, asked = part(of), fits.Asked("noise", 4, False, True, False, 0, 0.1)
    at_first = fits.descend(of, begin, asked, some, math.inf).loss

    def away(function, numbers, **more):
        function(numbers)
        if kind == "nan":
            monkeypatch.setattr(fits, "loss_of", lambda x, *_: x.sum() * math.nan)
        worse, slope = function(numbers + {"wild": 30.0, "nan": 0.1, "astray": math.nan}[kind])
        assert at_first < worse < math.inf and np.isfinite(slope).all()

    monkeypatch.setattr("scipy.optimize.minimize", away)
    done = fits.descend(of, begin, asked._replace(iterations=60), some, math.inf)
    assert done.loss == pytest.approx(at_first, rel=1e-9) and all(bool(v.isfinite().all()) for v in done.state.values())


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("path", ["vp", "chain", "ve"])
def test_one_step_more_is_the_same_run(path, free, form):
    """The new output weighs 0; with as much history as steps, states agree to rounding."""
    path, x = PATHS[path], states(5, 3)
    one = student(path, form=form, free=free, history=8, labels=False)[0]
    one.weights = [w + 0.05 * torch.arange(len(w), dtype=torch.float64) for w in one.weights]
    times, state = one.grown()
    longer = Student(path, times, form, path.lam(1e-4), history=8, free=free)
    longer.load(state)
    assert longer.steps == one.steps + 1 == len(times) - 1
    assert longer.plan(fit=ANY).times == pytest.approx(times, rel=1e-9)
    x = x * path.prior_std(1.0)
    model = answer(DATA.model(path))
    torch.testing.assert_close(longer.run(model, x), one.run(model, x), rtol=1e-9, atol=1e-9)
