"""sample and solve: what a run depends on (noise, conditions, ends), and the law of what comes out."""

import math
import threading

import numpy as np
import pytest
import torch
from problems import LINEAR, PATHS, states
from runs import ALL, ON, ORACLE, RATE, VP, Toy, X, sampler
from scipy import stats
from torch import nn

import scoreflow as sf

# -- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", [*LINEAR, "predictor-corrector", "predictor-corrector bridge"])
def test_recorded_draws_replay_the_run(case, dtype):
    x = X.to(dtype)
    run = sf.solve(VP, x, sampler(case), steps=4, seed=8)
    cursor = sf.White(8).draws("step")
    wide = x.float() if dtype == torch.bfloat16 else x  # what it is carried in
    draws = [cursor(wide) for _ in range(run.noise_count)]
    draws = torch.stack(draws) if draws else x.new_empty(0, *x.shape)
    replayed = sf.solve(VP, x, sampler(case), steps=4, noise=draws)
    assert torch.equal(replayed.x, run.x)
    assert replayed.seed is None
    assert replayed.noise_count == run.noise_count
    assert torch.equal(sf.solve(VP, x, sampler(case), steps=4, noise=sf.White(8)).x, run.x)
    with pytest.raises(ValueError, match="draws"):
        sf.solve(VP, x, sampler(case), steps=4, noise=torch.cat([draws, wide[None]]))
    if len(draws):
        with pytest.raises(ValueError, match="draws"):
            sf.solve(VP, x, sampler(case), steps=4, noise=draws[:-1])


@pytest.mark.parametrize("on", ON)
def test_sample_is_the_prior_and_solve(on):
    model, start = ON[on], {"ve": 0.8}.get(on, 1.0)
    std = math.hypot(model.path.alpha(start), model.path.sigma(start))
    draws = states(5, 2, 3, seed=1)
    got = sf.sample(model, (2, 3), "ddpm", steps=5, start=start, noise=draws, dtype=torch.float64)
    assert torch.equal(got, sf.solve(model, draws[0] * std, "ddpm", steps=5, start=start, noise=draws[1:]).x)
    prior = sf.White(4).draws("prior")(X[:2])
    got = sf.sample(model, (2, 3), "ddpm", steps=5, start=start, seed=4, dtype=torch.float64)
    assert torch.equal(got, sf.solve(model, prior * std, "ddpm", steps=5, start=start, seed=4).x)


def test_sample_replays_a_source_as_it_does_a_tensor():
    """With given draws the first is the prior's, in a tensor or in a Replay."""
    draws = states(5, 2, 3, seed=1)
    want = sf.sample(VP, (2, 3), "ddpm", steps=5, noise=draws, dtype=torch.float64)
    assert torch.equal(sf.sample(VP, (2, 3), "ddpm", steps=5, noise=sf.Replay(draws), dtype=torch.float64), want)


def test_sample_with_draws_too_few_or_too_many():
    for count in (0, 1, 4, 6):
        with pytest.raises(ValueError, match="draws"):
            sf.sample(VP, (2, 3), "ddpm", steps=5, noise=states(count, 2, 3), dtype=torch.float64)


@pytest.mark.parametrize("noise", [sf.White(3), sf.Brownian(3, times=sf.plan("ddpm", VP.path, 5).times)])
def test_sample_takes_a_source(noise):
    name = type(noise).__name__.lower()
    want = sf.sample(VP, (2, 3), "ddpm", steps=5, noise=name, seed=3, dtype=torch.float64)
    assert torch.equal(sf.sample(VP, (2, 3), "ddpm", steps=5, noise=noise, dtype=torch.float64), want)


def test_sample_has_the_dtype_of_the_network():
    assert sf.sample(sf.ScoreModel(Toy(torch.float64), sf.VPSDE()), (2, 3), steps=2, seed=0).dtype == torch.float64
    assert sf.sample(sf.ScoreModel(lambda x, t: x, sf.VPSDE()), (2, 3), steps=2, seed=0).dtype == torch.float32
    assert sf.sample(sf.ScoreModel(Toy(), sf.VPSDE()), (2, 3), steps=2, seed=0, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(0.9, 0.5, 0.0), torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)])
def test_sample_begins_where_the_times_begin(grid):
    """On a VE path the prior of t = 0.9 is narrower than that of t = 1."""
    model = ON["ve"]
    prior = sf.White(4).draws("prior")(X[:2]) * math.hypot(1, model.path.sigma(0.9))
    want = sf.solve(model, prior, "ddim", grid=grid).x
    assert torch.equal(sf.sample(model, (2, 3), "ddim", grid=grid, seed=4, dtype=torch.float64), want)
    plan = sf.plan("ddim", model.path, grid=grid)
    assert torch.equal(sf.sample(model, (2, 3), plan, seed=4, dtype=torch.float64), want)


