"""The exact identities between samplers once more, by name, on whole runs, to 1e-12.

Elsewhere they are tested from papers' formulas on random steps of every path, where the forms lose digits apart. Here one
uneven grid on which none does, the states of a mixture, and the same draws.
"""

import itertools
import math

import pytest
import torch
from problems import PATHS, mixture, states

import scoreflow as sf

PATH = PATHS["vp"]
MODEL, X = mixture().model(PATH), states(16, 3)
GRID = (0.6, 0.53, 0.41, 0.34, 0.22, 0.15)
DDIM, DDPM, SA = ("ddim", {}), ("ddpm", {}), {"predictor": 1, "corrector": 0}
SAME = [
    (1, DDIM, [("dpm-solver-1", {}), ("dpm-solver++-1", {}), ("deis-tab-0", {}), ("deis-rhoab-0", {}), ("unip-1", {}),
               ("ipndm-1", {}), ("lms-1", {}), ("exponential-ab-1", {}), ("sa-solver", {**SA, "tau": 0.0})]),
    (2, DDIM, [("edm-euler", {})]),
    (6, DDPM, [("ddim", {"eta": 1.0}), ("sde-dpm-solver++-1", {}), ("euler-ancestral", {}), ("er-sde-1", {"phi": "sde"}),
               ("sa-solver", {**SA, "tau": 1.0})]),
    (8, ("sa-solver", {**SA, "tau": 0.7}), [("er-sde-1", {"phi": 1 + 0.7**2}), ("sde-dpm-solver++-1", {"eta": 0.7})]),
    (10, ("dpm-solver++-2m", {}), [("unip-2", {"B": "bh2"})]),
    (11, ("dpm-solver++-2m-heun", {}), [("exponential-ab-2", {"form": "data"}), ("res-2m", {}),
                                        ("sde-dpm-solver++-2m-heun", {"eta": 0.0})]),
    (12, ("exponential-ab-3", {"form": "data"}), [("dpm-solver++-3m", {})]),
    (14, ("edm", {}), [("dpm-solver", {"order": 2, "r1": 1.0}), ("edm-churn", {"S_churn": 0.0}), ("restart", {"restarts": 0})]),
    (15, ("dpm-2", {}), [("dpm-solver", {"order": 2, "r1": 0.5})]),
    (16, ("dpm-solver++-2s", {}), [("dpm-solver++-2s-ancestral", {"eta": 0.0})]),
    (18, ("lms-4", {}), [("deis-rhoab-3", {}), ("ipndm-v", {})]),
    (18, ("lms-3", {}), [("deis", {"degree": 2, "variable": "rho"})]),
    (20, ("dpm-solver++-2m", {}), [("sde-dpm-solver++-2m", {"eta": 0.0})]),
]  # fmt: skip
"""Number in docs/identities.md, a sampler, and what it is the same as."""


def run(name, options, grid=GRID, path=PATH, x=X):
    return sf.solve(mixture().model(path), x, name, grid=grid, seed=0, trajectory=True, **options).states


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("number", "one", "others"), SAME, ids=str)
def test_the_same(number, one, others):
    states_ = run(*one)
    for other in others:
        close(run(*other), states_)


def test_3_and_5_at_equal_snr():
    """Euler on rectified flow's velocity, and all that sees the SNR only, at the times of equal κ, on x/α."""
    flow = PATHS["flow"]
    times = [flow.time(PATH.lam(t)) for t in GRID]
    scale = torch.tensor([PATH.alpha(t) / flow.alpha(u) for t, u in zip(GRID, times, strict=True)], dtype=torch.float64)
    for name, other in (("ddim", "pf-ode-euler"), ("ddim", "ddim"), ("unipc-2", "unipc-2"), ("dpm-solver", "dpm-solver")):
        there = run(other, {}, times, flow, X / scale[0])
        close(there * scale[:, None, None], run(name, {}))


def test_4_ddim_is_a_rotation():
    """`x_s = x cos Δθ − v sin Δθ`, θ = arctan κ, on VP."""
    x = X
    for t, s in itertools.pairwise(GRID):
        turn = math.atan(PATH.kappa(t)) - math.atan(PATH.kappa(s))
        x = x * math.cos(turn) - MODEL.v(x, t) * math.sin(turn)
    close(run(*DDIM)[-1], x)


def test_7_sa_solver_is_ddim_step_by_step():
    """`η² = (1 − e^{−2τ²h})/(1 − e^{−2h})`, another at each step."""
    tau, noise = 0.6, states(1, 16, 3, seed=3)
    for t, s in itertools.pairwise(GRID):
        h = PATH.lam(s) - PATH.lam(t)
        eta = math.sqrt(math.expm1(-2 * tau**2 * h) / math.expm1(-2 * h))
        a = sf.solve(MODEL, X, "sa-solver", **SA, tau=tau, grid=[t, s], noise=noise).x
        close(a, sf.solve(MODEL, X, "ddim", eta=eta, grid=[t, s], noise=noise).x)


