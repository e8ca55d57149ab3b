"""Values of any column type: what is read, what is missing, what is bad."""

import datetime as dt
import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.data import parse

MOMENTS = st.datetimes(dt.datetime(1990, 1, 2), dt.datetime(2099, 12, 30), timezones=st.just(dt.UTC))


def chunked(values: list[object], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@given(st.lists(MOMENTS, min_size=1, max_size=20))
def test_every_spelling_of_a_time_is_the_same_time(moments: list[dt.datetime]) -> None:
    wanted = [
        round((moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) / dt.timedelta(microseconds=1)) for moment in moments
    ]
    shifted = [moment.astimezone(dt.timezone(dt.timedelta(hours=9))) for moment in moments]
    spellings = [
        chunked([moment.isoformat() for moment in moments]),
        chunked([moment.isoformat() for moment in shifted]),
        chunked([moment.replace(tzinfo=None).isoformat(sep=" ") for moment in moments]),
        chunked(moments, pa.timestamp("us", tz="UTC")),
        chunked([moment.replace(tzinfo=None) for moment in moments], pa.timestamp("ns")),
    ]
    for spelling in spellings:
        micros, bad = parse.time(spelling)
        assert micros.tolist() == wanted
        assert not bad.any()
    seconds = [value // 1_000_000 for value in wanted]
    for spelling in (
        chunked(seconds),
        chunked([str(value) for value in seconds]),
        chunked([float(s) for s in seconds]),
    ):
        micros, bad = parse.time(spelling)
        assert micros.tolist() == [value * 1_000_000 for value in seconds]
        assert not bad.any()


@pytest.mark.parametrize("value", ["yesterday", "2025-13-01", "1741000000000", "20250303", "-5", "inf", "0"])
def test_what_is_no_time_is_bad_not_missing(value: str) -> None:
    micros, bad = parse.time(chunked([value, "2025-03-03", None, " "]))
    assert bad.tolist() == [True, False, False, False]
    assert micros[0] == micros[2] == micros[3] == 0 < micros[1]


def test_dates_and_milliseconds_are_times() -> None:
    day = dt.date(2020, 9, 16)
    wanted = [int(dt.datetime(2020, 9, 16, tzinfo=dt.UTC).timestamp()) * 1_000_000]
    assert parse.time(chunked([day]))[0].tolist() == wanted
    assert parse.time(chunked([dt.datetime(2020, 9, 16)], pa.timestamp("ms")))[0].tolist() == wanted


@given(
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, width=32)), min_size=1, max_size=20)
)
def test_numbers_survive_text(values: list[float | None]) -> None:
    read, bad = parse.number(chunked([None if value is None else repr(value) for value in values], pa.string()))
    assert not bad.any()
    for value, got in zip(values, read.tolist(), strict=True):
        assert math.isnan(got) if value is None else got == value


def test_number_tells_missing_from_bad() -> None:
    values, bad = parse.number(chunked(["1.5", " 2 ", "", "NaN", "null", "12,5", "5'8", "inf", None]))
    assert values[:2].tolist() == [1.5, 2.0]
    assert bad.tolist() == [False, False, False, False, False, True, True, True, False]


@pytest.mark.parametrize("values", [["1e39", "-1e39", "3.4e38"], [1e39, -1e39, 3.4e38]])
def test_what_float32_cannot_hold_is_bad(values: list[object]) -> None:
    assert parse.number(chunked(values))[1].tolist() == [True, True, False]


def test_text_loses_nul_characters() -> None:
    column = chunked(["a\0b", "\0", " c\0 ", None])
    assert parse.text(column).to_pylist() == ["ab", None, "c", None]
    assert parse.has_nul(column).tolist() == [True, True, True, False]
    assert parse.lists(chunked([["a\0b", "\0"]], pa.list_(pa.string()))) == [["ab"]]


def test_flags() -> None:
    assert parse.flag(chunked(["1.0", "0.0", None]), missing=True)[0].tolist() == [True, False, True]
    assert not parse.flag(chunked([1.0, 0.0, None]), missing=True)[1].any()
    values, bad = parse.flag(chunked(["TRUE", "0", "", "maybe", None]), missing=True)
    assert values[[0, 1, 2, 4]].tolist() == [True, False, True, True]
    assert bad.tolist() == [False, False, False, True, False]
    assert parse.flag(chunked([True, False]), missing=True)[0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("wool, silk", ["wool", "silk"]),
        ("100% wool, dyed | silk", ["100% wool, dyed", "silk"]),
        (" | ", []),
        ("", []),
        (None, []),
    ],
)
def test_lists_split_at_bars_or_else_commas(value: str | None, wanted: list[str]) -> None:
    assert parse.lists(chunked([value], pa.string())) == [wanted]


def test_lists_keep_native_lists_and_commas_inside_urls() -> None:
    assert parse.lists(chunked([["spring, summer", " ", None], None], pa.list_(pa.string()))) == [
        ["spring, summer"],
        [],
    ]
    urls = "https://a.example/w_1,h_2/x.jpg, https://a.example/y.jpg"
    assert parse.lists(chunked([urls]), urls=True) == [urls.split(", ")]