SEEDED = {
    "ddpm": ({}, True),
    "ddim": ({"eta": 0.5}, True),
    "euler-maruyama": ({}, True),
    "reverse-sde": ({"method": "heun", "solver": "scoreflow"}, True),
    "predictor-corrector langevin": ({}, False),
    "predictor-corrector bridge": ({"corrector": "bridge"}, False),
    "torchsde euler": ({"method": "euler"}, False),
    "torchsde srk": ({"method": "srk"}, False),
    "scipy": ({"control": "sample"}, False),
    "torchdiffeq": ({"control": "sample"}, False),
}


@pytest.mark.parametrize("noise", ["white", "brownian"])
@pytest.mark.parametrize("case", SEEDED)
def test_a_sample_depends_on_its_own_seed_only(case, noise):
    """Not on its batch-mates, the batch split or the order."""
    options, exact = SEEDED[case]
    noise = None if case.startswith("torchsde") else noise

    def draw(seeds):
        chosen = sf.get_sampler(case.split()[0], **options)
        return sf.sample(VP, (len(seeds), 3), chosen, steps=6, seed=seeds, noise=noise, dtype=torch.float64)

    def same(a, b):
        if exact:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    whole = draw(range(6))
    same(torch.cat([draw(range(2)), draw([2]), draw(range(3, 6))]), whole)
    same(draw([4, 0, 5]), whole[[4, 0, 5]])
    same(draw([3, 100, 101])[:1], whole[3:4])
    assert (whole[0] != draw([7])[0]).any()


def test_brownian_runs_of_two_step_counts_are_near():
    """Euler–Maruyama of n and 2n steps on one path: strong order 1; with white noise two unrelated samples."""
    model = sf.Gaussian(torch.zeros(3), 1.5).model(sf.VPSDE(0.1, 10.0))

    def apart(n, noise):
        seed = 1 if isinstance(noise, str) else None
        runs = [
            sf.sample(model, (500, 3), "euler-maruyama", steps=k, seed=seed, noise=noise, dtype=torch.float64)
            for k in (n, 2 * n)
        ]
        return (runs[0] - runs[1]).square().mean().sqrt().item()

    assert apart(64, "white") > 5 * apart(64, "brownian")
    white, known, tree = (apart(50, noise) for noise in ("white", "brownian", sf.Brownian(1)))
    assert white > 10 * known and known > 1.2 * tree


@pytest.mark.parametrize("sampler", ["ddpm", "sde-dpm-solver++-2m", "sra1", "seeds-2"])
def test_a_brownian_run_knows_its_times(sampler):
    """`noise="brownian"` is the path of the run's own times, the same when it is asked."""
    model, x = sf.Gaussian(torch.zeros(3), 1.5).model(VP.path), torch.randn(4, 3, dtype=torch.float64)
    plan = sf.plan(sampler, model.path, 7, start=0.9)
    x_0 = sf.solve(model, x, sampler, steps=7, start=0.9, seed=3, noise="brownian").x
    assert torch.equal(x_0, sf.solve(model, x, plan, noise=sf.Brownian(3, times=plan.times)).x)
    run = sf.ask(plan, x, path=model.path, prediction=model.prediction, noise="brownian", seed=3)
    while not run.done:
        run.tell(model.evaluate(run.x, run.t)[0])
    assert torch.equal(x_0, run.x)


def test_threads_share_a_sampler_and_a_model():
    """As many runs in threads as one after another, to the bit."""
    jobs = [(case, seed) for case in ("ddpm", "predictor-corrector", "torchdiffeq", "pf-ode heun lambda") for seed in range(3)]
    samplers = {case: sampler(case) for case, _ in jobs}
    model = ORACLE.model(sf.VPSDE())

    def run(case, seed):
        sol = sf.solve(model, states(4, 3, seed=seed), samplers[case], steps=20, seed=seed)
        return sol.x, sol.nfe

    want = {job: run(*job) for job in jobs}
    got, failed = {}, []

    def work(mine):
        try:
            for job in mine:
                got[mine[0], job] = run(*job)
        except Exception as error:
            failed.append(error)

    orders = [jobs, jobs[::-1]]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(got) == 2 * len(jobs)
    for (_, job), (x, nfe) in got.items():
        assert torch.equal(x, want[job][0])
        assert nfe == want[job][1]


