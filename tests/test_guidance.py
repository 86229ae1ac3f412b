"""Guidance: exact on mixtures, linear where it should be, and refused where it has no branch."""

import math
from itertools import pairwise

import pytest
import torch
from guided import MIX, MODEL, VP, Both, D, K, X, Y, net_model, posterior
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import states

import scoreflow as sf
from scoreflow.guidance.others import quantile

# -- exact --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "flow"])
@given(t=st.floats(0.05, 0.99), scale=st.floats(-1, 8))
@settings(max_examples=5)
def test_classifier_free_is_linear_in_every_prediction(prediction, t, scale):
    """`u + scale (c − u)` holds in ε, x̂_0, v, score and flow, whichever the network gives; 1 is conditional, 0 is not."""
    model = net_model(prediction)
    guided = sf.ClassifierFree(model, scale)
    for want in ("eps", "x0", "v", "score", "flow"):
        c, u = model(X, t, want, y=Y), model(X, t, want, y=torch.full_like(Y, K))
        torch.testing.assert_close(guided(X, t, want, y=Y), u + scale * (c - u), rtol=1e-8, atol=1e-8)
    assert torch.equal(sf.ClassifierFree(model, 1)(X, t, prediction, y=Y), model(X, t, prediction, y=Y))
    torch.testing.assert_close(sf.ClassifierFree(model, 0)(X, t, y=Y), MIX.model(VP).eps(X, t), rtol=1e-8, atol=1e-8)


@given(t=st.floats(0.05, 0.99))
@settings(max_examples=15)
def test_classifier_guidance_is_bayes_rule(t):
    """On a mixture with its exact posterior for a classifier, scale 1 gives the score of the component asked for."""
    guided = sf.ClassifierGuidance(MIX.model(VP), lambda x, t: posterior(x, t), 1.0)
    exact, plain = MODEL.score(X, t, y=Y), MIX.model(VP).score(X, t)
    torch.testing.assert_close(guided.score(X, t, y=Y), exact, rtol=1e-10, atol=1e-10)
    for scale in (2.3, lambda t: 2.3):
        found = sf.ClassifierGuidance(MIX.model(VP), posterior, scale).score(X, t, y=Y)
        torch.testing.assert_close(found, plain + 2.3 * (exact - plain), rtol=1e-10, atol=1e-10)


