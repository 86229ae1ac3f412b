"""Exponential integrators against the formulas and code that were published, row by row."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import LINEAR, PATHS, linear, mixture, states
from scipy.integrate import quad

import scoreflow as sf
from scoreflow._core.grid import CHAIN_GRIDS, GRIDS
from scoreflow._core.row import weights

PATH = PATHS["vp"]
EVERY = pytest.mark.parametrize(
    "path", [PATHS[n] for n in ("vp", "chain", "sub-vp", "ve")], ids=["vp", "chain", "sub-vp", "ve"]
)


@st.composite
def four_times(draw):
    """s below three times at which the network was evaluated, newest first; a non-uniform grid."""
    ratios = draw(st.lists(st.floats(0.4, 0.95), min_size=3, max_size=3))
    oldest = draw(st.floats(0.3, 0.98))
    middle, newest, s = (oldest * math.prod(ratios[: i + 1]) for i in range(3))
    return (newest, middle, oldest), s


def row(name, path, times, s, **options):
    """The row a sampler gives when these times are known; the last one if there are several."""
    sampler = sf.get_sampler(name, **options)
    out = sampler.rows_at(path, times[: sampler.history], s)
    return out[-1][1] if isinstance(out, list) else out


def same(a, b, digits=1e-9):
    size = max(map(abs, (a.x, *a.m, 1e-3)))
    assert (a.x, *a.m) == pytest.approx((b[0], *b[1]), rel=digits, abs=digits * size)


@given(st.floats(-3, 3), st.lists(st.floats(0.05, 2), min_size=3, max_size=3), st.floats(1e-6, 3), st.sampled_from([1.0, -1.0]))
def test_the_quadrature(lo, gaps, h, sign):
    """Against SciPy's adaptive quadrature, for polynomials against e^{±u}; the weights sum to the integral of the measure."""
    knots = [lo - sum(gaps[:k]) for k in range(4)]
    w = weights(lambda u: np.exp(sign * (u - lo)), knots, lo, lo + h)
    assert sum(w) == pytest.approx(sign * math.expm1(sign * h), rel=1e-12)
    basis = np.poly1d([1.0])
    for k in (0, 2, 3):
        basis *= np.poly1d([1, -(knots[k] - lo)]) / (knots[1] - knots[k])
    want, _ = quad(lambda u: float(np.exp(sign * u) * basis(u)), 0, h, epsabs=0, epsrel=1e-12)
    assert w[1] == pytest.approx(want, rel=1e-8, abs=1e-13 * max(map(abs, w)))


@EVERY
@given(at=four_times())
def test_10_2m_as_published(path, at):
    """10. 2M = UniP-2(bh2) = k-diffusion's dpmpp_2m, in its own letters (on x/α)."""
    times, s = at
    t, t_next, last = path.lam(times[0]), path.lam(s), path.lam(times[1])
    h, r = t_next - t, (t - last) / (t_next - t)
    x = path.kappa(s) / path.kappa(times[0])
    m = (-math.expm1(-h) * (1 + 1 / (2 * r)), math.expm1(-h) / (2 * r))
    ours = row("dpm-solver++", path, times, s)
    same(ours, (x * path.alpha(s) / path.alpha(times[0]), [w * path.alpha(s) for w in m]))
    same(row("unip", path, times, s, order=2), ours)
    assert row("unip", path, times, s, order=2, B="bh1").m != pytest.approx(ours.m, rel=1e-9)


def third_order(path, times, s, factor):
    """3M as in the authors' repository, its D2 multiplied by `factor`, as weights of (D_0, D_1, D_2)."""
    lam = [path.lam(u) for u in times]
    h = path.lam(s) - lam[0]
    r0, r1 = (lam[0] - lam[1]) / h, (lam[1] - lam[2]) / h
    m0, m1, m2 = np.eye(3)
    d1_0, d1_1 = (m0 - m1) / r0, (m1 - m2) / r1
    d1 = d1_0 + (r0 / (r0 + r1)) * (d1_0 - d1_1)
    d2 = factor * (1 / (r0 + r1)) * (d1_0 - d1_1)
    phi = math.expm1(-h)
    a = path.alpha(s)
    m = -a * phi * m0 + a * (phi / h + 1) * d1 - a * ((phi + h) / h**2 - 0.5) * d2
    return path.sigma(s) / path.sigma(times[0]), m.tolist()


