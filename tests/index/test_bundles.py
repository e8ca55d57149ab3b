"""What is done with bundles after they were made: list, verify, compare, make active; and what never gets in."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import conninfo
from safetensors.numpy import load_file, save_file

from jobs import bundles as job
from rec import assemble, bundle, postgres, publish, remote
from rec.bundle import Bundle
from rec.config import Config
from rec.errors import ArtifactError, ConfigError, DatabaseError
from rec.features import items as item_features
from rec.index import check, load, promote
from rec.models import fused, user_tower
from rec.sources import tables as source_tables
from tests.bundle import tiny

VECTORS = "user_tower/item_vectors.safetensors"


@dataclass(frozen=True)
class Shop:
    """A recipe of which two bundles were published, in a database of its own."""

    recipe: Config
    url: str
    first: str
    second: str

    def run(self, action: str, *given: str, force: bool = False, dry_run: bool = False) -> Any:
        """What the job answers."""
        return job.run(self.recipe, Namespace(action=action, argument=list(given), force=force, dry_run=dry_run))

    def active(self) -> str:
        """Id of the active bundle."""
        with postgres.connect(self.url) as connection:
            return promote.active(connection)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Shop]:
    """The shop; REC_DATABASE_URL names its database."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS bundles WITH (FORCE)")
        connection.execute("CREATE DATABASE bundles")
    url = conninfo.make_conninfo(database_url, dbname="bundles")
    store = tmp_path_factory.mktemp("bundles")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, url)
        ids = [publish.run(tiny.make(tiny.config(store, seed=seed)))["bundle"] for seed in (1, 2)]
        yield Shop(tiny.config(store, seed=2), url, *ids)


def test_list_says_what_is_there_and_what_is_active(shop: Shop) -> None:
    first, second = shop.run("list")["bundles"]
    folder = Path(shop.recipe.store) / "bundles" / shop.second
    assert second == {
        "bundle": shop.second,
        "recipe": "tiny",
        "made": second["made"],
        "items": tiny.ITEMS,
        "ndcg10": 0.2,
        "floor": 0.0,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "state": "active",
    }
    assert (first["bundle"], first["state"]) == (shop.first, "previous")
    assert first["made"] <= second["made"]


def test_list_needs_no_database_and_names_what_is_damaged(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(postgres.URL_VARIABLE)
    for name in (shop.first, shop.second):
        shutil.copytree(Path(shop.recipe.store) / "bundles" / name, tmp_path / "bundles" / name)
    (tmp_path / "bundles" / shop.first / "manifest.json").write_text("{}", encoding="utf-8")
    listed = {
        found["bundle"]: found
        for found in job.run(tiny.config(tmp_path), Namespace(action="list", argument=[]))["bundles"]
    }
    assert "was changed after it was written" in listed[shop.first]["problem"]
    assert listed[shop.second]["state"] is None


def test_verify_reads_every_byte_of_store_and_database(shop: Shop) -> None:
    found = shop.run("verify")["verified"]
    assert [one["bundle"] for one in found] == [shop.first, shop.second]
    assert all(len(one["vectors"]) == 64 for one in found)
    assert found[0]["vectors"] != found[1]["vectors"]
    assert shop.run("verify", shop.second)["verified"] == [found[1]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE {} SET embedding = embedding + embedding WHERE row = 7", "the vector of product 'P0007' is another"),
        ("UPDATE {} SET product_id = 'P9999' WHERE row = 7", "row 7 is product 'P9999', not 'P0007'"),
        ("DELETE FROM {} WHERE row = 7", "row 8 stands where row 7"),
        ("DELETE FROM {} WHERE row = 159", "it has 159 rows, not 160"),
        ("UPDATE bundles SET width = 31", "its entry says"),
        ("DROP INDEX items_{}_hnsw", "an index is missing or invalid"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'items_{}_hnsw'::regclass",
            "an index is missing or invalid",
        ),
    ],
)
def test_verify_names_what_is_wrong_in_the_database(shop: Shop, damage: str, said: str) -> None:
    made = bundle.read(shop.recipe.store, shop.second)
    statement = damage.format(shop.second if "items_{}" in damage else f"items_{shop.second}")
    with psycopg.connect(shop.url) as connection:
        connection.execute(statement)  # type: ignore[call-overload]
        with pytest.raises(DatabaseError, match=said):
            check.compare(connection, made)
        connection.rollback()
    assert check.check(shop.url, made) is not None


