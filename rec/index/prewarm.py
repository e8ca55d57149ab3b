"""Read what the searches of a bundle read into Postgres' memory, before shoppers wait for it.

After a restart of Postgres its buffers are empty, and a walk reads thousands of pages, one after the other, from disk
or the system's cache. Where the extension pg_prewarm is installed it reads indexes and tables as a whole. Elsewhere,
as with the embedded server, searches for some of the bundle's own vectors do: at 60,000 x 128, 25 of them read all that
100 others needed, in half a second. Vectors that were just loaded are in memory.
"""

import logging
import math
import time
from functools import partial
from typing import Any, Literal

import numpy as np
from psycopg import Connection

from rec.bundle import Bundle
from rec.errors import DatabaseError
from rec.index import tables
from rec.index.connections import Connections
from rec.index.search import BROADEST, Filters, VectorIndex

log = logging.getLogger(__name__)

LONGEST_S = 10.0
"""Nothing more is begun after that."""
BLOCKS = 8_192
"""Of 8 KiB, in one statement of pg_prewarm: its time is bounded as that of every other."""


def prewarm(connections: Connections, made: Bundle) -> Literal["pg_prewarm", "searches"] | None:
    """Read indexes and tables of a loaded bundle; how that was done, None where Postgres refused.

    It never raises DatabaseError: nothing depends on it but how soon the first searches are answered.
    """
    until = time.monotonic() + LONGEST_S
    try:
        if connections.run(_installed):
            _whole(connections, made, until)
            return "pg_prewarm"
    except DatabaseError as error:  # as where the role may read the table, and pg_prewarm asks for more
        log.info("pg_prewarm does not read bundle %s (%s): searches do", made.id, error)
    try:
        _searched(connections, made, until)
    except DatabaseError as error:
        log.warning("the index of bundle %s was not read ahead: %s", made.id, error)
        return None
    return "searches"


def _installed(connection: Connection[Any]) -> bool:
    row = connection.execute("SELECT to_regprocedure('pg_prewarm(regclass,text,text,bigint,bigint)')").fetchone()
    return row != (None,)


def _whole(connections: Connections, made: Bundle, until: float) -> None:
    for relation, blocks in connections.run(partial(_relations, bundle=made.id)):
        for first in range(0, blocks, BLOCKS):
            if time.monotonic() > until:
                return
            connections.run(partial(_read, relation=relation, first=first, last=min(first + BLOCKS, blocks) - 1))


def _relations(connection: Connection[Any], bundle: str) -> list[tuple[int, int]]:
    """Oid and number of blocks: the bundle's indexes and those of products, which are read at random, then both tables.

    Blocks are of the size that the server was built with.
    """
    table = tables.entry(connection, bundle).table.as_string(connection)
    return connection.execute(
        "SELECT c.oid::bigint, pg_relation_size(c.oid) / current_setting('block_size')::bigint FROM pg_class c"
        " LEFT JOIN pg_index i ON i.indexrelid = c.oid"
        " WHERE coalesce(i.indrelid, c.oid) IN (to_regclass(%s), to_regclass('products'))"
        " ORDER BY c.relkind = 'r', c.oid",
        (table,),
    ).fetchall()


def _read(connection: Connection[Any], relation: int, first: int, last: int) -> None:
    connection.execute("SELECT pg_prewarm(%s::oid::regclass, 'buffer', 'main', %s, %s)", (relation, first, last))


def _searched(connections: Connections, made: Bundle, until: float) -> None:
    """Search for vectors that lie apart in the bundle, as many as are answered with as many products as there are."""
    index, vectors = VectorIndex(connections, made.id, made.config.index), made.item_vectors()
    nothing = np.empty(0, np.int64)
    for row in np.linspace(0, len(vectors) - 1, math.ceil(len(vectors) / BROADEST), dtype=np.int64):
        if time.monotonic() > until:
            return
        index.search(vectors[row], BROADEST, exclude=nothing, filters=Filters())
