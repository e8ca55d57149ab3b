"""Who was forgotten is in no dataset: ingest leaves them out, and forgetting takes them out of what is there."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import conninfo

from jobs import database as job
from rec import artifact, dataset, histories, postgres
from rec.config import Config, load
from rec.data import forgotten, ingest
from rec.errors import DatabaseError
from rec.index import forget, migrations
from rec.schema import EXPOSURES, INTERACTIONS, PRODUCTS, SAMPLES, USERS, Contract
from tests.data import test_files as shop_files

NAMED = (USERS, INTERACTIONS, SAMPLES, EXPOSURES)
GONE = "u0042"
USER_ROWS = [{"uid": name, "cm": cm, "kg": "", "shoe": "41"} for name, cm in (
    ("u0041", "171.5"), (f" {GONE} ", "160"), (GONE, "161"), ("u0043", "165"), ("u00420", "9000"),
)]  # fmt: skip
EVENTS_EACH = 9_000
REQUEST: dict[str, Any] = {"at": datetime(2025, 3, 1, tzinfo=UTC), "label": 0, "rows": [0], "scores": [0.5],
                           "sources": [1], "cooccurrence": [0.0]}  # fmt: skip


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database that REC_DATABASE_URL names."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS left_out WITH (FORCE)")
        connection.execute("CREATE DATABASE left_out")
    address = conninfo.make_conninfo(database_url, dbname="left_out")
    monkeypatch.setenv(postgres.URL_VARIABLE, address)
    return address


def event(who: str, number: int, what: str = "a", how: str = "view") -> dict[str, Any]:
    """A row of the events file."""
    return {"who": who, "what": what, "how": how, "when": str(1_740_000_000 + 60 * number), "why": f"day {number}"}


def recipe(folder: Path, *, but: str | None = None) -> Config:
    """Files of more rows than a row group has, some of them refused, without the rows of the user `but`."""
    rows = [event(who, number) for number in range(EVENTS_EACH) for who in ("u0041", GONE, "u0043", "u00420")]
    rows += [event(who, -1, how="stolen") for who in ("u0043", GONE)]
    folder.mkdir(exist_ok=True)
    users = [row for row in USER_ROWS if row["uid"].strip() != but]
    made = shop_files.config(folder, users=users, events=[row for row in rows if row["who"] != but])
    with (folder / "events.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"{who},a,view,1740000000,,one too many\n" for who in ("u0041", GONE) if who != but)
    return made


def add_later_datasets(made: Config) -> None:
    """Samples and lists of users, and a list of nobody's, as later stages write them."""
    shown = {**REQUEST, "positions": [1], "places": [0], "retrieved": 1, "best": 0.5, "history": [], "context": "",
             "history_events": [], "history_ages": [], "profile": [("height_cm", 160.0)]}  # fmt: skip
    put(made, SAMPLES, [{"user_id": name, **REQUEST} for name in ("u0041", GONE, "u0043")])
    lists = [{"exposure_id": str(at), "user_id": name, **shown} for at, name in enumerate([GONE, None, "u0041", GONE])]
    put(made, EXPOSURES, lists)


def put(made: Config, contract: Contract, rows: list[dict[str, Any]]) -> None:
    """Write a dataset."""
    table = pa.Table.from_pylist(rows, contract.schema)
    dataset.write(made.at(contract.kind), contract, [table], inputs={"users": "of before"}, config={"seed": 17})


def parts(made: Config) -> dict[str, bytes]:
    """The bytes of what all stages wrote, by dataset."""
    return {kind: path.read_bytes() for kind, path in (
        (contract.kind, made.at(contract.kind) / dataset.PART) for contract in (PRODUCTS, *NAMED)
    ) if path.exists()}  # fmt: skip


def holding(made: Config) -> list[str]:
    """Parquet files anywhere in the store with the user's id in a text; an id that only begins alike is another."""
    files = sorted(made.root.rglob("*.parquet"))
    texts = {path: str(pq.read_table(path).to_pylist()).replace("u00420", "") for path in files}
    assert files, "there are datasets to look into"
    return [str(path.relative_to(made.root)) for path in files if GONE in texts[path]]


