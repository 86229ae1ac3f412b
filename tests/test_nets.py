"""The networks: what reaches the output and what does not, conditions that are none, dtypes, the shipped weights, refusals."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import states
from torch.nn import functional as F

import scoreflow as sf
from scoreflow import zoo
from scoreflow.checkpoint import read
from scoreflow.nets import MLP, Autoencoder, Classifier, DiT, Fourier, NoisyClassifier, UNet, from_diffusers, sinusoidal
from scoreflow.nets.embedding import Embedding

CLASSES, D = 10, 6
IMAGES = {
    "unet": lambda **more: UNet(2, (8, 16), classes=CLASSES, heads=2, **more),
    "unet patch": lambda **more: UNet(2, (8, 16), classes=CLASSES, heads=2, patch=2, **more),
    "unet tokens": lambda **more: UNet(2, (8, 16), classes=CLASSES, heads=2, tokens=D, **more),
    "dit": lambda **more: DiT(2, 8, 2, width=16, depth=2, heads=2, classes=CLASSES, **more),
    "dit tokens": lambda **more: DiT(2, 8, 2, width=16, depth=2, heads=2, classes=CLASSES, tokens=D, **more),
}
VECTORS = {"mlp": lambda **more: MLP(3, width=16, depth=2, classes=CLASSES, **more)}
NETS = {**IMAGES, **VECTORS}
WITH_TOKENS = [name for name in NETS if "tokens" in name]
T = torch.tensor([3.0, 700.0])
Y = torch.tensor([1, 7])


def awake(make, **more):
    """A network whose zeros at the start are weights like others, so that all its parts speak."""
    torch.manual_seed(0)
    net = make(**more)
    with torch.no_grad():
        for p in net.parameters():
            if not p.any():
                p.normal_(std=0.2)
    return net.eval()


def x(name, n=2):
    return states(n, 3, dtype=torch.float32) if name in VECTORS else states(n, 2, 8, 8, dtype=torch.float32)


def tokens(n=2, length=3):
    return states(n, length, D, seed=5, dtype=torch.float32)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_dtypes(name, dtype):
    """States in, their shape and dtype out; on the meta device too; with a learned variance twice the channels."""
    for device in ("cpu", "meta"):
        net = NETS[name]().to(device=device, dtype=dtype)
        state = x(name).to(device=device, dtype=dtype)
        out = net(state, T.to(device), Y.to(device))
        assert out.shape == state.shape and out.dtype is dtype and out.device.type == device
        wide = NETS[name](learned_variance=True).to(device=device, dtype=dtype)(state, T.to(device))
        assert wide.shape == (2, 2 * state.shape[1], *state.shape[2:])


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("time", ["sinusoidal", "fourier"])
def test_everything_reaches_the_output(name, time):
    """State, time, class and tokens change the output; every weight has a gradient."""
    net = awake(NETS[name], time=time)
    conditions = {"y": Y, **({"tokens": tokens()} if name in WITH_TOKENS else {})}
    base = net(x(name), T, **conditions)
    others = [
        net(x(name) + 0.1, T, **conditions),
        net(x(name), T + 1, **conditions),
        net(x(name), T, **{**conditions, "y": Y + 1}),
    ]
    if name in WITH_TOKENS:
        others.append(net(x(name), T, y=Y, tokens=tokens() + 0.1))
    for other in others:
        assert bool(((other - base).flatten(1).abs().amax(1) > 1e-4).all())
    base.square().sum().backward()
    for key, p in net.named_parameters():
        if not key.endswith(".bias"):  # a shift before a norm does nothing
            assert p.grad is not None and bool(p.grad.any()), key


@pytest.mark.parametrize("name", NETS)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    net, conditions = awake(NETS[name]), {"y": Y, **({"tokens": tokens()} if name in WITH_TOKENS else {})}
    both = net(x(name), T, **conditions)
    for i in range(2):
        alone = net(x(name)[i : i + 1], T[i : i + 1], **{k: v[i : i + 1] for k, v in conditions.items()})
        torch.testing.assert_close(alone[0], both[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_none_given(name):
    """No class is the class `classes`; `null` says so."""
    net = awake(NETS[name])
    none = net(x(name), T, torch.full((2,), CLASSES))
    assert torch.equal(net(x(name), T), none) and not torch.allclose(net(x(name), T, Y), none)
    assert net.null == {"y": CLASSES, **({"tokens": 0.0} if name in WITH_TOKENS else {})}


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_a_token_of_zeros_is_no_token(name):
    """Padding changes nothing, wherever it stands; only zeros, no tokens and None are one; the order does not count. To
    rounding in float64: a weight of exp(−∞) is 0, and only the order of sums differs."""
    net, state, given = awake(NETS[name]).double(), x(name).double(), tokens().double()

    def same(tokens, expected):
        torch.testing.assert_close(net(state, T, Y, tokens), expected, rtol=1e-11, atol=1e-11)

    out, none = net(state, T, Y, given), net(state, T, Y)
    zeros = torch.zeros(2, 2, D)
    for padded in (torch.cat([given, zeros], 1), torch.cat([zeros, given], 1), given.flip(1)):
        same(padded, out)
    for empty in (zeros, zeros[:, :0], torch.full_like(given, net.null["tokens"])):
        same(empty, none)
    assert bool(((out - none).flatten(1).abs().amax(1) > 1e-3).all())
    # One sample's tokens may be dropped beside another's.
    same(torch.cat([given[:1], torch.zeros(1, 3, D)]), torch.stack([out[0], none[1]]))


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_every_token_has_a_gradient(name):
    """Through the score model too, by the name `tokens`."""
    model = sf.ScoreModel(awake(NETS[name]), sf.VPSDE(), time=lambda t: 999 * t)
    given = tokens().requires_grad_()
    model.eps(x(name), 0.5, y=Y, tokens=given).square().sum().backward()
    assert bool((given.grad.abs().amax(-1) > 1e-6).all())


@pytest.mark.parametrize("net", [*(make() for make in NETS.values()), Autoencoder(2), Classifier(2), NoisyClassifier(2, 4)])
def test_the_configuration_makes_the_network(net):
    """Through JSON, with the same weights' names and shapes."""
    again = type(net)(**json.loads(json.dumps(net.config)))
    again.load_state_dict(net.state_dict())
    assert again.config == net.config


