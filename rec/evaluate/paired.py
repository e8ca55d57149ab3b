"""Systems measured on the same cases: each one's mean, and what `ours` has more than each other, with intervals."""

import numpy as np
from numpy.typing import NDArray

from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval, resampled_means

Floats = NDArray[np.float64]


def compared(
    name: str, systems: list[str], values: Floats, cluster: NDArray[np.int64], resamples: int, seed: int, *, ours: str
) -> Figures:
    """Figures of each system and of `ours` minus each other one (goal 0); values float64[Q, M]."""
    others = [system for system in systems if system != ours]
    own = values[:, systems.index(ours)]
    gains = [own - values[:, systems.index(system)] for system in others]
    made = means(np.column_stack([values, *gains]), cluster, resamples, seed)
    labels: list[tuple[str, str, float | None]] = [(name.format(system), "ratio", None) for system in systems]
    labels += [(name.format(f"{ours}.minus.{system}"), "difference", 0.0) for system in others]
    return {
        label: figure(value, unit, bounds, goal)
        for (label, unit, goal), (value, bounds) in zip(labels, made, strict=True)
    }


def means(values: Floats, cluster: NDArray[np.int64], resamples: int, seed: int) -> list[tuple[float, list[float]]]:
    """Mean and 95 % interval of each column of float64[Q, M]; rows of one cluster, int64[Q], are drawn together."""
    weights = (*values.T, np.ones(len(values)))
    sums = np.stack([np.bincount(cluster, column) for column in weights], axis=1).astype(np.float64)
    drawn = resampled_means(sums, resamples, seed)
    bounds = interval(drawn[:, :-1] / drawn[:, -1:]).T
    return [
        (round(float(value), 4), [round(float(bound), 4) for bound in low_high])
        for value, low_high in zip(values.mean(axis=0), bounds, strict=True)
    ]
