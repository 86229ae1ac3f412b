"""Budgets in evaluations, and the grids and steps that stand where none is said."""

import inspect
import math

import pytest
from problems import PATHS, mixture, states
from runs import schedule
from scipy.stats import beta

import scoreflow as sf
from scoreflow._core.grid import GRIDS

ON_CHAIN = ("trailing", "leading", "linspace")
TO_INFINITY = ("logsnr", "karras", "polyexponential")
"""Their variable is infinite where α = 0 and where σ = 0."""

VARIABLES = {
    "uniform": lambda path, t: t,
    "quadratic": lambda path, t: math.sqrt(t),
    "cosine": lambda path, t: math.atan(path.kappa(t)),
    "logsnr": lambda path, t: path.lam(t),
    "karras": lambda path, t: path.kappa(t) ** (1 / 7),
    "polyexponential": lambda path, t: path.lam(t),
    "rectified": lambda path, t: path.sigma(t) / (path.alpha(t) + path.sigma(t)),
    "beta": lambda path, t: beta(0.6, 0.6).cdf(t),
}
"""What each rule steps through evenly."""

CASES = [(name, path) for name in VARIABLES for path in PATHS]
on_every_path = pytest.mark.parametrize(("name", "path"), CASES)


def chain_of(T):
    return sf.VPSDE.from_betas(sf.DDPMChain.linear(T).beta)


# -- budgets ------------------------------------------------------------------------------------------------------------

BUDGETED = {
    "ddim": sf.get_sampler("ddim"),
    "ddpm": sf.get_sampler("ddpm"),
    "learned variance": sf.get_sampler("ddpm", variance="learned"),
    "pf-ode heun": sf.get_sampler("pf-ode", method="heun"),
    "pf-ode rk4": sf.get_sampler("pf-ode", method="rk4"),
    "torchdiffeq midpoint": sf.get_sampler("torchdiffeq", method="midpoint", substeps=2),
    "predictor-corrector": sf.get_sampler("predictor-corrector"),
    "predictor-corrector n=2": sf.get_sampler("predictor-corrector", predictor="ddpm", n=2),
}


@pytest.mark.parametrize(
    ("path", "keywords"),
    [
        ("vp", {}),
        ("vp", {"grid": "karras"}),
        ("vp", {"stop": 0.1}),
        ("vp", {"stop": 0.1, "denoise": True}),
        ("ve", {"start": 0.9, "grid": "quadratic"}),
        ("chain", {}),
        ("chain", {"grid": "leading"}),
    ],
)
@pytest.mark.parametrize("name", BUDGETED)
def test_a_budget_gives_the_most_steps_within_it(name, path, keywords):
    """Against every number of steps."""
    sampler, path = BUDGETED[name], PATHS[path]
    asked = {steps: sampler.evaluations(path, schedule(sampler, path, steps, **keywords)) for steps in range(1, 45)}
    for nfe in (*range(1, 13), 25, 40):
        within = [steps for steps, cost in asked.items() if cost <= nfe]
        if not within:
            with pytest.raises(ValueError, match=f"nfe={nfe} is less than the {asked[1]}"):
                schedule(sampler, path, nfe=nfe, **keywords)
            continue
        times = schedule(sampler, path, nfe=nfe, **keywords)
        assert times == schedule(sampler, path, max(within), **keywords)


@pytest.mark.parametrize(
    ("name", "nfe", "steps", "used"),
    [
        ("ddim", 10, 10, 10),
        ("ddpm", 10, 10, 10),
        ("pf-ode heun", 10, 5, 9),
        ("pf-ode heun", 11, 6, 11),
        ("pf-ode rk4", 10, 3, 9),
        ("pf-ode rk4", 4, 1, 1),
        ("torchdiffeq midpoint", 10, 3, 9),
        ("predictor-corrector", 10, 5, 9),
        ("predictor-corrector n=2", 10, 4, 10),
    ],
)
def test_a_budget_is_kept_by_the_run(name, nfe, steps, used):
    """The last step, to σ = 0, costs one evaluation: heun has 2 (n − 1) + 1, rk4 4 (n − 1) + 1, one corrector 2n − 1."""
    asked = []
    exact = mixture().model(PATHS["vp"])
    model = sf.ScoreModel(lambda x, t: asked.append(t) or exact.net(x, t), PATHS["vp"], "x0")
    solution = sf.solve(model, states(2, 3), BUDGETED[name], nfe=nfe, seed=0)
    assert len(solution.times) == steps + 1
    assert len(asked) == solution.nfe == model.nfe == used


