"""Groups of test cases that are reported apart.

* all
* warm_items, cold_items: whether the target has a training event
* same_moment, earlier: whether the last known event has the target's timestamp, or is older. Where a source
  stamps days, `same_moment` asks for the rest of a basket whose order is that of the file
* short_history, long_history: at most SHORT events before the target, or more
* group:NAME: the planted groups of the synthetic sample
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rec.evaluate.cases import Cases

SHORT = 2

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
        "short_history": np.flatnonzero(length <= SHORT),
        "long_history": np.flatnonzero(length > SHORT),
        **groups,
    }


def planted(cases: Cases, user_ids: list[str], truth: Mapping[str, str]) -> dict[str, Ints]:
    """`group:NAME` slices; `truth` gives the group of each user id."""
    names = np.array([truth[user_ids[user]] for user in cases.users], object)
    return {f"group:{name}": np.flatnonzero(names == name) for name in sorted(set(truth.values()))}
