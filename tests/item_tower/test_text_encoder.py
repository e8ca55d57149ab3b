"""The text encoder: one text, one result; clear words when it cannot be loaded."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from rec import artifact
from rec.config import Text
from rec.errors import ConfigError
from rec.models import text_encoder
from rec.models.text_encoder import TextEncoder, equal_lengths
from tests.item_tower import encoders


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return text_encoder.load(Text())


def test_the_embedded_encoder(encoder: TextEncoder) -> None:
    assert encoder.width == 384
    ids = encoder.tokenize(["a wool coat", " ", "coat " * 40], 8)
    assert [len(row) for row in ids] == [5, 0, 8]
    assert encoder.tokenize([], 8) == []
    states = encoder.token_states(ids, 2)
    assert [state.shape for state in states] == [(5, 384), (0, 384), (8, 384)]
    assert all(state.dtype == np.float16 and np.isfinite(state).all() for state in states)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mates=st.lists(st.text("abc coat 울 코트", max_size=30), max_size=6), batch_size=st.integers(1, 5))
def test_a_text_has_one_result_whatever_it_is_batched_with(
    encoder: TextEncoder, mates: list[str], batch_size: int
) -> None:
    text = "a warm coat of brushed wool"
    rows = encoder.tokenize([text, *mates], 32)
    alone, among = encoder.token_states(rows[:1], 1)[0], encoder.token_states(rows, batch_size)[0]
    np.testing.assert_allclose(among.astype(np.float32), alone.astype(np.float32), atol=1e-3)
    np.testing.assert_allclose(encoder.embed([*mates, text])[-1], encoder.embed([text])[0], atol=1e-5)


def test_embeddings_are_unit_vectors_that_mean_something(encoder: TextEncoder) -> None:
    made = encoder.embed(["dress for a wedding guest", "going to a wedding", "going to the gym", ""])
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), [1, 1, 1, 0], atol=1e-5)
    assert made[0] @ made[1] > made[0] @ made[2]


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 7))
def test_batches_hold_every_text_once_and_one_length(lengths: list[int], batch_size: int) -> None:
    batches = list(equal_lengths(lengths, batch_size))
    assert sorted(row for rows in batches for row in rows) == [row for row, length in enumerate(lengths) if length]
    assert all(len(rows) <= batch_size and len({lengths[row] for row in rows}) == 1 for rows in batches)


def test_an_encoder_that_cannot_be_loaded_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"text\.encoder .* local folder"):
        text_encoder.load(Text(encoder=str(tmp_path)))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers: no network
    with pytest.raises(ConfigError, match=r"'some/model' cannot be loaded .*while the hub can be reached"):
        text_encoder.load(Text(encoder="some/model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small DistilBERT."""
    return encoders.write(tmp_path / "encoder", ["warm", "coat"])


def _change(path: Path, change: Callable[[dict], None]) -> None:
    """Write a file of weights or JSON again, changed."""
    weights = path.suffix == ".safetensors"
    values = load_file(path) if weights else json.loads(path.read_text())
    change(values)
    if weights:
        save_file(values, path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:5000])),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("model.safetensors", Path.unlink),
        ("config.json", lambda path: path.write_text('{"model_ty')),
        ("config.json", lambda path: path.write_text('{"model_type": "distilbert", "dim": "a"}')),
        ("tokenizer.json", lambda path: path.write_text("{}")),
        ("tokenizer.json", lambda path: path.write_bytes(path.read_bytes()[:500])),
    ],
)
def test_a_damaged_folder_is_one_sentence(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    with pytest.raises(ConfigError, match=r"^text\.encoder '[^\n]*/encoder' cannot be loaded \(\w+\): give [^\n]*$"):
        text_encoder.load(Text(encoder=str(folder)))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "model.safetensors",
            lambda of: of.pop("embeddings.LayerNorm.bias"),
            r"lacks 1 .*'embeddings\.LayerNorm\.bias'",
        ),
        ("config.json", lambda of: of.update(dim=64), r"lacks \d+ weights that its config\.json wants, such as"),
        ("config.json", lambda of: of.update(n_layers=4), r"lacks 16 weights .* such as 'transformer\.layer\.3"),
    ],
)
def test_weights_that_are_missing_are_not_drawn(
    folder: Path, name: str, change: Callable[[dict], None], said: str
) -> None:
    _change(folder / name, change)
    with pytest.raises(ConfigError, match=said):
        text_encoder.load(Text(encoder=str(folder)))


