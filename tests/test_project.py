"""`project`: a run held in a subspace, its law there, and that it is one run however it is driven."""

import copy
import math
import pickle

import pytest
import torch
from problems import LINEAR, PATHS, linear, states
from runs import OTHERS, sampler

import scoreflow as sf

VP = PATHS["vp"]
N, D = 5, 3  # points, and where they are
X = states(6, N, D)
RATE = 1e-6
BASIS = torch.linalg.eigh(torch.ones(N, N, dtype=torch.float64)).eigenvectors[:, :-1].T
"""(N − 1, N), orthonormal, and across (1, …, 1)."""
HELD = torch.kron(BASIS, torch.eye(D, dtype=torch.float64))
"""The same of all entries, (12, 15)."""
RUN = {"steps": 4, "start": 0.9}


def centred(x):
    """Points with their mean at 0."""
    return x - x.mean(1, keepdim=True)


def net(x, t):
    """Of no data: it moves the mean, and sees it, so that what is not projected shows."""
    return torch.sin(2 * x + t.reshape(-1, 1, 1)) + 0.5 + x.mean((1, 2), keepdim=True)


MODEL = sf.ScoreModel(net, VP)


def off(x):
    """How far the means of the points are from 0, in the rounding of such numbers."""
    return float(x.mean(-2).abs().max() / x.abs().max()) / torch.finfo(x.dtype).eps


# -- in the subspace ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LINEAR)
def test_it_is_the_run_in_the_subspace(case):
    """All states of 15 numbers are those of a run of 12, whose draws and network are in an orthonormal basis of it."""
    chosen = linear(case)
    count = sf.plan(chosen, VP, **RUN).noise_count
    draws, seen = states(count, *X.shape, seed=1), []

    def watched(x, t):
        seen.append(x)
        return net(x, t)

    def inside(y, t):
        return BASIS @ net(BASIS.T @ y, t)

    kept = {"trajectory": True, **RUN}
    held = sf.solve(sf.ScoreModel(watched, VP), X + 3, chosen, **kept, noise=draws if count else None, project=centred)
    small = sf.solve(sf.ScoreModel(inside, VP), BASIS @ X, chosen, **kept, noise=BASIS @ draws if count else None)
    torch.testing.assert_close(held.states, BASIS.T @ small.states, rtol=1e-9, atol=1e-9)
    assert (held.nfe, held.times, held.noise_count) == (small.nfe, small.times, small.noise_count) and len(seen) == held.nfe
    assert all(off(x) < 2 for x in (*held.states, *seen))  # at stages too


@pytest.mark.parametrize("case", ["ddim", "unipc 3", "pf-ode heun t", "dpm-solver 3"])
def test_the_law_of_a_deterministic_run(case):
    """From a basis of all states, its linear map is that of the exact law on the subspace, and 0 across it."""
    root = states(12, 12, seed=2)
    data = sf.Gaussian(torch.zeros(N, D), HELD.T @ root @ root.T @ HELD / 12)
    law = sf.analysis.law(linear(case), VP, data, 6, start=0.9)
    each = torch.eye(15, dtype=torch.float64).reshape(15, N, D) * VP.prior_std(0.9)
    x = sf.solve(data.model(VP), each, linear(case), steps=6, start=0.9, project=centred).x.flatten(1)
    torch.testing.assert_close(x.T @ x, HELD.T @ (HELD @ law.cov @ HELD.T) @ HELD, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["ddpm", "sde-dpm-solver++ 2m", "seeds 3 eta=0.5"])
def test_the_law_of_samples(case):
    """Prior and draws are those of the subspace: 4000 samples have its covariance, at a rate of false alarms of 1e-6 a case.

    Whitened, the 12 numbers are standard normal: 78 means of products, of variance 1, or 2 on the diagonal, over n.
    """
    n, root = 4000, states(12, 12, seed=2)
    data = sf.Gaussian(torch.zeros(N, D), HELD.T @ root @ root.T @ HELD / 12)
    law = sf.analysis.law(linear(case), VP, data, 8)
    x = sf.sample(data.model(VP), (n, N, D), linear(case), steps=8, seed=3, dtype=torch.float64, project=centred)
    assert off(x) < 2
    y = torch.linalg.solve_triangular(torch.linalg.cholesky(HELD @ law.cov @ HELD.T), HELD @ x.flatten(1).T, upper=False)
    z = (y @ y.T / n - torch.eye(12)) * math.sqrt(n) / (1 + torch.eye(12)).sqrt()
    bound = -torch.special.ndtri(torch.tensor(RATE / 2 / 78, dtype=torch.float64)) + 0.25  # for the skew √(8/n) of χ²: 0.24
    assert z.abs().max() < bound


# -- sets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["ddpm", "unipc", "dpm-solver", "edm-churn", "sra"])
def test_a_mask_of_sets_is_exactly_kept(case):
    """Places that a sample does not have are 0 at all times, and the others do not see them."""
    there = (torch.arange(N) < torch.tensor([5, 4, 3, 2, 1, 0])[:, None])[:, :, None]

    def local(x, t):
        return torch.sin(2 * x + t.reshape(-1, 1, 1)) + 0.5

    model = sf.ScoreModel(local, VP)
    sol = sf.solve(model, X, case, **RUN, seed=range(6), trajectory=True, project=lambda x: x * there)
    assert not sol.states[:, ~there.expand(X.shape)].any()
    free = sf.solve(model, X, case, **RUN, seed=range(6), trajectory=True)
    assert torch.equal(sol.states[:, there.expand(X.shape)], free.states[:, there.expand(X.shape)])


