"""Guidance: exact on mixtures, linear where it should be, counted, recorded, and refused where it has no branch."""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import mixture, states

import scoreflow as sf
from scoreflow.studies.fingerprint import fingerprint

K, D = 5, 3
MIX = mixture(d=D)
VP = sf.VPSDE()
PARTS = [
    sf.GaussianMixture(torch.ones(1), MIX.means[k : k + 1], torch.diag_embed(MIX._var[k : k + 1]) if MIX._turn is None else
                       (MIX._turn[k] * MIX._var[k]) @ MIX._turn[k].T[None]) for k in range(K)
]  # fmt: skip
Y = torch.tensor([0, 3, 1, 3])
X = states(4, D)


class Both(torch.nn.Module):
    """The exact ε of one component for its class, that of the mixture for the class K, and for None."""

    def __init__(self, path=VP):
        super().__init__()
        self.path, self.null, self._seen = path, {"y": K}, []

    @property
    def seen(self):
        """The batches it was asked with."""
        return self._seen

    def forward(self, x, t, y=None):
        self._seen.append(len(x))
        a, s = self.path.alpha(t), self.path.sigma(t)
        whole = MIX.denoise(x, a, s)
        parts = torch.stack([*(part.denoise(x, a, s) for part in PARTS), whole], 1)
        x_0 = whole if y is None else parts[torch.arange(len(x)), y]
        return ((x - a[:, None] * x_0) / s[:, None]).to(x.dtype)


def posterior(x, t):
    """log p(component | x_t), up to a constant."""
    return MIX._joint(x, VP.alpha(t)[:, None], VP.sigma(t)[:, None])[0]


def net_model(prediction="eps", path=VP):
    net = Both(path)
    if prediction == "eps":
        return sf.ScoreModel(net, path)
    eps = sf.ScoreModel(net, path)

    def said(x, t, y=None):
        return eps(x, t, prediction, y=y)

    said.null = net.null
    return sf.ScoreModel(said, path, prediction)


MODEL = net_model()
WRAPPERS = {
    "cfg": lambda m: sf.ClassifierFree(m, 2.5),
    "cfg interval": lambda m: sf.ClassifierFree(m, 2.5, interval=(0.3, 0.6)),
    "cfg rescale": lambda m: sf.ClassifierFree(m, 2.5, rescale=0.7),
    "cfg schedule": lambda m: sf.ClassifierFree(m, lambda t: 1 + 2 * t),
    "apg": lambda m: sf.APG(m, 2.5, eta=0.2, norm=2.0, momentum=-0.5),
    "autoguidance": lambda m: sf.Autoguidance(m, MIX.model(VP), 1.7),
    "classifier": lambda m: sf.ClassifierGuidance(MIX.model(VP), posterior, 2.0),
    "static": lambda m: sf.Thresholding(m, 0.8),
    "dynamic": lambda m: sf.Thresholding(m, 0.8, percentile=0.6),
    "cfg under thresholding": lambda m: sf.Thresholding(sf.ClassifierFree(m, 3.0), 1.0, percentile=0.9),
}


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
    assert eps.plan.wants == "eps" != ours.plan.wants
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


# -- branches, and what they cost ---------------------------------------------------------------------------------------


def test_two_branches_are_one_batch():
    """One call of 2B; in training mode, or with a condition that is no tensor, two of B, with the same answer."""
    model = net_model()
    guided, net = sf.ClassifierFree(model, 2.0), model.net.eval()
    net.seen.clear()
    together = guided(X, 0.5, y=Y)
    assert net.seen == [8]
    net.train()
    net.seen.clear()
    torch.testing.assert_close(guided(X, 0.5, y=Y), together, rtol=1e-9, atol=1e-9)
    assert net.seen == [4, 4]

    def worded(x, t, text):
        return x if text == "none" else 2 * x

    out = sf.ClassifierFree(sf.ScoreModel(worded, VP), 3.0, null={"text": "none"})(X, 0.5, text="a digit")
    torch.testing.assert_close(out, X + 3 * X)
    net.eval().seen.clear()
    apart = sf.ClassifierFree(model, 2.0, batched=False)(X, 0.5, y=Y)
    torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-9)
    assert net.seen == [4, 4]


