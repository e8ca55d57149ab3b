"""How far marketing phrases in titles move products: their nearest neighbours before and after.

Some products get a phrase at the end of their title, and are placed anew among all others, which stay. They are drawn
among those whose title has room for all of it within `text.max_tokens`; a description behind the title is cut that much
sooner, as it would be in a shop. The phrases name no attribute, so that attributes stay what they are; a tower that
reads these, too, should be moved less than one of titles alone or the text embedding.

    n                  products
    SYSTEM.overlap10   share of a product's 10 nearest products that are the same before and after, mean over products,
                       with intervals over content groups
"""

import logging
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rec import dataset
from rec.config import Config
from rec.evaluate.benchmark import Figures, figure
from rec.evaluate.paired import compared
from rec.models import item_tower, text_encoder
from rec.models.item_inputs import ItemInputs
from rec.models.item_vectors import item_vectors
from rec.models.text_encoder import TextTokenizer
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
    encoder = text_encoder.load(config.text)
    told = dict(islice(_told(config, encoder), SAMPLE))
    log.info("%d products get a phrase", len(told))
    if not told:
        return {}
    rows = np.sort(np.fromiter(told, np.int64))
    ids = encoder.tokenize([told[row] for row in rows.tolist()], config.text.max_tokens)
    states = final = encoder.token_states(ids, config.text.batch_size)
    if config.item_tower.layers_above_states:
        below = text_encoder.load(config.text, config.item_tower.layers_above_states)
        states = below.token_states(ids, config.text.batch_size)
    items = ItemInputs.load(config.at("tensors"), config.at("text_states"))
    _, cluster = np.unique(items.groups[rows], return_inverse=True)
    moved = {"rawtext": items.retold(rows, ids, final).text_vectors()}
    moved |= {name: _placed(tower, config, rows, ids, states) for name, tower in towers.items()}
    kept = np.stack([_overlap(vectors[name], made, rows) for name, made in moved.items()], axis=1)
    figures = {f"{prefix}.n": figure(len(rows), "products")}
    return figures | compared(
        f"{prefix}.{{}}.overlap{K}", list(moved), kept, cluster, config.evaluate.bootstrap, config.seed, ours="full"
    )


def _told(config: Config, tokenizer: TextTokenizer) -> Iterator[tuple[int, str]]:
    """(row, text with a phrase in its title) of products in an order drawn by seed, where all of the phrase is read."""
    fields: list[str] = list(config.text.fields)
    until = fields.index("title") + 1
    products = dataset.read(config.at("products"), PRODUCTS, fields)
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(products))
    for start in range(0, len(order), SAMPLE):
        rows = order[start : start + SAMPLE]
        chosen = products.take(rows).to_pylist()
        titled = [bool(product["title"].strip()) for product in chosen]
        for product, phrase in zip(chosen, rng.choice(PHRASES, len(rows)), strict=True):
            product["title"] += f" {phrase}"
        begun = [joined(product[field] for field in fields[:until]) for product in chosen]
        lengths = map(len, tokenizer.tokenize(begun, config.text.max_tokens + 1))
        for row, product, named, length in zip(rows.tolist(), chosen, titled, lengths, strict=True):
            if named and length <= config.text.max_tokens:
                yield row, joined(product[field] for field in fields)


def _placed(
    trained: Config, whole: Config, rows: NDArray[np.int64], ids: list[list[int]], states: list[NDArray[np.float16]]
) -> Vectors:
    """float32[len(rows), d] of the products with their new texts by the tower that `trained` has."""
    tower = item_tower.load(trained.at(item_tower.KIND))
    items = item_tower.inputs_of(tower.shape, whole.at("tensors"), whole.at("text_states"))
    return item_vectors(tower, items.retold(rows, ids, states))


def _overlap(vectors: Vectors, moved: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[len(rows)] share of the K nearest others of each product that are the same from its new place."""
    own = [np.array([row]) for row in rows.tolist()]
    before, _ = search(vectors[rows], vectors, K, own)
    after, _ = search(moved, vectors, K, own)
    same = (before[:, :, None] == after[:, None, :]).any(2) & (before >= 0)
    shares: NDArray[np.float64] = same.sum(1) / np.maximum((before >= 0).sum(1), 1)
    return shares
