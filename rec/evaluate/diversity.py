"""What the lists of all users are together, and how alike the items of one list are.

    coverage     share of the catalogue that is in anybody's list
    gini         how unequally the places are shared out among all items: 0 equally, near 1 when few have all
    similarity   mean cosine between two items of a list by the frozen item vectors: how little a list varies
                 (Ziegler et al., "Improving Recommendation Lists Through Topic Diversification", WWW 2005)

Only the last is a mean over users and has an interval: the first two depend on how many users there are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.evaluate.bootstrap import interval, resampled_means

Ints = NDArray[np.int64]
BLOCK_USERS = 1_024
DIGITS = 6


def figures(top: Ints, vectors: NDArray[np.float32], resamples: int, seed: int) -> dict[str, Any]:
    """All three of the lists int64[U, k] of item rows, -1 past the end; `vectors` are float32[N, d] unit rows."""
    found: dict[str, Any] = {
        "coverage": round(coverage(top, len(vectors)), DIGITS),
        "gini": round(gini(np.bincount(top[top >= 0], minlength=len(vectors))), DIGITS),
    }
    alike = similarity(top, vectors)
    alike = alike[np.isfinite(alike)]
    if len(alike):
        bounds = interval(resampled_means(alike[:, None], resamples, seed))[:, 0]
        found["similarity"] = {
            "value": round(float(alike.mean()), DIGITS),
            "ci95": [round(float(bound), DIGITS) for bound in bounds],
        }
    return found


def coverage(top: Ints, num_items: int) -> float:
    """Share of all items that are in anybody's list int64[U, k]."""
    return len(np.unique(top[top >= 0])) / num_items


def gini(counts: Ints) -> float:
    """Gini coefficient of counts int64[N], the zeros among them; 0 when all are 0."""
    total, size = int(counts.sum()), len(counts)
    if not total:
        return 0.0
    place = np.arange(1, size + 1)
    return float(2 * (place * np.sort(counts)).sum() / (size * total) - (size + 1) / size)


def similarity(top: Ints, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[U] mean cosine over the pairs of items of each list int64[U, k]; nan with fewer than two items."""
    found = np.full(len(top), np.nan)
    for start in range(0, len(top), BLOCK_USERS):
        block = slice(start, start + BLOCK_USERS)
        real = top[block] >= 0
        count = real.sum(axis=1)
        total = (vectors[top[block]] * real[..., None]).astype(np.float64).sum(axis=1)  # [b, d]
        pairs = count * (count - 1)
        found[block] = np.where(pairs > 0, ((total**2).sum(axis=1) - count) / np.maximum(pairs, 1), np.nan)
    return found
