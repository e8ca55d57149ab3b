"""For each item a few others with scores, as a table: at serving time a look-up replaces a search over all items."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rec.retrieval import search
from rec.sources import cells

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

NONE = -1
EXACT_ROWS = 150_000
"""Most items whose neighbours are found by comparing all with all: a minute or two on two cores."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Up to L neighbours of each of N items, best first, never the item itself."""

    rows: NDArray[np.int32]
    """int32[N, L] item rows, NONE where there are fewer."""
    scores: Floats
    """float32[N, L], 0 where there is none."""

    def of(self, items: Ints, combine: Callable[[Ints, Floats], NDArray[np.float64]]) -> tuple[Ints, Floats]:
        """The neighbours of any of `items` int64[M], best first, ties by row: rows int64[R] and scores float32[R].

        `combine(place, scores)` makes one score for each distinct neighbour of those that it has for several items;
        `place` int64[M x L] says which neighbour each of `scores` is of. See `strongest` and `together`.
        """
        rows, scores = self.rows[items].ravel(), self.scores[items].ravel()
        there = rows != NONE
        found, place = np.unique(rows[there], return_inverse=True)
        combined = combine(place, scores[there])
        order = np.lexsort((found, -combined))
        return found[order].astype(np.int64), combined[order].astype(np.float32)

    def followed_by(self, other: "Neighbours") -> "Neighbours":
        """The items of both, those of `other` behind."""
        return Neighbours(np.concatenate([self.rows, other.rows]), np.concatenate([self.scores, other.scores]))


def strongest(place: Ints, scores: Floats) -> NDArray[np.float64]:
    """The highest score of each neighbour."""
    best = np.full(place.max(initial=-1) + 1, -np.inf)
    np.maximum.at(best, place, scores)
    return best


def summed(place: Ints, scores: Floats) -> NDArray[np.float64]:
    """The sum of each neighbour's scores."""
    return np.bincount(place, scores).astype(np.float64)  # of nothing it is integers


def nearest(vectors: Floats, length: int, last: int | None = None) -> Neighbours:
    """The `length` other items of highest inner product for each of the unit `vectors` float32[N, d], or for the `last`
    of them: by exact search, or by cells (`rec.sources.cells`) where all of more than EXACT_ROWS are asked for."""
    if last is None and len(vectors) > EXACT_ROWS:
        rows, scores = cells.nearest(vectors, length)
    else:
        first = 0 if last is None else len(vectors) - last
        itself = [np.array([row]) for row in range(first, len(vectors))]
        rows, scores = search(vectors[first:], vectors, min(length, len(vectors)), itself)
    return Neighbours(rows.astype(np.int32), np.where(rows == NONE, 0, scores).astype(np.float32))


def best(item: Ints, other: Ints, scores: NDArray[np.float64], num_items: int, length: int) -> Neighbours:
    """The `length` best of the pairs (item, other) for each item, ties by row; all int64[P] and float64[P]."""
    order = np.lexsort((other, -scores, item))
    item, other, scores = item[order], other[order], scores[order]
    place = np.arange(len(item)) - np.searchsorted(item, item)
    kept = place < length
    made = alone(num_items, length)
    made.rows[item[kept], place[kept]] = other[kept]
    made.scores[item[kept], place[kept]] = scores[kept]
    return made


def alone(num_items: int, length: int) -> Neighbours:
    """Items without neighbours in a table of `length` columns."""
    return Neighbours(np.full((num_items, length), NONE, np.int32), np.zeros((num_items, length), np.float32))


def none(num_items: int) -> Neighbours:
    """No neighbours at all: the source is not in use."""
    return alone(num_items, 0)