@EVERY
@given(at=four_times())
def test_11_to_13_the_interpolatory_ones(path, at):
    """11. 2M-heun = exponential AB2. 12. UniP-3 = AB3 whatever B. 13. 3M with D2 doubled = AB3; as published not."""
    times, s = at
    t, h = times[0], path.lam(s) - path.lam(times[0])
    r = (path.lam(t) - path.lam(times[1])) / h
    phi, a = math.expm1(-h), path.alpha(s)
    heun = path.sigma(s) / path.sigma(t), [-a * phi + a * (phi / h + 1) / r, -a * (phi / h + 1) / r]
    same(row("dpm-solver++", path, times, s, method="2m-heun"), heun, 1e-7)
    same(row("exponential-ab", path, times, s, order=2, form="data"), heun, 1e-7)
    ab3 = row("exponential-ab", path, times, s, order=3, form="data")
    for B in ("bh1", "bh2"):
        same(row("unip", path, times, s, order=3, B=B), ab3)
    same(row("dpm-solver++", path, times, s, method="3m"), ab3)
    same(ab3, third_order(path, times, s, 2.0), 1e-6)
    published = third_order(path, times, s, 1.0)
    same(row("dpm-solver++", path, times, s, method="3m-published"), published, 1e-6)


@EVERY
@given(at=four_times())
def test_14_to_17_second_order_singlestep(path, at):
    """14. DPM-Solver-2 with r₁ = 1 is EDM's Heun. 15. With ½, k-diffusion's dpm_2. 16. 2S(½) = dpmpp_2s. 17. The two differ."""
    t, s = at[0][0], at[1]
    data, model, x = mixture(), mixture().model(path), states(3, 3) * path.prior_std(t)
    k_t, k_s = path.kappa(t), path.kappa(s)

    def d(y, kappa):
        u = path.time(-math.log(kappa))
        x_u = y * path.alpha(u)
        return (y - data.denoise(x_u, path.alpha(u), path.sigma(u))) / kappa

    y = x / path.alpha(t)
    euler = y + (k_s - k_t) * d(y, k_t)
    heun = y + (k_s - k_t) * (d(y, k_t) + d(euler, k_s)) / 2
    ours = sf.solve(model, x, "dpm-solver", r1=1.0, grid=[t, s]).x / path.alpha(s)
    torch.testing.assert_close(ours, heun, rtol=1e-8, atol=1e-8)
    mid = math.exp((math.log(k_t) + math.log(k_s)) / 2)
    dpm_2 = y + (k_s - k_t) * d(y + (mid - k_t) * d(y, k_t), mid)
    ours = sf.solve(model, x, "dpm-solver", grid=[t, s]).x / path.alpha(s)
    torch.testing.assert_close(ours, dpm_2, rtol=1e-8, atol=1e-8)
    h = math.log(k_t / k_s)
    half = (mid / k_t) * y - math.expm1(-h / 2) * (y - k_t * d(y, k_t))
    dpmpp_2s = (k_s / k_t) * y - math.expm1(-h) * (half - mid * d(half, mid))
    other = sf.solve(model, x, "dpm-solver++", method="2s", grid=[t, s]).x / path.alpha(s)
    torch.testing.assert_close(other, dpmpp_2s, rtol=1e-8, atol=1e-8)
    assert h < 0.3 or float((other - ours).abs().max()) > 1e-9


@EVERY
@given(at=four_times())
def test_singlestep_three_as_published(path, at):
    """DPM-Solver-3 and DPM-Solver++(3S), as the papers print them, r₁ = ⅓, r₂ = ⅔."""
    t, s = at[0][0], at[1]
    h = path.lam(s) - path.lam(t)
    s1, s2 = (path.time(path.lam(t) + r * h) for r in (1 / 3, 2 / 3))
    for name, options, scale, base, sign in (
        ("dpm-solver", {"order": 3}, path.sigma, path.alpha, 1),
        ("dpm-solver++", {"method": "3s"}, path.alpha, path.sigma, -1),
    ):
        sampler = sf.get_sampler(name, **options)
        (a, one), (b, two), (c, three) = sampler.rows_at(path, (t,), s)
        assert (a, b, c) == pytest.approx((s1, s2, s))
        e1, e2, e = (math.expm1(sign * r * h) for r in (1 / 3, 2 / 3, 1))
        same(one, (base(s1) / base(t), [-scale(s1) * e1]))
        w = -sign * scale(s2) * 2 * (e2 / (sign * 2 / 3 * h) - 1) * sign
        same(two, (base(s2) / base(t), [w, -scale(s2) * e2 - w]), 1e-6)
        w = -sign * scale(s) * 1.5 * (e / (sign * h) - 1) * sign
        same(three, (base(s) / base(t), [w, 0.0, -scale(s) * e - w]), 1e-6)


@EVERY
@given(at=four_times())
def test_18_rho_deis_is_linear_multistep(path, at):
    """18. ρAB-DEIS of degree k−1 is k-diffusion's LMS of order k, whose coefficients are integrals of ℓ_j over σ."""
    times, s = at
    kappas = [path.kappa(u) for u in times]

    def coefficient(j):
        def basis(tau):
            return math.prod((tau - k) / (kappas[j] - k) for i, k in enumerate(kappas) if i != j)

        return quad(basis, kappas[0], path.kappa(s), epsrel=1e-10)[0]

    want = [path.alpha(s) * coefficient(j) for j in range(3)]
    same(row("deis", path, times, s, degree=2, variable="rho"), (path.alpha(s) / path.alpha(times[0]), want), 1e-7)


