"""Connections of a server: pooled, set for vector search, and failing with a DatabaseError."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolTimeout

from rec import postgres
from rec.errors import DatabaseError
from rec.index import migrations

WAIT_S = 5.0
"""Longest wait for a free connection."""
STATEMENT_MS = 8_000
"""Longest time for one statement: nobody waits for the answer any longer, and others wait for the connection."""
ROUTE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""How soon a server that is gone without a word is noticed: seconds, the last one milliseconds."""


SETTINGS = {
    "hnsw.iterative_scan": "relaxed_order",
    "statement_timeout": str(STATEMENT_MS),
    "plan_cache_mode": "force_custom_plan",  # a plan made for other filters can be slower by far
}
"""What every connection runs with; what differs between bundles is set where it is searched."""


class Connections:
    """At most `size` connections that run with SETTINGS; each is checked to have taken them."""

    def __init__(self, database_url: str, *, size: int) -> None:
        self._refused: DatabaseError | None = None
        with postgres.session(database_url) as connection:  # what is wrong with the server is said at once
            self._prepare(connection)
            migrations.require(connection)
        self._pool: ConnectionPool[Connection[Any]] = ConnectionPool(
            database_url,
            min_size=1,
            max_size=size,
            configure=self._prepare,
            check=ConnectionPool.check_connection,
            kwargs=ROUTE,
            timeout=WAIT_S,
            open=True,
        )

    @contextmanager
    def use(self) -> Iterator[Connection[Any]]:
        """A connection in a transaction of its own. What Postgres refuses becomes a DatabaseError."""
        try:
            with self._pool.connection() as connection:
                yield connection
        except PoolTimeout:
            if self._refused is not None:
                raise self._refused from None
            raise DatabaseError(f"no connection to Postgres within {WAIT_S:g} s: it is down or overloaded") from None
        except psycopg.Error as error:
            raise DatabaseError(f"Postgres failed ({type(error).__name__}: {_first_line(error)})") from error

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _prepare(self, connection: Connection[Any]) -> None:
        # the pool tries again on its own and says no more than that time is up: `use` tells why
        self._refused = None
        try:
            _set(connection)
        except (DatabaseError, psycopg.ProgrammingError, psycopg.DataError) as error:
            self._refused = DatabaseError(
                f"this Postgres does not take the settings {SETTINGS} ({_first_line(error)}): use pgvector "
                f"{'.'.join(map(str, postgres.MIN_PGVECTOR))} or later"
            )
            raise self._refused from error


def _set(connection: Connection[Any]) -> None:
    """Set SETTINGS for as long as the connection lives."""
    register_vector(connection)
    connection.execute("SELECT '[1]'::vector <#> '[1]'::vector")  # loads pgvector, whose settings exist only then
    for name, value in SETTINGS.items():
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    # a setting that no extension claims is accepted in silence; pg_settings lists only the real ones
    found = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", (list(SETTINGS),))
    taken = dict(found.fetchall())
    if taken != SETTINGS:
        raise DatabaseError(f"it reports {taken}")
    connection.commit()


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else ""
