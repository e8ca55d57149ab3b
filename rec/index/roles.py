"""Who may read what serving reads: a role of its own that can select from these tables and do nothing else.

The jobs connect as the owner of the tables, servers as a reader. What a reader may do is what ACLs in the database
say: who may read `active_bundle` may read the other SERVED tables and the vectors of every bundle, those of later ones
as well (`pass_on`).
"""

from typing import Any

from psycopg import Connection, sql

from rec import postgres
from rec.errors import DatabaseError

SERVED = ("products", "users", "events", "bundles", "active_bundle", "rules", "schema_version")
"""What the queries of a server read, beside the vectors of the active bundle."""

_VECTORS = r"^items_[0-9a-f]{12}$"


def grant(database_url: str, role: str) -> list[str]:
    """Let `role` read what serving reads, in tables that are there and in those of later bundles; returns their names.

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
    readers = connection.execute(
        "SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE c.oid = to_regclass('active_bundle') AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner"
    ).fetchall()
    for (role,) in readers:
        _grant(connection, _tables(connection), role)


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
