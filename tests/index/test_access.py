"""Who may do what with the serving database, and what is forgotten for good."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from rec import bundle, postgres, publish
from rec.config import Config
from rec.errors import DatabaseError
from rec.index import forget, live_events, promote, roles
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.index.live_events import LiveEvent
from rec.recommend.chain import Chain
from rec.recommend.request import Choice, Request
from tests.bundle import tiny


@dataclass(frozen=True)
class Shop:
    """A published recipe in a database of its own."""

    recipe: Config
    owner: str
    """URL of the tables' owner."""
    reader: str
    """URL of a role that has been granted what serving needs."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Shop]:
    """The shop, whose owner is no superuser."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS access WITH (FORCE)")
        for role in ("shop_owner", "shop_reader", "shop_guest"):
            connection.execute(f"DROP ROLE IF EXISTS {role}")
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
        connection.execute("CREATE DATABASE access OWNER shop_owner")
    with psycopg.connect(conninfo.make_conninfo(database_url, dbname="access")) as connection:
        connection.execute("CREATE EXTENSION vector")
    owner, reader = (
        conninfo.make_conninfo(database_url, dbname="access", user=role, password=role)
        for role in ("shop_owner", "shop_reader")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REC_DATABASE_URL", owner)
        recipe = tiny.make(tiny.config(tmp_path_factory.mktemp("access"), seed=5))
        publish.run(recipe)
        roles.grant(owner, "shop_reader")
        yield Shop(recipe, owner, reader)


def live(event_id: str, user_id: str) -> LiveEvent:
    """A live event of a user."""
    at = datetime(2025, 3, 19, tzinfo=UTC)
    return LiveEvent(event_id=event_id, user_id=user_id, product_id=tiny.product_id(7), event="view", at=at)


def test_a_reader_serves_and_cannot_write(shop: Shop) -> None:
    # a bundle that was loaded after the grant is open to the reader, too
    publish.run(tiny.make(tiny.config(Path(shop.recipe.store), seed=6)))
    opened = Connections(shop.reader, size=1)
    with opened.use() as connection:
        name = promote.active(connection)
    chain = Chain(bundle.read(shop.recipe.store, name), opened)
    now = datetime(2025, 3, 20, tzinfo=UTC)
    assert len(chain.recommend(Request(user_id="u03", k=5), now).items) == 5
    assert len(chain.recommend(Request(history=[Choice(tiny.product_id(1))], k=5), now).items) == 5
    catalogue = Catalogue(opened, "tiny")
    assert live_events.store(opened, "tiny", [live("read", "u03")]).stored == ["read"]
    assert catalogue.find("red", 3, lambda _: True)
    assert catalogue.shoppers(3)
    opened.close()
    with psycopg.connect(shop.owner) as connection:
        tables = [name for (name,) in connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )]  # fmt: skip
    assert {"events", "promotions", "loads", "forgotten", f"items_{name}"} <= set(tables)
    with psycopg.connect(shop.reader, autocommit=True) as connection:
        for table in tables:
            for statement in (f"DELETE FROM {table}", f"TRUNCATE {table}", f"DROP TABLE {table}"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
        for statement in (
            "CREATE TABLE mine (a integer)",
            "UPDATE products SET price = 0",
            "INSERT INTO events VALUES ('tiny', 'u', 0, 'P1', 'view', now())",
            "UPDATE live_events SET product_id = 'P1'",
            "SELECT * FROM forgotten",
            "SELECT * FROM loads",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_who_is_granted_what_is_checked(shop: Shop) -> None:
    with pytest.raises(DatabaseError, match=r"no role 'nobody': make it with `CREATE ROLE nobody LOGIN"):
        roles.grant(shop.owner, "nobody")
    with pytest.raises(DatabaseError, match="'postgres' is a superuser"):
        roles.grant(shop.owner, "postgres")
    with pytest.raises(DatabaseError, match=r"'shop_guest' may still not read .*grant as the owner"):
        roles.grant(shop.reader, "shop_guest")
    with pytest.raises(DatabaseError, match=r"Postgres refused .*permission denied"):
        roles.grant(conninfo.make_conninfo(shop.reader, user="shop_guest", password="shop_guest"), "shop_reader")
    hostile = 'x"; DROP TABLE events; --'
    with pytest.raises(DatabaseError, match="no role"):
        roles.grant(shop.owner, hostile)


def test_a_forgotten_user_is_gone_and_stays_away(shop: Shop, tmp_path: Path) -> None:
    opened = Connections(shop.reader, size=1)
    catalogue = Catalogue(opened, "tiny")
    there = len(catalogue.known("u04", 100).events)
    others = len(catalogue.known("u05", 100).events)
    assert there
    assert others
    assert live_events.store(opened, "tiny", [live("f1", "u04"), live("f2", "u05")]).stored == ["f1", "f2"]
    assert forget.forget(shop.owner, "tiny", "u04") == forget.Forgotten(there, 1, 1, 0)
    assert forget.forget(shop.owner, "tiny", "u04") == forget.Forgotten(0, 0, 0, 0)
    assert live_events.store(opened, "tiny", [live("f3", "u04")]).forgotten == ["f3"], "nor does a server take any"
    with psycopg.connect(shop.owner) as connection:
        connection.execute("UPDATE loads SET content_hash = 'of before'")  # all is loaded again
    publish.run(shop.recipe)
    assert catalogue.known("u04", 100) == catalogue.known("never seen", 100)
    assert len(catalogue.known("u05", 100).events) == others + 1
    assert "u04" not in {found["user_id"] for found in catalogue.shoppers(100)}
    opened.close()
    with psycopg.connect(shop.owner) as connection:
        rows = connection.execute("SELECT catalogue, user_hash FROM forgotten").fetchall()
    assert len(rows) == 1
    assert b"u04" not in rows[0][1]


def test_a_reader_forgets_users_only_where_that_was_granted(shop: Shop) -> None:
    for refused in (forget.forget, forget.forget_client):
        with pytest.raises(forget.NotAllowed, match=r"has no DELETE on .*grant ROLE --forget"):
            refused(shop.reader, "tiny", "u06")
    roles.grant(shop.owner, "shop_reader", forget=True)
    assert forget.forget_client(shop.reader, "tiny", "nobody") == forget.ForgottenClient(0, 0)
    done = forget.forget(shop.reader, "tiny", "u06")
    assert done.events
    assert done.profiles == 1
    opened = Connections(shop.reader, size=1)
    assert Catalogue(opened, "tiny").stored("u06") is None
    opened.close()


def test_the_trigger_that_reads_who_was_forgotten_is_lent_to_no_other_table(shop: Shop) -> None:
    """Its function runs as the owner of the tables, and whoever may connect may make temporary ones."""
    forget.forget(shop.owner, "tiny", "u07")
    with psycopg.connect(shop.reader) as connection:
        connection.execute("CREATE TEMP TABLE mine (LIKE live_events)")
        connection.execute("CREATE TRIGGER mine BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION not_of_forgotten()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="is for live_events"), connection.transaction():
            connection.execute("INSERT INTO mine (catalogue, user_id) VALUES ('tiny', 'u07')")
        connection.execute("CREATE TEMP TABLE forgotten (catalogue text, user_hash bytea)")
        row = "('tiny', 'shadowed', 'u07', 'P0001', 'view', now()) RETURNING event_id"
        insert = "INSERT INTO live_events (catalogue, event_id, user_id, product_id, event, at) VALUES"
        assert connection.execute(f"{insert} {row}").fetchall() == []


def test_postgres_itself_may_be_too_old(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "MIN_POSTGRES", 99)
    with pytest.raises(DatabaseError, match=r"Postgres \d+ is too old: 99 or later is needed"):
        postgres.connect(os.environ["REC_DATABASE_URL"])
