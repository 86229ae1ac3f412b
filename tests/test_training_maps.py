"""Losses of flow maps: they vanish on the exact map, their gradients are those of their formulas, and they train."""

import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow.training import MAP_LOSSES, MapObjective, Objective, Recipe, train
from scoreflow.training.map_losses import Jump, Teacher, mean_square

ANGLE = torch.tensor(0.5, dtype=torch.float64)
R = torch.stack([torch.stack([ANGLE.cos(), -ANGLE.sin()]), torch.stack([ANGLE.sin(), ANGLE.cos()])])
LINE = sf.GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.0], [0.8]]), 0.1)
DATA = sf.ProductMixture([LINE, sf.GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-0.5], [1.2]]), 0.05)], R)

SPOT = sf.Gaussian(torch.tensor([1.0, -1.0]), 0.04)
"""Far from where an untrained map leads, so that little training is seen."""


def drawn(objective, model, n=64, seed=0):
    x_0 = DATA.sample(n, seed=3)
    return x_0, objective.draw(model, x_0, seed)


TEACHERS = (
    "lagrangian",
    "progressive",
    "progressive-distillation",
    "consistency-distillation",
    "regression",
    "scm",
    "meanflow",
)


def said(exact, path, prediction, shift=0.0):
    """The exact map as a network of another prediction, off by a shift."""

    def net(x, t, r):
        a, b = path.convert("x0", prediction, t)
        return a[:, None] * x + b[:, None] * exact.net(x, t, r) + shift

    return sf.FlowMap(net, path, prediction)


def inside(draw):
    """Away from the ends, where what is divided by is small."""
    return draw._replace(t=0.05 + 0.9 * draw.t, r=torch.where(draw.r > 0, 0.05 + 0.9 * draw.r, draw.r))


@pytest.mark.parametrize("path", ["vp", "flow"])
@pytest.mark.parametrize("loss", TEACHERS)
def test_it_vanishes_on_the_exact_map(loss, path):
    """The exact map with the exact teacher, on jumps and on the diagonal; and not with the exact map of another law."""
    path, of_map = PATHS[path], loss in ("progressive-distillation", "consistency-distillation", "regression")
    prediction = {"meanflow": "flow", "scm": "v"}.get(loss, "x0")
    if loss == "meanflow":
        path = PATHS["flow"]
    elif loss == "scm":
        path = PATHS["vp"]
    teacher = DATA.flow_map(path) if of_map else DATA.model(path)
    objective = MapObjective(
        loss=loss, teacher=teacher, diagonal=None if loss == "progressive" else 0.0, adaptive=0.0, warmup=0
    )
    exact = said(DATA.flow_map(path), path, prediction)
    x_0, draw = drawn(objective, exact)
    draw = draw if objective.kind.neighbours else inside(draw)
    assert float(objective(exact, x_0, draw).mean) < 1e-10
    wrong = said(sf.Gaussian(torch.zeros(2), 1.0).flow_map(path), path, prediction)
    assert float(objective(wrong, x_0, draw).mean) > 1e-4


def test_from_data_the_gradient_of_meanflow_vanishes_on_the_exact_map():
    """By ε − x_0, whose mean the velocity is, in the direction of a shift: within 5 standard errors, an alarm in 10⁶."""
    path, shift = PATHS["flow"], torch.zeros(2, dtype=torch.float64, requires_grad=True)
    found = said(DATA.flow_map(path), path, "flow", shift)
    data = MapObjective(loss="meanflow", diagonal=0.0, adaptive=0.0)
    x_0, draw = drawn(data, found, n=20_000)
    each, _ = data.errors(found, x_0, inside(draw), {})
    (slope,) = torch.autograd.grad(each.mean(), shift)
    scale = float(each.detach().mean()) ** 0.5 / 20_000**0.5  # of its mean over so many
    assert slope.abs().max() < 5 * scale


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()

    def forward(self, x, t, r):
        return self.body(torch.cat([x, t[:, None], r[:, None]], 1))


CASES = [(name, "vp" if name == "scm" else "flow") for name in MAP_LOSSES] + [("lagrangian", "vp")]


