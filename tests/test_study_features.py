"""Feature spaces: what is computed once, names, Inception with weights of its shape but drawn at random."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch
from metric_inputs import two
from problems import states

from scoreflow import zoo
from scoreflow.studies.features import FEATURES, Inception, featured, get_features
from scoreflow.studies.metrics import METRICS, MetricInput


class Counted(torch.nn.Module):
    """c times the states; says how often it was asked."""

    calls: list[int] = []  # noqa: RUF012

    def __init__(self, c):
        super().__init__()
        self.c = c

    def forward(self, x):
        self.calls.append(len(x))
        return self.c * x


SCALE = [1.0]


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_features_of_a_module_are_computed_once():
    """Three metrics of one scene, and a second scene on the same data, in another object of the same content."""
    Counted.calls.clear()
    x, y = two(7, 8, 2)
    for name in ("kid", "frechet", "manifold"):
        METRICS[name](MetricInput(x, 0, data=y, features=Counted(2.0)))
    assert Counted.calls == [7, 8]
    METRICS["kid"](MetricInput(x + 1, 0, data=y.clone(), features=pickle.loads(pickle.dumps(Counted(2.0)))))
    assert Counted.calls == [7, 8, 7]


def test_what_differs_is_computed_again():
    """Another setting, other states; and a function, of which one cannot know, each time."""
    Counted.calls.clear()
    x, y = two(5, 6, 3, seed=4)
    for c, batch in ((2.0, x), (3.0, x), (3.0, y)):
        np.testing.assert_array_equal(featured(Counted(c), batch)[0], (c * batch).numpy())
    assert Counted.calls == [5, 5, 6]
    for SCALE[0] in (1.0, 2.0):
        np.testing.assert_array_equal(featured(lambda x: SCALE[0] * x, x)[0], (SCALE[0] * x).numpy())


def test_few_are_kept():
    """The last ones; and what is done to a result is not done to them."""
    many = [states(3, 2, seed=s) for s in range(20)]
    for x in many:
        featured(Counted(1.0), x)[0][:] = 0
    Counted.calls.clear()
    _, last = featured(Counted(1.0), many[0], many[-1])
    assert Counted.calls == [3]
    np.testing.assert_array_equal(last, many[-1])


# -- by name ------------------------------------------------------------------------------------------------------------


def test_names():
    assert set(FEATURES) == {"digits", "mnist", "inception"}
    assert isinstance(get_features("digits"), zoo.Features)
    assert get_features(len) is len
    with pytest.raises(ValueError, match=r"called 'incption'; did you mean inception\? Known: digits, inception, mnist"):
        get_features("incption")
    with pytest.raises(TypeError, match="features must be a name or a function from states to features, got 3"):
        get_features(3)


def test_digits_are_judged_by_their_classifier():
    x = zoo.digits_data().held_out[:9]
    (found,) = featured(get_features("digits"), x)
    assert found.shape == (9, 32) and found.dtype == np.float64
    assert (
        zoo.digits_classifier().last(torch.from_numpy(found).float()).argmax(1) == zoo.digits_data().held_out_labels[:9]
    ).all()


# -- inception ----------------------------------------------------------------------------------------------------------


class Pixels(torch.nn.Module):
    """In the place of torch-fidelity's network: the first pixels of what it is given."""

    def __init__(self, name, features_list, weights=None):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)
        self.asked, self.most = (features_list, weights), 0

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and not self.norm.training
        self.most = max(self.most, len(x))
        return (x[:, :, 0, :2].flatten(1).float(),)


@pytest.fixture
def pixels(monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Pixels
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_images_become_bytes(pixels):
    """−1, 0 and 1 are 0, 128 and 255, what is between the nearest, what is outside cut off, as `torchvision.utils` writes."""
    values = torch.tensor([-1.0, 0.0, 1.0, 0.5, -1.7, 1.01, -0.9999, 2.6 / 127.5 - 1]).reshape(4, 1, 1, 2)
    found = get_features("inception")(values)
    expected = torch.tensor([[0, 128], [255, 191], [0, 255], [0, 3]]).float().repeat(1, 3)
    assert torch.equal(found, expected)
    assert torch.equal(Inception()(values.double()), expected)
    colours = states(2, 3, 2, 2).clamp(-1, 1)
    bytes_ = ((colours + 1) * 127.5).round()[:, :, 0].flatten(1)
    assert torch.equal(Inception()(colours.requires_grad_()), bytes_.detach().float())


def test_inception_in_batches_and_in_evaluation(pixels):
    net = Inception().train()
    x = states(70, 1, 2, 2)
    assert net(x).shape == (70, 6) and net.net.most == 32
    assert torch.equal(net(x), torch.cat([net(one[None]) for one in x]))
    assert net.net.asked == (["2048"], None)
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("shape", [(4, 2), (4, 8, 8), (4, 2, 8, 8), (4, 4, 8, 8), (1, 4, 3, 8, 8)])
def test_inception_wants_images(pixels, shape):
    with pytest.raises(ValueError, match=r"need images \(n, 1 or 3, H, W\) from −1 to 1, got \(" + ", ".join(map(str, shape))):
        Inception()(states(*shape))


def test_inception_says_what_to_install(monkeypatch):
    """Where torch-fidelity is missing, or what it imports."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"features='inception' need scoreflow\[inception\]: .*torch_fidelity"):
        get_features("inception")


def test_weights_are_read_safely(pixels, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*missing\.pth"):
        Inception(tmp_path / "missing.pth")
    torch.save({"weight": torch.ones(2)}, tmp_path / "good.pth")
    assert Inception(tmp_path / "good.pth").net.asked[1] == str(tmp_path / "good.pth")
    torch.save(Pixels("", []), tmp_path / "code.pth")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        Inception(tmp_path / "code.pth")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of Inception's shapes, drawn as torch draws them; nothing is downloaded."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(module.FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), file)
    return file


def test_inception_is_torchmetrics(weights):
    """A grey image of 8×8 and coloured ones of 20×12, against torchmetrics' copy of the forward pass."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    net, other = Inception(weights), fid.NoTrainInceptionV3("other", ["2048"], str(weights), antialias=False)
    for x in (states(1, 1, 8, 8).clamp(-1, 1), states(2, 3, 20, 12).clamp(-1, 1)):
        found = net(x)
        bytes_ = ((x + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        assert found.shape == (len(x), 2048) and found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(found, other(bytes_), rtol=1e-5, atol=1e-6)
    assert float((found[0] - found[1]).abs().max()) > 0
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x[:1]), found[:1])


def test_inception_of_other_weights(weights, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        Inception(tmp_path / "other.pth")
