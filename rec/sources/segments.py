"""Popular items by coarse profile segment: what shoppers without events get beside the search.

A segment is a combination of buckets, by thirds of the users, of the profile columns that most users have told;
buckets of raw values are those of z-scored ones. Items are in order of

    events of the segment + PRIOR_EVENTS x share of all events

so that a segment with few events has nearly the common order, and one with none has exactly that. Training events
alone are counted.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rec import histories
from rec.histories import Histories
from rec.retrieval import popular, popularity

Ints = NDArray[np.int64]

MAX_COLUMNS = 2
"""Profile columns in use: two make at most nine segments of complete profiles."""
BUCKETS = 3
PRIOR_EVENTS = 1_000.0
"""How many events of its own weigh as much in a segment's order as all events together."""
POOL = 2_000
"""Items of each order that are kept: filters are tried on them."""

_DIGITS = 1 + BUCKETS  # 0 is for a column that the user has not told


@dataclass(frozen=True, slots=True)
class Segments:
    """Orders of S segments over C profile columns, S = 4 ** C."""

    columns: Ints
    """int64[C] columns of the profile."""
    cuts: NDArray[np.float32]
    """float32[C, BUCKETS - 1] ascending bounds between the buckets of each column."""
    orders: NDArray[np.int32]
    """int32[S, P] the P first item rows of each segment; segment 0, of users of whom nothing is known, has the common
    order."""

    def popular(self, profile: NDArray[np.float32]) -> Ints:
        """int64[P] the popular items of the segment of `profile` float32[all columns], nan where missing."""
        return self.orders[_codes(profile[None, self.columns], self.cuts)[0]].astype(np.int64)


def _codes(values: NDArray[np.float32], cuts: NDArray[np.float32]) -> Ints:
    """int64[U] segments of profile values float32[U, C]."""
    codes = np.zeros(len(values), np.int64)
    for column, bounds in enumerate(cuts):
        told = values[:, column]
        bucket = 1 + np.searchsorted(bounds, told, side="right")
        codes = codes * _DIGITS + np.where(np.isfinite(told), bucket, 0)
    return codes


def build(h: Histories) -> Segments:
    """The segments of all users who have training events, and the orders of these events."""
    training = histories.training_events(h)
    items, users = h.items[training], np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))[training]
    profiles = h.profiles[np.unique(users)]
    columns = _told_most(profiles)
    cuts = np.array(
        [
            np.quantile(profiles[np.isfinite(profiles[:, c]), c], np.arange(1, BUCKETS) / BUCKETS, method="nearest")
            for c in columns
        ],
        np.float32,
    ).reshape(len(columns), BUCKETS - 1)
    codes = _codes(h.profiles[:, columns], cuts)[users]
    common = popularity(items, h.num_items)
    share = common / max(common.sum(), 1)
    width = min(POOL, h.num_items)
    orders = np.tile(popular(common)[:width], (_DIGITS ** len(columns), 1))
    for code in np.unique(codes[codes > 0]):
        weight = popularity(items[codes == code], h.num_items) + PRIOR_EVENTS * share
        orders[code] = popular(weight)[:width]
    return Segments(columns, cuts, orders.astype(np.int32))


def _told_most(profiles: NDArray[np.float32]) -> Ints:
    """int64[C] up to MAX_COLUMNS columns of `profiles` float32[U, P] that vary, those of most users first."""
    told = np.isfinite(profiles).sum(axis=0)
    varies = np.array([len(np.unique(column[np.isfinite(column)])) >= BUCKETS for column in profiles.T], bool)
    order = np.argsort(-told, kind="stable")
    return order[varies[order]][:MAX_COLUMNS].astype(np.int64)
