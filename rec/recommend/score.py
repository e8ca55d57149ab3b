"""From candidates to the ranked list."""

import numpy as np

from rec.bundle import Bundle
from rec.features import items as item_features
from rec.features.compute import compute
from rec.models import fused
from rec.recommend.request import Ranked
from rec.retrieval import Candidates
from rec.state import UserState


class Scorer:
    """The ranker of one bundle and the features it reads."""

    def __init__(self, bundle: Bundle) -> None:
        self.items = item_features.load(bundle.folder("features"), bundle.item_vectors())
        self._ranker = fused.load(bundle.folder("ranker"), self.items.spec)

    def rank(self, state: UserState, candidates: Candidates, k: int, now_us: int) -> Ranked:
        """The k best candidates by the ranker, ties in the order of the candidates."""
        scores = self._ranker.score(compute(self.items, state, candidates, now_us))
        return take(candidates, scores, k, probabilities=self._ranker.probabilities(scores))


def retrieval_order(candidates: Candidates, k: int) -> Ranked:
    """The first k candidates as they are: the answer when the ranker gives none."""
    return take(candidates, -np.arange(len(candidates.rows), dtype=np.float32), k)


def take(candidates: Candidates, scores: np.ndarray, k: int, *, probabilities: np.ndarray | None = None) -> Ranked:
    """The k candidates of highest `scores` float32[K]; equal ones keep their order.

    `probabilities` float32[K] are the ranker's; without them the scores are not the ranker's either.
    """
    best = np.argsort(-scores, kind="stable")[:k]
    return Ranked(
        rows=candidates.rows[best],
        scores=candidates.scores[best] if probabilities is None else scores[best],
        probabilities=None if probabilities is None else probabilities[best],
        retrieval_scores=candidates.scores[best],
        sources=candidates.sources[best],
    )
