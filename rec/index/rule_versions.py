"""Versions of a catalogue's rules. Rows come and may be retracted; none is removed.

The rules in force are those of the newest version that stands. No rules are a version with an empty source.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from rec import postgres
from rec.errors import DatabaseError
from rec.index import migrations
from rec.index.connections import Connections


@dataclass(frozen=True, slots=True)
class Version:
    """Rules as they were applied."""

    number: int
    source: str
    """TOML; empty where they were cleared."""
    applied_at: datetime


def apply(database_url: str, catalogue: str, source: str) -> Version:
    """Put the rules `source` in force, which the caller has checked; an empty one takes all rules away."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with connection.transaction():
            row = connection.execute(
                "INSERT INTO rules (catalogue, source) VALUES (%s, %s) RETURNING number, source, applied_at",
                (catalogue, source),
            ).fetchone()
    assert row is not None
    return Version(*row)


def revert(database_url: str, catalogue: str) -> Version | None:
    """Put the version before the one in force in force again; returns it, None where that leaves no version.

    Raises DatabaseError when there is none to retract.
    """
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with connection.transaction():
            done = connection.execute(
                "UPDATE rules SET retracted_at = now() WHERE number ="
                " (SELECT max(number) FROM rules WHERE catalogue = %s AND retracted_at IS NULL) RETURNING number",
                (catalogue,),
            ).fetchone()
            if done is None:
                raise DatabaseError(
                    f"catalogue {catalogue!r} has no rules to revert: `python jobs/rules.py show` shows what there is"
                )
            found = _standing(connection, catalogue, 1)
    return found[0] if found else None


def standing(database_url: str, catalogue: str, limit: int) -> list[Version]:
    """The newest `limit` versions that stand, the one in force first."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        return _standing(connection, catalogue, limit)


def in_force(connections: Connections, catalogue: str) -> Version | None:
    """The version in force, for a server, which makes no tables; None where nothing was ever applied."""
    with connections.use() as connection:
        found = _standing(connection, catalogue, 1)
    return found[0] if found else None


def _standing(connection: Connection[Any], catalogue: str, limit: int) -> list[Version]:
    rows = connection.execute(
        "SELECT number, source, applied_at FROM rules WHERE catalogue = %s AND retracted_at IS NULL"
        " ORDER BY number DESC LIMIT %s",
        (catalogue, limit),
    ).fetchall()
    return [Version(*row) for row in rows]
