"""The identities between samplers, numbered as in docs/identities.md; published formulas stand here as oracles.

"Exact" is equality to rounding for random times, states and outputs, on every path.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import LINEAR, PATHS, ROWS, SAME, linear, mixture, states
from test_chain import betas

import scoreflow as sf

EVERY = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
SEED = st.integers(0, 2**32)


@st.composite
def steps(draw):
    """t > s, both inside."""
    t = draw(st.floats(0.02, 0.98))
    return t, t * draw(st.floats(0.05, 0.95))


def step(case, path, t, s, x, x_0, z):
    """x_s by our sampler, with x_0 for the denoiser's answer."""
    sampler = linear(case) if isinstance(case, str) else case
    model = sf.ScoreModel(lambda x, u: x_0.expand_as(x), path, prediction="x0")
    return sf.solve(model, x, sampler, grid=[t, s], noise=z[None] if sampler.stochastic else None).x


def ours(sampler, path, seed, times):
    """(what the sampler gives, x_t, x̂_0, ε) for one step with random data."""
    x, x_0, z = (states(2, 3, seed=seed + k) for k in range(3))
    return step(sampler, path, *times, x, x_0, z), x, x_0, z


def close(a, b, digits=1e-11):
    torch.testing.assert_close(a, b, rtol=digits, atol=digits)


@EVERY
@given(times=steps(), seed=SEED)
def test_1_ddim_is_the_first_exponential_step(path, times, seed):
    """1. DDIM(0) = DPM-Solver-1 (noise form) = DPM-Solver++-1 (data form), as those papers print them."""
    t, s = times
    h = path.lam(s) - path.lam(t)
    x_s, x, x_0, _ = ours(sf.get_sampler("ddim"), path, seed, times)
    eps = (x - path.alpha(t) * x_0) / path.sigma(t)
    close(x_s, path.sigma(s) / path.sigma(t) * x - path.alpha(s) * math.expm1(-h) * x_0)
    close(x_s, path.alpha(s) / path.alpha(t) * x - path.sigma(s) * math.expm1(h) * eps, 1e-9)


@EVERY
@given(times=steps(), seed=SEED)
def test_2_ddim_is_edms_euler(path, times, seed):
    """2. After y = x/α, DDIM(0) is Euler in κ: y_s = y_t + (κ_s − κ_t) ε̂."""
    t, s = times
    x_s, x, x_0, _ = ours(sf.get_sampler("ddim"), path, seed, times)
    eps = (x - path.alpha(t) * x_0) / path.sigma(t)
    close(x_s / path.alpha(s), x / path.alpha(t) + (path.kappa(s) - path.kappa(t)) * eps, 1e-9)


@pytest.mark.parametrize("name", ["vp", "chain", "sub-vp", "ve"])
@given(times=steps(), seed=SEED)
def test_3_ddim_is_euler_on_the_flow(name, times, seed):
    """3. At nodes of equal SNR, DDIM(0) on any path is Euler on rectified flow's velocity ε̂ − x̂_0, after scaling."""
    path, flow = PATHS[name], sf.Flow()
    t, s = times
    a, b = (flow.time(path.lam(u)) for u in times)
    x_s, x, x_0, _ = ours(sf.get_sampler("ddim"), path, seed, times)
    y = x * flow.alpha(a) / path.alpha(t)
    eps = (y - (1 - a) * x_0) / a
    close(x_s * flow.alpha(b) / path.alpha(s), y + (b - a) * (eps - x_0), 1e-9)


@pytest.mark.parametrize("name", ["vp", "cosine", "chain"])
@given(times=steps(), seed=SEED)
def test_4_ddim_is_a_rotation(name, times, seed):
    """4. On VP, with θ = arctan κ and Δθ = θ_t − θ_s: x_s = x cos Δθ − v sin Δθ, v = α ε̂ − σ x̂_0."""
    path, (t, s) = PATHS[name], times
    x_s, x, x_0, _ = ours(sf.get_sampler("ddim"), path, seed, times)
    v = path.alpha(t) * (x - path.alpha(t) * x_0) / path.sigma(t) - path.sigma(t) * x_0
    turn = math.atan(path.kappa(t)) - math.atan(path.kappa(s))
    close(x_s, x * math.cos(turn) - v * math.sin(turn), 1e-10)


