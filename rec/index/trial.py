"""A vector table on trial, for benchmarks: a database of its own, filled as for a bundle, with products to filter by.

The catalogue `trial` has for each item row a product whose price is in (0, 1] and whose categories are those of at
least its depth, so that there are filters which any share of the products passes.
"""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, conninfo, sql

from rec import postgres
from rec.config import Index
from rec.index import migrations, tables, vector_table

CATALOGUE = "trial"
BUNDLE = "0" * 12
BLOCK = 1 << 19
"""Bytes of one write of the raw COPY."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading took, and what lies on the disk."""

    copy_s: list[float]
    """COPY as loading does it, of each round."""
    raw_s: list[float]
    """COPY of the bytes that the server itself gave for these rows, of each round."""
    build_s: float
    """CREATE INDEX."""
    workers: int
    """That it could use beside its leader."""
    table_bytes: int
    index_bytes: int


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """URL of an empty database with the tables of serving, on the server at a URL; dropped at the end."""
    name = f"rec_trial_{secrets.token_hex(4)}"
    with postgres.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        url = conninfo.make_conninfo(server_url, dbname=name)
        with postgres.session(url) as connection:
            migrations.migrate(connection)
        yield url
    finally:
        with postgres.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def load(url: str, ids: Sequence[str], vectors: Floats, index: Index, rounds: int) -> Loaded:
    """Fill the table of BUNDLE with unit vectors float32[N, d], `rounds` times in turn with the raw COPY; index it.

    What the server does at first, such as making files for its log, is not timed.
    """
    items, width = vectors.shape
    table, copied = tables.items_table(BUNDLE), sql.Identifier("raw_copy")
    copy_s, raw_s = [], []
    with postgres.session(url) as connection:
        for _ in range(1 + rounds):
            for name in (table, copied):
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
            started = time.perf_counter()
            vector_table.fill(connection, BUNDLE, ids, vectors, index)
            copy_s.append(time.perf_counter() - started)
            raw_s.append(_raw_copy(connection, table, copied, width, index))
            connection.commit()
        connection.execute(sql.SQL("DROP TABLE {}").format(copied))
        workers = vector_table.workers(connection, index)
        started = time.perf_counter()
        vector_table.build(connection, BUNDLE, items, width, index)
        build_s = time.perf_counter() - started
        vector_table.finish(connection, BUNDLE)
        vector_table.enter(connection, BUNDLE, CATALOGUE, items, width, index.kind)
        row = connection.execute(
            "SELECT pg_table_size(%s::regclass), pg_relation_size(%s::regclass)",
            (f"items_{BUNDLE}", f"items_{BUNDLE}_hnsw"),
        ).fetchone()
    assert row is not None
    return Loaded(copy_s[1:], raw_s[1:], build_s, workers, *row)


def _raw_copy(
    connection: Connection[Any], source: sql.Identifier, target: sql.Identifier, width: int, index: Index
) -> float:
    """Seconds of creating `target` and copying the bytes of COPY TO of `source` into it."""
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(source)) as out,
    ):
        data = b"".join(bytes(block) for block in out)
    started = time.perf_counter()
    vector_table.create(connection, target, width, index)
    with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(target)) as into,
    ):
        for start in range(0, len(data), BLOCK):
            into.write(data[start : start + BLOCK])
    return time.perf_counter() - started


def add_products(url: str, prices: Floats, depths: Floats, categories: Mapping[str, float]) -> None:
    """A product in stock for each item row, of price float32[N], in the categories of at least its depth float32[N]."""
    with postgres.session(url) as connection:
        connection.execute(
            sql.SQL(
                "INSERT INTO products (catalogue, product_id, title, price, category, available)"
                " SELECT %(catalogue)s, v.product_id, '', p.price,"
                "  ARRAY(SELECT name FROM unnest(%(names)s::text[], %(most)s::real[]) c (name, most)"
                "   WHERE p.depth <= c.most), true"
                " FROM {} v JOIN unnest(%(prices)s::real[], %(depths)s::real[]) WITH ORDINALITY p (price, depth, place)"
                " ON p.place = v.row + 1"
            ).format(tables.items_table(BUNDLE)),
            {
                "catalogue": CATALOGUE,
                "names": list(categories),
                "most": list(categories.values()),
                "prices": prices.tolist(),
                "depths": depths.tolist(),
            },
        )
        connection.execute("ANALYZE products")


def stock(url: str, price: float) -> None:
    """Let the products up to a price be in stock, and no others."""
    with postgres.session(url) as connection:
        connection.execute("UPDATE products SET available = price <= %s::real", (price,))
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM (ANALYZE) products")  # as it is some time after a change of everything
