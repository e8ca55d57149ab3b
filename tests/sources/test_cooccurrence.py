"""Co-occurrence: the formula, whose events count, and that no held-out event shows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.histories import leave_one_out
from rec.sources import cooccurrence
from rec.sources.cooccurrence import DAMPING, WINDOW
from rec.sources.neighbours import NONE, Neighbours
from tests.sources.world import histories

ITEMS = 12

users = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=2 * WINDOW), max_size=6)


def scores(table: Neighbours) -> dict[tuple[int, int], float]:
    """Score by (item, neighbour)."""
    return {
        (item, int(other)): float(score)
        for item in range(len(table.rows))
        for other, score in zip(table.rows[item], table.scores[item], strict=True)
        if other != NONE
    }


@settings(deadline=None)
@given(users, st.sampled_from([1, 7, cooccurrence.PAIRS_AT_ONCE]))
def test_scores_are_damped_cosines_of_training_events(users: list[list[int]], at_once: int) -> None:
    training = [events[:-2] if len(events) >= 3 else events for events in users]
    events = Counter(item for each in training for item in each)
    counts: Counter[tuple[int, int]] = Counter()
    for each in training:
        for place, one in enumerate(each):
            for other in each[place + 1 : place + 1 + WINDOW]:
                if one != other:
                    counts.update([(one, other), (other, one)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "PAIRS_AT_ONCE", at_once)
        found = scores(cooccurrence.build(histories(users, ITEMS), ITEMS))
    assert found == {
        (i, j): pytest.approx(c / ((events[i] + DAMPING) * (events[j] + DAMPING)) ** 0.5, rel=1e-6)
        for (i, j), c in counts.items()
    }


@settings(deadline=None)
@given(users, st.lists(st.integers(0, ITEMS - 1), min_size=12, max_size=12))
def test_held_out_events_do_not_show(users: list[list[int]], other: list[int]) -> None:
    """Whatever the last two events of a user with three or more are, the table is the same."""
    h = histories(users, ITEMS)
    changed = h.items.copy()
    for user, end in enumerate(leave_one_out(h).train_end):
        held = slice(int(end), int(h.offsets[user + 1]))
        changed[held] = other[2 * user : 2 * user + 2][: held.stop - held.start]
    again = [part.tolist() for part in np.split(changed, h.offsets[1:-1])] if users else []
    one, two = (cooccurrence.build(each, 5) for each in (h, histories(again, ITEMS)))
    np.testing.assert_array_equal(one.rows, two.rows)
    np.testing.assert_array_equal(one.scores, two.scores)


def test_a_pair_of_many_beats_a_pair_of_one() -> None:
    """Undamped, two items with one event each in one basket would have the highest score there is."""
    table = scores(cooccurrence.build(histories([[0, 1], *[[0, 2]] * 8, [5, 6]], ITEMS), 5))
    assert table[0, 2] > table[5, 6]
    assert table[2, 0] > table[0, 1]