@pytest.mark.parametrize(
    "case", ["ddim", "ddpm", "ddim eta=0.5", *[f"pf-ode {m} lambda" for m in ("euler", "midpoint", "heun", "rk4")]]
)
def test_5_what_sees_only_the_snr(case):
    """5. On two paths, at nodes of equal λ, these samplers give the same x/α; Runge–Kutta in t does not."""
    data, x = mixture(), states(8, 3)
    lam = torch.linspace(-2, 3, 9, dtype=torch.float64)
    draws = states(8, 8, 3, seed=1)

    def run(case, path):
        times = path.time(lam)
        sampler = linear(case)
        noise = draws[: sampler.plan(path, tuple(times.tolist())).noise_count] if sampler.stochastic else None
        x_T = x * path.alpha(times[0].item())
        return sf.solve(data.model(path), x_T, sampler, grid=times, noise=noise).x / path.alpha(times[-1].item())

    close(run(case, sf.VPSDE()), run(case, sf.VPSDE.cosine()), 1e-9)
    close(run(case, sf.VPSDE()), run(case, sf.VESDE(0.01, 80.0)), 1e-9)
    t_form = [run("pf-ode heun t", path) for path in (sf.VPSDE(), sf.VPSDE.cosine())]
    assert float((t_form[0] - t_form[1]).abs().max()) > 1e-3


@EVERY
@given(times=steps(), seed=SEED)
def test_6_ddpm_in_six_ways(path, times, seed):
    """6. DDPM(β̃) = DDIM(1) = q(x_s|x_t,x̂_0) = SDE-DPM-Solver++-1 = Euler-ancestral(1) = ER-SDE-1(φ=κ²), same noise."""
    t, s = times
    x_s, x, x_0, z = ours(sf.get_sampler("ddpm"), path, seed, times)
    close(x_s, step("ddim eta=1", path, t, s, x, x_0, z), 1e-13)
    h, sigma_s, alpha_s = path.lam(s) - path.lam(t), path.sigma(s), path.alpha(s)
    spread = sigma_s * math.sqrt(-math.expm1(-2 * h)) * z
    close(x_s, sigma_s / path.sigma(t) * math.exp(-h) * x - alpha_s * math.expm1(-2 * h) * x_0 + spread)
    k_t, k_s = path.kappa(t), path.kappa(s)
    up = math.sqrt(k_s**2 * (k_t**2 - k_s**2) / k_t**2)  # k-diffusion's get_ancestral_step
    down, y = math.sqrt(k_s**2 - up**2), x / path.alpha(t)
    close(x_s / alpha_s, y + (y - x_0) / k_t * (down - k_t) + up * z, 1e-9)
    ratio = k_s**2 / k_t**2
    close(x_s / alpha_s, ratio * y + (1 - ratio) * x_0 + math.sqrt(k_s**2 - k_t**2 * ratio**2) * z, 1e-9)


@EVERY
@given(times=steps(), seed=SEED, tau=st.floats(0.05, 1.0))
def test_7_and_8_sa_solver_and_er_sde_are_ddim(path, times, seed, tau):
    """7, 8. SA-P1(τ) = ER-SDE-1(φ = κ^{1+τ²}) = DDIM(η), η² = (1−e^{−2τ²h})/(1−e^{−2h})."""
    t, s = times
    h = path.lam(s) - path.lam(t)
    eta = math.sqrt(math.expm1(-2 * tau**2 * h) / math.expm1(-2 * h))
    x_s, x, x_0, z = ours(sf.get_sampler("ddim", eta=eta), path, seed, times)
    spread = path.sigma(s) * math.sqrt(-math.expm1(-2 * tau**2 * h)) * z
    decay = path.sigma(s) / path.sigma(t) * math.exp(-(tau**2) * h)
    close(x_s, decay * x - path.alpha(s) * math.expm1(-(1 + tau**2) * h) * x_0 + spread)
    k_t, k_s = path.kappa(t), path.kappa(s)
    ratio = (k_s / k_t) ** (1 + tau**2)
    y = ratio * x / path.alpha(t) + (1 - ratio) * x_0 + math.sqrt(k_s**2 - k_t**2 * ratio**2) * z
    close(x_s / path.alpha(s), y, 1e-8)


