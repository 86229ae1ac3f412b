"""What a user sees: samples as pictures and files, objects in a notebook."""

import base64
import io
import json
import re
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
import sweeps
import torch
from PIL import Image
from reported import ODD, made
from test_cli import run

import scoreflow as sf
from scoreflow import _html as html
from scoreflow._show import picture

VP = sf.VPSDE()
FLOW = sf.Flow()


def solved(x_T, trajectory=True, path=VP, **keywords):
    model = sf.Gaussian(torch.zeros(x_T.shape[1:]), 0.5).model(path)
    return sf.solve(model, x_T, "ddim", steps=keywords.pop("steps", 4), seed=3, trajectory=trajectory, **keywords)


def with_x(x, states=None):
    """A solution with these samples."""
    return sf.Solution(
        x=x, times=tuple(np.linspace(1, 0, 2 if states is None else len(states))), states=states, nfe=1,
        nfe_per_sample=(1,) * len(x), noise_count=0, sampler=sf.get_sampler("ddim"), plan=None, seed=0,
    )  # fmt: skip


IMAGES = solved(torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
POINTS = solved(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))


def array(image):
    return np.asarray(image).astype(int)


# -- pictures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("range", "expected"),
    [((-1, 1), [0, 0, 64, 128, 255, 255]), ((0, 1), [0, 0, 0, 0, 255, 255]), ((1, -1), [255, 255, 191, 128, 0, 0])],
)
def test_values_are_grey_levels(range, expected):
    """`255 (x − a)/(b − a)`, cut; 127.5 is rounded to even."""
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 6)
    seen = array(with_x(x).show(range=range))
    scale = 11  # to about 64 pixels
    assert seen.shape == (scale, 6 * scale)
    assert (seen == np.repeat(expected, scale)).all()


def test_infinite_and_missing_values_have_a_level():
    x = torch.tensor([-torch.inf, torch.nan, torch.inf]).reshape(1, 1, 1, 3)
    assert picture.sheet(x.numpy(), size=3).tobytes() == bytes([0, 128, 255])
    assert picture.sheet(x.numpy(), (1, -1), size=3).tobytes() == bytes([255, 128, 0])


def test_a_written_image_is_the_sample(tmp_path):
    """Read as training data are, a large one gives the sample back to half a grey level."""
    for channels in (1, 3):
        x = torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        file = with_x(x).save(tmp_path / "x.png")
        back = sf.data.Folder([file], None, 64, channels)[0]
        assert (back - x[0]).abs().max() <= 0.5 / 127.5 + 1e-6


def test_images_stand_in_rows():
    """Five images of one value each in two rows of three, a white pixel between; the sixth place is white."""
    levels = [0, 51, 102, 153, 204]
    x = torch.tensor(levels).div(127.5).sub(1).reshape(5, 1, 1, 1).expand(5, 1, 64, 64)
    seen = array(with_x(x).show())
    assert seen.shape == (129, 194)
    centres = seen[32::65, 32::65]
    assert centres.tolist() == [levels[:3], [*levels[3:], 255]]
    assert (seen[64] == 255).all() and (seen[:, [64, 129]] == 255).all()


def test_colours_and_how_many_are_shown():
    x = -torch.ones(100, 3, 64, 64)
    x[:, 1] = 1
    assert with_x(x).show().size == (8 * 65 - 1, 8 * 65 - 1)
    assert with_x(x).show(shown=None).size == (10 * 65 - 1, 10 * 65 - 1)
    assert array(with_x(x).show(shown=1)).reshape(-1, 3).tolist() == [[0, 255, 0]] * 64**2


def test_a_strip_is_the_states_at_nine_times():
    """A row is a sample, a column a time: the first, the last, and others evenly between."""
    states = torch.arange(17 * 2).reshape(17, 2, 1, 1, 1).expand(17, 2, 1, 64, 64) / 127.5 - 1
    seen = array(with_x(states[-1], states).show(trajectory=True))
    assert seen[32::65, 32::65].tolist() == [[4 * k for k in range(9)], [4 * k + 1 for k in range(9)]]


