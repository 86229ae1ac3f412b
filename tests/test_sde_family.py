"""SEEDS, DPM-Solver++ SDE and 2S-ancestral, ER-SDE, churn, Restart, Analytic-DPM: against published formulas and laws."""

import math
from itertools import pairwise

import pytest
import torch
from problems import PATHS, mixture, states
from scipy.integrate import quad

import scoreflow as sf
from scoreflow import analysis

PATH = PATHS["vp"]
T, S = 0.7, 0.4
on_every_path = pytest.mark.parametrize("path", [PATHS[p] for p in PATHS], ids=list(PATHS))


def rows(name, path, times, **options):
    """The rows of one step, and of its last row."""
    out = sf.get_sampler(name, **options).rows_at(path, times[:-1], times[-1])
    return out if isinstance(out, sf.Row) else [row for _, row in getattr(out, "rows", out)]


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=tolerance, atol=tolerance)


def flat(row):
    z = row.z if isinstance(row.z, tuple) else (row.z,)
    return [float(v) for v in (row.x, *row.m, *z)]


@on_every_path
def test_6_ddpm_by_its_other_names(path):
    """6. DDPM(β̃) = ER-SDE-1 with φ = κ² = Euler-ancestral = the first-order SDE-DPM-Solver++."""
    want = flat(rows("ddpm", path, (T, S)))
    close(flat(rows("er-sde", path, (T, S), order=1, phi="sde")), want, 1e-10)
    close(flat(rows("euler-ancestral", path, (T, S))), want)
    close(flat(rows("sde-dpm-solver++-1", path, (T, S))), want)


@on_every_path
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0, 1.3])
def test_8_er_sde_is_sa_solver(path, tau):
    """8. ER-SDE-1 with φ = κ^{1+τ²} = SA-Solver's first predictor with τ."""
    mine = rows("er-sde", path, (T, S), order=1, phi=1 + tau**2)
    (other,) = rows("sa-solver", path, (T, S), predictor=1, corrector=0, tau=tau)
    close(flat(mine), flat(other), 1e-10)


def test_9_euler_ancestral_as_published():
    """9. k-diffusion's sample_euler_ancestral, on x/α: `κ_up = min(κ_s, η √(κ_s² (κ_t² − κ_s²)/κ_t²))`, down by Euler."""
    t, s = PATH.kappa(T), PATH.kappa(S)
    for eta in (0.0, 0.5, 1.0):
        up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
        down = math.sqrt(s**2 - up**2)
        a = PATH.alpha(S)
        want = [a * (1 + (down - t) / t) / PATH.alpha(T), -a * (down - t) / t, a * up]
        close(flat(rows("ddim", PATH, (T, S), eta=eta)), want)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_16_2s_ancestral_as_published(eta):
    """16. k-diffusion's sample_dpmpp_2s_ancestral, on x/α; with η = 0 it is DPM-Solver++(2S, ½)."""
    t, s = PATH.kappa(T), PATH.kappa(S)
    up = min(s, eta * math.sqrt(s**2 * (t**2 - s**2) / t**2))
    h = math.log(t) - math.log(math.sqrt(s**2 - up**2))
    mid = math.exp(math.log(t) - h / 2)
    alpha_mid, a = PATH.alpha(PATH.time(-math.log(mid))), PATH.alpha(S)
    stage, last = rows("dpm-solver++-2s-ancestral", PATH, (T, S), eta=eta)
    close(flat(stage)[:2], [math.exp(-h / 2) * alpha_mid / PATH.alpha(T), -math.expm1(-h / 2) * alpha_mid], 1e-10)
    close(flat(last), [math.exp(-h) * a / PATH.alpha(T), -math.expm1(-h) * a, 0.0, a * up], 1e-10)
    if eta == 0:
        assert [flat(r) for r in rows("dpm-solver++-2s", PATH, (T, S))] == [flat(stage), flat(last)]


