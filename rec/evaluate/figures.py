"""From ranks to figures: every metric of every system in every slice, with bootstrap intervals and differences.

slices.NAME.users                                how many
slices.NAME.few                                  whether these are too few to say much
slices.NAME.figures.SYSTEM.METRIC                {value, ci95}
slices.NAME.differences.SYSTEM.METRIC            final list minus SYSTEM on the same users: {value, ci95}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.evaluate import metrics
from rec.evaluate.bootstrap import interval, resampled_means

Ints = NDArray[np.int64]
DIGITS = 6
FEW = 30
"""Users below whom a slice is marked: the interval of so few is itself unsure."""


def slice_figures(ranks: Mapping[str, Ints], cutoffs: Sequence[int], resamples: int, seed: int) -> dict[str, Any]:
    """Figures of one slice: `ranks` holds int64[U] per system, among them `final`; U may be 0."""
    users = len(ranks["final"])
    if not users:
        return {"users": 0, "few": True, "figures": {}, "differences": {}}
    names = metrics.names(cutoffs)
    columns = {system: metrics.table(found, cutoffs) for system, found in ranks.items()}
    means = resampled_means(np.concatenate(list(columns.values()), axis=1), resamples, seed)
    resampled = dict(zip(columns, np.split(means, len(columns), axis=1), strict=True))
    final, final_means = columns["final"].mean(axis=0), resampled["final"]
    return {
        "users": users,
        "few": users < FEW,
        "figures": {s: _named(names, columns[s].mean(axis=0), interval(resampled[s])) for s in columns},
        "differences": {
            s: _named(names, final - columns[s].mean(axis=0), interval(final_means - resampled[s]))
            for s in columns
            if s != "final"
        },
    }


def _named(names: list[str], values: NDArray[np.float64], bounds: NDArray[np.float64]) -> dict[str, Any]:
    return {
        name: {
            "value": round(float(values[column]), DIGITS),
            "ci95": [round(float(bound), DIGITS) for bound in bounds[:, column]],
        }
        for column, name in enumerate(names)
    }
