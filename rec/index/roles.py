"""Who may do what serving does: a role of its own that can select from these tables and add live events and lists.

The jobs connect as the owner of the tables, servers as a reader. What a reader may do is what ACLs in the database
say: who may read `active_bundle` may read the other SERVED tables and the vectors of every bundle, those of later ones
as well, and add to WRITTEN (`pass_on`). Deleting a user's data (`DELETE /v1/users/{id}`) needs FORGETTING as well,
which is granted by name only; a migration that makes a table of these adds it to what had been granted
(`pass_on_forgetting`), and what is revoked stays so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import Connection, sql

from rec import postgres
from rec.errors import DatabaseError

SERVED = (
    "products",
    "users",
    "events",
    "live_events",
    "exposures",
    "bundles",
    "promotions",
    "active_bundle",
    "experiments",
    "rules",
    "schema_version",
)
"""What the queries of a server read, beside the vectors of the active bundle."""
WRITTEN = ("live_events", "exposures")
"""The tables that a server adds rows to; it changes and deletes none."""
FORGETTING = {
    "users": ("SELECT", "DELETE"),
    "events": ("SELECT", "DELETE"),
    "live_events": ("SELECT", "DELETE"),
    "exposures": ("SELECT", "DELETE"),
    "forgotten": ("INSERT",),
    "forgotten_clients": ("INSERT",),
}
"""What deleting a user's data needs, by table."""

_VECTORS = r"^items_[0-9a-f]{12}$"


def grant(database_url: str, role: str, *, forget: bool = False) -> list[str]:
    """Let `role` serve from the tables that are there and from those of later bundles; returns their names.

    With `forget` it may delete the data of users, too.

    Raises DatabaseError when there is no such role, or nothing to serve yet.
    """
    with postgres.session(database_url) as connection:
        found = connection.execute(
            "SELECT rolsuper, current_schema() FROM pg_roles WHERE rolname = %s", (role,)
        ).fetchone()
        if found is None:
            raise DatabaseError(
                f"there is no role {role!r}: make it with `CREATE ROLE {role} LOGIN PASSWORD '...'`, then grant again"
            )
        superuser, schema = found
        if superuser:
            raise DatabaseError(f"role {role!r} is a superuser, whom nothing is refused: name another one")
        if connection.execute("SELECT to_regclass('active_bundle')").fetchone() == (None,):
            raise DatabaseError("there are no tables to grant yet: run `python jobs/database.py migrate` first")
        names = _tables(connection)
        connection.execute(
            sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), sql.Identifier(role))
        )
        _grant(connection, names, role)
        if forget:
            _let_forget(connection, role, FORGETTING)
        # where the grantor is not the owner, Postgres may only warn
        closed = connection.execute(
            "SELECT name FROM unnest(%s::text[]) name WHERE NOT has_table_privilege(%s, quote_ident(name), 'SELECT')",
            (names, role),
        ).fetchall()
        if closed:
            raise DatabaseError(
                f"{role!r} may still not read {closed[0][0]}: grant as the owner of the tables, whom "
                f"{postgres.URL_VARIABLE} has to name"
            )
    return names


def pass_on(connection: Connection[Any]) -> None:
    """Let every role that may read `active_bundle` read the other tables of serving; part of the caller's transaction.

    Whoever makes such a table calls it, so that a reader never meets one that is closed to it.
    """
    for role in _holders(connection, "active_bundle", "SELECT"):
        _grant(connection, _tables(connection), role)


def pass_on_forgetting(connection: Connection[Any], table: str) -> None:
    """Let every role that may delete users, events and live events do what FORGETTING says with a later table.

    For the migration that makes `table`, and part of its transaction: done again it would undo a revoke.
    """
    held = [set(_holders(connection, each, "DELETE")) for each in ("users", "events", "live_events")]
    for role in sorted(set.intersection(*held)):
        _let_forget(connection, role, {table: FORGETTING[table]})


def _holders(connection: Connection[Any], table: str, privilege: str) -> list[str]:
    """Roles beside its owner that have a privilege on a table."""
    rows = connection.execute(
        "SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE c.oid = to_regclass(%s) AND a.privilege_type = %s AND a.grantee <> c.relowner",
        (table, privilege),
    )
    return [role for (role,) in rows]


def _tables(connection: Connection[Any]) -> list[str]:
    """Names of the tables that a server reads, as far as they are there."""
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        " AND (relname = ANY(%s) OR relname ~ %s) ORDER BY relname",
        (list(SERVED), _VECTORS),
    )
    return [name for (name,) in rows]


def _grant(connection: Connection[Any], tables: list[str], role: str) -> None:
    connection.execute(
        sql.SQL("GRANT SELECT ON {} TO {}").format(
            sql.SQL(", ").join(sql.Identifier(name) for name in tables), sql.Identifier(role)
        )
    )
    for table in (name for name in WRITTEN if name in tables):
        connection.execute(sql.SQL("GRANT INSERT ON {} TO {}").format(sql.Identifier(table), sql.Identifier(role)))


def _let_forget(connection: Connection[Any], role: str, needed: Mapping[str, Sequence[str]]) -> None:
    for table, privileges in needed.items():
        connection.execute(
            sql.SQL("GRANT {} ON {} TO {}").format(
                sql.SQL(", ").join(map(sql.SQL, privileges)), sql.Identifier(table), sql.Identifier(role)
            )
        )
