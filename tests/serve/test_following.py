"""How a replica follows bundles and rules: a bundle that cannot be served changes nothing else, even at a start."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rec import bundle, postgres, publish
from rec.config import Config
from rec.errors import ArtifactError
from rec.index import promote, rule_versions
from rec.index.connections import Connections
from rec.recommend.request import Request
from serve import following, loaded
from serve.answering import Answering
from serve.asking import Together
from serve.exposures import ExposureLog
from serve.fallible import BackedFront
from serve.following import Following
from serve.loaded import Loaded
from serve.stages import Ranker
from tests.bundle import tiny
from tests.serve.conftest import damaged, published_in

RULE = "[[exclude]]\nproducts = ['P0001']\n"


class Told:
    """The gauges."""

    def __init__(self) -> None:
        self.version = self.refuses = -1

    def rules(self, version: int) -> None:
        self.version = version

    def refused(self, refused: bool) -> None:
        self.refuses = int(refused)


class World:
    """A store with two bundles, `old` promoted before `new`, and the stages of a replica."""

    def __init__(self, store: Path) -> None:
        self.recipe = published_in(store)
        self.store = self.recipe.store
        (first,) = bundle.names(self.store)
        self.old = bundle.read(self.store, first)
        self.later: Config = tiny.make(tiny.config(self.recipe.root.parent, seed=23))
        self.new = bundle.read(self.store, publish.run(self.later)["bundle"])
        self.url = postgres.url(self.store)
        self.pool = Connections(self.url, size=2)
        publish.rollback(self.recipe)
        self.together = Together(self.store)
        self.log = ExposureLog(lambda: self.pool, lambda *_: None)
        self.told = Told()

    def promote(self) -> None:
        """Make `new` the active bundle."""
        promote.promote(self.url, self.new, self.later.root, force=True)

    def replica(self) -> Following:
        """What a replica has before it begins."""
        answering = Answering(self.together, self.log)

        async def prove(front: BackedFront) -> None:
            await answering.recommend(front, Request(k=1), patience=60, whole=True)

        return Following(self.pool, Loaded(self.store, lambda opened: BackedFront(opened, self.pool)), prove)

    def rule(self) -> int:
        """Number of a version of rules that has just been put in force."""
        return rule_versions.apply(self.url, self.recipe.name, RULE).number


@pytest.fixture(scope="module")
def world(new_store: Callable[[], Path]) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (loaded, "FOLLOW_S", 0.05),
            (following, "FOLLOW_S", 0.05),
            (loaded, "AGAIN_S", 60.0),
        ):
            patch.setattr(module, name, value)
        made = World(new_store())
        patch.setattr(following, "metrics", lambda: made.told)
        yield made
        made.pool.close()


@pytest.fixture(autouse=True)
def rolled_back(world: World) -> Iterator[None]:
    """`old` is the active bundle again after each test."""
    yield
    if loaded.active(world.pool) != world.old.id:
        publish.rollback(world.recipe)


@asynccontextmanager
async def running(replica: Following) -> AsyncIterator[Following]:
    await replica.begin()
    try:
        yield replica
    finally:
        for task in replica._tasks:
            task.cancel()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the ranker of one bundle raise."""
    rank = Ranker.rank

    def fails(self: Ranker, which: str, *given: Any) -> Any:
        if which == name:
            raise ZeroDivisionError("a weight is no number")
        return rank(self, which, *given)

    fails.__name__ = "rank"
    monkeypatch.setattr(Ranker, "rank", fails)


def test_a_damaged_bundle_changes_nothing_but_what_is_said(world: World) -> None:
    async def live() -> None:
        async with running(world.replica()) as replica:
            assert (replica.front.bundle.id, replica.refused) == (world.old.id, None)
            with damaged(world.new) as file:
                world.promote()
                await until(lambda: replica.refused is not None)
                assert replica.refused is not None
                assert replica.refused.bundle == world.new.id
                assert file in replica.refused.error
                version = world.rule()
                await until(lambda: world.told.version == version)
                ruling = replica.front.rules.ruling
                assert ruling is not None
                assert (replica.front.bundle.id, ruling.number) == (world.old.id, version)
                assert world.told.refuses == 1
            await until(lambda: replica.front.bundle.id == world.new.id)  # at once: its files are others
            assert world.told.version == version
            await until(lambda: world.told.refuses == 0)
            assert replica.refused is None

    asyncio.run(live())


