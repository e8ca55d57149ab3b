"""DeepFM and DLRM alike: the export is the same function, training starts at retrieval, bad input gives no score."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rec.errors import ArtifactError
from rec.features.compute import RankInputs
from rec.features.spec import SparseField, Spec
from rec.models import fused
from rec.train.listwise import listwise_loss
from tests.ranker import models
from tests.ranker.models import SPEC, at_start, inputs, logits, new, random, tensors

both = pytest.mark.parametrize("name", models.NAMES)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(models.NAMES),
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    most_folded=st.sampled_from([0, fused.MOST_FOLDED]),
)
def test_export_agrees_with_the_training_module(name: str, seed: int, rows: int, most_folded: int) -> None:
    model = random(name, seed)
    drawn = inputs(np.random.default_rng(seed), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "MOST_FOLDED", most_folded)
        np.testing.assert_allclose(model.export().score(drawn), logits(model, drawn), atol=1e-5, rtol=1e-5)


@both
@pytest.mark.parametrize("most_folded", [0, fused.MOST_FOLDED])
def test_a_request_is_one_lookup_in_one_table(name: str, most_folded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_FOLDED", most_folded)
    ranker, looked_up = random(name).export(), []

    def watched(lookup: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda ids, table, *given, **named: looked_up.append(table) or lookup(ids, table, *given, **named)

    monkeypatch.setattr(F, "embedding", watched(F.embedding))
    monkeypatch.setattr(F, "embedding_bag", watched(F.embedding_bag))
    ranker.score(inputs(np.random.default_rng(1), 100))
    folds = name == "deepfm" and most_folded > 0
    expected = ranker.folded.table if folds else ranker.table
    assert [table is expected for table in looked_up] == [True]


@both
def test_export_survives_saving(name: str, tmp_path: Path) -> None:
    ranker, drawn = random(name).export(), inputs(np.random.default_rng(0), 50)
    ranker.temperature.fill_(1.7)
    ranker.odds_bias.fill_(-0.2)
    ranker.save(tmp_path)
    again = fused.load(tmp_path, SPEC)
    scores = again.score(drawn)
    np.testing.assert_array_equal(scores, ranker.score(drawn))
    np.testing.assert_array_equal(again.probabilities(scores), ranker.probabilities(scores))
    assert (again.model, type(again)) == (name, type(ranker))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@both
def test_what_does_not_fit_is_refused_when_loaded(name: str, tmp_path: Path) -> None:
    random(name).export().save(tmp_path)
    text = (tmp_path / "ranker.json").read_text(encoding="utf-8")
    for old, new_text, message in (
        ('"embedding_dim": 4', '"embedding_dim": 5', "does not fit"),
        (f'"{name}"', '"dcn"', "holds a ranker 'dcn', this program knows deepfm, dlrm"),
    ):
        (tmp_path / "ranker.json").write_text(text.replace(old, new_text), encoding="utf-8")
        with pytest.raises(ArtifactError, match=message):
            fused.load(tmp_path)
    (tmp_path / "ranker.json").write_text(text, encoding="utf-8")
    for other, message in (
        (dataclasses.replace(SPEC, dense=(*SPEC.dense, "stock")), "only the second has the fields stock"),
        (dataclasses.replace(SPEC, dense=("score", "price")), "only the first has the fields age"),
        (dataclasses.replace(SPEC, tables={**SPEC.tables, "re": 10}), "'re' has 9 rows in the first and 10"),
        (dataclasses.replace(SPEC, dense=SPEC.dense[::-1]), "in another order"),
    ):
        with pytest.raises(ArtifactError, match=message):
            fused.load(tmp_path, other)


@both
def test_the_module_takes_any_number_of_rows(name: str) -> None:
    ranker, drawn = random(name).export(), inputs(np.random.default_rng(2), 3 * fused.BLOCK + 1)
    ids, dense = torch.from_numpy(np.concatenate([drawn.sparse, drawn.varlen], axis=1)), torch.from_numpy(drawn.dense)
    np.testing.assert_allclose(ranker(ids, dense).numpy(), ranker.score(drawn), atol=1e-5)


@both
def test_many_rows_score_as_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, drawn = random(name).export(), inputs(np.random.default_rng(2), 100)
    whole = ranker.score(drawn)
    monkeypatch.setattr(fused, "BLOCK", 7)
    np.testing.assert_allclose(ranker.score(drawn), whole, atol=1e-5)


@both
def test_columns_may_stand_in_any_order_in_memory(name: str) -> None:
    ranker, drawn = random(name).export(), inputs(np.random.default_rng(2), 9)
    turned = RankInputs(*(np.asfortranarray(part) for part in (drawn.sparse, drawn.varlen, drawn.dense)))
    narrow = RankInputs(drawn.sparse.astype(np.int32), drawn.varlen.astype(np.int32), drawn.dense)  # type: ignore[arg-type]
    for other in (turned, narrow):
        np.testing.assert_allclose(ranker.score(other), ranker.score(drawn), atol=1e-6)


@both
@pytest.mark.parametrize(("mean", "std"), [(2_000.0, 1.0), (100.0, 0.1), (1.0, 1e-3), (0.5, 2e-6)])
def test_a_field_far_from_zero_loses_no_digits(name: str, mean: float, std: float) -> None:
    model, drawn = random(name), inputs(np.random.default_rng(2), 40)
    for buffer, value in (("low", mean - 4 * std), ("high", mean + 4 * std), ("mean", mean), ("std", std)):
        model.get_buffer(buffer)[1] = value
    drawn.dense[:, 1] = mean + std * np.random.default_rng(3).standard_normal(40)
    np.testing.assert_allclose(model.export().score(drawn), logits(model, drawn), atol=1e-5, rtol=1e-5)


@both
def test_no_candidate_gives_no_score_and_one_gives_one(name: str) -> None:
    ranker = random(name).export()
    none, one = (ranker.score(inputs(np.random.default_rng(2), rows)) for rows in (0, 1))
    assert (none.shape, ranker.probabilities(none).shape) == ((0,), (0,))
    assert (one.shape, ranker.probabilities(one).tolist()) == ((1,), [1.0])


@both
def test_padding_counts_for_nothing(name: str) -> None:
    ranker = random(name).export()
    drawn = inputs(np.random.default_rng(3), 1)
    bags = np.array([[4, 0, 0, 0, 0, 0], [0, 0, 4, 0, 0, 0]], np.int64)
    twice = RankInputs(np.repeat(drawn.sparse, 2, axis=0), bags, np.repeat(drawn.dense, 2, axis=0))
    first, second = ranker.score(twice)
    assert first == pytest.approx(second, abs=1e-6)


@both
def test_values_beyond_those_of_training_count_as_the_nearest(name: str) -> None:
    ranker, drawn = random(name).export(), inputs(np.random.default_rng(4), 1)
    edge, beyond = drawn.dense.copy(), drawn.dense.copy()
    edge[0, 2], beyond[0, 2] = 4.0, 400.0
    scores = [ranker.score(RankInputs(drawn.sparse, drawn.varlen, dense))[0] for dense in (edge, beyond)]
    assert scores[0] == scores[1]


@both
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_with_its_field(name: str, value: float) -> None:
    drawn = inputs(np.random.default_rng(4), 3)
    drawn.dense[1, 2] = value
    with pytest.raises(ValueError, match=f"field 'age' is {value}, which is no number"):
        random(name).export().score(drawn)


@both
def test_a_missing_column_is_refused(name: str) -> None:
    drawn = inputs(np.random.default_rng(4), 3)
    with pytest.raises(ValueError, match=r"\(3, 6, 2\) sparse, varlen and dense columns for a ranker of \(3, 6, 3\)"):
        random(name).export().score(dataclasses.replace(drawn, dense=drawn.dense[:, :2]))


@both
@pytest.mark.parametrize(("column", "value", "field"), [(2, 12, "user_colour"), (1, -1, "source"), (4, 9, "item_re")])
def test_an_unknown_id_names_its_field(name: str, column: int, value: int, field: str) -> None:
    drawn = inputs(np.random.default_rng(6), 5)
    ids = np.concatenate([drawn.sparse, drawn.varlen], axis=1)
    ids[3, column] = value
    wrong = RankInputs(ids[:, :3].copy(), ids[:, 3:].copy(), drawn.dense)
    model = random(name)
    with pytest.raises(ValueError, match=field):
        logits(model, wrong)
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        model.export().score(wrong)


def test_ids_beyond_float32_are_apart_in_dlrm_and_refused_by_deepfm() -> None:
    wide = Spec({"wide": 2**24 + 2}, (SparseField("item", "wide"),), (), SPEC.dense)
    with pytest.raises(ValueError, match=r"'wide' has 16777218 rows.*float32"):
        new("deepfm", spec=wide)
    model = new("dlrm", spec=wide, dim=1).eval()
    with torch.no_grad():
        model.table("wide")[-2:, 0] = torch.tensor([1.0, -1.0])
        for weight in model.decayed():
            weight.fill_(0.5)
    drawn = RankInputs(np.array([[2**24], [2**24 + 1]]), np.empty((2, 0), np.int64), np.full((2, 3), 9, np.float32))
    trained, served = logits(model, drawn), model.export().score(drawn)
    assert abs(trained[0] - trained[1]) > 0.1
    np.testing.assert_allclose(served, trained, atol=1e-5)


@both
def test_output_is_a_logit_not_a_probability(name: str) -> None:
    made = logits(random(name), inputs(np.random.default_rng(5), 400))
    assert made.min() < 0
    assert made.max() > 1


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(models.NAMES), seed=st.integers(0, 10_000))
def test_training_starts_exactly_at_the_retrieval_order(name: str, seed: int) -> None:
    """Whatever the ids and the other fields are, in training and as exported."""
    rng = np.random.default_rng(seed)
    drawn, model = inputs(rng, 60), at_start(name)
    drawn.dense[:, 0] = np.sort(rng.uniform(-0.9, 0.9, 60))[::-1]
    for made in (logits(model, drawn), model.export().score(drawn)):
        assert np.argsort(-made, kind="stable").tolist() == list(range(60))
        np.testing.assert_allclose(np.diff(made), np.diff(drawn.dense[:, 0]) / 0.05, rtol=1e-3, atol=1e-4)


@both
def test_every_part_learns_from_that_start(name: str) -> None:
    """Zero weights at the end of each part must not stop its gradient for good: two steps reach all of them."""
    model = at_start(name).train()
    before = {part: parameter.detach().clone() for part, parameter in model.named_parameters()}
    assert model.table("std").std() > 0.01  # transferred factors are not switched off
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    rng = np.random.default_rng(8)
    for _ in range(2):
        made = model(*tensors(inputs(rng, 200)))
        optimizer.zero_grad()
        listwise_loss(made, torch.full((20,), 10), torch.tensor(rng.integers(0, 10, 20))).backward()
        optimizer.step()
    still = [part for part, parameter in model.named_parameters() if torch.equal(before[part], parameter)]
    assert set(still) <= {"net.out.bias"}  # a softmax over a list does not see a constant


@both
def test_the_constructor_leaves_the_random_generator_alone(name: str) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = new(name, seed=5)
    assert torch.equal(torch.rand(3), expected)
    again, other = new(name, seed=5), new(name, seed=6)
    assert torch.equal(first.table("re"), again.table("re"))
    assert not torch.equal(first.table("re"), other.table("re"))
    assert first.table("std").std().item() == pytest.approx(first.table_std, rel=0.4)


@both
def test_rows_that_never_occur_do_not_move(name: str) -> None:
    """To the bit, under weight decay, in every table of the model."""
    model = random(name)
    before = {part: parameter.detach().clone() for part, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.1), lr=0.05)
    rng = np.random.default_rng(7)
    model.train()
    for _ in range(30):
        drawn = inputs(rng, 40, std_below=8, re_below=5)  # rows 8 to 11 of std and 5 to 8 of re never occur
        loss = listwise_loss(model(*tensors(drawn)), torch.full((4,), 10), torch.tensor(rng.integers(0, 10, 4)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tables = [part for part, parameter in model.named_parameters() if len(parameter) in (12, 9) and parameter.ndim == 2]
    checked = [part for part in tables if "std" in part or ".re" in part]
    assert len(checked) == {"deepfm": 4, "dlrm": 2}[name]
    parameters = dict(model.named_parameters())
    for part in checked:
        moved = (before[part] != parameters[part]).any(dim=-1)
        used = moved[:8] if len(moved) == 12 else moved[1:5]
        assert used.all(), part
        assert int(moved.sum()) == len(used), f"{part}: padding or a row that never occurred moved"


@pytest.mark.slow
def test_serving_a_ranker_needs_no_deepctr(repository: Path, tmp_path: Path) -> None:
    for name in models.NAMES:
        (tmp_path / name).mkdir()
        random(name).export().save(tmp_path / name)
    code = (
        "import sys, numpy as np; from pathlib import Path; from rec.models import fused\n"
        "from rec.features.compute import RankInputs\n"
        "made = RankInputs(np.zeros((2, 3), np.int64), np.zeros((2, 6), np.int64), np.zeros((2, 3), np.float32))\n"
        f"for name in {models.NAMES!r}: assert fused.load(Path({str(tmp_path)!r}) / name).score(made).shape == (2,)\n"
        "sys.exit(bool({'deepctr_torch', 'rec.models.deepfm', 'rec.models.dlrm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0
