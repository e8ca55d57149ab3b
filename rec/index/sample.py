"""Which share of a bundle's products passes filters, by a few of them that are read now and then.

How a search goes is decided by it, and never what it finds: asking Postgres to count takes longer than many a search.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import Connection, sql

SAMPLED = 1_024
"""Products, at random. Of a filter that 5 % pass they say so within 1.3 points (95 %)."""
STANDS_S = 60.0
"""How long they stand for what is in stock, and at which price."""


@dataclass(frozen=True, slots=True)
class _Read:
    """The products in stock among them: replaced as a whole, as other threads are asking."""

    prices: NDArray[np.float32]
    """float32[S], NaN without a price."""
    inside: Mapping[str, NDArray[np.int64]]
    """Places in `prices` by category."""
    until: float
    """By the monotonic clock."""


class Sample:
    """Stock, prices and categories of SAMPLED products, or of all where they are fewer. For any number of threads."""

    def __init__(self, connection: Connection[Any], table: sql.Identifier, catalogue: str, items: int) -> None:
        # row by row: joined, the planner may read all products for these few
        self._query = sql.SQL(
            "SELECT p.price, p.category FROM unnest(%s::integer[]) drawn (row)"
            " CROSS JOIN LATERAL (SELECT product_id FROM {} WHERE row = drawn.row OFFSET 0) v"
            " CROSS JOIN LATERAL (SELECT price, category FROM products"
            "  WHERE catalogue = %s AND product_id = v.product_id AND available OFFSET 0) p"
        ).format(table)
        rows = np.random.default_rng(0).choice(items, min(items, SAMPLED), replace=False)
        self._asked = (np.sort(rows).tolist(), catalogue)
        self._rereading = threading.Lock()
        self._last = self._read(connection)

    def share(
        self,
        connection: Connection[Any],
        *,
        categories: Sequence[str] = (),
        price_min: float | None = None,
        price_max: float | None = None,
    ) -> float:
        """Of the products, those in stock that are in any of the categories (all where none are given) and whose price
        is within the bounds. `connection`, in no transaction, reads them again where those read before are too old."""
        read = self._current(connection)
        passing = np.ones(len(read.prices), bool)
        if categories:
            passing[:] = False
            for name in categories:
                passing[read.inside.get(name, [])] = True
        if price_min is not None:
            passing &= read.prices >= price_min
        if price_max is not None:
            passing &= read.prices <= price_max
        return float(passing.sum()) / max(len(self._asked[0]), 1)

    def _current(self, connection: Connection[Any]) -> _Read:
        if time.monotonic() >= self._last.until and self._rereading.acquire(blocking=False):
            try:
                self._last = self._read(connection)
            except psycopg.Error:  # the search that follows says what is wrong, if anything still is
                self._last = replace(self._last, until=time.monotonic() + STANDS_S)
            finally:
                self._rereading.release()
        return self._last

    def _read(self, connection: Connection[Any]) -> _Read:
        found = connection.execute(self._query, self._asked).fetchall()
        places: dict[str, list[int]] = {}
        for place, (_, names) in enumerate(found):
            for name in names:
                places.setdefault(name, []).append(place)
        prices = np.array([np.nan if price is None else price for price, _ in found], np.float32)
        inside = {name: np.array(of) for name, of in places.items()}
        return _Read(prices, inside, time.monotonic() + STANDS_S)
