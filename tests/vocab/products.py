"""Small catalogues as the stages before tensorize leave them."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from rec import dataset
from rec.config import Config
from rec.schema import ENRICHED, PRODUCTS
from rec.vocab.std import StdVocabulary

VERSION = StdVocabulary.load().version
Pairs = list[tuple[str, str]]
Product = tuple[str, str, str | None, Pairs, Pairs]
"""Id, title, group, STD and RE."""


def _attributes(pairs: Pairs) -> list[dict[str, str | None]]:
    return [{"key": key, "value": value, "source": "given", "evidence": None} for key, value in pairs]


def write(config: Config, catalogue: Sequence[Product], *, version: str = VERSION) -> None:
    """The datasets `products` and `enriched` of a catalogue."""
    products = [
        {"product_id": id, "title": title, "description": f"{title} described", "group_id": group, "available": True}
        for id, title, group, _, _ in catalogue
    ]
    enriched = [
        {
            "product_id": id,
            "std": _attributes(standard),
            "re": _attributes(open_),
            "status": "ok",
            "vocab_version": version,
            "tokens_in": 0,
            "tokens_out": 0,
            "content_hash": hashlib.sha256(title.encode()).hexdigest(),
        }
        for id, title, _, standard, open_ in catalogue
    ]
    for name, contract, rows in (("products", PRODUCTS, products), ("enriched", ENRICHED, enriched)):
        table = pa.Table.from_pylist(rows, schema=contract.schema)
        dataset.write(config.at(name), contract, [table], inputs={}, config={})
