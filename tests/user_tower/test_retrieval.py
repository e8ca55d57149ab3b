"""Exact search against a slow twin; merging of sources."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.retrieval import SOURCES, candidates_for, popular, popularity, search, users_per_block


def _slow(scores: np.ndarray, k: int, banned: set[int]) -> list[int]:
    """Rows sorted by (score descending, row ascending) without the banned ones."""
    return sorted((row for row in range(len(scores)) if row not in banned), key=lambda row: (-scores[row], row))[:k]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 15))
def test_search_equals_sorting_everything(seed: int, num_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    items = rng.integers(-1, 2, (num_items, 3)).astype(np.float32)  # small integers: many exact ties
    users = rng.integers(-1, 2, (4, 3)).astype(np.float32)
    exclude = [rng.choice(num_items, rng.integers(0, num_items + 1), replace=False).astype(np.int64) for _ in users]
    rows, scores = search(users, items, k, exclude)
    for user in range(len(users)):
        expected = _slow(items @ users[user], k, set(exclude[user].tolist()))
        assert rows[user, : len(expected)].tolist() == expected
        assert (rows[user, len(expected) :] == -1).all()
        assert np.isneginf(scores[user, len(expected) :]).all()
        np.testing.assert_allclose(scores[user, : len(expected)], (items @ users[user])[expected])


def test_search_crosses_blocks() -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(50, 8)).astype(np.float32)
    users = rng.normal(size=(2_100, 8)).astype(np.float32)
    rows, _ = search(users, items, 3)
    np.testing.assert_array_equal(rows, np.argsort(-(users @ items.T), axis=1)[:, :3])


def test_blocks_of_scores_are_bounded_however_large_the_catalogue() -> None:
    assert users_per_block(100_000) == 1_024
    assert users_per_block(1_000_000) == 134
    assert users_per_block(2**28) == 1
    assert all(users_per_block(n) * n <= 2**27 for n in (10, 131_073, 1_000_000, 2**27))


def test_popular_counts_and_breaks_ties_by_row() -> None:
    counts = popularity(np.array([2, 2, 0, 3]), 5)
    assert counts.tolist() == [1, 0, 2, 1, 0]
    assert popular(counts).tolist() == [2, 0, 3, 1, 4]


def _merge(cold: bool, ann_rows: list[int], k: int, exclude: list[int]) -> tuple[list[int], list[str]]:
    items = np.eye(6, dtype=np.float32)
    vector = np.arange(6, dtype=np.float32)
    rows = np.array(ann_rows, np.int64)
    merged = candidates_for(
        vector,
        items,
        (rows, vector[rows]),
        np.array([0, 1, 2, 3, 4, 5]),
        k=k,
        cold=cold,
        exclude=np.array(exclude, np.int64),
    )
    np.testing.assert_array_equal(merged.scores, vector[merged.rows])  # every source has the inner product
    return merged.rows.tolist(), [SOURCES[source] for source in merged.sources]


def test_a_user_with_a_history_gets_the_search_and_popular_only_to_fill() -> None:
    assert _merge(False, [5, 4, 3], 3, []) == ([5, 4, 3], ["ann"] * 3)
    assert _merge(False, [5, 0], 4, [1]) == ([5, 0, 2, 3], ["ann", "ann", "popular", "popular"])


def test_a_cold_user_gets_both_in_turn() -> None:
    assert _merge(True, [5, 1, 4], 5, [2]) == ([0, 5, 1, 3, 4], ["popular", "ann", "popular", "popular", "ann"])


def test_no_more_candidates_than_items() -> None:
    rows, _ = _merge(True, [5, -1], 20, [0])
    assert sorted(rows) == [1, 2, 3, 4, 5]
