"""The report of a study, in a real browser and as text, and the charts: numbers, looks, escapes, what cannot be drawn."""

import io
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from browser import CONTRAST, Page, browser, column, drawn, opened
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

import scoreflow as sf
from scoreflow.studies import draw, report
from scoreflow.studies.metrics import METRICS, metric
from scoreflow.studies.report import chart, picture
from scoreflow.studies.store import Done, Measured, Store
from scoreflow.studies.sweep import Study

matplotlib.use("Agg")

ODD = "<b>\"x\"</b></script><!-- & 'y' $z$ " + "long" * 15
"""A name that no page may read as its own, nor be widened by."""


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def study():
    @metric(ODD, positive=False)
    def odd(scene):
        """The mean of `x < 1 & "y"`, <i>as it is</i>."""
        return float(scene.x.mean())

    yield sf.study(
        "oracle:ring", ["ddim", "ddpm", "dpm-solver++"], nfe=[5, 10], n=16, seeds=3,
        metrics=["trajectory", "energy", "modes", ODD], reference="scipy(rtol=1e-4)",
    )  # fmt: skip
    del METRICS[ODD]


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    return study.report(tmp_path_factory.mktemp("report") / "report.html")


def made(cells, name="modes", steps=False, network="made"):
    """A study of values: {(kind, sampler, budget): blocks}; evaluations are the budget, and twice the steps."""
    store = Store(None, {"network": network, "path": "none", "n": "2"})
    for (kind, label, n), blocks in cells.items():
        for seed, value in enumerate(blocks):
            done = Done(float(2 * n if steps else n), 0.0, None, (Measured(name, "", {name: value}),))
            spec = (label, None, None, n) if steps else (label, None, n, None)
            store.put(f"{kind} {label} {n} {seed}", kind, spec, seed, done)
    return Study(store)


def curves(study, figure):
    """The traces of the samplers, by name."""
    return {line["name"]: line for line in chart(study, figure)["data"] if "error_y" in line}


# -- in a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def loaded(chromium, file):
    with opened(chromium, file) as found:
        found.first = drawn(found)
        yield found


@pytest.fixture
def page(loaded, file):
    """As it was loaded, but for the order of the table; nothing may have been complained of, nor asked for elsewhere."""
    loaded.set_viewport_size({"width": 1200, "height": 900})
    loaded.evaluate("document.querySelectorAll('details').forEach(part => part.open = false)")
    for name in ("Figure", "Sampler"):
        loaded.get_by_label(name, exact=True).select_option("")
    yield loaded
    assert loaded.said == []
    assert {url.partition(":")[0] for url in loaded.asked} <= {"file", "data"}
    assert [url for url in loaded.asked if url.startswith("file:")] == [file.as_uri()]


def test_open_curves_are_drawn_and_others_on_opening(page, study):
    assert [c["closed"] for c in page.first] == [f in ("trajectory/q90", "trajectory/rms") for f in study.figures]
    assert all(c["there"] == (0 if c["closed"] else c["has"]) for c in page.first)
    page.locator("summary").first.click()
    page.wait_for_function("document.querySelector('details[open] .scatterlayer .trace')")
    now = drawn(page)[study.figures.index("trajectory/q90")]
    assert now["there"] == now["has"] >= 2
    assert now["wide"] > 800
    assert len(page.screenshot(full_page=True)) > 10_000


def test_table_sorts_by_click_and_by_key(page, study):
    head = page.locator("#figures th", has_text="value")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "value") == [report.number(v) for v in sorted(study.frame["value"])]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "value") == [report.number(v) for v in sorted(study.frame["value"], reverse=True)]
    ends = study.frame.sort_values("value", ascending=False)[["low", "high"]].to_numpy()
    assert column(page, "95 % interval") == [f"{low:.3g} to {high:.3g}" for low, high in ends]
    page.locator("#figures th", has_text="sampler").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert column(page, "sampler") == sorted(study.frame["sampler"])


def test_what_is_missing_is_sorted_last(page, study):
    floors = study.frame["floor"]
    assert floors.isna().any()
    for down in (False, True):
        page.locator("#figures th", has_text="floor").get_by_role("button").click()
        expected = floors.sort_values(ascending=not down, na_position="last")
        assert column(page, "floor") == [report.number(v) for v in expected]


def test_table_is_filtered(page, study):
    frame = study.frame
    assert len(column(page, "figure")) == len(frame)
    for name in ("energy", ODD):
        page.get_by_label("Figure", exact=True).select_option(value=name)
        assert column(page, "figure") == [name] * (frame["figure"] == name).sum()
    page.get_by_label("Sampler", exact=True).select_option("ddpm")
    assert column(page, "sampler") == ["ddpm"] * 2
    assert page.locator("#count").inner_text() == f"2 of {len(frame)} lines"


