"""How often an item had been chosen when a sample of the past was taken."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class PastPopularity:
    """Events per item before any moment, as sorted keys of (item, number of the moment)."""

    def __init__(self, items: Ints, at: Ints, num_items: int) -> None:
        """E events on `items` int64[E] at `at` int64[E], UTC microseconds."""
        self._moments, moment = np.unique(at, return_inverse=True)
        self._width = len(self._moments) + 1
        self._keys = np.sort(items * self._width + moment)
        self._starts = np.searchsorted(self._keys, np.arange(num_items) * self._width)

    def before(self, rows: Ints, now_us: Ints) -> Ints:
        """Events on the items `rows` earlier than `now_us`, both int64 of shapes that fit each other."""
        moment = np.searchsorted(self._moments, now_us)
        return np.searchsorted(self._keys, rows * self._width + moment) - self._starts[rows]