def test_9_euler_ancestral_is_ddim():
    for eta in (0.3, 1.0):
        close(run("euler-ancestral", {"eta": eta}), run("ddim", {"eta": eta}))


@pytest.mark.parametrize("B", ["bh1", "bh2"])
def test_12_unip_3_once_it_has_three_words(B):
    """Before, its rows of order 2 are those of its B(h)."""
    ours, other = (sf.plan(name, PATH, grid=GRID, **o) for name, o in (("unip-3", {"B": B}), ("dpm-solver++-3m", {})))
    for a, b in zip(ours.steps[2:], other.steps[2:], strict=True):
        (_, one), (_, two) = a.stages[-1], b.stages[-1]
        assert (one.x, *one.m) == pytest.approx((two.x, *two.m), rel=1e-12)


def test_13_and_17_are_not_the_same():
    """3M as published is not order 3's, midpoint is not Heun, and the two forms of order 2 differ."""
    for a, b in (
        ("dpm-solver++-3m-published", "dpm-solver++-3m"), ("dpm-solver++-2m", "dpm-solver++-2m-heun"),
        ("dpm-solver", "dpm-solver++-2s"),
    ):  # fmt: skip
        assert float((run(a, {}) - run(b, {})).abs().max()) > 1e-6


def test_19_ipndm_on_even_kappa():
    """On nodes even in κ iPNDM is linear multistep; on others it is not."""
    kappa = torch.linspace(PATH.kappa(0.6), PATH.kappa(0.15), 8, dtype=torch.float64)
    even = [0.6, *(PATH.time(-math.log(k)) for k in kappa[1:-1].tolist()), 0.15]
    for order in (2, 3, 4):
        close(run(f"ipndm-{order}", {}, even), run(f"lms-{order}", {}, even))
        assert float((run(f"ipndm-{order}", {}) - run(f"lms-{order}", {})).abs().max()) > 1e-6


def test_20_the_first_step_of_2m_sde_is_ddpm():
    close(run("sde-dpm-solver++-2m", {})[1], run(*DDPM)[1])


def test_33_richardson_by_hand():
    """`x″ + (x″ − x′)`, two halves in λ against the whole."""
    x = X
    for t, s in itertools.pairwise(GRID):
        middle = PATH.time((PATH.lam(t) + PATH.lam(s)) / 2)
        one, two = (sf.solve(MODEL, x, "ddim", grid=grid).x for grid in ([t, s], [t, middle, s]))
        x = two + (two - one)
    close(run("richardson", {})[-1], x)


def test_21_a_point_is_reached_in_one_step():
    """On data that are one point, every row that carries the marginal: `x_s = α_s μ + σ_s/σ_t (x_t − α_t μ)`."""
    point, t, s = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64), 0.6, 0.15
    model = sf.Gaussian(point, 0.0).model(PATH)
    want = PATH.alpha(s) * point + PATH.sigma(s) / PATH.sigma(t) * (X - PATH.alpha(t) * point)
    for name in (
        "ddim",
        "dpm-solver++-2m",
        "dpm-solver++-3s",
        "unipc-3",
        "exponential-ab-3",
        "dpm-solver",
        "edm",
        "lms-4",
        "res-2s",
    ):
        close(sf.solve(model, X, name, grid=[t, s]).x, want)


def test_23_standard_normal_data():
    """On N(0, I), VP: the exact flow stands still, and DDIM gives `x Π cos Δθ`."""
    model, turn = sf.Gaussian(torch.zeros(3), 1.0).model(PATH), 1.0
    for t, s in itertools.pairwise(GRID):
        turn *= math.cos(math.atan(PATH.kappa(t)) - math.atan(PATH.kappa(s)))
    close(sf.solve(model, X, "ddim", grid=GRID).x, turn * X)
    close(sf.solve(model, X, "pf-ode-rk4", grid=GRID).x, X)


def test_31_inversion_undoes_itself():
    """BDIA; EDICT divides by its p at every step and so loses digits (test_invert.py)."""
    close(sf.invert(MODEL, X, "bdia-ddim", steps=20).decode(MODEL).x, X)


@pytest.mark.parametrize("name", ["ddpm", "unipc-2", "edm"])
def test_32_picard_is_the_run(name):
    plan = sf.plan(name, PATH, grid=GRID)
    close(sf.solve(MODEL, X, plan, seed=0, parallel=3).x, sf.solve(MODEL, X, plan, seed=0).x)
