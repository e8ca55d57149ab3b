"""The tower: causality, batch invariance, any subset of inputs, and what it saves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rec.config import Text
from rec.models import user_vectors
from rec.models.user_tower import Block, Shape, UserTower, collate, load
from rec.models.user_vectors import UserVectors
from rec.state import UserState, cold_state
from tests.user_tower.world import NUM_ITEMS, WIDTH, item_vectors, unit_rows

TEXT = 8
INPUTS = ("behaviour", "context", "profile")


def make_tower(inputs: tuple[str, ...] = INPUTS, seed: int = 0) -> UserTower:
    """A tower with every weight random, so that no input is without effect by its zero start."""
    torch.manual_seed(seed)
    shape = Shape(
        width=WIDTH, history=6, layers=2, heads=2, convolution=3, dropout=0.3, adapter=12, adapter_dropout=0.1,
        semantics=0, inputs=inputs, text_encoder="minilm", text_width=TEXT,
        profile_names=("height_cm", "weight_kg"), profile_mean=(170.0, 65.0), profile_std=(10.0, 12.0),
    )  # fmt: skip
    tower = UserTower(shape)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return tower.attach(item_vectors()).eval()


def make_states(rng: np.random.Generator, count: int) -> tuple[list[UserState], np.ndarray]:
    """States with 0 to 9 events, profiles with gaps, and the text vectors of their contexts."""
    states = []
    texts = unit_rows(rng, (count, TEXT))
    for b in range(count):
        length = int(rng.integers(0, 10))
        profile = np.array([rng.normal(170, 10), rng.normal(65, 12)], np.float32)
        profile[rng.random(2) < 0.4] = np.nan
        said = bool(rng.random() < 0.5)
        texts[b] *= said
        states.append(
            UserState(
                items=rng.integers(0, NUM_ITEMS, length),
                events=rng.integers(1, 6, length),
                ages_s=np.sort(rng.exponential(1e6, length)).astype(np.float32)[::-1].copy(),
                context="said" if said else "",
                profile=profile,
            )
        )
    return states, texts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 24))
def test_a_users_vector_does_not_depend_on_the_batch(seed: int, count: int) -> None:
    tower = make_tower()
    states, texts = make_states(np.random.default_rng(seed), count)
    together = tower.vectors(states, texts)
    alone = np.concatenate([tower.vectors([state], texts[b : b + 1]) for b, state in enumerate(states)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_a_later_event_never_changes_an_earlier_position() -> None:
    tower = make_tower()
    rng = np.random.default_rng(3)
    state = make_states(rng, 1)[0][0]
    state = replace(
        state,
        items=np.arange(6),
        events=np.ones(6, np.int64),
        ages_s=np.array([9e6, 5e6, 1e6, 9e5, 4e4, 5e2], np.float32),
    )
    for changed in range(6):
        items, events = state.items.copy(), state.events.copy()
        items[changed], events[changed] = 59, 4
        positions = []
        for each in (state, replace(state, items=items, events=events)):
            sequences = collate([each], 6)
            with torch.inference_mode():
                positions.append(tower.behaviour(tower.item_vectors[sequences.items], sequences))
        before, after = positions
        torch.testing.assert_close(before[: changed + 1], after[: changed + 1], atol=0, rtol=0)
        assert not torch.allclose(before[changed + 1], after[changed + 1], atol=1e-4)  # it does change its own


@pytest.mark.parametrize("layers", [1, 3])
def test_the_last_position_alone_is_the_last_of_all_positions(layers: int) -> None:
    torch.manual_seed(1)
    tower = UserTower(replace(make_tower().shape, layers=layers)).attach(item_vectors()).eval()
    for block in tower.blocks:
        nn.init.normal_(block.near)
    states, _ = make_states(np.random.default_rng(4), 40)
    sequences = collate([cold_state(2), *states], 6)
    history = tower.item_vectors[sequences.items]
    with torch.inference_mode():
        everywhere = tower.behaviour(history, sequences)
        torch.testing.assert_close(
            tower.last(history, sequences), everywhere[sequences.starts + sequences.lengths], atol=1e-5, rtol=1e-5
        )


def test_a_convolution_reads_its_last_positions_and_no_other() -> None:
    torch.manual_seed(2)
    x = torch.randn(1, 6, WIDTH)
    block = Block(WIDTH, 2, 3, 0.0).eval()
    nn.init.zeros_(block.out.weight)  # what attention finds does not get through
    moved = x.clone()
    moved[0, 1] += torch.randn(WIDTH)
    with torch.no_grad():
        nn.init.normal_(block.near)
        changed = (block(x) - block(moved)).abs().amax(dim=2)[0] > 1e-6
    assert changed.tolist() == [False, True, True, True, False, False]


def test_only_the_last_events_are_read_and_each_input_matters() -> None:
    tower = make_tower()
    rng = np.random.default_rng(5)
    state = UserState(
        items=np.arange(9),
        events=np.full(9, 2),
        ages_s=np.linspace(9e5, 1e3, 9, dtype=np.float32),
        context="said",
        profile=np.array([182, 80], np.float32),
    )
    text = unit_rows(rng, (1, TEXT))
    base = tower.vectors([state], text)
    short = replace(state, items=state.items[3:], events=state.events[3:], ages_s=state.ages_s[3:])
    np.testing.assert_allclose(tower.vectors([short], text), base, atol=1e-6)
    other = {
        "item": tower.vectors([replace(state, items=state.items[::-1].copy())], text),
        "event": tower.vectors([replace(state, events=np.full(9, 3))], text),
        "recency": tower.vectors([replace(state, ages_s=state.ages_s + 1e7)], text),
        "context": tower.vectors([state], -text),
        "profile": tower.vectors([replace(state, profile=np.array([160, 80], np.float32))], text),
    }
    for name, vector in other.items():
        assert np.abs(vector - base).max() > 1e-3, name


@pytest.mark.parametrize("inputs", [(), ("behaviour",), ("context",), ("profile",), ("behaviour", "profile"), INPUTS])
def test_any_subset_of_inputs_gives_a_unit_vector(inputs: tuple[str, ...]) -> None:
    tower = make_tower(inputs)
    states, texts = make_states(np.random.default_rng(1), 12)
    for contexts in (texts, None):
        found = tower.vectors(
            [*states, cold_state(2)],
            None if contexts is None else np.vstack([contexts, np.zeros(TEXT)]).astype(np.float32),
        )
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    unused = replace(states[0], profile=np.full(2, np.nan, np.float32))
    same = np.allclose(tower.vectors([states[0]], texts[:1]), tower.vectors([unused], texts[:1]))
    assert same == ("profile" not in inputs or bool(np.isnan(states[0].profile).all()))


def test_an_input_that_training_never_saw_changes_nothing() -> None:
    torch.manual_seed(0)
    tower = UserTower(make_tower().shape).attach(item_vectors()).eval()
    states, texts = make_states(np.random.default_rng(2), 6)
    bare = [replace(state, profile=np.full(2, np.nan, np.float32)) for state in states]
    np.testing.assert_allclose(tower.vectors(states, texts), tower.vectors(bare, None), atol=1e-6)


def test_extreme_profiles_stay_finite() -> None:
    tower = make_tower()
    for values in ([1e30, -1e30], [np.inf, 0], [np.nan, 65]):
        state = replace(cold_state(2), profile=np.array(values, np.float32))
        assert np.isfinite(tower.vectors([state], None)).all()


def test_a_saved_tower_gives_the_same_vectors(tmp_path: Path) -> None:
    tower = make_tower()
    tower.save(tmp_path, item_vectors())
    states, texts = make_states(np.random.default_rng(9), 7)
    again = load(tmp_path)
    assert again.shape == tower.shape
    np.testing.assert_array_equal(again.vectors(states, texts), tower.vectors(states, texts))


class _Encoder:
    """Counts how often it is loaded."""

    loads = 0

    @classmethod
    def load(cls, text: Text) -> "_Encoder":
        cls.loads += 1
        return cls()

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.array([[len(text)] * TEXT for text in texts], np.float32)


def test_the_text_encoder_is_loaded_once_and_only_where_a_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_vectors.text_encoder, "load", _Encoder.load)
    monkeypatch.setattr(user_vectors, "STATES_PER_BLOCK", 5)
    states, _ = make_states(np.random.default_rng(4), 23)
    silent = [replace(state, context="") for state in states]
    UserVectors(make_tower(("behaviour", "profile")), Text())(states)
    UserVectors(make_tower(), Text())(silent)
    assert _Encoder.loads == 0
    tower = make_tower()
    make = UserVectors(tower, Text())
    found = np.concatenate([make(states), make(states[:3])])
    assert _Encoder.loads == 1
    texts = np.array([[len(state.context)] * TEXT for state in states], np.float32)
    np.testing.assert_allclose(found[:23], tower.vectors(states, texts), atol=1e-5)
    np.testing.assert_allclose(found[23:], found[:3], atol=1e-5)


def test_the_adapter_starts_as_no_change_and_depends_on_the_vector_alone() -> None:
    vectors = torch.from_numpy(item_vectors())
    fresh = UserTower(make_tower().shape).eval()
    with torch.inference_mode():
        torch.testing.assert_close(fresh.adapt(vectors), vectors)
        tower = make_tower()
        moved = tower.adapt(vectors)
        assert (moved - vectors).norm(dim=1).min() > 0.01
        torch.testing.assert_close(moved.norm(dim=1), torch.ones(NUM_ITEMS))
        torch.testing.assert_close(tower.adapt(vectors[7:9]), moved[7:9])
