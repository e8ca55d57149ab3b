"""Which bundle answers. Promotion and rollback are one transaction each; earlier vector tables stay.

A bundle whose evaluation is below the recipe's floor is promoted only when forced, and its promotion says so.
"""

from typing import Any

import psycopg
from psycopg import Connection

from rec import postgres
from rec.bundle import Bundle
from rec.errors import ArtifactError, DatabaseError
from rec.index import tables


def check_floor(bundle: Bundle, *, force: bool) -> None:
    """Raise ArtifactError when the bundle is below its recipe's floor and `force` is not given."""
    found = bundle.evaluation
    if not found.floor_met and not force:
        value = "not evaluated" if found.ndcg10 is None else f"NDCG@10 {found.ndcg10:.4f}"
        raise ArtifactError(
            f"bundle {bundle.id} is below the floor of recipe {bundle.recipe!r} ({value}, floor {found.floor:.4f}) "
            "and was not promoted: improve it, lower evaluate.floor_ndcg10, or promote it anyway with --force"
        )


def promote(database_url: str, bundle: Bundle, *, force: bool) -> str | None:
    """Make `bundle` the active one; returns the id of the one it replaces. Promoting the active bundle does nothing."""
    check_floor(bundle, force=force)
    with postgres.session(database_url) as connection, connection.transaction():
        tables.create(connection)
        before = _active(connection)
        if before == bundle.id:
            return before
        if connection.execute("SELECT 1 FROM bundles WHERE id = %s", (bundle.id,)).fetchone() is None:
            raise DatabaseError(f"bundle {bundle.id} is not in the database: run `python jobs/publish.py` to load it")
        found = bundle.evaluation
        connection.execute(
            "INSERT INTO promotions (bundle, ndcg10, floor, floor_met) VALUES (%s, %s, %s, %s)",
            (bundle.id, found.ndcg10, found.floor, found.floor_met),
        )
        _activate(connection, bundle.id)
    return before


def rollback(database_url: str) -> str:
    """Make the bundle that was active before the active one active again; returns its id."""
    with postgres.session(database_url) as connection, connection.transaction():
        tables.create(connection)
        current, earlier = _standing(connection)
        connection.execute("UPDATE promotions SET retracted_at = now() WHERE number = %s", (current,))
        _activate(connection, earlier)
    return earlier


def previous(database_url: str) -> str:
    """Id of the bundle that `rollback` would make active. Raises DatabaseError when there is none."""
    with postgres.session(database_url) as connection, connection.transaction():
        tables.create(connection)
        return _standing(connection)[1]


def _standing(connection: Connection[Any]) -> tuple[int, str]:
    """Number of the promotion in force, and the bundle of the one before it."""
    rows = connection.execute(
        "SELECT number, bundle FROM promotions WHERE retracted_at IS NULL ORDER BY number DESC LIMIT 2"
    ).fetchall()
    if len(rows) < 2:
        raise DatabaseError("there is no earlier bundle to roll back to: promote one with `python jobs/publish.py`")
    (number, _), (_, earlier) = rows
    return number, earlier


def active(connection: Connection[Any]) -> str:
    """Id of the active bundle. Raises DatabaseError when nothing has been promoted yet."""
    try:
        found = _active(connection)
    except psycopg.errors.UndefinedTable:
        found = None
    finally:
        connection.rollback()
    if found is None:
        raise DatabaseError(
            "no bundle is active in this database: run `python jobs/pipeline.py` or `python jobs/publish.py`"
        )
    return found


def _active(connection: Connection[Any]) -> str | None:
    row = connection.execute("SELECT bundle FROM active_bundle").fetchone()
    return None if row is None else str(row[0])


def _activate(connection: Connection[Any], bundle: str) -> None:
    connection.execute(
        "INSERT INTO active_bundle (bundle) VALUES (%s) ON CONFLICT (single) DO UPDATE SET bundle = excluded.bundle",
        (bundle,),
    )
