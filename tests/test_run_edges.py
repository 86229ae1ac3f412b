"""What a run does at its edges: 16 bits, edits by a callback, the bar, transforms of torch.func, conditions by any name."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
import tqdm.auto
from problems import PATHS, mixture, states
from runs import ALL, sampler
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import scoreflow as sf

MODEL, X = mixture().model(PATHS["vp"]), states(4, 3)


class Shrink(torch.nn.Module):
    """ε̂ of N(0, ¼) data on a chain, by a network of 16 bits."""

    def __init__(self, path):
        super().__init__()
        self.path, self.w = path, torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, x, t):
        a, s = self.path.alpha(u := (t.double() + 1) / 1000), self.path.sigma(u)
        return (x.double() * (s / (a * a / 4 + s * s))[:, None]).to(x.dtype) * self.w


@pytest.mark.parametrize("name", ["ddim", "pf-ode", "unipc"])
def test_a_state_is_not_rounded_to_the_bits_of_its_network(name):
    """Data have a standard deviation of ½. With states of 16 bits 1000 steps of ddim ended at 0.535, of pf-ode at 0.99."""
    path = PATHS["chain"]
    model = sf.ScoreModel(Shrink(path), path, time="index")
    x = sf.sample(model, (4000, 4), name, steps=400, seed=0)
    assert x.dtype == torch.float32 and abs(x.std() - 0.5) < 0.02
    x_T = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = sf.solve(model, x_T, name, steps=400, trajectory=True)
    assert kept.x.dtype == kept.states.dtype == torch.bfloat16 and abs(kept.x.float().std() - 0.5) < 0.02


@pytest.mark.parametrize("case", [case for case in ALL if case != "edict"])  # of its two states an edit of one is undone
def test_a_callback_edits_the_run_and_not_the_caller(case):
    """The run goes on from what it leaves in its state; x_T is not written, and the trajectory shows the edit."""
    x_T, seen = X.clone(), []

    def fill(state):
        seen.append(state.x.clone())
        state.x[:, 0] = 7.0

    sol = sf.solve(MODEL, x_T, sampler(case), steps=3, seed=0, callback=fill, trajectory=True)
    assert torch.equal(x_T, X)
    assert torch.equal(seen[0], X) and bool((sol.states[:, :, 0] == 7).all()) and bool((sol.x[:, 0] == 7).all())
    plain = sf.solve(MODEL, X, sampler(case), steps=3, seed=0)
    assert not torch.allclose(sol.x[:, 1:], plain.x[:, 1:])


def test_with_parallel_a_callback_has_a_copy():
    """Its edits reach neither the caller's states, nor the run, nor the trajectory."""
    x_T = X.clone()
    kept = sf.solve(MODEL, X, "ddim", steps=6, parallel=3, trajectory=True)
    sol = sf.solve(MODEL, x_T, "ddim", steps=6, parallel=3, trajectory=True, callback=lambda state: state.x.fill_(7.0))
    assert torch.equal(x_T, X) and torch.equal(sol.states, kept.states)


DENSITIES = {
    "log_prob": lambda model, x: sf.log_prob(model, x, stop=0.05),
    "vlb": lambda model, x: sf.vlb(model, x, steps=20),
    "continuous_bound": lambda model, x: sf.continuous_bound(model, x, points=8, repeats=2),
    "bits_per_dim": lambda model, x: sf.bits_per_dim(model, x, stop=0.05),
}


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_densities_of_16_bits_are_those_of_the_same_numbers_in_32(density):
    """They were taken in 16 bits, where error control made ten times the evaluations for a worse answer."""
    x = X.bfloat16()
    short, wide = density(MODEL, x), density(MODEL, x.float())
    assert torch.equal(short.value, wide.value) and short.nfe == wide.nfe


def test_variances_of_16_bits_are_those_of_the_same_numbers_in_32():
    x = X.bfloat16()
    assert sf.estimate_variance(MODEL, x, 5) == sf.estimate_variance(MODEL, x.float(), 5)


@pytest.mark.parametrize("name", ["ddim", "unipc", "ddpm", "pf-ode"])
def test_states_without_numbers(name):
    """Of a fake or meta tensor a run gives the shape."""
    net = sf.nets.MLP(3, width=8).eval()
    fake = FakeTensorMode(allow_non_fake_inputs=True).from_tensor(X.float())
    x = sf.solve(sf.ScoreModel(net, PATHS["vp"]), fake, name, steps=3, seed=0).x
    assert isinstance(x, FakeTensor) and x.shape == X.shape
    x = sf.solve(sf.ScoreModel(net.to("meta"), PATHS["vp"]), X.float().to("meta"), name, steps=3, seed=0).x
    assert x.device.type == "meta" and x.shape == X.shape


def test_the_bar_counts_steps(monkeypatch):
    shown = []
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda items, total, desc: shown.append((total, items := list(items))) or items)
    sf.solve(MODEL, X, "ddim", steps=5, progress=True)
    sf.solve(MODEL, X, "scipy", grid=[0.9, 0.5, 0.2], progress=True)
    assert [total for total, _ in shown] == [5, 2] == [len(items) for _, items in shown]


