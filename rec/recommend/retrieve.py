"""From a user vector to candidates: pgvector, and what the other sources propose."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from rec.bundle import Bundle
from rec.index import prewarm
from rec.index.connections import Connections
from rec.index.recall import Asked
from rec.index.search import Filters, Found, VectorIndex
from rec.retrieval import POPULAR, Candidates, Proposed, absent, merge
from rec.sources import tables
from rec.sources.segments import Segments
from rec.state import UserState

_NO_ROWS = np.empty(0, np.int64)
POPULAR_FIRST = 2
"""How many times as many popular items as candidates are looked up at first."""
NOTHING = Proposed(_NO_ROWS, _NO_ROWS, np.empty(0, np.float32), _NO_ROWS)
"""What other sources propose where only neighbours are asked for."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Candidates and how they were found."""

    candidates: Candidates
    underfilled: bool
    """Fewer than asked pass the filters."""


class Retriever:
    """Retrieval of one bundle. Scores are those of exact search: what the ranker was trained on."""

    def __init__(
        self,
        bundle: Bundle,
        connections: Connections,
        heard: Callable[[VectorIndex, Asked, Found], None] | None = None,
    ) -> None:
        """`heard` is told of every search of the index and its answer."""
        self._heard = heard
        self._bundle = bundle.id
        self._vectors = bundle.item_vectors()  # float32[N, d]
        self._ids = bundle.products(["product_id"]).column(0).combine_chunks()
        self._index = VectorIndex(connections, bundle.id, bundle.config.index)
        self._sources = tables.load(bundle.folder("sources"))
        self._quotas = bundle.config.ranker.quotas

    def read_ahead(self, connections: Connections) -> None:
        """Have Postgres read what searches read, before the first of them (`rec.index.prewarm`)."""
        prewarm.prewarm(connections, self._bundle, self._index, self._vectors)

    def retrieve(
        self,
        vector: np.ndarray,
        k: int,
        *,
        state: UserState,
        exclude: np.ndarray,
        filters: Filters,
        also: np.ndarray = _NO_ROWS,
    ) -> Retrieved:
        """k candidates for a user vector float32[d] of `state`, without the ascending item rows `exclude` int64[E].

        After them come those of the rows `also` int64[A] that nothing found and that pass.
        """
        found = self._merged(vector, k, self._sources.propose(state), exclude, filters)
        missing = also[~np.isin(also, found.candidates.rows) & ~np.isin(also, exclude)]
        if not len(missing):
            return found
        passing = self.passing(missing, filters)
        return replace(found, candidates=extended(found.candidates, passing, self._vectors[passing] @ vector))

    def popular(
        self, k: int, *, state: UserState, exclude: np.ndarray, filters: Filters, also: np.ndarray = _NO_ROWS
    ) -> Retrieved:
        """The k products most popular in the segment of `state`: the candidates where there is no user vector."""
        zeros = np.zeros(self._vectors.shape[1], np.float32)  # to which all are equally near

        def any_passing(k: int, exclude: np.ndarray) -> np.ndarray:
            return self._index.exact(zeros, k, exclude=exclude, filters=filters).rows

        passing = partial(self.passing, filters=filters)
        return most_popular(self._sources.segments, k, state, exclude, also, passing, any_passing)

    def passing(self, rows: np.ndarray, filters: Filters) -> np.ndarray:
        """Those of the item rows int64[R] that are in stock and pass `filters`, in the order given."""
        if not len(rows):
            return rows
        names = self._ids.take(pa.array(rows)).to_pylist()
        found = self._index.passing(names, filters)
        return rows[np.array([name in found for name in names], np.bool_)]

    def similar(self, row: int, k: int, exclude: np.ndarray = _NO_ROWS) -> Retrieved:
        """The k nearest available products to an item row, without itself and the rows `exclude` int64[E]."""
        return self._merged(self._vectors[row], k, NOTHING, np.union1d(exclude, [row]), Filters())

    def _merged(
        self, vector: np.ndarray, k: int, proposed: Proposed, exclude: np.ndarray, filters: Filters
    ) -> Retrieved:
        found = self._index.search(vector, k, exclude=exclude, filters=filters)
        if self._heard is not None:
            self._heard(self._index, Asked(vector, k, exclude, filters), found)
        scores = self._vectors[found.rows] @ vector  # the column may be half precision
        nearest = found.rows[np.lexsort((found.rows, -scores))]
        proposed = self._available(proposed, k, nearest, exclude, filters)
        candidates = merge(vector, self._vectors, nearest, proposed, k=k, quotas=self._quotas, exclude=exclude)
        return Retrieved(candidates, found.underfilled)

    def _available(
        self, proposed: Proposed, k: int, nearest: np.ndarray, exclude: np.ndarray, filters: Filters
    ) -> Proposed:
        """What is proposed, passes and is not excluded; the first popular items alone, unless fewer than k of them do.

        All of them are so many that the planner reads every product. Of the rows `nearest` it is known that they pass.
        """
        first, rest = np.split(proposed.popular, [POPULAR_FIRST * k])

        def passing(rows: np.ndarray) -> np.ndarray:
            rows = np.setdiff1d(rows, nearest)
            return self.passing(rows[absent(rows, exclude)], filters)

        known = np.concatenate([nearest, passing(replace(proposed, popular=first).rows)])
        if len(rest) and np.isin(first, known).sum() < k:
            known = np.concatenate([known, passing(rest)])
        else:
            proposed = replace(proposed, popular=first)
        return proposed.where(lambda rows: np.isin(rows, known))


def extended(found: Candidates, rows: np.ndarray, scores: np.ndarray) -> Candidates:
    """`found`, and after them item rows int64[A] of retrieval scores float32[A], which no source has found."""
    return Candidates(
        rows=np.concatenate([found.rows, rows]),
        scores=np.concatenate([found.scores, scores]),
        sources=np.concatenate([found.sources, np.zeros(len(rows), np.int64)]),
        cooccurrence=np.concatenate([found.cooccurrence, np.zeros(len(rows), np.float32)]),
    )


def most_popular(
    segments: Segments,
    k: int,
    state: UserState,
    exclude: np.ndarray,
    also: np.ndarray,
    passing: Callable[[np.ndarray], np.ndarray],
    any_passing: Callable[[int, np.ndarray], np.ndarray],
) -> Retrieved:
    """The first k of a segment's popular items that are `passing`, without the rows `exclude` int64[E].

    Where fewer pass, as none of a narrow category may be among a segment's items, `any_passing` products follow, so
    many of which none is excluded. After them come those of the rows `also` int64[A] that pass. Without a user vector
    every score is 0.
    """
    order = segments.popular(state.profile)
    rows = passing(order[~np.isin(order, exclude)])[:k]
    zeros = np.zeros(len(rows), np.float32)
    found = Candidates(rows, zeros, np.full(len(rows), POPULAR, np.int64), zeros)
    if len(rows) < k:
        others = any_passing(k - len(rows), np.union1d(exclude, rows))
        found = extended(found, others, np.zeros(len(others), np.float32))
        rows = found.rows
    pins = passing(also[~np.isin(also, rows) & ~np.isin(also, exclude)])
    return Retrieved(extended(found, pins, np.zeros(len(pins), np.float32)), len(rows) < k)
