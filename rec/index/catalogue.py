"""Live product facts (price, stock) and what is known of a user, from the serving database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.errors import QueryCanceled
from psycopg.rows import dict_row

from rec.errors import DatabaseError
from rec.index import exposures
from rec.index.connections import Connections

FIND_MS = 1_500
"""Longest time for `find` to read every product: Postgres ends it, and the connection lives on."""
PAGE_GROWS = 16
"""How many times as many products as before `find` looks at, where too few of them were known."""


class TooSlow(DatabaseError):
    """A search for words that Postgres ended after FIND_MS."""


@dataclass(frozen=True, slots=True)
class PastEvent:
    """One interaction of a user."""

    product_id: str
    event: str
    at: datetime
    size: str | None = None
    """What size it was in; read by the fit head alone, as `fit` is."""
    fit: str | None = None
    """How it fitted, one of rec.sizes.FITS."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the database knows of a user; all empty for a stranger."""

    events: list[PastEvent]  # oldest first
    profile: dict[str, float]


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds of one user, for whoever has a right to see it."""

    profile: dict[str, float]
    events: list[dict[str, Any]]
    """`product_id`, `event`, `at`, `size` and `fit`, oldest first."""
    live_events: list[dict[str, Any]]
    """These, and `event_id`, `context`, `received_at`, `exposure_id`, and `in_log`: whether `events` has it as well."""
    exposures: list[dict[str, Any]]
    """The lists that the user was shown, by column of rec.index.exposures."""


class Catalogue:
    """Products and users of one recipe."""

    def __init__(self, connections: Connections, name: str) -> None:
        self._connections = connections
        self._name = name

    def live(self, product_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """`price`, `currency` and `available` as they are now, by product id; unknown ids are left out."""
        query = (
            "SELECT product_id, price, currency, available FROM products WHERE catalogue = %s AND product_id = ANY(%s)"
        )
        found = self._connections.run(lambda c: c.execute(query, (self._name, list(product_ids))).fetchall())
        return {name: dict(zip(("price", "currency", "available"), facts, strict=True)) for name, *facts in found}

    def find(self, query: str, limit: int, known: Callable[[str], bool]) -> list[str]:
        """Ids of `known` products whose title, brand or category holds every word of `query`, available ones first.

        Those of another bundle of the catalogue may stand among them. Raises TooSlow where reading all products once
        takes longer than FIND_MS.
        """
        found: dict[str, None] = {}
        begun, size, more = 0, limit, True
        while more and len(found) < limit:
            page = self._page(query, size, begun)
            found |= dict.fromkeys(product_id for product_id in page if known(product_id))
            # each page reads every product, so there are few: of a million one of 24 and four more
            begun, size, more = begun + size, PAGE_GROWS * size, len(page) == size
        return list(found)[:limit]

    def _page(self, query: str, size: int, begun: int) -> list[str]:
        """At most `size` of the products after the first `begun`."""
        words = [f"%{_escape(word)}%" for word in query.split()]
        with self._connections.use() as connection:
            connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(FIND_MS),))
            try:
                rows = connection.execute(
                    "SELECT product_id FROM products WHERE catalogue = %(name)s AND NOT EXISTS ("
                    " SELECT 1 FROM unnest(%(words)s::text[]) word"
                    " WHERE concat_ws(' ', title, brand, array_to_string(category, ' ')) NOT ILIKE word)"
                    " ORDER BY available DESC, product_id LIMIT %(limit)s OFFSET %(begun)s",
                    {"name": self._name, "words": words, "limit": size, "begun": begun},
                ).fetchall()
            except QueryCanceled:
                raise TooSlow(f"a search for {len(words)} words took over {FIND_MS / 1e3:g} s") from None
        return [row[0] for row in rows]

    def known(self, user_id: str | None, last: int, client_id: str | None = None) -> Known:
        """The last `last` events of a user and of an anonymous client, loaded and live ones, and the user's profile."""
        of = {"name": self._name, "user": user_id, "client": client_id, "last": last}
        live = (
            "SELECT product_id, event, at, size, fit, 1, (extract(epoch FROM received_at) * 1000000)::bigint"
            " FROM live_events WHERE catalogue = %(name)s AND NOT in_log AND"
        )
        query = (
            "SELECT product_id, event, at, size, fit FROM ("
            " (SELECT product_id, event, at, size, fit, 0 AS live, position::bigint AS place FROM events"
            "  WHERE catalogue = %(name)s AND user_id = %(user)s ORDER BY position DESC LIMIT %(last)s)"
            f" UNION ALL ({live} user_id = %(user)s ORDER BY at DESC, received_at DESC LIMIT %(last)s)"
            f" UNION ALL ({live} client_id = %(client)s ORDER BY at DESC, received_at DESC LIMIT %(last)s)"
            ") found ORDER BY at DESC, live DESC, place DESC LIMIT %(last)s"
        )
        profiles = "SELECT profile FROM users WHERE catalogue = %(name)s AND user_id = %(user)s"
        events, profile = self._connections.run(
            lambda c: (c.execute(query, of).fetchall(), c.execute(profiles, of).fetchone())
        )
        return Known([PastEvent(*row) for row in reversed(events)], {} if profile is None else profile[0])

    def stored(self, user_id: str) -> Stored | None:
        """All that is stored of a user; None for a stranger."""
        with self._connections.use() as connection, connection.cursor(row_factory=dict_row) as cursor:
            profile = cursor.execute(
                "SELECT profile FROM users WHERE catalogue = %s AND user_id = %s", (self._name, user_id)
            ).fetchone()
            events = cursor.execute(
                "SELECT product_id, event, at, size, fit FROM events"
                " WHERE catalogue = %s AND user_id = %s ORDER BY position",
                (self._name, user_id),
            ).fetchall()
            live = cursor.execute(
                "SELECT event_id, product_id, event, at, size, fit, context, received_at, in_log,"
                " exposure_id::text FROM live_events"
                " WHERE catalogue = %s AND user_id = %s ORDER BY at, received_at",
                (self._name, user_id),
            ).fetchall()
            lists = exposures.of_user(connection, self._name, user_id)
        if profile is None and not (events or live or lists):
            return None
        return Stored({} if profile is None else profile["profile"], events, live, lists)

    def sample(self, limit: int) -> list[str]:
        """Ids of users drawn alike, the same ones each time."""
        with self._connections.use() as connection:
            rows = connection.execute(
                "SELECT user_id FROM users WHERE catalogue = %s ORDER BY md5(user_id), user_id LIMIT %s",
                (self._name, limit),
            ).fetchall()
        return [row[0] for row in rows]

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
