"""A shopper with 100,000 stored events: what a request reads of them is bounded by what it takes."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from psycopg import ClientCursor, Connection

from rec import postgres
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.recommend.resolve import STORED_EVENTS
from tests.databases import fresh

LOGGED, LIVE = 100_000, 20_000
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
FEW = 100
"""Rows that a sort may look at beyond those that it gives."""


class Explaining:
    """Connections whose statements are explained before they run."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.read: Counter[str] = Counter()
        """Rows that scans looked at, by table."""

    def run(self, work: Callable[[Any], Any]) -> Any:
        """As Connections has it."""
        return self._connections.run(lambda connection: work(Explained(connection, self.read)))


class Explained:
    """A connection that counts what its statements read."""

    def __init__(self, connection: Connection[Any], read: Counter[str]) -> None:
        self._connection, self._read = connection, read

    def execute(self, query: str, given: dict[str, Any]) -> Any:
        """As Connection has it."""
        explained = ClientCursor(self._connection).execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", given)
        ((plan,),) = explained.fetchall()
        self._count(plan[0]["Plan"])
        return self._connection.execute(query, given)

    def _count(self, node: dict[str, Any]) -> None:
        if "Relation Name" in node:
            passed_over = (count for name, count in node.items() if name.startswith("Rows Removed by"))
            self._read[node["Relation Name"]] += round(node["Actual Loops"] * sum(passed_over, node["Actual Rows"]))
        for child in node.get("Plans", []):
            self._count(child)


@pytest.fixture(scope="module")
def connections(database_url: str) -> Iterator[Connections]:
    url = fresh(database_url, "long_histories")
    with postgres.session(url) as connection:
        connection.execute(
            "INSERT INTO events (catalogue, user_id, position, product_id, event, at)"
            " SELECT 'shop', 'ann', n, 'P' || n, 'view', %s + n * interval '1 second'"
            " FROM generate_series(0, %s - 1) n",
            (BEGAN, LOGGED),
        )
        for column, prefix in (("user_id", "U"), ("client_id", "C")):
            connection.execute(
                f"INSERT INTO live_events (catalogue, event_id, {column}, product_id, event, at)"
                " SELECT 'shop', %s::text || n, 'ann', %s::text || n, 'view', %s + (%s + n) * interval '1 second'"
                " FROM generate_series(0, %s - 1) n",
                (prefix, prefix, BEGAN, LOGGED, LIVE),
            )
        connection.commit()
        connection.execute("ANALYZE")
        connection.commit()
    opened = Connections(url, size=1)
    yield opened
    opened.close()


@pytest.mark.parametrize("last", [1, STORED_EVENTS])
def test_no_more_of_a_long_history_is_read_than_is_taken(connections: Connections, last: int) -> None:
    explaining = Explaining(connections)
    known = Catalogue(explaining, "shop").known("ann", last, "ann")
    numbers = [LIVE - 1 - place // 2 for place in range(last)]  # the two take turns, latest first
    assert [int(event.product_id[1:]) for event in reversed(known.events)] == numbers
    assert explaining.read["events"] == last
    assert 0 < explaining.read["live_events"] <= 2 * (last + FEW)
    assert explaining.read.keys() <= {"events", "live_events", "users"}
