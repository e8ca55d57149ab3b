"""Which bundle answers. Promotion and rollback are one transaction each; earlier vector tables stay until `prune`.

Promotion changes the recipe's products, users and events in the same transaction. A rollback leaves them as they are:
what is known of stock, prices and shoppers does not get older. A bundle whose evaluation is below the recipe's floor
is promoted only when forced, and its promotion says so. While an experiment runs no other bundle becomes active, and
neither of its bundles is dropped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection, sql

from rec import postgres
from rec.bundle import Bundle
from rec.errors import ArtifactError, DatabaseError
from rec.index import experiments, load, migrations, retention, tables


def check_floor(bundle: Bundle, *, force: bool) -> None:
    """Raise ArtifactError when the bundle is below its recipe's floor and `force` is not given."""
    found = bundle.evaluation
    if not found.floor_met and not force:
        value = "not evaluated" if found.ndcg10 is None else f"NDCG@10 {found.ndcg10:.4f}"
        raise ArtifactError(
            f"bundle {bundle.id} is below the floor of recipe {bundle.recipe!r} ({value}, floor {found.floor:.4f}) "
            "and was not promoted: improve it, lower evaluate.floor_ndcg10, or promote it anyway with --force"
        )


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion did."""

    before: str | None
    """Id of the bundle that was active, which may be the promoted one; None when none was."""
    reloaded: bool
    """Whether products, users or events changed."""


def promote(database_url: str, bundle: Bundle, data: Path, *, force: bool, expected: str | None = None) -> Promoted:
    """Make `bundle` the active one, with its products, and the users and events of the recipe's folder `data`.

    Deletes what servers wrote longer ago than it is kept, before anything can be refused in the database. Raises
    DatabaseError for another bundle than the active one while an experiment runs, and where `expected` is given and no
    longer the active one.
    """
    check_floor(bundle, force=force)
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        retention.expire(connection)  # a promotion that is refused may be all that a nightly pipeline comes to
        with tables.switching(connection):
            if connection.execute("SELECT 1 FROM bundles WHERE id = %s", (bundle.id,)).fetchone() is None:
                raise DatabaseError(
                    f"bundle {bundle.id} is not in the database: run `python jobs/publish.py` to load it"
                )
            before = found_active(connection)
            if expected is not None and before != expected:
                raise DatabaseError(
                    f"bundle {before} has become the active one meanwhile, no longer {expected}, so {bundle.id} "
                    "was not promoted: start again"
                )
            if before != bundle.id:
                experiments.refuse_running(connection)
            done = Promoted(before, load.catalogue(connection, bundle, data, before))
            if done.before != bundle.id:
                _retract_of_same_models(connection, bundle)
                found = bundle.evaluation
                connection.execute(
                    "INSERT INTO promotions (bundle, ndcg10, floor, floor_met) VALUES (%s, %s, %s, %s)",
                    (bundle.id, found.ndcg10, found.floor, found.floor_met),
                )
                _activate(connection, bundle.id)
    return done


def _retract_of_same_models(connection: Connection[Any], bundle: Bundle) -> None:
    """Let the promotion to come take the place of those before it that are of the same training, back to the first of
    another one: that is what to roll back to."""
    connection.execute(
        "UPDATE promotions SET retracted_at = now() WHERE retracted_at IS NULL AND number > coalesce(("
        " SELECT max(p.number) FROM promotions p JOIN bundles b ON b.id = p.bundle"
        " WHERE p.retracted_at IS NULL AND b.root <> %s), 0)",
        (bundle.root,),
    )


def previous(database_url: str, recipe: str) -> str:
    """Id of the bundle that `rollback` would make active. Raises DatabaseError when it would refuse."""
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        return _standing(connection, recipe)[1]


def rollback(database_url: str, recipe: str, expected: str) -> None:
    """Make the bundle active again that was active before the active one, both of `recipe`.

    Raises DatabaseError when that is another one than `expected`: somebody promoted or rolled back meanwhile. And while
    an experiment runs.
    """
    with postgres.session(database_url) as connection:
        migrations.migrate(connection)
        with tables.switching(connection):
            experiments.refuse_running(connection)
            current, earlier = _standing(connection, recipe)
            if earlier != expected:
                raise DatabaseError(
                    f"the bundle before the active one is now {earlier}, no longer {expected}, so nothing was done: "
                    "see which one is active and try again"
                )
            connection.execute("UPDATE promotions SET retracted_at = now() WHERE number = %s", (current,))
            _activate(connection, earlier)


@dataclass(frozen=True, slots=True)
class Pruned:
    """Bundles in the database, by id."""

    kept: list[str]
    """The recipe's active one and the one to roll back to, and those of the database that answer."""
    dropped: list[str]
    """Those that were dropped, and tables that belonged to no bundle. Vectors that a kept one shares stay."""


