"""Exact output laws: against Monte Carlo, closed forms, declared orders, the studies' figures, and docs/theory.md."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import PATHS

import scoreflow as sf
from scoreflow import analysis

VP, CHAIN = PATHS["vp"], PATHS["chain"]
SPREAD = torch.tensor([[0.6, 0.3, 0.0], [0.3, 0.9, -0.2], [0.0, -0.2, 0.2]], dtype=torch.float64)
GAUSSIAN = sf.Gaussian(torch.tensor([0.7, -0.4, 0.1]), SPREAD)

# -- Monte Carlo ----------------------------------------------------------------------------------------------------------

DRAWN = {
    "ddpm": {},
    "ddpm beta": {"variance": "beta"},
    "analytic-dpm": {"v": 0.5},
    "ddim": {},
    "ddim eta=0.5": {"eta": 0.5},
    "euler-maruyama": {},
    "reverse-sde heun": {"method": "heun"},
    "pf-ode heun": {"method": "heun"},
    "dpm-solver++-2m": {},
    "unipc": {},
    "sde-dpm-solver++-2m": {},
    "sa-solver": {},
    "seeds-2": {},
    "edm-churn": {},
    "unipc analytic": {"analytic": 0.5},
}
N = 200_000
RATE = 1e-6
"""Of a false alarm in the whole of `test_laws_agree_with_draws`."""
TESTS = len(DRAWN) * (3 + 6 + 1)
BOUND = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - RATE / TESTS / 2, dtype=torch.float64)))


def root(cov):
    var, turn = torch.linalg.eigh(cov)
    return (turn * var.clamp(min=0).sqrt()) @ turn.mT


def bures(mean, cov, data):
    """W₂ between Gaussians whose covariances need not commute (Dowson & Landau, 1982)."""
    half = root(data.cov)
    apart = (mean - data.mean).square().sum() + cov.trace() + data.cov.trace() - 2 * root(half @ cov @ half).trace()
    return float(apart.clamp(min=0).sqrt())


@pytest.mark.parametrize("case", DRAWN)
def test_laws_agree_with_draws(case):
    """Every entry of mean and covariance of 2·10⁵ draws, and their W₂ to the data, are within the law's own errors.

    `√n (m̂ − m)_i ~ N(0, C_ii)`, `√(n−1) (Ĉ − C)_ij` has variance `C_ii C_jj + C_ij²`; W₂ by the delta method, its
    gradient being `(m − μ, (I − T)/2)/W₂` with T the optimal map. Normal tails at Bonferroni's level; at this n the skewness
    of a variance moves them by less than a third.
    """
    sampler = sf.get_sampler(case.split()[0], **DRAWN[case])
    start = 0.5 if sampler.analytic else 1.0  # at 1 its first answer is too near the exact one to be told from it
    law = analysis.law(sampler, VP, GAUSSIAN, 10, grid="uniform", start=start)
    x_T = torch.randn(N, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * VP.prior_std(start)
    x = sf.solve(GAUSSIAN.model(VP), x_T, sampler, steps=10, grid="uniform", start=start, seed=2).x
    mean, cov, C = x.mean(0), x.T.cov(), law.cov
    off = (mean - law.mean) / (C.diagonal() / N).sqrt()
    error = ((torch.outer(C.diagonal(), C.diagonal()) + C**2) / (N - 1)).sqrt()
    assert off.abs().max() < BOUND, off
    assert ((cov - C) / error).abs().max() < BOUND, (cov - C) / error
    far, half = law.mean - GAUSSIAN.mean, root(GAUSSIAN.cov)
    gap = torch.eye(3) - half @ torch.linalg.inv(root(half @ C @ half)) @ half
    spread = (4 * far @ C @ far + 2 * (gap @ C @ gap @ C).trace()).sqrt() / (2 * law.w2)
    assert bures(law.mean, C, GAUSSIAN) == pytest.approx(law.w2, rel=1e-9)
    assert abs(bures(mean, cov, GAUSSIAN) - law.w2) < BOUND * spread / N**0.5
    assert law.w2 > 20 * spread / N**0.5  # or the delta method would say nothing


# -- studies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [{"nfe": [5, 12]}, {"steps": [4, 11]}])
def test_a_study_gives_the_law(budget):
    """`w2-exact` is the law's W₂, RMS an entry, and `kl-exact` its KL, to the bit; whatever the seeds, n and other samplers."""
    from scoreflow.studies import ORACLES
    from scoreflow.studies.spec import parse

    names = ["ddpm(variance=beta)", "ddim(eta=0.5)@logsnr", "pf-ode(method=heun)", "unipc", "euler-maruyama"]
    power, digits = ORACLES["power-law"](d=5), ORACLES["digits"]()
    of = (("power-law(d=5, path=ddpm)", power, CHAIN, ((0,), (7, 3))), ("digits", digits, VP, ((5,),)))
    for data, oracle, path, blocks in of:
        for n, seeds in enumerate(blocks, start=2):
            study = sf.study(f"oracle:{data}", names, metrics=["w2-exact", "kl-exact"], n=n, seeds=seeds, **budget)
            assert not study.failures
            seen = study.cells[study.cells["kind"] == "cell"]
            assert len(seen) == len(names) * 2 * 2 * len(seeds)
            for _, cell in seen.iterrows():
                name, options, _ = parse(cell["sampler"])
                asked = {"grid": cell["grid"] if isinstance(cell["grid"], str) else None, **{k: int(cell[k]) for k in budget}}
                law = analysis.law(sf.get_sampler(name, **options), path, oracle, **asked)
                assert cell["value"] == (law.w2 / math.sqrt(len(law.mean)) if cell["figure"] == "w2-exact" else law.kl)
            if data == "digits":  # pixels that never change: no density, and W₂ all the same
                kl = seen.loc[seen["figure"] == "kl-exact", "value"]
                assert (kl == math.inf).all() and np.isfinite(seen["value"]).sum() == len(kl)


