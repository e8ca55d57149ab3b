"""The test: one held-out event of each user, the last one unless a split says otherwise, and what was known before it.

A user is left out, and counted, when the target could not have been recommended: it was in the history
while the recipe excludes seen items, or it was launched after the event according to its own date.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rec import histories, samples
from rec.config import Config
from rec.histories import Histories
from rec.retrieval import Excluded
from rec.state import UserState, cold_state

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cases:
    """U users of the test, in ascending order."""

    users: Ints
    """int64[U] user indices."""
    targets: Ints
    """int64[U] item row of the event."""
    at: Ints
    """int64[U] UTC microseconds of the event."""
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


def of_recipe(config: Config, h: Histories, *, max_users: int | None) -> Cases:
    """`last_events` as the recipe serves and evaluates."""
    tower = config.user_tower
    return last_events(
        h,
        samples.created_us(config.root),
        history=tower.history,
        exclude_seen=tower.exclude_seen,
        max_users=max_users,
        seed=config.seed,
    )


def last_events(
    h: Histories, created_us: Ints, *, history: int, exclude_seen: bool, max_users: int | None, seed: int
) -> Cases:
    """`at_events` of the leave-one-out split: each test user's last event."""
    last = h.offsets[histories.leave_one_out(h).test_users + 1] - 1
    return at_events(h, last, created_us, history=history, exclude_seen=exclude_seen, max_users=max_users, seed=seed)


def at_events(
    h: Histories, ends: Ints, created_us: Ints, *, history: int, exclude_seen: bool, max_users: int | None, seed: int
) -> Cases:
    """The test of the events `ends` int64[T] of `h`, ascending, at most one of a user.

    `created_us` int64[N] is each item's launch, -1 where unknown.
    More than `max_users` users are cut to a seeded draw, after those that cannot be tested are left out.
    """
    every = np.searchsorted(h.offsets, ends, side="right") - 1
    targets, at = h.items[ends], h.at[ends]
    unlaunched = created_us[targets] > at
    again = np.zeros(len(every), bool)
    if exclude_seen:
        again = np.array(
            [target in h.items[h.offsets[u] : e] for u, e, target in zip(every, ends, targets, strict=True)], bool
        )
    able = np.flatnonzero(~unlaunched & ~again)
    chosen = able
    if max_users is not None and len(able) > max_users:
        chosen = np.sort(np.random.default_rng(seed).choice(able, max_users, replace=False))
    users, tested = every[chosen], ends[chosen]
    states = [
        histories.state(h, user, end, history, int(h.at[end]), h.contexts[end])
        for user, end in zip(users.tolist(), tested.tolist(), strict=True)
    ]
    seen = [
        h.items[h.offsets[user] : end if exclude_seen else h.offsets[user]]
        for user, end in zip(users, tested, strict=True)
    ]
    counts = {
        "held_out": len(every),
        "left_out_target_seen": int(again.sum()),
        "left_out_target_not_launched": int((unlaunched & ~again).sum()),
        "testable": len(able),
        "tested": len(users),
    }
    return Cases(users, targets[chosen], at[chosen], states, Excluded(created_us, at[chosen], seen), counts)
