"""Metrics against a table worked by hand and a slow twin on relevance lists; the bootstrap against theory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.evaluate import metrics
from rec.evaluate.bootstrap import interval, resampled_means
from rec.evaluate.figures import slice_figures
from rec.evaluate.paired import compared, means

BY_HAND = [
    # 0-based rank, recall@5, ndcg@5, mrr@5, recall@10, ndcg@10, mrr@10
    (0, 1, 1.0, 1.0, 1, 1.0, 1.0),
    (1, 1, 0.6309297536, 0.5, 1, 0.6309297536, 0.5),
    (2, 1, 0.5, 0.3333333333, 1, 0.5, 0.3333333333),
    (4, 1, 0.3868528072, 0.2, 1, 0.3868528072, 0.2),
    (5, 0, 0.0, 0.0, 1, 0.3562071871, 0.1666666667),
    (9, 0, 0.0, 0.0, 1, 0.2890648263, 0.1),
    (10, 0, 0.0, 0.0, 0, 0.0, 0.0),
    (metrics.MISSED, 0, 0.0, 0.0, 0, 0.0, 0.0),
]


@pytest.mark.parametrize("row", BY_HAND)
def test_metrics_equal_the_table_worked_by_hand(row: tuple[float, ...]) -> None:
    found = metrics.table(np.array([row[0]]), [5, 10])[0]
    assert metrics.names([5, 10]) == ["recall@5", "ndcg@5", "mrr@5", "recall@10", "ndcg@10", "mrr@10"]
    np.testing.assert_allclose(found, row[1:], atol=1e-9)


def _slow(relevance: list[int], k: int) -> tuple[float, float, float]:
    """Textbook recall@k, DCG@k / ideal DCG@k, and reciprocal rank at k of a list of 0 and 1."""
    top = relevance[:k]
    dcg = sum(value / math.log2(place + 2) for place, value in enumerate(top))
    ideal = sum(value / math.log2(place + 2) for place, value in enumerate(sorted(relevance, reverse=True)[:k]))
    first = next((place for place, value in enumerate(top) if value), None)
    return sum(top) / sum(relevance), dcg / ideal, 1 / (first + 1) if first is not None else 0.0


@given(st.integers(1, 60), st.data(), st.integers(1, 70))
def test_metrics_equal_a_slow_loop(length: int, data: st.DataObject, k: int) -> None:
    rank = data.draw(st.integers(0, length - 1))
    relevance = [int(place == rank) for place in range(length)]
    ranks = np.array([rank])
    found = (metrics.recall(ranks, k)[0], metrics.ndcg(ranks, k)[0], metrics.reciprocal_rank(ranks, k)[0])
    np.testing.assert_allclose(found, _slow(relevance, k))


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, (4_000, 1))
    low, high = interval(resampled_means(values, 1_000, 1))[:, 0]
    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    """2,000 experiments on 400 users, each hit with a chance of .3: coverage .95, give or take .0049 by chance.

    Three of these standard errors, and .005 for what the percentile bootstrap is known to fall short.
    """
    hits = (np.random.default_rng(3).random((400, 2_000)) < 0.3).astype(np.float64)
    low, high = interval(resampled_means(hits, 500, 8))
    covered = float(((low <= 0.3) & (high >= 0.3)).mean())
    assert covered == pytest.approx(0.95, abs=0.02)


def test_the_interval_of_a_difference_that_is_the_same_for_everybody_has_no_width() -> None:
    values = np.random.default_rng(0).random((50, 1))
    figures = compared(
        "x.{}", ["ours", "other"], np.hstack([values + 0.25, values]), np.arange(50), 200, 3, ours="ours"
    )
    assert figures["x.ours.minus.other"]["ci95"] == [0.25, 0.25]
    assert figures["x.ours"]["ci95"][1] - figures["x.ours"]["ci95"][0] > 0.1


def test_repeating_what_is_drawn_together_makes_nothing_surer() -> None:
    values = np.random.default_rng(0).random((40, 2))
    once = means(values, np.arange(40), 300, 5)
    assert means(np.repeat(values, 6, axis=0), np.repeat(np.arange(40), 6), 300, 5) == once


def test_differences_are_paired() -> None:
    """Two systems that differ by one rank for every user: the difference is far more certain than each."""
    ranks = np.random.default_rng(0).integers(0, 30, 500)
    found = slice_figures({"final": ranks, "popular": ranks + 1}, [40], 400, 7)
    alone = [found["figures"][system]["mrr@40"]["ci95"] for system in ("final", "popular")]
    paired = found["differences"]["popular"]["mrr@40"]
    assert paired["ci95"][0] > 0
    assert paired["ci95"][1] - paired["ci95"][0] < 0.5 * math.hypot(*(high - low for low, high in alone))
    values = [found["figures"][system]["mrr@40"]["value"] for system in ("final", "popular")]
    assert paired["value"] == pytest.approx(values[0] - values[1], abs=2e-6)
    assert "final" not in found["differences"]


def test_figures_are_the_same_for_the_same_seed_and_an_empty_slice_has_none() -> None:
    ranks = {"final": np.array([0, 3, -1, 8]), "random": np.array([5, 1, 0, 2])}
    first, again, other = (slice_figures(ranks, [5], 200, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    none = {name: found[:0] for name, found in ranks.items()}
    assert slice_figures(none, [5], 200, 1) == {"users": 0, "few": True, "figures": {}, "differences": {}}
