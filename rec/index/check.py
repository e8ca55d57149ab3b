"""Whether the database holds a bundle's vectors as the bundle does: every row, every id, every bit."""

import hashlib
from collections.abc import Iterator
from typing import Any

from pgvector.psycopg import register_vector
from psycopg import Connection, errors, sql

from rec import postgres
from rec.bundle import Bundle
from rec.errors import DatabaseError
from rec.index import tables
from rec.index.tables import Entry

_ROWS = 8_192
_DAMAGE = (
    errors.DataCorrupted,
    errors.IndexCorrupted,
    errors.InternalError_,
    errors.UndefinedColumn,
    errors.UndefinedFile,
    errors.UndefinedTable,
)
"""What Postgres says of a table that it cannot read; whatever else it says is not the table's fault."""


class Differs(DatabaseError):
    """The database has other vectors than the bundle."""

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


def check(database_url: str, made: Bundle) -> str | None:
    """`compare` with the database at a URL."""
    with postgres.session(database_url) as connection:
        return compare(connection, made)


def compare(connection: Connection[Any], made: Bundle) -> str | None:
    """SHA-256 of ids and vectors in row order, equal to the bundle's; None where the bundle is not loaded.

    Raises Differs naming what differs: the entry of the bundle, a table that is missing, an index that is missing
    or invalid, the number of rows, the first row with another id or vector, or what Postgres cannot read. The
    transaction of the last is of no more use.
    """
    if connection.execute("SELECT to_regclass('bundles')").fetchone() == (None,):
        return None
    entry = tables.find(connection, made.id)
    return None if entry is None else compare_with(connection, made, entry)


def compare_with(connection: Connection[Any], made: Bundle, entry: Entry) -> str:
    """`compare` with what an entry says, which need not be the bundle's own."""
    said = (entry.catalogue, entry.items, entry.width)
    if said != (made.recipe, made.items, made.width):
        raise _differs(made, f"its entry says {said}, not {(made.recipe, made.items, made.width)}")
    try:
        _check_indexes(connection, made, entry)
        return _check_rows(connection, made, entry)
    except _DAMAGE as error:
        raise _differs(made, f"Postgres cannot read them: {str(error).partition(chr(10))[0]}") from error


def _check_indexes(connection: Connection[Any], made: Bundle, entry: Entry) -> None:
    table = entry.table.as_string(connection)
    if connection.execute("SELECT to_regclass(%s)", (table,)).fetchone() == (None,):
        raise _differs(made, f"there is no table {table}")
    rows = connection.execute(
        "SELECT a.amname, i.indisunique, i.indisvalid AND i.indisready FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam WHERE i.indrelid = to_regclass(%s)",
        (table,),
    ).fetchall()
    good = [(method, unique) for method, unique, valid in rows if valid]
    if good.count(("hnsw", False)) != 1 or good.count(("btree", True)) != 2:
        raise _differs(made, "an index is missing or invalid")


def _check_rows(connection: Connection[Any], made: Bundle, entry: Entry) -> str:
    ids, vectors, value = made.product_ids(), made.item_vectors(), tables.embedding(entry.kind)
    stored, own, count = hashlib.sha256(), hashlib.sha256(), 0
    for block in _blocks(connection, entry):
        for row, product_id, vector in block:
            if row != count:
                raise _differs(made, f"row {row} stands where row {count} of {made.items} should")
            if product_id != ids[row]:
                raise _differs(made, f"row {row} is product {product_id!r}, not {ids[row]!r}")
            count += 1
            stored.update(f"{product_id}\0".encode() + vector.to_binary())
        for row in range(count - len(block), count):
            own.update(f"{ids[row]}\0".encode() + value(vectors[row]).to_binary())
        if stored.digest() != own.digest():
            wrong = next(row for row, _, vector in block if vector.to_binary() != value(vectors[row]).to_binary())
            raise _differs(made, f"the vector of product {ids[wrong]!r} is another one")
    if count != made.items:
        raise _differs(made, f"it has {count} rows, not {made.items}")
    return stored.hexdigest()


def _blocks(connection: Connection[Any], entry: Entry) -> Iterator[list[tuple[int, str, Any]]]:
    """The bundle's rows of the vector table in row order; after them there may be those of bundles that extend it."""
    register_vector(connection)
    query = sql.SQL("SELECT row, product_id, embedding FROM {} WHERE row < %s ORDER BY row")
    with connection.cursor("rows", binary=True) as cursor:
        cursor.execute(query.format(entry.table), (entry.items,))
        while block := cursor.fetchmany(_ROWS):
            yield block


def _differs(made: Bundle, what: str) -> Differs:
    return Differs(
        f"the vectors of bundle {made.id} in the database are not those of the bundle ({what}): rebuild them from it "
        f"with `python jobs/bundles.py repair {made.id} --recipe {made.recipe}`",
        what,
    )
