"""Networks of two times: what the second adds, r = t, those of one time as those of two, files, forward-mode derivatives."""

import copy
import json

import pytest
import torch
from problems import states
from torch.autograd import forward_ad
from torch.func import jvp, vmap
from torch.nn import functional as F

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow.nets import MLP, Autoencoder, DiT, UNet, two_times
from scoreflow.nets.embedding import attention

C, K, D, CLASSES, B = 2, 3, 6, 10, 3
CONDITIONED = dict(heads=2, classes=CLASSES, tokens=D, condition_channels=K)
NETS = {
    "unet": lambda **more: UNet(C, (8, 16), **CONDITIONED | more),
    "unet patch": lambda **more: UNet(C, (8, 16), heads=2, patch=2, **more),
    "dit": lambda **more: DiT(C, 8, 2, width=16, depth=2, **CONDITIONED | more),
    "mlp": lambda **more: MLP(C, width=16, depth=2, classes=CLASSES, **more),
    "mlp fourier": lambda **more: MLP(C, width=16, depth=2, time="fourier", **more),
}
every_net = pytest.mark.parametrize("name", NETS)
T, R, Y = torch.tensor([3.0, 700.0, 90.0]), torch.tensor([1.0, 20.0, 95.0]), torch.tensor([1, 7, 2])
IMAGE, TOKENS = states(B, K, 8, 8, seed=2, dtype=torch.float32), states(B, 4, D, seed=3, dtype=torch.float32)


def fresh(name, times=2, **more):
    torch.manual_seed(0)
    return NETS[name](times=times, time_scale=1.0, **more).eval()


def awake(name, times=2, **more):
    """A network whose zeros at the start are weights like others."""
    net = fresh(name, times, **more)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.2)
    return net


def x(name, seed=1):
    return states(B, *((C,) if "mlp" in name else (C, 8, 8)), seed=seed, dtype=torch.float32)


def conditions(net):
    """All that the network takes, in the order of its arguments."""
    known = {"y": Y, "tokens": TOKENS, "image": IMAGE}
    return {name: value for name, value in known.items() if name in net.null}


def one_time(net):
    """The network of one time with the weights that it shares."""
    plain = type(net)(**net.config | {"times": 1}).to(next(net.parameters()).dtype).eval()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if "second" not in name})
    return plain


def apart(a, b):
    """Whether every sample's output differs."""
    return bool(((a - b).flatten(1).abs().amax(1) > 1e-4).all())


# -- what the second time adds ------------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("learned_variance", [False, True])
def test_it_begins_as_the_network_of_one_time(name, learned_variance):
    """The same seed draws the same weights, and r changes nothing yet."""
    net, plain = (fresh(name, times, learned_variance=learned_variance) for times in (2, 1))
    before = plain.state_dict()
    new = net.state_dict().keys() - before.keys()
    assert new == {"embedding.second.0.weight", "embedding.second.2.weight"} and before.keys() <= net.state_dict().keys()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert net.embedding.second[0].weight.any() and not net.embedding.second[2].weight.any()
    given = conditions(net)
    for r in (R, T, None):
        assert torch.equal(net(x(name), T, r, **given), plain(x(name), T, **given))


@every_net
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_r_equal_t_it_is_the_network_of_one_time(name, dtype):
    """To the bit, whatever the weights, beside a sample whose times differ; elsewhere it is another, and order counts."""
    net = awake(name).to(dtype)
    plain, given, state = one_time(net), conditions(net), x(name).to(dtype)
    expected = plain(state, T, **given)
    assert torch.equal(net(state, T, T.clone(), **given), expected) and torch.equal(net(state, T, **given), expected)
    mixed = net(state, T, torch.stack([T[0], R[1], T[2]]), **given)
    assert torch.equal(mixed[::2], expected[::2]) and apart(mixed[1:2], expected[1:2])
    assert apart(net(state, T, R, **given), expected) and apart(net(state, T, 2 * T - R), net(state, T, R))