# -- gradients and conditions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*LINEAR, "predictor-corrector", "torchdiffeq rk4", "torchsde"])
def test_gradients(case):
    """With grad=True the run is differentiable in x_T and in the parameters; without it no graph is built."""
    net = Toy(torch.float64)
    model = sf.ScoreModel(net, sf.VPSDE())
    x_T = X.clone().requires_grad_()
    sol = sf.solve(model, x_T, sampler(case), steps=3, seed=0, grad=True)
    direction = states(4, 3, seed=9)
    on_x, on_weight = torch.autograd.grad((sol.x * direction).sum(), (x_T, net.weight))

    def value(x, weight):
        with torch.no_grad():
            net.weight.fill_(weight)
        return (sf.solve(model, x, sampler(case), steps=3, seed=0).x * direction).sum().item()

    h, along = 1e-5, states(4, 3, seed=10)
    weight = net.weight.item()
    slope_x = (value(X + h * along, weight) - value(X - h * along, weight)) / (2 * h)
    slope_w = (value(X, weight + h) - value(X, weight - h)) / (2 * h)
    assert (on_x * along).sum().item() == pytest.approx(slope_x, rel=1e-5, abs=1e-7)
    assert on_weight.item() == pytest.approx(slope_w, rel=1e-5, abs=1e-7)
    plain = sf.solve(model, x_T, sampler(case), steps=3, seed=0, trajectory=True)
    assert not plain.x.requires_grad
    assert torch.is_grad_enabled()


def test_a_kept_trajectory_builds_no_graph():
    sol = sf.solve(VP, X.clone().requires_grad_(), "ddim", steps=3, trajectory=True)
    assert not sol.x.requires_grad
    assert not sol.states.requires_grad


