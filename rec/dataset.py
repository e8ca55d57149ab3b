"""Datasets: artifacts of parquet files under a contract of `rec.schema`.

    folder/part-00000.parquet  rejected.parquet  _manifest.json

Writing streams record batches in the order given into files of fixed row-group size, so the same rows
in the same order always give the same bytes and content hash. Rows that a stage refuses are kept in
`rejected.parquet` with a reason, and so are single values that it left out of rows that stay; the counts
of all three are facts of the manifest.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rec import artifact
from rec.errors import ArtifactError
from rec.schema import REJECTED, Contract

ROWS_PER_GROUP = 8_192
RECORD_CAP = 2_000  # characters of a rejected row that are kept
REJECTS_IN_MEMORY = 65_536
PART, REFUSED = "part-00000.parquet", "rejected.parquet"
BATCH_ROWS = 65_536
"""Rows that are rewritten at once."""


class Rejects:
    """Collects refused rows and values; hand it to `write`. All but the last REJECTS_IN_MEMORY lie in a file.

    What `hides` is true of may not be kept: it is passed over.
    """

    def __init__(self, hides: Callable[[Mapping[str, Any]], bool] | None = None) -> None:
        self._hides = hides
        self.first_reason: str | None = None
        """Why the first row was refused."""
        self.values_left_out = 0
        """How many were single values, whose rows stay."""
        self._count = 0
        self._rows: list[dict[str, Any]] = []
        self._spilled: tuple[BinaryIO, pq.ParquetWriter] | None = None

    def add(self, *, source: str, row: int | None, reason: str, record: Mapping[str, Any], whole: bool = True) -> None:
        """Keep one refused row with the reason it was refused, or (not `whole`) one that lost a single value."""
        if self._hides is not None and self._hides(record):
            return
        text = json.dumps(record, ensure_ascii=False, default=str)[:RECORD_CAP]
        self._rows.append({"source": source, "row": row, "reason": reason, "record": text})
        self._count += 1
        self.values_left_out += not whole
        self.first_reason = self.first_reason or reason
        if len(self._rows) == REJECTS_IN_MEMORY:
            self._spill()

    def __len__(self) -> int:
        return self._count

    def save(self, path: Path) -> None:
        """Write the rows under the schema REJECTED, in the order they were added; none can be added after it."""
        file, writer = self._spill()
        writer.close()
        file.seek(0)
        with file, path.open("wb") as target:
            shutil.copyfileobj(file, target)

    def _spill(self) -> tuple[BinaryIO, pq.ParquetWriter]:
        if self._spilled is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the collection
            self._spilled = file, pq.ParquetWriter(file, REJECTED, compression="zstd")
        if self._rows:
            self._spilled[1].write_table(pa.Table.from_pylist(self._rows, schema=REJECTED))
            self._rows = []
        return self._spilled


def write(
    target: Path,
    contract: Contract,
    batches: Iterable[pa.Table | pa.RecordBatch],
    *,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    rejects: Rejects | None = None,
    facts: Mapping[str, Any] | None = None,
) -> artifact.Manifest:
    """Write `batches` as the dataset `target`; returns its manifest with `rows` and `rejected` counts.

    `facts` and `rejects` may be filled while `batches` is being consumed. Batches are cast to the
    contract; a null in a required column or a type that cannot be cast raises ArtifactError.
    """
    with artifact.write(target, kind=contract.kind, version=contract.version, inputs=inputs, config=config) as draft:
        rows = _write_rows(draft.path / PART, contract.schema, (_cast(batch, contract) for batch in batches))
        if rejects:
            rejects.save(draft.path / REFUSED)
        refused = len(rejects) - rejects.values_left_out if rejects else 0
        draft.note(rows=rows, rejected=refused, **(facts or {}))
    return read_manifest(target, contract)


def rewrite(
    target: Path,
    contract: Contract,
    *,
    rows: Callable[[pa.Table], pa.Table],
    rejects: Callable[[pa.Table], pa.Table],
    inputs: Mapping[str, str],
) -> None:
    """Write the dataset at `target` again with what the two leave of its tables of rows and of refused ones.

    It may be of an older version than `contract`, and keeps it. `inputs` go to those of its manifest and say that it is
    no longer what its stage wrote, which therefore runs again. Of the facts only `rows` is of the new dataset.
    """
    before = artifact.peek(target)
    if before is None:
        raise ArtifactError(f"{target} holds no finished {contract.kind}: run `{contract.made_by}` first")
    work: dict[str, Any] = {"inputs": {**before.inputs, **inputs}, "config": before.config}
    with artifact.write(target, kind=before.kind, version=before.version, **work) as draft:
        # of another version a file says itself what it is; of this one it has other names within maps, so other bytes
        schema = contract.schema if before.version == contract.version else None
        count = _copy(target / PART, draft.path / PART, rows, schema)
        if (target / REFUSED).exists():
            _copy(target / REFUSED, draft.path / REFUSED, rejects, REJECTED)
        draft.note(**{**before.facts, "rows": count})


def _copy(source: Path, target: Path, kept: Callable[[pa.Table], pa.Table], schema: pa.Schema | None) -> int:
    """Write what `kept` leaves of a parquet file, under its own schema where none is given; returns its rows."""
    with pq.ParquetFile(source) as file:
        wanted = file.schema_arrow if schema is None else schema
        tables = (kept(pa.Table.from_batches([batch])).cast(wanted) for batch in file.iter_batches(BATCH_ROWS))
        return _write_rows(target, wanted, tables)


def scan(target: Path, name: str, column: str) -> Iterator[pa.ChunkedArray]:
    """A column of PART or REFUSED of the dataset at `target`, in batches; nothing where there is no such file."""
    if artifact.peek(target) is not None and (target / name).exists():
        with pq.ParquetFile(target / name) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
                yield pa.chunked_array([batch.column(0)])


def _write_rows(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Write tables of one schema as a parquet file; returns the number of rows."""
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _regroup(tables):
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            rows += table.num_rows
    return rows


