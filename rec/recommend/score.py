"""From candidates to the ranked list."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rec.bundle import Bundle
from rec.features import items as item_features
from rec.features.compute import compute_batch
from rec.models import fused
from rec.recommend.request import Ranked
from rec.retrieval import Candidates
from rec.state import UserState


@dataclass(frozen=True, slots=True)
class Unranked:
    """What is to be ranked for one request."""

    state: UserState
    candidates: Candidates
    k: int
    """How many of them are wanted."""
    now_us: int


class Scorer:
    """The ranker of one bundle and the features it reads."""

    def __init__(self, bundle: Bundle) -> None:
        self.items = item_features.load(bundle.folder("features"), bundle.item_vectors())
        self._ranker = fused.load(bundle.folder("ranker"), self.items.spec)

    def rank(self, requests: Sequence[Unranked]) -> list[Ranked]:
        """For each request its k best candidates by the ranker, ties in the order of the candidates."""
        states, candidates = [each.state for each in requests], [each.candidates for each in requests]
        now_us = np.array([each.now_us for each in requests], np.int64)
        scores = self._ranker.score(compute_batch(self.items, states, candidates, now_us))
        ends = np.cumsum([len(found.rows) for found in candidates])[:-1]
        return [
            take(each.candidates, own, each.k, probabilities=self._ranker.probabilities(own))
            for each, own in zip(requests, np.split(scores, ends), strict=True)
        ]


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