def test_sde_2s_as_published():
    """k-diffusion's sample_dpmpp_sde, r = ½, η = 1, on x/α; its draws for stage and step, put together along one path."""
    lam_t, lam_s = PATH.lam(T), PATH.lam(S)
    u = PATH.time((lam_t + lam_s) / 2)

    def ancestral(a, b):
        up = math.sqrt(b**2 * (a**2 - b**2) / a**2)
        return math.sqrt(b**2 - up**2), up

    t, m, s = PATH.kappa(T), PATH.kappa(u), PATH.kappa(S)
    (down_m, up_m), (down_s, up_s) = ancestral(t, m), ancestral(t, s)
    stage, last = rows("sde-dpm-solver++-2s", PATH, (T, S))
    close(flat(stage), [v * PATH.alpha(u) for v in (down_m / t / PATH.alpha(T), 1 - down_m / t, up_m)], 1e-9)
    a = PATH.alpha(S)
    close(flat(last)[:3], [down_s / t * a / PATH.alpha(T), (1 - down_s / t) * a, 0.0], 1e-9)
    close(math.hypot(*last.z), up_s * a, 1e-9)


@on_every_path
@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_noise_of_a_step_is_that_of_its_parts(path, order, form):
    """SEEDS: every stage has the variance of the whole way to it, `η² α_u² (κ_t² − κ_u²)` in noise form and
    `σ_u² (1 − e^{−2η²h})` in data form, and shares its draws."""
    (step,) = sf.plan(f"seeds-{order}", path, grid=[T, S], eta=0.6, form=form).steps
    assert len(step.draws) == order
    assert [d.t for d in step.draws] == [T, *(d.s for d in step.draws[:-1])]
    for i, (u, row) in enumerate(step.stages):
        want = 0.6 * path.alpha(u) * math.sqrt(path.kappa(T) ** 2 - path.kappa(u) ** 2)
        if form == "data":
            want = path.sigma(u) * math.sqrt(1 - math.exp(-2 * 0.36 * (path.lam(u) - path.lam(T))))
        close(math.hypot(*row.z), want, 1e-10)
        assert len([z for z in row.z if z]) == i + 1


def test_seeds_as_published():
    """SEEDS-1 and SEEDS-2 of the paper in noise form, η = 1."""
    h, a = PATH.lam(S) - PATH.lam(T), PATH.alpha(S) / PATH.alpha(T)
    sigma = PATH.sigma(S)
    (one,) = rows("seeds-1", PATH, (T, S), form="noise")
    close(flat(one), [a, -2 * sigma * math.expm1(h), sigma * math.sqrt(math.expm1(2 * h))], 1e-10)
    _, two = rows("seeds-2", PATH, (T, S), form="noise")
    noise = math.sqrt(math.exp(2 * h) - math.exp(h)), math.sqrt(math.expm1(h))
    close(flat(two), [a, -2 * sigma * math.expm1(h), 0.0, *(sigma * z for z in noise)], 1e-10)


@pytest.mark.parametrize("eta", [0.7, 1.0])
def test_seeds_in_data_form(eta):
    """The weights of SEEDS-3 on the state and on the words, newest first, written out with H = (1 + η²) h; SEEDS-1 is DDPM."""
    share = PATH.lam(S) - PATH.lam(T)
    h, u = (1 + eta**2) * share, [PATH.time(PATH.lam(T) + share * r) for r in (1 / 3, 2 / 3)]

    def line(part):
        """What the line through 0 at T, 1 at a third or two thirds integrates to, times that share."""
        return part * (1 + math.expm1(-part * h) / (part * h))

    first, second, last = rows("seeds-3", PATH, (T, S), eta=eta)
    for row, to, part in ((first, u[0], 1 / 3), (second, u[1], 2 / 3), (last, S, 1.0)):
        close([row.x], [PATH.sigma(to) / PATH.sigma(T) * math.exp(-(eta**2) * part * share)], 1e-9)
        close([sum(row.m)], [-PATH.alpha(to) * math.expm1(-part * h)], 1e-9)
    close([second.m[0]], [PATH.alpha(u[1]) * line(2 / 3) / (1 / 3)], 1e-9)
    close(list(last.m[:2]), [PATH.alpha(S) * line(1.0) / (2 / 3), 0.0], 1e-9)
    if eta == 1:
        (one,), (ddpm,) = (sf.plan(name, PATH, grid=[T, S]).steps[0].stages for name in ("seeds-1", "ddpm"))
        close(flat(one.row), flat(ddpm.row))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_seeds_stays_bounded(order):
    """At 5 to 20 evaluations, where noise form puts out values of 10 to 10⁵ for 1, data form is no wider than the data."""
    for nfe in (5, 10, 20):
        for grid in ("logsnr", "karras"):
            plans = (sf.plan(f"seeds-{order}", PATH, nfe=nfe, grid=grid, form=form).check() for form in ("data", "noise"))
            data, noise = (max(health.std, 10 * health.std_tight) for health in plans)
            assert data < 1.1 and (order == 1 or nfe == 20 or noise > 10)


