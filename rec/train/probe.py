"""What an epoch did to the vectors of a fixed sample of products, seen without dropout, as they are in training.

alignment     mean squared distance of the two views of a product, lower is better
uniformity    log of the mean of exp(-2 squared distance) over pairs of products, lower is more evenly spread
twin_found    share of first views whose nearest second view is of the same content group
same_category share of the 10 nearest neighbours of a product that are of its category, by the unhidden vectors

The first two: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on
the Hypersphere", ICML 2020, arXiv 2005.10242. The category is an input, so the last says how much it orders the space.
"""

import numpy as np
import torch

from rec.config import ItemTower as Options
from rec.models.item_inputs import IntArray, ItemInputs
from rec.models.item_tower import ItemTower
from rec.train.contrast import two_views

ITEMS = 1_000
"""Products of the sample."""
BLOCK = 250
NEIGHBOURS = 10


class Probe:
    """The sample of a catalogue; the same seed draws the same products and views."""

    def __init__(self, items: ItemInputs, categories: IntArray, options: Options, seed: int) -> None:
        """`categories` int64[N], 0 for none."""
        count = min(ITEMS, len(items))
        self._rows = np.sort(np.random.default_rng(seed).choice(len(items), count, replace=False))
        self._categories = torch.from_numpy(categories[self._rows])
        self._groups = torch.from_numpy(items.groups[self._rows])
        self._items, self._options, self._seed = items, options, seed

    @torch.no_grad()
    def measure(self, tower: ItemTower) -> dict[str, float]:
        """The metrics of a tower, which is in training mode afterwards as before."""
        training = tower.training
        tower.eval()
        whole, first, second = (torch.cat(part) for part in zip(*self._vectors(tower), strict=True))
        tower.train(training)
        squared = 2 - 2 * whole @ whole.T  # float32[n, n], distances of unit vectors
        others = ~torch.eye(len(whole), dtype=torch.bool)
        found = {"alignment": float((first - second).square().sum(1).mean())}
        if len(whole) > 1:
            found["uniformity"] = float((-2 * squared[others]).exp().mean().log())
        nearest = (first @ second.T).argmax(1)
        found["twin_found"] = float((self._groups[nearest] == self._groups).float().mean())
        return found | self._purity(squared.fill_diagonal_(torch.inf))

    def _vectors(self, tower: ItemTower) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Vectors float32[b, d] of whole products, first views and second views, block by block."""
        device = next(tower.parameters()).device
        rng = np.random.default_rng(self._seed)
        made = []
        for start in range(0, len(self._rows), BLOCK):
            batch = self._items.batch(self._rows[start : start + BLOCK])
            views = two_views(batch, tower.shape.num_keys, self._options, rng)
            first, second = tower(views.to(device)).cpu().chunk(2)
            made.append((tower(batch.to(device)).cpu(), first, second))
        return made

    def _purity(self, squared: torch.Tensor) -> dict[str, float]:
        """Of products with a category; nothing where the sample has too few to have neighbours."""
        known = self._categories > 0
        if int(known.sum()) <= NEIGHBOURS:
            return {}
        categories = self._categories[known]
        nearest = squared[known][:, known].topk(NEIGHBOURS, largest=False).indices  # int64[k, NEIGHBOURS]
        return {"same_category": float((categories[nearest] == categories[:, None]).float().mean())}
