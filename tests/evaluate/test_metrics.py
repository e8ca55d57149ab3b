"""Metrics against a table worked by hand and a slow twin on relevance lists; the bootstrap against theory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.evaluate import metrics
from rec.evaluate.bootstrap import interval, resampled_means
from rec.evaluate.figures import slice_figures

BY_HAND = [
    # 0-based rank, recall@5, ndcg@5, recall@10, ndcg@10, reciprocal rank
    (0, 1, 1.0, 1, 1.0, 1.0),
    (1, 1, 0.6309297536, 1, 0.6309297536, 0.5),
    (2, 1, 0.5, 1, 0.5, 0.3333333333),
    (4, 1, 0.3868528072, 1, 0.3868528072, 0.2),
    (5, 0, 0.0, 1, 0.3562071871, 0.1666666667),
    (9, 0, 0.0, 1, 0.2890648263, 0.1),
    (10, 0, 0.0, 0, 0.0, 0.0909090909),
    (metrics.MISSED, 0, 0.0, 0, 0.0, 0.0),
]


@pytest.mark.parametrize("row", BY_HAND)
def test_metrics_equal_the_table_worked_by_hand(row: tuple[float, ...]) -> None:
    found = metrics.table(np.array([row[0]]), [5, 10])[0]
    assert metrics.names([5, 10]) == ["recall@5", "ndcg@5", "recall@10", "ndcg@10", "mrr"]
    np.testing.assert_allclose(found, row[1:], atol=1e-9)


def _slow(relevance: list[int], k: int) -> tuple[float, float, float]:
    """Textbook recall@k, DCG@k / ideal DCG@k, and reciprocal rank of a list of 0 and 1."""
    top = relevance[:k]
    dcg = sum(value / math.log2(place + 2) for place, value in enumerate(top))
    ideal = sum(value / math.log2(place + 2) for place, value in enumerate(sorted(relevance, reverse=True)[:k]))
    first = next((place for place, value in enumerate(relevance) if value), None)
    return sum(top) / sum(relevance), dcg / ideal, 1 / (first + 1) if first is not None else 0.0


@given(st.integers(1, 60), st.data(), st.integers(1, 70))
def test_metrics_equal_a_slow_loop(length: int, data: st.DataObject, k: int) -> None:
    rank = data.draw(st.integers(0, length - 1))
    relevance = [int(place == rank) for place in range(length)]
    ranks = np.array([rank])
    found = (metrics.recall(ranks, k)[0], metrics.ndcg(ranks, k)[0], metrics.reciprocal_rank(ranks)[0])
    np.testing.assert_allclose(found, _slow(relevance, k))


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, (4_000, 1))
    low, high = interval(resampled_means(values, 1_000, 1))[:, 0]
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_differences_are_paired() -> None:
    """Two systems that differ by one rank for every user: the difference is far more certain than each."""
    ranks = np.random.default_rng(0).integers(0, 30, 500)
    found = slice_figures({"final": ranks, "popular": ranks + 1}, [10], 400, 7)
    alone = [found["figures"][system]["mrr"]["ci95"] for system in ("final", "popular")]
    paired = found["differences"]["popular"]["mrr"]
    assert paired["ci95"][0] > 0
    assert paired["ci95"][1] - paired["ci95"][0] < 0.5 * math.hypot(*(high - low for low, high in alone))
    values = [found["figures"][system]["mrr"]["value"] for system in ("final", "popular")]
    assert paired["value"] == pytest.approx(values[0] - values[1], abs=2e-6)
    assert "final" not in found["differences"]


def test_figures_are_the_same_for_the_same_seed_and_an_empty_slice_has_none() -> None:
    ranks = {"final": np.array([0, 3, -1, 8]), "random": np.array([5, 1, 0, 2])}
    first, again, other = (slice_figures(ranks, [5], 200, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    none = {name: found[:0] for name, found in ranks.items()}
    assert slice_figures(none, [5], 200, 1) == {"users": 0, "figures": {}, "differences": {}}
