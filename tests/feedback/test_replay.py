"""What servers were asked is replayed from the log by the code that trains: every feature value of every shown product
is the served one, to the bit.

Served by the stages as a replica has them, logged as the server logs, followed by an event each, read by the stage
`exposures` after the next ingest, and written as the ranker's training writes its requests.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from psycopg import conninfo

from rec import bundle, dataset, histories, postgres, publish
from rec import samples as log_samples
from rec.config import Config
from rec.features import requests
from rec.features.compute import RankInputs, compute_batch
from rec.features.items import ItemFeatures
from rec.feedback import samples
from rec.index import live_events, rule_versions
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent
from rec.index.search import Filters
from rec.recommend import score
from rec.recommend.request import Choice, Request
from rec.retrieval import Candidates
from rec.schema import EVENTS, EXPOSURES, INTERACTIONS, PRODUCTS, TENSORS, USERS, Contract
from rec.train import ranker
from rec.vocab.std import StdVocabulary
from serve import answering, exposures, loaded
from serve.answering import Answering
from serve.asking import Together
from serve.exposures import ExposureLog
from serve.fallible import BackedFront
from tests.bundle import tiny

FIRST = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=4)
"""When the first list is shown; all windows have closed."""
APART = timedelta(minutes=17, microseconds=137)
KNOWN = [f"k{number}" for number in range(4)]
"""Users of the log with fewer events than the split takes any from: all of theirs are training events, whatever
follows, so that popularity before a list is what it was when the bundle was made."""
RULES = "[[pin]]\nproduct = 'P0150'\nposition = 2\n"


class Clock:
    """In place of a module's `datetime`."""

    def __init__(self) -> None:
        self.at = FIRST

    def now(self, _: Any) -> datetime:
        return self.at


@dataclass(frozen=True)
class Served:
    """What the ranker was asked for one list."""

    exposure_id: str
    candidates: Candidates
    inputs: RankInputs


@dataclass(frozen=True)
class Asked:
    """A request, and the live events that whoever asks was heard of just before."""

    request: Request
    told: tuple[tuple[str, str], ...] = ()


def asked() -> list[Asked]:
    """Requests of every kind of shopper."""
    inline = tuple(
        Choice(tiny.product_id(7 * step), EVENTS[step % 5], FIRST - timedelta(days=3 * step, seconds=step))
        for step in range(11, -1, -1)
    )
    clicks = (("P0004", "view"), ("P0010", "cart"), ("P0016", "purchase"))
    return [
        Asked(Request(user_id="k0")),
        Asked(Request(user_id="k1", context="a  red dress", k=20)),
        Asked(Request(user_id="k2", profile={"height_cm": 171.3}, exclude=("P0003", "gone"))),
        Asked(
            Request(user_id="k3", client_id="k3-visit", filters=Filters(categories=("dress", "coat"), price_min=20)),
            clicks[:1],
        ),
        Asked(Request(user_id="new-0")),
        Asked(Request(user_id="new-1", profile={"height_cm": 181.7, "birth_year": 1999.0})),
        Asked(Request(user_id="new-2", context="리넨 원피스")),
        Asked(Request(client_id="visit-0", k=25)),
        Asked(Request(client_id="visit-1", history=(Choice("P0003"), Choice("P0009", "rental")))),
        Asked(Request(client_id="visit-2", history=inline, profile={"birth_year": 1970.0})),
        Asked(Request(client_id="visit-3", history=inline[:3], context="office", k=40)),
        Asked(Request(user_id="new-3", client_id="visit-4"), clicks),
        Asked(Request(client_id="visit-5"), clicks[:1]),
        Asked(Request(client_id="visit-5", context="for the office")),
        Asked(Request(client_id="visit-5", k=100)),
        Asked(Request(user_id="new-0", filters=Filters(categories=("shirt",)))),
        Asked(Request(user_id="new-1", history=(Choice("P0021", "cart"),), rules=False)),
        Asked(
            Request(client_id="visit-0", filters=Filters(price_min=40, price_max=60), profile={"height_cm": 158.0}),
            clicks[1:],
        ),
        Asked(Request(client_id="visit-2", history=inline[::2])),
        Asked(Request(client_id="visit-6", filters=Filters(categories=("skirt",)), k=3)),
    ]


