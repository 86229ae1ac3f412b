"""CFG-Zero*, TCFG and FDG: the published formulas, their closed cases, and what of a run they touch."""

import math
from itertools import pairwise

import pytest
import torch
from guided import MODEL, VP, D, K, Velocity, X, Y, net_model
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import states

import scoreflow as sf
from scoreflow.guidance.frequency import assembled, blurred, pyramid

NONE = torch.full_like(Y, K)
FLOW = sf.ScoreModel(Velocity(), sf.Flow(), "flow")
PREDICTIONS = ("eps", "x0", "v", "score", "flow")


def given_pair(c, u, prediction="eps", path=VP):
    """A network that predicts c with its condition and u without."""

    def net(x, t, y=None):
        shape = (-1, *[1] * (x.ndim - 1))
        pair = (u.repeat(len(x) // len(u), *shape[1:]), c.repeat(len(x) // len(c), *shape[1:]))
        return torch.where((y == K).reshape(shape), *pair).to(x)

    net.null = {"y": K}
    return sf.ScoreModel(net, path, prediction)


# -- CFG-Zero* ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [FLOW, MODEL, net_model("x0")], ids=["flow", "eps", "x0"])
@given(t=st.floats(0.05, 0.95), scale=st.floats(-1, 8))
@settings(max_examples=8)
def test_cfg_zero_star_is_the_published_scale(model, t, scale):
    """`s = v_c·v_u/‖v_u‖²` of velocities, sample by sample, whatever the network predicts and whatever is asked."""
    c, u = model(X, t, "flow", y=Y), model(X, t, "flow", y=NONE)
    s = torch.stack([a @ b / (b @ b) for a, b in zip(c, u, strict=True)])[:, None]
    guided = sf.CFGZeroStar(model, scale)
    torch.testing.assert_close(guided(X, t, "flow", y=Y), s * u + scale * (c - s * u), rtol=1e-8, atol=1e-8)
    x_0, eps = guided.x0(X, t, y=Y), guided.eps(X, t, y=Y)
    torch.testing.assert_close(model.path.alpha(t) * x_0 + model.path.sigma(t) * eps, X, rtol=1e-7, atol=1e-7)


def test_cfg_zero_star_along_and_across():
    """A conditional velocity along the other is kept at every scale; of one across it nothing of the other is left."""
    u = states(4, D, seed=1)
    along = sf.CFGZeroStar(given_pair(-0.7 * u, u, "flow"), 5.0)
    torch.testing.assert_close(along(X, 0.5, "flow", y=Y), -0.7 * u)
    across = torch.linalg.cross(u, states(4, D, seed=2))
    found = sf.CFGZeroStar(given_pair(across, u, "flow"), 3.0)(X, 0.5, "flow", y=Y)
    torch.testing.assert_close(found, 3 * across)
    none = sf.CFGZeroStar(given_pair(u, torch.zeros_like(u), "flow"), 3.0)
    torch.testing.assert_close(none(X, 0.5, "flow", y=Y), 3 * u)  # and of none at all


def test_zero_init_by_hand():
    """Euler's steps of the velocity, the first two without any; nothing is evaluated there."""
    times, scale = [1.0, 0.8, 0.6, 0.3, 0.0], 3.0
    sol = sf.solve(sf.CFGZeroStar(FLOW, scale, zero_init=2), X, "pf-ode", method="euler", grid=times, trajectory=True, y=Y)
    x = X
    for k, (t, s) in enumerate(pairwise(times)):
        c, u = FLOW(x, t, "flow", y=Y), FLOW(x, t, "flow", y=NONE)
        r = ((c * u).sum(1) / u.square().sum(1))[:, None]
        x = x + (s - t) * (r * u + scale * (c - r * u)) if k >= 2 else x
        torch.testing.assert_close(sol.states[k + 1], x, rtol=1e-9, atol=1e-9)
    assert torch.equal(sol.states[2], X) and sol.nfe == 4 and sol.nfe_per_sample == (4,) * 4


@pytest.mark.parametrize("zero_init", [0, 1, 3])
def test_zero_init_is_of_the_path_not_of_the_sampler(zero_init):
    """On ddim, in parallel, together with other runs, asked, and with a time a sample: the same velocities."""
    guided = sf.CFGZeroStar(FLOW, 2.0, zero_init=zero_init)
    sol = sf.solve(guided, X, "ddim", steps=6, y=Y)
    assert sol.nfe == 2 * (6 - zero_init)
    euler = sf.solve(guided, X, "pf-ode", method="euler", grid=sol.times, y=Y)
    side = sf.solve(guided, X, "ddim", steps=6, parallel=sf.Picard(3, 0.0), y=Y)
    many = sf.solve_many([("ddim", 12), {"sampler": "ddim", "steps": 6}], guided, X, y=Y)[1]
    run = sf.ask("ddim", X, path=FLOW.path, prediction="flow", steps=6)
    begun = guided.begin(run.plan)
    while not run.done:
        run.tell(begun(run.x, run.t, "flow", y=Y))
    for x in (euler.x, side.x, many.x, run.x):
        torch.testing.assert_close(x, sol.x, rtol=1e-9, atol=1e-9)


def test_zero_init_at_times_of_its_own():
    """Samples above the end of the first steps have the velocity 0; the others, the end itself too, what they have alone."""
    begun = sf.CFGZeroStar(FLOW, 2.0, zero_init=2).begin(sf.plan("ddim", FLOW.path, grid=[1.0, 0.8, 0.7, 0.2, 0.0]))
    t = torch.tensor([0.9, 0.7, 0.701, 0.2], dtype=torch.float64)
    out = begun(X, t, "flow", y=Y)
    assert begun.evaluations(t).tolist() == [0, 2, 0, 2] and begun.evaluations(0.75) == 0
    for i, u in enumerate(t.tolist()):
        alone = begun(X[i : i + 1], u, "flow", y=Y[i : i + 1])
        torch.testing.assert_close(out[i : i + 1], alone, rtol=1e-9, atol=1e-9)
        assert bool(alone.any()) is (u <= 0.7)
    assert not begun(X, t + 0.1, "flow", y=Y)[:2].any()
    assert begun(X, t.float().clamp(max=0.7), "flow", y=Y).any(1).all()  # the end, rounded to 32 bits


def test_zero_init_comes_back():
    """Upwards the field is the same: what a run left is found again."""
    guided = sf.CFGZeroStar(FLOW, 2.0, zero_init=2)
    grid = [1.0, 0.9, 0.8, *torch.linspace(0.79, 0.1, 400).tolist()]
    up = sf.invert(guided, X, "ddim", grid=grid, y=Y)
    assert up.nfe == 2 * 400  # the steps from 0.1 to 0.8; the first of the two above begins there
    torch.testing.assert_close(up.decode(guided, y=Y).x, X, rtol=0.02, atol=0.02)


def test_zero_init_needs_steps_that_are_known():
    for sampler in ("dpm-adaptive", "scipy"):
        with pytest.raises(ValueError, match=r"zero_init=1 counts the steps of a run, and .* is not made of rows: give zero"):
            sf.solve(sf.CFGZeroStar(FLOW, 2.0), X, sampler, start=0.9, stop=0.1, y=Y)
        sf.solve(sf.CFGZeroStar(FLOW, 2.0, zero_init=0), X, sampler, start=0.9, stop=0.1, y=Y)
    with pytest.raises(ValueError, match="zero_init=3 leaves no step of a run of 3: give more steps, or zero_init=0"):
        sf.solve(sf.CFGZeroStar(FLOW, 2.0, zero_init=3), X, "ddim", steps=3, y=Y)
    with pytest.raises(ValueError, match="zero_init must be a whole number ≥ 0, got -1"):
        sf.CFGZeroStar(FLOW, 2.0, zero_init=-1)


# -- TCFG ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@given(t=st.floats(0.05, 0.95), scale=st.floats(-1, 8))
@settings(max_examples=8)
def test_tcfg_is_a_singular_value_decomposition(prediction, t, scale):
    """Of the two rows u and c, u projected on the first right singular vector; in what the network predicts."""
    model = net_model(prediction)
    c, u = model(X, t, prediction, y=Y), model(X, t, prediction, y=NONE)
    v = torch.linalg.svd(torch.stack([u, c], 1), full_matrices=False).Vh[:, :1]
    damped = ((u[:, None] * v).sum(2, keepdim=True) * v)[:, 0]
    found = sf.TCFG(model, scale)(X, t, prediction, y=Y)
    torch.testing.assert_close(found, damped + scale * (c - damped), rtol=1e-7, atol=1e-7)


def test_tcfg_of_scores():
    """Of an x0- and a score-network it is that of ε̂; of another prediction, where it is named."""
    eps = sf.TCFG(MODEL, 2.5).x0(X, 0.4, y=Y)
    for model in (net_model("x0"), net_model("score")):
        torch.testing.assert_close(sf.TCFG(model, 2.5).x0(X, 0.4, y=Y), eps, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sf.TCFG(MODEL, 2.5, prediction="score").x0(X, 0.4, y=Y), eps, rtol=1e-8, atol=1e-8)
    other = sf.TCFG(MODEL, 2.5, prediction="v").x0(X, 0.4, y=Y)
    torch.testing.assert_close(other, sf.TCFG(net_model("v"), 2.5).x0(X, 0.4, y=Y), rtol=1e-8, atol=1e-8)
    assert (other - eps).abs().max() > 0.01


def test_tcfg_along_across_and_alone():
    """Along each other it is classifier-free guidance; across, the shorter goes; of two as long and across u stays."""
    u = states(4, D, seed=1)
    side = torch.linalg.cross(u, states(4, D, seed=2))
    side *= u.norm(dim=1, keepdim=True) / side.norm(dim=1, keepdim=True)
    for c, expected in (
        (-2 * u, u + 3 * (-3 * u)), (2 * side, 6 * side), (0.5 * side, -2 * u + 1.5 * side), (u, u),
    ):  # fmt: skip
        found = sf.TCFG(given_pair(c, u), 3.0)(X, 0.5, y=Y)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    zero = torch.zeros_like(u)
    assert not sf.TCFG(given_pair(zero, zero), 3.0)(X, 0.5, y=Y).any()


def test_tcfg_runs_a_flow_network_from_pure_noise():
    """The velocities are used, which hold where α = 0."""
    sol = sf.solve(sf.TCFG(FLOW, 2.0), X, "ddim", steps=6, y=Y)
    assert bool(sol.x.isfinite().all()) and sol.nfe == 12

    def denoiser(x, t, y=None):
        return x - t[:, None] * FLOW.net(x, t, y)

    data = sf.ScoreModel(denoiser, FLOW.path, "x0")
    with pytest.raises(ValueError, match=r"alpha=0 there, where an eps-network says nothing of the data"):
        sf.solve(sf.TCFG(data, 2.0, null={"y": K}), X, "ddim", steps=6, y=Y)
    same = sf.solve(sf.TCFG(data, 2.0, null={"y": K}, prediction="flow"), X, "ddim", steps=6, y=Y)
    torch.testing.assert_close(same.x, sol.x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_as_in_diffusers(scale):
    """Their guiders on the same pairs; their s* has 1e-8 added below, and a decomposition in 32 bits."""
    guiders = pytest.importorskip("diffusers.guiders")
    c, u = states(4, 3, 4, 4, seed=3, dtype=torch.float32), states(4, 3, 4, 4, seed=4, dtype=torch.float32)
    x = torch.zeros_like(c)
    zero = guiders.ClassifierFreeZeroStarGuidance(scale, zero_init_steps=0)
    zero.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(0))
    tangential = guiders.TangentialClassifierFreeGuidance(scale)
    tangential.set_state(step=0, num_inference_steps=10, timestep=torch.tensor(0))
    for theirs, ours in (
        (zero, sf.CFGZeroStar(given_pair(c, u, "flow", sf.Flow()), scale)),
        (tangential, sf.TCFG(given_pair(c, u, "flow", sf.Flow()), scale)),
    ):
        found = ours(x, 0.5, "flow", y=Y)
        torch.testing.assert_close(found, theirs.forward(c, u).pred, rtol=1e-4, atol=1e-4)


# -- what both keep -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sf.CFGZeroStar, sf.TCFG])
def test_scale_1_is_the_conditional_model(make):
    """At the price of one branch, outside the interval too; scale 0 asks both, for the projection."""
    own = "flow" if make is sf.CFGZeroStar else "eps"
    for guided in (make(MODEL, 1), make(MODEL, 3.0, interval=(0.6, 0.9))):
        assert torch.equal(guided(X, 0.5, own, y=Y), MODEL(X, 0.5, own, y=Y)) and guided.evaluations(0.5) == 1
    t = torch.full((4,), 0.5, dtype=torch.float64)
    for at in (0.5, t):
        torch.testing.assert_close(make(MODEL, 0.0)(X, at, y=Y), make(MODEL, 1e-12)(X, at, y=Y), rtol=1e-9, atol=1e-9)
    assert make(MODEL, 0.0).evaluations(0.5) == 2


@pytest.mark.parametrize("make", [sf.CFGZeroStar, sf.TCFG])
def test_gradients_flow(make):
    guided, x, step = make(net_model(), 2.0), X.clone().requires_grad_(), 1e-6 * torch.ones_like(X)
    run = {"sampler": "ddim", "steps": 3, "start": 0.9, "y": Y}
    (found,) = torch.autograd.grad(sf.solve(guided, x, **run, grad=True).x.sum(), x)
    up, down = (sf.solve(guided, X + s * step, **run).x.sum(1) for s in (1, -1))
    torch.testing.assert_close(found.sum(1), (up - down) / 2e-6, rtol=1e-5, atol=1e-6)


# -- FDG ----------------------------------------------------------------------------------------------------------------

IMAGES = states(4, 2, 11, 16, seed=7)


def image_model(prediction="eps"):
    """Of no data: its two branches differ at all frequencies."""

    def net(x, t, y=None):
        return torch.where((y == K)[:, None, None, None], x.roll(1, 2).tanh(), torch.sin(2 * x) + 0.3)

    def said(x, t, y=None):
        return sf.ScoreModel(net, VP)(x, t, prediction, y=y)

    said.null = {"y": K}
    return sf.ScoreModel(said, VP, prediction)


@given(height=st.integers(12, 40), width=st.integers(12, 40), levels=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_pyramid_adds_up(height, width, levels, seed):
    x = states(2, 3, height, width, seed=seed)
    parts = pyramid(x, levels)
    assert [tuple(part.shape[2:]) for part in parts] == [(height >> k, width >> k) for k in range(levels)][::-1]
    torch.testing.assert_close(assembled(parts), x, rtol=1e-12, atol=1e-12)


def test_a_pyramid_in_closed_form():
    """A flat image is all coarse, a chequerboard all fine; a ramp is halved to the means of its pairs, in the middle."""
    flat = torch.full((1, 1, 16, 16), 3.0, dtype=torch.float64)
    low, *high = pyramid(flat, 3)
    torch.testing.assert_close(low, flat[..., :4, :4])
    assert all(part.abs().max() < 1e-14 for part in high)
    board = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)).double()[None, None]
    low, high = pyramid(board, 2)
    torch.testing.assert_close(high, board)
    ramp = torch.arange(16, dtype=torch.float64).expand(1, 1, 16, 16)
    low, _ = pyramid(ramp, 2)
    torch.testing.assert_close(low[0, 0, :, 1:-1], (2 * torch.arange(8).double() + 0.5).expand(8, 8)[:, 1:-1])


@given(frequency=st.floats(0, math.pi))
@settings(max_examples=10)
def test_a_wave_is_blurred_by_its_frequency(frequency):
    """The weights are binomial: along each side a wave keeps `cos⁴(ω/2)`."""
    wave = torch.cos(frequency * torch.arange(20, dtype=torch.float64)).expand(1, 1, 20, 20)
    for x in (wave, wave.mT):
        inner = (..., slice(2, -2), slice(2, -2))
        torch.testing.assert_close(blurred(x)[inner], math.cos(frequency / 2) ** 4 * x[inner], rtol=1e-12, atol=1e-12)


@given(scale=st.floats(-1, 8), levels=st.integers(1, 3), t=st.floats(0.05, 0.95))
@settings(max_examples=15)
def test_equal_scales_are_classifier_free(scale, levels, t):
    found = sf.FDG(image_model(), (scale,) * levels)(IMAGES, t, y=Y)
    torch.testing.assert_close(found, sf.ClassifierFree(image_model(), scale)(IMAGES, t, y=Y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_fdg_is_the_papers_sum_in_every_prediction(prediction):
    """Algorithm 2: each level of u and c guided by its scale, then put together; x̂_0 of whichever network, at any time."""
    model, scales = image_model(prediction), (1.5, 0.0, 6.0)
    for t in (0.3, torch.tensor([0.2, 0.5, 0.5, 0.9], dtype=torch.float64)):
        c, u = model.x0(IMAGES, t, y=Y), model.x0(IMAGES, t, y=NONE)
        parts = zip(scales, pyramid(c, 3), pyramid(u, 3), strict=True)
        expected = assembled([b + scale * (a - b) for scale, a, b in parts])
        torch.testing.assert_close(sf.FDG(model, scales).x0(IMAGES, t, y=Y), expected, rtol=1e-8, atol=1e-8)


def test_fdg_guides_the_bands_by_themselves():
    """A flat difference by the first scale, a chequerboard by the last."""
    flat, board = torch.full((4, 1, 16, 16), 0.5), (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)).expand(4, 1, 16, 16)
    for extra, scale in ((flat, 2.0), (board, 7.0)):
        model = given_pair(extra.double(), torch.zeros(4, 1, 16, 16).double())
        found = sf.FDG(model, (2.0, 5.0, 7.0))(torch.zeros(4, 1, 16, 16).double(), 0.5, y=Y)
        torch.testing.assert_close(found, scale * extra.double())


def test_fdg_branches():
    """Both where the levels differ or none is 0 or 1; one at (1, 1), at (0, 0) and outside the interval; functions of t."""
    model = image_model()
    for scale, nfe in (((1.0, 1.0), 1), ((0.0, 0.0), 1), ((2.0, 2.0), 2), ((0.0, 1.0), 2), ((1.0, 3.0), 2)):
        guided = sf.FDG(model, scale)
        assert guided.evaluations(0.5) == nfe and guided.evaluations(torch.tensor([0.5, 0.2])).tolist() == [nfe, nfe]
    assert torch.equal(sf.FDG(model, (1, 1))(IMAGES, 0.5, y=Y), model(IMAGES, 0.5, y=Y))
    assert torch.equal(sf.FDG(model, (0, 0))(IMAGES, 0.5, y=Y), model(IMAGES, 0.5, y=NONE))
    ramp = sf.FDG(model, (lambda t: 2 * t, 4.0), interval=(0.4, 0.8))
    t = torch.tensor([0.2, 0.5, 0.9, 0.7], dtype=torch.float64)
    assert ramp.evaluations(t).tolist() == [1, 2, 1, 2] and math.isnan(ramp.scale_at(0.5)) and ramp.scale_at(0.9) == 1
    assert [one.tolist() for one in ramp.scales_at(t)] == [[1, 1, 1, 1.4], [1, 4, 1, 4]]
    out = ramp(IMAGES, t, y=Y)
    for i, u in enumerate(t.tolist()):
        alone = sf.FDG(model, (2 * u, 4.0), interval=(0.4, 0.8))(IMAGES[i : i + 1], u, y=Y[i : i + 1])
        torch.testing.assert_close(out[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fdg_runs(dtype):
    """Any dtype and the meta device; recorded with all its scales, the same in every process."""
    guided = sf.FDG(image_model(), (1.5, lambda t: 3.0))
    sol = sf.solve(guided, IMAGES.to(dtype), "ddim", steps=3, start=0.9, y=Y)
    assert sol.x.dtype is dtype and sol.nfe == 6 and "FDG(scale=(1.5, <lambda>)) of ScoreModel(" in sol.model
    assert sol.cites == ("song2021ddim", "sadat2025fdg", "ho2022classifierfree")
    meta = sf.ScoreModel(lambda x, t, y=None: x * 0.5, VP)
    empty = sf.FDG(meta, (1.5, 3.0), null={"y": K})(IMAGES.to("meta", dtype), 0.5, y=Y.to("meta"))
    assert empty.shape == IMAGES.shape and empty.device.type == "meta"


def test_refusals():
    with pytest.raises(TypeError, match=r"scale must be a sequence of scales from coarse to fine, such as .*, got 2.0"):
        sf.FDG(image_model(), 2.0)
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        sf.FDG(image_model(), (1.0, math.nan))
    with pytest.raises(
        ValueError, match=r"scales by frequency need images \(B, C, H, W\), and the states are of shape \(4, 3\)"
    ):
        sf.FDG(MODEL, (1.0, 2.0))(X, 0.5, y=Y)
    with pytest.raises(ValueError, match="scale has 4 levels, and these images are too small for more than 3"):
        sf.FDG(image_model(), (1.0, 2.0, 3.0, 4.0))(IMAGES[..., :8, :8], 0.5, y=Y)
    with pytest.raises(ValueError, match="prediction must be one of eps, x0, v"):
        sf.TCFG(MODEL, 2.0, prediction="noise")
    for make in (sf.CFGZeroStar, sf.TCFG, sf.FDG):
        with pytest.raises(TypeError, match="model must be a ScoreModel, got VPSDE"):
            make(VP, (2.0, 2.0) if make is sf.FDG else 2.0)
        with pytest.raises(TypeError, match="unexpected keyword argument 'rescale'"):
            make(MODEL, (2.0, 2.0) if make is sf.FDG else 2.0, rescale=0.5)
