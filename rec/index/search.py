"""Nearest products of one bundle by inner product, under filters.

Two paths give the same kind of answer. `exact` compares every product that passes and is taken when few do; `hnsw`
walks the index and goes on walking (iterative scan) until enough products pass. Where they do not within as long a walk
as it is worth, the exact path answers: what passes may lie far from the vector, as a category that a shopper never
looks at. So `underfilled` always means that fewer than k such products exist.

Filter columns are those of `Filters` and nothing else; every value travels as a parameter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from psycopg import Connection, sql

from rec.config import Index
from rec.index import tables
from rec.index.connections import Connections
from rec.index.sample import Sample

BROADEST = 1_000
"""The largest `hnsw.ef_search` of pgvector."""
STEP = 100
"""A search that leaves out more rows than the first round of the walk holds beside k is broader by as many, in steps,
so that not each search has another setting. At 105,542 x 128, the 1,000 nearest left out, recall@100 is .97 with
BROADEST, and .93 with 640, which else are enough for .99."""
OVERFETCH = 3
"""Under a filter, or with more rows to leave out than the first round of the walk holds beside k, the walk stops as
soon as enough pass, in relaxed order; asking for more keeps near ones it met late. Measured at 105,542 x 128, filters
that pass 10 % and 20 %: recall@100 .88 and .93 without, .98 and .99 with it; at 20,000 x 128, the 1,000 nearest left
out: .984 and .995."""
LONGEST, FARTHEST = 1.25, 40_000
"""To have `visit` products that pass, of `items` of which at least `exact` do, wherever they lie, a walk meets
visit * items / exact at most on average. It ends where it has met LONGEST times as many, or FARTHEST, besides those to
leave out. Where pgvector's own bounds end it, it gives what else it has seen: at a million, recall@100 was .945 under a
category of a tenth of them that lies elsewhere."""
MOST_COMPARED = 2_000_000
"""Where more products than this pass, k of a walk that ended are an answer: to compare them takes over a second."""


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
        with connections.use() as connection:
            found = tables.entry(connection, bundle)
            self._exact = index.exact_up_to(found.items)
            all_compared = found.items <= self._exact
            self._sample = None if all_compared else Sample(connection, found.table, found.catalogue, found.items)
        self._queries = cache(lambda *given: _Queries.of(found.table, _condition(*given)))
        self._catalogue, self._items, self._width = found.catalogue, found.items, found.width
        self.ef_search = found.ef_search or index.ef_search
        """Candidates that a walk through the index looks at."""
        self._value = tables.embedding(found.kind)

    def search(self, vector: np.ndarray, k: int, *, exclude: np.ndarray, filters: Filters) -> Found:
        """The k nearest products to `vector` float32[d] that pass `filters`, without the rows `exclude` int64[E]."""
        parameters = self._parameters(vector, k, exclude, filters)
        queries = self._queries(*filters.given)

        def search(connection: Connection[Any]) -> Found:
            if self._sample is None:
                return _compared(connection, queries.exact, parameters)
            share = self._sample.share(connection, **_values(filters))
            passing = round(share * self._items)
            in_vain = share * parameters["walk"] < parameters["visit"] and passing <= MOST_COMPARED
            if passing <= self._exact or in_vain:
                return _compared(connection, queries.exact, parameters)
            breadth = self.ef_search if any(filters.given) else math.ceil(self.ef_search / share)
            if self._beyond_first_round(k, exclude):
                breadth += STEP * math.ceil(len(exclude) / STEP)
            self._connections.tune(connection, "hnsw.ef_search", str(min(breadth, BROADEST)))
            passed, found = _walked(connection, queries.hnsw, parameters)
            enough = k if passing > MOST_COMPARED else parameters["visit"]
            return found if passed >= enough else _compared(connection, queries.exact, parameters)

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
        return (connections or self._connections).run(lambda c: _compared(c, query, parameters))

    def sold_out(self, connections: Connections | None = None) -> bool:
        """Whether some product of the catalogue is out of stock."""
        query = "SELECT EXISTS (SELECT 1 FROM products WHERE catalogue = %s AND NOT available)"
        row = (connections or self._connections).run(lambda c: c.execute(query, (self._catalogue,)).fetchone())
        assert row is not None
        return bool(row[0])

    def _parameters(self, vector: np.ndarray, k: int, exclude: np.ndarray, filters: Filters) -> dict[str, Any]:
        if vector.shape != (self._width,):
            raise ValueError(f"query vector has shape {vector.shape}, not ({self._width},)")
        visit = OVERFETCH * k if any(filters.given) or self._beyond_first_round(k, exclude) else k
        return {
            "vector": self._value(vector),
            "catalogue": self._catalogue,
            "items": self._items,
            "exclude": exclude.astype(np.int32).tolist(),
            "k": k,
            "visit": visit,
            "walk": len(exclude) + min(math.ceil(LONGEST * visit * self._items / max(self._exact, 1)), FARTHEST),
            **_values(filters),
        }

    def _beyond_first_round(self, k: int, exclude: np.ndarray) -> bool:
        return len(exclude) > max(self.ef_search - k, 0)

    def passing(self, product_ids: Sequence[str], filters: Filters) -> set[str]:
        """Those of the products that are in stock and pass `filters`.

        By id, as the database has prices and stock: by row each would be looked up in the table of vectors first.
        """
        query = self._queries(*filters.given).passing
        parameters = {"products": list(product_ids), "catalogue": self._catalogue, **_values(filters)}
        return {name for (name,) in self._connections.run(lambda c: c.execute(query, parameters).fetchall())}


@dataclass(frozen=True, slots=True)
class _Queries:
    """The statements of one table under one set of filters, as text that is composed once."""

    exact: bytes
    hnsw: bytes
    passing: bytes

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
        # hnsw: the LIMIT keeps the walk a query of its own, so the order comes from the index (or from a sort of all,
        # where that is cheaper), and the filter, a scalar subquery, cannot become a join: it is one primary-key look-up
        # per visited product. The relaxed order is made strict outside: `+ 0`, as a planner that passed the inner order
        # on would take it for exact and not sort.
        hnsw = (
            "WITH nearest AS MATERIALIZED ("
            " SELECT v.row, v.distance FROM (SELECT row, product_id, embedding <#> %(vector)s AS distance FROM {table}"
            "  ORDER BY embedding <#> %(vector)s LIMIT %(walk)s) v"
            " WHERE v.row < %(items)s AND v.row <> ALL(%(exclude)s::integer[]) AND (SELECT {condition} FROM products p"
            "  WHERE p.catalogue = %(catalogue)s AND p.product_id = v.product_id) LIMIT %(visit)s)"
            " SELECT row, -distance, (SELECT count(*) FROM nearest) FROM nearest ORDER BY distance + 0, row LIMIT %(k)s"
        )
        passing = (
            "SELECT p.product_id FROM products p"
            " WHERE p.catalogue = %(catalogue)s AND p.product_id = ANY(%(products)s::text[]) AND {condition}"
        )
        texts = (exact, hnsw, passing)
        return cls(*(sql.SQL(text).format(table=table, condition=condition).as_bytes(None) for text in texts))


def _compared(connection: Connection[Any], query: bytes, parameters: dict[str, Any]) -> Found:
    return _found(connection.execute(query, parameters, binary=True).fetchall(), "exact", parameters["k"])


def _walked(connection: Connection[Any], query: bytes, parameters: dict[str, Any]) -> tuple[int, Found]:
    """How many products passed until the walk ended, and the nearest of them."""
    rows = connection.execute(query, parameters, binary=True).fetchall()
    return rows[0][2] if rows else 0, _found(rows, "hnsw", parameters["k"])


def _found(rows: list[tuple[Any, ...]], path: Literal["exact", "hnsw"], k: int) -> Found:
    return Found(
        rows=np.array([row for row, *_ in rows], dtype=np.int64),
        scores=np.array([score for _, score, *_ in rows], dtype=np.float32),
        path=path,
        underfilled=len(rows) < k,
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
