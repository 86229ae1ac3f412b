"""Multistep methods in κ, EDM, RES and Richardson extrapolation against the formulas and loops that were published."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import PATHS, mixture, states

import scoreflow as sf

PATH, DATA, X = PATHS["vp"], mixture(), states(8, 3)
EVERY = pytest.mark.parametrize(
    "path", [PATHS[n] for n in ("vp", "chain", "sub-vp", "ve")], ids=["vp", "chain", "sub-vp", "ve"]
)
GRID = (0.9, 0.78, 0.55, 0.5, 0.31, 0.2, 0.09, 0.0)
NEW = ["lms", "ipndm-v", "ipndm", "pndm", "gradient-estimation", "edm", "edm-euler", "dpm-2", "res-2s", "res-2m", "richardson"]


@st.composite
def five_times(draw):
    """Four times at which the network was evaluated, newest first, and s below them; uneven."""
    ratios = draw(st.lists(st.floats(0.5, 0.9), min_size=4, max_size=4))
    oldest = draw(st.floats(0.3, 0.98))
    *evaluated, s = (oldest * math.prod(ratios[:i]) for i in range(5))
    return tuple(reversed(evaluated)), s


def row(name, path, times, s, **options):
    """The row of a one-stage sampler when these times are known, newest first."""
    sampler = sf.get_sampler(name, **options)
    return sampler.rows_at(path, times[: sampler.history], s)


def same(a, b, digits=1e-12):
    size = max(map(abs, (a.x, *a.m)))
    assert (a.x, *a.m) == pytest.approx((b[0], *b[1]), rel=digits, abs=digits * size)


def slope(y, kappa, path):
    """d = (y − D)/κ of the mixture, at y = x/α; EDM's and k-diffusion's ODE."""
    t = path.time(-math.log(kappa))
    return (y - DATA.denoise(y * path.alpha(t), path.alpha(t), path.sigma(t))) / kappa


def solved(name, path, grid, **options):
    """x/α at the end of a run from X, and the same for y = x/α at its start."""
    x = X * path.prior_std(grid[0])
    sol = sf.solve(DATA.model(path), x, name, grid=grid, **options)
    return sol, sol.x / path.alpha(grid[-1]), x / path.alpha(grid[0])


def close(a, b, digits=1e-9):
    torch.testing.assert_close(a, b, rtol=digits, atol=digits)


# -- multistep ---------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(at=five_times())
def test_18_lms_is_rho_deis(path, order, at):
    """18. LMS of order k is ρAB-DEIS of degree k − 1; both have the integrals of ℓ_j over κ, here of the polynomials."""
    times, s = at[0][:order], at[1]
    knots = np.array([path.kappa(u) for u in times]) - path.kappa(times[0])  # from κ_t on, where digits are many
    weights = []
    for j in range(order):
        others = np.delete(knots, j)
        whole = np.polyint(np.poly1d(others, r=True) / math.prod(knots[j] - others))
        weights.append(path.alpha(s) * float(whole(path.kappa(s) - path.kappa(times[0]))))
    ours = row("lms", path, times, s, order=order)
    same(ours, (path.alpha(s) / path.alpha(times[0]), weights), 1e-10)
    assert ours == row("deis", path, times, s, degree=order - 1, variable="rho")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@given(newest=st.floats(0.3, 3), share=st.floats(0.05, 0.9))
def test_19_ipndm_on_even_kappa(order, newest, share):
    """19. On nodes even in κ iPNDM is LMS; on others, from order 2 on, it is not."""
    path, h = PATHS["ve"], newest * share
    *times, s = (path.time(-math.log(k)) for k in (*(newest + j * h for j in range(order)), newest - h))
    ours = row("ipndm", path, tuple(times), s, order=order)
    same(ours, row("lms", path, tuple(times), s, order=order)[:2], 1e-9)
    if order > 1:
        uneven = (*times[:-1], times[-1] * 1.02)
        assert row("lms", path, uneven, s, order=order).m != pytest.approx(
            row("ipndm", path, uneven, s, order=order).m, rel=1e-4
        )
    else:
        same(ours, row("dpm-solver", path, tuple(times), s, order=1)[0][1][:2], 1e-9)


def variable_ipndm(h, order, published=False):
    """The weights of iPNDM_v for the steps h_n, h_{n−1}, …, in diff-sampler's letters; as published, or set right.

    Published are a parenthesis misplaced in `temp1`, a sign in `temp2`, and the ratio h_{n−1}/h_{n−2} in the last weight.
    """
    a, b, c, d = h
    lead, q = a / (3 * (a + b)), b * (b + c) / (c * (c + d))
    ratio, tail = (a * (a + b)) / (b * (b + c)), (1 - a / (2 * (a + b))) * a / (6 * (a + b + c))
    temp1 = (1 - lead * ratio) / 2 if published else (1 - lead) / 2 * ratio
    temp2 = (1 - lead) / 2 + (tail if published else -tail)
    temp2 *= (a * (a + b) * (a + b + c)) / (b * (b + c) * (b + c + d))
    temp1, temp2 = (temp1 if order > 2 else 0.0), (temp2 if order > 3 else 0.0)
    weights = (
        (2 + a / b) / 2 + temp1 + temp2,
        -(a / b) / 2 - (1 + b / c) * temp1 - (1 + b / c + q) * temp2,
        temp1 * b / c + (b / c + q * (1 + c / d)) * temp2,
        -temp2 * q * (b / c if published else c / d),
    )
    return weights[:order]


@pytest.mark.parametrize("order", [2, 3, 4])
@given(at=five_times())
def test_variable_ipndm_is_lms(order, at):
    """iPNDM_v, set right, is LMS; as published it is not, from order 3 on where steps are uneven."""
    times, s = at
    kappa = [PATH.kappa(u) for u in (s, *times)]
    h = [b - a for a, b in pairwise(kappa)]
    ours = row("ipndm-v", PATH, times[:order], s, order=order)
    assert sf.get_sampler("ipndm-v", order=order) == sf.get_sampler(f"lms-{order}")
    unit = -PATH.alpha(s) * h[0]
    same(ours, (ours.x, [unit * w for w in variable_ipndm(h, order)]), 1e-9)
    if order > 2:
        assert ours.m != pytest.approx([unit * w for w in variable_ipndm(h, order, published=True)], rel=1e-6)


def test_pndm_as_published():
    """PNDM by the authors' loop on ᾱ, warm-up and all; 4 evaluations a step for three steps, then one."""
    path, grid = PATHS["chain"], (*GRID[:-1], 0.03)
    model = DATA.model(path)

    def bar(t):
        return path.alpha(t) ** 2

    def phi(x, e, t, s):
        a, b = bar(t), bar(s)
        over_x = 1 / (math.sqrt(a) * (math.sqrt(a) + math.sqrt(b)))
        over_e = 1 / (math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b)))
        return x + (b - a) * (over_x * x - over_e * e)

    x, words, calls = X, [], 0
    for t, s in pairwise(grid):
        e = model(x, t, "eps")
        words.append(e)
        if len(words) < 4:
            m = (t + s) / 2
            e_2 = model(phi(x, e, t, m), m, "eps")
            e_3 = model(phi(x, e_2, t, m), m, "eps")
            e_4 = model(phi(x, e_3, t, s), s, "eps")
            e, calls = (e + 2 * e_2 + 2 * e_3 + e_4) / 6, calls + 4
        else:
            e = (55 * words[-1] - 59 * words[-2] + 37 * words[-3] - 9 * words[-4]) / 24
            calls += 1
        x = phi(x, e, t, s)
    sol = sf.solve(model, X, "pndm", grid=grid)
    close(sol.x, x)
    assert sol.nfe == calls == 12 + 4
    assert [sf.plan("pndm", path, steps=n).nfe for n in (1, 2, 3, 4, 5, 10)] == [1, 5, 9, 13, 14, 19]


