"""Methods that are published as a change of the state after a step, against the published loops; and RePaint's way."""

import itertools
import math

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf
from scoreflow import White
from scoreflow.posterior import METHODS, Observation, Posterior, Singular

PATH = PATHS["vp"]
MASK = torch.tensor([True, False, True])
TIMES = (1.0, 0.8, 0.55, 0.3, 0.1, 0.0)
SEEDS = range(5)


def model():
    return mixture().model(PATH)


def y_of(n=2, seed=4):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(method, seen, sampler="ddpm", grid=TIMES, **options):
    return sf.solve(Posterior(model(), seen, method, **options), states(5, 3), sampler, grid=grid, seed=SEEDS).x


def published(seen, replaces=False, gradient=0.0):
    """The loop as papers have it: ancestral steps from x̂_0, a gradient of the norm, the measured part put in."""
    score, x = model(), states(5, 3)
    own, shared = White(SEEDS).draws("step"), White(SEEDS).draws("model")
    mask, y = MASK.double(), torch.zeros(3, dtype=torch.float64).masked_scatter(MASK, seen.y)
    for t, s in itertools.pairwise(TIMES):
        alpha, sigma, alpha_s, sigma_s = PATH.alpha(t), PATH.sigma(t), PATH.alpha(s), PATH.sigma(s)
        if replaces:
            x = mask * (alpha * y + sigma * shared(x)) + (1 - mask) * x
        x = x.detach().requires_grad_()
        x_0 = score.x0(x, t)
        norms = (mask * (y - x_0)).norm(dim=1)
        (slope,) = torch.autograd.grad(norms.sum(), x)
        x, x_0 = x.detach(), x_0.detach()
        ratio = alpha / alpha_s
        noise = sigma**2 - ratio**2 * sigma_s**2  # of q(x_t | x_s); the ancestral mean and variance by Bayes' rule
        mean = (ratio * sigma_s**2 * x + alpha_s * noise * x_0) / sigma**2
        x = mean - gradient * slope + (math.sqrt(noise) * sigma_s / sigma * own(x, t, s) if s else 0.0)
    return mask * y + (1 - mask) * x if replaces else x


