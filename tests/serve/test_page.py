"""The demo shop in a browser: every element is used, on a wide window and on a telephone's.

Needs Chromium and Playwright: `apt install chromium`, `pip install -e ".[browser]"`.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rec import publish
from tests.bundle import tiny
from tests.serve.conftest import REPOSITORY, Shop, published_in, starting

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
FIRST_PAINT_MS = 1_000
NOTING = """
{
const TOUCHED = "button, input, select, textarea, summary, a";
const part = (node) => node?.id ? `#${node.id} ` : "";
const plain = (node) => `.${node.parentElement.closest("[class]").className} ${node.tagName.toLowerCase()}`;
const said = (node) => node.tagName === "BUTTON" ? `: ${node.textContent}` : "";
const within = (node) => part(node.parentElement.closest("[id]"));
const name = (node) => node.id || within(node) + (node.className ? `.${node.className}` : plain(node) + said(node));
window.used = new Set();
window.elements = new Set();
for (const kind of ["click", "input", "change"])
  addEventListener(kind, ({ target }) => {
    const touched = target.closest(TOUCHED);
    if (touched) window.used.add(name(touched));
  }, true);
new MutationObserver(() => {
  for (const node of document.querySelectorAll(TOUCHED)) window.elements.add(name(node));
}).observe(document, { childList: true, subtree: true });
}
"""
"""What a user touches: `used` are those that were, `elements` all that have been there. The name of an element is its
id, else that of what it is in and its class; and that of a button without a class has its words, too."""
IDEAS = (
    "a linen dress for a beach wedding",
    "warm coat for a weekend of hiking",
    "something calm for the office",
    "결혼식 하객 원피스",
)
INSIDE = {
    *("weight_kg", "weight_kg-unset", "#found .open"),
    *(f"#ideas .chips button: {idea}" for idea in IDEAS[1:]),
    *(f"#look-product .{kind} summary" for kind in ("evidence", "facts")),
    *(f"#similar-items .{kind}" for kind in ("view", "main", "evidence summary", "facts summary")),
}
"""What `test_what_is_inside_or_hidden_does_something_too` uses, and the first test does not."""
CODES = set(re.findall(r'"(\w+_unavailable)"', (REPOSITORY / "serve" / "fallible.py").read_text(encoding="utf-8")))
"""Of all that an answer may do without."""


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

    def painted_ms(self) -> float:
        """When the first of the page was seen, after it was asked for."""
        return float(self.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))

    def used(self) -> set[str]:
        """Names of the elements that were used."""
        return set(self.page.evaluate("[...used]"))

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


def visit(
    browser: "sync_api.Browser",
    url: str,
    window: dict[str, int],
    prepare: Callable[["sync_api.Page"], None] = lambda page: None,
) -> Visit:
    """Open the shop in a page that `prepare` has seen before."""
    page = browser.new_page(viewport=window)
    seen = Visit(page)
    page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", seen.hear)
    page.add_init_script(NOTING)
    prepare(page)
    page.goto(url)
    seen.settled()
    return seen


def test_every_element_of_the_shop_does_something(fresh: Shop, browser: "sync_api.Browser", tmp_path: Path) -> None:
    shop = visit(browser, fresh.url, WIDE)
    page = shop.page
    assert shop.painted_ms() < FIRST_PAINT_MS
    first = shop.products()
    assert len(first) == 12
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the first stop of the keyboard leads to the list
    assert page.evaluate("document.activeElement.id") == "picks"

    # nobody has said anything: products have attributes all the same, with where they come from
    assert "shared" not in page.inner_text("#items")
    chips = page.locator("#items .card >> nth=0 >> .tags li")
    assert {"std", "re"} == set(chips.evaluate_all("all => all.map(one => one.className)"))
    assert "found by the language model: “" in chips.last.get_attribute("title")
    page.click("#items .card >> nth=0 >> .evidence summary")
    evidence = page.inner_text("#items .card >> nth=0 >> .evidence dl")
    assert "said by the shop" in evidence
    assert re.search(r"fabric: (\w+) feel LLM\s+found by the language model: “\1”", evidence)
    page.click("#items .card >> nth=0 >> .facts summary")
    assert "Found by" in page.inner_text("#items .card >> nth=0 >> .facts dl")

    # products are found by their words, put into the cart, and taken out again
    title = first[0]
    page.fill("#find", title)
    page.wait_for_selector("#found-note:has-text('found')")
    page.click("#found .add >> nth=0")
    assert shop.products() != first
    (chosen,) = shop.bodies[-1]["history"]
    assert chosen["event"] == "cart"
    page.click("#found .add >> nth=0")
    assert shop.products() == first
    assert shop.bodies[-1]["history"] == []
    page.fill("#find", "no such thing at all")
    page.wait_for_selector("#found-note:has-text('Nothing in the catalogue')")
    page.fill("#find", "")
    page.wait_for_selector("#found-note:empty", state="attached")

    # the cart: what is in it counts at once, reasons name it, and it has a sum
    added = page.locator("#items .card >> nth=0 >> h3").inner_text()
    price = page.locator("#items .card >> nth=0 >> .meta b").inner_text()
    page.click("#items .card >> nth=0 >> .main")
    after = shop.products()
    assert after != first
    assert added in " ".join(page.locator("#items .why").all_inner_texts())
    shared = page.locator("#items .tags li.both")
    assert shared.count() >= 1
    assert shared.first.inner_text().startswith("shared ")
    page.click("#items .card >> nth=2 >> .main")
    shop.settled()
    prices = page.locator("#cart .price").all_inner_texts()
    assert prices[0] == price
    assert page.inner_text("#sum").split() == ["2", "products", f"€{sum(float(each[1:]) for each in prices):,.2f}"]
    page.click("#cart .away >> nth=1")
    assert page.inner_text("#sum").split() == ["1", "product", price]
    assert shop.products() == after

    # a closer look, in a dialog that keeps the keyboard; it is no choice, and it counts
    seen = page.locator("#items .card >> nth=1 >> h3").inner_text()
    page.click("#items .card >> nth=1 >> .view")
    page.wait_for_selector("#look[open] #similar-items .card")
    assert "% alike" in page.inner_text("#similar-items")
    assert "said by the shop" in page.inner_text("#look-product .evidence dl"), "open at once"
    assert page.evaluate("document.activeElement.id") == "close"
    page.click("#look-product .main")
    assert page.inner_text("#look-product .main").startswith("In the cart")
    page.click("#look-product .main")
    page.click("#close")
    assert not page.is_visible("#look")
    assert shop.products() != after
    assert page.inner_text("#viewed").strip() == seen
    assert page.locator("#cart .t").all_inner_texts() == [added]
    page.click("#viewed .open")
    page.wait_for_selector("#look[open] #similar-items .card")
    page.click("#close")
    visitor = shop.bodies[-1]["client_id"]
    page.click("#forget")
    assert shop.products() == after
    assert shop.bodies[-1]["client_id"] != visitor
    assert not page.is_visible("#viewed")
    page.click("#clear")
    assert page.is_visible("#nothing")
    assert not page.is_visible("#sum")

    # a wish is read for its meaning: typed, an example, at once by Enter
    page.fill("#context", "a warm coat for winter")
    wished = shop.products()
    assert shop.bodies[-1]["context"] == "a warm coat for winter"
    page.click("#ideas button >> nth=0")
    shop.settled()
    assert shop.bodies[-1]["context"] == page.inner_text("#ideas button >> nth=0")
    page.fill("#context", "a warm coat for winter")
    page.press("#context", "Enter")
    assert shop.products() == wished

    # measurements: by the mouse's and the keyboard's slider, and unset
    assert page.locator("#weight_kg").is_hidden(), "no model of this recipe reads it"
    assert page.inner_text("#height_cm-said") == page.get_attribute("#height_cm", "aria-valuetext") == "not set"
    assert shop.bodies[-1]["profile"] == {}
    page.fill("#height_cm", "181")
    page.focus("#birth_year")
    page.keyboard.press("ArrowRight")
    shop.settled()
    assert shop.bodies[-1]["profile"] == {"height_cm": 181, "birth_year": 1991}
    assert page.get_attribute("#height_cm", "aria-valuetext") == page.inner_text("#height_cm-said") == "181 cm"
    assert (page.get_attribute("#height_cm", "min"), page.get_attribute("#height_cm", "max")) == ("50", "250")
    page.click("#birth_year-unset")
    assert page.evaluate("document.activeElement.id") == "birth_year"
    page.click("#height_cm-unset")
    shop.settled()
    assert shop.bodies[-1]["profile"] == {}
    assert page.inner_text("#birth_year-said") == "not set"

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
        steps = page.locator("#funnel b").all_inner_texts()
        assert (steps[0], steps[3]) == (f"{tiny.ITEMS}", "12")
        assert (steps[2] == "0") == (stage in ("ranking", "user_tower"))
        assert page.locator("#funnel .idle").count() == (stage in ("ranking", "user_tower"))
    stages = page.locator("#funnel ul li").all_inner_texts()
    assert [re.sub(r"\s[\d.]+\sms$", "", stage) for stage in stages] == [
        *("shopper", "user tower", "retrieval", "ranking", "rules", "reasons")
    ]
    page.select_option("#user", index=1)
    shop.settled()
    assert shop.bodies[-1]["user_id"] == page.input_value("#user")
    assert "stored event" in page.inner_text("#stored")
    assert page.locator("#recent .row").count() >= 1
    assert page.inner_text("#height_cm-said").endswith(" cm, as stored")
    assert shop.bodies[-1]["profile"] == {}, "the shop knows it"

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
    unused = set(page.evaluate("[...elements]")) - shop.used()
    assert unused == {"user-id", "jump", "compare", *INSIDE}, "tests below use them"
    assert shop.complaints == away
    assert {url for url in shop.asked if not url.startswith((fresh.url, "data:", "blob:"))} == set()
    page.close()


def test_what_is_inside_or_hidden_does_something_too(fresh: Shop, browser: "sync_api.Browser") -> None:
    def with_weight(route: "sync_api.Route") -> None:
        found = route.fetch().json()
        route.fulfill(json={**found, "profile_names": [*found["profile_names"], "weight_kg"]})

    shop = visit(browser, fresh.url, WIDE, lambda page: page.route("**/v1/shop", with_weight))
    page = shop.page
    page.fill("#weight_kg", "70")
    shop.settled()
    assert shop.bodies[-1]["profile"] == {"weight_kg": 70}
    assert page.inner_text("#weight_kg-said") == "70 kg"
    page.click("#weight_kg-unset")
    shop.settled()
    assert shop.bodies[-1]["profile"] == {}
    assert page.inner_text("#weight_kg-said") == "not set"

    assert tuple(page.locator("#ideas button").all_inner_texts()) == IDEAS
    for place, idea in enumerate(IDEAS):
        page.click(f"#ideas button >> nth={place}")
        shop.settled()
        assert shop.bodies[-1]["context"] == page.input_value("#context") == idea

    page.fill("#find", "red")
    found = page.inner_text("#found .row >> nth=0 >> .t")
    page.click("#found .open >> nth=0")
    page.wait_for_selector("#look[open] #similar-items .card")
    assert page.inner_text("#look-title") == found
    product, near = page.locator("#look-product .card"), page.locator("#similar-items .card").first
    for kind, unfolded in (("evidence", True), ("facts", False)):
        for card, before in ((product, unfolded), (near, False)):
            details = card.locator(f".{kind}")
            assert (details.get_attribute("open") is not None) == before
            details.locator("summary").click()
            assert (details.get_attribute("open") is not None) != before
    near.locator(".main").click()
    assert near.locator(".main").inner_text().startswith("In the cart")
    nearest = near.locator("h3").inner_text()
    assert page.locator("#cart .t").all_text_contents() == [nearest]
    near.locator(".view").click()
    page.wait_for_selector("#similar-note:empty", state="attached")
    assert page.inner_text("#look-title") == nearest
    page.click("#close")
    shop.settled()
    assert shop.used() >= INSIDE
    assert shop.complaints == []
    page.close()


def test_what_an_answer_does_without_is_said(fresh: Shop, browser: "sync_api.Browser") -> None:
    def without(codes: list[str]) -> Callable[["sync_api.Route"], None]:
        return lambda route: route.fulfill(json={**route.fetch().json(), "degraded": codes})

    shop = visit(browser, fresh.url, WIDE)
    page = shop.page
    whole = page.inner_text("#status")
    assert whole.endswith(fresh.recommend(k=1)["bundle"])
    said = set()
    for code in sorted(CODES):
        page.route("**/v1/recommend", without([code]))
        page.fill("#context", code)
        shop.settled()
        said.add(page.inner_text("#status").partition(". ")[2])
        page.unroute("**/v1/recommend")
    assert len(said) == len(CODES) == 5, said
    assert not any("Without something" in each or not each.endswith(".") for each in said), said

    prices = "Today’s prices could not be read: these are as published."
    page.route("**/v1/recommend", without(["prices_unavailable", "of_another_server"]))
    page.fill("#context", "")
    shop.settled()
    assert page.inner_text("#status").endswith(f". {prices} Without something: of another server.")
    page.unroute("**/v1/recommend")

    page.route("**/similar?**", without(["prices_unavailable"]))
    page.click("#items .view >> nth=0")
    page.wait_for_selector("#similar-items .card")
    assert page.inner_text("#similar-note") == prices
    page.click("#close")
    page.unroute("**/similar?**")
    assert shop.complaints == []

    page.route("**/similar?**", lambda route: route.abort())
    page.click("#items .view >> nth=0")
    page.wait_for_selector("#similar-note:has-text('cannot be reached')")
    assert page.locator("#similar-items .card").count() == 0
    page.close()


def test_shoppers_of_a_real_shop_are_not_listed(fresh: Shop, browser: "sync_api.Browser") -> None:
    def without_users(route: "sync_api.Route") -> None:
        route.fulfill(json={**route.fetch().json(), "users": []})

    shop = visit(browser, fresh.url, WIDE, lambda page: page.route("**/v1/shop", without_users))
    assert shop.page.locator("#user").is_hidden()
    assert "user_id" not in shop.bodies[-1]
    anyone = shop.products()
    shop.page.fill("#user-id", " u04 ")
    assert shop.products() != anyone
    assert shop.bodies[-1]["user_id"] == "u04"
    assert "user-id" in shop.used()
    assert shop.complaints == []
    shop.page.close()


def test_a_product_that_is_gone_leaves_the_cart(fresh: Shop, browser: "sync_api.Browser") -> None:
    def gone(route: "sync_api.Route") -> None:
        answer = {**route.fetch().json()}
        answer["items"][0]["product_id"] = "P9999"
        route.fulfill(json=answer)

    shop = visit(browser, fresh.url, WIDE, lambda page: page.route("**/v1/products?*", gone))
    shop.page.fill("#find", "red")
    title = shop.page.inner_text("#found .row >> nth=0 >> .t")
    shop.page.click("#found .add >> nth=0")
    shop.page.wait_for_selector(f"#error:has-text('No longer in this catalogue: {title}')")
    shop.page.click("#error button")
    assert len(shop.products()) == 12
    assert shop.page.is_visible("#nothing")
    shop.page.close()


def test_a_search_that_takes_too_long_says_what_else_to_do(fresh: Shop, browser: "sync_api.Browser") -> None:
    refusal = {"error": "search_too_slow", "message": "looking these words up took too long"}

    def slow(route: "sync_api.Route") -> None:
        route.fulfill(status=503, json=refusal, headers={"Retry-After": "2"})

    shop = visit(browser, fresh.url, WIDE, lambda page: page.route("**/v1/products?*", slow))
    shop.page.fill("#find", "red")
    shop.page.wait_for_selector("#found-note:has-text('Say it under “What are you looking for?”')")
    assert len(shop.products()) == 12, "the list stays"
    shop.page.close()


def test_the_shop_on_a_telephone(fresh: Shop, browser: "sync_api.Browser", tmp_path: Path) -> None:
    shop = visit(browser, fresh.url, NARROW)
    assert shop.painted_ms() < FIRST_PAINT_MS
    assert len(shop.products()) == 12
    assert not shop.overflows()
    assert shop.page.inner_text("#jump") == "Cart and shopper"
    shop.page.click("#items .main >> nth=0")
    shop.page.click("#jump")
    shop.page.wait_for_selector("#jump:has-text('See the picks')")
    assert shop.page.locator("#cart .row").is_visible()
    shop.page.fill("#height_cm", "181")
    shop.settled()
    shop.page.click("#jump")
    shop.page.wait_for_selector("#jump:has-text('Cart and shopper')")
    assert shop.page.locator("#items .card >> nth=0").is_visible()
    shop.page.click("#items .card >> nth=0 >> .view")
    shop.page.wait_for_selector("#look[open] #similar-items .card")
    assert not shop.overflows()
    shop.page.screenshot(path=tmp_path / "narrow.png")
    assert "jump" in shop.used()
    assert shop.complaints == []
    shop.page.close()


def test_two_bundles_are_shown_side_by_side(fresh: Shop, browser: "sync_api.Browser", tmp_path: Path) -> None:
    shop = visit(browser, fresh.url, NARROW)
    page = shop.page
    shop.settled()
    page.wait_for_selector("#compare-note:has-text('promote another one')")
    assert page.locator("#compare").is_disabled()
    old = fresh.recommend(k=1)["bundle"]
    new = publish.run(tiny.make(tiny.config(fresh.recipe.root.parent, seed=23)))["bundle"]
    deadline = time.monotonic() + 120
    while fresh.client.get("/v1/bundles").json()["loaded"] != [new, old]:
        assert time.monotonic() < deadline, "the shop does not follow"
        time.sleep(0.2)
    page.fill("#height_cm", "181")  # the next answer is of the other bundle, and the page looks what there is to name
    page.wait_for_selector("#compare:enabled")
    assert page.inner_text("#compare-note") == ""
    page.select_option("#compare", old)
    shown = shop.products()
    assert {body.get("bundle") for body in shop.bodies[-2:]} == {None, old}
    assert shop.bodies[-1]["client_id"] == shop.bodies[-2]["client_id"], "the same visitor"
    body = {**shop.bodies[-1], "bundle": None}
    lists = [fresh.recommend(**{**body, "bundle": name})["items"] for name in (new, old)]
    ids = [[item["product_id"] for item in items] for items in lists]
    columns = page.locator("#versus-lists ol")
    assert [columns.nth(side).locator(".t").all_inner_texts() for side in (0, 1)] == [
        [item["title"] for item in items] for items in lists
    ]
    assert shown == columns.nth(0).locator(".t").all_inner_texts()
    assert ids[0] != ids[1], "what else would be marked"
    for side, mine in enumerate(ids):
        other, rows = ids[1 - side], columns.nth(side).locator(".row")
        for at, product_id in enumerate(mine):
            there = other.index(product_id) + 1 if product_id in other else None
            mark = "in this list only" if there is None else f"place {there} in the other"
            mark = "the same in both" if there == at + 1 else mark
            assert rows.nth(at).locator(".mark").inner_text() == f"{at + 1}. {mark}"
            assert ("only" in rows.nth(at).get_attribute("class").split()) == (there is None)
    assert page.inner_text("#versus-note").startswith(f"{len(set(ids[0]) & set(ids[1]))} of 12 products are in both")
    assert not shop.overflows()
    page.screenshot(path=tmp_path / "versus-narrow.png", full_page=True)
    page.click("#versus-lists .open >> nth=0")
    page.wait_for_selector("#look[open] #similar-items .card")
    page.click("#close")
    assert shop.used() >= {"compare", "#versus-lists .open"}
    page.set_viewport_size(WIDE)
    assert not shop.overflows()
    page.screenshot(path=tmp_path / "versus-wide.png", full_page=True)
    page.select_option("#compare", new)
    shop.settled()
    assert "both lists are of it" in page.inner_text("#versus-note")
    marks = page.locator("#versus-lists .mark").all_inner_texts()
    assert marks == 2 * [f"{place}. the same in both" for place in range(1, 13)]
    page.select_option("#compare", "")
    shop.settled()
    assert page.is_hidden("#versus")
    assert shop.complaints == []

    def gone(route: "sync_api.Route") -> None:
        named = route.request.post_data_json.get("bundle")
        route.continue_(post_data=json.dumps({**route.request.post_data_json, "bundle": named and "0" * 12}))

    page.route("**/v1/recommend", gone)
    with page.expect_response("**/v1/bundles"):
        page.select_option("#compare", old)
    assert len(shop.products()) == 12, "of the one that the shopper gets"
    assert "this server has no bundle" in page.inner_text("#versus-note")
    page.unroute("**/v1/recommend")

    def other(route: "sync_api.Route") -> None:
        found = route.fetch()
        route.fulfill(response=found, json={**found.json(), "bundle": old})

    page.route("**/similar?**", other)  # as of a product that the bundle of the other list alone has
    page.fill("#height_cm", "182")
    shop.settled()
    page.click("#versus-lists .open >> nth=-1")
    page.wait_for_selector("#similar-note:has-text('which answers no shopper')")
    assert page.locator("#similar-items .card").count() >= 1
    assert page.locator("#look .main").count() == 0, "none can go into the cart"
    page.click("#close")

    def forgotten(route: "sync_api.Route") -> None:
        found = route.fetch()
        route.fulfill(response=found, json={**found.json(), "loaded": [new]})

    page.route("**/v1/bundles", forgotten)
    page.route("**/v1/recommend", gone)
    page.fill("#height_cm", "183")
    page.wait_for_selector("#compare-note:has-text('promote another one')")
    shop.settled()
    assert page.input_value("#compare") == ""
    assert page.is_hidden("#versus")
    page.close()