@EVERY
@given(times=steps(), seed=SEED, eta=st.floats(0.0, 1.0))
def test_9_euler_ancestral_is_ddim(path, times, seed, eta):
    """9. k-diffusion's Euler-ancestral(η) = DDIM(η)."""
    t, s = times
    assume(eta == 0 or eta > 1e-3)
    sampler = sf.get_sampler("ddim", eta=eta)
    x, x_0, z = (states(2, 3, seed=seed + k) for k in range(3))
    x_s = step(sampler, path, t, s, x, x_0, z)
    k_t, k_s, y = path.kappa(t), path.kappa(s), x / path.alpha(t)
    up = eta * math.sqrt(k_s**2 * (k_t**2 - k_s**2) / k_t**2)
    down = math.sqrt(k_s**2 - up**2)
    close(x_s / path.alpha(s), y + (y - x_0) / k_t * (down - k_t) + up * z, 1e-9)


@EVERY
@pytest.mark.parametrize("case", [c for c in LINEAR if linear(c).marginal])
def test_21_a_point_is_reached_in_one_step(path, case):
    """21. When the data are one point, rows that carry the marginal are exact in one step, from anywhere."""
    point = states(1, 3)
    start = 1.0 if path.alpha(1.0) > 0 or linear(case).prediction == "x0" else 0.99  # noise form needs α > 0
    sol = sf.solve(sf.Empirical(point).model(path), states(4, 3, seed=1), linear(case), steps=1, seed=0, start=start)
    close(sol.x, point.expand(4, 3), 1e-12)


@EVERY
def test_22_the_ode_on_a_gaussian(path):
    """22. The probability-flow ODE of N(μ, Σ) has the closed form of `Gaussian.flow`; rk4 in λ converges to it."""
    spread = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.8, -0.1], [0.0, -0.1, 0.3]], dtype=torch.float64)
    data, x = sf.Gaussian(torch.tensor([0.3, -1.0, 0.5]), spread), states(5, 3)
    sol = sf.solve(
        data.model(path), x, "pf-ode", method="rk4", variable="lambda", grid="logsnr", start=0.97, stop=0.02, steps=100
    )
    close(sol.x, data.flow(path, x, 0.97, 0.02), 3e-6)


@pytest.mark.parametrize("name", ["vp", "chain"])
def test_23_standard_normal_data(name):
    """23. N(0, I) on VP: the ODE stands still; DDIM gives x Π cos Δθ_i; the DDPM mean is a known product."""
    path, x = PATHS[name], states(4, 3)
    model = sf.Gaussian(torch.zeros(3)).model(path)
    close(sf.solve(model, x, "pf-ode", method="dopri5", rtol=1e-9, atol=1e-9, grid=[1.0, 0.001]).x, x, 1e-7)
    sol = sf.solve(model, x, "ddim", steps=10)
    angles = np.arctan([path.kappa(t) for t in sol.times])
    close(sol.x, x * np.prod(np.cos(np.diff(angles))), 1e-12)
    # Ho's posterior mean of every stride with x̂_0 = √ᾱ_t x.
    silent = sf.solve(model, x, "ddpm", steps=10, noise=torch.zeros(9, 4, 3))
    factor = 1.0
    for t, s in zip(silent.times, silent.times[1:], strict=False):
        stay = (path.alpha(t) / path.alpha(s)) ** 2  # α_t of the stride's chain
        bar_s, bar_t = path.alpha(s) ** 2, path.alpha(t) ** 2
        factor *= (math.sqrt(bar_s) * (1 - stay) * math.sqrt(bar_t) + math.sqrt(stay) * (1 - bar_s)) / (1 - bar_t)
    close(silent.x, x * factor, 1e-12)


