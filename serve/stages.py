"""The three stages behind the ingress. Each answers for the bundle it is asked for, or says that it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from rec.bundle import Bundle
from rec.index.connections import within
from rec.index.search import Filters
from rec.recommend.encode import UserEncoder
from rec.recommend.request import Encoded, Ranked
from rec.recommend.retrieve import Retrieved
from rec.recommend.retrieve import Retriever as BundleRetriever
from rec.recommend.score import Scorer, Unranked
from rec.retrieval import Candidates
from rec.state import UserState
from serve.combining import Combining
from serve.loaded import Loaded, Wanted, connections
from serve.metrics import metrics
from serve.sampler import RecallSampler

CONNECTIONS = 4
"""Database connections of one retriever replica."""
STAGE_S = 2.0
"""Longest wait for the user tower or retrieval."""


class _Encoding:
    """The user tower of one bundle for any number of callers."""

    def __init__(self, bundle: Bundle) -> None:
        self._encoder = UserEncoder(bundle)
        self._together = Combining(self._encoder.encode)

    def encode(self, state: UserState) -> Encoded:
        self._encoder.read(state.context)
        return self._together(state)


class UserTower:
    """User state → user vector."""

    def __init__(self, store: str) -> None:
        self._encoders = Loaded(store, _Encoding)
        pool = connections(store, size=1)
        self._encoders.start(pool)
        self._encoders.follow(pool)

    def encode(self, bundle: Wanted, state: UserState) -> Encoded:
        """The vector of `state` by bundle `bundle`."""
        return self._encoders.wanted(bundle).encode(state)


class Retriever:
    """User vector → candidates."""

    def __init__(self, store: str) -> None:
        self._connections = connections(store, size=CONNECTIONS)
        self._sampler = RecallSampler(lambda: connections(store, size=1), metrics().recall)
        self._retrievers = Loaded(store, self._retriever)
        first = self._retrievers.start(self._connections)
        first.read_ahead(self._connections)  # not at switches: what was just loaded is in memory, and shoppers wait
        self._retrievers.follow(self._connections)

    def _retriever(self, bundle: Bundle) -> BundleRetriever:
        return BundleRetriever(bundle, self._connections, self._sampler.at(bundle.config.index.recall_sample))

    @contextmanager
    def _asked(self, bundle: Wanted) -> Iterator[BundleRetriever]:
        """Bounded here as well: a limit of the caller's does not pass a handle. Loading the bundle may take longer."""
        retriever = self._retrievers.wanted(bundle)
        with within(STAGE_S):
            yield retriever

    def retrieve(
        self,
        bundle: Wanted,
        k: int,
        state: UserState,
        exclude: np.ndarray,
        filters: Filters,
        also: np.ndarray,
        vector: np.ndarray,
    ) -> Retrieved:
        """k candidates for a user vector float32[d] of `state`, and those of the rows `also` that pass."""
        with self._asked(bundle) as retriever:
            return retriever.retrieve(vector, k, state=state, exclude=exclude, filters=filters, also=also)

    def popular(
        self, bundle: Wanted, k: int, state: UserState, exclude: np.ndarray, filters: Filters, also: np.ndarray
    ) -> Retrieved:
        """k popular candidates for `state` without a user vector, and those of the rows `also` that pass."""
        with self._asked(bundle) as retriever:
            return retriever.popular(k, state=state, exclude=exclude, filters=filters, also=also)

    def passing(self, bundle: Wanted, rows: np.ndarray, filters: Filters) -> np.ndarray:
        """Those of the item rows that are in stock and pass `filters`."""
        with self._asked(bundle) as retriever:
            return retriever.passing(rows, filters)

    def similar(self, bundle: Wanted, row: int, k: int, exclude: np.ndarray) -> Retrieved:
        """The k nearest products to an item row, without itself and the rows `exclude`."""
        with self._asked(bundle) as retriever:
            return retriever.similar(row, k, exclude)


class Ranker:
    """Candidates → ranked list."""

    def __init__(self, store: str) -> None:
        self._scorers = Loaded(store, lambda bundle: Combining(Scorer(bundle).rank))
        pool = connections(store, size=1)
        self._scorers.start(pool)
        self._scorers.follow(pool)

    def rank(self, bundle: Wanted, state: UserState, candidates: Candidates, k: int, now_us: int) -> Ranked:
        """The k best candidates."""
        return self._scorers.wanted(bundle)(Unranked(state, candidates, k, now_us))


STAGES = (UserTower, Retriever, Ranker)