def test_attention_stands_at_level_1_if_there_is_one():
    assert [UNet(widths=(8,) * n).config["attention"] for n in (1, 2, 3)] == [[], [1], [1]]
    assert UNet(widths=(8,))(x("unet")[:, :1], T).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", ["dit", "dit tokens", "mlp"])
def test_it_begins_with_zero(name):
    assert not NETS[name]()(x(name), T, Y).any()


@settings(max_examples=8)
@given(
    channels=st.integers(1, 3),
    patch=st.sampled_from([2, 3, 4]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    learned_variance=st.booleans(),
)
def test_patches_are_channels(channels, patch, rows, columns, learned_variance):
    """A network on patches is, to the bit, the network without on `pixel_unshuffle` of the state, with the same weights."""
    options = dict(widths=(8, 8), heads=2, learned_variance=learned_variance)
    net = awake(lambda: UNet(channels, patch=patch, **options))
    plain = UNet(channels * patch**2, **options)
    plain.load_state_dict(net.state_dict())
    state = states(2, channels, 2 * rows * patch, 2 * columns * patch, dtype=torch.float32)
    small = F.pixel_unshuffle(state, patch)
    assert torch.equal(F.pixel_shuffle(small, patch), state)
    out = net(state, T)
    assert torch.equal(out, F.pixel_shuffle(plain(small, T), patch))
    assert out.shape == (2, channels * (1 + learned_variance), *state.shape[2:])


def test_places_of_a_transformer():
    """Patches are channels there too; its places differ, so that a moved image is not a moved answer."""
    dit, plain = awake(lambda: DiT(2, 8, 2, 16, 2, 2)), DiT(8, 4, 1, 16, 2, 2)
    plain.load_state_dict(dit.state_dict())
    state = x("dit")
    out = dit(state, T)
    assert torch.equal(out, F.pixel_shuffle(plain(F.pixel_unshuffle(state, 2), T), 2))
    assert len(dit.places.unique(dim=0)) == 16
    assert not torch.allclose(dit(state.roll(2, -1), T), out.roll(2, -1), atol=1e-3)


def test_the_time_features():
    """The sinusoidal ones are the paper's; the Fourier ones are kept with the weights and differ from level to level."""
    t = torch.tensor([0.0, 1.0, 10.0])
    features = sinusoidal(t, 8)
    for k in range(4):
        torch.testing.assert_close(features[:, k], torch.cos(t / 10_000 ** (k / 4)))
        torch.testing.assert_close(features[:, k + 4], torch.sin(t / 10_000 ** (k / 4)))
    fourier = Fourier(8)
    assert torch.equal(fourier(t), Fourier(8)(t)) and "rates" in fourier.state_dict()
    assert fourier(t).square().sum(1).tolist() == pytest.approx([4, 4, 4])
    assert not torch.equal(Fourier(8, seed=1).rates, fourier.rates)
    assert float(Fourier(4096, 3.0).rates.std()) == pytest.approx(3, rel=0.05)


def test_fourier_features_tell_levels_apart_and_neighbours_alike():
    """In a network, at either `time_scale`, those of Song et al. of t in [0, 1]: `E cos(2π ω Δt) = exp(−2 (16π Δt)²)`."""
    labels = Embedding(4096, 8, time="fourier")
    unit = Embedding(4096, 8, time="fourier", time_scale=1000.0)
    for step in (1.0, 5.0, 300.0):
        likeness = []
        for net, t in ((labels, torch.tensor([400.0, 400.0 + step])), (unit, torch.tensor([0.4, 0.4 + step / 1000]))):
            first, second = net.fourier(t * net.time_scale) / 2048**0.5
            likeness.append(float(first @ second))
        assert likeness == pytest.approx([math.exp(-2 * (16 * math.pi * step / 1000) ** 2)] * 2, abs=0.05)


def test_the_shipped_digits_still_say_the_same():
    """A few numbers of the digits network, as it said them when it was trained."""
    net = sf.zoo.digits().net
    state = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    with torch.no_grad():
        out = net(state, torch.tensor([500.0]), torch.tensor([3]))
    assert out[0, 0, 0, :4].tolist() == pytest.approx(SAID, abs=1e-4)


def test_the_shipped_digits_were_made_before():
    """Their configuration has none of the later arguments, whose defaults are the old network."""
    weights, said = read(Path(zoo.__file__).with_name("digits.safetensors"))
    config = json.loads(said["config"])
    later = {"tokens": 0, "time": "sinusoidal", "patch": 1, "learned_variance": False}
    later |= {"condition_channels": 0, "times": 1, "guidance": False}
    assert not {*later} & {*config}
    net = UNet(**config)
    net.load_state_dict(weights)
    assert net.config == {**config, **later}


SAID = [-0.7115, -0.6977, -0.9413, -1.14]


def test_a_learned_variance_is_a_word():
    """ScoreModel splits the output in prediction and word; `ddpm` samples with it."""
    net = awake(IMAGES["unet"], learned_variance=True)
    model = sf.ScoreModel(net, sf.VPSDE.from_betas(sf.DDPMChain.linear().beta), time="index")
    output, word = model.evaluate(x("unet"), 0.5)
    assert output.shape == word.shape == (2, 2, 8, 8)
    drawn = sf.sample(model, (2, 2, 8, 8), "ddpm", variance="interpolated", steps=2, seed=0)
    assert bool(drawn.isfinite().all())


def test_an_autoencoder():
    """Latents a quarter as wide; fitted, they have mean 0 and variance 1, and decoding is as before."""
    torch.manual_seed(0)
    net, images = Autoencoder(1, latent=3, widths=(8, 16)), states(50, 1, 12, 8, dtype=torch.float32)
    before = net(images)
    assert net.encode(images).shape == (50, 3, 3, 2) and before.shape == images.shape
    net.fit(images)
    z = net.encode(images)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-4)
    latent = sf.Latent(sf.ScoreModel(lambda x, t: torch.zeros_like(x), sf.VPSDE()), net)
    torch.testing.assert_close(latent.decode(latent.encode(images)), before, rtol=1e-4, atol=1e-4)
    drawn = latent.sample((2, 3, 3, 2), "ddim", steps=2, seed=0)
    assert drawn.shape == (2, 1, 12, 8) and not drawn.requires_grad
    with pytest.raises(TypeError, match="autoencoder must have encode"):
        sf.Latent(latent.model, torch.nn.Identity())


