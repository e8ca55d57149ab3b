"""Candidates for one user: exact inner-product search, and popular items for those without a history.

`search` is the exact reference that the approximate index is compared with, and what training and
evaluation use. A score is always the inner product of the user vector and the item vector, whatever
source a candidate came from, so that scores of all sources are comparable; `sources` says who found it.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

SOURCES = ("ann", "popular")
"""Where a candidate can come from, in the order of `Candidates.sources`."""

MOST_USERS, MOST_SCORES = 1_024, 2**27
"""Users whose scores over all items are in memory at once, and how many scores: half a GiB."""
_ANN, _POPULAR = 0, 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """K items for one user, best first, no item twice."""

    rows: NDArray[np.int64]
    """int64[K] item rows."""
    scores: NDArray[np.float32]
    """float32[K] inner product of user and item vector."""
    sources: NDArray[np.int64]
    """int64[K] positions in `SOURCES`."""


class Excluded(Sequence[NDArray[np.int64]]):
    """Per user, the ascending item rows that are no candidates; made when asked for, as late launches are many."""

    def __init__(self, created_us: NDArray[np.int64], at: NDArray[np.int64], seen: list[NDArray[np.int64]]) -> None:
        """Items launched after `at` int64[U] by `created_us` int64[N] (-1 where unknown), and those of `seen`."""
        self._launches = np.argsort(created_us, kind="stable")
        self._late = np.searchsorted(created_us[self._launches], at, side="right")
        self._seen = seen

    @property
    def num_items(self) -> int:
        """Items of the catalogue, the excluded ones among them."""
        return len(self._launches)

    def __len__(self) -> int:
        return len(self._late)

    @overload
    def __getitem__(self, at: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, at: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, at: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(at, slice):
            return [self[user] for user in range(*at.indices(len(self)))]
        if at >= len(self):
            raise IndexError(at)
        return np.union1d(self._launches[self._late[at] :], self._seen[at])

    def part(self, rows: NDArray[np.int64]) -> "Excluded":
        """Those of the users `rows`."""
        found = copy(self)
        found._late, found._seen = self._late[rows], [self._seen[row] for row in rows]
        return found


def users_per_block(num_items: int) -> int:
    """Users whose scores over `num_items` items are computed at once."""
    return max(min(MOST_USERS, MOST_SCORES // max(num_items, 1)), 1)


def search(
    user_vectors: NDArray[np.float32],
    item_vectors: NDArray[np.float32],
    k: int,
    exclude: Sequence[NDArray[np.int64]] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k items of highest inner product per user: rows int64[B, k] and scores float32[B, k], best first.

    `user_vectors` is float32[B, d], `item_vectors` float32[N, d]; `exclude[b]` holds rows that user b must
    not get. Equal scores are in ascending order of row. Where fewer than k items are left, rows are -1 and
    scores -inf.
    """
    rows = np.full((len(user_vectors), k), -1, np.int64)
    scores = np.full((len(user_vectors), k), -np.inf, np.float32)
    items = torch.from_numpy(np.ascontiguousarray(item_vectors, np.float32))  # float32[N, d]
    width, size = min(k, len(items)), users_per_block(len(items))
    for start in range(0, len(user_vectors), size):
        stop = min(start + size, len(user_vectors))
        users = torch.from_numpy(np.ascontiguousarray(user_vectors[start:stop], np.float32))
        block = users @ items.T  # float32[b, N]
        if exclude is not None:
            forbid(block, exclude[start:stop])
        found_rows, found_scores = _top(block, width)
        rows[start:stop, :width] = np.where(np.isneginf(found_scores), -1, found_rows)
        scores[start:stop, :width] = found_scores
    return rows, scores


def forbid(block: torch.Tensor, exclude: Sequence[NDArray[np.int64]]) -> None:
    """Set the scores float32[b, N] of each user's excluded rows to -inf, in place."""
    counts = torch.tensor([len(rows) for rows in exclude])
    if int(counts.sum()):
        users = torch.repeat_interleave(torch.arange(len(exclude)), counts)
        block[users, torch.from_numpy(np.concatenate(exclude).astype(np.int64))] = -torch.inf


def _top(block: torch.Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best of each row of float32[b, N], ties by ascending position; `torch.topk` leaves ties open."""
    values, found = block.topk(min(k + 1, block.shape[1]), dim=1)
    if block.shape[1] > k:
        for user in torch.nonzero(values[:, k - 1] == values[:, k]).flatten().tolist():
            better = torch.nonzero(block[user] > values[user, k - 1]).flatten()
            equal = torch.nonzero(block[user] == values[user, k - 1]).flatten()[: k - len(better)]
            found[user, :k] = torch.cat([better, equal])
    found = found[:, :k].sort(dim=1).values
    best, order = block.gather(1, found).sort(dim=1, descending=True, stable=True)
    return found.gather(1, order).numpy(), best.numpy()


def popularity(items: NDArray[np.int64], num_items: int) -> NDArray[np.int64]:
    """int64[N] events per item; give it the items of training events only."""
    return np.bincount(items, minlength=num_items).astype(np.int64)


def popular(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[N] all item rows, most popular first, ties by row."""
    return np.argsort(-counts, kind="stable").astype(np.int64)


def candidates(
    vectors: NDArray[np.float32],
    item_vectors: NDArray[np.float32],
    popular_rows: NDArray[np.int64],
    *,
    k: int,
    cold: Sequence[bool],
    exclude: Sequence[NDArray[np.int64]],
) -> list[Candidates]:
    """`candidates_for` each of B users by exact search: what training and evaluation rank."""
    rows, scores = search(vectors, item_vectors, k, exclude)
    return [
        candidates_for(
            vectors[user],
            item_vectors,
            (rows[user], scores[user]),
            popular_rows,
            k=k,
            cold=cold[user],
            exclude=exclude[user],
        )
        for user in range(len(vectors))
    ]


def candidates_for(
    vector: NDArray[np.float32],
    item_vectors: NDArray[np.float32],
    ann: tuple[NDArray[np.int64], NDArray[np.float32]],
    popular_rows: NDArray[np.int64],
    *,
    k: int,
    cold: bool,
    exclude: NDArray[np.int64],
) -> Candidates:
    """Merge what the index found for one user with popular items, k candidates in all where there are so many.

    `vector` is float32[d], `ann` the rows and scores of the search (rows of -1 are ignored),
    `popular_rows` item rows by falling popularity. A cold user gets both sources in turn, popular first;
    any other user gets the search's rows, and popular ones only where these are fewer than k.
    """
    keep = ann[0] >= 0
    ann_rows, ann_scores = ann[0][keep][:k], ann[1][keep][:k]
    if not cold and len(ann_rows) == k:
        return Candidates(ann_rows, ann_scores, np.full(k, _ANN, np.int64))
    enough = popular_rows[: k + len(exclude) + len(ann_rows)]
    fill = enough[~np.isin(enough, exclude)][: k + len(ann_rows)]
    rows = np.concatenate([ann_rows, fill])
    sources = np.repeat(np.array([_ANN, _POPULAR], np.int64), [len(ann_rows), len(fill)])
    place = np.concatenate([np.arange(len(ann_rows)), np.arange(len(fill))])
    turn = np.lexsort((-sources, place)) if cold else np.arange(len(rows))
    _, first = np.unique(rows[turn], return_index=True)
    chosen = turn[np.sort(first)][:k]
    scores = np.concatenate([ann_scores, item_vectors[fill] @ vector]).astype(np.float32)
    return Candidates(rows[chosen], scores[chosen], sources[chosen])
