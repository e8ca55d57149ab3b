"""A damaged table of vectors is rebuilt from the bundle's files, under the searches of running servers."""

import logging
import shutil
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import conninfo
from safetensors.numpy import save_file

from jobs import bundles as job
from rec import bundle, postgres, publish
from rec.bundle import Bundle
from rec.config import Config
from rec.errors import ArtifactError, DatabaseError
from rec.index import check, load, repair, roles, tables, vector_table
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from tests.bundle import tiny

READER = "repair_reader"


@dataclass(frozen=True)
class Shop:
    """A recipe of which one bundle was published, its first, in a database of its own."""

    recipe: Config
    url: str
    first: str

    def run(self, action: str, *given: str) -> Any:
        """What the job answers."""
        return job.run(self.recipe, Namespace(action=action, argument=list(given), force=False, dry_run=False))

    def read(self, name: str) -> Bundle:
        return bundle.read(self.recipe.store, name)

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            done = connection.execute(statement)  # type: ignore[call-overload]
            return done.fetchall() if done.description else []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Shop]:
    """The shop; REC_DATABASE_URL names its database."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS repair WITH (FORCE)")
        connection.execute("CREATE DATABASE repair")
        connection.execute(f"DROP ROLE IF EXISTS {READER}")
        connection.execute(f"CREATE ROLE {READER} LOGIN")
    url = conninfo.make_conninfo(database_url, dbname="repair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, url)
        recipe = tiny.make(tiny.config(tmp_path_factory.mktemp("repair")))
        first = publish.run(recipe)["bundle"]
        roles.grant(url, READER)
        yield Shop(recipe, url, first)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {READER}")
        connection.execute(f"DROP ROLE {READER}")


def nearest(index: VectorIndex, vector: np.ndarray) -> list[int]:
    found: list[int] = index.search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters()).rows.tolist()
    return found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE items_{} SET embedding = embedding + embedding WHERE row = 7", "the vector of product 'P0007'"),
        ("UPDATE items_{} SET product_id = 'P9999' WHERE row = 7", "row 7 is product 'P9999', not 'P0007'"),
        ("DELETE FROM items_{} WHERE row = 7", "row 8 stands where row 7"),
        ("DELETE FROM items_{} WHERE row = 159", "it has 159 rows, not 160"),
        ("DROP INDEX items_{}_hnsw", "an index is missing or invalid"),
        ("UPDATE bundles SET width = 31, items = 7 WHERE id = '{}'", "its entry says"),
        ("DROP TABLE items_{}", 'there is no table "items_'),
    ],
)
def test_what_verify_finds_is_rebuilt_while_servers_answer(shop: Shop, damage: str, said: str) -> None:
    """The only bundle of the shop: there is none to go back to."""
    made, opened = shop.read(shop.first), Connections(shop.url, size=1)
    index, vector = VectorIndex(opened, shop.first, shop.recipe.index), shop.read(shop.first).item_vectors()[40]
    before, digest = nearest(index, vector), check.check(shop.url, made)
    shop.execute(damage.format(shop.first))
    with pytest.raises(ArtifactError, match=said) as raised:
        shop.run("verify")
    assert f"`python jobs/bundles.py repair {shop.first} --recipe tiny`" in str(raised.value)

    (done,) = shop.run("repair")["repaired"]
    assert said.partition(" '")[0] in done["found"]
    assert done["rows"] == tiny.ITEMS
    assert done["bundles"][shop.first]["recall"] > 0.95
    assert shop.execute(f"SELECT ef_search FROM bundles WHERE id = '{shop.first}'") == [(160,)]
    assert check.check(shop.url, made) == digest
    assert nearest(index, vector) == before, "a server that had its statements prepared goes on"
    opened.close()
    assert shop.run("repair", shop.first) == {"repaired": []}, "nothing is left to do"
    names = [name for (name,) in shop.execute("SELECT relname FROM pg_class WHERE relname LIKE 'items\\_%' ORDER BY 1")]
    table = f"items_{shop.first}"
    assert names == [table, f"{table}_hnsw", f"{table}_product_id_idx", f"{table}_row_idx"]
    assert shop.execute(f"SELECT has_table_privilege('{READER}', '{table}', 'SELECT')") == [(True,)]


def test_searches_go_on_until_the_switch_and_after_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what fails half-way, as by a kill, leaves the table as it was."""
    shop.execute(f"DELETE FROM items_{shop.first} WHERE row = 159")
    opened, vector = Connections(shop.url, size=1), shop.read(shop.first).item_vectors()[40]
    index, build, failures = VectorIndex(opened, shop.first, shop.recipe.index), vector_table.build, []
    answered, over = [0], threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                assert len(nearest(index, vector)) == 10
                answered[0] += 1
            except (DatabaseError, AssertionError) as error:
                failures.append(error)

    def stopped(*given: Any) -> None:
        build(*given)
        raise KeyboardInterrupt

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(vector_table, "build", stopped)
            with pytest.raises(KeyboardInterrupt):
                shop.run("repair")
        assert shop.execute(f"SELECT count(*) FROM items_{shop.first}") == [(159,)]
        assert shop.execute("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^items_'") == [(1,)]
        assert len(shop.run("repair")["repaired"]) == 1
        seen, until = answered[0], time.monotonic() + 60
        while answered[0] == seen and not failures and time.monotonic() < until:
            time.sleep(0.01)
        assert answered[0] > seen or failures, "nothing is answered any more"
    finally:
        over.set()
        asking.join(60)
        opened.close()
    assert failures == []


