"""Backup and restore of the whole database, by the pg_dump and pg_restore that come with the embedded server.

A backup is one file in pg_dump's custom format: tables, rows and the definitions of indexes, no roles and no grants.
Where the embedded package is not installed, the programs are those on the PATH. A password never is an argument. What
a backup holds of shoppers nobody but its owner may read.
"""

import os
import shutil
import subprocess
import uuid
from pathlib import Path

from psycopg import conninfo

from rec import postgres
from rec.errors import ConfigError, DatabaseError


def backup(database_url: str, file: Path) -> int:
    """Write the database to `file`, which appears when it is complete; returns its bytes."""
    if file.exists():
        raise ConfigError(f"{file} is there already and a backup replaces none: name another file")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {file.parent} for the backup: make it, or name another file")
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        _call("pg_dump", database_url, "--format=custom", "--no-owner", "--no-privileges", "--file", str(part))
        size = part.stat().st_size
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return size


def restore(database_url: str, file: Path) -> int:
    """Fill an empty database from `file`, all or nothing; returns how many tables it has then."""
    if not file.is_file():
        raise ConfigError(f"there is no file {file}: name one that `python jobs/database.py backup` wrote")
    if _count_tables(database_url):
        raise DatabaseError(
            "the database has tables, and a backup is restored into an empty one only: name another database with "
            f"{postgres.URL_VARIABLE}, or stop the embedded server and move the folder `postgres` of the store away"
        )
    _call(
        "pg_restore", database_url, "--no-owner", "--no-privileges", "--no-comments", "--exit-on-error",
        "--single-transaction", str(file),
    )  # fmt: skip
    with postgres.session(database_url) as connection:
        connection.execute("ANALYZE")  # what the planner goes by is not in a backup
    return _count_tables(database_url)


def _count_tables(database_url: str) -> int:
    with postgres.session(database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _call(program: str, database_url: str, *options: str) -> None:
    folder = postgres.programs()
    path = str(folder / program) if folder is not None else shutil.which(program)
    if path is None:
        raise DatabaseError(f"{program} is not installed: install Postgres' client programs or 'shop-rec[embedded]'")
    where = {name: str(value) for name, value in conninfo.conninfo_to_dict(database_url).items()}
    password = where.pop("password", "")
    secret = {"PGPASSWORD": password} if password else {}
    command = [path, "--dbname", conninfo.make_conninfo(**where), *options]
    done = subprocess.run(
        command, env={**os.environ, **secret}, capture_output=True, text=True, check=False, umask=0o077
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise DatabaseError(
            f"{program} failed ({said}): see that the file is whole and readable, that its disk has space left, and "
            f"that {program} is at least as new as the server"
        )
