"""Files of answers: what is read, and the one sentence for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.enrich import imports
from rec.errors import InputError

TOKENS = ("CAT", "MAT", "DET", "FIT", "FNC", "SPC", "COL", "CTX")


def _tokens(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A parquet of H&M tokens; what a row lacks is null."""
    blank = dict.fromkeys(("detail_desc", *TOKENS))
    schema = pa.schema([("detail_desc", pa.string()), *((name, pa.list_(pa.string())) for name in TOKENS)])
    pq.write_table(pa.Table.from_pylist([blank | row for row in rows], schema=schema), path)
    return path


def test_tokens_are_joined_on_the_description_and_nulls_say_nothing(tmp_path: Path) -> None:
    rows = [
        {"detail_desc": None, "CAT": ["coat"]},
        {"detail_desc": "A wool coat.", "MAT": ["wool", None, "wool"], "COL": None},
    ]
    path = _tokens(tmp_path / "tokens.parquet", rows)
    found = list(imports.read(path, lambda: {"A1": "A wool coat.", "A2": "Another."}))
    assert [one.product_id for one in found] == ["A1"]
    assert json.loads(found[0].answer.body)["re"] == {"fibre": ["wool"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"product_id": "A1", "model": "x"}\n{"product_id": "\xff", "model": "x"}\n', "line 2: the line"),
        ("a.jsonl", b"\xff\xfe{\x00", "line 1: the line"),
        ("a.parquet", b"no parquet at all", r"a\.parquet cannot be read as the H&M token file"),
        ("a.parquet", b"", r"a\.parquet cannot be read as the H&M token file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as failed:
        list(imports.read(path, dict))
    assert "\n" not in str(failed.value)


def test_tokens_of_another_type_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"detail_desc": ["A wool coat."], **{name: [1] for name in TOKENS}}), path)
    with pytest.raises(InputError, match="cannot be read as the H&M token file"):
        list(imports.read(path, lambda: {"A1": "A wool coat."}))
