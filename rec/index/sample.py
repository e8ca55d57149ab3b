"""Which share of a bundle's products passes filters, by a few of them that are read now and then.

How a search goes is decided by it, and never what it finds: asking Postgres to count takes longer than many a search.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import Connection, sql

SAMPLED = 4_096
"""Products, at random. Of a filter that 5 % pass they say so within .7 % (95 %)."""
STANDS_S = 60.0
"""How long they stand for what is in stock, and at which price."""


class Sample:
    """Stock, prices and categories of SAMPLED products, or of all where they are fewer."""

    def __init__(self, table: sql.Identifier, catalogue: str, items: int) -> None:
        self._query = sql.SQL(
            "SELECT p.available, p.price, p.category FROM {} v JOIN products p USING (product_id)"
            " WHERE p.catalogue = %s AND v.row = ANY(%s::integer[])"
        ).format(table)
        rows = np.random.default_rng(0).choice(items, min(items, SAMPLED), replace=False)
        self._asked = (catalogue, np.sort(rows).tolist())
        self._until = 0.0
        self._prices = np.empty(0, np.float32)
        self._inside: dict[str, NDArray[np.int64]] = {}

    def share(
        self,
        connection: Connection[Any],
        *,
        categories: Sequence[str] = (),
        price_min: float | None = None,
        price_max: float | None = None,
    ) -> float:
        """Of the products, those in stock that are in any of the categories (all where none are given) and whose price
        is within the bounds. `connection` reads them again where those read before are too old."""
        if time.monotonic() >= self._until:
            self._read(connection)
        passing = np.ones(len(self._prices), bool)
        if categories:
            passing[:] = False
            for name in categories:
                passing[self._inside.get(name, [])] = True
        if price_min is not None:
            passing &= self._prices >= price_min
        if price_max is not None:
            passing &= self._prices <= price_max
        return float(passing.sum()) / max(len(self._asked[1]), 1)

    def _read(self, connection: Connection[Any]) -> None:
        found = [row for row in connection.execute(self._query, self._asked).fetchall() if row[0]]
        inside: dict[str, list[int]] = {}
        for place, (_, _, names) in enumerate(found):
            for name in names:
                inside.setdefault(name, []).append(place)
        self._inside = {name: np.array(places) for name, places in inside.items()}
        self._prices = np.array([np.nan if price is None else price for _, price, _ in found], np.float32)
        self._until = time.monotonic() + STANDS_S
