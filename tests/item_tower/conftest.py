"""Towers and batches that need neither a store nor Ray."""

from dataclasses import replace

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


@pytest.fixture(params=[0, 8], ids=["mixed", "std apart"])
def tower(shape: Shape, request: pytest.FixtureRequest) -> ItemTower:
    """An untrained tower in eval mode, without and with numbers of STD alone."""
    torch.manual_seed(0)
    return ItemTower(replace(shape, std_share=0.3 if request.param else 0.0, std_width=request.param)).eval()
