"""What the project itself answers for each test case: retrieval over all items, and the reranked final list."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.config import Quotas
from rec.evaluate import provenance, ranking
from rec.evaluate.cases import Cases
from rec.evaluate.metrics import MISSED
from rec.features.compute import compute_batch
from rec.features.items import ItemFeatures
from rec.features.popularity import PastPopularity
from rec.log import progress
from rec.models.fused import Fused
from rec.models.user_vectors import UserVectors
from rec.retrieval import Candidates, candidates, search
from rec.sources.tables import Sources

USERS_PER_RERANK = 64
"""Requests whose features are computed at once."""
TOP = 10
"""Items of each list that count for coverage and diversity."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reranked:
    """K candidates of one user by falling score of the ranker, ties in the order of retrieval."""

    rows: Ints
    """int64[K] item rows."""
    probabilities: Floats
    """float32[K] that each is the next choice, given the list."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Results for U cases."""

    retrieval: Ints
    """int64[U] rank of the target among all its candidates by the user vector alone."""
    final: Ints
    """int64[U] rank of the target in the reranked list, MISSED where it was not retrieved."""
    retrieval_top: Ints
    """int64[U, TOP] item rows, -1 where the list is shorter."""
    final_top: Ints
    """int64[U, TOP] item rows, -1 where the list is shorter."""
    vectors: Floats
    """float32[U, d] of the users."""
    found: list[Candidates]
    """What was reranked."""
    reranked: list[Reranked]
    provenance: dict[str, Any]
    """Which source the candidates came from; see `rec.evaluate.provenance`."""


@dataclass(frozen=True, slots=True)
class Retrieval:
    """User tower, exact search and the other sources, put together as serving does."""

    vectors: UserVectors
    items: Floats
    """float32[N, d] unit item vectors."""
    sources: Sources
    """Of all training events, whenever these were: serving has these tables too, and one set for each test's day would
    cost as many builds."""
    num_candidates: int
    quotas: Quotas

    def search(self, cases: Cases) -> tuple[Floats, Ints]:
        """User vectors float32[U, d], and the item rows that are nearest int64[U, K], -1 past the last one."""
        vectors = self.vectors(cases.states)
        found, _ = search(vectors, self.items, self.num_candidates, cases.exclude)
        return vectors, found

    def merged(self, cases: Cases, vectors: Floats, ann: Ints, without: str | None = None) -> list[Candidates]:
        """The candidates of each user, given what `search` found; without one of the other sources."""
        proposed = (self.sources.propose(state) for state in cases.states)
        kept = (one if without is None else one.without(without) for one in proposed)
        return candidates(
            vectors, self.items, ann, kept, k=self.num_candidates, quotas=self.quotas, exclude=cases.exclude
        )


@dataclass(frozen=True, slots=True)
class Recommender:
    """The trained parts, put together as serving does."""

    retrieval: Retrieval
    items: ItemFeatures
    ranker: Fused
    past: PastPopularity
    """What the ranker is told of an item's popularity: as of the test's time."""

    def answer(self, cases: Cases, what: str) -> Answers:
        """Both lists for all cases; `what` names the work in the progress bar."""
        vectors, ann = self.retrieval.search(cases)
        retrieval = ranking.by_vectors(vectors, self.items.vectors, cases.targets, cases.exclude)
        found = self.retrieval.merged(cases, vectors, ann)
        retrieval_top = first([each.rows for each in found])
        lists = self.reranked(cases, found, what)
        final = places([each.rows for each in lists], cases.targets)
        by_source = provenance.figures(
            found, cases.targets, lambda source: self.retrieval.merged(cases, vectors, ann, source)
        )
        final_top = first([each.rows for each in lists])
        return Answers(retrieval, final, retrieval_top, final_top, vectors, found, lists, by_source)

    def reranked(self, cases: Cases, found: list[Candidates], what: str) -> list[Reranked]:
        """The final list of each user, given the candidates."""
        lists: list[Reranked] = []
        starts = range(0, len(cases), USERS_PER_RERANK)
        for start in progress(starts, total=len(starts), what=what, unit="block"):
            lists += self._block(cases, found, slice(start, min(start + USERS_PER_RERANK, len(cases))))
        return lists

    def _block(self, cases: Cases, found: list[Candidates], block: slice) -> list[Reranked]:
        """The lists of the users of the block."""
        inputs = compute_batch(self.items, cases.states[block], found[block], cases.at[block], self.past)
        ends = np.cumsum([len(each.rows) for each in found[block]])
        scores = np.split(self.ranker.score(inputs), ends[:-1])
        orders = [np.argsort(-score, kind="stable") for score in scores]
        chances = [self.ranker.probabilities(score) for score in scores]
        return [Reranked(c.rows[o], p[o]) for c, p, o in zip(found[block], chances, orders, strict=True)]


def places(lists: list[Ints], targets: Ints) -> Ints:
    """int64[U] rank of each target in its list of item rows, MISSED where it is not there."""
    ranks = np.full(len(targets), MISSED, np.int64)
    for user, (rows, target) in enumerate(zip(lists, targets, strict=True)):
        place = np.flatnonzero(rows == target)
        if len(place):
            ranks[user] = place[0]
    return ranks


def first(lists: list[Ints]) -> Ints:
    """int64[U, TOP] the first items of each list, -1 where it is shorter."""
    made = np.full((len(lists), TOP), -1, np.int64)
    for user, rows in enumerate(lists):
        made[user, : min(len(rows), TOP)] = rows[:TOP]
    return made
