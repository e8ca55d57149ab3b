"""The tables of the serving database and the names made from bundle ids.

products, users, events   one row per thing, keyed by catalogue (the recipe's name), so that recipes can share a
                          database; price and stock change here and never touch a vector table
bundles                   the bundles whose vector table is complete
promotions                every promotion of these, newest last; a rolled-back one carries `retracted_at`
active_bundle             one row: the bundle that answers
items_<bundle id>         append-only vectors of one bundle: row, product_id, embedding
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgvector import HalfVector, Vector
from psycopg import Connection, errors, sql

from rec.errors import DatabaseError

BUNDLE_ID = re.compile(r"^[0-9a-f]{12}$")

SWITCH_WAIT_MS = 5_000
"""How long a switch waits for another one, and for whoever changes stock."""

# advisory locks
_CREATING = 7_203_118
_LOADING = 7_203_119
_SWITCHING = 7_203_120

_TABLES = """
CREATE TABLE IF NOT EXISTS products (
    catalogue text NOT NULL,
    product_id text NOT NULL,
    title text NOT NULL,
    price real,
    currency text,
    brand text,
    category text[] NOT NULL,
    available boolean NOT NULL,
    PRIMARY KEY (catalogue, product_id)
);
CREATE INDEX IF NOT EXISTS products_category ON products USING gin (category);
CREATE INDEX IF NOT EXISTS products_price ON products (catalogue, price);
CREATE TABLE IF NOT EXISTS users (
    catalogue text NOT NULL,
    user_id text NOT NULL,
    profile jsonb NOT NULL,
    PRIMARY KEY (catalogue, user_id)
);
CREATE TABLE IF NOT EXISTS events (
    catalogue text NOT NULL,
    user_id text NOT NULL,
    position integer NOT NULL,
    product_id text NOT NULL,
    event text NOT NULL,
    at timestamptz NOT NULL,
    size text,
    fit text,
    PRIMARY KEY (catalogue, user_id, position)
);
CREATE TABLE IF NOT EXISTS loads (
    catalogue text NOT NULL,
    dataset text NOT NULL,
    content_hash text NOT NULL,
    PRIMARY KEY (catalogue, dataset)
);
CREATE TABLE IF NOT EXISTS bundles (
    id text PRIMARY KEY,
    catalogue text NOT NULL,
    items integer NOT NULL,
    width integer NOT NULL,
    kind text NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS promotions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bundle text NOT NULL REFERENCES bundles,
    ndcg10 double precision,
    floor double precision NOT NULL,
    floor_met boolean NOT NULL,
    promoted_at timestamptz NOT NULL DEFAULT now(),
    retracted_at timestamptz
);
CREATE TABLE IF NOT EXISTS active_bundle (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    bundle text NOT NULL REFERENCES bundles
);
"""

_HAS_SIZES = "SELECT 1 FROM pg_attribute WHERE attrelid = 'events'::regclass AND attname = 'fit' AND NOT attisdropped"


def create(connection: Connection[Any]) -> None:
    """Create the tables where they are missing, in a transaction of its own."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATING,))
        # asked first: CREATE INDEX IF NOT EXISTS waits for whoever writes to the table, and lets nobody write meanwhile
        if connection.execute("SELECT to_regclass('active_bundle')").fetchone() == (None,):
            connection.execute(_TABLES)
        if connection.execute(_HAS_SIZES).fetchone() is None:  # a database from before events had sizes
            connection.execute("ALTER TABLE events ADD COLUMN size text, ADD COLUMN fit text")


@contextmanager
def loading(connection: Connection[Any]) -> Iterator[None]:
    """A transaction of many minutes that adds vectors: one at a time, and nobody else waits for it."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOADING,))
        yield


@contextmanager
def switching(connection: Connection[Any]) -> Iterator[None]:
    """A short transaction that changes data and the active bundle: one at a time.

    Raises DatabaseError when another one, or a change of stock, holds it up for more than SWITCH_WAIT_MS.
    """
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{SWITCH_WAIT_MS}ms",))
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SWITCHING,))
            yield
    except errors.LockNotAvailable:
        raise DatabaseError(
            f"others changed the database for more than {SWITCH_WAIT_MS / 1_000:g} s, so nothing was done: try again"
        ) from None


def items_table(bundle: str) -> sql.Identifier:
    """The quoted name of a bundle's vector table. Raises DatabaseError for what is no bundle id."""
    if not BUNDLE_ID.fullmatch(bundle):
        raise DatabaseError(f"{bundle!r} is no bundle id (12 hexadecimal digits): see `python jobs/publish.py --list`")
    return sql.Identifier(f"items_{bundle}")


def embedding(kind: str) -> type[HalfVector] | type[Vector]:
    """The value class of a column of kind `halfvec` or `vector`."""
    return HalfVector if kind == "halfvec" else Vector