@pytest.mark.parametrize(("loss", "path"), CASES)
def test_gradients_by_differences(loss, path):
    """Along a direction of the weights, what is held fixed held fixed: its formula by finite differences of the network."""
    torch.manual_seed(0)
    path, net = PATHS[path], Net()
    model, teacher = sf.FlowMap(net, path, "v" if loss == "scm" else "flow"), DATA.model(path)
    if loss == "regression":
        teacher = DATA.flow_map(path)
    given = None if loss in ("progressive", "consistency-training") else teacher
    objective = MapObjective(loss=loss, teacher=given, diagonal=0.0, adaptive=0.0, warmup=8)
    x_0, draw = drawn(objective, model, n=8)
    draw = inside(draw)
    x = path.q_sample(x_0, draw.t, draw.eps)
    t, r, h, none = draw.t, draw.r, 1e-5, 0 * draw.t
    at = Jump(x_0, x, draw.eps, t, r, {}, step=4, teacher=given and Teacher(given, {}))
    (slope,) = torch.autograd.grad(objective.kind.measure(objective, model, at).sum(), net.body[0].bias)
    way = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def jump(x, t, r):
        if loss == "lagrangian":  # by the row of DDIM
            x_0, kept = model.express(net(x, t, r), x, t, "x0"), (path.sigma(r) / path.sigma(t))[:, None]
            return kept * x + (path.alpha(r)[:, None] - kept * path.alpha(t)[:, None]) * x_0
        return x - (t - r)[:, None] * net(x, t, r)

    pace = (path.alpha_slope(r) ** 2 + path.sigma_slope(r) ** 2).sqrt()[:, None]

    def moving():
        if loss == "lagrangian":
            return (jump(x, t, r + h) - jump(x, t, r - h)) / (2 * h) / pace
        return jump(x, t, none) if loss.startswith("consistency") else net(x, t, none if loss == "scm" else r)

    def held():
        middle = (t + r) / 2
        if loss == "lagrangian":
            return teacher.flow(jump(x, t, r), r) / pace
        if loss == "meanflow":
            v = teacher.flow(x, t)
            return v - (t - r)[:, None] * (net(x + h * v, t + h, r) - net(x - h * v, t - h, r)) / (2 * h)
        if loss == "progressive":
            return (net(x, t, middle) + net(jump(x, t, middle), middle, r)) / 2  # shortcut's two halves
        if loss == "progressive-distillation":
            half = x - (t - middle)[:, None] * teacher.flow(x, t)
            return (teacher.flow(x, t) + teacher.flow(half, middle)) / 2
        if loss == "regression":
            return (x - teacher.jump(x, t, r)) / (t - r)[:, None]
        if loss == "consistency-distillation":
            return jump(x - (t - r)[:, None] * teacher.flow(x, t), r, none)
        if loss == "consistency-training":
            below = (1 - r)[:, None] * x_0 + r[:, None] * draw.eps
            return torch.where(r[:, None] > 0, jump(below, r, none), x_0)
        cos, sin = path.alpha(t)[:, None], path.sigma(t)[:, None]
        v, still = teacher.v(x, t), net(x, t, none)
        rate = (torch.atan2(path.sigma(t + h), path.alpha(t + h)) - torch.atan2(path.sigma(t - h), path.alpha(t - h))) / (2 * h)
        change = (net(x + h * v, t + h / rate, none) - net(x - h * v, t - h / rate, none)) / (2 * h)
        g = -(cos**2) * (still - v) - 0.5 * cos * sin * (x + change)  # half of the warm-up
        return still + g / (g.norm(dim=1, keepdim=True) + 0.1)

    def error(off):
        if loss != "consistency-training":
            return mean_square(off).sum()
        kappa = t / (1 - t) - r / (1 - r)
        return (((mean_square(off) + 0.00054**2).sqrt() - 0.00054) / kappa).sum()

    with torch.no_grad():
        fixed, losses = held(), []
        for sign in (1, -1):
            net.body[0].bias += sign * 1e-4 * way
            losses.append(float(error(moving() - fixed)))
            net.body[0].bias -= sign * 1e-4 * way
    assert float(slope @ way) == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-5, abs=1e-7)


def test_the_target_of_progressive_distillation():
    """Salimans & Ho's x̃, Algorithm 2."""
    path, teacher = PATHS["vp"], DATA.model(PATHS["vp"])
    model = sf.FlowMap(lambda x, t, r: torch.zeros_like(x), path, "x0")
    objective = MapObjective(loss="progressive-distillation", teacher=teacher, steps=8)
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