def test_19_ipndm_on_uniform_kappa():
    """19. On nodes even in κ, ρAB-DEIS of degree 3 has the Adams–Bashforth weights (55, −59, 37, −9)/24 of iPNDM."""
    path = PATHS["ve"]
    times = [path.time(-math.log(k)) for k in (4.0, 5.0, 6.0, 7.0, 3.0)]
    ours = row("deis", path, tuple(times[:4]), times[4])
    ours_rho = row("deis", path, tuple(times[:4]), times[4], variable="rho")
    assert ours_rho.m == pytest.approx([-55 / 24, 59 / 24, -37 / 24, 9 / 24], rel=1e-9)
    assert ours.m != pytest.approx(ours_rho.m, rel=1e-3)


@given(at=four_times())
def test_deis_in_t_is_its_integral(at):
    """tAB-DEIS: α_s ∫ ℓ_j(τ) dκ(τ), by adaptive quadrature over t."""
    times, s = at

    def coefficient(j):
        def density(tau):
            basis = math.prod((tau - u) / (times[j] - u) for i, u in enumerate(times) if i != j)
            return -basis * PATH.kappa(tau) * PATH.lam_slope(tau)

        return quad(density, times[0], s, epsrel=1e-10)[0]

    want = [PATH.alpha(s) * coefficient(j) for j in range(3)]
    same(row("deis", PATH, times, s, degree=2), (PATH.alpha(s) / PATH.alpha(times[0]), want), 1e-7)


def unified(path, times, s, B, order, corrector):
    """The update of the authors' UniPC in data form, as weights of (D_s if a corrector, D_0, D_1, …)."""
    corrector = int(corrector)
    lam_t, h = path.lam(times[0]), path.lam(s) - path.lam(times[0])
    hh = -h
    known = len(times)
    words = np.eye(known + corrector)
    new, m0 = words[0], words[corrector]
    rks = [(path.lam(u) - lam_t) / h for u in times[1:order]]
    d1s = [(words[corrector + k] - m0) / r for k, r in enumerate(rks, start=1)]
    b_h = hh if B == "bh1" else math.expm1(hh)
    rs = np.array([*rks, 1.0])
    phi_k, factorial, b, R = math.expm1(hh) / hh - 1, 1, [], []
    for i in range(1, order + 1):
        R.append(rs ** (i - 1))
        b.append(phi_k * factorial / b_h)
        factorial *= i + 1
        phi_k = phi_k / hh - 1 / factorial
    R, b = np.stack(R), np.array(b)
    x, base = path.sigma(s) / path.sigma(times[0]), -path.alpha(s) * math.expm1(hh) * m0
    if corrector:
        rho = np.array([0.5]) if order == 1 else np.linalg.solve(R, b)
        update = sum((r * d for r, d in zip(rho[:-1], d1s, strict=True)), np.zeros(known + corrector)) + rho[-1] * (new - m0)
    else:
        rho = np.array([0.5]) if order == 2 else np.linalg.solve(R[:-1, :-1], b[:-1])
        update = sum((r * d for r, d in zip(rho, d1s, strict=True)), np.zeros(known))
    return x, (base - path.alpha(s) * b_h * update).tolist()


