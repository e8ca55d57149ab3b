"""The demo shop in a browser: every element is used, on a wide window and on a telephone's.

Needs Chromium and Playwright: `apt install chromium`, `pip install -e ".[browser]"`.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Shop, published_in, starting

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FIRST_PAINT_MS = 1_000
NOTING = """
const TOUCHED = "button, input, select, textarea, summary, a";
const inside = (node) => `${node.parentElement.parentElement.className} ${node.tagName.toLowerCase()}`;
const name = (node) => node.id || node.className || inside(node);
window.used = new Set();
for (const kind of ["click", "input", "change"])
  addEventListener(kind, ({ target }) => window.used.add(name(target.closest(TOUCHED) || target)), true);
window.elements = () => [...new Set([...document.querySelectorAll(TOUCHED)].map(name))];
"""
"""What a user touches, by id or class: `used` are those that were, `elements` all that are there."""


@dataclass
class Visit:
    """A page of the shop, and what was seen beside it."""

    page: "sync_api.Page"
    complaints: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of requests for recommendations."""

    def hear(self, request: "sync_api.Request") -> None:
        """Note what the page asks for."""
        self.asked.add(request.url)
        if request.url.endswith("/v1/recommend"):
            self.bodies.append(request.post_data_json)

    def settled(self) -> None:
        """Return when the list is of the last request."""
        self.page.wait_for_timeout(600)  # the page waits for who still types
        self.page.wait_for_selector("#items[aria-busy=false]")

    def products(self) -> list[str]:
        """Titles of the recommended products."""
        self.settled()
        return self.page.locator("#items h3").all_inner_texts()

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth"))


@pytest.fixture(scope="module")
def fresh(new_store: Callable[[], Path]) -> Iterator[Shop]:
    yield from starting(published_in(new_store()))


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    quiet = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-sync", *quiet])
        yield opened
        opened.close()


def visit(browser: "sync_api.Browser", url: str, window: dict[str, int]) -> Visit:
    """Open the shop."""
    page = browser.new_page(viewport=window)
    seen = Visit(page)
    page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", seen.hear)
    page.add_init_script(NOTING)
    page.goto(url)
    seen.settled()
    return seen


