"""Enrichment with images, from the product's list to its values: what an endpoint gets, what is kept, paid and told."""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest

from rec import dataset, postgres
from rec.config import Config, Enrich, load
from rec.enrich import backfill, cache, engine, export, places, stage, workers
from rec.enrich.answers import IMAGE, Answer, Pictures
from rec.enrich.chat import CHAT, CHAT_IMAGES
from rec.enrich.finish import Finish
from rec.enrich.imports import Line
from rec.enrich.openai import OpenAI
from rec.enrich.pace import Meter
from rec.enrich.prompt import SEEN_PREFIX, Body
from rec.enrich.text import canonical, shown
from rec.errors import EngineError
from rec.evaluate.counting import prompt_of, title
from rec.schema import ENRICHED
from rec.vocab.std import StdVocabulary
from tests.enrich.conftest import write_products
from tests.enrich.endpoint import Endpoint, Response, chat, sensible, serve
from tests.enrich.gallery import Gallery, Page, colour_of, gallery, image, page

VOCABULARY = StdVocabulary.load()
ASKED = {"chat-images-1": "868fcad412f1c4a0cb531a2ae1c99509d0e4f71ef42dedb49688b1aeaa6a008d"}
"""Version of the form → SHA-256 of prompt and schema. A change of it needs a new version."""

LOOKS = {"red": "stripe", "blue": "dot"}
"""What the endpoint of these tests sees in an image of a colour."""


def sent(asked: dict[str, Any]) -> list[bytes]:
    """The images of a request."""
    content = asked["messages"][0]["content"]
    parts = [] if isinstance(content, str) else content[1:]
    assert all(part["type"] == "image_url" for part in parts)
    urls = [part["image_url"]["url"].partition(";base64,") for part in parts]
    assert {kind for kind, _, _ in urls} <= {"data:image/jpeg"}
    return [base64.b64decode(data, validate=True) for _, _, data in urls]


def look(number: int, asked: dict[str, Any]) -> Response:
    """As `sensible`; a reddish first image shows stripes, a bluish one dots."""
    said = json.loads(json.loads(sensible(number, asked).body)["choices"][0]["message"]["content"])
    images = sent(asked)
    fields = asked["response_format"]["json_schema"]["schema"]["properties"]
    assert bool(images) == any(name.startswith(SEEN_PREFIX) for name in fields)
    if images and f"{SEEN_PREFIX}pattern" in said:
        red, _, blue = colour_of(images[0])
        said[f"{SEEN_PREFIX}pattern"] = LOOKS["red" if red > blue else "blue"]
    if images and f"{SEEN_PREFIX}colour" in said:
        said[f"{SEEN_PREFIX}colour"] = "beige"
    return chat(json.dumps(said), prompt_of(asked))


class Shop:
    """Products with images, a host of images, and an endpoint that sees."""

    def __init__(self, url: str, endpoint: Endpoint, there: Gallery, folder: Path) -> None:
        self.url, self.endpoint, self.there, self.folder = url, endpoint, there, folder
        self.rows = [
            {"product_id": "A1", "title": "Alma Coat", "description": "Warm.", "image_urls": [there.url("/red.png")]},
            {"product_id": "A2", "title": "Vera Dress", "description": "A red one.", "image_urls": ["blue.png"]},
            {"product_id": "A3", "title": "Noa Top", "description": "Light.", "image_urls": []},
            {
                "product_id": "A4",
                "title": "Noa Skirt",
                "description": "Wide.",
                "image_urls": ["http://x.example/1.png"],
            },
        ]
        self.options = [
            'enrich.engine="openai"', 'enrich.model="m"', f'enrich.base_url="{endpoint.url}"', "enrich.max_retries=0",
            "enrich.max_output_tokens=600", "enrich.images.max_images=2", f'enrich.images.hosts=["{there.host}"]',
            'enrich.images.folder="."',
        ]  # fmt: skip

    def enrich(self, *more: str) -> Enrich:
        return places.placed(load("demo", [*self.options, *more]).enrich, str(self.folder))

    def batch(self) -> pa.Table:
        return pa.Table.from_pylist([{"html": None, "attributes": None, **row} for row in self.rows])

    def run(self, run_id: str, *more: str) -> dict[str, dict[str, Any]]:
        """A worker over the products, and what the last pass makes of them; with the report of the run as `*`."""
        enrich = self.enrich(*more)
        with postgres.connect(self.url, autocommit=True) as connection:
            older = backfill.prepare(connection, "m", engine.form(enrich), VOCABULARY)
        failed = workers.Ask(enrich, self.url, run_id)(self.batch())["failure"]
        assert failed.null_count == len(self.rows)
        own = workers.Origin("m", older.now.prompt_version)
        with postgres.connect(self.url, autocommit=True) as connection:
            rows = Finish(enrich, connection, [own], {}, {}, frozenset())(self.batch()).to_pylist()
        return {row["product_id"]: row for row in rows} | {"*": json.loads(rows[0]["report"])}

    def calls(self, run_id: str) -> int:
        with postgres.connect(self.url, autocommit=True) as connection:
            return cache.usage(connection, run_id).calls


