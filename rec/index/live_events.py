"""Events that a server is told between two ingests, visible in the next answer.

The table `events` is what the shop's log says and is replaced by a publish whose log has changed. Live events stand
beside it, keyed by an id of the shop's, and a publish leaves them alone but for two kinds (`settle`): those that the
new log holds as well, and those that were received RETENTION ago. A client is a shopper who has not said who they
are; clients and users are different columns, so an id of one never reads what the other did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from rec.index.connections import Connections

RETENTION = timedelta(days=90)
"""How long a live event is kept that no log holds; the next publish after that removes it."""
SAME = timedelta(seconds=60)
"""An event of the log is the live one when user, product and kind are the same and they are at most this far apart:
the shop's log may have been written a moment later, or in whole seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent:
    """One interaction as a server was told it."""

    event_id: str
    """The shop's; the same id in the same catalogue is the same event."""
    product_id: str
    event: str
    """One of rec.schema.EVENTS."""
    at: datetime
    user_id: str | None = None
    client_id: str | None = None
    """Exactly one of the two is given."""
    context: str | None = None
    size: str | None = None
    """What size it was in, as the shop writes it."""
    fit: str | None = None
    """How it fitted, one of rec.sizes.FITS."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of events, by id, in the order given."""

    stored: list[str]
    repeated: list[str]
    """Ids that were there already; what came with them is ignored."""
    forgotten: list[str]
    """Of users whose data was deleted for good (forget.py)."""


def store(connections: Connections, catalogue: str, events: Sequence[LiveEvent]) -> Taken:
    """Add the events that are not there yet, all or none. The caller has checked that the products exist."""
    columns = ("event_id", "user_id", "client_id", "product_id", "event", "at", "context", "size", "fit")
    values = [[getattr(event, column) for event in events] for column in columns]
    with connections.use() as connection:
        rows = connection.execute(
            "INSERT INTO live_events"
            " (catalogue, event_id, user_id, client_id, product_id, event, at, context, size, fit)"
            " SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],"
            " %s::text[], %s::text[], %s::text[]) ON CONFLICT DO NOTHING RETURNING event_id",
            (catalogue, *values),
        ).fetchall()
        new = {event_id for (event_id,) in rows}
        rows = connection.execute(
            "SELECT event_id FROM live_events WHERE catalogue = %s AND event_id = ANY(%s)", (catalogue, values[0])
        ).fetchall()
        there = {event_id for (event_id,) in rows}
    taken = Taken([], [], [])
    for event_id in values[0]:
        if event_id in new:
            new.remove(event_id)
            taken.stored.append(event_id)
        else:
            (taken.repeated if event_id in there else taken.forgotten).append(event_id)
    return taken


def settle(connection: Connection[Any], catalogue: str) -> int:
    """Delete the live events that the loaded ones hold and those that are too old; returns how many.

    Part of the caller's transaction, which has loaded the events.
    """
    return connection.execute(
        "DELETE FROM live_events live WHERE catalogue = %(catalogue)s AND (received_at < now() - %(retention)s"
        " OR EXISTS (SELECT 1 FROM events e WHERE e.catalogue = live.catalogue AND e.user_id = live.user_id"
        "  AND e.product_id = live.product_id AND e.event = live.event"
        "  AND e.at BETWEEN live.at - %(same)s AND live.at + %(same)s))",
        {"catalogue": catalogue, "retention": RETENTION, "same": SAME},
    ).rowcount
