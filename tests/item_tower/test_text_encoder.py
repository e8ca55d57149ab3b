"""The text encoder: one text, one result; clear words when it cannot be loaded."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec.config import Text
from rec.errors import ConfigError
from rec.models import text_encoder
from rec.models.text_encoder import TextEncoder, equal_lengths


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
