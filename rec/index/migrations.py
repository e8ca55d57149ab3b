"""How the tables of the serving database came about: numbered migrations, forward only.

A database is of version n when the first n entries of MIGRATIONS have run; the table `schema_version` has a row for
each. Each runs in a transaction of its own, together with its row, so a killed one leaves nothing. To change a table,
append a list of statements; what is published is never edited, because databases that have run it exist.

Servers go on answering meanwhile. A statement that has to wait for them gives up after LOCK_WAIT_MS, since whoever
asks for the table after it would wait behind it, and the next run starts at the same migration. Adding a table, or a
column with a constant default, takes a moment. CREATE INDEX on a table that is there already lets everybody read but
nobody write until it is built: make it where rows are few, or when the table is made.
"""

from collections.abc import Sequence
from typing import Any

from psycopg import Connection, errors, sql

from rec.errors import DatabaseError
from rec.index import roles

MIGRATIONS: Sequence[Sequence[str]] = (
    (
        """
CREATE TABLE products (
    catalogue text NOT NULL,
    product_id text NOT NULL,
    title text NOT NULL,
    price real,
    currency text,
    brand text,
    category text[] NOT NULL,
    available boolean NOT NULL,
    PRIMARY KEY (catalogue, product_id)
)""",
        "CREATE INDEX products_category ON products USING gin (category)",
        "CREATE INDEX products_price ON products (catalogue, price)",
        """
CREATE TABLE users (
    catalogue text NOT NULL,
    user_id text NOT NULL,
    profile jsonb NOT NULL,
    PRIMARY KEY (catalogue, user_id)
)""",
        """
CREATE TABLE events (
    catalogue text NOT NULL,
    user_id text NOT NULL,
    position integer NOT NULL,
    product_id text NOT NULL,
    event text NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (catalogue, user_id, position)
)""",
        """
CREATE TABLE loads (
    catalogue text NOT NULL,
    dataset text NOT NULL,
    content_hash text NOT NULL,
    PRIMARY KEY (catalogue, dataset)
)""",
        """
CREATE TABLE bundles (
    id text PRIMARY KEY,
    catalogue text NOT NULL,
    items integer NOT NULL,
    width integer NOT NULL,
    kind text NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
)""",
        """
CREATE TABLE promotions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bundle text NOT NULL REFERENCES bundles,
    ndcg10 double precision,
    floor double precision NOT NULL,
    floor_met boolean NOT NULL,
    promoted_at timestamptz NOT NULL DEFAULT now(),
    retracted_at timestamptz
)""",
        """
CREATE TABLE active_bundle (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    bundle text NOT NULL REFERENCES bundles
)""",
    ),
    (
        # users whose data was deleted: no load brings them back (rec/index/forget.py)
        """
CREATE TABLE forgotten (
    catalogue text NOT NULL,
    user_hash bytea NOT NULL,
    forgotten_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (catalogue, user_hash)
)""",
    ),
    (
        # what merchandisers say about lists (rec/index/rule_versions.py)
        """
CREATE TABLE rules (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    catalogue text NOT NULL,
    source text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    retracted_at timestamptz
)""",
        "CREATE INDEX rules_catalogue ON rules (catalogue, number)",
    ),
    ("ALTER TABLE events ADD COLUMN size text, ADD COLUMN fit text",),
    (
        # what servers were told of shoppers since the last ingest (rec/index/live_events.py)
        """
CREATE TABLE live_events (
    catalogue text NOT NULL,
    event_id text NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    user_id text,
    client_id text,
    product_id text NOT NULL,
    event text NOT NULL,
    at timestamptz NOT NULL,
    context text,
    size text,
    fit text,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (catalogue, event_id),
    CHECK (num_nonnulls(user_id, client_id) = 1)
)""",
        "CREATE INDEX live_events_user ON live_events (catalogue, user_id, at) WHERE user_id IS NOT NULL",
        "CREATE INDEX live_events_client ON live_events (catalogue, client_id, at) WHERE client_id IS NOT NULL",
        # A server may not read `forgotten`, so the function does as the owner of the tables. Whoever can make a
        # temporary table could put it on that one: it works on this one alone, looks for names in this schema first
        # and for temporary ones last.
        """
DO $do$
BEGIN
    EXECUTE format($sql$
CREATE FUNCTION not_of_forgotten() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = %I, pg_temp AS $$
BEGIN
    IF TG_RELID <> 'live_events'::regclass THEN
        RAISE insufficient_privilege USING MESSAGE = 'not_of_forgotten is for live_events';
    END IF;
    IF EXISTS (
        SELECT 1 FROM forgotten f WHERE f.catalogue = NEW.catalogue AND f.user_hash =
            sha256(convert_to(NEW.catalogue, 'UTF8') || decode('00', 'hex') || convert_to(NEW.user_id, 'UTF8'))
    ) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$
    $sql$, current_schema());
END $do$""",
        """
CREATE TRIGGER not_of_forgotten BEFORE INSERT ON live_events
FOR EACH ROW WHEN (NEW.user_id IS NOT NULL) EXECUTE FUNCTION not_of_forgotten()""",
    ),
    (
        # the loaded events hold it as well, and it counts there
        "ALTER TABLE live_events ADD COLUMN in_log boolean NOT NULL DEFAULT false",
        # by ids, in whose order they are inserted, it would not say which came first; `received_at` does
        "ALTER TABLE live_events DROP COLUMN number",
        "CREATE INDEX live_events_received ON live_events (received_at)",
    ),
    (
        # lists as servers have shown them (rec/index/exposures.py)
        """
CREATE TABLE exposures (
    exposure_id uuid PRIMARY KEY,
    catalogue text NOT NULL,
    bundle text NOT NULL,
    experiment bigint,
    arm text,
    user_id text,
    client_id text,
    served_at timestamptz NOT NULL,
    at timestamptz NOT NULL,
    context text NOT NULL,
    k integer NOT NULL,
    degraded text[] NOT NULL,
    products text[] NOT NULL,
    scores real[] NOT NULL,
    probabilities real[],
    retrieval_scores real[] NOT NULL,
    sources integer[] NOT NULL,
    cooccurrence real[] NOT NULL,
    places integer[] NOT NULL,
    retrieved integer NOT NULL,
    candidates text[] NOT NULL,
    candidate_scores real[] NOT NULL,
    candidate_sources integer[] NOT NULL,
    history text[] NOT NULL,
    history_events integer[] NOT NULL,
    history_ages real[] NOT NULL,
    profile jsonb NOT NULL
)""",
        "CREATE INDEX exposures_user ON exposures (catalogue, user_id) WHERE user_id IS NOT NULL",
        "CREATE INDEX exposures_client ON exposures (catalogue, client_id) WHERE client_id IS NOT NULL",
        "CREATE INDEX exposures_served ON exposures (served_at)",
        # the list that an event follows from; not checked, as the list is written later or not at all
        "ALTER TABLE live_events ADD COLUMN exposure_id uuid",
        """
DO $do$
BEGIN
    EXECUTE format($sql$
CREATE OR REPLACE FUNCTION not_of_forgotten() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = %I, pg_temp AS $$
BEGIN
    IF TG_RELID NOT IN ('live_events'::regclass, 'exposures'::regclass) THEN
        RAISE insufficient_privilege USING MESSAGE = 'not_of_forgotten is for live_events and exposures';
    END IF;
    IF EXISTS (
        SELECT 1 FROM forgotten f WHERE f.catalogue = NEW.catalogue AND f.user_hash =
            sha256(convert_to(NEW.catalogue, 'UTF8') || decode('00', 'hex') || convert_to(NEW.user_id, 'UTF8'))
    ) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$
    $sql$, current_schema());
END $do$""",
        """
CREATE TRIGGER not_of_forgotten BEFORE INSERT ON exposures
FOR EACH ROW WHEN (NEW.user_id IS NOT NULL) EXECUTE FUNCTION not_of_forgotten()""",
    ),
    (
        # bundles that are tried beside the active one (rec/index/experiments.py); they may go when it is over
        """
CREATE TABLE experiments (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    catalogue text NOT NULL,
    control text NOT NULL,
    treatment text NOT NULL,
    share double precision NOT NULL CHECK (share > 0 AND share < 1),
    salt text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz
)""",
        "CREATE UNIQUE INDEX experiments_running ON experiments ((stopped_at IS NULL)) WHERE stopped_at IS NULL",
    ),
    (
        # whose table holds a bundle's vectors, and which training it is of: one that only has more products than
        # another shares both
        "ALTER TABLE bundles ADD COLUMN vectors text, ADD COLUMN root text",
        "UPDATE bundles SET vectors = id, root = id",
        "ALTER TABLE bundles ALTER COLUMN vectors SET NOT NULL, ALTER COLUMN root SET NOT NULL",
    ),
    (
        # hnsw.ef_search that a bundle was found to need (rec/index/recall.py); null: as its configuration says
        "ALTER TABLE bundles ADD COLUMN ef_search integer",
    ),
    (
        # anonymous clients whose data was deleted: lists that they were shown before are written later, as servers keep
        # them for a moment, and are not taken (rec/index/forget.py)
        """
CREATE TABLE forgotten_clients (
    catalogue text NOT NULL,
    client_hash bytea NOT NULL,
    forgotten_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (catalogue, client_hash, forgotten_at)
)""",
        """
DO $do$
BEGIN
    EXECUTE format($sql$
CREATE FUNCTION not_of_forgotten_client() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = %I, pg_temp AS $$
BEGIN
    IF TG_RELID <> 'exposures'::regclass THEN
        RAISE insufficient_privilege USING MESSAGE = 'not_of_forgotten_client is for exposures';
    END IF;
    IF EXISTS (
        SELECT 1 FROM forgotten_clients f WHERE f.catalogue = NEW.catalogue AND f.client_hash =
            sha256(convert_to(NEW.catalogue, 'UTF8') || decode('00', 'hex') || convert_to(NEW.client_id, 'UTF8'))
            AND f.forgotten_at >= NEW.served_at
    ) THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END $$
    $sql$, current_schema());
END $do$""",
        """
CREATE TRIGGER not_of_forgotten_client BEFORE INSERT ON exposures
FOR EACH ROW WHEN (NEW.client_id IS NOT NULL) EXECUTE FUNCTION not_of_forgotten_client()""",
    ),
)
"""The statements of each version, oldest first. Version 1 is what databases without `schema_version` have."""

