"""The index on a real Postgres: search equals exact search, filters hold, loading is all or nothing."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pgvector.psycopg import register_vector
from psycopg import Connection, sql

from rec import assemble, bundle, bundles, postgres, publish
from rec.bundle import Bundle
from rec.config import Config, Index
from rec.errors import ArtifactError, DatabaseError
from rec.evaluate import vector_sets
from rec.index import load, promote, recall, sample, search, tables, trial, vector_table
from rec.index.catalogue import Catalogue, TooSlow
from rec.index.connections import SETTINGS, Connections, Watched, within
from rec.index.promote import Promoted
from rec.index.recall import Tuned
from rec.index.sample import Sample
from rec.index.search import Filters, VectorIndex
from tests.bundle import tiny

NONE = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Bundle:
    """A bundle that is loaded and active."""
    return published(tiny.make(tiny.config(tmp_path_factory.mktemp("index"))), database_url)


def published(recipe: Config, url: str) -> Bundle:
    """The bundle of a recipe, loaded and made the active one of the database at `url`."""
    found = assemble.create(recipe)
    load.vectors(url, found, recipe.index)
    promote.promote(url, found, recipe.root, force=False)
    return found


@pytest.fixture(scope="module")
def connections(made: Bundle, database_url: str) -> Iterator[Connections]:
    """Connections to the database."""
    opened = Connections(database_url, size=2)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def index(made: Bundle, connections: Connections) -> VectorIndex:
    """The bundle's index, exact for at most 40 products."""
    return VectorIndex(connections, made.id, made.config.index)


@pytest.fixture(scope="module")
def drawn(made: Bundle, connections: Connections) -> tuple[Sample, Connections]:
    """A sample that holds every product, and what it is read by."""
    with connections.use() as connection:
        return Sample(connection, tables.entry(connection, made.id).table, "tiny", made.items), connections


def exact(made: Bundle, vector: np.ndarray, passing: np.ndarray, k: int) -> set[int]:
    """Rows of the k best passing items by full comparison."""
    scores = np.where(passing, made.item_vectors() @ vector, -np.inf)
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


def available() -> np.ndarray:
    """bool[N]."""
    return np.array([row % 10 != 9 for row in range(tiny.ITEMS)])


def unit(seed: int) -> np.ndarray:
    """A random unit vector."""
    vector = np.random.default_rng(seed).normal(size=tiny.WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 50),
    excluded=st.sets(st.integers(0, tiny.ITEMS - 1), max_size=60),
    categories=st.sets(st.sampled_from(tiny.CATEGORIES), max_size=3),
    bounds=st.tuples(st.none() | st.floats(0, 200, width=32), st.none() | st.floats(0, 200, width=32)),
)
def test_search_is_exact_search_under_any_filter(
    made: Bundle,
    index: VectorIndex,
    seed: int,
    k: int,
    excluded: set[int],
    categories: set[str],
    bounds: tuple[float | None, float | None],
) -> None:
    low, high = bounds
    vector, rows = unit(seed), np.arange(tiny.ITEMS)
    passing = available() & ~np.isin(rows, list(excluded))
    if categories:
        passing &= np.isin([tiny.category(row) for row in rows], list(categories))
    prices = 10.0 + rows
    if low is not None:
        passing &= prices >= low
    if high is not None:
        passing &= prices <= high
    filters = Filters(categories=tuple(sorted(categories)), price_min=low, price_max=high)
    found = index.search(vector, k, exclude=np.array(sorted(excluded), np.int64), filters=filters)
    assert len(found.rows) == min(k, passing.sum())
    assert found.underfilled == (passing.sum() < k)
    assert passing[found.rows].all()
    assert len(set(found.rows.tolist())) == len(found.rows)
    assert np.all(np.diff(found.scores) <= 0)
    wanted = exact(made, vector, passing, k)
    # half precision may swap products that are equal to three digits
    true = made.item_vectors() @ vector
    worst = min((true[row] for row in wanted), default=-np.inf)
    assert all(row in wanted or true[row] > worst - 2e-3 for row in found.rows.tolist())


def test_both_paths_are_taken_and_agree(made: Bundle, connections: Connections) -> None:
    walked = VectorIndex(connections, made.id, Index(exact_rows=0))
    compared = VectorIndex(connections, made.id, Index(exact_rows=tiny.ITEMS))
    for seed in range(20):
        one = walked.search(unit(seed), 20, exclude=NONE, filters=Filters())
        other = compared.search(unit(seed), 20, exclude=NONE, filters=Filters())
        assert (one.path, other.path) == ("hnsw", "exact")
        assert len(set(one.rows.tolist()) & set(other.rows.tolist())) >= 19
        truth = walked.exact(unit(seed), 20, exclude=NONE, filters=Filters())
        assert (truth.path, truth.rows.tolist()) == ("exact", other.rows.tolist())


def test_the_walk_gives_way_where_it_finds_too_few(made: Bundle, connections: Connections) -> None:
    walked = VectorIndex(connections, made.id, Index(exact_rows=0))
    found = walked.search(unit(1), 150, exclude=NONE, filters=Filters())
    assert found.underfilled
    assert found.path == "exact"
    assert set(found.rows.tolist()) == set(np.flatnonzero(available()).tolist())


