"""Groups of test cases that are reported apart.

* all
* warm_items, cold_items: whether the target has a training event
* same_moment, earlier: whether the last known event has the target's timestamp, or is older. Where a source
  stamps days, `same_moment` asks for the rest of a basket whose order is that of the file
* history:RANGE: how many events before the target the tower reads, at most `user_tower.history`
* popularity:1 to popularity:4: quartiles of the target's training count, the rarest first, in which every training
  event counts once: each quartile of the products has about a quarter of the events. Cold targets are in none
* group:NAME: the planted groups of the synthetic sample
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rec.evaluate.cases import Cases

HISTORY = ((0, 0), (1, 2), (3, 5), (6, 10), (11, None))
"""First and last number of known events of each slice."""
QUARTILES = (25, 50, 75)

Ints = NDArray[np.int64]


def of(cases: Cases, popularity: Ints, groups: Mapping[str, Ints]) -> dict[str, Ints]:
    """Rows of the cases in each slice; `popularity` int64[N] counts training events.

    `groups` are further slices given as rows of the cases.
    """
    warm = popularity[cases.targets] > 0
    age = np.array([state.ages_s[-1] if len(state.ages_s) else np.inf for state in cases.states])
    length = np.array([len(state.items) for state in cases.states], np.int64)
    return {
        "all": np.arange(len(cases)),
        "warm_items": np.flatnonzero(warm),
        "cold_items": np.flatnonzero(~warm),
        "same_moment": np.flatnonzero(age == 0),
        "earlier": np.flatnonzero(age > 0),
        **{
            history_name(low, high): np.flatnonzero((length >= low) & (length <= (np.inf if high is None else high)))
            for low, high in HISTORY
        },
        **_by_popularity(popularity[cases.targets], quartile_bounds(popularity)),
        **groups,
    }


def history_name(low: int, high: int | None) -> str:
    """The slice of users of whom `low` to `high` events are known."""
    return f"history:{low}+" if high is None else f"history:{low}" if low == high else f"history:{low}-{high}"


def quartile_bounds(popularity: Ints) -> list[int]:
    """Highest training count in each of the first three quartiles, of the counts int64[N] of all products."""
    counts = np.repeat(popularity, popularity)  # of every event, how many its product has
    return [int(np.percentile(counts, q, method="inverted_cdf")) for q in QUARTILES] if len(counts) else [0, 0, 0]


def _by_popularity(counts: Ints, bounds: list[int]) -> dict[str, Ints]:
    """`popularity:N` slices of targets with the training counts int64[U]."""
    quartile = np.searchsorted(bounds, counts, side="left") + 1
    return {f"popularity:{n}": np.flatnonzero((quartile == n) & (counts > 0)) for n in range(1, len(bounds) + 2)}


def planted(cases: Cases, user_ids: list[str], truth: Mapping[str, str]) -> dict[str, Ints]:
    """`group:NAME` slices; `truth` gives the group of each user id."""
    names = np.array([truth[user_ids[user]] for user in cases.users], object)
    return {f"group:{name}": np.flatnonzero(names == name) for name in sorted(set(truth.values()))}