def test_latents_are_data():
    """Encoded data keep their order and classes."""
    net, data = Autoencoder(1, 2, (8,)), sf.data.Images(states(5, 1, 4, 4, dtype=torch.float32), torch.arange(5))
    found = sf.latent.latents(net, data, batch=2)
    torch.testing.assert_close(found.x, net.encode(data.x).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.y, data.y)
    bare = sf.latent.latents(net, torch.utils.data.Subset(sf.data.Images(data.x.double()), range(3)))
    assert bare.y is None and bare.x.dtype == torch.float32 and len(bare) == 3
    with pytest.raises(TypeError, match=r"data must be a dataset, such as .train of a Data, got Data"):
        sf.latent.latents(net, sf.data.digits())
    with pytest.raises(TypeError, match=r"data must give x or .*, got the conditions tokens"):
        sf.latent.latents(net, [(data.x[0], {"tokens": torch.zeros(2)})])
    latent = sf.Latent(sf.ScoreModel(lambda x, t: torch.zeros_like(x), sf.VPSDE()), net)
    assert latent.sample((2, 2, 2, 2), "ddim", steps=1, seed=0, dtype=torch.float64).dtype == torch.float64


def test_a_noisy_classifier():
    """Logits of states at times; both count; the pixels have a gradient."""
    net, state = awake(lambda: NoisyClassifier(2, 4, widths=(8, 16))), x("unet").requires_grad_()
    out = net(state, T)
    assert out.shape == (2, 4) and not torch.allclose(out, net(state, T + 100))
    out.sum().backward()
    assert bool(state.grad.any())


