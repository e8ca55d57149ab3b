"""Percentile bootstrap over users.

All columns share the resamples, so the difference of two columns of `resampled_means` is a paired one.
"""

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 2.5, 97.5
"""Percentiles of a 95 % interval."""

Floats = NDArray[np.float64]


def resampled_means(values: Floats, resamples: int, seed: int) -> Floats:
    """float64[resamples, M]: column means of values float64[U, M] over users drawn with replacement."""
    rng = np.random.default_rng(seed)
    users = len(values)
    means = np.empty((resamples, values.shape[1]))
    for row in range(resamples):
        times = np.bincount(rng.integers(0, users, users), minlength=users)
        means[row] = times @ values / users
    return means


def interval(means: Floats) -> Floats:
    """float64[2, M]: bounds of the 95 % interval of resampled means float64[resamples, M]."""
    return np.percentile(means, [LOW, HIGH], axis=0)