def test_a_walk_ends_where_what_passes_lies_elsewhere(database_url: str) -> None:
    vectors = vector_sets.generated(4_000, 1, 16, seed=5)
    query, nearness = vectors.queries[0], np.argsort(np.argsort(-(vectors.items @ vectors.queries[0])))
    ids = [f"P{row}" for row in range(4_000)]
    with trial.database(database_url) as url:
        trial.load(url, ids, vectors.items, Index(), 1)
        opened = Connections(url, size=1)
        try:
            for order, path in ((nearness, "hnsw"), (3_999 - nearness, "exact")):
                depths = ((order + 1) / 4_000).astype(np.float32)
                trial.add_products(url, depths, depths, {"some": 0.4})
                index = VectorIndex(opened, trial.BUNDLE, Index(exact_rows=1_000))
                found = index.search(query, 100, exclude=NONE, filters=Filters(categories=("some",)))
                truth = index.exact(query, 100, exclude=NONE, filters=Filters(categories=("some",)))
                assert (found.path, len(found.rows)) == (path, 100)
                assert (order[found.rows] < 1_600).all()
                assert recall.of(found.scores, truth.scores) >= 0.99
                with opened.use() as connection:
                    connection.execute("DELETE FROM products WHERE catalogue = %s", (trial.CATALOGUE,))
        finally:
            opened.close()


@given(
    categories=st.sets(st.sampled_from([*tiny.CATEGORIES, "none of these"]), max_size=3),
    bounds=st.tuples(st.none() | st.floats(0, 250, width=32), st.none() | st.floats(0, 250, width=32)),
)
def test_a_sample_says_which_share_passes(
    drawn: tuple[Sample, Connections], categories: set[str], bounds: tuple[float | None, float | None]
) -> None:
    of, connections = drawn
    low, high = bounds
    rows = np.arange(tiny.ITEMS)
    passing = available() & (10.0 + rows >= (low or 0)) & (10.0 + rows <= (1e9 if high is None else high))
    if categories:
        passing &= np.isin([tiny.category(row) for row in rows], list(categories))
    with connections.use() as connection:
        found = of.share(connection, categories=sorted(categories), price_min=low, price_max=high)
    assert found == pytest.approx(passing.mean(), abs=1e-9)


def test_a_sample_is_some_of_them_and_read_again_while_others_ask(
    made: Bundle, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SAMPLED", 50)
    with connections.use() as connection:
        some = Sample(connection, tables.entry(connection, made.id).table, "tiny", made.items)
        elsewhere = Sample(connection, tables.entry(connection, made.id).table, "no such", made.items)
        assert 0.7 <= some.share(connection) <= 1, "nine of ten are in stock"
        assert elsewhere.share(connection) == 0

    monkeypatch.setattr(sample, "STANDS_S", 0.0)  # each search reads
    answers = [[(1.0, ["coat"])] * 50, [(1.0, ["coat"])] * 10]

    class Changing:
        """A shop where all is in stock and little, in turn."""

        def execute(self, *_: object) -> "Changing":
            return self

        def fetchall(self) -> list[Any]:
            answers.reverse()
            return answers[0]

    changing: Any = Changing()
    turning = Sample(changing, sql.Identifier("x"), "x", 1_000)
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: turning.share(changing, categories=["coat"], price_max=2.0), range(2_000)))
    assert found == {0.2, 1.0}