def others(made: Config, contract: Contract) -> list[dict[str, Any]]:
    """Rows of everybody else, in order."""
    return [row for row in dataset.read(made.at(contract.kind), contract).to_pylist() if row["user_id"] != GONE]


def refused_of_others(made: Config) -> list[dict[str, Any]]:
    """What was refused of everybody else, with where it stands in the files."""
    tables = [pq.read_table(made.at(name) / dataset.REFUSED) for name in ("users", "events")]
    return [row for table in tables for row in table.to_pylist() if GONE not in row["record"].replace("u00420", "")]


def test_the_files_may_have_a_forgotten_user_and_no_dataset_does(url: str, tmp_path: Path) -> None:
    """As after `DELETE /v1/users/{id}`, which calls `forget.forget` and reaches the database alone."""
    made = recipe(tmp_path)
    before = ingest.run(made)
    assert before["users"] == {"rows": 4, "rejected": 1, "values_left_out": 1}
    assert before["events"] == {"rows": 4 * EVENTS_EACH, "rejected": 4, "left_out": 0, "values_left_out": 0}
    add_later_datasets(made)
    kept, refused = {contract.kind: others(made, contract) for contract in NAMED}, refused_of_others(made)
    assert len(refused) == 3
    at_first = {contract.kind: artifact.peek(made.at(contract.kind)) for contract in NAMED}
    assert holding(made) == [
        "events/part-00000.parquet", "events/rejected.parquet", "exposures/part-00000.parquet",
        "samples/part-00000.parquet", "users/part-00000.parquet", "users/rejected.parquet",
    ]  # fmt: skip
    forget.forget(url, "shop", GONE)

    done = ingest.run(made)
    assert not done["skipped"], "its inputs are others"
    assert done["users"] == {"rows": 3, "rejected": 0, "values_left_out": 1, "forgotten": 2}
    left = {"rows": 3 * EVENTS_EACH, "rejected": 2, "left_out": 0, "values_left_out": 0, "forgotten": EVENTS_EACH + 1,
            "perhaps_forgotten": 1}  # fmt: skip  # a line of too many cells, which has no columns
    assert done["events"] == left
    assert done["taken_out"] == {"exposures": 2, "samples": 1}
    assert holding(made) == []
    for contract in NAMED:
        assert others(made, contract) == dataset.read(made.at(contract.kind), contract).to_pylist()
        assert others(made, contract) == kept[contract.kind], "everybody else's rows are what they were, in order"
        now, then = artifact.peek(made.at(contract.kind)), at_first[contract.kind]
        assert now is not None
        assert then is not None
        assert now.fingerprint != then.fingerprint, "a stage that looks whether it has finished runs again"
        artifact.verify(made.at(contract.kind), now)
    assert refused_of_others(made) == refused
    assert histories.load(made.root).user_ids == ["u0041", "u00420", "u0043"], "whom the towers learn from"

    again = ingest.run(made)
    assert again["skipped"]
    assert "taken_out" not in again
    forget.forget(url, "shop", "nobody of this shop")
    other = ingest.run(made)
    assert not other["skipped"], "who else was forgotten is another input"
    assert other["events"]["rows"] == 3 * EVENTS_EACH


def test_left_out_is_as_if_the_files_had_never_named_them(url: str, tmp_path: Path) -> None:
    with postgres.session(url) as connection:
        migrations.migrate(connection)
    forget.forget(url, "shop", GONE)
    with_them, without = recipe(tmp_path / "with"), recipe(tmp_path / "without", but=GONE)
    ingest.run(with_them)
    ingest.run(without)
    assert parts(with_them) == parts(without)