@pytest.mark.parametrize(("nfe", "steps"), [(5, 5), (20, 20), (500, 20)])
def test_a_budget_ends_with_the_chain(nfe, steps):
    assert schedule(sf.get_sampler("ddim"), chain_of(20), nfe=nfe) == sf.grid(chain_of(20), steps)


# -- defaults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "T", "steps"),
    [
        ("ddim", None, 50),
        ("ddim", 1000, 50),
        ("ddim", 20, 20),
        ("pf-ode-euler", None, 50),
        ("ddpm", None, 1000),
        ("ddpm", 1000, 1000),
        ("ddpm", 20, 20),
        ("ddpm", 1500, 1500),
        ("predictor-corrector", None, 100),
        ("predictor-corrector", 1000, 100),
        ("predictor-corrector", 20, 20),
    ],
)
def test_default_steps(name, T, steps):
    path = sf.VPSDE() if T is None else chain_of(T)
    assert schedule(sf.get_sampler(name), path) == sf.grid(path, steps)


@pytest.mark.parametrize("name", ["torchdiffeq", "scipy"])
@pytest.mark.parametrize(("path", "t_min"), [("vp", 1e-3), ("chain", 1 / 1000), ("ve", 1e-3)])
def test_default_of_a_tolerance(name, path, t_min):
    """As few times as it needs, with one last step from t_min where the run ends at the data."""
    sampler, path = sf.get_sampler(name), PATHS[path]
    assert schedule(sampler, path) == (1.0, t_min, 0.0)
    assert schedule(sampler, path, start=0.5) == (0.5, t_min, 0.0)
    assert schedule(sampler, path, start=t_min / 2) == (t_min / 2, 0.0)
    assert schedule(sampler, path, stop=0.1) == (1.0, 0.1)
    assert schedule(sampler, path, stop=0.1, denoise=True) == (1.0, 0.1, 0.0)
    assert schedule(sampler, path, grid="uniform") == sf.grid(path, 50, "uniform")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("start", [0.5, 0.02])
def test_default_grid_fits_the_ends(path, start):
    """The default steps are never more than the chain has between start and stop."""
    path = PATHS[path]
    for name in ("ddim", "ddpm", "predictor-corrector"):
        times = schedule(sf.get_sampler(name), path, start=start)
        assert (times[0], times[-1]) == (start, 0.0)
        if path.T and name == "ddpm":
            assert times == tuple(i / path.T for i in range(round(start * path.T), -1, -1))


def test_rules_take_what_the_face_gives():
    """Every rule is `(path, steps, start, stop, **options)`, options with defaults."""
    for rule in GRIDS.values():
        parameters = list(inspect.signature(rule).parameters.values())
        assert [p.name for p in parameters[:4]] == ["path", "steps", "start", "stop"]
        assert all(p.default is not p.empty for p in parameters[4:])


def test_a_plan_is_not_moved_to_the_chain_unless_a_network_knows_no_other_times():
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    times = sf.plan("ddim", path, 7, grid="logsnr").times
    assert times == tuple(sf.grid(path, 7, "logsnr")) and any(abs(1000 * t - round(1000 * t)) > 0.01 for t in times)


@pytest.mark.parametrize("name", ["edm", "dpm-solver-3", "dpm-2"])
def test_an_error_of_a_sampler_is_not_the_end_of_a_grid(name):
    """Where α = 0 at the start, noise form cannot begin: that is said, and no run of one step is made of the budget."""
    with pytest.raises(ValueError, match="noise form begins where alpha > 0"):
        sf.plan(name, sf.VPSDE.from_betas(sf.DDPMChain.linear().zero_terminal_snr().beta), nfe=11)
