"""Rows for RE tokens that a tower was not trained on: a linear map of what the text encoder says of a word.

The map is ridge regression from the frozen encoder's vectors of the trained tokens to their rows in the tower's
table. How strong the ridge is, leave-one-out error decides, which the singular values give without fitting again.
The same tokens and rows give the same map: nothing is drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

STRENGTHS = np.logspace(-3, 2, 21)
"""Ridges tried, in units of the mean squared singular value."""


@dataclass(frozen=True, slots=True)
class TokenMap:
    """x → row + (x - text) @ weight."""

    text: FloatArray  # float32[w], mean of the encoder's vectors
    row: FloatArray  # float32[d], mean of the rows
    weight: FloatArray  # float32[w, d]

    def __call__(self, vectors: FloatArray) -> FloatArray:
        """Rows float32[n, d] of tokens whose encoder vectors are float32[n, w]."""
        made: FloatArray = (self.row + (vectors - self.text) @ self.weight).astype(np.float32)
        return made


def fit(vectors: FloatArray, rows: FloatArray) -> TokenMap:
    """The map of n >= 1 trained tokens: `vectors` float32[n, w] of the encoder, `rows` float32[n, d] of the table.

    One token, or tokens whose vectors are all alike, give the mean row for every word.
    """
    text, row = vectors.mean(0, dtype=np.float64), rows.mean(0, dtype=np.float64)
    u, s, vt = np.linalg.svd(vectors - text, full_matrices=False)  # [n, r], [r], [r, w]
    kept = s > 1e-6 * max(float(s.max(initial=0.0)), 1.0)
    if not kept.any():
        return _float(text, row, np.zeros((vectors.shape[1], rows.shape[1])))
    u, s, vt = u[:, kept], s[kept], vt[kept]
    centred = rows - row  # [n, d]
    told = u.T @ centred  # [r, d]
    errors = []
    for ridge in STRENGTHS * np.mean(s**2):
        shrunk = s**2 / (s**2 + ridge)  # [r]
        leverage = 1 / len(rows) + u**2 @ shrunk  # [n], the share of a row's fit that is its own
        left = (centred - u @ (shrunk[:, None] * told)) / np.maximum(1 - leverage, 1e-6)[:, None]
        errors.append(float(np.mean(left**2)))
    ridge = STRENGTHS[int(np.argmin(errors))] * np.mean(s**2)
    return _float(text, row, vt.T @ ((s / (s**2 + ridge))[:, None] * told))


def _float(text: NDArray[np.float64], row: NDArray[np.float64], weight: NDArray[np.float64]) -> TokenMap:
    return TokenMap(text.astype(np.float32), row.astype(np.float32), weight.astype(np.float32))
