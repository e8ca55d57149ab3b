"""Rebuild a damaged or missing table of vectors from the bundles whose vectors lie in it.

The new table is built beside the live one and takes its name at the end, all in one transaction: searches go on with
what is there, wait a moment for the switch, and find the whole table under the name that they know. Killed at any
moment it leaves nothing. It holds the rows of the largest of the bundles that share it, of which the others have the
first; each of them is compared with it before the switch.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from psycopg import Connection, sql

from rec import bundle, postgres
from rec.bundle import Bundle
from rec.config import Index
from rec.errors import ArtifactError, DatabaseError
from rec.index import check, load, migrations, roles, tables, vector_table
from rec.index.tables import Entry

log = logging.getLogger(__name__)

SWITCH_S = 300.0
"""How long the switch is tried: what was built took longer."""
TRY_MS = 500
"""One try: searches queue behind it while it waits for those that run, and have as long to themselves after it."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A table of vectors that was rebuilt."""

    found: str
    """What was wrong."""
    rows: int
    bundles: list[Bundle]
    """Those of the store whose vectors lie in it."""


def repair(database_url: str, store: str | Path, made: Bundle, index: Index) -> Rebuilt | None:
    """Rebuild the table that has the vectors of `made` where they are not the bundle's; None where all is well.

    The index is built by the options `index`, the vectors stay of the kind that they are. Raises ArtifactError where
    the files of a bundle that is needed are damaged or not in the store.
    """
    with postgres.session(database_url) as connection:
        migrations.require(connection)
        with tables.loading(connection):
            found = _damage(connection, made)
            if found is None:
                return None
            log.info("rebuilding the vectors of bundle %s: %s", made.id, found)
            entry = tables.entry(connection, made.id)
            sharing = _sharing(connection, entry.owner, store)
            largest = max(sharing, key=lambda each: each.items)
            draft = secrets.token_hex(6)
            _build(connection, draft, largest, index.model_copy(update={"kind": entry.kind}))
            for each in sharing:
                check.compare_with(connection, each, _right(each, replace(entry, owner=draft)))

            def switch() -> None:
                _rename(connection, draft, entry.owner)
                roles.pass_on(connection)
                _correct(connection, sharing, entry)

            _when_free(connection, switch)
    return Rebuilt(found, largest.items, sharing)


def _damage(connection: Connection[Any], made: Bundle) -> str | None:
    """What `check` says of the bundle."""
    try:
        with connection.transaction():
            check.compare(connection, made)
    except check.Differs as error:
        return error.what
    return None


def _sharing(connection: Connection[Any], owner: str, store: str | Path) -> list[Bundle]:
    """The verified bundles of the store whose vectors lie in the table of `owner`.

    One that the store lacks must have no more rows than these.
    """
    rows = connection.execute("SELECT id, items FROM bundles WHERE vectors = %s ORDER BY loaded_at, id", (owner,))
    items, there = dict(rows.fetchall()), set(bundle.names(store))
    found = [bundle.read(store, name) for name in items if name in there]
    for each in found:
        bundle.verify(each)
    most = max((each.items for each in found), default=0)
    for name, count in items.items():
        if name not in there and count > most:
            raise ArtifactError(
                f"bundle {name} has rows in the same table and is not in {Path(store) / 'bundles'}: fetch it with "
                f"`python jobs/bundles.py pull URI {name}`, or drop it with `gc` where it is not needed"
            )
    return found


def _when_free(connection: Connection[Any], switch: Callable[[], None]) -> None:
    """Do it as soon as nobody else is at the tables. A try that fails is undone, and what was built stays."""
    until, told = time.monotonic() + SWITCH_S, False
    while True:
        try:
            with tables.switching(connection, TRY_MS):
                switch()
            return
        except tables.HeldUp:
            if time.monotonic() > until:
                raise DatabaseError(
                    f"others were at the old table whenever it was to be replaced, for {SWITCH_S:g} s, so nothing was "
                    "repaired: end who reads it in long transactions (pg_stat_activity), then repair again"
                ) from None
            if not told:
                log.info("others are at the old table: trying to switch for %g s", SWITCH_S)
                told = True
        time.sleep(TRY_MS / 1_000)


def _rename(connection: Connection[Any], draft: str, owner: str) -> None:
    """Put the table that was built as `draft` in the place of that of `owner`."""
    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(tables.items_table(owner)))
    names = connection.execute(
        "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indrelid = to_regclass(%s)",
        (tables.items_table(draft).as_string(connection),),
    ).fetchall()
    for (name,) in names:
        connection.execute(
            sql.SQL("ALTER INDEX {} RENAME TO {}").format(
                sql.Identifier(name), sql.Identifier(name.replace(draft, owner))
            )
        )
    connection.execute(
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(tables.items_table(draft), sql.Identifier(f"items_{owner}"))
    )


def _build(connection: Connection[Any], name: str, made: Bundle, index: Index) -> None:
    ids, vectors = load.checked(made)
    vector_table.fill(connection, name, ids, vectors, index)
    vector_table.build(connection, name, made.items, made.width, index)
    vector_table.complete(connection, name)


def _right(made: Bundle, entry: Entry) -> Entry:
    return replace(entry, catalogue=made.recipe, items=made.items, width=made.width)


def _correct(connection: Connection[Any], sharing: list[Bundle], entry: Entry) -> None:
    """Have the entries say what the bundles say, and the table has."""
    for each in sharing:
        connection.execute(
            "UPDATE bundles SET catalogue = %s, items = %s, width = %s, kind = %s WHERE id = %s",
            (each.recipe, each.items, each.width, entry.kind, each.id),
        )
    left = connection.execute("SELECT count(*) FROM bundles WHERE vectors = %s", (entry.owner,)).fetchone()
    if left == (0,):
        raise DatabaseError(f"bundle {entry.owner} was dropped from the database meanwhile: there is nothing to repair")
