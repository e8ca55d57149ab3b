"""The RE vocabulary and its counts: ids that stay, whatever the order and the partition of the rows."""

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.errors import ArtifactError
from rec.schema import ENRICHED
from rec.vocab import drift
from rec.vocab.counting import Files, count
from rec.vocab.re import UNKNOWN_ID, ReVocabulary, split_words

KEYS = ["fibre", "vibe"]
COUNTS = st.dictionaries(st.text("abcde", min_size=1, max_size=3), st.integers(1, 9), max_size=20)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Soft, AIRY weave!", ["soft", "airy", "weave"]),
        ("heel 8.5 cm, 3/4-length", ["heel", "8.5", "cm", "3/4", "length"]),
        ("Men’s V-neck", ["men's", "v", "neck"]),
        ("부드러운  촉감의 니트", ["부드러운", "촉감의", "니트"]),
        ("１００％ Ｗｏｏｌ", ["100", "wool"]),
        (" – ", []),
    ],
)
def test_values_split_into_word_tokens(text: str, tokens: list[str]) -> None:
    assert split_words(text) == tokens


@given(st.text())
def test_splitting_the_tokens_again_changes_nothing(text: str) -> None:
    tokens = split_words(text)
    assert split_words(" ".join(tokens)) == tokens


@given(st.lists(COUNTS, min_size=1, max_size=4), st.integers(1, 4))
def test_ids_never_change_as_the_vocabulary_grows(runs: list[dict[str, int]], min_count: int) -> None:
    vocabulary = ReVocabulary(KEYS, [])
    for counts in runs:
        grown = vocabulary.grow(counts, min_count, KEYS)
        assert all(grown.token_id(token) == vocabulary.token_id(token) for token in vocabulary.tokens)
        wanted = {token for token, n in counts.items() if n >= min_count}
        assert set(grown.tokens) == set(vocabulary.tokens) | wanted
        assert sorted(map(grown.token_id, grown.tokens)) == list(range(2, grown.num_tokens))
        vocabulary = grown


@given(COUNTS, st.randoms(use_true_random=False))
def test_ids_do_not_depend_on_the_order_of_counting(counts: dict[str, int], order: random.Random) -> None:
    shuffled = list(counts.items())
    order.shuffle(shuffled)
    grown = ReVocabulary([], []).grow(counts, 1, KEYS)
    assert grown.tokens == ReVocabulary([], []).grow(dict(shuffled), 1, KEYS).tokens
    assert [counts[token] for token in grown.tokens] == sorted(counts.values(), reverse=True)


def test_a_value_is_pairs_of_key_and_token() -> None:
    vocabulary = ReVocabulary(KEYS, ["soft", "wool"])
    assert vocabulary.ids("fibre", "Soft WOOL touch") == [(1, 2), (1, 3), (1, UNKNOWN_ID)]
    assert vocabulary.ids("vibe", "soft") == [(2, 2)]
    assert 0 not in {id for _, id in vocabulary.ids("fibre", "soft wool unheard")}, "0 is padding"
    with pytest.raises(KeyError):
        vocabulary.ids("smell", "fresh")


def test_new_keys_are_appended_and_others_are_refused() -> None:
    vocabulary = ReVocabulary(KEYS, ["soft"])
    assert vocabulary.grow({}, 1, [*KEYS, "smell"]).ids("smell", "soft") == [(3, 2)]
    with pytest.raises(ArtifactError, match="ids of keys may not change"):
        vocabulary.grow({}, 1, ["vibe", "fibre"])


def test_saving_and_loading_keeps_ids(tmp_path: Path) -> None:
    vocabulary = ReVocabulary(KEYS, ["wool", "부드러운"])
    vocabulary.save(tmp_path / "re.json")
    loaded = ReVocabulary.load(tmp_path / "re.json")
    assert (loaded.keys, loaded.tokens, loaded.num_tokens) == (vocabulary.keys, vocabulary.tokens, 4)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"keys": ["a"]}', '{"keys": ["a"], "tokens": ["x", "x"]}'])
def test_a_damaged_file_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "re.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"re\.json is no RE vocabulary"):
        ReVocabulary.load(path)


ATTRIBUTE = st.tuples(st.sampled_from(KEYS), st.sampled_from(["wool", "soft wool", "Soft", "unknown", "wool, wool"]))
PRODUCTS = st.lists(st.tuples(st.lists(ATTRIBUTE, max_size=3), st.lists(ATTRIBUTE, max_size=3)), min_size=1, max_size=8)


def _files(folder: Path, products: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]], group: int) -> Files:
    def rows(pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
        return [{"key": key, "value": value, "source": "given", "evidence": ""} for key, value in pairs]

    schema = pa.schema([ENRICHED.schema.field(name) for name in ("product_id", "std", "re")])
    made = [
        {"product_id": str(i), "std": rows(standard), "re": rows(open_)} for i, (standard, open_) in enumerate(products)
    ]
    path = folder / f"{group}.parquet"
    pq.write_table(pa.Table.from_pylist(made, schema=schema), path, row_group_size=group)
    return Files(str(path), "")


@settings(max_examples=30)
@given(PRODUCTS, st.integers(1, 8), st.randoms(use_true_random=False))
def test_counts_do_not_depend_on_partition_or_order(
    tmp_path_factory: pytest.TempPathFactory,
    products: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]],
    group: int,
    order: random.Random,
) -> None:
    whole, parts = drift.Counts(), drift.Counts()
    folder = tmp_path_factory.mktemp("counts")
    whole.add(count(pa.table({"id": [0]}), _files(folder, products, 100)))
    numbers = list(range(-(-len(products) // group)))
    order.shuffle(numbers)
    for number in numbers:
        parts.add(count(pa.table({"id": [number]}), _files(folder, products, group)))
    assert parts == whole
    assert whole.products == len(products)
    assert whole.tokens == Counter(
        token for _, pairs in products for token in {t for _, value in pairs for t in split_words(value)}
    )


def test_the_drift_report_counts_products_and_pairs() -> None:
    counts = drift.Counts(
        products=4,
        std=Counter({("fibre", "wool"): 1, ("fibre", "unknown"): 1}),
        re=Counter({("vibe", "soft"): 3, ("vibe", "gorp"): 1}),
        tokens=Counter({"soft": 3, "gorp": 1}),
        std_keys=Counter({"fibre": 2}),
    )
    previous = ReVocabulary(KEYS, ["velvety"])
    grown = previous.grow(counts.tokens, 2, KEYS)
    report = drift.report(counts, KEYS, grown, previous)
    assert report["std"] == {
        "fibre": {"coverage": 0.5, "unknown": 0.5},
        "vibe": {"coverage": 0.0, "unknown": 0.0},
    }
    assert report["re"]["vibe"] == {"pairs": 4, "unknown": 0.25}
    assert report["new_tokens"] == {"count": 1, "first": ["soft"]}
    assert report["dead_tokens"] == {"count": 1, "first": ["velvety"], "share": 1.0}
    assert report["rare_tokens"] == {"count": 1, "most_frequent": ["gorp"]}
    assert json.loads(json.dumps(report)) == report
