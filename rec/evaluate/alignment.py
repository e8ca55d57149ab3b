"""Do shared keys align attention? What a STD value takes from the RE tokens of its own key.

Of all that the cross-attention of a STD value takes from a product's RE tokens, the share that falls on the tokens of
its key, less the share that they would have by their number; over STD values of products that have RE tokens of their
key and of others, mean by product, with intervals over content groups. The tower with one embedding for a key is
compared with one that has a second for RE, trained alike by one seed.
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

Floats = NDArray[np.float64]


def measure(config: Config, shared: Path, apart: Path) -> Figures:
    """Figures of the tower at `shared` (`full`) and of that at `apart`, and the difference (goal 0)."""
    towers = {"full": item_tower.load(shared), "apart": item_tower.load(apart)}
    ids = towers["full"].shape.reads_ids
    items = ItemInputs.load(config.at("tensors"), config.at("text_states"), ids=ids)
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(items))[:SAMPLE])
    taken = np.stack([own_key(tower, items, rows) for tower in towers.values()], axis=1)
    chosen = ~np.isnan(taken).any(axis=1)
    if not chosen.any():
        return {}
    _, cluster = np.unique(items.groups[rows[chosen]], return_inverse=True)
    return compared(
        "keys.{}.own", list(towers), taken[chosen], cluster, config.evaluate.bootstrap, config.seed, ours="full"
    )


@torch.inference_mode()
def own_key(tower: ItemTower, items: ItemInputs, rows: NDArray[np.int64]) -> Floats:
    """float64[len(rows)] attention to RE tokens of the own key beyond their number, NaN where there is no choice."""
    made = [np.empty(0)]
    for start in range(0, len(rows), BLOCK_ROWS):
        batch = items.batch(rows[start : start + BLOCK_ROWS])
        tokens = batch.re_id.shape[1]
        taken = tower.attention(batch)[:, 1:, 1 : 1 + tokens].double()  # [B, STD, RE]: neither anchor nor blank
        there = (batch.re_id != 0).unsqueeze(1)  # bool[B, 1, RE]
        own = (batch.std_key.unsqueeze(2) == batch.re_key.unsqueeze(1)) & there  # bool[B, STD, RE]
        number, others = own.sum(2), there.sum(2) - own.sum(2)  # int64[B, STD]
        choice = (batch.std_id != 0) & (number > 0) & (others > 0)
        share = (taken * own).sum(2) / (taken * there).sum(2).clamp(min=1e-12)
        beyond = torch.where(choice, share - number / (number + others).clamp(min=1), 0.0)
        made.append((beyond.sum(1) / choice.sum(1)).numpy())  # 0 / 0 is NaN
    return np.concatenate(made)
