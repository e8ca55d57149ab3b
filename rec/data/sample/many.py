"""A shop of any size, for measuring how stages grow: synthetic garments and events of shoppers with a taste.

The texts are written like those of the sample catalogue; a style number in each title keeps them distinct. A tenth as
many shoppers as events; products are chosen at random with a popularity that is as skewed as a shop's, most of them
among those of the shopper's taste: without it all shoppers' vectors are one, which no index of a shop has to search
for. The shop is given as a stranger's would be, parquet files and a recipe, so that it takes the same way in.
"""

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rec.data.sample import words
from rec.data.sample.catalogue import START, Role, drawn, row_of
from rec.data.sample.draw import Draw
from rec.data.sample.text import Garment

MOST = 10_000_000
EVENTS_PER_PRODUCT = 10
EVENTS_PER_USER = 10
SKEW = 1.5
"""Standard deviation of the logarithm of a product's popularity: a fifth of the products have three quarters of the
events."""
TASTE = 0.7
"""Share of a shopper's events that are of one category in one colour."""
DAYS = 90
BATCH = 10_000

_PLAIN = Role("plain", "many")
_GIVEN = ("category", "colour", "gender", "season", "fit")
"""Attributes that a garment may carry."""
_COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("product_id", "title", "description", "html", "brand", "currency")),
        ("price", pa.float32()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
_PRODUCTS = pa.schema([*_COLUMNS, *((name, pa.list_(pa.string())) for name in _GIVEN)])


def many(seed: int) -> Iterator[dict[str, Any]]:
    """Rows of the contract `products` in product_id order, MOST of them; equal seeds give equal rows."""
    return (row for _, row in _garments(seed))


def _garments(seed: int) -> Iterator[tuple[Garment, dict[str, Any]]]:
    draw = Draw(f"many {seed}")
    categories = tuple(words.COMMON.values())
    for number in range(MOST):
        garment = drawn(draw, draw.one(categories), f"{draw.one(words.NAMES)} {number}")
        yield garment, row_of(f"M{number:07d}", _PLAIN, garment, draw)


def write_shop(folder: Path, name: str, products: int, seed: int, settings: str = "") -> Path:
    """Write `products` garments, EVENTS_PER_PRODUCT times as many events, and the recipe `name` of them, which ends
    with the TOML `settings`. Returns the recipe's path."""
    garments = islice(_garments(seed), products)
    numbers: dict[tuple[str, str], int] = {}
    kinds: list[int] = []
    with pq.ParquetWriter(folder / "products.parquet", _PRODUCTS, compression="zstd") as writer:
        while batch := list(islice(garments, BATCH)):
            named = ((garment.category.name[0], garment.colour) for garment, _ in batch)
            kinds += [numbers.setdefault(kind, len(numbers)) for kind in named]
            rows = [row | row["attributes"] for _, row in batch]
            writer.write_table(pa.Table.from_pylist(rows, schema=_PRODUCTS))
    pq.write_table(_events(np.array(kinds, np.int32), seed), folder / "events.parquet", compression="zstd")
    recipe, draft = folder / f"{name}.toml", folder / f".{name}.toml"
    draft.write_text(_recipe(name, folder) + settings, encoding="utf-8")
    return draft.replace(recipe)


def _events(kind: NDArray[np.int32], seed: int) -> pa.Table:
    """Purchases of products of these kinds, numbered from 0, each of a random shopper at a random time of DAYS.

    A product is chosen by its popularity, for TASTE of them among those of the shopper's kind, which is that of a
    random product.
    """
    draw, products = np.random.default_rng(seed), len(kind)
    count = products * EVENTS_PER_PRODUCT
    order = np.argsort(kind, kind="stable")
    bounds = np.r_[0, np.cumsum(np.exp(SKEW * draw.standard_normal(products)))]
    ends = np.r_[0, np.cumsum(np.bincount(kind))]  # of each kind's products in the order
    taste = kind[draw.integers(products, size=max(1, count // EVENTS_PER_USER))]
    users = draw.integers(len(taste), size=count)
    own = draw.random(count) < TASTE
    low = np.where(own, bounds[ends[taste[users]]], 0)
    high = np.where(own, bounds[ends[taste[users] + 1]], bounds[-1])
    chosen = np.searchsorted(bounds, low + draw.random(count) * (high - low), side="right") - 1
    seconds = draw.integers(int(timedelta(days=DAYS).total_seconds()), size=count)
    start = np.datetime64(START.replace(tzinfo=None), "us")
    return pa.table(
        {
            "user_id": _named("U", users, 0),
            "product_id": _named("M", order[np.clip(chosen, 0, products - 1)], 7),
            "at": pa.array(start + seconds * np.timedelta64(1, "s"), pa.timestamp("us", tz="UTC")),
        }
    )


def _named(letter: str, numbers: np.ndarray, digits: int) -> pa.Array:
    padded = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(pa.scalar(letter), padded, "")


def _recipe(name: str, folder: Path) -> str:
    columns = "\n".join(f'{column} = "{column}"' for column in _COLUMNS.names)
    given = ", ".join(f'"{attribute}"' for attribute in _GIVEN)
    return f"""name = "{name}"

[source]
kind = "files"
folder = '{folder}'
products = "products.parquet"
events = "events.parquet"

[source.columns]
attributes = [{given}]

[source.columns.products]
{columns}

[source.columns.events]
user_id = "user_id"
product_id = "product_id"
at = "at"
"""
