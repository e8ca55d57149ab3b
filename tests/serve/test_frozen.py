"""A Postgres that says nothing, neither yes nor no: everybody is answered in time, by as many threads as before."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any

import pytest

from rec import postgres
from rec.config import Config
from rec.errors import DatabaseError
from rec.index import forget
from rec.index.connections import Connections, within
from rec.recommend.request import Request
from rec.recommend.retrieve import Retriever as BundleRetriever
from serve import searching, stages
from serve.answering import Answering
from serve.app import _forgotten
from serve.asking import timely
from serve.degrade import Unavailable
from serve.fallible import DEADLINE_S, BackedFront
from serve.loaded import Wanted
from serve.searching import Searching
from serve.stages import Retriever
from tests.serve.conftest import frozen

AT_ONCE = 32
"""As many as a replica takes."""
SLACK_S = 1.0


@pytest.fixture(scope="module")
def stage(own: Config) -> Retriever:
    return Retriever(own.store)


async def timed(answering: Answering, front: BackedFront) -> list[tuple[dict[str, Any], float]]:
    """Answers to AT_ONCE shoppers, each with the seconds it took."""

    async def one(number: int) -> tuple[dict[str, Any], float]:
        began = time.monotonic()
        answer = await answering.recommend(front, Request(user_id=f"u0{number % 10}", k=5))
        return answer, time.monotonic() - began

    return await asyncio.gather(*(one(number) for number in range(AT_ONCE)))


@pytest.mark.slow
@pytest.mark.parametrize("postmaster", [True, False], ids=["all of it", "its connections"])
def test_everybody_is_answered_in_time_and_wholly_as_soon_as_it_goes_on(
    own: Config, front: BackedFront, answering: Answering, postmaster: bool
) -> None:
    def degraded(found: list[tuple[dict[str, Any], float]]) -> set[str]:
        return {code for answer, _ in found for code in answer["degraded"]}

    assert degraded(asyncio.run(timed(answering, front))) == set()
    with frozen(own.store, postmaster=postmaster):
        first, then = asyncio.run(timed(answering, front)), asyncio.run(timed(answering, front))
        for found in (first, then):
            assert max(seconds for _, seconds in found) < DEADLINE_S + SLACK_S
            assert {len(answer["items"]) for answer, _ in found} == {5}
        assert degraded(first) >= {"history_unavailable", "ann_unavailable"}
        assert degraded(then) == (
            {"history_unavailable", "ann_unavailable", "prices_unavailable"} if postmaster else set()
        ), "new connections are as good as others"
    deadline = time.monotonic() + 60
    while degraded(asyncio.run(timed(answering, front))):
        assert time.monotonic() < deadline, "it does not recover"


@pytest.mark.slow
def test_what_only_the_database_knows_is_refused_in_time(own: Config, front: BackedFront) -> None:
    async def users() -> list[float]:
        async def one() -> float:
            began = time.monotonic()
            with pytest.raises(DatabaseError):
                await timely(None, 2.0, front.catalogue.stored, "u04")
            return time.monotonic() - began

        return await asyncio.gather(*(one() for _ in range(AT_ONCE)))

    with frozen(own.store, postmaster=True):
        assert max(asyncio.run(users())) < 2.0 + SLACK_S
    deadline = time.monotonic() + 60
    while True:
        try:
            stored = front.catalogue.stored("u04")
            break
        except DatabaseError:
            assert time.monotonic() < deadline, "it does not recover"
    assert stored is not None


@contextmanager
def locked(store: str) -> Iterator[None]:
    """Meanwhile nobody gets at the lists that were shown."""
    with postgres.session(postgres.url(store)) as connection:
        connection.execute("LOCK TABLE exposures")
        yield


@pytest.mark.parametrize(
    "held",
    [locked, pytest.param(lambda store: frozen(store, postmaster=True), id="frozen", marks=pytest.mark.slow)],
)
def test_who_cannot_be_forgotten_now_holds_no_thread(
    own: Config, front: BackedFront, held: Callable[[str], AbstractContextManager[None]]
) -> None:
    async def forgetting(count: int) -> None:
        what = (forget.forget_client, own.store, own.name, "c04")
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(timely(None, 2.0, _forgotten, *what))

    async def live() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))  # in which others follow rules
        await forgetting(1)
        with held(own.store):
            with pytest.raises(ExceptionGroup) as refused:
                await forgetting(3)
            assert {type(error) for error in refused.value.exceptions} == {DatabaseError}
            async with asyncio.timeout(SLACK_S):
                await asyncio.to_thread(threading.get_ident)
        await until_it_answers(front)
        await forgetting(1)

    asyncio.run(live())


async def until_it_answers(front: BackedFront) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await asyncio.to_thread(front.rules.refresh)
            except DatabaseError:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("method", ["retrieve", "popular", "passing", "similar"])
def test_a_search_ends_when_its_caller_has_gone(
    front: BackedFront, stage: Retriever, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: BundleRetriever, *given: Any, **named: Any) -> None:
        stage._connections.run(lambda connection: connection.execute("SELECT pg_sleep(30)"))

    monkeypatch.setattr(BundleRetriever, method, slow)
    monkeypatch.setattr(stages, "STAGE_S", 0.3)
    count = len(signature(getattr(Retriever, method)).parameters) - 2
    began = time.monotonic()
    with pytest.raises(DatabaseError, match="Silent"):
        getattr(stage, method)(Wanted(front.bundle.id, load=True), *[None] * count)
    assert time.monotonic() - began < SLACK_S


def test_a_flood_of_searches_leaves_recommendations_their_connections(
    front: BackedFront, opened: Connections, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def slow(query: str, limit: int, known: Callable[[str], bool]) -> list[str]:
        with opened.use():
            assert done.wait(30)
        return ["P0003"]

    monkeypatch.setattr(front.catalogue, "find", slow)
    monkeypatch.setattr(searching, "SEARCH_S", 30.0)
    searches, refused, found = Searching(), list[Unavailable](), list[dict[str, Any]]()

    async def search() -> None:
        try:
            found.extend(await searches.find(front, "dress", 3, evidence=False))
        except Unavailable as error:
            refused.append(error)

    async def flood() -> list[tuple[dict[str, Any], float]]:
        flooding = [asyncio.create_task(search()) for _ in range(AT_ONCE)]
        await asyncio.sleep(0.05)
        assert len(refused) == AT_ONCE - searching.MOST, "at once"
        try:
            return await timed(answering, front)
        finally:
            done.set()
            await asyncio.gather(*flooding)

    answers = asyncio.run(flood())
    assert [answer["degraded"] for answer, _ in answers] == [[]] * AT_ONCE
    assert [item["product_id"] for item in found] == ["P0003"] * searching.MOST
    asyncio.run(search())
    assert len(found) == searching.MOST + 1, "whoever comes later"


def test_no_time_is_left_for_what_comes_after_the_deadline(
    front: BackedFront, answering: Answering, opened: Connections
) -> None:
    late = asyncio.run(answering.recommend(front, Request(user_id="u04", k=5), patience=0.0))
    assert late["degraded"] == [
        "history_unavailable",
        "user_tower_unavailable",
        "ann_unavailable",
        "prices_unavailable",
    ]
    assert len(late["items"]) == 5
    with pytest.raises(DatabaseError, match="no time"), within(0.0), within(9.0), opened.use():
        pass
    assert asyncio.run(answering.recommend(front, Request(user_id="u04", k=5)))["degraded"] == []
