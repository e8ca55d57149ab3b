"""Columns of any Arrow type as texts, numbers, times, flags and lists; each with a mask of what cannot be read.

Files give strings (csv, jsonl) or native types (parquet); both end in the same values. A missing or
blank cell is null and never bad. Times are ISO 8601 (without an offset: UTC) or epoch seconds, and lie
between 1990 and 2100, so that milliseconds or `20250303` taken for seconds do not pass unnoticed.
"""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rec.errors import InputError

_EARLIEST = pd.Timestamp("1990-01-01", tz="UTC").value // 1_000
_LATEST = pd.Timestamp("2100-01-01", tz="UTC").value // 1_000
_TRUE, _FALSE = ("true", "1", "1.0", "yes", "y", "t"), ("false", "0", "0.0", "no", "n", "f")  # 1.0: pandas with gaps
_LARGEST = float(np.finfo(np.float32).max)
"""Numbers are kept as float32."""
_SEPARATOR = re.compile(r"\s*\|\s*")
_COMMA = re.compile(r"\s*,\s*")
_URL_COMMA = re.compile(r"\s*,\s*(?=https?://)|\s+")


def text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Trimmed strings without NUL characters, which Postgres cannot store; blank is null."""
    strings = pc.utf8_trim_whitespace(pc.replace_substring(_strings(column), "\0", ""))
    return pc.if_else(pc.equal(strings, ""), None, strings)


def has_nul(column: pa.ChunkedArray) -> np.ndarray:
    """bool[n]: the text holds a NUL character."""
    return pc.match_substring(_strings(column), "\0").fill_null(False).to_numpy()


def _strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column if pa.types.is_string(column.type) else column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"a column of type {column.type} cannot be read as text: map another column") from error


def number(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """float64[n] with NaN for missing, and bool[n]: neither missing nor a number within the range of float32."""
    if _is_number(column.type):
        values = column.cast(pa.float64(), safe=False).to_numpy()
        return values, np.abs(values) > _LARGEST
    strings = text(column).to_pandas()
    values = pd.to_numeric(strings, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    said_missing = strings.str.casefold().isin(["nan", "null", "none"]).to_numpy(dtype=bool)
    return values, (np.isnan(values) & strings.notna().to_numpy() & ~said_missing) | (np.abs(values) > _LARGEST)


def time(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """int64[n] UTC microseconds with 0 for missing or bad, and bool[n]: given but not a time."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        stamps = _as_utc(column)
        given = stamps.is_valid().to_numpy()
        micros = stamps.cast(pa.int64()).fill_null(0).to_numpy()
    elif _is_number(column.type):
        seconds, bad = number(column)
        given = ~np.isnan(seconds) | bad
        micros = _from_seconds(seconds)
    else:
        strings = text(column).to_pandas()
        given = strings.notna().to_numpy()
        seconds = pd.to_numeric(strings, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        micros = _from_seconds(seconds)
        written = given & np.isnan(seconds)
        stamps = pd.to_datetime(strings[written], utc=True, format="ISO8601", errors="coerce")
        micros[written] = stamps.dt.as_unit("us").astype("int64").where(stamps.notna(), 0)
    good = given & (micros >= _EARLIEST) & (micros < _LATEST)
    return np.where(good, micros, 0), given & ~good


def flag(column: pa.ChunkedArray, *, missing: bool) -> tuple[np.ndarray, np.ndarray]:
    """bool[n] with `missing` where there is none, and bool[n]: given but neither yes nor no."""
    strings = pc.utf8_lower(text(column))
    true = pc.is_in(strings, pa.array(_TRUE)).to_numpy()
    false = pc.is_in(strings, pa.array(_FALSE)).to_numpy()
    given = strings.is_valid().to_numpy()
    return np.where(given, true, missing), given & ~true & ~false


def lists(column: pa.ChunkedArray, *, urls: bool = False) -> list[list[str]]:
    """Lists of trimmed, non-blank strings. Text is split at `|`, or where there is none at commas."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [[part for value in row or () if (part := _part(value))] for row in column.to_pylist()]
    return [_split(value, urls) if value else [] for value in text(column).to_pylist()]


def _split(value: str, urls: bool) -> list[str]:
    pattern = _SEPARATOR if "|" in value else _URL_COMMA if urls else _COMMA
    return [part for part in pattern.split(value.strip()) if part]


def _part(value: object) -> str:
    return "" if value is None else str(value).replace("\0", "").strip()


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _as_utc(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Timestamps in UTC microseconds; without a zone they are UTC; finer than microseconds is cut off."""
    zone = column.type.tz if pa.types.is_timestamp(column.type) else None
    return column.cast(pa.timestamp("us", tz=zone), safe=False)


def _from_seconds(seconds: np.ndarray) -> np.ndarray:
    """int64 microseconds; 0, which is out of range, where `seconds` is no time."""
    sane = np.isfinite(seconds) & (np.abs(seconds) < _LATEST / 1e6)
    return np.rint(np.where(sane, seconds, 0.0) * 1e6).astype(np.int64)