@every_net
def test_in_float64_the_times_are_not_rounded(name):
    """The features of one time are of float32, those of two of the times' own precision."""
    net = awake(name).double()
    state, t = x(name).double(), T.double() + 1e-7
    assert not torch.equal(net(state, t), net(state, T.double()))
    assert torch.equal(one_time(net)(state, t), one_time(net)(state, T.double()))
    torch.testing.assert_close(net(state, t), one_time(net)(state, t), rtol=1e-3, atol=1e-3)


@every_net
def test_times_are_scaled_alike(name):
    """`time_scale` is of both: a network of t in [0, 1] is that of labels."""
    net = awake(name).double()
    unit = type(net)(**net.config | {"time_scale": 1000.0}).double().eval()
    unit.load_state_dict(net.state_dict())
    state = x(name).double()
    torch.testing.assert_close(unit(state, T.double() / 1000, R.double() / 1000), net(state, T.double(), R.double()))


@every_net
def test_by_place_and_by_name(name):
    """`net(x, t, r, y, tokens, image)`; of one time r has no place."""
    net = awake(name)
    given, state = conditions(net), x(name)
    expected = net(state, T, r=R, **given)
    assert torch.equal(net(state, T, R, *given.values()), expected)
    assert torch.equal(net(state, T, None, *given.values()), net(state, T, **given))
    assert torch.equal(one_time(net)(state, T, *given.values()), one_time(net)(state, T, **given))
    for left_out in given:
        assert apart(expected, net(state, T, R, **{key: value for key, value in given.items() if key != left_out}))


@every_net
def test_gradients_reach_all_weights(name):
    """And both times; through the new weights only where times differ."""
    net, t, r = awake(name), T.clone().requires_grad_(), R.clone().requires_grad_()
    net(x(name), t, r, **conditions(net)).square().sum().backward()
    assert bool(t.grad.all()) and bool(r.grad.all())
    assert all(p.grad is not None and bool(p.grad.any()) for key, p in net.named_parameters() if not key.endswith(".bias"))
    net.zero_grad()
    net(x(name), T, T).square().sum().backward()
    assert not any(p.grad.any() for p in net.embedding.second.parameters())


@every_net
def test_new_weights_learn_from_zero(name):
    """The last layer of the new ones has a gradient at once, where the network says anything."""
    net = two_times(awake(name, 1))
    net(x(name), T, R).square().sum().backward()
    assert bool(net.embedding.second[2].weight.grad.any())


# -- networks of one time as of two -------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_times(name, dtype):
    """A new network that says the same at every r, in the dtype and mode of the old, which stays as it was."""
    plain = awake(name, 1, learned_variance=True).to(dtype).train()
    before = copy.deepcopy(plain.state_dict())
    net, given, state = two_times(plain), conditions(plain), x(name).to(dtype)
    assert type(net) is type(plain) and net.training and net.config == plain.config | {"times": 2}
    assert two_times(plain.eval()).training is False
    expected = plain(state, T, **given)
    assert expected.dtype is dtype and expected.shape[1] == 2 * C
    assert all(torch.equal(net(state, T, r, **given), expected) for r in (R, T, None))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in before.items())


def test_two_times_of_wrapped_networks():
    """The network inside, averaged or compiled."""
    plain = awake("mlp", 1)
    for wrapped in (torch.optim.swa_utils.AveragedModel(plain), torch.compile(plain, backend="eager")):
        net = two_times(wrapped)
        assert type(net) is MLP and torch.equal(net(x("mlp"), T, R), plain(x("mlp"), T))


@every_net
def test_weights_of_one_time_fill_a_network_of_two(name):
    """As docs/training.md says of images."""
    plain = awake(name, 1)
    net = type(plain)(**plain.config | {"times": 2}).eval()
    net.load_state_dict(net.state_dict() | plain.state_dict())
    assert torch.equal(net(x(name), T, R), plain(x(name), T))


