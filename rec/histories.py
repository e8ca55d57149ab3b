"""Event histories of all users as flat arrays, and the leave-one-out split every later stage shares.

Users are in ascending order of id. The events of user u are `[offsets[u], offsets[u + 1])`, oldest
first, ties in the source's order. The user tower learns from all events but the last two of a user with
three or more: the second last is the ranker's target and the last is the test.

The split is by position, which is the field's protocol. Where a source stamps days, the events before the
target may be of its own day; evaluation reports these users apart (`rec.evaluate.slices`).
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec import dataset
from rec.schema import EVENTS, INTERACTIONS, PRODUCTS, USERS
from rec.state import UserState

log = logging.getLogger(__name__)

BODY = ("height_cm", "weight_kg", "birth_year")
"""Profile columns of the users contract; the numeric map's keys follow in ascending order."""

MIN_EVENTS = 3
"""Users with fewer known events have no held-out event: all of theirs train the user tower."""


@dataclass(frozen=True, slots=True)
class Histories:
    """All known events of all users (U users, E events), and the profiles."""

    user_ids: list[str]
    """U ids, ascending."""
    offsets: NDArray[np.int64]
    """int64[U + 1] range of each user in the event arrays."""
    items: NDArray[np.int64]
    """int64[E] item rows."""
    events: NDArray[np.int64]
    """int64[E] kinds, 1-based positions in `EVENTS`."""
    at: NDArray[np.int64]
    """int64[E] UTC microseconds."""
    contexts: list[str]
    """E texts that the user gave at the event; "" for none."""
    profiles: NDArray[np.float32]
    """float32[U, P] raw values, nan where missing."""
    profile_names: list[str]
    """P column names."""
    num_items: int
    """Rows of the products dataset."""
    unknown: int
    """Events that were left out because their product is unknown."""


@dataclass(frozen=True, slots=True)
class Split:
    """Leave-one-out: which events train the user tower, and whose held-out events train or test the rest."""

    train_end: NDArray[np.int64]
    """int64[U] exclusive end, in the event arrays, of the events that train the user tower."""
    ranker_users: NDArray[np.int64]
    """User indices whose second last event (`offsets[u + 1] - 2`) is a target of the ranker."""
    test_users: NDArray[np.int64]
    """User indices whose last event (`offsets[u + 1] - 1`) is a test."""


def load(root: Path) -> Histories:
    """Read the products, users and events datasets under `root`."""
    product_ids = dataset.read(root / "products", PRODUCTS, ["product_id"]).column("product_id")
    users = dataset.read(root / "users", USERS)
    events = dataset.read(root / "events", INTERACTIONS, ["user_id", "product_id", "event", "at", "context"])
    items = _positions(events.column("product_id"), product_ids)
    order = _order(events, items)
    unknown = len(items) - len(order)
    if unknown:
        log.warning("%d of %d events are on unknown products and are left out", unknown, len(items))
    user_ids = sorted(set(users.column("user_id").to_pylist()) | set(pc.unique(events.column("user_id")).to_pylist()))
    user = _positions(events.column("user_id"), pa.array(user_ids, pa.string()))[order]
    at = events.column("at").cast(pa.int64()).to_numpy()[order]
    kinds = _positions(events.column("event"), pa.array(EVENTS, pa.string()))[order] + 1
    contexts = np.array([text or "" for text in events.column("context").to_pylist()], object)[order]
    offsets = np.zeros(len(user_ids) + 1, np.int64)
    np.cumsum(np.bincount(user, minlength=len(user_ids)), out=offsets[1:])
    profiles, names = _profiles(users, user_ids)
    return Histories(
        user_ids=user_ids,
        offsets=offsets,
        items=items[order],
        events=kinds,
        at=at,
        contexts=contexts.tolist(),
        profiles=profiles,
        profile_names=names,
        num_items=len(product_ids),
        unknown=unknown,
    )