def test_every_element_of_the_shop_does_something(fresh: Shop, browser: "sync_api.Browser", tmp_path: Path) -> None:
    shop = visit(browser, fresh.url, WIDE)
    page = shop.page
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < FIRST_PAINT_MS
    first = shop.products()
    assert len(first) == 12
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first stop of the keyboard leads to the list
    assert page.evaluate("document.activeElement.id") == "picks"

    # products are found by words, added, and taken away again
    title = first[0]
    page.fill("#find", title)
    page.wait_for_selector("#found-note:has-text('found')")
    page.click("#found .row >> nth=0")
    page.wait_for_selector("#history .row")
    assert shop.products() != first
    assert "Choose" not in page.inner_text("#history")
    page.click("#history .away")
    assert shop.products() == first
    page.fill("#find", "no such thing at all")
    page.wait_for_selector("#found-note:has-text('Nothing in the catalogue')")
    page.fill("#find", "")

    # a choice counts at once, and reasons name it
    chosen = page.inner_text("#items .card >> nth=0 >> h3")
    page.click("#items .card >> nth=0 >> .acts .main")
    after = shop.products()
    assert after != first
    assert page.locator("#history .row").count() == 1
    assert chosen in " ".join(page.locator("#items .why").all_inner_texts())
    page.click("#items .card >> nth=0 >> summary")
    assert "Found by" in page.inner_text("#items .card >> nth=0 >> dl")

    # what is similar, in a dialog that keeps the keyboard
    page.click("#items .card >> nth=1 >> .acts button:not(.main)")
    page.wait_for_selector("#similar[open] .card")
    assert "% alike" in page.inner_text("#similar-items")
    assert page.evaluate("document.activeElement.id") == "close"
    page.click("#close")
    assert not page.is_visible("#similar")
    page.click("#clear")
    assert page.is_visible("#nothing")

    # words, examples, measurements, and numbers that are none
    page.fill("#context", "a warm coat for winter")
    shop.settled()
    assert shop.bodies[-1]["context"] == "a warm coat for winter"
    page.click("#ideas button >> nth=0")
    shop.settled()
    assert shop.bodies[-1]["context"] == page.inner_text("#ideas button >> nth=0")
    for name, value in (("height_cm", "181"), ("weight_kg", "74"), ("birth_year", "1990")):
        page.fill(f"#{name}", value)
    shop.settled()
    assert page.inner_text("#body-note") == ""
    assert shop.bodies[-1]["profile"] == {"height_cm": 181, "weight_kg": 74, "birth_year": 1990}
    page.fill("#height_cm", "9")
    shop.settled()
    assert "Height must be a number between" in page.inner_text("#body-note")
    assert shop.bodies[-1]["profile"] == {"weight_kg": 74, "birth_year": 1990}
    page.fill("#height_cm", "181")

    # filters
    page.select_option("#category", index=1)
    shop.settled()
    assert shop.bodies[-1]["filters"] == {"category": [page.input_value("#category")]}
    assert page.locator("#items .card").count() >= 1
    page.select_option("#category", index=0)
    page.fill("#price_max", "0")
    shop.settled()
    assert "No available product is left" in page.inner_text("#items")
    page.fill("#price_max", "-1")
    shop.settled()
    assert "must be a number of 0 or more" in page.inner_text("#filter-note")
    page.fill("#price_max", "")

    # a stage left out, and a shopper whom the shop knows
    for stage in ("ranking", "user_tower", "rules", ""):
        page.select_option("#without", stage)
        shop.settled()
        assert ("are among the first" in page.inner_text("#status")) == bool(stage)
    page.select_option("#user", index=1)
    shop.settled()
    assert shop.bodies[-1]["user_id"] == page.input_value("#user")
    assert "stored events" in page.inner_text("#stored")
    assert page.locator("#recent .row").count() >= 1
    stages = page.locator("#timing li").all_inner_texts()
    assert [re.sub(r" \d+ ms$", "", stage) for stage in stages] == [
        *("shopper", "user tower", "retrieval", "ranking", "rules", "reasons", "in all")
    ]

    # a shop that is away, and one that is back
    page.route("**/v1/recommend", lambda route: route.abort())
    page.select_option("#user", index=2)
    page.wait_for_selector("#error:has-text('cannot be reached')")
    page.unroute("**/v1/recommend")
    away = [said for said in shop.complaints if "ERR_FAILED" in said]
    page.click("#error button")
    page.wait_for_selector("#error", state="hidden")

    page.screenshot(path=tmp_path / "wide.png", full_page=True)
    assert not shop.overflows()
    unused = set(page.evaluate("elements()")) - set(page.evaluate("[...used]")) - {"user-id", "jump"}
    assert unused == set(), "where shoppers are real there is `user-id` in place of a list; `jump` is a telephone's"
    assert shop.complaints == away
    assert {url for url in shop.asked if not url.startswith((fresh.url, "data:", "blob:"))} == set()
    page.close()


def test_the_shop_on_a_telephone(fresh: Shop, browser: "sync_api.Browser", tmp_path: Path) -> None:
    shop = visit(browser, fresh.url, NARROW)
    assert len(shop.products()) == 12
    assert not shop.overflows()
    assert shop.page.inner_text("#jump") == "See the picks"
    shop.page.click("#jump")
    shop.page.wait_for_selector("#jump:has-text('Change the shopper')")
    assert shop.page.locator("#items .card >> nth=0").is_visible()
    shop.page.click("#items .card >> nth=0 >> .acts button:not(.main)")
    shop.page.wait_for_selector("#similar[open] .card")
    assert not shop.overflows()
    shop.page.screenshot(path=tmp_path / "narrow.png")
    assert shop.complaints == []
    shop.page.close()
