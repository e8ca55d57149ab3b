"""Datasets: the same rows give the same bytes, the contract is kept, refused rows stay."""

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec import dataset
from rec.errors import ArtifactError
from rec.schema import INTERACTIONS, PRODUCTS, USERS, Contract, vectors


def _users(count: int) -> pa.Table:
    rows = [
        {"user_id": f"u{i:06d}", "height_cm": 150.0 + i % 40, "weight_kg": None, "birth_year": 1990, "numeric": []}
        for i in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=USERS.schema)


def _cut(table: pa.Table, sizes: list[int]) -> list[pa.Table]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(table.slice(start, size))
        start += size
    return [*pieces, table.slice(start)]


@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.integers(1, 9_000), max_size=6))
def test_bytes_do_not_depend_on_how_rows_arrive(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    root = tmp_path_factory.mktemp("users")
    table = _users(dataset.ROWS_PER_GROUP + 1_000)
    whole = dataset.write(root / "whole", USERS, [table], inputs={}, config={})
    pieces = dataset.write(root / "pieces", USERS, _cut(table, sizes), inputs={}, config={})
    assert whole.content_hash == pieces.content_hash
    assert dataset.read(root / "pieces", USERS).equals(table)


def test_rows_come_back_in_written_order_with_counts(tmp_path: Path) -> None:
    table = _users(3).take([2, 0, 1])
    manifest = dataset.write(tmp_path / "users", USERS, table.to_batches(), inputs={}, config={}, facts={"seen": 5})
    assert dict(manifest.facts) == {"rows": 3, "rejected": 0, "seen": 5}
    assert dataset.read(tmp_path / "users", USERS, ["user_id"])["user_id"].to_pylist() == [
        "u000002",
        "u000000",
        "u000001",
    ]
    assert not (tmp_path / "users" / "rejected.parquet").exists()
    assert pq.read_table(dataset.part(tmp_path / "users", USERS)).num_rows == 3


def test_an_empty_dataset_keeps_its_columns(tmp_path: Path) -> None:
    dataset.write(tmp_path / "users", USERS, [], inputs={}, config={})
    assert dataset.read(tmp_path / "users", USERS).schema.equals(USERS.schema)


def test_refused_rows_are_kept_with_their_reason(tmp_path: Path) -> None:
    rejects = dataset.Rejects()

    def batches() -> Any:
        rejects.add(source="users.csv", row=7, reason="no user_id", record={"height": 'x"' * 5_000})
        yield _users(2)

    manifest = dataset.write(tmp_path / "users", USERS, batches(), inputs={}, config={}, rejects=rejects)
    assert (manifest.facts["rows"], manifest.facts["rejected"]) == (2, 1)
    kept = pq.read_table(tmp_path / "users" / "rejected.parquet").to_pylist()[0]
    assert (kept["source"], kept["row"], kept["reason"]) == ("users.csv", 7, "no user_id")
    assert len(kept["record"]) == dataset.RECORD_CAP


def test_many_refused_rows_take_little_memory_and_stay_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "REJECTS_IN_MEMORY", 1_000)
    rejects = dataset.Rejects()
    tracemalloc.start()
    for row in range(20_500):
        rejects.add(source="users.csv", row=row, reason=f"reason {row}", record={"user_id": "x" * 500})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 3_000_000, "20,500 rows of half a kilobyte each"
    assert (len(rejects), rejects.first_reason) == (20_500, "reason 0")
    manifest = dataset.write(tmp_path / "users", USERS, [_users(1)], inputs={}, config={}, rejects=rejects)
    assert manifest.facts["rejected"] == 20_500
    assert pq.read_table(tmp_path / "users" / "rejected.parquet")["row"].to_pylist() == list(range(20_500))


@pytest.mark.parametrize(
    ("contract", "table", "message"),
    [
        (USERS, pa.table({"height_cm": [1.0]}), "users: column 'user_id' is missing"),
        (USERS, _users(1).set_column(0, "user_id", pa.array([None], pa.string())), "'user_id' has nulls"),
        (
            INTERACTIONS,
            pa.table(
                {
                    "user_id": ["u"],
                    "product_id": ["p"],
                    "event": ["view"],
                    "at": ["soon"],
                    "value": [1.0],
                    "context": [""],
                    "size": [None],
                    "size_number": [None],
                    "fit": [None],
                }
            ),
            "events: rows do not fit the contract",
        ),
        (
            vectors(4),
            pa.table({"product_id": ["p"], "vector": [[1.0, 2.0, 3.0]], "inputs": [bytes(16)]}),
            "vectors: rows do not fit the contract",
        ),
    ],
)
def test_rows_outside_the_contract_write_nothing(
    tmp_path: Path, contract: Contract, table: pa.Table, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        dataset.write(tmp_path / "out", contract, [table], inputs={}, config={})
    assert list(tmp_path.iterdir()) == []


def test_reader_names_the_job_that_makes_the_dataset(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"run `python jobs/ingest\.py` first"):
        dataset.read(tmp_path / "products", PRODUCTS)