# -- closed forms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [0.04, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["vp", "chain", "ve"])
def test_ddim_is_a_product(kind, v):
    """On N(0, v) a DDIM step multiplies by `(α_s α_t v + σ_s σ_t)/(α_t² v + σ_t²)`; for v = 1 on a VP path by cos Δθ."""
    path = PATHS[kind]
    times = sf.grid(path, 7, "uniform")
    a, s = ([float(of(t)) for t in times] for of in (path.alpha, path.sigma))
    factors = [(a[i + 1] * a[i] * v + s[i + 1] * s[i]) / (a[i] ** 2 * v + s[i] ** 2) for i in range(7)]
    var = float(analysis.law("ddim", path, sf.Gaussian(torch.zeros(1), v), grid=times).cov)
    assert var == pytest.approx((math.prod(factors) * path.prior_std(1.0)) ** 2, rel=1e-12)
    if v == 1 and kind != "ve":
        turns = [math.cos(math.atan2(s[i], a[i]) - math.atan2(s[i + 1], a[i + 1])) for i in range(7)]
        assert math.prod(factors) == pytest.approx(math.prod(turns), rel=1e-12)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("v", [0.25, 1.0])
def test_ddpm_is_a_recursion(variance, v):
    """On N(0, v) from the chain's numbers: `k_t = (1 − β_t/(ᾱ_t v + 1 − ᾱ_t))/√α_t`, `var ← k² var + c²`, all 1000 steps."""
    chain = sf.DDPMChain.linear()
    beta = chain.beta.tolist()
    alpha_bar, var = np.concatenate(([1.0], np.cumprod(1 - chain.beta.numpy()))), 1.0
    for t in reversed(range(1, 1001)):
        b, bar, before = beta[t - 1], alpha_bar[t], alpha_bar[t - 1]
        k = (1 - b / (bar * v + 1 - bar)) / math.sqrt(1 - b)
        noise = 0.0 if t == 1 else b if variance == "beta" else b * (1 - before) / (1 - bar)
        var = k**2 * var + noise
    law = analysis.law("ddpm", CHAIN, sf.Gaussian(torch.zeros(1), v), 1000, variance=variance)
    assert float(law.cov) == pytest.approx(var, rel=1e-10)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("kind", ["vp", "chain"])
