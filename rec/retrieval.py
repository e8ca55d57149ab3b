"""Candidates for one user: exact inner-product search, and the merge of what all sources found.

`search` is the exact reference that the approximate index is compared with, and what training and
evaluation use. A score is always the inner product of the user vector and the item vector, whatever
source a candidate came from, so that scores of all sources are comparable; `sources` says who found it.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from rec.config import Quotas

SOURCES = ("ann", "item", "cooccurrence", "popular")
"""Where a candidate can come from: the search by the user vector; items near the last ones of the history; items that
other users had together with these; items popular among users alike. Source s is the bit 1 << s of
`Candidates.sources`."""
ANN, ITEM, COOCCURRENCE, POPULAR = (1 << s for s in range(len(SOURCES)))

MOST_USERS, MOST_SCORES = 1_024, 2**27
"""Users whose scores over all items are in memory at once, and how many scores: half a GiB."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """K items for one user, best first, no item twice."""

    rows: NDArray[np.int64]
    """int64[K] item rows."""
    scores: NDArray[np.float32]
    """float32[K] inner product of user and item vector."""
    sources: NDArray[np.int64]
    """int64[K] the bits of all sources that have the item among their first K."""
    cooccurrence: NDArray[np.float32]
    """float32[K] score of the source `cooccurrence`, 0 where it has not found the item."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """What the sources beside the search have for one user, each best first and without repetition."""

    item: NDArray[np.int64]
    """int64[I] item rows."""
    cooccurrence: NDArray[np.int64]
    """int64[C] item rows."""
    cooccurrence_scores: NDArray[np.float32]
    """float32[C]"""
    popular: NDArray[np.int64]
    """int64[P] item rows; for a user with a history there are none."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """All item rows, each once, ascending."""
        return np.unique(np.concatenate([self.item, self.cooccurrence, self.popular]))

    def without(self, source: str) -> "Proposed":
        """What is left when `source`, one of SOURCES but `ann`, is not asked."""
        none: dict[str, NDArray[Any]] = {source: np.empty(0, np.int64)}
        if source == "cooccurrence":
            none["cooccurrence_scores"] = np.empty(0, np.float32)
        return replace(self, **none)

    def where(self, allowed: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> "Proposed":
        """The items that are `allowed`, a function from rows to a mask of them."""
        together = allowed(self.cooccurrence)
        return Proposed(
            item=self.item[allowed(self.item)],
            cooccurrence=self.cooccurrence[together],
            cooccurrence_scores=self.cooccurrence_scores[together],
            popular=self.popular[allowed(self.popular)],
        )


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


def popular(counts: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
    """int64[N] all item rows by falling count, ties by row."""
    return np.argsort(-counts, kind="stable").astype(np.int64)


def candidates(
    vectors: NDArray[np.float32],
    item_vectors: NDArray[np.float32],
    ann: NDArray[np.int64],
    proposed: Iterable[Proposed],
    *,
    k: int,
    quotas: Quotas,
    exclude: Sequence[NDArray[np.int64]],
) -> list[Candidates]:
    """`merge` for each of B users: what training and evaluation rank. `ann` int64[B, >= k] are the rows of `search`."""
    return [
        merge(vectors[user], item_vectors, ann[user], one, k=k, quotas=quotas, exclude=exclude[user])
        for user, one in enumerate(proposed)
    ]


def merge(
    vector: NDArray[np.float32],
    item_vectors: NDArray[np.float32],
    ann: NDArray[np.int64],
    proposed: Proposed,
    *,
    k: int,
    quotas: Quotas,
    exclude: NDArray[np.int64],
) -> Candidates:
    """The k candidates of one user, fewer only where the search found fewer.

    `vector` is float32[d], `ann` the rows of the search (-1 is ignored), `exclude` ascending rows that the user must
    not get and the search did not return. Co-occurrence and then item-to-item claim what their quotas allow, the search
    fills the rest, and all are in order of score. Where there are popular items, which is for users without a history,
    these and the search take turns, popular first, and the order is that.
    """
    ann = ann[ann >= 0][:k]
    proposed = proposed.where(lambda rows: absent(rows, exclude))
    together = proposed.cooccurrence[: round(quotas.cooccurrence * k)]
    item = proposed.item[~np.isin(proposed.item, together)][: round(quotas.item * k)]
    rest = _in_turn(proposed.popular[:k], ann)
    rows = _distinct(np.concatenate([together, item, rest]))[:k]
    scores = item_vectors[rows] @ vector
    if not len(proposed.popular):
        order = np.lexsort((rows, -scores))
        rows, scores = rows[order], scores[order]
    found = {ANN: ann, ITEM: proposed.item, COOCCURRENCE: proposed.cooccurrence, POPULAR: proposed.popular}
    sources = np.zeros(len(rows), np.int64)
    for bit, of_source in found.items():
        sources |= bit * np.isin(rows, of_source[:k])
    return Candidates(rows, scores.astype(np.float32), sources, _scores_of(rows, proposed))


def absent(rows: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[R] which of `rows` are not among `ascending` int64[E], which may be most of the catalogue."""
    if not len(ascending):
        return np.ones(len(rows), bool)
    place = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
    return ascending[place] != rows


def _in_turn(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of both in turns, beginning with `first`."""
    turns = np.concatenate([2 * np.arange(len(first)), 2 * np.arange(len(second)) + 1])
    return np.concatenate([first, second])[np.argsort(turns)]


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row once, where it comes first."""
    return rows[np.sort(np.unique(rows, return_index=True)[1])]


def _scores_of(rows: NDArray[np.int64], proposed: Proposed) -> NDArray[np.float32]:
    """float32[K] co-occurrence scores of `rows`."""
    scores = np.zeros(len(rows), np.float32)
    same = rows[:, None] == proposed.cooccurrence[: len(rows)]  # bool[K, C]
    place, of = np.nonzero(same)
    scores[place] = proposed.cooccurrence_scores[of]
    return scores
