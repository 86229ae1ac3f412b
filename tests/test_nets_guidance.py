"""Networks that are told a guidance scale: scale 1, one for all and one a sample, files, derivatives, runs."""

import json
import math

import pytest
import torch
from problems import states
from test_nets_times import B, C, R, T, Y, apart, awake, conditions, every_net, fresh, x
from torch.func import jvp

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow.nets import MLP, DiT, UNet, two_times
from scoreflow.nets.embedding import Embedding, scale_features
from scoreflow.training import Objective

S = torch.tensor([0.5, 2.0, 7.5])
every_times = pytest.mark.parametrize("times", [1, 2])


def told(name, times=2, **more):
    """A network with guidance whose zeros at the start are weights like others."""
    return awake(name, times, guidance=True, **more)


def without(net):
    """The network without guidance with the weights that it shares."""
    plain = type(net)(**net.config | {"guidance": False}).to(next(net.parameters()).dtype).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "guidance" not in name})
    return plain


def at(times):
    """The times that a network is given."""
    return (T, R)[:times]


# -- what the scale adds ------------------------------------------------------------------------------------------------


@every_net
@every_times
def test_it_begins_as_the_network_without(name, times):
    """The same seed draws the same weights, and the scale changes nothing yet."""
    net, plain = (fresh(name, times, guidance=guidance) for guidance in (True, False))
    before = plain.state_dict()
    new = net.state_dict().keys() - before.keys()
    assert new == {"embedding.guidance.0.weight", "embedding.guidance.2.weight"} and before.keys() <= net.state_dict().keys()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert net.embedding.guidance[0].weight.any() and not net.embedding.guidance[2].weight.any()
    assert net.null == plain.null and "scale" not in net.null
    net, plain = told(name, times), awake(name, times)
    with torch.no_grad():
        net.load_state_dict(net.state_dict() | plain.state_dict())
        net.embedding.guidance[2].weight.zero_()
    expected = plain(x(name), *at(times), **conditions(plain))
    for scale in (None, 1, 7.5, S):
        assert torch.equal(net(x(name), *at(times), **conditions(net), scale=scale), expected)


@every_net
@every_times
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_at_scale_1_it_is_the_network_without(name, times, dtype):
    """To the bit, whatever the weights, beside samples of other scales; there it is another."""
    net = told(name, times).to(dtype)
    given, state = conditions(net), x(name).to(dtype)
    expected = without(net)(state, *at(times), **given)
    for scale in (None, 1, 1.0, torch.tensor(1.0), torch.ones(1), torch.ones(B), torch.ones(B, dtype=torch.bfloat16)):
        assert torch.equal(net(state, *at(times), **given, scale=scale), expected)
    mixed = net(state, *at(times), **given, scale=torch.tensor([1.0, 4.0, 1.0]))
    assert mixed.dtype is dtype and torch.equal(mixed[::2], expected[::2]) and apart(mixed[1:2], expected[1:2])


@every_net
def test_numbers_and_tensors(name):
    """A number is all samples' own; one a sample is as calls of their own, and every sample hears its scale."""
    net = told(name)
    given, state = conditions(net), x(name)
    each = net(state, T, R, **given, scale=S)
    for i, scale in enumerate(S.tolist()):
        alone = net(state, T, R, **given, scale=scale)
        for same in (torch.tensor(scale), torch.tensor([scale]), torch.full((B,), scale), torch.full((B,), scale).double()):
            assert torch.equal(net(state, T, R, **given, scale=same), alone)
        assert torch.equal(each[i], alone[i]) and not torch.equal(each[i], alone[i - 1])
        assert all(apart(alone, net(state, T, R, **given, scale=other)) for other in (None, 0, 5, scale + 0.5))
    assert torch.equal(net(state, T, R, **given, scale=3), net(state, T, R, **given, scale=3.0))


@every_net
def test_in_float64_the_scale_is_not_rounded(name):
    """Its features are of the precision of the weights; in bfloat16 of float32."""
    net = told(name).double()
    state, one = x(name).double(), torch.ones(B, dtype=torch.float64)
    assert not torch.equal(net(state, T, R, scale=3 + 1e-12), net(state, T, R, scale=3.0))
    assert torch.equal(net(state, T, R, scale=3 + 1e-12), net(state, T, R, scale=(3 + 1e-12) * one))
    features, low = [], Embedding(16, 8).bfloat16()
    low.add_guidance()
    low.guidance.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    low.bfloat16()(T, scale=torch.tensor(3.001))
    expected = scale_features(torch.tensor([3.001]), 16) - scale_features(torch.ones(1), 16)
    assert features[0].dtype is torch.bfloat16 and torch.equal(features[0], expected.bfloat16().expand(B, -1))


