"""Load a bundle's vectors, and its recipe's products, users and events.

`vectors` is one transaction that may take minutes and that nobody sees or waits for: killed at any moment it leaves
nothing, and the next run starts over. `catalogue` runs in the transaction that makes the bundle the active one, so
that products and bundle change together. Both are binary COPY, the vectors into a table without indexes.
With the embedded server on 2 cores 105,542 x 128 halfvec take 60 s, the index (m = 16, ef_construction = 400) included.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pgvector.psycopg import register_vector
from psycopg import Connection, sql

from rec import artifact, dataset, postgres
from rec import log as progress
from rec.bundle import Bundle
from rec.config import Index
from rec.errors import ArtifactError, DatabaseError
from rec.index import forget, live_events, migrations, tables, vector_table
from rec.schema import INTERACTIONS, USERS

_SHOWN = ["product_id", "title", "price", "currency", "brand", "category", "available"]
_EVENT_COLUMNS = ["user_id", "product_id", "event", "at", "size", "fit"]
UNIT_TOLERANCE = 1e-2
"""How far from 1 the length of an item vector may be; towers give it to six digits."""


def vectors(database_url: str, bundle: Bundle, index: Index) -> bool:
    """Load and index the vectors of `bundle`; False when they are there already."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with tables.loading(connection):
            if connection.execute("SELECT 1 FROM bundles WHERE id = %s", (bundle.id,)).fetchone() is not None:
                return False
            ids, found = checked(bundle)
            owner, first = _shared(connection, bundle, ids, found, index)
            if owner is None:
                owner = bundle.id
                vector_table.fill(connection, owner, ids, found, index)
                vector_table.build(connection, owner, bundle.items, bundle.width, index)
                vector_table.finish(connection, owner)
            elif first < bundle.items:
                vector_table.append(connection, owner, first, ids[first:], found[first:], index.kind)
            vector_table.enter(
                connection,
                bundle.id,
                bundle.recipe,
                bundle.items,
                bundle.width,
                index.kind,
                owner=owner,
                root=bundle.root,
            )
    return True


def _shared(
    connection: Connection[Any], bundle: Bundle, ids: Sequence[str], vectors: np.ndarray, index: Index
) -> tuple[str | None, int]:
    """The bundle in whose table the first rows of `bundle` lie already, and how many; None where it needs its own.

    That is its own where bundles that extend it outlived it in the database, and else that of the one that it extends.
    A table may have rows beyond those, which another extension left. They serve where they are the same, as after a
    rollback; two rows of one number have no place in one table.
    """
    own = tables.items_table(bundle.id).as_string(connection)
    if connection.execute("SELECT to_regclass(%s)", (own,)).fetchone() != (None,):
        if _same_rows(connection, bundle.id, 0, ids, vectors, index.kind) != bundle.items:
            raise DatabaseError(
                f"the table {own} has other rows than bundle {bundle.id}: drop the bundles that extend it with "
                "`python jobs/bundles.py gc` when another one is active, and load it again"
            )
        return bundle.id, bundle.items
    base = None if bundle.extends is None else tables.find(connection, bundle.extends)
    if base is None or (base.catalogue, base.width, base.kind) != (bundle.recipe, bundle.width, index.kind):
        return None, 0
    same = _same_rows(connection, base.owner, base.items, ids, vectors, index.kind)
    return (None, 0) if same is None else (base.owner, same)


def _same_rows(
    connection: Connection[Any], owner: str, first: int, ids: Sequence[str], vectors: np.ndarray, kind: str
) -> int | None:
    """How many rows of a bundle of these product ids and vectors a table has, which has its rows below `first`; None
    where another one is among those from there on."""
    value, there = tables.embedding(kind), first
    register_vector(connection)
    query = sql.SQL("SELECT row, product_id, embedding FROM {} WHERE row >= %s AND row < %s ORDER BY row")
    with connection.cursor("rows", binary=True) as cursor:
        cursor.execute(query.format(tables.items_table(owner)), (first, len(ids)))
        for number, product_id, vector in cursor:
            if number != there or product_id != ids[number]:
                return None
            if vector.to_binary() != value(vectors[number]).to_binary():
                return None
            there += 1
    return there


def catalogue(connection: Connection[Any], bundle: Bundle, data: Path, before: str | None) -> bool:
    """Load what changed of the bundle's products, and of the users and events datasets in the recipe's folder `data`.

    Part of the caller's transaction. Where the bundle extends the one that is active `before`, what the database says
    of that one's products stands. False when nothing changed. Live events that the events now hold count there. Where
    the store has neither dataset, as where the bundle was pulled from elsewhere, the database keeps the users and
    events that it has.
    """
    extends = before is not None and bundle.extends == before
    changed = [_add_products(connection, bundle) if extends else _load_products(connection, bundle)]
    if any(artifact.peek(data / name) is not None for name in ("users", "events")):
        changed += [
            _load_users(connection, bundle.recipe, data / "users"),
            _load_events(connection, bundle.recipe, data / "events"),
        ]
    live_events.settle(connection, bundle.recipe)
    return any(changed)


def checked(bundle: Bundle) -> tuple[list[str], np.ndarray]:
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


def _load_products(connection: Connection[Any], bundle: Bundle) -> bool:
    if _same(connection, bundle.recipe, "products", bundle.file_hash("products.parquet")):
        return False
    table = pq.read_table(bundle.path / "products.parquet", columns=_SHOWN)
    connection.execute("DELETE FROM products WHERE catalogue = %s", (bundle.recipe,))
    _copy_products(connection, bundle.recipe, table)
    connection.execute("ANALYZE products")
    return True


def _add_products(connection: Connection[Any], bundle: Bundle) -> bool:
    """Those that the database does not have."""
    table = pq.read_table(bundle.path / "products.parquet", columns=_SHOWN)
    rows = connection.execute("SELECT product_id FROM products WHERE catalogue = %s", (bundle.recipe,)).fetchall()
    there = pa.array([name for (name,) in rows], pa.string())
    new = table.filter(pc.invert(pc.is_in(table["product_id"], value_set=there)))
    _copy_products(connection, bundle.recipe, new)
    _same(connection, bundle.recipe, "products", bundle.file_hash("products.parquet"))
    return new.num_rows > 0


def _copy_products(connection: Connection[Any], catalogue: str, table: pa.Table) -> None:
    rows = ((catalogue, *row.values()) for batch in table.to_batches(8_192) for row in batch.to_pylist())
    _copy(
        connection,
        sql.SQL(f"COPY products (catalogue, {', '.join(_SHOWN)}) FROM STDIN (FORMAT BINARY)"),
        ["text", "text", "text", "float4", "text", "text", "text[]", "bool"],
        progress.progress(rows, total=table.num_rows, what="products to Postgres"),
    )


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