@pytest.mark.parametrize("name", ["ddim", "unipc", "pf-ode", "auto"])
def test_transforms_of_torch_func(name):
    """vmap is a loop, grad is that of autograd, and functional_call runs a network with other weights."""
    net = sf.nets.MLP(3, width=8).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model, many = sf.ScoreModel(net, PATHS["vp"]), torch.stack([X, 2 * X])

    def end(x):
        return sf.solve(model, x, name, steps=3, grad=True).x

    looped = torch.stack([end(x) for x in many])
    torch.testing.assert_close(torch.func.vmap(end)(many), looped)
    leaf = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(end(leaf).square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda x: end(x).square().sum())(X), slope)
    weights = {key: value + 0.1 for key, value in net.state_dict().items()}
    got = sf.solve(
        sf.ScoreModel(lambda x, t: torch.func.functional_call(net, weights, (x, t)), PATHS["vp"]), X, name, steps=3
    ).x
    net.load_state_dict(weights)
    assert torch.equal(got, sf.solve(model, X, name, steps=3).x)


SEEN: dict[str, object] = {}


def greedy(x, t, eta=None, steps=None, **more):
    SEEN.update(eta=eta, steps=steps, **more)
    return 0.1 * x


CALLS = {
    "solve": lambda model, **k: sf.solve(model, X, "ddim", nfe=3, **k),
    "sample": lambda model, **k: sf.sample(model, (4, 3), "ddim", nfe=3, seed=0, **k),
    "log_prob": lambda model, **k: sf.log_prob(model, X, method="rk4", steps=2, **k),
    "vlb": lambda model, **k: sf.vlb(model, X, steps=3, **k),
    "invert": lambda model, **k: sf.invert(model, X, "ddim", nfe=3, **k),
    "bits_per_dim": lambda model, **k: sf.bits_per_dim(model, X, method="rk4", steps=2, **k),
    "encode": lambda model, **k: sf.encode(model, X, method="rk4", steps=2, **k),
    "decode": lambda model, **k: sf.decode(model, X, method="rk4", steps=2, **k),
    "continuous_bound": lambda model, **k: sf.continuous_bound(model, X, points=2, repeats=1, **k),
    "image_to_image": lambda model, **k: sf.image_to_image(model, X, "ddim", nfe=3, seed=0, **k),
    "step_log_prob": lambda model, **k: sf.step_log_prob(model, WALK, **k),
    "estimate_variance": lambda model, **k: sf.estimate_variance(model, X, 3, **k),
}
WALK = sf.solve(MODEL, X, "ddpm", steps=3, seed=0, trajectory=True)
SLIPS = {"solve": "etaa", "sample": "step", "log_prob": "rtoll", "vlb": "draws_", "invert": "Grid", "bits_per_dim": "levls",
         "encode": "methd", "decode": "stopp", "continuous_bound": "point", "image_to_image": "seeed",
         "step_log_prob": "trajektory", "estimate_variance": "batches"}  # fmt: skip


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_conditions_whose_names_are_ours(call):
    model = sf.ScoreModel(greedy, PATHS["vp"])
    SEEN.clear()
    call(model, conditions={"eta": 2.0, "steps": "many"}, word="other")
    assert SEEN == {"eta": 2.0, "steps": "many", "word": "other"}
    with pytest.raises(TypeError, match="'word' is given twice"):
        call(model, conditions={"word": 1}, word=2)
    with pytest.raises(TypeError, match="conditions must be a mapping"):
        call(model, conditions=[1])
    with pytest.raises(TypeError, match="'zz' is neither"):
        call(sf.ScoreModel(lambda x, t, y=None: x, PATHS["vp"]), conditions={"zz": 1})


@pytest.mark.parametrize("name", CALLS)
def test_a_slip_is_not_swallowed(name):
    """A network that takes any keyword is not told what was meant for us; in `conditions` it may have any name."""
    model, slip = sf.ScoreModel(lambda x, t, **more: 0.1 * x, PATHS["vp"]), SLIPS[name]
    with pytest.raises(TypeError, match=f"{slip!r} is near to '{slip[:3].lower()}"):
        CALLS[name](model, **{slip: 1})
    CALLS[name](model, conditions={slip: 1}, token=1)


@pytest.mark.parametrize("case", ALL)
def test_a_batch_of_none_gives_none(case):
    chosen = sampler(case)
    none = sf.solve(MODEL, X[:0], chosen, steps=3, seed=0)
    assert none.x.shape == (0, 3) and none.nfe == 0 and none.nfe_per_sample == ()
    assert sf.sample(MODEL, (0, 3), chosen, steps=3, seed=0).shape == (0, 3)