def event_rows(root: Path) -> NDArray[np.int64]:
    """int64[E] row of the events dataset under `root` that each place of the event arrays is."""
    product_ids = dataset.read(root / "products", PRODUCTS, ["product_id"]).column("product_id")
    events = dataset.read(root / "events", INTERACTIONS, ["user_id", "product_id", "at"])
    return _order(events, _positions(events.column("product_id"), product_ids))


def _order(events: pa.Table, items: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[E] rows of events on known products (`items` >= 0) by user and time; ties keep the source's order."""
    known = np.flatnonzero(items >= 0)
    users = events.column("user_id").take(pa.array(known))
    user = _positions(users, pa.array(sorted(pc.unique(users).to_pylist()), pa.string()))
    at = events.column("at").cast(pa.int64()).to_numpy()[known]
    return known[np.lexsort((at, user))]


def _positions(values: pa.ChunkedArray, known: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """int64 position of each value in `known`; -1 where it is not there."""
    if isinstance(known, pa.ChunkedArray):
        known = known.combine_chunks()
    found: NDArray[np.int32] = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy()
    return found.astype(np.int64)


def _profiles(users: pa.Table, user_ids: list[str]) -> tuple[NDArray[np.float32], list[str]]:
    """float32[U, P] and the names of the columns that hold any value."""
    rows = _positions(users.column("user_id"), pa.array(user_ids, pa.string()))
    numeric: list[dict[str, Any]] = [dict(pairs or ()) for pairs in users.column("numeric").to_pylist()]
    columns: dict[str, NDArray[np.float32]] = {
        name: users.column(name).cast(pa.float32()).to_numpy().astype(np.float32) for name in BODY
    }
    for key in sorted({key for pairs in numeric for key in pairs} - set(BODY)):
        columns[key] = np.array([pairs.get(key) for pairs in numeric], np.float32)
    names = [name for name, values in columns.items() if np.isfinite(values).any()]
    profiles = np.full((len(user_ids), len(names)), np.nan, np.float32)
    for column, name in enumerate(names):
        profiles[rows, column] = np.where(np.isfinite(columns[name]), columns[name], np.nan)
    return profiles, names


def leave_one_out(h: Histories) -> Split:
    """The split of `h`: users with at least MIN_EVENTS events are the ranker's and the test's users."""
    end = h.offsets[1:]
    enough = np.diff(h.offsets) >= MIN_EVENTS
    users = np.flatnonzero(enough)
    return Split(train_end=np.where(enough, end - 2, end), ranker_users=users, test_users=users)


def state(h: Histories, user: int, end: int, n: int, now_us: int, context: str) -> UserState:
    """What was known of `user` at `now_us`: the last `n` events of `[offsets[user], end)`, oldest first."""
    start = max(int(h.offsets[user]), end - n)
    ages = np.maximum(now_us - h.at[start:end], 0) / 1e6
    return UserState(
        items=h.items[start:end],
        events=h.events[start:end],
        ages_s=ages.astype(np.float32),
        context=context,
        profile=h.profiles[user],
    )


def seen(h: Histories, user: int, end: int) -> NDArray[np.int64]:
    """Ascending item rows of all events `[offsets[user], end)` of `user`, each once."""
    return np.unique(h.items[h.offsets[user] : end])


def training_events(h: Histories) -> NDArray[np.bool_]:
    """bool[E] whether the event trains the user tower."""
    return np.arange(len(h.items)) < np.repeat(leave_one_out(h).train_end, np.diff(h.offsets))


def events_before_test(h: Histories) -> NDArray[np.bool_]:
    """bool[E] whether the event is no test: all but the last one of each test user."""
    known = np.ones(len(h.items), bool)
    known[h.offsets[leave_one_out(h).test_users + 1] - 1] = False
    return known


def profile_statistics(profiles: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """float64[P] mean and standard deviation of the known values of each column; 1 for one that never varies."""
    known = np.isfinite(profiles)
    count = np.maximum(known.sum(axis=0), 1)
    values = np.where(known, profiles, 0).astype(np.float64)
    mean = values.sum(axis=0) / count
    variance = (np.where(known, values - mean, 0) ** 2).sum(axis=0) / count
    return mean, np.sqrt(np.where(variance > 1e-12, variance, 1))
