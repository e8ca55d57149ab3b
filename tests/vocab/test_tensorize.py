"""The stage on a small catalogue: what comes out, what stays equal, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec import artifact, dataset
from rec.config import Config, load
from rec.errors import ArtifactError, DriftError
from rec.models import text_encoder
from rec.schema import TENSORS
from rec.vocab import groups, tensorize
from rec.vocab.re import ReVocabulary
from rec.vocab.rows import re_ids, std_ids
from rec.vocab.std import StdVocabulary
from tests.vocab.names import names
from tests.vocab.products import Product, write

CATALOGUE: list[Product] = [
    ("p1", "Wool coat", None, [("category", "coat"), ("fibre", "wool")], [("fibre", "soft merino wool")]),
    ("p2", "Wool coat", None, [("fibre", "wool"), ("category", "coat")], [("fibre", "Soft merino, wool")]),
    ("p3", "Tee S", "g1", [("category", "t-shirt"), ("colour", "unknown")], [("vibe", "soft")]),
    ("p4", "Tee M", "g1", [("colour", "unknown"), ("colour", "red")], []),
    ("p5", "양말", None, [], [("detail", "포근한 soft 양말")]),
    ("p6", "Wool coat", "g1", [("category", "coat"), ("fibre", "wool")], [("fibre", "soft merino wool")]),
]


def _config(store: Path, *overrides: str) -> Config:
    return load("demo", [f"store={store}", "vocab.min_count=2", *overrides])


def _rows(config: Config) -> list[dict[str, Any]]:
    return dataset.read(config.at("tensors"), TENSORS).to_pylist()


def _hashes(config: Config) -> list[str]:
    return [artifact.hash_folder(config.at(name)) for name in ("vocabulary", "tensors")]


def test_std_ids_are_ordered_by_key_and_unknown_gives_way() -> None:
    vocabulary = StdVocabulary.load()
    ids = std_ids([("colour", "unknown"), ("colour", "red"), ("category", "coat"), ("colour", "red")], vocabulary)
    assert [names(vocabulary)[id] for _, id in ids] == [("category", "coat"), ("colour", "red")]
    assert [key for key, _ in ids] == [vocabulary.key_id("category"), vocabulary.key_id("colour")]
    assert std_ids([("colour", "unknown")], vocabulary) == [
        (vocabulary.key_id("colour"), vocabulary.unknown_id("colour"))
    ]


def test_re_ids_are_each_pair_once() -> None:
    vocabulary = ReVocabulary(["fibre", "vibe"], ["soft"])
    assert re_ids([("vibe", "soft soft rare"), ("fibre", "soft"), ("vibe", "odd")], vocabulary) == [
        (2, 2),
        (2, 1),
        (1, 2),
    ]


def test_content_is_what_the_tower_sees_order_aside() -> None:
    base = groups.content_key("Wool coat", [("fibre", "wool")], [("vibe", "soft")])
    assert groups.content_key("wool  COAT!", [("fibre", "wool")] * 2, [("vibe", "Soft")]) == base
    assert groups.content_key("Wool coat", [("fibre", "wool")], [("fibre", "soft")]) != base


KEYS = st.lists(st.tuples(st.none() | st.sampled_from("GHI"), st.sampled_from("abcdefgh")), max_size=12)


@given(keys=KEYS, cut=st.integers(0, 12))
def test_products_are_of_one_group_when_a_chain_of_equal_keys_joins_them(
    keys: list[tuple[str | None, str]], cut: int
) -> None:
    tables = [
        pa.table({"shop": pa.array([s for s, _ in part], pa.string()), "content": pa.array([c for _, c in part])})
        for part in (keys[:cut], keys[cut:])
        if part
    ]
    made = groups.number(tables).tolist()
    joined = list(range(len(keys)))  # each product takes the least number that it can reach
    for _ in keys:
        for i, (shop, content) in enumerate(keys):
            near = [j for j, (s, c) in enumerate(keys) if c == content or (shop is not None and s == shop)]
            joined[i] = min(joined[j] for j in near)
    first = {number: order for order, number in enumerate(dict.fromkeys(joined))}
    assert made == [first[number] for number in joined]


@pytest.fixture(scope="module")
def made(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose catalogue lies in three row groups and is tensorized; tests work on copies."""
    store = tmp_path_factory.mktemp("tensorized")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "ROWS_PER_GROUP", 2)
        write(_config(store), CATALOGUE)
        tensorize.run(_config(store))
    return store


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the store `made`."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.slow
def test_ids_groups_and_tokens(made: Path) -> None:
    config = _config(made)
    rows = _rows(config)
    standard = StdVocabulary.load(config.at("vocabulary") / "std.toml")
    open_ = ReVocabulary.load(config.at("vocabulary") / "re.json")
    assert [row["product_id"] for row in rows] == ["p1", "p2", "p3", "p4", "p5", "p6"]
    assert [row["group"] for row in rows] == [0, 0, 0, 0, 1, 0], "p6 is of the style of p3 and looks as p1"
    assert open_.tokens == ["soft", "merino", "wool"]
    assert [names(standard)[id] for id in rows[0]["std_id"]] == [("category", "coat"), ("fibre", "wool")]
    assert rows[0]["std_id"] == rows[1]["std_id"]
    assert [names(standard)[id][1] for id in rows[2]["std_id"]] == ["t-shirt", "unknown"]
    assert [names(standard)[id][1] for id in rows[3]["std_id"]] == ["red"]
    assert rows[4]["std_id"] == rows[4]["std_key"] == []
    assert rows[4]["re_id"] == [1, 2]
    assert rows[4]["re_key"] == [standard.key_id("detail")] * 2
    titles = [title for _, title, _, _, _ in CATALOGUE]
    assert [row["title_id"] for row in rows] == text_encoder.load(config.text).tokenize(titles, config.text.max_tokens)


