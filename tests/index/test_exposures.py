"""Lists as they were shown: written as they are, gone with their shopper or after their time."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import conninfo

from rec import postgres
from rec.errors import DatabaseError
from rec.index import exposures, forget, migrations, retention, roles
from rec.index.catalogue import Catalogue
from rec.index.connections import Connections
from rec.index.exposures import Exposure
from tests.databases import fresh

NOW = datetime.now(UTC).replace(microsecond=123_456)
TEXT = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=("Cs",)), max_size=8)


@dataclass(frozen=True)
class Base:
    """A database that has tables and nothing in them."""

    url: str
    connections: Connections


@pytest.fixture(scope="module")
def base(database_url: str) -> Iterator[Base]:
    url = fresh(database_url, "exposures")
    opened = Connections(url, size=1)
    yield Base(url, opened)
    opened.close()


def made(count: int = 2, **given: Any) -> Exposure:
    """A list of `count` products for the user `ann`, unless given otherwise."""
    numbers = np.arange(count)
    values: dict[str, Any] = {
        "exposure_id": exposures.new_id(), "catalogue": "shop", "bundle": "0123456789ab", "experiment": None,
        "arm": None, "user_id": "ann", "client_id": None, "served_at": NOW, "at": NOW - timedelta(days=3),
        "context": "a linen dress", "k": count, "degraded": [],
        "products": [f"P{number}" for number in numbers], "scores": (2.5 - numbers).astype(np.float32),
        "probabilities": (numbers / 8).astype(np.float32), "retrieval_scores": (numbers / 4).astype(np.float32),
        "sources": numbers + 1, "cooccurrence": (numbers / 2).astype(np.float32), "places": numbers[::-1].copy(),
        "retrieved": 60, "candidates": [f"P{number}" for number in range(count + 1)],
        "candidate_scores": np.linspace(1, -1, count + 1).astype(np.float32),
        "candidate_sources": np.arange(count + 1), "history": ["P9"], "history_events": np.array([3]),
        "history_ages": np.array([86_400.5], np.float32), "profile": {"height_cm": 172.5},
    }  # fmt: skip
    return Exposure(**{**values, **given})


def same(one: Exposure, other: Exposure) -> bool:
    """Whether all fields are equal."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Exposure)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def read(base: Base, *ids: str) -> list[Exposure]:
    """The stored exposures of these ids."""
    with psycopg.connect(base.url) as connection:
        return list(exposures.whole(connection, ids))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 40),
    context=TEXT,
    user_id=st.none() | TEXT,
    client_id=st.none() | TEXT,
    history=st.lists(TEXT, max_size=5),
    profile=st.dictionaries(TEXT, st.floats(-1e9, 1e9), max_size=3),
    ranked=st.booleans(),
    moment=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),
)
def test_what_is_written_is_read(
    base: Base, count: int, history: list[str], profile: dict[str, float], ranked: bool, moment: datetime, **who: Any
) -> None:
    numbers = np.arange(len(history))
    written = made(
        count, history=history, history_events=numbers, history_ages=numbers.astype(np.float32), profile=profile,
        at=moment, degraded=history, **who, **({} if ranked else {"probabilities": None}),
    )  # fmt: skip
    exposures.write(base.connections, [written, other := made(3, experiment=7, arm="control")])
    assert same(written, read(base, written.exposure_id)[0])
    assert [each.exposure_id for each in read(base, other.exposure_id, exposures.new_id(), written.exposure_id)] == [
        other.exposure_id, written.exposure_id,
    ]  # fmt: skip


def test_ids_are_new_and_in_the_order_of_time() -> None:
    ids = [exposures.new_id() for _ in range(2_000)]
    assert len(set(ids)) == 2_000
    parsed = [uuid.UUID(each) for each in ids]
    assert {(each.version, each.variant) for each in parsed} == {(7, uuid.RFC_4122)}
    assert [str(each) for each in parsed] == ids
    moments = [each.int >> 80 for each in parsed]
    assert moments == sorted(moments)
    assert abs(moments[-1] / 1e3 - datetime.now(UTC).timestamp()) < 60


def test_all_or_none_are_written(base: Base) -> None:
    good, twice = made(), made()
    with pytest.raises(DatabaseError, match="duplicate key"):
        exposures.write(base.connections, [good, twice, twice])
    assert read(base, good.exposure_id, twice.exposure_id) == []


def test_a_forgotten_user_has_no_lists_and_gets_none(base: Base) -> None:
    lists = [made(catalogue="f", user_id="bob", client_id="c1"), made(catalogue="f", user_id="eve")]
    exposures.write(base.connections, [*lists, made(catalogue="g", user_id="bob")])
    assert forget.forget(base.url, "f", "bob").exposures == 1
    exposures.write(base.connections, [late := made(catalogue="f", user_id="bob"), other := made(catalogue="f")])
    kept = [each.exposure_id for each in read(base, lists[0].exposure_id, lists[1].exposure_id, late.exposure_id)]
    assert kept == [lists[1].exposure_id]
    assert len(read(base, other.exposure_id)) == 1, "the others of the batch are stored"


def test_a_forgotten_client_has_no_lists(base: Base) -> None:
    lists = [made(catalogue="c", user_id=user, client_id="v1") for user in (None, "kim")]
    exposures.write(base.connections, [*lists, away := made(catalogue="d", user_id=None, client_id="v1")])
    assert forget.forget_client(base.url, "c", "v1") == forget.ForgottenClient(0, 2)
    assert [each.exposure_id for each in read(base, *(each.exposure_id for each in [*lists, away]))] == [
        away.exposure_id
    ]


