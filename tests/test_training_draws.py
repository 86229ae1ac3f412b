"""Draws of a batch: in parts, by their laws, unbiased."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import states

import scoreflow as sf
from scoreflow._core.grid import inner_ends
from scoreflow._core.path import PATHS
from scoreflow.training import LossHistory, Objective

CHAIN = PATHS["ddpm"]()


@given(parts=st.sampled_from([1, 2, 4]), step=st.integers(0, 10**6), seed=st.integers(0, 2**40))
@settings(max_examples=20)
def test_parts_make_up_the_whole(parts, step, seed):
    """The draws of several processes together are those of one; they depend on seed and step alone."""
    model, x_0, objective = (
        sf.ScoreModel(lambda x, t: x, CHAIN),
        states(8, 3),
        Objective(drop=0.4, null={"y": 0}, times="stratified"),
    )
    whole = objective.draw(model, x_0, seed, step)
    size = 8 // parts
    drawn = [objective.draw(model, x_0[i * size : (i + 1) * size], seed, step, (i, parts)) for i in range(parts)]
    for name in whole._fields:
        assert torch.equal(torch.cat([getattr(d, name) for d in drawn]), getattr(whole, name))
    again = objective.draw(model, x_0, seed, step + 1)
    assert not torch.equal(again.eps, whole.eps) and not torch.equal(again.t, whole.t)


def test_times_have_their_laws():
    """Kolmogorov–Smirnov against the stated laws, at p > 1e-4 with a fixed seed; a chain's times are its nodes."""
    path, x_0 = sf.VPSDE(), torch.zeros(4000, 1, dtype=torch.float64)
    model = sf.ScoreModel(lambda x, t: x, path)
    low, high = inner_ends(path)
    laws = {
        "uniform": lambda t: (t - low) / (high - low),
        "log-normal": lambda t: scipy.stats.norm.cdf(np.log(path.kappa(torch.tensor(t)).numpy()), -1.2, 1.2),
        "logit-normal": lambda t: scipy.stats.norm.cdf(np.log(t / (1 - t))),
        "uniform-lambda": lambda t: (path.lam(high) - path.lam(torch.tensor(t)).numpy()) / (path.lam(high) - path.lam(low)),
    }
    for name, law in laws.items():
        t = Objective(times=name).draw(model, x_0, seed=7).t.numpy()
        inside = t[(t > low) & (t < high)]
        assert len(inside) > 0.98 * len(t)
        edges = [float(law(np.array(e))) for e in (inside.min(), inside.max())]
        u = (law(inside) - edges[0]) / (edges[1] - edges[0]) if len(inside) < len(t) else law(inside)
        assert scipy.stats.kstest(u, "uniform").pvalue > 1e-4, name
    nodes = Objective().draw(sf.ScoreModel(lambda x, t: x, CHAIN, time="label"), x_0, seed=7).t * 1000
    torch.testing.assert_close(nodes, nodes.round(), rtol=0, atol=1e-9)
    assert nodes.min() >= 1 and nodes.max() <= 1000 and len(nodes.unique()) > 900


def test_stratified_times_cover_all_levels():
    """Of B stratified times one lies in each of B parts; their mean has 1/B of the variance of independent ones."""
    model, x_0 = sf.ScoreModel(lambda x, t: x, sf.VPSDE()), torch.zeros(50, 1)
    objective = Objective(times="stratified")
    means = []
    for step in range(50):
        t = (objective.draw(model, x_0, 0, step).t - 1e-3) / (1 - 1e-3)
        assert torch.equal((t * 50 - 1e-9).floor().sort().values, torch.arange(50.0, dtype=torch.float64))
        means.append(float(t.mean()))
    assert 0.5 < np.var(means) * 12 * 50**2 < 1.7  # of 50 means; 99.9 % of seeds


def test_importance_is_unbiased():
    """Levels are drawn in proportion to √E[L²], and the loss's expectation stays the uniform one."""
    history, model = LossHistory(bins=4), sf.ScoreModel(lambda x, t: torch.zeros_like(x), sf.VPSDE())
    x_0, objective = torch.zeros(40_000, 1, dtype=torch.float64), Objective(times="importance")
    assert torch.equal(
        objective.draw(model, x_0, 0, history=history).importance_weight, torch.ones(40_000, dtype=torch.float64)
    )
    for k, size in enumerate((1.0, 2.0, 3.0, 10.0)):
        history.update(history.sums(torch.full((20,), (k + 0.5) / 4), torch.full((20,), size)))
    draw = objective.draw(model, x_0, 0, history=history)
    share = torch.bincount((draw.t * 4).long().clamp(max=3), minlength=4) / 40_000
    torch.testing.assert_close(share, torch.tensor([1.0, 2.0, 3.0, 10.0]) / 16, rtol=0, atol=0.01)
    assert float(draw.importance_weight.mean()) == pytest.approx(1, abs=5 * float(draw.importance_weight.std()) / 200)
    value = (draw.importance_weight * draw.t**2).mean()
    assert float(value) == pytest.approx(1 / 3, abs=0.01)


