"""Heights and weights with or without a unit: `5' 8"`, `5ft 8in`, `68in`, `172 cm`, `1.72 m`, `137lbs`, `62 kg`.

A plain number is in the unit of the column, cm or kg. Nothing is guessed: 1.72 without a unit is 1.72 cm.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec.data import parse

CM_PER_INCH = 2.54
KG_PER_POUND = 0.45359237
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_WITH_UNIT = re.compile(rf"{_NUMBER}\s*([^\d\s.]+)\.?")
_FEET_AND_INCHES = re.compile(
    rf"(\d+)\s*(?:['’′]|ft\.?|feet|foot)\s*{_NUMBER}\s*(?:[\"”″]|''|’’|′′|in\.?|inch|inches)?", re.IGNORECASE
)
_CM = {"cm": 1.0, "m": 100.0, "mm": 0.1} | {
    **dict.fromkeys(("in", "inch", "inches", '"', "”", "″", "''"), CM_PER_INCH),
    **dict.fromkeys(("ft", "feet", "foot", "'", "’", "′"), 12 * CM_PER_INCH),
}
_KG = {
    **dict.fromkeys(("kg", "kgs", "kilogram", "kilograms", "kilo", "kilos"), 1.0),
    **dict.fromkeys(("lb", "lbs", "pound", "pounds"), KG_PER_POUND),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The n values of a column."""

    values: NDArray[np.float64]
    """float64[n] in cm or kg; NaN where missing, anything where bad."""
    bad: NDArray[np.bool_]
    """bool[n]: given, but neither a number nor a number with a known unit."""
    plain: NDArray[np.bool_]
    """bool[n]: a number that says no unit."""


def heights(column: pa.ChunkedArray) -> Measured:
    """A column of heights in cm."""
    return _measured(column, height_cm)


def weights(column: pa.ChunkedArray) -> Measured:
    """A column of weights in kg."""
    return _measured(column, weight_kg)


def height_cm(text: str) -> float | None:
    """A height that says its unit, in cm; None for anything else."""
    both = _FEET_AND_INCHES.fullmatch(text.strip())
    if both is not None:
        feet, inches = int(both[1]), float(both[2])
        return (12 * feet + inches) * CM_PER_INCH if inches < 12 else None
    return _converted(text, _CM)


def weight_kg(text: str) -> float | None:
    """A weight that says its unit, in kg; None for anything else."""
    return _converted(text, _KG)


def _converted(text: str, units: Mapping[str, float]) -> float | None:
    found = _WITH_UNIT.fullmatch(text.strip())
    factor = units.get(found[2].casefold()) if found else None
    return float(found[1]) * factor if found and factor else None


def _measured(column: pa.ChunkedArray, convert: Callable[[str], float | None]) -> Measured:
    values, bad = parse.number(column)
    values, bad = values.copy(), bad.copy()
    plain = ~np.isnan(values) & ~bad
    rows = np.flatnonzero(bad)
    for row, text in zip(rows.tolist(), parse.text(column).take(pa.array(rows)).to_pylist(), strict=True):
        value = convert(text)
        if value is not None:
            values[row], bad[row] = value, False
    return Measured(values, bad, plain)
