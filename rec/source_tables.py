"""The stage: make the tables of all sources, of training events and of the item vectors that the index holds."""

from typing import Any

from safetensors.numpy import load_file

from rec import artifact, dataset, histories
from rec.config import Config
from rec.models import user_tower
from rec.schema import INTERACTIONS, PRODUCTS, USERS
from rec.sources import cooccurrence, neighbours, segments, tables
from rec.sources.tables import KIND, VERSION, Sources

LENGTH = 30
"""Neighbours kept of each item."""


def run(config: Config) -> str:
    """Write the `sources` artifact, unless it is done already; returns its content hash.

    A neighbour table whose source has no quota is empty.
    """
    target, quotas = config.at(KIND), config.ranker.quotas
    work: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "inputs": {
            "products": dataset.read_manifest(config.at("products"), PRODUCTS).content_hash,
            "users": dataset.read_manifest(config.at("users"), USERS).content_hash,
            "events": dataset.read_manifest(config.at("events"), INTERACTIONS).content_hash,
            "user_tower": user_tower.manifest(config.at("user_tower")).content_hash,
        },
        "config": {"in_use": [name for name in type(quotas).model_fields if getattr(quotas, name)]},
    }
    if artifact.finished(target, **work) is None:
        h = histories.load(config.root)
        vectors = load_file(config.at("user_tower") / "item_vectors.safetensors")["item_vectors"]
        nothing = neighbours.none(h.num_items)
        made = Sources(
            item=neighbours.nearest(vectors, LENGTH) if quotas.item else nothing,
            cooccurrence=cooccurrence.build(h, LENGTH) if quotas.cooccurrence else nothing,
            segments=segments.build(h),
        )
        with artifact.write(target, **work) as draft:
            made.save(draft.path)
    return tables.manifest(target).content_hash
