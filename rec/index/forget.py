"""Deletion of a user's data, for good: rows now, and no load brings them back.

What stays is a hash in `forgotten`, by which loads know whom to leave out. Ids are few enough to be tried, so the hash
is a pseudonym and says that somebody asked, nothing else.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import Connection

from rec import postgres
from rec.index import migrations, tables


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many rows were deleted."""

    events: int
    profiles: int


def forget(database_url: str, catalogue: str, user_id: str) -> Forgotten:
    """Delete the events and the profile of a user of `catalogue` in one transaction, and note never to load them."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with tables.switching(connection):  # a load that has read `forgotten` is over, and the next one reads this row
            connection.execute(
                "INSERT INTO forgotten (catalogue, user_hash) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                (catalogue, _hash(catalogue, user_id)),
            )
            where = "WHERE catalogue = %s AND user_id = %s", (catalogue, user_id)
            events = connection.execute(f"DELETE FROM events {where[0]}", where[1]).rowcount
            profiles = connection.execute(f"DELETE FROM users {where[0]}", where[1]).rowcount
    return Forgotten(events, profiles)


def without(connection: Connection[Any], catalogue: str, table: pa.Table) -> pa.Table:
    """The rows of `table` whose `user_id` was not forgotten, in their order."""
    rows = connection.execute("SELECT user_hash FROM forgotten WHERE catalogue = %s", (catalogue,)).fetchall()
    if not rows:
        return table
    hashes = {bytes(value) for (value,) in rows}
    users = [user for user in pc.unique(table["user_id"]).to_pylist() if _hash(catalogue, user) in hashes]
    return table.filter(pc.invert(pc.is_in(table["user_id"], value_set=pa.array(users, pa.string()))))


def _hash(catalogue: str, user_id: str) -> bytes:
    """SHA-256 of the catalogue and the user: the same id in another catalogue is somebody else."""
    return hashlib.sha256(f"{catalogue}\0{user_id}".encode()).digest()
