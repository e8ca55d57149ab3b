"""Attention to RE tokens of the own key: towers made so that it is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rec.evaluate import alignment
from rec.models import item_tower
from rec.models.item_inputs import ItemInputs, Ragged
from rec.models.item_tower import ItemTower, Shape


def _items() -> ItemInputs:
    """Products with STD keys 1 and 2: RE tokens of keys 1, 2, 2; of key 3; none; of key 1 only."""
    re_key = [[1, 2, 2], [3], [], [1, 1]]
    return ItemInputs(
        std_key=Ragged.from_lists([[1, 2]] * 4),
        std_id=Ragged.from_lists([[3, 4]] * 4),
        re_key=Ragged.from_lists(re_key),
        re_id=Ragged.from_lists([[5 + place for place, _ in enumerate(keys)] for keys in re_key]),
        groups=np.arange(4),
        text_of_item=np.zeros(4, np.int64),
        state_offsets=np.array([0, 1]),
        states=np.ones((1, 12), np.float16),
    )


def _by_key(shape: Shape, seed: int = 0) -> ItemTower:
    """A tower whose queries and context are little but the key, compared as they are."""
    torch.manual_seed(seed)
    tower = ItemTower(shape).eval()
    with torch.no_grad():
        for table in (tower.key_table, tower.re_key_table):
            if table is not None:
                table.weight[1:].normal_(std=9.0)
        tower.cross_attention.query.weight.copy_(3 * torch.eye(shape.width))
        tower.cross_attention.key_value.weight[: shape.width].copy_(torch.eye(shape.width))
    return tower


def test_values_attend_to_tokens_of_their_key_where_the_key_is_shared(shape: Shape) -> None:
    shape = replace(shape, heads=1, width=32)
    found = alignment.own_key(_by_key(shape), _items(), np.arange(4))
    assert found[0].tolist() == pytest.approx([1.0, 0.5], abs=0.05)  # all; 1 - 1/3 for key 1, 1 - 2/3 for key 2
    assert np.isnan(found[1:]).all()  # no token of an own key, none at all, none of another key
    other = replace(shape, shared_keys=False)
    apart = [alignment.own_key(_by_key(other, seed), _items(), np.arange(4))[0] for seed in range(16)]
    mass, beyond = np.mean(apart, axis=0)
    assert mass < 0.75  # by chance: anything from 0 to 1
    assert abs(beyond) < 0.25  # by chance: anything from -0.5 to 0.5


def test_mass_is_of_all_that_is_taken_and_beyond_of_re_tokens_alone(shape: Shape) -> None:
    """Where every position of the context is taken alike, an own key has what it has by number, and no more."""
    tower = ItemTower(shape).eval()
    with torch.no_grad():
        tower.cross_attention.query.weight.zero_()
        tower.cross_attention.query.bias.zero_()
    mass, beyond = alignment.own_key(tower, _items(), np.arange(1))[0]
    assert mass == pytest.approx(
        (1 / 5 + 2 / 5) / 2
    )  # of blank, title and three RE tokens, one is key 1's, two key 2's
    assert beyond == pytest.approx(0.0, abs=1e-6)


def test_weights_are_what_attention_takes(shape: Shape) -> None:
    torch.manual_seed(1)
    attention = ItemTower(shape).eval().cross_attention
    x, context = torch.randn(3, 4, shape.width), torch.randn(3, 5, shape.width)
    present = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1] * 5], dtype=torch.bool)
    weights = attention.weights(x, context, present)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 4))
    assert not weights[~present[:, None].expand_as(weights)].any()
    single = ItemTower(replace(shape, heads=1)).eval().cross_attention
    value = single.key_value(context).chunk(2, dim=-1)[1]
    expected = x + single.out(single.weights(x, context, present) @ value)
    torch.testing.assert_close(single(x, context, present), expected)


def test_keys_of_their_own_change_a_tower(shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> None:

    items = _items().batch(np.arange(4))
    torch.manual_seed(2)
    shared = ItemTower(shape).eval()
    torch.manual_seed(2)
    apart = ItemTower(replace(shape, shared_keys=False)).eval()
    assert not torch.allclose(shared(items)[0], apart(items)[0])
    folder = tmp_path_factory.mktemp("apart")
    apart.save(folder)
    torch.testing.assert_close(item_tower.restore(folder)(items), apart(items))