LATEST = len(MIGRATIONS)
"""The version that this program reads and writes."""
FORGETTING = {7: "exposures", 11: "forgotten_clients"}
"""Tables that deleting data of users needs, by the version that made them, where it was possible before."""

LOCK_WAIT_MS = 5_000
"""How long a migration waits for whoever uses a table."""

_MIGRATING = 7_203_118  # advisory lock

_VERSIONS = """
CREATE TABLE IF NOT EXISTS schema_version (
    version integer PRIMARY KEY,
    migrated_at timestamptz NOT NULL DEFAULT now()
)"""


def migrate(connection: Connection[Any]) -> tuple[int, int]:
    """Bring the tables up to LATEST, each migration in a transaction of its own; returns (version before, after).

    Raises DatabaseError when the database is newer than this program, or a table in use by others too long.
    """
    before = version(connection)
    _refuse_newer(before)
    found = before
    while found < LATEST:
        found = _next(connection)
    return before, found


def version(connection: Connection[Any]) -> int:
    """The version of the database; 0 where there are no tables."""
    with connection.transaction():
        return _version(connection)


def require(connection: Connection[Any]) -> None:
    """Raise DatabaseError unless the database is of version LATEST or has no tables, as where nothing is loaded."""
    found = version(connection)
    _refuse_newer(found)
    if 0 < found < LATEST:
        raise DatabaseError(
            f"the database is of version {found} and this program reads version {LATEST}: "
            "run `python jobs/database.py migrate` as the owner of its tables"
        )


