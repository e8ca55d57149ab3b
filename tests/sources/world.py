"""Histories made of item rows."""

import numpy as np

from rec.histories import Histories


def histories(users: list[list[int]], num_items: int, profiles: list[list[float]] | None = None) -> Histories:
    """The item rows of each user's events, oldest first, and the profile columns a, b, c, ..."""
    flat = [item for events in users for item in events]
    told = np.zeros((len(users), 0), np.float32) if profiles is None else np.array(profiles, np.float32)
    return Histories(
        user_ids=[f"u{user}" for user in range(len(users))],
        offsets=np.cumsum([0, *map(len, users)], dtype=np.int64),
        items=np.array(flat, np.int64),
        events=np.ones(len(flat), np.int64),
        at=np.arange(len(flat), dtype=np.int64),
        contexts=[""] * len(flat),
        profiles=told,
        profile_names=list("abcdefgh"[: told.shape[1]]),
        num_items=num_items,
        unknown=0,
    )