def prune(database_url: str, recipe: str, *, dry_run: bool = False) -> Pruned:
    """Drop the vectors of the recipe's bundles that are not kept, and tables of vectors that belong to no bundle."""
    with postgres.session(database_url) as connection:
        migrations.require(connection)
        active(connection)  # where nothing is active, nothing is known to be superseded
        with tables.switching(connection):
            kept = [name for _, name, _ in _promotions(connection, recipe)]
            kept += [name for name in serving(connection) if name not in kept]
            rows = connection.execute(
                "SELECT id FROM bundles WHERE catalogue = %s AND id <> ALL(%s)", (recipe, kept)
            ).fetchall()
            dropped = [name for (name,) in rows]
            orphans = _orphans(connection, dropped)
            if not dry_run:
                for name in orphans:
                    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(tables.items_table(name)))
                forget(connection, dropped)
    return Pruned(kept, dropped + [name for name in orphans if name not in dropped])


def superseded(connection: Connection[Any], recipe: str, keep: Sequence[str], older_than_s: float) -> list[str]:
    """Ids of the recipe's bundles whose vectors lie in another one's table, loaded longer ago than that, but `keep`,
    those that answer and the one to roll back to."""
    kept = [*keep, *serving(connection), *(name for _, name, _ in _promotions(connection, recipe))]
    rows = connection.execute(
        "SELECT id FROM bundles WHERE catalogue = %s AND vectors <> id AND id <> ALL(%s)"
        " AND loaded_at <= now() - make_interval(secs => %s)",
        (recipe, kept, older_than_s),
    ).fetchall()
    return [name for (name,) in rows]


def forget(connection: Connection[Any], names: Sequence[str]) -> None:
    """Take bundles out of the database; tables of vectors stay."""
    for name in names:
        connection.execute("DELETE FROM promotions WHERE bundle = %s", (name,))
        connection.execute("DELETE FROM bundles WHERE id = %s", (name,))


def _orphans(connection: Connection[Any], dropped: Sequence[str]) -> list[str]:
    """Whose tables hold no vectors of any bundle but `dropped`."""
    rows = connection.execute(
        "SELECT substr(relname, 7) FROM pg_class WHERE relkind = 'r' AND relname ~ '^items_[0-9a-f]{12}$'"
        " AND relnamespace = current_schema()::regnamespace"
        " AND substr(relname, 7) NOT IN (SELECT vectors FROM bundles WHERE id <> ALL(%s))",
        (list(dropped),),
    ).fetchall()
    return [name for (name,) in rows]


def before(connection: Connection[Any]) -> str | None:
    """Id of the bundle that was active before the active one, whatever its recipe; None where there is none."""
    rows = _promotions(connection)
    return rows[1][1] if len(rows) > 1 else None