def test_a_shared_condition_and_the_word_on_the_variance():
    """A condition without a row a sample is shared; the word is the conditional branch's, wherever that is asked."""

    def net(x, t, y, strength):
        assert strength.shape == (3,)
        return torch.cat([strength.sum() * x, x * 0 + y[:, None]], 1)

    model, t = sf.ScoreModel(net, VP), torch.tensor([0.2, 0.6, 0.2, 0.6], dtype=torch.float64)
    conditions = {"y": torch.tensor([1.0, 2.0, 3.0, 4.0]), "strength": torch.ones(3)}
    for wrap in (sf.ClassifierFree, sf.APG, sf.CFGPlusPlus):
        for batched in (True, False):
            guided = wrap(model, 2.0, null={"y": -1.0}, batched=batched)
            guided = guided.begin(sf.plan("ddim", VP, grid=[0.6, 0.2, 0.0])) if wrap is sf.CFGPlusPlus else guided
            for at in (0.6, t):
                _, word = guided.evaluate(X, at, **conditions)
                assert torch.equal(word, conditions["y"][:, None].expand(4, D).to(word))
    mixed = sf.ClassifierFree(model, lambda u: 2.0 * (u > 0.5), null={"y": -1.0}).evaluate(X, t, **conditions)[1]
    assert mixed[:, 0].tolist() == [-1, 2, -1, 4]  # at scale 0 there is none but the unconditional one
    assert sf.Thresholding(model).evaluate(X, 0.5, **conditions)[1][:, 0].tolist() == [1, 2, 3, 4]


def test_tokens_and_classes_are_dropped_together():
    """A network of ours with both: the null branch has neither; a condition that was not given is not missed."""
    torch.manual_seed(0)
    net = sf.nets.UNet(1, (8, 16), classes=3, tokens=4, heads=2).eval()
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    model, x = sf.ScoreModel(net, VP), states(2, 1, 8, 8, dtype=torch.float32)
    y, tokens = torch.tensor([0, 2]), states(2, 3, 4, dtype=torch.float32)
    with torch.no_grad():
        both = sf.ClassifierFree(model, 0)(x, 0.5, y=y, tokens=tokens)
        torch.testing.assert_close(both, model(x, 0.5), rtol=1e-4, atol=1e-5)
        alone = sf.ClassifierFree(model, 2.0)(x, 0.5, y=y)
        torch.testing.assert_close(alone, 2 * model(x, 0.5, y=y) - model(x, 0.5), rtol=1e-4, atol=1e-4)


def test_evaluations_are_counted():
    """Both branches count, outside the interval one; the model's own count agrees with the solution's."""
    model, worse = net_model(), MIX.model(VP)
    cases = {
        sf.ClassifierFree(model, 3.0): 20, sf.ClassifierFree(model, 1.0): 10, sf.ClassifierFree(model, 0.0): 10,
        sf.ClassifierFree(sf.Autoguidance(model, worse, 1.5), 2.0): 40, sf.CFGPlusPlus(model, 0.6): 20,
        sf.CFGPlusPlus(model, 1.0): 19, sf.CFGPlusPlus(model, 0.0): 10,
        sf.ClassifierFree(model, 3.0, interval=(0.25, 0.65)): 14, sf.Thresholding(sf.ClassifierFree(model, 3.0)): 20,
        sf.Autoguidance(sf.ClassifierFree(model, 2.0), model, 1.5): 30, sf.APG(model, 2.0): 20,
        sf.ClassifierGuidance(model, posterior, 1.0): 10,
    }  # fmt: skip
    for training in (False, True):  # in one batch of 2B, and one after the other
        model.net.train(training)
        for guided, expected in cases.items():
            before = model.nfe + worse.nfe
            sol = sf.solve(guided, X, "ddim", steps=10, y=Y)
            assert sol.nfe == expected == model.nfe + worse.nfe - before, guided
            assert sol.nfe_per_sample == (expected,) * 4


