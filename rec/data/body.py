"""Heights, weights and birth years of users: which are believed, and whether a column is in the unit that it should be.

A value that no person has is left out alone; the user stays with the others. A whole column of pounds or inches would
pass the bounds of one person, so its median is held to what a shop's customers can be.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec import profile
from rec.data import parse, units
from rec.errors import InputError

MIN_USERS = 100
"""Users with a value that names no unit; a median over fewer says nothing of the column's unit."""
MOST_KG, LEAST_CM = 110.0, 100.0
"""Medians beyond them are of pounds, or inches: in kg and cm no shop has such customers."""


@dataclass(frozen=True, slots=True)
class Column:
    """One body column of n users."""

    name: str
    values: NDArray[np.float64]
    """float64[n], NaN where missing or not believed."""
    bad: NDArray[np.bool_]
    """bool[n]: given and not believed."""
    plain: NDArray[np.bool_]
    """bool[n]: believed, and without a unit of its own."""
    reason: str
    """Why those are not believed; `{}` is the value."""


def read(name: str, column: pa.ChunkedArray, year: int) -> Column:
    """The body column `name` of the users contract; `year` is the present one."""
    if name == "height_cm":
        found = units.heights(column)
    elif name == "weight_kg":
        found = units.weights(column)
    else:
        values, bad = parse.number(column)
        found = units.Measured(values, bad, ~np.isnan(values))
    low, high = profile.ranges(year)[name]
    values = found.values.copy()
    bad = found.bad | (values < low) | (values > high)
    values[bad] = np.nan
    return Column(name, values, bad, found.plain & ~bad, _reason(name, low, high))


def _reason(name: str, low: float, high: float) -> str:
    said = f"{name} {{}} is no "
    span = f"({low:g} to {high:g})"
    if name == "height_cm":
        return f"{said}height of a person in cm {span}: give centimetres, or write the unit ('1.7 m')"
    if name == "weight_kg":
        return f"{said}weight of a person in kg {span}: give kilograms, or write the unit ('137 lbs')"
    return f"{said}year of birth {span}: give the year with its four digits"


class Units:
    """Collects the values without a unit of all users; `check` refuses a column that cannot be in cm or kg."""

    def __init__(self) -> None:
        self._plain: dict[str, list[NDArray[np.float64]]] = {"height_cm": [], "weight_kg": []}

    def add(self, column: Column, kept: NDArray[np.int64]) -> None:
        """Count the rows `kept` of a column."""
        if column.name in self._plain:
            self._plain[column.name].append(column.values[kept][column.plain[kept]])

    def check(self) -> None:
        """InputError where the median of at least MIN_USERS says that a column is in pounds or inches."""
        for name, parts in self._plain.items():
            values = np.concatenate(parts) if parts else np.empty(0)
            if len(values) < MIN_USERS:
                continue
            median = float(np.median(values))
            if name == "weight_kg" and median > MOST_KG:
                raise InputError(_wrong_unit(name, median, len(values), "kg", "pounds", "137 lbs"))
            if name == "height_cm" and median < LEAST_CM:
                raise InputError(_wrong_unit(name, median, len(values), "cm", "inches", "68 in"))


def _wrong_unit(name: str, median: float, count: int, unit: str, other: str, example: str) -> str:
    return (
        f"the median {name} of {count} users is {median:g}, which is no median in {unit} (is the column in {other}?): "
        f"write the unit into its values ('{example}'; '{median:g} {unit}' if it is right) or convert it to {unit}"
    )
