"""Images as conditions: what they add to the first layer, none given, coarse ones, guidance, runs, files and training."""

import json
import math

import pytest
import torch
from problems import states
from torch.nn import functional as F
from torch.utils.data import Dataset

import scoreflow as sf
from scoreflow import checkpoint
from scoreflow.data import Coarse, Images
from scoreflow.nets import DiT, UNet
from scoreflow.studies import load
from scoreflow.training import Objective, Recipe, setup, train

C, K, D, CLASSES = 2, 3, 6, 10
NETS = {
    "unet": lambda **more: UNet(C, (8, 16), heads=2, classes=CLASSES, tokens=D, **more),
    "unet patch": lambda **more: UNet(C, (8, 16), heads=2, patch=2, **more),
    "dit": lambda **more: DiT(C, 8, 2, width=16, depth=2, heads=2, classes=CLASSES, tokens=D, **more),
}
every_net = pytest.mark.parametrize("name", NETS)
T, Y, X = torch.tensor([3.0, 700.0, 90.0]), torch.tensor([1, 7, 2]), states(3, C, 8, 8, dtype=torch.float32)
IMAGE, TOKENS = states(3, K, 8, 8, seed=2, dtype=torch.float32), states(3, 4, D, seed=3, dtype=torch.float32)
NONE = torch.full_like(IMAGE, math.nan)


def fresh(name, channels=K, **more):
    torch.manual_seed(0)
    return NETS[name](condition_channels=channels, **more).eval()


def awake(name, channels=K, **more):
    """A network whose zeros at the start are weights like others."""
    net = fresh(name, channels, **more)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.2)
    return net


def model_of(name, **more):
    return sf.ScoreModel(awake(name, **more), sf.VPSDE(), time=lambda t: 999 * t)


def apart(a, b):
    """Whether every sample's output differs."""
    return bool(((a - b).flatten(1).abs().amax(1) > 1e-4).all())


# -- none given ---------------------------------------------------------------------------------------------------------


@every_net
def test_it_begins_as_the_network_without(name):
    """The same seed draws the same weights, those of the map are 0, and so the map changes nothing yet."""
    net, plain = fresh(name), fresh(name, 0)
    weights = net.state_dict()
    assert not weights.pop("condition.weight").any()
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in plain.state_dict().items())
    assert torch.equal(net(X, T, image=IMAGE), plain(X, T))


@every_net
def test_none_given_is_the_network_without(name):
    """To the bit, as None and as NaN, whatever the weights; a map of zeros is another thing."""
    net, plain = awake(name), fresh(name, 0)
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if key != "condition.weight"})
    expected = plain(X, T)
    for none in (None, NONE, torch.full_like(IMAGE, net.null["image"])):
        assert torch.equal(net(X, T, image=none), expected)
    assert apart(net(X, T, image=torch.zeros_like(IMAGE)), expected) and apart(net(X, T, image=IMAGE), expected)
    assert net.null.keys() == plain.null.keys() | {"image"} and math.isnan(net.null["image"])


