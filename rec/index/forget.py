"""Deletion of a user's data, for good: rows now, and no load brings them back. And of an anonymous client's data.

What stays of a user is a hash in `forgotten`, by which loads know whom to leave out, and of a client a hash and the
time, for as long as lists are kept. Ids are few enough to be tried, so the hash
is a pseudonym and says that somebody asked, nothing else. Ingest asks for them, too (rec/data/forgotten.py).
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import Connection, sql

from rec import postgres
from rec.errors import DatabaseError
from rec.index import migrations, roles, tables

WRITERS_WAIT = "LOCK TABLE live_events, exposures IN SHARE ROW EXCLUSIVE MODE"
"""What servers are writing is over then, and what they write next waits."""
Session = Callable[[str], AbstractContextManager[Connection[Any]]]
"""A connection to the database of a URL for one piece of work, in no transaction."""


class NotAllowed(DatabaseError):
    """The role of the connection may not delete the data of users."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many rows were deleted."""

    events: int
    profiles: int
    live_events: int
    exposures: int


@dataclass(frozen=True, slots=True)
class ForgottenClient:
    """How many rows were deleted."""

    live_events: int
    exposures: int


@dataclass(frozen=True, slots=True)
class Gone:
    """Users of a catalogue who were forgotten, known by their hashes alone; false where there are none."""

    catalogue: str
    hashes: frozenset[bytes] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.hashes)

    @property
    def content_hash(self) -> str:
        """SHA-256 of who they are, whatever the order."""
        return hashlib.sha256(b"".join(sorted(self.hashes))).hexdigest()

    def has(self, user_id: str) -> bool:
        """Whether the user is one of them."""
        return _hash(self.catalogue, user_id) in self.hashes

    def others(self, user_ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """bool[n]: false for each of them; who is not named is another one."""
        found = [user for user in pc.unique(user_ids).to_pylist() if user is not None and self.has(user)]
        return pc.invert(pc.is_in(user_ids, value_set=pa.array(found, pa.string())))


def forget(database_url: str, catalogue: str, user_id: str, session: Session = postgres.session) -> Forgotten:
    """Delete events, lists and profile of a user of `catalogue` in one transaction, and note never to load them.

    Raises NotAllowed where the database's role may not: a server is one that `roles.grant` has let forget.
    """
    with session(database_url) as connection:
        migrations.migrate(connection)
        _check_allowed(connection)
        # a load that has read `forgotten` is over, and the next one reads this row
        with tables.switching(connection):
            # what servers are writing is waited for and deleted below; of what they write later the triggers on the
            # tables take nothing, because they read this row
            connection.execute(WRITERS_WAIT)
            connection.execute(
                "INSERT INTO forgotten (catalogue, user_hash) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (catalogue, _hash(catalogue, user_id)),
            )
            delete = sql.SQL("DELETE FROM {} WHERE catalogue = %s AND user_id = %s")
            deleted = [
                connection.execute(delete.format(sql.Identifier(table)), (catalogue, user_id)).rowcount
                for table in ("events", "users", "live_events", "exposures")
            ]
    return Forgotten(*deleted)


def forget_client(
    database_url: str, catalogue: str, client_id: str, session: Session = postgres.session
) -> ForgottenClient:
    """Delete the live events of a client of `catalogue` and the lists it was shown, those that name a user as well.

    What is noted keeps out lists that it was shown before and that servers have not written yet; an event or a list
    that comes later is stored. Raises NotAllowed as `forget` does.
    """
    with session(database_url) as connection:
        migrations.migrate(connection)
        _check_allowed(connection)
        with connection.transaction():
            connection.execute(WRITERS_WAIT)
            connection.execute(
                "INSERT INTO forgotten_clients (catalogue, client_hash) VALUES (%s, %s)",
                (catalogue, _hash(catalogue, client_id)),
            )
            delete = sql.SQL("DELETE FROM {} WHERE catalogue = %s AND client_id = %s")
            deleted = [
                connection.execute(delete.format(sql.Identifier(table)), (catalogue, client_id)).rowcount
                for table in ("live_events", "exposures")
            ]
    return ForgottenClient(*deleted)


def _check_allowed(connection: Connection[Any]) -> None:
    needed = [(table, privilege) for table, privileges in roles.FORGETTING.items() for privilege in privileges]
    names, privileges = ([pair[at] for pair in needed] for at in (0, 1))
    with connection.transaction():
        missing = connection.execute(
            "SELECT table_name, privilege FROM unnest(%s::text[], %s::text[]) needed (table_name, privilege)"
            " WHERE NOT has_table_privilege(table_name, privilege)",
            (names, privileges),
        ).fetchall()
    if missing:
        table, privilege = missing[0]
        raise NotAllowed(
            f"this role may not delete a user's data (it has no {privilege} on {table}): let it with "
            "`python jobs/database.py grant ROLE --forget`, or run `python jobs/database.py forget USER`"
        )


def gone(connection: Connection[Any], catalogue: str) -> Gone:
    """All users of `catalogue` who were forgotten."""
    rows = connection.execute("SELECT user_hash FROM forgotten WHERE catalogue = %s", (catalogue,)).fetchall()
    return Gone(catalogue, frozenset(bytes(value) for (value,) in rows))


def without(connection: Connection[Any], catalogue: str, table: pa.Table) -> pa.Table:
    """The rows of `table` whose `user_id` was not forgotten, in their order."""
    found = gone(connection, catalogue)
    return table.filter(found.others(table["user_id"])) if found else table


def _hash(catalogue: str, name: str) -> bytes:
    """SHA-256 of the catalogue and the user or client: the same id in another catalogue is somebody else."""
    return hashlib.sha256(f"{catalogue}\0{name}".encode()).digest()