def _regroup(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Cut into tables of exactly ROWS_PER_GROUP rows, but for the last."""
    pending: list[pa.Table] = []
    count = 0
    for table in tables:
        pending.append(table)
        count += table.num_rows
        if count >= ROWS_PER_GROUP:
            joined = pa.concat_tables(pending)
            whole = count - count % ROWS_PER_GROUP
            for start in range(0, whole, ROWS_PER_GROUP):
                yield joined.slice(start, ROWS_PER_GROUP).combine_chunks()
            pending, count = [joined.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _cast(batch: pa.Table | pa.RecordBatch, contract: Contract) -> pa.Table:
    """`batch` under the contract's schema; a violation names the dataset and the column."""
    table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
    schema = contract.schema
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise ArtifactError(f"{contract.kind}: column {missing[0]!r} is missing")
    table = table.select(schema.names)
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise ArtifactError(f"{contract.kind}: column {field.name!r} has nulls but must not")
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError) as error:
        raise ArtifactError(f"{contract.kind}: rows do not fit the contract: {error}") from error


def read_manifest(target: Path, contract: Contract) -> artifact.Manifest:
    """The checked manifest of the dataset at `target`."""
    return artifact.read(target, kind=contract.kind, version=contract.version, made_by=contract.made_by)


def read(target: Path, contract: Contract, columns: list[str] | None = None) -> pa.Table:
    """The whole dataset as one Arrow table, in written order."""
    read_manifest(target, contract)
    return pq.read_table(target / PART, columns=columns, schema=contract.schema if columns is None else None)


def part(target: Path, contract: Contract) -> str:
    """Path of the parquet file, for readers that stream (Ray Data, COPY)."""
    read_manifest(target, contract)
    return str(target / PART)
