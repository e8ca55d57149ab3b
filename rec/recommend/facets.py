"""The values that rules can name, and which products of a bundle have them."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.bundle import Bundle
from rec.vocab.std import UNKNOWN

COLUMNS = ("brand", "group_id")
"""Keys of what the shop says of a product itself; all others are STD keys."""
KEYS = 64
"""Of so many a bundle's values are kept once they were asked for."""


class Facets:
    """Brand, group and STD values of a bundle's products, in item-row order."""

    def __init__(self, bundle: Bundle) -> None:
        table = bundle.products([*COLUMNS, "std"]).combine_chunks()
        std = table["std"].combine_chunks()
        parents = np.asarray(pc.list_parent_indices(std), np.int64)
        pairs = std.flatten()
        keys, values = pairs.field("key"), pairs.field("value")
        real = np.asarray(pc.not_equal(values, UNKNOWN))
        self._items = len(table)
        self._parents, self._values = parents[real], values.filter(pa.array(real))
        self._keys = np.asarray(keys.filter(pa.array(real)).to_pylist(), object)
        self._columns = {key: table[key].combine_chunks() for key in COLUMNS if table[key].null_count < len(table)}
        self.keys: list[str] = [*self._columns, *sorted(set(self._keys))]
        """What caps and selectors can name: keys of which some product has a value."""
        self.of: Callable[[str], tuple[list[str], NDArray[np.int32]]] = lru_cache(KEYS)(self._of)
        """(names of the values of a key, int32[N, W] their numbers for each product, -1 past its last one)."""

    def __len__(self) -> int:
        return self._items

    def _of(self, key: str) -> tuple[list[str], NDArray[np.int32]]:
        if key in self._columns:
            owners = np.flatnonzero(np.asarray(self._columns[key].is_valid()))
            values = self._columns[key].drop_null()
        else:
            mine = self._keys == key
            owners, values = self._parents[mine], self._values.filter(pa.array(mine))
        encoded = values.dictionary_encode()
        numbers = np.asarray(encoded.indices, np.int32)
        starts = np.searchsorted(owners, owners)  # owners ascend, so this is where each one's values begin
        place = np.arange(len(owners)) - starts
        codes = np.full((self._items, int(place.max(initial=0)) + 1), -1, np.int32)
        codes[owners, place] = numbers
        return encoded.dictionary.to_pylist(), codes

    def having(self, key: str, values: Sequence[str]) -> NDArray[np.bool_]:
        """bool[N] which products have any of `values` under `key`; values that none has count for nothing."""
        names, codes = self.of(key)
        numbers = [number for number, name in enumerate(names) if name in set(values)]
        return np.asarray(np.isin(codes, numbers).any(axis=1))