def test_points_are_where_they_are():
    """Of two points one lies in the upper right of its panel, and the other in the lower left."""
    for x, y in ((1.0, 1.0), (-1.0, -1.0)):
        points = torch.tensor([[x, y], [4 * x, 4 * y]])
        rows, columns = np.nonzero(array(with_x(points).show())[..., 2] > array(with_x(points).show())[..., 0] + 80)
        middle = np.array(with_x(points).show().size) / 2
        assert ((columns - middle[0]) * x > 0).all() and ((rows - middle[1]) * y < 0).all()


def test_far_points_come_in_later():
    """A trajectory from a prior of width 50 is drawn in three times the square of its end."""
    far = torch.tensor([[[50.0, 0.0]], [[1.0, 0.0]]]).numpy()
    assert picture.square(far) == 3 * 1.25 and picture.square(far[::-1]) == 50 * 1.25


def test_a_strip_of_points_has_a_panel_a_time():
    one, all_of_them = POINTS.show(True), solved(torch.randn(5, 2), steps=20).show(True)
    assert one.width / all_of_them.width == 5 / 9 and one.height == all_of_them.height


# -- files ----------------------------------------------------------------------------------------------------------------


def test_an_animation_ends_with_the_samples(tmp_path):
    """A frame a time, and at most 60; grey levels are kept; it goes round."""
    with Image.open(IMAGES.save(tmp_path / "x.gif")) as opened:
        assert opened.n_frames == 5 and opened.info["loop"] == 0
        for k, state in enumerate(IMAGES.states):
            opened.seek(k)
            assert (array(opened.convert("L")) == array(with_x(state).show())).all()
        assert opened.info["duration"] == 1500
    long = solved(torch.randn(3, 2), steps=100)
    with Image.open(long.save(tmp_path / "long.gif")) as opened:
        assert opened.n_frames == 60


def read(file, name="x"):
    if file.suffix == ".npy":
        return torch.from_numpy(np.load(file))
    if file.suffix == ".pt":
        return torch.load(file)
    from safetensors.torch import load_file

    found = load_file(file)
    assert [*found] == [name]
    return found[name]


@pytest.mark.parametrize("ending", [".npy", ".pt", ".safetensors"])
@pytest.mark.parametrize("sol", [IMAGES, POINTS], ids=["images", "points"])
def test_arrays_are_read_back(ending, sol, tmp_path):
    torch.testing.assert_close(read(sol.save(tmp_path / f"x{ending}")), sol.x, rtol=0, atol=0)
    torch.testing.assert_close(read(sol.save(tmp_path / f"x{ending}", trajectory=True), "states"), sol.states, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{ending}"]


def test_any_shape_and_dtype_is_an_array(tmp_path):
    """bfloat16, which numpy has not, is widened; a gradient and capitals in the ending do not matter."""
    x = torch.randn(2, 4, 5).requires_grad_()
    torch.testing.assert_close(read(with_x(x).save(tmp_path / "x.NPY").rename(tmp_path / "y.npy")), x.detach())
    half = torch.randn(2, 3).bfloat16()
    assert np.load(with_x(half).save(tmp_path / "x.npy")).dtype == np.float32
    assert read(with_x(half).save(tmp_path / "x.safetensors")).dtype == torch.bfloat16
    assert with_x(torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16)).show().size == (64, 64)


def test_safetensors_say_how_they_were_made(tmp_path):
    from safetensors import safe_open

    with safe_open(IMAGES.save(tmp_path / "x.safetensors"), "pt") as opened:
        told = opened.metadata()
    assert told["sampler"] == repr(IMAGES.sampler) and told["model"] == IMAGES.model and told["nfe"] == "4"
    assert json.loads(told["seed"]) == 3 and tuple(json.loads(told["times"])) == IMAGES.times