def rewrite(root: Path, contract: Contract, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Have `change` alter the rows of a dataset."""
    rows = dataset.read(root / contract.kind, contract).to_pylist()
    change(rows)
    table = pa.Table.from_pylist([{**dict.fromkeys(contract.schema.names), **row} for row in rows], contract.schema)
    dataset.write(root / contract.kind, contract, [table], inputs={}, config={})


def amend(root: Path) -> None:
    """Make every feature vary: attributes of all keys, measurements, products without price or age, other events."""
    vocabulary = StdVocabulary.load(None)

    def products(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row["price"] = None if number % 11 == 3 else row["price"]
            row["created_at"] = None if number % 13 == 5 else row["created_at"] + timedelta(hours=number)
            measured = [(name, 60.0 + (number * step) % 17) for step, name in ((3, "chest"), (5, "length"))]
            row["measurements"] = measured if number % 5 else None

    def tensors(rows: list[dict[str, Any]]) -> None:
        for number, row in enumerate(rows):
            row["group"] = number - number % 2
            for place, key in enumerate(vocabulary.keys):
                if vocabulary.key_id(key) not in row["std_key"] and (number + place) % 4:
                    values = list(vocabulary.values(key))
                    row["std_key"].append(vocabulary.key_id(key))
                    row["std_id"].append(vocabulary.id_of(key, values[number % min(len(values), 3)]))

    def users(rows: list[dict[str, Any]]) -> None:
        rows += [{"user_id": name, "height_cm": 165.5 if number % 2 else None} for number, name in enumerate(KNOWN)]

    rewrite(root, PRODUCTS, products)
    rewrite(root, TENSORS, tensors)
    rewrite(root, USERS, users)
    events = [
        (name, tiny.product_id(10 * step + number), EVENTS[number + step], tiny.START + timedelta(days=step))
        for number, name in enumerate(KNOWN)
        for step in range(2)
    ]
    more_events(root, events)


def more_events(root: Path, events: list[tuple[str, str, str, datetime]]) -> None:
    """Have the log hold these as well."""
    names = ("user_id", "product_id", "event", "at")
    rewrite(root, INTERACTIONS, lambda rows: rows.extend(dict(zip(names, event, strict=True)) for event in events))


@pytest.fixture
def shop(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A published recipe, the features of whose bundle training's own code made of a log that ended a month ago."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS replayed WITH (FORCE)")
        connection.execute("CREATE DATABASE replayed")
    monkeypatch.setenv(postgres.URL_VARIABLE, conninfo.make_conninfo(database_url, dbname="replayed"))
    monkeypatch.setattr(tiny, "START", FIRST - timedelta(days=30))
    recipe = tiny.config(tmp_path)
    towers = recipe.user_tower.model_copy(update={"exclude_seen": False})  # else no candidate was seen before
    recipe = tiny.make(recipe.model_copy(update={"user_tower": towers}), amend=amend)
    ranker.features(recipe, histories.load(recipe.root))
    publish.run(recipe)
    rule_versions.apply(postgres.url(recipe.store), recipe.name, RULES)
    return recipe


@pytest.fixture
def connections(shop: Config) -> Iterator[Connections]:
    """To the shop's database."""
    opened = Connections(postgres.url(shop.store), size=2)
    yield opened
    opened.close()


def serve(
    shop: Config, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Served], list[LiveEvent]]:
    """Answer every request at its own time; an event follows from each list."""
    clock, ranked = Clock(), list[tuple[Candidates, RankInputs]]()

    def recorded(items: ItemFeatures, states: Any, candidates: Any, now_us: Any) -> RankInputs:
        made = compute_batch(items, states, candidates, now_us)
        (found,) = candidates
        ranked.append((found, made))
        return made

    monkeypatch.setattr(score, "compute_batch", recorded)
    monkeypatch.setattr(loaded, "FOLLOW_S", 3_600.0)  # no other bundle comes, and the database goes before the threads
    for module in (answering, exposures):
        monkeypatch.setattr(module, "datetime", clock)
    log = ExposureLog(lambda: Connections(postgres.url(shop.store), size=1), lambda *_: None)
    replica = Answering(Together(shop.store), log)
    (name,) = bundle.names(shop.store)
    front = BackedFront(bundle.read(shop.store, name), connections)
    served, followed = [], []
    for number, each in enumerate(asked()):
        clock.at = FIRST + number * APART
        of = {"client_id": each.request.client_id}
        if each.request.client_id is None:
            of = {"user_id": each.request.user_id}
        store(connections, [
            LiveEvent(event_id=f"before-{number}-{product}", product_id=product, event=kind,
                      at=clock.at - timedelta(seconds=40 * place + 61, microseconds=7), **of)
            for place, (product, kind) in enumerate(each.told)
        ])  # fmt: skip
        answer = asyncio.run(replica.recommend(front, each.request))
        assert answer["degraded"] == []
        (asking,) = ranked
        ranked.clear()
        served.append(Served(answer["exposure_id"], *asking))
        chosen = answer["items"][3 * number % len(answer["items"])]["product_id"]
        followed.append(
            LiveEvent(event_id=f"after-{number}", product_id=chosen, event=EVENTS[number % 5],
                      at=clock.at + timedelta(minutes=2), exposure_id=answer["exposure_id"], **of)
        )  # fmt: skip
        store(connections, followed[-1:])
    log.close()
    return served, followed


