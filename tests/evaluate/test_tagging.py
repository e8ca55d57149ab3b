"""The tagger's figures: their counting, and that no title is both trained on and read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.enrich import oamine
from rec.evaluate import tagging
from rec.evaluate.tagging import Measured


def _file(folder: Path) -> Path:
    rows = [("train_0.2", "Acme tea"), ("train", "Acme tea"), ("test", "Kept tea"), ("test", "Bolt 1 tea")]
    rows += [("train", f"Bolt {number} tea") for number in range(10)]
    gold = json.dumps({"brand": ["Acme"]})
    table = [{"category": "Tea", "split": s, "title": title, "target_scores_json": gold} for s, title in rows]
    pq.write_table(pa.Table.from_pylist(table), folder / oamine.FILE)
    return folder / oamine.FILE


@pytest.mark.parametrize(("test", "sizes"), [(False, (9, 2)), (True, (10, 2))])
def test_no_title_is_trained_on_and_read(tmp_path: Path, test: bool, sizes: tuple[int, int]) -> None:
    learned, asked = tagging.split(_file(tmp_path), test=test)
    assert (len(learned), len(asked)) == sizes
    assert not {t.text for t in learned} & {t.text for t in asked}
    assert any(t.text == "Kept tea" for t in asked) is test


def test_scores_are_micro_and_per_attribute_and_as_published_pass_over_unlabelled_attributes() -> None:
    said = [
        [("Acme", ["acme"]), ("Mint", ["Lemon"])],
        [("Bolt", ["Bolt"]), (None, ["Lemon"])],
        [("Oak", []), (None, [])],
    ]
    counts = np.array([[oamine.decision(value, gold) for value, gold in title] for title in said])
    made = tagging.figures(Measured(["brand", "flavour"], counts, 0.01), 3.0, resamples=50, seed=1)
    assert made["oamine.tagger.precision"]["value"] == 0.5
    assert made["oamine.tagger.recall"]["value"] == made["oamine.tagger.published.recall"]["value"] == 0.5
    assert made["oamine.tagger.f1"]["value"] == 0.5
    assert made["oamine.tagger.published.precision"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert made["oamine.tagger.published.f1"]["value"] == pytest.approx(4 / 7, abs=1e-4)
    assert made["oamine.tagger.attribute.brand.f1"]["value"] == 0.8
    assert made["oamine.tagger.attribute.flavour.f1"]["value"] == 0.0
    assert made["tagger.over.llm"]["value"] == 300.0
