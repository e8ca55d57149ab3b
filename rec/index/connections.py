"""Connections of a server: pooled, set for vector search, and failing with a DatabaseError.

Nobody waits for ever, whatever becomes of Postgres. `statement_timeout` ends a statement that is slow, but it is the
server that counts: one that is frozen, or beyond a cut network, does not. So the client counts as well: it cancels a
statement that it waits for no longer, and closes a connection whose server says nothing to that.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection, capabilities, errors
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from rec import postgres, tracing
from rec.errors import DatabaseError
from rec.index import migrations

T = TypeVar("T")

log = logging.getLogger(__name__)

WAIT_S = 5.0
"""Longest wait for a free connection."""
SOON_S = 0.1
"""The same while the last wait was in vain: requests do without the database instead of queueing for it."""
IN_VAIN_S = 0.5
"""A shorter wait in vain says nothing of the database: who waited had no more time."""
RECONNECT_S = 2.0
"""How long the pool tries by itself to replace a connection. Its waits double, so after an outage it would find the
server back as late as the outage was long; having given up, it tries at once when somebody asks."""
STATEMENT_MS = 8_000
"""Longest time for one statement that no `within` bounds, or whose caller was killed and could not cancel it."""
SILENT_S = 10.0
"""Longest wait for a word of the server, which has to end a statement sooner."""
LAST_S = 0.1
"""The same for whoever has no time left: the end of a transaction that has begun costs no connection. And the longest
wait for a statement to be cancelled, and then for its end."""
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
    # the query's LIMIT ends a walk (rec/index/search.py): where pgvector's own bounds do, it gives the rest of what it
    # has seen, near or not. 40 times work_mem (kB) is room for one of 100,000 products; 40,000 take some 50 MiB
    "work_mem": "4096",
    "hnsw.max_scan_tuples": str(2**31 - 1),
    "hnsw.scan_mem_multiplier": "40",
    "statement_timeout": str(STATEMENT_MS),
    "client_connection_check_interval": "1000",  # a statement whose caller has closed the connection ends
    "plan_cache_mode": "force_custom_plan",  # a plan made for other filters can be slower by far
}
"""What every connection runs with; what differs between bundles is set where it is searched."""


_until: ContextVar[float] = ContextVar("until", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is asked of Connections meanwhile takes no longer than that, all together; it is a DatabaseError beyond.

    An outer limit that ends sooner holds. It goes with the context: `asyncio.to_thread` takes it along.
    """
    token = _until.set(min(_until.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until.reset(token)


class Silent(psycopg.OperationalError):
    """The server did not get done in time; the connection is closed unless its statement could be cancelled."""


class Watched(Connection[Any]):
    """A connection that is closed when its server is silent for SILENT_S, or when a statement that is cancelled beyond
    `within` does not end."""

    def wait(self, gen: PQGen[T], *given: Any, **named: Any) -> T:
        """What psycopg's does, which looks at `gen` ten times a second while nothing comes. Raises Silent."""
        longest = min(SILENT_S, max(_left(), LAST_S))
        try:
            return super().wait(self._bounded(gen, longest), *given, **named)
        except Silent:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # what is left of the statement would be taken for the next one's
            raise

    def _bounded(self, gen: PQGen[T], seconds: float) -> PQGen[T]:
        until, late = time.monotonic() + seconds, Silent(f"no word of the server within {seconds:.1f} s")
        cancelled = False
        try:
            state = next(gen)
            while True:
                ready = yield state
                if not ready and time.monotonic() > until:
                    if cancelled or seconds >= SILENT_S or not self._cancelled():
                        raise late
                    cancelled, until = True, time.monotonic() + LAST_S
                state = gen.send(ready)
        except StopIteration as done:
            found: T = done.value
            return found
        except errors.QueryCanceled:
            if cancelled:
                raise late from None
            raise

    def _cancelled(self) -> bool:
        """Whether the server took it that the statement is to end: a healthy one does, and the connection lives on."""
        if not capabilities.has_cancel_safe():  # libpq before 17 would wait for that without a limit
            return False
        try:
            self.cancel_safe(timeout=LAST_S)
        except psycopg.Error:
            return False
        return True


@contextmanager
def watched(database_url: str) -> Iterator[Connection[Any]]:
    """`postgres.session` for a server: nothing in it takes longer than `within`, and no statement than STATEMENT_MS."""
    left = _left()
    if left <= 0:
        raise _no_time()
    route = {**ROUTE, "connect_timeout": math.ceil(min(ROUTE["connect_timeout"], left))}
    with _refusals(), postgres.connect(database_url, kind=Watched, route=route) as connection:
        connection.execute("SELECT set_config('statement_timeout', %s, false)", (str(STATEMENT_MS),))
        connection.commit()
        yield connection


def _left() -> float:
    return _until.get() - time.monotonic()


def _no_time() -> DatabaseError:
    return DatabaseError("no time was left to ask Postgres")


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise DatabaseError(f"Postgres failed ({type(error).__name__}: {_first_line(error)})") from error


class Connections:
    """At most `size` connections that run with SETTINGS; each is checked to have taken them."""

    def __init__(self, database_url: str, *, size: int) -> None:
        self._refused: DatabaseError | None = None
        self._down = False
        self._tuned: WeakKeyDictionary[Connection[Any], dict[str, str]] = WeakKeyDictionary()
        with watched(database_url) as connection:  # what is wrong with the server is said at once
            self._prepare(connection)
            migrations.require(connection)
        self._pool: ConnectionPool[Watched] = ConnectionPool(
            database_url,
            connection_class=Watched,
            min_size=1,
            max_size=size,
            configure=self._prepare,
            kwargs={**ROUTE, "autocommit": True},
            timeout=WAIT_S,
            reconnect_timeout=RECONNECT_S,
            open=True,
        )

    def run(self, work: Callable[[Connection[Any]], T]) -> T:
        """What `work` returns, given a connection on which every statement is a transaction of its own.

        It is called once more where the connection turns out to be gone, as after a restart of the server: it must be
        safe to repeat. Asking each time whether the server is there would cost as much as many a statement. What
        Postgres refuses becomes a DatabaseError.
        """
        with _traced():
            with self._connection() as connection:
                try:
                    return work(connection)
                except psycopg.OperationalError as error:
                    if not connection.closed or isinstance(error, Silent):
                        raise
            self._pool.check()  # the others went the same way
            with self._connection() as connection:
                return work(connection)

    @contextmanager
    def use(self) -> Iterator[Connection[Any]]:
        """A connection that has just answered, in a transaction. What Postgres refuses becomes a DatabaseError."""
        with _traced(), self._answering() as connection:
            connection.autocommit = False
            try:
                with connection:
                    yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = True

    def tune(self, connection: Connection[Any], name: str, value: str) -> None:
        """Have `connection`, in no transaction, run with the setting; it keeps it until somebody tunes it again."""
        tuned = self._tuned.setdefault(connection, {})
        if tuned.get(name) != value:
            tuned.pop(name, None)
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
            tuned[name] = value

    @contextmanager
    def _connection(self) -> Iterator[Watched]:
        left = _left()
        if left <= 0:
            raise _no_time()
        longest = min(SOON_S if self._down else WAIT_S, left)
        try:
            with self._pool.connection(timeout=longest) as connection:
                self._down = False
                yield connection
        except PoolTimeout:
            self._down = self._down or longest >= IN_VAIN_S
            if self._refused is not None:
                raise self._refused from None
            raise DatabaseError(f"no connection to Postgres within {longest:.2g} s: it is down or overloaded") from None

    @contextmanager
    def _answering(self) -> Iterator[Watched]:
        with self._connection() as connection:
            try:
                self._pool.check_connection(connection)
            except Silent:
                raise
            except psycopg.OperationalError:
                log.info("a connection to Postgres is gone, and replaced")
            if not connection.closed:
                yield connection
                return
        self._pool.check()  # the others went the same way
        with self._connection() as connection:
            yield connection

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


@contextmanager
def _traced() -> Iterator[None]:
    with _refusals(), tracing.span("postgres", kind=tracing.CLIENT, told={"db.system.name": "postgresql"}):
        yield


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


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else ""
