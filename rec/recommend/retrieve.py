"""From a user vector to candidates: pgvector, and what the other sources propose."""

from dataclasses import dataclass

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
        self, vector: np.ndarray, k: int, *, state: UserState, exclude: np.ndarray, filters: Filters
    ) -> Retrieved:
        """k candidates for a user vector float32[d] of `state`, without the ascending item rows `exclude` int64[E]."""
        return self._merged(vector, k, self._sources.propose(state), exclude, filters)

    def similar(self, row: int, k: int) -> Retrieved:
        """The k nearest available products to an item row, without itself."""
        return self._merged(self._vectors[row], k, NOTHING, np.array([row], np.int64), Filters())

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
