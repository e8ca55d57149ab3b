"""How a replica follows bundles and rules: a bundle that cannot be served changes nothing else, even at a start."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from rec import bundle, postgres, publish
from rec.config import Config
from rec.errors import ArtifactError, DatabaseError
from rec.index import promote, rule_versions
from rec.index.connections import Connections
from rec.recommend.request import Request
from serve import following, loaded
from serve.answering import Answering
from serve.asking import Apart, Together
from serve.degrade import Away, Unavailable
from serve.exposures import ExposureLog
from serve.fallible import BackedFront
from serve.following import Following
from serve.loaded import Loaded, Wanted
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

    def fails(self: Ranker, which: Wanted, *given: Any) -> Any:
        if which.id == name:
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
            monkeypatch.setattr(loaded, "AGAIN_S", 0.2)
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


@pytest.mark.parametrize("answers", [True, False])
def test_a_bundle_that_is_rolled_back_while_it_is_tried_neither_takes_over_nor_is_refused(
    world: World, answers: bool
) -> None:
    async def live() -> None:
        tried, over = asyncio.Event(), asyncio.Event()
        replica = world.replica()
        prove = replica._prove

        async def slowly(front: BackedFront) -> None:
            await prove(front)
            if front.bundle.id == world.new.id:
                tried.set()
                await over.wait()
                if not answers:
                    raise ZeroDivisionError

        replica._prove = slowly
        taken: list[str] = []
        take = replica._take
        replica._take = lambda front: (taken.append(front.bundle.id), take(front))[1]  # type: ignore[method-assign]
        async with running(replica):
            world.promote()
            await tried.wait()
            publish.rollback(world.recipe)
            over.set()
            version = world.rule()
            await until(lambda: world.told.version == version)
            await asyncio.sleep(0.5)
            assert (replica.front.bundle.id, replica.refused) == (world.old.id, None)
        assert world.new.id not in taken

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


def test_the_bundle_that_answered_before_can_be_named_and_its_rules_are_followed(world: World) -> None:
    def named(replica: Following) -> list[str]:
        return [front.bundle.id for front in replica.fronts()]

    def versions(replica: Following) -> list[int]:
        rulings = [front.rules.ruling for front in replica.fronts()]
        return [0 if ruling is None else ruling.number for ruling in rulings]

    async def live() -> None:
        async with running(world.replica()) as replica:
            assert named(replica) == [world.old.id]
            world.promote()
            await until(lambda: replica.front.bundle.id == world.new.id)
            assert named(replica) == [world.new.id, world.old.id]
            version = world.rule()
            await until(lambda: versions(replica) == [version, version])
            publish.rollback(world.recipe)
            await until(lambda: replica.front.bundle.id == world.old.id)
            assert named(replica) == [world.old.id, world.new.id]

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


class Alone:
    """What a replica follows where nothing is loaded and nobody asked: bundles by name, proved by `prove`."""

    def __init__(self, patch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, *startable: str) -> None:
        self.active: Callable[[], str] = lambda: startable[0]
        self.fails: Callable[[str], BaseException | None] = lambda name: None
        self.proved: list[str] = []
        self.products: dict[str, set[str]] = {}
        """Of bundles by name."""
        self.told = Told()
        patch.setattr(following, "FOLLOW_S", 0.001)
        patch.setattr(following, "startable", lambda _: list(startable))
        patch.setattr(following, "active", lambda _: self.active())
        patch.setattr(following, "experiment", lambda _: None)
        patch.setattr(following, "metrics", lambda: self.told)
        for module in (following, loaded):
            patch.setattr(module.log, "handlers", [log.handler])  # Ray's loggers may not propagate

    def replica(self) -> Following:
        """One that has not begun."""
        fronts: Any = SimpleNamespace(get=self._front, kept=self._front)
        pool: Any = None
        return Following(pool, fronts, self._prove)

    def _front(self, name: str) -> Any:
        rules = SimpleNamespace(refresh=lambda: None, ruling=SimpleNamespace(number=len(self.proved)))
        shelf = SimpleNamespace(
            known=lambda product_id: product_id in self.products[name],
            unknown=lambda product_ids: [
                each for each in dict.fromkeys(product_ids) if each not in self.products[name]
            ],
        )
        return SimpleNamespace(bundle=SimpleNamespace(id=name), rules=rules, shelf=shelf)

    async def _prove(self, front: Any) -> None:
        self.proved.append(front.bundle.id)
        error = self.fails(front.bundle.id)
        if error is not None:
            raise error


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Alone:
    return Alone(monkeypatch, caplog, "old", "older")


def test_a_product_that_only_the_bundle_before_has_is_known(alone: Alone) -> None:
    alone.products = {"old": {"both", "gone"}, "new": {"both", "fresh"}}

    async def live() -> None:
        async with running(alone.replica()) as replica:
            assert replica.unknown(["gone", "both", "fresh"]) == ["fresh"]
            alone.active = lambda: "new"
            await until(lambda: replica.front.bundle.id == "new")
            assert replica.unknown(["gone", "nowhere", "both", "nowhere", "fresh"]) == ["nowhere"]
            found = {name: replica.having(name) for name in ("both", "gone", "fresh", "nowhere")}
            assert {name: front and front.bundle.id for name, front in found.items()} == {
                "both": "new",
                "gone": "old",
                "fresh": "new",
                "nowhere": None,
            }

    asyncio.run(live())


def test_a_refused_bundle_cannot_be_named(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "AGAIN_S", 0.001)

    async def live() -> None:
        async with running(alone.replica()) as replica:
            alone.active = lambda: "new"
            await until(lambda: replica.front.bundle.id == "new")
            assert [front.bundle.id for front in replica.fronts()] == ["new", "old"]
            alone.fails = lambda name: Unavailable("Ranker: a weight is no number") if name == "old" else None
            alone.active = lambda: "old"
            await until(lambda: replica.refused is not None)
            assert [front.bundle.id for front in replica.fronts()] == ["new"]
            alone.active = lambda: "new"
            await until(lambda: replica.refused is None)
            assert [front.bundle.id for front in replica.fronts()] == ["new"], "it did not answer"

    asyncio.run(live())


@pytest.mark.parametrize("where", ["a look", "a stage"])
def test_following_goes_on_after_what_nobody_foresaw(
    alone: Alone, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    looks = iter([KeyError("unforeseen")] if where == "a look" else [])
    calls = iter([asyncio.CancelledError("by Serve")] if where == "a stage" else [])

    def active() -> str:
        for error in looks:
            raise error
        return "new"

    async def live() -> None:
        async with running(alone.replica()) as replica:
            assert replica.front.bundle.id == "old"
            alone.active, alone.fails = active, lambda name: next(calls, None)
            await until(lambda: replica.front.bundle.id == "new")

    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        asyncio.run(live())
    assert "staying with bundle old, the look for the active bundle" in caplog.text
    assert ("unforeseen" in caplog.text) == (where == "a look")


def test_following_waits_for_no_thread_of_others(alone: Alone) -> None:
    async def live() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        thaw = threading.Event()
        frozen = asyncio.create_task(asyncio.to_thread(thaw.wait))
        try:
            async with running(alone.replica()) as replica:
                alone.active = lambda: "new"
                await until(lambda: replica.front.bundle.id == "new")
            assert not frozen.done()
        finally:
            thaw.set()

    asyncio.run(live())


def test_a_task_that_is_cancelled_ends(alone: Alone) -> None:
    async def live() -> None:
        async with running(alone.replica()) as replica:
            tasks = replica._tasks
            await until(lambda: alone.told.refuses == 0)
        async with asyncio.timeout(30):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(live())


def test_where_a_stage_fails_for_every_bundle_the_active_one_begins_without_it(alone: Alone) -> None:
    alone.fails = lambda name: Unavailable("Ranker: a weight is no number")

    async def live() -> None:
        async with running(alone.replica()) as replica:
            assert (replica.front.bundle.id, replica.refused) == ("old", None)
            assert alone.proved == ["old", "older"]
            await until(lambda: alone.told.refuses == 0)

    asyncio.run(live())


@pytest.mark.parametrize("error", [Away("Ranker: the actor died"), DatabaseError("away")])
def test_what_is_away_is_waited_for_at_a_start(alone: Alone, error: Exception) -> None:
    fails = iter([error] * 5)
    alone.fails = lambda name: next(fails, None)

    async def live() -> None:
        async with running(alone.replica()) as replica:
            assert (replica.front.bundle.id, replica.refused) == ("old", None)
            assert alone.proved == ["old"] * 6

    asyncio.run(live())


def test_a_replica_begins_without_what_stays_away(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOADING_S", 0.05)
    alone.fails = lambda name: Away("Ranker: the actor died")

    async def live() -> None:
        async with running(alone.replica()) as replica:
            assert (replica.front.bundle.id, replica.refused) == ("old", None)
            assert len(alone.proved) > 1
            assert set(alone.proved) == {"old"}
            await until(lambda: alone.told.refuses == 0)

    asyncio.run(live())


def test_where_an_answer_fails_in_the_replica_itself_it_does_not_begin(alone: Alone) -> None:
    alone.fails = lambda name: KeyError("unforeseen")
    with pytest.raises(ArtifactError, match="bundle old: KeyError: 'unforeseen'; bundle older: KeyError"):
        asyncio.run(alone.replica().begin())


@pytest.mark.parametrize("error", [Away("Ranker: the actor died"), DatabaseError("away")])
def test_what_is_away_is_not_held_against_the_next_bundle(
    alone: Alone, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(loaded, "AGAIN_S", 0.001)
    fails = iter([error] * 3)
    refused = []

    async def live() -> None:
        async with running(alone.replica()) as replica:

            def fails_for(name: str) -> Exception | None:
                refused.append((replica.refused, alone.told.refuses == 1))
                return next(fails, None)

            alone.fails = fails_for
            alone.active = lambda: "new"
            await until(lambda: replica.front.bundle.id == "new")

    asyncio.run(live())
    assert refused == [(None, False)] * 4


def test_a_bundle_that_does_not_answer_is_asked_ever_more_seldom(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], list[tuple[str, float]]()
    monkeypatch.setattr(loaded, "AGAIN_S", 2.0)
    monkeypatch.setattr(loaded, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))

    def active() -> str:
        now[0] += 1
        return "new" if now[0] < 1_200 else "newer"

    def fails(name: str) -> Exception:
        asked.append((name, now[0]))
        return Unavailable("Ranker: a weight is no number")

    async def live() -> None:
        async with running(alone.replica()) as replica:
            monkeypatch.setattr(following, "FOLLOW_S", 0)
            alone.active, alone.fails = active, fails
            await until(lambda: now[0] > 1_203)
            assert replica.front.bundle.id == "old"

    asyncio.run(live())
    times = [at for name, at in asked if name == "new"]
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == [
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        300,
        300,
    ]
    assert [at for name, at in asked if name == "newer"][:2] == [1_200, 1_202], "at once"


@pytest.mark.parametrize(
    ("cause", "away"),
    [(DatabaseError("no connection"), True), (ArtifactError("torn"), False), (ZeroDivisionError("a weight"), False)],
)
def test_a_stage_whose_database_is_away_is_away(world: World, cause: Exception, away: bool) -> None:
    def rank(*_: object) -> None:
        raise cause

    async def answer() -> None:
        raise RayTaskError("rank", "Traceback", cause).as_instanceof_cause()

    handle: Any = SimpleNamespace(rank=SimpleNamespace(remote=answer))
    for asking in (world.together, Apart({Ranker: handle})):
        with pytest.raises(Unavailable) as found:
            asyncio.run(asking.ask(5, Ranker, rank))
        assert isinstance(found.value, Away) == away


@pytest.mark.parametrize("error", [ActorDiedError(), DeploymentUnavailableError(DeploymentID("Ranker")), None])
def test_a_stage_that_is_dead_or_slow_is_away(error: Exception | None) -> None:
    def rank(*_: object) -> None:
        raise AssertionError

    async def answer() -> None:
        if error is not None:
            raise error
        await asyncio.sleep(30)

    handle: Any = SimpleNamespace(rank=SimpleNamespace(remote=answer))
    with pytest.raises(Away):
        asyncio.run(Apart({Ranker: handle}).ask(0.05, Ranker, rank))
