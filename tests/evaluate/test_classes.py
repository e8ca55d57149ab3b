"""AUC, GAUC and logloss against scikit-learn, and what is undefined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from rec.evaluate.classes import Grouped, auc, gauc, logloss


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 9_999), size=st.integers(2, 80), levels=st.integers(2, 40))
def test_auc_and_logloss_are_those_of_scikit_learn(seed: int, size: int, levels: int) -> None:
    """With few levels most scores are tied."""
    rng = np.random.default_rng(seed)
    positive = rng.random(size) < 0.3
    positive[:2] = True, False
    scores = (rng.integers(0, levels, size) / levels).astype(np.float32)
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-9)
    chance = rng.uniform(0.001, 0.999, size)
    assert logloss(chance, positive) == pytest.approx(log_loss(positive, chance), rel=1e-9)


@pytest.mark.parametrize("positive", [np.ones(4, bool), np.zeros(4, bool), np.zeros(0, bool)])
def test_one_class_has_no_auc(positive: np.ndarray) -> None:
    assert auc(np.arange(len(positive), dtype=np.float32), positive) is None
    assert gauc(np.arange(len(positive), dtype=np.float32), positive, np.array([len(positive)])) == Grouped(None, 1)


def test_a_nan_has_no_rank_and_a_sure_mistake_a_finite_loss() -> None:
    with pytest.raises(ValueError, match="NaN"):
        auc(np.array([0.1, np.nan]), np.array([True, False]))
    assert logloss(np.zeros(0), np.zeros(0, bool)) is None
    worst = logloss(np.array([0.0, 1.0]), np.array([True, False]))
    assert worst is not None
    assert 30 < worst < 40


def test_gauc_is_the_mean_by_impressions_of_the_requests_with_two_classes() -> None:
    rng = np.random.default_rng(2)
    counts = np.array([5, 1, 20, 3, 7])
    positive, scores = rng.random(36) < 0.3, rng.normal(size=36)
    starts = np.cumsum(counts) - counts
    positive[starts[[0, 2, 4]]], positive[starts[[0, 2, 4]] + 1] = True, False
    positive[starts[3] : starts[3] + 3] = False
    parts = [(roc_auc_score(positive[s : s + c], scores[s : s + c]), c) for s, c in zip(starts, counts, strict=True)
             if len(set(positive[s : s + c].tolist())) == 2]  # fmt: skip
    expected = sum(value * count for value, count in parts) / sum(count for _, count in parts)
    found = gauc(scores, positive, counts)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.skipped == 2
