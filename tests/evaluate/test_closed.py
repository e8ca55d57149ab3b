"""Closed-vocabulary figures: gold of the columns, what an answer is worth, and that no text is taught and read."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.config import Config, load
from rec.evaluate import closed
from rec.evaluate.closed import KEYS, Described, Work
from rec.vocab.std import StdVocabulary

STD = StdVocabulary.load()
COLUMNS = ("detail_desc", "product_type_name", "graphical_appearance_name", "colour_group_name")
ROWS = [
    ("Dress in jersey.", "Dress", "Solid", "Black"),
    ("Dress in jersey.", "Dress", "Solid", "Dark Blue"),
    ("Dress in jersey.", "Dress", "Solid", "Black"),
    ("Red cap.", "Unknown", "Blorp", "Red"),
    (None, "Hat/beanie", "Solid", "Red"),
]


def _read(folder: Path, rows: Sequence[tuple[str | None, ...]]) -> tuple[list[Described], dict[str, float]]:
    pq.write_table(
        pa.Table.from_pylist([dict(zip(COLUMNS, row, strict=True)) for row in rows]), folder / closed.ARTICLES
    )
    found = closed.read(folder, STD)
    assert found is not None
    return found


def test_gold_is_what_maps_and_a_text_is_worth_the_share_of_its_articles(tmp_path: Path) -> None:
    assert closed.read(tmp_path, STD) is None
    (dress, cap), shares = _read(tmp_path, ROWS)
    assert dress.gold["colour"] == {"black": 2, "dark blue": 1}
    assert cap.gold == {"colour": {"red": 1}}
    assert shares == {"category": 0.75, "pattern": 0.75, "colour": 1.0}
    assert dress.credit("colour", "dark blue") == pytest.approx(1 / 3)
    assert (dress.usual("colour"), dress.credit("colour", None)) == ("black", 0.0)
    assert cap.usual("category") is None
    assert np.isnan(cap.credit("category", "cap"))


def test_a_text_teaches_its_values_and_their_words(tmp_path: Path) -> None:
    (dress, cap), _ = _read(tmp_path, ROWS)
    told = closed.example(dress, STD)
    assert told.values == {"category": ["Dress"]}
    assert told.concluded == {
        "category": ["dress"] * 3, "pattern": ["solid"] * 3, "colour": ["black", "black", "dark blue"],
    }  # fmt: skip
    assert (closed.example(cap, STD).values, closed.example(cap, STD).concluded) == (
        {"colour": ["Red"]},
        {"colour": ["red"]},
    )


def test_no_text_is_taught_and_read() -> None:
    described = [Described(f"Text {number}", {}) for number in range(50)]
    taught, held_out = closed.split(described, Work(taught=20, epochs=1, read=10, asked=5, pool=5), seed=3)
    assert (len(taught), len(held_out)) == (20, 10)
    assert not {d.text for d in taught} & {d.text for d in held_out}


class _Copies:
    """An engine that says of every text what the last shot says."""

    def complete(self, prompt: str, schema: dict[str, object], max_tokens: int) -> object:
        assert schema["required"] == list(KEYS)
        return type("Completion", (), {"text": prompt.rsplit("Attributes: ", 2)[1].split("\n")[0]})


def test_every_way_has_its_figures_and_a_taught_tagger_beats_the_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"Soft garment with long legs": ("Trousers", "Solid"), "Striped dress with straps": ("Dress", "Stripe")}
    rows = [
        (f"{text}, number {n}.", *values, ("Black", "White")[n % 2])
        for text, values in kinds.items()
        for n in range(20)
    ]
    described, shares = _read(tmp_path, rows)
    config: Config = load("hm", [])
    monkeypatch.setattr(closed.engine, "require", lambda enrich: None)
    monkeypatch.setattr(closed.engine, "load", lambda enrich, key: _Copies())
    work = Work(taught=24, epochs=8, read=16, asked=8, pool=24)
    made = closed.figures(described, shares, STD, config, work)
    value = {name: found["value"] for name, found in made.items()}
    assert value["hm.tagger.category.accuracy"] == value["hm.tagger.pattern.accuracy"] == 1.0
    assert value["hm.llm.category.accuracy"] == value["hm.nearest.category.accuracy"] == 1.0
    assert 0 < value["hm.words.category.accuracy"] == value["hm.rules.category.accuracy"] < 1
    assert value["hm.ceiling.colour.accuracy"] == 1.0 > value["hm.majority.colour.accuracy"]
    assert value["hm.tagger.minus.llm.category.accuracy"] == 0.0
    assert value["hm.colour.named"] == 0.0
    mean = np.mean([value[f"hm.tagger.{key}.accuracy"] for key in KEYS])
    assert value["hm.tagger.mean.accuracy"] == pytest.approx(mean, abs=1e-3)
    low, high = made["hm.majority.category.accuracy"]["ci95"]
    assert low < value["hm.majority.category.accuracy"] < high


def test_values_that_no_gold_column_has_are_worth_nothing_and_unknown_gold_does_not_count() -> None:
    texts = [Described("a", {"category": Counter(dress=1)}), Described("b", {})]
    said = [{"category": "dress"}, {"category": "dress"}]
    means, drawn = closed._means(closed._credits(texts, said), 50, 0)
    assert means[KEYS.index("category")] == 1.0
    assert drawn.shape == (50, len(KEYS) + 1)
