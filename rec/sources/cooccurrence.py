"""Items that the same users had within few events of each other, of training events only.

The score of the pair (i, j) is the cosine of their users' counts, damped for items with few events:

    c_ij / sqrt((n_i + DAMPING) (n_j + DAMPING))

c_ij is how often users had both at most WINDOW events apart, n_i the training events of i. The cosine divides by
popularity (Deshpande & Karypis, Item-based top-N recommendation algorithms, ACM TOIS 22(1), 2004); the damping is
there because two items with one event each, in the same basket, would have the highest score there is.
"""

import numpy as np
from numpy.typing import NDArray

from rec import histories
from rec.histories import Histories
from rec.retrieval import popularity
from rec.sources import neighbours
from rec.sources.neighbours import Neighbours

WINDOW = 10
DAMPING = 30.0

Ints = NDArray[np.int64]


def build(h: Histories, length: int) -> Neighbours:
    """The `length` items of highest score for each item; fewer where it was had with fewer."""
    training = histories.training_events(h)
    first, second, counts = together(h, training, np.arange(h.num_items), WINDOW)
    events = popularity(h.items[training], h.num_items) + DAMPING
    scores = counts / np.sqrt(events[first] * events[second])
    item, other = np.concatenate([first, second]), np.concatenate([second, first])
    return neighbours.best(item, other, np.concatenate([scores, scores]), h.num_items, length)


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
