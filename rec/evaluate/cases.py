"""The test: each user's last event, and what was known just before it.

A user is left out, and counted, when the target could not have been recommended: it was in the history
while the recipe excludes seen items, or it was launched after the event according to its own date.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from numpy.typing import NDArray

from rec import histories
from rec.histories import Histories
from rec.state import UserState, cold_state

Ints = NDArray[np.int64]


class Excluded(Sequence[Ints]):
    """Per user, the ascending item rows that are no candidates; made when asked for, as late launches are many."""

    def __init__(self, launches: Ints, late: Ints, seen: list[Ints]) -> None:
        """`launches` int64[N] are item rows by launch; those from position `late[u]` on come too late for user u."""
        self._launches, self._late, self._seen = launches, late, seen

    def __len__(self) -> int:
        return len(self._late)

    @overload
    def __getitem__(self, at: int) -> Ints: ...
    @overload
    def __getitem__(self, at: slice) -> list[Ints]: ...
    def __getitem__(self, at: int | slice) -> Ints | list[Ints]:
        if isinstance(at, slice):
            return [self[user] for user in range(*at.indices(len(self)))]
        if at >= len(self):
            raise IndexError(at)
        return np.union1d(self._launches[self._late[at] :], self._seen[at])

    def part(self, rows: Ints) -> "Excluded":
        """Those of the users `rows`."""
        return Excluded(self._launches, self._late[rows], [self._seen[row] for row in rows])


@dataclass(frozen=True, slots=True)
class Cases:
    """U users of the test, in ascending order."""

    users: Ints
    """int64[U] user indices."""
    targets: Ints
    """int64[U] item row of the last event."""
    at: Ints
    """int64[U] UTC microseconds of the last event."""
    states: list[UserState]
    exclude: Excluded
    """Items seen before, where the recipe excludes them, and items launched after the event."""
    counts: dict[str, int]
    """How many users could be tested, and how many were left out and why."""

    def __len__(self) -> int:
        return len(self.users)

    def part(self, rows: Ints) -> "Cases":
        """The cases `rows`; the counts stay those of all."""
        states = [self.states[row] for row in rows]
        return Cases(self.users[rows], self.targets[rows], self.at[rows], states, self.exclude.part(rows), self.counts)

    def without_histories(self) -> "Cases":
        """The same targets and candidates for users of whom only context and profile are known."""
        none = cold_state(0)
        states = [replace(s, items=none.items, events=none.events, ages_s=none.ages_s) for s in self.states]
        return replace(self, states=states)


def last_events(
    h: Histories, created_us: Ints, *, history: int, exclude_seen: bool, max_users: int | None, seed: int
) -> Cases:
    """The test of `h`; `created_us` int64[N] is each item's launch, -1 where unknown.

    More than `max_users` users are cut to a seeded draw, after those that cannot be tested are left out.
    """
    every = histories.leave_one_out(h).test_users
    last = h.offsets[every + 1] - 1
    targets, at = h.items[last], h.at[last]
    unlaunched = created_us[targets] > at
    again = np.zeros(len(every), bool)
    if exclude_seen:
        again = np.array(
            [target in h.items[h.offsets[u] : e] for u, e, target in zip(every, last, targets, strict=True)], bool
        )
    able = np.flatnonzero(~unlaunched & ~again)
    chosen = able
    if max_users is not None and len(able) > max_users:
        chosen = np.sort(np.random.default_rng(seed).choice(able, max_users, replace=False))
    users, ends = every[chosen], last[chosen]
    states = [
        histories.state(h, int(user), int(end), history, int(h.at[end]), h.contexts[end])
        for user, end in zip(users, ends, strict=True)
    ]
    launches = np.argsort(created_us, kind="stable")
    late = np.searchsorted(created_us[launches], at[chosen], side="right")
    seen = [
        h.items[h.offsets[user] : end if exclude_seen else h.offsets[user]]
        for user, end in zip(users, ends, strict=True)
    ]
    counts = {
        "with_three_events": len(every),
        "left_out_target_seen": int(again.sum()),
        "left_out_target_not_launched": int((unlaunched & ~again).sum()),
        "testable": len(able),
        "tested": len(users),
    }
    return Cases(users, targets[chosen], at[chosen], states, Excluded(launches, late, seen), counts)
