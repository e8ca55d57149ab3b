"""The vector table of a bundle: rows by binary COPY, the HNSW index, and the entry that says that both are there.

All of it is part of the caller's transaction. COPY's bytes are put together by numpy for many rows at once: a row at a
time, Python is slower than the server that reads it.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Connection, sql

from rec import log as progress
from rec.config import Index
from rec.index import binary_copy, roles, tables

log = logging.getLogger(__name__)

ROWS_PER_BLOCK = 2_048
"""Rows of one write to COPY."""
_BYTES_PER_LINK = 16  # an in-memory HNSW neighbour; 2m on the lowest layer, about m above
_BYTES_PER_ELEMENT = 200  # element header and allocator overhead


def fill(
    connection: Connection[Any], bundle: str, ids: Sequence[str], vectors: NDArray[np.float32], index: Index
) -> None:
    """Create the table of `bundle` and copy the product ids and vectors float32[N, d] of item rows into it."""
    create(connection, tables.items_table(bundle), vectors.shape[1], index)
    append(connection, bundle, 0, ids, vectors, index.kind)


def append(
    connection: Connection[Any], owner: str, first: int, ids: Sequence[str], vectors: NDArray[np.float32], kind: str
) -> None:
    """Copy product ids and vectors float32[n, d] into the table of the bundle `owner`, as the rows from `first` on."""
    table = tables.items_table(owner)
    statement = sql.SQL("COPY {} (row, product_id, embedding) FROM STDIN (FORMAT BINARY)").format(table)
    with (
        progress.bar(total=len(ids), what="vectors to Postgres") as bar,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        copy.write(binary_copy.HEADER)
        for start in range(0, len(ids), ROWS_PER_BLOCK):
            part = slice(start, start + ROWS_PER_BLOCK)
            copy.write(_tuples(first + start, ids[part], vectors[part], kind))
            bar.update(len(ids[part]))
        copy.write(binary_copy.TRAILER)


def create(connection: Connection[Any], table: sql.Identifier, width: int, index: Index) -> None:
    """Create a table of vectors of `width` numbers, without rows and without indexes."""
    kind = sql.SQL("{}({})").format(sql.SQL(index.kind), sql.Literal(width))
    connection.execute(
        sql.SQL("CREATE TABLE {} (row integer NOT NULL, product_id text NOT NULL, embedding {} NOT NULL)").format(
            table, kind
        )
    )


def _tuples(first: int, ids: Sequence[str], vectors: NDArray[np.float32], kind: str) -> bytes:
    """The rows from `first` on as COPY's binary format has them: a count of fields, then length and bytes of each.

    The numbers are in pgvector's own format: how many, two bytes that are 0, and they themselves.
    """
    encoded = [name.encode() for name in ids]
    names, lengths, width = np.array(encoded), np.array([len(name) for name in encoded]), vectors.shape[1]
    numbers = _rounded(vectors) if kind == "halfvec" else vectors
    fields = [
        *(("fields", ">i2"), ("row_length", ">i4"), ("row", ">i4"), ("id_length", ">i4"), ("id", names.dtype)),
        *(("length", ">i4"), ("count", ">i2"), ("zero", ">i2"), ("numbers", numbers.dtype.newbyteorder(">"), (width,))),
    ]
    row = np.zeros(len(ids), fields)
    row["fields"], row["row_length"], row["row"] = 3, 4, np.arange(first, first + len(ids))
    row["id_length"], row["id"] = lengths, names
    row["length"], row["count"], row["numbers"] = 4 + numbers.itemsize * width, width, numbers
    if (lengths == names.itemsize).all():
        return row.tobytes()
    assert row.dtype.fields is not None, "it has names"
    begin = row.dtype.fields["id"][1]
    kept = np.ones((len(ids), row.itemsize), bool)  # all but what pads shorter ids
    kept[:, begin : begin + names.itemsize] = np.arange(names.itemsize) < lengths[:, None]
    return row.view(np.uint8).reshape(kept.shape)[kept].tobytes()


def _rounded(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """The nearest float16; torch has the processor do it, numpy does it number by number."""
    import torch  # here: what only asks whether a shop runs needs no torch

    return torch.from_numpy(np.ascontiguousarray(vectors)).half().numpy()


def build(connection: Connection[Any], bundle: str, items: int, width: int, index: Index) -> None:
    """CREATE INDEX with parallel workers; alone where the server's shared memory is too small for them."""
    log.info("building the HNSW index of %d vectors", items)
    statement = sql.SQL(
        "CREATE INDEX {name} ON {table} USING hnsw (embedding {operators}) WITH (m = {m}, ef_construction = {ef})"
    ).format(
        name=sql.Identifier(f"items_{bundle}_hnsw"),
        table=tables.items_table(bundle),
        operators=sql.SQL(f"{index.kind}_ip_ops"),
        m=sql.Literal(index.m),
        ef=sql.Literal(index.ef_construction),
    )
    connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", (f"{build_mb(items, width, index)}MB",))
    for number in dict.fromkeys((workers(connection, index), 0)):
        connection.execute("SELECT set_config('max_parallel_maintenance_workers', %s, true)", (str(number),))
        try:
            with connection.transaction():
                connection.execute(statement)
            return
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            # a full /dev/shm; where it is the disk, the second build would end as the first one did
            shared = isinstance(error, psycopg.errors.OutOfMemory) or error.diag.source_file == "dsm_impl.c"
            if number == 0 or not shared:
                raise
            log.warning("no parallel index build (%s): building without workers", str(error).splitlines()[0])