@EVERY
@pytest.mark.parametrize("gamma", [2.0, 1.3])
def test_gradient_estimation_as_published(path, gamma):
    """The authors' loop on x/α: `x += (σ' − σ) (γ ε_t + (1 − γ) ε_1)`, the first step with ε_t alone."""
    grid = GRID[:-1]
    _, ours, y = solved("gradient-estimation", path, grid, gamma=gamma)
    before = None
    for t, s in pairwise(grid):
        eps = slope(y, path.kappa(t), path)
        y = y + (path.kappa(s) - path.kappa(t)) * (eps if before is None else gamma * eps + (1 - gamma) * before)
        before = eps
    close(ours, y, 1e-8)


def test_gradient_estimation_at_one_and_three_halves():
    """γ = 1 is DDIM, γ = 3/2 iPNDM of order 2."""
    runs = {name: solved(name, PATH, GRID[:-1])[1] for name in ("ddim", "ipndm-2")}
    close(solved("gradient-estimation", PATH, GRID[:-1], gamma=1.0)[1], runs["ddim"])
    close(solved("gradient-estimation", PATH, GRID[:-1], gamma=1.5)[1], runs["ipndm-2"])


# -- EDM and k-diffusion -----------------------------------------------------------------------------------------------


@EVERY
def test_2_and_14_edm_as_published(path):
    """2, 14. Algorithm 1 of Karras et al. without churn, to σ = 0; euler is DDIM, heun DPM-Solver-2 with r₁ = 1."""
    for method, other, options, nfe in (("euler", "ddim", {}, 7), ("heun", "dpm-solver", {"r1": 1.0}, 13)):
        sol, ours, y = solved("edm", path, GRID, method=method)
        for t, s in pairwise(GRID):
            k_t, k_s = path.kappa(t), path.kappa(s)
            d = slope(y, k_t, path)
            after = y + (k_s - k_t) * d
            if method == "heun" and s > 0:
                after = y + (k_s - k_t) * (d + slope(after, k_s, path)) / 2
            y = after
        close(ours, y, 1e-8)
        close(sol.x, solved(other, path, GRID, **options)[0].x)
        assert sol.nfe == nfe