def test_the_boundary_of_consistency():
    """Where the neighbour is data, the target is that state: of training x_0, of distillation what the step leads to."""
    path, teacher = PATHS["vp"], DATA.model(PATHS["vp"])
    model = sf.FlowMap(lambda x, t: torch.zeros_like(x), path, "x0", times=1)
    for objective in (
        MapObjective(loss="consistency-training", stage=1),
        MapObjective(loss="consistency-distillation", teacher=teacher, steps=2),
    ):
        x_0, draw = drawn(objective, model, n=32)
        low = draw.r == 0
        x = path.q_sample(x_0, draw.t, draw.eps)
        data = x_0 if objective.teacher is None else teacher.x0(x, draw.t)
        each, _ = objective.errors(model, x_0, draw, {})
        expected = mean_square(data)
        if objective.teacher is None:
            expected = ((expected + 0.00054**2).sqrt() - 0.00054) / path.kappa(draw.t)
        torch.testing.assert_close(each[low], expected[low])
        assert low.any() and not low.all()


def test_the_schedule_of_easy_consistency_tuning():
    """The published mapping t → r in their σ, which is κ; the gap halves with each stage."""
    path, model = PATHS["ve"], sf.FlowMap(Net(), PATHS["ve"])
    for step, stage in ((0, 0), (999, 0), (1000, 1), (4500, 4)):
        objective = MapObjective(loss="consistency-training")
        draw = objective.draw(model, torch.zeros(256, 2), 0, step)
        kappa = path.kappa(draw.t)
        published = torch.clamp(kappa * (1 - 1 / 2 ** (stage + 1) * (1 + 8 * torch.sigmoid(-kappa))), min=0)
        torch.testing.assert_close(path.kappa(draw.r), published, rtol=1e-7, atol=1e-6)
    normal = (kappa.log() + 1.1) / 2
    assert abs(float(normal.mean())) < 0.3 and 0.8 < float(normal.std()) < 1.2


def test_the_diagonal_is_the_loss_of_a_score_model():
    """The share of samples with r = t, by the loss that a score model has; all of them at diagonal=1."""
    torch.manual_seed(0)
    path, net = PATHS["flow"], Net()
    model = sf.FlowMap(net, path, "flow")
    every = MapObjective(diagonal=1.0)
    x_0, draw = drawn(every, model, n=32)
    score, own = sf.ScoreModel(lambda x, t: net(x, t, t), path, "flow"), Objective(weighting=None)
    plain = own(score, x_0, own.draw(model, x_0, 0))
    torch.testing.assert_close(every(model, x_0, draw).mean, plain.mean)
    torch.testing.assert_close(every(model, x_0, draw).eps, plain.eps)
    simple = Objective(weighting="flow")
    weighed = simple(score, x_0, simple.draw(model, x_0, 0))
    torch.testing.assert_close(weighed.mean, plain.mean)
    torch.testing.assert_close(weighed.eps, plain.eps)
    x, eps = path.q_sample(x_0, draw.t, draw.eps), score.eps(path.q_sample(x_0, draw.t, draw.eps), draw.t)
    torch.testing.assert_close(plain.eps, mean_square(eps - draw.eps).detach())
    taught = MapObjective(diagonal=1.0, teacher=DATA.model(path))
    x = path.q_sample(x_0, draw.t, draw.eps)
    torch.testing.assert_close(
        taught(model, x_0, draw).each, mean_square(net(x, draw.t, draw.t) - DATA.model(path).flow(x, draw.t)).detach()
    )
    half = MapObjective(loss="lagrangian")
    x_0, draw = drawn(half, model, n=32)
    assert int((draw.r == draw.t).sum()) == 16 and bool((draw.r <= draw.t).all())
    parts = [half.draw(model, x_0[:16], 0, part=(k, 2)) for k in range(2)]
    assert torch.equal(torch.cat([part.r for part in parts]), draw.r)


def off(model):
    """From the exact map of the spot, in one jump."""
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(5))
    exact = SPOT.flow_map(model.path).jump(x.double(), 1.0, 0.0)
    return float((sf.solve(model, x, nfe=1).x - exact).norm(dim=1).median())


