"""Popular items by profile segment."""

from dataclasses import replace

import numpy as np
import pytest

from rec.histories import Histories
from rec.sources import segments
from rec.sources.segments import PRIOR_EVENTS, Segments
from tests.sources.world import histories

ITEMS = 40
NAN = float("nan")


@pytest.fixture(scope="module")
def h() -> Histories:
    """Short, middling and tall users buy items 0, 1 and 2 four times in five; those without a height buy 9. The second
    column says nothing, the third nobody tells."""
    rng = np.random.default_rng(0)
    users, profiles = [], []
    for number in range(1_200):
        bucket = number % 4
        users.append([*rng.choice([[0, 1, 2, 9][bucket], 20], 4, p=[0.8, 0.2]).tolist(), 30, 31])
        profiles.append([NAN if bucket == 3 else 150 + 20 * bucket + number / 1e4, 1.0, NAN])
    return histories(users, ITEMS, profiles)


@pytest.fixture(scope="module")
def found(h: Histories) -> Segments:
    return segments.build(h)


def of(found: Segments, height: float) -> list[int]:
    return found.popular(np.array([height, 1.0, NAN], np.float32)).tolist()


def test_a_segment_has_its_own_favourite_first(found: Segments) -> None:
    assert found.columns.tolist() == [0], "a column that never varies makes no segment"
    assert [of(found, height)[0] for height in (140.0, 170.05, 200.0)] == [0, 1, 2]


def test_who_tells_nothing_gets_the_common_order(h: Histories, found: Segments) -> None:
    counts = np.bincount([item for user in range(1_200) for item in h.items[6 * user : 6 * user + 4]], minlength=ITEMS)
    expected = sorted(range(ITEMS), key=lambda item: (-counts[item], item))
    assert of(found, NAN) == expected
    assert found.popular(np.full(3, np.nan, np.float32)).tolist() == expected


def test_an_order_holds_every_item_once(found: Segments) -> None:
    for order in found.orders:
        assert sorted(order.tolist()) == list(range(ITEMS))


def test_few_events_leave_the_common_order() -> None:
    """One user of a segment has one event, on an item that is unpopular: that is no reason to show it first."""
    many = [[0] * 3] * 300 + [[1] * 3] * 200 + [[5]]
    h = histories(many, ITEMS, [[0.0, 0.0]] * 250 + [[1.0, 1.0]] * 250 + [[2.0, 0.5]])
    assert PRIOR_EVENTS / 501 > 1
    assert segments.build(h).popular(np.array([2.0, 0.5], np.float32)).tolist()[:3] == [0, 1, 5]


def test_held_out_events_do_not_show(h: Histories, found: Segments) -> None:
    changed = h.items.copy()
    changed[4::6], changed[5::6] = 7, 8  # the last two of six
    again = segments.build(replace(h, items=changed))
    np.testing.assert_array_equal(again.orders, found.orders)
    np.testing.assert_array_equal(again.cuts, found.cuts)


def test_without_profiles_or_events_there_is_one_order() -> None:
    found = segments.build(histories([], ITEMS))
    assert found.popular(np.empty(0, np.float32)).tolist() == list(range(ITEMS))
