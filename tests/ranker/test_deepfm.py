"""The adapter over deepctr-torch: each of its traps is closed, and the export is the same function."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.errors import ArtifactError
from rec.features.compute import RankInputs
from rec.features.spec import SparseField, Spec, VarlenField
from rec.models import fused
from rec.models.deepfm import DeepFM
from rec.models.fused import DenseScale
from rec.train.listwise import listwise_loss

SPEC = Spec(
    tables={"std": 12, "re": 9, "source": 3},
    sparse=(SparseField("item_colour", "std"), SparseField("user_colour", "std"), SparseField("source", "source")),
    varlen=(VarlenField("item_re", "re", 4), VarlenField("user_re", "re", 2)),
    dense=("score", "price", "age"),
)
SCALE = DenseScale(
    low=torch.tensor([-1.0, 0.0, 0.0]), high=torch.tensor([1.0, 9.0, 4.0]),
    mean=torch.tensor([0.1, 3.0, 2.0]), std=torch.tensor([0.5, 2.0, 1.0]),
)  # fmt: skip


def _model(seed: int = 1, spec: Spec = SPEC) -> DeepFM:
    """A model whose every parameter matters."""
    model = DeepFM(spec, SCALE, dim=4, hidden=[8, 6], dropout=0.1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def _inputs(rng: np.random.Generator, rows: int, std_below: int = 12, re_below: int = 9) -> RankInputs:
    sparse = np.stack(
        [rng.integers(0, std_below, rows), rng.integers(0, std_below, rows), rng.integers(0, 3, rows)], axis=1
    )
    varlen = np.where(rng.random((rows, 6)) < 0.5, 0, rng.integers(0, re_below, (rows, 6)))
    return RankInputs(sparse, varlen, rng.normal(size=(rows, 3)).astype(np.float32) * 5)


def _logits(model: DeepFM, inputs: RankInputs) -> np.ndarray:
    with torch.no_grad():
        return model(*(torch.from_numpy(part) for part in (inputs.sparse, inputs.varlen, inputs.dense))).numpy()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 40))
def test_export_agrees_with_the_training_module(seed: int, rows: int) -> None:
    model = _model(seed)
    inputs = _inputs(np.random.default_rng(seed), rows)
    np.testing.assert_allclose(model.export().score(inputs), _logits(model, inputs), atol=1e-5, rtol=1e-5)


def test_export_survives_saving(tmp_path: Path) -> None:
    model = _model()
    inputs = _inputs(np.random.default_rng(0), 50)
    model.export().save(tmp_path)
    np.testing.assert_array_equal(fused.load(tmp_path).score(inputs), model.export().score(inputs))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    _model().export().save(tmp_path)
    text = (tmp_path / "ranker.json").read_text(encoding="utf-8")
    (tmp_path / "ranker.json").write_text(text.replace('"embedding_dim": 4', '"embedding_dim": 5'), encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not fit"):
        fused.load(tmp_path)


def test_many_rows_score_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, inputs = _model().export(), _inputs(np.random.default_rng(2), 100)
    whole = ranker.score(inputs)
    monkeypatch.setattr(fused, "BLOCK", 7)
    np.testing.assert_allclose(ranker.score(inputs), whole, atol=1e-6)
    assert ranker.score(_inputs(np.random.default_rng(2), 0)).shape == (0,)


def test_padding_counts_for_nothing() -> None:
    ranker = _model().export()
    inputs = _inputs(np.random.default_rng(3), 1)
    bags = np.array([[4, 0, 0, 0, 0, 0], [0, 0, 4, 0, 0, 0]], np.int64)
    twice = RankInputs(np.repeat(inputs.sparse, 2, axis=0), bags, np.repeat(inputs.dense, 2, axis=0))
    first, second = ranker.score(twice)
    assert first == pytest.approx(second, abs=1e-6)


def test_values_beyond_those_of_training_count_as_the_nearest() -> None:
    ranker, inputs = _model().export(), _inputs(np.random.default_rng(4), 1)
    edge, beyond = inputs.dense.copy(), inputs.dense.copy()
    edge[0, 2], beyond[0, 2] = 4.0, 400.0
    scores = [ranker.score(RankInputs(inputs.sparse, inputs.varlen, dense))[0] for dense in (edge, beyond)]
    assert scores[0] == scores[1]


def test_output_is_a_logit_not_a_probability() -> None:
    logits = _logits(_model(), _inputs(np.random.default_rng(5), 400))
    assert logits.min() < 0
    assert logits.max() > 1


def _start() -> DeepFM:
    """A model as training finds it, with tables of the size that transfer gives them."""
    model = DeepFM(SPEC, SCALE, dim=4, hidden=[8], dropout=0.0, seed=1).eval()
    model.start_from_retrieval(temperature=0.05)
    return model


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_training_starts_exactly_at_the_retrieval_order(seed: int) -> None:
    """Whatever the ids and the other fields are, in training and as exported."""
    rng = np.random.default_rng(seed)
    inputs, model = _inputs(rng, 60), _start()
    inputs.dense[:, 0] = np.sort(rng.uniform(-0.9, 0.9, 60))[::-1]
    for logits in (_logits(model, inputs), model.export().score(inputs)):
        assert np.argsort(-logits, kind="stable").tolist() == list(range(60))
        np.testing.assert_allclose(np.diff(logits), np.diff(inputs.dense[:, 0]) / 0.05, rtol=1e-3, atol=1e-4)


def test_every_part_learns_from_that_start() -> None:
    """Zero weights at the end of each part must not stop its gradient for good: two steps reach all of them."""
    model = _start().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert before["net.embedding_dict.std.weight"].std() > 0.01  # transferred factors are not switched off
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0)
    rng = np.random.default_rng(8)
    for _ in range(2):
        logits = model(*(torch.from_numpy(part) for part in dataclasses.astuple(_inputs(rng, 200))))
        optimizer.zero_grad()
        listwise_loss(logits, torch.full((20,), 10), torch.tensor(rng.integers(0, 10, 20))).backward()
        optimizer.step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(before[name], parameter)]
    assert set(still) <= {"net.out.bias"}  # a softmax over a list does not see a constant


def test_the_constructor_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = DeepFM(SPEC, SCALE, dim=4, hidden=[8], dropout=0.0, seed=5)
    assert torch.equal(torch.rand(3), expected)
    again = DeepFM(SPEC, SCALE, dim=4, hidden=[8], dropout=0.0, seed=5)
    other = DeepFM(SPEC, SCALE, dim=4, hidden=[8], dropout=0.0, seed=6)
    assert torch.equal(first.table("re"), again.table("re"))
    assert not torch.equal(first.table("re"), other.table("re"))


def test_ids_beyond_float32_are_refused() -> None:
    wide = Spec({**SPEC.tables, "std": 2**24 + 1}, SPEC.sparse, SPEC.varlen, SPEC.dense)
    with pytest.raises(ValueError, match=r"'std' has 16777217 rows.*float32"):
        DeepFM(wide, SCALE, dim=4, hidden=[8], dropout=0.0, seed=1)


@pytest.mark.parametrize(("column", "value", "field"), [(1, 12, "user_colour"), (2, -1, "source"), (4, 9, "item_re")])
def test_an_unknown_id_names_its_field(column: int, value: int, field: str) -> None:
    inputs = _inputs(np.random.default_rng(6), 5)
    ids = np.concatenate([inputs.sparse, inputs.varlen], axis=1)
    ids[3, column] = value
    wrong = RankInputs(ids[:, :3].copy(), ids[:, 3:].copy(), inputs.dense)
    model = _model()
    with pytest.raises(ValueError, match=field):
        _logits(model, wrong)
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        model.export().score(wrong)


def test_rows_that_never_occur_do_not_move() -> None:
    model = _model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameter_groups(weight_decay=0.1), lr=0.05)
    rng = np.random.default_rng(7)
    model.train()
    for _ in range(30):
        inputs = _inputs(rng, 40, std_below=8, re_below=5)  # rows 8 to 11 of std and 5 to 8 of re never occur
        logits = model(*(torch.from_numpy(part) for part in (inputs.sparse, inputs.varlen, inputs.dense)))
        loss = listwise_loss(logits, torch.full((4,), 10), torch.tensor(rng.integers(0, 10, 4)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name: (before[name] != parameter).any(dim=-1) for name, parameter in model.named_parameters()}
    for part in ("net.embedding_dict", "net.linear_model.embedding_dict"):
        assert not moved[f"{part}.std.weight"][8:].any()
        assert not moved[f"{part}.re.weight"][5:].any()
        assert not moved[f"{part}.re.weight"][0]  # padding
        assert moved[f"{part}.std.weight"][:8].all()
        assert moved[f"{part}.re.weight"][1:5].all()


_NO_NETWORK = """
import socket, threading

def refuse(*arguments, **options):
    raise AssertionError("the import reached for the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
started = []
threading.Thread.start = lambda self: started.append(self)
from rec.models.deepfm import deepctr
assert "deepctr_torch" not in __import__("sys").modules, "importing the adapter imports deepctr-torch"
assert deepctr().__version__ == "0.3.0"
assert not started, started
"""


@pytest.mark.slow
def test_importing_makes_no_connection_and_no_thread(repository: Path) -> None:
    found = subprocess.run([sys.executable, "-c", _NO_NETWORK], cwd=repository, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_serving_the_ranker_needs_no_deepctr(repository: Path) -> None:
    code = (
        "import sys, rec.models.fused; sys.exit('deepctr_torch' in sys.modules or 'rec.models.deepfm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0