# -- one run, however it is driven --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", LINEAR)
def test_asked_is_solved_to_the_bit(case):
    run = sf.ask(linear(case), X, path=VP, **RUN, seed=5, project=centred)
    while not run.done:
        run.tell(net(run.x, run.label))
    assert torch.equal(run.x, sf.solve(MODEL, X, linear(case), **RUN, seed=5, project=centred).x)


@pytest.mark.parametrize("case", ["ddpm", "unipc", "dpm-solver", "restart"])
def test_in_parallel_and_together(case):
    """Picard's iteration gives the same to the bit in batches of one size, to rounding here; so do runs in one call."""
    sol = sf.solve(MODEL, X, case, **RUN, seed=5, project=centred, trajectory=True)
    side = sf.solve(MODEL, X, case, **RUN, seed=5, project=centred, parallel=3, trajectory=True)
    torch.testing.assert_close(side.states, sol.states, rtol=1e-12, atol=1e-12)
    together = sf.solve_many([{"sampler": case, **RUN}, ("ddim", 3)], MODEL, X, seed=5, project=centred)
    torch.testing.assert_close(together[0].x, sol.x, rtol=1e-12, atol=1e-12)
    assert off(together[1].x) < 2


def test_a_run_is_copied_pickled_and_edited():
    """As any run; what replaces its states is projected."""
    whole = sf.solve(MODEL, X, "dpm-solver", **RUN, project=centred).x
    run = sf.ask("dpm-solver", X, path=VP, **RUN, project=centred)
    run.tell(net(run.x, run.label))
    for other in (copy.copy(run), pickle.loads(pickle.dumps(run)), run):
        while not other.done:
            other.tell(net(other.x, other.label))
        assert torch.equal(other.x, whole)
    edited = sf.ask("ddim", X, path=VP, **RUN, project=centred)
    edited.replace(X + 3)
    assert torch.equal(edited.x, centred(X + 3))


def test_the_callers_states_stay():
    """Though the function works in place; and 16 bits come out as they went in."""

    def in_place(x):
        return x.sub_(x.mean(1, keepdim=True))

    x_T = X.clone()
    sol = sf.solve(MODEL, x_T, "ddim", **RUN, project=in_place)
    assert torch.equal(x_T, X) and torch.equal(sol.x, sf.solve(MODEL, X, "ddim", **RUN, project=centred).x)
    run = sf.ask("ddim", x_T, path=VP, **RUN, project=in_place)
    assert torch.equal(x_T, X) and torch.equal(run.x, centred(X))
    half = sf.solve(MODEL, X.bfloat16(), "ddim", **RUN, project=lambda x: centred(x.double()))
    assert half.x.dtype is torch.bfloat16


def test_gradients_go_through():
    x, step = X.clone().requires_grad_(), 1e-6 * states(*X.shape, seed=4)
    (slope,) = torch.autograd.grad(sf.solve(MODEL, x, "unipc", **RUN, grad=True, project=centred).x.square().sum(), x)
    up, down = (sf.solve(MODEL, X + s * step, "unipc", **RUN, project=centred).x.square().sum() for s in (1, -1))
    assert float((slope * step).sum()) == pytest.approx(float(up - down) / 2, rel=1e-6)
    assert off(slope) < 10


# -- refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OTHERS)
def test_samplers_without_rows_are_refused(case):
    with pytest.raises(ValueError, match=r"project holds the states that rows make, and .* is not made of rows"):
        sf.solve(MODEL, X, sampler(case), start=0.9, stop=0.1, seed=0, project=centred)


@pytest.mark.parametrize(
    "call",
    [
        lambda project: sf.solve(MODEL, X, "ddim", steps=2, project=project),
        lambda project: sf.sample(MODEL, X.shape, "ddim", steps=2, seed=0, project=project),
        lambda project: sf.ask("ddim", X, path=VP, steps=2, project=project),
        lambda project: sf.solve_many(["ddim"], MODEL, X, project=project),
    ],
    ids=["solve", "sample", "ask", "solve_many"],
)
def test_refusals(call):
    with pytest.raises(TypeError, match="project must be a function of the states, got 3"):
        call(3)
    with pytest.raises(TypeError, match="project must give the states again, a tensor, got NoneType"):
        call(lambda x: None)
    with pytest.raises(ValueError, match=r"project must keep the shape of the states, \(6, 5, 3\), got \(6, 1, 3\)"):
        call(lambda x: x.mean(1, keepdim=True))


def test_projected_steps_have_no_density():
    run = sf.ask("ddpm", states(4, 3), path=sf.VPSDE(), steps=3, seed=0, project=lambda x: x - x.mean(1, keepdim=True))
    assert run.transition is None
    run.tell(torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="the states of a run with project lie in a subspace"):
        _ = run.transition
