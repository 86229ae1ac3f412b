"""ScoreModel: five predictions from one network, what the network sees, and what is counted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PATHS, mixture, states
from torch import nn

import scoreflow as sf

ORACLE = mixture()
KINDS = ("eps", "x0", "v", "score", "flow")
T = 1000


def slopes(path, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """α' and σ' by central differences."""
    h = 1e-6
    return tuple((curve(t + h) - curve(t - h)) / (2 * h) for curve in (path.alpha, path.sigma))


def definitions(path, x: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every prediction at states (B, d) and times (B,), from x̂_0 and its definition."""
    x_0 = ORACLE.denoise(x, path.alpha(t), path.sigma(t))
    a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
    da, ds = (slope[:, None] for slope in slopes(path, t))
    eps = (x - a * x_0) / s
    return {"x0": x_0, "eps": eps, "score": -eps / s, "v": a * eps - s * x_0, "flow": da * x_0 + ds * eps}


def on_path(path, t: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """States x_t, one for each time."""
    n = len(t)
    x_0 = ORACLE.sample(n, seed)
    return path.alpha(t)[:, None] * x_0 + path.sigma(t)[:, None] * states(n, 3, seed=seed + 1)


def close(got: torch.Tensor, want: torch.Tensor, tol: float) -> None:
    """Equal to a part of the largest entry."""
    torch.testing.assert_close(got, want, rtol=tol, atol=tol * want.abs().max().item())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", KINDS)
@given(t=st.floats(0.02, 0.98), seed=st.integers(0, 1000))
def test_every_prediction_gives_all_five(path, prediction, t, seed):
    times = torch.full((4,), t, dtype=torch.float64)
    x = on_path(path, times, seed)
    model = sf.ScoreModel(lambda y, u: definitions(path, y, u)[prediction], path, prediction)
    for kind, want in definitions(path, x, times).items():
        close(getattr(model, kind)(x, t), want, 1e-6 if "flow" in (kind, prediction) else 1e-9)
        assert torch.equal(model(x, t, kind), getattr(model, kind)(x, t))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("prediction", KINDS)
def test_batched_times_equal_scalar_times(path, prediction):
    t = torch.tensor([0.03, 0.2, 0.5, 0.77, 0.97], dtype=torch.float64)
    x = on_path(path, t)
    model = sf.ScoreModel(lambda y, u: definitions(path, y, u)[prediction], path, prediction)
    for kind in KINDS:
        batched = model(x, t, kind)
        one_by_one = torch.cat([model(x[i : i + 1], float(t[i]), kind) for i in range(len(t))])
        torch.testing.assert_close(batched, one_by_one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_tweedie(path):
    """`x̂_0 = (x + σ² ∇log p_t)/α`, the gradient by autograd of the density."""
    for t in (0.05, 0.4, 0.95):
        x = on_path(path, torch.full((6,), t, dtype=torch.float64)).requires_grad_()
        a, s = path.alpha(t), path.sigma(t)
        (gradient,) = torch.autograd.grad(ORACLE.log_prob(x, a, s).sum(), x)
        model = ORACLE.model(path)
        close(model.x0(x.detach(), t), (x.detach() + s**2 * gradient) / a, 1e-9)
        close(model.score(x.detach(), t), gradient, 1e-9)


# -- what the network sees -------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A network that keeps what it was given, and returns minus the state."""

    def __init__(self, dtype: torch.dtype | None = torch.float32) -> None:
        super().__init__()
        if dtype is not None:
            self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.seen: list = []

    def forward(self, x, t, **conditions):
        self.seen.append((x, t, conditions))
        return -x


def label(path, time, t, dtype=torch.float64) -> torch.Tensor:
    net = Recorder(dtype)
    sf.ScoreModel(net, path, time=time).eps(torch.zeros(len(t) if isinstance(t, torch.Tensor) else 3, 2, dtype=dtype), t)
    ((_, seen, _),) = net.seen
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_labels_of_continuous_time(path, dtype):
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    a, s = path.alpha(t), path.sigma(t)
    wants = {"unit": t, "sigma": s, "log-snr": torch.log(a**2 / s**2)}
    for time, want in wants.items():
        got = label(path, time, t, dtype)
        assert got.shape == (3,)
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype), rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=1e-12)
        for i in range(3):
            scalar = label(path, time, float(t[i]), dtype)
            assert scalar.shape == (3,)
            torch.testing.assert_close(scalar, got[i].expand(3), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("n", [T, 7])
@pytest.mark.parametrize("batched", [True, False])
def test_labels_of_a_chain_are_whole_at_its_nodes(n, batched):
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear(n).beta)
    t = [i / n for i in range(1, n + 1)]
    labels = torch.arange(n)
    if batched:
        index, table = (label(path, time, torch.tensor(t, dtype=torch.float64)) for time in ("index", "label"))
    else:
        index, table = (torch.stack([label(path, time, u)[0] for u in t]) for time in ("index", "label"))
    assert index.dtype == torch.float64
    assert torch.equal(index, labels.double())
    assert table.dtype == torch.int64
    assert torch.equal(table, labels)