@every_net
def test_files(name, tmp_path):
    """A network, and a score model, whose network is given no r and so is that of r = t; a file of before is of one time."""
    net, given = awake(name), conditions(awake(name))
    checkpoint.save(net, tmp_path / "net.safetensors")
    again = checkpoint.load(tmp_path / "net.safetensors")
    assert again.config == json.loads(json.dumps(net.config)) and again.config["times"] == 2
    assert torch.equal(again(x(name), T, R, **given), net(x(name), T, R, **given))
    model = sf.ScoreModel(net, sf.Flow(), "flow", time=("scaled", 999.0))
    sf.save_model(model, tmp_path / "model.safetensors")
    loaded, t = sf.load_model(tmp_path / "model.safetensors"), torch.full((B,), 0.5 * 999)
    assert torch.equal(loaded.evaluate(x(name), 0.5, **given)[0], one_time(net)(x(name), t, **given))
    old = fresh(name, 1)
    config = json.dumps({key: value for key, value in old.config.items() if key != "times"})
    checkpoint.write(
        checkpoint.weights_of(old), tmp_path / "old.safetensors", {"network": type(old).__name__, "config": config}
    )
    assert checkpoint.load(tmp_path / "old.safetensors").config == old.config


# -- forward-mode derivatives -------------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("moved", ["x", "t", "r", "all"])
def test_forward_mode(name, moved):
    """Along x, t, r and all: the central differences of the ordinary network at h and h/2, extrapolated to order 4."""
    net = awake(name).double().requires_grad_(False)
    given = {key: v.double() if v.is_floating_point() else v for key, v in conditions(net).items()}
    points = (x(name).double(), T.double(), R.double())
    along = (x(name, 2).double(), torch.tensor([1.0, -0.5, 2.0]).double(), torch.tensor([0.7, 1.0, -1.0]).double())
    along = tuple(v if moved in ("all", key) else torch.zeros_like(v) for key, v in zip("xtr", along, strict=True))
    out, tangent = jvp(lambda *a: net(*a, **given), points, along)

    def at(h):
        return net(*(p + h * v for p, v in zip(points, along, strict=True)), **given)

    def central(h):
        return (at(h) - at(-h)) / (2 * h)

    expected = (4 * central(1e-3) - central(2e-3)) / 3
    torch.testing.assert_close(out, at(0), rtol=1e-12, atol=1e-12)
    assert bool((expected.flatten(1).abs().amax(1) > 1e-4).all())
    assert float((tangent - expected).norm() / expected.norm()) < 1e-6


@every_net
def test_forward_mode_agrees_with_reverse_mode(name):
    """Transposed: `⟨w, J v⟩ = ⟨Jᵀ w, v⟩`; and the tangent itself has gradients in the weights, as the losses need."""
    net = awake(name).double()
    points = [v.double().requires_grad_() for v in (x(name), T, R)]
    along = [states(*p.shape, seed=3) for p in points]
    out, tangent = jvp(net, tuple(points), tuple(along))
    w = states(*out.shape, seed=4)
    back = torch.autograd.grad(out, points, w, retain_graph=True)
    expected = sum(float((a * b).sum()) for a, b in zip(back, along, strict=True))
    assert float((w * tangent.detach()).sum()) == pytest.approx(expected, rel=1e-9)
    tangent.square().sum().backward()
    weights = dict(net.named_parameters())
    assert bool(weights["embedding.second.2.weight"].grad.any()) and bool(weights["first.weight"].grad.any())


@every_net
def test_the_tangent_in_r_where_r_is_t(name):
    """It is not 0 there, as 1 − cos is: the sines are of order 1 in t − r."""
    net = awake(name).double()
    state, t = x(name).double(), T.double()
    _, tangent = jvp(lambda r: net(state, t, r), (t,), (torch.ones_like(t),))
    assert bool((tangent.flatten(1).abs().amax(1) > 1e-4).all())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["jvp", "dual", "vmap", "only k"])
