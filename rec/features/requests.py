"""Ranker requests as flat arrays on disk, so that every training worker maps the same bytes.

    rows.npy int32[T]  sparse.npy int32[T, F]  dense.npy float32[T, G]
    offsets.npy int64[U + 1]  labels.npy int64[U]  re.npy int32[N, R]

T rows of all requests (candidates of U users), RE tokens looked up by item row when a batch is made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from rec.features.compute import RankInputs, compute_batch
from rec.features.items import ItemFeatures
from rec.features.popularity import PastPopularity
from rec.log import progress
from rec.retrieval import Candidates
from rec.state import UserState

BLOCK = 64
"""Requests whose features are computed at once."""
SCALE_BLOCK = 512

_ARRAYS = ("rows", "sparse", "dense", "offsets", "labels", "re")


@dataclass(frozen=True, slots=True)
class Requests:
    """U requests with known answers. `part` of it is a batch."""

    rows: NDArray[np.int32]
    """int32[T] item row of each candidate."""
    sparse: NDArray[np.int32]
    """int32[T, F]"""
    dense: NDArray[np.float32]
    """float32[T, G]"""
    offsets: NDArray[np.int64]
    """int64[U + 1] rows of each request."""
    labels: NDArray[np.int64]
    """int64[U] position of the target among its request's candidates."""
    re: NDArray[np.int32]
    """int32[N, R] RE tokens per item row."""

    def __len__(self) -> int:
        return len(self.labels)

    def flat(self, users: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[t] positions in the T rows of the given requests, in their order."""
        counts = self.offsets[users + 1] - self.offsets[users]
        ends = np.cumsum(counts)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.offsets[users] - (ends - counts), counts)

    def inputs(self, users: NDArray[np.int64]) -> RankInputs:
        """RankInputs of the given requests, one after the other."""
        return self.at(self.flat(users))

    def at(self, where: NDArray[np.int64]) -> RankInputs:
        """RankInputs of the rows at positions `where` int64[t] of the T rows."""
        varlen = self.re[self.rows[where]].astype(np.int64)
        return RankInputs(self.sparse[where].astype(np.int64), varlen, np.asarray(self.dense[where]))

    def scale(self, users: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """`low`, `high`, `mean`, `std`, each float32[G], over the given requests; std is 1 where nothing varies."""
        blocks = [users[start : start + SCALE_BLOCK] for start in range(0, len(users), SCALE_BLOCK)]
        width = self.dense.shape[1]
        low, high = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        total, count = np.zeros(width), 0
        for block in blocks:
            values = self.dense[self.flat(block)]
            low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
            total += values.sum(axis=0, dtype=np.float64)
            count += len(values)
        mean = total / count
        squares = np.zeros(width)
        for block in blocks:
            squares += ((self.dense[self.flat(block)] - mean) ** 2).sum(axis=0)
        deviation = np.sqrt(squares / count)
        std = np.where(deviation > 1e-6, deviation, 1)
        return {"low": low, "high": high, "mean": mean.astype(np.float32), "std": std.astype(np.float32)}

    def occurring(self, items: ItemFeatures, users: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """bool[rows] per table: which rows the given requests look up."""
        occurs = {name: np.zeros(rows, bool) for name, rows in items.spec.tables.items()}
        where = self.flat(users)
        for column, field in enumerate(items.spec.sparse):
            occurs[field.table][np.unique(self.sparse[where, column])] = True
        for bag in items.spec.varlen:
            occurs[bag.table][np.unique(self.re[np.unique(self.rows[where])])] = True
            occurs[bag.table][0] = False  # padding is masked out
        return occurs


def write(
    folder: Path,
    items: ItemFeatures,
    states: list[UserState],
    candidates: list[Candidates],
    now_us: NDArray[np.int64],
    labels: NDArray[np.int64],
    past: PastPopularity,
    kept: Mapping[int, NDArray[np.int64]] | None = None,
) -> None:
    """Compute the features of all requests, each as of its time, and write the arrays into `folder`.

    Of the requests in `kept` only the candidates at these ascending positions are written, with the features that they
    have among all; `labels` are positions among those that are written.
    """
    taken = [np.arange(len(found.rows)) for found in candidates]
    for request, positions in (kept or {}).items():
        taken[request] = positions
    offsets = np.zeros(len(states) + 1, np.int64)
    np.cumsum([len(positions) for positions in taken], out=offsets[1:])
    total, spec = int(offsets[-1]), items.spec
    sparse = open_memmap(folder / "sparse.npy", mode="w+", dtype=np.int32, shape=(total, len(spec.sparse)))
    dense = open_memmap(folder / "dense.npy", mode="w+", dtype=np.float32, shape=(total, len(spec.dense)))
    for block in progress(_blocks(len(states)), total=-(-len(states) // BLOCK), what="features", unit="block"):
        made = compute_batch(items, states[block], candidates[block], now_us[block], past)
        where = slice(int(offsets[block.start]), int(offsets[block.stop]))
        begins = np.cumsum([0, *(len(found.rows) for found in candidates[block])])
        rows = np.concatenate([start + at for start, at in zip(begins[:-1], taken[block], strict=True)])
        sparse[where], dense[where] = made.sparse[rows], made.dense[rows]
    sparse.flush()
    dense.flush()
    written = [found.rows[at] for found, at in zip(candidates, taken, strict=True)]
    rows = np.concatenate(written) if written else np.empty(0, np.int64)
    np.save(folder / "rows.npy", rows.astype(np.int32))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "labels.npy", labels.astype(np.int64))
    np.save(folder / "re.npy", items.re)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def open_requests(folder: Path) -> Requests:
    """The arrays that `write` left in `folder`, mapped, not read."""
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
    return Requests(**arrays)