@pytest.mark.parametrize("conditional", [False, True])
def test_diffusers_in_one_line(conditional):
    """UNet2DModel with classes, UNet2DConditionModel with tokens: ScoreModel(from_diffusers(unet), path, time="index")."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    small = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    if conditional:
        unet = diffusers.UNet2DConditionModel(
            **small, cross_attention_dim=D, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        named, theirs = {"tokens": tokens()}, {"encoder_hidden_states": tokens()}
    else:
        unet = diffusers.UNet2DModel(
            **small, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, num_class_embeds=CLASSES
        )
        named, theirs = {"y": Y}, {"class_labels": Y}
    model = sf.ScoreModel(from_diffusers(unet), sf.VPSDE.from_betas(sf.DDPMChain.linear().beta), time="index")
    state = states(2, 1, 8, 8, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model.eps(state, 0.7, **named), unet(state, 699, **theirs).sample)
    assert sf.sample(model, (2, 1, 8, 8), "ddim", steps=2, seed=0, **named).dtype is torch.float32


REFUSED = [
    (lambda: UNet(widths=(12, 16)), "widths must be multiples of 8, one or more, got .12, 16."),
    (lambda: UNet(widths=(8, 16), heads=5), "heads=5 must divide the width of every level with attention, got 16"),
    (lambda: UNet(widths=(8,), attention=(1,)), "attention must name levels from 0 to 0, got 1"),
    (
        lambda: UNet(attention=(), tokens=4),
        r"tokens=4 are attended to at the levels in attention, and attention=\(\) names none",
    ),
    (lambda: UNet(time="learned"), "time must be one of sinusoidal, fourier, got 'learned'"),
    (lambda: UNet(dropout=2.0), "dropout must be"),
    (lambda: UNet(time_scale=0.0), "time_scale must be a finite number > 0, got 0.0"),
    (lambda: UNet(patch=0), "patch must be a whole number ≥ 1, got 0"),
    (lambda: UNet(attention=(-1,)), "attention must be a whole number ≥ 0, got -1"),
    (lambda: Fourier(8, scale=0.0), "scale must be a finite number > 0, got 0.0"),
    (lambda: DiT(size=9), "patch=2 must divide size=9"),
    (lambda: DiT(width=18), "width=18 must be a multiple of 4 and of heads=4"),
    (lambda: MLP(channels=0), "channels must be a whole number ≥ 1, got 0"),
    (lambda: Autoencoder(widths=()), "widths must be multiples of 8"),
    (lambda: NoisyClassifier(classes=1), "classes must be a whole number ≥ 2"),
    (lambda: UNet(widths=(8,), attention=())(x("unet")[:, :1], T, Y), "y was given to a network without classes"),
    (lambda: IMAGES["unet"]()(x("unet"), T, tokens=tokens()), "tokens were given to a network without cross-attention"),
    (lambda: IMAGES["unet"]()(x("unet"), T, 3), r"y must be a tensor of whole numbers of shape \(2,\), got 3"),
    (lambda: UNet(widths=8), "widths must be a sequence of whole numbers, got 8"),
    (lambda: IMAGES["unet"]()(x("unet"), T, Y + 5), r"y must lie in 0…9, or be 10 for none given, got \[6, 12\]"),
    (
        lambda: IMAGES["unet"]()(x("unet"), T, Y[:1]),
        r"y must be whole numbers of shape \(2,\), got torch.int64 of shape \(1,\)",
    ),
    (lambda: IMAGES["unet"]()(x("unet")[:, :, :7], T), r"height and width must be multiples of 2, got states of shape"),
    (lambda: IMAGES["unet patch"]()(x("unet")[:, :, :6], T), r"height and width must be multiples of 4"),
    (lambda: IMAGES["dit"]()(x("dit")[:, :, :6], T), r"states must be \(B, C, 8, 8\), got shape"),
    (
        lambda: IMAGES["dit tokens"]()(x("dit"), T, None, tokens()[..., :4]),
        r"tokens must be \(2, L, 6\), got shape \(2, 3, 4\)",
    ),
    (
        lambda: IMAGES["unet tokens"]()(x("unet"), T, None, tokens()[0]),
        r"tokens must be \(2, L, 6\), got shape \(3, 6\)",
    ),
    (lambda: IMAGES["dit"]()(x("dit"), T, tokens=tokens()), "tokens were given to a network without cross-attention"),
    (lambda: MLP(3)(x("mlp"), T, Y), "y was given to a network without classes"),
    (lambda: Autoencoder().fit(torch.zeros(1, 1, 4, 4)), r"latents must vary in every channel, got the variances \[nan"),
    (lambda: NoisyClassifier(channels=0), "channels must be a whole number ≥ 1, got 0"),
    (lambda: Autoencoder().encode(states(1, 1, 6, 8)), "height and width must be multiples of 4"),
]


@pytest.mark.filterwarnings("ignore:var_mean")
@pytest.mark.parametrize(("call", "says"), REFUSED)
def test_refusals(call, says):
    with pytest.raises((ValueError, TypeError), match=says):
        call()


def test_convolutions_of_classifiers_are_three_by_three():
    """And go from width to width, halving the image between."""
    net = NoisyClassifier(2, 4, widths=(8, 16, 24))
    sizes = [(m.in_channels, m.out_channels, m.kernel_size, m.stride) for m in net.levels if isinstance(m, torch.nn.Conv2d)]
    assert sizes == [(8, 8, (3, 3), (2, 2)), (16, 16, (3, 3), (2, 2))] and net.first.kernel_size == (3, 3)
