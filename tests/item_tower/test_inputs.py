"""What a batch holds of titles: nothing where the tower does not read them, and nothing else depends on that."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rec.config import ItemTower as Options
from rec.models import item_tower
from rec.models.item_tower import ItemTower, Shape
from rec.train import contrast
from tests.item_tower import catalogue
from tests.item_tower.products import Product, inputs


def test_what_a_key_first_says_is_nothing_where_it_says_unknown() -> None:
    said = [[(1, 4), (2, 10)], [(2, 11)], [(1, 3), (1, 5)], [], [(2, 3), (1, 6)]]
    items = inputs([Product(std, [(3, 1)], number, seed=number) for number, std in enumerate(said)])
    assert items.first_std(1, unknown=3).tolist() == [4, 0, 0, 0, 6]
    assert items.first_std(1, unknown=99).tolist() == [4, 0, 3, 0, 6]


PRODUCTS = [Product([(1, 1 + i % 9), (2, 10 + i)], [(3, 1 + i)], i % 5, seed=i) for i in range(20)]


@pytest.mark.parametrize("chunk_size", [None, 6])
def test_a_tower_without_titles_learns_the_same_of_batches_without_states(shape: Shape, chunk_size: int | None) -> None:
    options = Options(chunk_size=chunk_size, inputs=["std", "re"])
    gradients = []
    for titles in (True, False):
        torch.manual_seed(0)
        tower = ItemTower(replace(shape, inputs=("std", "re"))).train()
        items = inputs(PRODUCTS, titles=titles)
        drawn = contrast.draw(items, np.arange(20), shape.num_keys, options, np.random.default_rng(1))
        assert all((chunk.title.numel() > 0) == titles for chunk in drawn.chunks)
        torch.manual_seed(2)
        contrast.step(tower, drawn, options)
        gradients.append({name: p.grad for name, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("used", [("std",), ("re",), ("title",), ("std", "re", "title")])
def test_states_are_read_where_the_tower_reads_titles(shape: Shape, used: tuple[str, ...], tmp_path: Path) -> None:
    tree = catalogue.shop(tmp_path, 8)
    asked = replace(shape, inputs=used)
    batch = item_tower.inputs_of(asked, tree.at("tensors"), tree.at("text_states")).batch(np.arange(8))
    assert tuple(batch.title.shape) == (8, 4 if "title" in used else 0, 16)
    assert tuple(batch.title_mask.shape) == (8, 4)
