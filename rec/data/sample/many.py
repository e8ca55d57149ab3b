"""A shop of any size, for measuring how stages grow: synthetic garments and events without planted structure.

The texts are written like those of the sample catalogue; a style number in each title keeps them distinct. The shop is
given as a stranger's would be, parquet files and a recipe, so that it takes the same way in.
"""

from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec.data.sample import words
from rec.data.sample.catalogue import START, Role, drawn, row_of
from rec.data.sample.draw import Draw

MOST = 10_000_000
EVENTS_PER_USER = 10
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
    draw = Draw(f"many {seed}")
    categories = tuple(words.COMMON.values())
    for number in range(MOST):
        garment = drawn(draw, draw.one(categories), f"{draw.one(words.NAMES)} {number}")
        yield row_of(f"M{number:07d}", _PLAIN, garment, draw)


def write_shop(folder: Path, name: str, products: int, seed: int) -> Path:
    """Write `products` garments, as many events, and the recipe `name` of them. Returns the recipe's path."""
    rows = islice(many(seed), products)
    with pq.ParquetWriter(folder / "products.parquet", _PRODUCTS, compression="zstd") as writer:
        while batch := [row | row["attributes"] for row in islice(rows, BATCH)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=_PRODUCTS))
    pq.write_table(_events(products, seed), folder / "events.parquet", compression="zstd")
    recipe = folder / f"{name}.toml"
    recipe.write_text(_recipe(name, folder), encoding="utf-8")
    return recipe


def _events(count: int, seed: int) -> pa.Table:
    """Purchases, each of a random shopper and product at a random time of DAYS."""
    draw = np.random.default_rng(seed)
    users = draw.integers(max(1, count // EVENTS_PER_USER), size=count)
    products = draw.integers(count, size=count)
    seconds = draw.integers(int(timedelta(days=DAYS).total_seconds()), size=count)
    start = np.datetime64(START.replace(tzinfo=None), "us")
    return pa.table(
        {
            "user_id": pa.array([f"U{user}" for user in users.tolist()]),
            "product_id": pa.array([f"M{product:07d}" for product in products.tolist()]),
            "at": pa.array(start + seconds * np.timedelta64(1, "s"), pa.timestamp("us", tz="UTC")),
        }
    )


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