def test_a_sample_that_cannot_be_read_again_is_kept(
    made: Bundle, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = VectorIndex(connections, made.id, Index(exact_rows=0))
    now = time.monotonic() + sample.STANDS_S
    monkeypatch.setattr("time.monotonic", lambda: now)
    with connections.use() as connection:
        connection.execute("ALTER TABLE products RENAME TO hidden")
        before = index._sample._last
        assert index._sample.share(connection) == pytest.approx(available().mean())
        assert index._sample._last.prices is before.prices
        connection.rollback()


@pytest.mark.parametrize(("items", "most"), [(0, 0), (2_116, 2_116), (10_000, 4_600), (1_000_000, 46_000)])
def test_unless_it_is_said_as_many_are_compared_as_take_no_longer(items: int, most: int) -> None:
    assert Index().exact_up_to(items) == most
    assert Index(exact_rows=7).exact_up_to(items) == 7


def test_few_products_in_stock_are_compared_without_a_walk(
    made: Bundle, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = int(available().sum())
    for exact_rows, path in ((count, "exact"), (count - 1, "hnsw")):
        index = VectorIndex(connections, made.id, Index(exact_rows=exact_rows))
        assert index.search(unit(1), 5, exclude=NONE, filters=Filters()).path == path
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    change = "UPDATE products SET available = NOT available WHERE catalogue = 'tiny' AND product_id = %s"
    with connections.use() as connection:
        connection.execute(change, (tiny.product_id(0),))
    try:
        assert index.search(unit(1), 5, exclude=NONE, filters=Filters()).path == "hnsw", "it stands for a while"
        now += sample.STANDS_S
        found = index.search(unit(1), 5, exclude=NONE, filters=Filters())
        assert (found.path, 0 in found.rows) == ("exact", False)
    finally:
        with connections.use() as connection:
            connection.execute(change, (tiny.product_id(0),))


def test_the_index_serves_the_order_of_the_walk(made: Bundle, connections: Connections, index: VectorIndex) -> None:
    query = index._queries(*Filters().given).hnsw
    parameters = {
        "vector": index._value(unit(3)), "catalogue": "tiny", "items": tiny.ITEMS, "exclude": [], "k": 10, "visit": 10,
        "walk": 50,
        "categories": [], "price_min": None, "price_max": None,
    }  # fmt: skip
    with connections.use() as connection:
        connection.execute("SET LOCAL enable_seqscan = off")  # so few rows that reading them all is cheaper
        plan = connection.execute(b"EXPLAIN " + query, parameters).fetchall()
    text = "\n".join(row[0] for row in plan)
    assert f"items_{made.id}_hnsw" in text
    assert "Sort" in text  # the relaxed order is made strict
    assert "Incremental Sort" not in text


def test_hostile_filter_values_are_values(index: VectorIndex) -> None:
    hostile = ("'); DROP TABLE products; --", "%s", "%(k)s", "{}", "\\", "dress' OR '1'='1")
    found = index.search(unit(2), 10, exclude=NONE, filters=Filters(categories=hostile))
    assert len(found.rows) == 0
    assert found.underfilled
    assert len(index.search(unit(2), 10, exclude=NONE, filters=Filters()).rows) == 10


@pytest.mark.parametrize("name", ["", "products", "abc", "0123456789AB", "0123456789ab; --", "../../etc/pass"])
def test_what_is_no_bundle_id_never_becomes_a_name(connections: Connections, name: str) -> None:
    with pytest.raises(DatabaseError, match="no bundle id"):
        VectorIndex(connections, name, Index())


def test_a_bundle_that_is_not_loaded_is_named(connections: Connections) -> None:
    with pytest.raises(DatabaseError, match=r"bundle 0123456789ab is not in the database.*jobs/publish[.]py"):
        VectorIndex(connections, "0123456789ab", Index())


def test_a_vector_of_another_width_is_refused(index: VectorIndex) -> None:
    with pytest.raises(ValueError, match="shape"):
        index.search(np.zeros(3, np.float32), 5, exclude=NONE, filters=Filters())


@pytest.mark.parametrize("exact_rows", [0, tiny.ITEMS])
def test_a_vector_that_is_no_number_is_refused_and_the_next_one_answered(
    made: Bundle, connections: Connections, exact_rows: int
) -> None:
    index = VectorIndex(connections, made.id, Index(exact_rows=exact_rows))
    broken = unit(1)
    broken[3] = np.nan
    with pytest.raises(DatabaseError, match="NaN not allowed"):
        index.search(broken, 5, exclude=NONE, filters=Filters())
    assert len(index.search(unit(1), 5, exclude=NONE, filters=Filters()).rows) == 5


def test_stock_counts_at_once(made: Bundle, connections: Connections, index: VectorIndex) -> None:
    first = int(index.search(unit(4), 1, exclude=NONE, filters=Filters()).rows[0])
    change = "UPDATE products SET available = %s, price = 1 + price WHERE catalogue = 'tiny' AND product_id = %s"
    with connections.use() as connection:
        connection.execute(change, (False, tiny.product_id(first)))
    assert index.search(unit(4), 1, exclude=NONE, filters=Filters()).rows[0] != first
    live = Catalogue(connections, "tiny").live([tiny.product_id(first), "nobody"])
    assert live == {tiny.product_id(first): {"price": 11.0 + first, "currency": "EUR", "available": False}}
    with connections.use() as connection:
        connection.execute(change.replace("1 + price", "price - 1"), (True, tiny.product_id(first)))


def test_stored_vectors_are_the_bundle_s(made: Bundle, connections: Connections) -> None:
    with connections.use() as connection:
        rows = connection.execute(f"SELECT row, product_id, embedding FROM items_{made.id} ORDER BY row").fetchall()
    assert [row for row, _, _ in rows] == list(range(tiny.ITEMS))
    assert [name for _, name, _ in rows] == made.product_ids()
    stored = np.stack([vector.to_numpy() for _, _, vector in rows])
    np.testing.assert_allclose(stored, made.item_vectors(), atol=1e-3)


@pytest.mark.parametrize("kind", ["halfvec", "vector"])
@pytest.mark.parametrize("ids", [["a", "bcd", "원피스", "é" * 300, "e"], ["P1", "P2", "P3", "P4", "P5"]])
def test_ids_of_any_length_arrive_and_so_does_every_bit(database_url: str, kind: Any, ids: list[str]) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(ids), 7)).astype(np.float32)
    name = "0" * 12
    with postgres.session(database_url) as connection:
        register_vector(connection)
        vector_table.fill(connection, name, ids, vectors, Index(kind=kind))
        stored = connection.execute(f"SELECT row, product_id, embedding FROM items_{name} ORDER BY row").fetchall()
        connection.rollback()
    assert [(row, product_id) for row, product_id, _ in stored] == list(enumerate(ids))
    kept = np.stack([value.to_numpy() for _, _, value in stored])
    np.testing.assert_array_equal(kept, vectors.astype(np.float16) if kind == "halfvec" else vectors)