@pytest.mark.parametrize("width", [8, 48, 128])
def test_features_of_the_scale(width):
    """Closed form: slopes of at most 1, and scales from 0 to 10 that are ½ and more apart are told apart."""
    scale = torch.linspace(0, 10, 21, dtype=torch.float64)
    found = scale_features(scale, width)
    rates = 100.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    expected = torch.cat([(scale[:, None] * rates).cos(), (scale[:, None] * rates).sin()], 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    distance = torch.cdist(found, found) + torch.eye(21)
    assert float(distance.min()) > 0.4 and float(found.diff(dim=0).abs().max()) < 0.5


@every_net
def test_the_scale_of_the_time_does_not_matter(name):
    """A network of t in [0, 1] is told the scale as one of labels."""
    net = told(name).double()
    unit = type(net)(**net.config | {"time_scale": 1000.0}).double().eval()
    unit.load_state_dict(net.state_dict())
    state, t, r = x(name).double(), T.double(), R.double()
    torch.testing.assert_close(unit(state, t / 1000, r / 1000, scale=S), net(state, t, r, scale=S))


@every_net
@every_times
def test_by_place_and_by_name(name, times):
    """It is the last argument."""
    net = told(name, times)
    given = conditions(net)
    places = {"mlp": ("y",)}.get(name[:3], ("y", "tokens", "image"))
    expected = net(x(name), *at(times), **given, scale=S)
    assert torch.equal(net(x(name), *at(times), *(given.get(place) for place in places), S), expected)
    assert torch.equal(net(x(name), *at(times), *(given.get(place) for place in places), scale=S), expected)


@every_net
def test_labels_as_times_and_the_meta_device(name):
    """Whole labels have scales that are not; shapes and dtypes come out as without."""
    net = told(name)
    state, labels = x(name), T.long()
    assert torch.equal(net(state, labels, labels, scale=2.5), net(state, labels, labels, scale=torch.full((B,), 2.5)))
    assert apart(net(state, labels, labels, scale=2.5), net(state, labels, labels, scale=2))
    far, there = net.to("meta"), state.to("meta")
    for scale in (2.5, S.to("meta"), None):
        out = far(there, T.to("meta"), R.to("meta"), scale=scale)
        assert out.device.type == "meta" and out.shape == state.shape


@every_net
def test_gradients(name):
    """They reach all weights and the scale; at scale 1 none the new weights; their last layer has one at once."""
    net, scale = told(name), S.clone().requires_grad_()
    net(x(name), T, R, **conditions(net), scale=scale).square().sum().backward()
    assert bool(scale.grad.all()) and all(
        p.grad is not None and bool(p.grad.any()) for p in net.embedding.guidance.parameters()
    )
    net.zero_grad()
    net(x(name), T, R, scale=1.0).square().sum().backward()
    assert not any(p.grad.any() for p in net.embedding.guidance.parameters())
    begun = two_times(awake(name, 1), guidance=True)
    begun(x(name), T, R, scale=S).square().sum().backward()
    assert bool(begun.embedding.guidance[2].weight.grad.any())


# -- networks made of others, files -------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_times(name, dtype):
    """Of a network without guidance, one that says the same at every r and scale; one that has it keeps it."""
    plain = awake(name, 1).to(dtype)
    net, given, state = two_times(plain, guidance=True), conditions(plain), x(name).to(dtype)
    assert net.config == plain.config | {"times": 2, "guidance": True}
    expected = plain(state, T, **given)
    assert all(torch.equal(net(state, T, r, **given, scale=s), expected) for r in (R, T, None) for s in (S, 3.0, 1, None))
    assert two_times(plain).config == plain.config | {"times": 2}
    guided = told(name, 1).to(dtype)
    for guidance in (False, True):
        net = two_times(guided, guidance)
        assert net.config == guided.config | {"times": 2}
        assert torch.equal(net(state, T, R, **given, scale=S), guided(state, T, **given, scale=S))


@every_net
def test_files(name, tmp_path):
    """Networks and flow maps keep it; a file of before has no guidance."""
    net, given = told(name), conditions(told(name))
    checkpoint.save(net, tmp_path / "net.safetensors")
    again = checkpoint.load(tmp_path / "net.safetensors")
    assert again.config == json.loads(json.dumps(net.config)) and again.config["guidance"] is True
    assert torch.equal(again(x(name), T, R, **given, scale=S), net(x(name), T, R, **given, scale=S))
    model = sf.FlowMap(net, sf.Flow(), "flow", time=("scaled", 999.0))
    sf.save_model(model, tmp_path / "model.safetensors")
    loaded = sf.load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded.jump(x(name), 0.5, 0.2, **given, scale=S), model.jump(x(name), 0.5, 0.2, **given, scale=S))
    old = fresh(name, 1)
    config = json.dumps({key: value for key, value in old.config.items() if key not in ("times", "guidance")})
    checkpoint.write(
        checkpoint.weights_of(old), tmp_path / "old.safetensors", {"network": type(old).__name__, "config": config}
    )
    assert checkpoint.load(tmp_path / "old.safetensors").config == old.config


