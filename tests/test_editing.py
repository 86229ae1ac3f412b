"""Between latents, from images to images, and the way there and back."""

import numpy as np
import pytest
import torch
from problems import mixture, states

import scoreflow as sf


def test_interpolation():
    """Ends are ends; spherical keeps the length, linear does not; a mean angle in the middle."""
    a, b = states(3, 2, 4, seed=0), states(3, 2, 4, seed=1)
    for kind in ("spherical", "linear"):
        found = sf.interpolate(a, b, 5, kind)
        assert found.shape == (5, 3, 2, 4)
        torch.testing.assert_close(found[0], a)
        torch.testing.assert_close(found[-1], b)
    unit_a, unit_b = (v / v.flatten(1).norm(dim=1)[:, None, None] for v in (a, b))
    middle = sf.interpolate(unit_a, unit_b, [0.25, 0.5])
    torch.testing.assert_close(middle.flatten(2).norm(dim=2), torch.ones(2, 3, dtype=torch.float64))
    cos = [(m * unit_a).flatten(1).sum(1).arccos() for m in (middle[0], middle[1], unit_b)]
    torch.testing.assert_close(cos[0] * 4, cos[2])
    torch.testing.assert_close(cos[1] * 2, cos[2])
    torch.testing.assert_close(sf.interpolate(a, 2 * a, [0.5])[0], 1.5 * a)
    torch.testing.assert_close(sf.interpolate(a, b, 0.25), sf.interpolate(a, b, [0.25]))
    numbers = sf.interpolate(a[:, 0, 0], b[:, 0, 0], 3, "linear")
    torch.testing.assert_close(numbers[1], (a + b)[:, 0, 0] / 2)
    with pytest.raises(ValueError, match="z_0 and z_1 must have one shape"):
        sf.interpolate(a, b[:2], 3)
    with pytest.raises(ValueError, match="weights must be a whole number ≥ 2"):
        sf.interpolate(a, b, 1)


def test_interpolation_of_latents_of_unequal_length():
    """θ is the angle, whatever the lengths: halfway between 2 e_1 and 10 e_2, at a right angle, is (2 e_1 + 10 e_2)/√2."""
    z_0, z_1 = torch.tensor([[2.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 10.0]], dtype=torch.float64)
    torch.testing.assert_close(sf.interpolate(z_0, z_1, [0.5])[0, 0], torch.tensor([2.0, 10.0]).double() / 2**0.5)
    z_1 = torch.tensor([[3.0, 3.0]], dtype=torch.float64)  # at 45°: sin(22.5°)/sin(45°) of each
    share = torch.tensor(torch.pi / 8).double().sin() / torch.tensor(torch.pi / 4).double().sin()
    torch.testing.assert_close(
        sf.interpolate(z_0, z_1, [0.5])[0, 0], share * torch.tensor([5.0, 3.0]).double(), rtol=1e-6, atol=0
    )


def test_image_to_image():
    """The lower the start, the nearer to the image; from start = 1 nothing of it is left; the same seed gives the same edit."""
    oracle, path = mixture(d=2), sf.VPSDE()
    model, x_0 = oracle.model(path), oracle.sample(200, seed=0)
    off = []
    for start in (0.05, 0.3, 1.0):
        found = sf.image_to_image(model, x_0, "ddim", steps=20, start=start, seed=1)
        off.append(float((found.x - x_0).norm(dim=1).mean()))
        assert found.times[0] == start
    assert off[0] < off[1] < off[2] and off[0] < 0.25 * off[2]
    again = sf.image_to_image(model, x_0[:3], "ddpm", steps=5, start=0.3, seed=[4, 5, 6])
    alone = sf.image_to_image(model, x_0[1:2], "ddpm", steps=5, start=0.3, seed=[5])
    torch.testing.assert_close(alone.x[0], again.x[1])
    with pytest.raises(ValueError, match="start must lie above 0"):
        sf.image_to_image(model, x_0, start=0.0)


def test_the_noise_has_the_level_of_the_first_time():
    """What a chain's grid, explicit times and a plan begin at; the draw is the prior's, whatever the sampler draws next."""
    path = sf.VPSDE.from_betas(sf.DDPMChain.linear().beta)
    model, x_0 = mixture(d=2).model(path), mixture(d=2).sample(3, seed=0)
    draw = sf.White(7).draws("prior")(x_0)
    for sampler, given in (
        ("ddim", {"grid": "leading", "steps": 3, "start": 0.5}),
        ("ddim", {"grid": [0.4, 0.2, 0.0]}),
        (sf.plan("ddim", path, steps=4, start=0.7), {}),
        ("auto", {"nfe": 5}),
        ("euler-maruyama", {"steps": 4}),
    ):
        found = sf.image_to_image(model, x_0, sampler, seed=7, **given)
        # From the same state at that time, by the same sampler and draws.
        if not isinstance(sampler, sf.Plan):
            again = {"start": 0.5, **given} if "grid" not in given or "start" in given else given
        else:
            again = {}
        x_t = path.q_sample(x_0, found.times[0], draw)
        torch.testing.assert_close(found.x, sf.solve(model, x_t, sampler, seed=7, **again).x, rtol=0, atol=0)
    for clash in ({"sampler": sf.plan("ddim", path, steps=4, start=0.7)}, {"grid": [0.4, 0.0]}):
        with pytest.raises(ValueError, match=r"start=0.5 and .* exclude each other"):
            sf.image_to_image(model, x_0, start=0.5, **clash)


def test_the_round_trips_have_their_rates():
    """Exactly invertible samplers come back to 1e-10 in float64; DDIM inversion's error falls at order 1 with steps."""
    model, x_0 = mixture(d=3).model(sf.VPSDE()), 0.7 * states(32, 3)
    for name in ("bdia-ddim", "edict"):
        up = sf.invert(model, x_0, name, steps=20, start=0.9, stop=0.05)
        torch.testing.assert_close(up.decode(model).x, x_0, rtol=0, atol=1e-10)
    errors, counts = [], (20, 40, 80, 160)
    for n in counts:
        up = sf.invert(model, x_0, "ddim", steps=n, start=0.9, stop=0.05)
        errors.append(float((up.decode(model).x - x_0).norm(dim=1).median()))
    assert 0.85 < -np.polyfit(np.log(counts), np.log(errors), 1)[0] < 1.2, errors