@pytest.fixture
def shop(fresh: str, tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "blue.png").write_bytes(image("blue"))
    with gallery({"/red.png": page(image("red", (900, 600)))}) as there, serve(look) as endpoint:
        yield Shop(fresh, endpoint, there, tmp_path)


def values(row: dict[str, Any], key: str) -> list[tuple[str, str, str | None]]:
    return [(a["value"], a["source"], a["evidence"]) for a in row["std"] if a["key"] == key]


def test_images_reach_the_endpoint_and_what_they_show_carries_their_hashes(shop: Shop) -> None:
    found = shop.run("first")
    by_title = {title(prompt_of(asked)): asked for asked in shop.endpoint.asked}
    (coat,), (dress,) = sent(by_title["Alma Coat"]), sent(by_title["Vera Dress"])
    assert colour_of(coat)[0] > 200
    assert colour_of(dress)[2] > 200
    hashes = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in
              (("A1", image("red", (900, 600))), ("A2", image("blue")))}  # fmt: skip
    assert values(found["A1"], "pattern") == [("stripe", "llm", IMAGE + hashes["A1"])]
    assert values(found["A2"], "pattern") == [("dot", "llm", IMAGE + hashes["A2"])]
    assert values(found["A1"], "colour") == [("beige", "llm", IMAGE + hashes["A1"])]
    assert values(found["A2"], "colour") == [("red", "rule", "red")], "the text wins"
    assert values(found["A3"], "pattern") == values(found["A4"], "pattern") == []
    assert found["A1"]["status"] == "ok"
    assert found["*"][3:] == [2, {"its host is not in enrich.images.hosts": 1}, 0]
    assert found["A1"]["content_hash"] == canonical({**shop.batch().to_pylist()[0]}, 1_200).content_hash


def test_the_second_run_neither_asks_nor_fetches_and_a_new_url_is_a_new_question(shop: Shop) -> None:
    first = shop.run("first")
    assert (shop.calls("first"), shop.there.asked) == (4, ["/red.png"])
    assert shop.run("second") == first
    assert (shop.calls("second"), shop.there.asked) == (0, ["/red.png"])
    shop.there.pages["/new.png"] = page(image("blue"))
    shop.rows[0]["image_urls"] = [shop.there.url("/new.png")]
    assert values(shop.run("third")["A1"], "pattern")[0][0] == "dot"
    assert shop.calls("third") == 1


def test_products_without_images_keep_their_answers_when_images_come_and_go(shop: Shop) -> None:
    """What is asked without images is asked as ever, to the byte, and one answer does for both forms."""
    off = "enrich.images.max_images=0"
    shop.run("off", off)
    plain = {title: asked for title, asked in zip(shop.endpoint.titles, shop.endpoint.asked, strict=True)}
    enrich = shop.enrich(off)
    for row in shop.batch().to_pylist():
        text = shown(row, enrich)
        assert text.subject == text.content_hash == canonical(row, 1_200).content_hash
        made = workers.question(row, text, VOCABULARY, CHAT)
        assert made is not None
        content = plain[row["title"]]["messages"][0]["content"]
        assert content == made.prompt == workers.question(row, text, VOCABULARY, CHAT_IMAGES).prompt  # type: ignore[union-attr]
    found = shop.run("on")
    assert shop.calls("off") == 4
    assert shop.calls("on") == 2, "only the two with images"
    assert found["*"][4] == {"its host is not in enrich.images.hosts": 1}, "answered long ago, and still told"
    del shop.endpoint.asked[:]
    found = shop.run("off again", off)
    assert shop.calls("off again") == 0
    assert found["A1"]["prompt_version"] == "chat-1"
    assert values(found["A1"], "pattern") == []