@EVERY
def test_15_dpm_2_as_published(path):
    """15. k-diffusion's sample_dpm_2 without churn, to σ = 0, is DPM-Solver-2 with r₁ = ½."""
    sol, ours, y = solved("dpm-2", path, GRID)
    for t, s in pairwise(GRID):
        k_t, k_s = path.kappa(t), path.kappa(s)
        d = slope(y, k_t, path)
        if s > 0:
            mid = math.sqrt(k_t * k_s)
            d = slope(y + (mid - k_t) * d, mid, path)
        y = y + (k_s - k_t) * d
    close(ours, y, 1e-8)
    close(sol.x, solved("dpm-solver", path, GRID)[0].x)
    assert sol.nfe == 13


# -- RES ---------------------------------------------------------------------------------------------------------------


@EVERY
@given(at=five_times(), c2=st.floats(0.05, 1.0))
def test_res_2s_holds_the_stiff_conditions(path, at, c2):
    """b_1 + b_2 = φ_1 and c_2 b_2 = φ_2 at −h, with a_21 = c_2 φ_1(−c_2 h); 2S of DPM-Solver++ misses the second."""
    t, s = at[0][0], at[1]
    h, a = path.lam(s) - path.lam(t), path.alpha(s)
    (u, first), (_, last) = sf.get_sampler("res-2s", c2=c2).rows_at(path, (t,), s)
    phi_1 = -math.expm1(-h) / h
    phi_2 = sum((-h) ** n / math.factorial(n + 2) for n in range(40))
    assert path.lam(u) - path.lam(t) == pytest.approx(c2 * h, rel=1e-6)
    same(first, (path.sigma(u) / path.sigma(t), [-path.alpha(u) * math.expm1(path.lam(t) - path.lam(u))]), 1e-10)
    weights = [a * h * phi_2 / c2, a * h * (phi_1 - phi_2 / c2)]
    same(last, (path.sigma(s) / path.sigma(t), weights), 1e-6)
    other = sf.get_sampler("dpm-solver++-2s", r1=c2).rows_at(path, (t,), s)[-1][1]
    assert sum(other.m) == pytest.approx(sum(last.m), rel=1e-9)
    assert other.m[0] / weights[0] == pytest.approx(phi_1 / (2 * phi_2), rel=1e-6)


