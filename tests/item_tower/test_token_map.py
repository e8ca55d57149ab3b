"""The map from words to rows of the RE table: its ridge against the plain formula, and what it does with little."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rec.errors import ArtifactError
from rec.models import token_map
from rec.models.item_inputs import ItemInputs, Ragged
from rec.models.item_tower import ItemTower, Shape
from rec.models.known_ids import KnownIds
from rec.vocab.re import ReVocabulary
from rec.vocab.std import StdVocabulary


def _planted(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, 12)).astype(np.float32)
    weight = rng.standard_normal((12, 5)).astype(np.float32)
    rows = 3.0 + vectors @ weight + noise * rng.standard_normal((n, 5))
    return vectors, rows.astype(np.float32), weight


def test_a_linear_relation_is_found() -> None:
    vectors, rows, _ = _planted(60, 0.0)
    made = token_map.fit(vectors[:50], rows[:50])(vectors[50:])
    assert np.abs(made - rows[50:]).max() < 0.05


def test_the_ridge_is_the_one_of_least_leave_one_out_error() -> None:
    vectors, rows, _ = _planted(20, 2.0)
    x, y = vectors.astype(np.float64), rows.astype(np.float64)

    def predict(x: np.ndarray, y: np.ndarray, new: np.ndarray, ridge: float) -> np.ndarray:
        centred = x - x.mean(0)
        weight = np.linalg.solve(centred.T @ centred + ridge * np.eye(12), centred.T @ (y - y.mean(0)))
        return y.mean(0) + (new - x.mean(0)) @ weight

    unit = np.mean(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)
    errors = []
    for strength in token_map.STRENGTHS:
        left = [predict(np.delete(x, i, 0), np.delete(y, i, 0), x[i], strength * unit) - y[i] for i in range(20)]
        errors.append(np.mean(np.square(left)))
    best = token_map.STRENGTHS[int(np.argmin(errors))]
    assert token_map.STRENGTHS[0] < best < token_map.STRENGTHS[-1]
    new = np.random.default_rng(1).standard_normal((4, 12)).astype(np.float32)
    made = token_map.fit(vectors, rows)(new)
    assert made == pytest.approx(predict(x, y, new, best * unit), abs=1e-4)


@pytest.mark.parametrize("n", [1, 3])
def test_tokens_that_are_all_alike_give_the_mean(n: int) -> None:
    rows = np.arange(5 * n, dtype=np.float32).reshape(n, 5)
    made = token_map.fit(np.ones((n, 12), np.float32), rows)(np.zeros((2, 12), np.float32))
    assert made == pytest.approx(np.tile(rows.mean(0), (2, 1)))


def test_a_tower_meets_tokens_and_values_that_came_after_its_training(shape: Shape) -> None:
    std, tokens = StdVocabulary.load(), ["wool", "cotton", "red", "blue", "long", "short"]
    old, new = ReVocabulary(std.keys, tokens), ReVocabulary(std.keys, [*tokens, "woollen", "navy"])
    newest = next(key for key in std.keys if std.num_ids - 1 in {std.id_of(key, value) for value in std.values(key)})
    before = replace(shape, num_std_ids=std.num_ids - 1, num_re_tokens=old.num_tokens, std_share=0.3, std_width=8)
    tower = ItemTower(before).eval()
    with torch.no_grad():
        tower.re_table.weight[2:] += torch.arange(6.0)[:, None]  # what training would have added
    carried = [[2], [3, 8], [4], [5], [6, 8], [9]]  # by no item: "short"
    items = _items(carried, np.random.default_rng(5).standard_normal((6, 4)).astype(np.float16))
    same = ItemTower(replace(before, num_std_ids=std.num_ids))
    assert token_map.grown(same, std, old, items).shape == same.shape
    made = token_map.grown(tower, std, new, items)
    assert (made.shape.num_re_tokens, made.shape.num_std_ids) == (new.num_tokens, std.num_ids)
    for name, weight in tower.state_dict().items():
        assert torch.equal(made.state_dict()[name][: len(weight)], weight), name
    vectors, count = items.texts_of_tokens(new.num_tokens)
    assert count.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 2, 1]
    learned = np.repeat(np.arange(5, dtype=np.float32)[:, None], shape.width, axis=1)  # the random start is left out
    expected = token_map.fit(vectors[2:7], learned)(vectors[8:])
    np.testing.assert_allclose(made.re_table.weight.detach().numpy()[-2:], expected, atol=1e-5)
    assert torch.equal(made.std_table.weight[-1], tower.std_table.weight[std.unknown_id(newest)])
    assert token_map.grown(made, std, ReVocabulary(std.keys, [*new.tokens, "grey"]), items).shape.num_re_tokens == 11
    with pytest.raises(ArtifactError, match=r"of another vocabulary, run `python jobs/pretrain\.py` again"):
        token_map.grown(made, std, old, items)


def test_names_of_ids_may_grow_and_change_in_nothing_else(tmp_path: Path) -> None:
    std, tokens = StdVocabulary.load(), ["wool", "cotton", "red"]
    trained = KnownIds.of(std, ReVocabulary(std.keys, tokens))
    trained.save(tmp_path)
    assert KnownIds.load(tmp_path) == trained
    assert KnownIds.load(tmp_path / "of an earlier program") is None
    assert len(trained.std) == std.num_ids - 1
    assert trained.std[std.id_of("colour", "black") - 1] == "colour=black"
    of = partial(trained.check, tower=Path("tower"), vocabulary=Path("words"))
    of(trained)
    of(replace(trained, re=[*tokens, "navy"], std=[*trained.std, "colour=puce"]))
    other = list(trained.std)
    other[4], other[5] = other[5], other[4]
    for now, said in (
        (
            replace(trained, re=["wool", "linen", "red"]),
            r"RE token 'cotton' .* in tower was trained on is 'linen' in words",
        ),
        (replace(trained, re=["wool", "linen", "red", "navy"]), r"RE token 'cotton' .* is 'linen' in words"),
        (
            replace(trained, re=tokens[:2]),
            r"RE token 'red' .* is gone in words: .*run `python jobs/pretrain\.py` again",
        ),
        (replace(trained, std=other), f"STD value '{other[5]}' .* is '{other[4]}' in words"),
        (replace(trained, keys=[*trained.keys, "heel"]), r"key 'heel' in words came after the training"),
        (replace(trained, keys=["heel", *trained.keys[1:]]), f"key '{trained.keys[0]}' .* is 'heel' in words"),
    ):
        with pytest.raises(ArtifactError, match=said):
            of(now)


def test_the_texts_of_a_token_are_those_of_the_items_that_carry_it() -> None:
    states = np.array([[3, 4], [5, 12], [0, 0], [1, 0]], np.float16)
    items = _items([[2, 2, 3], [3], [4], []], states)
    vectors, count = items.texts_of_tokens(6)
    unit = np.array([[0.6, 0.8], [5 / 13, 12 / 13], [0, 0], [1, 0]])
    assert count.tolist() == [0, 0, 1, 2, 1, 0]
    np.testing.assert_allclose(vectors[2:], [unit[0], (unit[0] + unit[1]) / 2, unit[2], unit.mean(0)], atol=1e-3)


def _items(carried: list[list[int]], states: np.ndarray) -> ItemInputs:
    """Items with the RE tokens `carried`, each with a text of one token state."""
    offsets = np.cumsum([0, *map(len, carried)], dtype=np.int64)
    tokens = Ragged(np.array([id for ids in carried for id in ids], dtype=np.int64), offsets)
    none = Ragged(np.zeros(0, np.int64), np.zeros(len(carried) + 1, np.int64))
    rows = np.arange(len(carried))
    return ItemInputs(
        std_key=none,
        std_id=none,
        re_key=Ragged(np.ones_like(tokens.values), offsets),
        re_id=tokens,
        groups=rows,
        text_of_item=rows,
        state_offsets=np.arange(len(carried) + 1),
        states=states,
    )