class Conditional(nn.Module):
    """x̂_0 = y at every level, so that every run ends at its label; keeps the labels it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list = []

    def forward(self, x, t, y, scale=1.0):
        assert y.shape[0] == x.shape[0]
        self.seen.append(y)
        return (scale * y).reshape(-1, 1).expand_as(x)


@pytest.mark.parametrize("case", ALL)
def test_conditions_reach_the_network(case):
    y = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    net = Conditional()
    model = sf.ScoreModel(net, sf.VPSDE(), "x0")
    given = sf.each(y) if case.endswith(" sample") else y  # what is not marked is given whole
    sol = sf.solve(model, X, sampler(case), steps=3, seed=0, y=given, scale=2.0)
    assert net.seen
    if case not in ("predictor-corrector", "edict"):  # which do not end with x̂_0
        torch.testing.assert_close(sol.x, 2 * y[:, None].expand(4, 3), rtol=1e-9, atol=1e-9)
    if case in ("dpm-adaptive", "gotta-go-fast"):
        assert {part.item() for p in net.seen for part in p} == set(y.tolist())
    elif case.endswith(" sample"):
        assert all(part.shape == (1,) for part in net.seen[:-1])
        assert {part.item() for part in net.seen[:-1]} == set(y.tolist())
    else:
        assert all(part is y for part in net.seen)


def test_a_condition_the_network_does_not_take_is_refused():
    with pytest.raises(TypeError, match="'y' is neither"):
        sf.solve(VP, X, "ddim", steps=3, y=torch.zeros(4))
    with pytest.raises(TypeError, match="'etaa' is neither"):
        sf.solve(VP, X, "ddim", steps=3, etaa=1.0)


@pytest.mark.parametrize("case", ["scipy", "torchdiffeq"])
def test_samples_have_their_own_counts(case):
    """With error controlled by sample, the counts are those of the samples alone."""
    chosen = sf.get_sampler(case, control="sample", rtol=1e-6, atol=1e-6)
    x_T = X * torch.tensor([[1.0], [3.0], [0.1], [6.0]])
    sol = sf.solve(VP, x_T, chosen)
    alone = [sf.solve(VP, x_T[i : i + 1], chosen).nfe for i in range(4)]
    assert list(sol.nfe_per_sample) == alone
    assert sol.nfe == max(alone)


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["ddpm", "ddim", "euler-maruyama", "pf-ode heun t", "predictor-corrector", "scipy", "torchsde"]
)
@pytest.mark.parametrize("start", [1.0, 0.6])
def test_stop_and_denoise(case, start):
    """A run that stops at t, and the same with a last step to x̂_0."""
    kept = sf.solve(VP, X, sampler(case), steps=8, start=start, stop=1e-3, seed=2)
    assert kept.times[0] == start
    assert kept.times[-1] == 1e-3
    assert len(kept.times) == 9
    clean = sf.solve(VP, X, sampler(case), steps=8, start=start, stop=1e-3, denoise=True, seed=2)
    assert clean.times == (*kept.times, 0.0)
    assert clean.nfe == kept.nfe + 1
    torch.testing.assert_close(clean.x, VP.x0(kept.x, 1e-3), rtol=1e-10, atol=1e-10)


def test_denoise_after_explicit_times():
    times = (0.9, 0.4, 0.1)
    kept, clean = (sf.solve(VP, X, "ddim", grid=times, denoise=flag) for flag in (False, True))
    assert kept.times == times
    assert clean.times == (*times, 0.0)
    torch.testing.assert_close(clean.x, VP.x0(kept.x, 0.1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("on", ["cosine", "flow"])
def test_an_eps_network_cannot_start_where_alpha_is_zero(on):
    with pytest.raises(ValueError, match="alpha=0"):
        sf.solve(sf.ScoreModel(lambda x, t: x, PATHS[on]), X, "ddim", steps=3)
    assert sf.solve(sf.ScoreModel(lambda x, t: x, PATHS[on]), X, "ddim", steps=3, start=0.9).x.isfinite().all()
    assert sf.solve(ORACLE.model(PATHS[on]), X, "ddim", steps=3).x.isfinite().all()


def test_a_state_that_is_not_finite_names_the_step():
    def net(x, t):
        return x * (math.nan if float(t[0]) < 0.6 else 1.0)

    with pytest.raises(FloatingPointError, match=r"step 3 .*t=0.5"):
        sf.solve(sf.ScoreModel(net, sf.VPSDE()), X, "ddim", steps=4)


# -- the law of the samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "steps", "bias"),
    [
        ("ddpm", 1000, 0.01),
        ("euler-maruyama", 1000, 0.02),
        ("pf-ode heun t", 100, 0.005),
        ("reverse-sde heun lambda", 200, 0.01),
    ],
)
def test_a_gaussian_comes_out(case, steps, bias):
    """Mean and covariance of 4000 samples, at one false-alarm rate.

    `bias` bounds the error of the discretisation and of the prior, as a share of the data's standard deviations.
    """
    cov = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.3]], dtype=torch.float64)
    mean = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64)
    n, d = 4000, 3
    model = sf.Gaussian(mean, cov).model(PATHS["chain"])
    grid = "logsnr" if "lambda" in case else None
    x = sf.sample(model, (n, d), sampler(case), steps=steps, grid=grid, seed=12, dtype=torch.float64)
    white = np.linalg.solve(np.linalg.cholesky(cov.numpy()), (x - mean).numpy().T)  # N(0, I) if all is well
    tests = d + d * (d + 1) / 2
    bound = stats.norm.isf(RATE / tests / 2)
    assert np.abs(white.mean(1)).max() < bound / math.sqrt(n) + bias
    second = white @ white.T / n
    low, high = (stats.chi2.ppf(q, n) / n for q in (RATE / tests / 2, 1 - RATE / tests / 2))
    assert low - 2 * bias < np.diag(second).min()
    assert np.diag(second).max() < high + 2 * bias
    assert np.abs(second[np.triu_indices(d, 1)]).max() < bound / math.sqrt(n) + 2 * bias


# -- the front door --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "keywords", "match"),
    [
        (ValueError, {"sampler": "dimm"}, "did you mean.*ddim"),
        (TypeError, {"sampler": 3}, "sampler must"),
        (ValueError, {"steps": 0}, "steps must"),
        (TypeError, {"steps": 2.5}, "steps must"),
        (ValueError, {"steps": 3, "nfe": 3}, "exclude"),
        (ValueError, {"nfe": 0}, "nfe must"),
        (ValueError, {"start": 1.5}, "start must"),
        (ValueError, {"start": 0.2, "stop": 0.5}, "start must lie above stop"),
        (ValueError, {"grid": "unifrom"}, "uniform"),
        (ValueError, {"grid": (0.1, 0.5)}, "decrease"),
        (ValueError, {"grid": (1.0, 0.0), "steps": 3}, "exclude"),
        (ValueError, {"seed": (1, 2)}, "2 entries for a batch of 4"),
        (TypeError, {"seed": 1.5}, "seed must"),
        (ValueError, {"noise": "pink"}, "noise must"),
        (TypeError, {"noise": 3}, "noise must"),
        (ValueError, {"noise": sf.White(0), "seed": 0}, "exclude"),
        (ValueError, {"noise": sf.White((1, 2))}, "2 entries for a batch of 4"),
        (ValueError, {"sampler": "torchsde", "noise": "white", "steps": 3}, "Brownian path"),
    ],
)
def test_wrong_arguments_are_refused(error, keywords, match):
    with pytest.raises(error, match=match):
        sf.solve(VP, X, **keywords)


@pytest.mark.parametrize("x_T", [[1.0], torch.zeros(2, 3, dtype=torch.int64), torch.tensor(1.0)])
def test_x_T_must_be_a_batch(x_T):
    with pytest.raises(TypeError, match="x_T must"):
        sf.solve(VP, x_T)
    with pytest.raises(TypeError, match="model must"):
        sf.solve(lambda x, t: x, X)


@pytest.mark.parametrize("shape", [(), (3, 0), (2.0, 3), (-1, 3)])
def test_a_shape_is_whole_numbers(shape):
    with pytest.raises((TypeError, ValueError), match="shape must"):
        sf.sample(VP, shape)
