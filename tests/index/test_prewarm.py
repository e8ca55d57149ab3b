"""After a restart of Postgres the first searches find table and index in its memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psycopg
import pytest

from rec import bundle, postgres, publish
from rec.bundle import Bundle
from rec.config import Config
from rec.index import prewarm
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from serve.loaded import Wanted
from serve.stages import Retriever
from tests.bundle import tiny


@dataclass(frozen=True)
class Shop:
    """A published shop with a server of its own."""

    recipe: Config
    made: Bundle

    def restart(self) -> None:
        postgres.stop_embedded(self.recipe.store)
        postgres.url(self.recipe.store)

    def read(self) -> int:
        """Blocks of vectors, their indexes and products that were not in shared buffers when somebody wanted them.

        What connections counted is seen when they are gone.
        """
        until = time.monotonic() + 60
        while postgres.embedded_clients(self.recipe.store):
            assert time.monotonic() < until, "a connection is left"
            time.sleep(0.05)
        with psycopg.connect(postgres.url(self.recipe.store)) as connection:
            row = connection.execute(
                "SELECT sum(heap_blks_read + coalesce(idx_blks_read, 0))::bigint FROM pg_statio_user_tables"
                " WHERE relname IN ('products', %s)",
                (f"items_{self.made.id}",),
            ).fetchone()
        assert row is not None
        return int(row[0])

    def search(self) -> list[str]:
        """Nearest products of vectors of ten items; the paths that were taken."""
        opened = Connections(postgres.url(self.recipe.store), size=1)
        index, paths = VectorIndex(opened, self.made.id, self.recipe.index), []
        for vector in self.made.item_vectors()[3:150:15]:
            paths.append(index.search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters()).path)
        opened.close()
        return paths


def ahead(shop: Shop, opened: Connections) -> str | None:
    """What prewarm says of the shop's bundle."""
    index = VectorIndex(opened, shop.made.id, shop.recipe.index)
    return prewarm.prewarm(opened, shop.made.id, index, shop.made.item_vectors())


@pytest.fixture(scope="module")
def shop(new_store: Callable[[], Path]) -> Shop:
    recipe = tiny.make(tiny.config(new_store().resolve()))
    name = publish.run(recipe)["bundle"]
    return Shop(recipe, bundle.read(recipe.store, name))


def test_after_a_restart_searches_read_from_disk_without_and_nothing_with_it(shop: Shop) -> None:
    shop.restart()
    before = shop.read()
    assert set(shop.search()) == {"hnsw"}
    assert shop.read() > before + 10, "what the test is about"

    shop.restart()
    opened = Connections(postgres.url(shop.recipe.store), size=1)
    assert ahead(shop, opened) == "searches"
    opened.close()
    before = shop.read()
    shop.search()
    assert shop.read() == before


def test_a_publish_leaves_what_it_loaded_in_memory(shop: Shop) -> None:
    recipe = tiny.make(tiny.config(Path(shop.recipe.store), seed=2))
    new = Shop(recipe, bundle.read(recipe.store, publish.run(recipe)["bundle"]))
    before = new.read()
    assert set(new.search()) == {"hnsw"}
    assert new.read() <= before + 2


def test_a_replica_reads_ahead_before_it_is_ready(shop: Shop) -> None:
    publish.activate(shop.recipe, shop.made.id)
    shop.restart()
    Retriever(shop.recipe.store)._connections.close()
    before = shop.read()
    shop.search()
    assert shop.read() == before


def test_pg_prewarm_reads_every_block_where_it_is_installed_and_searches_where_it_refuses(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of the extension, with its signature, that writes down what it is asked for."""
    monkeypatch.setattr(prewarm, "BLOCKS", 2)
    url, table = postgres.url(shop.recipe.store), f"items_{shop.made.id}"
    opened = Connections(url, size=1)
    define = (
        "CREATE OR REPLACE FUNCTION pg_prewarm(regclass, mode text DEFAULT 'buffer', fork text DEFAULT 'main',"
        " first_block bigint DEFAULT NULL, last_block bigint DEFAULT NULL) RETURNS bigint LANGUAGE {}"
    )
    kept = "sql AS 'INSERT INTO asked (relation, block) SELECT $1, generate_series($4, $5); SELECT 1::bigint'"
    refused = "plpgsql AS 'BEGIN RAISE insufficient_privilege; END'"
    try:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE asked (number serial, relation regclass, block bigint)")
            connection.execute(define.format(kept))  # type: ignore[call-overload]
        assert ahead(shop, opened) == "pg_prewarm"
        with psycopg.connect(url) as connection:
            wrong = connection.execute(
                "SELECT c.relname FROM pg_class c WHERE c.relname IN ('products', 'products_pkey', %s, %s)"
                " AND pg_relation_size(c.oid) / 8192"
                " <> (SELECT count(DISTINCT block) FROM asked WHERE relation = c.oid)",
                (table, f"{table}_hnsw"),
            ).fetchall()
            assert wrong == []
            order = connection.execute(
                "SELECT relkind FROM asked JOIN pg_class c ON c.oid = relation GROUP BY c.oid ORDER BY min(number)"
            ).fetchall()
            assert [kind for (kind,) in order] == sorted([kind for (kind,) in order], reverse=True), "tables first"
            assert {kind for (kind,) in order} == {"r", "i"}
            connection.execute(define.format(refused))  # type: ignore[call-overload]
        assert ahead(shop, opened) == "searches"
    finally:
        with psycopg.connect(url) as connection:
            connection.execute("DROP FUNCTION pg_prewarm")
            connection.execute("DROP TABLE asked")
        opened.close()


def test_it_takes_no_longer_than_it_may_and_is_never_in_the_way(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Connections(postgres.url(shop.recipe.store), size=1)
    searches: list[int] = []
    monkeypatch.setattr(VectorIndex, "search", lambda *given, **named: searches.append(1))
    monkeypatch.setattr(prewarm, "BROADEST", 10)
    ahead(shop, opened)
    assert len(searches) == tiny.ITEMS // 10
    monkeypatch.setattr(prewarm, "LONGEST_S", -1.0)
    ahead(shop, opened)
    assert len(searches) == tiny.ITEMS // 10
    monkeypatch.setattr(prewarm, "LONGEST_S", 10.0)
    monkeypatch.setattr(VectorIndex, "search", lambda *given, **named: 1 / 0)
    assert ahead(shop, opened) is None, "whatever happens"
    opened.close()


def test_a_switch_reads_nothing_ahead(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(prewarm, "prewarm", lambda _, bundle, *given: asked.append(bundle))
    publish.activate(shop.recipe, shop.made.id)
    replica = Retriever(shop.recipe.store)
    recipe = tiny.make(tiny.config(Path(shop.recipe.store), seed=3))
    replica.passing(Wanted(publish.run(recipe)["bundle"], load=True), np.arange(3), Filters())
    assert asked == [shop.made.id]
    replica._connections.close()
