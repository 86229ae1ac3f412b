"""Guided runs: what branches cost, what every wrapper keeps, and what is recorded of it."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from guided import MIX, MODEL, VP, WRAPPERS, D, K, X, Y, net_model, posterior
from problems import states

import scoreflow as sf
from scoreflow._run.auto import GUIDED, chosen_at
from scoreflow._score.fingerprint import fingerprint

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
    asked, more = (chosen_at(GUIDED, n) for n in (7, 11))  # 11 pays for 7 calls of 1.4 each
    laid = [sf.grid(MODEL.path, len(late.times) - 1, "ode", power=c.power, shift=c.shift) for c in (asked, more)]
    assert 10 <= late.nfe <= 11 and late.times == laid[0] != laid[1]
    between = sf.ClassifierFree(MODEL, 3.0, interval=(0.52, 0.62))  # no time of a grid of 2 steps, and two of its substeps
    assert sf.solve(between, X, "torchsde", method="euler", substeps=8, nfe=9, seed=0, y=Y).nfe <= 9
    assert sf.solve(between, X, "torchsde", method="euler", substeps=8, steps=2, seed=0, y=Y).nfe > 9
    assert sf.studies.spec.Spec("ddim", nfe=20).prepared(sf.ClassifierFree(MODEL, 3.0)).plan.nfe == 10  # calls, of two each


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
    assert guided.kind in what.identity()["network"] and sf.Subject(MODEL, (D,)).identity()["network"] == "Both"
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
    assert guided.kind == "ClassifierFree(scale=partial, null={'y': 3}, batched=False)"
    assert "0x" not in repr(guided) and "scale=Ramp, worse=ScoreModel(function, " in repr(guided)
    assert (
        sf.ClassifierFree(MODEL, 2.0, null={"y": torch.zeros(4, 2)}).kind
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
