"""Ranking metrics, from vectors to figures, against torchmetrics, which knows scores and nothing of ranks."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_recall, retrieval_reciprocal_rank

from rec.evaluate import metrics, ranking
from rec.retrieval import Excluded

CUTOFFS = [1, 5, 10, 100]
ORACLES: dict[str, Callable[..., Tensor]] = {
    "recall": retrieval_recall,
    "ndcg": retrieval_normalized_dcg,
    "mrr": retrieval_reciprocal_rank,
}
POSITIVE = 10.0
"""Added to scores: torchmetrics takes an item of score 0 or less for one that was not retrieved."""


def _oracle(scores: np.ndarray, target: int, candidates: np.ndarray) -> list[float]:
    """One user's metrics in the order of `metrics.names`: scores float32[N] of which bool[N] are ranked."""
    preds = torch.from_numpy(scores[candidates] + np.float32(POSITIVE))
    relevant = torch.from_numpy((np.arange(len(scores)) == target)[candidates])
    names = [name.partition("@") for name in metrics.names(CUTOFFS)]
    return [ORACLES[kind](preds, relevant, top_k=int(cutoff)).item() for kind, _, cutoff in names]


def _excluded(num_items: int, rows: list[np.ndarray]) -> Excluded:
    """Rows that each user had before; no item is launched late."""
    return Excluded(np.full(num_items, -1, np.int64), np.zeros(len(rows), np.int64), rows)


@pytest.mark.parametrize("num_users", [1, 3])
@pytest.mark.parametrize("num_items", [2, 7, 40, 150])
def test_every_user_s_figures_equal_torchmetrics(num_users: int, num_items: int) -> None:
    """Scores with many ties, which go to the lower row: the oracle is given that order as scores of their own."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        users = rng.integers(-1, 2, (num_users, 3)).astype(np.float32)
        items = rng.integers(-1, 2, (num_items, 3)).astype(np.float32)
        targets = rng.integers(0, num_items, num_users)
        gone = (rng.random((num_users, num_items)) < 0.2) & (np.arange(num_items) != targets[:, None])
        exclude = _excluded(num_items, [np.flatnonzero(each) for each in gone])
        ranks = ranking.by_vectors(users, items, targets, exclude)
        untied = users @ items.T - np.arange(num_items, dtype=np.float32) / 1_000
        expected = [_oracle(untied[user], target, ~gone[user]) for user, target in enumerate(targets.tolist())]
        np.testing.assert_allclose(metrics.table(ranks, CUTOFFS), expected, atol=1e-6)


@pytest.mark.parametrize("num_items", [3, 12, 30])
def test_a_tie_is_worth_on_average_what_torchmetrics_gives_it(num_items: int) -> None:
    """torchmetrics' NDCG is the mean over all orders of equal scores; ours over the tied items as targets is that."""
    scores = np.random.default_rng(num_items).integers(0, 3, num_items).astype(np.float32)
    for level in np.unique(scores):
        tied = np.flatnonzero(scores == level)
        exclude = _excluded(num_items, [np.empty(0, np.int64)] * len(tied))
        ranks = ranking.by_vectors(np.ones((len(tied), 1), np.float32), scores[:, None], tied, exclude)
        expected = _oracle(scores, int(tied[0]), np.ones(num_items, bool))
        for k in CUTOFFS:
            wanted = expected[metrics.names(CUTOFFS).index(f"ndcg@{k}")]
            assert metrics.ndcg(ranks, k).mean() == pytest.approx(wanted, abs=1e-6)


def test_no_hit_within_the_cutoff_is_zero_for_both() -> None:
    last = np.array([149])
    found = metrics.table(last, CUTOFFS)[0]
    scores = -np.arange(150, dtype=np.float32) / 100
    assert found.tolist() == [0.0] * len(found) == _oracle(scores, 149, np.ones(150, bool))
    assert metrics.table(np.array([metrics.MISSED]), CUTOFFS)[0].tolist() == found.tolist()
