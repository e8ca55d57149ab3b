"""The bundle's products: from id to item row and back, and what to show of each."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.bundle import COMPACT, Bundle
from rec.vocab.std import UNKNOWN

CARDS = 16_384
"""Products whose card is kept, those last shown; one takes a few KB, and 50 µs to make."""
GROUNDED = ("key", "value", "source", "evidence")
"""What a bundle says of an attribute."""


class Shelf:
    """Display data of one bundle in item-row order."""

    def __init__(self, bundle: Bundle) -> None:
        table = bundle.products(schema=COMPACT).combine_chunks()
        self._std, self._re = (_Attributes(table[kind].combine_chunks()) for kind in ("std", "re"))
        self._table = table.drop_columns(["std", "re"])
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
        """The attributes of an item row, STD before RE, each with where it comes from; cards are smaller without."""
        return [
            {"kind": kind, **dict(zip(GROUNDED, words, strict=True))}
            for kind, attributes in (("std", self._std), ("re", self._re))
            for words in attributes.of(row, GROUNDED)
        ]

    def _card(self, row: int) -> dict[str, Any]:
        shown: dict[str, Any] = self._table.slice(int(row), 1).to_pylist()[0]
        return {**shown, "std": self._std.grouped(row), "re": self._re.grouped(row)}


class _Attributes:
    """Those of all products, each word kept once. One row of the Arrow column as it is takes three times as long."""

    def __init__(self, column: pa.ListArray) -> None:
        self._ends = column.offsets.to_numpy()  # int32[N + 1]
        fields = {name: column.values.field(name) for name in GROUNDED}
        self._words = {
            name: (field.dictionary, field.indices.fill_null(-1).to_numpy()) for name, field in fields.items()
        }

    def of(self, row: int, names: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
        """The fields `names` of each attribute of an item row."""
        start, end = self._ends[row : row + 2].tolist()
        columns = []
        for name in names:
            words, places = self._words[name]
            columns.append([None if place < 0 else words[place].as_py() for place in places[start:end].tolist()])
        return zip(*columns, strict=True)

    def grouped(self, row: int) -> dict[str, list[str]]:
        """The values of an item row by key."""
        values: defaultdict[str, list[str]] = defaultdict(list)
        for key, value in self.of(row, ("key", "value")):
            values[str(key)].append(str(value))
        return dict(values)
