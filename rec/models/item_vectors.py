"""Vectors of many products by one item tower in this process."""

import numpy as np
import torch
from numpy.typing import NDArray

from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import ItemTower

BLOCK_ROWS = 1_024


@torch.inference_mode()
def item_vectors(tower: ItemTower, items: ItemInputs, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """float32[len(rows), d] unit vectors of the products `rows`, of all without these, on the tower's device.

    Of a tower that is being trained and has two parts float32[len(rows), 2 d], see `Shape.std_width`.
    """
    rows = np.arange(len(items)) if rows is None else rows
    device = next(tower.parameters()).device
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    made = [tower(items.batch(block).to(device)).cpu().numpy() for block in blocks]
    return np.concatenate(made) if made else np.empty((0, tower.shape.width), np.float32)
