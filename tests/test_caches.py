"""What is remembered follows the parameters, stays behind when it is copied, and spares a warm call its set-up."""

import copy
import pickle

import pytest
import torch
from problems import PATHS, states

import scoreflow as sf
from scoreflow.grid import rectified
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


def test_numbers_follow_a_noise_schedule():
    used, fresh = sf.VPSDE(0.1, 20.0), sf.VPSDE(0.1, 5.0)
    assert used.alpha(0.5) != fresh.alpha(0.5)
    used.schedule.beta_max = 5.0
    assert used.alpha(0.5) == fresh.alpha(0.5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_used_model_is_no_larger(copied):
    model = sf.ScoreModel(sf.nets.MLP(2, width=8).eval(), sf.VPSDE.from_betas(sf.DDPMChain.linear().beta))
    before = len(pickle.dumps(model))
    for steps in (200, 201):
        sf.solve(model, X, "pf-ode", steps=steps)
    assert len(pickle.dumps(model)) < before + 100
    assert "_known" not in vars(copied(model).path) and not copied(model)._labels
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
