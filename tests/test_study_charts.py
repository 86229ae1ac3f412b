"""The charts of a report and the sheets of samples: numbers, looks, what cannot be drawn."""

import io
import math
from itertools import pairwise
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from browser import Page
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reported import ODD, curves, made, studied

from scoreflow.studies import draw, report
from scoreflow.studies.report import chart
from scoreflow.studies.strips import picture

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def study():
    with studied() as found:
        yield found


# -- charts ---------------------------------------------------------------------------------------------------------------


def test_chart_has_the_numbers_of_the_frame(study):
    for figure in study.figures:
        frame, lines = study.frame[study.frame["figure"] == figure], curves(study, figure)
        assert list(lines) == [label for label in study.labels if label in set(frame["sampler"])]
        for label, line in lines.items():
            part = frame[frame["sampler"] == label]
            assert line["x"] == list(part["nfe"])
            assert line["y"] == list(part["value"])
            assert np.add(line["y"], line["error_y"]["array"]) == pytest.approx(part["high"])
            low = np.subtract(line["y"], line["error_y"]["arrayminus"])
            cut = chart(study, figure)["layout"]["yaxis"]["type"] == "log"
            assert low == pytest.approx(np.maximum(part["low"], part["value"] / 10) if cut else part["low"])


def test_a_sampler_looks_the_same_everywhere(study):
    """Also where another has no such figure: ddpm has no trajectory error."""
    seen = {label: set() for label in study.labels}
    for figure in study.figures:
        for label, line in curves(study, figure).items():
            marker, dash = report.SYMBOLS.index(line["marker"]["symbol"]), report.DASHES.index(line["line"]["dash"])
            seen[label].add((line["line"]["color"], marker, dash))
        for bars in study.plot(figure).containers:
            line = bars.lines[0]
            marker, dash = draw.MARKERS.index(line.get_marker()), draw.LINES.index(line.get_linestyle())
            seen[bars.get_label()].add((line.get_color(), marker, dash))
    assert "ddpm" not in curves(study, "trajectory/median")
    assert all(len(looks) == 1 for looks in seen.values()), seen
    assert len(set.union(*seen.values())) == len(seen)


def test_32_samplers_look_different():
    many = draw.looks(SimpleNamespace(labels=[f"s{i}" for i in range(32)]))
    assert len(set(many.values())) == 32
    assert all(len({look[part] for look in list(many.values())[:4]}) == 4 for part in range(3)), "in print, by marker and dash"


def test_floor_is_a_line_with_a_band_and_one_entry(study):
    floor, reference = study.floor("energy"), study.reference("energy")
    lines = [line for line in chart(study, "energy")["data"] if "error_y" not in line]
    band, across, exact = lines
    assert sorted(set(band["y"])) == [floor.low, floor.high]
    assert band["fill"] == "toself" and band["showlegend"] is False
    assert band["legendgroup"] == across["legendgroup"] != exact["legendgroup"]
    assert (across["name"], across["y"]) == ("floor: data against data", [floor.value] * 2)
    assert (exact["name"], exact["y"]) == ("converged reference", [reference.value] * 2)
    ax = study.plot("energy")
    assert {line.get_label(): line.get_ydata()[0] for line in ax.lines if not line.get_label().startswith("_")} == {
        across["name"]: floor.value, exact["name"]: reference.value,
    }  # fmt: skip
    (shade,) = ax.patches
    ends = shade.get_window_extent().transformed(ax.transData.inverted())
    assert (ends.y0, ends.y1) == pytest.approx((floor.low, floor.high))


def test_axes_of_matplotlib(study):
    ax = study.plot("modes")
    ax.figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["5", "10"]
    assert list(ax.get_xticks()) == [5, 10] and not len(ax.get_xticks(minor=True))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    legend = ax.get_legend()
    assert legend.get_window_extent().x0 >= ax.get_window_extent().x1, "it covers no curve"
    assert legend.get_window_extent().x1 <= ax.figure.bbox.x1, "nor is it cut off"
    names = [*study.labels, "floor: data against data", "converged reference"]
    assert [text.get_text() for text in legend.get_texts()] == names
    own = plt.subplots(layout="constrained")[1]
    assert study.plot(ODD, own) is own
    own.figure.canvas.draw()
    assert own.get_ylabel() == f"{ODD} (lower is better)".replace("$", r"\$"), "no formula"


def test_intervals_that_reach_0_on_a_logarithmic_axis():
    some = made({("cell", "a", 5): [0.001, 0.3, 0.002], ("cell", "a", 9): [0.1, 0.2, 0.3], ("floor", "data", 0): [0.01, 0.4]})
    low = some.frame["low"].iloc[0]
    assert low < 0 < some.frame["value"].min() and some.floor("modes").low < 0
    line = curves(some, "modes")["a"]
    figure = chart(some, "modes")
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert line["y"][0] - line["error_y"]["arrayminus"][0] == pytest.approx(line["y"][0] / 10)
    assert f"({low:.3g} to " in line["hovertext"][0], "said as it is"
    assert min(figure["data"][0]["y"]) == pytest.approx(some.floor("modes").value / 10)
    ax = some.plot("modes")
    bars = np.concatenate(ax.containers[0].lines[2][0].get_segments())
    assert ax.get_yscale() == "log" and bars[:, 1].min() > 0


@pytest.mark.parametrize(
    ("name", "blocks", "kind"),
    [("modes", [0.1, 0.3], "log"), ("modes", [0, 0], "linear"), ("energy", [0.1, 0.3], "linear"), ("own", [0.1, 0.3], "log")],
)
def test_axis_is_logarithmic_where_all_is_positive(name, blocks, kind):
    some = made({("cell", "a", 5): blocks, ("cell", "a", 9): [0.1, 0.3]}, name=name)
    assert chart(some, name)["layout"]["yaxis"]["type"] == kind
    assert some.plot(name).get_yscale() == kind


