"""Heights and weights: every spelling of a measure is the same measure, and what is none is bad."""

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.data import units


def chunked(values: list[object]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


@given(feet=st.integers(2, 8), inches=st.integers(0, 11))
def test_every_spelling_of_feet_and_inches_is_the_same_height(feet: int, inches: int) -> None:
    whole = 12 * feet + inches
    spellings = [
        f"{feet}' {inches}\"", f"{feet}'{inches}\"", f"{feet}'{inches}", f"{feet}’ {inches}”", f"{feet}′{inches}″",
        f"{feet}ft {inches}in", f" {feet} FT {inches} IN ", f"{feet} ft. {inches} in.", f"{feet} feet {inches} inches",
        f"{whole}in", f'{whole}"', f"{whole} inches", f"{whole}.0 in",
    ]  # fmt: skip
    found = units.heights(chunked(spellings))
    assert not found.bad.any()
    assert not found.plain.any()
    assert found.values.tolist() == pytest.approx([whole * 2.54] * len(spellings))


@given(st.integers(500, 2_500))
def test_every_metric_spelling_is_the_same_height(tenths: int) -> None:
    cm = tenths / 10
    found = units.heights(chunked([f"{cm}", f"{cm} cm", f"{cm}CM", f"{tenths / 1_000} m", f"{tenths}mm"]))
    assert not found.bad.any()
    assert found.plain.tolist() == [True, False, False, False, False]
    assert found.values.tolist() == pytest.approx([cm] * 5)


@given(st.integers(200, 3_000))
def test_pounds_and_kilograms_are_one_weight(tenths: int) -> None:
    kg = tenths / 10
    pounds = repr(kg / 0.45359237)
    found = units.weights(
        chunked([f"{kg}", f"{kg} kg", f"{kg}kgs", f"{pounds}lbs", f"{pounds} lb", f"{pounds} pounds"])
    )
    assert not found.bad.any()
    assert found.plain.tolist() == [True, False, False, False, False, False]
    assert found.values.tolist() == pytest.approx([kg] * 6)


@given(st.text(max_size=12))
def test_any_text_is_read_or_bad(text: str) -> None:
    for read in (units.heights, units.weights):
        found = read(chunked([text]))
        assert found.bad[0] or math.isnan(found.values[0]) or 0 <= abs(found.values[0]) < 3.5e38
        assert not (found.bad[0] and found.plain[0])


def test_numbers_of_parquet_are_plain_and_gaps_are_missing() -> None:
    found = units.weights(chunked([62.5, None, float("nan"), 1e300]))
    assert found.values[0] == 62.5
    assert found.plain.tolist() == [True, False, False, False]
    assert found.bad.tolist() == [False, False, False, True]


@pytest.mark.parametrize("text", ["tall", "5' 12\"", "5.5' 3\"", "172 kg", "1,72 m", "cm", "5 8", "--5 cm", "1e39"])
def test_what_is_no_height_is_bad(text: str) -> None:
    assert units.heights(chunked([text])).bad.tolist() == [True]


@pytest.mark.parametrize("text", ["heavy", "10st 4lb", "137 cm", "lbs", "62kg 3", "-5 kg"])
def test_what_is_no_weight_is_bad(text: str) -> None:
    assert units.weights(chunked([text])).bad.tolist() == [True]