@given(times=steps())
def test_26_euler_maruyama_and_ddpm(times):
    """26, 27. One step of β: EM and reverse diffusion differ from DDPM(β) by O(β²) in the mean; noise by O(β^{3/2})."""
    path, t = sf.VPSDE(), max(times[0], 0.2)
    misses = []
    for k in range(4):
        s = t - 0.01 / 2**k
        ddpm = path.bridge(t, s, 1.0).through(*path.convert("eps", "x0", t))
        beta = path.forward(s, t).z
        for name in ("euler-maruyama", "reverse-diffusion"):
            ((_, row),) = sf.get_sampler(name).plan(path, (t, s)).steps[0].stages
            h = t - s
            misses.append(
                [(ddpm.x - row.x) / h**2, (ddpm.m[0] - row.m[0]) / h**2, (beta - row.z) / h**1.5, (beta - ddpm.z) / h**1.5]
            )
    for which in (0, 1):
        scaled = np.array(misses[which::2])
        # (ddpm row − row)/h² tends to a constant: halving h changes it by a share that itself halves, but where two
        # orders of that change cancel.
        change = np.abs(np.diff(scaled, axis=0))
        small = 1e-4 * (1 + np.abs(scaled[1:-1]))
        assert bool((change[1:] <= 0.7 * change[:-1] + small).all())
        assert bool((np.abs(scaled) < 1e4).all())
    assert abs(misses[-2][0]) > 1e-3  # the constant is not zero


@given(betas(longest=40))
def test_27_reverse_diffusion_as_published(beta):
    """27. On a VP chain the row is `(2 − √(1−β)) x + β ∇log p + √β z`, with the chain's β (Song et al., Algorithm 3)."""
    chain, path = sf.DDPMChain(beta), sf.VPSDE.from_betas(beta)
    plan = sf.plan("reverse-diffusion", path, steps=chain.T)
    for i, step in zip(range(chain.T, 1, -1), plan.steps, strict=False):
        b, row = chain.beta[i - 1].item(), step.stages[0].row
        digits = 1e-11 + 1e-15 * (1 + abs(path.lam(step.t))) / b
        assert row.x == pytest.approx(2 - math.sqrt(1 - b), rel=1e-11)
        assert row.m[0] == pytest.approx(-b / path.sigma(step.t), rel=digits)
        assert row.z == pytest.approx(math.sqrt(b), rel=digits)


@given(st.floats(1e-4, 0.5), st.floats(0.05, 0.95), SEED)
def test_27_ddpm_mean_by_the_score(beta, bar, seed):
    """27. On VP the DDPM mean is (x + β ∇log p)/√(1−β)."""
    chain = sf.DDPMChain([1 - bar, beta])
    x, eps = states(3, 2, seed=seed), states(3, 2, seed=seed + 1)
    score = -eps / math.sqrt(1 - bar * (1 - beta))
    close(chain.mean_from_eps(x, eps, 2), (x + beta * score) / math.sqrt(1 - beta), 1e-12)


@EVERY
def test_28_euler_in_t_and_ddim(path):
    """28. Euler in t on the ODE and DDIM differ by O(Δ²) in one step; on rectified flow not at all."""
    data, x, t = mixture(), states(4, 3), 0.6
    misses = []
    for k in range(4):
        s = t - 0.0008 / 2**k
        a, b = (sf.solve(data.model(path), x, linear(case), grid=[t, s]).x for case in ("ddim", "pf-ode euler t"))
        misses.append(float((a - b).abs().max()))
    if isinstance(path, sf.Flow):
        assert max(misses) < 1e-14
        return
    ratios = np.array(misses[:-1]) / np.array(misses[1:])
    assert bool(((ratios > 3.6) & (ratios < 4.4)).all()), ratios


@EVERY
def test_29_tweedie(path):
    """29. x̂_0 = (x + σ² ∇log p_t)/α with the gradient taken of log p_t by autograd."""
    data, t = mixture(), 0.4
    x = states(6, 3).requires_grad_()
    (score,) = torch.autograd.grad(data.log_prob(x, path.alpha(t), path.sigma(t)).sum(), x)
    model = data.model(path)
    close(model.score(x, t), score, 1e-10)
    close(model.x0(x, t), (x + path.sigma(t) ** 2 * score) / path.alpha(t), 1e-10)