def test_replacement_is_the_published_loop():
    seen = Observation(MASK, y_of())
    torch.testing.assert_close(run("replacement", seen), published(seen, replaces=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_dps_is_the_published_loop(scale):
    seen = Observation(MASK, y_of())
    torch.testing.assert_close(run("dps", seen, scale=scale), published(seen, gradient=scale), rtol=1e-9, atol=1e-9)


def test_mcg_is_the_published_loop():
    seen = Observation(MASK, y_of())
    expected = published(seen, replaces=True, gradient=0.4)
    torch.testing.assert_close(run("mcg", seen, scale=0.4), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("eta, eta_b", [(0.85, 1.0), (0.3, 0.7), (1.0, 0.0)])
def test_ddrm_is_the_published_step(noise, eta, eta_b):
    """In the singular vectors of A, coordinate by coordinate, three cases; A has a singular value that is 0."""
    A = torch.tensor([[1.0, 0.5, -0.2], [0.0, 0.8, 0.4], [1.0, 1.3, 0.2]], dtype=torch.float64)  # of rank 2
    y = y_of(3)
    U, s, Vt = torch.linalg.svd(A)
    score, x, draws = model(), states(5, 3), White(SEEDS).draws("model")
    for t, to in itertools.pairwise(TIMES):
        x_0, kappa = score.x0(x, t), PATH.kappa(to)
        z, D = draws(x) @ Vt.mT, x_0 @ Vt.mT
        eps = score.eps(x, t) @ Vt.mT
        new = torch.zeros_like(D)
        for i in range(3):
            if s[i] < 1e-12:
                new[:, i] = D[:, i] + math.sqrt(1 - eta**2) * kappa * eps[:, i] + eta * kappa * z[:, i]
            elif s[i] * kappa < noise:
                far = (y @ U[:, i] - s[i] * D[:, i]) / noise
                new[:, i] = D[:, i] + math.sqrt(1 - eta**2) * kappa * far + eta * kappa * z[:, i]
            else:
                std = math.sqrt(kappa**2 - (eta_b * noise / s[i]) ** 2)
                new[:, i] = (1 - eta_b) * D[:, i] + eta_b * (y @ U[:, i]) / s[i] + std * z[:, i]
        x = PATH.alpha(to) * new @ Vt
    found = run("ddrm", Observation(A, y, noise), "ddim", eta=eta, eta_b=eta_b)
    torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)


def test_singular_values_that_are_given():
    """Those of a mask, of a matrix, and given ones lead to the same."""
    rows = torch.eye(3, dtype=torch.float64)[MASK]
    given = Singular(torch.ones(2), lambda u: u, lambda x: x[:, MASK], lambda c: c @ rows)
    same = [
        Observation(MASK, y_of(), 0.2),
        Observation(rows, y_of(), 0.2),
        Observation(lambda x: x[:, MASK], y_of(), 0.2, svd=given),
    ]
    first, *others = [run("ddrm", seen, "ddim") for seen in same]
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-9)


def test_an_inverse_and_a_proximal_map_that_are_given():
    """They are asked, and give what conjugate gradients give."""
    A, asked = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), []
    inverse = torch.linalg.pinv(A)

    def pinv(u):
        asked.append("pinv")
        return u @ inverse.mT

    def prox(x, y, gamma):
        asked.append("prox")
        left = gamma * A.mT @ A + torch.eye(3, dtype=torch.float64)
        return torch.linalg.solve(left, (gamma * y @ A + x).mT).mT

    own, given = Observation(A, y_of(), 0.2), Observation(lambda x: x @ A.mT, y_of(), 0.2, pinv=pinv, prox=prox)
    for method in ("ddnm", "diffpir"):
        at = [Posterior(model(), seen, method).x0(states(4, 3), 0.4) for seen in (own, given)]
        torch.testing.assert_close(at[1], at[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run("replacement", given), run("replacement", own), rtol=1e-4, atol=1e-5)
    assert set(asked) == {"pinv", "prox"}


def test_dps_takes_maps_that_are_not_linear():
    """And latents: A after a decoder. The slope is that of the norm, by differences."""
    seen = Observation(lambda x: x.square().sum(1, keepdim=True), torch.tensor([2.0], dtype=torch.float64), 0.1, linear=False)
    score, t, s, x = model(), 0.6, 0.5, states(4, 3)
    weight = float(sf.plan("ddpm", PATH, grid=(t, s)).steps[0].stages[0].row.m[0])
    begun = Posterior(score, seen, "dps", scale=0.7).begin(sf.plan("ddpm", PATH, grid=(t, s))).drawing(White(0).draws("model"))
    shift = weight * (begun.x0(x, t) - score.x0(x, t))

    def norm(x):
        return (2.0 - score.x0(x, t).square().sum(1)).abs()

    for k in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[k]
        torch.testing.assert_close(shift[:, k], -0.7 * (norm(x + step) - norm(x - step)) / 2e-5, rtol=1e-6, atol=1e-8)

    mixing = torch.tensor([[1.0, 0.2, 0.0, 0.3], [0.0, 1.0, 0.5, 0.0], [0.4, 0.0, 1.0, 0.1]], dtype=torch.float64)
    mask, values = torch.tensor([True, False, False, True]), y_of()
    through = Observation(mask, values, 0.1).through(lambda z: torch.tanh(z @ mixing))
    plain = Observation(lambda z: torch.tanh(z @ mixing)[:, mask], values, 0.1, linear=False)
    torch.testing.assert_close(run("dps", through), run("dps", plain), rtol=1e-12, atol=1e-12)
    whole = torch.zeros(4, dtype=torch.float64).masked_scatter(mask, values)
    as_state = Observation(mask, whole, 0.1).through(lambda z: torch.tanh(z @ mixing))
    torch.testing.assert_close(run("dps", as_state), run("dps", plain), rtol=1e-12, atol=1e-12)
    twice = Observation(mask, values, 0.1).through(torch.tanh).through(lambda z: z @ mixing)
    torch.testing.assert_close(run("dps", twice), run("dps", plain), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="mmps needs a linear A"):
        Posterior(score, through)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.follows])
def test_a_sample_is_its_own(method):
    """Its draws, its norm, its y: alone as among others."""
    sampler, mask = "ddim" if method == "ddrm" else "ddpm", torch.tensor([True, False, True])
    y = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = sf.solve(Posterior(model(), Observation(mask, y, 0.2), method), states(5, 3), sampler, grid=TIMES, seed=SEEDS).x
    for i in (0, 3):
        alone = Posterior(model(), Observation(mask, y[i], 0.2), method)
        found = sf.solve(alone, states(5, 3)[i : i + 1], sampler, grid=TIMES, seed=[i]).x
        torch.testing.assert_close(found[0], whole[i], rtol=1e-9, atol=1e-9)
    every = Posterior(model(), Observation(mask, y, 0.2), method)
    again, other = (sf.solve(every, states(5, 3), sampler, grid=TIMES, seed=seed).x for seed in (SEEDS, range(1, 6)))
    assert torch.equal(again, whole) and not torch.allclose(other, whole)
    guided = sf.Thresholding(every, 1e6)
    torch.testing.assert_close(sf.solve(guided, states(5, 3), sampler, grid=TIMES, seed=SEEDS).x, whole)


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.follows])
def test_limits(method):
    """Nothing measured: the prior. All measured without noise: y."""
    sampler, options = ("ddim", {"eta": 0.0}) if method == "ddrm" else ("ddpm", {})
    prior = sf.solve(model(), states(5, 3), sampler, grid=TIMES, seed=SEEDS).x
    nothing = Observation(torch.zeros(2, 3, dtype=torch.float64), y_of(), 0.1)
    torch.testing.assert_close(run(method, nothing, sampler, **options), prior, rtol=1e-9, atol=1e-9)
    if method != "dps":
        every = run(method, Observation(torch.ones(3, dtype=torch.bool), y_of(3)), sampler, **options)
        torch.testing.assert_close(every, y_of(3).expand(5, 3), rtol=1e-9, atol=1e-9)