def test_a_budget_counts_both_branches():
    """`nfe=` pays for branches: half the steps when every one costs two, more where the interval spares some, for auto too."""
    for guided, steps in (
        (sf.ClassifierFree(MODEL, 3.0), 10),
        (sf.ClassifierFree(MODEL, 3.0, interval=(0.0, 0.5)), 13),
        (sf.ClassifierFree(MODEL, 1.0), 20),
    ):
        sol = sf.solve(guided, X, "ddim", nfe=20, y=Y)
        assert len(sol.times) - 1 == steps and 19 <= sol.nfe <= 20
    auto = sf.solve(sf.ClassifierFree(MODEL, 3.0), X, nfe=21, y=Y)
    same = sf.solve(sf.Thresholding(MODEL, 100.0), X, nfe=10, y=Y)
    assert auto.nfe <= 21 and auto.sampler.name == same.sampler.name and len(auto.times) == len(same.times)
    heun = sf.solve(sf.ClassifierFree(MODEL, 3.0), X, "pf-ode", nfe=20, y=Y)
    assert heun.nfe <= 20 and len(heun.times) - 1 == 5
    late = sf.solve(sf.ClassifierFree(MODEL, 3.0, interval=(0.0, 0.4)), X, nfe=11, y=Y)
    asked, more = (sf.solve(sf.Thresholding(MODEL, 100.0), X, nfe=n, y=Y).sampler.name for n in (7, 11))
    assert 10 <= late.nfe <= 11 and late.sampler.name == asked != more  # 11 pays for 7 calls of 1.4 each
    between = sf.ClassifierFree(MODEL, 3.0, interval=(0.52, 0.62))  # no time of a grid of 2 steps, and two of its substeps
    assert sf.solve(between, X, "torchsde", method="euler", substeps=8, nfe=9, seed=0, y=Y).nfe <= 9
    assert sf.solve(between, X, "torchsde", method="euler", substeps=8, steps=2, seed=0, y=Y).nfe > 9
    assert sf.studies.spec.Spec("ddim", nfe=20).plan(sf.ClassifierFree(MODEL, 3.0)).nfe == 10  # calls, of two each


def test_samples_inside_and_outside_the_interval_in_one_call():
    """At times of their own, only those inside the interval pay for the other branch, and each gets its own answer."""
    model = net_model()
    guided = sf.ClassifierFree(model, 3.0, interval=(0.4, 0.8))
    t = torch.tensor([0.2, 0.5, 0.9, 0.7], dtype=torch.float64)
    model.net.eval().seen.clear()
    out = guided(X, t, y=Y)
    assert sorted(model.net.seen) == [2, 4] and guided.evaluations(t).tolist() == [1, 2, 1, 2]
    for i in range(4):
        torch.testing.assert_close(out[i : i + 1], guided(X[i : i + 1], float(t[i]), y=Y[i : i + 1]), rtol=1e-9, atol=1e-9)
    ramp = sf.ClassifierFree(model, lambda u: max(0.0, 4 * u - 2.0), interval=(0.0, 0.8))
    assert ramp.scale_at(t).tolist() == pytest.approx([0, 0, 1, 0.8]) and ramp.evaluations(t).tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("sampler", ["dpm-adaptive", "gotta-go-fast"])
def test_adaptive_runs_count_sample_by_sample(sampler):
    model = net_model()
    guided = sf.ClassifierFree(model, 2.0, interval=(0.2, 0.5))
    sol = sf.solve(guided, X, sampler, rtol=0.2, start=0.9, stop=0.1, seed=range(4), y=Y)
    assert sol.nfe == max(sol.nfe_per_sample) and len(set(sol.nfe_per_sample)) > 1
    alone = sf.solve(guided, X[1:2], sampler, rtol=0.2, start=0.9, stop=0.1, seed=[1], y=Y[1:2])
    torch.testing.assert_close(alone.x[0], sol.x[1], rtol=1e-9, atol=1e-9)
    assert alone.nfe == sol.nfe_per_sample[1]


def test_picard_under_guidance():
    """In parallel the sequential result, with both branches counted; momentum has no place there."""
    guided = sf.ClassifierFree(MODEL, 2.0, interval=(0.2, 0.7))
    plain, side = (sf.solve(guided, X, "ddim", steps=8, start=0.95, parallel=p, y=Y) for p in (None, sf.Picard(4, 0.0)))
    torch.testing.assert_close(side.x, plain.x, rtol=1e-9, atol=1e-9)
    assert side.nfe >= plain.nfe
    for window in (1, 4):
        with pytest.raises(ValueError, match=r"momentum=-0.5 follows a batch that stays together, and this run takes it apart"):
            sf.solve(sf.APG(MODEL, 2.0, momentum=-0.5), X, "ddim", steps=8, start=0.95, parallel=window, y=Y)
    for sampler, options in (("dpm-adaptive", {}), ("pf-ode", {"method": "dopri5"}), ("scipy", {})):
        with pytest.raises(ValueError, match=r"momentum=-0.5 follows a batch .* tries steps and takes them back: use fixed"):
            sf.solve(sf.APG(MODEL, 2.0, momentum=-0.5), X[:1], sampler, start=0.9, stop=0.1, y=Y[:1], **options)


