"""From a user vector to candidates: pgvector, and what is popular for those without a history."""

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load_file

from rec.bundle import Bundle
from rec.index.connections import Connections
from rec.index.search import Filters, VectorIndex
from rec.retrieval import Candidates, candidates_for, popular

POPULAR_POOL = 2_000
"""Most popular products that the filters are tried on for a cold user."""


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
        counts = load_file(bundle.folder("features") / "features.safetensors")["popularity"]
        self._popular = popular(counts.astype(np.int64))[:POPULAR_POOL]

    def retrieve(self, vector: np.ndarray, k: int, *, cold: bool, exclude: np.ndarray, filters: Filters) -> Retrieved:
        """k candidates for a user vector float32[d], without the item rows `exclude` int64[E]."""
        found = self._index.search(vector, k, exclude=exclude, filters=filters)
        scores = self._vectors[found.rows] @ vector  # the column may be half precision
        order = np.lexsort((found.rows, -scores))
        favourites = self._index.passing(self._popular, filters) if cold else self._popular[:0]
        candidates = candidates_for(
            vector,
            self._vectors,
            (found.rows[order], scores[order]),
            favourites,
            k=k,
            cold=cold,
            exclude=exclude,
        )
        return Retrieved(candidates, found.underfilled)

    def similar(self, row: int, k: int) -> Retrieved:
        """The k nearest available products to an item row, without itself."""
        return self.retrieve(self._vectors[row], k, cold=False, exclude=np.array([row], np.int64), filters=Filters())
