"""The stage on real Ray Data, Postgres and model: live answers, cache, budget, imports, quarantine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rec import artifact, dataset
from rec.config import Config
from rec.enrich import stage
from rec.schema import ENRICHED
from tests.enrich.conftest import COATS, write_products

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


def rows(config: Config) -> dict[str, dict[str, Any]]:
    return {row["product_id"]: row for row in dataset.read(config.at("enriched"), ENRICHED).to_pylist()}


def calls(url: str) -> list[str]:
    """Keys of all live calls that the ledger knows, in order."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT key FROM llm_calls ORDER BY called_at")]


def test_live_answers_are_paid_once(coats: Callable[..., Config], fresh: str) -> None:
    config = coats("enrich.max_calls=2")
    first = stage.run(config)
    assert (first["live_calls"], first["cached"], first["over_budget"]) == (2, 0, 3)
    assert first["live_tokens_out"] > 0
    assert len(set(calls(fresh))) == 2

    made = rows(config)
    assert list(made) == [row["product_id"] for row in COATS]
    asked = made["A1"]
    assert asked["model"] == "gemma3-270m"
    assert asked["tokens_in"] > 100
    assert asked["status"] in ("ok", "partial")
    assert any(a["source"] == "llm" for a in asked["re"])
    assert {a["value"] for a in asked["std"] if a["key"] == "colour"} == {"red"}
    for attribute in asked["re"]:
        assert attribute["evidence"]
    assert made["A6"]["model"] is None
    assert made["A6"]["re"], "rules alone give RE values"

    assert stage.run(config)["skipped"]
    again = stage.run(coats("enrich.max_calls=2", "enrich.max_text_chars=1199"))
    assert (again["live_calls"], again["cached"]) == (0, 2), "a change that leaves texts alone asks nothing"
    assert rows(config) == made
    raised = stage.run(coats("enrich.max_calls=3"))
    assert (raised["live_calls"], raised["cached"], raised["over_budget"]) == (1, 2, 1)
    assert rows(config)["A4"]["model"] == rows(config)["A5"]["model"] == "gemma3-270m", "the same text is asked once"
    assert len(calls(fresh)) == len(set(calls(fresh))) == 3


def test_hostile_products_keep_what_the_shop_gave_and_are_never_asked(coats: Callable[..., Config], fresh: str) -> None:
    config = coats("enrich.max_calls=0")
    facts = stage.run(config)
    assert facts["status"]["quarantined"] == 1
    hostile = rows(config)["A3"]
    assert hostile["status"] == "quarantined"
    assert "Ignore all previous instructions" in hostile["reason"]
    assert [(a["key"], a["value"], a["source"]) for a in hostile["std"]] == [("colour", "blue", "given")]
    assert hostile["re"] == []
    assert calls(fresh) == []


def test_a_product_without_text_is_kept_and_never_asked(coats: Callable[..., Config], fresh: str) -> None:
    config = coats("enrich.max_calls=9")
    blank = {"product_id": "N1", "title": "\u200b", "description": " ", "html": "<p> </p><script>x</script>"}
    write_products(config, [blank])
    facts = stage.run(config)
    assert (facts["live_calls"], facts["over_budget"], facts["status"]) == (0, 0, {"partial": 1})
    made = rows(config)["N1"]
    assert (made["reason"], made["std"], made["re"], made["model"]) == ("the product has no text", [], [], None)


def test_what_the_vocabulary_lacks_is_counted_and_kept(coats: Callable[..., Config], fresh: str) -> None:
    config = coats("enrich.max_calls=0")
    stage.run(config)
    facts = dataset.read_manifest(config.at("enriched"), ENRICHED).facts
    assert {"key": "colour", "value": "Orenge-ish plaid", "count": 1} in facts["unmapped"]
    assert facts["unknown_keys"] == {"flavour": 1}
    dress = rows(config)["A2"]
    assert ("colour", "Orenge-ish plaid", "given") in [(a["key"], a["value"], a["source"]) for a in dress["re"]]
    assert ("colour", "unknown") in [(a["key"], a["value"]) for a in dress["std"]]