def test_nodes_in_single_precision_are_nodes():
    """i/T rounded to float32, as a training loop makes it, is still node i."""
    t = torch.arange(1, T + 1, dtype=torch.float32) / T
    assert torch.equal(label(PATHS["chain"], "label", t), torch.arange(T))
    assert torch.equal(label(PATHS["chain"], "index", t), torch.arange(T, dtype=torch.float64))


def test_index_between_the_nodes_is_real():
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear(10).beta)
    torch.testing.assert_close(label(path, "index", 0.345), torch.full((3,), 2.45, dtype=torch.float64))


@pytest.mark.parametrize("t", [0.345, 0.0, 0.05])
def test_label_between_the_nodes_is_refused(t):
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear(10).beta)
    with pytest.raises(ValueError, match="whole labels 0…9"):
        label(path, "label", t)


def test_a_callable_says_what_the_network_is_told():
    t = torch.tensor([0.1, 0.25, 0.9], dtype=torch.float64)
    asked = []

    def thousand(u):
        asked.append(u)
        return 1000 * u

    torch.testing.assert_close(label(sf.VPSDE(), thousand, t), 1000 * t, rtol=1e-15, atol=0)
    assert asked[0].dtype == torch.float64
    assert asked[0].shape == (3,)
    whole = label(sf.VPSDE(), lambda u: (4 * u).floor().long(), t)
    assert whole.dtype == torch.int64
    assert whole.tolist() == [0, 1, 3]
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        label(sf.VPSDE(), lambda u: u[:, None], t)


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("net", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("time", ["unit", "index", "label", "sigma", "log-snr"])
def test_dtypes_at_the_network(net, state, time):
    """The network sees its own dtype and labels it can tell apart; the answer has the state's dtype."""
    module = Recorder(net)
    model = sf.ScoreModel(module, PATHS["chain"], time=time)
    assert model.dtype == net
    x = states(2, 3, dtype=state)
    for t in (0.999, torch.tensor([0.999, 0.998], dtype=torch.float64)):
        for kind in KINDS:
            assert model(x, t, kind).dtype == state
        seen, told, _ = module.seen[-1]
        assert seen.dtype == net
        assert told.dtype == (torch.int64 if time == "label" else torch.float64 if net == torch.float64 else torch.float32)
        if time in ("index", "label"):
            assert told.tolist() == ([998, 998] if isinstance(t, float) else [998, 997])


@pytest.mark.parametrize("state", [torch.float32, torch.float64, torch.bfloat16])
def test_a_network_without_parameters_sees_the_state_as_it_is(state):
    module = Recorder(None)
    model = sf.ScoreModel(module, sf.VPSDE())
    assert model.dtype is None
    assert model.device is None
    assert model.eps(states(2, 3, dtype=state), 0.5).dtype == state
    x, t, _ = module.seen[0]
    assert x.dtype == state
    assert t.dtype == (torch.float64 if state == torch.float64 else torch.float32)


def test_a_function_is_a_network():
    model = sf.ScoreModel(lambda x, t: x * t[:, None], sf.VPSDE())
    assert model.dtype is None
    assert model.device is None
    x = states(3, 2)
    torch.testing.assert_close(model.eps(x, 0.25), x / 4)
    torch.testing.assert_close(model.eps(x, torch.tensor([0.0, 0.5, 1.0])), x * torch.tensor([[0.0], [0.5], [1.0]]))


def test_parameters_that_are_not_floating_have_no_say():
    module = Recorder(None)
    module.table = nn.Parameter(torch.arange(3), requires_grad=False)
    assert sf.ScoreModel(module, sf.VPSDE()).dtype is None


class Linear(nn.Module):
    def __init__(self, d: int, **keywords) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        self.to(**keywords)

    def forward(self, x, t):
        return x @ self.weight


def test_meta_device():
    model = sf.ScoreModel(Linear(3, device="meta"), PATHS["chain"], time="index")
    assert model.device == torch.device("meta")
    x = torch.empty(5, 3, device="meta", dtype=torch.float32)
    for t in (0.5, torch.full((5,), 0.5)):
        for kind in KINDS:
            out = model(x, t, kind)
            assert (out.shape, out.device.type, out.dtype) == ((5, 3), "meta", torch.float32)


# -- what is counted, passed and differentiated ----------------------------------------------------------------------


def test_nfe_counts_evaluations():
    net = Recorder()
    model = sf.ScoreModel(net, sf.VPSDE())
    x = torch.zeros(4, 2)
    assert model.nfe == 0
    for i, kind in enumerate(KINDS, 1):
        model(x, 0.5, kind)
        assert model.nfe == i == len(net.seen)
    output, _ = model.evaluate(x, 0.5)
    for kind in KINDS:
        model.express(output, x, 0.5, kind)
    assert model.nfe == len(net.seen) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_conditions_pass_through(kind):
    net = Recorder()
    y = torch.arange(4)
    getattr(sf.ScoreModel(net, sf.VPSDE()), kind)(torch.zeros(4, 2), 0.5, y=y, scale=2.0)
    assert net.seen[0][2].keys() == {"y", "scale"}
    assert net.seen[0][2]["y"] is y


def test_accepts_says_which_conditions_the_network_takes():
    assert sf.ScoreModel(Recorder(), sf.VPSDE()).accepts("anything")
    assert not sf.ScoreModel(Linear(2), sf.VPSDE()).accepts("y")
    with_y = sf.ScoreModel(lambda x, t, y=None: x, sf.VPSDE())
    assert with_y.accepts("y")
    assert not with_y.accepts("x")
    assert not with_y.accepts("z")


def test_gradients_flow_to_states_and_parameters():
    """Of `x̂_0 = (x − σ x W)/α`: Σ x̂_0 has the gradients `(1 − σ W 1)/α` and `−(σ/α) xᵀ 1`."""
    net, path, t = Linear(3), sf.VPSDE(), 0.3
    model, x = sf.ScoreModel(net, path), states(5, 3).requires_grad_()
    a, s = path.alpha(t), path.sigma(t)
    for time in (t, torch.full((5,), t, dtype=torch.float64)):
        on_x, on_weight = torch.autograd.grad(model.x0(x, time).sum(), (x, net.weight))
        torch.testing.assert_close(on_x, ((1 - s * net.weight.sum(1)) / a).expand(5, 3))
        torch.testing.assert_close(on_weight, -(s / a) * x.sum(0)[:, None].expand(3, 3))


def test_learned_variance_is_split_off():
    def net(x, t):
        return torch.cat([2 * x, 3 * x], dim=1)

    model, x = sf.ScoreModel(net, sf.VPSDE()), states(2, 3, 4, 4)
    output, word = model.evaluate(x, 0.5)
    assert torch.equal(output, 2 * x)
    assert torch.equal(word, 3 * x)
    assert torch.equal(model.eps(x, 0.5), 2 * x)
    assert sf.ScoreModel(lambda x, t: x, sf.VPSDE()).evaluate(x, 0.5)[1] is None


# -- the front door --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "score"])
@pytest.mark.parametrize("path", ["cosine", "flow"])
def test_an_eps_network_says_nothing_of_x0_where_alpha_is_zero(path, prediction):
    model = sf.ScoreModel(lambda x, t: x, PATHS[path], prediction)
    with pytest.raises(ValueError, match="alpha=0"):
        model.x0(states(2, 3), 1.0)


@pytest.mark.parametrize("path", ["cosine", "flow"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_other_networks_do_where_alpha_is_zero(path, prediction):
    """At t = 1 the state is ε and `v = −x_0`."""
    x, x_0 = states(2, 3), states(2, 3, seed=1)
    model = sf.ScoreModel(lambda x, t: x_0 if prediction == "x0" else -x_0, PATHS[path], prediction)
    torch.testing.assert_close(model.x0(x, 1.0), x_0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.eps(x, 1.0), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", ["cosine", "flow"])
@pytest.mark.parametrize("prediction", ["x0", "v", "flow"])
def test_the_flow_is_finite_where_alpha_is_zero(path, prediction):
    """At t = 1 `flow = α' x_0 + σ' ε`, with x = ε; α' and σ' by one-sided differences."""
    path, x, x_0, h = PATHS[path], states(2, 3), states(2, 3, seed=1), 1e-7
    da, ds = ((curve(1.0) - curve(1.0 - h)) / h for curve in (path.alpha, path.sigma))
    flow = da * x_0 + ds * x
    output = {"x0": x_0, "v": -x_0, "flow": flow}[prediction]
    model = sf.ScoreModel(lambda x, t: output, path, prediction)
    torch.testing.assert_close(model.flow(x, 1.0), flow, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.x0(x, 1.0), x_0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "t", [-0.1, 1.1, math.nan, torch.tensor([0.5, 1.5]), torch.tensor([0.5] * 3), torch.tensor([[0.5]] * 2)]
)
def test_wrong_times_are_refused(t):
    with pytest.raises(ValueError, match=r"t must|t has"):
        sf.ScoreModel(lambda x, t: x, sf.VPSDE()).eps(torch.zeros(2, 3), t)


@pytest.mark.parametrize("t", ["a", None, torch.tensor([1, 0])])
def test_times_that_are_no_numbers_are_refused(t):
    with pytest.raises(TypeError, match="t must"):
        sf.ScoreModel(lambda x, t: x, sf.VPSDE()).eps(torch.zeros(2, 3), t)


def test_wrong_outputs_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        sf.ScoreModel(lambda x, t: torch.zeros(2, 4), sf.VPSDE()).eps(x, 0.5)
    with pytest.raises(TypeError, match="tuple"):
        sf.ScoreModel(lambda x, t: (x, x), sf.VPSDE()).eps(x, 0.5)


@pytest.mark.parametrize(
    ("error", "arguments", "match"),
    [
        (TypeError, ("net", sf.VPSDE()), "net must"),
        (TypeError, (lambda x, t: x, "vp"), "path must"),
        (ValueError, (lambda x, t: x, sf.VPSDE(), "epsilon"), "prediction must.*epsilon"),
        (ValueError, (lambda x, t: x, sf.VPSDE(), "eps", "seconds"), "time must.*seconds"),
        (ValueError, (lambda x, t: x, sf.VPSDE(), "eps", "index"), "needs a path with a chain"),
    ],
)
def test_what_a_model_is_made_of(error, arguments, match):
    with pytest.raises(error, match=match):
        sf.ScoreModel(*arguments)


def test_an_output_of_another_shape_for_a_batch_of_numbers():
    with pytest.raises(ValueError, match=r"the network returned shape \(4, 2\) for states of shape \(4,\)"):
        sf.ScoreModel(lambda x, t: torch.zeros(4, 2), sf.VPSDE()).eps(torch.zeros(4), 0.5)
