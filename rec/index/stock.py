"""Prices and stock as the shop has them now, without a bundle: the next search and the next answer go by them."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from psycopg import Connection

from rec.errors import InputError
from rec.index import tables

COLUMNS = ("product_id", "price", "currency", "available")


class TooManyLost(InputError):
    """So much of the stock does not end at once: the source is broken."""


@dataclass(frozen=True, slots=True)
class Changed:
    """How many products of the database were changed."""

    prices: int
    """Another price or currency."""
    sold_out: int
    """No longer in stock."""
    back: int
    """In stock again."""
    gone: int
    """Of those sold out: no longer in the shop's files."""


def update(connection: Connection[Any], catalogue: str, products: pa.Table, *, most_lost: float = 1.0) -> Changed:
    """Take over COLUMNS of `products`, all that the shop has; who is not among them is out of stock.

    One transaction. Products that the database does not have are passed over. Raises TooManyLost, and changes nothing,
    where more than the share `most_lost` of those in stock would no longer be.
    """
    with connection.transaction():
        connection.execute(
            "CREATE TEMP TABLE told (product_id text PRIMARY KEY, price real, currency text,"
            " available boolean NOT NULL) ON COMMIT DROP"
        )
        with (
            connection.cursor() as cursor,
            cursor.copy(f"COPY told ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.set_types(["text", "float4", "text", "bool"])
            for batch in products.select(COLUMNS).to_batches(8_192):
                for row in batch.to_pylist():
                    copy.write_row(tuple(row.values()))
        with tables.switching(connection):
            found = _take_over(connection, catalogue)
            _check_lost(connection, catalogue, found, most_lost)
    return found


def _take_over(connection: Connection[Any], catalogue: str) -> Changed:
    row = connection.execute(
        "WITH now AS ("
        " SELECT p.product_id, t.product_id IS NULL AS gone, coalesce(t.available, false) AS available,"
        "  p.available AS before, t.product_id IS NOT NULL"
        "   AND (p.price, p.currency) IS DISTINCT FROM (t.price, t.currency) AS priced,"
        "  CASE WHEN t.product_id IS NULL THEN p.price ELSE t.price END AS price,"
        "  CASE WHEN t.product_id IS NULL THEN p.currency ELSE t.currency END AS currency"
        " FROM products p LEFT JOIN told t USING (product_id) WHERE p.catalogue = %(catalogue)s),"
        " done AS (UPDATE products p SET price = n.price, currency = n.currency, available = n.available"
        "  FROM now n WHERE p.catalogue = %(catalogue)s AND p.product_id = n.product_id"
        "  AND (n.priced OR n.available <> n.before)"
        "  RETURNING n.priced, n.available, n.before, n.gone)"
        " SELECT count(*) FILTER (WHERE priced), count(*) FILTER (WHERE before AND NOT available),"
        "  count(*) FILTER (WHERE available AND NOT before), count(*) FILTER (WHERE before AND gone) FROM done",
        {"catalogue": catalogue},
    ).fetchone()
    assert row is not None
    return Changed(*row)


def _check_lost(connection: Connection[Any], catalogue: str, found: Changed, most_lost: float) -> None:
    query = "SELECT count(*) FROM products WHERE catalogue = %s AND available"
    row = connection.execute(query, (catalogue,)).fetchone()
    assert row is not None
    before = row[0] - found.back + found.sold_out
    if found.sold_out > most_lost * before:
        raise TooManyLost(
            f"{found.sold_out} of the {before} products in stock would no longer be, {found.gone} of them because they "
            f"are not in the source; that is more than {most_lost:.0%}, so nothing was changed"
        )