def test_full_precision_is_verified_to_the_bit(shop: Shop, tmp_path: Path) -> None:
    made = assemble.create(tiny.make(tiny.config(tmp_path, name="full", kind="vector")))
    assert check.check(shop.url, made) is None, "not loaded"
    load.vectors(shop.url, made, made.config.index)
    assert check.check(shop.url, made) is not None
    with psycopg.connect(shop.url) as connection:
        connection.execute(f"UPDATE items_{made.id} SET embedding = embedding * '[{','.join(32 * ['1.0000002'])}]'")
        with pytest.raises(DatabaseError, match=r"the vector of product 'P0000' is another one"):
            check.compare(connection, made)
        connection.rollback()


def test_verify_reports_every_damaged_bundle(shop: Shop, tmp_path: Path) -> None:
    for name in (shop.first, shop.second):
        shutil.copytree(Path(shop.recipe.store) / "bundles" / name, tmp_path / "bundles" / name)
        (tmp_path / "bundles" / name / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=f"{shop.first} was changed.*; .*{shop.second} was changed"):
        job.run(tiny.config(tmp_path), Namespace(action="verify", argument=[]))


def test_verify_leaves_no_database_out_that_an_upgrade_has_in_hand(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(postgres.URL_VARIABLE)
    made = tiny.config(tmp_path)
    assert job.run(made, Namespace(action="verify", argument=[]))["verified"] == [], "no bundles and no database"
    work = Path(made.store) / postgres.UPGRADING
    (work / "new-1").mkdir(parents=True)
    (work / postgres.READY).write_text('{"new": "new-1"}', encoding="utf-8")
    with pytest.raises(DatabaseError, match="an upgrade was killed"):
        job.run(made, Namespace(action="verify", argument=[]))


def test_diff_tells_what_changed(shop: Shop) -> None:
    same = shop.run("diff", shop.first, shop.first)
    assert same["products"]["changed"] == same["products"]["added"] == 0
    assert same["config"] == {}
    assert same["cosine"] == pytest.approx(1, abs=1e-6)
    found = shop.run("diff", shop.first, shop.second)
    assert found["bundles"] == [shop.first, shop.second]
    assert found["config"] == {"seed": [1, 2]}
    assert found["metrics"] == {"final.ndcg@10": [0.2, 0.2]}
    assert found["products"]["changed"] == 0
    assert found["vocabulary"]["re"]["added"] == found["vocabulary"]["std"]["removed"] == 0
    assert found["features"]["tables"] == {}
    vectors = [bundle.read(shop.recipe.store, name).item_vectors() for name in (shop.first, shop.second)]
    assert found["cosine"] == pytest.approx(float((vectors[0] * vectors[1]).sum(1).mean()), abs=1e-6)


def test_diff_of_products_and_vocabulary(shop: Shop, tmp_path: Path) -> None:
    one = bundle.read(shop.recipe.store, shop.first)
    folder = tmp_path / "bundles" / shop.second
    shutil.copytree(one.path, folder)
    rows = one.products().to_pylist()
    rows[3]["title"], rows[4]["title"], rows[4]["price"], rows[5]["product_id"] = "a", "b", 1.5, "P9999"
    pq.write_table(pa.Table.from_pylist(rows, schema=bundle.DISPLAY), folder / "products.parquet")
    words = json.loads((folder / "vocabulary" / "re.json").read_text(encoding="utf-8"))
    (folder / "vocabulary" / "re.json").write_text(
        json.dumps({**words, "tokens": [*words["tokens"][:-1], "tweed"]}), encoding="utf-8"
    )
    found = job.bundle_diff.diff(one, replace(one, path=folder))
    products = found["products"]
    assert (products["added_first"], products["removed_first"]) == (["P9999"], ["P0005"])
    assert (products["changed"], products["changed_first"]) == (2, ["P0003", "P0004"])
    assert products["changed_columns"] == {"title": 2, "price": 1}
    assert found["vocabulary"]["re"]["added_first"] == ["tweed"]
    assert found["vocabulary"]["re"]["removed_first"] == [words["tokens"][-1]]


def test_a_pulled_bundle_is_made_active_where_there_are_no_datasets(shop: Shop, tmp_path: Path) -> None:
    far = (tmp_path / "far").as_uri()
    assert shop.run("push", far)["bundle"] == shop.second, "the active one"
    shop.run("push", far, shop.first)
    elsewhere = tiny.config(tmp_path / "elsewhere")
    for name in (shop.first, shop.second):
        job.run(elsewhere, Namespace(action="pull", argument=[far, name]))
    with psycopg.connect(shop.url) as connection:
        before = connection.execute("SELECT count(*) FROM events").fetchone()
    done = job.run(elsewhere, Namespace(action="promote", argument=[shop.first], force=False))
    assert done.pop("recall") > 0.95
    assert done.pop("ef_search") == 160
    assert done == {"bundle": shop.first, "replaced": shop.second, "loaded": False, "floor_met": True}
    assert shop.active() == shop.first
    with psycopg.connect(shop.url) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == before
    assert shop.run("rollback") == {"bundle": shop.second}
    assert shop.active() == shop.second


def test_promote_refuses_what_is_below_its_floor_or_of_another_recipe(shop: Shop, tmp_path: Path) -> None:
    poor = tiny.make(tiny.config(tmp_path, floor=0.5, seed=9), ndcg10=0.1)
    name = assemble.create(poor).id
    ask = Namespace(action="promote", argument=[name], force=False)
    with pytest.raises(ArtifactError, match="below the floor"):
        job.run(poor, ask)
    with pytest.raises(ArtifactError, match="is of recipe 'tiny', not 'other': name it with --recipe"):
        job.run(tiny.config(tmp_path, name="other"), ask)
    assert shop.active() == shop.second
    with pytest.raises(ConfigError, match="takes other arguments"):
        shop.run("diff", shop.first)


def test_recall_is_measured_by_class_of_filter(shop: Shop) -> None:
    said = shop.run("recall")
    assert (said["bundle"], said["vectors_of"], said["k"]) == (shop.second, "users", 60)
    found = said["recall"]
    assert set(found) == {"stock", "category", "price", "seen"}
    assert all(each["searches"] == tiny.SHOPPERS for each in found.values())
    assert all(each["recall"] > 0.95 and each["full"] == 1 for each in found.values())


def test_a_bundle_whose_index_misses_what_is_near_is_promoted_only_by_force(shop: Shop, tmp_path: Path) -> None:
    recipe = tiny.make(tiny.config(tmp_path, seed=5))
    made = assemble.create(recipe)
    load.vectors(shop.url, made, recipe.index)
    index, table = f"items_{made.id}_hnsw", f"items_{made.id}"
    with psycopg.connect(shop.url) as connection:  # the index does not get to know of half of the rows
        connection.execute(f"CREATE TEMP TABLE half AS SELECT * FROM {table} WHERE row % 2 = 0")
        connection.execute(f"DELETE FROM {table} WHERE row % 2 = 0")
        ready = "UPDATE pg_index SET indisready = %s WHERE indexrelid = %s::regclass"
        connection.execute(ready, (False, index))
        connection.commit()
        connection.execute(f"INSERT INTO {table} SELECT * FROM half")
        connection.execute(ready, (True, index))
    said = (
        rf"the index of bundle {made.id} finds 0\.[3-6]\d* of the 60 nearest products "
        r"with ef_search = 1000, less than index\.min_recall = 0\.95,.*higher index\.m .*--force"
    )
    for work in (publish.run, lambda given: publish.activate(given, made.id)):
        with pytest.raises(ArtifactError, match=said):
            work(recipe)
    assert shop.active() == shop.second
    lower = recipe.model_copy(update={"index": recipe.index.model_copy(update={"min_recall": 0.2})})
    assert 0.2 < publish.activate(lower, made.id)["recall"] < 0.95
    narrow = recipe.model_copy(update={"index": recipe.index.model_copy(update={"recall": 0.0})})
    with pytest.raises(ArtifactError, match=r"with ef_search = 160.*higher index\.recall \(now 0\)"):
        publish.activate(narrow, made.id)
    assert publish.activate(shop.recipe, shop.second)["replaced"] == made.id
    assert publish.activate(recipe, made.id, force=True)["replaced"] == shop.second
    assert publish.activate(shop.recipe, shop.second)["replaced"] == made.id


def _rewrite(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        save_file({"item_vectors": change(load_file(folder / VECTORS)["item_vectors"])}, folder / VECTORS)

    return work


def _row(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(vectors: np.ndarray) -> np.ndarray:
        vectors[7] = value
        return vectors

    return change


def _twice(folder: Path) -> None:
    table = pq.read_table(folder / "products.parquet")
    names = table["product_id"].to_pylist()
    names[9] = names[8]
    table = table.set_column(0, table.schema.field(0), pa.array(names))
    pq.write_table(table, folder / "products.parquet")


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _pickled(folder: Path) -> None:
    (folder / VECTORS).write_bytes(pickle.dumps(Bomb(folder.parent / "exploded")))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_rewrite(_row(np.nan)), "1 vectors .* the first is of product 'P0007', of length nan"),
        (_rewrite(_row(0.0)), "1 vectors .* the first is of product 'P0007', of length 0"),
        (_rewrite(lambda vectors: 3 * vectors), "160 vectors .* have not length 1"),
        (_rewrite(lambda vectors: vectors[:, :31].copy()), r"holds vectors \(160, 31\), bundle .* of width 32"),
        (_rewrite(lambda vectors: vectors[:150].copy()), r"holds vectors \(150, 32\), bundle .* says 160 items"),
        (lambda folder: os.truncate(folder / VECTORS, 5_000), "is no safetensors file, or not all of one"),
        (_pickled, "is no safetensors file"),
        (_twice, "has product 'P0008' twice"),
    ],
    ids=["nan", "zero", "long", "narrow", "short", "truncated", "pickle", "twice"],
)
def test_what_cannot_be_searched_is_not_loaded(
    shop: Shop, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    """Bytes that a manifest would vouch for: a stage that goes wrong writes such files."""
    name = "0123456789ab"
    folder = tmp_path / "bundles" / name
    sound = bundle.read(shop.recipe.store, shop.first)
    shutil.copytree(sound.path, folder)
    damage(folder)
    with pytest.raises(ArtifactError, match=said):
        load.vectors(shop.url, replace(sound, path=folder, id=name), shop.recipe.index)
    with psycopg.connect(shop.url) as connection:
        assert connection.execute("SELECT to_regclass(%s)", (f"items_{name}",)).fetchone() == (None,)
        assert connection.execute("SELECT 1 FROM bundles WHERE id = %s", (name,)).fetchone() is None
    assert shop.active() == shop.second
    assert not (tmp_path / "bundles" / "exploded").exists()


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("user_tower/user_tower.safetensors", lambda made: user_tower.load(made.folder("user_tower"))),
        ("ranker/ranker.safetensors", lambda made: fused.load(made.folder("ranker"))),
        (
            "features/features.safetensors",
            lambda made: item_features.load(made.folder("features"), made.item_vectors()),
        ),
        ("sources/sources.safetensors", lambda made: source_tables.load(made.folder("sources"))),
    ],
)
def test_a_pickle_under_another_name_is_no_weights(
    shop: Shop, tmp_path: Path, file: str, read: Callable[[Bundle], object]
) -> None:
    sound = bundle.read(shop.recipe.store, shop.first)
    folder = tmp_path / "copy"
    shutil.copytree(sound.path, folder)
    (folder / file).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ArtifactError, match=f"{Path(file).name} is no safetensors file"):
        read(replace(sound, path=folder))
    assert not (tmp_path / "exploded").exists()


