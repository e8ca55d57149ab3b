"""Pairs of products that the same users chose within few events, of training events only.

A pair counts once for each time users chose both; pairs of popular products are damped, and one epoch draws as many
pairs as there are, with replacement, so that the probability of every product in a batch is known exactly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rec import histories
from rec.histories import Histories
from rec.sources.cooccurrence import together

FILE = "pairs.safetensors"

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """P pairs of distinct products of two content groups."""

    first: Ints
    """int64[P] item rows, below `second`."""
    second: Ints
    """int64[P] item rows."""
    share: NDArray[np.float64]
    """float64[P] probability that a draw is this pair."""

    def __len__(self) -> int:
        return len(self.first)

    def draw(self, rng: np.random.Generator) -> Ints:
        """int64[P] pairs of one epoch."""
        found = np.searchsorted(np.cumsum(self.share), rng.random(len(self)), side="right")
        return np.minimum(found, len(self) - 1).astype(np.int64)

    def item_share(self, num_items: int) -> NDArray[np.float64]:
        """float64[N] probability that one side of a drawn pair is the item."""
        sides = np.concatenate([self.first, self.second])
        return np.bincount(sides, np.concatenate([self.share, self.share]) / 2, num_items).astype(np.float64)

    def save(self, folder: Path) -> None:
        """Write them into `folder`."""
        save_file({"first": self.first, "second": self.second, "share": self.share}, folder / FILE)


def load(folder: Path) -> Pairs:
    """What `Pairs.save` wrote."""
    return Pairs(**load_file(folder / FILE))


def find(h: Histories, groups: Ints, *, window: int, damping: float) -> Pairs:
    """The pairs of training events of one user at most `window` events apart; `groups` int64[N] are content groups.

    A draw is pair (i, j) with a probability in proportion to its count / (n_i n_j)^damping, n_i the pairs of i.
    """
    first, second, counts = together(h, histories.training_events(h), groups, window)
    popularity = np.bincount(np.concatenate([first, second]), np.concatenate([counts, counts]), h.num_items)
    weight = counts / (popularity[first] * popularity[second]).astype(np.float64) ** damping
    return Pairs(first, second, weight / weight.sum() if len(weight) else weight)