@pytest.mark.parametrize("width", [420, 1200])
def test_body_does_not_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.wait_for_function(
        "wide => [...document.querySelectorAll('.curve')].every(box => box.querySelector('.main-svg')?.clientWidth <= wide)",
        arg=width,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate("[...document.querySelectorAll('.wide')].map(b => [b.scrollWidth - b.clientWidth, b.tabIndex])")
    assert width == 1200 or max(over for over, _ in boxes) > 0, "wide tables scroll inside"
    assert all(index == 0 for _, index in boxes), "a keyboard must reach what scrolls"


def test_odd_names_are_text(page):
    assert page.get_by_role("heading", name=ODD, exact=True).count() == 1
    assert page.locator("main b, main i, nav b, nav i").count() == 0
    titles = page.evaluate("[...document.querySelectorAll('.ytitle')].map(title => title.textContent)")
    assert ODD in titles
    assert page.locator("code", has_text='x < 1 & "y"').count() == 1


def test_hover_says_what_a_point_is(page, study):
    box = page.locator(".curve", has=page.locator(".ytitle", has_text="energy"))
    box.scroll_into_view_if_needed()
    point = box.locator(".trace .point").nth(1).bounding_box()  # at 10 evaluations
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2, steps=3)
    hover = box.locator(".hovertext").first
    hover.wait_for()
    said = hover.locator("tspan").all_text_contents()
    line = study.frame.query("figure == 'energy' and nfe == 10").set_index("sampler").loc[said[0]]  # two may overlap
    value = f"{line['value']:.3g} ({line['low']:.3g} to {line['high']:.3g})"
    assert said[1:] == ["10 evaluations", f"energy {value}", "3 blocks"]


def test_print_shows_all_parts(page):
    page.evaluate(
        """addEventListener('beforeprint', () => { window.seen = [...document.querySelectorAll('.curve')]
            .map(box => box.closest("details:not([open])") ? 0 : box.querySelectorAll('.trace').length) })"""
    )
    assert page.pdf(format="A4")[:4] == b"%PDF"
    page.wait_for_function("!document.querySelector('details[open]')")
    after = drawn(page)
    assert page.evaluate("window.seen") == [c["has"] for c in after], "every chart, the folded ones too"
    assert all(c["wide"] > 800 for c in after if not c["closed"])


def test_text_has_contrast(page):
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert min(found) >= 4.5


# -- the page as text -----------------------------------------------------------------------------------------------------


def test_page_can_be_read_aloud(file):
    page = Page(file.read_text(encoding="utf-8"))
    assert page.named("html") == [("html", {"lang": "en"})]
    levels = [int(tag[1]) for tag, _ in page.named("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert page.named("img") and all(attrs["alt"] for _, attrs in page.named("img"))
    assert all(attrs["aria-label"] for _, attrs in page.tags if attrs.get("role") in ("img", "region"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for _, attrs in page.named("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_odd_names_do_not_leave_their_place(study, file):
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.named("b", "i")
    data = page.charts()
    assert data == [json.loads(json.dumps(chart(study, figure))) for figure in study.figures]
    assert len(page.named("script")) == len(data) + 2
    assert ODD not in text


def test_odd_samplers_errors_and_networks_are_text(tmp_path):
    some = made({("cell", ODD, 5): [1.0, 2.0], ("floor", "data", 0): [1.0, 2.0]}, name=ODD, network=ODD)
    some.store.put("bad", "cell", (ODD, None, 9, None), 0, Done(None, 0.0, None, (), error=f"ValueError: {ODD}"))
    text = some.report(tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert ODD not in text and not page.named("b")
    assert len(page.named("script")) == 3


def test_report_stands_whole_or_not_at_all(tmp_path, monkeypatch):
    some, file = made({("cell", "a", 5): [0.1]}), tmp_path / "in" / "report.html"
    some.report(file)
    before = file.read_bytes()
    whole = type(file).write_text

    def full(self, text, **keywords):
        whole(self, text[: len(text) // 2], **keywords)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(file), "write_text", full)
    with pytest.raises(OSError, match="No space"):
        some.report(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]


def test_chosen_figures_alone_are_shown(study, tmp_path):
    page = Page(study.report(tmp_path / "report.html", ["trajectory/rms", "modes"]).read_text(encoding="utf-8"))
    assert page.charts() == [json.loads(json.dumps(chart(study, figure))) for figure in ("trajectory/rms", "modes")]
    assert not page.named("details")


def test_failures_are_listed_once_for_all_blocks(tmp_path):
    some = made({("cell", "ddim", 5): [1.0, 2.0]})
    for seed in (0, 1):
        error = Done(None, 0.0, None, (), error="FloatingPointError: overflow")
        some.store.put(f"bad {seed}", "cell", ("ddim", None, 7, None), seed, error)
    error = Done(None, 0.0, None, (Measured("modes", "", {}, "metric: no"),))
    some.store.put("bad 2", "cell", ("ddim", None, 7, None), 2, error)
    assert report.failures(some) == [
        {"cell": "ddim, nfe=7", "error": "FloatingPointError: overflow", "seeds": [0, 1]},
        {"cell": "ddim, nfe=7", "error": "metric: no", "seeds": [2]},
    ]
    text = some.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ddim, nfe=7, blocks 0, 1: FloatingPointError: overflow" in text
    assert "ddim, nfe=7, block 2: metric: no" in text


def test_a_study_that_failed_has_a_report(tmp_path):
    some = made({})
    some.store.put("bad", "cell", ("ddim", None, 7, None), 0, Done(None, 0.0, None, (), error="ValueError: no"))
    text = some.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ddim, nfe=7, block 0: ValueError: no" in text


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
    return imread(io.BytesIO(png))[..., :3]


def test_ink_is_dark():
    images = -np.ones((2, 1, 8, 8))
    images[0, 0, :4] = 1
    seen = pixels(picture(images))
    assert seen.shape == (27, 54, 3)
    assert (seen[:12, :24] == 0).all()
    assert (seen[12:] == 1).all() and (seen[:, 24:] == 1).all()


def test_colours_are_as_they_are():
    images = -np.ones((1, 3, 8, 8))
    images[:, 0] = 1
    seen = pixels(picture(images))
    assert (seen[:24, :24] == [1, 0, 0]).all() and (seen[24:] == 1).all()


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