def test_the_ode_of_white_noise_stands_still(kind, method):
    """On N(0, I) under VP the drift is 0, so Runge–Kutta in t is the identity at any step; the last step, x̂_0, is not."""
    white, path = sf.Gaussian(torch.zeros(3)), PATHS[kind]
    inside = analysis.law("pf-ode", path, white, 3, method=method, grid="uniform", stop=0.1)
    torch.testing.assert_close(inside.cov, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert inside.mean.abs().max() == 0
    data = analysis.law("pf-ode", path, white, 3, method=method, grid="uniform")
    torch.testing.assert_close(data.cov, torch.eye(3).double() * path.alpha(1 / 3) ** 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50, 1000])
def test_the_analytic_variance_is_exact_on_white_data(steps):
    """On N(0, v I) each step is q(x_s | x_t), so the law at s is that of q(x_s | x_T) from N(0, I), for every N.

    With `ρ = (α_s α_T v + σ_s² α_T/α_s)/(α_T² v + σ_T²)` it is `α_s² v + σ_s² + ρ² (1 − α_T² v − σ_T²)`. On other data one
    number for all directions is not exact.
    """
    v, stop = 0.25, 0.001
    law = analysis.law("analytic-dpm", CHAIN, sf.Gaussian(torch.zeros(2), v), steps, v=v, grid="uniform", stop=stop)
    (a_T, s_T), (a, s) = ((CHAIN.alpha(t), CHAIN.sigma(t)) for t in (1.0, stop))
    kept = (a * a_T * v + s**2 * a_T / a) / (a_T**2 * v + s_T**2)
    var = a**2 * v + s**2 + kept**2 * (1 - a_T**2 * v - s_T**2)
    torch.testing.assert_close(law.cov, torch.eye(2).double() * var, rtol=1e-11, atol=0)
    if steps > 1:
        other = analysis.law("analytic-dpm", CHAIN, sf.Gaussian(torch.zeros(2), torch.tensor([0.05, 0.45])), steps, v=v)
        assert other.w2 > 3e-4


def test_the_analytic_variance_of_unit_data_is_beta():
    """With v = 1, its default, `analytic-dpm` is `ddpm` with β on a VP path: say the data's variance."""
    beta = {"variance": "beta"}
    for steps in (4, 30):
        a, b = (analysis.law(name, CHAIN, GAUSSIAN, steps, **kw) for name, kw in (("analytic-dpm", {}), ("ddpm", beta)))
        torch.testing.assert_close(a.cov, b.cov, rtol=1e-10, atol=1e-12)


# -- orders ---------------------------------------------------------------------------------------------------------------

ORDERS = {
    "ddpm": {}, "ddpm beta": {"variance": "beta"}, "analytic-dpm": {"v": 0.5}, "ddim": {}, "ddim eta=0.5": {"eta": 0.5},
    "euler-maruyama": {}, "reverse-diffusion": {}, "pf-ode heun": {"method": "heun"}, "reverse-sde heun": {"method": "heun"},
    "dpm-solver++-2m": {}, "sde-dpm-solver++-2m": {}, "seeds-2": {}, "edm": {},
}  # fmt: skip


@pytest.mark.parametrize("case", ORDERS)
def test_orders_of_laws(case):
    """How far in W₂ the laws of n and 2n steps lie apart falls with the declared order, on a full covariance."""
    sampler = sf.get_sampler(case.split()[0], **ORDERS[case])
    grid = dict(grid="uniform", start=0.9, stop=0.05)
    laws = {n: analysis.law(sampler, VP, GAUSSIAN, n, **grid) for n in (80, 160, 320)}
    fine = {n: sf.Gaussian(laws[n].mean, laws[n].cov) for n in (160, 320)}
    off = [laws[n]._replace(target=fine[2 * n]).w2 for n in (80, 160)]
    assert math.log2(off[0] / off[1]) == pytest.approx(sampler.order, abs=0.15)