@every_net
def test_one_sample_may_have_none_beside_another(name):
    net = awake(name).double()
    mixed = torch.stack([IMAGE[0], NONE[1], IMAGE[2]]).double()
    out = net(X.double(), T, image=mixed)
    given, none = (net(X.double(), T, image=image) for image in (IMAGE.double(), None))
    torch.testing.assert_close(out, torch.stack([given[0], none[1], given[2]]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("patch", [1, 2])
def test_it_is_a_convolution_of_state_and_image(patch):
    """The first layer is one convolution of [x, image, given], whose last channel is 1 where no channel is NaN; elsewhere all
    three of them are 0. A transformer's is the same on its patches."""
    image, where = IMAGE.clone(), torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    image[0, 1, :, 5:], where[0, :, :, 5:] = math.nan, True
    beside = torch.cat([torch.where(where, 0.0, image), (~where).float()], 1)
    seen = []
    for net in (awake("unet patch") if patch == 2 else awake("unet"), DiT(C, 8, patch, 16, 1, 2, condition_channels=K)):
        torch.nn.init.normal_(net.condition.weight)
        place = net.down[0] if isinstance(net, UNet) else net.blocks[0]
        part = place[0] if isinstance(net, UNet) else place
        part.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
        net(X, T, image=image)
        weight, both = torch.cat([net.first.weight, net.condition.weight], 1), torch.cat([X, beside], 1)
        both = F.pixel_unshuffle(both, patch)
        if isinstance(net, UNet):
            expected = F.conv2d(both, weight, net.first.bias, padding=1)
        else:
            expected = F.linear(both.flatten(2).mT, weight, net.first.bias) + net.places
        torch.testing.assert_close(seen.pop(), expected, rtol=1e-4, atol=1e-5)


@every_net
def test_gradients_reach_what_is_given(name):
    """And every weight; a pixel that is not given has none, and no NaN."""
    net, image = awake(name), IMAGE.clone()
    image[1, 0, :4] = math.nan
    image.requires_grad_()
    net(X, T, image=image).square().sum().backward()
    assert bool(image.grad[0].any(0).all()) and not image.grad[1, :, :4].any() and bool(image.grad[1, :, 4:].any())
    assert bool(net.condition.weight.grad.flatten(1).any(0).all()) and bool(net.condition.weight.grad.isfinite().all())


# -- coarse maps --------------------------------------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("size", [(4, 4), (1, 8), (2, 1)], ids=str)
def test_a_coarse_map_is_enlarged(name, size):
    """A pixel to a block, as `nearest`; one image of a batch of one goes to all samples."""
    net, coarse = awake(name), states(3, K, *size, seed=4, dtype=torch.float32)
    enlarged = F.interpolate(coarse, (8, 8), mode="nearest")
    assert torch.equal(net(X, T, image=coarse), net(X, T, image=enlarged))
    assert torch.equal(net(X, T, image=coarse[:1]), net(X, T, image=enlarged[:1].repeat(3, 1, 1, 1)))


def test_layouts_of_seven_by_seven():
    """For states of 28×28."""
    net = UNet(1, (8, 16), patch=2, condition_channels=1)
    torch.nn.init.normal_(net.condition.weight)
    x, layout = states(2, 1, 28, 28, dtype=torch.float32), (states(2, 1, 7, 7, dtype=torch.float32) > 0).float()
    assert torch.equal(net(x, T[:2], image=layout), net(x, T[:2], image=torch.kron(layout, torch.ones(4, 4))))


# -- dtypes, devices, classes and tokens beside -------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_and_devices(name, dtype):
    """The dtype is that of the states, whatever that of the image; on the meta device, and with a learned variance."""
    for device in ("cpu", "meta"):
        net = fresh(name, learned_variance=True).to(device=device, dtype=dtype)
        out = net(X.to(device, dtype), T.to(device), image=IMAGE.to(device, torch.float64))
        assert out.shape == (3, 2 * C, 8, 8) and out.dtype is dtype and out.device.type == device


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_beside_classes_and_tokens(name):
    """Each of the three changes the output, with the other two given."""
    net, all_given = awake(name), {"y": Y, "tokens": TOKENS, "image": IMAGE}
    out = net(X, T, **all_given)
    for left_out in all_given:
        assert apart(out, net(X, T, **{key: value for key, value in all_given.items() if key != left_out}))


# -- guidance and runs --------------------------------------------------------------------------------------------------


@every_net
def test_guidance(name):
    """`ε̂_∅ + scale (ε̂_c − ε̂_∅)`, both branches in one call of 2B; a scale of 0 is the network told nothing."""
    model = model_of(name)
    guided, sizes = sf.ClassifierFree(model, 2.5), []
    model.net.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    ours, none = model.eps(X, 0.5, image=IMAGE), model.eps(X, 0.5)
    out = guided.eps(X, 0.5, image=IMAGE)
    assert sizes[2:] == [6]
    torch.testing.assert_close(out, none + 2.5 * (ours - none), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sf.ClassifierFree(model, 0.0).eps(X, 0.5, image=IMAGE), none)


def test_guidance_drops_what_it_is_told_to():
    """`null=` names the image alone, and the class stays."""
    model = model_of("unet")
    out = sf.ClassifierFree(model, 3.0, null={"image": math.nan}).eps(X, 0.5, image=IMAGE, y=Y)
    ours, none = model.eps(X, 0.5, image=IMAGE, y=Y), model.eps(X, 0.5, y=Y)
    torch.testing.assert_close(out, none + 3 * (ours - none), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("marked", [lambda image: image, sf.each], ids=["plain", "each"])
def test_an_adaptive_run_of_a_batch_is_that_of_its_samples(marked):
    """Samples that arrive leave the batch with their images; guided too."""
    model = model_of("unet patch")
    model.net.double()
    guided = sf.ClassifierFree(model, 1.5)
    x, image = X.double() * torch.tensor([0.2, 1.0, 3.0]).reshape(3, 1, 1, 1), IMAGE.double()[..., ::4, ::4]
    for net in (model, guided):
        whole = sf.solve(net, x, "dpm-solver-12", rtol=0.1, grid=[0.9, 0.3], image=marked(image))
        assert len(set(whole.nfe_per_sample)) > 1
        for i in range(3):
            alone = sf.solve(net, x[i : i + 1], "dpm-solver-12", rtol=0.1, grid=[0.9, 0.3], image=marked(image[i : i + 1]))
            torch.testing.assert_close(alone.x[0], whole.x[i], rtol=1e-9, atol=1e-9)


def test_one_image_for_all_samples():
    """As `sf.shared`, in an adaptive run."""
    model = model_of("dit")
    one, rows = (
        sf.solve(model, X, "dpm-solver-12", rtol=0.1, grid=[0.9, 0.3], image=image)
        for image in (sf.shared(IMAGE[:1]), IMAGE[:1].repeat(3, 1, 1, 1))
    )
    torch.testing.assert_close(one.x, rows.x, rtol=1e-4, atol=1e-4)


# -- files --------------------------------------------------------------------------------------------------------------


@every_net
def test_a_model_in_a_file(name, tmp_path):
    model = model_of(name)
    model.time = "unit"
    sf.save_model(model, tmp_path / "m.safetensors")
    again = sf.load_model(tmp_path / "m.safetensors")
    assert again.net.config == json.loads(json.dumps(model.net.config)) and again.net.config["condition_channels"] == K
    assert torch.equal(again.eps(X, 0.5, image=IMAGE), model.eps(X, 0.5, image=IMAGE))


@every_net
def test_an_unconditional_network_opens_as_a_conditional_one(name):
    """As docs/training.md says: its weights over those of a new one, and at first it says the same."""
    plain = awake(name, 0)
    net = type(plain)(**plain.config | {"condition_channels": K}).eval()
    net.load_state_dict(net.state_dict() | plain.state_dict())
    assert torch.equal(net(X, T, image=IMAGE), plain(X, T))


def test_a_run_of_before_goes_on(tmp_path):
    """Its state has a configuration without the argument, and stands for a network without image conditions."""
    data, recipe = torch.zeros(8, 1, 8, 8), Recipe(steps=2, batch=2)

    def model(channels):
        return sf.ScoreModel(UNet(widths=(8,), attention=(), condition_channels=channels), sf.VPSDE())

    train(model(0), data, None, recipe, out=tmp_path)
    tensors, said = checkpoint.read(tmp_path / "state.safetensors")
    config = json.loads(said["config"])
    del config["model"]["config"]["condition_channels"]
    checkpoint.write(tensors, tmp_path / "state.safetensors", {**said, "config": json.dumps(config)})
    train(model(0), data, None, recipe, out=tmp_path)
    with pytest.raises(ValueError, match=r"holds another run: model.config=.*'condition_channels': 1"):
        train(model(1), data, None, recipe, out=tmp_path)


def test_a_compiled_network_of_before(tmp_path):
    """Its file named no class; it is found by the arguments that there were."""
    net, file = UNet(widths=(8,), attention=()), tmp_path / "m.safetensors"
    later = ("condition_channels", "times", "guidance")
    config = json.dumps({key: value for key, value in net.config.items() if key not in later})
    weights = {f"_orig_mod.{key}": value.clone() for key, value in net.state_dict().items()}
    checkpoint.write(weights, file, {"network": "OptimizedModule", "config": config})
    assert checkpoint.load(file).config == net.config


# -- training -----------------------------------------------------------------------------------------------------------


class Blocks(Dataset):
    """Images 4×4 of one grey each, and that grey as an image of one pixel."""

    def __init__(self, n=256):
        self.grey = torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self):
        return len(self.grey)

    def __getitem__(self, i):
        return self.grey[i].expand(1, 4, 4), {"image": self.grey[i]}


def small():
    torch.manual_seed(0)
    return sf.ScoreModel(UNet(widths=(8,), attention=(), time_scale=1000.0, condition_channels=1), sf.VPSDE(), "x0")


def test_the_loss_of_dropped_images():
    """Half of a batch are dropped: their losses are those told nothing, the others' those told."""
    model, objective = model_of("unet patch"), Objective(drop=0.5)
    x = X.repeat(4, 1, 1, 1)
    image = IMAGE.repeat(4, 1, 1, 1)
    draw = objective.draw(model, x, seed=1)
    assert 0 < int(draw.dropped.sum()) < 12
    told, untold = Objective()(model, x, draw, image=image).each, Objective()(model, x, draw).each
    found = objective(model, x, draw, image=image).each
    torch.testing.assert_close(found, torch.where(draw.dropped, untold, told), rtol=1e-4, atol=1e-5)
    assert bool((told - untold).abs().min() > 1e-4)


def test_a_trained_network_uses_the_image(tmp_path):
    """The grey of a noisy image is known when it is told: at t near 1, where the states say little, its error is under a third
    of what it is untold, and untold it is near the variance of the grey, 1/3. One seed, and a factor between."""
    model, data = small(), Blocks()
    averaged = train(model, data, Objective(drop=0.2, weighting="x0"), Recipe(steps=80, batch=32, rate=1e-2, ema=0.9))
    x, image = data.grey.expand(-1, 1, 4, 4), data.grey
    plain = Objective(weighting="x0")
    draw = plain.draw(averaged, x, seed=1)
    draw = draw._replace(t=torch.full_like(draw.t, 0.95))
    with torch.no_grad():
        told, untold, wrong = (
            float(plain(averaged, x, draw, **given).each.mean())
            for given in ({"image": image}, {}, {"image": image.roll(1, 0)})
        )
    print("IMG", told, untold, wrong)
    assert told < untold / 3 and untold < wrong and 0.2 < untold < 0.5


def test_a_run_with_images_goes_on_where_it_was_cut(tmp_path):
    """NaN, what means none given, is among what the run says, as a word; the same run is found to be the same."""

    def stop(at):
        if at.step == 4:
            raise KeyboardInterrupt

    states = []
    for out, show in (("whole", None), ("cut", stop)):
        recipe = Recipe(steps=8, batch=8, save_every=4, show_every=4)
        arguments = (Blocks(), Objective(drop=0.2), recipe)
        if show is not None:
            with pytest.raises(KeyboardInterrupt):
                train(small(), *arguments, out=tmp_path / out, show=show)
        train(small(), *arguments, out=tmp_path / out)
        states.append(checkpoint.read(tmp_path / out / "state.safetensors")[0])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    said = (tmp_path / "whole/config.json").read_text(encoding="utf-8")
    assert json.loads(said, parse_constant=pytest.fail)["objective"]["null"] == {"image": "nan"}


def test_coarse_images_as_conditions():
    """The mean over squares, beside what conditions there are."""
    x = states(5, 3, 8, 4, dtype=torch.float32)
    data = Coarse(Images(x, torch.arange(5)), 4)
    state, conditions = data[3]
    assert len(data) == 5 and torch.equal(state, x[3]) and conditions["y"] == 3
    torch.testing.assert_close(conditions["image"], x[3].unflatten(1, (2, 4)).unflatten(3, (1, 4)).mean((2, 4)))
    assert Coarse(Images(x), 2)[0][1].keys() == {"image"}
    with pytest.raises(ValueError, match=r"factor=3 must divide the height and width of the images, got \(3, 8, 4\)"):
        Coarse(Images(x), 3)[0]
    with pytest.raises(ValueError, match="factor must be a whole number ≥ 1, got 0"):
        Coarse(Images(x), 0)


def test_a_run_from_a_file(tmp_path):
    """`data.coarse` makes the condition and the network's channels for it; the folder is a model with held-out conditions."""
    small = {"network.widths": [8], "recipe.steps": 1, "recipe.batch": 2, "recipe.shown": 2}
    run = setup("digits", changes={**small, "data.coarse": 4})
    assert run.model.net.config["condition_channels"] == 1 and run.objective.drop == 0.1
    run.run(tmp_path)
    what = load(f"run:{tmp_path}")
    given, (_, images) = what.conditioned(4, 0), zip(*(item for item in run.data.held_out), strict=True)
    known = {(tuple(one["image"].flatten().tolist()), int(one["y"])) for one in images}
    assert given["image"].shape == (4, 1, 2, 2) and len(known) > 400
    assert all((tuple(given["image"][i].flatten().tolist()), int(given["y"][i])) in known for i in range(4))
    assert sf.sample(what.model, (4, 1, 8, 8), "ddim", steps=1, start=what.start, seed=0, **given).shape == (4, 1, 8, 8)
    alone = setup("digits", changes={**small, "data.coarse": 2, "data.labels": False})
    assert alone.objective.drop == 0.1 and alone.data.train[0][1].keys() == {"image"}


REFUSED = [
    (lambda: UNet(condition_channels=-1), "condition_channels must be a whole number ≥ 0, got -1"),
    (lambda: DiT(condition_channels=1.5), "condition_channels must be a whole number ≥ 0, got 1.5"),
    (lambda: fresh("unet", 0)(X, T, image=IMAGE), "image was given to a network without image conditions"),
    (
        lambda: fresh("dit")(X, T, image=IMAGE[:, :2]),
        r"image must be \(3, 3, h, w\), or \(1, 3, h, w\) for all samples, got \(3, 2, 8, 8\)",
    ),
    (lambda: fresh("unet")(X, T, image=IMAGE[:2]), r"image must be \(3, 3, h, w\), .* got \(2, 3, 8, 8\)"),
    (lambda: fresh("unet")(X, T, image=IMAGE[0]), r"image must be \(3, 3, h, w\), .* got \(3, 8, 8\)"),
    (
        lambda: fresh("unet")(X, T, image=IMAGE[..., :5]),
        "image must have the height and width of the states, 8×8, or divide them, got 8×5",
    ),
    (lambda: fresh("dit")(X, T, image=IMAGE.repeat(1, 1, 2, 1)), r"states, 8×8, or divide them, got 16×8"),
    (lambda: fresh("dit")(X, T, image=IMAGE[..., :0]), r"states, 8×8, or divide them, got 8×0"),
    (
        lambda: fresh("unet")(X, T, image=IMAGE > 0),
        r"image must be a floating-point tensor, such as mask.float\(\), got torch.bool",
    ),
    (lambda: fresh("unet")(X, T, image=3.0), "image must be a floating-point tensor, such as mask.float.*got float"),
    (
        lambda: sf.ClassifierFree(model_of("unet"), 2.0).eps(X, 0.5, image=IMAGE > 0),
        r"null\['image'\] is NaN, and the condition torch.bool: give it as floating-point numbers",
    ),
    (
        lambda: setup("digits", changes={"network.condition_channels": 1}),
        "condition_channels=1 needs data with images beside: set data.coarse",
    ),
    (
        lambda: setup("digits", changes={"data.coarse": 3}),
        r"factor=3 must divide the height and width of the images, got \(1, 8, 8\)",
    ),
    (lambda: setup("digits", changes={"data.coarse": 0.5}), "data.coarse must be a whole number ≥ 1, got 0.5"),
    (
        lambda: setup("digits", changes={"data.coarse": 4, "network.condition_channels": 2}),
        r"network UNet does not take data of shape \(1, 8, 8\): image must be \(1, 2, h, w\)",
    ),
]


@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_refusals(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()