def untrained(path, prediction):
    """Features of the time are slow, as their slopes count."""
    torch.manual_seed(0)
    return sf.FlowMap(sf.nets.MLP(2, width=32, depth=2, times=2, time_scale=5.0), path, prediction)


FEW = Recipe(steps=40, batch=32, rate=1e-2, warmup=4, decay="constant", seed=0)


def test_training(tmp_path):
    """On data alone: nearer to the exact map by a third than the untrained one; what is written is read as a map."""
    model = untrained(PATHS["flow"], "flow")
    before, objective = off(model), MapObjective(loss="progressive")
    trained = train(model, SPOT.sample(512, seed=1).float(), objective, FEW, out=tmp_path / "run")
    model.net.eval()
    assert off(model) < 0.7 * before
    again, x = sf.load_model(tmp_path / "run"), torch.randn(256, 2, generator=torch.Generator().manual_seed(5))
    assert isinstance(again, sf.FlowMap) and torch.equal(sf.solve(again, x, nfe=2).x, sf.solve(trained, x, nfe=2).x)


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_a_few_steps_bring_it_nearer_to_the_exact_map(loss):
    """In one jump, by every loss, on the loop that is there."""
    model = untrained(PATHS["vp" if loss == "scm" else "flow"], "v" if loss == "scm" else "flow")
    of_map = loss in ("regression", "progressive-distillation")
    teacher = SPOT.flow_map(model.path) if of_map else SPOT.model(model.path)
    steps = 1 if loss == "progressive-distillation" else 32
    objective = MapObjective(loss=loss, teacher=None if loss == "consistency-training" else teacher, steps=steps, warmup=0)
    before = off(model)
    train(model, SPOT.sample(512, seed=1).float(), objective, FEW)
    assert off(model) < 0.75 * before


def test_scales_of_guidance():
    """The teacher is guided at each sample's own scale, which the network is told."""
    path, told = PATHS["flow"], []
    teacher = sf.ClassifierFree(sf.ScoreModel(Labelled(), path, "flow"), 1.0)

    def net(x, t, r, y=None, scale=None):
        told.append(scale)
        return torch.zeros_like(x)

    model = sf.FlowMap(net, path, "flow")
    x_0, y = DATA.sample(8, seed=3), torch.arange(8) % 3
    every = MapObjective(loss="lagrangian", teacher=teacher, guidance=(1.0, 4.0), diagonal=0.5)
    draw = every.draw(model, x_0, 0)
    assert draw.scale.min() >= 1 and draw.scale.max() <= 4 and len(draw.scale.unique()) == 8
    assert torch.equal(torch.cat([every.draw(model, x_0[:4], 0, part=(k, 2)).scale for k in range(2)]), draw.scale)
    each = every(model, x_0, draw, y=y).each
    assert torch.equal(torch.cat([told[0], told[1].detach()]), draw.scale)
    for i in range(8):
        alone = MapObjective(loss="lagrangian", teacher=teacher.scaled(float(draw.scale[i])))
        one = alone(model, x_0[i : i + 1], draw._replace(**{
            name: getattr(draw, name)[i : i + 1] for name in ("t", "eps", "importance_weight", "dropped", "r")
        }, scale=None), y=y[i : i + 1])  # fmt: skip
        torch.testing.assert_close(one.each, each[i : i + 1])


class Labelled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.null = {"y": 3}

    def forward(self, x, t, y=None):
        return x + (0 if y is None else y[:, None])


