"""The tables of the serving database, who may change them when, and the names made from bundle ids.

products, users, events   one row per thing, keyed by catalogue (the recipe's name), so that recipes can share a
                          database; price and stock change here and never touch a vector table
live_events               what servers were told since the last ingest (live_events.py), keyed by catalogue and event id
exposures                 the lists that servers have shown (exposures.py)
bundles                   the bundles whose vector table is complete
promotions                every promotion of these, newest last; a rolled-back one carries `retracted_at`
active_bundle             one row: the bundle that answers
experiments               bundles tried beside the active one; an ended one carries `stopped_at`
rules                     every version of a catalogue's rules, newest last; a reverted one carries `retracted_at`
loads                     content hash of what the first three were loaded from, by catalogue
forgotten                 hashes of users whose data was deleted and does not come back
forgotten_clients         hashes of anonymous clients whose data was deleted, and when
schema_version            the migrations that have run (migrations.py), which say what columns there are
items_<bundle id>         append-only vectors of a bundle, and after its rows those of bundles that extend it
                          (`bundles.vectors`): row, product_id, embedding
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pgvector import HalfVector, Vector
from psycopg import Connection, errors, sql

from rec import bundle as bundles
from rec.errors import DatabaseError

SWITCH_WAIT_MS = 5_000
"""How long a switch waits for another one, and for whoever changes stock."""

# advisory locks
_LOADING = 7_203_119
_SWITCHING = 7_203_120


@contextmanager
def loading(connection: Connection[Any]) -> Iterator[None]:
    """A transaction of many minutes that adds vectors: one at a time, and nobody else waits for it."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOADING,))
        yield


class HeldUp(DatabaseError):
    """Others had locks for longer than a switch waits."""


@contextmanager
def switching(connection: Connection[Any], wait_ms: int | None = None) -> Iterator[None]:
    """A short transaction that changes data and the active bundle: one at a time.

    Raises HeldUp when another one, or a change of stock, holds it up for more than `wait_ms`, by
    default SWITCH_WAIT_MS.
    """
    wait = SWITCH_WAIT_MS if wait_ms is None else wait_ms
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{wait}ms",))
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SWITCHING,))
            yield
    except errors.LockNotAvailable:
        raise HeldUp(
            f"others changed the database for more than {wait / 1_000:g} s, so nothing was done: try again"
        ) from None


def items_table(bundle: str) -> sql.Identifier:
    """The quoted name of a bundle's vector table. Raises DatabaseError for what is no bundle id."""
    if not bundles.BUNDLE_ID.fullmatch(bundle):
        raise DatabaseError(f"{bundle!r} is no bundle id (12 hexadecimal digits): see `python jobs/bundles.py list`")
    return sql.Identifier(f"items_{bundle}")


@dataclass(frozen=True, slots=True)
class Entry:
    """What `bundles` says of a bundle."""

    owner: str
    """The bundle in whose table its vectors lie, and behind them perhaps those of others."""
    catalogue: str
    items: int
    width: int
    kind: str
    ef_search: int | None
    """What the bundle was found to need; None: what its configuration says."""

    @property
    def table(self) -> sql.Identifier:
        """The quoted name of that table."""
        return items_table(self.owner)


def find(connection: Connection[Any], bundle: str) -> Entry | None:
    """The entry of a bundle; None where it is not loaded."""
    items_table(bundle)  # raises for what is no id, before anything is asked
    query = "SELECT vectors, catalogue, items, width, kind, ef_search FROM bundles WHERE id = %s"
    row = connection.execute(query, (bundle,)).fetchone()
    return None if row is None else Entry(*row)


def entry(connection: Connection[Any], bundle: str) -> Entry:
    """The entry of a loaded bundle. Raises DatabaseError where there is none."""
    found = find(connection, bundle)
    if found is None:
        raise DatabaseError(f"bundle {bundle} is not in the database: run `python jobs/publish.py` to load it")
    return found


def embedding(kind: str) -> type[HalfVector] | type[Vector]:
    """The value class of a column of kind `halfvec` or `vector`."""
    return HalfVector if kind == "halfvec" else Vector