def test_a_scale_of_each_sample():
    """By `scaled`: each is guided as alone, those at 1 and 0 by one branch, samples of the batch apart from it too."""
    x, scales = states(4, D), torch.tensor([1.0, 2.0, 3.5, 0.0], dtype=torch.float64)
    y, t = torch.tensor([0, 1, 2, 0]), torch.full((4,), 0.4, dtype=torch.float64)
    guided = sf.ClassifierFree(MODEL, 1.0, interval=(0.1, 0.9))
    found = guided.scaled(scales)
    for other in (found(x, t, y=y), found(x, 0.4, y=y)):
        for i in range(4):
            alone = guided.scaled(float(scales[i]))(x[i : i + 1], 0.4, y=y[i : i + 1])
            torch.testing.assert_close(other[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    assert guided.scale == 1.0 and torch.equal(found(x, 0.95, y=y), guided(x, 0.95, y=y))
    with pytest.raises(ValueError, match="scale must be a finite number"):
        guided.scaled(math.nan)


def test_classifier_guidance_told_as_the_network_is():
    """The classifier is told the label of the time; a conditional model is told y too; outside the interval nobody guides."""
    seen = []

    def classifier(x, label):
        seen.append(label)
        return torch.zeros(len(x), K, dtype=x.dtype) + 0 * x.sum(1, keepdim=True)

    chain = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    model = sf.ScoreModel(Both(chain), chain, time=lambda t: t)
    indexed = sf.ScoreModel(lambda x, t: x, chain, time="index")
    sf.ClassifierGuidance(indexed, classifier, 1.0)(X, 0.5, y=Y)
    assert torch.equal(seen[0], torch.full((4,), 499.0))
    told = sf.ClassifierGuidance(model, classifier, 1.0, conditional=True)
    torch.testing.assert_close(told(X, 0.5, y=Y), model(X, 0.5, y=Y), rtol=1e-10, atol=1e-10)
    limited = sf.ClassifierGuidance(MIX.model(VP), posterior, 3.0, interval=(0.4, 1.0))
    t = torch.tensor([0.3, 0.5, 0.2, 0.9], dtype=torch.float64)
    expected = MIX.model(VP)(X, t)
    for i in (1, 3):
        expected[i] = sf.ClassifierGuidance(MIX.model(VP), posterior, 3.0)(X[i : i + 1], float(t[i]), y=Y[i : i + 1])[0]
    torch.testing.assert_close(limited(X, t, y=Y), expected, rtol=1e-10, atol=1e-10)


def test_the_classifier_is_called_where_it_guides():
    """Not outside the interval, nor at scale 0, nor for samples that are there: what it says of them may be anything."""
    seen = []

    def classifier(x, label):
        seen.append(len(x))
        return torch.where(label[:, None] < 0.4, torch.nan, posterior(x, label))

    for scale in (3.0, lambda t: 3.0 * (t < 0.8)):
        seen.clear()
        guided = sf.ClassifierGuidance(MIX.model(VP), classifier, scale, interval=(0.4, 0.95))
        sf.solve(guided, X, "ddim", grid=[0.97, 0.9, 0.7, 0.5, 0.3, 0.0], y=Y)
        assert seen == ([4, 4, 4] if scale == 3.0 else [4, 4])
        guided(X, torch.tensor([0.2, 0.5, 0.96, 0.7], dtype=torch.float64), y=Y)
        assert seen[-1] == 2
    with torch.inference_mode():
        told = sf.solve(guided, X, "ddim", grid=[0.7, 0.5, 0.3], y=Y).x
    assert torch.equal(told, sf.solve(guided, X, "ddim", grid=[0.7, 0.5, 0.3], y=Y).x)


def test_gradients_flow_through_classifier_guidance():
    """Under `grad=True` the sample has a derivative by the start; without, none is recorded, and it is the same sample."""
    guided, x = sf.ClassifierGuidance(MIX.model(VP), posterior, 1.0), X.clone().requires_grad_()
    sol = sf.solve(guided, x, "ddim", steps=3, start=0.9, grad=True, y=Y)
    (slope,) = torch.autograd.grad(sol.x.sum(), x)
    plain = sf.solve(guided, X, "ddim", steps=3, start=0.9, y=Y).x
    assert torch.equal(plain, sol.x.detach()) and not plain.requires_grad
    momentum, step = sf.APG(net_model(), 2.0, momentum=-0.7), 1e-6 * torch.ones_like(X)
    (pushed,) = torch.autograd.grad(sf.solve(momentum, x, "ddim", steps=3, start=0.9, grad=True, y=Y).x.sum(), x)
    for model, found in ((guided, slope), (momentum, pushed)):
        up, down = (sf.solve(model, X + s * step, "ddim", steps=3, start=0.9, y=Y).x.sum(1) for s in (1, -1))
        torch.testing.assert_close(found.sum(1), (up - down) / 2e-6, rtol=1e-5, atol=1e-6)


@given(t=st.floats(0.1, 0.95), scale=st.floats(0, 6))
@settings(max_examples=10)
def test_apg_with_all_off_is_classifier_free(t, scale):
    plain = sf.ClassifierFree(MODEL, scale)(X, t, "x0", y=Y)
    torch.testing.assert_close(sf.APG(MODEL, scale, eta=1.0)(X, t, "x0", y=Y), plain, rtol=1e-8, atol=1e-8)


def test_scale_0_is_the_other_branch_only_where_the_formula_says_so():
    """Projected or rescaled guidance holds at 0 as it does beside it, and then costs both branches."""
    for make in (lambda w: sf.APG(MODEL, w, eta=0.2), lambda w: sf.ClassifierFree(MODEL, w, rescale=0.5)):
        for t in (0.5, torch.full((4,), 0.5, dtype=torch.float64)):
            torch.testing.assert_close(make(0.0)(X, t, y=Y), make(1e-12)(X, t, y=Y), rtol=1e-9, atol=1e-9)
        assert make(0.0).evaluations(0.5) == 2 and make(1.0).evaluations(0.5) == 1
        assert make(0.0).evaluations(torch.tensor([0.5, 0.2])).tolist() == [2, 2]
    assert sf.APG(MODEL, 0.0, eta=1.0).evaluations(0.5) == 1


def test_apg_step_by_step():
    """Algorithm 1 of the paper, by hand: momentum along the run, the length held, the parallel part weighed by η."""
    model, scale, eta, norm, momentum = net_model(), 3.0, 0.3, 0.4, -0.6
    guided, times = sf.APG(model, scale, eta=eta, norm=norm, momentum=momentum), [0.8, 0.5, 0.3, 0.1]
    ours = sf.solve(guided, X, "ddim", grid=times, y=Y)
    x, average = X, torch.zeros_like(X)
    for t, s in pairwise(times):
        c, u = model(x, t, "x0", y=Y), model(x, t, "x0", y=torch.full_like(Y, K))
        average = (c - u) + momentum * average
        diff = average * torch.minimum(torch.ones(4, 1), norm / average.norm(dim=1, keepdim=True))
        direction = c / c.norm(dim=1, keepdim=True)
        parallel = (diff * direction).sum(1, keepdim=True) * direction
        x_0 = c + (scale - 1) * (diff - parallel + eta * parallel)
        x = VP.alpha(s) * x_0 + VP.sigma(s) / VP.sigma(t) * (x - VP.alpha(t) * x_0)
    torch.testing.assert_close(ours.x, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_cfg_plus_plus_is_the_published_loop(eta):
    """x̂_0 guided, ε̂ unconditional in what is put back, with the same draws."""
    times, scale, draws = [0.9, 0.6, 0.35, 0.1, 0.0], 0.7, states(3, 4, D, seed=2)
    ours = sf.solve(sf.CFGPlusPlus(MODEL, scale), X, "ddim", eta=eta, grid=times, noise=draws if eta else None, y=Y)
    x = X
    for k, (t, s) in enumerate(pairwise(times)):
        c, u = MODEL(x, t, "x0", y=Y), MODEL(x, t, "x0", y=torch.full_like(Y, K))
        x_0, eps = u + scale * (c - u), (x - VP.alpha(t) * u) / VP.sigma(t)
        std = eta * VP.posterior_std(t, s)
        x = VP.alpha(s) * x_0 + math.sqrt(VP.sigma(s) ** 2 - std**2) * eps + (std * draws[k] if std else 0)
    torch.testing.assert_close(ours.x, x, rtol=1e-9, atol=1e-9)
    assert ours.nfe == 8


def test_cfg_plus_plus_on_other_rows():
    """Rows that weigh ε, a network of v, steps in parallel, a scale by t: on a first-order step it is the same guidance."""
    guided = sf.CFGPlusPlus(MODEL, lambda t: 0.4 + t / 2)
    ours = sf.solve(guided, X, "ddim", steps=5, start=0.9, y=Y)
    eps = sf.solve(guided, X, "exponential-ab", order=1, form="noise", steps=5, start=0.9, y=Y)
    assert eps.plan.prediction == "eps" != ours.plan.prediction
    side = sf.solve(guided, X, "ddim", steps=5, start=0.9, parallel=sf.Picard(3, 0.0), y=Y)
    other = sf.solve(sf.CFGPlusPlus(net_model("v"), guided.scale), X, "ddim", steps=5, start=0.9, y=Y)
    for found in (eps, side, other):
        torch.testing.assert_close(found.x, ours.x, rtol=1e-8, atol=1e-8)


def test_cfg_plus_plus_inverted():
    """Upwards x̂_0 is unconditional and the noise guided, as in the authors' DDIM inversion."""
    times, scale = [0.9, 0.6, 0.35, 0.1], 0.7
    up = sf.invert(sf.CFGPlusPlus(MODEL, scale), X, "ddim", grid=times, y=Y)
    x = X
    for s, t in pairwise(times[::-1]):
        c, u = MODEL(x, s, y=Y), MODEL(x, s, y=torch.full_like(Y, K))
        x = VP.alpha(t) * (x - VP.sigma(s) * u) / VP.alpha(s) + VP.sigma(t) * (u + scale * (c - u))
    torch.testing.assert_close(up.x, x, rtol=1e-9, atol=1e-9)


def test_cfg_plus_plus_wants_rows_of_one_weight():
    guided = sf.CFGPlusPlus(MODEL, 0.6)
    for sampler in ("dpm-solver++", "edm", "scipy", "dpm-adaptive"):
        with pytest.raises(ValueError, match=r"CFG\+\+ stands on steps of one evaluation and one row, and .*use ddim, ddpm"):
            sf.solve(guided, X, sampler, start=0.9, y=Y)
    with pytest.raises(ValueError, match=r"CFG\+\+ depends on the step that is taken, and t=0.5 is the beginning of none"):
        guided(X, 0.5, y=Y)


def test_autoguidance():
    """`worse + scale (model − worse)`, with predictions of its own and the conditions it takes; scale 1 is the model."""
    worse = sf.ScoreModel(lambda x, t: 0.5 * x, VP, "x0")
    guided = sf.Autoguidance(MODEL, worse, 1.8)
    expected = worse(X, 0.4) + 1.8 * (MODEL(X, 0.4, y=Y) - worse(X, 0.4))
    torch.testing.assert_close(guided(X, 0.4, y=Y), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(sf.Autoguidance(MODEL, worse, 1.0)(X, 0.4, y=Y), MODEL(X, 0.4, y=Y))
    with pytest.raises(ValueError, match="worse must stand on the model's path"):
        sf.Autoguidance(MODEL, sf.ScoreModel(lambda x, t: x, sf.Flow()), 2.0)
    with pytest.raises(TypeError, match="worse must be a ScoreModel"):
        sf.Autoguidance(MODEL, torch.nn.Identity(), 2.0)


def test_thresholding():
    """Static: clipped. Dynamic: a sample's percentile, at least the limit, becomes the limit; ε̂ goes with it."""
    values = torch.tensor([[-3.0, 0.5, 0.2, 1.0], [0.1, -0.2, 0.3, 0.05]], dtype=torch.float64)
    model = sf.ScoreModel(lambda x, t: values, VP, "x0")
    x = torch.zeros(2, 4, dtype=torch.float64)
    assert torch.equal(sf.Thresholding(model, 0.8).x0(x, 0.5), values.clamp(-0.8, 0.8))
    found = sf.Thresholding(model, 0.8, percentile=2 / 3).x0(x, 0.5)
    torch.testing.assert_close(found[0], values[0].clamp(-1, 1) * 0.8)  # of 0.2, 0.5, 1, 3 the place 2/3 is 1
    torch.testing.assert_close(found[1], values[1])
    for t in (0.9, 0.4):
        eps = sf.Thresholding(model, 0.8).eps(x, t)
        torch.testing.assert_close(VP.alpha(t) * values.clamp(-0.8, 0.8) + VP.sigma(t) * eps, x, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_percentile_is_torchs(d, q, seed):
    values = states(3, d, seed=seed)
    torch.testing.assert_close(quantile(values, q), values.quantile(q, dim=1), rtol=1e-12, atol=1e-12)


def test_a_percentile_of_more_than_2_to_the_24_entries():
    """Of 0, 1, …, d − 1 in any order it is q (d − 1), exactly."""
    d = 2**24 + 101  # 2 s, to sort them
    values = torch.arange(d, dtype=torch.float64).roll(d // 3)[None]
    assert quantile(values, 0.995).item() == pytest.approx(0.995 * (d - 1), rel=1e-15)


def test_guidance_commutes_with_linear_steps_and_not_with_thresholding():
    """From one state and draw, the step of the guided model is the extrapolation of the two models' steps (identity 36)."""
    for sampler in ("ddim", "ddpm", "reverse-sde"):
        step = dict(grid=[0.6, 0.45], noise=states(1, 4, D, seed=1) if sampler != "ddim" else None)
        step |= {"method": "euler"} if sampler == "reverse-sde" else {}
        for wrap, commutes in ((lambda m: m, True), (lambda m: sf.Thresholding(m, 0.3), False)):
            c, u = (sf.solve(wrap(MODEL), X, sampler, **step, y=y).x for y in (Y, torch.full_like(Y, K)))
            guided = sf.solve(wrap(sf.ClassifierFree(MODEL, 3.0)), X, sampler, **step, y=Y).x
            assert torch.allclose(guided, u + 3 * (c - u), rtol=1e-9, atol=1e-9) is commutes


def test_rescaling():
    """φ = 1 gives every sample the standard deviation of its conditional prediction; φ = 0 changes nothing."""
    c = MODEL(X, 0.5, y=Y)
    full = sf.ClassifierFree(MODEL, 4.0, rescale=1.0)(X, 0.5, y=Y)
    torch.testing.assert_close(full.std(1), c.std(1), rtol=1e-9, atol=1e-9)
    plain = sf.ClassifierFree(MODEL, 4.0)(X, 0.5, y=Y)
    half = sf.ClassifierFree(MODEL, 4.0, rescale=0.5)(X, 0.5, y=Y)
    torch.testing.assert_close(half, (full + plain) / 2, rtol=1e-9, atol=1e-9)
    flat = sf.ScoreModel(lambda x, t, y: x * (1 + y[:, None]), VP)
    one = torch.ones(2, 1)
    assert torch.equal(sf.ClassifierFree(flat, 3.0, null={"y": 1}, rescale=0.5)(one, 0.5, y=torch.tensor([0, 0])), -one)


# -- refused ------------------------------------------------------------------------------------------------------------


def plain(x, t, y=None):
    return x


REFUSED = [
    (lambda: sf.ClassifierFree(sf.ScoreModel(plain, VP), 2.0), ValueError, "null=None: guidance needs an unconditional"),
    (lambda: sf.ClassifierFree(sf.ScoreModel(sf.nets.UNet(), VP), 2.0), ValueError, "UNet does not say what means 'none"),
    (lambda: sf.ClassifierFree(MODEL, 2.0)(X, 0.5), ValueError, "guidance drops y, and the conditions are none: give one"),
    (lambda: sf.solve(sf.ClassifierFree(MODEL, 2.0), X, "ddim", steps=2), ValueError, "guidance drops y"),
    (lambda: sf.ClassifierFree(MODEL, "2"), TypeError, "scale must be a finite number, got '2'"),
    (lambda: sf.ClassifierFree(MODEL, math.nan), ValueError, "scale must be a finite number, got nan"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, interval=(0.7, 0.2)), ValueError, r"interval must rise, .*got .0.7, 0.2."),
    (lambda: sf.ClassifierFree(MODEL, 2.0, interval=0.3), ValueError, "interval must be two times"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, rescale=1.5), ValueError, "rescale must be"),
    (lambda: sf.ClassifierFree(MODEL, lambda t: math.nan)(X, 0.5, y=Y), ValueError, r"scale\(0.5\) must be a finite number"),
    (lambda: sf.ClassifierGuidance(MODEL, posterior, lambda t: "a")(X, 0.5, y=Y), TypeError, r"scale\(0.5\) must be a finite"),
    (lambda: sf.ClassifierGuidance(MODEL, posterior, 1.0)(X, 0.5, y=Y / 1), ValueError, "needs y, whole numbers .*got torch"),
    (lambda: sf.ClassifierGuidance(MODEL, posterior, 1.0)(X, 0.5, y=Y + 3), ValueError, r"classes, 0…4, got \[3, 6, 4, 6\]"),
    (lambda: sf.ClassifierGuidance(MODEL, lambda x, t: x.sum(1), 1.0)(X, 0.5, y=Y), ValueError, r"must give logits \(4, cl"),
    (lambda: sf.ClassifierGuidance(sf.ScoreModel(lambda x, t: x, VP), posterior, 1.0, conditional=True), ValueError,
     "conditional=True tells the model y"),
    (lambda: sf.APG(MODEL, 2.0, norm=-1.0), ValueError, "norm must be"),
    (lambda: sf.APG(MODEL, 2.0, momentum=2.0), ValueError, "momentum must be"),
    (lambda: sf.Thresholding(MODEL, 0.0), ValueError, "limit must be a finite number > 0"),
    (lambda: sf.Thresholding(MODEL, percentile=99.5), ValueError, "percentile must be a finite number ≥ 0 and ≤ 1"),
    (lambda: sf.ClassifierGuidance(MODEL, 3, 1.0), TypeError, "classifier must be a module or a callable, got int"),
    (lambda: sf.ClassifierGuidance(MODEL, posterior, 1.0)(X, 0.5), ValueError, r"classifier guidance needs y, whole"),
    (lambda: sf.Thresholding(Both()), TypeError, "model must be a ScoreModel, got Both: wrap the network"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, rescal=0.5), TypeError, "unexpected keyword argument 'rescal'"),
    (lambda: sf.APG(MODEL, 2.0, rescale=0.5), TypeError, "unexpected keyword argument 'rescale'"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, null={"z": 0}), ValueError, "null names 'z', and the network Both takes no such"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, null=10), TypeError, "null must be a mapping of names to values, .* got 10"),
    (lambda: sf.ClassifierFree(MODEL, math.inf), ValueError, "scale must be a finite number, got inf"),
    (lambda: sf.ClassifierFree(MODEL, True), TypeError, "scale must be a finite number, got True"),
    (lambda: sf.ClassifierFree(MODEL, torch.ones(2)), TypeError, r"scale must be a finite number, got tensor"),
    (lambda: sf.ClassifierFree(MODEL, MODEL), TypeError, "scale must be a finite number, got ScoreModel"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, interval=(False, True)), TypeError, "interval must be a finite number .* got False"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, interval=("0.1", "0.2")), TypeError, "interval must be a finite .* got '0.1'"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, interval=(0.1, math.nan)), ValueError, "interval must be a finite .* got nan"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, rescale=True), TypeError, "rescale must be a finite number .* got True"),
    (lambda: sf.ClassifierFree(MODEL, 2.0, prediction="epsilon"), ValueError, "prediction must be one of eps, x0, v"),
    (lambda: sf.CFGPlusPlus(MODEL, 0.5, batched="no"), TypeError, "batched must be True or False, got 'no'"),
    (lambda: sf.APG(MODEL, 2.0, eta=math.nan), ValueError, "eta must be a finite number, got nan"),
    (lambda: sf.APG(VP, 2.0), TypeError, "model must be a ScoreModel, got VPSDE"),
    (lambda: sf.CFGPlusPlus(Both(), 2.0), TypeError, "model must be a ScoreModel, got Both"),
    (lambda: sf.Autoguidance(VP, MODEL, 2.0), TypeError, "model must be a ScoreModel, got VPSDE"),
    (lambda: sf.Autoguidance(MODEL, 2.0, MODEL), TypeError, "worse must be a ScoreModel, got float"),
    (lambda: sf.ClassifierGuidance(VP, posterior, 1.0, conditional=True), TypeError, "model must be a ScoreModel, got VPSDE"),
    (lambda: sf.ClassifierGuidance(MODEL, posterior, 1.0, conditional="no"), TypeError, "conditional must be True or False"),
    (lambda: sf.Thresholding(MODEL, True), TypeError, "limit must be a finite number > 0, got True"),
    (lambda: sf.Thresholding(MODEL, percentile=math.nan), ValueError, "percentile must be a finite number .* got nan"),
    (lambda: MODEL(X.long(), 0.5, y=Y), TypeError, r"x must be a floating-point tensor of shape \(B, ...\), got torch.int64"),
    (lambda: sf.ClassifierFree(MODEL, 2.0).x0(X.numpy(), 0.5, y=Y), TypeError, "x must be a floating-point .* got ndarray"),
    (lambda: MODEL(X, "0.5", y=Y), TypeError, r"t must be a number between 0 \(data\) and 1 \(prior\), got '0.5'"),
    (lambda: MODEL(X, False, y=Y), TypeError, r"t must be a number between 0 \(data\) and 1 \(prior\), got False"),
    (lambda: sf.solve(sf.APG(MODEL, 2.0, momentum=-0.5), X, "torchdiffeq", method="rk4", control="sample", stop=0.1, y=Y),
     ValueError, "momentum=-0.5 follows a batch that stays together, and .* takes it apart"),
    (lambda: sf.training.Objective(drop=0.1, null={"z": 0}).check(MODEL), ValueError, "null names 'z', and the network Both"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "says"), REFUSED)
def test_refusals(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
