"""The shipped network: the textbook loop against ours over its chain, and what it draws."""

import pytest
import torch
from problems import states

import scoreflow as sf

B, T = 2, 1000


def textbook(net, x, draws, beta):
    """Algorithm 2 of Ho et al. (2020) as everyone types it: x ← μ_θ + √β_t z, a draw a step, down to t = 0, no noise there."""
    alpha = 1 - beta
    bar = torch.cumprod(alpha, 0)
    with torch.no_grad():
        for t in reversed(range(len(draws))):
            eps = net(x, torch.full((len(x),), t, device=x.device))
            x = (x - beta[t] / torch.sqrt(1 - bar[t]) * eps) / torch.sqrt(alpha[t])
            if t > 0:
                x = x + torch.sqrt(beta[t]) * draws[-t]
    return x


@pytest.mark.parametrize(("dtype", "tolerance", "steps"), [(torch.float64, 1e-10, T), (torch.float32, 1e-4, 100)])
def test_the_textbook_loop(dtype, tolerance, steps):
    """By the same draws `sample(..., "ddpm", variance="beta")` is the textbook loop, over the last 100 steps.

    Over all 1000, with a small network in the place of the shipped one.
    """
    model = sf.zoo.digits(dtype=dtype)
    if steps == T:
        torch.manual_seed(0)
        model = model.over(sf.nets.UNet(widths=(8,)).to(dtype).eval())
    draws = states(steps, B, 1, 8, 8, dtype=dtype)
    beta = torch.linspace(1e-4, 0.02, T, dtype=torch.float64).to(dtype)
    x = textbook(model.net, draws[0], draws, beta)
    ours = sf.sample(model, (B, 1, 8, 8), sampler="ddpm", variance="beta", start=steps / T, noise=draws)
    assert ours.dtype is dtype
    assert float((ours - x).abs().max()) < tolerance * float(x.abs().max())


def test_the_mean_is_the_chains():
    """One step of the network's ddpm row is the chain's μ_θ and posterior variance, at several t."""
    model, chain = sf.zoo.digits(dtype=torch.float64), sf.DDPMChain.linear()
    x, z = states(B, 1, 8, 8), states(B, 1, 8, 8, seed=1)
    with torch.no_grad():
        for t in (2, 10, 500, 1000):
            eps = model.net(x, torch.full((B,), t - 1.0, dtype=torch.float64))
            step = chain.mean_from_eps(x, eps, t) + chain.posterior_variance[t - 1].sqrt() * z
            ours = sf.solve(model, x, "ddpm", grid=[t / T, (t - 1) / T], noise=z[None]).x
            torch.testing.assert_close(ours, step, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def classifier():
    """A support vector machine on the training digits; right on 98 % of those held out."""
    from sklearn.svm import SVC

    data = sf.zoo.digits_data()
    machine = SVC(gamma=0.02, C=10).fit(data.train.flatten(1).numpy(), data.train_labels.numpy())
    assert machine.score(data.held_out.flatten(1).numpy(), data.held_out_labels.numpy()) > 0.97
    return lambda x: torch.from_numpy(machine.predict(x.flatten(1).numpy()))


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ddpm", {"steps": 100}),
        ("ddim", {}),
        ("pf-ode", {"steps": 25}),
        ("pf-ode", {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}),
        ("reverse-sde", {}),
    ],
)
def test_the_class_asked_is_drawn(sampler, options, classifier):
    """Every sampler draws the digit asked for: 9 of 10 are classified as such; by chance 1 of 10 would be."""
    labels = torch.arange(10).repeat(4)
    x = sf.sample(sf.zoo.digits(), (40, 1, 8, 8), sampler=sampler, seed=0, y=labels, **options)
    assert (classifier(x) == labels).float().mean() >= 0.9


def test_without_classes_all_digits_are_drawn(classifier):
    """Unconditionally, 100 samples hold at least nine of the ten digits, and ink between paper and full."""
    x = sf.sample(sf.zoo.digits(), (100, 1, 8, 8), sampler="ddim", steps=25, seed=1)
    assert len(set(classifier(x).tolist())) >= 9
    assert -1.5 < float(x.min()) and float(x.max()) < 1.6


def test_the_weights_are_what_was_trained(tmp_path):
    """The file is safetensors, under 3 MB, and writes back to itself; half precision runs."""
    from pathlib import Path

    from scoreflow import zoo

    file = Path(zoo.__file__).with_name("digits.safetensors")
    assert file.stat().st_size < 3_000_000
    net = zoo.load(file)
    zoo.save(net, tmp_path / "again.safetensors")
    again = zoo.load(tmp_path / "again.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    x = sf.sample(sf.zoo.digits(dtype=torch.bfloat16), (2, 1, 8, 8), steps=5, seed=0)
    assert x.dtype is torch.float32 and bool(x.isfinite().all())


def test_the_split_is_fixed():
    """1297 images to train on and 500 held out, from −1 to 1; all 1797 once."""
    data = sf.zoo.digits_data()
    assert data.train.shape == (1297, 1, 8, 8) and data.held_out.shape == (500, 1, 8, 8)
    assert float(data.train.min()) == -1 and float(data.train.max()) == 1
    assert torch.bincount(torch.cat([data.train_labels, data.held_out_labels])).sum() == 1797
