"""Reads csv, tsv, jsonl and parquet files (csv, tsv and jsonl also as .gz) in batches, with a column mapping.

Rows that are no rows (a csv line with too many cells, a line that is not JSON) are refused one by one;
a file that cannot be read at all, or a mapped column that it does not have, is an InputError.
"""

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rec.config import Source
from rec.data.clean import Raw
from rec.dataset import Rejects
from rec.errors import ConfigError, InputError
from rec.schema import INTERACTIONS, PRODUCTS, USERS, Contract

BATCH_ROWS = 65_536
_TABULAR = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_KEYED = ("attributes", "measurements", "numeric")
_DERIVED = ("size_number",)
"""Fields that are read from another one."""
_LISTS = ("attributes.", "image_urls", "sequence")
"""Raw columns, or how they begin, whose values may be lists."""
_REQUIRED = {"products": ("product_id", "title"), "users": ("user_id",), "events": ("user_id", "product_id", "at")}


def products(source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw products of the file `source.products`, the first `source.limit` rows of it."""
    keyed = {"attributes": source.columns.attributes, "measurements": source.columns.measurements}
    mapping = _mapping(PRODUCTS, "products", source.columns.products, keyed)
    yield from first(read(path(source, "products"), mapping, rejects), source.limit)


def users(source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw users of the file `source.users`; none when it is not named."""
    if source.users:
        mapping = _mapping(USERS, "users", source.columns.users, {"numeric": source.columns.numeric})
        yield from read(path(source, "users"), mapping, rejects)


def events(source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw events of the file `source.events`."""
    yield from read(path(source, "events"), _mapping(INTERACTIONS, "events", source.columns.events, {}), rejects)


def paths(source: Source) -> dict[str, Path]:
    """The files in use, by what they hold."""
    return {what: path(source, what) for what in ("products", "users", "events") if what != "users" or source.users}


def path(source: Source, what: str) -> Path:
    """The file that holds the products, users or events; it must exist."""
    name: str = getattr(source, what)
    if not name:
        raise ConfigError(f"source.kind = 'files' needs the name of the {what} file: add --set source.{what}=NAME")
    found = Path(source.folder) / name
    if not found.is_file():
        raise InputError(f"{found} does not exist: check source.folder and source.{what}")
    return found


def first(raws: Iterator[Raw], limit: int | None) -> Iterator[Raw]:
    """The first `limit` rows."""
    left = limit
    for raw in raws:
        if left is None or left >= raw.table.num_rows:
            yield raw
        else:
            yield Raw(raw.source, raw.positions[:left], raw.table.slice(0, left))
        if left is not None and (left := left - raw.table.num_rows) <= 0:
            return


def _mapping(
    contract: Contract, what: str, columns: Mapping[str, str], keyed: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Raw column → column of the file. Unknown and missing fields are errors."""
    fields = [name for name in contract.schema.names if name not in (*_KEYED, *_DERIVED)]
    for field in columns:
        if field not in fields:
            raise ConfigError(f"source.columns.{what}: {contract.kind} have no field {field!r}{_near(field, fields)}")
    for field in _REQUIRED[what]:
        if field not in columns:
            raise ConfigError(
                f"source.columns.{what} does not say which column holds {field!r}: "
                f"add --set source.columns.{what}.{field}=COLUMN"
            )
    return {**columns, **{f"{prefix}.{name}": name for prefix, names in keyed.items() for name in names}}


def _near(name: str, names: Sequence[str]) -> str:
    folded = {candidate.casefold(): candidate for candidate in reversed(names)}
    near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, 3, cutoff=0.4)]
    return f"; nearest: {', '.join(map(repr, near))}" if near else f"; there are: {', '.join(map(repr, names[:20]))}"


def read(file: Path, mapping: Mapping[str, str], rejects: Rejects) -> Iterator[Raw]:
    """Batches of `file` with the columns of `mapping` (raw column → column of the file) under their raw names."""
    name = file.name.casefold().removesuffix(".gz")
    packed = file.name.casefold().endswith(".gz")
    ending = Path(name).suffix
    with _readable_as(file, ending.removeprefix(".")):
        if ending in _TABULAR:
            yield from _read_csv(file, mapping, rejects, _TABULAR[ending])
        elif ending in _LINES:
            yield from _read_lines(file, mapping, rejects, json.loads)
        elif ending == ".parquet" and not packed:
            yield from _read_parquet(file, mapping)
        else:
            raise InputError(f"{file} ends in none of .csv, .tsv, .jsonl, .ndjson (or these with .gz), .parquet")


def read_lines(
    file: Path, mapping: Mapping[str, str], rejects: Rejects, load: Callable[[str], Any] = json.loads
) -> Iterator[Raw]:
    """As `read`, of a file with one object a line whatever its name; `load` raises ValueError where a line is none."""
    with _readable_as(file, "lines"):
        yield from _read_lines(file, mapping, rejects, load)


