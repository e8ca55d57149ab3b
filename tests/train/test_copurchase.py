"""Pairs of products: which events make them, how they are drawn, and that no held-out event is among them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rec.histories import Histories, leave_one_out
from rec.train import copurchase
from rec.train.copurchase import Pairs
from tests.sources import world

ITEMS = 12


def histories(users: list[list[int]], num_items: int = ITEMS) -> Histories:
    """The item rows of each user's events, oldest first."""
    return world.histories(users, num_items)


def found(pairs: Pairs) -> dict[tuple[int, int], float]:
    return dict(zip(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True), pairs.share.tolist(), strict=True))


ALONE: NDArray[np.int64] = np.arange(ITEMS)


def test_pairs_are_within_the_window_of_one_user_s_training_events() -> None:
    h = histories([[0, 1, 2, 8, 9], [3, 4], [5], [6, 6, 7, 10, 11]])
    near = found(copurchase.find(h, ALONE, window=1, damping=0))
    assert set(near) == {(0, 1), (1, 2), (3, 4), (6, 7)}
    wide = found(copurchase.find(h, ALONE, window=2, damping=0))
    assert set(wide) == {(0, 1), (1, 2), (0, 2), (3, 4), (6, 7)}
    assert wide[6, 7] == pytest.approx(2 / 6), "twice in the window, so drawn twice as often"
    assert sum(wide.values()) == pytest.approx(1)


def test_products_of_one_group_are_no_pair() -> None:
    groups = np.array([0, 0, *range(1, ITEMS - 1)], np.int64)
    pairs = copurchase.find(histories([[0, 1], [1, 0], [0, 2]]), groups, window=3, damping=0.5)
    assert set(found(pairs)) == {(0, 2)}


users = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), max_size=6)


@given(users=users, other=st.lists(st.integers(0, ITEMS - 1), min_size=12, max_size=12), window=st.integers(1, 9))
def test_held_out_events_do_not_show(users: list[list[int]], other: list[int], window: int) -> None:
    """Whatever the last two events of a user with three or more are, the pairs are the same."""
    h = histories(users)
    changed = h.items.copy()
    for user, end in enumerate(leave_one_out(h).train_end):
        held = slice(int(end), int(h.offsets[user + 1]))
        changed[held] = other[2 * user : 2 * user + 2][: held.stop - held.start]
    one = copurchase.find(h, ALONE, window=window, damping=0.5)
    two = copurchase.find(
        histories(np.split(changed, h.offsets[1:-1]) if users else []), ALONE, window=window, damping=0.5
    )
    np.testing.assert_array_equal(one.first, two.first)
    np.testing.assert_array_equal(one.second, two.second)
    np.testing.assert_array_equal(one.share, two.share)


def test_damping_draws_pairs_of_popular_products_less_often() -> None:
    h = histories([[0, 1]] * 8 + [[0, 2]] * 8 + [[3, 4]])
    raw, damped, even = (found(copurchase.find(h, ALONE, window=1, damping=d)) for d in (0.0, 0.5, 1.0))
    assert raw[0, 1] / raw[3, 4] == pytest.approx(8)
    assert damped[0, 1] / damped[3, 4] == pytest.approx(8 / (16 * 8) ** 0.5)
    assert even[0, 1] / even[3, 4] == pytest.approx(8 / (16 * 8))


def test_products_are_drawn_as_often_as_the_loss_is_told() -> None:
    rng = np.random.default_rng(0)
    pairs = copurchase.find(histories(rng.integers(0, ITEMS, (40, 6)).tolist()), ALONE, window=2, damping=0.3)
    drawn = np.concatenate([pairs.draw(rng) for _ in range(400)])
    sides = np.concatenate([pairs.first[drawn], pairs.second[drawn]])
    share = pairs.item_share(ITEMS)
    assert share.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(sides, minlength=ITEMS) / len(sides), share, atol=0.01)


def test_an_epoch_s_draw_is_its_seed_s(tmp_path: Path) -> None:
    pairs = copurchase.find(histories([[0, 1, 2], [3, 4], [4, 5]]), ALONE, window=2, damping=0.5)
    pairs.save(tmp_path)
    again = copurchase.load(tmp_path)
    one, two = (p.draw(np.random.default_rng([1, 2])) for p in (pairs, again))
    np.testing.assert_array_equal(one, two)


def test_without_events_there_are_no_pairs() -> None:
    assert len(copurchase.find(histories([]), ALONE, window=2, damping=0.5)) == 0
