"""Losses of flow maps: they vanish on the exact map, their gradients are those of their formulas, and they train."""

import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow.training import MAP_LOSSES, MapObjective, Objective, Recipe, train
from scoreflow.training.maps import Jump, mean_square

ANGLE = torch.tensor(0.5, dtype=torch.float64)
R = torch.stack([torch.stack([ANGLE.cos(), -ANGLE.sin()]), torch.stack([ANGLE.sin(), ANGLE.cos()])])
LINE = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [0.8]]), 0.1)
DATA = sf.ProductMixture([LINE, sf.GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-0.5], [1.2]]), 0.05)], R)


def drawn(objective, model, n=64, seed=0):
    x_0 = DATA.sample(n, seed=3)
    return x_0, objective.draw(model, x_0, seed)


@pytest.mark.parametrize("path", ["vp", "flow"])
@pytest.mark.parametrize("loss", ["lagrangian", "progressive", "consistency"])
def test_it_vanishes_on_the_exact_map(loss, path):
    """The exact map with the exact teacher; and not with another map."""
    path = PATHS[path]
    exact, teacher = DATA.flow_map(path), DATA.model(path) if loss == "lagrangian" else DATA.flow_map(path)
    objective = MapObjective(loss=loss, teacher=teacher, diagonal=0.0)
    x_0, draw = drawn(objective, exact)
    assert float(objective(exact, x_0, draw).mean) < 1e-12
    wrong = sf.Gaussian(torch.zeros(2), 1.0).flow_map(path)
    assert float(objective(wrong, x_0, draw).mean) > 1e-4


def test_meanflow_vanishes_on_the_exact_map():
    """By the exact velocity; by ε − x_0, whose mean it is, its gradient has mean 0: in the direction of a shift of ū."""
    path, shift = PATHS["flow"], torch.zeros(2, dtype=torch.float64, requires_grad=True)
    exact = DATA.flow_map(path)

    def net(x, t, r):
        a, b = path.convert("x0", "flow", t)
        return a[:, None] * x + b[:, None] * exact.net(x, t, r) + shift

    found = sf.FlowMap(net, path, "flow")
    known = MapObjective(loss="meanflow", teacher=DATA.model(path), diagonal=0.0, adaptive=0.0)
    x_0, draw = drawn(known, found)
    inside = draw._replace(t=0.05 + 0.9 * draw.t, r=0.05 + 0.9 * draw.r)
    assert float(known(found, x_0, inside).each.mean()) < 1e-10
    data = MapObjective(loss="meanflow", diagonal=0.0, adaptive=0.0)
    x_0, draw = drawn(data, found, n=20_000)
    each, _ = data.errors(found, x_0, draw._replace(t=0.05 + 0.9 * draw.t, r=0.05 + 0.9 * draw.r), {})
    (slope,) = torch.autograd.grad(each.mean(), shift)
    scale = float(each.detach().mean()) ** 0.5 / 20_000**0.5  # of its mean over so many
    assert slope.abs().max() < 5 * scale


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()

    def forward(self, x, t, r):
        return self.body(torch.cat([x, t[:, None], r[:, None]], 1))


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_gradients_by_differences(loss):
    """Along a direction of the weights, what is held fixed held fixed: its formula by finite differences of the network."""
    torch.manual_seed(0)
    path, net = PATHS["flow"], Net()
    model, teacher = sf.FlowMap(net, path, "flow"), DATA.model(path)
    objective = MapObjective(loss=loss, teacher=teacher, diagonal=0.0, adaptive=0.0)
    x_0, draw = drawn(objective, model, n=8)
    draw = draw._replace(t=0.1 + 0.8 * draw.t, r=0.1 + 0.8 * draw.r)
    x = path.q_sample(x_0, draw.t, draw.eps)
    at, h = Jump(x_0, x, draw.eps, draw.t, draw.r, {}), 1e-5
    (slope,) = torch.autograd.grad(MAP_LOSSES[loss](objective, model, at).sum(), net.body[0].bias)
    way = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def jump(x, t, r):
        return x - (t - r)[:, None] * net(x, t, r)

    def moving():
        if loss == "lagrangian":
            return (jump(x, at.t, at.r + h) - jump(x, at.t, at.r - h)) / (2 * h)
        return net(x, at.t, at.r) if loss in ("meanflow", "progressive") else jump(x, at.t, 0 * at.t)

    with torch.no_grad():
        v = teacher.flow(x, at.t)
        middle = (at.t + at.r) / 2
        half = x - (at.t - middle)[:, None] * v
        if loss == "lagrangian":
            fixed = teacher.flow(jump(x, at.t, at.r), at.r)
        elif loss == "meanflow":
            change = (net(x + h * v, at.t + h, at.r) - net(x - h * v, at.t - h, at.r)) / (2 * h)
            fixed = v - (at.t - at.r)[:, None] * change
        elif loss == "progressive":
            end = half - (middle - at.r)[:, None] * teacher.flow(half, middle)
            fixed = (x - end) / (at.t - at.r)[:, None]
        else:
            fixed = jump(x - (at.t - at.r)[:, None] * v, at.r, 0 * at.t)
        losses = []
        for sign in (1, -1):
            net.body[0].bias += sign * 1e-4 * way
            losses.append(float(mean_square(moving() - fixed).sum()))
            net.body[0].bias -= sign * 1e-4 * way
    assert float(slope @ way) == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-5, abs=1e-7)


