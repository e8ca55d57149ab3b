"""Do shared keys align attention? What a STD value takes from the RE tokens of its own key.

Over STD values of products that have RE tokens of their key and of others, mean by product, with intervals over content
groups:

    keys.TOWER.mass     of all that the cross-attention of the value takes (title and blank included), the part that it
                        takes from RE tokens of its key
    keys.TOWER.beyond   of what it takes from RE tokens, the share of those of its key, less the share that they would
                        have by their number: 0 where a key is nothing to attention

`shared` is the tower with one embedding for a key, `apart` one that has a second for RE, trained alike by one seed.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rec.config import Config
from rec.evaluate.benchmark import Figures
from rec.evaluate.paired import compared
from rec.models import item_tower
from rec.models.item_inputs import ItemInputs
from rec.models.item_tower import ItemTower

BLOCK_ROWS = 512
SAMPLE = 10_000
MEASURES = ("mass", "beyond")

Floats = NDArray[np.float64]


def measure(config: Config, shared: Path, apart: Path) -> Figures:
    """Both measures of the towers at `shared` and at `apart`, and the differences (goal 0)."""
    towers = {"shared": item_tower.load(shared), "apart": item_tower.load(apart)}
    items = item_tower.inputs_of(towers["shared"].shape, config.at("tensors"), config.at("text_states"))
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(items))[:SAMPLE])
    taken = np.stack([own_key(tower, items, rows) for tower in towers.values()], axis=2)  # [rows, MEASURES, towers]
    chosen = ~np.isnan(taken).any(axis=(1, 2))
    if not chosen.any():
        return {}
    _, cluster = np.unique(items.groups[rows[chosen]], return_inverse=True)
    figures: Figures = {}
    for number, name in enumerate(MEASURES):
        values, options = taken[chosen, number], config.evaluate
        figures |= compared(
            f"keys.{{}}.{name}", list(towers), values, cluster, options.bootstrap, config.seed, ours="shared"
        )
    return figures


@torch.inference_mode()
def own_key(tower: ItemTower, items: ItemInputs, rows: NDArray[np.int64]) -> Floats:
    """float64[len(rows), 2], MEASURES of attention to RE tokens of the own key; NaN where there is no choice."""
    made = [np.empty((0, len(MEASURES)))]
    for start in range(0, len(rows), BLOCK_ROWS):
        batch = items.batch(rows[start : start + BLOCK_ROWS])
        tokens = batch.re_id.shape[1]
        taken = tower.attention(batch)[:, 1:, 1 : 1 + tokens].double()  # [B, STD, RE]: neither anchor nor blank
        there = (batch.re_id != 0).unsqueeze(1)  # bool[B, 1, RE]
        own = (batch.std_key.unsqueeze(2) == batch.re_key.unsqueeze(1)) & there  # bool[B, STD, RE]
        number, others = own.sum(2), there.sum(2) - own.sum(2)  # int64[B, STD]
        choice = (batch.std_id != 0) & (number > 0) & (others > 0)
        mass = (taken * own).sum(2)
        beyond = mass / (taken * there).sum(2).clamp(min=1e-12) - number / (number + others).clamp(min=1)
        sums = torch.stack([torch.where(choice, each, 0.0).sum(1) for each in (mass, beyond)], dim=1)
        made.append((sums / choice.sum(1, keepdim=True)).numpy())  # 0 / 0 is NaN
    return np.concatenate(made)
