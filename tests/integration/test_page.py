"""The report in a real Chromium: what a reader sees, sorts, filters and prints; what never runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from mil.report import build
from splits.artifacts import write_table
from tests.report_run import add_results, make_run, paint

ATTACK = "<img src=x onerror=alert(1)>"
SLIDES = "#slide-table tbody tr"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("no chromium or chrome is installed")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which half of the slides have coordinates."""
    run = add_results(make_run(tmp_path_factory.mktemp("page"), n_slides=14))
    return build(run, read_tile=paint)


class Opened:
    """A page with all that it asked for and complained about."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        size = options.pop("viewport", {"width": 1280, "height": 900})
        charts = options.pop("charts", True)
        self.context = browser.new_context(viewport=size, **options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda line: self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self._dialog(dialog))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.set_default_timeout(120_000)
        if not charts:  # what this takes away the charts need, and nothing else
            self.page.add_init_script("delete window.DecompressionStream")
        self.page.goto(path.as_uri())

    def _dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def drawn(self) -> Opened:
        self.page.wait_for_selector("html[data-charts=drawn]", state="attached")
        return self

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def column(self, place: int) -> list[str]:
        return self.page.eval_on_selector_all(
            f"{SLIDES}:not([hidden])",
            f"rows => rows.map(row => row.cells[{place}].innerText.trim())",
        )


def test_charts_are_drawn_without_complaint_or_request(browser: Browser, path: Path) -> None:
    with Opened(browser, path) as opened:
        opened.drawn()
        places = opened.page.locator(".chart")
        assert places.count() > 12
        assert opened.page.locator(".chart svg.main-svg").count() >= places.count()
        assert not opened.complaints
        assert {url for url in opened.asked if not url.startswith("data:")} == {path.as_uri()}


def test_a_browser_that_cannot_draw_charts_shows_all_else(browser: Browser, path: Path) -> None:
    with Opened(browser, path, charts=False) as opened:
        chart = opened.page.locator("#agreement")
        chart.get_by_text("This browser cannot draw the charts").wait_for()
        opened.page.locator(SLIDES).nth(1).hover()
        assert opened.page.locator("#slide-panel .face").count() == 8


def test_tables_sort_by_value_and_back(browser: Browser, path: Path) -> None:
    with Opened(browser, path, charts=False) as opened:
        head = opened.page.locator("#slide-table thead th").nth(3)
        button = head.locator("button.sort")
        button.click()
        rising = [float(text) for text in opened.column(3)]
        assert rising == sorted(rising)
        assert rising[0] < rising[-1]
        assert head.get_attribute("aria-sort") == "ascending"
        button.press("Enter")
        assert [float(text) for text in opened.column(3)] == rising[::-1]
        assert head.get_attribute("aria-sort") == "descending"
        opened.page.locator("#slide-table thead th").nth(0).locator("button").click()
        assert head.get_attribute("aria-sort") is None
        assert opened.column(0) == sorted(opened.column(0))
        scores = opened.page.locator("table.scores").first
        scores.locator("thead th").nth(2).locator("button").click()
        values = scores.locator("tbody td.num:nth-child(3)").all_inner_texts()
        assert len(values) == 5
        numbers = [float(text.split()[0]) for text in values]
        assert numbers == sorted(numbers)


def test_filters_leave_what_fits_and_count_it(browser: Browser, path: Path) -> None:
    slides = pd.read_csv(path.parent / "tables" / "slides.csv")
    with Opened(browser, path, charts=False) as opened:
        page, count = opened.page, opened.page.locator("#slide-count")
        page.locator("select[data-by=answer]").select_option("wrong")
        wrong = slides[~slides["right"]]
        assert 0 < len(wrong) < len(slides)
        assert opened.column(0) == wrong["slide_id"].tolist()
        assert count.inner_text() == f"{len(wrong)} of {len(slides)} slides"
        label = wrong["label"].iloc[0]
        page.locator("select[data-by=label]").select_option(label)
        assert opened.column(0) == wrong.loc[wrong["label"] == label, "slide_id"].tolist()
        page.locator("select[data-by=answer]").select_option("")
        page.locator("select[data-by=label]").select_option("")
        page.locator("select[data-by=mark]").select_option("not sure")
        assert opened.column(0) == slides.loc[slides["is_not_sure"], "slide_id"].tolist()
        page.locator("select[data-by=mark]").select_option("")
        page.locator("#slide-text").fill("p13")  # a patient, in small letters
        assert opened.column(0) == slides.loc[slides["patient"] == "P13", "slide_id"].tolist()
        page.locator("#slide-text").fill("nothing has this name")
        assert opened.column(0) == []


def test_pointing_and_arrow_keys_show_tiles_and_escape_lets_go(
    browser: Browser, path: Path
) -> None:
    with Opened(browser, path, charts=False) as opened:
        page, title = opened.page, opened.page.locator("#slide-panel h3")
        names = opened.column(0)
        page.locator(SLIDES).nth(2).hover()
        assert names[2] in title.inner_text()
        face = page.locator("#slide-panel .face").first
        image = face.evaluate("face => getComputedStyle(face).backgroundImage")
        assert image.startswith('url("data:image/jpeg')
        page.locator(SLIDES).nth(2).locator("button").focus()
        page.keyboard.press("ArrowDown")
        assert names[3] in title.inner_text()
        page.keyboard.press("End")
        assert names[-1] in title.inner_text()
        page.keyboard.press("Enter")
        page.locator(SLIDES).nth(0).hover()
        assert names[-1] in title.inner_text()  # kept
        page.keyboard.press("Escape")
        page.locator(SLIDES).nth(1).hover()
        assert names[1] in title.inner_text()
        # One stop of the tab key, whatever the number of slides.
        assert page.locator(f"{SLIDES} button[tabindex='0']").count() == 1


def test_a_map_zooms_and_moves_by_keys_and_is_refused_without_places(
    browser: Browser, path: Path
) -> None:
    with Opened(browser, path, charts=False) as opened:
        page = opened.page
        page.locator(SLIDES).nth(0).locator("button").click()
        view = page.locator("#slide-panel .map")
        assert page.locator("#slide-panel .map rect").count() == 16
        view.focus()
        page.keyboard.press("+")
        assert float(view.get_attribute("data-scale") or 0) == 1.5
        before = page.locator(".map-sheet").evaluate("sheet => sheet.style.transform")
        page.keyboard.press("ArrowRight")
        assert page.locator(".map-sheet").evaluate("sheet => sheet.style.transform") != before
        page.keyboard.press("0")
        assert float(view.get_attribute("data-scale") or 0) == 1
        page.locator("#slide-panel input[type=range]").fill("80")
        opacity = page.locator(".map-sheet svg").evaluate("drawn => drawn.style.opacity")
        assert float(opacity) == 0.8
        page.keyboard.press("Escape")
        page.locator(SLIDES).last.locator("button").click()
        assert view.count() == 0
        assert "have no coordinates" in page.locator("#slide-panel").inner_text()


def test_a_mark_of_the_chart_shows_its_slide(browser: Browser, path: Path) -> None:
    with Opened(browser, path) as opened:
        opened.drawn()
        opened.page.locator("#agreement").scroll_into_view_if_needed()
        opened.page.locator("#agreement .scatterlayer .points path").first.hover(force=True)
        peek = opened.page.locator("#agreement-slide")
        peek.locator("h3").wait_for()
        assert peek.locator(".face").count() == 8


def test_names_that_are_markup_are_text_everywhere(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n_slides=9, hostile=ATTACK)
    for name in ("predictions", "tile_predictions", "attention", "tiles"):
        table = pd.read_parquet(run / f"{name}.parquet")
        for column in ("site_id", "patient_id"):
            if column in table:
                table[column] = table[column].astype(str) + ATTACK
        if "method" in table:
            table["method"] = table["method"].replace("mean", f"mean{ATTACK}")
        write_table(run / f"{name}.parquet", table, {})
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["slide"][f"mean{ATTACK}"] = metrics["slide"].pop("mean")
    (run / "metrics.json").write_text(json.dumps(metrics))
    add_results(run)
    with Opened(browser, build(run, read_tile=paint)) as opened:
        page = opened.drawn().page
        for place in range(3):
            page.locator(SLIDES).nth(place).hover()
            assert ATTACK in page.locator("#slide-panel h3").inner_text()
        page.locator(SLIDES).nth(0).locator("button").click()
        page.locator("#slide-panel summary").click()
        assert f"mean{ATTACK}" in page.locator("#slide-panel .answers").inner_text()
        assert page.locator("[onerror]").count() == 0
        assert page.locator("img[src='x']").count() == 0
        # The policy stops what escaping would have let through.
        page.evaluate(f"document.querySelector('h1').innerHTML = {json.dumps(ATTACK)}")
        page.wait_for_timeout(200)
        assert not [line for line in opened.complaints if line.startswith("dialog")]
        outside = [url for url in opened.asked if not url.startswith("data:")]
        assert len(outside) <= 2  # the page, and the picture that this test has put there
    assert ATTACK not in (run / "report.md").read_text()


def _luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TEXTS = """() => {
  const opaque = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$|transparent|color/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = new Map();
  document.querySelectorAll("body *").forEach((node) => {
    const said = [...node.childNodes].some((part) => part.nodeType === 3 && part.data.trim());
    if (!said || node.closest("svg, script, .matrix, .map") || !node.offsetParent) return;
    const pair = [getComputedStyle(node).color, opaque(node)];
    found.set(pair.join("|"), [...pair, node.textContent.trim().slice(0, 40)]);
  });
  return [...found.values()];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Browser, path: Path, scheme: str) -> None:
    with Opened(browser, path, color_scheme=scheme, charts=False) as opened:
        opened.page.locator(SLIDES).nth(0).locator("button").click()
        pairs = opened.page.evaluate(TEXTS)
        assert len(pairs) > 5
        for ink, ground, words in pairs:
            high, low = sorted((_luminance(ink), _luminance(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, ink, ground, words)
        ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (_luminance(ground) > 0.5) == (scheme == "light")


def test_a_phone_needs_no_sideways_scroll_and_a_tap_shows_tiles(
    browser: Browser, path: Path
) -> None:
    phone = {"width": 360, "height": 740}
    with Opened(browser, path, viewport=phone, has_touch=True) as opened:
        page = opened.drawn().page
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator(f"{SLIDES} button").nth(1).tap()
        panel = page.locator("#slide-panel")
        assert panel.evaluate("panel => getComputedStyle(panel).position") == "fixed"
        box = panel.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        assert panel.locator(".face").first.is_visible()
        panel.get_by_role("button", name="Let go of this slide").tap()
        assert panel.evaluate("panel => getComputedStyle(panel).position") == "static"


def test_paper_shows_every_slide_and_opens_what_is_folded(browser: Browser, path: Path) -> None:
    with Opened(browser, path, color_scheme="dark") as opened:
        page = opened.drawn().page
        page.locator("#slide-text").fill("0001")
        assert len(opened.column(0)) == 1
        page.evaluate(
            "window.opened = () => document.querySelectorAll('details:not([open])').length"
        )
        page.evaluate("addEventListener('beforeprint', () => { window.folded = window.opened(); })")
        pdf = page.pdf(format="A4")
        assert len(pdf) > 100_000
        assert page.evaluate("window.folded") == 0
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert len(opened.column(0)) == 14
        for hidden in ("#slide-panel", "#slide-filters", "nav", ".peek"):
            assert not page.locator(hidden).first.is_visible()
        assert page.locator("#slide-table").is_visible()
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(255, 255, 255)"
        page.emulate_media(media="screen")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert len(opened.column(0)) == 1
