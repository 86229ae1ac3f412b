"""How straight the paths of an ODE are: closed forms, every path read as the straight one, and reflow in one dimension."""

import itertools
import math

import pytest
import torch
from problems import PATHS, Classed, states
from scipy.integrate import quad

import scoreflow as sf
from scoreflow.analysis import straightness

FLOW = PATHS["flow"]
LINE = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [0.8]]), 0.1)


def closed(v, first=1.0):
    """(S, ‖chord‖²) of N(0, v) data from x = 1 at u = first: the ODE is `z_u ∝ √P`, P = (1 − u)² v + u²."""

    def variance(u):
        return (1 - u) ** 2 * v + u**2

    def square(u):
        return (u - (1 - u) * v) ** 2 / variance(u)

    length = ((math.sqrt(variance(first)) - math.sqrt(v)) / first) ** 2
    mean = quad(square, 0, first, epsabs=1e-13, epsrel=1e-12, limit=200)[0] / first
    return (mean - length) / variance(first), length / variance(first)


@pytest.mark.parametrize("v", [0.25, 1.0, 4.0])
def test_of_a_gaussian(v):
    """The one-dimensional integral, of every state; the error falls with the fourth power of the nodes."""
    x = states(20, 3)
    spread, model = float(x.square().sum(1).mean()), sf.Gaussian(torch.zeros(3), v).model(FLOW)
    s, length = closed(v)
    found = straightness(model, x, nodes=128)
    assert found.value == pytest.approx(s * spread, rel=1e-8) and found.nfe == 513
    assert found.error == pytest.approx(s * float(x.square().sum(1).std()) / 20**0.5, rel=1e-6)
    off = [abs(straightness(model, x, nodes=n).value / (s * spread) - 1) for n in (16, 32, 64)]
    assert off[1] < 5e-6 and all(10 < a / b < 25 for a, b in itertools.pairwise(off))
    if v != 1:  # where the chord is 0
        assert found.relative == pytest.approx(s / length, rel=1e-7) and found.relative_error < 1e-8


@pytest.mark.parametrize(("name", "start"), [("vp", 1.0), ("sub-vp", 1.0), ("ve", 1.0), ("chain", 1.0), ("cosine", 0.999)])
def test_every_path_is_the_straight_one(name, start):
    """In z = x/(α + σ) at u = σ/(α + σ): S is that of Flow() from the same u; a chain's is cut at its first node."""
    path, x, v = PATHS[name], states(20, 2), 0.25
    first, scale = FLOW.time(path.lam(start)), float(path.alpha(start) + path.sigma(start))
    found = straightness(sf.Gaussian(torch.zeros(2), v).model(path), scale * x, nodes=64, start=start, stop=0.0)
    s, length = closed(v, first)
    assert found.value == pytest.approx(s * float(x.square().sum(1).mean()), rel=1e-7)
    assert found.relative == pytest.approx(s / length, rel=1e-6)
    if path.T:
        by_itself = straightness(sf.Gaussian(torch.zeros(2), v).model(path), x, start=start)
        assert by_itself == straightness(sf.Gaussian(torch.zeros(2), v).model(path), x, start=start, stop=1 / path.T)


def test_of_a_point():
    """All paths lead straight to it."""
    found = straightness(sf.Gaussian(torch.tensor([1.0, -2.0]), 0.0).model(FLOW), states(10, 2))
    assert found.value < 1e-25 and found.relative < 1e-25


def test_of_a_mixture():
    """The definition, by 1000 small steps of another solver: the chord between the ends, the mean of its distance."""
    model, x = LINE.model(FLOW), states(40, 1)
    times = torch.linspace(1, 1e-3, 1001, dtype=torch.float64)
    way = sf.solve(model, x, "pf-ode-rk4", grid=times, trajectory=True).states
    velocity, mass = (
        torch.stack([model.flow(z, float(t)) for z, t in zip(way, times, strict=True)]),
        torch.full((1001, 1, 1), 1.0),
    )
    mass[[0, -1]] = 0.5
    chord = (way[0] - way[-1]) / (times[0] - times[-1])
    each = (mass / 1000 * (chord - velocity).square()).sum((0, 2))
    found = straightness(model, x, nodes=64, stop=1e-3)
    assert found.value == pytest.approx(float(each.mean()), rel=1e-4)
    assert found.error == pytest.approx(float(each.std()) / 40**0.5, rel=1e-3)
    assert found.relative == pytest.approx(float(each.mean() / chord.square().sum(1).mean()), rel=1e-4)


def reflowed():
    """The exact reflow of a mixture in one dimension: where `x_t = (1 − t) x_0 + t ε`, the velocity is `ε − x_0`.

    The flow keeps quantiles, `Φ(ε) = F(x_0)`, and both rise, so that x_t determines x_0; here it is found by bisection.
    """
    weights, means, std = LINE.weights / LINE.weights.sum(), LINE.means[:, 0], 0.1**0.5

    def noise(x_0):
        return torch.special.ndtri((weights * torch.special.ndtr((x_0 - means) / std)).sum(1, keepdim=True))

    def net(x, t):
        t, low, high = t[:, None], torch.full_like(x, -5.0), torch.full_like(x, 5.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = (1 - t) * middle + t * noise(middle) < x
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return noise(middle) - middle

    return sf.ScoreModel(net, FLOW, "flow")


def test_reflow_in_one_dimension_is_straight():
    """Paths that cannot cross are straight after one reflow, and one Euler step is exact; before they are not."""
    model, x = reflowed(), states(20, 1)
    end = LINE.flow_map(FLOW).jump(x, 1.0, 0.0)
    found, before = straightness(model, x, nodes=8), straightness(LINE.model(FLOW), x)
    assert found.relative < 1e-18 and before.relative > 0.1
    euler = {"sampler": "pf-ode-euler", "steps": 1}
    torch.testing.assert_close(sf.solve(model, x, **euler).x, end, rtol=0, atol=1e-10)
    assert (sf.solve(LINE.model(FLOW), x, **euler).x - end).abs().mean() > 0.3


def test_networks_guidance_and_conditions():
    """States of 32 bits; a scale of guidance and a class change what is measured; one sample has no standard error."""
    torch.manual_seed(0)
    model, x = sf.ScoreModel(Classed(), PATHS["vp"]), states(6, 2, dtype=torch.float32)
    y = torch.arange(6.0)
    found = [straightness(model, x, nodes=4, y=y), straightness(model, x, nodes=4)]
    found.append(straightness(sf.ClassifierFree(model, 2.0, null={"y": 0.0}), x, nodes=4, y=y))
    assert len({one.value for one in found}) == 3 and [one.nfe for one in found] == [17, 17, 34]
    one = straightness(model, x[:1], nodes=4)
    assert math.isnan(one.error) and math.isnan(one.relative_error) and one.value > 0


def test_refusals():
    model, x = LINE.model(FLOW), states(4, 1)
    for call, match in [
        (lambda: straightness(model, x, nodes=1), "nodes must be a whole number ≥ 2, got 1"),
        (lambda: straightness(model, x, start=0.1, stop=0.2), "start must lie above stop"),
        (lambda: straightness(sf.ScoreModel(lambda x, t: x, FLOW), x), "a eps-network says nothing of the data at t=1.0"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="'y' is neither an argument nor a condition"):
        straightness(model, x, y=3)
    with pytest.raises(TypeError, match="model must be a ScoreModel"):
        straightness(LINE, x)
