"""What the project itself answers for each test case: retrieval over all items, and the reranked final list."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rec.config import Text
from rec.evaluate import ranking
from rec.evaluate.cases import Cases
from rec.evaluate.metrics import MISSED
from rec.features.compute import compute_batch
from rec.features.items import ItemFeatures
from rec.log import progress
from rec.models import text_encoder
from rec.models.fused import FusedDeepFM
from rec.models.user_tower import UserTower
from rec.retrieval import Candidates, candidates_for, search

USERS_PER_BLOCK = 1_024
USERS_PER_RERANK = 64
"""Requests whose features are computed at once."""
TOP = 10
"""Items of each list that count for coverage."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


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

    tower: UserTower
    items: ItemFeatures
    ranker: FusedDeepFM
    popular: Ints
    """int64[N] item rows by falling popularity."""
    text: Text
    num_candidates: int

    def answer(self, cases: Cases, what: str) -> Answers:
        """Both lists for all cases; `what` names the work in the progress bar."""
        vectors = self._vectors(cases)
        item_vectors = self.items.vectors
        retrieval = ranking.by_vectors(vectors, item_vectors, cases.targets, cases.exclude)
        rows, scores = search(vectors, item_vectors, max(self.num_candidates, TOP), cases.exclude)
        candidates = [
            candidates_for(
                vectors[user],
                item_vectors,
                (rows[user], scores[user]),
                self.popular,
                k=self.num_candidates,
                cold=state.cold,
                exclude=cases.exclude[user],
            )
            for user, state in enumerate(cases.states)
        ]
        final, final_top = np.full(len(cases), MISSED, np.int64), np.full((len(cases), TOP), -1, np.int64)
        starts = range(0, len(cases), USERS_PER_RERANK)
        for start in progress(starts, total=len(starts), what=what, unit="block"):
            block = slice(start, min(start + USERS_PER_RERANK, len(cases)))
            for user, order in enumerate(self._reranked(cases, candidates, block), start=start):
                found = np.flatnonzero(order == cases.targets[user])
                if len(found):
                    final[user] = found[0]
                final_top[user, : min(len(order), TOP)] = order[:TOP]
        return Answers(retrieval, final, rows[:, :TOP], final_top)

    def _reranked(self, cases: Cases, candidates: list[Candidates], block: slice) -> list[Ints]:
        """Item rows of each user of the block by falling ranker score, ties in the order of the candidates."""
        inputs = compute_batch(self.items, cases.states[block], candidates[block], cases.at[block])
        ends = np.cumsum([len(found.rows) for found in candidates[block]])
        scores = np.split(self.ranker.score(inputs), ends[:-1])
        return [
            found.rows[np.argsort(-score, kind="stable")]
            for found, score in zip(candidates[block], scores, strict=True)
        ]

    def _vectors(self, cases: Cases) -> Floats:
        """float32[U, d] user vectors."""
        found = [np.empty((0, self.tower.shape.width), np.float32)]
        contexts = self._contexts(cases)
        for start in range(0, len(cases), USERS_PER_BLOCK):
            block = slice(start, start + USERS_PER_BLOCK)
            found.append(self.tower.vectors(cases.states[block], None if contexts is None else contexts[block]))
        return np.concatenate(found)

    def _contexts(self, cases: Cases) -> Floats | None:
        """float32[U, W] text vectors, zeros where nothing is said; None when nobody says anything or it is not used."""
        texts = ["", *sorted({state.context for state in cases.states} - {""})]
        if len(texts) == 1 or "context" not in self.tower.shape.inputs:
            return None
        place = {text: row for row, text in enumerate(texts)}
        embedded: Floats = text_encoder.load(self.text).embed(texts)
        return embedded[[place[state.context] for state in cases.states]]


def coverage(top: Ints, num_items: int) -> float:
    """Share of all items that are in anybody's list int64[U, TOP]."""
    return len(np.unique(top[top >= 0])) / num_items
