"""Which source the candidates came from, and what the candidate set would be without it.

recall                      share of the users whose target is among their candidates
sources.SOURCE
    candidates              share of all candidates that the source found
    hits                    share of the targets among the candidates that the source found
    hits_alone              share of these that no other source found
    recall_without          recall with the source left out and its places filled by the others; none for the search
                            by the user vector, which fills the places of all others
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.retrieval import ANN, SOURCES, Candidates

DIGITS = 6


def figures(
    found: Sequence[Candidates], targets: NDArray[np.int64], without: Callable[[str], Sequence[Candidates]]
) -> dict[str, Any]:
    """The figures of U users with their `targets` int64[U]; `without` gives the candidates without a source."""
    every = np.concatenate([np.empty(0, np.int64), *(one.sources for one in found)])
    hits = _of_targets(found, targets)
    hits = hits[hits > 0]
    parts = {}
    for place, source in enumerate(SOURCES):
        bit = 1 << place
        parts[source] = {
            "candidates": _share(every & bit > 0),
            "hits": _share(hits & bit > 0),
            "hits_alone": _share(hits == bit),
        }
        if bit != ANN:
            has_any = bool((every & bit).any())
            parts[source]["recall_without"] = _share(_of_targets(without(source) if has_any else found, targets) > 0)
    return {"recall": _share(_of_targets(found, targets) > 0), "sources": parts}


def _of_targets(found: Sequence[Candidates], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[U] the sources that found each target, 0 where it is no candidate."""
    return np.array(
        [int(one.sources[one.rows == target].sum()) for one, target in zip(found, targets, strict=True)], np.int64
    )


def _share(mask: NDArray[np.bool_]) -> float:
    return round(float(mask.mean()), DIGITS) if len(mask) else 0.0
