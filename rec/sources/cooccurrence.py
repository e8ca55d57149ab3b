"""Items that the same users had within few events of each other, of training events only.

The score of the pair (i, j) is the cosine of their users' counts, damped for items with few events:

    c_ij / sqrt((n_i + DAMPING) (n_j + DAMPING))

c_ij is how often users had both at most WINDOW events apart, n_i the training events of i. The cosine divides by
popularity (Deshpande & Karypis, Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004); the damping is
there because two items with one event each, in the same basket, would have the highest score there is.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rec import histories
from rec.histories import Histories
from rec.retrieval import popularity
from rec.sources import neighbours
from rec.sources.neighbours import Neighbours

WINDOW = 10
DAMPING = 30.0
PAIRS_AT_ONCE = 10_000_000
"""Pairs that are sorted at once: ten million events make a hundred million, whose order would take 10 GiB."""

Ints = NDArray[np.int64]


def build(h: Histories, length: int) -> Neighbours:
    """The `length` items of highest score for each item; fewer where it was had with fewer."""
    training = histories.training_events(h)
    first, second, counts = together(h, training, np.arange(h.num_items), WINDOW)
    events = popularity(h.items[training], h.num_items) + DAMPING
    scores = counts / np.sqrt(events[first] * events[second])
    made = neighbours.alone(h.num_items, length)
    for low, high in _blocks(np.bincount(first, minlength=h.num_items) + np.bincount(second, minlength=h.num_items)):
        one = np.flatnonzero((first >= low) & (first < high))
        two = np.flatnonzero((second >= low) & (second < high))
        item = np.concatenate([first[one], second[two]]) - low
        other = np.concatenate([second[one], first[two]])
        part = neighbours.best(item, other, np.concatenate([scores[one], scores[two]]), high - low, length)
        made.rows[low:high], made.scores[low:high] = part.rows, part.scores
    return made


def _blocks(pairs: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of items that have some PAIRS_AT_ONCE of the `pairs` int64[N] together, or one item alone."""
    before = np.concatenate([[0], np.cumsum(pairs)])
    low = 0
    while low < len(pairs):
        high = max(int(np.searchsorted(before, before[low] + PAIRS_AT_ONCE, side="right")) - 1, low + 1)
        yield low, high
        low = high


def together(h: Histories, chosen: NDArray[np.bool_], groups: Ints, window: int) -> tuple[Ints, Ints, Ints]:
    """Item rows first < second of two groups that users have at most `window` events apart, and how often: int64[P].

    Of the events `chosen` bool[E] only: the others are as if they had not been.
    """
    users = np.repeat(np.arange(len(h.user_ids)), np.diff(h.offsets))[chosen]
    items = h.items[chosen]
    codes = [np.empty(0, np.int64)]
    for apart in range(1, min(window, len(items) - 1) + 1):
        one, other = items[:-apart], items[apart:]
        pairs = (users[:-apart] == users[apart:]) & (groups[one] != groups[other])
        codes.append(np.minimum(one, other)[pairs] * h.num_items + np.maximum(one, other)[pairs])
    found, counts = np.unique(np.concatenate(codes), return_counts=True)
    first, second = np.divmod(found, max(h.num_items, 1))
    return first, second, counts.astype(np.int64)
