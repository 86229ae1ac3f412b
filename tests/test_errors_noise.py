"""Bad input gets a clear error, and nothing is half done: noise, seeds, labels."""

import pytest
import torch
from refusals import CHAIN, X, both, draws, run_sample, zero_model

import scoreflow as sf

# -- noise and seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "right"),
    [
        (dict(sampler="ddim"), 0),
        (dict(sampler="ddim", eta=0.5), 4),
        (dict(sampler="ddpm"), 4),
        (dict(sampler="ddpm", stop=0.1), 5),
        (dict(sampler="reverse-sde"), 4),
    ],
)
@pytest.mark.parametrize("off", [-2, -1, 1, 3])
@both
def test_count_of_draws_of_linear_samplers(run, sampler, right, off):
    """Told at the front door, in numbers of the draws that were given. For `sample` the first is the prior's."""
    right += run is run_sample
    off = off if right + off >= 0 else -off  # there is no count below 0
    model = zero_model()
    with pytest.raises(ValueError, match=f"noise holds {right + off} draws"):
        run(model, steps=5, noise=draws(right + off, 2, 3), **sampler)
    assert model.nfe == 0
    run(model, steps=5, noise=draws(right, 2, 3), **sampler)
    assert model.nfe >= 5


@pytest.mark.parametrize("off", [-2, -1, 1, 3])
@both
def test_count_of_draws_of_other_samplers(run, off):
    """Predictor-corrector on 3 steps: 2 draws of the predictor, 2 of the corrector; the landing has none."""
    right = 4 + (run is run_sample)
    model = zero_model(prediction="x0")
    with pytest.raises(ValueError, match=f"noise holds {right + off} draws"):
        run(model, sampler="predictor-corrector", steps=3, noise=draws(right + off, 2, 3))
    run(model, sampler="predictor-corrector", steps=3, noise=draws(right, 2, 3))


@both
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3,), (2, 3, 1), (1, 3)])
@pytest.mark.parametrize("sampler", ["ddpm", "predictor-corrector"])
def test_shape_of_draws(run, shape, sampler):
    model = zero_model(prediction="x0")
    count = {"ddpm": 2, "predictor-corrector": 4}[sampler] + (run is run_sample)
    got = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"noise.*shape \({got},?\).*\(2, 3\)"):
        run(model, sampler=sampler, steps=3, noise=draws(count, *shape))
    assert model.nfe == 0


@both
def test_draws_without_a_count(run):
    model = zero_model()
    with pytest.raises((TypeError, ValueError), match="noise"):
        run(model, sampler="ddpm", steps=2, noise=torch.tensor(1.0))
    assert model.nfe == 0


@both
@pytest.mark.parametrize(
    ("seed", "error", "match"),
    [
        ([1], ValueError, "seed has 1 entries for a batch of 2"),
        ([1, 2, 3], ValueError, "seed has 3 entries for a batch of 2"),
        (range(5), ValueError, "seed has 5 entries for a batch of 2"),
        ([], ValueError, "seed has 0 entries for a batch of 2"),
        (torch.tensor([1, 2, 3]), ValueError, "seed has 3 entries for a batch of 2"),
        (1.0, TypeError, "seed must be an int or a sequence of ints.*1.0"),
        ("12", TypeError, "seed must be an int or a sequence of ints.*'12'"),
        (True, TypeError, "seed must be an int or a sequence of ints.*True"),
        ([1.0, 2.0], TypeError, "seed must be an int or a sequence of ints.*1.0"),
        ([True, False], TypeError, "seed must be an int or a sequence of ints.*True"),
        (["1", "2"], TypeError, "seed must be an int or a sequence of ints.*'1'"),
        (torch.tensor([1.0, 2.0]), TypeError, "seed must be an int or a sequence of ints.*1.0"),
    ],
)
def test_seeds(run, seed, error, match):
    for sampler in ("ddim", "ddpm"):
        model = zero_model()
        with pytest.raises(error, match=match):
            run(model, sampler=sampler, steps=3, seed=seed)
        assert model.nfe == 0


