"""Load a bundle's vectors, and its recipe's products, users and events.

`vectors` is one transaction that may take minutes and that nobody sees or waits for: killed at any moment it leaves
nothing, and the next run starts over. `catalogue` runs in the transaction that makes the bundle the active one, so
that products and bundle change together. Both are binary COPY, the vectors into a table without indexes.
Measured with the embedded server on 2 cores: 105,542 x 128 halfvec, m = 16, ef_construction = 96: 13 s, index included.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow.parquet as pq
from pgvector.psycopg import register_vector
from psycopg import Connection, sql

from rec import artifact, dataset, postgres
from rec import log as progress
from rec.bundle import Bundle
from rec.config import Index
from rec.errors import ArtifactError
from rec.index import forget, live_events, migrations, roles, tables
from rec.schema import INTERACTIONS, USERS

log = logging.getLogger(__name__)

_EVENT_COLUMNS = ["user_id", "product_id", "event", "at", "size", "fit"]
UNIT_TOLERANCE = 1e-2
"""How far from 1 the length of an item vector may be; towers give it to six digits."""

_BYTES_PER_LINK = 16  # an in-memory HNSW neighbour; 2m on the lowest layer, about m above
_BYTES_PER_ELEMENT = 200  # element header and allocator overhead


def vectors(database_url: str, bundle: Bundle, index: Index) -> bool:
    """Load and index the vectors of `bundle`; False when they are there already."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with tables.loading(connection):
            if connection.execute("SELECT 1 FROM bundles WHERE id = %s", (bundle.id,)).fetchone() is not None:
                return False
            _load_vectors(connection, bundle, index)
    return True


def catalogue(connection: Connection[Any], bundle: Bundle, data: Path) -> bool:
    """Load what changed of the bundle's products, and of the users and events datasets in the recipe's folder `data`.

    Part of the caller's transaction. False when nothing changed. Live events that the events now hold count there.
    Where the store has neither dataset, as where the bundle was pulled from elsewhere, the database keeps the users and
    events that it has.
    """
    changed = [_load_products(connection, bundle)]
    if any(artifact.peek(data / name) is not None for name in ("users", "events")):
        changed += [
            _load_users(connection, bundle.recipe, data / "users"),
            _load_events(connection, bundle.recipe, data / "events"),
        ]
    live_events.settle(connection, bundle.recipe)
    return any(changed)


def _load_vectors(connection: Connection[Any], bundle: Bundle, index: Index) -> None:
    ids, vectors = _checked(bundle)
    register_vector(connection)
    table = tables.items_table(bundle.id)
    names = {"table": table, "kind": sql.SQL("{}({})").format(sql.SQL(index.kind), sql.Literal(bundle.width))}
    connection.execute(
        sql.SQL(
            "CREATE TABLE {table} (row integer NOT NULL, product_id text NOT NULL, embedding {kind} NOT NULL)"
        ).format(**names)
    )
    value = tables.embedding(index.kind)
    rows = ((row, name, value(vector)) for row, (name, vector) in enumerate(zip(ids, vectors, strict=True)))
    _copy(
        connection,
        sql.SQL("COPY {table} (row, product_id, embedding) FROM STDIN (FORMAT BINARY)").format(**names),
        ["int4", "text", index.kind],
        progress.progress(rows, total=bundle.items, what="vectors to Postgres"),
    )
    log.info("building the HNSW index of %d vectors", bundle.items)
    _build(connection, table, bundle, index)
    for column in ("product_id", "row"):
        connection.execute(
            sql.SQL("CREATE UNIQUE INDEX ON {table} ({column})").format(**names, column=sql.Identifier(column))
        )
    connection.execute(sql.SQL("ANALYZE {table}").format(**names))
    roles.pass_on(connection)
    connection.execute(
        "INSERT INTO bundles (id, catalogue, items, width, kind) VALUES (%s, %s, %s, %s, %s)",
        (bundle.id, bundle.recipe, bundle.items, bundle.width, index.kind),
    )


def _checked(bundle: Bundle) -> tuple[list[str], np.ndarray]:
    """Product ids and vectors float32[N, d] of item rows. Raises ArtifactError where they cannot be searched."""
    ids, vectors = bundle.product_ids(), bundle.item_vectors()
    remedy = f"run `python jobs/pipeline.py --recipe {bundle.recipe}` again"
    if len(ids) != len(vectors):
        raise ArtifactError(f"bundle {bundle.id} has {len(vectors)} vectors for {len(ids)} products: {remedy}")
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise ArtifactError(f"bundle {bundle.id} has product {twice!r} twice: {remedy}")
    norms = np.linalg.norm(vectors, axis=1)  # NaN where the vector has one
    wrong = np.flatnonzero(~(np.abs(norms - 1) < UNIT_TOLERANCE))
    if len(wrong):
        raise ArtifactError(
            f"{len(wrong)} vectors of bundle {bundle.id} have not length 1; the first is of product "
            f"{ids[wrong[0]]!r}, of length {norms[wrong[0]]:g}: {remedy}"
        )
    return ids, vectors