def test_an_id_that_is_no_text_is_refused(database_url: str) -> None:
    with (
        pytest.raises(DatabaseError, match="invalid byte sequence"),
        postgres.session(database_url) as connection,
    ):
        vector_table.fill(connection, "0" * 12, ["a", "b\0"], np.ones((2, 7), np.float32), Index())


def test_full_precision_is_kept_where_asked(tmp_path: Path, database_url: str) -> None:
    recipe = tiny.make(tiny.config(tmp_path, name="full", kind="vector"))
    found = published(recipe, database_url)
    opened = Connections(database_url, size=1)
    result = VectorIndex(opened, found.id, recipe.index).search(unit(5), 10, exclude=NONE, filters=Filters())
    opened.close()
    np.testing.assert_allclose(result.scores, (found.item_vectors() @ unit(5))[result.rows], atol=1e-6)


def test_loading_again_does_nothing(made: Bundle, database_url: str) -> None:
    before = published(tiny.make(tiny.config(Path(made.config.store), name="before")), database_url).id
    recipe = made.config
    assert not load.vectors(database_url, made, recipe.index)
    assert promote.promote(database_url, made, recipe.root, force=False) == Promoted(before, False)
    assert promote.promote(database_url, made, recipe.root, force=False) == Promoted(made.id, False)


def test_known_users_come_back_with_history_and_profile(connections: Connections) -> None:
    catalogue = Catalogue(connections, "tiny")
    known = catalogue.known("u03", 4)
    assert [event.product_id for event in known.events] == [tiny.product_id(row) for row in (15, 21, 27, 33)]
    assert [event.at for event in known.events] == sorted(event.at for event in known.events)
    assert known.profile == {"height_cm": 163.0, "birth_year": 1983}
    assert catalogue.known("nobody\u00e9", 4).events == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("red SKIRT", True),
        ("Norr dress", True),
        ("원피스", True),
        ("100%", False),
        ("_", False),
        ("\\", False),
        ("", True),
    ],
)
def test_words_are_found_as_they_are(connections: Connections, query: str, found: bool) -> None:
    assert bool(Catalogue(connections, "tiny").find(query, 5, lambda _: True)) == found


@pytest.mark.parametrize("limit", [1, 3, 7, 1_000])
def test_a_search_for_words_passes_over_products_of_other_bundles(connections: Connections, limit: int) -> None:
    catalogue = Catalogue(connections, "tiny")
    every = catalogue.find("dress", 1_000, lambda _: True)
    assert len(every) > 10
    assert catalogue.find("dress", limit, set(every[5:]).__contains__) == every[5:][:limit]
    assert catalogue.find("dress", limit, lambda _: False) == []


def test_a_statement_that_nobody_waits_for_is_ended(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "statement_timeout", "200")
    opened = Connections(database_url, size=1)
    with pytest.raises(DatabaseError, match="QueryCanceled"), opened.use() as connection:
        connection.execute("SELECT pg_sleep(20)")
    with opened.use() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    opened.close()


def test_a_server_that_says_nothing_is_not_waited_for(database_url: str) -> None:
    opened = Connections(database_url, size=1)
    with opened.use() as connection:
        frozen = psutil.Process(connection.info.backend_pid)
    for ask in (
        lambda: opened.run(lambda connection: connection.execute("SELECT 1")),
        lambda: _in_a_transaction(opened, lambda connection: connection.execute("SELECT 1")),
    ):
        frozen.suspend()
        try:
            began = time.monotonic()
            with pytest.raises(DatabaseError, match="Silent: no word"), within(0.3):
                ask()
            assert 0.3 <= time.monotonic() - began < 2, "once: another try would take as long"
        finally:
            frozen.resume()
        with opened.use() as connection:
            frozen = psutil.Process(connection.info.backend_pid)
    opened.close()


def _in_a_transaction(connections: Connections, work: Callable[[Connection[Any]], object]) -> None:
    with connections.use() as connection:
        work(connection)


def test_who_has_no_time_left_ends_a_transaction_and_keeps_the_connection(database_url: str) -> None:
    opened = Connections(database_url, size=1)
    pids = set()
    for seconds in (9, 0.5, 9):
        with within(seconds), opened.use() as connection:
            pids.add(connection.info.backend_pid)
            time.sleep(0.6)
            connection.execute("SELECT 1")
    assert len(pids) == 1
    with pytest.raises(DatabaseError, match="no time"), within(-1), within(9):
        opened.run(lambda connection: connection.execute("SELECT 1"))
    opened.close()


def test_a_statement_that_is_not_done_in_time_costs_no_connection(database_url: str) -> None:
    opened = Connections(database_url, size=1)
    pids, began = set(), time.monotonic()
    for ask in (opened.run, lambda work: _in_a_transaction(opened, work)):
        with pytest.raises(DatabaseError, match="Silent: no word"), within(0.3):
            ask(lambda connection: pids.add(connection.info.backend_pid) or connection.execute("SELECT pg_sleep(7)"))
    assert time.monotonic() - began < 3
    with opened.use() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,), "it is no answer to what came before"
        assert pids == {connection.info.backend_pid}
    opened.close()


