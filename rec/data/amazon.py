"""Amazon reviews of 2014 (5-core): UCSD's official files of any category, or the parquet cut of the Beauty benchmark.

    official   reviews_<category>_5.json.gz   one JSON object a line
               meta_<category>.json.gz        one Python dict a line
    cut        amazon2014_beauty_items.parquet       item_id, asin, title, s3rec_attr_ids
               amazon2014_beauty_sequences.parquet   reviewer_id, items (item ids, oldest first)

Products are those that have reviews; the title of one that has none is its asin, so that none of them, nor its events,
is lost to the benchmark. Ids are asins, in the cut its own numbers.

The cut knows categories and brands by number alone: they are given under `detail` as words, `category173`, since no
vocabulary value is meant by one.

The cut has no times, only each reviewer's order: event n of every reviewer is on day n, so no time between events or
between reviewers means anything.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec.config import Source
from rec.data import parse
from rec.data.clean import Raw
from rec.data.files import first, read, read_lines
from rec.dataset import Rejects
from rec.errors import InputError

ITEMS, SEQUENCES = "amazon2014_beauty_items.parquet", "amazon2014_beauty_sequences.parquet"
START = np.datetime64("2014-01-01T00:00:00", "s")
_META = {
    "product_id": "asin",
    "title": "title",
    "description": "description",
    "price": "price",
    "brand": "brand",
    "image_urls": "imUrl",
    "attributes.category": "categories",
}
_CUT = {"product_id": "item_id", "title": "title", "asin": "asin", "attributes.detail": "s3rec_attr_ids"}
_REVIEWS = {"user_id": "reviewerID", "product_id": "asin", "at": "unixReviewTime", "value": "overall"}


@dataclass(frozen=True, slots=True)
class Files:
    """The two files of one form."""

    products: Path
    events: Path
    official: bool

    def all(self) -> dict[str, Path]:
        """The files by what they hold."""
        return {"products": self.products, "events": self.events}


def lies_in(folder: Path) -> bool:
    """Whether `find` would find Beauty in `folder`, official or as the cut."""
    pairs = _official(folder)
    if pairs:
        return [pair.events.name for pair in pairs] == ["reviews_Beauty_5.json.gz"]
    return all((folder / name).is_file() for name in (ITEMS, SEQUENCES))


def find(folder: Path) -> Files:
    """The official files in `folder`, or else the cut. Raises InputError where one is missing or there are several."""
    pairs = _official(folder)
    if len(pairs) > 1:
        names = ", ".join(pair.events.name for pair in pairs)
        raise InputError(f"{folder} holds the reviews of several categories ({names}): leave one, or move them apart")
    if pairs:
        return pairs[0]
    files = Files(folder / ITEMS, folder / SEQUENCES, official=False)
    for file in files.all().values():
        if not file.is_file():
            raise InputError(
                f"{file} does not exist: set source.folder to the folder of {ITEMS} and {SEQUENCES}, "
                "or of UCSD's reviews_<category>_5.json.gz and meta_<category>.json.gz"
            )
    return files


def products(files: Files, source: Source, rejects: Rejects) -> Iterator[Raw]:
    """Raw products, one per item that has reviews."""
    yield from first(
        _official_products(files, rejects) if files.official else _cut_products(files, rejects), source.limit
    )


def events(files: Files, rejects: Rejects) -> Iterator[Raw]:
    """Raw events: one per review, or per item of a sequence."""
    if files.official:
        yield from read_lines(files.events, _REVIEWS, rejects)
    else:
        yield from _cut_events(files, rejects)


def _official(folder: Path) -> list[Files]:
    """Every pair of official files of one category, by name."""
    found = []
    for reviews in sorted(folder.glob("reviews_*_5.json.gz")):
        category = reviews.name.removeprefix("reviews_").removesuffix("_5.json.gz")
        meta = folder / f"meta_{category}.json.gz"
        if meta.is_file():
            found.append(Files(meta, reviews, official=True))
    return found


def _official_products(files: Files, rejects: Rejects) -> Iterator[Raw]:
    """Products of the meta file that have reviews, in its order, and then those that only reviews name."""
    reviewed: dict[str, int] = {}
    for raw in read_lines(files.events, {"product_id": "asin"}, Rejects()):  # `events` tells what of it cannot be read
        ids = parse.text(raw.table.column("product_id")).to_pylist()
        for position, asin in zip(raw.positions.tolist(), ids, strict=True):
            if asin is not None:
                reviewed.setdefault(asin, position)
    named: set[str] = set()
    for raw in read_lines(files.products, _META, rejects, _meta):
        ids = parse.text(raw.table.column("product_id"))
        chosen = pc.is_in(ids, pa.array(reviewed, pa.string()))
        named.update(ids.filter(chosen).to_pylist())
        yield _titled(Raw(raw.source, raw.positions[chosen.to_numpy()], raw.table.filter(chosen)), "product_id")
    only = {asin: position for asin, position in reviewed.items() if asin not in named}
    if only:
        asins = pa.array(only, pa.string())
        table = pa.table({"product_id": asins, "title": asins})
        yield Raw(files.events.name, np.array(list(only.values())), table)


def _meta(line: str) -> Any:
    """The object of a line of the meta file, JSON or a Python literal, with `categories` as the names of its leaves."""
    try:
        record = json.loads(line)
    except ValueError:
        record = _literal(line)
    if isinstance(record, dict):
        # A category none of whose products has, say, a brand lacks the key throughout: that is no wrong column.
        record = {**dict.fromkeys(_META.values()), **record, "categories": _leaves(record.get("categories"))}
    return record


def _literal(line: str) -> Any:
    try:
        return ast.literal_eval(line.strip())
    except (SyntaxError, TypeError, MemoryError) as error:
        raise ValueError("no Python literal") from error


def _leaves(paths: Any) -> list[str]:
    """The last names of the category paths, each once; a path of the root alone has none."""
    whole = [path for path in paths if isinstance(path, list)] if isinstance(paths, list) else []
    return list(dict.fromkeys(str(path[-1]) for path in whole if len(path) > 1))


def _cut_products(files: Files, rejects: Rejects) -> Iterator[Raw]:
    for raw in read(files.products, _CUT, rejects):
        titled = _titled(raw, "asin")
        numbers = parse.lists(titled.table.column("attributes.detail"))
        words = pa.array([[f"category{number}" for number in row] for row in numbers], pa.list_(pa.string()))
        place = titled.table.column_names.index("attributes.detail")
        yield Raw(raw.source, raw.positions, titled.table.set_column(place, "attributes.detail", words))


def _cut_events(files: Files, rejects: Rejects) -> Iterator[Raw]:
    """One event per item of a sequence."""
    for raw in read(files.events, {"user_id": "reviewer_id", "sequence": "items"}, rejects):
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


def _titled(raw: Raw, asin: str) -> Raw:
    """Products with their asin, the column of that name, as the title where they have none."""
    title = pc.coalesce(parse.text(raw.table.column("title")), parse.text(raw.table.column(asin)))
    return Raw(raw.source, raw.positions, raw.table.set_column(raw.table.column_names.index("title"), "title", title))