def store(connections: Connections, events: list[LiveEvent]) -> None:
    """Have the server told events when they happened."""
    if events:
        assert len(live_events.store(connections, "tiny", events).stored) == len(events)
        with connections.use() as connection:
            connection.execute("UPDATE live_events SET received_at = at")


def ingest(shop: Config, followed: list[LiveEvent]) -> None:
    """The log goes on: users who were in it have chosen, and choose once more; others choose for the first time."""
    last = FIRST + timedelta(days=2)
    events = [
        (user_id, event.product_id, event.event, event.at)
        for user_id, event in zip((each.request.user_id for each in asked()), followed, strict=True)
        if user_id in KNOWN  # as whom clients have signed in
    ]
    events += [(name, "P0100", "purchase", last) for name in KNOWN]
    events += [(f"later-{row}", tiny.product_id(row), "view", last) for row in range(tiny.ITEMS)]
    more_events(shop.root, events)


def columns(spec: Any, inputs: RankInputs) -> dict[str, np.ndarray]:
    """Values by field, as their bits."""
    found = {field.name: inputs.sparse[:, at] for at, field in enumerate(spec.sparse)}
    found |= {field.name: inputs.varlen for field in spec.varlen}
    return found | {name: inputs.dense[:, at].copy().view(np.uint32) for at, name in enumerate(spec.dense)}


def test_a_replayed_list_has_every_value_that_was_served(
    shop: Config, connections: Connections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, followed = serve(shop, connections, monkeypatch)
    ingest(shop, followed)
    done = samples.run(shop)
    assert (done["rows"], done["left_out"]) == (len(served), {})

    h = histories.load(shop.root)
    items = ranker.features(shop, h)
    lists = samples.load(shop.at("exposures"), h)
    requests.write(
        tmp_path, items, lists.states, lists.candidates, lists.at, lists.labels, log_samples.past_popularity(h),
        dict(enumerate(lists.kept)),
    )  # fmt: skip
    data = requests.open_requests(tmp_path)
    names = dataset.read(shop.at("exposures"), EXPOSURES, ["exposure_id"])["exposure_id"].to_pylist()
    by_name = {each.exposure_id: each for each in served}
    wrong, values = [], list[dict[str, np.ndarray]]()
    for number, (name, kept) in enumerate(zip(names, lists.kept, strict=True)):
        one, shown = np.array([number]), by_name.pop(name)
        assert data.rows[data.flat(one)].tolist() == shown.candidates.rows[kept].tolist()
        asking = RankInputs(shown.inputs.sparse[kept], shown.inputs.varlen[kept], shown.inputs.dense[kept])
        before, after = columns(items.spec, asking), columns(items.spec, data.inputs(one))
        wrong += [(number, field) for field in items.spec.names if not np.array_equal(before[field], after[field])]
        values.append(before)
    assert not wrong, "(list, field) whose values are not those that were served"
    assert not by_name, "lists that were not replayed"
    same = [name for name in items.spec.names if len(np.unique(np.concatenate([each[name] for each in values]))) == 1]
    assert not same, "fields of one value, of which nothing is shown"
