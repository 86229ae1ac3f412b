"""Flow maps: exact ones against the ODE, what runs do with them, networks of one time and two."""

import math

import pytest
import torch
from problems import PATHS, states

import scoreflow as sf

ANGLE = torch.tensor(0.6, dtype=torch.float64)
R = torch.stack([torch.stack([ANGLE.cos(), -ANGLE.sin()]), torch.stack([ANGLE.sin(), ANGLE.cos()])])
LEFT = sf.GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [1.2]]), torch.tensor([0.05, 0.3]))
RIGHT = sf.GaussianMixture(torch.tensor([0.5, 0.2, 0.3]), torch.tensor([[-2.0], [0.0], [1.0]]), 0.02)
DATA = {
    "gaussian": sf.Gaussian(torch.tensor([0.5, -0.2]), torch.tensor([[0.6, 0.3], [0.3, 0.9]])),
    "diagonal": sf.Gaussian(torch.tensor([0.5, -0.2]), torch.tensor([0.6, 0.01])),
    "line": LEFT,
    "product": sf.ProductMixture([LEFT, RIGHT]),
    "rotated": sf.ProductMixture([LEFT, RIGHT], R),
}


def shape(data):
    return data.means.shape[1]


def start(path):
    return 1.0 if path.alpha(1.0) else 0.99


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DATA)
def test_exact_maps(name, path):
    """The ODE by DOP853; far tails and both ways; the semigroup; at r = t the score model."""
    data, pieces = DATA[name], path == "chain"  # a thousand of them, over which the solver takes no long step
    path = PATHS[path]
    found, t, r = data.flow_map(path), start(path), 0.1
    x = 2 * path.prior_std(t) * states(20, shape(data), seed=1)
    y = found.jump(x, t, r)
    if not pieces:
        ode = sf.solve(data.model(path), x, "scipy", method="DOP853", rtol=1e-12, atol=1e-13, grid=[t, r]).x
        torch.testing.assert_close(y, ode, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.jump(found.jump(x, t, 0.5), 0.5, r), y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.jump(y, r, t), x, rtol=1e-8, atol=1e-8)
    times = (torch.full((20,), u, dtype=torch.float64) for u in (t, r))
    torch.testing.assert_close(found.jump(x, *times), y)
    torch.testing.assert_close(found.x0(x, 0.4), data.model(path).x0(x, 0.4), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.average(x, 1.0, 1.0), data.model(path).x0(x, 1.0), rtol=1e-9, atol=1e-9)  # α may be 0
    near = found.average(x, 0.4, 0.4 - 1e-5)
    torch.testing.assert_close(near, data.model(path).x0(x, 0.4), rtol=1e-3, atol=1e-3)
    assert found.oracle is data and torch.equal(found.jump(x, t, t), x)


def test_far_tails():
    """Where a distribution function in float64 is 0 or 1, quantiles are kept all the same."""
    path, data = PATHS["vp"], LEFT
    x = torch.tensor([[-60.0], [-20.0], [20.0], [60.0]], dtype=torch.float64)
    y = data.flow_map(path).jump(x, 0.9, 0.2)
    ode = sf.solve(data.model(path), x, "scipy", method="DOP853", rtol=1e-12, atol=1e-12, grid=[0.9, 0.2]).x
    torch.testing.assert_close(y, ode, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "line", "rotated"])
def test_derivatives_of_the_map(name):
    """∂_r Φ is the velocity at its end (Lagrangian); ∂_t Φ + ∂_x Φ v is 0 (Eulerian): what losses are made of."""
    path, data = PATHS["flow"], DATA[name]
    found, x = data.flow_map(path), states(10, shape(data), seed=2)
    t, r = torch.full((10,), 0.8, dtype=torch.float64), torch.full((10,), 0.3, dtype=torch.float64)

    def jump(x, t, r):
        return found.across(x, found.net(x, t, r), t, r)

    end, speed = torch.func.jvp(lambda r: jump(x, t, r), (r,), (torch.ones_like(r),))
    torch.testing.assert_close(speed, data.model(path).flow(end, 0.3), rtol=1e-8, atol=1e-8)
    v = data.model(path).flow(x, 0.8)
    _, change = torch.func.jvp(lambda x, t: jump(x, t, r), (x, t), (v, torch.ones_like(t)))
    torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-8)


