"""The report of a study, in a real browser and as text: numbers, looks, escapes."""

import json
from itertools import pairwise

import matplotlib
import pytest
from browser import CONTRAST, Page, browser, column, drawn, opened
from reported import ODD, made, studied

from scoreflow.studies import report
from scoreflow.studies.report import chart
from scoreflow.studies.store import Done, Measured

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def study():
    with studied() as found:
        yield found


@pytest.fixture(scope="module")
def file(study, tmp_path_factory):
    return study.report(tmp_path_factory.mktemp("report") / "report.html")


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


# -- the light form -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def light(study, tmp_path_factory):
    return study.report(tmp_path_factory.mktemp("light") / "light.html", light=True)


def test_the_light_report_has_all_but_scripts(study, file, light):
    """The same headings, tables, findings and samples; a chart a figure; under a third of the size."""
    full, page = (Page(each.read_text(encoding="utf-8")) for each in (file, light))
    assert not page.named("script", "button", "select", "noscript")
    for tags in (("h1", "h2", "h3"), ("td", "th"), ("li", "dt", "dd"), ("table",)):
        assert [t for t, _ in page.named(*tags)] == [t for t, _ in full.named(*tags)]
    charts = [attrs for _, attrs in page.named("img") if attrs.get("class") == "still"]
    assert [attrs["alt"].partition(" against")[0] for attrs in charts] == list(study.figures)
    assert len(page.named("img")) - len(charts) == len(full.named("img"))
    assert light.stat().st_size < file.stat().st_size / 3
    assert ODD not in light.read_text(encoding="utf-8")


def test_the_light_report_is_the_same_each_time(study, light, tmp_path):
    assert study.report(tmp_path / "again.html", light=True).read_bytes() == light.read_bytes()


@pytest.mark.parametrize("width", [420, 1200])
def test_the_light_report_in_a_browser(chromium, light, width):
    """Every picture is drawn, nothing is complained of or asked for elsewhere, the body does not scroll sideways."""
    with opened(chromium, light, width) as page:
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 10)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.querySelectorAll('.wide')].every(box => box.tabIndex === 0)")
        assert page.said == [] and [url for url in page.asked if not url.startswith("data:")] == [light.as_uri()]
        found = page.evaluate(CONTRAST)
        assert len(found) > 100 and min(found) >= 4.5
