"""Towers and batches that need neither a store nor Ray."""

import pytest
import torch

from rec.models.item_tower import ItemTower, Shape


@pytest.fixture
def shape() -> Shape:
    """A small tower over 6 keys, 40 STD ids and 30 RE tokens."""
    return Shape(
        num_keys=6,
        num_std_ids=40,
        num_re_tokens=30,
        text_width=12,
        text_encoder="minilm",
        width=16,
        heads=4,
        dropout=0.1,
        inputs=("std", "re", "title"),
    )


@pytest.fixture
def tower(shape: Shape) -> ItemTower:
    """An untrained tower in eval mode."""
    torch.manual_seed(0)
    return ItemTower(shape).eval()
