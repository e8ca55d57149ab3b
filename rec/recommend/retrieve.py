"""From a user vector to candidates: pgvector, and what the other sources propose."""

from dataclasses import dataclass, replace

import numpy as np

from rec.bundle import Bundle
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from rec.retrieval import Candidates, Proposed, merge
from rec.sources import tables
from rec.state import UserState

_NO_ROWS = np.empty(0, np.int64)
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

    def __init__(self, bundle: Bundle, connections: Connections) -> None:
        self._vectors = bundle.item_vectors()  # float32[N, d]
        self._index = VectorIndex(connections, bundle.id, bundle.config.index)
        self._sources = tables.load(bundle.folder("sources"))
        self._quotas = bundle.config.ranker.quotas

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
        return replace(found, candidates=self._extended(found.candidates, vector, missing, filters))

    def similar(self, row: int, k: int, exclude: np.ndarray = _NO_ROWS) -> Retrieved:
        """The k nearest available products to an item row, without itself and the rows `exclude` int64[E]."""
        return self._merged(self._vectors[row], k, NOTHING, np.union1d(exclude, [row]), Filters())

    def _merged(
        self, vector: np.ndarray, k: int, proposed: Proposed, exclude: np.ndarray, filters: Filters
    ) -> Retrieved:
        found = self._index.search(vector, k, exclude=exclude, filters=filters)
        scores = self._vectors[found.rows] @ vector  # the column may be half precision
        nearest = found.rows[np.lexsort((found.rows, -scores))]
        if len(proposed.rows):
            passing = self._index.passing(proposed.rows, filters)
            proposed = proposed.where(lambda rows: np.isin(rows, passing))
        candidates = merge(vector, self._vectors, nearest, proposed, k=k, quotas=self._quotas, exclude=exclude)
        return Retrieved(candidates, found.underfilled)

    def _extended(self, found: Candidates, vector: np.ndarray, rows: np.ndarray, filters: Filters) -> Candidates:
        """`found`, and those of `rows` that pass, which no source has found."""
        rows = self._index.passing(rows, filters)
        return Candidates(
            rows=np.concatenate([found.rows, rows]),
            scores=np.concatenate([found.scores, self._vectors[rows] @ vector]),
            sources=np.concatenate([found.sources, np.zeros(len(rows), np.int64)]),
            cooccurrence=np.concatenate([found.cooccurrence, np.zeros(len(rows), np.float32)]),
        )
