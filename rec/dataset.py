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
from collections.abc import Iterable, Iterator, Mapping
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


class Rejects:
    """Collects refused rows and values; hand it to `write`. All but the last REJECTS_IN_MEMORY lie in a file."""

    def __init__(self) -> None:
        self.first_reason: str | None = None
        """Why the first row was refused."""
        self.values_left_out = 0
        """How many were single values, whose rows stay."""
        self._count = 0
        self._rows: list[dict[str, Any]] = []
        self._spilled: tuple[BinaryIO, pq.ParquetWriter] | None = None

    def add(self, *, source: str, row: int | None, reason: str, record: Mapping[str, Any], whole: bool = True) -> None:
        """Keep one refused row with the reason it was refused, or (not `whole`) one that lost a single value."""
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
        rows = 0
        with pq.ParquetWriter(draft.path / "part-00000.parquet", contract.schema, compression="zstd") as writer:
            for table in _regroup(batches, contract):
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                rows += table.num_rows
        if rejects:
            rejects.save(draft.path / "rejected.parquet")
        refused = len(rejects) - rejects.values_left_out if rejects else 0
        draft.note(rows=rows, rejected=refused, **(facts or {}))
    return read_manifest(target, contract)


def _regroup(batches: Iterable[pa.Table | pa.RecordBatch], contract: Contract) -> Iterator[pa.Table]:
    """Cast to the contract and cut into tables of exactly ROWS_PER_GROUP rows, but for the last."""
    pending: list[pa.Table] = []
    count = 0
    for batch in batches:
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        pending.append(_cast(table, contract))
        count += table.num_rows
        if count >= ROWS_PER_GROUP:
            joined = pa.concat_tables(pending)
            whole = count - count % ROWS_PER_GROUP
            for start in range(0, whole, ROWS_PER_GROUP):
                yield joined.slice(start, ROWS_PER_GROUP).combine_chunks()
            pending, count = [joined.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _cast(table: pa.Table, contract: Contract) -> pa.Table:
    """`table` under the contract's schema; a violation names the dataset and the column."""
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
    return pq.read_table(
        target / "part-00000.parquet", columns=columns, schema=contract.schema if columns is None else None
    )


def part(target: Path, contract: Contract) -> str:
    """Path of the parquet file, for readers that stream (Ray Data, COPY)."""
    read_manifest(target, contract)
    return str(target / "part-00000.parquet")
