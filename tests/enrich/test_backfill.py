"""A change of one key asks about this key alone, and keeps what was answered about the others. No Ray.

The vocabulary is changed in its file; a real endpoint counts what it is asked.
"""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from rec import postgres
from rec.config import load
from rec.enrich import backfill, cache, engine
from rec.enrich.backfill import Backfill
from rec.enrich.finish import Finish
from rec.enrich.prompt import COMPLETION, RE_KEYS, STD_PREFIX, Body
from rec.enrich.text import canonical
from rec.enrich.workers import COLUMNS, Ask, Origin, question, weigh
from rec.errors import ConfigError
from rec.schema import PRODUCTS
from rec.vocab import std
from rec.vocab.std import StdVocabulary
from tests.enrich.endpoint import Endpoint, Response, chat, sensible, serve

ROWS = [
    {"product_id": f"B{i}", "title": f"Alma Coat {i}", "description": "Warm wool.", "html": None, "attributes": []}
    for i in range(6)
]
SCHEMA = pa.schema([PRODUCTS.schema.field(name) for name in COLUMNS])
BATCH = pa.Table.from_pylist(ROWS, schema=SCHEMA)
SHIPPED = std.shipped()
VOCABULARY = StdVocabulary.load()
KEYS = [key for key in VOCABULARY.keys if VOCABULARY.inferable(key)]


def changed(key: str, version: str = "fashion-test") -> str:
    """The shipped vocabulary with one value more at the end of `key`, and under a new name."""
    head = f"[keys.{key}.values]\n"
    assert head in SHIPPED
    before, after = SHIPPED.split(head)
    values, *rest = after.split("\n[")
    more = f'{before}{head}{values.rstrip()}\n"zzz" = {{ id = {VOCABULARY.num_ids} }}\n'
    more += "".join(f"\n[{part}" for part in rest)
    more = more.replace(f"next_id = {VOCABULARY.num_ids}", f"next_id = {VOCABULARY.num_ids + 1}")
    return more.replace(f'asked = "{VOCABULARY.asked}"', f'asked = "{version}"')


def styled(number: int, asked: dict[str, Any]) -> Response:
    """As `sensible`, and every field to conclude gets the last value of its list."""
    schema = asked["response_format"]["json_schema"]["schema"]["properties"]
    said = json.loads(json.loads(sensible(number, asked).body)["choices"][0]["message"]["content"])
    answer = {name: said["found"] if name == "found" else part["enum"][-2] for name, part in schema.items()}
    return chat(json.dumps(answer), asked["messages"][0]["content"])


class Shop:
    """A catalogue whose questions are answered, one run after the other."""

    def __init__(self, url: str, endpoint: Endpoint, patch: pytest.MonkeyPatch) -> None:
        self.url, self._patch = url, patch
        self.enrich = load(
            "demo", ['enrich.engine="openai"', 'enrich.model="m"', f'enrich.base_url="{endpoint.url}"']
        ).enrich  # fmt: skip

    def vocabulary(self, text: str) -> Backfill:
        """What a run with this vocabulary finds."""
        self._patch.setattr(std, "shipped", lambda: text)
        with postgres.connect(self.url, autocommit=True) as connection:
            return backfill.prepare(connection, "m", engine.form(self.enrich), StdVocabulary.load())

    def ask(self, run_id: str, rows: pa.Table = BATCH) -> cache.Usage:
        """One worker over the products; what the ledger says of it."""
        Ask(self.enrich, self.url, run_id)(rows)
        with postgres.connect(self.url, autocommit=True) as connection:
            return cache.usage(connection, run_id)

    def bodies(self, now: Backfill) -> list[Body]:
        """The answers to all products in the present edition."""
        keys = [now.now.key(canonical(row, 1_200).content_hash, "m") for row in ROWS]
        with postgres.connect(self.url, autocommit=True) as connection:
            found = cache.fetch(connection, keys, self.enrich.max_output_tokens)
        return [Body.model_validate_json(found[key].body) for key in keys]

    def finished(self, now: Backfill, failures: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """Rows of `enriched`."""
        with postgres.connect(self.url, autocommit=True) as connection:
            own = [Origin("m", now.now.prompt_version)]
            return Finish(self.enrich, connection, own, failures or {}, {}, frozenset())(BATCH).to_pylist()

    def weights(self) -> list[dict[str, Any]]:
        """What a dry run weighs."""
        return weigh(BATCH, self.enrich, self.url).to_pylist()


@pytest.fixture
def shop(fresh: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Shop, Endpoint]]:
    with serve(styled) as endpoint:
        yield Shop(fresh, endpoint, monkeypatch), endpoint