@EVERY
@pytest.mark.parametrize("case", LINEAR)
def test_30_symmetries(path, case):
    """30. Turning or shifting the data, the prior and the draws turns and shifts the sample (shifts: marginal rows)."""
    data, x, sampler = mixture(), states(4, 3), linear(case)
    turn = torch.linalg.qr(states(3, 3, seed=5)).Q
    grid = [0.9, 0.5, 0.2, 0.01]
    count = sf.plan(sampler, path, grid=grid).noise_count
    noise = states(count, 4, 3, seed=6) if count else None
    turned = sf.GaussianMixture(data.log_weights.exp(), data.means @ turn, 0.09)
    plain = sf.solve(data.model(path), x, sampler, grid=grid, noise=noise).x
    rotated = sf.solve(turned.model(path), x @ turn, sampler, grid=grid, noise=None if noise is None else noise @ turn).x
    close(rotated, plain @ turn, 1e-9)
    if sampler.marginal:
        shifted = sf.GaussianMixture(data.log_weights.exp(), data.means + 3.0, 0.09)
        moved = sf.solve(shifted.model(path), x + 3.0 * path.alpha(0.9), sampler, grid=grid, noise=noise).x
        close(moved, plain + 3.0 * path.alpha(0.01), 1e-9)


class Scaled(sf.GaussianPath):
    """A path whose σ is a times another's: that of data scaled by a."""

    def __init__(self, path, a):
        self.path, self.a = path, a

    def log_alpha(self, t):
        return self.path.log_alpha(t)

    def log_sigma(self, t):
        return self.path.log_sigma(t) + math.log(self.a)


@pytest.mark.parametrize("case", [c for c in ROWS if not c.startswith(("analytic-dpm", "er-sde", "reab"))])  # v, and κ itself
def test_30_scaling_the_data(case):
    """30. Data scaled by a, on the path with σ scaled by a, give samples scaled by a; and any path of two curves runs."""
    a, data, x, sampler, grid = 2.5, mixture(), states(4, 3), linear(case), [0.9, 0.5, 0.2, 0.01]
    count = sf.plan(sampler, sf.VPSDE(), grid=grid).noise_count
    noise = states(count, 4, 3, seed=6) if count else None
    scaled = sf.GaussianMixture(data.log_weights.exp(), data.means * a, 0.09 * a**2)
    plain = sf.solve(data.model(sf.VPSDE()), x, sampler, grid=grid, noise=noise).x
    close(sf.solve(scaled.model(Scaled(sf.VPSDE(), a)), a * x, sampler, grid=grid, noise=noise).x, a * plain, 1e-9)


@given(scale=st.floats(-1, 5), seed=SEED)
def test_36_guidance_is_linear(scale, seed):
    """36. Guiding ε, the score or x̂_0 by (1−w)·unconditional + w·conditional is one thing, w = 1 conditional; rows commute."""
    path, t, s = sf.VPSDE(), 0.5, 0.3
    one, two, x = mixture(seed=1).model(path), mixture(seed=2).model(path), states(3, 3, seed=seed)

    def guided(want):
        net = lambda x, u: (1 - scale) * one(x, u[0].item(), want) + scale * two(x, u[0].item(), want)  # noqa: E731
        return sf.ScoreModel(net, path, prediction=want)

    whole = [sf.solve(guided(want), x, "ddim", grid=[t, s]).x for want in ("eps", "score", "x0", "v", "flow")]
    for other in whole[1:]:
        close(other, whole[0], 1e-9)
    parts = [sf.solve(model, x, "ddim", grid=[t, s]).x for model in (one, two)]
    close(whole[0], (1 - scale) * parts[0] + scale * parts[1], 1e-9)


@pytest.mark.parametrize("case", SAME)
def test_names_of_one_sampler(case):
    """Rows that coincide, such as `sra1` and `sra` or `deis-tab-0` and the first-order step, do so on every path."""
    for path in PATHS.values():
        times = (*sf.grid(path, 6, "uniform", start=0.9, stop=0.1), 0.0)
        assert linear(case).plan(path, times).steps == linear(SAME[case]).plan(path, times).steps