@pytest.mark.parametrize("phi", ["er-sde-5", "sde", 1.3, lambda k: k * (1 + k)])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_integrates_polynomials(phi, order):
    """On x̂_0 a polynomial in κ of lower degree than the order, the row is the solution, by SciPy's quadrature of φ'."""
    times, powers = (T, 0.8, 0.95), [lambda k: 1.0, lambda k: k, lambda k: k * k][:order]
    scale = {"er-sde-5": lambda k: k * (math.exp(k**0.3) + 10), "sde": lambda k: k * k, 1.3: lambda k: k**1.3}.get(phi, phi)
    row = rows("er-sde", PATH, (*times[:order], S), order=order, phi=phi)
    t, s = PATH.kappa(T), PATH.kappa(S)

    def slope(k, d=1e-5):
        return (scale(k * (1 + d)) - scale(k * (1 - d))) / (2 * k * d)

    for p in powers:
        mine = sum(m * p(PATH.kappa(u)) for m, u in zip(row.m, times, strict=False))
        want = scale(s) * quad(lambda k: p(k) * slope(k) / scale(k) ** 2, s, t, epsabs=1e-12)[0]  # noqa: B023
        assert mine / PATH.alpha(S) == pytest.approx(want, rel=1e-7)
    r = scale(s) / scale(t)
    assert row.z == pytest.approx(PATH.alpha(S) * math.sqrt(s**2 - (r * t) ** 2), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("er-sde", dict(phi="sed"), ValueError, "phi must be one of ode, sde, er-sde-5, got 'sed'"),
        ("er-sde", dict(phi=0.5), ValueError, "phi must be .*≥ 1, got 0.5"),
        ("er-sde", dict(order=4), ValueError, "order must be a whole number from 1 to 3, got 4"),
        ("seeds", dict(order=4), ValueError, "order must be a whole number from 1 to 3, got 4"),
        ("sde-dpm-solver++", dict(r1=0.5), ValueError, "r1 belongs to the method 2s"),
        ("edm-churn", dict(S_tmin=3.0, S_tmax=1.0), ValueError, "S_tmin must lie below S_tmax"),
        ("edm-churn", dict(S_churn=-1.0), ValueError, "S_churn must be .*≥ 0, got -1"),
        ("restart", dict(t_max=0.05), ValueError, "t_max must be .*> 0.1"),
        ("restart", dict(restart_steps=0), ValueError, "restart_steps must be a whole number"),
        ("analytic-dpm", dict(levels=3), TypeError, "levels must be what estimate_variance gives, got int"),
    ],
)
def test_refusals(name, options, error, message):
    with pytest.raises(error, match=message):
        sf.get_sampler(name, **options)


def test_er_sde_refuses_a_scale_that_shrinks_noise_too_little():
    with pytest.raises(ValueError, match="phi must grow at least as kappa"):
        sf.plan("er-sde", PATH, steps=3, phi=lambda k: 1.0)


# -- up and down ---------------------------------------------------------------------------------------------------------

GAUSSIAN = sf.Gaussian(torch.tensor([0.7, -0.4], dtype=torch.float64), torch.tensor([[0.6, 0.3], [0.3, 0.9]]).double())


def grid(n):
    return sf.grid(PATH, n, "logsnr", t_min=1e-5)


def test_without_churn_it_is_edm():
    for name, options in (("edm-churn", {"S_churn": 0.0}), ("restart", {"restarts": 0})):
        assert not sf.get_sampler(name, **options).stochastic_on(PATH)
        mine = sf.plan(name, PATH, grid=grid(9), **options)
        assert mine.steps == sf.plan("edm-heun", PATH, grid=grid(9)).steps


