"""Which directions of both parts of a tower's vectors are kept once it is trained: `rec.models.std_part`.

They are the first eigenvectors of the parts' second moments among at most SAMPLE products, evenly spread over the
catalogue: of all sets of so many directions the one that keeps inner products best. Nothing is drawn, so the same
weights give the same directions.
"""

from dataclasses import replace

import numpy as np
import torch

from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import ItemTower
from rec.models.item_vectors import item_vectors
from rec.models.std_part import parts
from rec.train.eigen import leading

SAMPLE = 5_000


def kept(tower: ItemTower, items: ItemInputs, std_width: int) -> ItemTower:
    """`tower`, which has both parts whole, with the `std_width` first directions of STD's and what is left for the
    other's, in eval mode."""
    rows = np.linspace(0, len(items) - 1, min(SAMPLE, len(items))).astype(np.int64)
    vectors = torch.from_numpy(item_vectors(tower.eval(), items, rows)).double()
    made = ItemTower(replace(tower.shape, std_width=std_width))
    assert made.components is not None
    directions = zip(("mixed", "std"), parts(vectors, tower.shape.width), strict=True)
    width = {"mixed": tower.shape.width - std_width, "std": std_width}
    found = {f"components.{name}": _first(part, width[name]) for name, part in directions}
    made.load_state_dict(tower.state_dict() | found)
    return made.eval()


def _first(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """float32[d, count], the first eigenvectors of the second moments of float64[n, d]."""
    values, directions = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    return torch.from_numpy(leading(values.numpy(), directions.numpy(), count)[1]).float()