def test_densities_and_edits_of_none_are_none():
    none = X[:0]
    assert sf.log_prob(MODEL, none, stop=0.05).value.shape == sf.log_prob(MODEL, none, divergence="exact").value.shape == (0,)
    assert sf.vlb(MODEL, none, steps=3).value.shape == (0,)
    assert (
        sf.invert(MODEL, none, steps=3).x.shape == sf.image_to_image(MODEL, none, start=0.5, steps=3, seed=0).x.shape == (0, 3)
    )
    assert sf.interpolate(none, none, 4).shape == (4, 0, 3)
    assert sf.encode(MODEL, none).shape == sf.decode(MODEL, none).shape == (0, 3)
    walk = sf.solve(MODEL, none, "ddpm", steps=3, seed=0, trajectory=True)
    assert sf.step_log_prob(MODEL, walk).total.shape == (0,)
    guided = sf.ClassifierFree(sf.ScoreModel(lambda x, t, y: 0.1 * x, PATHS["vp"]), 2.0, null={"y": 0})
    assert sf.solve(guided, none, nfe=4, y=torch.zeros(0)).x.shape == (0, 3)


def test_threads_share_a_model():
    """Eight runs at once on one guided model: results and counts are those of each by itself."""
    model = sf.APG(sf.ScoreModel(lambda x, t, y: torch.tanh(x + y[:, None]), PATHS["vp"]), 3.0, null={"y": 0.0}, momentum=-0.5)
    y = torch.ones(4, dtype=torch.float64)

    def run(k):
        return sf.solve(model, X * k, ("ddim", "unipc", "pf-ode", "dpm-solver++")[k % 4], steps=20 + k, y=y)

    alone = [run(k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(8)))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.x, b.x) and a.nfe == b.nfe and a.nfe_per_sample == b.nfe_per_sample


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_densities_count_their_own_evaluations(density):
    """Four at once on one model, which wait for each other within every call: a difference of the model's count has all."""
    together = Barrier(4)

    def net(x, t):
        together.wait(30)
        return 0.1 * x

    alone = density(sf.ScoreModel(lambda x, t: 0.1 * x, PATHS["vp"]), X).nfe
    with ThreadPoolExecutor(4) as pool:
        assert [d.nfe for d in pool.map(partial(density, sf.ScoreModel(net, PATHS["vp"])), [X] * 4)] == [alone] * 4


class Unsettled(torch.nn.Module):
    """A network with dropout or batch normalisation."""

    def __init__(self, layer):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 3), layer).double()

    def forward(self, x, t):
        return self.body(x)


@pytest.mark.parametrize("layer", [lambda: torch.nn.Dropout(0.5), lambda: torch.nn.BatchNorm1d(3)], ids=["dropout", "norm"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_network_left_in_training_mode_is_told(call, layer):
    """Of one that answers otherwise at every call there is a warning. It is not switched; in evaluation mode all is still."""
    model = sf.ScoreModel(Unsettled(layer()), PATHS["vp"])
    with pytest.warns(UserWarning, match=r"in training mode.*net\.eval") as told:
        call(model)
    assert [one.filename for one in told] == [__file__] and model.net.training
    model.net.eval()
    call(model)


@pytest.mark.parametrize("name", ["solve", "invert", "encode", "bits_per_dim", "step_log_prob"])
def test_a_network_that_is_trained_through_a_run_is_not_told(name):
    CALLS[name](sf.ScoreModel(Unsettled(torch.nn.Dropout(0.5)), PATHS["vp"]), grad=True)  # a warning fails


@pytest.mark.parametrize("name", ["solve", "log_prob", "vlb", "invert", "step_log_prob", "estimate_variance"])
def test_states_that_are_no_numbers_are_told_from_a_broken_network(name):
    """Which samples, and of which argument."""
    broken = X.clone()
    broken[2, 1] = torch.nan
    calls = {
        "solve": lambda: sf.solve(MODEL, broken, "ddim", nfe=3),
        "log_prob": lambda: sf.log_prob(MODEL, broken),
        "vlb": lambda: sf.vlb(MODEL, broken, steps=3),
        "invert": lambda: sf.invert(MODEL, broken, "ddim", nfe=3),
        "step_log_prob": lambda: sf.step_log_prob(MODEL, WALK.plan, torch.stack([X, X, broken, X])),
        "estimate_variance": lambda: sf.estimate_variance(MODEL, broken, 3),
    }
    with pytest.raises(ValueError, match=r"must be finite, and 1 of its 4 samples are not: \[2\]"):
        calls[name]()


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpm-adaptive", "scipy"])
def test_one_entry_that_is_no_number_is_enough(name):
    def net(x, t):
        out = 0.1 * x
        out[1, 2] = torch.nan
        return out

    with pytest.raises((FloatingPointError, RuntimeError), match=r"not finite|short enough|failed"):
        sf.solve(sf.ScoreModel(net, PATHS["vp"]), X, name, steps=3)


def test_nested_states_are_refused():
    nested = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    with pytest.raises(TypeError, match="nested shape"):
        sf.solve(MODEL, nested, "ddim", steps=2)
