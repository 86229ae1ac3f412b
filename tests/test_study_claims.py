"""What a study may claim: studies made of numbers, whose truth is known."""

import numpy as np
import pytest
import torch
from reported import made

import scoreflow as sf
from scoreflow.studies.findings import among

NOISE = np.array([0.01, -0.02, 0.015, -0.005, 0.02, -0.01, 0.005, -0.015])


def test_a_sampler_that_failed_on_hard_blocks_does_not_win():
    """b is worse on each block that both have, and has only the easy ones: the test, its side and the ranking say so."""
    hard = np.array([1.0, 1.1, 0.9, 1.05, 5.0, 5.1, 4.9, 5.0])
    study = made({("cell", "a", 4): hard, ("cell", "b", 4): 1.3 * hard[:4]}, "sliced-w2")
    (line,) = study.differences("sliced-w2").to_dict("records")
    assert line["significant"] and line["better"] == "a" and line["value"] < 0
    assert study.best(4, "sliced-w2").sampler == "a" and list(study.pareto("sliced-w2")["sampler"]) == ["a"]
    assert not any("b is better" in said for said in study.findings("sliced-w2"))


def test_what_is_best_at_its_floor_is_told_by_the_distance_from_it():
    """Two samplers as far off to either side are not told apart; one that is nearer is better."""
    floor = {("floor", "", 0): 10 * NOISE}
    study = made({("cell", "a", 4): 1 + NOISE, ("cell", "b", 4): -1 + 2 * NOISE, **floor}, "log-likelihood")
    assert not study.differences("log-likelihood")["significant"].any()
    best = study.best(4, "log-likelihood")
    assert set(best.rivals) == {"a", "b"} - {best.sampler}
    near = made({("cell", "a", 4): 1 + NOISE, ("cell", "b", 4): -0.5 + NOISE, **floor}, "log-likelihood")
    (line,) = near.differences("log-likelihood").to_dict("records")
    assert line["significant"] and line["better"] == "b" and line["value"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("side", [1, -1])
def test_off_the_floor_to_either_side_is_not_at_it(side):
    floor = {("floor", "", 0): NOISE}
    study = made({("cell", "a", 4): side + NOISE, ("cell", "b", 4): NOISE[::-1], **floor}, "log-likelihood")
    at = {spec.label: study.at_floor(spec, "log-likelihood") for spec in study.specs}
    assert at == {"a": False, "b": True}


def test_orders_leave_out_what_is_near_the_references_own_error():
    """Under 3 times of it the error is the reference's: with it the order would read low."""
    errors = {10: 1.0, 20: 0.25, 40: 0.0625, 80: 0.02, 160: 0.0125}
    cells = {("cell", "a", n): [e, e] for n, e in errors.items()}
    study = made({**cells, ("reference", "", 0): [0.01, 0.01]}, "trajectory")
    found = study.order("a", "trajectory")
    assert (found.first, found.last, found.order) == (10, 40, pytest.approx(2.0))


def test_one_block_says_nothing_of_the_floor():
    """Neither that it is reached nor that it is not; nor that there is no model error, nor that a bound is kept."""
    cells = {("cell", "a", 4): [0.4], ("floor", "", 0): [0.1], ("reference", "", 0): [0.3]}
    study = made(cells, "sliced-w2")
    (spec,) = study.specs
    assert study.at_floor(spec, "sliced-w2") is None and study.floor_from("a", "sliced-w2") is None
    said = " ".join(study.findings("sliced-w2"))
    assert "old apart" not in said and "model error" not in said and "No worse" not in said
    with pytest.raises(ValueError, match="no cell of this study is as good as within=1"):
        study.cheapest(within=1.0, figure="sliced-w2")


def test_better_than_the_floor_is_no_worse_than_it():
    """A distance that is shorter than data's to data in every block is not said to be not told apart from it."""
    cells = {("cell", "a", 4): 0.5 + NOISE, ("floor", "", 0): 0.9 + NOISE}
    said = " ".join(made(cells, "sliced-w2").findings("sliced-w2"))
    assert "No worse than it, as far as these blocks tell: a from 4 evaluations" in said and "ot told apart" not in said


def test_ties_of_shares_are_no_certainty():
    """Two blocks whose shares are equal tie by chance; equal values of what has no chance in it are certain."""
    shares = made({("cell", "a", 4): [0.25, 0.25], ("cell", "b", 4): [0.5, 0.5], ("floor", "", 0): [0.5, 0.5]}, "modes")
    assert not shares.differences("modes")["significant"].any()
    (a, b) = sorted(shares.specs, key=lambda spec: spec.label)
    assert shares.at_floor(a, "modes") is None and shares.at_floor(b, "modes") is True
    assert np.isnan(shares.mean(a, "modes").low)
    exact = made({("cell", "a", 4): [0.25, 0.25], ("cell", "b", 4): [0.5, 0.5]}, "w2-exact")
    assert exact.differences("w2-exact")["significant"].all()


def test_rivals_are_honest_about_a_winner_that_the_data_chose():
    """Of 8 equal samplers the winner is told apart from any other in at most 5 % of studies: more than 12 of 100, by chance,
    once in 500."""
    rng, told = np.random.default_rng(0), 0
    for _ in range(100):
        study = made({("cell", f"s{k}", 4): rng.normal(size=8) for k in range(8)}, "sliced-w2")
        told += len(study.best(4, "sliced-w2").rivals) < 7
    assert told <= 12


def test_budgets_in_steps_are_not_evaluations():
    """`compare` at k evaluations takes the cells with k evaluations."""
    study = made(
        {("cell", "a", 5): 1 + NOISE, ("cell", "a", 10): 2 + NOISE, ("cell", "b", 5): 3 + NOISE}, "sliced-w2", steps=True
    )
    assert study.compare("a", "b", 10, "sliced-w2").value == pytest.approx(-2)


def ring(k, std):
    """k clusters on the unit circle."""
    angle = torch.arange(k) * 2 * torch.pi / k
    return sf.GaussianMixture(torch.ones(k), torch.stack([angle.cos(), angle.sin()], 1), std**2)


@pytest.mark.parametrize(("network", "told"), [(ring(24, 0.08), True), (ring(8, 0.03), False)], ids=["smeared", "right"])
def test_a_second_look_sees_what_sliced_w2_does_not(network, told):
    """The reference a smeared ring, the data eight tight clusters: the first figure is no worse than data's own, which is not
    called the absence of an error. A right network is called wrong in one study of a hundred; this one is not."""
    model = network.model(sf.VPSDE())
    model.oracle = None
    study = sf.study(
        model, ["ddim"], nfe=[5], n=64, seeds=4, metrics=["sliced-w2"], shape=(2,), data=ring(8, 0.03).sample(2000, seed=1),
        reference="scipy(rtol=1e-3)", dtype=torch.float64,
    )  # fmt: skip
    (said,) = (line for line in study.findings() if "converged reference" in line)
    assert "not told apart from the floor: an error of the model that moves sliced-w2 by less than about 0.0" in said
    assert ("an error of the model or of its prior" in said) == told
    assert ("A second look tells none either" in said) != told
    own, data = among(study)
    assert data.mean() > 0.95 and (own.mean() < 0.5) == told
    assert len(own) == 4 * 64 and 600 < len(data) < 700  # each datum once, though the blocks share some
