"""Live product facts (price, stock) and what is known of a user, from the serving database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from rec.index.connections import Connections


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One interaction of a user."""

    product_id: str
    event: str
    at: datetime


@dataclass(frozen=True, slots=True)
class PastSize:
    """What a user had on, and how it fitted."""

    product_id: str
    size: str
    fit: str | None


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a user; all empty for a stranger."""

    events: list[PastEvent]  # oldest first
    profile: dict[str, float]


class Catalogue:
    """Products and users of one recipe."""

    def __init__(self, connections: Connections, name: str) -> None:
        self._connections = connections
        self._name = name

    def live(self, product_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """`price`, `currency` and `available` as they are now, by product id; unknown ids are left out."""
        with self._connections.use() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                "SELECT product_id, price, currency, available FROM products"
                " WHERE catalogue = %s AND product_id = ANY(%s)",
                (self._name, list(product_ids)),
            )
            return {row.pop("product_id"): row for row in cursor}

    def find(self, query: str, limit: int) -> list[str]:
        """Ids of products whose title, brand or category holds every word of `query`, available ones first."""
        words = [f"%{_escape(word)}%" for word in query.split()]
        with self._connections.use() as connection:
            rows = connection.execute(
                "SELECT product_id FROM products WHERE catalogue = %(name)s AND NOT EXISTS ("
                " SELECT 1 FROM unnest(%(words)s::text[]) word"
                " WHERE concat_ws(' ', title, brand, array_to_string(category, ' ')) NOT ILIKE word)"
                " ORDER BY available DESC, product_id LIMIT %(limit)s",
                {"name": self._name, "words": words, "limit": limit},
            ).fetchall()
        return [row[0] for row in rows]

    def known(self, user_id: str, last: int) -> Known:
        """The last `last` events and the profile of a user."""
        with self._connections.use() as connection:
            events = connection.execute(
                "SELECT product_id, event, at FROM events WHERE catalogue = %s AND user_id = %s"
                " ORDER BY position DESC LIMIT %s",
                (self._name, user_id, last),
            ).fetchall()
            profile = connection.execute(
                "SELECT profile FROM users WHERE catalogue = %s AND user_id = %s", (self._name, user_id)
            ).fetchone()
        return Known([PastEvent(*row) for row in reversed(events)], {} if profile is None else profile[0])

    def sample(self, limit: int) -> list[str]:
        """Ids of users drawn alike, the same ones each time."""
        with self._connections.use() as connection:
            rows = connection.execute(
                "SELECT user_id FROM users WHERE catalogue = %s ORDER BY md5(user_id), user_id LIMIT %s",
                (self._name, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def sizes(self, user_id: str, last: int) -> list[PastSize]:
        """The sizes of the last `last` events of a user that are in one, oldest first."""
        with self._connections.use() as connection:
            found = connection.execute(
                "SELECT product_id, size, fit FROM events WHERE catalogue = %s AND user_id = %s"
                " AND size IS NOT NULL ORDER BY position DESC LIMIT %s",
                (self._name, user_id, last),
            ).fetchall()
        return [PastSize(*row) for row in reversed(found)]

    def shoppers(self, limit: int) -> list[dict[str, Any]]:
        """The users with most events: id, profile, number of events, latest products; the demo shop offers them."""
        with self._connections.use() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                "SELECT e.user_id, count(*) AS events, coalesce(u.profile, '{}') AS profile,"
                " (array_agg(e.product_id ORDER BY e.position DESC))[1:6] AS recent FROM events e"
                " LEFT JOIN users u USING (catalogue, user_id) WHERE e.catalogue = %s GROUP BY e.user_id, u.profile"
                " ORDER BY events DESC, e.user_id LIMIT %s",
                (self._name, limit),
            )
            return cursor.fetchall()


def _escape(word: str) -> str:
    """`word` as itself inside a LIKE pattern."""
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