def test_a_bundle_whose_ranker_raises_does_not_take_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        async with running(world.replica()) as replica:
            with monkeypatch.context() as patch:
                failing(patch, world.new.id)
                world.promote()
                await until(lambda: replica.refused is not None)
                version = world.rule()
                await until(lambda: world.told.version == version)
                assert replica.front.bundle.id == world.old.id
                assert replica.refused is not None
                assert "a weight is no number" in replica.refused.error
            await until(lambda: replica.front.bundle.id == world.new.id)
            await until(lambda: replica.refused is None)

    asyncio.run(live())


def test_another_bundle_takes_the_place_of_a_refused_one(world: World) -> None:
    async def live() -> None:
        async with running(world.replica()) as replica:
            with damaged(world.new):
                world.promote()
                await until(lambda: replica.refused is not None)
                publish.rollback(world.recipe)
                await until(lambda: replica.refused is None)
                assert replica.front.bundle.id == world.old.id
                assert world.told.refuses == 0

    asyncio.run(live())


@pytest.mark.parametrize("how", ["damaged", "raises"])
def test_a_replica_starts_with_the_bundle_before(world: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    world.promote()

    async def live() -> None:
        world.together = Together(world.store)  # its stages as well
        async with running(world.replica()) as replica:
            assert replica.front.bundle.id == world.old.id
            assert replica.refused is not None
            assert replica.refused.bundle == world.new.id
            assert world.told.refuses == 1
            version = world.rule()
            await until(lambda: world.told.version == version)

    if how == "damaged":
        with damaged(world.new):
            asyncio.run(live())
    else:
        failing(monkeypatch, world.new.id)
        asyncio.run(live())


def test_where_no_bundle_can_be_served_both_are_named(world: World) -> None:
    world.promote()
    with damaged(world.new), damaged(world.old), pytest.raises(ArtifactError, match="neither can") as refusal:
        asyncio.run(world.replica().begin())
    assert world.new.id in str(refusal.value)
    assert world.old.id in str(refusal.value)
    with pytest.raises(ArtifactError, match="neither can"), damaged(world.new), damaged(world.old):
        Together(world.store)


def test_where_none_was_active_before_that_is_said(new_store: Callable[[], Path]) -> None:
    recipe = published_in(new_store())
    (name,) = bundle.names(recipe.store)
    with damaged(bundle.read(recipe.store, name)), pytest.raises(ArtifactError, match="none was active before it"):
        Together(recipe.store)


def test_following_goes_on_after_what_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = iter([KeyError("unforeseen"), "new"])

    def active(_: object) -> Any:
        found = next(looks, "new")
        if isinstance(found, Exception):
            raise found
        return found

    def front(name: str) -> Any:
        rules = SimpleNamespace(refresh=lambda: None, ruling=None)
        return SimpleNamespace(bundle=SimpleNamespace(id=name), rules=rules)

    async def prove(_: object) -> None:
        return None

    async def live() -> None:
        fronts: Any = SimpleNamespace(get=front)
        pool: Any = None
        async with running(Following(pool, fronts, prove)) as replica:
            assert replica.front.bundle.id == "old"
            await until(lambda: replica.front.bundle.id == "new")

    monkeypatch.setattr(following, "FOLLOW_S", 0.001)
    monkeypatch.setattr(following, "startable", lambda _: ["old"])
    monkeypatch.setattr(following, "active", active)
    monkeypatch.setattr(following, "experiment", lambda _: None)
    monkeypatch.setattr(following.log, "handlers", [caplog.handler])  # Ray's loggers may not propagate
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        asyncio.run(live())
    assert "staying with bundle old" in caplog.text
    assert "unforeseen" in caplog.text
