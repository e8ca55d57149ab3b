"""Reading products and enriched side by side, and counting what their attributes say.

Both hold the products in the same order in row groups of the same size, so a task reads the two row groups of its
number and nothing has to be joined or shuffled. Nothing here imports torch: counting tasks stay small.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec.vocab.drift import Counts
from rec.vocab.re import split_words

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Files:
    """Paths of the parquet files of `enriched` and `products`."""

    enriched: str
    products: str

    def attributes(self, group: int) -> pa.Table:
        """product_id, std and re of a row group."""
        return pq.ParquetFile(self.enriched).read_row_group(group, columns=["product_id", "std", "re"])

    def texts(self, group: int) -> pa.Table:
        """title, description and group_id of a row group."""
        return pq.ParquetFile(self.products).read_row_group(group, columns=["title", "description", "group_id"])


def count(batch: pa.Table, files: Files) -> pa.Table:
    """Counts of the row groups whose numbers are in column `id`, as rows of `Counts.table`."""
    counts = Counts()
    for group in batch.column("id").to_pylist():
        table = files.attributes(group)
        counts.products += table.num_rows
        for pairs in pairs_of(table.column("std")):
            counts.std.update(dict.fromkeys(pairs).keys())
            counts.std_keys.update({key for key, _ in pairs})
        for pairs in pairs_of(table.column("re")):
            words = {(key, word) for key, value in pairs for word in split_words(value)}
            counts.re.update(words)
            counts.tokens.update({word for _, word in words})
    return counts.table()


def pairs_of(column: pa.ChunkedArray) -> list[list[Pair]]:
    """(key, value) of each row of an ATTRIBUTES column."""
    lists = column.combine_chunks()
    flat = lists.flatten()
    pairs = list(zip(flat.field("key").to_pylist(), flat.field("value").to_pylist(), strict=True))
    ends = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))]).tolist()
    return [pairs[start:end] for start, end in pairwise(ends)]
