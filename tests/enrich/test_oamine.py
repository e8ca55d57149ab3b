"""The benchmark `extraction`: its scores, and that the test split stays unread."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.config import Config, load
from rec.enrich import engine, oamine
from rec.enrich.llamacpp import Completion
from rec.errors import InputError
from rec.evaluate import benchmark


class Engine:
    """Says that the first word is the brand and the second the flavour."""

    asked: list[str]

    def complete(self, prompt: str, schema: dict[str, Any], _max_tokens: int) -> Completion:
        title = re.findall(r"Title: (.*)", prompt)[-1]
        self.asked.append(title)
        brand, flavour = title.split()[:2]
        assert {brand, flavour} <= set(schema["$defs"]["phrase"]["enum"])
        return Completion(json.dumps({"brand": brand, "flavour": flavour}), True, 1, 1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles that the engine, replaced by one that needs no model, was asked."""
    made = Engine()
    made.asked = []
    monkeypatch.setattr(engine, "require", lambda _: None)
    monkeypatch.setattr(engine, "load", lambda *_, **__: made)
    return made.asked


def _config(folder: Path) -> Config:
    rows = [
        ("train_0.2", "Acme Mint Tea", {"brand": ["Acme"], "flavour": ["Mint"]}),
        ("train", "Acme Mint Tea", {"brand": ["Acme"], "flavour": ["Mint"]}),
        ("train", "Bolt lemon Tea", {"brand": ["BOLT"], "flavour": ["Lemon"]}),
        ("train", "Good green Tea", {"brand": ["Good"], "flavour": ["n/a"]}),
        ("test", "Kept Secret Tea", {"brand": ["Kept"], "flavour": ["Secret"]}),
    ]
    table = pa.Table.from_pylist(
        [
            {"category": "Tea", "split": split, "title": title, "target_scores_json": json.dumps(gold)}
            for split, title, gold in rows
        ]
    )
    pq.write_table(table, folder / oamine.FILE)
    return load("hm", [f"source.folder={folder}"])


def test_scores_are_micro_and_have_intervals(tmp_path: Path, asked: list[str]) -> None:
    figures = benchmark.extraction(_config(tmp_path), quick=False, test=False)
    assert sorted(asked) == ["Bolt lemon Tea", "Good green Tea"], "a title of the examples is not asked"
    assert figures["oamine.llm.precision"]["value"] == 0.75
    assert figures["oamine.llm.recall"]["value"] == 1.0
    assert figures["oamine.llm.f1"]["value"] == pytest.approx(6 / 7, abs=1e-4)
    assert figures["oamine.llm.published.precision"]["value"] == 1.0, "no title has a gold flavour to be wrong about"
    low, high = figures["oamine.llm.f1"]["ci95"]
    assert (low, high) == (pytest.approx(2 / 3, abs=1e-4), 1.0)


def test_the_test_split_is_read_only_where_it_is_asked_for(tmp_path: Path, asked: list[str]) -> None:
    assert benchmark.extraction(_config(tmp_path), quick=False, test=True)["oamine.llm.f1"]["value"] == 1.0
    assert asked == ["Kept Secret Tea"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"attribute_extraction_oamine\.parquet does not exist: set source\.folder"):
        benchmark.extraction(load("hm", [f"source.folder={tmp_path}"]), quick=True, test=False)