# -- derivatives, graphs ------------------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("moved", ["x", "t", "r", "scale"])
def test_forward_mode(name, moved):
    """The central differences of the network at h and h/2, extrapolated to order 4."""
    net = told(name).double().requires_grad_(False)
    given = {key: v.double() if v.is_floating_point() else v for key, v in conditions(net).items()}
    points = (x(name).double(), T.double(), R.double(), S.double())
    along = (x(name, 2).double(), *(torch.tensor([1.0, -0.5, 2.0]).double() for _ in range(3)))
    names = ("x", "t", "r", "scale")
    along = tuple(v if moved == key else torch.zeros_like(v) for key, v in zip(names, along, strict=True))

    def of(x, t, r, scale):
        return net(x, t, r, **given, scale=scale)

    def central(h):
        ahead, behind = (of(*(p + k * v for p, v in zip(points, along, strict=True))) for k in (h, -h))
        return (ahead - behind) / (2 * h)

    out, tangent = jvp(of, points, along)
    expected = (4 * central(1e-3) - central(2e-3)) / 3
    torch.testing.assert_close(out, of(*points), rtol=1e-12, atol=1e-12)
    assert bool((expected.flatten(1).abs().amax(1) > 1e-5).all())
    assert float((tangent - expected).norm() / expected.norm()) < 1e-6


def test_the_scale_breaks_no_graph():
    """Neither as a number, of which there are several, nor as a tensor."""
    net = told("mlp")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for scale in (2.0, 3.5, 4.5, 1, S, torch.tensor(2.0), None):
        torch.testing.assert_close(compiled(x("mlp"), T, R, scale=scale), net(x("mlp"), T, R, scale=scale))


# -- runs ---------------------------------------------------------------------------------------------------------------


def flow_map(name="mlp"):
    return sf.FlowMap(told(name), sf.Flow(), "flow", time=("scaled", 999.0))


def score_model():
    return sf.ScoreModel(told("mlp", 1).double(), sf.VPSDE(), time=("scaled", 999.0))


@every_net
def test_flow_maps_are_told_the_scale(name):
    """By `sample`: a number is of all samples, a tensor has one a sample."""
    model, given, shape = flow_map(name), conditions(told(name)), x(name).shape

    def run(scale):
        return sf.sample(model, shape, "flow-map", steps=2, seed=0, **given, scale=scale)

    plain = sf.FlowMap(without(model.net), sf.Flow(), "flow", time=("scaled", 999.0))
    expected = sf.sample(plain, shape, "flow-map", steps=2, seed=0, **given)
    assert torch.equal(run(None), expected) and torch.equal(run(1.0), expected) and apart(run(2.0), expected)
    for each in (S, sf.each(S)):
        assert torch.equal(run(each), torch.stack([run(s)[i] for i, s in enumerate(S.tolist())]))
    jumped = model.jump(x(name), 0.8, 0.3, **given, scale=S)
    assert all(torch.equal(jumped[i], model.jump(x(name), 0.8, 0.3, **given, scale=s)[i]) for i, s in enumerate(S.tolist()))


RUNS = {
    "adaptive": lambda m, x, **c: sf.solve(m, x, "dpm-adaptive", **c).x,
    "parallel": lambda m, x, **c: sf.solve(m, x, "ddim", steps=4, parallel=sf.Picard(3, 0.0), **c).x,
    "together": lambda m, x, **c: torch.cat(
        [found.x for found in sf.solve_many([("ddim", 3), ("dpmpp-2m", 3)], m, x, **c)], dim=1
    ),
    "log_prob": lambda m, x, **c: sf.log_prob(m, x, stop=0.1, divergence="exact", rtol=1e-3, atol=1e-3, **c).value[:, None],
}


