"""Eigenvectors in an order and with signs that the same matrix always gives."""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def leading(values: Doubles, directions: Doubles, count: int) -> tuple[Doubles, Doubles]:
    """Of eigenvalues float64[w] and vectors float64[w, w] the `count` greatest, or all, descending.

    Each vector has its largest number positive.
    """
    kept = np.argsort(-values, kind="stable")[:count]
    directions = directions[:, kept]
    return values[kept], directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(len(kept))])
