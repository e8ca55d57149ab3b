"""Packed texts: the states and gradients of padded ones, and nothing unseen goes through the layers."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from rec.models import packing
from rec.models.text_layers import HandOn
from tests.item_tower import encoders


@pytest.mark.parametrize("reads_ids", [True, False])
@pytest.mark.parametrize("kind", encoders.SETTINGS)
def test_states_and_gradients_are_those_of_padded_texts(kind: str, reads_ids: bool) -> None:
    padded, held = encoders.model(kind), encoders.model(kind)
    if not reads_ids:
        if kind in ("albert", "electra"):
            pytest.skip("they cannot be cut")
        padded.embeddings, held.embeddings = HandOn(), HandOn()
    packed = packing.packed(held, reads_ids=reads_ids)
    assert packed is not None
    seen = torch.rand(9, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[:, 3] = True
    given = torch.randint(4, encoders.VOCABULARY, (9, 7)) if reads_ids else torch.randn(9, 7, 12)
    name = "input_ids" if reads_ids else "inputs_embeds"
    expected = padded(**{name: given}, attention_mask=seen.long()).last_hidden_state
    made = packed(given, seen)
    torch.testing.assert_close(made[seen], expected[seen], atol=1e-5, rtol=0)
    assert not made[~seen].any()
    weight = torch.randn(int(seen.sum()), 12)
    for states in (made, expected):
        (states[seen] * weight).sum().backward()
    for (at, one), other in zip(held.named_parameters(), padded.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4, msg=at)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_pad_undoes_pack(lengths: list[int], seed: int) -> None:
    seen = torch.arange(9) < torch.tensor(lengths)[:, None]
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(lengths), 9, 2)))
    found = packing.Packing.of(seen)
    assert torch.equal(found.pad(found.pack(values)), values * seen[..., None])
    assert found.positions.tolist() == [position for length in lengths for position in range(length)]


@given(mask=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_who_knows_how_many_tokens_there_are_finds_them_where_they_are(mask: list[list[bool]]) -> None:
    seen = packing.seen(torch.tensor(mask))
    asked, told = packing.Packing.of(seen), packing.Packing.of(seen, int(seen.sum()))
    assert torch.equal(asked.place, told.place)
    assert torch.equal(told.place, seen.flatten().nonzero().flatten())
    assert told.starts.tolist() == [0, *seen.sum(1).cumsum(0).tolist()]
    assert seen.any(1).all()


def test_only_what_is_seen_goes_through_the_layers() -> None:
    model = encoders.model("distilbert")
    packed = packing.packed(model, reads_ids=True)
    assert packed is not None
    widths = []
    model.transformer.layer[0].register_forward_hook(lambda _, given, __: widths.append(tuple(given[0].shape)))
    packed(torch.full((2, 8), 5), torch.arange(8) < torch.tensor([[8], [1]]))
    assert widths == [(1, 9, 12)]


def test_an_encoder_whose_packed_states_differ_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = packing.Packing.positions.fget
    monkeypatch.setattr(packing.Packing, "positions", property(lambda self: positions(self).flip(0)))  # type: ignore[misc]
    model = encoders.model("bert").train()
    assert packing.packed(model, reads_ids=True) is None
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_an_encoder_with_an_attention_of_its_own_stays_as_it_is() -> None:
    settings = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = AutoModel.from_config(AutoConfig.for_model("mpnet", vocab_size=60, **settings))
    assert packing.packed(model, reads_ids=True) is None
    assert model(input_ids=torch.arange(4, 9)[None]).last_hidden_state.shape == (1, 5, 12)


def test_attention_has_dropout_in_training_alone() -> None:
    model = encoders.model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    packed = packing.packed(model, reads_ids=True)
    assert packed is not None
    given, seen = torch.arange(4, 12).view(2, 4), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(packed(given, seen), packed(given, seen))
    model.train()
    assert not torch.equal(packed(given, seen), packed(given, seen))


def test_an_encoder_with_windows_stays_as_it_is() -> None:
    settings = {"hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    model = AutoModel.from_config(
        AutoConfig.for_model("modernbert", vocab_size=60, pad_token_id=0, local_attention=8, **settings)
    ).eval()
    assert packing.packed(model, reads_ids=True) is None
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("compiler", [None, "gcc", "clang", "CC"])
def test_a_gpu_without_a_c_compiler_beside_it_pads_for_attention(
    compiler: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton builds its launchers with one at run time, and fails in the middle of a step where there is none."""
    kernel = ModuleType("rec.models.packed_attention")
    kernel.CAPABILITY = (8, 0)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    monkeypatch.setattr("rec.models.packed_attention", kernel, raising=False)
    monkeypatch.setattr(packing, "_kernel", None)
    monkeypatch.setattr(packing.util, "find_spec", lambda _: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if compiler is not None:
        program = tmp_path / ("other-cc" if compiler == "CC" else compiler)
        program.touch(0o755)
        if compiler == "CC":
            monkeypatch.setenv("CC", program.name)
    packing._load_kernel()
    assert packing._kernel is (kernel if compiler else None)
    assert ("no C compiler" in caplog.text) == (compiler is None)
    if compiler == "gcc":
        monkeypatch.setenv("CC", "not-there")
        monkeypatch.setattr(packing, "_kernel", None)
        packing._load_kernel()
        assert packing._kernel is None, "Triton takes CC and looks no further"
