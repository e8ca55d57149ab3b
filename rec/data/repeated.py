"""Events that are told more than once: by a source, or by a source and by a server.

All take clean events, `rec.data.clean.EVENT_TABLE`, whose chunks have one dictionary.
"""

import numpy as np
import pyarrow as pa

from rec.index.live_events import SAME
from rec.schema import INTERACTIONS

_DAY_US = 86_400_000_000
_SAME_US = SAME.total_seconds() * 1e6


def told_again(table: pa.Table) -> np.ndarray:
    """Rows int64 of events sorted by (user_id, at) that repeat an earlier one in every column.

    Midnight is what a stamp of days looks like: there, equal rows are things bought twice on a day, and stay.
    """
    user, at = _codes(table, "user_id"), _micros(table)
    follows = (user[1:] == user[:-1]) & (at[1:] == at[:-1]) & (at[1:] % _DAY_US != 0)
    near = np.flatnonzero(np.append(follows, False) | np.insert(follows, 0, False))
    return near[table.take(pa.array(near)).cast(INTERACTIONS.schema).to_pandas().duplicated().to_numpy(dtype=bool)]


def in_log(table: pa.Table, logged: int) -> np.ndarray:
    """Rows int64 from `logged` on, in any order, of the events that one of the first `logged` is as well: the same
    user, product and kind, at most `live_events.SAME` apart."""
    user = _codes(table, "user_id")
    rows = np.flatnonzero(np.isin(user, user[logged:]))  # nobody else's can be the same
    key = np.stack([user[rows], _codes(table, "product_id")[rows], _codes(table, "event")[rows]])
    at = _micros(table)[rows]
    order = np.lexsort((at, *key))
    rows, key, at = rows[order], key[:, order], at[order]
    places, of_log = np.arange(len(rows)), rows < logged
    # the log's events next to each, those at the same place for its own; outside where there is none
    before = np.maximum.accumulate(np.where(of_log, places, -1))
    after = np.minimum.accumulate(np.where(of_log, places, len(rows))[::-1])[::-1]
    found = np.zeros(len(rows), bool)
    for beside in (before, after):
        there = np.flatnonzero((beside >= 0) & (beside < len(rows)))
        near = beside[there]
        found[there] |= (key[:, near] == key[:, there]).all(axis=0) & (np.abs(at[near] - at[there]) <= _SAME_US)
    return np.asarray(rows[found & ~of_log])


def _codes(table: pa.Table, name: str) -> np.ndarray:
    """int32[n] of an encoded column."""
    return np.asarray(table.column(name).combine_chunks().indices)


def _micros(table: pa.Table) -> np.ndarray:
    """int64[n] UTC microseconds."""
    return np.asarray(table.column("at").cast(pa.int64()))
