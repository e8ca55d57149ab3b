"""How well fit is foretold: macro AUC, log-loss and accuracy of systems on the same questions, with intervals.

Macro AUC is the mean of the three one-versus-rest AUCs, the measure of Misra et al. (RecSys 2018) and later work on
Rent the Runway; it does not see the classes' shares. Log-loss sees calibration as well. One question a user: resamples
are of users, the same for all systems and measures, so that differences are paired.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rec.evaluate import paired
from rec.evaluate.auc import of_groups
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.bootstrap import interval
from rec.sizes import FITS

RESAMPLES = 1_000
SMOOTHING = 5.0
"""Events by which a frequency is drawn to that of all."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def frequencies(fits: Ints) -> Floats:
    """float64[3] share of each class among fits int64[Q], 1-based; every class counts once more than it occurs."""
    counts = np.bincount(fits, minlength=1 + len(FITS))[1:] + 1.0
    shares: Floats = counts / counts.sum()
    return shares


def smoothed(counts: Floats, overall: Floats) -> Floats:
    """float64[Q, 3] frequencies of counts float64[Q, 3], drawn to `overall` float64[3]."""
    made: Floats = (counts + SMOOTHING * overall) / (counts.sum(axis=1, keepdims=True) + SMOOTHING)
    return made


def macro_auc(fits: Ints, chances: Floats) -> float:
    """Of fits int64[Q], 1-based, foretold by float64[Q, 3]; nan where a class or all others are absent."""
    ones = np.ones(len(fits))
    return float(np.mean([of_groups(positive, group, ones) for positive, group in _sides(fits, chances)]))


def log_loss(fits: Ints, chances: Floats) -> Floats:
    """float64[Q] of each question."""
    found: Floats = -np.log(np.maximum(chances[np.arange(len(fits)), fits - 1], 1e-12))
    return found


def compared(fits: Ints, systems: Mapping[str, Floats], *, ours: str, seed: int) -> Figures:
    """Figures of `systems` (name → float64[Q, 3]) on fits int64[Q], and of what `ours` has more than each other."""
    names, users = list(systems), np.arange(len(fits))
    figures: Figures = {}
    for measure, values in {
        "log_loss": np.column_stack([log_loss(fits, systems[name]) for name in names]),
        "accuracy": np.column_stack([systems[name].argmax(axis=1) + 1 == fits for name in names]).astype(np.float64),
    }.items():
        figures |= paired.compared(f"{{}}.{measure}", names, values, users, RESAMPLES, seed, ours=ours)
    for name, made in figures.items():
        if name.endswith("log_loss"):
            made["goal"], made["unit"] = None, "nats"  # of log-loss less is better
    return figures | _aucs(fits, systems, ours, seed)


def sizes(worn: Ints, systems: Mapping[str, Ints], *, ours: str, seed: int) -> Figures:
    """How often `systems` (name → int64[Q] sizes) name the sizes int64[Q] that were worn and fitted."""
    if not len(worn):
        return {}
    values = np.column_stack([systems[name] == worn for name in systems]).astype(np.float64)
    return paired.compared("size.{}", list(systems), values, np.arange(len(worn)), RESAMPLES, seed, ours=ours)


def _aucs(fits: Ints, systems: Mapping[str, Floats], ours: str, seed: int) -> Figures:
    sides = {name: _sides(fits, chances) for name, chances in systems.items()}
    drawn = np.empty((RESAMPLES + 1, len(systems), len(FITS)))
    rng = np.random.default_rng(seed)
    for row in range(len(drawn)):
        users = rng.integers(0, len(fits), len(fits)) if row else np.arange(len(fits))
        times = np.bincount(users, minlength=len(fits)).astype(np.float64)
        for column, each in enumerate(sides.values()):
            drawn[row, column] = [of_groups(positive, group, times) for positive, group in each]
    macro = {name: drawn[:, column].mean(axis=1) for column, name in enumerate(systems)}
    parts = {f"{name}.auc": values for name, values in macro.items()}
    own = list(systems).index(ours)
    parts |= {f"{ours}.auc.{fit}": drawn[:, own, column] for column, fit in enumerate(FITS)}
    gains = {f"{ours}.minus.{name}.auc": macro[ours] - macro[name] for name in systems if name != ours}
    return {name: _figure(values, "ratio", None) for name, values in parts.items()} | {
        name: _figure(values, "difference", 0.0) for name, values in gains.items()
    }


def _figure(values: Floats, unit: str, goal: float | None) -> dict[str, Any]:
    """The first of float64[RESAMPLES + 1] with the interval of the others; None where a class is absent."""
    whole = None if np.isnan(values[0]) else round(float(values[0]), 4)
    sound = values[1:][~np.isnan(values[1:])]
    bounds = [round(float(bound), 4) for bound in interval(sound[:, None])[:, 0]] if len(sound) else None
    return figure(whole, unit, bounds, goal)


def _sides(fits: Ints, chances: Floats) -> list[tuple[NDArray[np.bool_], Ints]]:
    """For each class who is of it, and the groups of equal chances, ascending."""
    return [
        (fits == number, np.unique(chances[:, number - 1], return_inverse=True)[1])
        for number in range(1, 1 + len(FITS))
    ]
