"""Unit vectors to measure an index with: those of a recipe, and generated ones that lie in clusters as products do."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rec import artifact, histories, queries
from rec.config import Config
from rec.models import user_tower
from rec.schema import vectors as vectors_of
from rec.train.user import item_vectors

SPECTRUM = 0.5
"""Standard deviation along axis j falls as (j + 1) ** -SPECTRUM: a few directions say most, as in trained towers."""
SPREAD = 0.6
"""Distance of products from the centre of their cluster, of what centres have from 0."""
ITEMS_PER_CLUSTER = 200
MOST_LIKED = 4
"""Products whose mean a generated query lies near."""
NOISE = 0.2
"""Distance of a generated query from that mean, of what centres have from 0."""

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Items and what they are searched with."""

    items: Floats
    """float32[N, d] unit rows"""
    queries: Floats
    """float32[Q, d] unit rows"""


def generated(num_items: int, num_queries: int, width: int, seed: int) -> VectorSet:
    """Clusters whose sizes fall as 1 / rank (Zipf), about ITEMS_PER_CLUSTER products each; queries are shoppers.

    A shopper likes up to MOST_LIKED products of one cluster and is near their mean.
    """
    rng = np.random.default_rng(seed)
    scale = (np.arange(1, width + 1, dtype=np.float32)) ** -SPECTRUM
    scale /= np.linalg.norm(scale)
    clusters = max(num_items // ITEMS_PER_CLUSTER, 2)
    centres = rng.standard_normal((clusters, width), np.float32) * scale
    chances = 1 / np.arange(1, clusters + 1)
    of = np.sort(rng.choice(clusters, num_items, p=chances / chances.sum()))
    items = rng.standard_normal((num_items, width), np.float32)
    items *= SPREAD * scale
    items += centres[of]
    items = _unit(items)
    asked = np.empty((num_queries, width), np.float32)
    for query, item in enumerate(rng.integers(num_items, size=num_queries)):
        first, last = np.searchsorted(of, [of[item], of[item] + 1])
        liked = rng.integers(first, last, size=rng.integers(1, MOST_LIKED + 1))
        asked[query] = items[liked].mean(axis=0)
    asked += NOISE * scale * rng.standard_normal(asked.shape, np.float32)
    order = rng.permutation(num_items)  # a catalogue is not in the order of its clusters
    return VectorSet(items[order], _unit(asked))


def of_recipe(config: Config, num_queries: int, seed: int) -> VectorSet | None:
    """The items as the recipe's user tower searches them, and its users; without a tower the dataset `vectors`, items
    among them as queries. None where the recipe has neither."""
    rng = np.random.default_rng(seed)
    if artifact.peek(config.at("user_tower")) is not None:
        tower = user_tower.load(config.at("user_tower"))
        h = histories.load(config.root)
        users = np.flatnonzero(np.diff(h.offsets) > 0)
        chosen = rng.choice(users, min(num_queries, len(users)), replace=False)
        items = load_file(config.at("user_tower") / "item_vectors.safetensors")["item_vectors"]
        return VectorSet(items, queries.of_users(tower, config.text, h, chosen, np.arange(h.num_items)))
    if artifact.peek(config.at(vectors_of(config.item_tower.width).kind)) is not None:
        items = item_vectors(config.root, config.item_tower.width)
        return VectorSet(items, items[rng.choice(len(items), min(num_queries, len(items)), replace=False)])
    log.warning("%s holds neither user tower nor vectors: the recipe's own are left out", config.root)
    return None


def _unit(vectors: Floats) -> Floats:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
