"""Nearest products of one bundle by inner product, under filters.

Two paths give the same kind of answer. `exact` compares every product that passes and is taken when few do; `hnsw`
walks the index and goes on walking (iterative scan) until enough products pass. Where the walk ends early the exact
path answers, so `underfilled` always means that fewer than k such products exist.

Filter columns are those of `Filters` and nothing else; every value travels as a parameter.
"""

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from psycopg import Connection, sql

from rec.config import Index
from rec.index import tables
from rec.index.connections import Connections

BROADEST = 1_000
"""The largest `hnsw.ef_search` of pgvector."""
SAMPLED = 20_000
"""Products by which it is known what share is in stock. A walk without a filter is broader by its inverse: only that
share of the candidates that it looks at can be answers."""
STEP = 100
"""A search that leaves out more rows than the first round of the walk holds beside k is broader by as many, in steps,
so that not each search has another setting. At 105,542 x 128, the 1,000 nearest left out, recall@100 is .97 with
BROADEST, and .93 with 640, which else are enough for .99."""
OVERFETCH = 3
"""Under a filter, or with more rows to leave out than the first round of the walk holds beside k, the walk stops as
soon as enough pass, in relaxed order; asking for more keeps near ones it met late. Measured at 105,542 x 128, filters
that pass 10 % and 20 %: recall@100 .88 and .93 without, .98 and .99 with it; at 20,000 x 128, the 1,000 nearest left
out: .984 and .995."""
STOCK_S = 60.0
"""How long it stands how many products are in stock, which says how searches without filters go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What a product must be to be recommended; it must always be available."""

    categories: tuple[str, ...] = ()
    """Any of these categories (STD names); empty for all."""
    price_min: float | None = None
    """Lowest price, inclusive; products without a price do not pass a price filter."""
    price_max: float | None = None
    """Highest price, inclusive."""

    @property
    def given(self) -> tuple[bool, bool, bool]:
        """Whether there are categories, a lowest and a highest price."""
        return bool(self.categories), self.price_min is not None, self.price_max is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The nearest products, best first, ties by row."""

    rows: np.ndarray  # int64[K], K <= k
    scores: np.ndarray  # float32[K], inner products at the column's precision
    path: Literal["exact", "hnsw"]
    underfilled: bool
    """Fewer than k products pass."""


class VectorIndex:
    """Search over the vector table of one bundle."""

    def __init__(self, connections: Connections, bundle: str, index: Index) -> None:
        self._connections = connections
        self._few_in_stock, self._in_stock, self._stock_until = False, 1.0, 0.0
        with connections.use() as connection:
            found = tables.entry(connection, bundle)
        self._queries = cache(lambda *given: _Queries.of(found.table, _condition(*given)))
        self._catalogue, self._items, self._width = found.catalogue, found.items, found.width
        self._exact = index.exact_up_to(found.items)
        self.ef_search = found.ef_search or index.ef_search
        """Candidates that a walk through the index looks at."""
        self._value = tables.embedding(found.kind)

    def search(self, vector: np.ndarray, k: int, *, exclude: np.ndarray, filters: Filters) -> Found:
        """The k nearest products to `vector` float32[d] that pass `filters`, without the rows `exclude` int64[E]."""
        parameters = self._parameters(vector, k, exclude, filters)
        queries = self._queries(*filters.given)

        def search(connection: Connection[Any]) -> Found:
            filtered = any(filters.given)
            if self._few_pass(connection, queries.few, parameters, filtered=filtered):
                return _found(connection, queries.exact, parameters, path="exact")
            breadth = self.ef_search if filtered else math.ceil(self.ef_search / self._in_stock)
            if self._beyond_first_round(k, exclude):
                breadth += STEP * math.ceil(len(exclude) / STEP)
            self._connections.tune(connection, "hnsw.ef_search", str(min(breadth, BROADEST)))
            found = _found(connection, queries.hnsw, parameters, path="hnsw")
            return _found(connection, queries.exact, parameters, path="exact") if found.underfilled else found

        return self._connections.run(search)

    def exact(
        self,
        vector: np.ndarray,
        k: int,
        *,
        exclude: np.ndarray,
        filters: Filters,
        connections: Connections | None = None,
    ) -> Found:
        """What `search` would give if it compared every product that passes: the truth that recall is measured by.

        `connections`: others than those of the searches, whom it then keeps none from.
        """
        parameters = self._parameters(vector, k, exclude, filters)
        query = self._queries(*filters.given).exact
        return (connections or self._connections).run(lambda c: _found(c, query, parameters, path="exact"))

    def sold_out(self, connections: Connections | None = None) -> bool:
        """Whether some product of the catalogue is out of stock."""
        query = "SELECT EXISTS (SELECT 1 FROM products WHERE catalogue = %s AND NOT available)"
        row = (connections or self._connections).run(lambda c: c.execute(query, (self._catalogue,)).fetchone())
        assert row is not None
        return bool(row[0])

    def _parameters(self, vector: np.ndarray, k: int, exclude: np.ndarray, filters: Filters) -> dict[str, Any]:
        if vector.shape != (self._width,):
            raise ValueError(f"query vector has shape {vector.shape}, not ({self._width},)")
        return {
            "vector": self._value(vector),
            "catalogue": self._catalogue,
            "items": self._items,
            "exclude": exclude.astype(np.int32).tolist(),
            "k": k,
            "visit": OVERFETCH * k if any(filters.given) or self._beyond_first_round(k, exclude) else k,
            **_values(filters),
            "limit": self._exact + 1,
        }

    def _beyond_first_round(self, k: int, exclude: np.ndarray) -> bool:
        return len(exclude) > max(self.ef_search - k, 0)

    def passing(self, rows: np.ndarray, filters: Filters) -> np.ndarray:
        """Those of the item rows `rows` int64[R] that pass `filters`, in the order given."""
        query = self._queries(*filters.given).passing
        parameters = {"rows": rows.astype(np.int32).tolist(), "catalogue": self._catalogue, **_values(filters)}
        found = self._connections.run(lambda c: c.execute(query, parameters).fetchall())
        return rows[np.isin(rows, [row for (row,) in found])]

    def _few_pass(
        self, connection: Connection[Any], count: bytes, parameters: dict[str, Any], *, filtered: bool
    ) -> bool:
        """Whether so few products pass that comparing all of them is the faster way."""
        if self._items <= self._exact:
            return True
        if not filtered and time.monotonic() < self._stock_until:
            return self._few_in_stock
        row = connection.execute(count, parameters).fetchone()
        assert row is not None
        few = bool(row[0] <= self._exact)
        if not filtered:
            self._few_in_stock, self._in_stock = few, self._share_in_stock(connection)
            self._stock_until = time.monotonic() + STOCK_S
        return few

    def _share_in_stock(self, connection: Connection[Any]) -> float:
        """Of some SAMPLED products; 1 where none is there."""
        sampled = {"catalogue": self._catalogue, "percent": min(100.0, 100 * SAMPLED / self._items)}
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE available), count(*) FROM products TABLESAMPLE SYSTEM (%(percent)s)"
            " WHERE catalogue = %(catalogue)s",
            sampled,
        ).fetchone()
        assert row is not None
        available, there = row
        return max(available, 1) / max(there, 1)


@dataclass(frozen=True, slots=True)
class _Queries:
    """The statements of one table under one set of filters, as text that is composed once."""

    exact: bytes
    hnsw: bytes
    passing: bytes
    few: bytes
    """How many products pass, counted up to one more than are all compared."""

    @classmethod
    def of(cls, table: sql.Identifier, condition: sql.SQL) -> "_Queries":
        # exact: materialized, so that the distances are computed before the sort and the index cannot serve the order.
        exact = (
            "WITH passing AS MATERIALIZED ("
            " SELECT v.row, v.embedding <#> %(vector)s AS distance FROM {table} v JOIN products p USING (product_id)"
            " WHERE p.catalogue = %(catalogue)s AND {condition} AND v.row < %(items)s"
            " AND v.row <> ALL(%(exclude)s::integer[]))"
            " SELECT row, -distance FROM passing ORDER BY distance, row LIMIT %(k)s"
        )
        # hnsw: a scalar subquery cannot become a join, so the order always comes from the index and the filter is one
        # primary-key look-up per visited product. The relaxed order is made strict outside: `+ 0`, because the planner
        # takes the inner order for exact and would not sort.
        hnsw = (
            "WITH nearest AS MATERIALIZED ("
            " SELECT v.row, v.embedding <#> %(vector)s AS distance FROM {table} v"
            " WHERE v.row < %(items)s AND v.row <> ALL(%(exclude)s::integer[]) AND (SELECT {condition} FROM products p"
            "  WHERE p.catalogue = %(catalogue)s AND p.product_id = v.product_id)"
            " ORDER BY v.embedding <#> %(vector)s LIMIT %(visit)s)"
            " SELECT row, -distance FROM nearest ORDER BY distance + 0, row LIMIT %(k)s"
        )
        passing = (
            "SELECT v.row FROM {table} v JOIN products p USING (product_id)"
            " WHERE v.row = ANY(%(rows)s::integer[]) AND p.catalogue = %(catalogue)s AND {condition}"
        )
        few = (
            "SELECT count(*) FROM (SELECT 1 FROM products p WHERE p.catalogue = %(catalogue)s AND {condition}"
            " LIMIT %(limit)s) passing"
        )
        texts = (exact, hnsw, passing, few)
        return cls(*(sql.SQL(text).format(table=table, condition=condition).as_bytes(None) for text in texts))


def _found(
    connection: Connection[Any], query: bytes, parameters: dict[str, Any], *, path: Literal["exact", "hnsw"]
) -> Found:
    rows = connection.execute(query, parameters).fetchall()
    return Found(
        rows=np.array([row for row, _ in rows], dtype=np.int64),
        scores=np.array([score for _, score in rows], dtype=np.float32),
        path=path,
        underfilled=len(rows) < parameters["k"],
    )


def _condition(categories: bool, price_min: bool, price_max: bool) -> sql.SQL:
    """SQL over `products p` for the filters that are given, made of constant text only."""
    parts = ["p.available"]
    parts += ["p.category && %(categories)s::text[]"] if categories else []
    parts += ["p.price >= %(price_min)s::real"] if price_min else []
    parts += ["p.price <= %(price_max)s::real"] if price_max else []
    return sql.SQL(" AND ".join(parts))


def _values(filters: Filters) -> dict[str, Any]:
    """The parameters of `_condition`; prices as the column's type has them, 0 and infinity beyond its range."""
    with np.errstate(over="ignore", under="ignore"):
        low, high = (None if x is None else float(np.float32(x)) for x in (filters.price_min, filters.price_max))
    return {"categories": list(filters.categories), "price_min": low, "price_max": high}
