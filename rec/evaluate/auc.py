"""Area under the ROC curve, from ranks: the probability that a positive scores higher than a negative, ties half."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """AUC of scores [Q] for labels [Q] that are true or false; nan where all labels are of one class."""
    _, group = np.unique(np.asarray(scores), return_inverse=True)
    positive = np.asarray(labels, bool)
    return of_groups(positive, group, np.ones(len(positive)))


def of_groups(positive: NDArray[np.bool_], group: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """The same with `weights` float64[Q]; questions of equal scores have one `group`, ascending with the score."""
    size = int(group.max(initial=-1)) + 1
    high = np.bincount(group, weights * positive, size)
    low = np.bincount(group, weights * ~positive, size)
    pairs = high.sum() * low.sum()
    return float(high @ (np.cumsum(low) - low / 2) / pairs) if pairs > 0 else float("nan")