def test_churn_is_algorithm_2():
    """κ̂ = (1 + γ) κ inside the range, γ = min(S_churn/N, √2 − 1); noise √(κ̂² − κ²) S_noise on x/α; Heun from there."""
    plan = sf.plan("edm-churn", PATH, grid=grid(10), S_churn=2.0, S_tmin=0.1, S_tmax=20.0, S_noise=1.1)
    ups = [step for step in plan.steps if step.s > step.t]
    churned = [t for t in grid(10)[:-1] if 0.1 <= PATH.kappa(t) <= 20.0]
    assert [step.t for step in ups] == churned
    for step in ups:
        (up,) = step.stages
        assert PATH.kappa(step.s) == pytest.approx(1.2 * PATH.kappa(step.t), rel=1e-9)
        noise = PATH.alpha(step.s) * math.sqrt(PATH.kappa(step.s) ** 2 - PATH.kappa(step.t) ** 2) * 1.1
        assert (up.row.x, up.row.z) == pytest.approx((PATH.alpha(step.s) / PATH.alpha(step.t), noise), rel=1e-9)
        assert not step.evaluates
    most = sf.plan("edm-churn", PATH, grid=grid(10), S_churn=1e3)
    assert PATH.kappa(most.steps[3].s) < PATH.kappa(most.steps[3].t) or PATH.kappa(most.steps[3].s) == pytest.approx(
        math.sqrt(2) * PATH.kappa(most.steps[3].t), rel=1e-9
    )


def test_churn_tends_to_the_data():
    """The law's distance to the data falls by the declared second order and more."""
    far, near = (analysis.law(sf.plan("edm-churn", PATH, grid=grid(n), S_churn=10.0), PATH, GAUSSIAN).w2 for n in (80, 160))
    assert near < far / 3.5


def test_restart_contracts():
    """Its loops end as they began, cost what they say, and bring the law nearer to the data's than Heun alone."""
    alone, loops = (sf.plan("restart", PATH, grid=grid(8), restarts=n, restart_steps=6) for n in (0, 3))
    assert loops.nfe == alone.nfe + 3 * 2 * 6
    assert loops.noise_count == 3
    up = [step for step in loops.steps if step.s > step.t]
    assert len({(step.t, step.s) for step in up}) == 1
    assert PATH.kappa(up[0].t) <= 0.1
    assert PATH.kappa(up[0].s) == pytest.approx(2.0, rel=1e-9)
    assert analysis.law(loops, PATH, GAUSSIAN).w2 < 0.7 * analysis.law(alone, PATH, GAUSSIAN).w2


@pytest.mark.parametrize("path", PATHS)
def test_a_budget_of_restart_pays_for_its_loops(path):
    """Two evaluations a step, the loops at κ = t_min where the grid steps over it, one to x̂_0; less is refused by name."""
    path = PATHS[path]
    for nfe in (19, 22, 31, 100):
        plan = sf.plan("restart", path, nfe=nfe, start=0.95)
        assert (plan.nfe, plan.noise_count) == (nfe - (nfe + 1) % 2, 2)
        up = [step for step in plan.steps if step.s > step.t]
        assert path.kappa(up[0].t) <= 0.1 * (1 + 1e-9)
        assert nfe > 19 or path.kappa(up[0].t) == pytest.approx(0.1, rel=1e-9)
    with pytest.raises(ValueError, match=r"nfe=18 is less than the 19 evaluations of one step of restart"):
        sf.plan("restart", path, nfe=18, start=0.95)


