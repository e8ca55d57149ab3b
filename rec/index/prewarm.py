"""Read what the searches of a bundle read into Postgres' memory, before shoppers wait for it.

After a restart of Postgres its buffers are empty, and a walk reads thousands of pages, one after the other, from disk
or the system's cache. Where the extension pg_prewarm is installed it reads indexes and tables as a whole. Elsewhere,
as with the embedded server, searches for some of the bundle's own vectors do: at 60,000 x 128, 25 of them read all that
100 others needed, in half a second. Vectors that were just loaded are in memory: a switch reads nothing ahead.
"""

import logging
import math
import time
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection

from rec.errors import DatabaseError
from rec.index import tables
from rec.index.connections import Connections
from rec.index.search import BROADEST, Filters, VectorIndex

log = logging.getLogger(__name__)

LONGEST_S = 10.0
"""Nothing more is begun after that."""
BLOCKS = 8_192
"""Of 8 KiB, in one statement of pg_prewarm: its time is bounded as that of every other."""


def prewarm(
    connections: Connections, bundle: str, index: VectorIndex, vectors: NDArray[np.float32]
) -> Literal["pg_prewarm", "searches"] | None:
    """Read tables and indexes of a loaded bundle with the vectors float32[N, d]; how, None where that failed.

    It never raises: nothing depends on it but how soon the first searches are answered.
    """
    until = time.monotonic() + LONGEST_S
    try:
        if _whole(connections, bundle, until):
            return "pg_prewarm"
        _searched(index, vectors, until)
    except Exception as error:
        log.warning("the index of bundle %s was not read ahead (%s: %s)", bundle, type(error).__name__, error)
        return None
    return "searches"


def _installed(connection: Connection[Any]) -> bool:
    row = connection.execute("SELECT to_regprocedure('pg_prewarm(regclass,text,text,bigint,bigint)')").fetchone()
    return row != (None,)


def _whole(connections: Connections, bundle: str, until: float) -> bool:
    """Whether pg_prewarm read them, as far as there was time; it may ask for more than to read tables."""
    try:
        if not connections.run(_installed):
            return False
        for relation, blocks in connections.run(partial(_relations, bundle=bundle)):
            for first in range(0, blocks, BLOCKS):
                if time.monotonic() > until:
                    return True
                connections.run(partial(_read, relation=relation, first=first, last=min(first + BLOCKS, blocks) - 1))
    except DatabaseError as error:
        log.info("pg_prewarm does not read bundle %s (%s): searches do", bundle, error)
        return False
    return True


def _relations(connection: Connection[Any], bundle: str) -> list[tuple[int, int]]:
    """Oid and number of blocks: the tables of the bundle and of products, then the indexes of both.

    Where memory is too small for all, what is read last stays, and a walk reads most of all from the index. Blocks are
    of the size that the server was built with. A relation that is dropped meanwhile has none.
    """
    table = tables.entry(connection, bundle).table.as_string(connection)
    return connection.execute(
        "SELECT c.oid::bigint, coalesce(pg_relation_size(c.oid), 0) / current_setting('block_size')::bigint"
        " FROM pg_class c"
        " LEFT JOIN pg_index i ON i.indexrelid = c.oid"
        " WHERE coalesce(i.indrelid, c.oid) IN (to_regclass(%s), to_regclass('products'))"
        " ORDER BY c.relkind <> 'r', c.oid",
        (table,),
    ).fetchall()


def _read(connection: Connection[Any], relation: int, first: int, last: int) -> None:
    connection.execute("SELECT pg_prewarm(%s::oid::regclass, 'buffer', 'main', %s, %s)", (relation, first, last))


def _searched(index: VectorIndex, vectors: NDArray[np.float32], until: float) -> None:
    """Search for vectors that lie apart in the bundle, as many as are answered with as many products as there are."""
    nothing = np.empty(0, np.int64)
    for row in np.linspace(0, len(vectors) - 1, math.ceil(len(vectors) / BROADEST), dtype=np.int64):
        if time.monotonic() > until:
            return
        index.search(vectors[row], BROADEST, exclude=nothing, filters=Filters())
