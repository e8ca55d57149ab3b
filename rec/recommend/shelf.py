"""The bundle's products: from id to item row and back, and what to show of each."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.compute as pc

from rec.bundle import COMPACT, Bundle
from rec.vocab.std import UNKNOWN

CARDS = 16_384
"""Products whose card is kept, those last shown; one takes a few KB, and 50 µs to make."""


class Shelf:
    """Display data of one bundle in item-row order."""

    def __init__(self, bundle: Bundle) -> None:
        self._table = bundle.products(schema=COMPACT).combine_chunks()
        self.product_ids: list[str] = self._table["product_id"].to_pylist()
        """Id of each item row."""
        self.categories: list[str] = sorted(set(pc.list_flatten(self._table["category"]).to_pylist()) - {UNKNOWN})
        """Categories of all products, by name."""
        self.card: Callable[[int], dict[str, Any]] = lru_cache(CARDS)(self._card)
        """What to show of a product by item row, not to be changed; `std` and `re` map a key to its values."""
        self._rows = {product_id: row for row, product_id in enumerate(self.product_ids)}

    def __len__(self) -> int:
        return len(self.product_ids)

    def unknown(self, product_ids: Iterable[str]) -> list[str]:
        """Those of `product_ids` that the bundle does not have, each once."""
        return [product_id for product_id in dict.fromkeys(product_ids) if product_id not in self._rows]

    def rows(self, product_ids: Sequence[str]) -> np.ndarray:
        """int64[P] item rows. KeyError for an unknown id."""
        return np.array([self._rows[product_id] for product_id in product_ids], dtype=np.int64)

    def known(self, product_id: str) -> bool:
        """Whether the bundle has the product."""
        return product_id in self._rows

    def product_id(self, row: int) -> str:
        """The id of an item row."""
        return self.product_ids[row]

    def evidence(self, row: int) -> list[dict[str, Any]]:
        """The attributes of an item row, STD before RE, each with where it comes from; not of the cards, which are kept
        in memory and nearly never asked for it."""
        attributes = self._table.slice(int(row), 1).select(["std", "re"]).to_pylist()[0]
        return [{"kind": kind, **attribute} for kind in ("std", "re") for attribute in attributes[kind]]

    def _card(self, row: int) -> dict[str, Any]:
        shown: dict[str, Any] = self._table.slice(int(row), 1).to_pylist()[0]
        for kind in ("std", "re"):
            shown[kind] = _grouped(shown[kind])
        return shown


def _grouped(attributes: list[dict[str, str]]) -> dict[str, list[str]]:
    values: defaultdict[str, list[str]] = defaultdict(list)
    for attribute in attributes:
        values[attribute["key"]].append(attribute["value"])
    return dict(values)
