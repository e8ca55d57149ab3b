"""STD coverage: what is counted, what is listed, and the goal on the real file where it lies."""

from pathlib import Path

import pyarrow as pa
import pytest

from rec.evaluate import benchmark, coverage
from rec.vocab.std import StdVocabulary

VOCABULARY = StdVocabulary.load()


def test_every_part_of_a_value_counts_and_what_has_no_id_is_listed() -> None:
    table = pa.table(
        {
            "product_id": ["1", "2", "3"],
            "color": ["Red,Bluu", "Black", "Bluu"],
            "gender": ["woman", None, "Unknown"],
        }
    )
    found = coverage.measure(table, VOCABULARY)
    assert {key: c.share for key, c in found.items()} == {"colour": 0.5, "gender": 0.5}
    assert coverage.unmapped(found) == [
        {"key": "colour", "value": "Bluu", "count": 2},
        {"key": "gender", "value": "Unknown", "count": 1},
    ]
    figures = coverage.figures(found)
    assert figures["std.coverage"] == {"value": 0.5, "ci95": None, "goal": 0.995, "unit": "coverage"}
    result = benchmark.envelope("extraction", figures, quick=True)
    page = benchmark.page({**result, "unmapped": coverage.unmapped(found)})
    assert "Bluu" in page
    assert "std.coverage.gender" in page
    assert "every given value is mapped" in benchmark.page({**result, "unmapped": []})


def test_a_folder_without_the_file_has_no_coverage(tmp_path: Path) -> None:
    assert coverage.read(tmp_path) is None


def test_the_real_garments_are_covered(repository: Path) -> None:
    table = coverage.read(repository.parent / "shared" / "data")
    if table is None:
        pytest.skip(f"../shared/data/{coverage.FILE} is not here: its coverage is not tested")
    found = coverage.measure(table, VOCABULARY)
    assert len(found) == 14
    assert {key: c.share for key, c in found.items() if c.share < coverage.GOAL} == {}