@EVERY
@given(at=five_times())
def test_res_2m_is_2m_heun(path, at):
    """The multistep form, with c < 0 the last step over this one, is DPM-Solver++(2M) in its Heun form."""
    times, s = at[0][:2], at[1]
    h = path.lam(s) - path.lam(times[0])
    c = (path.lam(times[1]) - path.lam(times[0])) / h
    phi_1 = -math.expm1(-h) / h
    phi_2 = sum((-h) ** n / math.factorial(n + 2) for n in range(40))
    ours, a = row("res-2m", path, times, s), path.alpha(s)
    same(ours, (path.sigma(s) / path.sigma(times[0]), [a * h * (phi_1 - phi_2 / c), a * h * phi_2 / c]), 1e-9)
    assert ours == row("dpm-solver++", path, times, s, method="2m-heun")


# -- Richardson --------------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    ("base", "nfe"), [("ddim", 2), ("edm-heun", 5), ("dpm-solver-3", 8), ("res-2s", 5), ("pf-ode-heun", 5), ("pf-ode-rk4", 11)]
)
def test_33_richardson_is_the_combination_of_runs(path, base, nfe):
    """33. x″ + (x″ − x′)/(2^p − 1), x′ and x″ by runs of the base over one step and over two that meet at the middle in λ;
    the word at t is shared."""
    t, s = 0.7, 0.3
    middle, p = path.time((path.lam(t) + path.lam(s)) / 2), sf.get_sampler(base).order
    sol, _, _ = solved("richardson", path, (t, s), base=base)
    one, two = (solved(base, path, grid)[0].x for grid in ((t, s), (t, middle, s)))
    close(sol.x, two + (two - one) / (2**p - 1))
    assert sol.nfe == nfe
    assert sf.get_sampler("richardson", base=base).order == p + 1


@pytest.mark.parametrize("base", ["dpm-solver++-2m", "unipc-1", "ddpm", "scipy", "predictor-corrector", "pndm"])
def test_bases_that_richardson_refuses(base):
    with pytest.raises(
        ValueError, match=r"base must be a deterministic one-step sampler made of rows.*got " + base.split("-")[0]
    ):
        sf.get_sampler("richardson", base=base)


# -- all ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEW)
def test_one_step_is_the_denoiser(name):
    """One step to σ = 0 is x̂_0 at the start, by one evaluation."""
    sol = sf.solve(DATA.model(PATH), X, name, steps=1)
    close(sol.x, DATA.denoise(X, PATH.alpha(1.0), PATH.sigma(1.0)), 1e-8)
    assert sol.nfe == 1


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("lms", {"order": 5}, "order must be a whole number from 1 to 4, got 5"),
        ("ipndm", {"order": 0}, "order must be a whole number from 1 to 4, got 0"),
        ("gradient-estimation", {"gamma": math.inf}, "gamma must be a finite number, got inf"),
        ("edm", {"method": "midpoint"}, "method must be one of euler, heun"),
        ("res", {"method": "3s"}, "method must be one of 2s, 2m"),
        ("res", {"c2": 0.5}, "c2 belongs to the method 2s, got c2=0.5 with method='2m'"),
        ("res-2s", {"c2": 0.0}, "c2 must be a finite number > 0 and ≤ 1, got 0"),
    ],
)
def test_options_that_cannot_be(name, options, match):
    with pytest.raises(ValueError, match=match):
        sf.get_sampler(name, **options)