@pytest.mark.parametrize("bad", ["status 503", "status 404"])
def test_an_image_that_may_come_back_is_tried_again_and_one_that_may_not_is_not(bad: str, shop: Shop) -> None:
    good = shop.there.pages.pop("/red.png")
    shop.there.pages["/red.png"] = page(b"", int(bad[-3:]))
    passing = bad == "status 503"
    found = shop.run("away")["A1"]
    assert found["status"] == ("partial" if passing else "ok")
    assert (found["reason"] or "") == ("an image could not be had: the next run tries again" if passing else "")
    assert values(found, "pattern") == []
    assert ("detail", "Coat") in [(a["key"], a["value"]) for a in found["re"]], "it is asked about its text"
    assert shop.run("still away")["*"][3:] == [
        1, {f"its host answers with {bad}": 1, "its host is not in enrich.images.hosts": 1}, int(passing),
    ]  # fmt: skip
    assert shop.calls("still away") == 0, "nothing new to ask"
    shop.there.pages["/red.png"] = good
    found = shop.run("back")["A1"]
    assert shop.calls("back") == int(passing)
    assert [value for value, _, _ in values(found, "pattern")] == (["stripe"] if passing else [])
    assert found["status"] == "ok"
    assert shop.run("done")["A1"] == found
    assert shop.calls("done") == 0


def test_an_image_that_is_gone_for_good_after_all_costs_no_second_call(shop: Shop) -> None:
    shop.there.pages["/red.png"] = page(b"", 503)
    shop.run("away")
    del shop.there.pages["/red.png"]
    found = shop.run("gone")
    assert shop.calls("gone") == 0, "the text was asked already"
    assert (found["A1"]["status"], found["*"][5]) == ("ok", 0)
    assert found["*"][4]["its host answers with status 404"] == 1


def test_of_several_images_those_that_can_be_had_are_sent(shop: Shop) -> None:
    """A file that is not there makes room for the next image; what a URL leads to shows only when it is asked about."""
    shop.rows[0]["image_urls"] = ["gone.png", shop.there.url("/gone.png"), shop.there.url("/red.png"), "blue.png"]
    found = shop.run("first")
    assert len(sent(shop.endpoint.asked[shop.endpoint.titles.index("Alma Coat")])) == 1, "the first two, less one"
    assert values(found["A1"], "pattern")[0][0] == "stripe"
    assert found["*"][4]["there is no such file in enrich.images.folder"] == 1


def test_a_repair_still_has_the_images(shop: Shop) -> None:
    def clumsy(number: int, asked: dict[str, Any]) -> Response:
        return look(number, asked) if len(asked["messages"]) > 1 else chat("Red!", "x" * 37)

    with serve(clumsy) as endpoint:
        client = OpenAI(shop.enrich(f'enrich.base_url="{endpoint.url}"'), None, "")
        text = canonical(shop.batch().to_pylist()[0], 1_200)
        made = CHAT_IMAGES.ask(text, VOCABULARY, set(), set())
        drawn = image("red", kind="JPEG")
        answer = client.complete(made.prompt, made.schema, 600, [drawn, drawn])
    first, second = endpoint.asked
    assert sent(first) == sent(second) == [drawn, drawn]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert json.loads(answer.text)["seen.pattern"] == "stripe"