def test_a_change_of_one_key_asks_about_this_key_alone(shop: tuple[Shop, Endpoint]) -> None:
    run, endpoint = shop
    before = run.vocabulary(SHIPPED)
    first = run.ask("first")
    old = run.bodies(before)
    assert all(set(body.std) == set(KEYS) for body in old)

    after = run.vocabulary(changed("style"))
    weights = run.weights()
    second = run.ask("second")
    assert first.calls == second.calls == len(ROWS)
    asked = [sent["response_format"]["json_schema"]["schema"]["properties"] for sent in endpoint.asked[len(ROWS) :]]
    assert all(list(properties) == ["std.style"] for properties in asked)
    assert second.tokens_in < first.tokens_in / 2
    assert second.tokens_out < first.tokens_out / 2
    sent = sum(len(sent["messages"][0]["content"].encode()) for sent in endpoint.asked[len(ROWS) :])
    assert sum(weight["prompt_bytes"] for weight in weights) == sent, "a dry run weighs the short prompts"
    assert all(0 < weight["share"] < 0.1 for weight in weights)

    new = run.bodies(after)
    for was, now in zip(old, new, strict=True):
        assert now.std["style"] == ["zzz"]
        assert json.dumps(now.re, sort_keys=True) == json.dumps(was.re, sort_keys=True)
        assert {k: v for k, v in now.std.items() if k != "style"} == {k: v for k, v in was.std.items() if k != "style"}
    assert run.ask("third").calls == 0
    assert len(endpoint.asked) == 2 * len(ROWS)


def test_a_killed_backfill_asks_only_the_rest(shop: tuple[Shop, Endpoint]) -> None:
    run, endpoint = shop
    run.vocabulary(SHIPPED)
    run.ask("first")
    run.vocabulary(changed("vibe"))
    assert run.ask("killed", BATCH.slice(0, 2)).calls == 2
    assert run.ask("resumed").calls == 4
    assert sorted(endpoint.titles) == sorted(2 * [row["title"] for row in ROWS])


def test_what_is_not_asked_yet_keeps_the_other_keys(shop: tuple[Shop, Endpoint]) -> None:
    run, _ = shop
    before = run.vocabulary(SHIPPED)
    run.ask("first")
    whole = run.finished(before)
    assert {row["status"] for row in whole} == {"ok"}
    after = run.vocabulary(changed("style"))
    failed = after.now.key(canonical(ROWS[0], 1_200).content_hash, "m")
    waiting = run.finished(after, {failed: "the endpoint is down"})
    for was, now in zip(whole, waiting, strict=True):
        assert now["re"] == was["re"]
        assert now["std"] == [attribute for attribute in was["std"] if attribute["key"] != "style"]
    assert [row["status"] for row in waiting] == ["refused", *["partial"] * 5]
    assert waiting[0]["reason"] == "std.style of an older answer: the endpoint is down"
    assert waiting[1]["reason"] == "std.style of an older answer: not asked"
    run.ask("second")
    assert {row["status"] for row in run.finished(after)} == {"ok"}


def test_a_new_name_for_the_same_questions_asks_nothing(shop: tuple[Shop, Endpoint]) -> None:
    run, _ = shop
    run.vocabulary(SHIPPED)
    run.ask("first")
    run.vocabulary(SHIPPED.replace('asked = "fashion-1"', 'asked = "fashion-9"'))
    assert run.ask("renamed").calls == 0


