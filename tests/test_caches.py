"""What is remembered follows the parameters, stays behind when it is copied, and spares a warm call its set-up."""

import copy
import pickle

import numpy as np
import pytest
import torch
from problems import PATHS, states

import scoreflow as sf
from scoreflow._core.grid import rectified
from scoreflow.path import curve

X = states(2, 2)


class Exponential(sf.GaussianPath):
    """α = e^{−kt} on a VP path; k a number or a tensor."""

    def __init__(self, k):
        self.k = k

    @curve
    def log_alpha(self, t):
        return -self.k * t

    @curve
    def log_sigma(self, t):
        return torch.log(-torch.expm1(-2 * self.k * t)) / 2


def changed_number(path):
    path.k = 5.0


def changed_in_place(path):
    with torch.no_grad():
        path.k.add_(2.0)


@pytest.mark.parametrize(
    ("make", "change"),
    [(lambda k: Exponential(k), changed_number), (lambda k: Exponential(torch.tensor(k)), changed_in_place)],
    ids=["number", "tensor"],
)
@pytest.mark.parametrize("time", ["unit", "log-snr", "sigma"])
def test_numbers_follow_a_parameter(make, change, time):
    """Curves, conversions, plans, grids and labels of a path that was used before its parameter changed."""
    used, fresh = make(3.0), make(5.0)

    def net(x, label):
        return 0.3 * x * label[:, None].to(x)

    def run(path, sampler):
        return sf.solve(sf.ScoreModel(net, path, time=time), X, sampler, steps=5, start=0.9).x

    model = sf.ScoreModel(net, used, time=time)
    for sampler in ("ddim", "unipc"):
        sf.solve(model, X, sampler, steps=5, start=0.9)
    change(used)
    assert used.alpha(0.5) == fresh.alpha(0.5) and used.lam(0.5) == fresh.lam(0.5)
    assert used.convert("eps", "x0", 0.5) == fresh.convert("eps", "x0", 0.5)
    assert sf.grid(used, 7, "logsnr", start=0.9) == sf.grid(fresh, 7, "logsnr", start=0.9)
    for sampler in ("ddim", "unipc"):
        assert torch.equal(run(used, sampler), run(fresh, sampler))
        assert torch.equal(sf.solve(model, X, sampler, steps=5, start=0.9).x, run(fresh, sampler))


class Held:
    """A plain object."""

    def __init__(self, k):
        self.k = k


class Weight(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(k))


class Number(torch.nn.Module):
    """A layer with a number that is no parameter."""

    def __init__(self, k):
        super().__init__()
        self.k = k


class Of(Exponential):
    """The same with its k inside something else."""

    def __init__(self, part, read):
        self.part, self._read = part, read

    @property
    def k(self):
        return self._read(self.part)


CHANGES = {
    "tensor": (torch.tensor(3.0), lambda k: k, lambda path: path.part.fill_(5.0)),
    "number in a list": ([3.0], lambda part: part[0], lambda path: path.part.__setitem__(0, 5.0)),
    "tensor in a dict": ({"k": torch.tensor(3.0)}, lambda part: part["k"], lambda path: path.part["k"].fill_(5.0)),
    "entry of an array": (np.array([3.0]), lambda part: float(part[0]), lambda path: path.part.fill(5.0)),
    "attribute of an object": (Held(3.0), lambda part: part.k, lambda path: setattr(path.part, "k", 5.0)),
    "parameter": (Weight(3.0), lambda part: part.k.detach(), lambda path: path.part.load_state_dict(Weight(5.0).state_dict())),
    "number of a module": (Number(3.0), lambda part: part.k, lambda path: setattr(path.part, "k", 5.0)),
    "parameter replaced": (Weight(3.0), lambda part: part.k.detach(), lambda path: setattr(path.part, "k", Weight(5.0).k)),
}


@pytest.mark.parametrize("how", CHANGES)
def test_numbers_follow_what_is_inside_a_parameter(how):
    part, read, change = CHANGES[how]
    path = Of(copy.deepcopy(part), read)
    assert (path.alpha(0.5), path.alpha(0.5)) == (Exponential(3.0).alpha(0.5),) * 2
    before = sf.plan("ddim", path, steps=3)
    change(path)
    assert path.alpha(0.5) == Exponential(5.0).alpha(0.5)
    assert sf.plan("ddim", path, steps=3).steps == sf.plan("ddim", Exponential(5.0), steps=3).steps != before.steps


def test_numbers_follow_a_tensor_that_is_replaced():
    """By one that saw fewer changes in place."""
    path = Exponential(torch.tensor(3.0).add_(0))
    assert path.alpha(0.5) == Exponential(3.0).alpha(0.5)
    path.k = torch.tensor(5.0)
    assert path.alpha(0.5) == Exponential(5.0).alpha(0.5)


