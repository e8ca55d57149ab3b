"""Events that a server is told: counted at once, once, kept over publishes, and never read by somebody else."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from rec import bundle, dataset, postgres, publish
from rec.config import Columns, Config, Source
from rec.data import ingest
from rec.index import forget, load, retention
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent, store
from rec.schema import INTERACTIONS
from tests.bundle import tiny

NOW = datetime(2025, 3, 20, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Shop:
    """A published recipe and a server's connections."""

    recipe: Config
    url: str
    connections: Connections
    catalogue: Catalogue


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Shop]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, database_url)
        recipe = tiny.make(tiny.config(tmp_path_factory.mktemp("live"), name="live", seed=31))
        publish.run(recipe)
        opened = Connections(database_url, size=1)
        yield Shop(recipe, database_url, opened, Catalogue(opened, "live"))
        opened.close()


def event(event_id: str, row: int = 7, **given: Any) -> LiveEvent:
    """A view of an item by the user `u03`, unless given otherwise."""
    told = {"user_id": "u03", "event": "view", "at": NOW, **given}
    return LiveEvent(event_id=event_id, product_id=tiny.product_id(row), **told)


def products(shop: Shop, user_id: str | None, client_id: str | None = None, last: int = 100) -> list[str]:
    """What the next request of a shopper knows of them."""
    return [each.product_id for each in shop.catalogue.known(user_id, last, client_id).events]


def test_an_event_counts_once_in_its_place(shop: Shop) -> None:
    before = products(shop, "u03")
    late, early = NOW, tiny.START + timedelta(hours=12)  # the first of the log is at START
    assert store(shop.connections, "live", [event("a1", 100, at=late)]).stored == ["a1"]
    taken = store(
        shop.connections, "live", [event("a1", 101), event("a2", 102, at=early), event("a2", 103), event("a3", 104)]
    )
    assert (taken.stored, taken.repeated, taken.forgotten) == (["a2", "a3"], ["a1", "a2"], [])
    assert products(shop, "u03") == [before[0], "P0102", *before[1:], "P0100", "P0104"], "ties as they came"
    assert products(shop, "u03", last=2) == ["P0100", "P0104"]
    stored = shop.catalogue.stored("u03")
    assert stored is not None
    assert len(stored.events) == len(before)
    assert [each["event_id"] for each in stored.live_events] == ["a2", "a1", "a3"]


def test_events_of_one_moment_come_as_they_were_told(shop: Shop) -> None:
    told = [event(name, row, user_id="u11") for name, row in (("t3", 140), ("t1", 141), ("t2", 142))]
    assert store(shop.connections, "live", told).stored == ["t3", "t1", "t2"]
    assert products(shop, "u11")[-3:] == ["P0140", "P0141", "P0142"]


def test_the_same_events_in_another_order_do_not_wait_for_each_other(shop: Shop) -> None:
    """Somebody holds the one in the middle, so that each would have begun at its end and then want the other's."""
    names = ["d1", "d2", "d3"]
    told = [event(name, user_id="u10") for name in names]
    opened = Connections(shop.url, size=2)
    with psycopg.connect(shop.url, autocommit=True) as watching, ThreadPoolExecutor() as servers:
        with psycopg.connect(shop.url) as holding:
            holding.execute(
                "INSERT INTO live_events (catalogue, event_id, user_id, product_id, event, at)"
                " VALUES ('live', 'd2', 'u10', 'P0007', 'view', now())"
            )
            both = [servers.submit(store, opened, "live", each) for each in (told, told[::-1])]
            deadline = time.monotonic() + 30
            while watching.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() != (2,):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            holding.rollback()
        taken = [each.result() for each in both]
    opened.close()
    assert sorted(len(each.stored) for each in taken) == [0, 3]
    assert {name for each in taken for name in (*each.stored, *each.repeated)} == set(names)


def test_a_client_is_nobody_else(shop: Shop) -> None:
    store(shop.connections, "live", [event("c1", 110, user_id=None, client_id="u05")])
    assert products(shop, None, "u05") == ["P0110"]
    assert "P0110" not in products(shop, "u05")
    assert products(shop, "u05", "u05") == [*products(shop, "u05"), "P0110"]
    assert shop.catalogue.known(None, 9, "u05").profile == {}
    assert shop.catalogue.stored("nobody") is None
    with psycopg.connect(shop.url) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(
            "INSERT INTO live_events (catalogue, event_id, user_id, client_id, product_id, event, at)"
            " VALUES ('live', 'both', 'u', 'c', 'P0001', 'view', now())"
        )


def test_sizes_stand_beside_those_of_the_log(shop: Shop) -> None:
    before = shop.catalogue.known("u06", 9).events
    assert all(each.size in tiny.SIZES for each in before)
    store(shop.connections, "live", [event("s1", 130, user_id="u06", size="EU 38", fit="large")])
    last = shop.catalogue.known("u06", 9).events[-1]
    assert (last.product_id, last.size, last.fit) == ("P0130", "EU 38", "large")
    stored = shop.catalogue.stored("u06")
    assert stored is not None
    assert [(each["size"], each["fit"]) for each in stored.events] == [(each.size, each.fit) for each in before]
    assert [(each["size"], each["fit"]) for each in stored.live_events] == [("EU 38", "large")]


