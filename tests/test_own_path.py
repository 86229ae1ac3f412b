"""What is asked of a sampler is asked on the run's path."""

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow._samplers.step import Linear, Options
from scoreflow.analysis import order

EVERY = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@EVERY
def test_levels_of_any_path(path):
    """Analytic-DPM with estimated variances runs without a seed, from torch's generator, and lands in studies of its order."""
    model = mixture().model(path)
    levels = sf.estimate_variance(model, mixture().sample(50, seed=0), 4, by="error")
    torch.manual_seed(3)
    run = sf.solve(model, states(2, 3), "analytic-dpm", levels=levels, steps=3, start=0.9)
    assert run.seed is not None and run.noise_count == 2
    again = sf.solve(model, states(2, 3), "analytic-dpm", levels=levels, steps=3, start=0.9, seed=run.seed)
    assert torch.equal(run.x, again.x)
    assert sf.get_sampler("analytic-dpm", levels=levels).stochastic
    assert not sf.get_sampler("analytic-dpm", eta=0, v=0).stochastic and sf.get_sampler("analytic-dpm", eta=0).stochastic


class OnlyHere(sf.VPSDE):
    """A path with which alone some rows go."""


def only_here(path, times, s, *, noise=1.0):
    if not isinstance(path, OnlyHere):
        raise ValueError(f"no rows on {path}")
    return path.bridge(times[0], s, noise)


def own(noise, order=1):
    return Linear(name="own", options=Options(noise=noise), rows=only_here, order=order, lands=True)


def test_rows_of_one_path_only():
    """Nothing of a run, an inversion or a measure of order asks a sampler about a path that is not its own."""
    path = OnlyHere()
    model, x = sf.Gaussian(torch.zeros(3), torch.eye(3)).model(path), states(2, 3)
    for rows in (own(1.0), own(1.0, order=2)):
        solution = sf.solve(model, x, rows, steps=4)
        assert solution.noise_count == 3 and solution.seed is not None
        with pytest.raises(ValueError, match="draws noise"):
            sf.invert(model, x, rows, steps=4)
        assert order(rows, path, steps=(4, 8)).kind == "weak"
    quiet = sf.solve(model, x, own(0.0, order=2), steps=4)
    assert quiet.noise_count == 0 and quiet.seed is None and quiet.times == sf.grid(path, 4, "ode")
    sf.invert(model, x, own(0.0), steps=4)


def test_a_run_that_draws_nothing_leaves_the_generator():
    """A plan without noise takes no seed, whatever its sampler might draw elsewhere."""
    model, x = mixture().model(sf.VPSDE()), states(2, 3)
    quiet = {"restart": {"restarts": 0}, "edm-churn": {"S_tmin": 40.0}, "ddim": {}}
    for sampler, options in quiet.items():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        run = sf.solve(model, x, sampler, steps=3, start=0.5, **options)
        assert run.seed is None and run.noise_count == 0
        assert torch.equal(before, torch.get_rng_state())