@EVERY
@pytest.mark.parametrize("B", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@given(at=four_times())
def test_unipc_as_published(path, B, order, at):
    """Predictor and corrector as the authors solve for them, orders 1 to 3."""
    times, s = at[0][:order], at[1]
    sampler = sf.get_sampler("unipc", order=order, B=B)
    (_, predict), (_, correct) = sampler.rows_at(path, times, s)
    same(correct, unified(path, times, s, B, order, corrector=True), 1e-5)
    if order > 1:
        same(predict, unified(path, times, s, B, order, corrector=False), 1e-5)


def test_unipc_asks_n_times():
    """n steps to data take n evaluations; so they do for multistep rows; dpm-solver-3 takes 3 a step, and 1 to land."""
    for name, options, count in (
        ("unipc", {}, 10),
        ("dpm-solver++", {}, 10),
        ("deis", {}, 10),
        ("dpm-solver", {"order": 3}, 28),
    ):
        assert sf.solve(mixture().model(PATH), states(2, 3), name, steps=10, **options).nfe == count


@pytest.mark.parametrize("case", [("exponential-ab", {}), ("deis", {"variable": "rho"})])
def test_noise_form_reaches_zero_at_full_order(case):
    """On nodes that shrink toward 0 with the rest the run to σ = 0 has its third order or more."""
    name, options = case
    model, x = mixture().model(PATH), states(64, 3)
    exact = sf.solve(model, x, "scipy", method="DOP853", rtol=1e-10, atol=1e-10, grid=[0.9, 1e-9]).x
    errors = []
    for n in (40, 80):
        got = sf.solve(model, x, name, grid=sf.grid(PATH, n, "ode", exact=True, start=0.9), **options).x
        errors.append((got - exact).norm(dim=1).median().item())
    assert errors[1] < errors[0] / 6, errors


@pytest.mark.parametrize("name", ["exponential-ab-4", "deis", "lms-3", "ipndm-3"])
def test_a_last_step_longer_than_the_one_before_is_the_denoised_state(name):
    """In κ: from 0.2 after 0.5 it keeps its order, after 0.3 it is x̂_0."""
    path = sf.VPSDE()
    for before, longer in ((0.5, False), (0.3, True)):
        times = [path.time(-math.log(k)) for k in (3.0, 1.5, before, 0.2)]
        row = sf.get_sampler(name).plan(path, (*times, 0.0)).steps[-1].stages[-1].row
        assert (len(row.m) == 1) is longer
        if longer:
            assert (row.x, *row.m) == pytest.approx((1 / path.alpha(times[-1]), -0.2))


@pytest.mark.parametrize("case", LINEAR)
def test_no_last_row_multiplies_what_the_network_errs(case):
    """On every grid and budget the weights of the row to σ = 0 grow to no more than 4 times their sum, however long that step
    is."""
    sampler, path = linear(case), sf.VPSDE(10.0, 10.0)
    for grid, steps in product((name for name in GRIDS if name not in CHAIN_GRIDS), (2, 5, 40, 200)):
        m = sampler.plan(path, sf.grid(path, steps, grid)[-6:]).steps[-1].stages[-1].row.m
        assert sum(map(abs, m)) <= 4 * abs(sum(m)) + 1e-12


@pytest.mark.parametrize("name", ["cosine", "flow"])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("dpm-solver++", {}),
        ("dpm-solver++", {"method": "3m"}),
        ("unipc", {}),
        ("unipc", {"order": 1}),
        ("exponential-ab", {"form": "data"}),
    ],
)
def test_data_form_starts_where_alpha_is_zero(name, sampler, options):
    """From α = 0 the first step is the bridge, later ones leave that word out of their polynomial; runs end on data."""
    data = mixture()
    sol = sf.solve(data.model(PATHS[name]), states(32, 3), sampler, steps=40, **options)
    assert bool(sol.x.isfinite().all()) and float(data.log_prob(sol.x).median()) > -4
    first = sol.plan.steps[0].stages[-1].row
    assert first.m[-1] == pytest.approx(sf.get_sampler("ddim").rows_at(PATHS[name], (1.0,), sol.times[1]).m[0])


def test_where_noise_form_cannot_start():
    """From α = 0 noise form and singlestep methods refuse, and say what to do."""
    for name, options, match in (
        ("exponential-ab", {}, "noise form begins where alpha > 0.*form='data'"),
        ("deis", {}, "integral over κ begins where alpha > 0"),
        ("dpm-solver++", {"method": "2s"}, "singlestep method begins where alpha > 0"),
    ):
        with pytest.raises(ValueError, match=match):
            sf.solve(mixture().model(sf.Flow()), states(2, 3), name, steps=4, **options)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("exponential-ab", {"order": 5}, "order must be a whole number from 1 to 4, got 5"),
        ("exponential-ab", {"form": "eps"}, "form must be one of noise, data"),
        ("deis", {"degree": 4}, "degree must be a whole number from 0 to 3, got 4"),
        ("deis", {"variable": "lambda"}, "variable must be one of t, rho"),
        ("unipc", {"B": "bh3"}, "B must be one of bh1, bh2"),
        ("dpm-solver", {"order": 4}, "order must be a whole number from 1 to 3"),
        ("dpm-solver", {"order": 1, "r1": 0.5}, "r1 belongs to order 2 and above"),
        ("dpm-solver", {"r1": 1.5}, "r1 must be a finite number > 0 and ≤ 1, got 1.5"),
        ("dpm-solver", {"order": 3, "r1": 0.7}, "r1 must lie below r2"),
        ("dpm-solver", {"order": 3, "r2": 0.3}, "r1 must lie below r2"),
        ("dpm-solver++", {"method": "4m"}, "method must be one of 1, 2m"),
        ("dpm-solver++", {"r1": 0.5}, "r1=0.5.*belong to the methods 2s and 3s"),
    ],
)
def test_options_that_cannot_be(name, options, match):
    with pytest.raises(ValueError, match=match):
        sf.get_sampler(name, **options)
