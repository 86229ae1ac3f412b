"""The correctors: as published, sample by sample, and what they leave alone."""

import math

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf

EVERY = pytest.mark.parametrize("path", [p for n, p in PATHS.items() if n != "chain"], ids=[n for n in PATHS if n != "chain"])


@EVERY
@pytest.mark.parametrize(("snr", "share"), [(0.1, 0.02), (0.16, 0.0512), (0.9, 1.0)])
def test_langevin_is_an_euler_step(path, snr, share):
    """After the predictor, n times x ← x + e g + √(2e) z with e = 2 snr² σ_s², at most σ_s², whatever g and z."""
    data, t, s = mixture(d=4), 0.8, 0.6
    model, x, draws = data.model(path), states(5, 4) * path.prior_std(0.8), states(3, 5, 4, seed=1)
    expected = sf.solve(model, x, "reverse-diffusion", grid=[t, s], noise=draws[:1]).x
    e = share * path.sigma(s) ** 2
    for z in draws[1:]:
        expected = expected + e * model.score(expected, s) + math.sqrt(2 * e) * z
    ours = sf.solve(model, x, "predictor-corrector", n=2, snr=snr, grid=[t, s], noise=draws).x
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_langevin_settles_where_it_should(d):
    """On N(0, ¼ I), w its variance at the level, 60 moves settle at w/(1 − e/(2w)), in any dimension. Five standard
    deviations of a mean square over 12 800 numbers: a false alarm in two million."""
    path, s = sf.VPSDE(), 0.3
    w, e = 0.25 * path.alpha(s) ** 2 + path.sigma(s) ** 2, 2 * 0.16**2 * path.sigma(s) ** 2
    x = states(12800 // d, d) * 0.3
    corrected = sf.solve(
        sf.Gaussian(torch.zeros(d), 0.25).model(path), x, "predictor-corrector", predictor="ddim", n=60, grid=[0.31, s], seed=0
    ).x
    expected = w / (1 - e / (2 * w))
    assert abs(float(corrected.square().mean()) / expected - 1) < 5 * math.sqrt(2 / 12800)


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