def stand_ins(connection: Connection[Any]) -> list[str]:
    """Ids of bundles that may answer where the active one cannot be served, the last one first.

    They are of its recipe, were active before it, and nobody rolled them back: those that it took the place of, as
    being of the same training, and those before them.
    """
    rows = connection.execute(
        "WITH current AS (SELECT p.number, p.promoted_at FROM promotions p JOIN active_bundle a ON a.bundle = p.bundle"
        "  WHERE p.retracted_at IS NULL ORDER BY p.number DESC LIMIT 1)"
        " SELECT p.bundle FROM promotions p JOIN current c ON p.number < c.number JOIN bundles b ON b.id = p.bundle"
        "  JOIN active_bundle a ON a.bundle <> p.bundle JOIN bundles own ON own.id = a.bundle"
        " WHERE b.catalogue = own.catalogue AND (p.retracted_at IS NULL OR p.retracted_at = c.promoted_at)"
        " GROUP BY p.bundle ORDER BY max(p.number) DESC"
    )
    return [name for (name,) in rows]


def known(connection: Connection[Any]) -> list[dict[str, Any]]:
    """Bundles whose vectors are loaded, newest first: `bundle`, `recipe`, `items` and `loaded_at`."""
    rows = connection.execute("SELECT id, catalogue, items, loaded_at FROM bundles ORDER BY loaded_at DESC, id")
    return [dict(zip(("bundle", "recipe", "items", "loaded_at"), row, strict=True)) for row in rows]


def _standing(connection: Connection[Any], recipe: str) -> tuple[int, str]:
    """Number of the promotion in force, and the bundle of the one before it, both of `recipe`."""
    rows = _promotions(connection)
    if len(rows) < 2:
        raise DatabaseError("there is no earlier bundle to roll back to: promote one with `python jobs/publish.py`")
    (number, current, of), (_, earlier, earlier_of) = rows
    if of != recipe:
        raise DatabaseError(
            f"the active bundle {current} is of recipe {of!r}, not {recipe!r}: roll back with --recipe {of}, "
            f"or activate {recipe!r} with `python jobs/publish.py --recipe {recipe}`"
        )
    if earlier_of != recipe:
        raise DatabaseError(
            f"the bundle before the active one, {earlier}, is of recipe {earlier_of!r}, not {recipe!r}: "
            f"activate it with `python jobs/publish.py --recipe {earlier_of}`"
        )
    return number, earlier


def _promotions(connection: Connection[Any], recipe: str | None = None) -> list[tuple[int, str, str]]:
    """(number, bundle, recipe) of the two newest promotions that stand, newest first; of one recipe if it is given."""
    return connection.execute(
        "SELECT p.number, p.bundle, b.catalogue FROM promotions p JOIN bundles b ON b.id = p.bundle"
        " WHERE p.retracted_at IS NULL AND b.catalogue = coalesce(%s, b.catalogue) ORDER BY p.number DESC LIMIT 2",
        (recipe,),
    ).fetchall()


def active(connection: Connection[Any]) -> str:
    """Id of the active bundle. Raises DatabaseError when nothing has been promoted yet."""
    try:
        found = found_active(connection)
    except psycopg.errors.UndefinedTable:
        found = None
    finally:
        connection.rollback()
    if found is None:
        raise DatabaseError(
            "no bundle is active in this database: run `python jobs/pipeline.py` or `python jobs/publish.py`"
        )
    return found


def found_active(connection: Connection[Any]) -> str | None:
    """Id of the active bundle; None where nothing was promoted yet."""
    row = connection.execute("SELECT bundle FROM active_bundle").fetchone()
    return None if row is None else str(row[0])


def serving(connection: Connection[Any]) -> list[str]:
    """Ids of the bundles that answer: the active one, and the treatment of the experiment that runs."""
    active_, experiment = found_active(connection), experiments.running(connection)
    return [name for name in (active_, None if experiment is None else experiment.treatment) if name is not None]


def _activate(connection: Connection[Any], bundle: str) -> None:
    connection.execute(
        "INSERT INTO active_bundle (bundle) VALUES (%s) ON CONFLICT (single) DO UPDATE SET bundle = excluded.bundle",
        (bundle,),
    )
