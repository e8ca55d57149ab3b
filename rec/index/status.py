"""What a person asks first of a database: its versions, its size, and which bundle answers."""

from typing import Any

from rec import postgres
from rec.index import migrations, promote


def status(database_url: str) -> dict[str, Any]:
    """Versions of Postgres, pgvector and the tables, bytes of the database, and the active bundle, if there is one."""
    with postgres.session(database_url) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version'), extversion, pg_database_size(current_database())"
            " FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        assert row is not None, "a session has pgvector"
        version = migrations.version(connection)
        active = promote.found_active(connection) if version else None
    return {
        "postgres": row[0],
        "pgvector": row[1],
        "bytes": row[2],
        "tables": version,
        "tables_of_program": migrations.LATEST,
        "active": active,
    }
