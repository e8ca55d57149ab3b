"""What is asked first of a database: whether there is one, its versions, its size, and which bundle answers."""

from pathlib import Path
from typing import Any

from rec import postgres
from rec.index import migrations, promote


def find(store: str | Path) -> str | None:
    """URL of the database of `store`, for who has something to do without one: None where there is none.

    Raises DatabaseError where a killed upgrade has left one that is in no place.
    """
    if postgres.given() is None and postgres.embedded_major(store) is None and not postgres.half_upgraded(store):
        return None
    return postgres.url(store, create=False)


def status(database_url: str) -> dict[str, Any]:
    """Versions of Postgres, pgvector and the tables, bytes of the database, whether it takes no changes, and the active
    bundle, if there is one."""
    with postgres.session(database_url) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), extversion, pg_database_size(current_database()),"
            " current_setting('transaction_read_only')"
            " FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        assert row is not None, "a session has pgvector"
        version = migrations.version(connection)
        active = promote.found_active(connection) if version else None
    return {
        "postgres": row[0],
        "pgvector": row[1],
        "bytes": row[2],
        "read_only": row[3] == "on",
        "tables": version,
        "tables_of_program": migrations.LATEST,
        "active": active,
    }