def workers(connection: Connection[Any], index: Index) -> int:
    """Workers of CREATE INDEX beside its leader: where nothing is said as many as the server, whose processors they
    take, allows."""
    if index.build_workers is not None:
        return index.build_workers
    row = connection.execute("SHOW max_parallel_maintenance_workers").fetchone()
    assert row is not None
    return int(row[0])


def build_mb(items: int, width: int, index: Index) -> int:
    """MiB that CREATE INDEX may take: half as much again as its graph is estimated at, within `build_memory_mb`."""
    return min(index.build_memory_mb, max(64, math.ceil(1.5 * graph_bytes(items, width, index) / 2**20)))


def graph_bytes(items: int, width: int, index: Index) -> int:
    """Estimated memory of the HNSW graph while it is built."""
    vector = width * (2 if index.kind == "halfvec" else 4)
    return items * (vector + 3 * index.m * _BYTES_PER_LINK + _BYTES_PER_ELEMENT)


def finish(connection: Connection[Any], bundle: str) -> None:
    """The other indexes, statistics and rights of a table that was filled."""
    complete(connection, bundle)
    roles.pass_on(connection)


def complete(connection: Connection[Any], bundle: str) -> None:
    """`finish` without the rights, which touch other tables: whoever has more to do than to commit gives them later."""
    table = tables.items_table(bundle)
    for column in ("product_id", "row"):
        connection.execute(sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(table, sql.Identifier(column)))
    connection.execute(sql.SQL("ANALYZE {}").format(table))


def enter(
    connection: Connection[Any],
    bundle: str,
    catalogue: str,
    items: int,
    width: int,
    kind: str,
    *,
    owner: str | None = None,
    root: str | None = None,
) -> None:
    """The entry in `bundles`, by which searches find the table, that of the bundle `owner`; `root` is the one that was
    trained. Without them both are the bundle itself. It is searched as those that share the table."""
    connection.execute(
        "INSERT INTO bundles (id, catalogue, items, width, kind, vectors, root, ef_search) SELECT"
        " %(bundle)s, %(catalogue)s, %(items)s, %(width)s, %(kind)s, %(owner)s, %(root)s, max(ef_search)"
        " FROM bundles WHERE vectors = %(owner)s",
        {
            "bundle": bundle,
            "catalogue": catalogue,
            "items": items,
            "width": width,
            "kind": kind,
            "owner": owner or bundle,
            "root": root or bundle,
        },
    )
