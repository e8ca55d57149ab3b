"""Which event followed from which list.

An event that names the list it follows from belongs to it, if that list has its product. One that names a list that is
not there (not logged, or shown before an experiment) belongs to none. Every other event belongs to the latest list
before it, at most a window earlier, in which the same user or client was shown its product. What was chosen from
another list, or from one that is not there, was not refused in those that had it too: there it is `unclear`.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.data import repeated

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Followed:
    """n events that follow from a list, in the order of the events; and what is unclear."""

    lists: Ints
    """int64[n] row of the list."""
    positions: Ints
    """int64[n] place of the product in it, from 0."""
    events: Ints
    """int64[n] row of the event."""
    unclear: frozenset[tuple[int, int]]
    """(row of the list, place) of products chosen within the window, from another list or one that is not there."""


class _Lists:
    """Lists by shopper, and the products of each as numbers."""

    def __init__(self, shown: pa.Table) -> None:
        products = shown.column("products").combine_chunks()
        encoded = products.flatten().dictionary_encode()
        self._offsets = products.offsets.to_numpy()
        self._codes = encoded.indices.to_numpy()
        self._code_of = {name: code for code, name in enumerate(encoded.dictionary.to_pylist())}
        self._at = shown.column("served_at").cast(pa.int64()).to_numpy()
        self._row_of = {name: row for row, name in enumerate(shown.column("exposure_id").to_pylist())}
        self._of: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for column in ("user_id", "client_id"):
            for row, name in enumerate(shown.column(column).to_pylist()):
                if name is not None:
                    self._of[column, name].append(row)

    def named(self, exposure_id: str | None) -> int | None:
        """Row of the list of this id."""
        return None if exposure_id is None else self._row_of.get(exposure_id)

    def position(self, row: int, product_id: str) -> int | None:
        """Place of a product in a list; None where it is not there."""
        places = np.flatnonzero(
            self._codes[self._offsets[row] : self._offsets[row + 1]] == self._code_of.get(product_id, -1)
        )
        return int(places[0]) if len(places) else None

    def before(self, column: str, name: str, at_us: int, window_us: int) -> Iterator[int]:
        """Lists of a shopper that were shown at `at_us` or at most `window_us` earlier, latest first."""
        rows = self._of.get((column, name), [])
        for place in range(bisect_right(rows, at_us, key=lambda row: self._at[row]) - 1, -1, -1):
            if at_us - self._at[rows[place]] > window_us:
                return
            yield rows[place]


def follow(shown: pa.Table, events: pa.Table, window: timedelta) -> Followed:
    """Which of `events` (rec.index.live_events.FOLLOWING) follow from which lists of `shown` (exposures.SHOWN).

    Lists are in the order of `served_at`. An event that is there twice counts twice: see `once`.
    """
    lists, window_us = _Lists(shown), window // timedelta(microseconds=1)
    found: list[tuple[int, int, int]] = []
    unclear: set[tuple[int, int]] = set()
    columns = [events.column(name).to_pylist() for name in ("user_id", "client_id", "product_id", "exposure_id")]
    at = events.column("at").cast(pa.int64()).to_pylist()
    for event, (user_id, client_id, product_id, exposure_id, at_us) in enumerate(zip(*columns, at, strict=True)):
        column, name = ("client_id", client_id) if user_id is None else ("user_id", user_id)
        met = [(row, lists.position(row, product_id)) for row in lists.before(column, name, at_us, window_us)]
        had = [(row, position) for row, position in met if position is not None]
        own = lists.named(exposure_id)
        position = None if own is None else lists.position(own, product_id)
        origin = None
        if own is not None and position is not None:
            origin = (own, position)
        elif had and (exposure_id is None or own is not None):
            origin = had[0]
        if origin is not None:
            found.append((*origin, event))
        unclear.update(each for each in had if each != origin)
    rows = np.array(found, np.int64).reshape(-1, 3)
    chosen = set(zip(rows[:, 0].tolist(), rows[:, 1].tolist(), strict=True))
    return Followed(rows[:, 0], rows[:, 1], rows[:, 2], frozenset(unclear - chosen))


def once(told: pa.Table, logged: pa.Table) -> pa.Table:
    """The live events and those of the log (both FOLLOWING), without those of the log that a live one of a user is too.

    What is the same event is for rec.data.repeated to say. The live one stays, as it alone names its list.
    """
    mine = told.filter(pc.is_valid(told.column("user_id")))  # the log has no clients
    encoded = pa.concat_tables([mine, logged]).select(["user_id", "product_id", "event", "at"]).combine_chunks()
    for place, name in enumerate(("user_id", "product_id", "event")):
        encoded = encoded.set_column(place, name, encoded.column(name).dictionary_encode())
    new = np.ones(logged.num_rows, bool)
    new[repeated.in_log(encoded, mine.num_rows) - mine.num_rows] = False
    return pa.concat_tables([told, logged.filter(pa.array(new))])