@pytest.mark.parametrize("run", RUNS)
def test_runs_that_take_the_batch_apart(run):
    """A sample has its own scale, marked or not, as if it were alone; a number is that of all."""
    model, state = score_model(), states(B, C, seed=5) * torch.tensor([[1.0], [3.0], [0.2]])
    alone = torch.cat([RUNS[run](model, state[i : i + 1], y=Y[i : i + 1], scale=s) for i, s in enumerate(S.tolist())])
    for scale in (S, sf.each(S)):
        torch.testing.assert_close(RUNS[run](model, state, y=Y, scale=scale), alone, rtol=1e-8, atol=1e-8)
    of_all = RUNS[run](model, state, y=Y, scale=2.0)
    torch.testing.assert_close(of_all[1], alone[1], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(RUNS[run](model, state, y=Y, scale=torch.tensor([2.0])), of_all, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(of_all[0], alone[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [3.0, S, sf.each(S), torch.tensor(3.0), torch.tensor([3.0])])
def test_dropped_conditions_keep_the_scale(scale):
    """Of classifier-free guidance both branches are told it, and of training the samples whose class is dropped."""
    model, state = score_model(), x("mlp").double()
    none = torch.full_like(Y, model.net.null["y"])
    ours, other = (model.eps(state, 0.5, y=y, scale=scale) for y in (Y, none))
    guided = sf.ClassifierFree(model, 2.5)
    torch.testing.assert_close(guided.eps(state, 0.5, y=Y, scale=scale), other + 2.5 * (ours - other), rtol=1e-9, atol=1e-9)
    assert apart(other, model.eps(state, 0.5, y=none))
    given = Objective(drop=1.0).dropped(model, {"y": Y, "scale": scale}, torch.ones(B, dtype=torch.bool))
    assert given["scale"] is scale and torch.equal(given["y"], none)


NUMBER = r"scale must be a finite number, or floating-point numbers of shape \(3,\), or \(1,\) for all, got "
REFUSED = [
    (lambda: UNet(guidance=1), "guidance must be True or False, got 1"),
    (lambda: DiT(guidance="yes"), "guidance must be True or False, got 'yes'"),
    (lambda: MLP(guidance=2.0), "guidance must be True or False, got 2.0"),
    (lambda: two_times(MLP(), guidance=7.5), "guidance must be True or False, got 7.5"),
    (lambda: two_times(told("mlp"), guidance=True), "net must be of one time, got MLP with times=2"),
    *(
        (
            lambda name=name: fresh(name)(x(name), T, scale=2.0),
            "scale was given to a network without guidance: make it with guid",
        )
        for name in ("unet", "dit", "mlp")
    ),
    (lambda: told("mlp")(x("mlp"), T, scale=math.nan), NUMBER + "nan"),
    (lambda: told("dit")(x("dit"), T, scale=-math.inf), NUMBER + "-inf"),
    (lambda: told("unet")(x("unet"), T, scale=True), NUMBER + "True"),
    (lambda: told("mlp")(x("mlp"), T, scale="2"), NUMBER + "'2'"),
    (lambda: told("mlp")(x("mlp"), T, scale=[2.0, 3.0, 4.0]), NUMBER + r"\[2.0, 3.0, 4.0\]"),
    (lambda: told("mlp")(x("mlp"), T, scale=Y), NUMBER + r"torch.int64 of shape \(3,\)"),
    (lambda: told("mlp")(x("mlp"), T, scale=S > 1), NUMBER + r"torch.bool of shape \(3,\)"),
    (lambda: told("mlp")(x("mlp"), T, scale=S[:2]), NUMBER + r"torch.float32 of shape \(2,\)"),
    (lambda: told("mlp")(x("mlp"), T, scale=S[:, None]), NUMBER + r"torch.float32 of shape \(3, 1\)"),
    (lambda: told("mlp")(x("mlp"), T, R, Y, S, S), "a network with times=2 takes x, t, r, y, scale, got 6 arguments"),
    (lambda: told("mlp", 1)(x("mlp"), T, Y, S, scale=S), "scale was given twice, by place and by name"),
    (lambda: fresh("mlp", 1)(x("mlp"), T, Y, S), "a network with times=1 takes x, t, y, got 4 arguments"),
    (
        lambda: sf.sample(sf.ScoreModel(fresh("mlp", 1), sf.VPSDE()), (B, C), "ddim", steps=2, scale=2.0),
        r"'scale' is neither an argument .* nor a condition that the network MLP takes \(y\)",
    ),
    (lambda: sf.sample(flow_map(), (B, C), "flow-map", steps=2, scale=S[:2]), NUMBER + r"torch.float32 of shape \(2,\)"),
]


@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_refusals(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()