@pytest.mark.parametrize("path", ["vp", "ve", "cosine", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_jumps_is_exact(path, steps):
    """`flow-map`, which "auto" means: the ODE's end, of every sample; and back by inversion."""
    path, data = PATHS[path], DATA["rotated"]
    found, t = data.flow_map(path), start(path)
    x = path.prior_std(t) * states(8, 2, seed=3)
    sol = sf.solve(found, x, nfe=steps, start=t)
    assert sol.nfe == steps == found.nfe and sol.sampler.name == "ddim"
    torch.testing.assert_close(sol.x, found.jump(x, t, 0.0), rtol=1e-9, atol=1e-9)
    named = sf.solve(found, x, "flow-map", steps=steps, start=t).x
    assert torch.equal(named, sol.x)


@pytest.mark.parametrize("sampler, options", [("consistency", {}), ("ddpm", {}), ("ddim", {"eta": 0.5}), ("cps", {"a": 0.6})])
def test_samplers_with_noise_keep_the_law(sampler, options):
    """A row keeps noise of some level: there the map jumps, and the row adds the rest. So the law is exact in 3 steps.

    Mean and covariance of 40 000 samples within 5 standard errors, each off once in 10⁶ seeds.
    """
    path, data, n = PATHS["vp"], DATA["gaussian"], 40_000
    x = sf.sample(data.flow_map(path), (n, 2), sampler, steps=3, seed=0, dtype=torch.float64, **options)
    var = data.cov.diagonal()
    drift = abs(path.alpha(1.0))  # the prior N(0, I) at t = 1 is not quite p_1
    assert ((x.mean(0) - data.mean).abs() < 5 * (var / n).sqrt() + drift).all()
    error = ((var[:, None] * var + data.cov**2) / n).sqrt()
    assert ((x.mT.cov() - data.cov).abs() < 5 * error + drift).all()
    score = sf.sample(data.model(path), (n, 2), sampler, steps=3, seed=0, dtype=torch.float64, **options)
    assert ((score.mT.cov() - data.cov).abs() > 0.05).any()


def test_consistency_of_a_score_model_is_its_mean_and_noise():
    path, model, x = PATHS["vp"], LEFT.model(PATHS["vp"]), states(5, 1)
    found = sf.solve(model, x, "consistency", grid=[1.0, 0.5, 0.0], seed=range(5)).x
    z = sf.White(range(5)).draws("step")(x)
    middle = path.alpha(0.5) * model.x0(x, 1.0) + path.sigma(0.5) * z
    torch.testing.assert_close(found, model.x0(middle, 0.5))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x, t, r, y=None):
        told = torch.stack([t, r], 1).to(x)
        return torch.tanh(self.layer(torch.cat([x, told], 1))) + (0 if y is None else 0.1 * y[:, None].to(x))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow"])
def test_predictions_of_a_network(prediction):
    """x_r = α_r x̄_0 + σ_r ε̄ of the pair that the network's prediction says; on `Flow()` x_r = x_t − (t − r) ū."""
    torch.manual_seed(0)
    net, path = Net(), PATHS["flow" if prediction == "flow" else "vp"]
    found, x = sf.FlowMap(net, path, prediction), torch.randn(4, 2)
    told = net(x, torch.full((4,), 0.7), torch.full((4,), 0.2))
    a, s, c, d = path.alpha(0.7), path.sigma(0.7), path.alpha(0.2), path.sigma(0.2)
    x_0 = {"eps": lambda: (x - s * told) / a, "x0": lambda: told, "v": lambda: (a * x - s * told) / (a * a + s * s)}
    if prediction == "flow":
        expected = x - 0.5 * told
    else:
        clean = x_0[prediction]()
        expected = c * clean + d * (x - a * clean) / s
    torch.testing.assert_close(found.jump(x, 0.7, 0.2), expected, rtol=1e-5, atol=1e-5)


def test_conditions_and_guidance():
    """Conditions come after both times; guidance wraps a flow map, in a run and out of it."""
    torch.manual_seed(0)
    found, x, y = sf.FlowMap(Net().eval(), PATHS["vp"], "x0"), torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
    assert found.accepts("y") and not found.accepts("r")
    told = sf.solve(found, x, nfe=2, y=y).x
    assert not torch.allclose(told, sf.solve(found, x, nfe=2).x)
    guided = sf.solve(sf.ClassifierFree(found, 2.0, null={"y": 0}), x, nfe=4, y=y)
    assert guided.nfe == 4 and len(guided.times) == 3
    at = found.begin(sf.plan("flow-map", PATHS["vp"], steps=1))
    torch.testing.assert_close(at.x0(x, 1.0, y=y), found.average(x, 1.0, 0.0, y=y))
    asked = sf.solve_many([("flow-map", 1), ("consistency", 2)], found, x, y=sf.each(y), seed=0)
    torch.testing.assert_close(asked[0].x, sf.solve(found, x, "flow-map", nfe=1, y=y).x)
    whole = sf.solve(found.score_model(), x, "dpm-solver++-2m", nfe=4, y=y).x
    torch.testing.assert_close(whole, sf.solve(sf.ScoreModel(lambda x, t, y: found.net(x, t, t, y), PATHS["vp"], "x0"), x,
                                               "dpm-solver++-2m", nfe=4, y=y).x)  # fmt: skip


def test_a_consistency_network_of_others():
    """`net(x, t)` jumps to data: one step, or many with noise."""
    data, path, x = LEFT, PATHS["ve"], states(4, 1)
    exact = data.flow_map(path)
    found = sf.FlowMap(lambda x, t: exact.net(x, t, torch.zeros_like(t)), path, "x0", times=1)
    x_T = path.prior_std(1.0) * x
    torch.testing.assert_close(sf.solve(found, x_T, nfe=1).x, exact.jump(x_T, 1.0, 0.0))
    two = sf.solve(found, x_T, "consistency", nfe=2, seed=0).x
    torch.testing.assert_close(two, sf.solve(exact, x_T, "consistency", nfe=2, seed=0).x)
    torch.testing.assert_close(found.x0(x_T, 0.5), exact.average(x_T, 0.5, 0.0))
    with pytest.raises(ValueError, match="jumps to data only, and a step from t=1 leads to t="):
        sf.solve(found, x_T, "flow-map", nfe=2)
    with pytest.raises(ValueError, match=r"jumps to data only, got r=0\.5"):
        found.jump(x_T, 1.0, 0.5)
    with pytest.raises(ValueError, match="of x̂_0 along the way it knows nothing"):
        found.score_model()


def test_refusals():
    for call, match in [
        (lambda: sf.FlowMap(Net(), PATHS["vp"], times=3), "times must be 2, or 1 for a network that jumps to data only, got 3"),
        (lambda: sf.solve(LEFT.flow_map(PATHS["vp"]), states(2, 1), "heun", nfe=5), "a flow map stands on steps of one"),
        (lambda: sf.GaussianMixture(torch.ones(2), torch.zeros(2, 2), 1.0).flow_map(PATHS["vp"]),
         "is known for states of one number, and these have 2: use ProductMixture"),
        (lambda: sf.GaussianMixture(torch.ones(1), torch.zeros(1, 1), 0.0).flow_map(PATHS["vp"]), "has no quantiles to keep"),
        (lambda: sf.ProductMixture([]), "parts must be mixtures of states of one number each"),
        (lambda: sf.ProductMixture([LEFT, DATA["gaussian"]]), "parts must be mixtures of states of one number each"),
        (lambda: sf.ProductMixture([LEFT] * 13), "at most 4096 components in all combinations, got 8192"),
        (lambda: sf.ProductMixture([LEFT, RIGHT], torch.ones(2, 2)), r"rotation must be orthogonal to 1e-10, \(2, 2\)"),
        (lambda: LEFT.flow_map(PATHS["vp"]).jump(states(2, 1), 1.5, 0.0), "t must lie between 0"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()


def test_products_are_mixtures():
    """Density of the rotated product: the sum over coordinates of z = Rᵀ x; samples with its moments."""
    data, x = DATA["rotated"], states(6, 2)
    z = x @ R
    torch.testing.assert_close(data.log_prob(x), LEFT.log_prob(z[:, :1]) + RIGHT.log_prob(z[:, 1:]))
    draws = data.sample(50_000, seed=0) @ R
    assert float(draws[:, 0].mean()) == pytest.approx(0.3 * -1.0 + 0.7 * 1.2, abs=0.02)
    assert math.isclose(float(draws[:, 1].mean()), 0.5 * -2.0 + 0.3, abs_tol=0.02) and len(data.means) == 6


def test_conditions_that_are_fixed():
    """They are told at every call, before those of the call, and belong to what the map is."""
    path = PATHS["flow"]

    def net(x, t, r, y=None, scale=1.0):
        return x * scale + (0 if y is None else y[:, None])

    found, x, y = sf.FlowMap(net, path, "flow"), states(4, 2), torch.arange(4.0)
    fixed = found.fixing(scale=0.5)
    told = found.jump(x, 1.0, 0.2, y=y, scale=0.5)
    assert torch.equal(fixed.jump(x, 1.0, 0.2, y=y), told)
    assert torch.equal(sf.solve(fixed, x, nfe=2, y=y).x, sf.solve(found, x, nfe=2, y=y, scale=0.5).x)
    assert torch.equal(fixed.jump(x, 1.0, 0.2, y=y, scale=1.0), found.jump(x, 1.0, 0.2, y=y))
    assert torch.equal(fixed.over(net).jump(x, 1.0, 0.2, y=y), told)
    assert torch.equal(fixed.score_model().flow(x, 0.5, y=y), found.flow(x, 0.5, y=y, scale=0.5))
    assert fixed.fixing(y=y).fixed.keys() == {"scale", "y"} and not found.fixed
    assert repr(fixed).endswith(" with scale=0.5") and "with" not in repr(found) and fixed.nfe == 4
    with pytest.raises(TypeError, match="'scala' is neither an argument of fixing nor a condition that the network function"):
        found.fixing(scala=2.0)
