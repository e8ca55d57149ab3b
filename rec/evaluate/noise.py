"""How far marketing phrases in titles move products: their nearest neighbours before and after.

Some products get a phrase at the end of their title, if all of the text still fits into `text.max_tokens`, and are
placed anew among all others, which stay. The phrases
name no attribute, so that attributes stay what they are; a tower that reads these, too, should be moved less than one
of titles alone or the text embedding.

    SYSTEM.overlap10   share of a product's 10 nearest products that are the same before and after, mean over products,
                       with intervals over content groups
"""

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rec import dataset
from rec.config import Config
from rec.evaluate.benchmark import Figures
from rec.evaluate.paired import compared
from rec.models import item_tower, text_encoder
from rec.models.item_inputs import ItemInputs
from rec.models.item_vectors import item_vectors
from rec.retrieval import search
from rec.schema import PRODUCTS
from rec.vocab.rows import joined

PHRASES = (
    "HOT DEAL!!! free shipping worldwide",
    "best seller 2026, limited time offer - buy 1 get 1 free",
    "must have!! you will love it, 5-star reviews",
    "official store, 100% authentic, lowest price guaranteed",
    "amazing gift idea, order now while stocks last",
    "*** SALE *** up to 50% off today only",
)
SAMPLE, K = 1_000, 10

Vectors = NDArray[np.float32]

log = logging.getLogger(__name__)


def measure(prefix: str, config: Config, towers: Mapping[str, Config], vectors: Mapping[str, Vectors]) -> Figures:
    """Figures of each of `towers` and of the raw text, and what `full` keeps more than each other (goal 0).

    Nothing for a recipe whose towers read no titles. `vectors` float32[N, d] are those of all products, in item-row
    order, of each tower and of `rawtext`.
    """
    if "title" not in config.text.fields:
        return {}
    products = dataset.read(config.at("products"), PRODUCTS, list(config.text.fields))
    titled = np.array([bool(title and title.strip()) for title in products["title"].to_pylist()])
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.permutation(np.flatnonzero(titled))[:SAMPLE])
    chosen = products.take(rows).to_pylist()
    for product, phrase in zip(chosen, rng.choice(PHRASES, len(rows)), strict=True):
        product["title"] += f" {phrase}"
    told = [joined(product[field] for field in config.text.fields) for product in chosen]
    encoder = text_encoder.load(config.text, config.item_tower.layers_above_states)
    cut = encoder.tokenize(told, config.text.max_tokens + 1)
    whole = np.array([len(row) <= config.text.max_tokens for row in cut], dtype=np.bool_)
    log.info("%d of %d texts have room for a phrase", whole.sum(), len(rows))
    if not whole.any():
        return {}
    rows, ids = rows[whole], [row for row, fits in zip(cut, whole, strict=True) if fits]
    states = encoder.token_states(ids, config.text.batch_size)
    items = _items(config, None)
    _, cluster = np.unique(items.groups[rows], return_inverse=True)
    moved = {"rawtext": items.retold(rows, ids, states).text_vectors()}
    moved |= {name: _placed(tower, config, rows, ids, states) for name, tower in towers.items()}
    kept = np.stack([_overlap(vectors[name], made, rows) for name, made in moved.items()], axis=1)
    return compared(
        f"{prefix}.{{}}.overlap{K}", list(moved), kept, cluster, config.evaluate.bootstrap, config.seed, ours="full"
    )


def _items(config: Config, tower: item_tower.ItemTower | None) -> ItemInputs:
    return ItemInputs.load(
        config.at("tensors"), config.at("text_states"), ids=tower is not None and tower.shape.reads_ids
    )


def _placed(
    trained: Config, whole: Config, rows: NDArray[np.int64], ids: list[list[int]], states: list[NDArray[np.float16]]
) -> Vectors:
    """float32[len(rows), d] of the products with their new texts by the tower that `trained` has."""
    tower = item_tower.load(trained.at(item_tower.KIND))
    items = _items(whole, tower).retold(rows, ids, states)
    return item_vectors(tower, items)


def _overlap(vectors: Vectors, moved: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[len(rows)] share of the K nearest others of each product that are the same from its new place."""
    own = [np.array([row]) for row in rows.tolist()]
    before, _ = search(vectors[rows], vectors, K, own)
    after, _ = search(moved, vectors, K, own)
    same = (before[:, :, None] == after[:, None, :]).any(2) & (before >= 0)
    shares: NDArray[np.float64] = same.sum(1) / np.maximum((before >= 0).sum(1), 1)
    return shares