# -- docs/theory.md -------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def theory():
    spec = importlib.util.spec_from_file_location("theory", ROOT / "examples" / "theory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quoted(*heads):
    """The cells of the page's table with these first heads, as text by row and column; its words are keys."""
    tables = re.findall(r"(?:^\|.*\n)+", (ROOT / "docs" / "theory.md").read_text(), flags=re.M)
    for table in tables:
        first, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        if tuple(first[: len(heads)]) == heads:
            words = len(heads)
            rows = {tuple(line[:words]): dict(zip(first[words:], line[words:], strict=True)) for line in lines}
            return {key if words > 1 else key[0]: row for key, row in rows.items()}
    raise LookupError(f"no table of {heads}")


def budget(said, n):
    """n evaluations; of all but Heun as steps, which need no search."""
    return {"nfe" if "Heun" in said else "steps": n, "grid": "trailing"}


@pytest.mark.parametrize("data", ["white", "power-law", "digits"])
def test_the_page_quotes_w2(theory, data):
    """Every row at 5 and 20 evaluations, some at 1000, all of the last step; and the least of a column is in bold."""
    rows = quoted(data)
    assert set(rows) == {*theory.SAMPLERS, theory.LAST}
    for said in theory.SAMPLERS:
        sampler = theory.made(said, data)
        for n in (5, 20, *([1000] if said in ("DDIM", "DPM-Solver++ 2M") else [])):
            law = analysis.law(sampler, theory.PATH, theory.gaussian(data), **budget(said, n))
            assert rows[said][str(n)].strip("*") == theory.shown([theory.w2(law)])[0], (said, n)
    assert list(rows[theory.LAST].values()) == theory.shown(theory.w2(theory.landing(data, n)) for n in theory.BUDGETS)
    for n in map(str, theory.BUDGETS):
        column = [rows[said][n] for said in theory.SAMPLERS]
        (best,) = [cell.strip("*") for cell in column if cell.startswith("**")]
        assert float(best) == min(float(cell.strip("*")) for cell in column)


def test_the_page_quotes_variances_and_divergences(theory):
    rows, kl = quoted("data", "variance"), quoted("KL")
    for (data, said), row in rows.items():
        if said == theory.LAST:
            assert row["10"] == theory.percent(theory.excess(theory.landing(data, 10)))
            continue
        law = analysis.law(theory.made(said, data), theory.PATH, theory.gaussian(data), 10, grid="trailing")
        assert row["10"] == theory.percent(theory.excess(law)), (data, said)
        assert row["before the last step, 10"] == theory.percent(theory.before(said, data, 10)), (data, said)
        if data != "digits":
            assert kl[said][f"{data}, 10"] == theory.shown([law.kl])[0], (data, said)
    assert len(rows) == 18 and set(kl) == set(theory.SAMPLERS)


def test_the_page_quotes_steps_grids_and_priors(theory):
    for (data, said), row in quoted("data", "steps").items():
        for n in (10, 50):
            law = analysis.law(theory.made(said, data), theory.PATH, theory.gaussian(data), n, grid="trailing")
            assert row[str(n)] == theory.shown([theory.w2(law)])[0], (data, said, n)
    for said, row in quoted("20").items():
        for head, cell in row.items():
            data, grid = head.split(", ")
            if said == theory.LAST:
                law = theory.landing(data, 20, grid)
            elif grid == "quadratic":
                continue
            else:
                law = analysis.law(
                    theory.made(said, data), theory.PATH, theory.gaussian(data), **{**budget(said, 20), "grid": grid}
                )
            assert cell == theory.shown([theory.w2(law)])[0], (said, head)
    for data, row in quoted("prior").items():
        exact = (theory.perfect(data), theory.forgetful(data))
        assert [row["probability-flow ODE"], row["reverse SDE"]] == theory.shown(map(theory.w2, exact))


def test_the_page_quotes_orders(theory):
    rows = quoted("order")
    for said in ("DDIM", "DPM-Solver++ 2M", "DDPM, analytic variance"):
        assert rows[said]["declared"] == str(theory.made(said, "white").order)
        for data in ("white", "digits"):
            assert rows[said][f"inside, {data}"] == theory.inside(said, data), (said, data)
    errors = [
        theory.w2(analysis.law(theory.made("DDIM", "digits"), theory.PATH, theory.gaussian("digits"), n)) for n in (500, 1000)
    ]
    assert rows["DDIM"]["to data, digits"] == theory.shown(theory.slopes(errors, (500, 1000)), "{:.2f}")[0]
    sampler, rows = sf.get_sampler("exponential-ab", order=3, form="data"), quoted("order 3")
    for data in ("white", "power-law"):
        exact = theory.perfect(data, theory.WIDE["start"], theory.WIDE["stop"], VP)
        off = [theory.apart(analysis.law(sampler, VP, theory.gaussian(data), n, **theory.WIDE), exact) for n in (40, 80)]
        assert [rows[data]["40"], rows[data]["80"]] == theory.shown(off)
        assert rows[data]["40–80"] == theory.shown(theory.slopes(off, (40, 80)), "{:.1f}")[0]
    mixture, x = analysis.problem(), torch.randn(64, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rough, fine = (
        sf.solve(mixture.model(VP), x, name, steps=n, **theory.WIDE).x for name, n in ((sampler, 20), ("exponential-ab-4", 120))
    )
    assert rows["mixture"]["20"] == theory.shown([(rough - fine).norm(dim=1).median()])[0]


def test_what_the_page_says_beside_its_tables(theory):
    """Of the data, the chain's end, the mean that the prior lacks, and the first step of a multistep method."""
    spread = [float(theory.spectrum(data)[0].mean().sqrt()) for data in theory.DATA]
    assert spread == [0.5, pytest.approx(1), pytest.approx(0.54, abs=0.005)]
    big = [v for v in theory.spectrum("power-law")[0].tolist() if v > 1]
    assert len(big) == 6 and round(max(big)) == 39
    assert int((theory.gaussian("digits").cov.diagonal() < 1e-12).sum()) == 4
    assert theory.PATH.alpha(1.0) ** 2 == pytest.approx(4e-5, rel=0.02)
    lacking = theory.perfect("digits")
    assert float((lacking.mean - lacking.target.mean).norm()) > 0.99 * lacking.w2

    wide, sampler = sf.Gaussian(torch.zeros(1), 39.3), sf.get_sampler("exponential-ab", order=3, form="data")
    exact = float(wide.flow(VP, torch.ones(1, 1).double(), 1.0, 1e-3))

    def missed(n, halvings):
        even = np.linspace(VP.lam(1.0), VP.lam(1e-3), n + 1)
        first = even[0] + (even[1] - even[0]) * 0.5 ** np.arange(halvings, 0, -1)
        times = [1.0, *(VP.time(float(lam)) for lam in (*first, *even[1:-1])), 1e-3]
        return abs(float(analysis.law(sampler, VP, wide, grid=times).cov.sqrt()) - exact)

    assert math.log2(missed(160, 0) / missed(320, 0)) == pytest.approx(2, abs=0.3)
    assert math.log2(missed(160, 8) / missed(320, 8)) == pytest.approx(4, abs=0.3)


def test_one_block_of_an_exact_figure_is_sure():
    """It has no chance, so its interval has no width and every difference is told."""
    study = sf.study("oracle:white(d=4)", ["ddim", "ddpm", "unipc"], nfe=[5, 10], seeds=1, metrics=["w2-exact"])
    assert (study.frame["low"] == study.frame["value"]).all() and (study.frame["high"] == study.frame["value"]).all()
    assert study.differences()["significant"].all() and not study.best(10).rivals
    assert study.cheapest(within=study.frame["value"].min()).value.value == study.frame["value"].min()