@pytest.mark.slow
def test_done_work_is_skipped_and_lost_work_comes_back_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "ROWS_PER_GROUP", 2)
    config = _config(copy)
    before = _hashes(config)
    assert tensorize.run(config)["skipped"] is True
    shutil.rmtree(config.at("tensors"))
    facts = tensorize.run(config)
    assert "skipped" not in facts
    assert (facts["rows"], facts["groups"], facts["re_tokens"]) == (6, 2, 5)
    assert _hashes(config) == before


@pytest.mark.slow
def test_row_groups_change_nothing_and_options_only_their_columns(made: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, 'text.fields=["title", "description"]', "vocab.max_re_tokens=2")
    write(config, CATALOGUE)
    facts = tensorize.run(config)
    assert facts["re_tokens_cut"] == 3
    before = _config(made)
    assert artifact.hash_folder(config.at("vocabulary")) == artifact.hash_folder(before.at("vocabulary"))
    said = [f"{title}. {title} described" for _, title, _, _, _ in CATALOGUE]
    titles = text_encoder.load(config.text).tokenize(said, config.text.max_tokens)
    for row, whole, title in zip(_rows(config), _rows(before), titles, strict=True):
        cut = {"re_key": whole["re_key"][:2], "re_id": whole["re_id"][:2]}
        assert row == {**whole, **cut, "title_id": title}


