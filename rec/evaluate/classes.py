"""Metrics of scores against two classes: AUC, AUC by request, logloss.

    AUC      the probability that a positive scores higher than a negative; a tie counts half (Mann-Whitney)
    GAUC     mean of the AUC of each request, weighted by its impressions (Zhu et al., "Optimized Cost per Click in
             Taobao Display Advertising", KDD 2017); requests of one class have none and are skipped
    logloss  mean binary cross-entropy of probabilities

What is undefined is None, never a number.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.evaluate import auc as area

EPSILON = 1e-15
"""Nearest that a probability comes to 0 or 1 in logloss."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """AUC by request."""

    value: float | None
    """None when every request has one class only."""
    skipped: int
    """Requests of one class."""


def auc(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> float | None:
    """AUC of scores float[T]; None when bool[T] `positive` has one class only. Raises ValueError on a NaN."""
    if np.isnan(scores).any():
        raise ValueError("a score is NaN, which has no rank")
    found = area.auc(positive, scores)
    return None if np.isnan(found) else found


def gauc(scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_], counts: NDArray[np.int64]) -> Grouped:
    """GAUC of requests of `counts` int64[B] impressions each, one after the other in `scores` and `positive`."""
    ends = np.cumsum(counts)[:-1]
    each = [auc(s, p) for s, p in zip(np.split(scores, ends), np.split(positive, ends), strict=True)]
    known = [(value, count) for value, count in zip(each, counts.tolist(), strict=True) if value is not None]
    if not known:
        return Grouped(None, len(each))
    values, weights = zip(*known, strict=True)
    return Grouped(float(np.average(values, weights=weights)), len(each) - len(known))


def logloss(probabilities: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> float | None:
    """Mean of -log of the probability that what happened was given; None of nothing."""
    if not len(positive):
        return None
    chance = np.clip(probabilities.astype(np.float64), EPSILON, 1 - EPSILON)
    return float(-np.where(positive, np.log(chance), np.log1p(-chance)).mean())
