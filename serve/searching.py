"""GET /v1/products: searches for words, a few at a time, so that recommendations find a connection and a thread."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rec.recommend.front import Front
from rec.recommend.why import shown
from serve.asking import timely
from serve.degrade import Unavailable

AT_ONCE, MOST = 2, 8
"""Searches that run at a time, each on a connection that recommendations need, and those that run or wait."""
SEARCH_S = 4.0
"""Longest wait for one, in the queue as well."""


class Searching:
    """The searches of this process."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="search")
        self._asked = 0

    async def find(self, front: Front, query: str, limit: int, *, evidence: bool) -> list[dict[str, Any]]:
        """The products that hold every word of `query`, with the prices of now; `evidence`: with what says their
        attributes.

        Raises Unavailable beyond MOST, TooSlow where Postgres takes too long, DatabaseError beyond SEARCH_S.
        """
        if self._asked >= MOST:
            raise Unavailable(f"{self._asked} searches run or wait already")
        self._asked += 1
        try:
            return await timely(self._threads, SEARCH_S, _found, front, query, limit, evidence)
        finally:
            self._asked -= 1


def _found(front: Front, query: str, limit: int, evidence: bool) -> list[dict[str, Any]]:
    rows = front.shelf.rows(front.catalogue.find(query, limit, front.shelf.known))
    items = [shown(front.shelf.card(row)) for row in rows.tolist()]
    if evidence:
        front.cite(items)
    front.freshen(items)
    return items