def test_a_statement_whose_caller_is_gone_ends(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watched, "_cancelled", lambda self: False)  # as where the caller is killed
    opened = Connections(database_url, size=1)
    with pytest.raises(DatabaseError, match="Silent"), within(0.2):
        opened.run(lambda connection: connection.execute("SELECT pg_sleep(7) AS abandoned"))
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND right(query, 9) = 'abandoned' AND pid <> %s"
    )
    with postgres.connect(database_url, autocommit=True) as other:
        own = (other.info.backend_pid,)
        assert other.execute(query, own).fetchone() == (1,)
        began = time.monotonic()
        _until(lambda: other.execute(query, own).fetchone() == (0,))
    assert time.monotonic() - began < 4, "long before statement_timeout"
    opened.close()


def test_a_search_for_words_is_ended_by_postgres(
    made: Bundle, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec.index.catalogue.FIND_MS", 200)
    opened = Connections(database_url, size=1)
    catalogue = Catalogue(opened, "tiny")
    with opened.use() as connection:
        pid = connection.info.backend_pid
    with postgres.connect(database_url) as other:
        other.execute("LOCK TABLE products")
        with pytest.raises(TooSlow, match=r"a search for 2 words took over 0\.2 s"):
            catalogue.find("red dress", 3, lambda _: True)
    assert len(catalogue.find("dress", 3, lambda _: True)) == 3
    with opened.use() as connection:
        assert connection.info.backend_pid == pid, "the connection lives on"
        assert connection.execute("SHOW statement_timeout").fetchone() == ("8s",)
    opened.close()


def test_a_connection_that_is_gone_is_replaced_within_the_request(
    made: Bundle, database_url: str, index: VectorIndex
) -> None:
    opened = Connections(database_url, size=3)
    mine = VectorIndex(opened, made.id, made.config.index)
    with ExitStack() as all_three:
        pids = [all_three.enter_context(opened.use()).info.backend_pid for _ in range(3)]
    with postgres.connect(database_url, autocommit=True) as other:
        for pid in pids:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    found = mine.search(unit(1), 5, exclude=NONE, filters=Filters())
    assert found.rows.tolist() == index.search(unit(1), 5, exclude=NONE, filters=Filters()).rows.tolist()

    def never(connection: psycopg.Connection) -> None:
        calls.append(connection.info.backend_pid)
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        connection.execute("SELECT 1")

    calls: list[int] = []
    with postgres.connect(database_url, autocommit=True) as other, pytest.raises(DatabaseError, match="AdminShutdown"):
        opened.run(never)
    assert len(calls) == 2, "once more, and no storm"
    opened.close()


def test_every_bundle_is_searched_with_its_own_settings(
    made: Bundle, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    walked = search._walked

    def note(connection: psycopg.Connection, *args: Any) -> Any:
        seen.extend(connection.execute("SHOW hnsw.ef_search").fetchone() or ())
        return walked(connection, *args)

    monkeypatch.setattr(search, "_walked", note)
    for ef_search in (300, 20, 160):
        index = VectorIndex(connections, made.id, Index(exact_rows=0, ef_search=ef_search))
        index.search(unit(1), 5, exclude=NONE, filters=Filters())
    share = available().mean()  # so many of the candidates can be answers
    assert seen == [str(math.ceil(ef_search / share)) for ef_search in (300, 20, 160)]


def test_who_leaves_out_much_is_searched_more_broadly(
    made: Bundle, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    walked = search._walked

    def note(connection: psycopg.Connection, query: bytes, parameters: dict[str, Any]) -> Any:
        seen.append((*(connection.execute("SHOW hnsw.ef_search").fetchone() or ()), parameters["visit"]))
        return walked(connection, query, parameters)

    monkeypatch.setattr(search, "_walked", note)
    index = VectorIndex(connections, made.id, Index(exact_rows=0, ef_search=20))
    for k, excluded in ((5, 0), (5, 15), (5, 16), (5, 101), (5, 2_000), (25, 0), (25, 1)):
        index.search(unit(1), k, exclude=10_000 + np.arange(excluded), filters=Filters())
    plain = math.ceil(20 / available().mean())
    broad = [plain, plain, plain + 100, plain + 200, 1_000, plain, plain + 100]
    assert seen == list(zip(map(str, broad), [5, 5, 15, 15, 15, 25, 75], strict=True))


def test_where_little_is_in_stock_searches_are_broader(made: Bundle, database_url: str) -> None:
    opened = Connections(database_url, size=1)

    def breadth(filters: Filters) -> str:
        index = VectorIndex(opened, made.id, Index(exact_rows=0, ef_search=60))
        index.search(unit(1), 5, exclude=NONE, filters=filters)
        with opened.use() as connection:
            (found,) = connection.execute("SHOW hnsw.ef_search").fetchone() or ("",)
        return found

    change = "UPDATE products SET available = product_id < %s WHERE catalogue = 'tiny'"
    with psycopg.connect(database_url, autocommit=True) as connection:
        before = connection.execute("SELECT product_id, available FROM products WHERE catalogue = 'tiny'").fetchall()
        try:
            connection.execute(change, (tiny.product_id(tiny.ITEMS // 4),))
            assert breadth(Filters()) == "240"
            assert breadth(Filters(price_max=1e6)) == "60", "a filter asks for more instead"
            connection.execute(change, (tiny.product_id(1),))
            assert breadth(Filters()) == "1000", "as far as pgvector goes"
        finally:
            opened.close()
            for product_id, there in before:
                connection.execute(
                    "UPDATE products SET available = %s WHERE catalogue = 'tiny' AND product_id = %s",
                    (there, product_id),
                )


def test_a_bundle_is_searched_as_broadly_as_its_shoppers_need(
    made: Bundle, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = np.stack([unit(1), unit(2), unit(3)])
    answers = iter([0.5, 0.5, 0.5, 0.97, 0.97, 0.97, 0.995, 0.995, 0.995])
    monkeypatch.setattr(recall, "of", lambda found, exact: next(answers))

    def broad(index: Index) -> int:
        return VectorIndex(connections, made.id, index).ef_search

    try:
        tuned = recall.tune(connections, made.id, Index(exact_rows=0, ef_search=10, recall=0.99), queries, 5)
        assert tuned == Tuned(200, 0.995), "10 and 160 are not enough"
        assert broad(Index(ef_search=10)) == 200
        monkeypatch.setattr(recall, "of", lambda found, exact: 0.4)
        assert recall.tune(connections, made.id, Index(ef_search=10), queries, 5) == Tuned(1_000, 0.4)
        assert recall.tune(connections, made.id, Index(ef_search=10, recall=0), queries, 5) == Tuned(10, 0.4)
        assert broad(Index(ef_search=160)) == 10
        with connections.use() as connection:
            vector_table.enter(connection, "0123456789ab", "tiny", 9, tiny.WIDTH, "halfvec", owner=made.id)
            assert tables.entry(connection, "0123456789ab").ef_search == 10, "as those that share the table"
            connection.rollback()
    finally:
        with connections.use() as connection:
            connection.execute("UPDATE bundles SET ef_search = NULL")
    assert broad(Index(ef_search=160)) == 160


@pytest.mark.parametrize("name", ["hnsw.wings", "nobody.claims"])
def test_a_refused_setting_is_named_at_once_and_later(
    database_url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("rec.index.connections.WAIT_S", 2.0)
    opened = Connections(database_url, size=1)
    with opened.use():
        pass  # its connection is open before the server refuses
    monkeypatch.setitem(SETTINGS, name, "2")
    refusal = rf"does not take the settings .*{name}.*pgvector"
    with pytest.raises(DatabaseError, match=refusal):
        Connections(database_url, size=1)
    with pytest.raises(DatabaseError, match="AdminShutdown"), opened.use() as connection:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(DatabaseError, match=refusal), opened.use():
        pass
    opened.close()


@pytest.mark.parametrize("low", [1e-300, 1e300])
def test_prices_beyond_the_column_s_range_are_no_error(index: VectorIndex, low: float) -> None:
    found = index.search(unit(2), 10, exclude=NONE, filters=Filters(price_min=low, price_max=1e300))
    assert len(found.rows) == (10 if low < 1 else 0)
    assert len(index.search(unit(2), 10, exclude=NONE, filters=Filters(price_max=1e-300)).rows) == 0


def test_what_postgres_refuses_is_one_sentence(made: Bundle, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN")
    url = database_url.replace("postgres:@", "reader:@")
    assert url != database_url
    for work in (
        lambda: load.vectors(url, made, made.config.index),
        lambda: promote.promote(url, made, made.config.root, force=False),
        lambda: promote.rollback(url, "tiny", "0123456789ab"),
    ):
        with pytest.raises(DatabaseError, match=r"Postgres refused \(InsufficientPrivilege: permission denied.*tables"):
            work()


LOADER = """
import sys
from rec import bundle
from rec.index import load, promote
store, url, name = sys.argv[1:]
made = bundle.read(store, name)
load.vectors(url, made, made.config.index)
promote.promote(url, made, made.config.root, force=False)
"""


def test_a_killed_load_leaves_nothing_and_is_repeated(tmp_path: Path, database_url: str) -> None:
    recipe = tiny.make(tiny.config(tmp_path, name="killed", seed=3))
    found = assemble.create(recipe)
    # held where its vectors are in and it is about to say so
    with held(recipe, database_url, "bundles") as loader:
        os.kill(loader.pid, signal.SIGKILL)
        loader.wait()
    _until(lambda: not _waiting(database_url))
    with postgres.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass(%s)", (f"items_{found.id}",)).fetchone() == (None,)
    published(recipe, database_url)
    opened = Connections(database_url, size=1)
    index = VectorIndex(opened, found.id, recipe.index)
    assert len(index.search(unit(6), 30, exclude=NONE, filters=Filters()).rows) == 30
    opened.close()


@contextmanager
def held(recipe: Config, url: str, table: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that publishes the bundle of `recipe` and that waits before it first writes to `table`."""
    name = assemble.create(recipe).id
    with postgres.connect(url) as blocker:
        blocker.execute(psycopg.sql.SQL("LOCK TABLE {} IN SHARE MODE").format(psycopg.sql.Identifier(table)))
        loader = subprocess.Popen([sys.executable, "-c", LOADER, recipe.store, url, name])
        _until(lambda: _waiting(url))
        yield loader


def _waiting(url: str) -> bool:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ '^(INSERT INTO|UPDATE) '"
        ).fetchone()
    return bool(row and row[0])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited a minute"
        time.sleep(0.1)


class TestPromotion:
    """Promotion and rollback in a database of their own."""

    @pytest.fixture
    def recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Config:
        """A finished recipe beside a database without any table."""
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS promotion")
            connection.execute("CREATE DATABASE promotion")
        url = database_url.replace("/postgres?", "/promotion?")
        assert url != database_url
        monkeypatch.setenv("REC_DATABASE_URL", url)
        return tiny.make(tiny.config(tmp_path, seed=1))

    def active(self) -> str:
        """Id of the active bundle."""
        with postgres.connect(os.environ["REC_DATABASE_URL"]) as connection:
            return promote.active(connection)

    def test_nothing_is_active_at_first(self, recipe: Config) -> None:
        with pytest.raises(DatabaseError, match=r"no bundle is active.*jobs/publish[.]py"):
            self.active()
        with pytest.raises(DatabaseError, match="no earlier bundle"):
            publish.rollback(recipe)

    def test_promote_and_roll_back(self, recipe: Config, tmp_path: Path) -> None:
        ids = []
        for seed in (1, 2, 3):
            result = publish.run(tiny.make(tiny.config(tmp_path, seed=seed)))
            ids.append(result["bundle"])
            assert result["replaced"] == (ids[-2] if len(ids) > 1 else None)
            assert self.active() == ids[-1]
        assert len(set(ids)) == 3
        assert publish.run(tiny.config(tmp_path, seed=3))["skipped"]
        assert publish.rollback(recipe) == {"bundle": ids[1]}
        assert publish.rollback(recipe) == {"bundle": ids[0]}
        assert self.active() == ids[0]
        with pytest.raises(DatabaseError, match="no earlier bundle"):
            publish.rollback(recipe)

    def test_a_rollback_to_a_damaged_bundle_changes_nothing(self, recipe: Config, tmp_path: Path) -> None:
        first = publish.run(recipe)["bundle"]
        second = publish.run(tiny.make(tiny.config(tmp_path, seed=2)))["bundle"]
        (tmp_path / "bundles" / first / "metrics.json").unlink()
        with pytest.raises(ArtifactError, match=r"lacks metrics[.]json"):
            publish.rollback(recipe)
        assert self.active() == second

    def test_data_and_bundle_change_together_or_not_at_all(self, recipe: Config, tmp_path: Path) -> None:
        first, url = publish.run(recipe)["bundle"], os.environ["REC_DATABASE_URL"]
        with postgres.connect(url) as connection:
            connection.execute("UPDATE products SET price = 1")
            connection.execute("UPDATE loads SET content_hash = 'of before'")
        with held(tiny.make(tiny.config(tmp_path, seed=2)), url, "promotions") as loader:
            os.kill(loader.pid, signal.SIGKILL)
            loader.wait()
        _until(lambda: not _waiting(url))
        assert self.active() == first
        with postgres.connect(url) as connection:
            assert connection.execute("SELECT DISTINCT price FROM products").fetchall() == [(1.0,)]
        publish.run(tiny.config(tmp_path, seed=2))
        with postgres.connect(url) as connection:
            assert connection.execute("SELECT min(price), max(price) FROM products").fetchall() == [(10.0, 169.0)]

    def test_nobody_waits_for_vectors_that_are_loaded(self, recipe: Config, tmp_path: Path) -> None:
        first, url = publish.run(recipe)["bundle"], os.environ["REC_DATABASE_URL"]
        publish.run(tiny.make(tiny.config(tmp_path, seed=2)))
        with held(tiny.make(tiny.config(tmp_path, seed=3)), url, "bundles") as loader:
            with postgres.connect(url) as connection:
                connection.execute("SET lock_timeout = '1s'")
                connection.execute("UPDATE products SET available = available")
            assert publish.rollback(recipe) == {"bundle": first}
            assert loader.poll() is None
        assert loader.wait(60) == 0
        assert self.active() == assemble.create(tiny.config(tmp_path, seed=3)).id

    def test_who_is_held_up_says_so(self, recipe: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "SWITCH_WAIT_MS", 200)
        first = publish.run(recipe)["bundle"]
        second = publish.run(tiny.make(tiny.config(tmp_path, seed=2)))["bundle"]
        with postgres.connect(os.environ["REC_DATABASE_URL"]) as other, tables.switching(other):
            for work in (lambda: publish.rollback(recipe), lambda: publish.run(tiny.config(tmp_path, seed=2))):
                with pytest.raises(DatabaseError, match=r"others changed the database for more than 0\.2 s.*try again"):
                    work()
        assert self.active() == second
        assert publish.rollback(recipe) == {"bundle": first}

    def test_only_the_bundle_that_was_verified_is_rolled_back_to(self, recipe: Config, tmp_path: Path) -> None:
        ids = [publish.run(tiny.make(tiny.config(tmp_path, seed=seed)))["bundle"] for seed in (1, 2, 3)]
        url = os.environ["REC_DATABASE_URL"]
        with pytest.raises(DatabaseError, match=f"is now {ids[1]}, no longer {ids[0]}, so nothing was done"):
            promote.rollback(url, "tiny", ids[0])
        assert self.active() == ids[2]

    def test_who_stands_in_was_active_before_and_not_rolled_back(self, recipe: Config, tmp_path: Path) -> None:
        def stand_ins() -> list[str]:
            with postgres.connect(os.environ["REC_DATABASE_URL"]) as connection:
                return promote.stand_ins(connection)

        first, second = (publish.run(tiny.make(tiny.config(tmp_path, seed=seed)))["bundle"] for seed in (1, 2))
        assert stand_ins() == [first]
        later = tiny.make(tiny.config(tmp_path, seed=3))
        with postgres.connect(os.environ["REC_DATABASE_URL"]) as connection:  # as if it were of the same training
            connection.execute("UPDATE bundles SET root = %s WHERE id = %s", (assemble.create(later).id, second))
        publish.run(later)
        assert stand_ins() == [second, first]
        assert publish.rollback(recipe) == {"bundle": first}
        assert stand_ins() == []
        publish.run(tiny.make(tiny.config(tmp_path, seed=4)))
        assert stand_ins() == [first], "the third was rolled back, and the second with it"
        other = publish.run(tiny.make(tiny.config(tmp_path, name="other")))["bundle"]
        assert stand_ins() == [], "those of another recipe do not"
        last = publish.run(tiny.make(tiny.config(tmp_path, seed=5)))["bundle"]
        assert other not in stand_ins()
        assert (last not in stand_ins(), first in stand_ins()) == (True, True)

    def test_a_rollback_stays_within_the_recipe(self, recipe: Config, tmp_path: Path) -> None:
        mine = publish.run(recipe)["bundle"]
        other = tiny.make(tiny.config(tmp_path, name="other"))
        theirs = publish.run(other)["bundle"]
        with pytest.raises(DatabaseError, match=f"before the active one, {mine}, is of recipe 'tiny'.*--recipe tiny"):
            publish.rollback(other)
        with pytest.raises(DatabaseError, match=f"active bundle {theirs} is of recipe 'other', not 'tiny'"):
            publish.rollback(recipe)
        assert self.active() == theirs

    def test_pruning_keeps_the_active_bundle_and_the_one_before(self, recipe: Config, tmp_path: Path) -> None:
        ids = [publish.run(tiny.make(tiny.config(tmp_path, seed=seed)))["bundle"] for seed in (1, 2, 3)]
        other = publish.run(tiny.make(tiny.config(tmp_path, name="other")))["bundle"]
        last = publish.run(tiny.make(tiny.config(tmp_path, seed=4)))["bundle"]
        publish.run(tiny.config(tmp_path, name="other"))
        killed, working = tmp_path / "bundles" / ".killed.tmp", tmp_path / "bundles" / ".0123456789ab.pull"
        killed.mkdir()
        working.mkdir()
        with psycopg.connect(os.environ["REC_DATABASE_URL"]) as connection:
            connection.execute("CREATE TABLE items_0123456789ab (row integer)")
        with bundle.alone(working):
            would = bundles.collect(recipe, dry_run=True)
            assert (would["removed"], would["leftovers"]) == (ids[:2], [killed.name])
            assert killed.is_dir()
            assert set(bundle.names(tmp_path)) == {*ids, last, other}
            done = bundles.collect(recipe)
            assert working.is_dir(), "somebody pulls into it"
        assert done == {**would, "dry_run": False}
        assert done["kept"] == [last, ids[2], other]
        assert set(done["dropped"]) == {*ids[:2], "0123456789ab"}
        again = bundles.collect(recipe)
        assert (again["removed"], again["dropped"], again["leftovers"]) == ([], [], [working.name])
        assert set(bundle.names(tmp_path)) == {ids[2], last, other}
        with postgres.connect(os.environ["REC_DATABASE_URL"]) as connection:
            found = connection.execute(r"SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^items_'")
            assert {name for (name,) in found} == {f"items_{name}" for name in (ids[2], last, other)}
        anew = publish.run(tiny.config(tmp_path, seed=4))
        assert not anew["skipped"]
        assert self.active() == last

    def test_nothing_is_pruned_where_nothing_is_active(self, recipe: Config) -> None:
        made = assemble.create(recipe)
        with pytest.raises(DatabaseError, match="no bundle is active"):
            bundles.collect(recipe)
        bundle.verify(made)

    def test_below_the_floor_only_by_force(self, recipe: Config, tmp_path: Path) -> None:
        good = publish.run(recipe)["bundle"]
        poor = tiny.make(tiny.config(tmp_path, floor=0.5, seed=2), ndcg10=0.1)
        with pytest.raises(ArtifactError, match=r"below the floor.*0\.1000, floor 0\.5000.*--force"):
            publish.run(poor)
        assert self.active() == good
        forced = publish.run(poor, force=True)
        assert self.active() == forced["bundle"]
        assert not forced["floor_met"]
        with postgres.connect(os.environ["REC_DATABASE_URL"]) as connection:
            rows = connection.execute("SELECT floor_met, ndcg10, floor FROM promotions ORDER BY number").fetchall()
        assert rows == [(True, 0.2, 0.0), (False, 0.1, 0.5)]


def test_sizes_of_events_are_loaded(made: Bundle, database_url: str) -> None:
    with postgres.session(database_url) as connection:
        found = connection.execute(
            "SELECT size, fit FROM events WHERE catalogue = %s AND user_id = 'u00' ORDER BY position", (made.recipe,)
        ).fetchall()
    assert found == [("8", "small"), ("8", "fit"), ("8", "large")]