# -- what every wrapper keeps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    guided = WRAPPERS[name](MODEL)
    whole = sf.solve(guided, X, "ddim", steps=4, start=0.9, y=Y).x
    alone = sf.solve(guided, X[2:3], "ddim", steps=4, start=0.9, y=Y[2:3]).x
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_the_meta_device(name, dtype):
    """The state's dtype comes out; shapes run through on the meta device."""
    guided = WRAPPERS[name](net_model())
    assert guided(X.to(dtype), 0.5, y=Y).dtype is dtype
    assert sf.solve(guided, X.to(dtype), "ddim", steps=2, start=0.9, y=Y).x.dtype is dtype

    def net(x, t, y=None):
        return x * 0.5

    net.null = {"y": K}
    bare = sf.ScoreModel(net, VP)
    oracles = {
        "autoguidance": sf.Autoguidance(bare, bare, 1.7),
        "classifier": sf.ClassifierGuidance(bare, lambda x, t: x.cumsum(1), 2.0),
    }
    bare = oracles.get(name) or WRAPPERS[name](bare)
    meta = torch.empty(4, D, device="meta", dtype=dtype)
    assert bare(meta, 0.5, y=Y.to("meta")).device.type == "meta"
    assert bare(meta, torch.full((4,), 0.5, device="meta"), y=Y.to("meta")).shape == (4, D)
    none = X[:0].to(dtype)
    assert guided(none, torch.empty(0, dtype=torch.float64), y=Y[:0]).shape == guided(none, 0.5, y=Y[:0]).shape == (0, D)


@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_is_recorded(name):
    """In the solution by name, options and what it wraps; in a study's identity; another option is another model."""
    guided = WRAPPERS[name](MODEL)
    sol = sf.solve(guided, X, "ddim", steps=2, start=0.9, y=Y)
    assert type(guided).__name__ in sol.model and "ScoreModel(" in sol.model and sol.model == repr(guided)
    assert set(guided.cites) <= set(sol.cites) and guided.cites[0] in sol.citations and "song2021ddim" in sol.citations
    what = sf.Subject(guided, (D,), conditions={"y": Y})
    assert guided.said in what.identity()["network"] and sf.Subject(MODEL, (D,)).identity()["network"] == "Both"
    others = [make(MODEL) for make in WRAPPERS.values()] + [sf.ClassifierFree(MODEL, 2.6), sf.APG(MODEL, 2.5, eta=0.3)]
    prints = [fingerprint(one) for one in others]
    assert len(set(prints)) == len(prints)
    before = fingerprint(guided)
    sf.solve(guided, X, "ddim", steps=2, start=0.9, y=Y)
    assert fingerprint(guided) == before


def test_the_record_says_all_options_the_same_in_every_process():
    """A null that was given, functions and tensors by what names them: no address gets into a study's identity."""

    class Ramp:
        def __call__(self, t):
            return 2.0

    timed = sf.ScoreModel(lambda x, t: x, VP, time=lambda t: t)
    guided = sf.ClassifierFree(sf.Autoguidance(MODEL, timed, Ramp()), functools.partial(max, 1.0), null={"y": 3}, batched=False)
    assert guided.said == "ClassifierFree(scale=partial, null={'y': 3}, batched=False)"
    assert "0x" not in repr(guided) and "scale=Ramp, worse=ScoreModel(function, " in repr(guided)
    assert (
        sf.ClassifierFree(MODEL, 2.0, null={"y": torch.zeros(4, 2)}).said
        == "ClassifierFree(scale=2.0, null={'y': tensor(4, 2)})"
    )
    assert sf.Autoguidance(MODEL, sf.Thresholding(MODEL), 2.0).cites == ("karras2024autoguidance", "saharia2022imagen")


def test_threads_share_a_wrapper():
    """Runs side by side on one wrapper with momentum are what they are alone."""
    guided, many = sf.APG(net_model(), 3.0, momentum=-0.5), [states(4, D, seed=s) for s in range(8)]

    def run(x):
        return sf.solve(guided, x, "ddim", steps=6, start=0.9, y=Y).x

    alone = [run(x) for x in many]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(run, many))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


def test_inversion_under_guidance():
    """An invertible sampler comes back through the same guidance."""
    guided = sf.ClassifierFree(MODEL, 2.0)
    up = sf.invert(guided, X, "bdia-ddim", steps=10, start=0.9, stop=0.1, y=Y)
    torch.testing.assert_close(up.decode(guided, y=Y).x, X, rtol=1e-8, atol=1e-8)


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
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "says"), REFUSED)
def test_refusals(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