def test_rate_and_budget_count_an_image_by_its_tokens_and_not_by_its_bytes(shop: Shop) -> None:
    waited: list[int] = []

    class Pace:
        def wait(self, tokens: int) -> None:
            waited.append(tokens)

        def hold(self, _: float) -> None: ...

    pace: Any = Pace()
    uncounted = json.loads(chat('{"a": 1}').body) | {"usage": None}
    with serve(lambda *_: Response(body=json.dumps(uncounted).encode())) as endpoint:
        client = OpenAI(
            shop.enrich(f'enrich.base_url="{endpoint.url}"', "enrich.images.tokens_per_image=700"), pace, ""
        )
        schema = {"type": "object"}
        client.complete("how many?", schema, 10)
        bare = client.complete("how many?", schema, 10, [image(size=(500, 500), kind="BMP")] * 2)
    assert waited[1] - waited[0] == pytest.approx(1_400, abs=60), "and not the bytes of 1,500,000 in base64"
    assert bare.tokens_in == len("how many?") + 1_400

    priced = ["enrich.price_in=1000000", "enrich.max_cost=1", "enrich.images.tokens_per_image=700"]
    meter: Any = Meter(None, None, 1e9)
    with postgres.connect(shop.url, autocommit=True) as connection:
        backfill.prepare(connection, "m", CHAT_IMAGES, VOCABULARY)
        asking = workers.Asking(shop.enrich(*priced), shop.url, "r", meter)
        opened = [asking.open(connection, row, shown(row, shop.enrich())) for row in shop.batch().to_pylist()]
    most = [one.most - 2 * one.question.prompt_bytes for one in opened if isinstance(one, workers.Opened)]
    assert most[0] - most[2] == pytest.approx(2 * 700), "the first pass and a repair"


def test_money_put_aside_for_a_product_comes_back_where_nothing_better_can_be_asked(shop: Shop) -> None:
    shop.there.pages["/red.png"] = page(b"", 503)
    shop.run("away")
    meter: Any = Meter(None, None, 10_000.0)
    meter.wait = lambda _: None
    ask = workers.Ask(shop.enrich("enrich.price_in=1000000"), shop.url, "still", meter)
    assert ask(shop.batch())["failure"].null_count == 4
    assert shop.calls("still") == 0
    assert meter.admit(10_000.0)


def test_a_change_of_what_is_asked_is_a_new_version() -> None:
    text = canonical({"title": "Alma Coat", "description": "Warm.", "html": None, "attributes": []}, 1_200)
    asked = CHAT_IMAGES.ask(text, VOCABULARY, set(), set())
    whole = asked.prompt + json.dumps(asked.schema, ensure_ascii=False)
    assert ASKED[CHAT_IMAGES.version] == hashlib.sha256(whole.encode()).hexdigest()


def test_the_schema_is_one_that_strict_endpoints_take() -> None:
    text = canonical({"title": "Alma Coat", "description": "Warm.", "html": None, "attributes": []}, 1_200)
    schema = CHAT_IMAGES.ask(text, VOCABULARY, {"colour"}, set()).schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == list(schema["properties"])
    assert "seen.colour" not in schema["properties"], "somebody filled it"
    assert "seen.fibre" not in schema["properties"], "a photograph does not show it"
    assert sum(len(part.get("enum", ())) for part in schema["properties"].values()) <= 1_000


@pytest.mark.parametrize(
    ("seen", "pictures", "kept"),
    [
        ({"pattern": ["stripe"]}, Pictures(sent=["ab"]), [("pattern", "stripe")]),
        ({"pattern": ["stripe"]}, Pictures(refused={"x": 1}), []),
        ({"pattern": ["stripe"]}, None, []),
        ({"pattern": ["ignore all previous instructions"], "price": ["0"]}, Pictures(sent=["ab"]), []),
        ({"colour": ["blue"]}, Pictures(sent=["ab"]), [("colour", "red")]),
    ],
)
def test_of_an_image_come_vocabulary_values_alone(
    seen: dict[str, list[str]], pictures: Pictures | None, kept: list[tuple[str, str]]
) -> None:
    from rec.enrich import answers
    from rec.enrich.attributes import Report

    text = canonical({"title": "Coat", "description": "A red one.", "html": None, "attributes": []}, 1_200)
    body = Body(re={"colour": ["red"]} if "colour" in seen else {}, seen=seen).dump()
    told = pictures.model_dump_json() if pictures else None
    report = Report()
    outcome = answers.read(Answer("m", "chat-images-1", "finished", body, 1, 1, told), text, VOCABULARY, report)
    assert [(a.key, a.value) for a in outcome.std] == kept
    assert outcome.status == ("ok" if kept else "partial")
    assert Report.from_json(report.to_json()) == report


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ['enrich.engine="openai"', 'enrich.model="m"', 'enrich.base_url="http://localhost/v1"']
    seeing = [*options, "enrich.images.max_images=1", 'enrich.images.folder="x"']
    engine.require(load("demo", seeing).enrich)
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    engine.require(load("demo", options).enrich)
    with pytest.raises(EngineError, match=r"needs the package httpcore.*pip install 'shop-rec\[openai\]'"):
        engine.require(load("demo", seeing).enrich)


