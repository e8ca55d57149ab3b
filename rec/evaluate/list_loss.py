"""What final lists lose where candidates come from a walk through the index, and not from exact search.

lists.n          users of the test (`rec.evaluate.cases`), at most USERS
lists.recall     of the candidates that exact search gives the ranker, those that the walk finds, mean over users
lists.n10        NDCG@10 of the final lists whose candidates the walk found
lists.gain.n10   the same minus that of exact search, paired; 0 where the walk costs nothing
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rec import artifact, histories
from rec.config import Config
from rec.evaluate import cases as test_cases
from rec.evaluate import metrics, stage
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.cases import Cases
from rec.evaluate.paired import means
from rec.evaluate.systems import Recommender, places
from rec.index.search import Filters, VectorIndex

USERS, CUTOFF = 3_000, 10

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Lists:
    """Users of the test, and their lists from exact search."""

    recommender: Recommender
    cases: Cases
    vectors: NDArray[np.float32]
    """float32[U, d]"""
    exact: Ints
    """int64[U, K] what exact search finds, -1 past the last one."""
    ndcg: NDArray[np.float64]
    """float64[U] of the lists made of that."""

    @classmethod
    def of(cls, config: Config) -> "Lists | None":
        """Those of a recipe; None where its ranker is not trained."""
        if artifact.peek(config.at("ranker")) is None:
            return None
        h = histories.load(config.root)
        cases = test_cases.of_recipe(config, h, max_users=USERS)
        recommender = stage.recommender_of(config, h)
        vectors, exact = recommender.retrieval.search(cases)
        return cls(recommender, cases, vectors, exact, _ndcg(recommender, cases, vectors, exact))

    def lost(self, index: VectorIndex, resamples: int, seed: int) -> Figures:
        """Figures of lists whose candidates `index`, of all the recipe's items by row, finds."""
        found = np.full_like(self.exact, -1)
        for user, (vector, seen) in enumerate(zip(self.vectors, self.cases.exclude[:], strict=True)):
            rows = index.search(vector, self.exact.shape[1], exclude=seen, filters=Filters()).rows
            found[user, : len(rows)] = rows
        shares = [np.isin(one[one >= 0], other).mean() for one, other in zip(self.exact, found, strict=True)]
        own = _ndcg(self.recommender, self.cases, self.vectors, found)
        values = np.column_stack([shares, own, own - self.ndcg])
        made = means(values, np.arange(len(values)), resamples, seed)
        (recall, recall_ci), (ndcg, ndcg_ci), (gain, gain_ci) = made
        return {
            "lists.n": figure(len(values), "users"),
            "lists.recall": figure(recall, "ratio", recall_ci),
            f"lists.n{CUTOFF}": figure(ndcg, "ratio", ndcg_ci),
            f"lists.gain.n{CUTOFF}": figure(gain, "difference", gain_ci, 0.0),
        }


def _ndcg(recommender: Recommender, cases: Cases, vectors: NDArray[np.float32], found: Ints) -> NDArray[np.float64]:
    """float64[U] of the final lists."""
    lists = recommender.reranked(cases, recommender.retrieval.merged(cases, vectors, found), "final lists")
    return metrics.ndcg(places([each.rows for each in lists], cases.targets), CUTOFF)
