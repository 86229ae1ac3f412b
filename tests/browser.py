"""Pages for tests: a headless browser, what is read from a page in it, and a page as text."""

import json
import shutil
from contextlib import contextmanager
from html.parser import HTMLParser

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextmanager
def browser():
    """Chromium or Chrome of this machine; the test is skipped, and says what to install, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@contextmanager
def opened(browser, file, width=1200):
    """A page, what it complained of, and what it asked for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.said.append(f"error: {error}"))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    page.close()


def drawn(page):
    """Of each chart: whether it is in a closed part, the curves that stand there, the curves that it has, its width."""
    return page.evaluate(
        """() => [...document.querySelectorAll(".curve")].map(box => ({
            closed: !!box.closest("details:not([open])"), there: box.querySelectorAll(".scatterlayer .trace").length,
            has: JSON.parse(document.getElementById(box.id + "-data").textContent).data.length,
            wide: box.querySelector(".main-svg")?.clientWidth ?? 0}))"""
    )


def column(page, name):
    return page.evaluate(
        """name => { const heads = [...document.querySelectorAll("#figures thead th")];
            const at = heads.findIndex(head => head.textContent.trim() === name);
            return [...document.querySelectorAll("#figures tbody tr:not([hidden])")].map(row => row.cells[at].textContent) }""",
        name,
    )


CONTRAST = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const part = v => v <= 10.3 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b) + 0.05;
    const back = e => !e ? [255, 255, 255] : rgb(getComputedStyle(e).backgroundColor)[3] === 0
        ? back(e.parentElement) : rgb(getComputedStyle(e).backgroundColor);
    const words = e => [...e.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    return [...document.querySelectorAll("body *")].filter(e => words(e) && !e.closest(".curve, script, noscript"))
        .map(e => [light(rgb(getComputedStyle(e).color)), light(back(e))]).map(([a, b]) => Math.max(a / b, b / a)) }"""
"""Of each element with words, the contrast of its text as WCAG 2.2 counts it."""


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts.append((self.tags[-1][1], data))

    def charts(self):
        return [json.loads(text) for attrs, text in self.scripts if attrs.get("type") == "application/json"]

    def named(self, *names):
        return [(tag, attrs) for tag, attrs in self.tags if tag in names]
