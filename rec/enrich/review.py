"""A sample of enriched products to look at: as many of each status as there are, drawn by seed.

The statuses share the sample evenly, so that the few that went wrong are seen beside the many that did not; the page
says how many of each there are. A product is drawn by the hash of seed and id: a catalogue that
grows keeps most of its sample.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from rec import dataset
from rec.config import Config
from rec.enrich.text import Canonical, canonical
from rec.enrich.workers import COLUMNS
from rec.schema import ENRICHED, PRODUCTS

STATUSES = ("quarantined", "invalid", "refused", "partial", "ok")
"""In the order of the page: what went wrong comes first."""


@dataclass(frozen=True, slots=True)
class Item:
    """One product of the sample."""

    row: Mapping[str, Any]
    """Its row of ENRICHED."""
    title: str
    text: Canonical


@dataclass(frozen=True, slots=True)
class Sample:
    """The products drawn, and how many there are of each status."""

    items: list[Item]
    counts: dict[str, int]


def draw(config: Config, size: int, seed: int) -> Sample:
    """At most `size` products of `enriched`, by status and then by hash."""
    table = dataset.read(config.at("enriched"), ENRICHED, ["product_id", "status"])
    found: dict[str, list[str]] = {status: [] for status in STATUSES}
    for product_id, status in zip(table["product_id"].to_pylist(), table["status"].to_pylist(), strict=True):
        found.setdefault(status, []).append(product_id)
    counts = {status: len(ids) for status, ids in found.items() if ids}
    shares = share(counts, size)
    ids = [
        product_id
        for status, some in shares.items()
        for product_id in sorted(found[status], key=lambda id: hashlib.sha256(f"{seed}\0{id}".encode()).digest())[:some]
    ]
    chosen = [("product_id", "in", ids)]
    products = pq.read_table(dataset.part(config.at("products"), PRODUCTS), columns=COLUMNS, filters=chosen)
    enriched = pq.read_table(dataset.part(config.at("enriched"), ENRICHED), filters=chosen)
    by_id = {row["product_id"]: row for row in products.to_pylist()}
    made = {row["product_id"]: row for row in enriched.to_pylist()}
    items = [
        Item(made[id], by_id[id]["title"], canonical(by_id[id], config.enrich.max_text_chars))
        for id in ids
        if id in by_id  # the catalogue may be newer than its enrichment
    ]
    return Sample(items, counts)


def share(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of each stratum make `size` in all, as even as the strata allow; earlier ones take what is left over."""
    shares = dict.fromkeys(counts, 0)
    while (left := size - sum(shares.values())) > 0:
        open_ones = [name for name, count in counts.items() if shares[name] < count]
        if not open_ones:
            break
        each, more = divmod(left, len(open_ones))
        for place, name in enumerate(open_ones):
            shares[name] += min(counts[name] - shares[name], each + (place < more))
    return shares