def test_special_cases():
    """Progressive distillation's target is Salimans & Ho's x̃; at s = 0 consistency's target is the data."""
    path, teacher, asked = PATHS["vp"], DATA.model(PATHS["vp"]), []

    def net(x, t, r):
        asked.append((t, r))
        return torch.zeros_like(x)

    model = sf.FlowMap(net, path, "x0")
    objective = MapObjective(loss="progressive", teacher=teacher, steps=8, diagonal=0.0)
    x_0, draw = drawn(objective, model, n=16)
    assert ((draw.t * 8).round() == draw.t * 8).all() and torch.allclose(draw.t - draw.r, torch.tensor(1 / 8).double())
    each, _ = objective.errors(model, x_0, draw, {})
    z = path.q_sample(x_0, draw.t, draw.eps)
    a, s = path.alpha(draw.t)[:, None], path.sigma(draw.t)[:, None]
    state, time = z, draw.t
    for to in ((draw.t + draw.r) / 2, draw.r):
        x_hat = teacher.x0(state, time)
        c, d = path.alpha(to)[:, None], path.sigma(to)[:, None]
        state = c * x_hat + d / path.sigma(time)[:, None] * (state - path.alpha(time)[:, None] * x_hat)
        time = to
    ratio = path.sigma(draw.r)[:, None] / s
    target = (state - ratio * z) / (path.alpha(draw.r)[:, None] - ratio * a)
    torch.testing.assert_close(each, mean_square(target), rtol=1e-8, atol=1e-10)
    first = MapObjective(loss="consistency", steps=2)
    x_0, draw = drawn(first, model, n=16)
    low = draw.r == 0
    each, _ = first.errors(model, x_0, draw, {})
    torch.testing.assert_close(each[low], mean_square(x_0[low]))
    assert low.any() and not low.all()


def test_the_diagonal_is_the_loss_of_a_score_model():
    """The share of samples with r = t, by the loss that a score model has; all of them at diagonal=1."""
    torch.manual_seed(0)
    path, net = PATHS["flow"], Net()
    model = sf.FlowMap(net, path, "flow")
    every = MapObjective(diagonal=1.0)
    x_0, draw = drawn(every, model, n=32)
    plain = Objective()(sf.ScoreModel(lambda x, t: net(x, t, t), path, "flow"), x_0, Objective().draw(model, x_0, 0))
    torch.testing.assert_close(every(model, x_0, draw).mean, plain.mean)
    half = MapObjective(loss="lagrangian")
    x_0, draw = drawn(half, model, n=32)
    assert int((draw.r == draw.t).sum()) == 16 and bool((draw.r <= draw.t).all())
    parts = [half.draw(model, x_0[:16], 0, part=(k, 2)) for k in range(2)]
    assert torch.equal(torch.cat([part.r for part in parts]), draw.r)


def test_training(tmp_path):
    """On data alone: nearer to the exact map by a third than the untrained one; what is written is read as a map."""
    path = PATHS["flow"]
    torch.manual_seed(0)
    model = sf.FlowMap(sf.nets.MLP(2, width=48, depth=2, times=2), path, "flow")
    exact, x = DATA.flow_map(path), torch.randn(256, 2, generator=torch.Generator().manual_seed(5))

    def off(found):
        return float((sf.solve(found, x, nfe=1).x - exact.jump(x.double(), 1.0, 0.0)).norm(dim=1).median())

    before, recipe = off(model), Recipe(steps=400, batch=128, rate=3e-3, seed=0)
    objective = MapObjective(loss="progressive")
    trained = train(model, DATA.sample(4096, seed=1).float(), objective, recipe, out=tmp_path / "run")
    assert off(sf.FlowMap(model.net.eval(), path, "flow")) < 0.7 * before
    again = sf.load_model(tmp_path / "run")
    assert isinstance(again, sf.FlowMap) and torch.equal(sf.solve(again, x, nfe=2).x, sf.solve(trained, x, nfe=2).x)


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_a_few_steps_lower_the_loss(loss):
    """Of the same draws, by every loss, on the loop that is there; features of the time are slow, as their slopes count."""
    torch.manual_seed(0)
    model = sf.FlowMap(sf.nets.MLP(2, width=32, depth=2, times=2, time_scale=5.0), PATHS["flow"], "flow")
    objective = MapObjective(loss=loss, teacher=DATA.model(PATHS["flow"]), adaptive=0.0)
    data = DATA.sample(2048, seed=1).float()
    draw = objective.draw(model, data, 7)
    before = float(objective(model, data, draw).each.mean())
    train(model, data, objective, Recipe(steps=100, batch=128, rate=3e-3, seed=0))
    assert float(objective(model, data, draw).each.mean()) < 0.8 * before


def test_refusals():
    path, net = PATHS["flow"], Net()
    for call, match in [
        (lambda: MapObjective(loss="langrangian"), "loss must be one of lagrangian, .*, got 'langrangian'"),
        (lambda: MapObjective(diagonal=1.5), "diagonal must be a finite number ≥ 0 and ≤ 1, got 1.5"),
        (lambda: MapObjective(steps=1), "steps must be a whole number ≥ 2, got 1"),
        (lambda: MapObjective(vlb=0.1), "vlb=0.1 trains a variance, and a flow map has none"),
        (lambda: MapObjective().check(DATA.model(path)), "loss='lagrangian' trains a FlowMap, got ScoreModel"),
        (lambda: MapObjective(loss="meanflow").check(sf.FlowMap(net, PATHS["vp"], "flow")), "prediction='flow' on Flow"),
        (lambda: MapObjective().check(sf.FlowMap(net, path, times=1)), r"needs a network net\(x, t, r\), and this one jumps"),
        (lambda: MapObjective(teacher=DATA.model(PATHS["vp"])).check(sf.FlowMap(net, path)), "teacher must stand on the map's"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="teacher must be a ScoreModel"):
        MapObjective(teacher=net)