def test_what_is_not_finite_is_a_gap(tmp_path):
    some = made({("cell", "a", 5): [math.inf], ("cell", "a", 9): [0.2], ("cell", "a", 20): [0.1]})
    blown_up = made({("cell", "a", 5): [math.inf] * 2, ("cell", "a", 9): [0.2, 0.1]}).plot("modes")
    assert np.isnan(blown_up.containers[0].lines[0].get_ydata()).tolist() == [True, False]
    line = curves(some, "modes")["a"]
    assert line["y"] == [None, 0.2, 0.1]
    assert line["error_y"]["array"] == [None] * 3
    assert line["hovertext"][1] == "a<br>9 evaluations<br>modes 0.2<br>1 block"
    assert some.plot("modes").get_yscale() == "log"
    text = some.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">∞</td>" in text and "NaN" not in "".join(script for a, script in Page(text).scripts if a.get("type"))


def test_steps_are_shown_at_the_evaluations_they_took():
    some = made({("cell", "a", n): [0.1] for n in (5, 10)}, steps=True)
    axis = chart(some, "modes")["layout"]["xaxis"]
    assert axis["tickvals"] == [10, 20]
    assert report._columns(some) == ["5 steps", "10 steps"]


def test_ticks_of_many_budgets_are_apart():
    some = made({("cell", "a", n): [0.1] for n in (5, *range(90, 130))})
    ticks = draw.budgets(some)
    assert ticks[:2] == [5, 90]
    assert min(b / a for a, b in pairwise(ticks)) >= (130 / 5) ** (1 / 14)


@given(st.floats(-12, 3), st.floats(0.05, 12))
def test_ticks_of_a_logarithmic_axis(exponent, decades):
    """Some, and no more than can be read."""
    low, high = 10**exponent, 10 ** (exponent + decades)
    ticks = draw.spacing(low, high)
    powers = [10.0**k for k in range(-13, 17)]
    if isinstance(ticks, int):
        shown = powers[::ticks]
    elif ticks == "D2":
        shown = [digit * power for power in powers for digit in (1, 2, 5)]
    else:
        step = float(ticks[1:])
        shown = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    assert 2 <= sum(low <= tick <= high for tick in shown) <= 11


# -- samples --------------------------------------------------------------------------------------------------------------


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


def test_ink_is_dark():
    images = -np.ones((2, 1, 8, 8))
    images[0, 0, :4] = 1
    seen = pixels(picture(images))
    assert seen.shape == (24, 51, 3)
    assert (seen[:12, :24] == 0).all()
    assert (seen[12:] == 1).all() and (seen[:, 24:] == 1).all()


def test_colours_are_as_they_are():
    images = -np.ones((1, 3, 8, 8))
    images[:, 0] = 1
    seen = pixels(picture(images))
    assert seen.shape == (24, 24, 3) and (seen == [1, 0, 0]).all()


def test_points_are_drawn_in_a_given_square():
    points = np.array([[0.5, 0.5], [30.0, 0.0]])
    corner = pixels(picture(points, within=1.0))
    y, x = np.nonzero(corner[..., 2] > corner[..., 0] + 0.3)
    assert 0.7 < x.mean() / corner.shape[1] < 0.8 and 0.2 < y.mean() / corner.shape[0] < 0.3
    every = pixels(picture(points))
    assert np.ptp(np.nonzero(every[..., 2] > every[..., 0] + 0.3)[1]) > 50


def test_what_is_not_finite_is_drawn_grey():
    assert pixels(picture(np.full((1, 1, 8, 8), np.nan)))[0, 0] == pytest.approx(0.5, abs=0.01)
    assert picture(np.full((3, 2), np.nan))[:4] == b"\x89PNG"


@pytest.mark.parametrize("shape", [(4, 5), (4, 2, 8, 8), (4, 8, 8), (4,), (0, 1, 8, 8), (0, 2)])
def test_other_shapes_are_no_picture(shape):
    assert picture(np.zeros(shape)) == b""


def test_strips_are_of_every_sampler_and_what_they_are_compared_to(study):
    strips = report.strips(study)
    assert [s["label"] for s in strips] == [*study.labels, "converged reference", "data"]
    assert [list(s["pictures"]) for s in strips] == [["5 evaluations", "10 evaluations"]] * 3 + [[""]] * 2
    assert len({url for s in strips for url in s["pictures"].values()}) == 8
    assert all(url.startswith("data:image/png;base64,iVBOR") for s in strips for url in s["pictures"].values())


def test_a_value_of_0_does_not_take_the_logarithm_away():
    """The reference itself has no distance to itself: a gap in its line, and the others stay readable."""
    some = made({("cell", "a", 5): [0.1, 0.2, 0.3], ("cell", "a", 9): [0.0, 0.0, 0.0]}, name="trajectory")
    figure = chart(some, "trajectory")
    assert figure["layout"]["yaxis"]["type"] == "log" and curves(some, "trajectory")["a"]["y"][1] is None


def test_the_extent_is_of_all_that_is_drawn():
    some = made({("cell", "a", 5): [0.1, 0.2], ("cell", "b", 9): [3.0, 4.0]}, name="trajectory")
    low, high = draw.extent(some, "trajectory")
    assert low <= 0.15 and high >= 3.5


def test_infinite_pixels_are_at_the_ends():
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -np.inf, np.inf
    shown = pixels(picture(x))
    assert shown[0, 0].mean() > 0.95 and shown.min() < 0.05  # ink is positive