LIMITED = """
import os, resource, sys
from pathlib import Path
from rec import assemble
from rec.errors import ArtifactError
from tests.bundle import tiny
full, read_only = map(Path, sys.argv[1:])
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
for store in (full, read_only):
    try:
        assemble.create(tiny.config(store, seed=2))
    except ArtifactError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    if os.geteuid() == 0:
        os.seteuid(65_534)  # a folder is read-only for all but root
"""


def test_a_folder_that_takes_no_bundle_is_named_and_stays_as_it_was(shop: Shop, new_store: Callable[[], Path]) -> None:
    """One has no room for the bundle, the other may not be written to."""
    stores = new_store(), new_store()
    recipe = tiny.make(tiny.config(stores[0], seed=2))
    shutil.copytree(stores[0], stores[1], dirs_exist_ok=True)
    for store, mode in zip(stores, (0o755, 0o555), strict=True):
        store.chmod(0o755)
        (store / "bundles").mkdir(mode)
    command = [sys.executable, "-c", LIMITED, *map(str, stores)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for store, said in zip(stores, done.stdout.splitlines(), strict=True):
        assert f"no bundle can be written to {store / 'bundles'} (" in said, done.stderr
        assert list((store / "bundles").iterdir()) == []
    (stores[1] / "bundles").chmod(0o755)
    assert assemble.create(recipe).id == shop.second
    assert shop.active() == shop.second


def test_pull_and_load_of_a_bundle_that_lies_is_refused_before_the_database(shop: Shop, tmp_path: Path) -> None:
    far = tmp_path / "far"
    remote.push(bundle.read(shop.recipe.store, shop.first), far.as_uri())
    (far / shop.first / VECTORS).write_bytes(b"\x80\x04}.")
    with pytest.raises(ArtifactError, match="was changed: push it again"):
        remote.pull(far.as_uri(), shop.first, tmp_path / "new")
    with pytest.raises(ArtifactError, match="there is no bundle"):
        publish.activate(tiny.config(tmp_path / "new"), shop.first)
    assert shop.active() == shop.second