def test_a_way_back_is_answered_already(shop: tuple[Shop, Endpoint]) -> None:
    run, _ = shop
    before = run.vocabulary(SHIPPED)
    run.ask("first")
    old = run.bodies(before)
    run.vocabulary(changed("style"))
    run.ask("there")
    after = run.vocabulary(SHIPPED.replace('asked = "fashion-1"', 'asked = "fashion-3"'))
    assert run.ask("back").calls == 0
    assert run.bodies(after) == old


def test_other_questions_under_a_known_name_are_an_error(shop: tuple[Shop, Endpoint]) -> None:
    run, _ = shop
    run.vocabulary(changed("style"))
    for text, name in ((changed("vibe"), "fashion-test"), (changed("vibe", "fashion-1"), "fashion-1")):
        with pytest.raises(ConfigError, match=rf"std\.vibe.* '{name}' were asked before: give a new `asked`"):
            run.vocabulary(text)


def test_an_answer_cut_in_a_backfill_keeps_the_rest_and_is_asked_again(
    fresh: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(number: int, asked: dict[str, Any]) -> Response:
        return styled(number, asked) if number != len(ROWS) else chat('{"std.st', "x", "length")

    with serve(cut) as endpoint:
        run = Shop(fresh, endpoint, monkeypatch)
        before = run.vocabulary(SHIPPED)
        run.ask("first")
        old = run.bodies(before)
        after = run.vocabulary(changed("style"))
        one = BATCH.slice(0, 1)
        assert run.ask("cut", one).calls == 1
        assert run.ask("again", one).calls == 1, "160 tokens may suffice where two did not"
        run.ask("rest")
        assert [body.re for body in run.bodies(after)] == [body.re for body in old]
        assert all("style" in body.std for body in run.bodies(after))


@pytest.mark.parametrize("missing", [["re.fibre"], ["std.vibe"], ["re.vibe", "std.occasion"], []])
def test_the_small_model_is_asked_in_short_too(missing: list[str]) -> None:
    row = ROWS[0]
    text, vocabulary = canonical(row, 1_200), StdVocabulary.load()
    whole = question(row, text, vocabulary, COMPLETION)
    short = question(row, text, vocabulary, COMPLETION, missing)
    assert whole is not None
    if not missing:
        assert short is None
        return
    assert short is not None
    names = [name.removeprefix("re.") for name in missing]
    assert list(short.schema["properties"]) == short.schema["required"] == names
    assert len(short.prompt) < len(whole.prompt)
    assert 0 < short.share == len(missing) / (len(RE_KEYS) + len(KEYS))
    for other in set(whole.schema["properties"]) - set(names):
        assert f'"{other}"' not in short.prompt
    said = {name: "classic" if name.startswith(STD_PREFIX) else ["wool"] for name in names}
    read = Body.model_validate_json(COMPLETION.body(json.dumps(said), missing))
    assert {*(f"re.{key}" for key in read.re), *(STD_PREFIX + key for key in read.std)} == set(missing)


def test_what_shop_or_rules_say_is_not_asked(shop: tuple[Shop, Endpoint]) -> None:
    run, endpoint = shop
    given = [{**ROWS[0], "attributes": [("style", ["casual"])]}]
    rows = pa.Table.from_pylist(given, schema=SCHEMA)
    run.vocabulary(SHIPPED)
    assert run.ask("first", rows).calls == 1
    run.vocabulary(changed("style"))
    assert run.ask("second", rows).calls == 0
    assert len(endpoint.asked) == 1
    run.vocabulary(changed("style", "fashion-other"))
    assert run.ask("third", rows).calls == 0


def test_calls_to_ask_one_key_do_not_shorten_what_a_whole_answer_is_taken_for(
    shop: tuple[Shop, Endpoint],
) -> None:
    run, _ = shop
    run.vocabulary(SHIPPED)
    first = run.ask("first")
    run.vocabulary(changed("style"))
    run.ask("second")
    with psycopg.connect(run.url) as connection:
        habit = cache.habit(connection, "m", "chat-1")
    assert habit is not None
    assert habit.calls == 2 * len(ROWS)
    assert habit.tokens_out >= first.tokens_out / first.calls
