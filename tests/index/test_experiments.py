"""Two bundles at once: who gets which, what may not happen meanwhile, and what is kept."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import conninfo

from jobs import experiment as job
from rec import assemble, bundles, postgres, publish
from rec.config import Config
from rec.errors import ArtifactError, ConfigError, DatabaseError
from rec.index import experiments, promote, retention, roles
from rec.index.experiments import ARMS, CONTROL, TREATMENT, Experiment
from tests.bundle import tiny


@dataclass(frozen=True)
class Store:
    """Bundles of a recipe: an earlier one, the active one, and one that was never promoted."""

    recipe: Config
    url: str
    earlier: str
    active: str
    tried: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, database_url: str) -> Iterator[Store]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS experiments WITH (FORCE)")
        connection.execute("CREATE DATABASE experiments")
    url = conninfo.make_conninfo(database_url, dbname="experiments")
    folder = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(postgres.URL_VARIABLE, url)
        names = [publish.run(tiny.make(tiny.config(folder, seed=seed)))["bundle"] for seed in (41, 42)]
        recipe = tiny.make(tiny.config(folder, seed=43))
        yield Store(recipe, url, *names, assemble.create(recipe).id)


def act(store: Store, action: str, argument: str | None = None, share: float | None = None, **given: Any) -> Any:
    """What jobs/experiment.py answers."""
    options = Namespace(action=action, argument=argument, share=share, force=given.get("force", False))
    return job.run(store.recipe, options)


def made(share: float = 0.5, salt: str = "salt") -> Experiment:
    """An experiment that no database has."""
    now: Any = None
    return Experiment(1, "tiny", "0" * 12, "1" * 12, share, salt, now, now)


NAMES = st.none() | st.text(min_size=1, max_size=12)


@given(user=NAMES, client=NAMES, salt=st.text(max_size=8), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_an_arm_is_the_shopper_s_and_grows_with_the_share(
    user: str | None, client: str | None, salt: str, shares: tuple[float, float]
) -> None:
    small, large = (made(share, salt).arm(user, client) for share in sorted(shares))
    if user is None and client is None:
        assert small is large is None
        return
    assert small in ARMS
    assert not (small == TREATMENT and large == CONTROL), "who has the treatment keeps it when the share grows"
    assert small == made(min(shares), salt).arm(user, None if user is not None else client), "the user comes first"


def test_shares_are_met_and_experiments_split_anew() -> None:
    users = [f"u{number}" for number in range(20_000)]
    for share in (0.01, 0.1, 0.5):
        one, other = made(share, "a"), made(share, "b")
        first, second = ([each.arm(user, None) == TREATMENT for user in users] for each in (one, other))
        assert sum(first) / len(users) == pytest.approx(share, abs=4 * (share / len(users)) ** 0.5)
        both = sum(x and y for x, y in zip(first, second, strict=True))
        assert both / len(users) == pytest.approx(share**2, abs=4 * share / len(users) ** 0.5)
    as_clients = [made(0.5).arm(None, user) for user in users]
    assert as_clients != [made(0.5).arm(user, None) for user in users], "a client is no user"


def test_an_experiment_from_start_to_stop(store: Store) -> None:
    started = act(store, "start", store.tried, 12.5)
    assert (started["control"], started["treatment"], started["share"]) == (store.active, store.tried, 0.125)
    with psycopg.connect(store.url) as connection:
        assert promote.serving(connection) == [store.active, store.tried]
        assert connection.execute(f"SELECT count(*) FROM items_{store.tried}").fetchone() == (tiny.ITEMS,)
    states = {each["bundle"]: each["state"] for each in bundles.overview(store.recipe)}
    assert states == {store.earlier: "previous", store.active: "active", store.tried: "treatment"}

    runs = rf"experiment {started['experiment']} runs: bundle {store.tried} .*jobs/experiment\.py stop --recipe tiny"
    for refused in (
        lambda: act(store, "start", store.earlier, 50.0),
        lambda: publish.activate(store.recipe, store.tried),
        lambda: publish.activate(store.recipe, store.earlier),
        lambda: publish.rollback(store.recipe),
    ):
        with pytest.raises(DatabaseError, match=runs):
            refused()
    again = publish.activate(store.recipe, store.active)
    assert (again["bundle"], again["replaced"]) == (store.active, None), "its data may be loaded again"
    kept = bundles.collect(store.recipe)
    assert (set(kept["kept"]), kept["dropped"]) == ({store.active, store.earlier, store.tried}, [])

    ended = act(store, "stop")
    assert ended["stopped_at"] is not None
    assert act(store, "list") == {"experiments": [ended]}
    with pytest.raises(DatabaseError, match=r"no experiment of recipe 'tiny' runs"):
        act(store, "stop")
    second = act(store, "start", store.tried, 50.0)
    with psycopg.connect(store.url) as connection:
        (newest, oldest) = experiments.known(connection, "tiny")
        assert experiments.running(connection) == newest
    assert (newest.number, oldest.number) == (second["experiment"], ended["experiment"])
    assert newest.salt != oldest.salt
    act(store, "stop")
    assert bundles.collect(store.recipe, dry_run=True)["dropped"] == [store.tried]
    assert publish.activate(store.recipe, store.tried)["replaced"] == store.active
    publish.rollback(store.recipe)


def test_a_refused_promotion_deletes_what_is_too_old(store: Store) -> None:
    age = retention.RETENTION + timedelta(days=1)
    insert = (
        "INSERT INTO live_events (catalogue, event_id, client_id, product_id, event, at, received_at)"
        " VALUES ('tiny', 'too old', 'c', 'P0001', 'view', now() - %s, now() - %s)"
    )
    act(store, "start", store.tried, 50.0)
    with psycopg.connect(store.url, autocommit=True) as connection:
        connection.execute(insert, (age, age))
        with pytest.raises(DatabaseError, match=r"experiment \d+ runs"):
            publish.activate(store.recipe, store.earlier)
        assert connection.execute("SELECT count(*) FROM live_events").fetchone() == (0,)
    act(store, "stop")


def test_what_cannot_be_tried_is_refused(store: Store, tmp_path: Path) -> None:
    for options in ((None, 10.0), (store.tried, None), (store.tried, 0.0), (store.tried, 100.0)):
        with pytest.raises(ConfigError, match=r"--share PERCENT"):
            act(store, "start", *options)
    with pytest.raises(DatabaseError, match="is the active one"):
        act(store, "start", store.active, 10.0)
    with pytest.raises(ArtifactError, match="there is no bundle"):
        act(store, "start", "0123456789ab", 10.0)
    with pytest.raises(DatabaseError, match="is not in the database"):
        experiments.start(store.url, "tiny", "0123456789ab", 0.5)
    with pytest.raises(DatabaseError, match="no bundle of recipe 'other' is active"):
        experiments.start(store.url, "other", store.tried, 0.5)
    other = tiny.config(Path(store.recipe.store), name="other")
    with pytest.raises(ArtifactError, match="is of recipe 'tiny', not 'other'"):
        publish.try_out(other, store.tried, 0.5)
    floor = tiny.make(tiny.config(Path(store.recipe.store), seed=44, floor=0.9))
    low = assemble.create(floor).id
    with pytest.raises(ArtifactError, match="below the floor"):
        publish.try_out(floor, low, 0.5)
    with psycopg.connect(store.url) as connection:
        assert experiments.running(connection) is None
    assert publish.try_out(floor, low, 0.5, force=True).treatment == low
    experiments.stop(store.url, "tiny")
    with pytest.raises(ConfigError, match="number of an experiment, not 'x'"):
        act(store, "report", "x")
    with pytest.raises(DatabaseError, match="no experiment 99"):
        act(store, "report", "99")


def test_only_one_experiment_runs_whatever_is_written(store: Store) -> None:
    row = "INSERT INTO experiments (catalogue, control, treatment, share, salt) VALUES ('tiny', 'a', 'b', 0.5, 's')"
    with psycopg.connect(store.url) as connection:
        connection.execute(row)
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(row)
    assert "experiments" in roles.SERVED
