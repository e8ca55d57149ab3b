"""The Beauty benchmark (Amazon 2014, 5-core): the compact parquet cut of its products and review sequences.

    amazon2014_beauty_items.parquet       item_id, title
    amazon2014_beauty_sequences.parquet   reviewer_id, items (item ids, oldest first)

The cut has no times, only each reviewer's order: event n of every reviewer is on day n, so no time between events or
between reviewers means anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rec.config import Source
from rec.data.clean import Raw
from rec.data.files import first, read
from rec.dataset import Rejects
from rec.errors import InputError

ITEMS, SEQUENCES = "amazon2014_beauty_items.parquet", "amazon2014_beauty_sequences.parquet"
START = np.datetime64("2014-01-01T00:00:00", "s")


@dataclass(frozen=True, slots=True)
class Files:
    """The two files."""

    items: Path
    sequences: Path

    def all(self) -> dict[str, Path]:
        """The files by what they hold."""
        return {"products": self.items, "events": self.sequences}


def lies_in(folder: Path) -> bool:
    """Whether both files lie in `folder`."""
    return all((folder / name).is_file() for name in (ITEMS, SEQUENCES))


def find(folder: Path) -> Files:
    """The files in `folder`. Raises InputError where one is missing."""
    files = Files(folder / ITEMS, folder / SEQUENCES)
    for file in files.all().values():
        if not file.is_file():
            raise InputError(f"{file} does not exist: set source.folder to the folder of {ITEMS} and {SEQUENCES}")
    return files


def products(files: Files, source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw products: ids and titles."""
    yield from first(read(files.items, {"product_id": "item_id", "title": "title"}, rejects), source.limit)


def events(files: Files, rejects: Rejects) -> Iterator[Raw]:
    """Raw events, one per item of a sequence; all are ratings."""
    for raw in read(files.sequences, {"user_id": "reviewer_id", "sequence": "items"}, rejects):
        items = raw.table.column("sequence").combine_chunks()
        counts = items.value_lengths().to_numpy()
        owners = np.repeat(np.arange(len(counts)), counts)
        days = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        table = pa.table(
            {
                "user_id": raw.table.column("user_id").take(pa.array(owners)),
                "product_id": items.flatten().cast(pa.string()),
                "at": pa.array(START + days.astype("timedelta64[D]")).cast(pa.string()),
            }
        )
        yield Raw(raw.source, raw.positions[owners], table)
