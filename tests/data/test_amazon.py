"""The Beauty cut: sequences become events in their order."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec import config, dataset
from rec.data import amazon, ingest
from rec.errors import InputError
from rec.schema import INTERACTIONS, PRODUCTS


def test_sequences_become_events_in_their_order(tmp_path: Path) -> None:
    items = pa.table({"item_id": [1, 2, 3], "asin": ["A", "B", "C"], "title": ["Lip balm", "Nail file", "Soap"]})
    pq.write_table(items, tmp_path / amazon.ITEMS)
    sequences = {
        "user_id": [1, 2],
        "reviewer_id": ["Zoe", "Ann"],
        "items": pa.array([[3, 1, 3], [2]], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(sequences), tmp_path / amazon.SEQUENCES)
    tree = config.load("beauty", [f"source.folder={tmp_path}", f"store={tmp_path}/store"])
    made = ingest.run(tree)
    assert made["events"]["rows"] == 4
    assert made["events"]["rejected"] == 0
    assert dataset.read(tree.at("products"), PRODUCTS)["title"].to_pylist() == ["Lip balm", "Nail file", "Soap"]
    events = dataset.read(tree.at("events"), INTERACTIONS).to_pylist()
    found = [(event["user_id"], event["product_id"], event["event"]) for event in events]
    assert found == [("Ann", "2", "rating"), ("Zoe", "3", "rating"), ("Zoe", "1", "rating"), ("Zoe", "3", "rating")]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"amazon2014_beauty_items\.parquet does not exist: set source\.folder"):
        amazon.find(tmp_path)