def test_labels_are_those_of_the_path_at_hand():
    """Paths that come and go may stand at the same place in memory."""
    model = sf.ScoreModel(lambda x, label: x * 0 + label[:, None], Exponential(3.0), time="log-snr")
    for k in range(1, 30):
        model.path = Exponential(float(k))
        assert model.evaluate(X, 0.5)[0][0, 0] == pytest.approx(2 * Exponential(float(k)).lam(0.5), rel=1e-6)


def test_numbers_follow_a_noise_schedule_that_is_replaced():
    used = sf.VPSDE(0.1, 20.0)
    used.noise_schedule.beta_max = 10.0
    assert used.alpha(0.5) == sf.VPSDE(0.1, 10.0).alpha(0.5)
    used.noise_schedule = sf.VPSDE(0.1, 5.0).noise_schedule
    assert used.alpha(0.5) == sf.VPSDE(0.1, 5.0).alpha(0.5)


def test_numbers_follow_a_noise_schedule():
    used, fresh = sf.VPSDE(0.1, 20.0), sf.VPSDE(0.1, 5.0)
    assert used.alpha(0.5) != fresh.alpha(0.5)
    used.noise_schedule.beta_max = 5.0
    assert used.alpha(0.5) == fresh.alpha(0.5)


@pytest.mark.parametrize(
    ("used", "change", "fresh"),
    [
        (sf.VPSDE(0.1, 20.0), lambda path: setattr(path.noise_schedule, "beta_max", 5.0), sf.VPSDE(0.1, 5.0)),
        (sf.SubVPSDE(0.1, 20.0), lambda path: setattr(path.noise_schedule, "beta_min", 0.2), sf.SubVPSDE(0.2, 20.0)),
        (sf.VPSDE.cosine(), lambda path: setattr(path.noise_schedule, "s", 0.1), sf.VPSDE.cosine(0.1)),
        (sf.VESDE(0.01, 50.0), lambda path: setattr(path, "sigma_max", 9.0), sf.VESDE(0.01, 9.0)),
    ],
    ids=["vp", "sub-vp", "cosine", "ve"],
)
def test_a_path_whose_parameter_changes_is_another(used, change, fresh):
    """All curves, its inverse, its text, and so what a plan or a store was made for."""
    before = sf.plan("ddim", used, steps=3)
    change(used)
    for curve_of in ("alpha", "sigma", "lam", "f", "g2"):
        assert getattr(used, curve_of)(0.4) == getattr(fresh, curve_of)(0.4)
    assert used.time(0.5) == fresh.time(0.5) and repr(used) == repr(fresh)
    with pytest.raises(ValueError, match="the plan was made for"):
        sf.solve(sf.ScoreModel(lambda x, t: x, used), X, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_used_model_is_no_larger(copied):
    model = sf.ScoreModel(sf.nets.MLP(2, width=8).eval(), sf.VPSDE.from_betas(sf.DDPMChain.linear().beta))
    before = len(pickle.dumps(model))
    for steps in (200, 201):
        sf.solve(model, X, "pf-ode", steps=steps)
    assert len(pickle.dumps(model)) < before + 100
    assert "_known" not in vars(copied(model).path)
    assert torch.equal(sf.solve(copied(model), X, "ddim", steps=5).x, sf.solve(model, X, "ddim", steps=5).x)


@pytest.mark.parametrize("sampler", ["auto", "dpm-solver++", "unipc", "ddim"])
@pytest.mark.parametrize("path", ["vp", "chain", "cosine"])
def test_a_warm_call_inverts_nothing(path, sampler, monkeypatch):
    """Grids and plans are kept: the second call with the same budget looks for no time by its λ."""
    model = sf.ScoreModel(lambda x, t: 0.1 * x, copy.deepcopy(PATHS[path]), "x0")
    first, asked = sf.solve(model, X, sampler, nfe=10).x, []
    of = type(model.path).time
    monkeypatch.setattr(type(model.path), "time", lambda self, lam: asked.append(lam) or of(self, lam))
    assert torch.equal(sf.solve(model, X, sampler, nfe=10).x, first)
    assert not asked
    sf.solve(model, X, "dpm-solver++", steps=57)  # a new grid does look
    assert asked


def test_kept_times_are_the_callers_own():
    path = sf.VPSDE()
    rectified(path, 5, 1.0, 0.0)[0] = 7.0
    assert rectified(path, 5, 1.0, 0.0)[0] != 7.0


@pytest.mark.parametrize("number", [np.array(0.5), np.float32(0.5), torch.tensor(0.5).item()])
def test_a_time_of_any_kind_is_remembered(number):
    path = sf.VPSDE()
    assert path.alpha(number) == path.alpha(0.5) and path.convert("eps", "x0", number) == path.convert("eps", "x0", 0.5)
    assert torch.equal(sf.ScoreModel(lambda x, t: 0.1 * x, path).eps(X, number), 0.1 * X)
