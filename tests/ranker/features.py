"""Features of one request, as tests ask for them."""

import numpy as np

from rec.features.compute import RankInputs, compute_batch
from rec.features.items import ItemFeatures
from rec.features.popularity import PastPopularity
from rec.retrieval import Candidates
from rec.state import UserState


def compute(
    items: ItemFeatures, state: UserState, candidates: Candidates, now_us: int, past: PastPopularity | None = None
) -> RankInputs:
    """A row per candidate in the order given; `past` for a request of the past."""
    return compute_batch(items, [state], [candidates], np.array([now_us], np.int64), past)
