"""Neighbour tables against slow twins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.sources import cells, neighbours
from rec.sources.neighbours import NONE, strongest, summed

ITEMS = 9


def test_nearest_are_the_other_items_by_inner_product() -> None:
    vectors = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
    found = neighbours.nearest(vectors, 5)
    for row, product in enumerate(vectors @ vectors.T):
        others = [other for other in np.argsort(-product, kind="stable").tolist() if other != row]
        assert found.rows[row].tolist() == others[:5]
        np.testing.assert_allclose(found.scores[row], product[others[:5]], atol=1e-6)


def test_a_large_catalogue_is_searched_by_cells_and_misses_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    kinds = rng.normal(size=(30, 16))
    styles = kinds[rng.integers(30, size=600)] + 0.6 * rng.normal(size=(600, 16))
    vectors = styles[rng.integers(600, size=6_000)] + 0.4 * rng.normal(size=(6_000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    exact = neighbours.nearest(vectors, 10)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 5_999)
    monkeypatch.setattr(cells, "PROBED", 64)
    found = neighbours.nearest(vectors, 10)
    assert found.rows.tolist() == neighbours.nearest(vectors, 10).rows.tolist(), "the same in every run"
    assert found.rows.tolist() != exact.rows.tolist(), "too easy to tell cells from exact search"
    for row, others in enumerate(found.rows.tolist()):
        assert row not in others
        assert len(set(others)) == 10
    np.testing.assert_allclose(found.scores, (vectors[found.rows] @ vectors[:, :, None])[..., 0], atol=1e-6)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    common = [len(set(a) & set(b)) for a, b in zip(found.rows.tolist(), exact.rows.tolist(), strict=True)]
    assert np.mean(common) > 9.5


def test_equal_items_in_cells_are_neighbours_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 0)
    found = neighbours.nearest(np.tile(np.eye(4, dtype=np.float32)[0], (40, 1)), 50)
    assert found.rows[0].tolist() == [*range(1, 40), *[NONE] * 11]
    assert np.isfinite(found.scores).all()


def test_equal_items_take_no_neighbours_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine tenths of the items say nothing: their cells are one."""
    rng = np.random.default_rng(1)
    vectors = np.tile(np.eye(16, dtype=np.float32)[0], (3_000, 1))
    others = rng.normal(size=(300, 16)).astype(np.float32)
    vectors[:300] = others / np.linalg.norm(others, axis=1, keepdims=True)
    exact = neighbours.nearest(vectors, 10)
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 0)
    found = neighbours.nearest(vectors, 10)
    assert (found.rows != NONE).all()
    common = [len(set(a) & set(b)) for a, b in zip(found.rows[:300].tolist(), exact.rows[:300].tolist(), strict=True)]
    assert np.mean(common) > 9.0


def test_a_small_catalogue_has_fewer_neighbours() -> None:
    found = neighbours.nearest(np.eye(3, dtype=np.float32), 50)
    assert found.rows.tolist() == [[1, 2, NONE], [0, 2, NONE], [0, 1, NONE]]
    assert np.isfinite(found.scores).all()


pairs = st.dictionaries(
    st.tuples(st.integers(0, ITEMS - 1), st.integers(0, ITEMS - 1)).filter(lambda pair: pair[0] != pair[1]),
    st.sampled_from([0.25, 0.5, 0.75]),
)


@settings(deadline=None)
@given(pairs, st.integers(1, 5), st.lists(st.integers(0, ITEMS - 1), max_size=4, unique=True))
def test_tables_keep_the_best_and_combine_what_several_items_have(
    given: dict[tuple[int, int], float], length: int, items: list[int]
) -> None:
    first, second = (np.array([pair[side] for pair in given], np.int64) for side in (0, 1))
    table = neighbours.best(first, second, np.array(list(given.values())), ITEMS, length)
    kept = {
        item: sorted((-score, other) for (one, other), score in given.items() if one == item)[:length]
        for item in range(ITEMS)
    }
    for item, expected in kept.items():
        assert table.rows[item].tolist() == [other for _, other in expected] + [NONE] * (length - len(expected))
    for combine, slow in ((strongest, max), (summed, sum)):
        scores: dict[int, list[float]] = {}
        for item in items:
            for score, other in kept[item]:
                scores.setdefault(other, []).append(-score)
        order = sorted((-slow(each), other) for other, each in scores.items())
        rows, values = table.of(np.array(items, np.int64), combine)
        assert rows.tolist() == [other for _, other in order]
        assert values.tolist() == [-score for score, _ in order]


def test_a_source_that_is_not_in_use_proposes_nothing() -> None:
    rows, scores = neighbours.none(ITEMS).of(np.array([3, 4]), summed)
    assert len(rows) == len(scores) == 0
