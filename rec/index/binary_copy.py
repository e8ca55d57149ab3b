"""COPY's binary format: what stands around the rows, and rows of single values and of one-dimensional arrays.

A row is a count of fields, then of each its length (-1 for null) and bytes, all of it big-endian (PostgreSQL
documentation, COPY, "Binary Format"). An array is the number of its dimensions, a flag for nulls, the type of its
elements, per dimension length and lowest index, then each element as a field.
"""

import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)  # signature, flags, length of the extension
TRAILER = struct.pack(">h", -1)

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_NULL = struct.pack(">i", -1)
_LENGTH = struct.Struct(">i")
_ARRAY = struct.Struct(">iiiii")
_TEXT, _INTEGER, _REAL = 25, 23, 700  # object ids of element types
_INTEGERS = np.dtype([("length", ">i4"), ("value", ">i4")])
_REALS = np.dtype([("length", ">i4"), ("value", ">f4")])


def row(fields: Sequence[bytes | None]) -> bytes:
    """One row of encoded fields, None for null."""
    parts = [struct.pack(">h", len(fields))]
    for field in fields:
        parts += (_NULL,) if field is None else (_LENGTH.pack(len(field)), field)
    return b"".join(parts)


def integer(value: int) -> bytes:
    """`integer`."""
    return struct.pack(">i", value)


def bigint(value: int) -> bytes:
    """`bigint`."""
    return struct.pack(">q", value)


def timestamp(value: datetime) -> bytes:
    """`timestamptz`, of an aware time."""
    return struct.pack(">q", (value - _EPOCH) // timedelta(microseconds=1))


def jsonb(value: Any) -> bytes:
    """`jsonb`."""
    return b"\x01" + json.dumps(value).encode()


def texts(values: Sequence[str]) -> bytes:
    """`text[]`."""
    parts = [_begin(len(values), _TEXT)]
    for value in values:
        encoded = value.encode()
        parts += (_LENGTH.pack(len(encoded)), encoded)
    return b"".join(parts)


def integers(values: NDArray[np.integer]) -> bytes:
    """`integer[]` of int[n]."""
    return _begin(len(values), _INTEGER) + _numbers(values, _INTEGERS)


def reals(values: NDArray[np.floating]) -> bytes:
    """`real[]` of float[n]."""
    return _begin(len(values), _REAL) + _numbers(values, _REALS)


def _begin(count: int, kind: int) -> bytes:
    return _ARRAY.pack(1, 0, kind, count, 1) if count else struct.pack(">iii", 0, 0, kind)


def _numbers(values: NDArray[Any], kind: np.dtype[Any]) -> bytes:
    elements = np.empty(len(values), kind)
    elements["length"], elements["value"] = 4, values
    return elements.tobytes()