def test_one_call_takes_a_user_out_of_database_and_datasets(url: str, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    add_later_datasets(made)
    products = artifact.peek(made.at("products"))
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    taken = {"exposures": 2, "samples": 1, "events": EVENTS_EACH + 2, "users": 2}
    assert done["datasets"] == taken, "of users and events what was refused as well"
    assert holding(made) == []
    assert not list(made.root.glob(".*.tmp")) + list(made.root.glob(".*.old"))
    assert artifact.peek(made.at("products")) == products
    for contract in NAMED:
        manifest = dataset.read_manifest(made.at(contract.kind), contract)
        artifact.verify(made.at(contract.kind), manifest)
        assert manifest.inputs["taken_out"]
        assert manifest.facts["rows"] == dataset.read(made.at(contract.kind), contract).num_rows
    written = parts(made)
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert done["datasets"] == {}, "nobody is there any more"
    assert not ingest.run(made)["skipped"], "what forgetting wrote is not what ingest would have"
    assert parts(made) == written, "but for what it says of itself: the rows have the same bytes"
    assert ingest.run(made)["skipped"]


def test_while_a_job_writes_the_datasets_forgetting_says_which_have_the_user(url: str, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    with artifact.alone(made.root):
        done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert done["still_in"] == ["events", "users"]
    assert "is writing to" in done["because"]
    assert "jobs/pipeline.py" in done["remedy"]
    assert done["profiles"] == 0
    assert job.run(made, Namespace(action="forget", argument=GONE, client=False))["datasets"]
    assert holding(made) == []


@pytest.mark.parametrize("killed_at", [contract.kind for contract in forgotten.NAMING])
def test_who_is_killed_half_way_leaves_whole_datasets_and_is_continued(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    add_later_datasets(made)
    forget.forget(url, "shop", GONE)
    rewrite = dataset.rewrite

    def killed(target: Path, contract: Contract, **given: Any) -> None:
        if contract.kind == killed_at:
            raise KeyboardInterrupt
        rewrite(target, contract, **given)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "rewrite", killed)
        with pytest.raises(KeyboardInterrupt):
            forgotten.take_out(made, forgotten.read(made))
    names = [contract.kind for contract in forgotten.NAMING]
    assert forgotten.held_in(made, forgotten.read(made)) == (names[names.index(killed_at) :], {})
    for contract in NAMED:
        artifact.verify(made.at(contract.kind), dataset.read_manifest(made.at(contract.kind), contract))
    ingest.run(made)
    assert holding(made) == []


def test_a_dataset_of_an_older_version_loses_them_and_stays_of_that_version(url: str, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    old = Contract("samples", 1, pa.schema([USERS.schema.field("user_id"), ("rank", pa.int32())]), "")
    put(made, old, [{"user_id": name, "rank": rank} for rank, name in enumerate((GONE, "u0041"))])
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert done["datasets"]["samples"] == 1
    assert dataset.read(made.at("samples"), old).to_pylist() == [{"user_id": "u0041", "rank": 1}]


def test_copies_of_studies_lose_them_and_so_does_what_the_killed_left(url: str, tmp_path: Path) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    study = made.model_copy(update={"store": str(made.at("splits")), "name": "warm"})
    put(study, SAMPLES, [{"user_id": GONE, **REQUEST}])
    (study.root / "users").symlink_to(made.at("users"), target_is_directory=True)
    put(made, SAMPLES, [{"user_id": "u0041", **REQUEST}])
    for left in (".samples.1.tmp", ".samples.2.old"):
        shutil.copytree(study.at("samples"), made.root / left)
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert list(done["datasets"]) == ["splits/warm/samples", "events", "users"]
    assert (study.root / "users").is_symlink()
    assert holding(made) == []
    put(study, SAMPLES, [{"user_id": GONE, **REQUEST}])
    assert ingest.run(made)["taken_out"] == {"splits/warm/samples": 1}


def test_where_there_is_no_database_nobody_was_forgotten_and_none_is_made(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    done = ingest.run(made)
    assert "forgotten" not in done["users"]
    assert [path.name for path in Path(made.store).iterdir()] == ["shop"]
    manifest = dataset.read_manifest(made.at("users"), USERS)
    assert set(manifest.inputs) == {"products", "users", "events"}


def test_who_may_have_been_forgotten_does_not_come_back_while_an_upgrade_is_half_done(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    work = Path(made.store) / postgres.UPGRADING
    (work / "new-1").mkdir(parents=True)
    (work / postgres.READY).write_text('{"new": "new-1"}', encoding="utf-8")
    with pytest.raises(DatabaseError, match=r"an upgrade was killed .*`python jobs/database.py upgrade`"):
        ingest.run(made)
    assert not made.at("users").exists()


@pytest.mark.parametrize("how", ["ingest", "take_out"])
@pytest.mark.parametrize("now", ["there is no database", "the database has nobody"])
def test_a_dataset_without_somebody_is_not_made_again_where_no_database_says_who(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, now: str
) -> None:
    """The embedded one was moved away, the variable is not set in this shell, or names a new server."""
    made = recipe(tmp_path)
    ingest.run(made)
    forget.forget(url, "shop", GONE)
    if how == "ingest":
        ingest.run(made)
    else:
        forgotten.take_out(made, forgotten.read(made))
    before = parts(made)
    if now == "there is no database":
        monkeypatch.delenv(postgres.URL_VARIABLE)
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    with pytest.raises(DatabaseError, match=f"users was made without .*{now}.*REC_DATABASE_URL.*restore FILE"):
        ingest.run(made)
    assert parts(made) == before
    assert holding(made) == []


@pytest.mark.parametrize("damage", ["manifest", "rows", "another file"])
def test_what_cannot_be_read_is_named_beside_what_was_deleted(url: str, tmp_path: Path, damage: str) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    add_later_datasets(made)
    place = made.at("users") / (artifact.MANIFEST if damage == "manifest" else dataset.PART)
    if damage == "another file":
        pq.write_table(pa.table({"name": [GONE]}), place)
    else:
        place.write_bytes(b"no such thing")
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert {"events", "profiles", "live_events", "exposures"} < done.keys(), "what went out of the database"
    assert list(done["not_read"]) == ["users"]
    assert "damaged" in done["not_read"]["users"]
    assert done["because"] == done["not_read"]["users"]
    assert done["still_in"] == [], "the others come first"
    assert "not_read" in done["remedy"]
    shutil.rmtree(made.at("users"))
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert done["datasets"] == {}
    ingest.run(made)
    assert holding(made) == []


def test_a_database_that_fails_after_the_deletion_hides_no_count(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path)
    ingest.run(made)

    def broken(_config: Config) -> forget.Gone:
        raise DatabaseError("Postgres does not answer")

    monkeypatch.setattr(forgotten, "read", broken)
    done = job.run(made, Namespace(action="forget", argument=GONE, client=False))
    assert done["profiles"] == 0
    assert done["because"] == "Postgres does not answer"


def test_a_value_that_is_an_id_by_chance_is_counted_apart(url: str) -> None:
    forget.forget(url, "shop", "42")
    with postgres.session(url) as connection:
        others = forgotten.Filter(forget.gone(connection, "shop"))
    assert others.hides({"user_id": " 42", "price": "1"})
    assert not others.hides({"user_id": "43", "price": "42"}), "it says whose it is"
    assert others.hides({"who": ["42"], "what": "a"})
    assert others.hides({"product_id": "a", "price": "42"})
    assert not others.hides({"product_id": "a", "price": "420"})
    assert (others.rows, others.perhaps) == (1, 2)


def test_an_empty_database_stays_empty_and_one_that_does_not_answer_is_an_error(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path)
    ingest.run(made)
    with psycopg.connect(url) as connection:
        assert migrations.version(connection) == 0
    with postgres.session(url) as connection:
        migrations.migrate(connection)
    assert ingest.run(made)["skipped"], "a database in which nobody was forgotten changes nothing"
    monkeypatch.setenv(postgres.URL_VARIABLE, "postgresql://shop@127.0.0.1:1/shop")
    with pytest.raises(DatabaseError, match="does not answer"):
        ingest.run(made)


def test_a_database_of_the_store_is_asked_even_where_it_stands_still(new_store: Callable[[], Path]) -> None:
    made = load("demo", [f'store="{new_store()}"'])
    first = ingest.run(made)
    user = dataset.read(made.at("users"), USERS).column("user_id")[3].as_py()
    with postgres.session(postgres.url(made.store)) as connection:
        migrations.migrate(connection)
    forget.forget(postgres.url(made.store), made.name, user)
    assert postgres.stop_embedded(made.store)
    done = ingest.run(made)
    assert done["users"]["rows"] == first["users"]["rows"] - 1
    assert done["users"]["forgotten"] == 1
    assert user not in dataset.read(made.at("events"), INTERACTIONS).column("user_id").to_pylist()