def _next(connection: Connection[Any]) -> int:
    """Run the first migration that is missing; returns the version after it."""
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
            found = _version(connection)  # another process may have come first
            _refuse_newer(found)
            if found == LATEST:
                return found
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_WAIT_MS}ms",))
            for statement in MIGRATIONS[found]:
                connection.execute(sql.SQL(statement))
            connection.execute(_VERSIONS)
            # a database without `schema_version` gets the row of version 1, too
            connection.execute(
                "INSERT INTO schema_version (version) SELECT generate_series(1, %s) ON CONFLICT DO NOTHING",
                (found + 1,),
            )
            roles.pass_on(connection)
            if found + 1 in FORGETTING:
                roles.pass_on_forgetting(connection, FORGETTING[found + 1])
            return found + 1
    except errors.LockNotAvailable:
        raise DatabaseError(
            f"others used the tables for more than {LOCK_WAIT_MS / 1_000:g} s, so the database was not brought to "
            f"version {LATEST}: try again when less is going on"
        ) from None


def _version(connection: Connection[Any]) -> int:
    # not to_regclass: it remembers that there was no such table while this transaction waited for another's to be made
    rows = connection.execute(
        "SELECT relname FROM pg_class WHERE relname IN ('schema_version', 'active_bundle')"
        " AND relnamespace = current_schema()::regnamespace"
    ).fetchall()
    if ("schema_version",) not in rows:
        return len(rows)  # version 1 had no such table
    row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    assert row is not None
    return int(row[0])


def _refuse_newer(found: int) -> None:
    if found > LATEST:
        raise DatabaseError(
            f"the database is of version {found} and this program knows versions up to {LATEST}: "
            "install the release that brought it there, or a later one"
        )