# -- variances of the ancestral step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("T", [4, 1000])
def test_interpolated_variance_between_its_ends(v, T):
    """On a chain the row's z² is `β_t^v β̃_t^{1−v}`, as the chain has it, whether v is an option or the network's word."""
    chain = sf.DDPMChain.linear(T, 0.02, 0.3) if T == 4 else sf.DDPMChain.linear()
    path = sf.VPSDE.from_betas(chain.beta)
    plan = sf.plan("ddpm", path, T, variance="interpolated", v=v)

    def net(x, t):
        return torch.cat([0 * x, torch.full_like(x, 2 * v - 1)], dim=1)

    x, ones = torch.zeros(2, 3, dtype=torch.float64), torch.ones(1, 2, 3, dtype=torch.float64)
    for t in range(2, T + 1, max(1, T // 7)):
        beta, tilde = float(chain.beta[t - 1]), float(chain.posterior_variance[t - 1])
        z = plan.steps[T - t].stages[0].row.z
        assert z**2 == pytest.approx(beta**v * tilde ** (1 - v), rel=1e-9)
        assert z**2 == pytest.approx(float(chain.variance("interpolated", t, v)), rel=1e-9)
        model = sf.ScoreModel(net, path, "x0")
        step = sf.solve(model, x, "ddpm", variance="interpolated", grid=[t / T, (t - 1) / T], noise=ones)
        torch.testing.assert_close(step.x, z * ones[0], rtol=1e-6, atol=0)


def test_bounds_of_the_variances():
    """v of ddpm is a share, v of analytic-dpm a variance: 0 is allowed for both, and no less."""
    for wrong in (-1e-6, 1 + 1e-6):
        with pytest.raises(ValueError, match=r"v must be a finite number ≥ 0 and ≤ 1, got "):
            sf.get_sampler("ddpm", variance="interpolated", v=wrong)
    with pytest.raises(ValueError, match=r"v must be a finite number ≥ 0, got -1e-06"):
        sf.get_sampler("analytic-dpm", v=-1e-6)
    # Data of variance 0 leave nothing unknown of x_0: the step is DDIM's, with its noise.
    for eta in (0.0, 0.5, 1.0):
        assert sf.plan("analytic-dpm", PATH, 5, v=0, eta=eta).steps == sf.plan("ddim", PATH, 5, eta=eta).steps
    rows = [step.stages[0].row for step in sf.plan("analytic-dpm", PATH, 5, v=0.3, eta=0.5).steps]
    for (t, s), row in zip(pairwise(sf.grid(PATH, 5)), rows, strict=True):
        left, quiet = 0.3 * PATH.sigma(t) ** 2 / (0.3 * PATH.alpha(t) ** 2 + PATH.sigma(t) ** 2), PATH.bridge(t, s, 0.5)
        assert row.z**2 == pytest.approx((quiet.z**2 + quiet.m[0] ** 2 * left) if s else 0.0, rel=1e-12)


# -- Analytic-DPM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("v", [0.3, 2.0])
def test_25_analytic_dpm_is_exact_on_isotropic_gaussians(steps, eta, v):
    """25. From the exact prior, whatever the steps and η, the law at the end is the marginal."""
    path = PATHS["cosine"]
    gaussian = sf.Gaussian(torch.tensor([0.5, -1.0]).double(), v * torch.eye(2, dtype=torch.float64))
    law = analysis.law(sf.plan("analytic-dpm", path, steps, stop=0.01, eta=eta, v=v), path, gaussian)
    want = path.alpha(0.01) ** 2 * v + path.sigma(0.01) ** 2
    torch.testing.assert_close(law.cov, want * torch.eye(2, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(law.mean, path.alpha(0.01) * gaussian.mean, rtol=1e-12, atol=1e-12)


def test_25_as_published():
    """Theorem 1 of Bao et al., with λ² = c² and Γ = E‖ε̂‖²/d: `c² + (√(σ_t²/(α_t/α_s)²) − √(σ_s² − c²))² (1 − Γ)` on VP."""
    v = 0.4
    for eta in (0.0, 0.5, 1.0):
        c = eta * PATH.posterior_std(T, S)
        share = PATH.sigma(T) ** 2 / (PATH.alpha(T) ** 2 * v + PATH.sigma(T) ** 2)
        leap = PATH.sigma(T) * PATH.alpha(S) / PATH.alpha(T) - math.sqrt(PATH.sigma(S) ** 2 - c**2)
        want = math.sqrt(c**2 + leap**2 * (1 - share))
        assert rows("analytic-dpm", PATH, (T, S), eta=eta, v=v).z == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize("by", ["eps", "error"])
def test_estimate_variance(by):
    """Within five standard errors of the closed form, at every level: a false alarm in 10⁵ runs; and the run takes it."""
    v = 0.5
    gaussian = sf.Gaussian(torch.zeros(3).double(), v * torch.eye(3, dtype=torch.float64))
    model = gaussian.model(PATH)
    data = math.sqrt(v) * states(4000, 3, seed=4)
    levels = sf.estimate_variance(model, data, times=(0.9, 0.6, 0.3, 0.1, 0.02), by=by)
    for t, value, error in zip(levels.times, levels.values, levels.errors, strict=True):
        assert abs(value - min(PATH.posterior_variance(t, v), float(data.square().mean()))) < 5 * error
    assert levels(PATH, 0.6) == levels.values[1]
    assert levels(PATH, 1.0) == levels.values[0]
    x = sf.solve(model, data[:8], "analytic-dpm", levels=levels, steps=5, seed=0)
    assert x.sampler.options["levels"] is levels
    with pytest.raises(ValueError, match="was estimated for VPSDE"):
        sf.plan("analytic-dpm", PATHS["ve"], 3, levels=levels)


def test_the_error_of_an_estimated_variance():
    """The standard deviation over the data, by N, over √N."""
    data = states(50, 3)
    model = sf.ScoreModel(lambda x, t: torch.zeros_like(x), PATH, "x0")
    levels = sf.estimate_variance(model, data, times=(0.5, 0.1), by="error")
    each = data.square().mean(1)
    assert levels.values == pytest.approx([float(each.mean())] * 2)
    assert levels.errors == pytest.approx([float(each.std(correction=0)) / 50**0.5] * 2)


@pytest.mark.parametrize(
    ("options", "drawn"), [({"eta": 0.5}, True), ({"eta": 0.0, "v": 0.0}, False), ({"eta": 0.0, "v": 0.5}, True)]
)
def test_analytic_dpm_says_whether_it_draws(options, drawn):
    assert sf.get_sampler("analytic-dpm", **options).stochastic_on(PATH) is drawn


def test_estimate_variance_splits_conditions_with_the_data():
    """A label a sample goes with its batch, in dicts too."""
    oracle = mixture()
    base = oracle.model(PATH)

    def net(x, t, y, extra):
        assert len(y) == len(x) == len(extra["size"])
        return base.eps(x, t) * (y / extra["size"])[:, None]

    data, y = oracle.sample(300, seed=0), torch.full((300,), 2.0, dtype=torch.float64)
    given = {"times": (0.6, 0.3), "by": "error", "y": y, "extra": {"size": y}}
    whole, parts = (sf.estimate_variance(sf.ScoreModel(net, PATH), data, batch=n, **given).values for n in (300, 128))
    assert parts == pytest.approx(whole, rel=0.2)  # the draws are others


def test_estimated_variance_beats_the_posterior():
    """On correlated Gaussian data at 10 steps the exact law is nearer to the data's than with β̃. (β is nearer still here.)"""
    model, data = GAUSSIAN.model(PATH), GAUSSIAN.sample(4000, seed=1)
    levels = sf.estimate_variance(model, data)

    def off(name, **options):
        return analysis.law(sf.plan(name, PATH, 10, **options), PATH, GAUSSIAN).w2

    assert off("analytic-dpm", levels=levels) < 0.4 * off("ddpm")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(model=None), TypeError, "model must be a ScoreModel"),
        (dict(data=[1.0]), TypeError, "data must be a floating-point tensor"),
        (dict(by="loss"), ValueError, "by must be one of eps, error, got 'loss'"),
        (dict(times=1), ValueError, "times must be a whole number ≥ 2"),
        (dict(batch=0), ValueError, "batch must be a whole number"),
        (dict(model=mixture().model(PATHS["flow"]), times=(1.0, 0.5)), ValueError, r"times: alpha=0 at t=1.0.*use by='error'"),
    ],
)
def test_estimate_variance_refuses(change, error, message):
    with pytest.raises(error, match=message):
        sf.estimate_variance(**{"model": mixture().model(PATH), "data": states(4, 3), **change})