def schedule_jump(t_T, jump_length, jump_n_sample):
    """RePaint's published schedule of labels, from t_T − 1 to −1."""
    jumps = {j: jump_n_sample - 1 for j in range(0, t_T - jump_length, jump_length)}
    t, ts = t_T, []
    while t >= 1:
        t -= 1
        ts.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                ts.append(t)
    return [*ts, -1]


@pytest.mark.parametrize("steps, jump, resamplings", [(10, 1, 3), (12, 3, 2), (11, 4, 3), (5, 10, 2), (6, 1, 1)])
def test_repaint_goes_the_published_way(steps, jump, resamplings):
    """Label k of the code has k + 1 steps to go; a jump is one draw here, of the same law as its steps."""
    plan = sf.plan("repaint", PATH, steps=steps, jump=jump, resamplings=resamplings)
    places = {t: steps - k - 1 for k, t in enumerate(sf.plan("ddpm", PATH, steps=steps).times)}
    found = [places[t] for t in plan.times]
    expected, k = [], 0
    labels = schedule_jump(steps, jump, resamplings)
    while k < len(labels):
        rises = k + 1 < len(labels) and labels[k + 1] > labels[k]
        expected.append(labels[k])
        k += jump if rises else 1
    assert found == expected
    loops = (resamplings - 1) * jump * ((steps - 1) // jump) if steps > jump else 0
    assert plan.nfe == steps + loops
    assert sf.plan("repaint", PATH, steps=steps, resamplings=1).steps == sf.plan("ddpm", PATH, steps=steps).steps


def test_repaint_brings_the_posterior_nearer():
    """On one Gaussian the mean given the measured half: resampling more leaves less of the error of replacement."""
    root = torch.tensor([[1.0, 0.9, 0.2], [0.0, 0.5, 0.3], [0.0, 0.0, 0.6]], dtype=torch.float64)
    data = sf.Gaussian(torch.zeros(3), root.mT @ root)
    seen = Observation(torch.tensor([True, False, False]), torch.tensor([1.5]))
    exact, x = (
        data.posterior(Observation(seen.A, seen.y, 1e-4)),
        torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)),
    )
    off = []
    for resamplings in (1, 4, 16):
        sampler = sf.get_sampler("repaint", resamplings=resamplings)
        out = sf.solve(Posterior(data.model(PATH), seen, "replacement"), x.double(), sampler, steps=40, seed=0).x
        off.append(float((out.mean(0) - exact.mean).norm()))
    assert off[1] < 0.7 * off[0] and off[2] < 0.7 * off[1]


def test_refusals():
    seen = Observation(MASK, y_of(), 0.2)
    x = states(5, 3)
    for call, match in [
        (lambda: Posterior(model(), seen, "dps").x0(x, 0.5), "dps follows the steps of a run, and there is none"),
        (lambda: run("dps", seen, "heun"), "dps stands on steps of one evaluation and one row, and 'edm' has others"),
        (lambda: run("ddrm", seen, "ddpm"), "ddrm draws its own noise, and the rows of this run add some"),
        (
            lambda: run("ddrm", Observation(MASK, y_of(), torch.tensor([0.1, 0.2])), "ddim"),
            "ddrm needs a noise that is one number",
        ),
        (lambda: run("dps", seen, scale=-1.0), r"scale must be .*, got -1\.0"),
        (lambda: run("ddrm", seen, "ddim", eta=1.5), "eta must be a finite number ≥ 0 and ≤ 1, got 1.5"),
        (lambda: sf.solve(Posterior(model(), seen, "replacement"), x, "ddim", steps=4, parallel=2), "takes it apart"),
        (
            lambda: sf.sample(Posterior(model(), seen, "replacement"), (5, 3), "ddim", steps=4, noise=torch.zeros(1, 5, 3)),
            "noise holds the draws of the steps, and this model draws noise of its own: give a seed",
        ),
        (lambda: sf.get_sampler("repaint", base="unipc"), "base must step by one row from each state alone, .* got 'unipc'"),
        (lambda: sf.get_sampler("repaint", resamplings=0), "resamplings must be a whole number"),
        (
            lambda: Observation(lambda x: x[:, :5], torch.zeros(5), 0.1).singular((5000,)),
            "states have 5000 entries, and the singular vectors of A are computed up to 4096: give svd",
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    for call, match in [
        (lambda: Observation(MASK, y_of(), svd=(1, 2)), r"svd must be a Singular\(s, U_adjoint, V_adjoint, V\), got tuple"),
        (lambda: Observation(lambda x: x, y_of(), pinv=3), "pinv must be a callable, got int"),
        (lambda: seen.through("decoder"), "decode must be a callable from latents to states, got str"),
    ]:
        with pytest.raises(TypeError, match=match):
            call()
