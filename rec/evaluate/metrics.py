"""Ranking metrics of a single relevant item, from its 0-based rank; MISSED where it is not in the list.

With one relevant item at 0-based rank r, for a cutoff k:

    recall@k = [r < k]        (equal to the hit rate)
    ndcg@k   = [r < k] / log2(r + 2)        (the ideal list has the item first: its DCG is 1)
    mrr@k    = [r < k] / (r + 1)

A missed item counts 0 in all three.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MISSED = -1

Ranks = NDArray[np.int64]
Floats = NDArray[np.float64]


def recall(ranks: Ranks, k: int) -> Floats:
    """float64[U]: 1 where the item is among the first k."""
    return _within(ranks, k).astype(np.float64)


def ndcg(ranks: Ranks, k: int) -> Floats:
    """float64[U]: 1 / log2(rank + 2) where the item is among the first k, else 0."""
    return np.where(_within(ranks, k), 1 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)


def reciprocal_rank(ranks: Ranks, k: int) -> Floats:
    """float64[U]: 1 / (rank + 1) where the item is among the first k, else 0."""
    return np.where(_within(ranks, k), 1 / (np.maximum(ranks, 0) + 1.0), 0.0)


def _within(ranks: Ranks, k: int) -> NDArray[np.bool_]:
    return (ranks >= 0) & (ranks < k)


def names(cutoffs: Sequence[int]) -> list[str]:
    """Names of the M columns of `table`."""
    return [f"{kind}@{k}" for k in cutoffs for kind in ("recall", "ndcg", "mrr")]


def table(ranks: Ranks, cutoffs: Sequence[int]) -> Floats:
    """float64[U, M]: every metric of every user, in the order of `names`."""
    return np.stack([metric(ranks, k) for k in cutoffs for metric in (recall, ndcg, reciprocal_rank)], axis=1)