def test_a_publish_keeps_live_events_until_the_log_holds_them(shop: Shop) -> None:
    store(
        shop.connections,
        "live",
        [event("k1", 120, user_id="u07"), event("k2", 121, user_id="u07"), event("k3", 122, user_id="u07")],
    )
    client = event("k4", 123, user_id=None, client_id="k")
    store(shop.connections, "live", [client])
    before = products(shop, "u07")
    table = dataset.read(shop.recipe.at("events"), INTERACTIONS)
    # the log has the first a moment later, the second as another kind of event, the third not at all
    rows = [
        {"user_id": "u07", "product_id": "P0120", "event": "view", "at": NOW + timedelta(seconds=2)},
        {"user_id": "u07", "product_id": "P0121", "event": "cart", "at": NOW + timedelta(seconds=3)},
    ]
    more = pa.Table.from_pylist([{name: row.get(name) for name in table.schema.names} for row in rows], table.schema)
    events = pa.concat_tables([table, more]).sort_by([("user_id", "ascending"), ("at", "ascending")])
    dataset.write(shop.recipe.at("events"), INTERACTIONS, [events], inputs={}, config={})
    assert reloaded(shop)
    after = products(shop, "u07")
    assert sorted(after) == sorted([*before, "P0121"])
    assert after.count("P0120") == 1
    assert after.count("P0121") == 2
    assert products(shop, None, "k") == ["P0123"]
    assert store(shop.connections, "live", [client, event("k1", 120, user_id="u07")]).repeated == ["k4", "k1"]
    stored = shop.catalogue.stored("u07")
    assert stored is not None
    assert [(each["event_id"], each["in_log"]) for each in stored.live_events] == [
        ("k1", True), ("k2", False), ("k3", False),
    ]  # fmt: skip
    # a log that has lost them again
    dataset.write(shop.recipe.at("events"), INTERACTIONS, [table], inputs={}, config={})
    assert reloaded(shop)
    assert products(shop, "u07") == before


def reloaded(shop: Shop) -> bool:
    """Load the recipe's datasets as a publish does; whether anything changed."""
    with postgres.session(shop.url) as connection:
        (name,) = bundle.names(shop.recipe.store)
        return load.catalogue(connection, bundle.read(shop.recipe.store, name), shop.recipe.root, None)


def test_old_events_go_a_few_at_a_time_and_nobody_is_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"o{number}" for number in range(5)]
    store(shop.connections, "live", [event(name, 150, user_id="u02") for name in [*names, "young"]])
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    with psycopg.connect(shop.url) as connection:
        connection.execute("UPDATE live_events SET received_at = now() - %s WHERE event_id = ANY(%s)",
                           (retention.RETENTION, names))  # fmt: skip
    with psycopg.connect(shop.url) as busy, psycopg.connect(shop.url) as connection:
        busy.execute("SELECT 1 FROM live_events WHERE event_id = 'o2' FOR UPDATE")
        assert retention.expire(connection)["live_events"] == 4
        busy.rollback()
        assert retention.expire(connection)["live_events"] == 1
    assert products(shop, "u02").count("P0150") == 1


def test_the_next_ingest_reads_what_the_log_lacks(shop: Shop, tmp_path: Path) -> None:
    ids = [tiny.product_id(row) for row in range(tiny.ITEMS)]
    (tmp_path / "products.csv").write_text("id,name\n" + "".join(f"{name},A dress\n" for name in ids), encoding="utf-8")
    row = {"user": "u01", "product": "P0001", "kind": "view", "time": NOW.isoformat()}
    (tmp_path / "events.jsonl").write_text(json.dumps(row), encoding="utf-8")
    source = Source(
        kind="files", folder=str(tmp_path), products="products.csv", events="events.jsonl", live_events=True,
        columns=Columns(
            products={"product_id": "id", "title": "name"},
            events={"user_id": "user", "product_id": "product", "event": "kind", "at": "time"},
        ),
    )  # fmt: skip
    recipe = shop.recipe.model_copy(update={"source": source})
    later, said = NOW + timedelta(seconds=90), {"size": "EU 38", "fit": "fit", "context": "office"}
    yesterday = [
        event("i1", 1, user_id="u01", at=NOW + timedelta(seconds=30)),  # the log has it
        event("i2", 1, user_id="u01", at=later),
        event("i3", 3, user_id="u99", event="purchase", **said),
        event("i4", 4, user_id=None, client_id="u01"),
    ]
    store(shop.connections, "live", [*yesterday, event("i5", 5, user_id="u01")])
    with psycopg.connect(shop.url) as connection:
        connection.execute(
            "UPDATE live_events SET received_at = received_at - interval '1 day' WHERE event_id = ANY(%s)",
            ([each.event_id for each in yesterday],),
        )
    found = ingest.run(recipe)["events"]
    assert (found["rows"], found["live_events"], found["in_log"], found["rejected"]) == (3, 3, 1, 0)
    rows = dataset.read(recipe.at("events"), INTERACTIONS).to_pylist()
    assert [(each["user_id"], each["product_id"], each["at"]) for each in rows] == [
        ("u01", "P0001", NOW), ("u01", "P0001", later), ("u99", "P0003", NOW),
    ]  # fmt: skip
    assert {name: rows[2][name] for name in said} == said
    assert (rows[2]["event"], rows[2]["size_number"]) == ("purchase", 38.0)

    assert ingest.run(recipe)["skipped"]
    assert reloaded(shop)
    assert products(shop, "u99") == ["P0003"], "once, though it is in both tables"
    assert products(shop, "u01")[-3:] == ["P0001", "P0005", "P0001"]
    assert ingest.run(recipe)["skipped"], "what was loaded is still there to be read"

    forget.forget(shop.url, "live", "u99")
    assert ingest.run(recipe)["events"]["rows"] == 2
    quiet = recipe.model_copy(update={"source": source.model_copy(update={"live_events": False})})
    assert ingest.run(quiet)["events"]["rows"] == 1