BARE = solved(torch.randn(2, 1, 8, 8), trajectory=False)
WRONG = {
    "no trajectory": (
        lambda _: BARE.show(True),
        r"trajectory=True needs the states on the way.* solve\(\.\.\., trajectory=True\)",
    ),
    "no trajectory to animate": (lambda f: BARE.save(f / "x.gif"), r"'x.gif', an animation, needs the states on the way"),
    "no trajectory to write": (lambda f: BARE.save(f / "x.npy", trajectory=True), "this run kept none"),
    "ending": (lambda f: BARE.save(f / "x.bmp"), r"file must end in .png, .jpg, .gif, .npy, .pt, .safetensors, got '.*x.bmp'"),
    "no ending": (lambda f: BARE.save(f / "x"), "file must end in"),
    "shape": (lambda _: with_x(torch.zeros(2, 4, 8, 8)).show(), r"samples of shape \(4, 8, 8\) are no pictures: .*\(3, H, W\)"),
    "shape of a file": (
        lambda f: with_x(torch.zeros(2, 5)).save(f / "x.png"),
        r"\(5,\) are no pictures.*write .npy, .pt, .saf",
    ),
    "none": (lambda _: with_x(torch.zeros(0, 2)).show(), "a batch of 0 samples"),
    "range": (lambda _: BARE.show(range=(1, 1)), "range must be two different numbers"),
    "shown": (lambda _: BARE.show(shown=0), "shown must be a whole number ≥ 1, got 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(case, tmp_path):
    call, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda f: BARE.show(range=3), TypeError, "range must be two numbers, the values of black and of white, got 3"),
        (lambda f: BARE.show(trajectory=1), TypeError, "trajectory must be True or False"),
        (lambda f: BARE.save(5), TypeError, "file must be the name of a file, got 5"),
        (lambda f: BARE.save(f / "no" / "x.png"), FileNotFoundError, "must lie in a folder that is there"),
        (lambda f: BARE.save(f.with_suffix(".npy")), IsADirectoryError, "is a folder"),
    ],
)
def test_refused_in_other_words(call, error, said, tmp_path):
    tmp_path.with_suffix(".npy").mkdir(exist_ok=True)
    with pytest.raises(error, match=re.escape(said)):
        call(tmp_path)


@pytest.mark.parametrize(("package", "extra", "sol"), [("PIL", "data", IMAGES), ("matplotlib", "study", POINTS)])
def test_a_missing_package_is_named_with_its_extra(package, extra, sol, tmp_path, monkeypatch):
    """Arrays need none; a card says what it would take."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    hint = rf"pip install 'scoreflow\[{extra}\]'"
    for call in (sol.show, lambda: sol.save(tmp_path / "x.png"), lambda: sol.save(tmp_path / "x.gif")):
        with pytest.raises(ModuleNotFoundError, match=hint):
            call()
    assert sol.save(tmp_path / "x.npy").exists()
    assert re.search(hint, unescape(sol._repr_html_())) and "<img" not in sol._repr_html_()


def test_the_command_writes_what_save_writes(tmp_path):
    """Pictures by the same function; a GIF keeps the trajectory it needs."""
    for ending in ("png", "gif", "npy"):
        out = tmp_path / f"cli.{ending}"
        shown = run("sample", "--model", "zoo:digits", "--nfe", "4", "-n", "3", "-c", "y=3", "--out", str(out))
        assert shown.returncode == 0, shown.stderr
        x_T = sf.White(0).draws("prior")(torch.empty(3, 1, 8, 8))
        sol = sf.solve(sf.zoo.digits(), x_T, nfe=4, seed=0, y=torch.tensor([3, 3, 3]), trajectory=True)
        assert out.read_bytes() == sol.save(tmp_path / f"own.{ending}").read_bytes()


# -- cards ----------------------------------------------------------------------------------------------------------------


class Balanced(HTMLParser):
    """Tags that were opened and not closed, pictures, and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.cells = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        else:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_a_solution_shows_its_samples_and_its_trajectory():
    for sol in (IMAGES, POINTS):
        page = Balanced(sol._repr_html_())
        assert [image["alt"] for image in page.images] == [
            f"{len(sol.x)} samples",
            "the states at 5 times, the first at the left",
        ]
        assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in page.images)
        assert {"4 steps from t=1 to 0", "3", sol.model} <= {*page.cells}
    assert len(Balanced(BARE._repr_html_()).images) == 1


