"""The correctors: as published, sample by sample, and what they leave alone."""

import math

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf

EVERY = pytest.mark.parametrize("path", [p for n, p in PATHS.items() if n != "chain"], ids=[n for n in PATHS if n != "chain"])


@EVERY
def test_langevin_as_published(path):
    """After the predictor, n times x ← x + e g + √(2e) z with e = 2 (snr ‖z‖/‖g‖)², norms of each sample (Algorithm 4)."""
    data, t, s, snr = mixture(d=40), 0.8, 0.6, 0.1
    model, x, draws = data.model(path), states(5, 40) * path.prior_std(0.8), states(3, 5, 40, seed=1)
    expected = sf.solve(model, x, "reverse-diffusion", grid=[t, s], noise=draws[:1]).x
    for z in draws[1:]:
        g = model.score(expected, s)
        e = 2 * (snr * z.norm(dim=1) / g.norm(dim=1)) ** 2
        assert bool((e < path.sigma(s) ** 2).all())  # in 40 dimensions the bound does not bind
        expected = expected + e[:, None] * g + (2 * e[:, None]).sqrt() * z
    ours = sf.solve(model, x, "predictor-corrector", n=2, snr=snr, grid=[t, s], noise=draws).x
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_langevin_is_held_where_the_score_is_small():
    """At the mode of a Gaussian the published step is infinite; ours is σ_s² and stays finite."""
    path = sf.VPSDE()
    model = sf.ScoreModel(lambda x, t: torch.zeros_like(x), path, prediction="eps")
    draws = states(2, 3, 2)
    before = sf.solve(model, torch.zeros(3, 2, dtype=torch.float64), "reverse-diffusion", grid=[0.5, 0.4], noise=draws[:1]).x
    after = sf.solve(model, torch.zeros(3, 2, dtype=torch.float64), "predictor-corrector", grid=[0.5, 0.4], noise=draws).x
    torch.testing.assert_close(after - before, math.sqrt(2) * path.sigma(0.4) * draws[1], rtol=1e-12, atol=1e-12)


@EVERY
def test_the_bridge_redraws_a_share_of_the_noise(path):
    """x ~ N(α x̂_0 + √(1−δ) σ ε̂, δ σ²): at δ = 1 nothing of ε̂ is left."""
    data, s = mixture(), 0.6
    model, x, draws = data.model(path), states(5, 3), states(1, 5, 3, seed=1)
    stepped = sf.solve(model, x, "ddim", grid=[0.8, s]).x
    for delta in (0.1, 1.0):
        ours = sf.solve(
            model, x, "predictor-corrector", predictor="ddim", corrector="bridge", delta=delta, grid=[0.8, s], noise=draws
        ).x
        expected = path.alpha(s) * model.x0(stepped, s) + path.sigma(s) * (
            math.sqrt(1 - delta) * model.eps(stepped, s) + math.sqrt(delta) * draws[0]
        )
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_correctors_bring_a_wrong_state_back():
    """Many corrections at one level pull states of too small a variance to the marginal's, which is 1 for N(0, I) on VP.

    60 Langevin moves from variance 0.25 end within 0.95 and 1.15: moves of finite size overshoot by some hundredths.
    """
    path, n, d = sf.VPSDE(), 400, 64
    model = sf.Gaussian(torch.zeros(d)).model(path)
    x = states(n, d) * 0.5
    corrected = sf.solve(model, x, "predictor-corrector", predictor="ddim", n=60, snr=0.16, grid=[0.6, 0.59], seed=0).x
    assert 0.95 < float(corrected.square().mean()) < 1.15
