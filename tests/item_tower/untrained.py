"""A tower as it is drawn, where a trained one is looked for."""

import torch

from rec import artifact
from rec.config import Config
from rec.models import item_tower
from rec.models.item_tower import ItemTower
from rec.train.item import shape_of


def write(tree: Config, seed: int) -> None:
    """Write the `item_tower` of the options of `tree`, untrained, drawn by `seed`."""
    torch.manual_seed(seed)
    with artifact.write(
        tree.at(item_tower.KIND), kind=item_tower.KIND, version=item_tower.VERSION, inputs={}, config={"seed": seed}
    ) as draft:
        ItemTower(shape_of(tree, None)).save(draft.path)