@pytest.mark.slow
def test_a_vocabulary_is_extended_and_drift_is_reported(copy: Path, tmp_path: Path) -> None:
    config = _config(copy)
    old = ReVocabulary.load(config.at("vocabulary") / "re.json")
    write(config, [(f"q{i}", "Cape", None, [], [("vibe", "aaa aab soft")]) for i in range(9)])
    facts = tensorize.run(config)
    grown = ReVocabulary.load(config.at("vocabulary") / "re.json")
    drifted = json.loads((config.at("vocabulary") / "drift.json").read_text(encoding="utf-8"))
    assert grown.tokens == [*old.tokens, "aaa", "aab"]
    assert drifted["new_tokens"] == {"count": 2, "first": ["aaa", "aab"]}
    assert drifted["dead_tokens"] == {"count": 2, "first": ["merino", "wool"], "share": 0.666667}
    assert facts["new_tokens"] == 2
    before = _hashes(config)
    assert tensorize.run(config)["skipped"] is True
    assert _hashes(config) == before

    other = _config(tmp_path / "other", f"vocab.extend={config.at('vocabulary')}")
    write(other, CATALOGUE)
    tensorize.run(other)
    assert ReVocabulary.load(other.at("vocabulary") / "re.json").tokens == grown.tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (
            "vocab.max_unknown=0.4",
            r"50\.00% of the products with a colour have one that the vocabulary lacks, .* 40\.00%",
        ),
        ("vocab.max_dead=0.6", r"66\.67% of the earlier RE tokens \(2, as \['merino', 'wool'\]\) .* 60\.00%"),
    ],
)
def test_too_much_drift_fails_and_publishes_nothing(copy: Path, limit: str, says: str) -> None:
    drifted: list[Product] = [
        ("q1", "Cape", None, [("colour", "unknown")], [("vibe", "soft")]),
        ("q2", "Cape", None, [("colour", "red")], []),
    ]
    write(_config(copy), drifted)
    before = _hashes(_config(copy))
    with pytest.raises(DriftError, match=says):
        tensorize.run(_config(copy, limit))
    assert _hashes(_config(copy)) == before
    tensorize.run(_config(copy, "vocab.max_unknown=0.5", "vocab.max_dead=0.7"))
    assert _hashes(_config(copy)) != before


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_an_empty_catalogue_gives_empty_tensors(tmp_path: Path) -> None:
    config = _config(tmp_path)
    write(config, [])
    assert tensorize.run(config)["rows"] == 0
    assert _rows(config) == []


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = _config(tmp_path)
    with pytest.raises(ArtifactError, match=r"jobs/ingest\.py"):
        tensorize.run(config)
    write(config, CATALOGUE, version="fashion-0")
    with pytest.raises(ArtifactError, match="enriched is of vocabulary 'fashion-0'"):
        tensorize.run(config)
    write(config, [("p1", "Coat", None, [("category", "spacesuit")], [])])
    with pytest.raises(ArtifactError, match="'spacesuit' under 'category'"):
        tensorize.run(config)
    write(config, [("p1", "Coat", None, [], [("smell", "fresh")])])
    with pytest.raises(ArtifactError, match="unknown key 'smell'"):
        tensorize.run(config)
    shutil.copytree(config.at("enriched"), tmp_path / "kept")
    write(config, CATALOGUE)
    shutil.rmtree(config.at("enriched"))
    shutil.move(tmp_path / "kept", config.at("enriched"))
    with pytest.raises(ArtifactError, match="does not hold the products"):
        tensorize.run(config)
    assert not config.at("vocabulary").exists()
    assert not config.at("tensors").exists()


@pytest.mark.slow
def test_the_job_prints_where_the_result_is(copy: Path, repository: Path) -> None:
    command = ["jobs/tensorize.py", "--recipe", "demo", "--set", f"store={copy}", "--set", "vocab.min_count=2"]
    done = subprocess.run([sys.executable, *command], cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["skipped"] is True
    assert result["tensors"] == str(_config(copy).at("tensors"))


def test_an_encoder_that_cannot_be_had_is_one_sentence(tmp_path: Path, repository: Path) -> None:
    write(_config(tmp_path), CATALOGUE)
    command = [sys.executable, "jobs/tensorize.py", "--set", f"store={tmp_path}", "--set", "text.encoder=foo/bar"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: text.encoder 'foo/bar' cannot be loaded")
    assert done.stderr.count("\n") == 1