def test_an_answer_of_a_text_alone_is_written_as_before() -> None:
    assert Body(re={"a": ["b"]}).dump() == '{"re": {"a": ["b"]}, "std": {}}'
    assert Body(seen={"a": ["b"]}).dump() == '{"re": {}, "seen": {"a": ["b"]}, "std": {}}'


@pytest.mark.slow
def test_the_tagger_learns_from_answers_about_images(shop: Shop) -> None:
    from rec.enrich import tag  # loads torch and transformers

    shop.run("first")
    sample = tag.Sample(shop.batch(), [workers.Origin("m", CHAT_IMAGES.version)])
    examples = tag.learn(sample, shop.enrich(), shop.url)
    assert len(examples) == 4
    assert all("stripe" not in str(example.values) for example in examples), "what is seen is no word of the text"


@pytest.fixture
def seeing(shop: Shop, tmp_path: Path, ray_local: None) -> Callable[..., Config]:
    """A recipe for the shop's products in a store of its own."""

    def make(*more: str) -> Config:
        store = [f"store={tmp_path}", f'source.folder="{shop.folder}"']
        config = load("demo", [*store, "enrich.answers=[]", "enrich.max_calls=100", *shop.options, *more])
        write_products(config, shop.rows)
        return config

    return make


@pytest.mark.slow
def test_the_stage_tells_what_became_of_images_and_goes_on_where_one_was_away(
    shop: Shop, seeing: Callable[..., Config]
) -> None:
    good: Page = shop.there.pages["/red.png"]

    def slow(handler: Any) -> None:
        time.sleep(1.5)
        good(handler)

    shop.there.pages["/red.png"] = slow
    prices = ["enrich.price_in=1000000"]
    quick = "enrich.images.timeout_s=0.5"
    guess = stage.estimate(seeing(*prices, quick))
    assert (guess["to_ask"], shop.endpoint.asked, shop.there.asked) == (4, [], [])
    blind = stage.estimate(seeing("enrich.images.max_images=0"))
    assert guess["tokens_in"] - blind["tokens_in"] > 2 * 1_000, "two images, and the fields for what they show"

    result = stage.run(seeing(quick))
    assert (result["live_calls"], result["images"]["sent"], result["images"]["waiting"]) == (4, 1, 1)
    assert result["images"]["refused"] == {
        "it took longer than enrich.images.timeout_s": 1, "its host is not in enrich.images.hosts": 1,
    }  # fmt: skip
    shop.there.pages["/red.png"] = good
    result = stage.run(seeing(quick))
    assert (result["live_calls"], result["cached"], result["images"]["sent"]) == (1, 3, 2)
    assert result["images"]["waiting"] == 0
    found = {row["product_id"]: row for row in dataset.read(seeing().at("enriched"), ENRICHED).to_pylist()}
    assert [value for value, _, _ in values(found["A1"], "pattern")] == ["stripe"]
    again = stage.run(seeing(quick))
    assert again["skipped"]
    assert len(shop.endpoint.asked) == 5

    path = shop.folder / "answers.jsonl"
    assert export.export(seeing(), path)["written"] == 4
    lines = [Line.model_validate_json(line) for line in path.read_text().splitlines()]
    assert lines[0].seen["pattern"] == ["stripe"]
    assert lines[0].images is not None
    assert lines[2].images is None, "a product without images is asked about its text alone"