def test_a_pooler_may_be_missing(folder: Path) -> None:
    model = encoders.model("bert", vocab_size=100)
    model.save_pretrained(folder)
    _change(folder / "model.safetensors", lambda of: [of.pop(key) for key in list(of) if key.startswith("pooler.")])
    encoder = text_encoder.load(Text(encoder=str(folder)))
    ids = encoder.tokenize(["a warm coat"], 8)
    expected = AutoModel.from_pretrained(folder)(input_ids=torch.tensor(ids)).last_hidden_state[0].detach().numpy()
    np.testing.assert_allclose(encoder.token_states(ids, 1)[0], expected, atol=1e-3)


@pytest.mark.parametrize(("kind", "places"), [("bert", 40), ("distilbert", 40), ("roberta", 38)])
def test_more_tokens_than_positions_are_refused_with_the_number(folder: Path, kind: str, places: int) -> None:
    encoders.model(kind, vocab_size=100).save_pretrained(folder)
    with pytest.raises(ConfigError, match=rf"max_tokens is {places + 1}, .* set text\.max_tokens={places} or lower"):
        text_encoder.load(Text(encoder=str(folder), max_tokens=places + 1))
    encoder = text_encoder.load(Text(encoder=str(folder), max_tokens=places))
    assert np.isfinite(encoder.embed(["coat " * places])).all()


def test_an_encoder_in_the_hubs_cache_is_loaded_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hub" / "models--some--encoder"
    shutil.copytree(folder, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    text, here = Text(encoder="some/encoder"), Text(encoder=str(folder))
    assert text_encoder.is_local(text)
    found, expected = text_encoder.load(text), text_encoder.load(here)
    assert (found.embed(["a warm coat"]) == expected.embed(["a warm coat"])).all()
    assert text_encoder.load_tokenizer(text).tokenize(["warm"], 8) == expected.tokenize(["warm"], 8)


@pytest.fixture
def failing_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub that answers 500, always; what it was asked."""
    asked: list[str] = []

    class Fails(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(500)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Fails)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_that_fails_is_not_asked_again_and_again(failing_hub: list[str]) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match=r"'some/model' cannot be loaded \(HTTPError\).*while the hub can be reached"):
        text_encoder.load(Text(encoder="some/model"))
    assert failing_hub == ["/some/model/resolve/main/config.json"]
    assert time.monotonic() - started < 5


def test_an_encoder_in_a_folder_is_its_files(folder: Path, tmp_path: Path) -> None:
    text = Text(encoder=str(folder))
    before = text_encoder.files(text)
    assert text_encoder.files(Text()) == text_encoder.files(Text(encoder="some/model")) == {}
    (folder / "README.md").write_text("about")
    assert text_encoder.files(text) == before
    with artifact.write(tmp_path / "made", kind="k", version=1, inputs={}, config={"encoder": str(folder), **before}):
        pass
    made = artifact.peek(tmp_path / "made")
    _change(folder / "model.safetensors", lambda of: of["embeddings.LayerNorm.bias"].add_(1))
    assert len(before["encoder_files"]) == 64
    assert text_encoder.files(text, made).keys() == before.keys()
    assert text_encoder.files(text, made) != before
    folder.rename(tmp_path / "gone")
    assert text_encoder.files(text, made) == before, "what was made stays good without the encoder"
    assert text_encoder.files(text) == text_encoder.files(Text(encoder=str(tmp_path / "other")), made) == {}


def _sharded(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard, metadata={"format": "pt"})
    place = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def test_a_shard_is_one_of_the_files(folder: Path) -> None:
    text = Text(encoder=str(folder))
    whole = text_encoder.load(text).embed(["a warm coat"])
    _sharded(folder)
    before = text_encoder.files(text)
    assert (text_encoder.load(text).embed(["a warm coat"]) == whole).all()
    _change(folder / "model-00001-of-00002.safetensors", lambda of: of["transformer.layer.2.ffn.lin2.bias"].add_(1))
    assert text_encoder.files(text) != before
    assert not (text_encoder.load(text).embed(["a warm coat"]) == whole).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"do_lower_case": false}'),
        ("special_tokens_map.json", "{}"),
        ("vocab.txt", "warm"),
        ("spiece.model", "warm"),
    ],
)
def test_what_a_tokenizer_is_read_from_is_one_of_the_files(folder: Path, name: str, content: str) -> None:
    before = text_encoder.files(Text(encoder=str(folder)))
    (folder / name).write_text(content)
    assert text_encoder.files(Text(encoder=str(folder))) != before


def test_a_want_of_memory_is_not_a_wrong_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AutoModel, "from_pretrained", full)
    with pytest.raises(MemoryError):
        text_encoder.load(Text(encoder=str(folder)))