def test_lists_that_a_forgotten_client_was_shown_before_are_not_written_later(base: Base) -> None:
    """A server keeps lists for a moment, or longer where the database is slow."""
    forget.forget_client(base.url, "w", "v2")
    now = datetime.now(UTC)
    waited, named, later, other = (
        made(catalogue="w", user_id=user, client_id=client, served_at=now + timedelta(minutes=minutes))
        for user, client, minutes in ((None, "v2", -1), ("kim", "v2", -1), (None, "v2", 1), (None, "v3", -1))
    )
    exposures.write(base.connections, [waited, named, later, other])
    written = [each.exposure_id for each in (waited, named, later, other)]
    assert {each.exposure_id for each in read(base, *written)} == {later.exposure_id, other.exposure_id}


def test_a_user_sees_every_column_of_their_lists(base: Base) -> None:
    catalogue = Catalogue(base.connections, "export")
    assert catalogue.stored("ann") is None
    shown = [made(catalogue="export", served_at=NOW - timedelta(hours=hour)) for hour in (0, 1)]
    exposures.write(base.connections, [*shown, made(catalogue="export", user_id="bob")])
    stored = catalogue.stored("ann")
    assert stored is not None
    assert [each["exposure_id"] for each in stored.exposures] == [each.exposure_id for each in shown[::-1]]
    with psycopg.connect(base.url) as connection:
        columns = {name for (name,) in connection.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'exposures'"
        )}  # fmt: skip
    assert set(stored.exposures[0]) | {"catalogue"} == columns == {field.name for field in fields(Exposure)}


def test_old_lists_expire(base: Base) -> None:
    age = retention.RETENTION + timedelta(minutes=1)
    old, young = made(served_at=NOW - age), made(served_at=NOW - age + timedelta(hours=1))
    exposures.write(base.connections, [old, young])
    with psycopg.connect(base.url) as connection:
        assert retention.expire(connection)["exposures"] == 1
    assert [each.exposure_id for each in read(base, old.exposure_id, young.exposure_id)] == [young.exposure_id]


def test_lists_are_read_as_of_a_day(base: Base) -> None:
    today = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    times = [today - age for age in (
        timedelta(days=95), timedelta(days=89, seconds=1), timedelta(days=89), timedelta(days=1))]  # fmt: skip
    lists = [made(catalogue="read", served_at=at, experiment=index) for index, at in enumerate(times)]
    exposures.write(base.connections, lists)
    with psycopg.connect(base.url) as connection:
        found = exposures.shown(connection, "read", until=today - timedelta(days=1))
        one = exposures.shown(connection, "read", until=NOW, experiment=3)
    assert found.column("exposure_id").to_pylist() == [lists[2].exposure_id], "what expires today is not read"
    assert one.column("exposure_id").to_pylist() == [lists[3].exposure_id]
    assert exposures.digest(found) != exposures.digest(one)


def test_a_reader_adds_lists_and_forgets_where_it_may(base: Base, database_url: str) -> None:
    """Roles that served, and forgot users, before there were exposures go on doing so after the migration."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS exposures_old WITH (FORCE)")
        connection.execute("CREATE DATABASE exposures_old")
        for role in ("old_reader", "old_forgetter", "old_cleaner"):
            connection.execute(f"DROP ROLE IF EXISTS {role}")
            connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    owner = conninfo.make_conninfo(database_url, dbname="exposures_old")
    reader, forgetter, cleaner = (
        conninfo.make_conninfo(owner, user=role, password=role)
        for role in ("old_reader", "old_forgetter", "old_cleaner")
    )
    with pytest.MonkeyPatch.context() as patch, postgres.session(owner) as connection:
        patch.setattr(migrations, "LATEST", 6)
        migrations.migrate(connection)
        connection.execute("GRANT SELECT ON active_bundle TO old_reader, old_forgetter")
        connection.execute("GRANT DELETE ON live_events TO old_cleaner")  # no way to forget users
        connection.execute("GRANT SELECT, DELETE ON users, events, live_events TO old_forgetter")
        connection.execute("GRANT INSERT ON forgotten TO old_forgetter")
        connection.commit()
    with postgres.session(owner) as connection:
        migrations.migrate(connection)
    for url in (reader, forgetter):
        opened = Connections(url, size=1)
        exposures.write(opened, [made()])
        assert Catalogue(opened, "shop").stored("ann") is not None
        opened.close()
    with pytest.raises(forget.NotAllowed):
        forget.forget(reader, "shop", "ann")
    assert forget.forget(forgetter, "shop", "ann").exposures == 2
    with psycopg.connect(cleaner) as connection:
        for table in ("users", "events", "exposures"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(f"DELETE FROM {table}")
    with postgres.session(owner) as connection:
        connection.execute("REVOKE DELETE ON users FROM old_forgetter")
        roles.pass_on(connection)  # as with the vectors of a later bundle
        connection.commit()
    with pytest.raises(forget.NotAllowed, match="no DELETE on users"):
        forget.forget(forgetter, "shop", "ann")
    with psycopg.connect(reader) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("UPDATE exposures SET user_id = 'eve'")
    assert set(roles.FORGETTING) == {"users", "events", "live_events", "exposures", "forgotten", "forgotten_clients"}