class Sums(torch.autograd.Function):
    """Without a forward-mode derivative."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, grad):
        return grad


class NoJvp(Net):
    def forward(self, x, t, r):
        return Sums.apply(super().forward(x, t, r))


@pytest.mark.parametrize("loss", [name for name, loss in MAP_LOSSES.items() if loss.jvp])
def test_a_network_without_forward_derivatives_is_refused_before_training(loss, tmp_path):
    path, kind = PATHS["vp" if loss == "scm" else "flow"], "v" if loss == "scm" else "flow"
    model = sf.FlowMap(NoJvp().float(), path, kind)
    with pytest.raises(ValueError, match=f"loss='{loss}' needs torch.func.jvp through the network, and NoJvp has none"):
        train(model, torch.zeros(8, 2), MapObjective(loss=loss), Recipe(steps=2, batch=4), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(model, torch.zeros(8, 2), MapObjective(loss="progressive"), Recipe(steps=2, batch=4))


def test_dropout_is_the_same_for_both():
    """Of the state and its neighbour: at the same state the difference is 0."""
    path = PATHS["flow"]
    net = torch.nn.Dropout(0.5)
    model = sf.FlowMap(lambda x, t: net(torch.ones_like(x)), path, "x0", times=1)
    objective = MapObjective(loss="consistency-training", stage=1)
    x_0 = DATA.sample(64, seed=0)
    draw = objective.draw(model, x_0, 0, step=20)
    assert bool((draw.r > 0).all())
    each, _ = objective.errors(model, x_0, draw, {})
    assert float(each.abs().max()) < 1e-9


def test_refusals():
    path, net = PATHS["flow"], Net()
    teacher, one = DATA.model(path), sf.FlowMap(lambda x, t: x, path, times=1)
    for call, match in [
        (lambda: MapObjective(loss="langrangian"), "loss must be one of lagrangian, .*, got 'langrangian'"),
        (lambda: MapObjective(diagonal=1.5), "diagonal must be a finite number ≥ 0 and ≤ 1, got 1.5"),
        (lambda: MapObjective(steps=0), "steps must be a whole number ≥ 1, got 0"),
        (lambda: MapObjective(stage=0), "stage must be a whole number ≥ 1, got 0"),
        (lambda: MapObjective(warmup=-1), "warmup must be a whole number ≥ 0, got -1"),
        (lambda: MapObjective(vlb=0.1), "vlb=0.1 trains a variance, and a flow map has none"),
        (lambda: MapObjective(loss="progressive-distillation"), "'progressive-distillation' needs a teacher, .*teacher=None"),
        (lambda: MapObjective(loss="consistency-distillation"), "'consistency-distillation' needs a teacher, .*teacher=None"),
        (lambda: MapObjective(loss="consistency-training", teacher=teacher), "learns from data alone, got teacher=ScoreModel"),
        (lambda: MapObjective(loss="regression", teacher=teacher), "'regression' needs a flow map as the teacher, got ScoreM"),
        (lambda: MapObjective(guidance=(1.0, 2.0), teacher=teacher), r"guidance=\(1.0, 2.0\) needs a guided teacher, such as"),
        (lambda: MapObjective(guidance=(2.0, 1.0), teacher=teacher), r"must be two scales \(low, high\), got \(2.0, 1.0"),
        (lambda: MapObjective().check(teacher), "loss='lagrangian' trains a FlowMap, got ScoreModel"),
        (lambda: MapObjective(loss="meanflow").check(sf.FlowMap(net, PATHS["vp"], "flow")), "prediction='flow' on Flow"),
        (lambda: MapObjective(loss="scm").check(sf.FlowMap(net, path, "v")), "'scm' is of prediction='v' on a path with α² "),
        (lambda: MapObjective(loss="scm").check(sf.FlowMap(net, PATHS["vp"], "x0")), "'scm' is of prediction='v' on a path"),
        (lambda: MapObjective().check(one), r"needs a network net\(x, t, r\), and this one jumps"),
        (lambda: MapObjective(loss="scm", diagonal=0.5).check(one), r"'scm' with diagonal=0.5 needs a network net\(x, t, r\)"),
        (lambda: MapObjective(teacher=DATA.model(PATHS["vp"])).check(sf.FlowMap(net, path)), "teacher must stand on the map's"),
        (lambda: sf.FlowMap(sf.nets.MLP(2), path), r"net must take two times, .* MLP takes one: give sf.nets.two_times\(net\)"),
        (lambda: sf.FlowMap(lambda x, t: x, path), "net must take two times, .* function takes one: give sf.nets.two_times"),
        (
            lambda: MapObjective(
                teacher=sf.ClassifierFree(sf.ScoreModel(Labelled(), path), 1.0), guidance=(1.0, 2.0)
            ).check(sf.FlowMap(net, path)),
            "needs a network that is told the scale, and Net is not: make it with guidance=True",
        ),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()
    for call, match in [
        (lambda: MapObjective(teacher=net), "teacher must be a ScoreModel"),
        (lambda: MapObjective(guidance=2.0), r"guidance must be two scales \(low, high\), got 2.0"),
    ]:
        with pytest.raises(TypeError, match=match):
            call()