def test_the_loss_is_unbiased_under_importance():
    """The objective's mean, over 400 seeds, is that of uniform times: within 4.5 standard errors."""
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear(T=60).beta)
    model, x_0 = sf.ScoreModel(lambda x, t: 0 * x, path), states(64, 2)  # its ε-error is 1 at all levels
    history = LossHistory(50)
    t = torch.arange(1, 61, dtype=torch.float64).repeat(20) / 60
    history.update(history.sums(t, 1 + 50 * t**4))
    assert history.warm
    found = []
    for times in ("uniform", "importance"):
        objective = Objective(weighting=lambda path, t: t**4, times=times)
        draws = (objective.draw(model, x_0, seed, history=history) for seed in range(400))
        found.append(torch.stack([objective(model, x_0, draw).mean for draw in draws]))
    gap = found[0] - found[1]
    assert abs(float(gap.mean())) < 4.5 * float(gap.std()) / 20 < 0.1 * float(found[0].mean())
    # A level without losses is still drawn, once in so many thousands of parts.
    history.state[2, 7] = 0
    assert float(history.shares()[7]) == pytest.approx(0.001 / 50)


def test_options_of_times_reach_the_draws():
    model = sf.ScoreModel(lambda x, t: x, sf.VPSDE())
    objective = Objective(times="log-normal", times_options={"mean": -3.0, "std": 0.01})
    t = objective.draw(model, states(50, 2), seed=0).t
    torch.testing.assert_close(model.path.kappa(t).log(), torch.full_like(t, -3.0), rtol=0, atol=0.06)


def test_exact_answers_have_no_loss_in_any_precision():
    """The target is a sum of x_0 and ε, not a difference of large numbers: bfloat16 data and the exact velocity give 0."""
    path, x_0 = sf.Flow(), states(512, 4).to(torch.bfloat16)
    draw = Objective().draw(sf.ScoreModel(lambda x, t: x, path, "flow"), x_0, seed=0)
    model = sf.ScoreModel(lambda x, t: draw.eps - x_0, path, "flow")
    assert float(Objective(weighting="flow")(model, x_0, draw).each.max()) < 1e-4


def test_history_follows_the_losses():
    """The first losses are averaged evenly, later ones forget: sums over processes give the same as one."""
    history = LossHistory(bins=2, keep=0.9)
    t = torch.tensor([0.1, 0.2, 0.9])
    history.update(history.sums(t, torch.tensor([1.0, 3.0, 5.0])))
    assert history.state.tolist() == [[2, 1], [2, 5], [5, 25]]
    for _ in range(200):
        history.update(history.sums(t, torch.tensor([7.0, 7.0, 1.0])))
    torch.testing.assert_close(history.state[1], torch.tensor([7.0, 1.0], dtype=torch.float64))
    middle, mean = LossHistory(bins=2).curve()
    assert len(middle) == len(mean) == 0


def test_the_curve_stands_in_the_middle_of_its_parts():
    """Of four parts of [0, 1] those that have a loss: the first and the third."""
    history = LossHistory(bins=4)
    history.update(history.sums(torch.tensor([0.1, 0.2, 0.6]), torch.tensor([1.0, 3.0, 5.0])))
    middles, losses = history.curve()
    assert middles.tolist() == [0.125, 0.625] and losses.tolist() == [2.0, 5.0]


def test_the_curve_of_losses_has_the_parts_that_were_seen():
    history = LossHistory(bins=4)
    history.update(history.sums(torch.tensor([0.1, 0.6, 0.6, 0.9]), torch.tensor([2.0, 3.0, 5.0, 0.0])))
    middle, loss = history.curve()
    assert middle.tolist() == [0.125, 0.625, 0.875] and loss.tolist() == [2.0, 4.0, 0.0]


def test_an_objective_is_a_value():
    objective = Objective()
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.vlb = 1.0
