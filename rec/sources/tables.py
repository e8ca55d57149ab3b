"""The tables of all sources: what they propose for a user. Training, evaluation and serving ask the same code."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rec import artifact, weights
from rec.artifact import Manifest
from rec.retrieval import Proposed
from rec.sources import neighbours
from rec.sources.neighbours import Neighbours, strongest, summed
from rec.sources.segments import Segments
from rec.state import UserState

KIND = "sources"
VERSION = 1
FILE = "sources.safetensors"

LAST_ITEMS = 10
"""Distinct items at the end of a history whose neighbours are proposed."""
MOST = 150
"""Neighbours that a table proposes for a history; popular items, which cold users get, are more. Serving asks Postgres
which of them pass the filters: when each was looked up by row, 300 of 105,542 took 2.4 ms, and 600, for
which the planner read all products, 13."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sources:
    """What is looked up for a user beside the search by the user vector."""

    item: Neighbours
    """By inner product of item vectors."""
    cooccurrence: Neighbours
    """By co-occurrence in training events."""
    segments: Segments

    def propose(self, state: UserState) -> Proposed:
        """What each source has for a user: neighbours of the last items, or popular items where there are none."""
        last = _last_distinct(state.items, LAST_ITEMS)
        rows, scores = self.cooccurrence.of(last, summed)
        return Proposed(
            item=self.item.of(last, strongest)[0][:MOST],
            cooccurrence=rows[:MOST],
            cooccurrence_scores=scores[:MOST],
            popular=self.segments.popular(state.profile) if state.cold else np.empty(0, np.int64),
        )

    def extended(self, vectors: NDArray[np.float32], added: int) -> "Sources":
        """With rows for the last `added` of the item vectors float32[N, d]: near whom they are, and co-occurring with
        nobody. Those that were there before keep their neighbours."""
        return Sources(
            item=self.item.followed_by(neighbours.nearest(vectors, self.item.rows.shape[1], added)),
            cooccurrence=self.cooccurrence.followed_by(neighbours.alone(added, self.cooccurrence.rows.shape[1])),
            segments=self.segments,
        )

    def save(self, folder: Path) -> None:
        """Write FILE into `folder`."""
        arrays = {
            "item_rows": self.item.rows,
            "item_scores": self.item.scores,
            "cooccurrence_rows": self.cooccurrence.rows,
            "cooccurrence_scores": self.cooccurrence.scores,
            "segment_columns": self.segments.columns,
            "segment_cuts": self.segments.cuts,
            "segment_orders": self.segments.orders,
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / FILE)


def load(folder: Path) -> Sources:
    """What `Sources.save` wrote."""
    with weights.reading(folder / FILE) as path:
        arrays = load_file(path)
    return Sources(
        item=Neighbours(arrays["item_rows"], arrays["item_scores"]),
        cooccurrence=Neighbours(arrays["cooccurrence_rows"], arrays["cooccurrence_scores"]),
        segments=load_segments(folder),
    )


def load_segments(folder: Path) -> Segments:
    """The popular items alone: of a large catalogue the other tables are many times as large."""
    with weights.reading(folder / FILE) as path, safe_open(path, "numpy") as arrays:
        return Segments(*(arrays.get_tensor(f"segment_{name}") for name in ("columns", "cuts", "orders")))


def manifest(folder: Path) -> Manifest:
    """The checked manifest of the `sources` artifact."""
    return artifact.read(folder, kind=KIND, version=VERSION, made_by="python jobs/candidates.py")


def _last_distinct(items: Ints, count: int) -> Ints:
    """int64[M] the last `count` distinct of `items` int64[H], the newest first."""
    newest = items[::-1]
    _, first = np.unique(newest, return_index=True)
    return newest[np.sort(first)][:count]
