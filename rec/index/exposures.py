"""Lists as servers have shown them: written in batches, read by whoever learns from them or has a right to see them.

A row holds what the ranker was asked and what became of it: the state of the shopper, the first candidates of
retrieval, and the list. Products are named by id, since item rows are those of one bundle. Rows are kept for
retention.RETENTION and go with the user's or the client's other data (forget.py); a trigger takes none of a user whose
data was deleted for good.
"""

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import Connection, sql
from psycopg.rows import dict_row

from rec.errors import ConfigError
from rec.index import binary_copy
from rec.index.connections import Connections
from rec.index.retention import RETENTION

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

SHARE_VARIABLE = "REC_LISTS"
READ_AT_ONCE = 16_384
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One list that was shown: P products, C candidates, H events of the shopper's history."""

    exposure_id: str
    catalogue: str
    bundle: str
    experiment: int | None
    """Number of the experiment that the shopper took part in (experiments.py)."""
    arm: str | None
    """One of experiments.ARMS; None where `experiment` is."""
    user_id: str | None
    client_id: str | None
    """Either, both or neither, as the request named them."""
    served_at: datetime
    """By the server's clock."""
    at: datetime
    """The moment that ages of events and products were taken at; another one where the bundle's data is stale."""
    context: str
    k: int
    degraded: list[str]
    """What the answer did without, as codes."""
    products: list[str]
    """P ids in the order shown."""
    scores: Floats
    """float32[P] that ordered them, before rules."""
    probabilities: Floats | None
    """float32[P]; None without the ranker."""
    retrieval_scores: Floats
    """float32[P]"""
    sources: Ints
    """int64[P] bits of rec.retrieval.SOURCES."""
    cooccurrence: Floats
    """float32[P]"""
    places: Ints
    """int64[P] place of each among all candidates, from 0."""
    retrieved: int
    """How many candidates there were; C of them are logged."""
    candidates: list[str]
    """C ids in the order of retrieval."""
    candidate_scores: Floats
    """float32[C] retrieval scores."""
    candidate_sources: Ints
    """int64[C]"""
    history: list[str]
    """H ids of the products of the events that the models were given, oldest first."""
    history_events: Ints
    """int64[H] kinds, 1-based positions in rec.schema.EVENTS."""
    history_ages: Floats
    """float32[H] seconds from each event to `at`."""
    profile: Mapping[str, float]
    """What was known of the profile, by column."""


def _text(value: str) -> bytes:
    return value.encode()


_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {
    "exposure_id": lambda value: uuid.UUID(value).bytes,
    "catalogue": _text,
    "bundle": _text,
    "experiment": binary_copy.bigint,
    "arm": _text,
    "user_id": _text,
    "client_id": _text,
    "served_at": binary_copy.timestamp,
    "at": binary_copy.timestamp,
    "context": _text,
    "k": binary_copy.integer,
    "degraded": binary_copy.texts,
    "products": binary_copy.texts,
    "scores": binary_copy.reals,
    "probabilities": binary_copy.reals,
    "retrieval_scores": binary_copy.reals,
    "sources": binary_copy.integers,
    "cooccurrence": binary_copy.reals,
    "places": binary_copy.integers,
    "retrieved": binary_copy.integer,
    "candidates": binary_copy.texts,
    "candidate_scores": binary_copy.reals,
    "candidate_sources": binary_copy.integers,
    "history": binary_copy.texts,
    "history_events": binary_copy.integers,
    "history_ages": binary_copy.reals,
    "profile": binary_copy.jsonb,
}
"""The columns, and how COPY's binary format has a value of each."""

_INTS = ("sources", "places", "candidate_sources", "history_events")
_FLOATS = ("scores", "retrieval_scores", "cooccurrence", "candidate_scores", "history_ages")


def share() -> float | None:
    """The share of lists, 0 to 1, that the environment has this machine's servers log; None: as their bundles say.

    Raises ConfigError for a value that says nothing.
    """
    given = os.environ.get(SHARE_VARIABLE, "")
    if not given:
        return None
    try:
        found = float(given)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise ConfigError(f"{SHARE_VARIABLE} is {given!r}: give the share of lists to log, 0 to 1, or unset it")
    return found


