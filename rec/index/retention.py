"""How long the database keeps what servers wrote of shoppers: live events, the lists that were shown, and who deleted
them."""

from datetime import timedelta
from typing import Any

from psycopg import Connection, sql

RETENTION = timedelta(days=90)
"""How long a row is kept."""
AT_ONCE = 10_000
"""Rows that one transaction of `expire` deletes at most."""
_KEPT_SINCE = {"live_events": "received_at", "exposures": "served_at", "forgotten_clients": "forgotten_at"}
"""Table, and the column that says how old a row is."""


def expire(connection: Connection[Any]) -> dict[str, int]:
    """Delete the rows of every catalogue that are of RETENTION ago; returns how many, by table.

    AT_ONCE at a time, each time in a transaction of its own, without waiting for whoever has a row just then.
    """
    return {table: _expire(connection, table, column) for table, column in _KEPT_SINCE.items()}


def _expire(connection: Connection[Any], table: str, column: str) -> int:
    delete = sql.SQL(
        "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {table}"
        " WHERE {column} < now() - %s ORDER BY {column} LIMIT %s FOR UPDATE SKIP LOCKED))"
    ).format(table=sql.Identifier(table), column=sql.Identifier(column))
    total, deleted = 0, AT_ONCE
    while deleted == AT_ONCE:
        with connection.transaction():
            deleted = connection.execute(delete, (RETENTION, AT_ONCE)).rowcount
        total += deleted
    return total
