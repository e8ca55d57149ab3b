"""What the project itself answers for each test case: retrieval over all items, and the reranked final list."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rec.evaluate import ranking
from rec.evaluate.cases import Cases
from rec.evaluate.metrics import MISSED
from rec.features.compute import compute_batch
from rec.features.items import ItemFeatures
from rec.features.popularity import PastPopularity
from rec.log import progress
from rec.models.fused import FusedDeepFM
from rec.models.user_vectors import UserVectors
from rec.retrieval import Candidates, candidates

USERS_PER_RERANK = 64
"""Requests whose features are computed at once."""
TOP = 10
"""Items of each list that count for coverage."""

Ints = NDArray[np.int64]


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


@dataclass(frozen=True, slots=True)
class Recommender:
    """The trained parts, put together as serving does."""

    vectors: UserVectors
    items: ItemFeatures
    ranker: FusedDeepFM
    popular: Ints
    """int64[N] item rows by falling count of training events, whenever these were: what cold users get beside the
    search. Serving has this one order too, and one for each test's day would cost a sort of all items per user."""
    past: PastPopularity
    """What the ranker is told of an item's popularity: as of the test's time."""
    num_candidates: int

    def answer(self, cases: Cases, what: str) -> Answers:
        """Both lists for all cases; `what` names the work in the progress bar."""
        vectors, exclude = self.vectors(cases.states), cases.exclude
        retrieval = ranking.by_vectors(vectors, self.items.vectors, cases.targets, exclude)
        cold = [state.cold for state in cases.states]
        found = candidates(vectors, self.items.vectors, self.popular, k=self.num_candidates, cold=cold, exclude=exclude)
        retrieval_top = _first([each.rows for each in found])
        final, lists = np.full(len(cases), MISSED, np.int64), []
        starts = range(0, len(cases), USERS_PER_RERANK)
        for start in progress(starts, total=len(starts), what=what, unit="block"):
            block = slice(start, min(start + USERS_PER_RERANK, len(cases)))
            lists += self._reranked(cases, found, block)
        for user, (order, target) in enumerate(zip(lists, cases.targets, strict=True)):
            place = np.flatnonzero(order == target)
            if len(place):
                final[user] = place[0]
        return Answers(retrieval, final, retrieval_top, _first(lists))

    def _reranked(self, cases: Cases, found: list[Candidates], block: slice) -> list[Ints]:
        """Item rows of each user of the block by falling ranker score, ties in the order of the candidates."""
        inputs = compute_batch(self.items, cases.states[block], found[block], cases.at[block], self.past)
        ends = np.cumsum([len(each.rows) for each in found[block]])
        scores = np.split(self.ranker.score(inputs), ends[:-1])
        return [each.rows[np.argsort(-score, kind="stable")] for each, score in zip(found[block], scores, strict=True)]


def _first(lists: list[Ints]) -> Ints:
    """int64[U, TOP] the first items of each list, -1 where it is shorter."""
    made = np.full((len(lists), TOP), -1, np.int64)
    for user, rows in enumerate(lists):
        made[user, : min(len(rows), TOP)] = rows[:TOP]
    return made


def coverage(top: Ints, num_items: int) -> float:
    """Share of all items that are in anybody's list int64[U, TOP]."""
    return len(np.unique(top[top >= 0])) / num_items
