"""Features: one request alone equals the same request in a batch, and each says what it is named for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.config import Config
from rec.errors import ArtifactError
from rec.features import items as item_features
from rec.features import spec
from rec.features.compute import RankInputs, compute_batch
from rec.features.items import ItemFeatures
from rec.features.popularity import PastPopularity
from rec.features.spec import Spec
from rec.retrieval import ANN, COOCCURRENCE, ITEM, POPULAR, Candidates
from rec.state import UserState, cold_state
from rec.vocab.std import StdVocabulary
from tests.ranker.features import compute

DAY_US = 86_400 * 1_000_000


def _batch(items: ItemFeatures, requests: list[Any]) -> RankInputs:
    now = np.array([request.now_us for request in requests], np.int64)
    return compute_batch(items, [r.state for r in requests], [r.candidates for r in requests], now, None)


def _dense(items: ItemFeatures, inputs: RankInputs, name: str) -> np.ndarray:
    return inputs.dense[:, items.spec.dense.index(name)]


def _sparse(items: ItemFeatures, inputs: RankInputs, name: str) -> np.ndarray:
    return inputs.sparse[:, [field.name for field in items.spec.sparse].index(name)]


def _state(items: list[int], profile: list[float] | None = None, num_profile: int = 2) -> UserState:
    count = len(items)
    return UserState(
        items=np.array(items, np.int64),
        events=np.full(count, 3, np.int64),
        ages_s=np.arange(count, 0, -1, dtype=np.float32) * 86_400,
        context="",
        profile=np.array(profile if profile is not None else [np.nan] * num_profile, np.float32),
    )


def _candidates(rows: list[int]) -> Candidates:
    scores = np.linspace(0.9, 0.1, len(rows)).astype(np.float32)
    return Candidates(np.array(rows, np.int64), scores, np.ones(len(rows), np.int64), np.zeros(len(rows), np.float32))


def test_one_request_gives_the_numbers_it_gives_in_a_batch(shop_items: ItemFeatures, shop_requests: list[Any]) -> None:
    together = _batch(shop_items, shop_requests)
    start = 0
    for request in shop_requests:
        alone = compute(shop_items, request.state, request.candidates, request.now_us)
        part = slice(start, start + len(request.candidates.rows))
        np.testing.assert_array_equal(together.sparse[part], alone.sparse)
        np.testing.assert_array_equal(together.varlen[part], alone.varlen)
        np.testing.assert_array_equal(together.dense[part], alone.dense)
        start = part.stop
    assert start == len(together.dense)


@pytest.mark.parametrize("count", [1, 3, 7, 13, 19])
def test_a_shorter_list_in_a_batch_keeps_its_numbers(
    shop_items: ItemFeatures, shop_requests: list[Any], count: int
) -> None:
    long, other = shop_requests[12], shop_requests[6]
    cut = Candidates(*(getattr(other.candidates, f.name)[:count] for f in dataclasses.fields(Candidates)))
    short = dataclasses.replace(other, candidates=cut)
    together = _batch(shop_items, [long, short])
    alone = compute(shop_items, short.state, short.candidates, short.now_us)
    np.testing.assert_array_equal(together.sparse[-count:], alone.sparse)
    np.testing.assert_array_equal(together.dense[-count:], alone.dense)


def test_shapes_types_and_finite_numbers(shop_items: ItemFeatures, shop_requests: list[Any]) -> None:
    inputs = _batch(shop_items, shop_requests)
    spec, rows = shop_items.spec, 20 * len(shop_requests)
    assert (inputs.sparse.shape, inputs.sparse.dtype) == ((rows, len(spec.sparse)), np.int64)
    assert (inputs.varlen.shape, inputs.varlen.dtype) == ((rows, sum(f.length for f in spec.varlen)), np.int64)
    assert (inputs.dense.shape, inputs.dense.dtype) == ((rows, len(spec.dense)), np.float32)
    assert np.isfinite(inputs.dense).all()
    for column, field in enumerate(spec.sparse):
        assert 0 <= inputs.sparse[:, column].min() <= inputs.sparse[:, column].max() < spec.tables[field.table]


def test_shares_count_the_history(shop_items: ItemFeatures, vocabulary: StdVocabulary) -> None:
    # colours 0, 0, 1 in the history; the newest is of colour 1
    inputs = compute(shop_items, _state([0, 6, 1]), _candidates([12, 7, 2, 6]), 0)
    np.testing.assert_allclose(_dense(shop_items, inputs, "share_colour"), [2 / 3, 1 / 3, 0, 2 / 3], rtol=1e-6)
    assert _dense(shop_items, inputs, "last_colour").tolist() == [0, 1, 0, 0]
    assert _dense(shop_items, inputs, "seen").tolist() == [0, 0, 0, 1]
    assert _dense(shop_items, inputs, "share_sleeve").tolist() == [0] * 4  # nobody's sleeve is known
    first = vocabulary.id_of("colour", vocabulary.values("colour")[0])
    assert _sparse(shop_items, inputs, "user_colour")[0] == first


def test_cosines_are_those_of_the_item_vectors(shop_items: ItemFeatures) -> None:
    inputs = compute(shop_items, _state([3, 8]), _candidates([8, 20]), 0)
    expected = shop_items.vectors[[8, 20]] @ shop_items.vectors[[3, 8]].T
    np.testing.assert_allclose(_dense(shop_items, inputs, "cosine_max"), expected.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(_dense(shop_items, inputs, "cosine_mean"), expected.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(_dense(shop_items, inputs, "cosine_last"), expected[:, 1], atol=1e-6)


def test_shared_re_tokens_are_the_cosine_of_the_bags(shop_items: ItemFeatures) -> None:
    rows, past = [5, 11, 6], [5, 17]
    inputs = compute(shop_items, _state(past), _candidates(rows), 0)
    bags = np.zeros((len(shop_items.re), shop_items.spec.tables["re"]))
    np.put_along_axis(bags, shop_items.re.astype(np.int64), shop_items.re_weight, axis=1)
    expected = (bags[rows] @ bags[past].T).mean(axis=1)
    np.testing.assert_allclose(_dense(shop_items, inputs, "re_match"), expected, atol=1e-6)
    assert expected[0] > 0.5  # its own bag is half of the history
    assert _dense(shop_items, inputs, "re_match")[2] == 0  # row 6 has no tokens


def test_sources_and_the_score_of_co_occurrence_are_features(shop_items: ItemFeatures) -> None:
    several, together = np.array([ANN | COOCCURRENCE, ITEM], np.int64), np.array([0.4, 0], np.float32)
    found = dataclasses.replace(_candidates([5, 11]), sources=several, cooccurrence=together)
    inputs = compute(shop_items, _state([3]), found, 0)
    assert _sparse(shop_items, inputs, "source").tolist() == several.tolist()
    assert shop_items.spec.tables["source"] > ANN | ITEM | COOCCURRENCE | POPULAR
    np.testing.assert_array_equal(_dense(shop_items, inputs, "cooccurrence"), together)


def test_a_cold_user_has_no_cross_features(shop_items: ItemFeatures) -> None:
    inputs = compute(shop_items, cold_state(2), _candidates([4, 9, 30]), 0)
    for name in ("share_colour", "cosine_max", "cosine_last", "re_match", "price_gap", "seen", "history_length"):
        assert not _dense(shop_items, inputs, name).any(), name
    assert _dense(shop_items, inputs, "profile_height_cm_missing").tolist() == [1, 1, 1]


def test_height_is_compared_with_the_garment(shop_items: ItemFeatures) -> None:
    mean, std = float(shop_items.profile_mean[0]), float(shop_items.profile_std[0])
    inputs = compute(shop_items, _state([], [mean + 2 * std, np.nan]), _candidates([1, 2]), 0)
    measure = shop_items.measures[1, 0]
    assert shop_items.profile_names[0] == "height_cm"
    assert _dense(shop_items, inputs, "profile_height_cm")[0] == pytest.approx(2, abs=1e-4)
    assert _dense(shop_items, inputs, "height_cm_to_inseam")[0] == pytest.approx(measure - 2, abs=1e-4)
    assert _dense(shop_items, inputs, "height_cm_to_inseam_distance")[0] == pytest.approx(abs(measure - 2), abs=1e-4)
    assert _dense(shop_items, inputs, "measure_inseam_missing").tolist() == [0, 1]


def test_age_is_taken_at_the_time_of_the_request(shop_items: ItemFeatures) -> None:
    created = int(shop_items.created_us[1])
    late = compute(shop_items, _state([2]), _candidates([1, 4]), created + 9 * DAY_US)
    early = compute(shop_items, _state([2]), _candidates([1, 4]), created - DAY_US)
    assert _dense(shop_items, late, "log_age")[0] == pytest.approx(np.log(10))
    assert _dense(shop_items, early, "log_age")[0] == 0
    assert _dense(shop_items, late, "age_missing").tolist() == [0, 1]


@given(seed=st.integers(0, 10_000))
def test_past_popularity_counts_earlier_events_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items, at = rng.integers(0, 5, 30), rng.integers(0, 9, 30)  # many events of one moment
    past = PastPopularity(items, at, 6)
    rows, now = rng.integers(0, 6, (4, 3)), rng.integers(-1, 11, (4, 1))
    slow = [[int(((items == row) & (at < when[0])).sum()) for row in of] for of, when in zip(rows, now, strict=True)]
    assert past.before(rows, now).tolist() == slow


def test_popularity_is_that_of_the_requests_time_and_of_all_events_today(shop_items: ItemFeatures) -> None:
    items, at = np.repeat(np.arange(90), np.arange(90)), np.arange(90 * 89 // 2) * DAY_US
    past = PastPopularity(items, at, 90)
    when = int(at[items == 7][2])  # two of the seven events on item 7 were before, none on item 8
    then = compute(shop_items, _state([2]), _candidates([7, 8, 3]), when, past)
    np.testing.assert_allclose(_dense(shop_items, then, "log_popularity"), np.log1p([2, 0, 3]), rtol=1e-6)
    today = [compute(shop_items, _state([2]), _candidates([7, 8, 3]), int(at[-1]) + 1, p) for p in (past, None)]
    np.testing.assert_array_equal(today[0].dense, today[1].dense)


def test_only_the_last_events_are_read(shop_items: ItemFeatures) -> None:
    candidates = _candidates([1, 2, 3])
    full = compute(shop_items, _state([40, 41, *range(10, 18)]), candidates, 0)
    cut = compute(shop_items, _state(list(range(10, 18))), candidates, 0)
    np.testing.assert_array_equal(full.dense, cut.dense)


def test_measurements_are_z_scores_within_the_category(shop_items: ItemFeatures) -> None:
    inseam = shop_items.measures[:, 0]
    for first in range(0, 90, 30):
        values = inseam[first : first + 30]
        assert np.isnan(values[::2]).all()
        assert np.nanmean(values) == pytest.approx(0, abs=1e-5)
        assert np.nanstd(values) == pytest.approx(1, abs=1e-5)


def test_saved_features_come_back(shop_items: ItemFeatures, shop_requests: list[Any], tmp_path: Path) -> None:
    shop_items.save(tmp_path)
    loaded = item_features.load(tmp_path, shop_items.vectors)
    assert loaded.spec == shop_items.spec
    before, after = _batch(shop_items, shop_requests), _batch(loaded, shop_requests)
    np.testing.assert_array_equal(before.sparse, after.sparse)
    np.testing.assert_array_equal(before.dense, after.dense)
    with pytest.raises(ValueError, match="5 item vectors for the features of 90 items"):
        item_features.load(tmp_path, shop_items.vectors[:5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"log_price"', '"margin"', r"only the first has the fields margin \(first: saved"),
        ('"seen_count",', "", r"only the second has the fields seen_count"),
    ],
)
def test_saved_features_that_this_program_does_not_compute_are_refused(
    shop_items: ItemFeatures, tmp_path: Path, old: str, new: str, message: str
) -> None:
    shop_items.save(tmp_path)
    file = tmp_path / "features.json"
    text = json.dumps(json.loads(file.read_text(encoding="utf-8")))
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        item_features.load(tmp_path, shop_items.vectors)


def test_features_without_the_profile_are_those_of_a_recipe_without_it(
    shop: Config, shop_items: ItemFeatures, vocabulary: StdVocabulary, tmp_path: Path
) -> None:
    lean = spec.build(
        std_keys=shop_items.keys,
        std_rows=vocabulary.num_ids,
        re_rows=shop_items.spec.tables["re"],
        brand_rows=shop_items.spec.tables["brand"],
        re_length=4,
        profile=(),
        measurements=shop_items.measurements,
    )
    dataclasses.replace(shop_items, spec=lean).save(tmp_path)
    assert item_features.load(tmp_path, shop_items.vectors).spec == lean
    assert lean.difference(shop_items.spec)


def test_no_candidates_are_no_rows(shop_items: ItemFeatures) -> None:
    for state in (_state([3, 8]), cold_state(len(shop_items.profile_names))):
        inputs = compute(shop_items, state, _candidates([]), 0)
        widths = len(shop_items.spec.sparse), shop_items.re.shape[1], len(shop_items.spec.dense)
        assert (inputs.sparse.shape, inputs.varlen.shape, inputs.dense.shape) == tuple((0, width) for width in widths)


def test_what_an_item_does_not_say_is_its_keys_unknown_id(shop_items: ItemFeatures, vocabulary: StdVocabulary) -> None:
    """In the item's field and, when the whole history says nothing, in the user's."""
    inputs = compute(shop_items, _state([0, 1]), _candidates([5, 7]), 0)
    for key in vocabulary.keys:
        known = key in ("category", "colour")
        ids = _sparse(shop_items, inputs, f"item_{key}")
        assert ((ids == vocabulary.unknown_id(key)) != known).all(), key
        if f"user_{key}" in shop_items.spec.names and not known:
            assert (_sparse(shop_items, inputs, f"user_{key}") == vocabulary.unknown_id(key)).all()


def test_spec_survives_json(shop_items: ItemFeatures) -> None:
    again = Spec.from_json(json.loads(json.dumps(shop_items.spec.to_json(), sort_keys=True)))
    assert again == shop_items.spec
    assert list(again.tables) == list(shop_items.spec.tables)
    names = [
        *(f.name for f in shop_items.spec.sparse),
        *(f.name for f in shop_items.spec.varlen),
        *shop_items.spec.dense,
    ]
    assert len(set(names)) == len(names)
