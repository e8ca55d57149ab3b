"""What is known of one user at one moment: the input of the user tower and of the ranker's features."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class UserState:
    """A user as seen at a time `now`; every part may be empty, and a user with none is a cold user."""

    items: NDArray[np.int64]
    """int64[H] item rows of the last H known events, oldest first."""
    events: NDArray[np.int64]
    """int64[H] kinds of these events, 1-based positions in `rec.schema.EVENTS`."""
    ages_s: NDArray[np.float32]
    """float32[H] seconds from each event to `now`, never negative."""
    context: str
    """What the user says they are looking for; "" when they say nothing."""
    profile: NDArray[np.float32]
    """float32[P] raw profile values in the order of the tower's `profile_names`; nan where missing."""

    @property
    def cold(self) -> bool:
        """Whether there is no event to go by."""
        return self.items.size == 0


def cold_state(num_profile: int, context: str = "") -> UserState:
    """The state of a user without events and without a profile of `num_profile` columns."""
    return UserState(
        items=np.empty(0, np.int64),
        events=np.empty(0, np.int64),
        ages_s=np.empty(0, np.float32),
        context=context,
        profile=np.full(num_profile, np.nan, np.float32),
    )