@contextmanager
def _readable_as(file: Path, kind: str) -> Iterator[None]:
    """Errors of reading become an InputError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read as {kind} in UTF-8 ({reason}): repair or export it again") from error


def _check_columns(file: Path, mapping: Mapping[str, str], present: Sequence[str]) -> None:
    for field, column in mapping.items():
        if column not in present:
            raise InputError(f"{file} has no column {column!r} for {field!r}{_near(column, present)}")


def _read_csv(file: Path, mapping: Mapping[str, str], rejects: Rejects, delimiter: str) -> Iterator[Raw]:
    """csv of RFC 4180: quotes, doubled quotes and line breaks within quotes; every cell is text."""
    with _open(file) as stream:
        header = _header(file, stream.read(2**20), delimiter)
    _check_columns(file, mapping, header)
    refused: list[int] = []

    def on_invalid(row: pa_csv.InvalidRow) -> str:
        position = row.number - 2  # numbers count from 1, the header first
        refused.append(position)
        reason = f"the row has {row.actual_columns} cells, not {row.expected_columns}"
        rejects.add(source=file.name, row=position, reason=reason, record={"line": row.text})
        return "skip"

    with _open(file) as stream:
        reader = pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=8 * 2**20),
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, invalid_row_handler=on_invalid
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), include_columns=list(dict.fromkeys(mapping.values()))
            ),
        )
        start = 0
        for batch in reader:
            ahead = np.arange(start, start + batch.num_rows + len(refused), dtype=np.int64)
            positions = ahead[~np.isin(ahead, refused)][: batch.num_rows]
            if batch.num_rows:
                yield _renamed(file, positions, pa.Table.from_batches([batch]), mapping)
                start = int(positions[-1]) + 1


def _open(file: Path) -> pa.NativeFile:
    """The file as a stream of bytes, unpacked when it ends in .gz."""
    return pa.input_stream(str(file), compression="gzip" if file.name.casefold().endswith(".gz") else None)


def _header(file: Path, start: bytes, delimiter: str) -> list[str]:
    text = start.decode("utf-8-sig", errors="replace")
    names = next(csv.reader(text.splitlines(keepends=True), delimiter=delimiter), [])
    if not any(names):
        raise InputError(f"{file} has no header line: its first line must name the columns")
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InputError(f"{file} has two columns named {repeated[0]!r}: rename one")
    return names


def _read_lines(file: Path, mapping: Mapping[str, str], rejects: Rejects, load: Callable[[str], Any]) -> Iterator[Raw]:
    """One JSON object a line. A mapped column has to occur in the first BATCH_ROWS objects."""
    wanted = list(dict.fromkeys(mapping.values()))
    single = [column for field, column in mapping.items() if not field.startswith(_LISTS)]
    present: dict[str, None] = {}
    records: list[dict[str, Any]] = []
    positions: list[int] = []
    checked = False
    with _open(file) as stream:
        for position, record in _objects(file, io.TextIOWrapper(stream, encoding="utf-8-sig"), rejects, load):
            present.update(dict.fromkeys(record))
            several = [column for column in single if isinstance(record.get(column), list)]
            if several:
                reason = f"{several[0]} {record[several[0]]!r}"[:80] + " is a list, not one value"
                rejects.add(source=file.name, row=position, reason=reason, record=record)
                continue
            records.append(record)
            positions.append(position)
            if len(records) == BATCH_ROWS:
                if not checked:
                    _check_columns(file, mapping, list(present))
                checked = True
                yield _renamed(file, np.array(positions), table(records, wanted), mapping)
                records, positions = [], []
    if records:
        if not checked:
            _check_columns(file, mapping, list(present))
        yield _renamed(file, np.array(positions), table(records, wanted), mapping)


def _objects(
    file: Path, lines: Iterable[str], rejects: Rejects, load: Callable[[str], Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 0, object) of every line that holds one; blank lines are skipped."""
    for position, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = load(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield position, record
        else:
            rejects.add(source=file.name, row=position, reason="the line is no JSON object", record={"line": line})


def table(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pa.Table:
    """Columns of text, or of lists of text where any value is a list."""
    made = {}
    for column in columns:
        values = [record.get(column) for record in records]
        if any(isinstance(value, list) for value in values):
            made[column] = pa.array([_texts(value) for value in values], pa.list_(pa.string()))
        else:
            made[column] = pa.array([_text(value) for value in values], pa.string())
    return pa.table(made)


def _text(value: Any) -> str | None:
    """A JSON scalar as text; an object as JSON. Lone surrogates, which no UTF-8 file can hold, are replaced."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for part in values if (text := _text(part)) is not None]


def _read_parquet(file: Path, mapping: Mapping[str, str]) -> Iterator[Raw]:
    """Row groups in batches, only the mapped columns, in their own types."""
    with pq.ParquetFile(file) as opened:
        _check_columns(file, mapping, opened.schema_arrow.names)
        start = 0
        for batch in opened.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(mapping.values())), use_threads=False):
            positions = np.arange(start, start + batch.num_rows, dtype=np.int64)
            yield _renamed(file, positions, pa.Table.from_batches([batch]), mapping)
            start += batch.num_rows


def _renamed(file: Path, positions: np.ndarray, table: pa.Table, mapping: Mapping[str, str]) -> Raw:
    """The batch under raw names; one column of the file may serve several fields."""
    columns = {field: _readable(file, field, column, table.column(column)) for field, column in mapping.items()}
    return Raw(file.name, positions, pa.table(columns))


def _readable(file: Path, field: str, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """`values`, as text where they are bytes; of a type that the field cannot be read from, an InputError."""
    kind = values.type
    bytes_ = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not bytes_ and (not pa.types.is_nested(kind) or (is_list and field.startswith(_LISTS))):
        return values
    try:
        return values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            f"{file}: column {column!r} of type {kind} cannot be read as {field!r}: map another column"
        ) from None
