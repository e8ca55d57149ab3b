"""Databases that tests have for themselves in the session's server."""

import psycopg
from psycopg import conninfo, sql

from rec import postgres
from rec.index import migrations


def fresh(database_url: str, name: str) -> str:
    """URL of a new database of this name, with the project's tables and no rows; one of before is no more."""
    known = sql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(known))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(known))
    url = conninfo.make_conninfo(database_url, dbname=name)
    with postgres.session(url) as connection:
        migrations.migrate(connection)
    return url
