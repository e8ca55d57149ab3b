"""Events that a server is told between two ingests, visible in the next answer.

The table `events` is what the recipe's dataset says and is replaced by a publish whose dataset has changed. Live
events stand beside it, keyed by an id of the shop's, until retention.expire deletes them. A publish marks
those that the loaded events hold as well (`settle`): they count there and no longer by themselves, but their ids stay
known, so that an event that is sent again is still a repeated one. A client is a shopper who has not said who they are;
clients and users are different columns, so an id of one never reads what the other did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

import pyarrow as pa
from psycopg import Connection

from rec.index.connections import Connections
from rec.index.retention import RETENTION
from rec.schema import INTERACTIONS

READ_AT_ONCE = 65_536
_TOLD = ("event_id", "user_id", "client_id", "product_id", "event", "at", "context", "size", "fit", "exposure_id")
_CONTRACT = ("user_id", "product_id", "event", "at", "context", "size", "fit")
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
    exposure_id: str | None = None
    """The list that it follows from (exposures.py), a UUID."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of events, by id, in the order given."""

    stored: list[str]
    repeated: list[str]
    """Ids that were there already; what came with them is ignored."""
    forgotten: list[str]
    """Of users whose data was deleted for good (forget.py)."""


def store(connections: Connections, catalogue: str, events: Sequence[LiveEvent]) -> Taken:
    """Add the events that are not there yet, all or none. The caller has checked that the products exist.

    They enter in the order of their ids: two servers that are told the same ones would else wait for each other. Of
    events at one moment the later in `events` is the later, by `received_at`.
    """
    values = [[getattr(event, column) for event in events] for column in _TOLD]
    columns = ", ".join(_TOLD)

    def write(connection: Connection[Any]) -> tuple[set[str], set[str]]:
        rows = connection.execute(
            f"INSERT INTO live_events (catalogue, {columns}, received_at)"
            f" SELECT %s, {columns}, now() + place * interval '1 microsecond'"
            " FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::text[],"
            f" %s::text[], %s::text[], %s::uuid[]) WITH ORDINALITY told ({columns}, place)"
            " ORDER BY event_id, place ON CONFLICT DO NOTHING RETURNING event_id",
            (catalogue, *values),
        ).fetchall()
        new = {event_id for (event_id,) in rows}
        rows = connection.execute(
            "SELECT event_id FROM live_events WHERE catalogue = %s AND event_id = ANY(%s)", (catalogue, values[0])
        ).fetchall()
        return new, {event_id for (event_id,) in rows}

    new, there = connections.run(write)
    taken = Taken([], [], [])
    for event_id in values[0]:
        if event_id in new:
            new.remove(event_id)
            taken.stored.append(event_id)
        else:
            (taken.repeated if event_id in there else taken.forgotten).append(event_id)
    return taken


_OF_USERS = pa.schema(
    [
        ("event_id", pa.string()),
        ("received_at", pa.timestamp("us", tz="UTC")),
        *((name, INTERACTIONS.schema.field(name).type) for name in _CONTRACT),
    ]
)


def of_users(connection: Connection[Any], catalogue: str) -> pa.Table:
    """The events of users, oldest first: id, reception and the columns of the events contract that there are.

    Those received today (UTC) are left out, and those that `expire` may delete today: all that is read on one day is
    the same, but for users who are forgotten.
    """
    tables = []
    with connection.cursor("live_events") as cursor:
        cursor.execute(
            f"SELECT event_id, received_at, {', '.join(_CONTRACT)} FROM live_events WHERE catalogue = %(catalogue)s"
            " AND user_id IS NOT NULL AND received_at >= date_trunc('day', now(), 'UTC') - %(kept)s"
            " AND received_at < date_trunc('day', now(), 'UTC') ORDER BY at, received_at, event_id",
            {"catalogue": catalogue, "kept": RETENTION - timedelta(days=1)},
        )
        while rows := cursor.fetchmany(READ_AT_ONCE):
            columns = zip(_OF_USERS.names, zip(*rows, strict=True), strict=True)
            tables.append(pa.table(dict(columns), schema=_OF_USERS))
    return pa.concat_tables([_OF_USERS.empty_table(), *tables]).combine_chunks()


def settle(connection: Connection[Any], catalogue: str) -> int:
    """Mark the live events that the loaded ones hold, and unmark those that they hold no more; returns how many.

    Part of the caller's transaction, which has loaded the events.
    """
    held = (
        "EXISTS (SELECT 1 FROM events e WHERE e.catalogue = live.catalogue AND e.user_id = live.user_id"
        " AND e.product_id = live.product_id AND e.event = live.event"
        " AND e.at BETWEEN live.at - %(same)s AND live.at + %(same)s)"
    )
    changed = 0
    for new, condition in (("true", f"NOT in_log AND {held}"), ("false", f"in_log AND NOT {held}")):
        changed += connection.execute(
            f"UPDATE live_events live SET in_log = {new} WHERE catalogue = %(catalogue)s AND {condition}",
            {"catalogue": catalogue, "same": SAME},
        ).rowcount
    return changed


FOLLOWING = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("client_id", pa.string()),
        ("product_id", pa.string()),
        ("event", pa.string()),
        ("at", pa.timestamp("us", tz="UTC")),
        ("exposure_id", pa.string()),
    ]
)
"""What `following` gives."""


def following(connection: Connection[Any], catalogue: str, since: datetime, until: datetime) -> pa.Table:
    """The events of users and clients from `since` on that were received before `until`, oldest first (FOLLOWING)."""
    return _following(
        connection,
        "SELECT event_id, user_id, client_id, product_id, event, at, exposure_id::text FROM live_events"
        " WHERE catalogue = %s AND at >= %s AND received_at < %s ORDER BY at, received_at, event_id",
        (catalogue, since, until),
    )


def in_log(connection: Connection[Any], catalogue: str, since: datetime) -> pa.Table:
    """The loaded events from `since` on, oldest first (FOLLOWING); some may be live ones as well (attribution.once)."""
    return _following(
        connection,
        "SELECT NULL, user_id, NULL, product_id, event, at, NULL FROM events"
        " WHERE catalogue = %s AND at >= %s ORDER BY at, user_id, position",
        (catalogue, since),
    )


def _following(connection: Connection[Any], query: LiteralString, given: tuple[Any, ...]) -> pa.Table:
    tables = []
    with connection.cursor("following") as cursor:
        cursor.execute(query, given)
        while rows := cursor.fetchmany(READ_AT_ONCE):
            columns = zip(FOLLOWING.names, zip(*rows, strict=True), strict=True)
            tables.append(pa.table(dict(columns), schema=FOLLOWING))
    return pa.concat_tables([FOLLOWING.empty_table(), *tables]).combine_chunks()