def new_id() -> str:
    """A new unique id, a UUID of version 7 (RFC 9562, section 5.7): in the order of time, which spares the index."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    return str(uuid.UUID(int=value))


def write(connections: Connections, exposures: Sequence[Exposure]) -> None:
    """Add exposures, all or none. Those of users whose data was deleted for good are not stored."""
    statement = sql.SQL("COPY exposures ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.SQL(", ").join(map(sql.Identifier, _ENCODERS))
    )
    rows = b"".join(binary_copy.row(_encoded(exposure)) for exposure in exposures)
    with connections.use() as connection, connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(binary_copy.HEADER + rows + binary_copy.TRAILER)


def _encoded(exposure: Exposure) -> list[bytes | None]:
    values = ((encode, getattr(exposure, column)) for column, encode in _ENCODERS.items())
    return [None if value is None else encode(value) for encode, value in values]


def of_user(connection: Connection[Any], catalogue: str, user_id: str) -> list[dict[str, Any]]:
    """All that is stored of the lists that a user was shown, oldest first, by column."""
    columns = [column for column in _ENCODERS if column not in ("catalogue", "exposure_id")]
    query = sql.SQL(
        "SELECT exposure_id::text, {} FROM exposures WHERE catalogue = %s AND user_id = %s"
        " ORDER BY served_at, exposure_id"
    ).format(sql.SQL(", ").join(map(sql.Identifier, columns)))
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, (catalogue, user_id)).fetchall()


SHOWN = pa.schema(
    [
        ("exposure_id", pa.string()),
        ("user_id", pa.string()),
        ("client_id", pa.string()),
        ("served_at", _TIME),
        ("products", pa.list_(pa.string())),
        ("arm", pa.string()),
    ]
)
"""What `shown` gives."""


def shown(connection: Connection[Any], catalogue: str, *, until: datetime, experiment: int | None = None) -> pa.Table:
    """The lists that were shown before `until` and that `expire` will not delete today, oldest first (SHOWN).

    Of one experiment where its number is given. Memory holds them: some 200 bytes a list of ten products.
    """
    tables = []
    with connection.cursor("exposures") as cursor:
        cursor.execute(
            "SELECT exposure_id::text, user_id, client_id, served_at, products, arm FROM exposures"
            " WHERE catalogue = %(catalogue)s AND served_at < %(until)s"
            " AND served_at >= date_trunc('day', now(), 'UTC') - %(kept)s"
            " AND (%(experiment)s::bigint IS NULL OR experiment = %(experiment)s)"
            " ORDER BY served_at, exposure_id",
            {
                "catalogue": catalogue,
                "until": until,
                "kept": RETENTION - timedelta(days=1),
                "experiment": experiment,
            },
        )
        while rows := cursor.fetchmany(READ_AT_ONCE):
            tables.append(pa.table(dict(zip(SHOWN.names, zip(*rows, strict=True), strict=True)), schema=SHOWN))
    return pa.concat_tables([SHOWN.empty_table(), *tables]).combine_chunks()


def whole(connection: Connection[Any], ids: Sequence[str]) -> Iterator[Exposure]:
    """The exposures of these ids that are still there, in their order."""
    for start in range(0, len(ids), READ_AT_ONCE):
        query = sql.SQL(
            "SELECT e.exposure_id::text, {} FROM unnest(%s::uuid[]) WITH ORDINALITY asked (exposure_id, place)"
            " JOIN exposures e USING (exposure_id) ORDER BY place"
        ).format(sql.SQL(", ").join(sql.Identifier(name) for name in _ENCODERS if name != "exposure_id"))
        with connection.cursor(row_factory=dict_row) as cursor:
            for row in cursor.execute(query, (list(ids[start : start + READ_AT_ONCE]),)):
                yield _decoded(row)


def _decoded(row: dict[str, Any]) -> Exposure:
    given = row["probabilities"]
    arrays: dict[str, Any] = {name: np.array(row[name], np.int64) for name in _INTS}
    arrays |= {name: np.array(row[name], np.float32) for name in _FLOATS}
    arrays["probabilities"] = None if given is None else np.array(given, np.float32)
    return Exposure(**{**row, **arrays})


def digest(table: pa.Table, key: str = "exposure_id") -> str:
    """SHA-256 of which rows a table has, by their ids in column `key`; what has the same id is the same."""
    return hashlib.sha256("\0".join(table.column(key).to_pylist()).encode()).hexdigest()
