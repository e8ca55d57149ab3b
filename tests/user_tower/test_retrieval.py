"""Exact search against a slow twin; merging of sources."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.config import Quotas
from rec.retrieval import SOURCES, Candidates, Proposed, merge, popular, popularity, search, users_per_block


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


NOTHING: tuple[int, ...] = ()


def _merge(
    ann: Sequence[int],
    *,
    item: Sequence[int] = NOTHING,
    cooccurrence: Sequence[int] = NOTHING,
    popular: Sequence[int] = NOTHING,
    k: int,
    quotas: Quotas,
    exclude: Sequence[int] = NOTHING,
) -> Candidates:
    """Merge for a user whose score of row r is r; the co-occurrence score of row r is 1 / (1 + r)."""
    rows = [np.array(each, np.int64) for each in (ann, item, cooccurrence, popular, exclude)]
    proposed = Proposed(rows[1], rows[2], (1 / (1 + rows[2])).astype(np.float32), rows[3])
    vector = np.arange(ITEMS, dtype=np.float32)
    return merge(vector, np.eye(ITEMS, dtype=np.float32), rows[0], proposed, k=k, quotas=quotas, exclude=rows[4])


def _names(merged: Candidates) -> list[set[str]]:
    return [{name for place, name in enumerate(SOURCES) if bits >> place & 1} for bits in merged.sources.tolist()]


ITEMS = 30
FIFTHS = Quotas(item=0.2, cooccurrence=0.2)


def test_quotas_are_claimed_and_the_search_fills_the_rest_by_score() -> None:
    merged = _merge(range(29, 19, -1), item=[1, 2, 3], cooccurrence=[5, 4, 6], k=10, quotas=FIFTHS)
    assert merged.rows.tolist() == [29, 28, 27, 26, 25, 24, 5, 4, 2, 1]
    assert _names(merged) == [{"ann"}] * 6 + [{"cooccurrence"}] * 2 + [{"item"}] * 2
    np.testing.assert_allclose(merged.cooccurrence, [0] * 6 + [1 / 6, 1 / 5, 0, 0])


def test_an_item_of_several_sources_is_there_once_and_names_them_all() -> None:
    merged = _merge([29, 28, 27, 26, 25], item=[28, 27, 2, 1], cooccurrence=[28, 3], k=5, quotas=FIFTHS)
    assert merged.rows.tolist() == [29, 28, 27, 26, 25], "co-occurrence claims 28, so item-to-item claims 27"
    assert _names(merged) == [{"ann"}, {"ann", "item", "cooccurrence"}, {"ann", "item"}, {"ann"}, {"ann"}]
    np.testing.assert_allclose(merged.cooccurrence, [0, 1 / 29, 0, 0, 0])


def test_a_source_without_quota_claims_nothing() -> None:
    none = Quotas(item=0, cooccurrence=0)
    merged = _merge([29, 28, 27], item=[1, 29], cooccurrence=[2, 27], k=3, quotas=none)
    assert merged.rows.tolist() == [29, 28, 27]


def test_a_cold_user_gets_popular_items_and_the_search_in_turn() -> None:
    merged = _merge([5, 1, 4], popular=[0, 1, 2, 3, 4, 5], k=5, quotas=FIFTHS, exclude=[2])
    assert merged.rows.tolist() == [0, 5, 1, 3, 4]
    assert _names(merged) == [{"popular"}, {"ann", "popular"}, {"ann", "popular"}, {"popular"}, {"ann", "popular"}]


some = st.lists(st.integers(0, ITEMS - 1), unique=True, max_size=ITEMS)


@settings(deadline=None)
@given(some, some, some, st.sets(st.integers(0, ITEMS - 1)), st.integers(1, 40), st.sampled_from([0, 0.1, 0.3, 0.5]))
def test_every_merge_keeps_its_promises(
    item: list[int], cooccurrence: list[int], popular: list[int], banned: set[int], k: int, quota: float
) -> None:
    allowed = [row for row in range(ITEMS - 1, -1, -1) if row not in banned]
    ann = [*allowed[:k], *[-1] * (k - len(allowed))]
    warm = {"item": item, "cooccurrence": cooccurrence}
    quotas, exclude = Quotas(item=quota, cooccurrence=quota), sorted(banned)
    for lists in (warm, {"popular": popular}):
        merged = _merge(ann, **lists, k=k, quotas=quotas, exclude=exclude)
        rows = merged.rows.tolist()
        assert len(rows) == len(set(rows)) == min(k, len(allowed)), "exactly k where k exist, none twice"
        assert not set(rows) & banned
        np.testing.assert_array_equal(merged.scores, merged.rows)
        assert (merged.sources > 0).all()
        for place, (row, names) in enumerate(zip(rows, _names(merged), strict=True)):
            first = {name: [r for r in each if r not in banned][:k] for name, each in {**lists, "ann": ann}.items()}
            assert names == {name for name, each in first.items() if row in each}
            expected = 1 / (1 + row) if "cooccurrence" in names else 0
            assert merged.cooccurrence[place] == np.float32(expected)
        if lists is warm:
            assert rows == sorted(rows, reverse=True), "by score"
            beyond = [row for row, names in zip(rows, _names(merged), strict=True) if "ann" not in names]
            assert len(beyond) <= 2 * round(quota * k)


@pytest.mark.parametrize("source", SOURCES[1:])
def test_a_source_can_be_left_out(source: str) -> None:
    each = np.array([1, 2], np.int64)
    proposed = Proposed(each, each, np.ones(2, np.float32), each)
    left = proposed.without(source)
    assert len(getattr(left, source)) == 0
    assert len(left.item) + len(left.cooccurrence) + len(left.popular) == 4
    assert len(left.cooccurrence) == len(left.cooccurrence_scores)
