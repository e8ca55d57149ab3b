"""Where candidates come from, counted by hand."""

import numpy as np

from rec.evaluate.provenance import figures
from rec.retrieval import ANN, COOCCURRENCE, ITEM, Candidates


def _found(sources: dict[int, int]) -> Candidates:
    """Candidates by row, with their sources."""
    rows, bits = (np.array(list(each), np.int64) for each in (sources, sources.values()))
    return Candidates(rows, np.zeros(len(rows), np.float32), bits, np.zeros(len(rows), np.float32))


def test_shares_of_candidates_and_hits() -> None:
    """Four users: two targets that the search found, one of these with item-to-item, one of co-occurrence, a miss."""
    found = [
        _found({1: ANN, 2: ANN, 3: ITEM}),
        _found({1: ANN | ITEM, 4: ANN}),
        _found({5: COOCCURRENCE, 6: ANN}),
        _found({7: ANN, 8: ANN, 9: ANN | ITEM}),
    ]
    without = {"item": [found[0], *[_found({})] * 3], "cooccurrence": [*found[:2], *[_found({6: ANN})] * 2]}
    made = figures(found, np.array([2, 1, 5, 0]), lambda source: without[source])
    assert made["recall"] == 0.75
    assert made["sources"] == {
        "ann": {"candidates": 0.8, "hits": 0.666667, "hits_alone": 0.333333},
        "item": {"candidates": 0.3, "hits": 0.333333, "hits_alone": 0, "recall_without": 0.25},
        "cooccurrence": {"candidates": 0.1, "hits": 0.333333, "hits_alone": 0.333333, "recall_without": 0.5},
        "popular": {"candidates": 0, "hits": 0, "hits_alone": 0, "recall_without": 0.75},
    }


def test_nobody_is_no_error() -> None:
    assert figures([], np.empty(0, np.int64), lambda source: [])["recall"] == 0
