"""Candidates without Postgres: exact search over the bundle's vectors, by stock, prices and categories as published.

What is lost meanwhile is what changed since the bundle was made, and the neighbours of the history, whose tables are
with the retriever.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.bundle import Bundle
from rec.index.search import Filters
from rec.recommend.retrieve import NOTHING, Retrieved, extended, most_popular
from rec.retrieval import Proposed, merge, search
from rec.sources import tables
from rec.state import UserState


class Standby:
    """Retrieval of one bundle in this process."""

    def __init__(self, bundle: Bundle, vectors: np.ndarray) -> None:
        """`vectors` are the bundle's float32[N, d] unit rows."""
        table = bundle.products(["available", "price", "category"]).combine_chunks()
        self._vectors = vectors
        self._quotas = bundle.config.ranker.quotas
        self._segments = tables.load_segments(bundle.folder("sources"))
        self._available = table["available"].to_numpy()  # bool[N]
        self._price = table["price"].to_numpy()  # float32[N], nan where there is none
        categories = table["category"].combine_chunks()
        self._categories = categories.flatten()  # of all products, one after the other
        self._of = pc.list_parent_indices(categories).to_numpy()  # int64, the item row of each

    def retrieve(
        self, vector: np.ndarray, k: int, *, state: UserState, exclude: np.ndarray, filters: Filters, also: np.ndarray
    ) -> Retrieved:
        """What `Retriever.retrieve` gives, but for items near the history and co-occurrences."""
        proposed = NOTHING
        if state.cold:
            proposed = replace(NOTHING, popular=self._segments.popular(state.profile))
        found = self._nearest(vector, k, proposed, exclude, filters)
        pins = self.passing(also[~np.isin(also, found.candidates.rows) & ~np.isin(also, exclude)], filters)
        return replace(found, candidates=extended(found.candidates, pins, self._vectors[pins] @ vector))

    def popular(
        self, k: int, *, state: UserState, exclude: np.ndarray, filters: Filters, also: np.ndarray
    ) -> Retrieved:
        """What `Retriever.popular` gives."""
        mask = self._mask(filters)

        def any_passing(k: int, exclude: np.ndarray) -> np.ndarray:
            return np.setdiff1d(np.flatnonzero(mask), exclude)[:k]

        return most_popular(self._segments, k, state, exclude, also, lambda rows: rows[mask[rows]], any_passing)

    def similar(self, row: int, k: int, exclude: np.ndarray) -> Retrieved:
        """What `Retriever.similar` gives."""
        return self._nearest(self._vectors[row], k, NOTHING, np.union1d(exclude, [row]), Filters())

    def _nearest(
        self, vector: np.ndarray, k: int, proposed: Proposed, exclude: np.ndarray, filters: Filters
    ) -> Retrieved:
        gone = np.union1d(exclude, np.flatnonzero(~self._mask(filters))).astype(np.int64)
        (rows,), _ = search(vector[None], self._vectors, k, [gone])
        candidates = merge(vector, self._vectors, rows, proposed, k=k, quotas=self._quotas, exclude=gone)
        return Retrieved(candidates, bool((rows < 0).any()))

    def passing(self, rows: np.ndarray, filters: Filters) -> np.ndarray:
        """What `Retriever.passing` gives."""
        return rows[self._mask(filters)[rows]]

    def _mask(self, filters: Filters) -> np.ndarray:
        """bool[N] which products pass, as rec.index.search has it."""
        mask = self._available.copy()
        if filters.categories:
            chosen = pc.is_in(self._categories, value_set=pa.array(filters.categories, pa.string())).to_numpy(False)
            of_category = np.zeros(len(mask), bool)
            of_category[self._of[chosen]] = True
            mask &= of_category
        with np.errstate(over="ignore", under="ignore"):
            if filters.price_min is not None:
                mask &= self._price >= np.float32(filters.price_min)
            if filters.price_max is not None:
                mask &= self._price <= np.float32(filters.price_max)
        return mask