def test_imported_answers_are_grounded_preferred_and_imported_once(
    coats: Callable[..., Config], fresh: str, tmp_path: Path
) -> None:
    lines = [
        {"product_id": "A1", "model": "other", "re": {"detail": ["detachable hood", "gold buttons"]}},
        {"product_id": "A4", "model": "other", "re": {"detail": ["Pearl  Buttons"], "nonsense": ["cotton"]}},
        {"product_id": "gone", "model": "other", "re": {}},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    config = coats("enrich.max_calls=0", f'enrich.answers=["{path}"]')
    assert stage.run(config)["cached"] == 3
    made = rows(config)
    assert made["A1"]["model"] == made["A4"]["model"] == made["A5"]["model"] == "other"
    assert made["A1"]["prompt_version"].startswith("imported-")
    assert made["A1"]["status"] == made["A4"]["status"] == "partial"
    values = {(a["key"], a["value"], a["evidence"]) for a in made["A1"]["re"]}
    assert ("detail", "detachable hood", "detachable hood") in values
    assert not any("gold" in value for _, value, _ in values)
    assert ("nonsense") not in {a["key"] for a in made["A4"]["re"]}
    with psycopg.connect(fresh) as connection:
        before = connection.execute("SELECT key, body FROM llm_answers ORDER BY key").fetchall()
    first = artifact.peek(config.at("enriched"))
    stage.run(coats("enrich.max_calls=0", f'enrich.answers=["{path}"]', "enrich.max_output_tokens=99"))
    with psycopg.connect(fresh) as connection:
        assert connection.execute("SELECT key, body FROM llm_answers ORDER BY key").fetchall() == before
    second = artifact.peek(config.at("enriched"))
    assert first is not None
    assert second is not None
    assert first.content_hash == second.content_hash

    lines[0]["re"] = {"detail": ["winter walk"]}
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    stage.run(coats("enrich.max_calls=0", f'enrich.answers=["{path}"]'))
    assert "winter walk" in {a["value"] for a in rows(config)["A1"]["re"]}, "a corrected file replaces the earlier one"


def test_a_text_with_an_imported_answer_is_not_paid_for(
    coats: Callable[..., Config], fresh: str, tmp_path: Path
) -> None:
    answered = [{"product_id": id, "model": "other", "re": {}} for id in ("A1", "A2", "A5", "A6")]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in answered), encoding="utf-8")
    facts = stage.run(coats(f'enrich.answers=["{path}"]'))
    assert (facts["live_calls"], facts["cached"], facts["over_budget"]) == (0, 5, 0), "A4 has the text of A5"
    assert calls(fresh) == []


def test_products_of_one_text_share_the_first_answer_to_it(
    coats: Callable[..., Config], fresh: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"A4": ["pearl buttons"], "A5": ["Crisp cotton shirt"]}
    path = tmp_path / "answers.jsonl"
    path.write_text(
        "\n".join(json.dumps({"product_id": id, "model": "other", "re": {"detail": re}}) for id, re in said.items()),
        encoding="utf-8",
    )
    stage.run(coats("enrich.max_calls=0", f'enrich.answers=["{path}"]'))
    made = rows(coats())
    assert made["A4"]["re"] == made["A5"]["re"]
    assert "1 answers are left out: an earlier one to the same text differs" in caplog.text


@pytest.mark.long
def test_a_cut_answer_is_asked_again_when_the_budget_is_raised(coats: Callable[..., Config], fresh: str) -> None:
    cut = stage.run(coats("enrich.max_calls=1", "enrich.max_output_tokens=16"))
    assert (cut["live_calls"], cut["status"]["invalid"]) == (1, 1)
    again = stage.run(coats("enrich.max_calls=1", "enrich.max_output_tokens=16", "enrich.max_text_chars=1199"))
    assert (again["live_calls"], again["cached"]) == (0, 1), "the same budget gives the same answer"
    raised = stage.run(coats("enrich.max_calls=1"))
    assert (raised["live_calls"], raised["cached"]) == (1, 0)
    assert "invalid" not in raised["status"]
    assert rows(coats())["A1"]["tokens_out"] > 16
    assert len(calls(fresh)) == 2
    lowered = stage.run(coats("enrich.max_calls=1", "enrich.max_output_tokens=16", "enrich.max_text_chars=1198"))
    assert (lowered["live_calls"], lowered["cached"]) == (0, 1), "a whole answer stays whole"


def test_a_failed_call_is_counted_and_made_again(coats: Callable[..., Config], fresh: str) -> None:
    config = coats("enrich.max_text_chars=100000")
    endless = {**COATS[0], "product_id": "B1", "description": "warm wool " * 2_000}
    write_products(config, [endless])
    for _ in range(2):
        facts = stage.run(config)
        assert (facts["live_calls"], facts["failed_calls"], facts["cached"]) == (0, 1, 0)
        assert facts["status"] == {"refused": 1}
        made = rows(config)["B1"]
        assert made["model"] is None
        assert "refused a prompt of" in made["reason"]
        assert sorted(a["value"] for a in made["std"] if a["source"] == "given") == ["red", "women"]
    with psycopg.connect(fresh) as connection:
        assert connection.execute("SELECT count(*) FROM llm_answers").fetchone() == (0,)