@both
@pytest.mark.parametrize("source", [sf.White, sf.Brownian])
def test_seeds_of_a_source(run, source):
    model = zero_model()
    with pytest.raises(ValueError, match="seed has 3 entries for a batch of 2"):
        run(model, sampler="ddpm", steps=3, noise=source([1, 2, 3]))
    with pytest.raises(TypeError, match=r"seed must be an int or a sequence of ints.*1\.5"):
        source(1.5)
    assert model.nfe == 0


@both
@pytest.mark.parametrize("noise", [sf.White(1), sf.Brownian(1), draws(2, 2, 3), sf.Replay(draws(2, 2, 3))], ids=repr)
def test_seed_beside_a_source(run, noise):
    model = zero_model()
    with pytest.raises(ValueError, match="seed=0 and noise exclude each other"):
        run(model, sampler="ddpm", steps=3, seed=0, noise=noise)
    assert model.nfe == 0


@both
@pytest.mark.parametrize("noise", [draws(9, 2, 3), sf.White(1), "white"], ids=["draws", "White", "white"])
@pytest.mark.parametrize("sampler", [dict(sampler="torchsde"), dict(sampler="reverse-sde", method="srk")])
def test_torchsde_needs_a_brownian_path(run, noise, sampler):
    model = zero_model()
    with pytest.raises(ValueError, match=r"torchsde needs a Brownian path.*seed.*Brownian"):
        run(model, steps=4, noise=noise, **sampler)
    assert model.nfe == 0


# -- whole labels -------------------------------------------------------------------------------------------------------


def label_model(path=CHAIN):
    """A network with a table of embeddings, and the labels it was told."""
    table, told = torch.arange(path.T, dtype=torch.float32), []

    def net(x, label):
        told.extend(label[:1].tolist())
        return 0.0 * table[label][:, None] + 0.1 * x

    return sf.ScoreModel(net, path, time="label"), told


@pytest.mark.parametrize(
    "keywords",
    [
        dict(sampler="ddim", grid="uniform", steps=7),
        dict(sampler="ddim", grid=[1.0, 0.5004, 0.0]),
        dict(sampler="ddim", grid="logsnr", steps=10),
        dict(sampler="pf-ode", method="dopri5"),
        dict(sampler="pf-ode", method="RK45"),
        dict(sampler="pf-ode", method="midpoint", grid="trailing", steps=1000),
        dict(sampler="torchsde", method="srk", steps=1000),
    ],
)
def test_labels_that_are_not_whole(keywords):
    model, told = label_model()
    with pytest.raises(ValueError, match=r"whole labels 0…999.*t=0\.\d+ has the label \d+\.\d+.*'trailing'"):
        sf.solve(model, X, seed=0, **keywords)
    assert set(told) <= {999, 998}  # not a label was told that was not meant


@pytest.mark.parametrize(
    ("keywords", "labels"),
    [
        (dict(sampler="ddim", steps=10), range(999, 0, -100)),
        (dict(sampler="ddim", grid="uniform", steps=8), range(999, 0, -125)),
        (dict(sampler="ddim", grid="leading", steps=4), [750, 500, 250, 0]),
        (dict(sampler="ddim", grid="linspace", steps=4), [999, 666, 333, 0]),
        (dict(sampler="ddim", steps=3), [999, 666, 332]),
        (dict(sampler="ddpm", start=0.02, steps=20), range(19, -1, -1)),
        (dict(sampler="pf-ode", method="heun", grid="trailing", steps=2), [999, 499, 499]),
        (dict(sampler="pf-ode", method="midpoint", grid="trailing", steps=2), [999, 749, 499]),
        (dict(sampler="torchsde", steps=4), [999, 749, 499, 249]),
    ],
)
def test_labels_that_are(keywords, labels):
    model, told = label_model()
    sf.solve(model, X, seed=0, **keywords)
    assert told == list(labels)


# -- networks that say a variance, or do not ----------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["learned", "interpolated"])
def test_learned_variance_of_a_plain_network(variance):
    with pytest.raises(ValueError, match=f"variance='{variance}' needs a network with twice the channels.*'posterior'"):
        sf.solve(zero_model(CHAIN), X, "ddpm", steps=3, seed=0, variance=variance)