def _build(connection: Connection[Any], table: sql.Identifier, bundle: Bundle, index: Index) -> None:
    """CREATE INDEX with parallel workers; alone where the server's shared memory is too small for them."""
    memory_mb = min(
        index.build_memory_mb, max(64, math.ceil(1.5 * graph_bytes(bundle.items, bundle.width, index) / 2**20))
    )
    statement = sql.SQL(
        "CREATE INDEX {name} ON {table} USING hnsw (embedding {operators}) WITH (m = {m}, ef_construction = {ef})"
    ).format(
        name=sql.Identifier(f"items_{bundle.id}_hnsw"),
        table=table,
        operators=sql.SQL(f"{index.kind}_ip_ops"),
        m=sql.Literal(index.m),
        ef=sql.Literal(index.ef_construction),
    )
    connection.execute("SELECT set_config('maintenance_work_mem', %s, true)", (f"{memory_mb}MB",))
    for workers in dict.fromkeys((index.build_workers, 0)):
        connection.execute("SELECT set_config('max_parallel_maintenance_workers', %s, true)", (str(workers),))
        try:
            with connection.transaction():
                connection.execute(statement)
            return
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            if workers == 0:
                raise
            log.warning("no parallel index build (%s): building without workers", str(error).splitlines()[0])


def graph_bytes(items: int, width: int, index: Index) -> int:
    """Estimated memory of the HNSW graph while it is built."""
    vector = width * (2 if index.kind == "halfvec" else 4)
    return items * (vector + 3 * index.m * _BYTES_PER_LINK + _BYTES_PER_ELEMENT)


def _load_products(connection: Connection[Any], bundle: Bundle) -> bool:
    path = bundle.path / "products.parquet"
    if _same(connection, bundle.recipe, "products", bundle.file_hash("products.parquet")):
        return False
    columns = ["product_id", "title", "price", "currency", "brand", "category", "available"]
    table = pq.read_table(path, columns=columns)
    connection.execute("DELETE FROM products WHERE catalogue = %s", (bundle.recipe,))
    rows = ((bundle.recipe, *row.values()) for batch in table.to_batches(8_192) for row in batch.to_pylist())
    _copy(
        connection,
        sql.SQL(f"COPY products (catalogue, {', '.join(columns)}) FROM STDIN (FORMAT BINARY)"),
        ["text", "text", "text", "float4", "text", "text", "text[]", "bool"],
        progress.progress(rows, total=table.num_rows, what="products to Postgres"),
    )
    connection.execute("ANALYZE products")
    return True


def _load_users(connection: Connection[Any], catalogue: str, path: Path) -> bool:
    if _same(connection, catalogue, "users", dataset.read_manifest(path, USERS).content_hash):
        return False
    table = forget.without(connection, catalogue, dataset.read(path, USERS))
    connection.execute("DELETE FROM users WHERE catalogue = %s", (catalogue,))
    rows = (
        (catalogue, row["user_id"], json.dumps(_profile(row)))
        for batch in table.to_batches(8_192)
        for row in batch.to_pylist()
    )
    # jsonb has no simple binary form; text COPY lets the server parse it
    _copy(
        connection,
        sql.SQL("COPY users (catalogue, user_id, profile) FROM STDIN"),
        None,
        progress.progress(rows, total=table.num_rows, what="users to Postgres"),
    )
    connection.execute("ANALYZE users")
    return True


def _profile(row: dict[str, Any]) -> dict[str, float]:
    """The known numbers of a user by name."""
    named = [(name, row[name]) for name in ("height_cm", "weight_kg", "birth_year")] + list(row["numeric"] or [])
    return {name: value for name, value in named if value is not None and math.isfinite(value)}


def _load_events(connection: Connection[Any], catalogue: str, path: Path) -> bool:
    if _same(connection, catalogue, "events", dataset.read_manifest(path, INTERACTIONS).content_hash):
        return False
    table = forget.without(connection, catalogue, dataset.read(path, INTERACTIONS, columns=_EVENT_COLUMNS))
    connection.execute("DELETE FROM events WHERE catalogue = %s", (catalogue,))
    rows = (
        (catalogue, position, *row.values())
        for position, row in enumerate(row for batch in table.to_batches(8_192) for row in batch.to_pylist())
    )
    _copy(
        connection,
        sql.SQL(f"COPY events (catalogue, position, {', '.join(_EVENT_COLUMNS)}) FROM STDIN (FORMAT BINARY)"),
        ["text", "int4", "text", "text", "text", "timestamptz", "text", "text"],
        progress.progress(rows, total=table.num_rows, what="events to Postgres"),
    )
    connection.execute("ANALYZE events")
    return True


def _same(connection: Connection[Any], catalogue: str, name: str, content_hash: str) -> bool:
    """Whether this content is loaded already; if not, note that it will be when the transaction commits."""
    found = connection.execute(
        "SELECT content_hash FROM loads WHERE catalogue = %s AND dataset = %s", (catalogue, name)
    ).fetchone()
    if found is not None and found[0] == content_hash:
        return True
    connection.execute(
        "INSERT INTO loads VALUES (%s, %s, %s)"
        " ON CONFLICT (catalogue, dataset) DO UPDATE SET content_hash = excluded.content_hash",
        (catalogue, name, content_hash),
    )
    return False


def _copy(
    connection: Connection[Any],
    statement: sql.SQL | sql.Composed,
    types: Sequence[str] | None,
    rows: Iterable[Sequence[Any]],
) -> None:
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        if types is not None:
            copy.set_types(types)
        for row in rows:
            copy.write_row(row)
