"""The correction file: what it says wins over every other source, and what it cannot mean is named."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec import dataset
from rec.config import Config
from rec.enrich import corrections, stage
from rec.enrich.corrections import Correction, Corrections
from rec.errors import InputError
from rec.schema import ENRICHED
from rec.vocab.std import StdVocabulary
from tests.enrich.conftest import COATS, write_products

VOCABULARY = StdVocabulary.load()
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T10:00:00+09:00"


def read(*lines: dict[str, Any]) -> Corrections:
    content = "\n".join(json.dumps(line) for line in lines).encode()
    return Corrections(corrections.parse(content, Path("c.jsonl")), VOCABULARY, "c.jsonl")


def reasons(found: Corrections) -> dict[int, str]:
    """Line number → why it is set aside, in a catalogue that has every product."""
    rejects = dataset.Rejects()
    list(found.follow([pa.table({"product_id": ["A1"], "content_hash": ["0"]})], rejects))
    with tempfile.TemporaryDirectory() as folder:
        rejects.save(Path(folder) / "rejected.parquet")
        rows = pq.read_table(Path(folder) / "rejected.parquet").to_pylist()
    return {row["row"] + 1: row["reason"] for row in rows}


def test_values_are_brought_to_the_vocabulary() -> None:
    found = read({"product_id": "A1", "key": "Color", "std": ["navy blue", "Red"], "re": ["  Midnight\u200b  navy "]})
    assert found.by_product["A1"] == Correction({"colour": ("dark blue", "red")}, {"colour": ("Midnight navy",)})


def test_lines_on_different_kinds_and_keys_add_up() -> None:
    found = read(
        {"product_id": "A1", "key": "colour", "std": ["red"]},
        {"product_id": "A1", "key": "colour", "re": []},
        {"product_id": "A1", "key": "fit", "std": ["loose"]},
    )
    assert found.by_product["A1"] == Correction({"colour": ("red",), "fit": ("loose",)}, {"colour": ()})


def test_the_latest_line_counts_and_one_without_a_time_is_the_oldest() -> None:
    found = read(
        {"product_id": "A1", "key": "colour", "std": ["red"], "at": LATE},
        {"product_id": "A1", "key": "colour", "std": ["blue"], "at": EARLY},
        {"product_id": "A1", "key": "colour", "std": ["green"]},
        {"product_id": "A1", "key": "colour", "std": ["red"], "at": LATE},
    )
    assert found.by_product["A1"].std == {"colour": ("red",)}
    assert found.facts()["replaced"] == 2
    assert reasons(found) == {}


def test_lines_that_contradict_each_other_are_all_set_aside() -> None:
    found = read(
        {"product_id": "A1", "key": "colour", "std": ["red"]},
        {"product_id": "A1", "key": "color", "std": ["blue"]},
        {"product_id": "A1", "key": "fit", "std": ["loose"]},
    )
    assert found.by_product["A1"] == Correction({"fit": ("loose",)})
    assert set(reasons(found)) == {1, 2}
    assert "lines 1 and 2 differ on std 'colour'" in reasons(found)[1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"key": "flavour", "std": ["red"]}, "no key 'flavour' in the vocabulary"),
        ({"key": "colour", "std": ["red", "Orenge-ish"]}, "'Orenge-ish' is no std value of colour"),
        ({"key": "colour", "std": [""]}, "'' is no std value of colour"),
        ({"key": "colour", "re": ["\u200b"]}, "must have 1 to 500 characters"),
        ({"key": "colour", "re": ["x" * 501]}, "must have 1 to 500 characters"),
        ({"key": "colour", "re": [str(n) for n in range(9)]}, "9 re values of colour: at most 8"),
    ],
)
def test_what_the_vocabulary_lacks_is_named(line: dict[str, Any], reason: str) -> None:
    found = read({"product_id": "A1", **line}, {"product_id": "A1", "key": "fit", "std": ["loose"]})
    assert reason in reasons(found)[1]
    assert found.by_product == {"A1": Correction({"fit": ("loose",)})}, "the rest of the file counts"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'\n{"product_id": "A1", "key": "colour", "std": ["red"]}\nnonsense', "line 3: the line"),
        (b'{"product_id": "A1", "key": "colour"}', "line 1: the line: needs std, re or both"),
        (b'{"product_id": "A1", "key": "colour", "std": "red"}', "line 1: std"),
        (b'{"product_id": "A1", "key": "colour", "std": ["red"], "sdt": []}', "line 1: sdt"),
        (b'{"product_id": "A1", "key": "colour", "std": ["red"], "at": "2026-01-01T00:00:00"}', "line 1: at"),
        (b"\xff\xfe{\x00", "line 1: the line"),
    ],
)
def test_a_line_that_is_no_correction_is_an_error_of_the_file(
    coats: Callable[..., Config], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as failed:
        stage.run(coats(f"enrich.corrections={path}"))
    assert "\n" not in str(failed.value)
    assert str(path) in str(failed.value)


def test_a_file_that_is_not_there_is_named(coats: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read \(No such file.*enrich\.corrections"):
        stage.run(coats("enrich.corrections=nowhere.jsonl", f"source.folder={tmp_path}"))


def test_a_file_as_editors_write_it_is_read() -> None:
    content = b'\xef\xbb\xbf{"product_id": "A1", "key": "fit", "std": ["loose"]}\r\n\r\n'
    assert list(corrections.parse(content, Path("c.jsonl"))) == [1]


def made(config: Config) -> dict[str, dict[str, Any]]:
    return {row["product_id"]: row for row in dataset.read(config.at("enriched"), ENRICHED).to_pylist()}


def of(row: dict[str, Any], kind: str, key: str) -> list[tuple[str, str]]:
    return [(a["value"], a["source"]) for a in row[kind] if a["key"] == key]


def write(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local", "fresh")
def test_corrections_win_over_every_source_and_every_change(coats: Callable[..., Config], tmp_path: Path) -> None:
    path, answers = tmp_path / "c.jsonl", tmp_path / "answers.jsonl"
    answer = {"product_id": "A1", "model": "one", "re": {"detail": ["detachable hood"], "occasion": ["winter walk"]}}
    write(answers, answer)
    write(path)
    options = ("enrich.max_calls=0", f'enrich.answers=["{answers}"]', f"enrich.corrections={path}")
    config = coats(*options)
    stage.run(config)
    before = made(config)
    assert of(before["A1"], "std", "colour") == [("red", "given")]
    assert ("coat", "rule") in of(before["A1"], "std", "category")
    assert ("winter walk", "llm") in of(before["A1"], "re", "occasion")

    seen = before["A1"]["content_hash"]
    write(
        path,
        {"product_id": "A1", "key": "colour", "std": ["navy"]},
        {"product_id": "A1", "key": "category", "std": []},
        {"product_id": "A1", "key": "occasion", "re": ["winter walk", "office"], "content": seen},
        {"product_id": "A3", "key": "fibre", "std": ["linen"]},
        {"product_id": "gone", "key": "fit", "std": ["loose"]},
        {"product_id": "A2", "key": "flavour", "re": ["lemon"]},
    )  # fmt: skip
    facts = stage.run(config)
    assert (facts["live_calls"], facts["cached"]) == (0, 1), "a changed file asks nothing"
    after = made(config)
    coat = after["A1"]
    assert of(coat, "std", "colour") == [("dark blue", "human")]
    assert of(coat, "std", "category") == []
    assert of(coat, "re", "occasion") == [("winter walk", "human"), ("office", "human")]
    assert [a["evidence"] for a in coat["re"] if a["key"] == "occasion"] == ["winter walk", None]
    assert of(coat, "re", "detail") == of(before["A1"], "re", "detail"), "other keys stay"
    assert (after["A3"]["status"], of(after["A3"], "std", "fibre")) == ("quarantined", [("linen", "human")])
    assert after["A2"] == before["A2"]
    assert facts["corrections"] == {
        "lines": 6, "products": 2, "replaced": 0, "set_aside": 2, "text_changed": 0,
    }  # fmt: skip
    aside = pq.read_table(config.at("enriched") / "rejected.parquet").to_pylist()
    assert [(row["source"], row["row"]) for row in aside] == [("c.jsonl", 4), ("c.jsonl", 5)]
    assert aside[0]["reason"] == "no product 'gone' in the catalogue now"
    assert "'flavour'" in aside[1]["reason"]
    assert json.loads(aside[1]["record"])["re"] == ["lemon"]
    assert stage.run(config)["skipped"]

    moved = path.rename(tmp_path / "moved.jsonl")
    assert stage.run(coats(*options[:2], f"enrich.corrections={moved}"))["skipped"], "its place is not what counts"

    write(answers, answer | {"model": "two", "re": {"occasion": ["Perfect for a winter walk"]}})
    changed = [COATS[0] | {"description": f"{COATS[0]['description']} Red lining."}, *COATS[1:]]
    back = {"product_id": "gone", "title": "Returned Shirt", "description": "A slim cotton shirt. Slim fit."}
    write_products(config, [*changed, back])
    facts = stage.run(coats(*options[:2], f"enrich.corrections={moved}"))
    again = made(config)
    assert again["A1"]["model"] == "two"
    for kind in ("std", "re"):
        human = [a for a in coat[kind] if a["source"] == "human"]
        assert [a for a in again["A1"][kind] if a["source"] == "human"] == human, "another text, model and prompt"
    assert of(again["gone"], "std", "fit") == [("loose", "human")], "a product that came back"
    assert facts["corrections"] == {
        "lines": 6, "products": 3, "replaced": 0, "set_aside": 1, "text_changed": 1,
    }  # fmt: skip