def test_pictures_of_large_images_are_made_smaller():
    noise = torch.randn(9, 3, 600, 600, generator=torch.Generator().manual_seed(0))
    (image,) = Balanced(with_x(noise)._repr_html_()).images
    drawn = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert drawn.size == (1200, 1200) and with_x(noise).show().width == 3 * 601 - 1


@pytest.mark.parametrize("x", [torch.zeros(2, 4, 8, 8), torch.zeros(0, 2), torch.zeros(3)], ids=["latents", "none", "numbers"])
def test_what_is_no_picture_has_a_card(x):
    assert not Balanced(with_x(x)._repr_html_()).images
    assert str(tuple(x.shape)) in with_x(x)._repr_html_()


def test_a_card_in_a_transform_does_not_look_at_numbers():
    seen = []
    torch.func.vmap(lambda x: (seen.append(with_x(x)._repr_html_()), x)[1])(torch.zeros(2, 3, 2))
    assert not Balanced(seen[0]).images


def test_reprs_are_short():
    """A line each; the rows of a plan are its `str`."""
    plan = sf.plan("ddpm", VP, steps=1000, grid="uniform")
    assert (
        repr(plan)
        == "Plan(ddpm, variance=posterior on VPSDE(beta_min=0.1, beta_max=20.0): 1000 steps, 1000 evaluations, 999 draws)"
    )
    assert len(str(plan).splitlines()) == 1002
    assert len(repr(IMAGES)) < 120 and "\n" not in repr(IMAGES)


def test_a_plan_shows_its_rows():
    plan = sf.plan("dpm-solver++", VP, steps=3)
    page = Balanced(plan._repr_html_())
    row = plan.steps[1].stages[0].row
    assert f"{row.x:+.6g}" in page.cells and "  ".join(f"{m:+.6g}" for m in row.m) in page.cells and len(row.m) == 2
    long = Balanced(sf.plan("ddpm", VP, steps=1000, grid="uniform")._repr_html_())
    assert "… 980 more" in long.cells and {"1", "10", "991", "1000"} <= {*long.cells} and "11" not in long.cells
    shared = sf.Plan.from_json(plan.to_json())._repr_html_()
    assert shared == plan._repr_html_()


def test_models_show_what_they_are():
    model = sf.zoo.digits()
    page = Balanced(model._repr_html_())
    assert "UNet, 665,793 parameters of torch.float32 on cpu" in page.cells and "index" in page.cells
    twice = sf.Thresholding(sf.ClassifierFree(model, 3.0))
    cells = Balanced(twice._repr_html_()).cells
    assert cells[cells.index("guidance") + 1] == f"{twice.kind} of ClassifierFree(scale=3.0)"
    exact = sf.Gaussian(torch.zeros(2), 0.5).model(FLOW)
    assert "exact for" in Balanced(exact._repr_html_()).cells


def test_the_table_of_samplers():
    table = sf.samplers()
    cells = Balanced(table._repr_html_()).cells
    assert cells[8:] == [cell for line in table for cell in line.cells]


def test_a_study_shows_its_leading_figure():
    study = sweeps.run(None, samplers=["ddim", "ddpm"], nfe=[4, 8], seeds=2, metrics=["energy", "modes"])
    page = Balanced(study._repr_html_())
    first = study.figures[0]
    for spec in study.specs:
        assert str(study.mean(spec, first)) in page.cells
    assert {"ddim", "ddpm", "4 evaluations", "8 evaluations"} <= {*page.cells}
    assert study.findings(first)[0] in unescape(study._repr_html_())


def test_odd_names_are_text():
    some = made({("cell", ODD, 5): [1.0, 2.0]}, name=ODD, network=ODD)
    assert ODD not in some._repr_html_() and ODD in Balanced(some._repr_html_()).cells
    assert not made({})._repr_html_().count("<img")
    assert html.escape(ODD) in html.note(ODD)
