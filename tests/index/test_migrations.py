"""Migrations bring every earlier database to what a new one is, and refuse what they do not know."""

import threading
from collections.abc import Callable

import psycopg
import pytest
from psycopg import conninfo, sql

from rec import postgres
from rec.errors import DatabaseError
from rec.index import migrations
from rec.index.connections import Connections
from rec.index.migrations import LATEST, MIGRATIONS

VERSION_1 = """
CREATE TABLE IF NOT EXISTS products (
    catalogue text NOT NULL,
    product_id text NOT NULL,
    title text NOT NULL,
    price real,
    currency text,
    brand text,
    category text[] NOT NULL,
    available boolean NOT NULL,
    PRIMARY KEY (catalogue, product_id)
);
CREATE INDEX IF NOT EXISTS products_category ON products USING gin (category);
CREATE INDEX IF NOT EXISTS products_price ON products (catalogue, price);
CREATE TABLE IF NOT EXISTS users (
    catalogue text NOT NULL,
    user_id text NOT NULL,
    profile jsonb NOT NULL,
    PRIMARY KEY (catalogue, user_id)
);
CREATE TABLE IF NOT EXISTS events (
    catalogue text NOT NULL,
    user_id text NOT NULL,
    position integer NOT NULL,
    product_id text NOT NULL,
    event text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (catalogue, user_id, position)
);
CREATE TABLE IF NOT EXISTS loads (
    catalogue text NOT NULL,
    dataset text NOT NULL,
    content_hash text NOT NULL,
    PRIMARY KEY (catalogue, dataset)
);
CREATE TABLE IF NOT EXISTS bundles (
    id text PRIMARY KEY,
    catalogue text NOT NULL,
    items integer NOT NULL,
    width integer NOT NULL,
    kind text NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS promotions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bundle text NOT NULL REFERENCES bundles,
    ndcg10 double precision,
    floor double precision NOT NULL,
    floor_met boolean NOT NULL,
    promoted_at timestamptz NOT NULL DEFAULT now(),
    retracted_at timestamptz
);
CREATE TABLE IF NOT EXISTS active_bundle (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    bundle text NOT NULL REFERENCES bundles
);
INSERT INTO users VALUES ('tiny', 'ann', '{"height_cm": 172}');
INSERT INTO events VALUES ('tiny', 'ann', 0, 'P1', 'view', '2025-03-01T10:00:00Z');
INSERT INTO bundles (id, catalogue, items, width, kind) VALUES ('0123456789ab', 'tiny', 1, 2, 'halfvec');
INSERT INTO active_bundle (bundle) VALUES ('0123456789ab');
"""
"""What the first program made, before there were versions."""

COLUMNS = (
    "SELECT table_name, column_name, ordinal_position, data_type, is_nullable, column_default, is_identity"
    " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3"
)
INDEXES = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2"
CONSTRAINTS = (
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2"
)

Make = Callable[[str], str]


@pytest.fixture(scope="module")
def make(database_url: str) -> Make:
    """Makes an empty database of a name; returns its URL."""

    def empty(name: str) -> str:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return conninfo.make_conninfo(database_url, dbname=name)

    return empty


@pytest.fixture(scope="module")
def new(make: Make) -> str:
    """A database that this program made."""
    url = make("migrated_new")
    migrate(url)
    return url


def migrate(url: str) -> tuple[int, int]:
    """Migrate the database at `url`."""
    with postgres.session(url) as connection:
        return migrations.migrate(connection)


def of_version(url: str, version: int) -> None:
    """Bring an empty database to what it was at `version` of its tables."""
    with psycopg.connect(url) as connection:
        if version:
            connection.execute(VERSION_1)
        if version > 1:
            connection.execute("CREATE TABLE schema_version (version integer PRIMARY KEY, migrated_at timestamptz"
                               " NOT NULL DEFAULT now())")  # fmt: skip
            connection.execute("INSERT INTO schema_version (version) SELECT generate_series(1, %s)", (version,))
        for statements in MIGRATIONS[1:version]:
            for statement in statements:
                connection.execute(sql.SQL(statement))


def described(url: str) -> list[list[tuple[object, ...]]]:
    """Columns, indexes and constraints of a database."""
    with psycopg.connect(url) as connection:
        return [connection.execute(query).fetchall() for query in (COLUMNS, INDEXES, CONSTRAINTS)]


@pytest.mark.parametrize("version", range(LATEST + 1))
def test_every_earlier_version_becomes_the_latest_and_keeps_its_rows(make: Make, new: str, version: int) -> None:
    url = make("migrated")
    of_version(url, version)
    assert migrate(url) == (version, LATEST)
    assert described(url) == described(new)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT version FROM schema_version ORDER BY 1").fetchall() == [
            (number,) for number in range(1, LATEST + 1)
        ]
        kept = connection.execute("SELECT user_id, position FROM events").fetchall()
        assert kept == ([("ann", 0)] if version else [])
    assert migrate(url) == (LATEST, LATEST)


def test_two_processes_at_once_migrate_once(make: Make, new: str) -> None:
    url = make("migrated_twice")
    found: list[tuple[int, int]] = []
    both = [threading.Thread(target=lambda: found.append(migrate(url))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [after for _, after in found] == [LATEST, LATEST]
    assert described(url) == described(new)


def test_a_newer_database_is_refused_by_jobs_and_servers(make: Make) -> None:
    url = make("migrated_newer")
    migrate(url)
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO schema_version (version) VALUES (%s)", (LATEST + 1,))
    refusal = f"of version {LATEST + 1} and this program knows versions up to {LATEST}: install"
    with pytest.raises(DatabaseError, match=refusal):
        migrate(url)
    with pytest.raises(DatabaseError, match=refusal):
        Connections(url, size=1)


def test_a_server_asks_for_the_migration_of_an_older_database(make: Make) -> None:
    url = make("migrated_older")
    of_version(url, 1)
    with pytest.raises(DatabaseError, match=rf"of version 1 .* {LATEST}: run `python jobs/database\.py migrate`"):
        Connections(url, size=1)
    migrate(url)
    Connections(url, size=1).close()


def test_a_failed_migration_leaves_nothing_and_is_repeated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make("migrated_failed")
    of_version(url, 1)
    before = described(url)
    broken = (MIGRATIONS[0], ("ALTER TABLE events ADD COLUMN shelf text", "SELECT 1 / 0"))
    monkeypatch.setattr(migrations, "MIGRATIONS", broken)
    monkeypatch.setattr(migrations, "LATEST", 2)
    with pytest.raises(DatabaseError, match="DivisionByZero"):
        migrate(url)
    assert described(url) == before
    monkeypatch.undo()
    assert migrate(url) == (1, LATEST)


def test_a_table_in_use_is_not_waited_for_at_the_cost_of_servers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make("migrated_used")
    migrate(url)
    more = (*MIGRATIONS, ("ALTER TABLE events ADD COLUMN shelf text",))
    monkeypatch.setattr(migrations, "MIGRATIONS", more)
    monkeypatch.setattr(migrations, "LATEST", len(more))
    monkeypatch.setattr(migrations, "LOCK_WAIT_MS", 200)
    with psycopg.connect(url) as reading:
        reading.execute("SELECT count(*) FROM events")
        with pytest.raises(DatabaseError, match=r"used the tables for more than 0\.2 s.*try again"):
            migrate(url)
        with psycopg.connect(url) as server:
            assert server.execute("SELECT count(*) FROM events").fetchone() == (0,)
    assert migrate(url) == (len(MIGRATIONS), len(more))
