"""A shop of any size, for measuring how stages grow: synthetic garments and events without planted structure.

The texts are written like those of the sample catalogue; a style number in each title keeps them distinct. A tenth as
many shoppers as events; products are chosen at random with a popularity that is as skewed as a shop's. The shop is
given as a stranger's would be, parquet files and a recipe, so that it takes the same way in.
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

from rec.data.sample import words
from rec.data.sample.catalogue import START, Role, drawn, row_of
from rec.data.sample.draw import Draw

MOST = 10_000_000
EVENTS_PER_PRODUCT = 10
EVENTS_PER_USER = 10
SKEW = 1.5
"""Standard deviation of the logarithm of a product's popularity: a fifth of the products have three quarters of the
events."""
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


def write_shop(folder: Path, name: str, products: int, seed: int, settings: str = "") -> Path:
    """Write `products` garments, EVENTS_PER_PRODUCT times as many events, and the recipe `name` of them, which ends
    with the TOML `settings`. Returns the recipe's path."""
    rows = islice(many(seed), products)
    with pq.ParquetWriter(folder / "products.parquet", _PRODUCTS, compression="zstd") as writer:
        while batch := [row | row["attributes"] for row in islice(rows, BATCH)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=_PRODUCTS))
    pq.write_table(_events(products, seed), folder / "events.parquet", compression="zstd")
    recipe, draft = folder / f"{name}.toml", folder / f".{name}.toml"
    draft.write_text(_recipe(name, folder) + settings, encoding="utf-8")
    return draft.replace(recipe)


def _events(products: int, seed: int) -> pa.Table:
    """Purchases, each of a random shopper and a product by its popularity, at a random time of DAYS."""
    draw, count = np.random.default_rng(seed), products * EVENTS_PER_PRODUCT
    users = draw.integers(max(1, count // EVENTS_PER_USER), size=count)
    bounds = np.cumsum(np.exp(SKEW * draw.standard_normal(products)))
    chosen = np.searchsorted(bounds, draw.random(count) * bounds[-1], side="right")
    seconds = draw.integers(int(timedelta(days=DAYS).total_seconds()), size=count)
    start = np.datetime64(START.replace(tzinfo=None), "us")
    return pa.table(
        {
            "user_id": _named("U", users, 0),
            "product_id": _named("M", np.minimum(chosen, products - 1), 7),
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