def test_attention_with_tangents(masked, mode):
    """The formula's derivative is the Jacobian by reverse mode; without tangents it is torch's own, to the bit."""
    q, k, v = (states(2, 2, n, 4, seed=n) for n in (3, 5, 5))
    v = v + 1
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])[:, None, None] if masked else None
    direction = states(2, 2, 5, 4, seed=9)
    assert torch.equal(attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def of(k):
        return attention(q, k, v if mode == "only k" else v + k, mask)

    expected = (torch.autograd.functional.jacobian(of, k) * direction).flatten(4).sum(-1)
    if mode == "dual":
        with forward_ad.dual_level():
            out, tangent = forward_ad.unpack_dual(of(forward_ad.make_dual(k, direction)))
    elif mode == "vmap":
        tangent = vmap(lambda along: jvp(of, (k,), (along,))[1])(torch.stack([direction, 2 * direction]))[1] / 2
        out = of(k)
    else:
        out, tangent = jvp(of, (k,), (direction,))
    torch.testing.assert_close(tangent, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out, of(k), rtol=1e-12, atol=1e-12)


def test_the_look_for_tangents_breaks_no_graph():
    net, given = awake("unet", classes=0), {"tokens": TOKENS, "image": IMAGE}
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x("unet"), T, R, **given), net(x("unet"), T, R, **given))


# -- as score models, refusals ------------------------------------------------------------------------------------------


def test_a_network_of_two_times_is_a_score_model():
    """Samplers and training give no r, so they are of r = t."""
    net = awake("mlp")
    ours, plain = (
        sf.sample(sf.ScoreModel(one, sf.VPSDE(), time=("scaled", 999.0)), (B, C), "ddim", steps=3, seed=0, y=Y)
        for one in (net, one_time(net))
    )
    assert torch.equal(ours, plain)


REFUSED = [
    (lambda: UNet(times=3), "times must be a whole number from 1 to 2, got 3"),
    (lambda: DiT(times=0), "times must be a whole number from 1 to 2, got 0"),
    (lambda: MLP(times=2.0), "times must be a whole number from 1 to 2, got 2.0"),
    (lambda: fresh("mlp", 1)(x("mlp"), T, r=R), "r was given to a network of one time: make it with times=2"),
    (lambda: fresh("mlp")(x("mlp"), T, Y), r"r must be times as t, floating-point numbers of shape \(3,\), got torch.int64"),
    (lambda: fresh("dit")(x("dit"), T, R[:1]), r"r must be times as t, .* got torch.float32 of shape \(1,\)"),
    (lambda: fresh("unet")(x("unet"), T, 0.5), r"r must be times as t, floating-point numbers of shape \(3,\), got 0.5"),
    (lambda: fresh("unet")(x("unet"), T.long(), R), r"r must be times as t, whole numbers of shape \(3,\), got torch.float32"),
    (lambda: fresh("mlp")(x("mlp"), T, R, Y, TOKENS), "a network with times=2 takes x, t, r, y, got 5 arguments"),
    (lambda: fresh("mlp", 1)(x("mlp"), T, Y, TOKENS), "a network with times=1 takes x, t, y, got 4 arguments"),
    (lambda: fresh("unet")(x("unet"), T, R, r=R), "r was given twice, by place and by name"),
    (lambda: two_times(torch.nn.Linear(2, 2)), "net must be one of MLP, UNet, DiT, got Linear"),
    (lambda: two_times(Autoencoder()), "net must be one of MLP, UNet, DiT, got Autoencoder"),
    (lambda: two_times(lambda x, t: x), "net must be one of MLP, UNet, DiT, got function"),
    (lambda: two_times(fresh("mlp")), "net must be of one time, got MLP with times=2"),
]


@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_refusals(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()
