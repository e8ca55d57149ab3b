"""The bounds of a profile in a request are those that files are held to."""

from datetime import UTC, datetime

import pytest

from rec import profile
from serve import api

YEAR = datetime.now(UTC).year


@pytest.mark.parametrize("name", list(profile.ranges(YEAR)))
def test_a_value_beyond_its_range_is_named_with_the_range(name: str) -> None:
    low, high = profile.ranges(YEAR)[name]
    for value in (low, high):
        assert api.profile_problem({name: value}, [name]) is None
    for value in (low - 0.5, high + 0.5):
        assert api.profile_problem({name: value}, [name]) == (
            name,
            f"{value:g} must lie between {low:g} and {high:g}",
        )


def test_the_page_gets_the_same_ranges() -> None:
    assert api.profile_ranges() == profile.ranges(YEAR)


def test_other_columns_of_the_models_are_any_number_and_unknown_ones_are_listed() -> None:
    assert api.profile_problem({"shoe": -1e9}, ["shoe"]) is None
    assert api.profile_problem({"shoe": 43}, []) == (
        "shoe",
        "unknown profile column (known: height_cm, weight_kg, birth_year)",
    )