def test_a_switch_waits_for_whoever_reads_the_old_table_and_what_was_built_stays(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For longer than a try, and others read the old table between the tries."""
    caplog.set_level(logging.INFO, "rec")
    monkeypatch.setattr(repair, "TRY_MS", 100)
    shop.execute(f"DELETE FROM items_{shop.first} WHERE row = 159")
    built: list[int] = []
    build = vector_table.build
    monkeypatch.setattr(vector_table, "build", lambda *given: (built.append(1), build(*given)))
    rename, tries = repair._rename, [0]

    def tried(*given: Any) -> None:
        tries[0] += 1
        if tries[0] == 3:
            reader.rollback()
        rename(*given)

    monkeypatch.setattr(repair, "_rename", tried)
    with psycopg.connect(shop.url) as reader:
        reader.execute(f"SELECT count(*) FROM items_{shop.first}")
        assert len(shop.run("repair")["repaired"]) == 1
    assert (len(built), tries) == (1, [3])
    assert caplog.text.count("others are at the old table") == 1
    assert check.check(shop.url, shop.read(shop.first)) is not None

    monkeypatch.setattr(repair, "SWITCH_S", 0.3)
    tries[0] = 3
    shop.execute(f"DELETE FROM items_{shop.first} WHERE row = 159")
    with psycopg.connect(shop.url) as reader:
        reader.execute(f"SELECT count(*) FROM items_{shop.first}")
        with pytest.raises(ArtifactError, match=r"others were at the old table .* for 0.3 s, so nothing was repaired"):
            shop.run("repair")
    assert len(shop.run("repair")["repaired"]) == 1


def test_a_table_of_which_postgres_says_no_more_is_repaired_and_other_refusals_are_not_its_fault(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(f"ALTER TABLE items_{shop.first} DROP COLUMN product_id")
    shop.execute(f"ALTER TABLE items_{shop.first} ADD COLUMN product_id_2 text")
    shop.execute(f"CREATE UNIQUE INDEX ON items_{shop.first} (product_id_2)")
    with pytest.raises(ArtifactError, match=r'Postgres cannot read them: column "product_id" does not exist.*repair'):
        shop.run("verify")
    assert len(shop.run("repair")["repaired"]) == 1

    def cancelled(*given: Any) -> None:
        raise psycopg.errors.QueryCanceled("canceling statement due to user request")

    monkeypatch.setattr(check, "_check_rows", cancelled)
    with pytest.raises(DatabaseError, match="QueryCanceled"):
        repair.repair(shop.url, shop.recipe.store, shop.read(shop.first), shop.recipe.index)


def test_what_was_repaired_is_said_where_something_else_went_wrong(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.execute(f"DELETE FROM items_{shop.first} WHERE row = 159")
    tune = publish.tune

    def refused(*given: Any) -> None:
        raise DatabaseError("no connection")

    monkeypatch.setattr(publish, "tune", refused)
    with pytest.raises(ArtifactError, match=rf"{shop.first} are repaired, but no connection; repaired: {shop.first}"):
        shop.run("repair")
    shop.execute(f"DELETE FROM items_{shop.first} WHERE row = 159")
    monkeypatch.setattr(publish, "tune", lambda *given: replace(tune(*given), recall=0.5))
    with pytest.raises(ArtifactError, match=rf"finds 0\.5000 of .*min_recall.*; repaired: {shop.first}"):
        shop.run("repair")
    assert shop.run("repair") == {"repaired": []}


def extension(shop: Shop, base: Bundle) -> Bundle:
    """A bundle that has one more product than `base`."""

    def fill(staging: Path) -> dict[str, Any]:
        shutil.copytree(base.path, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        rows, vectors = base.products().to_pylist(), base.item_vectors()
        rows.append({**rows[0], "product_id": f"X{base.items}"})
        pq.write_table(pa.Table.from_pylist(rows, schema=bundle.DISPLAY), staging / "products.parquet")
        save_file(
            {"item_vectors": np.concatenate([vectors, -vectors[:1]])},
            staging / "user_tower" / "item_vectors.safetensors",
        )
        return {**base.said(), "items": base.items + 1, "extends": base.id, "root": base.root}

    return bundle.make(shop.recipe.store, fill)


def test_bundles_that_share_a_table_are_repaired_together(shop: Shop, tmp_path: Path) -> None:
    first = shop.read(shop.first)
    second = extension(shop, first)
    third = extension(shop, second)
    for each in (second, third):
        assert load.vectors(shop.url, each, shop.recipe.index)
    whole = {each.id: check.check(shop.url, each) for each in (first, second, third)}
    shop.execute(f"DELETE FROM items_{first.id} WHERE row = 160")
    assert check.check(shop.url, first) == whole[first.id], "the row is one of the others'"

    away = tmp_path / third.id
    third.path.rename(away)
    with pytest.raises(ArtifactError, match=rf"bundle {third.id} has rows in the same table.*pull URI {third.id}"):
        shop.run("repair", second.id)
    away.rename(third.path)
    second.path.rename(tmp_path / second.id)
    (done,) = shop.run("repair")["repaired"]
    assert set(done["bundles"]) == {first.id, third.id}, "the rows of the largest are those of all"
    (tmp_path / second.id).rename(second.path)
    assert {each.id: check.check(shop.url, each) for each in (first, second, third)} == whole
    with psycopg.connect(shop.url) as connection:
        entry = tables.entry(connection, third.id)
    assert (entry.owner, entry.items) == (first.id, tiny.ITEMS + 2)

    (third.path / "metrics.json").write_text("{}", encoding="utf-8")
    shop.execute(f"DROP TABLE items_{first.id}")
    with pytest.raises(ArtifactError, match=rf"metrics.json of bundle {third.id} was changed"):
        shop.run("repair")
    shop.execute(f"DELETE FROM bundles WHERE id = '{third.id}'")
    shutil.rmtree(third.path)
    assert repair.repair(shop.url, shop.recipe.store, second, shop.recipe.index) is not None
    assert check.check(shop.url, second) == whole[second.id]


def test_only_the_recipe_s_own_bundles_are_repaired(shop: Shop) -> None:
    other = shop.recipe.model_copy(update={"name": "other"})
    with pytest.raises(ArtifactError, match="is of recipe 'tiny', not 'other': name it with --recipe"):
        publish.repair(other, [shop.first])
    assert publish.repair(other, []) == {"repaired": []}
